"""The teacher against a server that is slow, refuses, breaks off and answers nonsense: every reply kept, none twice."""

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import signal
import sqlite3
import time

import pytest

from rolellm_utils import embedded, live
from rolellm_utils import teacher as module
from rolellm_utils.files import ROOT
from rolellm_utils.records import InputError
from rolellm_utils.teacher import Teacher, parse_json
from tests import fault_server
from tests.asking import SCHEMA, ask, gather, job, question, teacher_of, until


@pytest.fixture
def server():
    with fault_server.serve() as running:
        yield running


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(live, "POLL", 0.05)


def sent(text, sample=0, seed=0, words=12):
    """What the server answers to a question."""
    body = {"messages": [{"content": text}], "seed": seed}
    return fault_server.answer(body, sample, words)


def stored(tmp_path, columns="*"):
    connection = sqlite3.connect(tmp_path / "t.sqlite")
    rows = connection.execute(f"SELECT {columns} FROM replies ORDER BY key, sample, attempt").fetchall()
    connection.close()
    return rows


def claimed(tmp_path):
    """What a killed process had in flight."""
    if not (tmp_path / "t.sqlite").exists():
        return 0
    connection = sqlite3.connect(tmp_path / "t.sqlite")
    there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'claims'").fetchone()
    number = connection.execute("SELECT COUNT(*) FROM claims").fetchone()[0] if there else 0
    connection.close()
    return number


def test_every_reply_is_stored_and_never_asked_twice(server, tmp_path):
    requests = [question(f"frage 你好 {i}", n=2, role="R") for i in range(20)]
    first = ask(teacher_of(server, tmp_path), requests)
    assert first[3].texts == [sent("frage 你好 3", 0), sent("frage 你好 3", 1)] and first[3].statuses == ["ok", "ok"]
    asked = server.stats()["bodies"]
    assert len(asked) == 20 and all(body["n"] == 2 for body in asked)
    again = teacher_of(server, tmp_path)
    assert ask(again, requests) == first
    assert len(server.stats()["bodies"]) == 20 and again.used["stored"] == 40 and not again.used["live"]
    # A larger n asks for the lacking sample alone.
    more = ask(teacher_of(server, tmp_path), [question("frage 你好 0", n=3)])
    assert "n" not in server.stats()["bodies"][-1] and more[0].texts[:2] == first[0].texts


@pytest.mark.parametrize("ordered", [True, False])
def test_replies_come_in_order_or_as_they_come_from_a_generator(tmp_path, ordered):
    with fault_server.serve(faults=0.3, kinds=["500"]) as server:
        teacher = teacher_of(server, tmp_path, in_flight=7)
        replies = ask(teacher, (question(f"order {i}") for i in range(60)), ordered=ordered)
    positions = [reply.position for reply in replies]
    assert (positions == list(range(60))) == ordered and sorted(positions) == list(range(60))
    assert all(reply.text == sent(f"order {reply.position}") for reply in replies)


def test_never_more_in_flight_than_allowed_and_sent_in_the_order_given(tmp_path):
    with fault_server.serve(latency=0.03) as server:
        requests = [question(f"{role} {i}", role=role) for role in "ABC" for i in range(20)]
        ask(teacher_of(server, tmp_path, in_flight=5), requests)
        stats = server.stats()
    assert stats["most"] == 5
    roles = [body["messages"][0]["content"][0] for body in stats["bodies"]]
    # Neighbours in flight may change places, roles do not mix.
    assert roles[:15] == ["A"] * 15 and roles[25:35] == ["B"] * 10 and roles[45:] == ["C"] * 15


def test_what_shapes_the_answer_is_in_the_key_and_labels_are_not(tmp_path):
    teacher = Teacher("m", "http://x", tmp_path / "t.sqlite")
    base = teacher.key(question("a"))
    assert teacher.key(question("a", role="R", n=5)) == base
    for changed in (
        question("b"),
        question("a", seed=1),
        question("a", temperature=0.1),
        question("a", max_tokens=5),
        question("a", json_schema=SCHEMA),
    ):
        assert teacher.key(changed) != base
    assert Teacher("other", "http://x", tmp_path / "t.sqlite").key(question("a")) != base


