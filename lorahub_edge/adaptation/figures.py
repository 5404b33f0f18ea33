"""Figures of the page: the curve of losses as SVG, the coefficients as bars that reflow on a narrow screen."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from lorahub_edge.errors import printable

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 760, 260, 56, 24, 34, 14
_LONGEST_BAR = 75  # % of its half; the rest is for its number


def text(value: object) -> str:
    """A stranger's text, harmless in HTML."""
    return html.escape(printable(str(value)))


def curve(losses: Sequence[tuple[float, float]]) -> str:
    """(loss, objective) of each evaluation: a point each, and the loss of the best so far as a line."""
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
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(index: float) -> float:
        return _LEFT + plot_width * index / max(1, len(losses) - 1)

    def y(loss: float) -> float:
        return _TOP + plot_height * (1 - (min(loss, high) - low) / (high - low))

    marks = "".join(f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="2.6" fill="var(--point)"/>' for i, v in points)
    steps = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in best)
    ticks = [low + (high - low) * k / 4 for k in range(5)]
    grid = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.2f}</text>'
        for t in ticks
    )
    axis = "".join(
        f'<text x="{x(i):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{i + 1}</text>'
        for i in sorted({0, len(losses) // 4, len(losses) // 2, 3 * len(losses) // 4, len(losses) - 1})
    )
    line = f'<polyline points="{steps}" fill="none" stroke="var(--best)" stroke-width="2"/>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{grid}{marks}{line}{axis}</svg>'


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


def in_use(coefficients: Mapping[str, float]) -> list[tuple[str, float]]:
    """Names and coefficients that are not zero, the largest first."""
    return sorted(((n, c) for n, c in coefficients.items() if c), key=lambda pair: -abs(pair[1]))


def bars(coefficients: Mapping[str, float]) -> str:
    """One bar for each coefficient that is not zero, the largest first; the others by name, folded."""
    ranked = in_use(coefficients)
    zero = [name for name, value in coefficients.items() if not value]
    largest = max((abs(value) for _, value in ranked), default=1.0)
    rows = "".join(_bar(name, value, _LONGEST_BAR * abs(value) / largest) for name, value in ranked)
    folded = ""
    if zero:
        names = ", ".join(map(text, zero))
        folded = f"<details><summary>{len(zero)} of {len(coefficients)} at zero</summary>{names}</details>"
    return f'<div class="bars">{rows}</div>{folded}'


def _bar(name: str, value: float, width: float) -> str:
    bar, number = f'<i style="width:{width:.1f}%"></i>', f"<b>{value:+.2f}</b>"
    halves = ("", bar + number) if value > 0 else (number + bar, "")
    down, up = (f'<span class="{side}">{half}</span>' for side, half in zip(("down", "up"), halves, strict=True))
    return f'<span class="name">{text(name)}</span>{down}{up}'
