"""Script layouts, errors and role names: exact turns of small specimens, both gold plays, arbitrary text."""

import contextlib
import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolellm_utils.records import InputError
from rolellm_utils.scripts import FORMATS, find_role, parse, speakers, title_case

ROOT = Path(__file__).resolve().parents[1]
GOLD = Path(os.environ.get("SCRIPTS_DIR") or ROOT.parent / "shared" / "data" / "scripts")

SCREENPLAY = """\
THE ROCK
Written by A. Writer

FADE IN:

INT. LAMP ROOM - NIGHT

The light turns. A GULL
lands.

                    MR. HALL (V.O.)
          Keep it
                    (beat)
          burning. (softly) Always.

                    O'BRIEN
               (shouting,
               far away)
          NO
          WAY!
They run.
                    KEEPER'S WIFE
          Hush.
                                        CUT TO:

THE LAMP DIES
Nobody moves.

EXT. CLIFF - DAY

                    MR. HALL (CONT'D)
          Still burning.
"""
FOUNTAIN = """\
INT. KITCHEN - DAY

Steam.

McCOY (O.S.)
(tired)
Tea?

DR. ANDERS
Please.
"""
PLAY = """\
A SMALL PLAY
for two voices

ACT I

SCENE I. A quay.

[Enter FIRST CITIZEN
and TOM]

FIRST CITIZEN
Who goes?
I ask again: who goes?

TOM
[Aside]
Not I.
[He drops
the bag]
I swear.

Gulls are heard.

SCENE II. The same.

FIRST CITIZEN.
[To TOM] Liar.
[Exit

TOM
Gone.
"""
COLON = """\
Title: Toast
Setting: a kitchen

SCENE ONE: The kitchen

TOM: Is there
any toast?
Listen: there must be.

Ann (at the stove): No.

(She sits.)

ANN:
Eat (slowly) this.
[She throws a roll.]
Now.

Scene 2

Tom: Thanks.
"""
CHINESE = """\
《夜渡》
人物：周渡、阿兰

第一场　渡口　夜

（江面起雾，
远处有钟声。）

周　渡（低声）：船来了？（望江）还
没有。

阿兰：他说：再等等。

【灯暗】

周渡：（沉默）

第二场　船上　黎明
阿兰：走吧。
周渡：走。
"""


def turns(path, text, format=None, encoding="utf-8"):
    file = path / "script.txt"
    file.write_bytes(text.encode(encoding))
    script = parse(file, format)
    assert {turn.file for turn in script.turns} == {"script.txt"} == {script.file}
    return script.format, [(turn.speaker, turn.text, turn.scene, turn.lines) for turn in script.turns]


def test_screenplay(tmp_path):
    lamp, cliff = "INT. LAMP ROOM - NIGHT", "EXT. CLIFF - DAY"
    assert turns(tmp_path, SCREENPLAY) == (
        "screenplay",
        [
            ("Mr. Hall", "Keep it burning. (softly) Always.", lamp, (12, 14)),
            ("O'Brien", "NO WAY!", lamp, (19, 20)),
            ("Keeper's Wife", "Hush.", lamp, (23, 23)),
            ("Mr. Hall", "Still burning.", cliff, (32, 32)),
        ],
    )


def test_screenplay_with_cues_at_the_margin(tmp_path):
    kitchen = "INT. KITCHEN - DAY"
    expected = [("McCoy", "Tea?", kitchen, (7, 7)), ("Dr. Anders", "Please.", kitchen, (10, 10))]
    assert turns(tmp_path, FOUNTAIN) == ("screenplay", expected)


def test_play(tmp_path):
    assert turns(tmp_path, PLAY) == (
        "play",
        [
            ("First Citizen", "Who goes? I ask again: who goes?", "SCENE I. A quay.", (12, 13)),
            ("Tom", "Not I. I swear.", "SCENE I. A quay.", (17, 20)),
            ("First Citizen", "[To TOM] Liar.", "SCENE II. The same.", (27, 27)),
            ("Tom", "Gone.", "SCENE II. The same.", (31, 31)),
        ],
    )


def test_colon(tmp_path):
    assert turns(tmp_path, COLON) == (
        "colon",
        [
            ("Tom", "Is there any toast? Listen: there must be.", "SCENE ONE: The kitchen", (6, 8)),
            ("Ann", "No.", "SCENE ONE: The kitchen", (10, 10)),
            ("Ann", "Eat (slowly) this. Now.", "SCENE ONE: The kitchen", (15, 17)),
            ("Tom", "Thanks.", "Scene 2", (21, 21)),
        ],
    )


