"""Figures and report: valid, repeatable bytes, every number there, nothing outside its box, nothing unescaped."""

import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import PIL.Image
import PIL.ImageColor
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from rolellm_utils import paper, plots, report
from rolellm_utils.files import ROOT
from rolellm_utils.scoring import METRICS, PROTOCOLS

# `drawn` looks at a figure before `picture` has silenced what a machine without Chinese fonts says.
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")

EN = paper.PUBLISHED["en", "instruction-generalization"]
ZH = paper.PUBLISHED["zh", "instruction-generalization"]
NAMES = ["Oswin", "孙悟空", "Professor G.H. Dorr of the Old Lighthouse Company", "$x$ & <b>", "Wolfram-Maximilian"]
TEXTS = [
    *NAMES,
    "俺老孙来也！" * 12,
    "on and on " * 20,
    "W" * 90,
    "$5_{x}$",
    "word " * 40,
    "他说：“好。”" * 9,
    "a -5 x- b-，c",
]


def cells(models=("RoleGPT", "untuned", "tuned"), missing=(), avg=True):
    """Made-up cells, every number different; `missing` holds (model, metric) pairs without a score."""
    found, number = [], 100
    for protocol in PROTOCOLS:
        for model in models:
            for metric in [*METRICS, "avg"] if avg else METRICS:
                number += 7
                known = (model, metric) not in missing
                spread = known and metric != "avg"
                found.append({
                    "model": model, "metric": metric, "protocol": protocol, "n": number if known else 0,
                    "mean": number / 1000 if known else None, "low": (number - 20) / 1000 if spread else None,
                    "high": (number + 30) / 1000 if spread else None, "length": number / 10 if known else None,
                    "wrong_role": (number - 41) / 1000 if known and metric == "CUS" else None,
                })  # fmt: skip
    return found


def rejects(*roles):
    reasons = ["duplicate", "low completeness", "low factualness", "not valid JSON", "cut off", "over the limit"]
    return [
        {"role": role, "reason": reason} for role in roles for i, reason in enumerate(reasons) for _ in range(7 - i)
    ]


def log(steps):
    return [{"step": i + 1, "loss": 3 / (i + 1) + 1 + (i * 37 % 11) / 20} for i in range(steps)]


def no_answers(model):
    return cells((model,), missing=[(model, metric) for metric in [*METRICS, "avg"]])


FIGURES = {
    "turns": (plots.turns_by_speaker, {name: 400 - 17 * i for i, name in enumerate(NAMES * 1)}, NAMES[:2]),
    "turns, 40 speakers": (plots.turns_by_speaker, {f"Sailor {i}": i * i for i in range(40)}, ["Sailor 3"]),
    "turns, one": (plots.turns_by_speaker, {"李白": 1}, []),
    "funnel": (plots.funnel, {"Oswin": 8, "孙悟空": 0}, rejects("Oswin", "孙悟空", "Neha")),
    "funnel, nothing rejected": (plots.funnel, {"Oswin": 8}, []),
    "funnel, nothing at all": (plots.funnel, {"Oswin": 0}, []),
    "funnel, 100 roles": (plots.funnel, {f"Role {i}": i for i in range(100)}, rejects("Role 1")),
    "lengths": (plots.lengths, {"Oswin": [3, 3, 3, 90], "孙悟空": [], NAMES[2]: list(range(400))}, "words"),
    "lengths, one": (plots.lengths, {"李白": [12]}, "characters"),
    "lengths, no answers": (plots.lengths, {"李白": []}, "characters"),
    "loss": (plots.loss_curve, log(120)),
    "loss, 5 steps": (plots.loss_curve, log(5)),
    "loss, 1 step": (plots.loss_curve, log(1)),
    "loss, no step": (plots.loss_curve, []),
    "scores": (plots.score_bars, cells(), EN, "paper"),
    "scores, zh": (plots.score_bars, cells(missing=[("tuned", "SPE")]), ZH, "paper"),
    "scores, F1": (plots.score_bars, cells(), None, "rouge_score"),
    "scores, none": (plots.score_bars, no_answers("孙悟空"), None, "paper"),
    "scores, 10 models": (plots.score_bars, cells([f"model number {i}" for i in range(10)]), EN, "paper"),
}


