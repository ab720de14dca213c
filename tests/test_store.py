"""The store of replies: shared, whole after damage as far as can be, and one sentence where it cannot be used."""

import re
import shutil
import sqlite3
import subprocess
import time

import pytest

from rolellm_utils import batch, rescue
from rolellm_utils.files import outputs_dir
from rolellm_utils.records import InputError
from rolellm_utils.store import Store
from tests import fault_server
from tests.asking import ask, job, question, teacher_of

LABELS = {"model": "m", "run": "r", "stage": "s", "role": "R"}


def row(key, sample=0, attempt=0, text="好", usd=0.5, **more):
    return {"key": key, "sample": sample, "attempt": attempt, "text": text, "status": "ok", "reason": "",
            "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 2, "usd": usd, "seconds": 0.1,
            "finished": "", **LABELS, **more}  # fmt: skip


def filled(path, count=400):
    store = Store(path)
    for number in range(count):
        store.keep(f"key {number:04}", '{"model": "m"}', [row(f"key {number:04}", text=f"答 {number} " * 40)])
    store.close()
    return path


def test_claims_keep_others_out_until_they_end_or_expire(tmp_path):
    one, two = Store(tmp_path / "t.sqlite"), Store(tmp_path / "t.sqlite")
    assert one.claim("k", 0, 100, 0.0, LABELS) == "mine" and two.claim("k", 0, 100, 0.0, LABELS) == "busy"
    one.release("k")
    assert two.claim("k", 0, -1, 0.0, LABELS) == "mine"
    assert one.claim("k", 0, 100, 0.0, LABELS) == "mine", "an expired claim is free"
    two.release("k")
    assert two.claim("k", 0, 100, 0.0, LABELS) == "busy", "only the owner ends a claim"
    one.keep("k", "{}", [row("k")])
    assert two.claim("k", 0, 100, 0.0, LABELS) == "known" and two.claim("k", 1, 100, 0.0, LABELS) == "mine"
    two.close()
    assert one.claim("k", 1, 100, 0.0, LABELS) == "mine", "closing gives claims back"


def test_an_answer_that_comes_twice_is_booked_as_lost(tmp_path):
    store = Store(tmp_path / "t.sqlite")
    store.keep("k", "{}", [row("k")])
    store.keep("k", "{}", [row("k", text="other")])
    assert [found["text"] for found in store.attempts("k")] == ["好"] and store.spent("r") == 1.0
    assert store.ledger("r") == [
        {"stage": "s", "samples": 1, "calls": 1, "prompt_tokens": 3, "completion_tokens": 2, "seconds": 0.1, "usd": 1.0,
         "usd_lost": 0.5}
    ]  # fmt: skip


def test_a_full_disk_is_one_sentence_and_costs_what_is_in_flight_alone(tmp_path):
    with fault_server.serve(words=400) as server:
        teacher = teacher_of(server, tmp_path, in_flight=4)
        # SQLite's own limit on the file's pages: the same error, from the same place, as a full disk.
        teacher.store._db.execute("PRAGMA max_page_count = 60")
        requests = [question(f"disk {i}") for i in range(200)]
        with pytest.raises(InputError, match="t.sqlite cannot be written .*full.*free disk space and run again"):
            ask(teacher, requests)
        before = server.stats()["paid"]
        replies = ask(teacher_of(server, tmp_path, in_flight=4), requests)
        paid = server.stats()["paid"]
    assert len(replies) == 200 and 5 < len(before) < 200
    assert sum(times - 1 for times in paid.values()) <= 4


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "garbage", "header"])
def test_a_damaged_store_is_named_and_what_can_be_read_is_saved(tmp_path, damage, monkeypatch, capsys):
    monkeypatch.setenv("ROLELLM_OUTPUTS", str(tmp_path / "outputs"))
    path = filled(outputs_dir() / "teacher.sqlite")
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes({
        "truncated": data[:half],
        "overwritten": data[:half] + b"\xff" * 20_000 + data[half + 20_000 :],
        "garbage": b"no database at all, no no no" * 50,
        "header": b"\x00" * 100 + data[100:],
    }[damage])  # fmt: skip
    with pytest.raises(InputError, match=r"outputs/teacher.sqlite is damaged .*`python -m rolellm_utils.rescue` saves"):
        store = Store(path)
        for number in range(400):
            store.attempts(f"key {number:04}")
    assert rescue.main() == 0
    saved = int(re.match(r"(\d+) replies saved", capsys.readouterr().out)[1])
    assert (saved == 0) if damage in ("garbage", "header") else (100 < saved < 400)
    store = Store(path)
    found = [store.attempts(f"key {number:04}") for number in range(400)]
    kept = [rows[0] for rows in found if rows]
    assert len(kept) == saved and all(rows["text"] == f"答 {int(rows['key'][4:])} " * 40 for rows in kept)
    assert store.spent("r") == pytest.approx(0.5 * saved)
    store.close()
    assert list(path.parent.glob("teacher.sqlite.damaged-*"))