def test_colon_without_blank_lines(tmp_path):
    text = "Act 1\nTOM: Well?\nANN (aside): Hush\nnow.\nMR. HALL: Both of you.\nhttp://example.org\n"
    _, rows = turns(tmp_path, text)
    assert [(speaker, text) for speaker, text, _, _ in rows] == [
        ("Tom", "Well?"),
        ("Ann", "Hush now."),
        ("Mr. Hall", "Both of you. http://example.org"),
    ]


def test_colon_in_chinese(tmp_path):
    first, second = "第一场 渡口 夜", "第二场 船上 黎明"
    assert turns(tmp_path, CHINESE) == (
        "colon",
        [
            ("周渡", "船来了？还没有。", first, (9, 10)),
            ("阿兰", "他说：再等等。", first, (12, 12)),
            ("阿兰", "走吧。", second, (19, 19)),
            ("周渡", "走。", second, (20, 20)),
        ],
    )


@pytest.mark.parametrize("text", [SCREENPLAY, FOUNTAIN, PLAY, COLON, CHINESE])
def test_line_ends_and_byte_order_mark_change_nothing(tmp_path, text):
    expected = turns(tmp_path, text)
    for end in ("\r\n", "\r"):
        assert turns(tmp_path, text.replace("\n", end)) == expected
    assert turns(tmp_path, text, encoding="utf-8-sig") == expected
    assert turns(tmp_path, text, format=expected[0]) == expected


def test_speech_before_the_first_heading_has_no_scene(tmp_path):
    text = "TOM\nHello.\n\nANN\nHi.\n\nSCENE I\n\nTOM\nBye.\n"
    assert [(speaker, scene) for speaker, _, scene, _ in turns(tmp_path, text)[1]] == [
        ("Tom", ""),
        ("Ann", ""),
        ("Tom", "SCENE I"),
    ]


def test_a_speaker_has_one_spelling(tmp_path):
    names = ["McCoy", "MCCOY", "McCoy", "Ada  Hall", "ADA HALL", "周　渡", "周渡"]
    _, rows = turns(tmp_path, "".join(f"{name}: Line {i}.\n" for i, name in enumerate(names)))
    assert [row[0] for row in rows] == ["McCoy"] * 3 + ["Ada Hall"] * 2 + ["周渡"] * 2


@pytest.mark.parametrize(
    "name, title",
    [
        ("FIRST CITIZEN", "First Citizen"),
        ("O'BRIEN", "O'Brien"),
        ("D’ARTAGNAN", "D’Artagnan"),
        ("MR. HALL", "Mr. Hall"),
        ("KEEPER'S WIFE", "Keeper's Wife"),
        ("SAILORS' CHOIR", "Sailors' Choir"),
        ("JEAN-LUC", "Jean-Luc"),
        ("McCOY", "McCoy"),
        ("HENRY IV", "Henry IV"),
        ("C-3PO", "C-3PO"),
        ("J.J.", "J.J."),
        ("ÉLISE", "Élise"),
        ("Ada of the Rock", "Ada of the Rock"),
        ("周渡", "周渡"),
    ],
)
def test_title_case(name, title):
    assert title_case(name) == title


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b" \r\n\t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"TOM: a\0b\nANN: c\n", "save it as UTF-8"),
        ("TOM: hi\nANN: ho".encode("utf-16"), "save it as UTF-8"),
        ("TOM: hi\nANN: caf\u00e9\n".encode("latin-1"), "line 2: not UTF-8 text; save it as UTF-8"),
        (
            b"It was a dark night.\n\nThe rain fell: in torrents.\n",
            "no speaker found; .*screenplay.*play.*colon",
        ),
        (b"TOM: alone here.\n", "no speaker found"),
        (b"TOM: ditto.\nTOM: ditto.\n", "no speaker found"),
    ],
)
def test_bad_files(tmp_path, content, message):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        parse(file)
    assert "bad.txt" in str(raised.value) and "\n" not in str(raised.value)


def test_bad_paths_and_formats(tmp_path):
    with pytest.raises(InputError, match=r"gone\.txt: no such script file"):
        parse(tmp_path / "gone.txt")
    with pytest.raises(InputError, match="is a directory"):
        parse(tmp_path)
    with pytest.raises(InputError, match="unknown script format 'fdx'; use play, screenplay, colon"):
        parse(tmp_path / "gone.txt", "fdx")
    (tmp_path / "colon.txt").write_text(COLON)
    with pytest.raises(InputError, match="no speaker found as screenplay"):
        parse(tmp_path / "colon.txt", "screenplay")