def drawn(function, *args):
    """(matplotlib Figure, alt text) of a plot function, laid out, before it becomes PNG bytes."""
    with rc_context(plots.style()):
        figure, alt = function.__wrapped__(*args)
        figure.set_dpi(plots.DPI)
        figure.draw_without_rendering()
    return figure, alt


def texts(figure):
    shown = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return " | ".join(" ".join(text.split()) for text in shown if text)


def unseen(axis):
    """The tick labels beyond the ends of an axis, which matplotlib keeps but does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]


def check_png(function, *args):
    """The bytes of a figure: valid, repeatable, without metadata, of the one width."""
    first, second = function(*args), function(*args)
    assert first.data.startswith(b"\x89PNG\r\n\x1a\n") and first.data.endswith(b"IEND\xaeB`\x82")
    assert first.data == second.data
    assert not re.search(rb"tEXt|tIME|iTXt", first.data[:400])
    assert int.from_bytes(first.data[16:20], "big") == plots.WIDTH * plots.DPI
    assert first.alt
    return first.data


def check_text_inside(figure):
    """No letter of a figure is beyond its edges."""
    hidden = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in unseen(axis)}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, text
            assert box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_png_is_valid_and_repeatable(name):
    check_png(*FIGURES[name])


def test_cell_value_displays_once_as_png():
    image = plots.loss_curve(log(5))
    data, metadata = DisplayFormatter().format(image)
    assert set(data) == {"image/png", "text/plain"}
    assert data["text/plain"] == "<IPython.core.display.Image object>"
    assert base64.b64decode(data["image/png"]) == image.data
    assert "matplotlib.pyplot" not in plots.__dict__ and metadata["image/png"]["alt"] == image.alt


def test_no_word_on_stderr_even_with_a_fresh_font_cache(tmp_path):
    code = "from rolellm_utils import plots; plots.turns_by_speaker({'孙悟空': 3, 'Éloïse 🐒': 2}, ['孙悟空'])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"MPLCONFIGDIR": str(tmp_path)},
        check=True,
    )
    assert (result.stdout, result.stderr) == (b"", b"")


@pytest.mark.parametrize("name", FIGURES)
def test_all_text_is_inside_the_figure(name):
    check_text_inside(drawn(*FIGURES[name])[0])


def test_areas_keep_their_colours():
    with PIL.Image.open(io.BytesIO(plots.score_bars(*FIGURES["scores"][1:]).data)) as image:
        colors = {color for count, color in image.convert("RGB").getcolors() if count > 200}
    assert {PIL.ImageColor.getrgb(color) for color in (plots.BLUE, plots.ORANGE, plots.GREEN, "white")} <= colors


def test_a_missing_chinese_font_is_said_without_covering_anything(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "chinese_fonts", lambda: [])
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    monkeypatch.setattr(plots, "_small", lambda png: b"")
    plots.funnel({"孙悟空": 3}, [])
    plots.funnel({"Oswin": 3}, [])
    chinese, english = figures
    assert plots.NO_FONT in texts(chinese) and plots.NO_FONT not in texts(english)
    assert chinese.get_figheight() > english.get_figheight()


def test_figures_show_the_numbers_they_are_given():
    shown = texts(drawn(*FIGURES["funnel"])[0])
    assert "8 of 35 kept" in shown and "0 of 27 kept" in shown and "rejected: duplicate (21)" in shown
    assert "Neha" in shown
    shown = texts(drawn(*FIGURES["lengths"])[0])
    assert "median 3, n = 4" in shown and "no answers" in shown and "median 199.5, n = 400" in shown
    first, last = (row["loss"] for row in (log(5)[0], log(5)[-1]))
    assert f"{first:.3f}" in texts(drawn(*FIGURES["loss, 5 steps"])[0]) and f"{last:.3f}" in texts(
        drawn(*FIGURES["loss, 5 steps"])[0]
    )


def test_turns_keep_the_chosen_beyond_the_twelve():
    shown = texts(drawn(*FIGURES["turns, 40 speakers"])[0])
    assert "Sailor 3 |" in shown and "Sailor 27" not in shown and "27 more speakers" in shown


def test_score_bars_show_one_protocol_and_the_paper_only_beside_its_own():
    shown = texts(drawn(*FIGURES["scores"])[0])
    for cell in cells():
        if cell["metric"] in METRICS:
            assert (f"{cell['mean']:.3f}" in shown) == (cell["protocol"] == "paper")
    assert "as published (other roles, other models)" in shown and "0.381" in shown and "recall" in shown
    assert plots.CONTROL in shown
    args = cells(), EN, "rouge_score"
    assert plots.score_bars(*args).data == plots.score_bars(cells(), None, "rouge_score").data
    assert "n/a" in texts(drawn(*FIGURES["scores, zh"])[0]) and "n/a" not in shown
    assert plots.CONTROL not in texts(drawn(*FIGURES["scores, none"])[0])


@pytest.mark.parametrize("text", TEXTS)
def test_wrap_keeps_to_the_width_and_loses_nothing(text):
    with rc_context(plots.style()):
        lines = plots.wrap(text, 8, 99).split("\n")
        assert "".join("".join(lines).split()) == "".join(text.split())
        assert all(plots.ems(line) <= 8 or len(line) < 3 for line in lines)
        assert not any(line[0] in plots.CLOSING for line in lines if line)
        short = plots.wrap(text, 8, 2)
        assert short.count("\n") <= 1 and ("…" in short) == (len(lines) > 2)


def test_wrap_breaks_after_a_hyphen_and_not_at_a_minus():
    with rc_context(plots.style()):
        assert plots.wrap("Dr. Frank-N-Furter", 7, 3) == "Dr. Frank-N-\nFurter"
        assert plots.wrap("x -5", 1.5, 2) == "x\n-5"


def test_published_averages_are_the_mean_of_their_cells_but_for_three():
    off = [
        (*key, model)
        for key, table in paper.PUBLISHED.items()
        for model, row in table.items()
        if abs(sum(row[metric] for metric in METRICS) / 3 - row["avg"]) > 0.0001
    ]
    assert off == [("en", "role-generalization", model) for model in ("LLaMA", "Alpaca", "Vicuna")]
    assert {key: len(table) for key, table in paper.PUBLISHED.items()} == {
        ("en", "instruction-generalization"): 6,
        ("zh", "instruction-generalization"): 4,
        ("en", "role-generalization"): 5,
    }
    assert EN["RoleLLaMA"] == {"CUS": 0.3294, "RAW": 0.3755, "SPE": 0.3814, "avg": 0.3621}
    assert "recall" in paper.note() and "protocol paper" in paper.note()


class Page(HTMLParser):
    """Collects a page's text, tags and attributes; an unbalanced tag is an error."""

    VOID = {"meta", "img", "br"}

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f"{data} "


