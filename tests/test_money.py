"""Prices, estimates, the limit that is never exceeded, and a ledger that adds up to what the server bills."""

import os

import pytest

from rolellm_utils import estimate, live, pricing, run
from rolellm_utils.embedded import NAME, unpack
from rolellm_utils.records import InputError
from rolellm_utils.store import Store
from tests import fault_server
from tests.asking import ask, question, teacher_of

INPUT, OUTPUT = 2000.0, 8000.0  # US dollars per million tokens: a test request costs about a tenth of a dollar


@pytest.fixture(autouse=True)
def prices(tmp_path, monkeypatch):
    path = tmp_path / "prices.yaml"
    path.write_text(f"date: 2026-01-02\nbatch: 0.5\nmodels:\n  scripted: {{input: {INPUT}, output: {OUTPUT}}}\n")
    monkeypatch.setenv("ROLELLM_PRICES", str(path))
    monkeypatch.setattr(live, "POLL", 0.05)


def priced(**options):
    return fault_server.serve(input=INPUT, output=OUTPUT, tokenizer="o200k_base", **options)


def spent(tmp_path, run="job"):
    store = Store(tmp_path / "t.sqlite")
    rows = store.ledger(run, ("stage", "role", "model"))
    total = store.spent(run)
    store.close()
    assert sum(row["usd"] for row in rows) == pytest.approx(total), "the running sum is the sum of the ledger"
    return total


@pytest.mark.parametrize("in_flight", [1, 64])
@pytest.mark.parametrize("faults", [0.0, 0.3])
def test_the_limit_is_never_exceeded_and_what_remains_is_resumable(tmp_path, in_flight, faults):
    kinds = ["500", "reset", "truncated", "broken", "hang", "wrong"]
    options = {"faults": faults, "kinds": kinds, "hang": 0.1, "latency": 0.01}
    with priced(**options) as server:
        requests = [question(f"how much is question {i}?", max_tokens=30, n=1 + i % 2) for i in range(120)]
        teacher = teacher_of(server, tmp_path, in_flight=in_flight, max_usd=5.0, tries=9)
        with pytest.raises(InputError, match=r"max_usd 5 is reached: run 'job' has spent .* raise max_usd"):
            ask(teacher, requests)
        billed = server.stats()["usd"]
        assert billed <= 5.0 and spent(tmp_path) <= 5.0
        assert spent(tmp_path) >= billed - 1e-9, "the ledger knows all that may have been billed"
        if not faults:
            assert billed == pytest.approx(spent(tmp_path)) and billed > 4.0
        server.configure(faults=0.0)
        known = dict(server.stats()["paid"])
        ask(teacher_of(server, tmp_path, in_flight=in_flight, max_usd=500.0), requests)
        paid = server.stats()["paid"]
        assert len(paid) >= 120 and all(paid[name] == times for name, times in known.items())


def test_the_limit_holds_for_a_whole_run_and_apart_for_others(tmp_path):
    with priced() as server:
        ask(teacher_of(server, tmp_path, stage="one"), [question(f"q {i}", max_tokens=30) for i in range(10)])
        first = spent(tmp_path)
        with pytest.raises(InputError, match="max_usd"):
            ask(teacher_of(server, tmp_path, stage="two", max_usd=first + 0.2), [question(f"r {i}") for i in range(9)])
        assert len(ask(teacher_of(server, tmp_path, run="other", max_usd=2.0), [question("r", max_tokens=30)])) == 1


def test_what_a_killed_process_had_in_flight_counts_as_spent(tmp_path):
    with priced() as server:
        ask(teacher_of(server, tmp_path), [question("q", max_tokens=30)])
    before = spent(tmp_path)
    store = Store(tmp_path / "t.sqlite")
    host = store.owner.split("/")[0]
    labels = {"model": "scripted", "run": "job", "stage": "s", "role": "R"}
    # No process has this number.
    store.claim("k", 0, 1000, 1.5, labels, owner=f"{host}/{2**22 + 1}/0")
    store.close()
    assert spent(tmp_path) == pytest.approx(before + 1.5)
    rows = Store(tmp_path / "t.sqlite").ledger("job", ("role",))
    assert {row["role"]: row["usd_lost"] for row in rows} == {"": 0.0, "R": 1.5}


def test_a_limit_needs_a_price_and_a_price_file_its_form(tmp_path, monkeypatch):
    with fault_server.serve() as server, pytest.raises(InputError, match="no price is known for teacher_model 'other'"):
        from rolellm_utils.teacher import Teacher

        Teacher("other", server.url, tmp_path / "t.sqlite", max_usd=1.0)
    (tmp_path / "bad.yaml").write_text("models: {a: {input: many}}\ndate: 2026-01-01")
    monkeypatch.setenv("ROLELLM_PRICES", str(tmp_path / "bad.yaml"))
    with pytest.raises(InputError, match="bad.yaml cannot be used"):
        pricing.price_of("a")


def test_prices_of_snapshots_of_caches_and_of_nothing(monkeypatch):
    monkeypatch.delenv("ROLELLM_PRICES")
    price = pricing.price_of("gpt-4o-mini-2024-07-18")
    assert price.usd(1_000_000, 100_000) == pytest.approx(0.15 + 0.06)
    assert price.usd(1_000_000, 0, cached_tokens=400_000) == pytest.approx(0.6 * 0.15 + 0.4 * 0.075)
    assert pricing.price_of("gpt-4o-mini-tuned") is None and pricing.price_of(NAME).usd(10**9, 10**9) == 0
    assert pricing.price_list()["date"].startswith("2026-")


