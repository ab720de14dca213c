"""ROUGE-L against its oracles: the packages `rouge` and `rouge-score`, and the published RoleGPT cells."""

import json
import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from rolellm_utils.rouge import answer_lengths, rouge_l, tokens

EXACT = {"rtol": 0, "atol": 1e-12}
# The oracles take about a millisecond a pair, so of the general rows of RoleBench a part is compared by default.
ALL_PAIRS = os.environ.get("ROUGE_ALL_PAIRS") == "1"
NEAR_EACH_OTHER = Path(__file__).resolve().parents[2] / "shared" / "data" / "rolebench"
ROLEBENCH = Path(os.environ.get("ROLEBENCH_DIR") or NEAR_EACH_OTHER)

ODD_TEXTS = [
    "",
    " ",
    "\n",
    ".",
    "..",
    ". .",
    " . ",
    "...",
    "Hi.",
    "Hi. ",
    "Hi . ",
    ".Hi",
    "a",
    "A",
    "a a a a",
    "b a",
    "a b a b a",
    "a.b.a.b",
    "a. b. a. b.",
    "a b. b a. a",
    "!?!",
    "-- , ;",
    "?",
    "x\u00a0y\u3000z",
    "a\x1cb\x85c",
    "it's don't",
    "I'm I'M",
    "3.14 is pi.",
    "No.No.No.",
    "İstanbul ǅ ß",
    "Kelvin \u212a",
    "the cat sat on the mat. the end.",
    "on the mat the cat sat. End the. The.",
    "a\ud800b",
    "café",
    "😀",
    "😀.👩‍👩‍👧 ok",
    "你",
    "你好",
    "你你好好你",
    "你好。你好.你",
    "。！？",
    "々〇𠀀𰻞",
    "２０２２年5月1日",
    "こんにちは 안녕",
    "我 爱\tPython3\n吗?",
    "俺老孙 来也！Hello World 42.",
    "GPT-4是AI.AI是GPT-4",
    "Привет мир. Hello 你好 עולם مرحبا",
    "ſt ﬁn Å ΑΣ Σ. ΑΣ",
    "été ñ",
    "zero​width﻿⁠ a­b",
    "😀😀 😀.😀",
    "a . b . a . b .",
    ". a.. b ...a b",
    "no no. no no no. NO",
]
ALPHABET = st.sampled_from(list("abcAB01 .., \n!é你好我。😀\u3000"))
TEXT = st.text(ALPHABET, max_size=40) | st.text(max_size=20)
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "a.", "b.", "."]), max_size=25).map(" ".join)


class KitTokenizer:
    """The form in which `rouge-score` takes a tokenizer."""

    def __init__(self, language):
        self.language = language

    def tokenize(self, text):
        return tokens(text, self.language)


ROUGE = Rouge(metrics=["rouge-l"])
SCORERS = {"en": RougeScorer(["rougeL"]), "zh": RougeScorer(["rougeL"], tokenizer=KitTokenizer("zh"))}


def rouge_package(prediction, reference, language):
    """(recall, F) of the package `rouge`; (0, 0) where it raises, `rouge_iterative` where it recurs too deep."""
    texts = [" ".join(text) if language == "zh" else text for text in (prediction, reference)]
    try:
        scores = ROUGE.get_scores(*texts)[0]["rouge-l"]
    except ValueError:
        return 0.0, 0.0
    except RecursionError:
        return rouge_iterative(*texts)
    return scores["r"], scores["f"]


def rouge_iterative(prediction, reference):
    """(recall, F) of the package `rouge`, word by word of its source, but without recursion."""
    answers, wanted = ({tuple(part.split() or [""]) for part in t.split(".") if part} for t in (prediction, reference))
    if not answers or not wanted:
        return 0.0, 0.0
    union = set().union(*(walk_of_package(r, a) for r in wanted for a in answers))
    r, p = (len(union) / len(set().union(*sentences)) for sentences in (wanted, answers))
    return r, 2.0 * (p * r / (p + r + 1e-8))


