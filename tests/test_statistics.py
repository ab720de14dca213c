import numpy as np

from rolellm_utils import rolebench, statistics
from rolellm_utils.records import Sample
from rolellm_utils.rolebench import RoleBench
from tests.published import rolebench_dir


def bench(language="en"):
    general = {
        "train": [Sample(role="A", question="What now?", generated=["one two", "three"])],
        "test": [Sample(role="B", question="Write a poem.", generated=["a b c d"])],
        "rolegpt_baseline": [Sample(role="B", question="Write a poem.", generated=["x"])],
    }
    specific = {
        "train": [
            Sample(role="A", question="A, why do you row?", generated=["because"], type=["script_based"]),
            Sample(role="A", question="A, how?", generated=["so"], type=["script_agnostic"]),
        ],
        "test": [Sample(role="A", question="A, who?", generated=["me"], type=["script_agnostic"])],
    }
    described = {"A": 'You are A. Your catchphrases are: "Aye", "No, never".', "B": "You are B."}
    return RoleBench(language, "instruction-generalization", general, specific, {}, described)


def test_counts_lengths_and_references():
    table = {(row["part"], row["file"]): row for row in statistics.counts(bench())}
    assert table["general", "train"] == {
        "part": "general", "file": "train", "rows": 1, "roles": 1, "questions": 1, "references": 2, "mean length": 1.5
    }  # fmt: skip
    lengths = statistics.lengths(bench())
    np.testing.assert_array_equal(lengths["general train"], [2, 1])
    assert len(lengths["questions"]) == 5
    assert statistics.references_per_row(bench())["general train"] == {2: 1}
    assert "general rolegpt_baseline" not in statistics.references_per_row(bench())


def test_rows_and_tiles_by_role():
    assert statistics.rows_by_role(bench()) == {
        "A": {"general": 1, "script_agnostic": 2, "script_based": 1},
        "B": {"general": 1, "script_agnostic": 0, "script_based": 0},
    }
    first, second = statistics.tiles(bench(), {"a": 7})
    assert (first["pairs"], first["train"], first["test"], first["catchphrase"]) == (7, 3, 1, "No, never")
    assert first["mean_length"] == 6 / 5 and second["catchphrase"] == "" and second["pairs"] is None


def test_question_kinds_see_past_the_address():
    kinds = {row["asks"]: (row["general"], row["role_specific"]) for row in statistics.question_kinds(bench())}
    assert kinds == {"what": (1, 0), "an order or statement": (1, 0), "why": (0, 1), "how": (0, 1), "who": (0, 1)}


def test_table_1_counts_as_the_paper_did():
    table = {row["statistic"]: row for row in statistics.table_1([bench()])}
    assert table["general samples, en"]["computed"] == 2 and table["role-specific samples, en"]["computed"] == 2
    assert table["general samples, en"]["difference"] == 2 - 140_225
    assert table["roles"]["computed"] is None and "roles, zh" not in table
    both = {row["statistic"]: row for row in statistics.table_1([bench(), bench("zh")])}
    assert both["samples"]["computed"] == 8 and both["script-based samples"]["computed"] == 2
    assert both["roles"]["computed"] == 4 and both["role categories"]["computed"] is None


def test_table_1_of_the_published_chinese_part():
    table = {row["statistic"]: row for row in statistics.table_1([rolebench.load(rolebench_dir(), "zh")])}
    names = ("roles, zh", "general samples, zh", "general instructions, zh", "role-specific samples, zh")
    assert [table[name]["difference"] for name in names] == [0, 0, 0, 0]


def test_an_empty_bench_has_statistics_without_error():
    empty = RoleBench("zh", "instruction-generalization", {}, {})
    assert statistics.counts(empty) == statistics.tiles(empty) == statistics.question_kinds(empty) == []
    assert all(row["computed"] in (0, None) for row in statistics.table_1([empty]))


def test_how_a_question_asks_is_seen_at_its_beginning_or_after_the_address():
    questions = {
        "en": {
            "What do you think about honor, courage, and love?": "what",
            "How did you feel when he left, Jack?": "how",
            "Jack, can you explain gravity, please?": "yes or no",
            "Write a poem, please.": "an order or statement",
        },
        "zh": {"悟空，你为什么取经？": "why", "写一首诗。": "an order or statement"},
    }
    for language, asked in questions.items():
        rows = [Sample(role="A", question=question, generated=["a"]) for question in asked]
        table = statistics.question_kinds(RoleBench(language, "instruction-generalization", {"test": rows}, {}))
        assert {row["asks"] for row in table} == set(asked.values())
