"""A Chinese run against a scripted teacher, killed in each stage: it ends, and no stored answer is asked again."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest

from rolellm_utils import rolebench
from rolellm_utils.files import ROOT, read_jsonl
from rolellm_utils.stage import STAGES
from tests import scripted_server

PARAMS = """# a small Chinese run
run: ferry
language: zh
scripts: [rolellm_utils/starter/night_ferry_zh.txt]
roles: [老鲁, 钱小满]
replay: false
teacher_model: scripted
in_flight: 2
script_based: 4
script_agnostic: 1
triplets_per_call: 1
general_instructions: 4
references: 1
steps: 2
batch_size: 2
prediction_tokens: 8
bootstrap_draws: 100
"""


def body_of(asked):
    return json.dumps([asked["messages"], asked["seed"] // 1000], ensure_ascii=False)


def stored(outputs):
    connection = sqlite3.connect(outputs / "teacher.sqlite")
    bodies = [json.loads(row[0]) for row in connection.execute(
        "SELECT body FROM requests WHERE key IN (SELECT key FROM replies)")]  # fmt: skip
    connection.close()
    return {json.dumps([body["messages"], body["seed"]], ensure_ascii=False) for body in bodies}


def kill(process):
    """SIGKILL to the run and its kernel, as when a machine goes down."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        os.kill(member.pid, signal.SIGKILL)
    process.wait()


def wait_until(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the run ended by itself:\n{process.communicate()[1][-2000:]}"
        assert time.monotonic() < end, "the stage was not reached"
        time.sleep(0.02)


def test_killed_in_every_stage(tmp_path):
    outputs = tmp_path / "outputs"
    (tmp_path / "p.yaml").write_text(PARAMS, encoding="utf-8")
    command = [sys.executable, "-m", "rolellm_utils.run", str(tmp_path / "p.yaml")]
    environment = os.environ | {"ROLELLM_OUTPUTS": str(outputs), "OPENAI_API_KEY": "sk-secret-of-the-test-0123456789"}
    with scripted_server.serve(delay=0.15) as (url, log):
        command += ["-p", "teacher_url", url]
        for number, name in enumerate(STAGES):
            begun = outputs / "ferry" / f".{name}.partial.ipynb"
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True)  # fmt: skip
            wait_until(begun.exists, process)
            before = len(log.asked)
            if number < 3:
                wait_until(lambda before=before: len(log.asked) > before, process)
            else:
                time.sleep(1.5)
            kill(process)
            assert not (outputs / "ferry" / "manifests" / f"{name}.json").exists(), f"{name} was over too soon"
            known, asked = stored(outputs), len(log.asked)
            # The next start, killed or not, asks for nothing that is stored.
            if number < 3:
                done = subprocess.run([*command, "--only", name[:2]], env=environment, cwd=ROOT, capture_output=True,
                                      text=True)  # fmt: skip
                assert done.returncode == 0, done.stderr
                again = known & {body_of(body) for body in log.asked[asked:]}
                assert not again, f"{len(again)} stored answers were asked again in {name}"
        asked = len(log.asked)
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(log.asked) == asked, "stages 4 to 6 ask nothing"
        again = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert again.stdout.count("up to date") == 6 and len(log.asked) == asked
    bench = rolebench.load(outputs / "ferry" / "rolebench", "zh")
    assert not bench.missing and {sample.role for sample in bench.general["train"]} == {"老鲁", "钱小满"}
    assert all("\u4e00" <= sample.generated[0][0] <= "\u9fff" for sample in bench.general["test"])
    predictions = read_jsonl(outputs / "ferry/eval/predictions/tuned_student.jsonl")
    assert len(predictions) == len(bench.general["test"]) + len(bench.role_specific["test"])
    assert (outputs / "ferry/eval/report.html").exists()
    leftovers = [path.name for path in (outputs / "ferry").rglob(".*") if "partial" in path.name or "tmp" in path.name]
    assert not leftovers, leftovers
    secret = [path for path in outputs.rglob("*") if path.is_file() and b"sk-secret" in path.read_bytes()]
    assert not secret, f"the key is in {secret}"


@pytest.fixture(autouse=True)
def no_replay_only(monkeypatch):
    monkeypatch.delenv("ROLELLM_REPLAY", raising=False)


def test_a_kernel_that_dies_is_one_sentence(tmp_path):
    """What the out-of-memory killer does: the kernel alone goes down."""
    (tmp_path / "p.yaml").write_text(PARAMS, encoding="utf-8")
    environment = os.environ | {"ROLELLM_OUTPUTS": str(tmp_path / "outputs")}
    with scripted_server.serve(delay=1.0) as (url, _):
        command = [sys.executable, "-m", "rolellm_utils.run", str(tmp_path / "p.yaml"), "-p", "teacher_url", url]
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True)  # fmt: skip
        wait_until((tmp_path / "outputs/ferry/.01_profiles.partial.ipynb").exists, process)
        wait_until(lambda: psutil.Process(process.pid).children(), process)
        time.sleep(1.5)
        for kernel in psutil.Process(process.pid).children():
            kernel.kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: the kernel of 01_profiles was killed" in errors and "Traceback" not in errors
