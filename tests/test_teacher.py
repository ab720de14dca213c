import asyncio
import json
import sqlite3

import pytest

from rolellm_utils import embedded
from rolellm_utils import teacher as module
from rolellm_utils.records import InputError
from rolellm_utils.teacher import Request, Teacher, ledger, parse_json
from tests import scripted_server


def question(text, **options):
    return Request(messages=[{"role": "user", "content": text}], **options)


def ask(teacher, requests):
    async def gather():
        return [reply async for reply in teacher.ask_all(requests)]

    replies = asyncio.run(gather())
    teacher.close()
    return replies


def test_every_reply_is_stored_and_never_asked_twice(tmp_path):
    requests = [question(f"frage 你好 {i}", n=2, role="R") for i in range(20)]
    with scripted_server.serve() as (url, log):
        first = ask(Teacher("scripted", url, tmp_path / "t.sqlite", run="r", stage="s"), requests)
        assert len(log.asked) == 20 and all(body["n"] == 2 for body in log.asked)
        again = Teacher("scripted", url, tmp_path / "t.sqlite")
        assert ask(again, requests) == first
        assert len(log.asked) == 20 and again.used["stored"] == 40 and not again.used["live"]
        # A larger n asks for the lacking sample alone.
        more = ask(Teacher("scripted", url, tmp_path / "t.sqlite"), [question("frage 你好 0", n=3)])
        assert log.asked[-1]["n"] == 1 and more[0].texts[:2] == first[0].texts
    assert ledger(tmp_path / "t.sqlite", "r") == [
        {
            "stage": "s",
            "samples": 40,
            "prompt_tokens": 200,
            "completion_tokens": 100,
            "seconds": pytest.approx(0, abs=60),
        }
    ]


def test_replies_come_in_the_order_of_the_requests(tmp_path):
    requests = [question(f"order {i}") for i in range(50)]
    with scripted_server.serve() as (url, _):
        replies = ask(Teacher("scripted", url, tmp_path / "t.sqlite", in_flight=7), requests)
    expected = [scripted_server.answer({"messages": request.messages, "seed": 0}, 0) for request in requests]
    assert [reply.text for reply in replies] == expected


def test_what_shapes_the_answer_is_in_the_key_and_labels_are_not(tmp_path):
    teacher = Teacher("m", "http://x", tmp_path / "t.sqlite")
    base = teacher.key(question("a"))
    assert teacher.key(question("a", role="R", n=5)) == base
    for changed in (
        question("b"),
        question("a", seed=1),
        question("a", temperature=0.1),
        question("a", max_tokens=5),
    ):
        assert teacher.key(changed) != base
    assert Teacher("other", "http://x", tmp_path / "t.sqlite").key(question("a")) != base


def test_a_recorded_reply_is_used_and_a_miss_is_an_error(tmp_path, monkeypatch):
    recorded = tmp_path / "replies.jsonl"
    monkeypatch.setattr(module, "RECORDED", recorded)
    recorded.write_text("")
    teacher = Teacher("m", "http://127.0.0.1:1/v1", tmp_path / "t.sqlite", replay=True, stage="02")
    row = {"key": teacher.key(question("known")), "sample": 0, "text": "俺老孙", "finish_reason": "stop"}
    recorded.write_text(json.dumps(row) + "\n")
    teacher = Teacher("m", "http://127.0.0.1:1/v1", tmp_path / "t.sqlite", replay=True, stage="02")
    assert ask(teacher, [question("known")])[0].text == "俺老孙"
    teacher = Teacher("m", "http://127.0.0.1:1/v1", tmp_path / "t.sqlite", replay=True, stage="02")
    with pytest.raises(InputError, match="recorded replies hold no answer"):
        ask(teacher, [question("unknown")])


def test_the_key_stays_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    with scripted_server.serve() as (url, log):
        teacher = Teacher("scripted", url, tmp_path / "t.sqlite")
        teacher.check()
        ask(teacher, [question("hello")])
        assert log.keys == ["Bearer sk-secret-of-the-test"]
    assert all(b"sk-secret" not in path.read_bytes() for path in tmp_path.iterdir())
    with scripted_server.serve(status=401) as (url, _), pytest.raises(InputError) as caught:
        Teacher("scripted", url, tmp_path / "t.sqlite").check()
    assert "OPENAI_API_KEY" in str(caught.value) and "sk-secret" not in str(caught.value)


