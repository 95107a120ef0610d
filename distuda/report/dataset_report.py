"""The page of a data set, or of two side by side: one HTML file with charts and pictures. Needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text

from distuda import storage
from distuda.data import inspect as looks
from distuda.data.dataset import open_dataset
from distuda.data.gap import Gap, by_name, compare, ratio
from distuda.data.image_stats import STAT_WIDTH, STATISTICS
from distuda.data.inspect import Clip, Inspection
from distuda.data.labels import RGB
from distuda.data.survey import MAX_GROUPS, Picture
from distuda.report import dataset_tables as tables
from distuda.report.dataset_charts import COLOURS, Mark, distribution, log_axis, log_marks, lowest, percent
from distuda.report.figures import BASELINE, SECOND, share_bar
from distuda.report.pictures import animation, beside, classes_in, contact_sheet, jpeg, overlay, stack
from distuda.report.templates import template

_LARGE_SHIFT = 3.0  # standard deviations that fill the bar; beyond it two normal distributions hardly overlap
_SIZES_SHOWN = 8
_NAME = 24  # characters of a data set's name in a heading


@dataclass(frozen=True)
class Tile:
    """One sample on the page: key, its pictures as data URIs, words for those who cannot see them."""

    key: str
    sources: list[str]
    alt: str


@dataclass(frozen=True)
class Preview:
    """One clip on the page: what it is, the animation and its first frame as data URIs."""

    name: str
    words: str
    animated: str
    still: str
    width: int


@dataclass(frozen=True)
class Side:
    """One data set on the page; ``name`` is short, ``uri`` is what was asked for."""

    name: str
    uri: str
    colour: str
    seen: Inspection
    facts: dict[str, str]
    sizes: list[tuple[str, int, Markup]]
    tiles: list[Tile]
    previews: list[Preview]
    legend: list[tuple[str, str]]

    @property
    def paired(self) -> bool:
        """Whether samples are shown beside their overlays."""
        return any(len(tile.sources) > 1 for tile in self.tiles)


@dataclass(frozen=True)
class ClassLine:
    """One line of the class table: a cell a column, the ratio of two sets, the chart."""

    id: int | None
    name: str
    colour: str
    kind: str
    cells: list[str]
    ratio: str
    chart: Markup


def inspect_datasets(
    uris: Sequence[str], *, out: str, sheet: str | None = None, num: int = 12, num_stats: int = 200, num_clips: int = 2
) -> RenderableType:
    """Look at one or two data sets, write the page and give what to print.

    Args:
        uris: one or two; prepared shards or ``streets://STYLE``.
        out: HTML file, any fsspec URI.
        sheet: PNG file of the plain contact sheet; None writes none.
        num, num_stats, num_clips: as in `data.inspect.inspect`, for each data set.

    Raises:
        UserError: no data set there, or a file cannot be written.
    """
    for uri in uris[1:]:
        open_dataset(uri)  # a wrong second one is told before the first is looked at
    seen = [looks.inspect(uri, num=num, num_stats=num_stats, num_clips=num_clips) for uri in uris]
    gap = compare(*seen) if len(seen) == 2 else None
    storage.write_bytes(out, render(seen, gap).encode())
    written = [_line(f"page: {out}")]
    sheets = [(s.facts.name, contact_sheet(s.pictures, s.facts.table)) for s in seen if s.pictures] if sheet else []
    if sheet and sheets:
        storage.write_bytes(sheet, stack(sheets))
        written.append(_line(f"contact sheet: {sheet}"))
    blocks = [tables.inspection(each) for each in seen]
    return Group(*blocks, *([tables.gap_table(seen[0], seen[1], gap)] if gap else []), *written)


def _line(text: str) -> Text:
    """A line to copy from: never wrapped."""
    return Text(text, no_wrap=True, overflow="ignore")


def render(seen: Sequence[Inspection], gap: Gap | None) -> str:
    """The HTML text; everything that comes from a data set is escaped."""
    names = _short_names([each.facts.name for each in seen])
    sides = [_side(*parts) for parts in zip(seen, names, COLOURS, strict=False)]
    low = lowest([share for side in sides for kind in _kinds(side) for share in kind[1].tolist()])
    return template("dataset.html.j2").render(
        sides=sides,
        gap=gap,
        fact_names=list(dict.fromkeys(name for side in sides for name in side.facts)),
        columns=[(side, [title for title, _ in _kinds(side)]) for side in sides],
        classes=_class_lines(sides, gap, low),
        axis=log_axis(low),
        dots=_dots(sides),
        statistics=_statistics(sides, gap),
        tiles=_tiles(sides, gap),
        percent=percent,
        definitions=STATISTICS,
        stat_width=STAT_WIDTH,
        max_groups=MAX_GROUPS,
        unknown=tables.UNKNOWN,
        dot_colours=(SECOND, BASELINE),
    )


def _short_names(uris: Sequence[str]) -> list[str]:
    """The last part of each URI, short enough for a column; numbered where that would not tell them apart."""
    last = [uri.rstrip("/").rsplit("/", 1)[-1] or uri for uri in uris]
    short = [name if len(name) <= _NAME else f"{name[: _NAME - 8]}\N{HORIZONTAL ELLIPSIS}{name[-7:]}" for name in last]
    if len(set(short)) == len(short):
        return short
    return [f"{name} ({i})" for i, name in enumerate(short, 1)]


def _side(seen: Inspection, name: str, colour: str) -> Side:
    facts, total = seen.facts, len(seen.facts.dataset)
    shown = facts.sizes[:_SIZES_SHOWN]
    sizes = [
        (f"{w} \N{MULTIPLICATION SIGN} {h}", n, share_bar(n / total, f"{n} samples", colour, (240, 14)))
        for (w, h), n in shown
    ]
    rest = total - sum(n for _, n in shown)
    if rest:
        words = f"{len(facts.sizes) - len(shown)} others"
        sizes.append((words, rest, share_bar(rest / total, f"{rest} samples", colour, (240, 14))))
    pictures = [*seen.pictures, *(picture for clip in seen.clips for picture in clip.pictures)]
    return Side(
        name=name,
        uri=facts.name,
        colour=colour,
        seen=seen,
        facts=tables.fact_rows(facts),
        sizes=sizes,
        tiles=[_tile(picture, seen) for picture in seen.pictures],
        previews=[_preview(clip, seen) for clip in seen.clips],
        legend=[(text, _css(rgb)) for text, rgb in classes_in(pictures, facts.table)],
    )


def _css(colour: RGB) -> str:
    return "rgb({}, {}, {})".format(*colour)


def _tile(picture: Picture, seen: Inspection) -> Tile:
    if picture.label is None:
        return Tile(picture.key, [jpeg(picture.image)], f"sample {picture.key}")
    table = seen.facts.table
    counts = np.bincount(picture.label.ravel(), minlength=256)[: table.num_classes]
    largest = [table.classes[i] for i in np.argsort(-counts)[:3] if counts[i]]
    alt = f"sample {picture.key}, mostly {', '.join(largest)}" if largest else f"sample {picture.key}, all ignored"
    return Tile(picture.key, [jpeg(picture.image), jpeg(overlay(picture.image, picture.label, table))], alt)


def _preview(clip: Clip, seen: Inspection) -> Preview:
    table, shown = seen.facts.table, len(clip.pictures)
    labelled = any(picture.label is not None for picture in clip.pictures)
    which = "every frame" if clip.stride == 1 else f"one frame in {clip.stride}"
    words = f"{clip.frames} frames; {shown} shown, {which}"
    if labelled and any(picture.label is None for picture in clip.pictures):
        words += "; frames without colours have no label"
    still = beside(clip.pictures[0], table, labelled)
    return Preview(clip.name, words, animation(clip.pictures, table), jpeg(still), still.shape[1])


def _kinds(side: Side) -> list[tuple[str, np.ndarray]]:
    """The shares that are known of a data set, with their titles."""
    shares = side.seen.facts.shares
    kinds = [("pixels", shares.pixels), ("images", shares.images), ("tagged", shares.tags)]
    return [(title, values) for title, values in kinds if values is not None]


def _class_lines(sides: Sequence[Side], gap: Gap | None, low: float) -> list[ClassLine]:
    """The most common class first, as the first data set that has shares tells; empty without any."""
    ranked = next((side for side in sides if _kinds(side)), None)
    if ranked is None:
        return []
    names = gap.classes if gap else list(sides[0].seen.facts.table.classes)
    order = _kinds(ranked)[0][1]
    by_share = sorted(names, key=lambda name: -(by_name(ranked.seen.facts, order, name) or 0.0))
    return [_class_line(name, sides, gap, low) for name in by_share]


def _class_line(name: str, sides: Sequence[Side], gap: Gap | None, low: float) -> ClassLine:
    home = next(side.seen.facts.table for side in sides if name in side.seen.facts.table.classes)
    number = home.index(name)
    cells = [tables.share_text(by_name(s.seen.facts, values, name)) for s in sides for _, values in _kinds(s)]
    pixels = [by_name(s.seen.facts, s.seen.facts.shares.pixels, name) for s in sides]
    return ClassLine(
        id=None if gap else number,
        name=name,
        colour=_css(home.palette[number]),
        kind="thing" if number in home.things else "stuff",
        cells=cells,
        ratio=tables.times(ratio(*pixels)) if gap else "",
        chart=log_marks([mark for side in sides for mark in _marks(side, name, len(sides) == 1)], low),
    )


def _marks(side: Side, name: str, alone: bool) -> list[Mark]:
    """A bar for what is known best; dots for the rest when the data set stands alone."""
    marks = []
    for i, (title, values) in enumerate(_kinds(side)):
        share = by_name(side.seen.facts, values, name)
        if i == 0 or alone:
            who = name if alone else f"{side.name}, {name}"
            text = f"{who}: {tables.share_text(share)} of {_WHOLES[title]}"
            colour = side.colour if i == 0 else (SECOND, BASELINE)[i - 1]
            marks.append(Mark(share or 0.0, text, colour, dot=i > 0))
    return marks


_WHOLES = {"pixels": "the labelled pixels", "images": "the labelled images", "tagged": "the tagged images"}


def _dots(sides: Sequence[Side]) -> list[tuple[str, str, bool]]:
    """The key of the class chart: words, colour, whether it is a dot."""
    if len(sides) > 1:
        return [(f"{s.name}: share of {_WHOLES[_kinds(s)[0][0]]}", s.colour, False) for s in sides if _kinds(s)]
    colours = (sides[0].colour, SECOND, BASELINE)
    titles = [title for title, _ in _kinds(sides[0])]
    return [
        (f"share of {_WHOLES[title]}", colour, i > 0)
        for i, (title, colour) in enumerate(zip(titles, colours, strict=False))
    ]


def _statistics(sides: Sequence[Side], gap: Gap | None) -> list[tuple[str, str, Markup, str, Markup | None]]:
    """Per statistic: name, means in words, chart, and for two sets the shift in words and as a bar."""
    rows = []
    for i, name in enumerate(STATISTICS):
        columns = [(side.name, side.seen.values[:, i], side.colour) for side in sides]
        means = [f"{values.mean():.3f}" if len(values) else tables.UNKNOWN for _, values, _ in columns]
        spread = f" ± {columns[0][1].std():.3f}" if len(columns) == 1 and len(columns[0][1]) else ""
        chart = distribution(columns, f"distribution of {name}, means {', '.join(means)}")
        shift = gap.shifts[name] if gap else None
        text = tables.shift_text(shift)
        bar = (
            share_bar(min(1.0, abs(shift or 0.0) / _LARGE_SHIFT), f"{name}: {text} sd", size=(240, 14)) if gap else None
        )
        rows.append((name, " \N{RIGHTWARDS ARROW} ".join(means) + spread, chart, text, bar))
    return rows


def _tiles(sides: Sequence[Side], gap: Gap | None) -> list[tuple[str, str]]:
    """The large numbers at the head: what, value."""
    if gap is None:
        facts = sides[0].seen.facts
        tiles = [("samples", f"{len(facts.dataset):,}"), ("labelled", f"{facts.num_labelled:,}")]
        tiles += [("clips", f"{len(facts.clips):,}")] if facts.clips else []
        return [*tiles, ("classes", str(facts.table.num_classes)), ("stored", tables.megabytes(facts.bytes))]
    known = {name: shift for name, shift in gap.shifts.items() if shift is not None}
    tiles = [(f"samples, {side.name}", f"{len(side.seen.facts.dataset):,}") for side in sides]
    if gap.class_distance is not None:
        tiles.append(("pixels of other class", percent(gap.class_distance)))
    if known:
        name = max(known, key=lambda key: abs(known[key]))
        tiles.append((f"largest shift: {name}", f"{tables.shift_text(known[name])} sd"))
    return tiles
