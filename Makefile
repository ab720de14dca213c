# RoleLLM, reproduced: `make reproduce` is the whole story; `make` alone lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PARAMS ?= params/quick.yaml
# More for the command line: make reproduce PARAMS=params/rolebench_zh.yaml ARGS="-p rolebench_dir path/to/RoleBench"
ARGS ?=
BIN := .venv/bin
QUIET := HF_HUB_DISABLE_PROGRESS_BARS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test notebooks lab clean

help:  ## list the targets
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.venv/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@# The library is used from this folder, as `pip install -e .` would have it, without a build.
	$(BIN)/python -c "import pathlib, site; pathlib.Path(site.getsitepackages()[0], 'rolellm.pth').write_text(str(pathlib.Path.cwd()))"
	@touch $@

setup: .venv/.installed  ## environment and embedded model (needs the network once)
	@HF_HUB_DISABLE_PROGRESS_BARS=1 $(BIN)/python -m rolellm_utils.embedded

reproduce: setup  ## run the six notebooks of PARAMS=params/quick.yaml; finished stages are skipped
	@$(QUIET) $(BIN)/python -m rolellm_utils.run $(PARAMS) $(ARGS)

test: setup  ## ruff, unit tests, nbval over the six notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/python -m pytest --quiet --nbval

notebooks: setup  ## run the notebooks with their defaults, in place; refresh recordings and reference run
	@$(QUIET) HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(BIN)/python -m rolellm_utils.recording

lab: setup  ## open the notebooks in JupyterLab on this machine
	$(BIN)/jupyter lab --ip=127.0.0.1 notebooks

clean:  ## delete every run but the reference (the store of paid replies stays)
	find outputs -mindepth 1 -maxdepth 1 -type d ! -name reference -exec rm -rf {} +
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .hypothesis