def lcs_table(reference, answer):
    code = {word: i for i, word in enumerate(set(reference) | set(answer))}
    columns = np.array([code[word] for word in answer])
    table = np.zeros((len(reference) + 1, len(answer) + 1), dtype=np.int16)
    for i, word in enumerate(reference, 1):
        grown = np.where(columns == code[word], table[i - 1, :-1] + 1, table[i - 1, 1:])
        table[i, 1:] = np.maximum.accumulate(grown)
    return table


def walk_of_package(reference, answer):
    """Words of the subsequence that the package `rouge` takes, from its full table."""
    table = lcs_table(reference, answer)
    i, j, taken = len(reference), len(answer), set()
    while i and j:
        if reference[i - 1] == answer[j - 1]:
            i, j = i - 1, j - 1
            taken.add(reference[i])
        elif table[i - 1, j] > table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return taken


def check_paper(pairs, language):
    want = [rouge_package(p, r, language)[0] for p, r in pairs]
    return largest_difference(pairs, "paper", language, want)


def check_rouge_score(pairs, language):
    want = [SCORERS[language].score(r, p)["rougeL"].fmeasure for p, r in pairs]
    return largest_difference(pairs, "rouge_score", language, want)


def largest_difference(pairs, protocol, language, want):
    got = rouge_l([p for p, _ in pairs], [[r] for _, r in pairs], protocol, language)
    np.testing.assert_allclose(got, want, **EXACT)
    return f"{len(pairs):,} pairs, largest difference {np.abs(got - want).max():.1e}"


def random_text(rng, words, longest):
    glue = rng.choice([" ", " ", "  ", "\n", ""])
    ends = ["."] + [""] * 6
    return glue.join(rng.choice(words) + rng.choice(ends) for _ in range(rng.randrange(longest)))


def random_pairs(seed, n, longest=25):
    """Pairs over 2 to 27 words, so that repeats and ties are many; every other one is a text and its edit."""
    rng = random.Random(seed)
    vocabulary = [
        "a",
        "b",
        "the",
        "The",
        "cat",
        "sat",
        "on",
        "mat",
        ".",
        "..",
        ",",
        "!",
        "I'm",
        "42",
        "é",
        "😀",
        "你",
        "好",
        "的",
        "是",
        "我",
        "。",
        "你好",
        "x",
        "y",
        "z",
        "zz",
        "w",
    ]
    for i in range(n):
        words = rng.sample(vocabulary, rng.randrange(2, len(vocabulary)))
        first, second = random_text(rng, words, longest), random_text(rng, words, longest)
        yield first, second if i % 2 else first[rng.randrange(len(first) + 1) :] + second[:8]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("check_protocol", [check_paper, check_rouge_score])
def test_equals_package_on_20000_synthetic_pairs(check_protocol, language):
    pairs = [(p, r) for p in ODD_TEXTS for r in ODD_TEXTS]
    pairs += random_pairs(seed=7, n=17_200, longest=10)
    pairs += random_pairs(seed=8, n=40, longest=120)
    assert len(pairs) >= 20_000
    print(check_protocol(pairs, language))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_equals_package_on_5000_tokens_against_odd_texts(language):
    rng = random.Random(4)
    glue = " " if language == "en" else ""
    long = glue.join(rng.choice(["a", "b", "the", "cat", "Kelvin", "你", "好", "!", "😀", "no"]) for _ in range(5000))
    pairs = [(long, text) for text in ODD_TEXTS[::8]] + [(text, long) for text in ODD_TEXTS[3::8]]
    check_paper(pairs, language)
    check_rouge_score(pairs, language)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.lists(st.tuples(TEXT | WORDS, TEXT | WORDS), min_size=1, max_size=8), st.sampled_from(["en", "zh"]))
