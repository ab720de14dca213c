"""Script files -> speaker turns with line numbers.

Three layouts are understood: "screenplay" (INT./EXT. headings, capital cues), "play" (the speaker in capitals
on a line of its own, the speech right below) and "colon" (`NAME: line` or `角色：台词`). Each gives every
line of the file one row (kind, speaker, text); rows become turns the same way for all, and the layout that
explains most lines is the detected one.
"""

import re
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from rolellm_utils.files import shown
from rolellm_utils.records import InputError, Script, Turn

FORMATS = ("play", "screenplay", "colon")
LAYOUTS = (
    "screenplay (INT./EXT. headings, speakers in capitals above their lines), play (a speaker in capitals "
    "on a line of its own, the speech right below) or colon (`NAME: line`, `角色：台词`)"
)

NUMBER = r"(?:[IVXLC]+|\d+|(?i:one|two|three|four|five|six|seven|eight|nine|ten))"
PLAY_HEADING = rf"(?:ACT|SCENE|Act|Scene)\s+{NUMBER}(?:\s*[.:,(\-–—].*|\s+(?:SCENE|Scene)\b.*)?$|(?:SCENE|Scene)\s*[.:]"
SET_HEADING = r"(?:\d+[A-Z]?\.?\s+)?(?:INT\.?\s*/\s*EXT|EXT\.?\s*/\s*INT|I/E|INT|EXT|EST)[.\s]"
ZH_HEADING = (
    r"第[一二三四五六七八九十百零〇两\d]+[幕场場折集景](?=[\s：:、.，·—-]|$)|(?:序幕|尾声|楔子)(?=[\s：:]|$)"
    r"|场景(?:[一二三四五六七八九十\d]+|(?=[：:]))|(?:\d+[.、．]?\s*)?[内外]景"
)
HEADINGS = {
    "play": re.compile(PLAY_HEADING),
    "screenplay": re.compile(SET_HEADING),
    "colon": re.compile(f"{PLAY_HEADING}|{SET_HEADING}|{ZH_HEADING}"),
}
BRACKETS = {"play": ("[", "]"), "screenplay": ("(", ")"), "colon": ("[(（【", "])）】")}
TRANSITION = re.compile(
    r"(?=[^a-z]*$)(?:(?:FADE|DISSOLVE|SMASH|WIPE|INTERCUT|MONTAGE|CONTINUED|OMITTED|THE END|END OF|CURTAIN"
    r"|BACK TO|(?:JUMP |MATCH |HARD )?CUT)\b|[A-Z' ]+ TO:$)"
)

# A dash between spaces marks a shot (ANGLE - DOOR), not a name.
CAPITALS = re.compile(r"[^\W\d_](?:(?! -|--)[\w .,'’&/#-]){0,40}$")
# The Mc, Mac, De of McCOY, MacNEIL, DeLUCA: the one lower case that a name in capitals may hold.
PREFIX = re.compile(r"\b([A-Z])[a-z]{1,2}(?=[A-Z])")
EXTENSION = re.compile(r"(?:\s*[(\[（][^()\[\]（）]*[)\]）])+$")
COLON_CUE = re.compile(
    r"([^\W\d_][^:：,，。！？!?;；…“”\"「」()（）\[\]]{0,30})"
    r"(?:[(（\[][^()（）\[\]]*[)）\]]\s*)*[:：](?!//)(.*)$"
)
PARTICLES = {"of", "the", "and", "de", "del", "di", "da", "du", "la", "le", "van", "von", "der", "in", "with"}
# `Title: ...` and `时间：夜` only look like speech, and 张三说： is prose.
REMARK = re.compile(
    r"(?i:titles?|authors?|written by|translated by|by|date|draft|setting|time|place|characters|cast"
    r"|dramatis personae|notes?|source|licen[cs]e|copyright)$"
    r"|(?:标题|题目|剧名|片名|作者|编剧|导演|时间|地点|人物|登场人物|角色|布景|说明|注|备注)$"
    r"|.*(?:说|[问答喊叫笑]道)$"
)
CJK = r"\u3001-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff01-\uff60"
DASHES_QUOTES = r"\u2018-\u201d\u2014\u2026"
ZH_BREAK = re.compile(rf"(?<=[{CJK}])\n(?=[{CJK}{DASHES_QUOTES}])|(?<=[{DASHES_QUOTES}])\n(?=[{CJK}])")
ZH_ASIDE = re.compile(rf"[（【][^（）【】]*[）】]|\((?=[^()]*[{CJK}])[^()]*\)")