def test_a_recorded_reply_is_used_and_a_miss_is_an_error(tmp_path, monkeypatch):
    recorded = tmp_path / "replies.jsonl"
    monkeypatch.setattr(module, "RECORDED", recorded)
    recorded.write_text("")
    teacher = Teacher("m", "http://127.0.0.1:1/v1", tmp_path / "t.sqlite", replay=True, stage="02")
    row = {"key": teacher.key(question("known")), "sample": 0, "attempt": 0, "text": "俺老孙", "status": "ok"}
    recorded.write_text(json.dumps(row) + "\n")
    teacher = Teacher("m", "http://127.0.0.1:1/v1", tmp_path / "t.sqlite", replay=True, stage="02")
    assert ask(teacher, [question("known")])[0].text == "俺老孙" and teacher.used["recorded"] == 1
    teacher = Teacher("m", "http://127.0.0.1:1/v1", tmp_path / "t.sqlite", replay=True, stage="02")
    with pytest.raises(InputError, match="recorded replies hold no answer"):
        ask(teacher, [question("unknown")])


def test_recorded_samples_are_completed_live(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RECORDED", tmp_path / "replies.jsonl")
    monkeypatch.delenv("ROLELLM_REPLAY", raising=False)
    key = teacher_of(server, tmp_path).key(question("more"))
    row = {"key": key, "sample": 0, "attempt": 0, "text": "俺老孙", "status": "ok", "finish_reason": "stop"}
    (tmp_path / "replies.jsonl").write_text(json.dumps(row) + "\n")
    for _ in range(2):
        reply = ask(teacher_of(server, tmp_path, replay=True), [question("more", n=3)])[0]
        assert reply.texts[0] == "俺老孙" and len(set(reply.texts)) == 3
    assert [body["n"] for body in server.stats()["bodies"]] == [2]


def test_the_same_question_at_once_is_asked_once(tmp_path):
    with fault_server.serve(latency=0.05) as server:
        replies = ask(teacher_of(server, tmp_path), [question("twice")] * 6 + [question("once")])
        assert len(server.stats()["bodies"]) == 2 and len({reply.text for reply in replies[:6]}) == 1


def test_a_teacher_may_be_used_from_one_event_loop_after_another(server, tmp_path):
    teacher = teacher_of(server, tmp_path, in_flight=2)
    for turn in range(3):
        assert len(asyncio.run(gather(teacher, [question(f"{turn} {i}") for i in range(8)]))) == 8
        assert asyncio.run(teacher.ask(question(f"alone {turn}"))).text == sent(f"alone {turn}")
    teacher.close()
    assert len(server.stats()["bodies"]) == 27


# Faults of the server


def test_each_fault_is_ridden_out(tmp_path):
    """One request at a time meets each fault once, then its answer."""
    for kind in ("429", "500", "reset", "truncated", "broken", "hang"):
        with fault_server.serve(faults=1.0, kinds=[kind], hang=0.2) as server:
            teacher = teacher_of(server, tmp_path)

            async def once(server=server, teacher=teacher, kind=kind):
                asking = asyncio.ensure_future(teacher.ask(question(f"through {kind}")))
                await until(server, lambda stats: stats["counts"].get(kind))
                server.configure(faults=0.0)
                return await asking

            assert asyncio.run(once()).text == sent(f"through {kind}"), kind
            teacher.close()
            assert server.stats()["counts"].get(kind) >= 1


def test_a_request_that_hangs_is_given_up_and_asked_again(tmp_path):
    with fault_server.serve(latency=30) as server:
        teacher = teacher_of(server, tmp_path, timeout=0.5)

        async def once():
            asking = asyncio.ensure_future(teacher.ask(question("slow")))
            await until(server, lambda stats: stats["bodies"])
            server.configure(latency=0.0)
            return await asking

        assert asyncio.run(once()).text == sent("slow")
        teacher.close()


def test_retry_after_is_honoured_by_all_requests(tmp_path):
    with fault_server.serve(status=429, retry_after="1.2", error={"message": "slow down"}) as server:
        teacher = teacher_of(server, tmp_path, in_flight=4)

        async def some():
            asking = asyncio.ensure_future(gather(teacher, [question(f"wait {i}") for i in range(12)]))
            await until(server, lambda stats: stats["counts"].get("POST chat", 0) >= 4)
            server.configure(status=0)
            started = time.time()
            await asking
            return started

        started = asyncio.run(some())
        teacher.close()
        arrivals = server.stats()["arrivals"]
    assert len(arrivals) == 12 and min(arrivals) - started > 0.6, "asked again before the server wanted it"


def test_a_plain_rate_limit_slows_down_and_ends_nothing(tmp_path):
    """Far more in flight than the server's 8 requests a second, more refusals than `tries`."""
    with fault_server.serve(rate=8, retry_after="0.5") as server:
        replies = ask(teacher_of(server, tmp_path, in_flight=32, tries=3), [question(f"r {i}") for i in range(40)])
        assert len(replies) == 40 and max(server.stats()["paid"].values()) == 1


@pytest.mark.parametrize("odd", ["surrogate", "list"])
def test_odd_answers_are_kept(tmp_path, odd):
    with fault_server.serve(odd=odd) as server:
        reply = ask(teacher_of(server, tmp_path), [question("odd")])[0]
        assert reply.text == sent("odd") + (" ?" if odd == "surrogate" else "")
        assert ask(teacher_of(server, tmp_path), [question("odd")])[0] == reply


@pytest.mark.parametrize(
    ("options", "least"), [({"requests_per_minute": 600}, 1.9), ({"tokens_per_minute": 60 * 1000}, 1.9)]
)
def test_rate_limits_are_kept(server, tmp_path, options, least):
    """20 requests at 10 a second, or of just over 100 tokens each at 1,000 a second."""
    started = time.monotonic()
    ask(teacher_of(server, tmp_path, in_flight=20, **options), [question(f"{i}", max_tokens=92) for i in range(20)])
    assert least <= time.monotonic() - started < 3 * least
    arrivals = sorted(server.stats()["arrivals"])
    assert max(sum(t <= other < t + 0.5 for other in arrivals) for t in arrivals) <= 8


@pytest.mark.parametrize(
    ("status", "error", "way"),
    [
        (400, {"message": "maximum context length is 10 tokens"}, "may be too long"),
        (401, {"message": "Incorrect API key provided: sk-secret"}, "OPENAI_API_KEY"),
        (404, {"message": "no such model"}, "correct teacher_url"),
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, "its quota is used up"),
        (500, {"message": "broken"}, "after 2 tries"),
    ],
)
def test_each_kind_of_refusal_has_its_way_out(tmp_path, status, error, way):
    with fault_server.serve(status=status, error=error) as server:
        with pytest.raises(InputError, match=way) as caught:
            ask(teacher_of(server, tmp_path, tries=2), [question("hello")])
        assert "sk-secret" not in str(caught.value) and "nothing is lost" in str(caught.value)
        assert not server.stats()["paid"]


