"""RoleLLM (arXiv 2310.00746) step by step: one flat module a stage, used by the notebooks of the same number."""

import warnings

# Libraries that import tqdm's notebook bar complain when widgets are not installed; ours is the plain bar.
warnings.filterwarnings("ignore", message="IProgress not found")