Row = tuple[str, str, str]
BLANK, OTHER, ASIDE = ("blank", "", ""), ("other", "", ""), ("aside", "", "")


def parse(path: str | Path, format: str | None = None) -> Script:
    """Script of a file: its turns in order; `format` is one of FORMATS, None takes the best fit.

    Directions and parentheticals on lines of their own are no part of a turn's text; an inline `[Aside]` is,
    an inline `（低声）` is not. Raises InputError for a file that cannot be read, is no UTF-8 text, or shows
    fewer than two different turns.
    """
    if format is not None and format not in FORMATS:
        known = ", ".join(FORMATS)
        raise InputError(f"{shown(path)}: unknown script format {format!r}; use {known}, or None to detect it.")
    lines = read_lines(path)
    rows = {name: label(lines, name) for name in ([format] if format else FORMATS)}
    best = max(rows, key=lambda name: explained(rows[name]))
    turns = one_spelling(without_front_matter(to_turns(rows[best], Path(path).name)))
    # In prose a few lines look like cues by chance; a script, even one mostly of action, is above a tenth.
    by_chance = format is None and explained(rows[best]) < 0.1 * sum(bool(line.strip()) for line in lines)
    if by_chance or len({(turn.speaker, turn.text) for turn in turns}) < 2:
        tried = f" as {format}" if format else ""
        raise InputError(f"{shown(path)}: no speaker found{tried}; lay the script out as {LAYOUTS}.")
    return Script(file=Path(path).name, format=best, turns=turns)


def speakers(scripts: Iterable[Script]) -> dict[str, int]:
    """Number of turns by speaker over all scripts, most first."""
    return dict(Counter(turn.speaker for script in scripts for turn in script.turns).most_common())


def find_role(name: str, speakers: Iterable[str]) -> str:
    """The speaker called `name`, case and white space aside; InputError with the closest if there is none."""
    spelling = {}
    for speaker in speakers:
        spelling.setdefault(key(speaker), speaker)
    if key(name) in spelling:
        return spelling[key(name)]
    near = get_close_matches(key(name), spelling, n=5, cutoff=0.5) or list(spelling)[:5]
    offer = f"use a speaker such as {', '.join(spelling[speaker] for speaker in near)}"
    raise InputError(f"role {name!r} speaks in none of the scripts; {offer if near else 'add a script'}.")


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 text file, tabs expanded; InputError if missing, a directory, empty or not UTF-8."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such script file; check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{shown(path)}: is a directory; name the script file inside it.") from None
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read ({error.strerror}); check path and permissions.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{shown(path)}, line {line}: not UTF-8 text; save it as UTF-8.") from None
    if "\0" in text:
        raise InputError(f"{shown(path)}: is binary, not text (NUL bytes); save it as UTF-8 plain text.")
    if not text.strip():
        raise InputError(f"{shown(path)}: the script is empty; give a file with speeches in it.")
    # Not splitlines: to an editor form feeds and Unicode separators end no line, and numbers would drift.
    return text.replace("\r\n", "\n").replace("\r", "\n").expandtabs().split("\n")


def label(lines: list[str], format: str) -> list[Row]:
    """One row (kind, speaker, text) a line as `format` sees it: blank, other, aside, scene, cue or speech."""
    if format == "colon":
        return label_colon(lines)
    if format == "play":
        return label_stacked(lines, "play", indented=False)
    return max((label_stacked(lines, "screenplay", indented) for indented in (True, False)), key=explained)


