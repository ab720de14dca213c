"""Speed and memory of `rouge_l` beside the packages `rouge-score` and `rouge`, both protocols, in one process.

    python tests/benchmarks/rouge_speed.py [ROLEBENCH_DIR]

Takes two minutes. Without a copy of RoleBench (argument, ROLEBENCH_DIR or ../shared/data/rolebench) it scores
synthetic rows of about the same length and says so. Sets: `role-specific` compares the published RoleGPT
answers with their references, `general` the first reference of every eighth row with the others.

pairs: a prediction with one of its references. peer, ours: seconds for all rows, tokenising included, the
median over repeats in which both take turns. ratio: median of the repeats' peer / ours, then their range; on
a busy machine trust the median and look at the range. 1x, 10x: peak memory in kB of `rouge_l` when fed with
generators, for the rows and for ten times as many; a row adds the 8 to 12 bytes of its score and no more.
Peers: RougeScorer(["rougeL"]) without stemming, for zh with our tokenizer; Rouge(metrics=["rouge-l"]), for zh
with a blank between characters. Scores that differ by more than 1e-12 are an error.
"""

import json
import os
import random
import string
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from rolellm_utils.rouge import rouge_l, tokens  # noqa: E402

REPEATS = 5
FOLDERS = {"en": "rolebench-eng/role-generalization", "zh": "rolebench-zh"}


class KitTokenizer:
    tokenize = staticmethod(lambda text: tokens(text, "zh"))


ROUGE = Rouge(metrics=["rouge-l"])
SCORERS = {"en": RougeScorer(["rougeL"]), "zh": RougeScorer(["rougeL"], tokenizer=KitTokenizer)}


def peer_rouge_score(rows, language):
    return [SCORERS[language].score_multi(several, text)["rougeL"].fmeasure for text, several in rows]


def peer_paper(rows, language):
    return [
        max((rouge_package(text, r, language) for r in several), key=lambda s: s["f"])["r"] for text, several in rows
    ]


def rouge_package(text, reference, language):
    if language == "zh":
        text, reference = " ".join(text), " ".join(reference)
    try:
        return ROUGE.get_scores(text, reference)[0]["rouge-l"]
    except ValueError:  # an empty text
        return {"f": 0.0, "r": 0.0}


PEERS = {"rouge_score": peer_rouge_score, "paper": peer_paper}


def role_specific(folder):
    test, baseline = (lines(folder / "role_specific" / name) for name in ("test.jsonl", "rolegpt_baseline.jsonl"))
    answers = {(row["role"], row["question"].strip()): row["generated"][0] for row in baseline}
    keyed = [((row["role"], row["question"].strip()), row["generated"]) for row in test]
    return [(answers[key], several) for key, several in keyed if key in answers]


def general(folder):
    rows = [row["generated"] for row in lines(folder / "general" / "test.jsonl")]
    return [(first, others) for first, *others in rows if others][::8]


def lines(file):
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def synthetic(language, n, length, n_references):
    """Rows of sentences of about 15 words (en) or one of characters (zh), frequent words being far more frequent."""
    rng = random.Random(1)
    letters = ["".join(rng.choices(string.ascii_lowercase, k=rng.randrange(1, 9))) for _ in range(4000)]
    words = letters if language == "en" else [chr(0x4E00 + i) for i in range(4000)]

    def text():
        several = [words[min(int(rng.paretovariate(0.5)), 4000) - 1] for _ in range(rng.randrange(2, 2 * length))]
        if language == "zh":
            return "".join(several) + "。"
        return " ".join(word + "." * (i % 15 == 14) for i, word in enumerate(several))

    return [(text(), [text() for _ in range(n_references)]) for _ in range(n)]


def sets(rolebench):
    """(language, name, rows) of each set, from RoleBench if it is there."""
    for language, folder in FOLDERS.items():
        if rolebench:
            yield language, "role-specific", role_specific(rolebench / folder)
            yield language, "general", general(rolebench / folder)
        else:
            yield language, "long", synthetic(language, 300, 75 if language == "en" else 95, 1)
            yield language, "short", synthetic(language, 300, 23 if language == "en" else 38, 4)


def seconds_and_scores(score, *arguments):
    start = time.perf_counter()
    scores = score(*arguments)
    return time.perf_counter() - start, scores


def peak_kilobytes(rows, times, protocol, language):
    def again(text):  # a copy, so that a row's texts are gone with the row
        return text[:1] + text[1:]

    predictions = (again(text) for _ in range(times) for text, _ in rows)
    references = ([again(text) for text in several] for _ in range(times) for _, several in rows)
    tracemalloc.start()
    rouge_l(predictions, references, protocol, language)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1000


def measure(rows, protocol, language):
    """Cells of a line of the table: seconds of both, ratio with its range, peaks of memory."""
    texts, several = zip(*rows, strict=True)
    peer, ours = [], []
    for _ in range(REPEATS):
        spent, want = seconds_and_scores(PEERS[protocol], rows, language)
        peer.append(spent)
        spent, got = seconds_and_scores(rouge_l, texts, several, protocol, language)
        ours.append(spent)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    ratios = np.array(peer) / ours
    small, large = (peak_kilobytes(rows, times, protocol, language) for times in (1, 10))
    spread = f"{ratios.min():.0f}-{ratios.max():.0f}"
    return f"{np.median(peer):8.3f}{np.median(ours):9.4f}{np.median(ratios):7.1f}{spread:>9}{small:7.0f}{large:7.0f}"


def main():
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ROLEBENCH_DIR")
    rolebench = Path(given or ROOT.parent / "shared" / "data" / "rolebench")
    if given and not rolebench.is_dir():
        sys.exit(f"{given} is no folder; give the one that holds {' and '.join(FOLDERS.values())}.")
    if not rolebench.is_dir():
        print("No copy of RoleBench found: synthetic rows of about its lengths.")
        rolebench = None
    print("set                  protocol      rows  pairs  peer s   ours s  ratio    range  1x kB 10x kB")
    for language, name, rows in sets(rolebench):
        pairs = sum(len(several) for _, several in rows)
        for protocol in PEERS:
            cells = measure(rows, protocol, language)
            print(f"{f'{name}, {language}':<21}{protocol:<13}{len(rows):5}{pairs:7}{cells}", flush=True)


if __name__ == "__main__":
    main()
