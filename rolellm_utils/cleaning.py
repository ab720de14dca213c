"""The paper's four cleaning rules (section 4), and the repair of published rows: nothing goes without a reason.

A kept sample is complete, hides that an AI speaks, hides that a role is played, and responds. Completeness looks at
how a text ends; the other three are patterns of what breaks them, English and Chinese, each behind a cheap look for
one of its words.
"""

import re
from collections import Counter

from rolellm_utils.records import Sample

INCOMPLETE, AI, ROLE, REFUSAL = RULES = ("incomplete", "AI identity", "role identity", "refusal")
DUPLICATE_ROW, DUPLICATE_REFERENCE = "duplicate row, merged", "duplicate reference"
NOTHING_LEFT = "row without a reference left"

# rule: (words of which a text that breaks it holds one, lower case; the pattern that decides)
BREAKS = {
    AI: (
        # Small letters stand for either case; "ai" alone is in too many words to be looked for.
        (
            "AI",
            " ai",
            "是ai",
            "为ai",
            "个ai",
            "名ai",
            "种ai",
            "artificial",
            "language",
            "chat",
            "openai",
            "gpt",
            "smollm",
            "hugging",
            "人工智能",
            "模型",
            "助手",
            "机器人",
        ),
        re.compile(
            r"\bas an? (AI|artificial intelligence|(large )?language model|chat ?bot)\b|"
            r"\b(AI|artificial intelligence|(large )?language|chat)[ -](language )?(model|assistant|chat ?bot)s?\b|"
            r"\bI(?:'m| am)(?: just| only)? an? (AI|artificial intelligence|chat ?bot)\b|"
            r"\b(ChatGPT|OpenAI|GPT-?\d|SmolLM|Hugging Face)\b|"
            r"(作为|身为|我是|只是)(一个|一名|一种|个)?(AI|人工智能|语言模型|大模型|机器人)|"
            r"(人工智能|AI|智能)(语言模型|助手|模型)|大?语言模型",
            re.IGNORECASE,
        ),
    ),
    ROLE: (
        ("script", "screenplay", "fictional", "a character", "my role", "the role", "剧本", "角色", "人设"),
        re.compile(
            r"\bmy (script|screenplay)\b|\bin (my|the|this) (script|screenplay)\b|"
            r"\ba fictional character\b|\bI(?:'m| am) a character in\b|\bI am (playing|acting) (the role|a character)|"
            r"\b(my|the) role (as|of|in) the (play|film|movie|script)\b|"
            r"(我的|扮演的)(角色|剧本|人设)|剧本(里|中)",
            re.IGNORECASE,
        ),
    ),
    REFUSAL: (
        (
            "sorry",
            "cannot",
            "can't",
            "can not",
            "unable",
            "not able",
            "apologi",
            "afraid",
            "抱歉",
            "对不起",
            "不好意思",
            "没法",
            "没办法",
            "不能",
            "无法",
        ),
        re.compile(
            r"\b(sorry|apologi[sz]e|apologies|afraid)[,.!]? (?:but )?(?:(?:\w+ ){0,8}\w+, )?(?:that )?"
            r"I(?:'m| am| simply| really)? (?:can(?:'|no| no)t|unable|not able|don't|do not|have no)\b|"
            r"\bI(?: simply| really)? (?:can(?:'|no| no)t|am (?:unable|not able) to|'m (?:unable|not able) to) "
            r"(?:answer|help (?:you|with)|assist|provide|fulfil|comply|respond|generate)\b|"
            r"(抱歉|对不起|不好意思)[，,。！]?(但|可)?(我|俺|朕|本宫|老孙|俺老孙)?(不能|无法|没法|没办法)|"
            r"(我|俺|朕|本宫|俺老孙)(不能|无法|没法)(回答|提供|帮助|完成|满足|给出)",
            re.IGNORECASE,
        ),
    ),
}
WORD, BROKEN_OFF = re.compile(r"\w"), re.compile(r"[,，、;；(（-]")


def broken_rules(text, rules=RULES):
    """The names of the `rules` that an answer breaks, in their order.

    Complete: it says something and does not break off at a comma, hyphen or open bracket (whether it ran into the
    token limit, stage 3 knows, and shortens it). The other three are patterns (BREAKS).
    """
    text = text.strip().replace("’", "'")
    seen = f" {text.lower()} {text}"
    broken = [INCOMPLETE] if INCOMPLETE in rules and (not WORD.search(text) or BROKEN_OFF.search(text[-1:])) else []
    for rule, (words, pattern) in BREAKS.items():
        if rule not in rules:
            continue
        # A look for the words is much quicker than the pattern, and nearly all answers have none.
        for word in words:
            if word in seen:
                broken += [rule] * bool(pattern.search(text))
                break
    return broken


def clean(answers):
    """Stage 3's answers as Samples: ([Sample], [drop], [verdict]).

    A sample loses the references that break a rule or repeat another, and goes itself when it loses all. A drop is a
    reference with its reason; a verdict is a sample's: kept or dropped, references kept, references lost by reason.
    """
    samples, drops, verdicts = [], [], []
    for row in answers:
        kept, lost = _sift(row["generated"])
        source = {key: row.get(key) for key in ("role", "question", "id", "file", "lines")}
        drops += [{"role": row["role"], "question": row["question"], "text": text, "reason": why} for text, why in lost]
        verdicts.append(
            {"role": row["role"], "question": row["question"], "kind": row["kind"],
             "verdict": "kept" if kept else "dropped", "references": len(kept),
             "reasons": dict(Counter(why for _, why in lost))}
        )  # fmt: skip
        if kept:
            kind = [] if row["kind"] == "general" else [row["kind"]] * len(kept)
            samples.append(Sample(**source, generated=[row["generated"][i] for i in kept], type=kind))
    return samples, drops, verdicts


def repair(samples, file, rules=(AI, REFUSAL)):
    """Published rows without duplicates, disclosed AIs and refusals, and the drops: ([Sample], [drop]).

    Rows of one (role, question) become one row with all their references, in order; a row that loses all goes. A drop
    names file, role, question, text and reason: nothing is repaired in silence. rules=(): only what repeats is dropped.
    """
    groups = {}
    for sample in samples:
        groups.setdefault((sample.role, sample.question), []).append(sample)
    repaired, drops = [], []
    for (role, question), rows in groups.items():
        source = {"file": file, "role": role, "question": question}
        drops += [source | {"text": "", "reason": DUPLICATE_ROW} for _ in rows[1:]]
        texts = [text for row in rows for text in row.generated]
        kept, lost = _sift(texts, rules)
        drops += [source | {"text": text, "reason": why} for text, why in lost]
        # One type a reference, where the rows say so.
        types = [kind for row in rows for kind in row.type]
        if len(types) == len(texts):
            types = [types[i] for i in kept]
        if not kept:
            drops.append(source | {"text": "", "reason": NOTHING_LEFT})
        else:
            repaired.append(rows[0].model_copy(update={"generated": [texts[i] for i in kept], "type": types}))
    return repaired, drops


def _sift(texts, rules=RULES):
    """(indices of the texts to keep, [(text, reason)] of the others)."""
    kept, lost, seen = [], [], set()
    for i, text in enumerate(texts):
        reasons = (
            broken_rules(text, rules) or [DUPLICATE_REFERENCE] * (text in seen) or [INCOMPLETE] * (not text.strip())
        )
        seen.add(text)
        if reasons:
            lost.append((text, reasons[0]))
        else:
            kept.append(i)
    return kept, lost