def test_an_unreachable_server_and_an_unknown_model_are_one_sentence(server, tmp_path):
    with pytest.raises(InputError, match="does not answer .*start it, wait, or correct teacher_url"):
        Teacher("m", "http://127.0.0.1:9/v1", tmp_path / "t.sqlite").check()
    with pytest.raises(InputError, match="is not served .* scripted"):
        Teacher("other", server.url, tmp_path / "t.sqlite").check()


def test_what_is_in_flight_when_the_caller_stops_is_stored(tmp_path):
    with fault_server.serve(latency=0.2) as server:
        teacher = teacher_of(server, tmp_path, in_flight=8)

        async def some():
            async with contextlib.aclosing(teacher.ask_all([question(str(i)) for i in range(100)])) as replies:
                async for _ in replies:
                    raise RuntimeError("stopped")

        with pytest.raises(RuntimeError):
            asyncio.run(some())
        teacher.close()
        time.sleep(0.5)  # whatever the server still has in hand
        assert len(stored(tmp_path)) == len(server.stats()["paid"]) >= 16


def test_a_stream_left_early_and_another_at_once(tmp_path):
    """As in a notebook: a cell that breaks out of the loop, and the next cell."""
    with fault_server.serve(latency=0.1) as server:
        teacher, requests = teacher_of(server, tmp_path, in_flight=8), [question(str(i)) for i in range(60)]

        async def cells():
            async for _ in teacher.ask_all(requests):
                break
            replies, alone = await asyncio.gather(gather(teacher, requests), teacher.ask(question("beside")))
            return [reply.text for reply in replies], alone.text

        texts, alone = asyncio.run(cells())
        teacher.close()
        assert texts == [sent(str(i)) for i in range(60)] and alone == sent("beside")
        assert max(server.stats()["paid"].values()) == 1


