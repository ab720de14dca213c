import random

import pytest

from rolellm_utils import rolegpt
from rolellm_utils.files import write_jsonl
from rolellm_utils.records import InputError, Pair, Profile
from rolellm_utils.teacher import Reply


def profile(cues, role="Neha"):
    pairs = [
        Pair(speaker="Oswin", cue=cue, reply=f"reply to {cue}", scene="1", file="a.txt", cue_lines=(i, i), lines=(i, i))
        for i, cue in enumerate(cues, 1)
    ]
    return Profile(role=role, description="You count things. You say: Noted.", catchphrases=["Noted"], pairs=pairs)


CUES = ["How deep is the sea?", "Who lit the lamp?", "Do you like bread?", "Is the boat late?", "Is a gull a bird?"]


def test_few_shot_dialogue_shows_the_best_pairs_as_turns_the_best_one_last():
    messages = rolegpt.prompts(profile(CUES), ["Was the lamp lit by you?"], "en", "few-shot-dialogue", 2)[0]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[3]["content"] == "Who lit the lamp?" and messages[4]["content"] == "reply to Who lit the lamp?"
    assert messages[-1]["content"] == "Was the lamp lit by you?"
    assert "You are Neha." in messages[0]["content"] and "Noted" in messages[0]["content"]


def test_the_other_strategies():
    zero = rolegpt.prompts(profile(CUES), ["Q?"], "en", "zero-shot")[0]
    assert len(zero) == 2
    one = rolegpt.prompts(profile(CUES), ["Was the lamp lit?"], "en", "few-shot", 2)[0]
    assert len(one) == 2 and "Neha: reply to Who lit the lamp?" in one[1]["content"]
    assert one[1]["content"].rstrip().endswith("Was the lamp lit?")
    with pytest.raises(InputError, match="strategy is 'best'"):
        rolegpt.prompts(profile(CUES), ["Q?"], "en", "best")


def test_chinese_pairs_are_found_by_words():
    cues = ["你吃饭了吗？", "这条河有多深？", "谁在唱戏？"]
    messages = rolegpt.prompts(profile(cues, "老鲁"), ["请问这条河深不深？"], "zh", "few-shot-dialogue", 1)[0]
    assert messages[1]["content"] == "这条河有多深？" and messages[0]["content"].startswith("你是老鲁")


def test_long_turns_are_clipped_at_a_sentence():
    assert rolegpt.clip("One two three. Four five six seven.", "en", 5) == "One two three."
    assert rolegpt.clip("one two three four five six", "en", 3) == "one two three"
    assert rolegpt.clip("short", "en", 3) == "short"
    assert rolegpt.clip("一二三。四五六七八九", "zh", 3) == "一二三。"


def test_references_and_baseline_stay_apart_and_cut_answers_end_at_a_sentence():
    reply = Reply(key="k", texts=["One. Two", "Three. Fo", "Base."], statuses=["ok", "cut_off", "ok"])
    row = rolegpt.general_row("B", "Q?", reply, 2)
    assert row["generated"] == ["One. Two", "Three."] and row["baseline"] == "Base." and row["shortened"] == 1


def test_a_role_specific_row_keeps_its_reference_and_its_source():
    row = {"id": 7, "instruction": "Q?", "answer": "A.", "type": "script_based", "file": "a.txt", "lines": [3, 9]}
    made = rolegpt.specific_row("B", row, Reply(key="k", texts=["Said. And"], statuses=["cut_off"]))
    assert made["generated"] == ["A."] and made["baseline"] == "Said." and made["kind"] == "script_based"
    assert (made["id"], made["file"], made["lines"]) == (7, "a.txt", [3, 9])


def test_instructions_are_drawn_by_seed_over_the_categories(tmp_path):
    rows = [{"instruction": f"do {i}", "category": "abc"[i % 3]} for i in range(30)]
    path = write_jsonl(tmp_path / "i.jsonl", rows)
    drawn = rolegpt.read_instructions(path, 6, random.Random(1))
    assert sorted(row["category"] for row in drawn) == ["a", "a", "b", "b", "c", "c"]
    assert drawn == rolegpt.read_instructions(path, 6, random.Random(1))
    assert drawn != rolegpt.read_instructions(path, 6, random.Random(2))
    with pytest.raises(InputError, match="holds 30 instructions; 31 are wanted"):
        rolegpt.read_instructions(path, 31, random.Random(1))


def test_raw_requests_name_no_role():
    request = rolegpt.raw_requests(["Q?"], "en")[0]
    assert "Neha" not in str(request.messages) and request.role == ""
