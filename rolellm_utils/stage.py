"""What every notebook does first and last: take its parameters, find its inputs, write its manifest.

`outputs/<run>/manifests/<stage>.json` is written last, so a stage with a manifest is complete. It says what went in
(parameters, file hashes, code) and what came out, and a stage whose manifest still matches need not run again.
"""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from rolellm_utils.files import ROOT, outputs_dir, read_json, resolve, sha256, shown, unshown, write_json
from rolellm_utils.prompts import templates
from rolellm_utils.records import InputError

STAGES = ("01_profiles", "02_context_instruct", "03_rolegpt", "04_rolebench", "05_rocit", "06_eval")
NEEDS = {
    "01_profiles": (),
    "02_context_instruct": ("01_profiles",),
    "03_rolegpt": ("01_profiles", "02_context_instruct"),
    "04_rolebench": ("01_profiles", "02_context_instruct", "03_rolegpt"),
    "05_rocit": ("01_profiles", "04_rolebench"),
    "06_eval": ("01_profiles", "03_rolegpt", "04_rolebench", "05_rocit"),
}
NOTEBOOKS = ROOT / "notebooks"
REFERENCE = ROOT / "outputs" / "reference"
PACKAGES = ("bm25s", "jieba", "numpy", "openai", "papermill", "peft", "rapidfuzz", "torch", "transformers", "xllamacpp")
KINDS = {
    "int": (int, "write a whole number"),
    "float": ((int, float), "write a number, such as 1.0e-4 (YAML reads 1e-4 as text)"),
    "str": (str, "quote it"),
    "bool": (bool, "write true or false"),
    "list": (list, "write a list of texts such as [Oswin, Neha]"),
}
# Numbers of which a wrong one would leave a stage without rows or fail late.
FROM_ZERO = {
    "steps", "temperature", "prediction_temperature", "script_agnostic", "triplets_per_role", "examples", "samples",
    "seed", "general_instructions", "held_out", "row_limit", "answers_per_row", "reasks", "max_usd",
    "requests_per_minute", "tokens_per_minute",
}  # fmt: skip
FROM_ONE = {
    "in_flight", "references", "script_based", "triplets_per_call", "profile_lines", "rank", "alpha", "epochs",
    "batch_size", "prediction_batch", "bootstrap_draws", "profile_tokens", "triplet_tokens", "answer_tokens",
    "prediction_tokens", "example_words", "segment_words", "max_length",
}  # fmt: skip
SHARES = {"test_share", "top_p", "similarity"}
LANGUAGES = {"en": "eng", "zh": "zh"}


@dataclass
class Stage:
    """One stage of one run: its name, run folder, parameters, and the input files it has read so far."""

    name: str
    dir: Path
    parameters: dict
    files_read: list = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def reads(self, path):
        """The path of an input file named by a parameter; its hash goes into the manifest."""
        self.files_read.append(resolve(path))
        return self.files_read[-1]


def start(name, namespace):
    """The Stage of a notebook from the parameters in its namespace (the annotated names), with its inputs in place.

    Raises InputError for a value of the wrong type, an unknown language, and an input no earlier stage has made.
    """
    types = {key: kind for key, kind in namespace["__annotations__"].items() if not key.startswith("_")}
    parameters = {key: namespace[key] for key in types}
    for key, value in parameters.items():
        check_type(key, value, types[key].__name__)
    check_language(parameters["language"])
    check_run_name(parameters["run"])
    stage = Stage(name, outputs_dir() / parameters["run"], parameters)
    if parameters.get("rolebench_dir") and manifest(stage.dir, "01_profiles"):
        raise InputError(
            f"run {parameters['run']!r} holds roles of your own scripts; give another run name to use rolebench_dir"
        )
    for needed in needs(name, parameters):
        _bring(stage.dir, needed, name, parameters)
    return stage


def needs(name, parameters):
    """The stages whose files a stage reads: none before 04 with a `rolebench_dir`, no training for student "none"."""
    needed = NEEDS[name]
    if parameters.get("rolebench_dir"):
        needed = tuple(earlier for earlier in needed if earlier >= "04_rolebench")
    if parameters.get("student") == "none":
        needed = tuple(earlier for earlier in needed if earlier != "05_rocit")
    return needed


def check_type(key, value, kind):
    """None when a parameter has the declared type and is in range (an int is a valid float); InputError when not."""
    accepted, way_out = KINDS[kind]
    # bool is a subclass of int, but `steps: true` is a mistake.
    fits = isinstance(value, accepted) and (kind == "bool" or not isinstance(value, bool))
    if not fits or (kind == "list" and not all(isinstance(entry, str) for entry in value)):
        raise InputError(f"parameter {key} is {value!r}, which is no {kind}; {way_out}")
    if key in FROM_ZERO | FROM_ONE and value < (key in FROM_ONE):
        raise InputError(f"parameter {key} is {value!r}; it must be {int(key in FROM_ONE)} or more")
    if key in SHARES and not 0 < value <= 1:
        raise InputError(f"parameter {key} is {value!r}; it must be above 0 and at most 1")