def test_a_question_that_was_interrupted_and_asked_again_is_paid_once(tmp_path):
    with fault_server.serve(latency=0.5) as server:
        teacher = teacher_of(server, tmp_path)

        async def twice():
            first = asyncio.ensure_future(teacher.ask(question("again")))
            await until(server, lambda stats: stats["bodies"])
            first.cancel()
            return await teacher.ask(question("again"))

        assert asyncio.run(twice()).text == sent("again")
        teacher.close()
        assert list(server.stats()["paid"].values()) == [1]


def test_a_finished_stage_says_so_when_it_is_asked_again(server, tmp_path):
    teacher = teacher_of(server, tmp_path)
    ask(teacher, [question("once")])
    teacher.close()
    with pytest.raises(InputError, match="is closed, as its stage is finished: run the cell that makes the teacher"):
        asyncio.run(gather(teacher, [question("more")]))


def test_an_error_ends_the_stage_and_keeps_what_others_got(tmp_path):
    with fault_server.serve(latency=1.0) as server:
        requests = [question(f"fine {i}") for i in range(8)]
        teacher = teacher_of(server, tmp_path, in_flight=8, tries=1)

        async def some():
            asking = asyncio.ensure_future(gather(teacher, [*requests, question("later")]))
            await until(server, lambda stats: len(stats["bodies"]) == 8)
            server.configure(status=403, latency=0.0)
            return await asking

        with pytest.raises(InputError, match="OPENAI_API_KEY that may use this model"):
            asyncio.run(some())
        teacher.close()
        server.configure(status=0)
        assert len(stored(tmp_path)) == 8
        ask(teacher_of(server, tmp_path), [*requests, question("later")])
        assert len(server.stats()["paid"]) == 9 and max(server.stats()["paid"].values()) == 1


# Validity


@pytest.mark.parametrize(("kind", "status"), [("wrong", "invalid"), ("empty", "empty"), ("cut_off", "cut_off")])
def test_an_unusable_reply_is_recorded_asked_again_with_the_reason_and_reported(tmp_path, kind, status):
    with fault_server.serve(faults=1.0, kinds=[kind]) as server:
        schema = SCHEMA if kind == "wrong" else None
        teacher = teacher_of(server, tmp_path, reasks=2)
        reply = ask(teacher, [question("一二三", json_schema=schema)])[0]
        bodies = server.stats()["bodies"]
    asked = [body["messages"][0]["content"] for body in bodies]
    assert reply.statuses == [status] and len(asked) == 3 and asked[0] == "一二三"
    assert all(text.startswith("一二三\n\nYour last reply ") for text in asked[1:])
    assert [row[0] for row in stored(tmp_path, "status")] == [status] * 3
    assert (
        f"of 1 samples 1 {status.replace('_', ' ')} cannot be used as they are; 1 were asked again"
        == teacher.problems()
    )
    assert [body["seed"] for body in bodies] == [0, 100, 200]


