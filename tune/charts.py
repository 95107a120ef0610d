"""A sweep as pictures: parallel coordinates over its fields and a score against each; SVG text, as all reports have."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from distuda.report.figures import BASELINE, RUN, number
from tune.space import Range


@dataclass(frozen=True)
class Line:
    """One configuration: hover text, what it has on each axis, its share of the way from worst to best, 0 to 1."""

    text: str
    values: Mapping[str, Any]
    share: float | None


@dataclass(frozen=True)
class Axis:
    """A field or score: where each value lies on it, 0 to 1, and what is written at it."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    options: tuple[str, ...] = ()

    def place(self, value: Any) -> float | None:
        """Share of the way along, None where there is no such value."""
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
        if self.options:
            return (self.options.index(json.dumps(value)) + 0.5) / len(self.options)
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, float(value)))
        return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5

    def marks(self) -> list[tuple[float, str]]:
        """Places with their labels: both ends, or every option."""
        if self.options:
            return [((i + 0.5) / len(self.options), word.strip('"')) for i, word in enumerate(self.options)]
        return [(0.0, number(self.low)), (1.0, number(self.high))]


def axis_of(name: str, values: Sequence[Any], span: Range | None) -> Axis:
    """The axis of a field: the space's range, or the options that occur where some are not of it."""
    if span is not None and all(_is_number(value) and (value > 0 or not span.log) for value in values):
        return Axis(name, min([span.low, *values]), max([span.high, *values]), span.log)
    options = {json.dumps(value): value for value in values if value is not None}
    return Axis(name, options=tuple(sorted(options, key=lambda word: _by_size(options[word]))))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _by_size(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then all else by its letters."""
    counts = isinstance(value, int | float)
    return (not counts, float(value) if counts else 0.0, json.dumps(value))


def score_axis(name: str, values: Sequence[float]) -> Axis:
    """The axis of a score, from its lowest to its highest value."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    return Axis(name, min(finite), max(finite))


def shade(share: float | None) -> str:
    """Grey for the worst, blue for the best."""
    pale, deep = (205, 210, 216), (11, 99, 165)
    if share is None:
        return "#e3e6ea"
    return "rgb({}, {}, {})".format(*(round(a + share * (b - a)) for a, b in zip(pale, deep, strict=True)))


def parallel(axes: Sequence[Axis], lines: Sequence[Line]) -> Markup:
    """One vertical axis a field or score, a line a configuration; the best are drawn last.

    A line is dotted across the axes of fields that it does not have.
    """
    gap, top, height = max(150, 1000 // len(axes)), 34, 250
    width = gap * (len(axes) - 1) + 190
    parts = []
    for line in sorted(lines, key=lambda one: -1 if one.share is None else one.share):
        placed = [(i, axis.place(line.values.get(axis.name))) for i, axis in enumerate(axes)]
        points = [(i, f"{gap * i + 20} {top + (1 - at) * height:.1f}") for i, at in placed if at is not None]
        best = line.share == 1
        style = Markup('fill="none" stroke="{}" stroke-width="{}" stroke-opacity="{}"').format(
            shade(line.share), 3 if best else 1.6, 1 if best else 0.75
        )
        for dashes, path in zip(("none", "2 6"), _segments(points), strict=True):
            if path:
                drawn = Markup('<path d="{}" {} stroke-dasharray="{}"><title>{}</title></path>')
                parts.append(drawn.format(path, style, dashes, line.text))
    for i, axis in enumerate(axes):
        x = gap * i + 20
        short = axis.name if len(axis.name) <= 24 else f"\N{HORIZONTAL ELLIPSIS}{axis.name[-23:]}"
        parts.append(Markup(
            '<line x1="{x}" x2="{x}" y1="{}" y2="{}" class="axis"/>'
            '<text x="{t}" y="{}" class="name">{}<title>{}</title></text>'
        ).format(top, top + height, top - 16 - 12 * (i % 2), short, axis.name, x=x, t=x - 18))  # fmt: skip
        for at, words in axis.marks():
            parts.append(
                Markup('<text x="{}" y="{:.1f}">{}</text>').format(x + 5, top + (1 - at) * height + 4, words[:20])
            )
    head = Markup('<svg viewBox="0 -10 {} {}" role="img" aria-label="{}" class="chart">').format(
        width, top + height + 20, f"parallel coordinates of {len(lines)} configurations"
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _segments(points: Sequence[tuple[int, str]]) -> tuple[str, str]:
    """Paths between axes that follow each other, and across axes that are left out."""
    solid: list[str] = []
    dashed: list[str] = []
    for (i, begin), (j, end) in itertools.pairwise(points):
        (solid if j == i + 1 else dashed).append(f"M{begin}L{end}")
    return "".join(solid), "".join(dashed)


def scatter(x: Axis, y: Axis, lines: Sequence[Line]) -> Markup:
    """A score against a field, a dot a configuration."""
    left, top, width, height = 46, 10, 230, 130
    parts = [Markup(
        '<line x1="{l}" x2="{}" y1="{b}" y2="{b}" class="axis"/><line x1="{l}" x2="{l}" y1="{}" y2="{b}" class="axis"/>'
    ).format(left + width, top, l=left, b=top + height)]  # fmt: skip
    for at, words in y.marks():
        parts.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            left - 6, top + (1 - at) * height + 4, words))  # fmt: skip
    marks = x.marks()
    low = x.options and len(marks) > 3  # every other label a line below, where they would run into each other
    for i, (at, words) in enumerate(marks):
        anchor = "middle" if x.options else ("start", "end")[round(at)]
        below = 16 + 12 * (i % 2 if low else 0)
        parts.append(Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
            left + at * width, top + height + below, anchor, words[:18]))  # fmt: skip
    for line in lines:
        across, up = x.place(line.values.get(x.name)), y.place(line.values.get(y.name))
        if across is not None and up is not None:
            colour = BASELINE if line.share is None else RUN
            parts.append(Markup(
                '<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="{}" fill-opacity="0.85"><title>{}</title></circle>'
            ).format(left + across * width, top + (1 - up) * height, colour, line.text))  # fmt: skip
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart">').format(
        left + width + 14, top + height + (34 if low else 22), f"{y.name} against {x.name}"
    )
    return head + Markup("").join(parts) + Markup("</svg>")
