"""ROUGE-L against its oracles: the packages `rouge` and `rouge-score`, and the published RoleGPT cells."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from rolellm_utils.rouge import answer_lengths, rouge_l, tokens

EXACT = {"rtol": 0, "atol": 1e-12}
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
    """(recall, F) of the package `rouge`; (0, 0) where it raises."""
    if language == "zh":
        prediction, reference = " ".join(prediction), " ".join(reference)
    try:
        scores = ROUGE.get_scores(prediction, reference)[0]["rouge-l"]
    except ValueError:
        return 0.0, 0.0
    return scores["r"], scores["f"]


def check_paper(pairs, language):
    got = rouge_l([p for p, _ in pairs], [[r] for _, r in pairs], "paper", language)
    np.testing.assert_allclose(got, [rouge_package(p, r, language)[0] for p, r in pairs], **EXACT)


def check_rouge_score(pairs, language):
    got = rouge_l([p for p, _ in pairs], [[r] for _, r in pairs], "rouge_score", language)
    want = [SCORERS[language].score(r, p)["rougeL"].fmeasure for p, r in pairs]
    np.testing.assert_allclose(got, want, **EXACT)


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
@pytest.mark.parametrize("check", [check_paper, check_rouge_score])
def test_equals_package_on_every_pair_of_odd_texts(check, language):
    check([(p, r) for p in ODD_TEXTS for r in ODD_TEXTS], language)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("check", [check_paper, check_rouge_score])
def test_equals_package_on_random_pairs(check, language):
    check(list(random_pairs(seed=7, n=2000)), language)
    check(list(random_pairs(seed=8, n=40, longest=120)), language)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.lists(st.tuples(TEXT | WORDS, TEXT | WORDS), min_size=1, max_size=8), st.sampled_from(["en", "zh"]))
def test_equals_packages_on_generated_pairs(pairs, language):
    check_paper(pairs, language)
    check_rouge_score(pairs, language)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_picks_among_references(language):
    rng = random.Random(3)
    texts = [text for pair in random_pairs(seed=9, n=300) for text in pair]
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


def walk_of_package(reference, answer):
    """Words of the subsequence that the package `rouge` takes, from its full table but without recursion."""
    code = {word: i for i, word in enumerate(set(reference) | set(answer))}
    columns = np.array([code[word] for word in answer])
    table = np.zeros((len(reference) + 1, len(answer) + 1), dtype=np.int16)
    for i, word in enumerate(reference, 1):
        grown = np.where(columns == code[word], table[i - 1, :-1] + 1, table[i - 1, 1:])
        table[i, 1:] = np.maximum.accumulate(grown)
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


def long_words(rng, n=5000):
    return [f"w{min(int(rng.paretovariate(0.7)), 3000)}" for _ in range(n)]


def test_long_texts_need_no_recursion():
    rng = random.Random(5)
    reference, answer = long_words(rng), long_words(rng)
    want = len(walk_of_package(reference, answer)) / len(set(reference))
    assert 0.05 < want < 0.95
    assert rouge_l([" ".join(answer)], [[" ".join(reference)]], "paper")[0] == pytest.approx(want, abs=1e-12)
    characters = ["".join(chr(0x4E00 + int(word[1:])) for word in words) for words in (answer, reference)]
    assert rouge_l(characters[:1], [characters[1:]], "paper", "zh")[0] == pytest.approx(want, abs=1e-12)


def test_long_text_of_many_sentences():
    rng = random.Random(6)
    parts = [[long_words(rng, n) for n in (1700, 300, 1, 900, 40)] for _ in range(2)]
    reference, answer = parts
    union = set().union(*(walk_of_package(r, a) for r in reference for a in answer))
    want = len(union) / len(set().union(*reference))
    texts = [".".join(map(" ".join, part)) for part in (answer, reference)]
    assert rouge_l(texts[:1], [texts[1:]], "paper")[0] == pytest.approx(want, abs=1e-12)


def test_answer_lengths():
    np.testing.assert_array_equal(answer_lengths(["", " a  bc\nd ", "你好 a"]), [0, 3, 2])
    np.testing.assert_array_equal(answer_lengths(["", " a  bc\nd ", "你 好\u3000。"], "zh"), [0, 4, 3])
    assert answer_lengths([], "en").dtype == np.int64


def test_no_rows_give_an_empty_array():
    assert rouge_l([], [], "paper").shape == (0,)
    assert rouge_l(iter(["a"]), iter([("a",)])).dtype == np.float64


@pytest.mark.parametrize(
    "arguments, words",
    [
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


def rolebench_rows(folder):
    """(baseline answers, lists of references) of a role-specific test file, its covered rows only."""
    files = [ROLEBENCH / folder / "role_specific" / name for name in ("test.jsonl", "rolegpt_baseline.jsonl")]
    for file in files:
        if not file.exists():
            reason = f"no {file}: set ROLEBENCH_DIR to a copy of RoleBench to re-score the published baseline"
            print(reason)
            pytest.skip(reason)
    test, baseline = ([json.loads(line) for line in file.open(encoding="utf-8")] for file in files)
    answers = {(row["role"], row["question"].strip()): row["generated"][0] for row in baseline}
    rows = [(answers.get((row["role"], row["question"].strip())), row["generated"]) for row in test]
    return zip(*[(answer, several) for answer, several in rows if answer is not None], strict=True)


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
