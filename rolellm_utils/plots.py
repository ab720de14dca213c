"""The figures, one style: Okabe-Ito colours, with hatches or direct labels so that they survive grey print.

Here are the style, its helpers and the figures of all stages but RoleBench's, which are in `plots_rolebench`.

Every public function gives an IPython Image: as the last value of a cell it shows once, and `.data` is the PNG. The
bytes depend on the input alone, so figures are made without pyplot, which keeps state, and without metadata.
"""

import functools
import io
import logging
import math
import re
import warnings

# The first import on a machine lists its fonts and says so on stderr, which would end up in a notebook's output.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

import PIL.Image  # noqa: E402
from IPython.display import Image  # noqa: E402
from matplotlib import font_manager, rc_context  # noqa: E402
from matplotlib.backends.backend_agg import RendererAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.font_manager import FontProperties  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402
from matplotlib.text import Text  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#BBBBBB"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, YELLOW)
# One more than colours: the pairs repeat only after 56.
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "ooo", "+++")
METRICS = ("CUS", "RAW", "SPE")
WIDTH, DPI = 7.0, 110
INK = "#222222"
MEASURE = RendererAgg(1, 1, 72)
# Han, kana and full-width forms break anywhere, but not before closing punctuation.
HAN, CLOSING = "\u2e80-\uffef", "，。！？；：、”’」』）》…"
# What a line is not broken within: a word, up to its hyphen if it has one, a Han character, a blank.
PIECES = re.compile(f"[^\\s{HAN}]+?(?:(?<=\\w-)(?=\\w)|(?=[\\s{HAN}]|$))[{CLOSING}]*|[{HAN}][{CLOSING}]*|\\s")

CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "Noto Sans CJK JP", "PingFang SC",
    "Hiragino Sans GB", "Heiti TC", "STHeiti", "Microsoft YaHei", "SimHei", "SimSun", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "AR PL UMing CN", "Noto Serif CJK SC", "Arial Unicode MS",
)  # fmt: skip
NO_FONT = "No Chinese font on this machine, hence the boxes: install one, such as fonts-noto-cjk."


@functools.cache
def chinese_fonts():
    """The installed ones of CHINESE_FONTS: matplotlib warns about every family it is given and cannot find."""
    manager = font_manager.fontManager
    if not {font.name for font in manager.ttflist} & set(CHINESE_FONTS):
        # matplotlib keeps its list from the first import ever: look for fonts installed since.
        known = {font.fname for font in manager.ttflist}
        for path in sorted(set(font_manager.findSystemFonts()) - known):
            try:
                manager.addfont(path)
            except (OSError, RuntimeError, ValueError):
                continue
    names = {font.name for font in manager.ttflist}
    return [name for name in CHINESE_FONTS if name in names]


def style():
    """The rcParams of every figure."""
    return {
        "font.family": ["DejaVu Sans", *chinese_fonts()],
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#666666",
        "axes.axisbelow": True,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        # Hinted letters are up to a tenth wider when small: text would not fit where it was measured to.
        "text.hinting": "none",
        # Names and phrases come from scripts: a dollar sign in them is a dollar sign.
        "text.parse_math": False,
    }