def test_equals_packages_on_generated_pairs(pairs, language):
    check_paper(pairs, language)
    check_rouge_score(pairs, language)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_picks_among_references(language):
    rng = random.Random(3)
    texts = [text for pair in random_pairs(seed=9, n=200) for text in pair]
    rows = [(p, rng.sample(texts, rng.randrange(1, 6))) for p in texts]
    predictions, references = zip(*rows, strict=True)
    for pick in ("best_f", "max", "mean"):
        want = []
        for p, several in rows:
            recall, f = np.array([rouge_package(p, r, language) for r in several]).T
            want.append({"best_f": recall[np.argmax(f)], "max": recall.max(), "mean": recall.mean()}[pick])
        np.testing.assert_allclose(rouge_l(predictions, references, "paper", language, pick), want, **EXACT)
    want = [SCORERS[language].score_multi(several, p)["rougeL"].fmeasure for p, several in rows]
    for pick in ("best_f", "max"):
        got = rouge_l(predictions, references, "rouge_score", language, pick)
        np.testing.assert_allclose(got, want, **EXACT)


def test_best_f_prefers_the_shorter_reference_over_the_larger_recall():
    prediction, references = "a b c d", ["a", "a b c x"]
    assert rouge_l([prediction], [references], "paper", pick="max")[0] == 1.0
    assert rouge_l([prediction], [references], "paper", pick="best_f")[0] == 0.75
    assert rouge_l([prediction], [references], "paper", pick="mean")[0] == 0.875


@pytest.mark.parametrize("language, raising", [("en", ["", ".", "...."]), ("zh", ["", "."])])
def test_zero_where_the_package_raises(language, raising):
    for text in raising:
        for pair in [(text, "你好 a"), ("你好 a", text), (text, text)]:
            with pytest.raises(ValueError):
                ROUGE.get_scores(*(" ".join(t) if language == "zh" else t for t in pair))
            for protocol in ("paper", "rouge_score"):
                assert rouge_l([pair[0]], [[pair[1]]], protocol, language)[0] == 0.0


def test_blank_sentence_counts_as_a_word_under_paper():
    assert rouge_l(["Yo. "], [["Hi. "]], "paper")[0] == 0.5
    assert rouge_l(["Yo."], [["Hi."]], "paper")[0] == 0.0


def test_chinese_is_scored_by_character():
    assert tokens("俺老孙Python3来也！é", "zh") == ["俺", "老", "孙", "python3", "来", "也"]
    assert rouge_l(["你好"], [["你 好。"]], "rouge_score", "zh")[0] == 1.0
    assert rouge_l(["你好"], [["你好"]], "rouge_score", "en")[0] == 0.0
    assert rouge_l(["你好"], [["你 好 吗"]], "paper", "zh")[0] == pytest.approx(2 / 3)


def test_goes_on_where_the_package_runs_out_of_recursion():
    answer, reference = "a " + "b " * 1200, "c a"
    with pytest.raises(RecursionError):
        ROUGE.get_scores(answer, reference)
    assert rouge_l([answer], [[reference]], "paper")[0] == rouge_iterative(answer, reference)[0] == 0.5


def test_iterative_reference_equals_the_package():
    pairs = [(p, r) for p in ODD_TEXTS for r in ODD_TEXTS[::3]]
    for p, r in [*pairs, *random_pairs(seed=10, n=500)]:
        assert rouge_iterative(p, r) == pytest.approx(rouge_package(p, r, "en"), abs=1e-12)


def long_words(rng, n=5000):
    return [f"w{min(int(rng.paretovariate(0.7)), 3000)}" for _ in range(n)]


