"""The figures of stage 4, RoleBench, in the style of `plots`: its roles, its rows, how long its texts are, and how
many references a row has. Each is readable with 3 roles as with the 100 of the whole data.
"""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from rolellm_utils.plots import (
    BLUE,
    CYCLE,
    VERMILLION,
    WIDTH,
    bar_ends,
    bar_figure,
    ems,
    name_rows,
    picture,
    stacked_bars,
    with_sums,
    wrap,
)

# Of a tile, text in points, the rest in inches. names: (size, most lines), the first that holds the name is taken;
# facts: (smallest, largest size); quote: (size, most lines).
LARGE = {"gap": 0.08, "pad": 0.08, "band": 0.5, "names": ((13, 1), (11, 1), (9.5, 2), (8, 2), (7, 3)),
         "facts": (6.3, 7.5), "quote": (8, 4)}  # fmt: skip
SMALL = {"gap": 0.05, "pad": 0.045, "band": 0.33, "names": ((8.5, 1), (7.5, 2), (6.5, 3)),
         "facts": (6.3, 6.8), "quote": (6.3, 3)}  # fmt: skip
LEADING, BELOW = 1.25, 0.05  # lines apart, in their size; inches between the blocks of a tile
HIGHEST = 14  # inches of a wall with catchphrases
MANY = 40  # roles; the bars of more are thin


@picture
def panorama(tiles):
    """A wall of tiles, one a role: name on a coloured band, dialogue pairs, rows, mean answer length, catchphrase.

    tiles: as `statistics.tiles` gives them; the line of a `pairs` or `mean_length` that is None is left out, and so is
    a catchphrase of "". With more than 25 roles tiles are small and catchphrases go where they fit.
    """
    columns = min(8, max(3, math.ceil(math.sqrt(len(tiles)))))
    rows = max(1, math.ceil(len(tiles) / columns))
    small = columns > 5
    look, width = SMALL if small else LARGE, WIDTH / columns
    room = (width - look["gap"] - 2 * look["pad"]) * 72
    facts, size, deep = _facts(tiles, look, room)
    top = look["band"] + BELOW + deep
    quotes, more = _quotes(tiles, look, room, HIGHEST / rows - look["gap"] - top - 2 * BELOW)
    height = look["gap"] + top + more + BELOW
    high = rows * height + 0.22 * small
    # The axes are in inches, so that text can be fitted into a tile.
    figure = Figure(figsize=(WIDTH, high + 0.06), layout="constrained")
    figure.get_layout_engine().set(w_pad=0, h_pad=0.03)
    axes = figure.add_subplot(xlim=(0, WIDTH), ylim=(high, 0))
    axes.axis("off")
    for i, (tile, fact, quote) in enumerate(zip(tiles, facts, quotes, strict=True)):
        column, row = i % columns, i // columns
        x, y = column * width + look["gap"] / 2, row * height + look["gap"] / 2
        # Three on in every row: no column, and no two neighbours, of one colour.
        color = CYCLE[(column + 3 * row) % len(CYCLE)]
        _frame(axes, tile["role"], (x, y, width - look["gap"], height - look["gap"]), look, color)
        x += look["pad"]
        axes.text(x, y + look["band"] + BELOW, fact, size=size, va="top", linespacing=LEADING)
        axes.text(x, y + top + BELOW, quote, size=look["quote"][0], style="italic", va="top", linespacing=1.15)
    if small:
        axes.text(look["gap"] / 2, high - 0.07, _key(tiles), size=7)
    if not tiles:
        axes.text(WIDTH / 2, height / 2, "no roles", ha="center")
    return figure, "Roles: " + ("; ".join(f"{tile['role']}: {', '.join(_lines(tile))}" for tile in tiles) or "none")


def _lines(tile, small=False):
    """The facts of a tile, in fewer words for a small one."""
    train, test, length = f"{tile['train']:,} train", f"{tile['test']:,} test", tile["mean_length"]
    lines = [train, test] if small else [f"{train}, {test} rows"]
    if tile["pairs"] is not None:
        lines.insert(0, f"{tile['pairs']:,} pairs" if small else f"{tile['pairs']:,} dialogue pairs")
    if length is not None:
        lines.append(f"{length:.0f} {tile['unit']}" if small else f"answers of {length:.0f} {tile['unit']}")
    return lines


def _key(tiles):
    """What the few words of small tiles stand for."""
    key = ["pairs: dialogue pairs"] if any(tile["pairs"] is not None for tile in tiles) else []
    units = dict.fromkeys(tile["unit"] for tile in tiles if tile["mean_length"] is not None)
    return "; ".join([*key, "train, test: rows", *(f"{unit}: mean length of an answer" for unit in units)])


