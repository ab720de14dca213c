"""RoleLLM (arXiv 2310.00746) step by step: one flat module a stage, used by the notebooks of the same number."""
