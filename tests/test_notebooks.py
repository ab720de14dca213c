"""What must hold of every committed notebook and parameter file, whatever it computes."""

import re

import nbformat
import pytest
import yaml

from rolellm_utils import run
from rolellm_utils.files import ROOT
from rolellm_utils.stage import NEEDS, NOTEBOOKS, REFERENCE, STAGES, check_type, manifest

LEAKS = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|usr|opt|var)/\w|[A-Z]:\\\\|sk-[A-Za-z0-9]{16}|site-packages")


def load(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_the_six_stages_and_nothing_else():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == list(STAGES) == list(NEEDS)


@pytest.mark.parametrize("name", STAGES)
def test_notebook(name):
    notebook = load(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1], "the first code cell, and it alone, is the parameters cell"
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    assert not any("papermill" in cell.metadata for cell in notebook.cells) and "papermill" not in notebook.metadata
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a stage is worth a figure"
    text = nbformat.writes(notebook)
    assert not LEAKS.search(text), LEAKS.search(text)
    assert not re.search(r" at 0x[0-9a-f]+", text), "a memory address changes from run to run"


@pytest.mark.parametrize("name", STAGES)
def test_a_notebook_reads_like_a_lecture(name):
    cells = load(name).cells
    first, last = cells[0].source, cells[-1].source
    assert first.startswith(f"# {name[:2]} ") and "\n> " in first and "| paper |" in first and "| time |" in first
    assert last.startswith("**Written:**")
    code = [cell.source.splitlines() for cell in cells if cell.cell_type == "code"]
    assert sorted(len(lines) for lines in code)[len(code) // 2] <= 6
    assert max(len(lines) for lines in code[1:]) <= 16
    pairs = zip(cells, cells[1:], strict=False)
    bare = [after.id for before, after in pairs if before.cell_type == after.cell_type == "code"]
    assert len(bare) <= 1, f"code cells without a sentence before them: {bare}"
    exempt = [cell for cell in cells if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(exempt) <= 2


def test_parameters_are_annotated_commented_and_mean_the_same_everywhere():
    seen = {}
    for name in STAGES:
        cell = next(cell for cell in load(name).cells if cell.cell_type == "code")
        for line in cell.source.splitlines():
            assert re.fullmatch(r"\w+: (int|float|str|bool|list) = .+  # .+", line), f"{name}: {line}"
        for key, (kind, default) in run.declared(name).items():
            check_type(key, default, kind)
            assert seen.setdefault(key, (kind, default)) == (kind, default), f"{key} differs in {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "params").rglob("*.yaml")), ids=lambda path: path.stem)
def test_params_file(path):
    text = path.read_text(encoding="utf-8")
    run.resolve_parameters(run.read_params(path))
    assert not LEAKS.search(text) and text.startswith("# ")
    assert all(not isinstance(value, dict) for value in yaml.safe_load(text).values()), "flat"


def test_quick_is_as_large_as_promised():
    values = run.read_params(ROOT / "params/quick.yaml")
    parameters = run.resolve_parameters(values)
    assert len(values["roles"]) == 3 and values["replay"] is False
    assert parameters["03_rolegpt"]["general_instructions"] >= 12 and parameters["03_rolegpt"]["references"] == 2
    assert parameters["05_rocit"]["epochs"] == 1 and parameters["05_rocit"]["steps"] == 0


def test_the_reference_run_is_complete():
    for name in STAGES[:5]:
        record = manifest(REFERENCE, name)
        assert all((REFERENCE / path).exists() for path in record["outputs"]), name
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    for path in files:
        if path.suffix != ".safetensors":
            assert not LEAKS.search(path.read_text(encoding="utf-8")), path
