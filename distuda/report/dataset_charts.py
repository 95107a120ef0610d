"""Charts of a data set as SVG text: shares on a logarithmic axis and distributions of one number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from distuda.report.figures import RUN, SECOND, number, ticks

COLOURS = (RUN, SECOND)
"""Of the first and the second data set."""

_BINS = 24
_EDGE = 26  # room left and right, so that the outer labels of the axis are whole


@dataclass(frozen=True)
class Mark:
    """One share in a row of the logarithmic chart: value in [0, 1], hover text, look."""

    value: float
    text: str
    colour: str
    dot: bool = False


def percent(share: float) -> str:
    """A share with two significant digits, down to thousandths of a per cent and beyond."""
    value = 100 * share
    if value == 0:
        return "0 %"
    if value >= 10:
        return f"{value:.1f} %"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f} %"


def lowest(shares: Sequence[float]) -> float:
    """Where the logarithmic axis starts: the power of ten at or below the smallest share, 0.1 to 1e-6."""
    known = [share for share in shares if share > 0]
    return float(10.0 ** min(-1, max(-6, math.floor(math.log10(min(known))) if known else -1)))


def log_axis(low: float, size: tuple[int, int] = (440, 18)) -> Markup:
    """Labels of the axis from ``low`` to 100 %, one a decade."""
    width, height = size
    texts = [
        Markup('<text x="{:.1f}" y="13" text-anchor="middle">{:g} %</text>').format(
            _across(tick, low, width), 100 * tick
        )
        for tick in _decades(low)
    ]
    return Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" class="chart axis-row" aria-hidden="true">').format(
        width, height, width, height
    ) + Markup("").join([*texts, Markup("</svg>")])


def log_marks(marks: Sequence[Mark], low: float, size: tuple[int, int] = (440, 20)) -> Markup:
    """One row: bars from the left edge below each other, dots over them; nothing where a share is 0."""
    width, height = size
    lines = [
        Markup('<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{}" class="grid"/>').format(
            height, x=_across(tick, low, width)
        )
        for tick in _decades(low)
    ]
    bars = [mark for mark in marks if not mark.dot]
    thick = (height - 6) / max(1, len(bars))
    parts = [_bar(mark, 3 + i * thick, thick, low, width) for i, mark in enumerate(bars) if mark.value > 0]
    parts += [_dot(mark, height / 2, low, width) for mark in marks if mark.dot and mark.value > 0]
    text = "; ".join(mark.text for mark in marks)
    head = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}" class="chart">')
    return head.format(width, height, width, height, text) + Markup("").join([*lines, *parts, Markup("</svg>")])


def distribution(
    sets: Sequence[tuple[str, NDArray[np.float64], str]], label: str, size: tuple[int, int] = (280, 132)
) -> Markup:
    """Histograms over common bins, each as a share of its own images, with a dashed line at each median.

    Args:
        sets: name, values (N,) and colour of each.
        label: what is shown, read out in place of the picture.
        size: of the canvas; it scales with the page.
    """
    width, height = size
    known = [(name, values, colour) for name, values, colour in sets if len(values)]
    if not known:
        return Markup('<p class="quiet">no values</p>')
    together = np.concatenate([values for _, values, _ in known])
    marks = ticks(float(together.min()), float(together.max()), 4)
    edges = np.linspace(marks[0], marks[-1], _BINS + 1)
    shares = [np.histogram(values, edges)[0] / len(values) for _, values, _ in known]
    peak = max(share.max() for share in shares)
    base, left, right = height - 24.0, 6.0, width - 6.0
    parts = [_x_axis(marks, base, left, right)]
    for (name, values, colour), share in zip(known, shares, strict=True):
        parts.append(_steps(share / peak, colour, base, left, right))
        parts.append(_median(name, values, colour, (marks[0], marks[-1]), (base, left, right)))
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart">').format(width, height, label)
    return head + Markup("").join([*parts, Markup("</svg>")])


def _decades(low: float) -> list[float]:
    return [10.0**power for power in range(round(math.log10(low)), 1)]


def _across(share: float, low: float, width: int) -> float:
    """Canvas position of a share; what is below the axis stands at its start."""
    portion = max(0.0, 1 - math.log10(share) / math.log10(low))
    return _EDGE + portion * (width - 2 * _EDGE)


def _bar(mark: Mark, top: float, thick: float, low: float, width: int) -> Markup:
    length = max(2.0, _across(mark.value, low, width) - _EDGE)
    return Markup(
        '<rect x="{}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2" fill="{}"><title>{}</title></rect>'
    ).format(_EDGE, top, length, thick - 0.5, mark.colour, mark.text)


def _dot(mark: Mark, middle: float, low: float, width: int) -> Markup:
    return Markup(
        '<circle cx="{:.1f}" cy="{}" r="4.5" fill="{}" stroke="#fff" stroke-width="1.5"><title>{}</title></circle>'
    ).format(_across(mark.value, low, width), middle, mark.colour, mark.text)


def _x_axis(marks: Sequence[float], base: float, left: float, right: float) -> Markup:
    parts = [Markup('<line x1="{}" x2="{}" y1="{y}" y2="{y}" class="axis"/>').format(left, right, y=base)]
    for i, mark in enumerate(marks):
        x = left + i / (len(marks) - 1) * (right - left)
        anchor = "start" if i == 0 else "end" if i == len(marks) - 1 else "middle"
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(x, base + 17, anchor, number(mark))
        )
    return Markup("").join(parts)


def _steps(shares: NDArray[np.float64], colour: str, base: float, left: float, right: float) -> Markup:
    """The outline of a histogram whose highest bar would be 1."""
    xs = np.repeat(np.linspace(left, right, len(shares) + 1), 2)[1:-1]
    ys = base - np.repeat(shares, 2) * (base - 8)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return Markup(
        '<polygon points="{},{} {} {},{}" fill="{c}" fill-opacity=".25" stroke="{c}" stroke-width="1.5"/>'
    ).format(left, base, points, right, base, c=colour)


def _median(
    name: str, values: NDArray[np.float64], colour: str, span: tuple[float, float], frame: tuple[float, float, float]
) -> Markup:
    middle, (base, left, right) = float(np.median(values)), frame
    x = left + (middle - span[0]) / (span[1] - span[0]) * (right - left)
    text = f"{name}: median {number(middle)} of {len(values)} images"
    return Markup(
        '<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{}" stroke="{}" stroke-width="2" stroke-dasharray="3 3">'
        "<title>{}</title></line>"
    ).format(base, colour, text, x=x)
