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
            lines=(i, i + 1),
        )
        for i in range(pairs)
    ]
    return Profile(role="B", description="You are B.", catchphrases=["so it is"], pairs=made)


def triplet(question, answer="It was the red one, as I told you.", completeness="High", factualness="High"):
    return Triplet(role="B", question=question, answer=answer, completeness=completeness, factualness=factualness,
                   rationale="r", type="script_based", segment=0)  # fmt: skip


def test_segments_hold_enough_words_keep_lines_and_stay_in_their_scene():
    found = context_instruct.segments(profile(), "en", words=40)
    assert [lines for _, lines in found] == [(0, 3), (3, 6), (6, 9), (9, 12)] or all(
        first < last for _, (first, last) in found
    )
    assert all("S" not in text for text, _ in found)
    everything = "\n".join(text for text, _ in found)
    assert all(f"reply {i}" in everything for i in range(12))
    assert not any("reply 5" in text and "reply 6" in text for text, _ in found), "crosses a scene"


def test_requests_ask_about_spread_segments_and_the_description_with_other_seeds():
    asked = context_instruct.requests(profile(), "en", script_based=2, script_agnostic=3, words=20, seed=5)
    assert [kind for _, kind, _, _ in asked] == ["script_based"] * 2 + ["script_agnostic"] * 3
    assert len({request.seed for request, kind, _, _ in asked if kind == "script_agnostic"}) == 3
    assert "so it is" in asked[-1][0].messages[-1]["content"]


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
    cut = Reply(key="k", texts=['{"triplets": [{"question": "Wh'], finish_reasons=["length"])
    assert context_instruct.candidates(cut, "B", "script_based", 3, (1, 2), 2) == (
        [],
        [{"role": "B", "reason": "cut off", "type": "script_based", "segment": 3, "text": cut.text}],
    )
    assert (
        context_instruct.candidates(Reply(key="k", texts=["hello"], finish_reasons=["stop"]), "B", "s", 0, None, 2)[1][
            0
        ]["reason"]
        == "not valid JSON"
    )


def test_an_answer_broken_off_by_the_schema_ends_at_its_last_sentence():
    item = {"question": "Who was it then?", "completeness": "High", "factualness": "High", "rationale": "r"}
    for answer, kept in (("It was Bela. " + "And so " * 40, "It was Bela."), ("And so " * 40, None)):
        answer = answer[: context_instruct.LONGEST_ANSWER]
        text = json.dumps({"triplets": [item | {"answer": answer}]})
        reply = Reply(key="k", texts=[text], finish_reasons=["stop"])
        found, _ = context_instruct.candidates(reply, "B", "script_based", 0, None, 1)
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