def test_only_the_bad_samples_are_asked_again_and_a_good_one_wins(tmp_path):
    with fault_server.serve(faults=1.0, kinds=["cut_off"]) as server:
        first = ask(teacher_of(server, tmp_path, reasks=0), [question("say", n=3)])[0]
        assert first.statuses == ["cut_off"] * 3
        server.configure(faults=0.0)
        connection = sqlite3.connect(tmp_path / "t.sqlite")
        connection.execute("UPDATE replies SET status = 'ok' WHERE sample = 1")
        connection.commit()
        connection.close()
        # More re-asks allowed now: what is stored counts as the first attempt.
        second = ask(teacher_of(server, tmp_path, reasks=1), [question("say", n=3)])[0]
        last = server.stats()["bodies"][-1]
    assert last["n"] == 2 and last["seed"] == 100 and "cut off" in last["messages"][0]["content"]
    assert second.statuses == ["ok"] * 3 and second.texts[1] == first.texts[1] and second.texts[0] != first.texts[0]


def test_refusals_by_flag_by_filter_and_by_words():
    from rolellm_utils.wire import status_of

    assert status_of("", "stop", "I will not", None) == ("refused", "I will not")
    assert status_of("half", "content_filter", None, None)[0] == "refused"
    assert status_of("I'm sorry, but I can't help with that.", "stop", None, None)[0] == "refused"
    assert status_of("抱歉，我无法回答这个问题。", "stop", None, None)[0] == "refused"
    assert status_of("I'd sooner eat the sea.", "stop", None, None) == ("ok", "")
    assert status_of('{"answer": "sorry, I can\'t help you"}', "stop", None, SCHEMA)[0] == "ok"
    assert status_of('{"answer": "ab', "length", None, SCHEMA)[0] == "cut_off"
    assert status_of('{"answer": 1}', "stop", None, SCHEMA) == ("invalid", "$.answer: 1 is not of type 'string'")


def test_a_blocked_request_is_a_refusal_not_an_error(tmp_path):
    with fault_server.serve(status=400, error={"message": "blocked", "code": "content_filter"}) as server:
        reply = ask(teacher_of(server, tmp_path, reasks=0), [question("hello", n=2)])[0]
    assert reply.statuses == ["refused", "refused"] and reply.texts == ["", ""]


def test_json_is_parsed_again_from_the_stored_text_without_a_call(server, tmp_path):
    ask(teacher_of(server, tmp_path), [question("parse", json_schema=SCHEMA)])
    text = ask(teacher_of(server, tmp_path), [question("parse", json_schema=SCHEMA)])[0].text
    assert parse_json(text, SCHEMA)["answer"].startswith("答") and len(server.stats()["bodies"]) == 1
    wanted = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert parse_json('Sure:\n```json\n{"a": "一"}\n```', wanted) == {"a": "一"}
    assert parse_json('{"a": "cut of', wanted) is None and parse_json('{"a": 1}', wanted) is None


# Servers that lack something


def test_servers_get_the_schema_without_limits_and_the_embedded_one_with(server, tmp_path):
    ask(teacher_of(server, tmp_path), [question("who", json_schema=SCHEMA)])
    sent_schema = json.dumps(server.stats()["bodies"][0])
    assert "maxLength" not in sent_schema and "additionalProperties" in sent_schema
    own = Teacher(embedded.NAME, store=tmp_path / "own.sqlite").debug(question("who", json_schema=SCHEMA))
    assert "maxLength" in own


