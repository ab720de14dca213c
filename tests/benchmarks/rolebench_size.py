"""How long stage 4 takes at the paper's size, and in how much memory.

    .venv/bin/python tests/benchmarks/rolebench_size.py

168,093 synthetic samples (95 roles; general ones with five references, role-specific ones with one, of 30 words on
average, some of which break a cleaning rule) are cleaned, split, written, loaded, counted and audited. A line a step
with its seconds, then their sum and the peak memory of the process; making the samples up is not counted. No figure is
asserted: time depends on the machine.
"""

import random
import resource
import tempfile
import time
from pathlib import Path

from rolellm_utils import audit, dataset_card, rolebench, splits, statistics

GENERAL, SPECIFIC, ROLES, WORDS = 147_609, 20_484, 95, 30.48
TAILS = (
    "As an AI language model, I cannot.",
    "I'm sorry, but I can't help with that.",
    "and so on,",
    "In my script I am.",
)


def text(generator, vocabulary, mean):
    """A text of about `mean` words, long ones rarer than short ones, now and then with an end that breaks a rule."""
    words = generator.choices(vocabulary, k=max(3, round(generator.gammavariate(1.6, mean / 1.6))))
    tail = generator.choice(TAILS) if generator.random() < 0.01 else words[-1] + "."
    return " ".join([*words, tail])


def answers(generator):
    """Stage 3's answers, one dict a sample."""
    letters = "etaoinshrdlucmfwypvbgk"
    vocabulary = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(20_000)]
    roles = [f"Role {i}" for i in range(ROLES)]
    questions = [text(generator, vocabulary, 25) + "?" for _ in range(GENERAL // ROLES + 1)]
    for i in range(GENERAL + SPECIFIC):
        general = i < GENERAL
        role = roles[i % ROLES]
        yield {
            "role": role,
            "question": questions[i // ROLES] if general else f"{role}, {text(generator, vocabulary, 20)}?",
            "kind": "general" if general else ("script_agnostic", "script_based")[i % 3 == 0],
            "generated": [text(generator, vocabulary, WORDS) for _ in range(5 if general else 1)],
            "baseline": text(generator, vocabulary, WORDS),
        }


def main():
    """Run the steps and print their times."""
    rows = list(answers(random.Random(0)))
    references = sum(len(row["generated"]) for row in rows)
    print(f"{len(rows):,} samples, {references:,} references, peak {peak():.2f} GB before the first step")
    total = 0.0

    def step(name, work):
        nonlocal total
        started = time.perf_counter()
        result = work()
        total += time.perf_counter() - started
        print(f"{name:45} {time.perf_counter() - started:6.1f} s   peak {peak():.2f} GB", flush=True)
        return result

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made, drops, _ = step("assemble (clean, two splits)", lambda: splits.assemble(rows, 0.2, 10, random.Random(0)))
        rows.clear()
        print(f"{len(drops):,} references dropped")
        step("write both splits", lambda: [rolebench.save(parts, root, "en", name) for name, parts in made.items()])
        made.clear()
        step("load the instruction split and count", lambda: count(rolebench.load(root), root))
        step("audit both splits", lambda: audit.audit(root))
    print(f"{'in all':45} {total:6.1f} s   peak {peak():.2f} GB")


def count(bench, root):
    """Everything that notebook 04 counts: Table 1, roles, lengths, references, questions, leaks."""
    table = statistics.counts(bench)
    dataset_card.write(root, bench.language, table, "Synthetic.")
    return (
        table, statistics.table_1([bench]), statistics.lengths(bench), statistics.rows_by_role(bench),
        statistics.references_per_row(bench), statistics.question_kinds(bench), statistics.tiles(bench),
        splits.leak_table(bench),
    )  # fmt: skip


def peak():
    """The peak memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