def test_an_unreachable_server_and_an_unknown_model_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="does not answer .*start it or correct teacher_url"):
        Teacher("m", "http://127.0.0.1:9/v1", tmp_path / "t.sqlite").check()
    with scripted_server.serve() as (url, _), pytest.raises(InputError, match="is not served .* scripted"):
        Teacher("other", url, tmp_path / "t.sqlite").check()


def test_a_damaged_store_is_named(tmp_path):
    (tmp_path / "t.sqlite").write_bytes(b"no database at all, no no no" * 50)
    with pytest.raises(InputError, match="t.sqlite cannot be read"):
        Teacher("m", "http://x", tmp_path / "t.sqlite")


def test_replies_survive_a_failure_in_the_middle(tmp_path):
    with scripted_server.serve() as (url, log):
        teacher = Teacher("scripted", url, tmp_path / "t.sqlite", in_flight=1)

        async def some():
            async for _ in teacher.ask_all([question(str(i)) for i in range(10)]):
                if len(log.asked) >= 5:
                    raise RuntimeError("killed")

        with pytest.raises(RuntimeError):
            asyncio.run(some())
        stored = sqlite3.connect(tmp_path / "t.sqlite").execute("SELECT COUNT(*) FROM replies").fetchone()[0]
        assert stored >= 5


def test_json_is_validated():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert parse_json('{"a": "一"}', schema) == {"a": "一"}
    assert parse_json('{"a": "cut of', schema) is None
    assert parse_json('{"a": 1}', schema) is None


def test_the_embedded_model_is_refused_for_chinese_and_under_another_name(tmp_path):
    with pytest.raises(InputError, match="English only"):
        Teacher(embedded.NAME, "embedded", tmp_path / "t.sqlite", language="zh")
    with pytest.raises(InputError, match="serves SmolLM2-135M-Instruct only"):
        Teacher("gpt-4o-mini", "embedded", tmp_path / "t.sqlite")


def test_the_same_question_at_once_is_asked_once(tmp_path):
    with scripted_server.serve(delay=0.05) as (url, log):
        replies = ask(Teacher("scripted", url, tmp_path / "t.sqlite"), [question("twice")] * 6 + [question("once")])
    assert len(log.asked) == 2 and len({reply.text for reply in replies[:6]}) == 1


def test_a_teacher_may_be_used_from_one_event_loop_after_another(tmp_path):
    with scripted_server.serve(delay=0.01) as (url, log):
        teacher = Teacher("scripted", url, tmp_path / "t.sqlite", in_flight=2)
        for turn in range(3):

            async def some(turn=turn):
                return [reply async for reply in teacher.ask_all([question(f"{turn} {i}") for i in range(8)])]

            assert len(asyncio.run(some())) == 8
        teacher.close()
    assert len(log.asked) == 24


def test_other_servers_get_the_schema_without_limits_and_longer_replies_pass(tmp_path):
    schema = {"type": "object", "properties": {"description": {"type": "string", "maxLength": 5}},
              "required": ["description"], "additionalProperties": False}  # fmt: skip
    with scripted_server.serve() as (url, log):
        reply = ask(Teacher("scripted", url, tmp_path / "t.sqlite"), [question("who", json_schema=schema)])[0]
    assert "maxLength" not in json.dumps(log.asked[0]) and "additionalProperties" in json.dumps(log.asked[0])
    assert parse_json('{"description": "longer than five"}', schema) and reply.text


@pytest.mark.parametrize(
    ("status", "way"), [(400, "may be too long"), (404, "correct teacher_url"), (429, "in_flight")]
)
def test_each_kind_of_refusal_has_its_way_out(tmp_path, status, way, monkeypatch):
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    with scripted_server.serve(status=status) as (url, _), pytest.raises(InputError, match=way):
        ask(Teacher("scripted", url, tmp_path / "t.sqlite"), [question("hello")])