@pytest.mark.parametrize("size", [12, 150])
def test_the_estimate_against_what_the_server_bills(tmp_path, size):
    with priced(words=25) as server:
        requests = [question(f"{i}: what would the keeper 守灯人 say?\n" * (1 + i % 7), n=1 + i % 3, max_tokens=90,
                             role=f"R{i % 4}") for i in range(size)]  # fmt: skip
        teacher = teacher_of(server, tmp_path)
        before = estimate.cost(teacher, [*requests, requests[0]])
        assert not server.stats()["bodies"], "nothing is sent for an estimate"
        ask(teacher, requests)
        stats = server.stats()
        row = _total(tmp_path)
    assert before.calls == size == len(stats["bodies"]) and before.requests == size + 1
    assert before.prompt_tokens == pytest.approx(row["prompt_tokens"], rel=0.05)
    least, most = before.completion_tokens
    assert least <= row["completion_tokens"] <= most
    assert before.usd[0] <= stats["usd"] <= before.usd[1] and "prices of 2026-01-02" in str(before)
    again = teacher_of(server, tmp_path)
    after = estimate.cost(again, requests)
    again.close()
    assert after.calls == 0 and after.known == size and "nothing to pay" in str(after)


def _total(tmp_path):
    store = Store(tmp_path / "t.sqlite")
    (row,) = store.ledger("job", ("model",))
    store.close()
    return row


def test_another_vocabulary_is_corrected_by_its_own_usage(tmp_path):
    """A server whose tokens are not OpenAI's: English a tenth off at first, then within 5 %."""
    path = str(unpack(NAME) / "tokenizer.json")
    with fault_server.serve(tokenizer=path, input=INPUT, output=OUTPUT) as server:
        for stage, count in (("one", 40), ("two", 200)):
            requests = [question(f"{stage} {i}: Bread first, talk later, said the miller's wife." * (1 + i % 5))
                        for i in range(count)]  # fmt: skip
            teacher = teacher_of(server, tmp_path, stage=stage)
            expected = estimate.cost(teacher, requests)
            ask(teacher, requests)
            store = Store(tmp_path / "t.sqlite")
            actual = {row["stage"]: row["prompt_tokens"] for row in store.ledger("job")}[stage]
            store.close()
            off = abs(expected.prompt_tokens / actual - 1)
            assert off < (0.2 if stage == "one" else 0.05)
        assert expected.likely is None and expected.completion_tokens[0] == 200


@pytest.mark.parametrize("usage", ["all", "one", "none"])
def test_reported_usage_is_checked_against_n(tmp_path, usage):
    with priced(usage=usage) as server:
        ask(teacher_of(server, tmp_path), [question("three of these", n=3, max_tokens=60)])
        billed = server.stats()["usd"]
    assert spent(tmp_path) == pytest.approx(billed, rel=0.1)


def test_the_ledger_by_stage_role_and_model_and_per_kept_sample(tmp_path, monkeypatch):
    with priced() as server:
        for role in ("A", "B"):
            ask(teacher_of(server, tmp_path, stage="02_context_instruct"), [question(f"{role} x", role=role, n=2)])
        ask(teacher_of(server, tmp_path, stage="03_rolegpt"), [question("y")])
    monkeypatch.setattr(estimate, "kept_samples", lambda *_: {"02_context_instruct": {"A": 4, "B": 0}})
    monkeypatch.setattr("rolellm_utils.store.default_path", lambda: tmp_path / "t.sqlite")
    rows = estimate.costs(tmp_path / "job", "en")
    assert [(row["stage"], row["role"], row["samples"], row["calls"], row["kept"]) for row in rows] == [
        ("02_context_instruct", "A", 2, 1, 4), ("02_context_instruct", "B", 2, 1, 0), ("03_rolegpt", "", 1, 1, None),
    ]  # fmt: skip
    assert rows[0]["usd_per_kept"] == pytest.approx(rows[0]["usd"] / 4) and rows[1]["usd_per_kept"] is None
    assert {row["model"] for row in rows} == {"scripted"}


def test_estimate_on_the_command_line(tmp_path, monkeypatch, capsys):
    """Before any stage has run: exact in calls, nothing sent, no run folder made."""
    monkeypatch.setenv("ROLELLM_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("ROLELLM_REPLAY", raising=False)
    with priced() as server:
        command = ["params/quick.yaml", "-p", "teacher_url", server.url, "-p", "teacher_model", "scripted"]
        assert run.main([*command, "--estimate"]) == 0
        printed = capsys.readouterr().out
        assert not server.stats()["bodies"] and os.listdir(tmp_path / "outputs") == ["teacher.sqlite"]
    lines = printed.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["01_profiles", "02_context_instruct", "03_rolegpt"]
    assert "3 calls to scripted" in lines[0] and "descriptions are not written yet" in lines[1]
    # 3 roles x (15 general + 8 role-specific + 3 ways to ask your question), and 15 for RAW.
    assert f"{3 * (15 + 8 + 3) + 15} calls" in lines[2] and "USD" in lines[3]
