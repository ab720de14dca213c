"""The Batch API way: the same replies as the direct one, whatever is killed, lost, doubled or out of order."""

import asyncio
import json
import signal
import time

import pytest

from rolellm_utils import batch, live, pricing
from rolellm_utils.records import InputError
from rolellm_utils.store import Store
from tests import fault_server
from tests.asking import SCHEMA, ask, job, question, teacher_of


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(batch, "POLL", 0.02)
    monkeypatch.setattr(live, "POLL", 0.02)


def requests(count=30):
    return [
        question(f"批 {i}", n=1 + i % 3, role=f"R{i % 2}", json_schema=SCHEMA if i % 2 else None) for i in range(count)
    ]


def test_the_same_replies_as_the_direct_mode_at_half_the_price(tmp_path, monkeypatch):
    (tmp_path / "prices.yaml").write_text("date: 2026-01-02\nbatch: 0.5\nmodels: {scripted: {input: 10, output: 20}}")
    monkeypatch.setenv("ROLELLM_PRICES", str(tmp_path / "prices.yaml"))
    (tmp_path / "direct").mkdir()
    with fault_server.serve(input=10, output=20, batch_seconds=0.1) as server:
        direct = ask(teacher_of(server, tmp_path / "direct"), requests())
        full = server.stats()["usd"]
        batched = ask(teacher_of(server, tmp_path, batch=True), (request for request in requests()))
        stats = server.stats()
        assert batched == direct and stats["batches"] == 1 and len(stats["bodies"]) == 30
        again = teacher_of(server, tmp_path, batch=True)
        assert ask(again, requests()) == direct and server.stats()["batches"] == 1 and not again.used["live"]
        # The other mode reads the same store.
        assert ask(teacher_of(server, tmp_path), requests()) == direct and len(server.stats()["bodies"]) == 30
    assert stats["usd"] - full == pytest.approx(full / 2)
    store = Store(tmp_path / "t.sqlite")
    assert store.spent("job") == pytest.approx(full / 2) and not store.open_batches(server.url)
    store.close()


def test_partial_failures_and_unusable_replies_are_asked_again(tmp_path):
    with fault_server.serve(batch_failures=0.3) as server:
        teacher = teacher_of(server, tmp_path, batch=True, reasks=1)
        replies = ask(teacher, [*requests(), question("short", max_tokens=5)])
        stats = server.stats()
    assert [reply.position for reply in replies] == list(range(31)) and stats["batches"] == 2
    assert all(set(reply.statuses) == {"ok"} for reply in replies) and max(stats["paid"].values()) == 1


def test_large_jobs_are_cut_into_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 8)
    with fault_server.serve() as server:
        assert len(ask(teacher_of(server, tmp_path, batch=True), requests(30))) == 30
        assert server.stats()["batches"] == 4


@pytest.mark.parametrize("lack", ["n", "schema", "seed", "max_tokens"])
def test_what_a_server_lacks_is_learnt_from_the_error_file(tmp_path, lack):
    with fault_server.serve(**{lack: "refused"}) as server:
        teacher = teacher_of(server, tmp_path, batch=True)
        replies = ask(teacher, requests(12))
        assert server.stats()["batches"] == 2
    assert lack == "seed" or all(len(set(reply.texts)) == len(reply.texts) for reply in replies)
    assert teacher.live.server.lacks == ({"n": {"n"}, "schema": {"json_schema"}, "seed": {"seed"}}.get(lack) or set())