def _facts(tiles, look, room):
    """(a text a tile, their one size, inches of the highest): as large as `room` points allow, else wrapped."""
    facts = [_lines(tile, look is SMALL) for tile in tiles]
    least, most = look["facts"]
    size = max(least, min([most, *(room / ems(line) for lines in facts for line in lines)]))
    # A hundredth more, lest rounding break the line that the size was made for.
    texts = ["\n".join(wrap(line, room / size + 0.01, 2) for line in lines) for lines in facts]
    return texts, size, max([text.count("\n") + 1 for text in texts], default=1) * size * LEADING / 72


def _quotes(tiles, look, room, high):
    """(a text a tile, inches of the highest): the catchphrases, cut to `high` inches; none where two lines are more."""
    size, most = look["quote"]
    most = min(most, int(high * 72 / (size * LEADING)))
    found = [f"“{tile['catchphrase']}”" if tile["catchphrase"] and most > 1 else "" for tile in tiles]
    found = [wrap(text, room / size, most, slant="italic") for text in found]
    lines = max([text.count("\n") + 1 for text in found if text], default=0)
    return found, lines * size * LEADING / 72 + BELOW * (lines > 0)


def _frame(axes, role, box, look, color):
    """The frame of a tile, `box` its x, y, width and height, and the name on its coloured band."""
    (x, y, width, height), band, pad = box, look["band"], look["pad"]
    # Paler than in a chart: a name is read on it, in grey print too.
    for part, face in ((height, "white"), (band, (color, 0.6))):
        axes.add_patch(Rectangle((x, y), width, part, facecolor=face, edgecolor="#999999", linewidth=0.8))
    for size, most in look["names"]:
        name = wrap(role, (width - 2 * pad) * 72 / size, most, weight="bold")
        if not name.endswith("…"):
            break
    ink = {"size": size, "weight": "bold", "color": "black"}
    if "\n" in name:
        axes.text(x + pad, y + band / 2, name, va="center", linespacing=1.05, **ink)
    else:
        # On the baseline: centred text would sit higher for a name with descenders.
        axes.text(x + pad, y + band / 2 + 0.37 * size / 72, name, **ink)


