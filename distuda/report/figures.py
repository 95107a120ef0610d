"""Charts as SVG text: lines over steps and bars of differences. No script, no network; sharp on screen and paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]

RUN, BASELINE, SECOND = "#0b63a5", "#7d7468", "#a3480c"
GAIN, LOSS = "#13795b", "#b8430b"
"""Blue-green against orange: told apart with any kind of colour vision, and every use also carries a sign or a name."""


@dataclass(frozen=True)
class Series:
    """One line: name for the legend, points by rising x, look."""

    name: str
    points: Sequence[Point]
    colour: str
    dashed: bool = False
    faint: bool = False
    markers: bool = False


@dataclass(frozen=True)
class _Frame:
    """The plotting area: data ranges and where they lie on the canvas, pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    top: float
    right: float
    bottom: float

    def place(self, point: Point) -> Point:
        """Canvas position of a data point."""
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str = "",
    legend: bool = True,
    from_zero: bool = False,
    size: tuple[int, int] = (560, 270),
) -> Markup:
    """Lines with axes, grid, legend and hover texts.

    Args:
        series: lines; points that are not finite leave a gap.
        label: what the chart shows, read out in place of the picture.
        x_label: title of the x axis with its unit.
        y_label: title of the y axis with its unit.
        legend: whether names are printed above the lines.
        from_zero: whether the y axis includes 0.
        size: width and height of the canvas; it scales with the page.

    Returns:
        one ``<svg>``; every given text is escaped.
    """
    width, height = size
    points = [p for line in series for p in line.points if math.isfinite(p[1])]
    if not points:
        return Markup('<p class="quiet">no values</p>')
    rows = _legend_rows(series if legend else [], width - 60)
    x_ticks = ticks(min(p[0] for p in points), max(p[0] for p in points), max(2, width // 90), whole=True)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    y_ticks = ticks(min(low, 0.0) if from_zero else low, max(high, 0.0) if from_zero else high, max(2, height // 50))
    top = (8 if not y_label else 24) + 18 * len(rows)
    frame = _Frame(_span(x_ticks, points, 0), _span(y_ticks, points, 1), 48, top, width - 14, height - 40)
    parts = [
        _axes(frame, x_ticks, y_ticks, x_label, y_label),
        *(_line(frame, line, x_label) for line in series),
        _legend(rows),
    ]
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart">').format(width, height, label)
    return head + Markup("").join(parts) + Markup("</svg>")


def difference_bar(value: float | None, limit: float, text: str, size: tuple[int, int] = (480, 18)) -> Markup:
    """A bar from the middle, right for gains and left for losses; ``limit`` is the value that reaches the edge."""
    width, height = size
    middle = width / 2
    length = 0.0 if value is None else value / limit * (middle - 2)
    return Markup(
        '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{text}"><title>{text}</title>'
        '<line x1="{m}" x2="{m}" y1="0" y2="{h}" stroke="#9aa3ae"/>'
        '<rect x="{x:.1f}" y="3" width="{l:.1f}" height="{b}" rx="2" fill="{c}"/></svg>'
    ).format(
        w=width, h=height, m=middle, text=text, b=height - 6,
        x=min(middle, middle + length), l=abs(length), c=GAIN if length >= 0 else LOSS,
    )  # fmt: skip


def share_bar(value: float | None, text: str, colour: str = RUN, size: tuple[int, int] = (480, 18)) -> Markup:
    """A bar from the left; ``value`` in [0, 1], None leaves it empty."""
    width, height = size
    return Markup(
        '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{text}"><title>{text}</title>'
        '<rect x="0" y="3" width="{w}" height="{b}" rx="2" fill="#eceff3"/>'
        '<rect x="0" y="3" width="{l:.1f}" height="{b}" rx="2" fill="{c}"/></svg>'
    ).format(w=width, h=height, b=height - 6, text=text, l=(value or 0) * width, c=colour)


def smooth(points: Sequence[Point]) -> list[Point]:
    """Mean over a centred window of a fifteenth of the points; values that are not finite do not count."""
    finite = [p for p in points if math.isfinite(p[1])]
    half = max(1, len(finite) // 30)
    means: list[Point] = []
    for i, (x, _) in enumerate(finite):
        window = [y for _, y in finite[max(0, i - half) : i + half + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def thin(points: Sequence[Point], most: int = 400) -> list[Point]:
    """At most about ``most`` points with every peak kept: the lowest and the highest of each stretch."""
    if len(points) <= most:
        return list(points)
    length = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About ``count`` round values (1, 2 or 5 times a power of ten) that span low..high."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        margin = max(abs(high) * 0.1, 1.0 if whole else 1e-3)
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A short decimal with a true minus: 3 significant digits, from ten thousand on in k."""
    if abs(value) >= 10_000:
        text = f"{value / 1000:g}k"
    elif value and abs(value) < 1e-3:
        text = f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    else:
        text = f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _span(marks: list[float], points: Sequence[Point], axis: int) -> tuple[float, float]:
    """The x axis ends with the data, the y axis with its outer ticks."""
    values = [p[axis] for p in points]
    if axis == 0 and max(values) > min(values):
        return min(values), max(values)
    return marks[0], marks[-1]


def _axes(frame: _Frame, x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str) -> Markup:
    parts = []
    for y in y_ticks:
        at = frame.place((frame.x[0], y))[1]
        parts.append(
            Markup(
                '<line x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                '<text x="{}" y="{t:.1f}" text-anchor="end">{}</text>'
            ).format(frame.left, frame.right, frame.left - 6, number(y), y=at, t=at + 4)
        )
    for x in (x for x in x_ticks if frame.x[0] <= x <= frame.x[1]):
        at = frame.place((x, frame.y[0]))[0]
        parts.append(
            Markup(
                '<line x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}" class="axis"/>'
                '<text x="{x:.1f}" y="{}" text-anchor="middle">{}</text>'
            ).format(frame.bottom, frame.bottom + 4, frame.bottom + 17, number(x), x=at)
        )
    parts.append(
        Markup('<line x1="{}" x2="{}" y1="{y}" y2="{y}" class="axis"/>').format(frame.left, frame.right, y=frame.bottom)
    )
    middle = (frame.left + frame.right) / 2
    parts.append(
        Markup('<text x="{}" y="{}" text-anchor="middle" class="name">{}</text>').format(
            middle, frame.bottom + 35, x_label
        )
    )
    if y_label:
        parts.append(Markup('<text x="4" y="{}" class="name">{}</text>').format(frame.top - 10, y_label))
    return Markup("").join(parts)


def _line(frame: _Frame, line: Series, x_label: str) -> Markup:
    style = Markup('stroke="{}" stroke-width="{}" stroke-opacity="{}"').format(
        line.colour, 1 if line.faint else 2, 0.35 if line.faint else 1
    )
    if line.dashed:
        style += Markup(' stroke-dasharray="6 4"')
    parts = [
        Markup('<polyline points="{}" fill="none" {}/>').format(
            " ".join("{:.1f},{:.1f}".format(*frame.place(p)) for p in stretch), style
        )
        for stretch in _stretches(line.points)
    ]
    return Markup("").join([*parts, *(_dot(frame, line, point, x_label) for point in _hovered(line))])


def _hovered(line: Series) -> list[Point]:
    """Points with a hover text: all that are drawn, else some forty along the line."""
    finite = [point for point in line.points if math.isfinite(point[1])]
    return [] if line.faint else finite if line.markers else finite[:: max(1, len(finite) // 40)]


def _dot(frame: _Frame, line: Series, point: Point, x_label: str) -> Markup:
    x, y = frame.place(point)
    size = Markup('r="3.5"') if line.markers else Markup('r="7" fill-opacity="0"')
    text = f"{line.name}, {x_label} {point[0]:g}: {number(point[1])}"
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" fill="{}" {}><title>{}</title></circle>').format(
        x, y, line.colour, size, text
    )


def _stretches(points: Sequence[Point]) -> list[list[Point]]:
    """Runs of finite points."""
    stretches: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            stretches[-1].append(point)
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def _legend_rows(series: Sequence[Series], width: float) -> list[list[tuple[float, Series]]]:
    """Legend entries with their x, wrapped into rows; text width is estimated, SVG cannot measure without script."""
    rows: list[list[tuple[float, Series]]] = []
    x = math.inf
    for line in series:
        needed = 44 + 6.6 * len(line.name)
        if x + needed > width:
            rows.append([])
            x = 48.0
        rows[-1].append((x, line))
        x += needed
    return rows


def _legend(rows: list[list[tuple[float, Series]]]) -> Markup:
    parts = []
    for i, row in enumerate(rows):
        for x, line in row:
            dash = Markup(' stroke-dasharray="6 4"') if line.dashed else ""
            parts.append(
                Markup(
                    '<line x1="{}" x2="{}" y1="{y}" y2="{y}" stroke="{}" stroke-width="2.5"{}/>'
                    '<text x="{}" y="{t}">{}</text>'
                ).format(x, x + 24, line.colour, dash, x + 30, line.name, y=10 + 18 * i, t=14 + 18 * i)
            )
    return Markup("").join(parts)
