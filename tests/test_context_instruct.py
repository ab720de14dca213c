import json

from rolellm_utils import context_instruct
from rolellm_utils.files import read_jsonl
from rolellm_utils.records import Pair, Profile, Triplet
from rolellm_utils.teacher import Reply


def profile(pairs=12):
    made = [
        Pair(
            speaker="A",
            cue=f"cue {i} " + "word " * 10,
            reply=f"reply {i}",
            scene=f"S{i // 6}",
            file="a.txt",
            cue_lines=(10 * i, 10 * i + 1),
            lines=(10 * i + 2, 10 * i + 3),
        )
        for i in range(pairs)
    ]
    return Profile(role="B", description="You are B.", catchphrases=["so it is"], pairs=made)


def triplet(
    question, answer="It was the red one, as I told you.", completeness="High", factualness="High", kind="script_based"
):
    return Triplet(role="B", question=question, answer=answer, completeness=completeness, factualness=factualness,
                   rationale="r", type=kind)  # fmt: skip


def lines_of(pairs, words):
    return [segment["lines"] for segment in context_instruct.segments(profile(pairs), "en", words)]


def test_segments_are_full_keep_their_lines_and_stay_in_their_scene():
    # An exchange has 16 words, a scene six exchanges: three fill a segment of 40.
    assert lines_of(12, 40) == [(0, 23), (30, 53), (60, 83), (90, 113)]
    found = context_instruct.segments(profile(), "en", 40)
    assert {segment["file"] for segment in found} == {"a.txt"}
    everything = "\n".join(segment["text"] for segment in found)
    assert all(f"reply {i}\n" in everything + "\n" for i in range(12))


def test_what_is_left_of_a_scene_joins_the_segment_before():
    assert lines_of(5, 40) == [(0, 43)]
    assert lines_of(4, 40) == [(0, 33)]
    # A scene with too few words is a segment of its own rather than part of another scene.
    assert lines_of(7, 40) == [(0, 23), (30, 53), (60, 63)]


def test_requests_ask_about_spread_segments_and_sample_the_description():
    asked = context_instruct.requests(profile(), "en", script_based=2, script_agnostic=3, words=20, seed=5)
    assert [where["type"] for _, where in asked] == ["script_based", "script_based", "script_agnostic"]
    assert [request.n for request, _ in asked] == [1, 1, 3] and {request.seed for request, _ in asked} == {5}
    assert "You are B." in asked[-1][0].messages[-1]["content"] and asked[0][1]["lines"] == (0, 13)


def test_a_limit_leaves_room_for_both_types():
    rows = [triplet(f"What is in box number {i}?") for i in ("one", "two", "six", "ten")]
    rows += [triplet(f"How do you feel about {i}?", kind="script_agnostic") for i in ("rain", "gulls")]
    kept, _ = context_instruct.select(rows, "en", 1.0, most=4)
    assert [row.type for row in kept] == ["script_based", "script_agnostic"] * 2


def test_what_is_kept_and_why_the_rest_is_not():
    rows = [
        triplet("Which boat came home on the night of the storm?"),
        triplet("Which boat came home on the night of that storm?"),
        triplet("Who lit the lamp?", completeness="Low"),
        triplet("Who rang the bell?", factualness="Low"),
        triplet("Tell me about the bell."),
        triplet("Why did the gull leave?", answer=" "),
        triplet("What does the harbour smell of?", answer="I am I am I am I am I am I am I am I am I am"),
        triplet("Marta, who set fire to your bakery?"),
        triplet("Who painted the door?"),
        triplet("What is in the cellar?"),
    ]
    kept, rejects = context_instruct.select(rows, "en", 0.7, most=2)
    assert [row.question for row in kept] == [rows[0].question, rows[8].question]
    assert [row["reason"] for row in rejects] == [
        "duplicate", "low confidence", "low confidence", "not a question", "no answer", "goes in circles",
        "copied from the example", "over the limit",
    ]  # fmt: skip


def test_chinese_questions_are_compared_by_words():
    rows = [triplet("孙悟空为什么大闹天宫？"), triplet("孙悟空当年为什么大闹天宫？"), triplet("唐僧的马叫什么名字？")]
    kept, rejects = context_instruct.select(rows, "zh", 0.6)
    assert [row.question for row in kept] == [rows[0].question, rows[2].question]
    assert rejects[0]["reason"] == "duplicate"


def test_an_unreadable_reply_is_kept_as_a_reject_with_its_text():
    cut = Reply(key="k", texts=['{"triplets": [{"question": "Wh'], statuses=["cut_off"])
    where = {"role": "B", "type": "script_based", "file": "a.txt", "lines": (1, 2)}
    assert context_instruct.candidates(cut, where, 2) == ([], [{"reason": "cut off", **where, "text": cut.text}])
    other = Reply(key="k", texts=["hello", "{}"], statuses=["invalid", "invalid"])
    found, rejects = context_instruct.candidates(other, where, 2)
    assert not found and [row["reason"] for row in rejects] == ["not of the form asked for"] * 2


def test_an_answer_broken_off_by_the_schema_ends_at_its_last_sentence():
    item = {"question": "Who was it then?", "completeness": "High", "factualness": "High", "rationale": "r"}
    for answer, kept in (("It was Bela. " + "And so " * 40, "It was Bela."), ("And so " * 40, None)):
        answer = answer[: context_instruct.LONGEST_ANSWER]
        text = json.dumps({"triplets": [item | {"answer": answer}]})
        reply = Reply(key="k", texts=[text], statuses=["ok"])
        found, _ = context_instruct.candidates(reply, {"role": "B", "type": "script_based"}, 1)
        assert found[0].answer == (kept or answer)
        rejects = context_instruct.select(found, "en")[1]
        assert [row["reason"] for row in rejects] == ([] if kept else ["cut off"])


def test_rows_are_written_in_the_published_layout(tmp_path):
    rows = [triplet("Who painted the door?")]
    context_instruct.save({"B": rows}, [{"reason": "duplicate"}], [profile()], tmp_path, "en", 40)
    row = read_jsonl(tmp_path / "rolebench/instructions-eng/role-specific-B.jsonl")[0]
    assert {"id", "instruction", "metrics", "answer", "type"} <= set(row)
    assert read_jsonl(tmp_path / "rejected/02_context_instruct.jsonl") == [{"reason": "duplicate"}]
    assert read_jsonl(tmp_path / "rolebench/instructions-eng/nums.jsonl") == [{"role": "B", "num": 1}]