@picture
def rows_by_role(counts):
    """Stacked bars of the rows of each role by kind: across the page for up to 40 roles, in three columns for more.

    counts: {role: {kind: rows}}, drawn in the order given.
    """
    kinds = dict.fromkeys(kind for found in counts.values() for kind in found)
    parts = with_sums({kind: {role: counts[role].get(kind, 0) for role in counts} for kind in kinds})
    longest = max([1, *(sum(found.values()) for found in counts.values())])
    figure, panels, deep = _panels(len(counts), math.ceil(len(parts) / 3))
    thin = len(panels) > 1
    for i, axes in enumerate(panels):
        roles = list(counts)[i * deep : (i + 1) * deep]
        totals = stacked_bars(axes, roles, parts, numbers=not thin)
        bar_ends(axes, totals, [f"{total:,}" for total in totals], 6.5 if thin else 8)
        name_rows(axes, roles, lines=1 if thin else 2)
        axes.set_ylim(deep - 0.4, -0.6)
        axes.set_xlim(0, longest * (1.3 if thin else 1.1))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    panels[len(panels) // 2].set_xlabel("rows")
    if parts:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    else:
        panels[0].text(0.5, 0.5, "no rows", transform=panels[0].transAxes, ha="center")
    told = (f"{role} " + ", ".join(f"{kind} {rows}" for kind, rows in found.items()) for role, found in counts.items())
    return figure, f"Rows by role, {', '.join(parts) or 'none'}: " + "; ".join(told)


def _panels(roles, legend_rows):
    """(figure, axes, roles in each): one for large bars, or three side by side for thin ones."""
    if roles <= MANY:
        figure, axes = bar_figure(roles, legend_rows)
        return figure, [axes], max(1, roles)
    deep = math.ceil(roles / 3)
    figure = Figure(figsize=(WIDTH, 0.6 + 0.142 * deep + 0.2 * legend_rows), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes in panels:
        axes.tick_params(labelsize=6.5)
        axes.locator_params(axis="x", nbins=3, integer=True)
        axes.grid(axis="x", color="#E5E5E5")
        axes.spines["left"].set_visible(False)
    return figure, panels, deep


@picture
def length_distribution(groups, unit):
    """A histogram a group over one logarithmic axis of text length, the median marked and labelled.

    groups: {name: lengths in `unit`}, whole numbers from 0, up to millions. The axis is log(1 + length), so that empty
    texts have a place. A bin holds whole lengths; its height is its share by width, scaled to the peak of its group.
    """
    groups = {name: np.asarray(values).astype(int) for name, values in groups.items()}
    filled = [values for values in groups.values() if values.size]
    low, high = min([v.min() for v in filled], default=0), max([v.max() for v in filled], default=100)
    figure = Figure(figsize=(WIDTH, 0.6 + 0.62 * max(1, len(groups))), layout="constrained")
    axes = figure.add_subplot(xlabel=f"length in {unit} (logarithmic; each group scaled to its own peak)")
    axes.set_xscale("function", functions=(np.log1p, np.expm1))
    axes.set_xlim(low - 0.5, high + 0.5)
    axes.set_xticks(_ticks(int(low), int(high)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", color="#E5E5E5")
    axes.spines["left"].set_visible(False)
    for row, values in enumerate(groups.values()):
        told = f"n = {values.size:,}\nlongest {values.max():,}" if values.size else "none"
        axes.annotate(told, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        if values.size:
            _histogram(axes, row, values)
    name_rows(axes, list(groups))
    return figure, f"Length in {unit}: " + (", ".join(f"{name} {_told(v)}" for name, v in groups.items()) or "none")


def _ticks(low, high):
    """Round lengths from low to high, not so many that they touch; the two ends where there is nothing round."""
    steps = (1, 2, 5) if (high + 1) / (low + 1) < 2000 else (1,)
    ticks = [tick for tick in (0, *(step * 10**k for k in range(9) for step in steps)) if low <= tick <= high]
    return ticks if len(ticks) > 1 else sorted({low, high})


def _histogram(axes, row, values):
    """The histogram of a group in its row, and its median."""
    # Rice's rule: few texts make few bins. Edges lie between whole lengths, else short ones would make a comb.
    bins = min(40, math.ceil(2 * values.size ** (1 / 3)))
    low, high = values.min(), values.max()
    inner = np.expm1(np.linspace(np.log1p(low), np.log1p(high), bins + 1)[1:-1])
    edges = np.unique([low - 0.5, *(np.floor(inner) + 0.5), high + 0.5])
    shares = np.histogram(values, edges)[0] / np.diff(np.log1p(edges))
    floor, top = row + 0.4, row - 0.2
    axes.stairs(floor - (floor - top) * shares / shares.max(), edges, baseline=floor, fill=True, facecolor="#DCEBF5",
                edgecolor=BLUE, linewidth=1.2)  # fmt: skip
    median = np.median(values)
    axes.plot([median, median], [floor, top], color=VERMILLION, linewidth=2)
    # Near an end of the axis the label would stand beyond it.
    start, stop = axes.get_xlim()
    place = (np.log1p(median) - np.log1p(start)) / (np.log1p(stop) - np.log1p(start))
    side = "left" if place < 0.1 else "right" if place > 0.9 else "center"
    axes.annotate(f"median {median:,g}", (median, top), (0, 2), textcoords="offset points", ha=side, fontsize=8,
                  fontweight="bold", path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip


def _told(values):
    return f"median {np.median(values):g} (n = {values.size}, longest {values.max()})" if values.size else "none"


@picture
def references_per_row(counts):
    """A panel a name: what share of its rows has one reference, two, and so on; share and rows printed.

    counts: {name: {references: rows}}.
    """
    known = sorted({number for found in counts.values() for number in found})
    columns = 2 if len(counts) in (2, 4) else min(3, max(1, len(counts)))
    deep = max(1, math.ceil(len(counts) / columns))
    figure = Figure(figsize=(WIDTH, deep * (0.6 + 0.2 * max(3, len(known)))), layout="constrained")
    figure.get_layout_engine().set(hspace=0.05)
    panels = figure.subplots(deep, columns, squeeze=False).flatten()
    for axes in panels[len(counts) :]:
        axes.axis("off")
    for i, (axes, (name, found)) in enumerate(zip(panels, counts.items(), strict=False)):
        rows = [found.get(number, 0) for number in known]
        shares = [number / max(1, sum(rows)) for number in rows]
        axes.barh(range(len(known)), shares, color=BLUE, height=0.7)
        bar_ends(axes, shares, [_share(*pair) for pair in zip(rows, shares, strict=True)])
        axes.set_title(f"{wrap(name, (WIDTH / columns - 0.6) * 72 / 9, 2)}\n{sum(rows):,} rows", fontsize=9)
        name_rows(axes, [str(number) for number in known])
        axes.set_xlim(0, 1.1 + 0.25 * columns)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        if i % columns == 0:
            axes.set_ylabel("references")
    if not counts:
        panels[0].text(0.5, 0.5, "no rows", ha="center")
    told = (f"{name} " + ", ".join(f"{k}: {n}" for k, n in sorted(found.items())) for name, found in counts.items())
    return figure, "Rows by number of references: " + ("; ".join(told) or "none")


def _share(rows, share):
    """The rows and their share in per cent: 0 when there are none, else never 0%."""
    return f"{rows:,} ({'<0.1%' if share < 0.0005 else f'{share:.1%}'})" if rows else "0"
