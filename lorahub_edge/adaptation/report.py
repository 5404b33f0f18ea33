"""report.html: one self-contained page with the controls' table, the loss curve and the coefficients."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorahub_edge.errors import printable
from lorahub_edge.tasks.score import SCORES, STRICT_NOTE, loss_text

_WIDTH, _CURVE_HEIGHT, _LEFT, _BOTTOM, _TOP = 760, 260, 56, 34, 14
_BAR_HEIGHT, _BAR_GAP, _LABEL_WIDTH, _VALUE_WIDTH = 16, 6, 240, 60

_SIGNS = {
    "factors": "All signs flipped at once give the same model.",
    "deltas": "A negative one takes away what its module adds.",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #6b7580; --line: #d8dde2; --paper: #fff; --best: #0b6e4f;
  --point: #8aa4b8; --up: #2a6f97; --down: #b5552b; --mark: #eef6f2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #98a3ad; --line: #39424a; --paper: #14181c;
  --best: #4cc296; --point: #5d7689; --up: #6fb1d8; --down: #e08a5f; --mark: #1b2a24; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 820px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; line-height: 1.3; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
p, figcaption { color: var(--soft); } p.verdict { color: var(--ink); }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; } td:first-child { white-space: nowrap; }
th, td { padding: .35rem .6rem;
  border-bottom: 1px solid var(--line); }
th { text-align: left; font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.adapted { background: var(--mark); font-weight: 600; } td.d { color: var(--soft); font-weight: 400; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); } svg .name { fill: var(--ink); }
"""


def report_html(report: Mapping[str, Any], losses: Sequence[tuple[float, float]]) -> str:
    """The page.

    Args:
        report: as `Run.report` gives it.
        losses: (loss, objective) of each evaluation, in order.
    """
    search = report["search"]
    facts = (
        f"{report['n_examples']} examples, {choice_text(report)}, "
        f"{search['resolved_optimizer']}, {search['evaluations']} evaluations, seed {search['seed']}, "
        f"{report['timings']['total_s']:.1f} s"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(report["task"])} - lorahub-edge</title><style>{STYLE}</style></head><body>
<h1>{_text(report["headline"])}</h1>
<p>{_text(facts)}</p>
<h2>Beside the controls</h2>
{_table(report)}
<h2>Loss during the search</h2>
<figure>{_curve(losses)}<figcaption>Each point is one candidate's loss on the examples (cross-entropy per
answer token); the line is the loss of the best candidate so far, best by the objective
{_text(search["formula"])}.</figcaption></figure>
<h2>Coefficients</h2>
<figure>{_bars(report["coefficients"])}<figcaption>One per module, in the order given, within a box of
&plusmn;{search["bound"]:g}. {_SIGNS[search["composition"]]}</figcaption></figure>
</body></html>
"""


def shown_scores(report: Mapping[str, Any]) -> dict[str, str]:
    """Score -> heading: none without a test, `strict` only where it differs from exact match in some row."""
    if not report["n_test"]:
        return {}
    is_strict_news = any(row["strict_match"] != row["exact_match"] for row in report["table"])
    return {name: heading for name, heading in SCORES.items() if is_strict_news or name != "strict_match"}


def numbers_of(row: Mapping[str, Any], scores: Mapping[str, str]) -> list[str]:
    """Loss and scores of a row, for people; "-" for what it has not."""
    loss = loss_text(row["loss"]) if row["coefficients"] else "-"
    return [loss, *("-" if row[name] is None else f"{row[name]:.1f}" for name in scores)]


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What stands under the table: the verdict and what to know about strict matches, where there is either."""
    return [*filter(None, [report["verdict"]]), *([STRICT_NOTE] if "strict_match" in shown_scores(report) else [])]


def legend(report: Mapping[str, Any]) -> str:
    """What the numbers in the table are."""
    text = f"loss: cross-entropy per answer token on the {report['n_examples']} examples"
    if not report["n_test"]:
        return text
    return (
        f"{text}; the other columns: % of {report['n_test']} test rows; most frequent answer: the share of the answer "
        "given most often; valid form: answers that look like one to this task, right or wrong"
    )


def choice_text(report: Mapping[str, Any]) -> str:
    """Which modules the search had, of how many and how chosen."""
    n, choice = len(report["coefficients"]), report["chosen_modules"]
    if choice is None:
        return f"{n} modules"
    cost = f" at {choice['evaluations']} evaluations" if choice["evaluations"] else ""
    return f"{n} of {choice['of']} modules, chosen by {choice['by']}{cost}"