@pytest.mark.parametrize("way", ["refused", "ignored"])
def test_without_json_schema_the_form_is_asked_for_in_words_said_once(tmp_path, caplog, way):
    with fault_server.serve(schema=way) as server, caplog.at_level(logging.WARNING):
        requests = [question(f"form {i}", json_schema=SCHEMA) for i in range(12)]
        replies = ask(teacher_of(server, tmp_path, in_flight=4), requests)
        bodies = server.stats()["bodies"]
    assert all(parse_json(reply.text, SCHEMA) for reply in replies)
    assert [record.message for record in caplog.records] == [
        f"{server.url} takes no JSON schema: the form is asked for in words"
    ]
    assert sum("response_format" in body for body in bodies) <= 4 and len(bodies) <= 16
    assert "Reply with one JSON value of this JSON schema" in bodies[-1]["messages"][0]["content"]


@pytest.mark.parametrize("way", ["refused", "ignored"])
def test_without_n_samples_are_asked_apart_with_the_same_cache(tmp_path, caplog, way):
    with fault_server.serve(n=way) as server, caplog.at_level(logging.WARNING):
        replies = ask(teacher_of(server, tmp_path, in_flight=4), [question(f"many {i}", n=3) for i in range(4)])
        assert sum(server.stats()["paid"].values()) == 12
        server.configure(n="yes")
        again = teacher_of(server, tmp_path)
        assert ask(again, [question(f"many {i}", n=3) for i in range(4)]) == replies and not again.used["live"]
    assert all(len(set(reply.texts)) == 3 for reply in replies)
    assert len(caplog.records) == 1 and "samples are asked apart" in caplog.text


def test_without_seed_and_with_another_name_for_the_limit(tmp_path, caplog):
    with fault_server.serve(seed="refused") as server:
        assert len(ask(teacher_of(server, tmp_path), [question(f"s {i}") for i in range(3)])) == 3
        assert "seed" not in server.stats()["bodies"][-1]
    with fault_server.serve(max_tokens="refused") as server, caplog.at_level(logging.WARNING):
        assert len(ask(teacher_of(server, tmp_path, in_flight=8), [question(f"m {i}") for i in range(20)])) == 20
        assert server.stats()["bodies"][-1]["max_completion_tokens"] == 200
    assert [record.message.split(" ", 1)[1] for record in caplog.records] == [
        "takes no seed: it is left out", "wants max_completion_tokens: it gets that",
    ]  # fmt: skip


# Secrets


def test_the_key_is_in_no_file_no_message_and_no_log(tmp_path, monkeypatch, caplog, capfd):
    secret = "sk-secret-of-the-test-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    with fault_server.serve(faults=0.5, kinds=["500", "reset", "429"]) as server, caplog.at_level(logging.DEBUG):
        teacher = teacher_of(server, tmp_path)
        teacher.check()
        assert secret not in teacher.debug(question("hello")) and "<OPENAI_API_KEY>" in teacher.debug(question("hello"))
        ask(teacher, [question(f"hello {i} of a very long prompt") for i in range(30)])
        assert server.stats()["headers"] == [f"Bearer {secret}"]
        server.configure(status=401, error={"message": f"Incorrect API key provided: {secret}"})
        with pytest.raises(InputError) as caught:
            ask(teacher_of(server, tmp_path), [question("other")])
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("rolellm")]
    output = "".join(capfd.readouterr())
    assert secret not in f"{caught.value}{caplog.text}{output}" and "very long prompt" not in "".join([*ours, output])
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_debug_shows_the_request_that_is_sent(server, tmp_path):
    asked = question("exactly 这个", n=2, json_schema=SCHEMA, seed=3)
    teacher = teacher_of(server, tmp_path)
    shown = json.loads(teacher.debug(asked).split("\n\n", 1)[1])
    ask(teacher, [asked])
    assert server.stats()["bodies"] == [shown]


# Kills and neighbours