def check_language(language):
    """None for a language the kit has prompts for; InputError otherwise."""
    if language not in LANGUAGES:
        raise InputError(f"language is {language!r}; set it to 'en' or 'zh'")


def check_run_name(run):
    """None when `run` can be a folder name of its own; InputError when not."""
    if not run or run in {".", ".."} or set(run) & set('/\\:*?"<>|') or run.casefold() == REFERENCE.name:
        raise InputError(f"run is {run!r}; give it a plain folder name other than 'reference'")


def check_made(run_dir, needed, name, parameters):
    """None when a run has an earlier stage's files or, being the default run, can take them from the reference."""
    in_reference = run_dir.name == "default" and not parameters.get("rolebench_dir") and manifest(REFERENCE, needed)
    if not manifest(run_dir, needed) and not in_reference:
        raise InputError(
            f"{name} needs the files of {needed}, which run {run_dir.name!r} does not have; run {needed} first"
        )


def _bring(run_dir, needed, name, parameters):
    """See that the files of an earlier stage are there; a default run takes lacking ones from the reference run."""
    if record := manifest(run_dir, needed):
        # Those that are not here went into the reference run, from which a default run copies only what it needs.
        ours = {unshown(path): digest for path, digest in record["inputs"].items() if path.startswith("outputs/")}
        changed = [shown(path) for path, digest in ours.items() if path.exists() and sha256(path) != digest]
        if changed:
            raise InputError(
                f"{name} needs the files of {needed}, which were made before {changed[0]} changed; run {needed} again"
            )
        return
    check_made(run_dir, needed, name, parameters)
    for earlier in NEEDS[needed]:
        ours, theirs = manifest(run_dir, earlier), manifest(REFERENCE, earlier)
        if ours and theirs and ours["outputs"] != theirs["outputs"] and earlier != "05_rocit":
            raise InputError(
                f"{name} needs the files of {needed}; the reference run's do not fit, since this run's {earlier} "
                f"differs; run {needed} first"
            )
    record = manifest(REFERENCE, needed)
    for path in [*record["outputs"], f"manifests/{needed}.json"]:
        (run_dir / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REFERENCE / path, run_dir / path)


def manifest(run_dir, name):
    """The manifest of a stage, or None when it has none or one of the files it names is gone."""
    path = run_dir / "manifests" / f"{name}.json"
    record = read_json(path) if path.exists() else None
    return record if record and all((run_dir / made).exists() for made in record["outputs"]) else None


def finish(stage, outputs, teacher=None):
    """Write the stage's manifest, its last act; the path. `outputs` are the files it made, below the run folder."""
    used = dict(teacher.used) if teacher else {}
    if teacher:
        teacher.close()
    record = {
        "stage": stage.name,
        "run": stage.dir.name,
        "parameters": stage.parameters,
        "inputs": {shown(path): sha256(path) for path in input_files(stage)},
        "outputs": {path.relative_to(stage.dir).as_posix(): sha256(path) for path in sorted(outputs)},
        "code": code_hash(stage.name),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "prompts": templates(stage.parameters["language"])["version"],
        "teacher": used,
        "seconds": round(time.perf_counter() - stage.started, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return write_json(stage.dir / "manifests" / f"{stage.name}.json", record)


def input_files(stage):
    """The files a stage depends on: those named by its parameters and the outputs of the stages it needs."""
    made = [
        stage.dir / path
        for needed in needs(stage.name, stage.parameters)
        for path in manifest(stage.dir, needed)["outputs"]
    ]
    return [*stage.files_read, *made]


def code_hash(name):
    """The SHA-256 of what computes a stage: its notebook's code cells and the library with its prompts."""
    notebook = read_json(NOTEBOOKS / f"{name}.ipynb")
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    digest = hashlib.sha256(json.dumps(cells).encode())
    library = ROOT / "rolellm_utils"
    prices = library / "prices.yaml"  # a new price changes no result
    for path in sorted({*library.rglob("*.py"), *library.rglob("*.yaml")} - {prices}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(run_dir, name, parameters):
    """True when the stage's manifest matches these parameters, the code, and all input and output files as they are."""
    record = manifest(run_dir, name)
    if not record or record["parameters"] != parameters or record["code"] != code_hash(name):
        return False
    needed = {}
    for earlier in needs(name, parameters):
        before = manifest(run_dir, earlier)
        if not before:
            return False
        needed |= {shown(run_dir / path): digest for path, digest in before["outputs"].items()}
    if any(record["inputs"].get(path) != digest for path, digest in needed.items()):
        return False
    files = {unshown(path): digest for path, digest in record["inputs"].items()}
    files |= {run_dir / path: digest for path, digest in record["outputs"].items()}
    return all(is_same(path, digest) for path, digest in files.items())


def is_same(path, digest):
    """True when the file is there and has this SHA-256."""
    return path.exists() and sha256(path) == digest