def long_texts():
    """name -> (answer, reference), each a list of sentences, each a list of words w0 to w3000."""
    rng = random.Random(5)
    few = [f"w{i}" for i in range(4)]
    rising = [f"w{i}" for i in range(3000)]
    dotted = [[rng.choices(few, k=rng.randrange(1, 4)) for _ in range(2500)] for _ in range(2)]
    return {
        "one sentence": [[long_words(rng)] for _ in range(2)],
        "five sentences": [[long_words(rng, n) for n in (1700, 300, 1, 900, 40)] for _ in range(2)],
        "one word": [[["w7"] * 5000], [["w7"] * 3000]],
        "every word twice, order reversed": [[rising * 2], [rising[::-1]]],
        "dots everywhere": dotted,
        "a dot after every word": [[[word] for word in long_words(rng, 2000)], [[word] for word in rising[::-20]]],
    }


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("answer, reference", long_texts().values(), ids=long_texts())
def test_thousands_of_words(answer, reference, language):
    if language == "zh":
        answer, reference = (
            [[chr(0x4E00 + int(w[1:])) for w in part] for part in text] for text in (answer, reference)
        )
    glue = " " if language == "en" else ""
    texts = [".".join(map(glue.join, text)) for text in (answer, reference)]
    recall, _ = rouge_iterative(*(".".join(map(" ".join, text)) for text in (answer, reference)))
    assert rouge_l(texts[:1], [texts[1:]], "paper", language)[0] == pytest.approx(recall, abs=1e-12)
    words = [sum(text, []) for text in (answer, reference)]
    common = lcs_table(words[1], words[0])[-1, -1]
    f1 = 2 * common / (len(words[0]) + len(words[1]))
    assert rouge_l(texts[:1], [texts[1:]], "rouge_score", language)[0] == pytest.approx(f1, abs=1e-12)


def test_tokens_of_every_character_equal_the_package():
    for start in range(0, 0x110000, 0x800):
        text = "".join(f"X{chr(c)}y{chr(c)} " for c in range(start, start + 0x800))
        assert tokens(text) == DefaultTokenizer().tokenize(text)


def test_answer_lengths():
    np.testing.assert_array_equal(answer_lengths(["", " a  bc\nd ", "你好 a"]), [0, 3, 2])
    np.testing.assert_array_equal(answer_lengths(["", " a  bc\nd ", "你 好\u3000。"], "zh"), [0, 4, 3])
    assert answer_lengths([], "en").dtype == np.int64


def test_no_rows_give_an_empty_array():
    assert rouge_l([], [], "paper").shape == (0,)
    assert rouge_l(iter(["a"]), iter([("a",)])).dtype == np.float64