def test_a_batch_of_another_address_or_gone_or_cancelled_is_said(tmp_path):
    with fault_server.serve(batch_seconds=60) as server:
        process = job(server, tmp_path, 6, batch=True)
        while not server.stats()["batches"]:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        asked = [question(f"问 {i}", role=f"R{i % 3}") for i in range(6)]
        other = teacher_of(server, tmp_path, batch=True)
        other.base_url = other.live.base_url = server.url.replace("127.0.0.1", "localhost")
        with pytest.raises(InputError, match=f"a batch at {server.url} holds requests of s; set teacher_url to that"):
            ask(other, asked)
        server.configure(batch_gone=True)
        with pytest.raises(InputError, match="came back 3 times without an answer"):
            ask(teacher_of(server, tmp_path, batch=True), asked)
        server.configure(batch_gone=False, batch_seconds=0, batch_cancelled=True)
        with pytest.raises(InputError, match="was cancelled at the server"):
            ask(teacher_of(server, tmp_path, batch=True), asked)
        server.configure(batch_cancelled=False)
        assert len(ask(teacher_of(server, tmp_path, batch=True), asked)) == 6


def test_a_batch_that_another_machine_began_and_never_sent_is_free_after_an_hour(tmp_path):
    with fault_server.serve() as server:
        store = Store(tmp_path / "t.sqlite")
        row = {"token": "t", "base_url": server.url, "model": "scripted", "state": "writing", "run": "job",
               "stage": "s", "created": "2026-01-01T00:00:00Z", "owner": "another-machine/1/1"}  # fmt: skip
        store.write_batch(row)
        store.close()
        assert len(ask(teacher_of(server, tmp_path, batch=True), requests(3))) == 3


def test_a_server_without_batches_is_said(tmp_path):
    refusing, said = (
        fault_server.serve(status=404, error={"message": "no such page"}),
        "has no Batch API; set teacher_batch",
    )
    with refusing as server, pytest.raises(InputError, match=said):
        ask(teacher_of(server, tmp_path, batch=True), requests(3))


def test_the_limit_holds_in_batches_and_later_rounds_use_what_is_left(tmp_path, monkeypatch):
    (tmp_path / "prices.yaml").write_text(
        "date: 2026-01-02\nbatch: 0.5\nmodels: {scripted: {input: 1000, output: 8000}}"
    )
    monkeypatch.setenv("ROLELLM_PRICES", str(tmp_path / "prices.yaml"))
    with fault_server.serve(input=1000, output=8000) as server:
        many = [question(f"limited {i}", max_tokens=60) for i in range(60)]
        with pytest.raises(InputError, match="max_usd 3 is reached"):
            ask(teacher_of(server, tmp_path, batch=True, max_usd=3.0), many)
        stats = server.stats()
        assert 1.5 < stats["usd"] <= 3.0 and stats["batches"] > 1
        assert len(ask(teacher_of(server, tmp_path, batch=True, max_usd=30.0), many)) == 60
        assert max(server.stats()["paid"].values()) == 1
    pricing._read.cache_clear()


class Killed(BaseException):
    """Stands for SIGKILL at a line: nothing after it runs."""


STEPS = ["files.create", "batches.create before", "batches.create after", "batches.retrieve", "files.content",
         "first line", "last line"]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step_it_ends_with_the_same_replies_and_pays_once(tmp_path, monkeypatch, step):
    (tmp_path / "direct").mkdir()
    with fault_server.serve(batch_seconds=0.1) as server:
        expected = ask(teacher_of(server, tmp_path / "direct"), requests())
        direct = dict(server.stats()["paid"])
        _die_at(step, monkeypatch)
        teacher = teacher_of(server, tmp_path, batch=True)
        with pytest.raises(Killed):
            asyncio.run(_all(teacher))
        # The process is gone: its owner name belongs to no process any more.
        teacher.store._db.execute("UPDATE batches SET owner = ?", (_gone(teacher.store.owner),))
        teacher.store._db.close()
        monkeypatch.undo()
        monkeypatch.setattr(batch, "POLL", 0.02)
        assert ask(teacher_of(server, tmp_path, batch=True), requests()) == expected
        stats = server.stats()
    assert stats["batches"] == 1, "a batch is made once, whenever the process dies"
    assert all(times == direct[name] + 1 for name, times in stats["paid"].items())


