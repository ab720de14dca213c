"""What tests and nbval run under: quiet, offline, recorded replies only, outputs in a folder of their own."""

import atexit
import os
import shutil
import tempfile

QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(QUIET)
os.environ.setdefault("ROLELLM_REPLAY", "only")
if "ROLELLM_OUTPUTS" not in os.environ:
    os.environ["ROLELLM_OUTPUTS"] = tempfile.mkdtemp(prefix="rolellm-tests-")
    atexit.register(shutil.rmtree, os.environ["ROLELLM_OUTPUTS"], ignore_errors=True)
