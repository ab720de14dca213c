"""Stage 6, evaluation (paper, section 5): ROUGE-L as CUS, RAW and SPE, both protocols, with intervals and controls.

CUS: in-character references of general rows, speaking style. RAW: the plain target of the general instruction,
accuracy. SPE: role-specific answers, knowledge and memory. avg: the mean of the three.
"""

import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np

from rolellm_utils import paper
from rolellm_utils.files import read_jsonl
from rolellm_utils.records import InputError
from rolellm_utils.rolebench import PARTS, SPLITS, load, role_key
from rolellm_utils.rouge import answer_lengths, rouge_l
from rolellm_utils.stage import manifest
from rolellm_utils.stats import interval, verdict
from rolellm_utils.student import student_name

METRICS = ("CUS", "RAW", "SPE")
PART = {"CUS": "general", "RAW": "general", "SPE": "role_specific"}
PROTOCOLS = ("rouge_score", "paper")
BASELINE = "RoleGPT"


def sampled(bench, row_limit, generator):
    """The RoleBench with fewer test rows, drawn by question: about a tenth of row_limit in each part; 0 keeps all.

    A question comes with all its roles, so that the wrong-role control still finds them.
    """
    if not row_limit:
        return bench
    fewer = {}
    for part in PARTS:
        samples = getattr(bench, part).get("test", [])
        questions = list(dict.fromkeys(sample.question for sample in samples))
        most, chosen, count = max(1, row_limit // 10), set(), Counter(sample.question for sample in samples)
        for i in generator.permutation(len(questions)):
            if sum(count[question] for question in chosen) >= most:
                break
            chosen.add(questions[i])
        fewer[part] = getattr(bench, part) | {"test": [sample for sample in samples if sample.question in chosen]}
    return replace(bench, **fewer)


def test_rows(bench, systems):
    """What students are asked: a row a test Sample, {"part", "role", "question", "system"}, general rows first."""
    return [
        {"part": part, "role": sample.role, "question": sample.question, "system": systems[sample.role]}
        for part in PARTS
        for sample in getattr(bench, part).get("test", [])
    ]


def read_answers(path):
    """A predictions file as {(role, question): answer}."""
    rows = read_jsonl(path, ("role", "question", "generated"))
    return {(row["role"].strip(), row["question"].strip()): row["generated"][0].strip() for row in rows}


def baseline_answers(bench):
    """The RoleGPT baseline of a RoleBench as {(role, question): answer}."""
    return {
        (sample.role, sample.question): sample.generated[0]
        for part in (bench.general, bench.role_specific)
        for sample in part.get("rolegpt_baseline", [])
    }


def material(bench, metric):
    """What a metric compares with: [(Sample, references)] over the test rows that have references for it."""
    pairs = []
    for sample in getattr(bench, PART[metric]).get("test", []):
        target = bench.targets.get(sample.question)
        references = ([target] if target else []) if metric == "RAW" else sample.generated
        if references:
            pairs.append((sample, references))
    return pairs


def wrong_role(bench):
    """The control for CUS: [(Sample, another role's references to the same question)], the next role in order.

    In RoleBench a wrong role scores .35 where the right one scores .50: a CUS means little without it.
    """
    by_question = {}
    for sample in bench.general.get("test", []):
        by_question.setdefault(sample.question, {})[sample.role] = sample
    found = []
    for by_role in by_question.values():
        group = [by_role[role] for role in sorted(by_role)]
        if len(group) > 1:
            found += [(sample, group[(i + 1) % len(group)].generated) for i, sample in enumerate(group)]
    return found


def values(answers, pairs, protocol, language):
    """(ROUGE-L values, answers scored, questions) over the (Sample, references) pairs that the answers cover."""
    covered = [(sample, references) for sample, references in pairs if (sample.role, sample.question) in answers]
    texts = [answers[sample.role, sample.question] for sample, _ in covered]
    scores = rouge_l(texts, [references for _, references in covered], protocol, language)
    return scores, texts, [sample.question for sample, _ in covered]


def cell(model, metric, protocol, answers, bench, generator, draws):
    """One cell of the table: mean with interval (clustered by question), rows, mean answer length, wrong-role control.

    The control stands beside the right role's mean over the same rows: those whose question other roles answer too.

    The mean is None, with nothing else, where no test row has an answer and a reference.
    """
    scores, texts, questions = values(answers, material(bench, metric), protocol, bench.language)
    found = {"model": model, "metric": metric, "protocol": protocol, "n": len(scores)}
    control = {"wrong_role": None, "right_role": None, "wrong_role_n": 0}
    if not len(scores):
        return found | {"mean": None, "low": None, "high": None, "length": None} | control
    mean, low, high = interval(scores, questions, generator, draws)
    if metric == "CUS":
        pairs = wrong_role(bench)
        wrong, _, _ = values(answers, pairs, protocol, bench.language)
        right, _, _ = values(answers, [(s, s.generated) for s, _ in pairs], protocol, bench.language)
        if len(wrong):
            control = {"wrong_role": float(wrong.mean()), "right_role": float(right.mean()), "wrong_role_n": len(wrong)}
    length = float(answer_lengths(texts, bench.language).mean())
    return found | {"mean": mean, "low": low, "high": high, "length": length} | control


def table(models, bench, generator, draws=2000):
    """Every cell for every model: models is {name: {(role, question): answer}}; a list of dicts, see `cell`.

    The `avg` of a model and protocol is the mean of CUS, RAW and SPE, without interval, None when one is missing.
    """
    cells = []
    for protocol in PROTOCOLS:
        for model, answers in models.items():
            row = [cell(model, metric, protocol, answers, bench, generator, draws) for metric in METRICS]
            means = [found["mean"] for found in row]
            average = None if None in means else float(np.mean(means))
            lengths = [found["length"] for found in row if found["length"] is not None]
            cells += [*row, {
                "model": model, "metric": "avg", "protocol": protocol, "n": sum(found["n"] for found in row),
                "mean": average, "low": None, "high": None,
                "length": float(np.mean(lengths)) if lengths else None, "wrong_role": None,
            }]  # fmt: skip
    return cells


def differences(tuned, others, bench, generator, draws=2000):
    """Tuned minus each of the others, for every metric and protocol, paired by row.

    others: {name: answers}; dicts with metric, protocol, against (the name), difference, low, high, sentence.
    """
    found = []
    for against, answers in others.items():
        for protocol in PROTOCOLS:
            for metric in METRICS:
                pairs = material(bench, metric)
                ours, _, questions = values(tuned, pairs, protocol, bench.language)
                theirs, _, asked = values(answers, pairs, protocol, bench.language)
                if questions != asked:
                    raise InputError(
                        f"tuned student and {against} answer different rows for {metric}; delete eval/predictions and "
                        "run 06_eval again"
                    )
                if not len(ours):
                    continue
                difference, low, high = interval(ours - theirs, questions, generator, draws)
                found.append({
                    "metric": metric, "protocol": protocol, "against": against, "difference": difference, "low": low,
                    "high": high, "sentence": verdict(f"{metric} ({protocol})", difference, low, high, against),
                })  # fmt: skip
    return found


def shortened(answers, bench, name):
    """Controls for an untuned student that does not know when to stop: {name, how it was cut: answers}.

    Its answers cut at their first line break, at the mean reference length of their part, and at both. A tuned student
    that beats only the uncut answers has learnt to stop, no more.
    """
    mean = {}
    for part in PARTS:
        rows = getattr(bench, part).get("test", [])
        references = [text for sample in rows for text in sample.generated]
        length = round(float(answer_lengths(references, bench.language).mean())) if references else 0
        mean |= {(sample.role, sample.question): length for sample in rows}
    lines = {key: next(iter(text.strip().splitlines()), "") for key, text in answers.items()}
    cut = {key: first(text, mean[key], bench.language) for key, text in answers.items() if key in mean}
    both = {key: first(lines[key], mean[key], bench.language) for key in cut}
    return {f"{name}, first line": lines, f"{name}, mean length": cut, f"{name}, first line, mean length": both}


def first(text, length, language):
    """The beginning of a text: `length` words (en) or characters that are no white space (zh)."""
    pieces = re.finditer(r"\S+" if language == "en" else r"\S", text)
    last = next(islice(pieces, max(length - 1, 0), None), None)
    return text[: last.end()] if last else text


def by_role(models, bench, protocol):
    """Means by role: a table with a row a role, a column a metric and model, and its mean answer length."""
    import pandas as pd

    columns = {}
    for metric in METRICS:
        pairs = material(bench, metric)
        for model, answers in models.items():
            covered = [
                (sample, references) for sample, references in pairs if (sample.role, sample.question) in answers
            ]
            scores, _, _ = values(answers, covered, protocol, bench.language)
            roles = pd.Series(scores, index=[sample.role for sample, _ in covered], dtype=float)
            if len(roles):
                columns[metric, model] = roles.groupby(level=0, sort=False).mean()
                lengths = answer_lengths([answers[s.role, s.question] for s, _ in covered], bench.language)
                columns[f"{metric} length", model] = pd.Series(lengths, index=roles.index).groupby(level=0).mean()
    return pd.DataFrame(columns)


def rescored(directory=None, language="en", split=SPLITS[0]):
    """The released RoleGPT baseline re-scored as the paper did, protocol `paper`, rows as published, nothing cleaned.

    A dict a metric: rows (test rows that the baseline answers and that have references), of (test rows), best_f, max
    and mean (over the references of a row), length (mean, of the answers), published, difference (best_f minus it),
    why (what is left, in words). Values are None where this copy has no rows for it. directory: as `rolebench.load`.
    """
    bench = load(directory, language, split, strip=False)
    answers, found = baseline_answers(bench), []
    known = {role_key(role) for role in paper.ROLES[language]} <= {role_key(role) for role in bench.roles()}
    printed = paper.PUBLISHED.get((language, split), {}).get(BASELINE, {}) if known else {}
    for metric in METRICS:
        pairs = [(s, references) for s, references in material(bench, metric) if (s.role, s.question) in answers]
        texts, references = [answers[s.role, s.question] for s, _ in pairs], [several for _, several in pairs]
        row = {"metric": metric, "rows": len(pairs), "of": len(getattr(bench, PART[metric]).get("test", []))}
        for pick in ("best_f", "max", "mean"):
            row[pick] = float(rouge_l(texts, references, "paper", language, pick).mean()) if pairs else None
        published = printed.get(metric)
        found.append(row | {
            "length": float(answer_lengths(texts, language).mean()) if pairs else None,
            "published": published,
            "difference": row["best_f"] - published if pairs and published is not None else None,
            "why": paper.EXPLAINED[language][split][metric] if published is not None else "",
        })  # fmt: skip
    return found


def gaps(bench):
    """Why a metric is not available in this RoleBench, a sentence each; [] when all three are."""
    reasons = {
        "CUS": "no general test row has an in-character reference",
        "RAW": "no general instruction has a plain target",
        "SPE": "no role-specific test row has a reference",
    }
    return [f"{metric} is not available: {reasons[metric]}." for metric in METRICS if not material(bench, metric)]


def draw_samples(models, bench, count, generator):
    """`count` of the test rows with an answer, drawn by the generator, with every model's: nothing picked by hand."""
    answered = set().union(*models.values())
    rows = [
        sample
        for part in PARTS
        for sample in getattr(bench, part).get("test", [])
        if (sample.role, sample.question) in answered
    ]
    chosen = sorted(generator.choice(len(rows), size=min(count, len(rows)), replace=False)) if rows else []
    return [
        {
            "role": rows[i].role,
            "question": rows[i].question,
            "reference": rows[i].generated[0],
            "answers": {
                name: answers.get((rows[i].role, rows[i].question), "(no answer)") for name, answers in models.items()
            },
        }
        for i in chosen
    ]


def wide(cells):
    """The cells as a table to read: a row a model and protocol, `mean [low, high]` a metric, control, length, rows."""
    import pandas as pd

    rows = {}
    for found in cells:
        row = rows.setdefault((found["protocol"], found["model"]), {})
        row[found["metric"]] = _text(found)
        if found["metric"] == "CUS":
            known = found["wrong_role"] is not None
            row["right | wrong role"] = f"{found['right_role']:.3f} | {found['wrong_role']:.3f}" if known else "n/a"
        if found["metric"] == "avg":
            row["length"] = "n/a" if found["length"] is None else f"{found['length']:.0f}"
        if found["metric"] in METRICS:
            row["rows"] = f"{row['rows']} | {found['n']}" if "rows" in row else str(found["n"])
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.names = ["protocol", "model"]
    return table[[*METRICS, "avg", "right | wrong role", "length", "rows"]]


def _text(found):
    if found["mean"] is None:
        return "n/a"
    known = found["low"] is not None and np.isfinite(found["low"])
    return f"{found['mean']:.3f}" + (f" [{found['low']:.3f}, {found['high']:.3f}]" if known else "")


def run_label(stage):
    """What a run can and cannot show, in plain words: from its data, its student and who taught it."""
    student, given = stage.parameters["student"], stage.parameters["rolebench_dir"]
    if given and student == "none":
        return "A given RoleBench, its released RoleGPT baseline scored as it is: no student was trained or asked."
    if given:
        limit = stage.parameters["row_limit"]
        rows = f"{limit:,} of its train rows, drawn by seed" if limit else "all of its train rows"
        return (
            f"A given RoleBench; student {student_name(student)}, trained on {rows}. Levels may stand beside the "
            "published ones only for the same data, split and test rows; the paper's students are of 6 to 7 billion "
            "parameters, and their training and decoding settings are not known."
        )
    asked = manifest(stage.dir, "03_rolegpt")["parameters"]
    if asked["teacher_url"] == "embedded" and student == "embedded":
        return (
            "Self-distillation of a 135M-parameter model: teacher and student are the same weights, references are "
            "that model's own answers, and the roles are not the paper's. This run shows that every stage works on "
            "real generation and real training. It does not show how well RoleLLM works: do not compare its levels "
            "with the published ones."
        )
    return (
        f"Teacher {asked['teacher_model']}, student {student_name(student)}, roles of your own scripts. References "
        "are the teacher's answers, so scores say how close a student comes to that teacher on these roles; the "
        "published figures are for other roles and models."
    )
