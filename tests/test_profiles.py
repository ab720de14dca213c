import json

import pytest

from rolellm_utils import profiles
from rolellm_utils.files import read_json, read_jsonl, write_json
from rolellm_utils.records import InputError, Script, Turn
from rolellm_utils.teacher import Reply


def script(*turns, scene="1"):
    made = [
        Turn(speaker=who, text=text, scene=scene, file="a.txt", lines=(i, i)) for i, (who, text) in enumerate(turns, 1)
    ]
    return Script(file="a.txt", format="colon", turns=made)


def reply(value):
    return Reply(key="k", texts=[value if isinstance(value, str) else json.dumps(value)], statuses=["ok"])


def test_a_pair_answers_another_speaker_in_the_same_scene():
    one = script(("A", "Who?"), ("B", "Me."), ("B", "Really."), ("A", "No."), scene="1")
    two = script(("B", "Alone."), ("A", "Not now."), ("B", "Now."), scene="2")
    joined = Script(file="a.txt", format="colon", turns=one.turns + two.turns)
    found = profiles.pairs([joined], "B")
    assert [(pair.speaker, pair.cue, pair.reply, pair.lines) for pair in found] == [
        ("A", "Who?", "Me.", (2, 2)),
        ("A", "Not now.", "Now.", (3, 3)),
    ]


def test_repeated_phrases_are_the_roles_own_and_never_cross_a_sentence():
    lines = ["Sure as suet. It is cold.", "That is sure as suet, my dear.", "Sure as suet! It is late.", "It is cold."]
    assert profiles.repeated_phrases(lines, ["It is cold.", "nothing"], "en") == ["Sure as suet"]
    assert profiles.repeated_phrases(lines, ["sure as suet"] * 2, "en") == []
    chinese = ["我算过了，三两银子。", "别吵，我算过了！", "我算过了，水又跑不了"]
    assert any("算过" in phrase for phrase in profiles.repeated_phrases(chinese, ["水又跑不了"], "zh"))


def test_a_profile_speaks_to_the_role_and_keeps_only_phrases_it_says():
    source = script(("A", "So?"), ("B", "Slow boat, dry socks."), ("A", "And?"), ("B", "Slow boat, dry socks."))
    data = {
        "description": "B is a keeper. And then he",
        "catchphrases": ["slow boat, dry", "Slow boat", "Bread comes first"],
    }
    profile = profiles.from_reply(reply(data), [source], "B", "en")
    assert profile.catchphrases == ["slow boat, dry"]
    assert profile.description == 'You are a keeper. Your catchphrases are: "slow boat, dry".'
    broken = profiles.from_reply(reply("{cut"), [source], "B", "en")
    assert broken.description == "You are B."
    own = profiles.from_reply(reply(data), [source], "B", "en", {"b": "You are mine."})
    assert own.description == "You are mine."
    long = "You are a keeper. " + "You are kind and you count the ships. " * 20
    assert profiles.from_reply(reply(data | {"description": long}), [source], "B", "en").description.startswith(
        long.strip()
    )


@pytest.mark.parametrize(
    ("language", "role", "given", "expected"),
    [
        ("en", "B", "You are B, a keeper. You", "You are B, a keeper."),
        ("en", "B", "You're a keeper.", "You're a keeper."),
        ("en", "B", "B is a keeper. And then he", "You are a keeper."),
        ("en", "B", "A keeper of lamps.", "You are a keeper of lamps."),
        ("en", "B", "He is a keeper.", "You are B. He is a keeper."),
        ("en", "B", "B Pell is a keeper.", "You are B. B Pell is a keeper."),
        ("en", "B", "", "You are B."),
        ("zh", "老鲁", "老鲁是撑船的。还有", "你是撑船的。"),
        ("zh", "老鲁", "他撑船", "你是老鲁。"),
        ("zh", "老鲁", "你是撑船的。", "你是撑船的。"),
    ],
)
def test_second_person(language, role, given, expected):
    assert profiles.second_person(given, role, language) == expected


def test_descriptions_of_ones_own_are_read_by_role_in_any_case(tmp_path):
    path = write_json(tmp_path / "d.json", {"Oswin": " You keep the light. "})
    assert profiles.own_descriptions(path) == {"oswin": "You keep the light."}
    with pytest.raises(InputError, match="the description of 'Oswin' is no text"):
        profiles.own_descriptions(write_json(path, {"Oswin": 3}))


def test_profiles_come_back_as_saved_in_the_published_layout(tmp_path):
    source = script(("甲", "谁？"), ("乙", "我。"), ("甲", "走吧。"), ("乙", "不走。"))
    made = [
        profiles.Profile(
            role=role,
            description=profiles.with_catchphrases(f"你是{role}。", ["我算过了"], "zh"),
            catchphrases=["我算过了"],
            pairs=profiles.pairs([source], role),
        )
        for role in ("甲", "乙")
    ]
    profiles.save(made, [source], tmp_path, "zh")
    assert profiles.load(tmp_path, "zh") == made
    folder = tmp_path / "rolebench" / "profiles-zh"
    assert read_json(folder / "desc.json") == {role: f"你是{role}。你的口头禅是：“我算过了”。" for role in ("甲", "乙")}
    assert len(read_jsonl(folder / "profiles-zh-乙.jsonl")) == 2


def test_the_request_shows_the_roles_lines_spread_over_the_script():
    source = script(*[("B", f"this is line number {i}") for i in range(100)])
    text = profiles.request([source], "B", "en", lines=10).messages[-1]["content"]
    assert text.count("\n- ") == 10 and "number 0" in text and "number 90" in text


def test_too_few_pairs_are_refused(tmp_path):
    (tmp_path / "s.txt").write_text("Ann: Hello there.\nBob: Hello.\nAnn: Well.\nBob: Yes.\n")
    for wanted, message in ((["bob"], "only 2 times"), (["Carl"], "Carl")):
        try:
            profiles.read_scripts([str(tmp_path / "s.txt")], wanted, 3)
        except InputError as error:
            assert message in str(error)
        else:
            raise AssertionError("accepted")
    _, names = profiles.read_scripts([str(tmp_path / "s.txt")], ["BOB", " ann"], 1)
    assert names == ["Bob", "Ann"]