def finish(process):
    """(replies by position, what the process counted) of a job that ran to its end."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    *lines, used = [json.loads(line) for line in out.splitlines()]
    return {position: texts for position, texts, _ in lines}, used


def test_killed_at_random_moments_under_faults(tmp_path):
    """Each reply once, as the server sent it; paid twice at most what was in flight. Full size: TEACHER_RUNS=20."""
    runs, count = int(os.environ.get("TEACHER_RUNS", 2)), int(os.environ.get("TEACHER_COUNT", 400))
    chance = random.Random(7)
    for run in range(runs):
        folder = tmp_path / str(run)
        folder.mkdir()
        with fault_server.serve(latency=0.05, faults=0.05, hang=0.3) as server:
            kills = in_flight = 0
            process = job(server, folder, count, in_flight=32, timeout=5.0)
            while kills < 2 + run % 3:
                known = sum(server.stats()["counts"].values())
                while sum(server.stats()["counts"].values()) < known + 10 and process.poll() is None:
                    time.sleep(0.02)
                time.sleep(chance.uniform(0.0, count / 600))
                if process.poll() is not None:
                    break
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                in_flight += claimed(folder)
                process = job(server, folder, count, in_flight=32, timeout=5.0)
            replies, _ = finish(process)
            paid = server.stats()["paid"]
        assert len(replies) == count and kills
        good = {
            row[0]: row[1] for row in stored(folder, "(SELECT body FROM requests r WHERE r.key = replies.key), text")
        }
        assert len(good) == count
        usable = [row for row in stored(folder, "key, status, text, attempt") if row[1] == "ok"]
        assert len({row[0] for row in usable}) == len(usable)
        for position, (reply,) in replies.items():
            asked = f"问 {position}"
            names = [name for name in paid if name.startswith((f"{asked}\n", f"{asked}|"))]
            pieces = [name.rpartition("|") for name in names]
            possible = {sent(text, seed=int(seed)) for text, _, seed in pieces}
            assert reply in possible or reply in ("", '{"other": 1')
        twice = sum(times - 1 for times in paid.values())
        assert twice <= in_flight <= 32 * kills, f"{twice} paid twice, {in_flight} in flight at {kills} kills"


def test_two_processes_finish_one_job_together(tmp_path):
    with fault_server.serve(latency=0.05) as server:
        both = [job(server, tmp_path, 300, n=2, in_flight=16) for _ in range(2)]
        (first, used), (second, others) = (finish(process) for process in both)
        paid = server.stats()["paid"]
    assert first == second and len(first) == 300
    assert max(paid.values()) == 1 and len(paid) == 300
    assert used["live"] + others["live"] == 600 and min(used["live"], others["live"]) > 60, "one did all the work"


def test_many_processes_may_open_a_new_store_at_once(tmp_path):
    with fault_server.serve() as server:
        for process in [job(server, tmp_path, 5) for _ in range(6)]:
            assert len(finish(process)[0]) == 5
        assert max(server.stats()["paid"].values()) == 1


def test_combinations_that_cannot_work_are_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="English only"):
        Teacher(embedded.NAME, "embedded", tmp_path / "t.sqlite", language="zh")
    with pytest.raises(InputError, match="serves SmolLM2-135M-Instruct only"):
        Teacher("gpt-4o-mini", "embedded", tmp_path / "t.sqlite")
    for key, way in (("ключ", "holds a character that no key has"), ("sk-plain", "write it with http://")):
        os.environ["OPENAI_API_KEY"] = key
        with pytest.raises(InputError, match=way):
            Teacher("m", "localhost:8000" if key.isascii() else "http://x", tmp_path / "t.sqlite")
        del os.environ["OPENAI_API_KEY"]
    with pytest.raises(InputError, match="has no Batch API"):
        Teacher(embedded.NAME, "embedded", tmp_path / "t.sqlite", batch=True)


def test_every_row_of_the_failure_table_names_tests_that_exist():
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("### When something fails")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) > 12 and all(named) and all(f"def {name}(" in code for names in named for name in names)