def picture(draw):
    """A plot function that returns (Figure, alt text) as one that returns an IPython Image with PNG bytes."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with rc_context(style()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure, alt = draw(*args, **kwargs)
            texts = (text.get_text() for text in figure.findobj(Text))
            if not chinese_fonts() and any(re.search("[\u3400-\u9fff]", text) for text in texts):
                figure.suptitle(NO_FONT, x=0.01, ha="left", fontsize=7, color=VERMILLION)
                figure.set_figheight(figure.get_figheight() + 0.2)
            png = io.BytesIO()
            figure.savefig(png, format="png", dpi=DPI)
        return Image(_small(png), format="png", alt=alt)

    return drawn


def _small(png):
    """The bytes of a PNG with a palette of 256 colours, a third of the size; no colour of an area changes."""
    image, small = PIL.Image.open(png).convert("RGB"), io.BytesIO()
    image.quantize(256, PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


@functools.lru_cache(maxsize=20000)
def ems(text, weight="normal", slant="normal"):
    """The width of a text in ems of its font, measured in the fonts of the style that is set."""
    font = FontProperties(size=100, weight=weight, style=slant)
    return MEASURE.get_text_width_height_descent(text, font, ismath=False)[0] / 100


def wrap(text, width, most, **font):
    """The text on at most `most` lines of `width` ems, broken at spaces, hyphens and Han characters, cut with "…"."""
    lines = [""]
    for piece in PIECES.findall(" ".join(text.split())):
        if lines[-1] and ems(lines[-1] + piece, **font) > width:
            lines.append("")
        while len(piece) > 1 and ems(piece, **font) > width:
            cut = next(i for i in range(len(piece) - 1, 0, -1) if i == 1 or ems(piece[:i], **font) <= width)
            lines[-1:] = [piece[:cut], ""]
            piece = piece[cut:]
        lines[-1] += piece if lines[-1] else piece.strip()
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) <= most:
        return "\n".join(lines)
    last = lines[most - 1]
    while last and ems(last + "…", **font) > width:
        last = last[:-1]
    return "\n".join([*lines[: most - 1], last.rstrip() + "…"])


def name_rows(axes, names, bold=(), lines=2):
    """Role names down the side, first one on top, each on at most `lines` lines."""
    axes.set_yticks(range(len(names)), [wrap(name, 16, lines) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    for name, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if name in bold else "normal")


def fill(i):
    """Colour and hatch number i."""
    return {"facecolor": CYCLE[i % len(CYCLE)], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": INK}


def bar_figure(rows, legend_rows=1):
    """A figure for horizontal bars, as high as its rows need."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.34 * max(rows, 1) + 0.2 * legend_rows), layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color="#E5E5E5")
    axes.spines["left"].set_visible(False)
    return figure, axes


