"""The figures of RoleBench: valid, repeatable, every number there, legible from one role to a hundred."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from rolellm_utils import plots, plots_rolebench
from tests.test_plots_report import NAMES, check_png, check_text_inside, drawn, texts

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")

QUOTES = ["Mind the lamp", "俺老孙来也！" * 12, "", "a very long saying that goes on " * 6, "W" * 90, "$5_{x}$"]
KINDS = ("general", "script-based", "script-agnostic", "role-specific")
LENGTHS = {"references": [3, 3, 8, 90], "孙悟空": [], "questions, a name that is long": list(range(4000)), "empty": [0]}
REFERENCES = {"general test": {5: 1289, 4: 82, 3: 52, 2: 25, 1: 3}, "role-specific train": {1: 99_999, 2: 1}}


def tiles(count, **changes):
    return [
        {"role": f"{NAMES[i % 5]}{i or ''}", "pairs": 31 * i, "train": 1000 + 99 * i, "test": 13 * i,
         "mean_length": 7.7 + i, "unit": ("words", "characters")[i % 2], "catchphrase": QUOTES[i % 6]} | changes
        for i in range(count)
    ]  # fmt: skip


def counts(roles):
    return {f"{NAMES[i % 5]}{i}": {kind: (i * 37 + 411 * k) % 1500 for k, kind in enumerate(KINDS)}
            for i in range(roles)}  # fmt: skip


PARTIAL = {"pairs": None, "mean_length": None, "catchphrase": ""}
PANORAMAS = {
    **{f"{count} roles": tiles(count) for count in (0, 1, 3, 5, 10, 25, 100)},
    "3 roles, partial": tiles(3, **PARTIAL),
    "30 roles, partial": tiles(30, **PARTIAL),
    "26 roles, large numbers": tiles(26, pairs=123_456, train=1_234_567, mean_length=98_765.4),
}
PANELS = {
    **{f"rows of {roles}": (plots_rolebench.rows_by_role, counts(roles)) for roles in (0, 1, 10, 41, 100)},
    "rows, none of any kind": (plots_rolebench.rows_by_role, {"Oswin": {}, "孙悟空": {"general": 0}}),
    "lengths": (plots_rolebench.length_distribution, LENGTHS, "words"),
    "lengths, long tail": (plots_rolebench.length_distribution, {"a": np.arange(1, 10**6), "b": np.array([])}, "words"),
    "lengths, all one": (plots_rolebench.length_distribution, {"a": [7] * 30}, "characters"),
    "lengths, no texts": (plots_rolebench.length_distribution, {"a": [], "b": []}, "words"),
    "lengths, no groups": (plots_rolebench.length_distribution, {}, "words"),
    "references": (plots_rolebench.references_per_row, REFERENCES),
    "references, seven": (plots_rolebench.references_per_row, {f"a file of a long name {i}": {i: 9} for i in range(7)}),
    "references, no rows": (plots_rolebench.references_per_row, {"general test": {}}),
    "references, no files": (plots_rolebench.references_per_row, {}),
}
FIGURES = {name: (plots_rolebench.panorama, found) for name, found in PANORAMAS.items()} | PANELS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_png_is_valid_repeatable_and_small(name):
    assert len(check_png(*FIGURES[name])) < 400_000


@pytest.mark.parametrize("name", FIGURES)
def test_all_text_is_inside_the_figure_and_large_enough(name):
    figure, _ = drawn(*FIGURES[name])
    check_text_inside(figure)
    assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 6
    assert figure.get_figheight() < 14.3
    if name in PANORAMAS:
        check_tiles(figure.axes[0], len(PANORAMAS[name]))


def check_tiles(axes, count):
    """Every text is within one tile and clear of the others, but for the key below small tiles, and "no roles"."""
    frames = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, Rectangle)][::2]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    beyond = [box for box in boxes if not any(_holds(frame, box) for frame in frames)]
    assert len(frames) == count and len(beyond) == (not 0 < count <= 25)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def _holds(frame, box):
    return all(frame.contains(x, y) for x, y in ((box.x0, box.y0), (box.x1, box.y1)))


def test_panorama_shows_the_numbers_it_is_given():
    shown, alt = texts(drawn(plots_rolebench.panorama, tiles(8))[0]), plots_rolebench.panorama(tiles(8)).alt
    for tile in tiles(8):
        for fact in (
            f"{tile['pairs']:,} dialogue pairs",
            f"{tile['train']:,} train, {tile['test']:,} test rows",
            f"answers of {tile['mean_length']:.0f} {tile['unit']}",
        ):
            assert fact in shown and fact in alt
    assert "“Mind the lamp”" in shown and "“$5_{x}$”" in shown
    shown = texts(drawn(plots_rolebench.panorama, tiles(100))[0])
    for tile in tiles(100):
        assert f"{tile['pairs']:,} pairs {tile['train']:,} train {tile['test']:,} test" in shown
        assert f"{tile['mean_length']:.0f} {tile['unit']}" in shown
    assert "words: mean length of an answer" in shown


def test_panorama_of_a_partial_copy_leaves_lines_out():
    for count in (3, 30):
        figure, alt = drawn(plots_rolebench.panorama, tiles(count, **PARTIAL))
        whole, _ = drawn(plots_rolebench.panorama, tiles(count))
        assert not any(word in texts(figure) + alt for word in ("pairs", "None", "words", "characters", "“"))
        assert figure.get_figheight() < whole.get_figheight()


def test_rows_by_role_shows_every_role_total_and_sum():
    for roles in (10, 100):
        given = counts(roles)
        figure, alt = drawn(plots_rolebench.rows_by_role, given)
        names = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
        assert len(names) == roles and len(figure.axes) == (1 if roles == 10 else 3)
        assert names[3] == plots.wrap(list(given)[3], 16, 2)
        shown = texts(figure)
        for role, found in given.items():
            assert f"{sum(found.values()):,}" in shown and f"{role} " in alt
        legend = [text.get_text() for text in figure.legends[0].texts]
        assert legend == [f"{kind} ({sum(found[kind] for found in given.values()):,})" for kind in KINDS]


def test_length_distribution_labels_medians_and_bins_whole_lengths():
    figure, alt = drawn(plots_rolebench.length_distribution, LENGTHS, "words")
    shown = texts(figure)
    for piece in ("median 5.5", "median 1,999.5", "n = 4,000 longest 3,999", "none", "length in words"):
        assert piece in shown
    assert "references median 5.5 (n = 4, longest 90)" in alt and "孙悟空 none" in alt
    for patch in figure.axes[0].patches:
        assert all(edge % 1 == 0.5 for edge in patch.get_data().edges)


def test_references_per_row_prints_rows_and_shares():
    figure, alt = drawn(plots_rolebench.references_per_row, REFERENCES)
    shown = texts(figure)
    for piece in ("general test 1,451 rows", "1,289 (88.8%)", "3 (0.2%)", "99,999 (100.0%)", "1 (<0.1%)", "| 0 |"):
        assert piece in shown
    assert "general test 1: 3, 2: 25, 3: 52, 4: 82, 5: 1289" in alt
    assert "no rows" in texts(drawn(plots_rolebench.references_per_row, {})[0])