def label_stacked(lines: list[str], format: str, indented: bool) -> list[Row]:
    """Rows of a layout with cues in capitals above the speech; `indented`: both are set in, action is not."""
    plain = label_plain(lines, format)
    margin = left_margin(lines, plain)
    inner = [indent(line) > margin for line in lines]
    can_speak = [row == OTHER and inside >= indented for row, inside in zip(plain, inner, strict=True)]
    rows, speaking = [], False
    for i, line in enumerate(lines):
        if plain[i] != OTHER:
            rows.append(plain[i])
            speaking = speaking and plain[i] == ASIDE
            continue
        opens = not speaking and (i == 0 or rows[-1] != OTHER)
        deeper = indented and i > 0 and indent(line) > indent(lines[i - 1])
        name = capital_cue(line, format) if (opens or deeper) and inner[i] == indented else ""
        if name and next((can_speak[j] for j in range(i + 1, len(lines)) if plain[j] != ASIDE), False):
            rows.append(("cue", name, ""))
            speaking = True
        else:
            speaking = speaking and can_speak[i]
            rows.append(("speech", "", line) if speaking else OTHER)
    return rows


def label_colon(lines: list[str]) -> list[Row]:
    """Rows of the `NAME: line` layout: a speech runs to the next cue, heading, remark or blank line."""
    plain = label_plain(lines, "colon")
    heads = [colon_cue(line) if row == OTHER else None for line, row in zip(lines, plain, strict=True)]
    first = {i for i, head in enumerate(heads) if head and (i == 0 or plain[i - 1] != OTHER)}
    names = {key(heads[i][0]) for i in first}
    known = sum(head is not None and key(head[0]) in names for head in heads)
    # Where blank lines part the speeches, `Listen: ...` in the middle of one is no cue.
    if 2 * len(first) > sum(map(bool, heads)) and known <= 1.1 * len(first):
        heads = [head if i in first else None for i, head in enumerate(heads)]
    rows, speaking = [], False
    for line, row, head in zip(lines, plain, heads, strict=True):
        if head:
            speaking = not REMARK.match(head[0])
            row = ("cue", head[0], ZH_ASIDE.sub("", head[1])) if speaking else OTHER
        elif row == OTHER:
            row = ("speech", "", ZH_ASIDE.sub("", line)) if speaking else OTHER
        else:
            speaking = speaking and row == ASIDE
        rows.append(row)
    return rows


def label_plain(lines: list[str], format: str) -> list[Row]:
    """Rows of what is never speech: directions, headings, blank lines, transitions as such; else OTHER."""
    asides, rows = directions(lines, *BRACKETS[format]), []
    for i, line in enumerate(lines):
        text = line.strip()
        if not text or TRANSITION.match(text):
            rows.append(BLANK)
        elif i in asides:
            rows.append(ASIDE)
        else:
            rows.append(("scene", "", fold([text])) if HEADINGS[format].match(text) else OTHER)
    return rows


def directions(lines: list[str], opening: str, closing: str) -> set[int]:
    """Indexes of the lines that are wholly bracketed, also over several lines, up to a blank line."""
    found, start, depth = set(), None, 0
    for i, line in enumerate([*lines, ""]):
        text = line.strip()
        if start is None and text[:1] and text[0] in opening:
            start, depth, outside = i, 0, False
        if start is None:
            continue
        for char in text:
            depth = max(0, depth + (char in opening) - (char in closing))
            outside = outside or depth == 0 and char not in closing + " .。\u3000"
        if not text:
            # Never closed: its first line alone is dropped, so that one lost bracket costs no speech.
            found.add(start)
        elif depth == 0 and not outside:
            found.update(range(start, i + 1))
        if not text or depth == 0:
            start = None
    return found


def left_margin(lines: list[str], rows: list[Row]) -> int:
    """Column where action starts: that of most headings, else of the leftmost line."""
    headings = [indent(line) for line, row in zip(lines, rows, strict=True) if row[0] == "scene"]
    return Counter(headings or [min(indent(line) for line in lines if line.strip())]).most_common(1)[0][0]