def _text(value: object) -> str:
    return html.escape(printable(str(value)))


def _table(report: Mapping[str, Any]) -> str:
    scores = shown_scores(report)
    rows = []
    for row in report["table"]:
        css = ' class="adapted"' if row["name"] == "adapted" else ""
        cells = "".join(f'<td class="n">{text}</td>' for text in numbers_of(row, scores))
        rows.append(f'<tr{css}><td>{_text(row["name"])}</td>{cells}<td class="d">{_text(row["detail"])}</td></tr>')
    head = "".join(f'<th class="n">{heading}</th>' for heading in ("loss", *scores.values()))
    notes = "".join(f'<p class="verdict">{_text(sentence)}</p>' for sentence in sentences(report))
    return f"""<table><tr><th></th>{head}<th></th></tr>{"".join(rows)}</table>
{notes}<p>{_text(legend(report))}</p>"""


def _curve(losses: Sequence[tuple[float, float]]) -> str:
    points = [(i, loss) for i, (loss, _) in enumerate(losses) if math.isfinite(loss)]
    if not points:
        return "<p>No candidate has a finite loss.</p>"
    best = _best_so_far(losses)
    low = min(loss for _, loss in points)
    high = max(loss for _, loss in points)
    # a few wild candidates must not flatten the rest
    high = (
        min(high, low + 4 * (sorted(loss for _, loss in points)[len(points) // 2] - low) + 1e-9)
        if high > low
        else low + 1
    )
    plot_width, plot_height = _WIDTH - _LEFT - 10, _CURVE_HEIGHT - _TOP - _BOTTOM

    def x(index: float) -> float:
        return _LEFT + plot_width * index / max(1, len(losses) - 1)

    def y(loss: float) -> float:
        return _TOP + plot_height * (1 - (min(loss, high) - low) / (high - low))

    marks = "".join(f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="2.6" fill="var(--point)"/>' for i, v in points)
    steps = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in best)
    ticks = [low + (high - low) * k / 4 for k in range(5)]
    grid = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.2f}</text>'
        for t in ticks
    )
    axis = "".join(
        f'<text x="{x(i):.1f}" y="{_CURVE_HEIGHT - 12}" text-anchor="middle">{i + 1}</text>'
        for i in sorted({0, len(losses) // 4, len(losses) // 2, 3 * len(losses) // 4, len(losses) - 1})
    )
    line = f'<polyline points="{steps}" fill="none" stroke="var(--best)" stroke-width="2"/>'
    return f'<svg viewBox="0 0 {_WIDTH} {_CURVE_HEIGHT}" role="img">{grid}{marks}{line}{axis}</svg>'


def _best_so_far(losses: Sequence[tuple[float, float]]) -> list[tuple[int, float]]:
    """(evaluation, loss of the candidate with the lowest objective until then)."""
    best_loss, best_objective = math.inf, math.inf
    steps = []
    for index, (loss, objective) in enumerate(losses):
        if objective < best_objective:
            best_loss, best_objective = loss, objective
        if math.isfinite(best_loss):
            steps.append((index, best_loss))
    return steps


def _bars(coefficients: Mapping[str, float]) -> str:
    largest = max((abs(c) for c in coefficients.values()), default=0.0) or 1.0
    half = (_WIDTH - _LABEL_WIDTH - 2 * _VALUE_WIDTH) / 2
    middle = _LABEL_WIDTH + _VALUE_WIDTH + half
    bars = []
    for row, (name, value) in enumerate(coefficients.items()):
        top = row * (_BAR_HEIGHT + _BAR_GAP)
        length = half * abs(value) / largest
        left = middle if value >= 0 else middle - length
        end, anchor = (middle + length + 6, "start") if value >= 0 else (middle - length - 6, "end")
        label = name if len(name) <= 34 else f"...{name[-31:]}"
        bars.append(
            f'<text class="name" x="{_LABEL_WIDTH - 8}" y="{top + 12}" text-anchor="end">{_text(label)}</text>'
            f'<rect x="{left:.1f}" y="{top}" width="{length:.1f}" height="{_BAR_HEIGHT}" '
            f'fill="var(--{"up" if value >= 0 else "down"})"/>'
            f'<text x="{end:.1f}" y="{top + 12}" text-anchor="{anchor}">{value:+.2f}</text>'
        )
    height = len(coefficients) * (_BAR_HEIGHT + _BAR_GAP)
    zero = f'<line x1="{middle}" x2="{middle}" y1="0" y2="{height}" stroke="var(--soft)"/>'
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(bars)}{zero}</svg>'
