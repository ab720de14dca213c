"""The report of a run: one HTML file that needs nothing else, to read on a screen, a phone or paper."""

import base64
import math

from jinja2 import Environment, StrictUndefined

from rolellm_utils import paper
from rolellm_utils.files import write_text

METRICS = ("CUS", "RAW", "SPE", "avg")

# The policy lets a browser load nothing and run nothing, should an answer ever get past the escaping.
TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 52rem; padding: 1rem; color: #222; background: #fff; line-height: 1.5;
  font-family: "Helvetica Neue", Helvetica, Arial, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
  overflow-wrap: break-word; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-bottom: .2rem; border-bottom: 1px solid #ccc; }
.label { border: 2px solid #D55E00; border-left-width: .6rem; background: #fff7f0; padding: .7rem 1rem;
  font-weight: 600; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, th.left, td.left { text-align: left; }
thead th, tr.group th { border-bottom: 2px solid #888; }
tr.group th { padding-top: .9rem; font-weight: normal; font-style: italic; white-space: normal; }
.scores span, thead th { white-space: nowrap; }
.scores tbody th { font-weight: normal; min-width: 6rem; }
.scores small { display: block; color: #555; }
tr.published { color: #555; font-style: italic; }
.text td, .text th { text-align: left; } .text td { overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .3rem; }
img { max-width: 100%; height: auto; }
.card { border: 1px solid #ccc; border-radius: .4rem; margin: .8rem 0; padding: .6rem 1rem; break-inside: avoid; }
.card h3 { font-size: 1rem; margin: 0 0 .4rem; }
.card dl { margin: 0; }
.card dt { font-size: .78rem; color: #555; margin-top: .4rem; }
.card dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.card .reference { border-left: .25rem solid #009E73; padding-left: .6rem; }
.card .answer { border-left: .25rem solid #0072B2; padding-left: .6rem; }
.small { font-size: .85rem; color: #555; }
@media print { html { font-size: 10pt; } body { max-width: none; padding: 0; } .scroll { overflow: visible; }
  h2 { break-after: avoid; } tr { break-inside: avoid; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="label">{{ label }}</p>
{% if verdicts %}
<h2>Verdict</h2>
<ul>
{% for verdict in verdicts %}
<li>{{ verdict }}</li>
{% endfor %}
</ul>
{% endif %}
<h2>Scores</h2>
{% for table in tables %}
<div class="scroll"><table class="scores">
<caption>{{ table.caption }}</caption>
<thead><tr><th scope="col">model</th>
{%- for metric in metrics %}<th scope="col">{{ metric }}</th>{% endfor -%}
<th scope="col">wrong role</th><th scope="col">mean length</th></tr></thead>
<tbody>
{% for row in table.rows %}
<tr><th scope="row">{{ row.model }}</th>
{%- for score in row.scores -%}
<td>{{ score.mean }}{% if score.interval %} <span>{{ score.interval }}</span>{% endif %}
<small>n = {{ score.n }}</small></td>
{%- endfor -%}
<td>{{ row.wrong_role }}</td><td>{{ row.length }}</td></tr>
{% endfor %}
{% if table.published %}
<tr class="group"><th colspan="7" scope="rowgroup">As published: other roles, other models</th></tr>
{% for model, row in table.published.items() %}
<tr class="published"><th scope="row">{{ model }} (paper)</th>
{%- for metric in metrics %}<td>{{ "%.4f" % row[metric] }}</td>{% endfor -%}
<td></td><td></td></tr>
{% endfor %}
{% endif %}
</tbody>
</table></div>
{% if table.published %}
<p class="small">{{ published_note }}</p>
{% endif %}
{% else %}
<p>No scores.</p>
{% endfor %}
<p class="small">Mean [low, high]: the mean with its bootstrap interval; n: rows scored. CUS: speaking style; RAW:
accuracy; SPE: role knowledge; avg: their mean. Wrong role: the same answers scored against another role's references,
which shows how much of a CUS is not about the role. n/a: not available.</p>
{% if rescored %}
<h2>The RoleGPT baseline, scored as the paper scored it</h2>
<div class="scroll"><table>
<caption>ROUGE-L recall, protocol paper, over all test rows that the baseline answers</caption>
<thead><tr><th scope="col">metric</th><th scope="col">rows</th><th scope="col">best F</th><th scope="col">maximum</th>
<th scope="col">mean</th><th scope="col">printed</th><th scope="col">mean length</th>
<th scope="col" class="left">what is left</th></tr></thead>
<tbody>
{% for row in rescored %}
<tr><td>{{ row.metric }}</td><td>{{ row.rows }} of {{ row.of }}</td>
{%- for key in ("best_f", "max", "mean", "published") -%}
<td>{{ "n/a" if row[key] is none else "%.4f" % row[key] }}</td>
{%- endfor -%}
<td>{{ "n/a" if row.length is none else "%.0f" % row.length }}</td>
<td class="left">{{ row.why }}</td></tr>
{% endfor %}
</tbody>
</table></div>
{% endif %}
{% if figures %}
<h2>Figures</h2>
{% for caption, data in figures.items() %}
<figure><figcaption>{{ caption }}</figcaption>
<img src="data:image/png;base64,{{ data }}" alt="{{ caption }}"></figure>
{% endfor %}
{% endif %}
{% if counts %}
<h2>RoleBench of this run</h2>
<div class="scroll"><table>
<thead><tr>
{%- for name, value in counts[0].items() -%}
<th scope="col"{% if value is string %} class="left"{% endif %}>{{ name }}</th>
{%- endfor -%}
</tr></thead>
<tbody>
{% for row in counts %}
<tr>
{%- for name in counts[0] -%}
<td{% if row[name] is string %} class="left"{% endif %}>{{ row[name] }}</td>
{%- endfor -%}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endif %}
{% if samples %}
<h2>Samples</h2>
<p class="small">Not cherry-picked: drawn by seed{% if "seed" in settings %} {{ settings["seed"] }}{% endif %}.</p>
{% for sample in samples %}
<article class="card" lang="{{ language }}">
<h3>{{ sample.role }}: {{ sample.question }}</h3>
<dl>
<dt lang="en">reference</dt><dd class="reference" dir="auto">{{ sample.reference }}</dd>
{% for model, answer in sample.answers.items() %}
<dt lang="en">{{ model }}</dt><dd class="answer" dir="auto">{{ answer }}</dd>
{% endfor %}
</dl>
</article>
{% endfor %}
{% endif %}
{% if notes %}
<h2>Notes</h2>
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
<h2>Settings</h2>
<div class="scroll"><table class="text">
<thead><tr><th scope="col">setting</th><th scope="col">value</th></tr></thead>
<tbody>
{% for name, value in settings.items() %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</tbody>
</table></div>
</body>
</html>
"""

# Answers are text from a model: everything that goes in is escaped.
JINJA = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)


def write(path, title, label, settings, scores, counts, samples, figures, verdicts, notes):
    """Write the report of a run as one self-contained HTML file, the same input the same bytes; the path written.

    label: what the run can and cannot show. scores: {"cells": as `scoring.table` gives them, "published": {model:
    {metric: value}} or None, "rescored": as `scoring.rescored` gives it}. counts: a dict a row. samples: as
    `scoring.draw_samples` gives them. figures: {caption: PNG bytes}. verdicts, notes: sentences.
    """
    page = JINJA.from_string(TEMPLATE).render(
        title=title,
        label=label,
        settings=settings,
        metrics=METRICS,
        tables=tables(scores["cells"], scores["published"]),
        published_note=paper.note(),
        rescored=scores.get("rescored", ()),
        counts=counts,
        samples=samples,
        figures={caption: base64.b64encode(png).decode("ascii") for caption, png in figures.items()},
        language="zh-Hans" if settings.get("language") == "zh" else "en",
        verdicts=verdicts,
        notes=notes,
    )
    return write_text(path, page)


def tables(cells, published):
    """The score tables, one a protocol: caption, a row a model, the published rows for protocol paper."""
    found = {}
    for cell in cells:
        models = found.setdefault(cell["protocol"], {})
        models.setdefault(cell["model"], {})[cell["metric"]] = cell
    return [
        {
            "caption": f"ROUGE-L {'recall' if protocol == 'paper' else 'F1'}, protocol {protocol}",
            "rows": [_row(model, by_metric) for model, by_metric in models.items()],
            "published": published if protocol == "paper" else None,
        }
        for protocol, models in found.items()
    ]


def _row(model, by_metric):
    cells = {metric: by_metric[metric] for metric in METRICS if metric in by_metric}
    lengths = [cell["length"] for metric, cell in cells.items() if metric != "avg" and cell["length"] is not None]
    wrong = [cell["wrong_role"] for cell in cells.values() if cell["wrong_role"] is not None]
    return {
        "model": model,
        "scores": [_score(cells.get(metric) or (_average(cells) if metric == "avg" else None)) for metric in METRICS],
        "wrong_role": f"{wrong[0]:.3f}" if wrong else "n/a",
        "length": f"{sum(lengths) / len(lengths):.1f}" if lengths else "n/a",
    }


def _average(cells):
    """The avg cell of a row that has none: the mean of the three, without interval."""
    means = [cells[metric]["mean"] if metric in cells else None for metric in METRICS[:3]]
    mean = None if None in means else sum(means) / 3
    return {"mean": mean, "low": None, "high": None, "n": sum(cell["n"] for cell in cells.values())}


def _score(cell):
    if cell is None or cell["mean"] is None:
        return {"mean": "n/a", "interval": "", "n": cell["n"] if cell else 0}
    known = cell["low"] is not None and math.isfinite(cell["low"])
    interval = f"[{cell['low']:.3f}, {cell['high']:.3f}]" if known else ""
    return {"mean": f"{cell['mean']:.3f}", "interval": interval, "n": cell["n"]}
