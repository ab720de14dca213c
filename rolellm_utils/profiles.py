"""Stage 1, Role Profile Construction (paper, section 3.2): a role's description, catchphrases and dialogue pairs."""

import re
from collections import Counter

from rolellm_utils.files import read_json, read_jsonl, resolve, shown, write_json, write_jsonl
from rolellm_utils.prompts import render, with_example
from rolellm_utils.records import InputError, Pair, Profile
from rolellm_utils.retrieval import tokens, whole_sentences
from rolellm_utils.scripts import find_role, parse, speakers
from rolellm_utils.stage import LANGUAGES
from rolellm_utils.teacher import Request, parse_json

SHORTEST = {"en": 3, "zh": 2}  # words of a catchphrase
SCHEMA = {
    "type": "object",
    "properties": {
        "description": {"type": "string", "minLength": 20, "maxLength": 260},
        "catchphrases": {
            "type": "array",
            "items": {"type": "string", "maxLength": 60},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["description", "catchphrases"],
    "additionalProperties": False,
}


def read_scripts(paths, roles, least_pairs=1):
    """The parsed scripts and the wanted roles as the scripts spell them; `[]` takes the three with most turns.

    Raises InputError for a script that cannot be read, an unknown role, and one with fewer than `least_pairs` pairs.
    """
    if not paths:
        raise InputError("scripts is empty; give it at least one script file")
    scripts = [parse(resolve(path)) for path in paths]
    counts = speakers(scripts)
    names = [find_role(role, counts) for role in roles] or list(counts)[:3]
    for name in names:
        found = len(pairs(scripts, name))
        if found < least_pairs:
            raise InputError(
                f"role {name!r} answers somebody only {found} times in the scripts, fewer than least_pairs = "
                f"{least_pairs}; choose another role, add a script or lower least_pairs"
            )
    return scripts, list(dict.fromkeys(names))


def pairs(scripts, role):
    """The exchanges of a role: each turn that answers another speaker's in the same scene, in script order."""
    found = []
    for script in scripts:
        for before, turn in zip(script.turns, script.turns[1:], strict=False):
            if turn.speaker == role != before.speaker and turn.scene == before.scene:
                found.append(
                    Pair(
                        speaker=before.speaker,
                        cue=before.text,
                        reply=turn.text,
                        scene=turn.scene,
                        file=turn.file,
                        lines=turn.lines,
                        cue_lines=before.lines,
                    )
                )
    return found


def lines_of(scripts, role):
    """Everything a role says, a string a turn, in script order."""
    return [turn.text for script in scripts for turn in script.turns if turn.speaker == role]


def repeated_phrases(lines, others, language, most=3, longest=8):
    """The phrases (3 to `longest` words, Chinese from 2) that a role repeats in three turns and others hardly say.

    Ranked by turns x words; a phrase inside a better one is left out, and none runs over the end of a sentence.
    Texts as spoken, first spelling.
    """
    theirs = Counter(gram for line in others for gram in _grams(line, language, longest))
    ours = Counter(gram for line in lines for gram in _grams(line, language, longest))
    ranked = sorted(
        (gram for gram, turns in ours.items() if turns >= 3 and 3 * theirs[gram] <= turns),
        key=lambda gram: (-ours[gram] * len(gram), gram),
    )
    kept = []
    for gram in ranked:
        joined = " ".join(gram)
        if not any(joined in other or other in joined for other in kept):
            kept.append(joined)
    spelled = (_as_spoken(gram.split(), lines, language) for gram in kept)
    return [phrase for phrase in spelled if phrase][:most]


def _grams(line, language, longest):
    sentences = (tokens(sentence, language) for sentence in re.split(r"[.!?;:。！？；：]", line))
    return {
        tuple(words[i : i + n])
        for words in sentences
        for n in range(SHORTEST[language], longest + 1)
        for i in range(len(words) - n + 1)
    }


def _as_spoken(words, lines, language):
    gap = r"\W*" if language == "zh" else r"\W+"
    pattern = re.compile(gap.join(map(re.escape, words)), re.IGNORECASE)
    return next((match.group() for line in lines if (match := pattern.search(line))), "")


def request(scripts, role, language, lines=12, **sampling):
    """The question to the teacher about one role, with `lines` of its longer lines spread evenly over the scripts."""
    said = [line for line in lines_of(scripts, role) if len(tokens(line, language)) >= 4] or lines_of(scripts, role)
    shown_lines = [said[i * len(said) // lines] for i in range(lines)] if len(said) > lines else said
    text = "\n".join(f"- {line[:240]}" for line in shown_lines)
    messages = with_example(language, "profile", role=role, lines=text)
    return Request(messages=messages, json_schema=SCHEMA, role=role, **sampling)


def own_descriptions(path):
    """The descriptions a person has written or corrected: {role, lower case: text} of a JSON file, {} for no path."""
    texts = read_json(resolve(path)) if path else {}
    if not isinstance(texts, dict):
        raise InputError(f"{shown(resolve(path))} holds no {{role: text}}; write one JSON object")
    wrong = [role for role, text in texts.items() if not isinstance(text, str) or not text.strip()]
    if wrong:
        raise InputError(f"{shown(resolve(path))}: the description of {wrong[0]!r} is no text; write {{role: text}}")
    return {role.casefold(): text.strip() for role, text in texts.items()}


def from_reply(reply, scripts, role, language, own=None):
    """The Profile a teacher's reply makes, with its dialogue pairs; `own` descriptions win over the teacher's.

    A proposed catchphrase counts only where the role really says it; phrases that the role repeats come first.
    A reply that is not of the form asked for leaves the description to "You are <role>."
    """
    data = parse_json(reply.text, SCHEMA) or {"description": "", "catchphrases": []}
    lines = lines_of(scripts, role)
    spoken = "\n".join(lines).casefold()
    proposed = [phrase.strip(' "“”.!') for phrase in data["catchphrases"]]
    said = [phrase for phrase in proposed if phrase.casefold() in spoken]
    said = [phrase for phrase in said if len(tokens(phrase, language)) >= SHORTEST[language]]
    others = [turn.text for script in scripts for turn in script.turns if turn.speaker != role]
    mined = repeated_phrases(lines, others, language)
    catchphrases = list({phrase.casefold(): phrase for phrase in [*mined, *said]}.values())[:3]
    written = (own or {}).get(role.casefold())
    text = written or second_person(data["description"], role, language)
    return Profile(
        role=role,
        description=text if written else with_catchphrases(text, catchphrases, language),
        catchphrases=catchphrases,
        pairs=pairs(scripts, role),
    )


def second_person(description, role, language):
    """The description speaking to the role, cut at its last complete sentence: "You are ..." / "你是……"."""
    lead = render(language, "you_are") + ("" if language == "zh" else " ")
    text = " ".join(description.split())
    if not re.match(r"you\b|你", text, re.IGNORECASE):
        # "Oswin is a keeper" and "A keeper" become "You are a keeper"; other texts follow "You are Oswin."
        rest = re.sub(rf"^{re.escape(role)}(?: is |是)\s*", "", text, flags=re.IGNORECASE)
        if rest and rest != text:
            text = lead + rest
        elif re.match(r"(?:an?|the) ", text, re.IGNORECASE):
            text = lead + text[0].lower() + text[1:]
        else:
            text = f"{lead}{role}{'。' if language == 'zh' else '. '}{text}".strip()
    return whole_sentences(text) or text.rstrip(",;，；") + ("。" if language == "zh" else ".")


def with_catchphrases(description, catchphrases, language):
    """The role's one published string: the description, and a sentence that quotes the catchphrases if it has any."""
    if not catchphrases:
        return description
    quoted = [render(language, "quote", text=phrase) for phrase in catchphrases]
    phrases = ("、" if language == "zh" else ", ").join(quoted)
    return f"{description}{'' if language == 'zh' else ' '}{render(language, 'catchphrases', phrases=phrases)}"


def save(profiles, scripts, run_dir, language):
    """Write the profiles in RoleBench's layout (profiles-eng, profiles-zh); the files written."""
    code = LANGUAGES[language]
    folder = run_dir / "rolebench" / f"profiles-{code}"
    written = [
        write_jsonl(folder / f"profiles-{code}-{file_name(profile.role)}.jsonl", profile.pairs) for profile in profiles
    ]
    phrases = {profile.role: profile.catchphrases for profile in profiles}
    return [
        *written,
        write_json(folder / "scripts.json", [script.file for script in scripts]),
        write_json(folder / "desc.json", {profile.role: profile.description for profile in profiles}),
        # Not in the published layout, whose description quotes them.
        write_json(folder / "catchphrases.json", phrases),
    ]


def load(run_dir, language):
    """The profiles of a run, in the order of its roles, with their dialogue pairs."""
    code = LANGUAGES[language]
    folder = run_dir / "rolebench" / f"profiles-{code}"
    phrases = read_json(folder / "catchphrases.json")
    return [
        Profile(
            role=role,
            description=text,
            catchphrases=phrases.get(role, []),
            pairs=read_jsonl(folder / f"profiles-{code}-{file_name(role)}.jsonl"),
        )
        for role, text in read_json(folder / "desc.json").items()
    ]


def file_name(role):
    """A role's name as part of a file name."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", role)
