"""`make notebooks`: run the six notebooks with their defaults, in place; refresh recorded replies and reference run.

With replies recorded for every request the notebooks come out byte-identical, run after run. When a prompt or a
default changed, a reply lacks: then everything is asked anew from the embedded model and recorded.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rolellm_utils.files import ROOT, read_json, sha256, write_json
from rolellm_utils.stage import NOTEBOOKS, REFERENCE, STAGES
from rolellm_utils.store import record
from rolellm_utils.teacher import RECORDED

KEPT = ("rolebench", "rolegpt", "rejected", "audit", "rocit", "eval/predictions", "manifests")


def execute(outputs, replay):
    """True when the six notebooks ran in place with their defaults; False when a recorded reply lacked."""
    environment = os.environ | {"ROLELLM_OUTPUTS": str(outputs), "ROLELLM_REPLAY": replay}
    for name in STAGES:
        path = NOTEBOOKS / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            executed = Path(folder) / path.name
            command = [sys.executable, "-m", "papermill", str(path), str(executed), "--cwd", str(NOTEBOOKS)]
            done = subprocess.run([*command, "--no-progress-bar"], env=environment, capture_output=True, text=True)
            if done.returncode and "the recorded replies hold no answer" in done.stderr:
                return False
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            shutil.copyfile(executed, path)
        print(f"{name}: executed", flush=True)
    return True


def normalise():
    """Strip what differs from run to run from the notebooks: times, paths, papermill's own notes."""
    keys = "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info metadata.widgets"
    command = [sys.executable, "-m", "nbstripout", "--keep-output", "--keep-count", "--keep-id", "--extra-keys", keys]
    subprocess.run([*command, *(str(NOTEBOOKS / f"{name}.ipynb") for name in STAGES)], check=True)


def keep_reference(run_dir):
    """Copy the small results of a default run to outputs/reference.

    An adapter of the same settings and data stays as it is: training anew would only change its last digits.
    """
    adapters = [path.relative_to(run_dir) for path in (run_dir / "rocit").iterdir() if path.is_dir()]
    same = all(
        (REFERENCE / adapter / "training.json").exists()
        and read_json(REFERENCE / adapter / "training.json")["fingerprint"]
        == read_json(run_dir / adapter / "training.json")["fingerprint"]
        for adapter in adapters
    )
    for part in KEPT:
        if same and part == "rocit":
            continue
        shutil.rmtree(REFERENCE / part, ignore_errors=True)
        shutil.copytree(run_dir / part, REFERENCE / part)
    for path in sorted((REFERENCE / "manifests").glob("*.json")):
        manifest = {key: value for key, value in read_json(path).items() if key not in ("seconds", "finished")}
        if path.stem == "05_rocit":
            manifest["outputs"] = {name: sha256(REFERENCE / name) for name in manifest["outputs"]}
        write_json(path, manifest)


def main():
    """Regenerate; says at the end whether replies were recorded anew."""
    with tempfile.TemporaryDirectory() as folder:
        outputs, anew = Path(folder), False
        if not execute(outputs, "only"):
            anew = True
            print("a recorded reply lacks: asking everything anew", flush=True)
            shutil.rmtree(outputs, ignore_errors=True)
            execute(outputs, "off")
            count = record(outputs / "teacher.sqlite", RECORDED)
            print(f"{count} replies recorded in {RECORDED.relative_to(ROOT)}")
            # Once more, with a store that knows nothing, so that the committed outputs are those of a replayed run.
            outputs = outputs / "replayed"
            execute(outputs, "only")
        keep_reference(outputs / "default")
    normalise()
    print("notebooks normalised; replies recorded anew" if anew else "notebooks normalised; recordings unchanged")


if __name__ == "__main__":
    main()