def test_a_rescue_keeps_what_batches_have_in_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "POLL", 0.02)
    with fault_server.serve(batch_seconds=0.5) as server:
        process = job(server, tmp_path, 20, batch=True)
        while not server.stats()["batches"]:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        saved, _ = rescue.rescue(tmp_path / "t.sqlite")
        assert saved == 0
        requests = [question(f"问 {i}", role=f"R{i % 3}") for i in range(20)]
        assert len(ask(teacher_of(server, tmp_path, batch=True), requests)) == 20
        assert server.stats()["batches"] == 1 and max(server.stats()["paid"].values()) == 1


def test_nothing_to_rescue(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROLELLM_OUTPUTS", str(tmp_path / "nowhere"))
    assert rescue.main() == 1 and "does not exist" in capsys.readouterr().err


def test_a_store_of_the_first_layout_is_taken_over(tmp_path):
    path = tmp_path / "t.sqlite"
    old = sqlite3.connect(path)
    old.executescript(
        "CREATE TABLE requests (key TEXT PRIMARY KEY, body TEXT NOT NULL);"
        "CREATE TABLE replies (key TEXT NOT NULL, sample INTEGER NOT NULL, text TEXT NOT NULL, finish_reason TEXT,"
        "prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL, finished TEXT, run TEXT, stage TEXT,"
        "role TEXT,"
        "PRIMARY KEY (key, sample));"
        "INSERT INTO requests VALUES ('k', '{}');"
        "INSERT INTO replies VALUES ('k', 0, '好', 'stop', 5, 6, 0.5, '', 'r', 's', 'R');"
        "INSERT INTO replies VALUES ('k', 1, '坏', 'length', 0, 0, 0.0, '', 'r', 's', 'R');"
    )
    old.close()
    for _ in range(2):
        store = Store(path)
        assert [(r["text"], r["status"], r["attempt"]) for r in store.attempts("k")] == [
            ("好", "ok", 0),
            ("坏", "cut_off", 0),
        ]
        assert store.ledger("r")[0]["samples"] == 2
        store.close()


def test_a_power_cut_setting(tmp_path, monkeypatch):
    levels = {}
    for name in ("normal", "full"):
        monkeypatch.setenv("ROLELLM_SYNC", name)
        store = Store(tmp_path / "t.sqlite")
        levels[name] = store._db.execute("PRAGMA synchronous").fetchone()[0]
        assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        store.close()
    assert levels == {"normal": 1, "full": 2}
    monkeypatch.setenv("ROLELLM_SYNC", "never")
    with pytest.raises(InputError, match="ROLELLM_SYNC is 'never'; set it to normal or full"):
        Store(tmp_path / "t.sqlite")


def test_a_store_held_by_another_program_is_one_sentence(tmp_path, monkeypatch):
    filled(tmp_path / "t.sqlite", 1)
    holder = sqlite3.connect(tmp_path / "t.sqlite", isolation_level=None)
    store = Store(tmp_path / "t.sqlite")
    store._db.execute("PRAGMA busy_timeout = 100")
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match="is held by another program"):
        store.keep("new", "{}", [row("new")])
    holder.execute("ROLLBACK")
    store.keep("new", "{}", [row("new")])
    assert store.attempts("new")


@pytest.mark.skipif(not shutil.which("mount"), reason="needs mount")
def test_a_really_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        with fault_server.serve(words=400) as server:
            requests = [question(f"full {i}") for i in range(300)]
            with pytest.raises(InputError, match="cannot be written"):
                ask(teacher_of(server, small, in_flight=4), requests)
            kept = len(server.stats()["paid"])
            subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
            assert len(ask(teacher_of(server, small, in_flight=4), requests)) == 300
            assert kept > 5 and sum(times - 1 for times in server.stats()["paid"].values()) <= 4
    finally:
        subprocess.run(["umount", str(small)], check=True)