@pytest.mark.parametrize("step", STEPS[:3])
def test_stopped_in_a_notebook_and_run_again_in_the_same_kernel(tmp_path, monkeypatch, step):
    """The kernel lives on, and so does the first teacher: its batch is left to the second one."""
    with fault_server.serve() as server:
        _die_at(step, monkeypatch)
        first = teacher_of(server, tmp_path, batch=True)
        with pytest.raises(Killed):
            asyncio.run(_all(first))
        monkeypatch.undo()
        monkeypatch.setattr(batch, "POLL", 0.02)
        assert len(ask(teacher_of(server, tmp_path, batch=True), requests())) == 30
        assert max(server.stats()["paid"].values()) == 1
        first.close()


async def _all(teacher):
    return [reply async for reply in teacher.ask_all(requests())]


def _gone(owner):
    return f"{owner.split('/')[0]}/{2**22 + 1}/0"


def _die_at(step, monkeypatch):
    from openai.resources import batches, files

    def dead(*_, **__):
        raise Killed

    async def dead_later(*_, **__):
        raise Killed

    # Nothing that runs while the exception travels may tidy up: a killed process does not.
    monkeypatch.setattr(Store, "end_batch", dead)
    if step == "files.create":
        monkeypatch.setattr(files.AsyncFiles, "create", dead_later)
    elif step == "batches.create before":
        monkeypatch.setattr(batches.AsyncBatches, "create", dead_later)
    elif step == "batches.create after":
        create = batches.AsyncBatches.create

        async def made(self, **options):
            await create(self, **options)
            raise Killed

        monkeypatch.setattr(batches.AsyncBatches, "create", made)
    elif step == "batches.retrieve":
        monkeypatch.setattr(batches.AsyncBatches, "retrieve", dead_later)
    elif step == "files.content":
        monkeypatch.setattr(files.AsyncFiles, "content", dead_later)
    elif step == "first line":
        monkeypatch.setattr(Store, "add", dead)


def test_sigkill_while_waiting_and_taken_up_by_another_process(tmp_path):
    with fault_server.serve(batch_seconds=4.0) as server:
        process = job(server, tmp_path, 40, n=2, batch=True)
        while not server.stats()["batches"]:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with pytest.raises(InputError, match="a batch of the Batch API at .* holds requests .* teacher_batch to true"):
            ask(teacher_of(server, tmp_path), [question("问 0", n=2, role="R0")])
        out, err = job(server, tmp_path, 40, n=2, batch=True).communicate(timeout=60)
        stats = server.stats()
    lines = [json.loads(line) for line in out.splitlines()[:-1]]
    assert len(lines) == 40, err
    assert stats["batches"] == 1 and max(stats["paid"].values()) == 1


def test_a_batch_that_fails_at_the_server_is_one_sentence(tmp_path, monkeypatch):
    with fault_server.serve(batch_seconds=60) as server:
        teacher = teacher_of(server, tmp_path, batch=True)
        server.configure(batch_fails="token_limit_exceeded")
        with pytest.raises(
            InputError, match=r"has failed batch batch-0 of s \(token_limit_exceeded\).*nothing is lost"
        ):
            ask(teacher, requests(3))
        server.configure(batch_fails="", batch_seconds=0)
        assert len(ask(teacher_of(server, tmp_path, batch=True), requests(3))) == 3


def test_an_unreachable_server_is_one_sentence_and_frees_the_requests(tmp_path):
    with fault_server.serve(status=401, error={"message": "wrong key sk-secret"}) as server:
        with pytest.raises(InputError, match="set OPENAI_API_KEY") as caught:
            ask(teacher_of(server, tmp_path, batch=True), requests(3))
        assert "sk-secret" not in str(caught.value)
        server.configure(status=0)
        assert len(ask(teacher_of(server, tmp_path), requests(3))) == 3