def test_prose_with_a_few_colons_is_no_script(tmp_path):
    (tmp_path / "novel.txt").write_text("It rained.\n" * 99 + "\nWarning: prose.\n\nNotice: prose.\n")
    with pytest.raises(InputError, match="no speaker found"):
        parse(tmp_path / "novel.txt")


def test_speakers_and_find_role(tmp_path):
    (tmp_path / "a.txt").write_text(PLAY)
    (tmp_path / "b.txt").write_text(COLON)
    counts = speakers([parse(tmp_path / "a.txt"), parse(tmp_path / "b.txt")])
    assert list(counts.items()) == [("Tom", 4), ("First Citizen", 2), ("Ann", 2)]
    assert find_role("  first   CITIZEN ", counts) == "First Citizen"
    with pytest.raises(InputError, match="role 'Anne' speaks in none of .*; use a speaker such as Ann"):
        find_role("Anne", counts)
    with pytest.raises(InputError, match="such as Tom, First Citizen, Ann"):
        find_role("Zuleika", counts)
    with pytest.raises(InputError, match="add a script"):
        find_role("Tom", {})


@pytest.mark.parametrize(
    "name, format, roles",
    [
        ("lantern_rock", "screenplay", ["Oswin", "Neha", "Zephyrine"]),
        ("the_last_tram", "play", ["Hettie", "Vosper"]),
        ("night_ferry_zh", "colon", ["老鲁", "钱小满", "白凤仙"]),
    ],
)
def test_starter_scripts(name, format, roles):
    script = parse(ROOT / "rolellm_utils" / "starter" / f"{name}.txt")
    counts = speakers([script])
    assert script.format == format
    assert set(list(counts)[: len(roles)]) == set(roles)
    assert all(counts[role] >= 25 for role in roles)
    assert len(counts) <= 5
    assert all(turn.scene for turn in script.turns)


@pytest.mark.parametrize("play", ["coriolanus", "merchant_of_venice"])
def test_gold(play):
    if not (GOLD / f"{play}.gold.jsonl").is_file():
        pytest.skip(f"no {play}.gold.jsonl in {GOLD}; set SCRIPTS_DIR to the folder of the gold plays")
    gold = [json.loads(line) for line in (GOLD / f"{play}.gold.jsonl").read_text("utf-8").splitlines()]
    script = parse(GOLD / f"{play}.txt")
    assert script.format == "play"
    found = [(plain(turn.speaker), plain(turn.text), turn.lines[0]) for turn in script.turns]
    assert found == [(plain(row["speaker"]), plain(row["text"]), row["line"]) for row in gold]


def plain(text):
    return " ".join(text.lower().split())


PIECES = [
    "",
    "TOM",
    "   ANN (V.O.)",
    "  words",
    "Words.",
    "[Exit",
    "(beat)",
    "]",
    "）",
    "INT. HUT",
    "SCENE I",
    "甲：乙（丙",
    "Tom: hi",
    "Ann:",
    "第一场　夜",
    "CUT TO:",
    "\t(",
    "\x0c",
    "A" * 200,
    "(" * 50,
]


@pytest.mark.parametrize("format", [*FORMATS, None])
@settings(max_examples=150, deadline=1000)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("\n".join)))
def test_any_text_parses_or_is_refused(tmp_path_factory, format, text):
    file = tmp_path_factory.getbasetemp() / "any.txt"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        script = parse(file, format)
    except InputError as error:
        assert "any.txt" in str(error)
        return
    ends = [0, *(number for turn in script.turns for number in turn.lines), len(re.split("\r\n|\r|\n", text))]
    assert ends == sorted(ends)
    assert all(turn.text and turn.speaker for turn in script.turns)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("line", [piece * 50_000 for piece in ("(", "（", "A ", "Tom: ", "TO ")])
def test_long_lines_and_long_files_are_quick(tmp_path, line, format):
    text = "TOM\nhi\n\nANN\nho\n\nTom: hi\nAnn: ho\n" + f"{line}\n\nTOM\n(x)\n[\n" * 20
    (tmp_path / "long.txt").write_text(text, "utf-8")
    start = time.perf_counter()
    with contextlib.suppress(InputError):
        parse(tmp_path / "long.txt", format)
    assert time.perf_counter() - start < 5