@pytest.mark.parametrize("protocol", ["rouge_score", "paper"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_generators_give_what_lists_give(protocol, language):
    texts = [text for pair in random_pairs(seed=11, n=100) for text in pair]
    several = [[text, texts[-i], "a b"] for i, text in enumerate(reversed(texts))]
    streamed = rouge_l((text for text in texts), ((text for text in row) for row in several), protocol, language)
    np.testing.assert_array_equal(streamed, rouge_l(texts, several, protocol, language))


def peak_of_generated_rows(n, protocol):
    """Peak memory in bytes, as Python and numpy ask for it, of n rows that exist only one at a time."""
    answers = (f"Captain {i} has{' ' * 99}said nothing." for i in range(n))
    several = ([f"Captain {i % 97}{' ' * 99}something.", str(i)] for i in range(n))
    tracemalloc.start()
    scores = rouge_l(answers, several, protocol)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(scores) == n
    return peak


@pytest.mark.parametrize("protocol", ["rouge_score", "paper"])
def test_memory_does_not_grow_with_the_rows(protocol):
    peak_of_generated_rows(200, protocol)
    small, large = (peak_of_generated_rows(n, protocol) for n in (2_000, 20_000))
    print(f"{protocol}: peak {small / 1e3:.0f} kB for 2,000 rows, {large / 1e3:.0f} kB for 20,000")
    # A row's score takes 8 bytes, half as much again while the number of rows is unknown; its texts take 500.
    assert large - small < 18_000 * 16


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((iter(["a", "b"]), [["a"]]), ["references ended at index 1", "predictions went on", "per prediction"]),
        ((["a"], iter([["a"], ["b"]])), ["predictions ended at index 1", "references went on", "per prediction"]),
        ((iter(["a", "b"]), iter([["a"], []])), ["references[1]", "predictions[1] = 'b'", "drop the row"]),
        ((iter(["a", None]), iter([["a"], ["b"]])), ["predictions[1]", "None", "drop the row"]),
        ((["a"], [iter(["a", 3])]), ["references[0][1]", "3"]),
        ((["a", "b"], [["a"]]), ["2 predictions", "1 lists", "one list of references per prediction"]),
        ((["a", "b"], [["a"], []]), ["references[1]", "predictions[1] = 'b'", "drop the row"]),
        ((["a", None], [["a"], ["b"]]), ["predictions[1]", "None", "drop the row"]),
        ((["a"], [["a", 3]]), ["references[0][1]", "3"]),
        ((["a"], ["abc"]), ["references[0]", "'abc'", "list of strings"]),
        (("abc", [["a"]]), ["predictions", "'abc'", "list of strings"]),
        ((["a"], [["a"]], "rouge"), ["protocol", "'rouge'", "rouge_score, paper"]),
        ((["a"], [["a"]], "paper", "fr"), ["language", "'fr'", "en, zh"]),
        ((["a"], [["a"]], "paper", "en", "best"), ["pick", "'best'", "best_f, max, mean"]),
    ],
)
def test_errors_name_place_value_and_way_out(arguments, words):
    with pytest.raises(ValueError) as caught:
        rouge_l(*arguments)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def rolebench_file(folder, kind, name):
    file = ROLEBENCH / folder / kind / name
    if not file.exists():
        reason = (
            f"no {Path(folder, kind, name)}: set ROLEBENCH_DIR to a copy of RoleBench to score the published answers"
        )
        print(reason)
        pytest.skip(reason)
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def rolebench_rows(folder):
    """(baseline answers, lists of references) of a role-specific test file, its covered rows only."""
    test, baseline = (
        rolebench_file(folder, "role_specific", name) for name in ("test.jsonl", "rolegpt_baseline.jsonl")
    )
    answers = {(row["role"], row["question"].strip()): row["generated"][0] for row in baseline}
    rows = [(answers.get((row["role"], row["question"].strip())), row["generated"]) for row in test]
    return zip(*[(answer, several) for answer, several in rows if answer is not None], strict=True)


@pytest.mark.parametrize("folder, language", [("rolebench-zh", "zh"), ("rolebench-eng/role-generalization", "en")])
@pytest.mark.parametrize("check_protocol, every", [(check_paper, 20), (check_rouge_score, 5)])
def test_equals_packages_on_rolebench(check_protocol, every, folder, language):
    """All role-specific pairs and every twentieth or fifth general one; with ROUGE_ALL_PAIRS=1 all of them."""
    rows = rolebench_file(folder, "general", "test.jsonl")
    general = [(row["generated"][0], reference) for row in rows for reference in row["generated"][1:]]
    specific = [(answer, r) for answer, several in zip(*rolebench_rows(folder), strict=True) for r in several]
    print(check_protocol(specific + general[:: 1 if ALL_PAIRS else every], language))


@pytest.mark.parametrize(
    "folder, language, n, best_f, maximum",
    [
        ("rolebench-zh", "zh", 239, 0.2477, 0.2478),
        ("rolebench-eng/role-generalization", "en", 696, 0.2981, 0.2982),
    ],
)
def test_reproduces_published_spe_of_rolegpt(folder, language, n, best_f, maximum):
    answers, references = rolebench_rows(folder)
    assert len(answers) == n
    assert round(rouge_l(answers, references, "paper", language, "best_f").mean(), 4) == best_f
    assert round(rouge_l(answers, references, "paper", language, "max").mean(), 4) == maximum