def indent(line: str) -> int:
    """Number of white-space characters before the text of a line."""
    return len(line) - len(line.lstrip())


def capital_cue(line: str, format: str) -> str:
    """Speaker of a line in capitals, extensions such as (V.O.) taken off; "" for a line that is no cue."""
    name = EXTENSION.sub("", line.strip()[:80])
    name = name.removesuffix(".") if format == "play" else name
    return name if CAPITALS.match(name) and PREFIX.sub(r"\1", name).isupper() else ""


def colon_cue(line: str) -> tuple[str, str] | None:
    """Name and rest of a `NAME: line`; None where what precedes the colon is no name."""
    match = COLON_CUE.match(line.strip())
    if not match:
        return None
    name, text = match[1].strip(), match[2].strip()
    if re.search(f"[{CJK}]", name):
        return (name, text) if len(name) <= 10 else None
    words = name.split()
    proper = all(word in PARTICLES or not word[0].islower() for word in words) and not words[0][0].islower()
    return (name, text) if proper and len(words) <= 5 else None


def explained(rows: list[Row]) -> int:
    """Number of lines a layout accounts for."""
    return sum(row not in (BLANK, OTHER) for row in rows)


def to_turns(rows: list[Row], file: str) -> list[Turn]:
    """Turns of labelled lines: a cue with the speech up to the next row of another kind but a direction."""
    turns, scene, speaker, said = [], "", "", {}
    for number, (kind, name, text) in enumerate([*rows, BLANK], start=1):
        if kind not in ("speech", "aside") and said:
            lines = (min(said), max(said))
            text_said = fold(said.values())
            turns.append(Turn(speaker=speaker, text=text_said, scene=scene, file=file, lines=lines))
            said = {}
        if kind == "scene":
            scene = text
        elif kind == "cue":
            speaker = name
        if kind in ("cue", "speech") and text.strip():
            said[number] = text
    return turns


def without_front_matter(turns: list[Turn]) -> list[Turn]:
    """Turns less those before the first heading if none of their speakers is heard again (title, cast)."""
    before = {key(turn.speaker) for turn in turns if not turn.scene}
    after = [turn for turn in turns if turn.scene]
    return after if after and before.isdisjoint(key(turn.speaker) for turn in after) else turns


def one_spelling(turns: list[Turn]) -> list[Turn]:
    """The turns with capitals turned to title case and each speaker spelled one way, the most frequent."""
    spellings: dict[str, Counter] = {}
    for turn in turns:
        spellings.setdefault(key(turn.speaker), Counter())[title_case(turn.speaker)] += 1
    name = {speaker: counts.most_common(1)[0][0] for speaker, counts in spellings.items()}
    return [turn.model_copy(update={"speaker": name[key(turn.speaker)]}) for turn in turns]


def title_case(name: str) -> str:
    """A name in capitals as O'Brien, McCoy, Keeper's Wife, Henry IV; any other as it is; 周　渡 as 周渡."""
    if not PREFIX.sub(r"\1", name).isupper():
        return ("" if re.search(f"[{CJK}]", name) else " ").join(name.split())
    word = r"(?<= )[IVX]{2,}$|\b([A-Z][a-z]{1,2}(?=[A-Z]))?([^\W\d_]+)"
    name = " ".join(name.split())
    name = re.sub(word, lambda m: m[0] if m[2] is None else (m[1] or "") + m[2].capitalize(), name)
    return re.sub(r"(?<=[^\W\d_A-Z]['’])[A-Z](?![\w'’])", lambda m: m[0].lower(), name)


def fold(lines: Iterable[str]) -> str:
    """One line of several: runs of white space become one space, a break between Chinese characters none."""
    return ZH_BREAK.sub("", "\n".join(" ".join(line.split()) for line in lines)).replace("\n", " ")


def key(name: str) -> str:
    """What makes two spellings of a name the same: its letters, case and white space aside."""
    return "".join(name.split()).casefold()