def stacked_bars(axes, names, parts, numbers=True):
    """The totals of horizontal bars, drawn on `axes` in a row a name, with a segment a part of {label: {name: count}}.

    numbers: print the count in every segment wide enough for it, on axes that are most of the figure.
    """
    totals = [sum(part.get(name, 0) for part in parts.values()) for name in names]
    longest, ends = max([1, *totals]), [0] * len(names)
    for i, (label, part) in enumerate(parts.items()):
        values = [part.get(name, 0) for name in names]
        axes.barh(range(len(names)), values, left=ends, linewidth=0.5, label=label, **fill(i))
        for row, value in enumerate(values):
            # A narrower segment has no room for its number.
            if numbers and value / longest > 0.012 + 0.016 * len(f"{value:,}"):
                axes.text(ends[row] + value / 2, row, f"{value:,}", ha="center", va="center", fontsize=8,
                          bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"})  # fmt: skip
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    return totals


def with_sums(parts):
    """{label: {name: count}} with the sum of each part in its label."""
    return {f"{label} ({sum(part.values()):,})": part for label, part in parts.items()}


def bar_ends(axes, ends, texts, size=8):
    """Print a text after each horizontal bar."""
    for row, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.annotate(text, (end, row), (4, 0), textcoords="offset points", va="center", fontsize=size)


@picture
def turns_by_speaker(counts, chosen):
    """Horizontal bars of turns a speaker: the twelve with most and whoever is chosen, the chosen highlighted."""
    ranked = sorted(counts, key=lambda name: -counts[name])
    names = [name for i, name in enumerate(ranked) if i < 12 or name in chosen]
    figure, axes = bar_figure(len(names))
    for label, color, hatch, group in (
        ("chosen role", BLUE, "", [name for name in names if name in chosen]),
        ("other speaker", "#E3E3E3", "///", [name for name in names if name not in chosen]),
    ):
        if group:
            bars = axes.barh([names.index(name) for name in group], [counts[name] for name in group],
                             color=color, hatch=hatch, edgecolor="#888888" if hatch else color, linewidth=0.5,
                             label=label)  # fmt: skip
            axes.bar_label(bars, padding=3, fmt="{:,.0f}")
    name_rows(axes, names, bold=chosen)
    axes.margins(x=0.08)
    rest = len(ranked) - len(names)
    axes.set_xlabel(f"turns ({rest} more speakers not shown)" if rest else "turns")
    if names:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure, "Turns a speaker: " + ", ".join(f"{name} {counts[name]}" for name in names)


@picture
def funnel(kept, rejects):
    """One stacked bar a role: the triplets kept, then those rejected by reason, most frequent reason first."""
    roles = list(dict.fromkeys([*kept, *(row["role"] for row in rejects)]))
    dropped = {}
    for row in rejects:
        by_role = dropped.setdefault(row["reason"], {})
        by_role[row["role"]] = by_role.get(row["role"], 0) + 1
    reasons = sorted(dropped, key=lambda reason: (-sum(dropped[reason].values()), reason))
    parts = {"kept": kept} | {f"rejected: {reason}": dropped[reason] for reason in reasons}
    figure, axes = bar_figure(len(roles), legend_rows=math.ceil(len(parts) / 2))
    totals = stacked_bars(axes, roles, with_sums(parts))
    shares = [f"{kept.get(role, 0):,} of {total:,} kept" for role, total in zip(roles, totals, strict=True)]
    bar_ends(axes, totals, shares)
    name_rows(axes, roles)
    axes.set_xlim(0, max([1, *totals]) * 1.2)
    axes.set_xlabel("candidate triplets")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    named = (f"{role} {share}" for role, share in zip(roles, shares, strict=True))
    return figure, "Kept and rejected: " + "; ".join(named)


@picture
def lengths(groups, unit):
    """Box plots of answer length a role, median labelled, every answer a point."""
    figure, axes = bar_figure(len(groups), legend_rows=0)
    filled = {i: values for i, values in enumerate(groups.values()) if len(values)}
    if filled:
        axes.boxplot(list(filled.values()), positions=list(filled), orientation="horizontal", widths=0.6,
                     manage_ticks=False, showfliers=False, patch_artist=True, zorder=2,
                     boxprops={"facecolor": "#DCEBF5", "edgecolor": BLUE},
                     whiskerprops={"color": BLUE}, capprops={"color": BLUE},
                     medianprops={"color": VERMILLION, "linewidth": 2})  # fmt: skip
    for i, values in enumerate(groups.values()):
        # Points of one value are spread by the golden ratio: even, and the same every time.
        spread = [i + ((k * 0.618034) % 1 - 0.5) * 0.5 for k in range(len(values))]
        alpha = 0.45 if len(values) <= 300 else 0.12
        axes.scatter(values, spread, s=9, color=INK, alpha=alpha, linewidths=0, zorder=3)
        text = f"median {_median(values):g}, n = {len(values)}" if len(values) else "no answers"
        axes.annotate(text, (1.01, i), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                      annotation_clip=False)  # fmt: skip
    name_rows(axes, list(groups))
    axes.set_xlim(0, max([1, *(value for values in groups.values() for value in values)]) * 1.03)
    axes.set_xlabel(f"answer length in {unit} (line: median, box: middle half)")
    return figure, f"Answer length in {unit}: " + ", ".join(
        f"{name} median {_median(values):g}" if len(values) else f"{name} no answers" for name, values in groups.items()
    )


def _median(values):
    ranked, half = sorted(values), len(values) // 2
    return ranked[half] if len(values) % 2 else (ranked[half - 1] + ranked[half]) / 2


@picture
def loss_curve(log):
    """The training loss over steps: every step faint, a running mean on top with its first and last value.

    log: dicts with step and loss; the running mean is centred, over a tenth of the steps.
    """
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="training loss")
    axes.grid(axis="y", color="#E5E5E5")
    steps, losses = [row["step"] for row in log], [row["loss"] for row in log]
    half = len(losses) // 20
    windows = [losses[max(0, i - half) : i + half + 1] for i in range(len(losses))]
    smooth = [sum(window) / len(window) for window in windows]
    if half:
        axes.plot(steps, losses, color=GREY, linewidth=1, label="every step")
    axes.plot(steps, smooth, color=BLUE, linewidth=2.2, marker="" if len(log) > 1 else "o",
              label=f"mean of {2 * half + 1} steps" if half else "every step")  # fmt: skip
    if not log:
        axes.text(0.5, 0.5, "no steps logged", transform=axes.transAxes, ha="center")
        return figure, "No steps logged"
    for i in {0, len(log) - 1}:
        axes.plot(steps[i], smooth[i], marker="o", color=BLUE)
        axes.annotate(f"{smooth[i]:.3f}", (steps[i], smooth[i]), (0, 9), textcoords="offset points", ha="center",
                      fontweight="bold", path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip
    axes.margins(x=0.06, y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(loc="upper right")
    return figure, f"Training loss over {len(log)} steps, from {smooth[0]:.3f} to {smooth[-1]:.3f}"


@picture
def score_bars(cells, published, protocol):
    """Bars of our models by metric, with intervals and wrong-role control; protocol paper: the published ones beside.

    cells: as `scoring.table` gives them, a mean of None prints n/a; published: {model: {metric: value}} or None.
    """
    cells = [cell for cell in cells if cell["protocol"] == protocol and cell["metric"] in METRICS]
    published = published if protocol == "paper" else None
    models = list(dict.fromkeys(cell["model"] for cell in cells))
    ratios = [min(max(len(models), 4), 6) + 1, len(published) + 1] if published else [1]
    entries = max(len(models) + 2, len(published or ()))
    figure = Figure(figsize=(WIDTH, 2.9 + 0.19 * entries), layout="constrained")
    panels = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0]
    # Recall for `paper`, F1 for `rouge_score`: not the same thing, so the axis says which.
    _panel(panels[0], "this run", f"ROUGE-L {'recall' if protocol == 'paper' else 'F1'} (protocol {protocol})")
    labels = _labels(cells)
    # Each label is used once: a second bar of the model would be a second legend entry.
    top = max([0.1, *(_our_bar(panels[0], cell, models, labels.pop(cell["model"], "_")) for cell in cells)])
    if any(cell["wrong_role"] is not None for cell in cells):
        panels[0].plot([], [], **WRONG_ROLE, label=CONTROL)
    if published:
        _panel(panels[1], "as published (other roles, other models)", "")
        top = max(top, _paper_bars(panels[1], published))
    panels[0].set_ylim(0, top * 1.17)
    for panel, title in zip(panels, ("model (mean answer length)", "model"), strict=False):
        entries = sorted(zip(*panel.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] == CONTROL)
        panel.legend(*zip(*entries, strict=True), title=title, title_fontsize=8, alignment="left", loc="upper left",
                     bbox_to_anchor=(0, -0.09), borderaxespad=0, handlelength=1.6)  # fmt: skip
    return figure, f"ROUGE-L, protocol {protocol}: " + "; ".join(
        f"{cell['model']} {cell['metric']} {_score(cell['mean'])}" for cell in cells
    )


CONTROL = "scored against a wrong role (control)"
WRONG_ROLE = {"marker": "D", "markersize": 5.5, "markerfacecolor": "white", "markeredgecolor": "black",
              "linestyle": "none", "zorder": 5}  # fmt: skip


def _panel(axes, title, label):
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(label)
    axes.set_xticks(range(len(METRICS)), METRICS)
    axes.set_xlim(-0.5, len(METRICS) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#E5E5E5")


def _score(value):
    return "n/a" if value is None else f"{value:.3f}"


def _labels(cells):
    """A legend entry a model: recall rewards long answers, so the mean answer length stands beside the name."""
    found = {}
    for cell in cells:
        found.setdefault(cell["model"], []).append(cell["length"])
    known = {model: [length for length in found[model] if length is not None] for model in found}
    return {
        model: f"{model} ({sum(lengths) / len(lengths):.0f})" if lengths else model for model, lengths in known.items()
    }


def _our_bar(axes, cell, models, label):
    """One bar of ours with whisker, control and value; the height it takes."""
    i, mean, width = models.index(cell["model"]), cell["mean"], 0.8 / max(len(models), 2)
    x = METRICS.index(cell["metric"]) + (i - (len(models) - 1) / 2) * width
    axes.bar(x, mean or 0, width * 0.92, linewidth=0.6, label=label, **fill(i))
    top = mean or 0
    if mean is not None and cell["low"] is not None and math.isfinite(cell["low"]):
        axes.errorbar(x, mean, [[mean - cell["low"]], [cell["high"] - mean]], color="black", capsize=3, linewidth=1.2)
        top = cell["high"]
    if cell["wrong_role"] is not None:
        axes.plot(x - width * 0.27, cell["wrong_role"], **WRONG_ROLE)
        top = max(top, cell["wrong_role"])
    _value(axes, x, top, mean)
    return top


def _paper_bars(axes, published):
    """Hollow, hatched bars of the paper's models; the height they take."""
    width = 0.84 / len(published)
    for i, (model, row) in enumerate(published.items()):
        for k, metric in enumerate(METRICS):
            x = k + (i - (len(published) - 1) / 2) * width
            axes.bar(x, row[metric], width * 0.86, facecolor="white", edgecolor="#555555",
                     hatch=HATCHES[i % len(HATCHES)], linewidth=0.8, label=model if k == 0 else "_")  # fmt: skip
            _value(axes, x, row[metric], row[metric])
    return max(row[metric] for row in published.values() for metric in METRICS)


def _value(axes, x, top, value):
    axes.annotate(_score(value), (x, top), (0, 4), textcoords="offset points", ha="center", va="bottom", rotation=90,
                  fontsize=7)  # fmt: skip