EVIL = '<script>alert("x")</script><img src=x onerror=y> & </dd> \'"'


def content(language="en", **changes):
    given = {
        "title": f"run {EVIL}",
        "label": f"What it shows {EVIL}",
        "settings": {"language": language, "seed": 41, "roles": [EVIL], "scripts": None, EVIL: EVIL},
        "scores": {"cells": cells(missing=[("tuned", "SPE"), ("tuned", "avg")]), "published": EN, "label": "x"},
        "counts": [{"part": "general", "rows": 8123, "mean": 41.7}, {"part": EVIL, "rows": 0, "mean": 0.0}],
        "samples": [
            {"role": "孙悟空", "question": "你是谁？", "reference": f"俺老孙{EVIL}",
             "answers": {"RoleGPT": EVIL, "tuned": "line\nline", EVIL: ""}}
        ],
        "figures": {f"A figure {EVIL}": plots.loss_curve(log(5)).data},
        "verdicts": ["CUS: +0.031", EVIL],
        "notes": ["SPE is not available.", EVIL],
    }  # fmt: skip
    return given | changes


def written(tmp_path, **given):
    path = report.write(tmp_path / "eval" / "report.html", **given)
    return path.read_text(encoding="utf-8")


def test_report_is_balanced_escaped_and_self_contained(tmp_path):
    html = written(tmp_path, **content())
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert [value[:22] for _, name, value in page.attributes if name in ("src", "href")] == ["data:image/png;base64,"]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", html)
    assert page.text.count(EVIL) >= 10
    assert "default-src 'none'" in html and '<meta charset="utf-8">' in html and "\r" not in html


