"""ROUGE-L under two named protocols, with several references a prediction, in English and Chinese.

`paper` is the figure printed in RoleLLM (arXiv 2310.00746): the recall of rouge-l as the PyPI package `rouge`
1.0.1 computes it. `rouge_score` is the F1 of the package `rouge-score`, with a tokenizer that also sees
Chinese. The released English role-specific answers score .298 under the one and .224 under the other, so a
score is always named after its protocol; and recall rewards verbosity, so print `answer_lengths` beside it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import chain, zip_longest
from string import ascii_lowercase, digits

import numpy as np
from rapidfuzz.distance import LCSseq

# Every byte that is in no English token becomes a blank; with `split` faster than a regular expression.
LATIN = bytes(byte if chr(byte) in ascii_lowercase + digits else ord(" ") for byte in range(256))
# Han ideographs (basic, extension A, compatibility, planes 2 and 3), the iteration mark and the zero.
HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
LATIN_OR_HAN = re.compile(rf"[a-z0-9]+|[{HAN}]")

# What a protocol gives for one prediction: the values to report and the F to choose by, one per reference.
Scores = tuple[list[float], list[float]]
PICKS = {
    "best_f": lambda values, f1: values[f1.index(max(f1))],
    "max": lambda values, f1: max(values),
    "mean": lambda values, f1: sum(values) / len(values),
}


def rouge_l(
    predictions: Iterable[str],
    references: Iterable[Sequence[str]],
    protocol: str = "rouge_score",
    language: str = "en",
    pick: str = "best_f",
) -> np.ndarray:
    """ROUGE-L of each prediction against its references, 0 to 1: F1 for `rouge_score`, recall for `paper`.

    predictions: n strings; references: n non-empty lists of strings; returns float64 (n,). Both may be iterators:
    they are read one row at a time and only the result grows with n.
    protocol "rouge_score": tokens are lower-cased runs of [a-z0-9], for zh every Han character as well. Equal
    to the package `rouge-score` without stemming.
    protocol "paper": case kept, sentences end at every ".", tokens are white-space words (zh: the characters
    that are no white space); the union of the sentences' longest common subsequences is counted over distinct
    words. Equal to the package `rouge` 1.0.1, oddities included: a blank after the last "." is a sentence of
    one empty word. Where that package raises ValueError (a prediction or reference that is empty, or nothing
    but dots: any number of them for en, a single one for zh) the value is 0.0; where it runs out of
    recursion, at about 1,000 words, this goes on. `rouge-score` raises for no pair of strings.
    pick "best_f": the value of the reference with the best F, the first of equals; "max", "mean": of all.
    Raises ValueError for an unknown choice, unequal numbers of rows, a text that is no string, a prediction
    without reference. Source: Lin 2004; that the paper means this recall was found by re-scoring.
    """
    score = _choice("protocol", protocol, {"rouge_score": _rouge_score, "paper": _paper})
    choose = _choice("pick", pick, PICKS)
    _choice("language", language, {"en": None, "zh": None})
    rows = _checked_rows(predictions, references)
    return np.fromiter((choose(*score(text, several, language)) for text, several in rows), dtype=float)


def answer_lengths(texts: Iterable[str], language: str = "en") -> np.ndarray:
    """Lengths of texts, int64 (n,): white-space words for en, characters that are no white space for zh.

    Raises ValueError for an unknown language or a text that is no string.
    """
    length = _choice("language", language, {"en": len, "zh": lambda words: sum(map(len, words))})
    return np.fromiter((length(text.split()) for text in _checked_texts("texts", texts)), dtype=np.int64)


def tokens(text: str, language: str = "en") -> list[str]:
    """Tokens of the protocol `rouge_score`: lower-cased runs of [a-z0-9], for zh also every Han character."""
    words = _words(text, language)
    return words if language == "zh" else [word.decode() for word in words]


def _words(text: str, language: str) -> list[str] | list[bytes]:
    """The tokens, for en as bytes: making strings of them takes longer than comparing them."""
    text = text.lower()
    if language == "zh":
        return LATIN_OR_HAN.findall(text)
    return text.encode("ascii", "replace").translate(LATIN).split()


def _rouge_score(prediction: str, references: Sequence[str], language: str) -> Scores:
    answer = _words(prediction, language)
    f1 = [_f1(answer, _words(reference, language)) for reference in references]
    return f1, f1


def _f1(answer: list, reference: list) -> float:
    common = LCSseq.similarity(answer, reference)
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def _paper(prediction: str, references: Sequence[str], language: str) -> Scores:
    answer = _sentences(prediction, language)
    index = _index(answer)
    n_answer = len(index[0])
    recalls, f1 = [], []
    for reference in references:
        sentences = _sentences(reference, language)
        found, n_reference = len(_union_lcs(sentences, *index)), len(set(chain(*sentences)))
        recall, precision = found / max(n_reference, 1), found / max(n_answer, 1)
        recalls.append(recall)
        # The package's guard against 0 / 0; it shifts F by 1e-8, which can decide between two references.
        f1.append(2.0 * (precision * recall / (precision + recall + 1e-8)))
    return recalls, f1


def _sentences(text: str, language: str) -> list[list[str]]:
    """Words of each sentence as the package `rouge` sees them: a blank sentence is one empty word."""
    if language == "zh":
        text = " ".join(text)
    # A sentence that comes again adds nothing to a union.
    return [part.split() or [""] for part in dict.fromkeys(text.split(".")) if part]


def _index(sentences: list[list[str]]) -> tuple[dict[str, int], int, list[str | None], list[int]]:
    """Columns of an answer: (distinct word -> bits of its columns, all bits, word of each, start of its sentence).

    All sentences lie in one integer. Above each is a bit of no word, where the carry of the addition in
    `_union_lcs` ends, so one addition advances every sentence.
    """
    columns: dict[str, int] = {}
    words: list[str | None] = []
    starts: list[int] = []
    used, bit = 0, 1
    for sentence in sentences:
        starts += [len(words)] * (len(sentence) + 1)
        words += sentence
        words.append(None)
        first = bit
        for word in sentence:
            columns[word] = columns.get(word, 0) | bit
            bit <<= 1
        used |= bit - first
        bit <<= 1
    return columns, used, words, starts


def _union_lcs(
    references: list[list[str]],
    columns: dict[str, int],
    used: int,
    words: list[str | None],
    starts: list[int],
) -> set[str]:
    """Distinct words of the longest common subsequences of each reference sentence with each answer sentence.

    Of several longest subsequences it takes the one the package `rouge` takes. That package walks back from
    the last cell of the table (rows: reference): it takes a match, else goes one row up if the cell above is
    larger than the cell to the left, else one column left. Cells of a row with the same length lead to the
    same words, for if the row's word matches at one of them, it also matches at the first. So it is enough to
    look at the first, the highest column where the length grows. A column starts to grow in a row of its own
    word, so its match is the next row upwards with that word, and the walk goes on above and to the left.
    """
    found: set[str] = set()
    for sentence in references:
        common = [word for word in sentence if word in columns]
        if found.issuperset(common):
            continue
        rows = _rows(common, columns, used)
        common.reverse()
        # The last row shows which answer sentences have a word in common; each is walked from its last one.
        ahead = rows[0]
        while ahead:
            column, row = ahead.bit_length() - 1, 0
            start = starts[column]
            while column >= start:
                word = words[column]
                found.add(word)
                row = common.index(word, row) + 1
                column = (rows[row] & (1 << column) - 1).bit_length() - 1
            ahead &= (1 << start) - 1
    return found


def _rows(common: list[str], columns: dict[str, int], used: int) -> list[int]:
    """Columns where each row of the table grows, the last row first; `common`: words the answer has as well.

    The row of any other word equals the one above it. Bit-parallel after Hyyro 2004, "Bit-parallel LCS-length
    computation revisited"; a bit of `flat` is a column where the length does not grow.
    """
    flat, rows = used, [0]
    for word in common:
        hit = flat & columns[word]
        flat = (flat + hit | flat - hit) & used
        rows.append(used ^ flat)
    rows.reverse()
    return rows


def _choice(name: str, value: str, choices: dict[str, Callable | None]) -> Callable | None:
    if value not in list(choices):
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")
    return choices[value]


def _checked_rows(predictions: Iterable[str], references: Iterable[Sequence[str]]) -> Iterator[tuple[str, list[str]]]:
    """Each prediction with its list of references, read when asked for."""
    texts = _checked_texts("predictions", predictions)
    way_out = "give one list of references per prediction."
    if isinstance(predictions, Sized) and isinstance(references, Sized) and len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions came with {len(references)} lists of references; {way_out}")
    end = object()
    for i, (text, several) in enumerate(zip_longest(texts, references, fillvalue=end)):
        if text is end or several is end:
            short, long = ("predictions", "references") if text is end else ("references", "predictions")
            raise ValueError(f"{short} ended at index {i} but {long} went on; {way_out}")
        several = list(_checked_texts(f"references[{i}]", several))
        if not several:
            raise ValueError(
                f"references[{i}] is empty, so predictions[{i}] = {text!r:.60} has "
                "nothing to be compared with; give it a reference or drop the row."
            )
        yield text, several


def _checked_texts(name: str, texts: Iterable[str]) -> Iterator[str]:
    # A string is iterable too and would be scored letter by letter.
    if isinstance(texts, str) or not hasattr(texts, "__iter__"):
        raise ValueError(f"{name} is {texts!r:.60}; give a list of strings, even for a single one.")

    def checked() -> Iterator[str]:
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{name}[{i}] is {text!r:.60}, not a string; pass '' for no answer or drop the row.")
            yield text

    return checked()