def test_report_holds_everything_it_was_given(tmp_path):
    given = content()
    html = written(tmp_path, **given)
    text = " ".join(Page(html).text.split())
    for cell in given["scores"]["cells"]:
        if cell["mean"] is not None:
            span = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if cell["low"] is not None else ""
            assert f"{cell['mean']:.3f}{span} n = {cell['n']}" in text
        if cell["wrong_role"] is not None:
            assert f"{cell['wrong_role']:.3f}" in text
    for row in EN.values():
        assert all(f"{value:.4f}" in text for value in row.values())
    for piece in ("8123", "41.7", "drawn by seed 41", "n/a n = 0", "CUS: +0.031", "SPE is not available.", "俺老孙"):
        assert piece in text
    assert paper.note() in text and text.count("(paper)") == len(EN)
    png = re.search('data:image/png;base64,([^"]+)', html)[1]
    assert base64.b64decode(png) == next(iter(given["figures"].values()))


def test_report_mean_length_is_over_the_three_metrics():
    row = report.tables(cells(("a",)), None)[0]["rows"][0]
    lengths = [cell["length"] for cell in cells(("a",)) if cell["protocol"] == "rouge_score"][:3]
    assert row["length"] == f"{sum(lengths) / 3:.1f}"


def test_report_averages_itself_where_no_avg_is_given(tmp_path):
    given = cells(("a", "b"), missing=[("b", "RAW")], avg=False)
    table = report.tables(given, None)[0]
    means = [cell["mean"] for cell in given if cell["model"] == "a"][:3]
    assert table["rows"][0]["scores"][3]["mean"] == f"{sum(means) / 3:.3f}"
    assert table["rows"][1]["scores"][3]["mean"] == "n/a"


def test_report_prints_no_interval_that_is_none_or_nan():
    cell = {"mean": 0.25, "low": float("nan"), "high": float("nan"), "n": 3}
    assert report._score(cell) == {"mean": "0.250", "interval": "", "n": 3}


@pytest.mark.parametrize("language, lang", [("en", "en"), ("zh", "zh-Hans")])
def test_report_names_the_language_of_the_answers(tmp_path, language, lang):
    page = Page(written(tmp_path, **content(language)))
    assert ("article", "lang", lang) in page.attributes and ("html", "lang", "en") in page.attributes


def test_report_of_an_empty_run_is_a_page(tmp_path):
    nothing = {"scores": {"cells": [], "published": None}, "counts": [], "samples": [], "figures": {}, "verdicts": [],
               "notes": [], "settings": {}}  # fmt: skip
    page = Page(written(tmp_path, **content(**nothing)))
    assert "No scores." in page.text and "img" not in page.tags and "article" not in page.tags


def test_same_input_same_bytes(tmp_path):
    assert written(tmp_path / "a", **content()) == written(tmp_path / "b", **content())
