"""The page of a recipe of phases: what each left behind, and for chosen images what it saw in them. No network."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from distuda import storage
from distuda.data.columns import CONTESTED
from distuda.data.dataset import Dataset
from distuda.data.labels import IGNORE, ClassTable
from distuda.recipe import RelabelRecipe
from distuda.relabel import RELABELS
from distuda.report import phases_pictures as draw
from distuda.report.dataset_charts import percent
from distuda.report.dataset_tables import UNKNOWN, share_text
from distuda.report.figures import RUN, Series, line_chart, number
from distuda.report.panels import describe, entropy_ramp, image_miou
from distuda.report.phases_gather import (
    BEFORE,
    Map,
    Seen,
    Shares,
    Stage,
    add_truth,
    choose,
    home,
    look,
    measure,
    open_stages,
    shown,
)
from distuda.report.pictures import jpeg, png
from distuda.report.templates import template


@dataclass(frozen=True)
class Picture:
    """One picture on the page: heading, line below it, words for those who cannot see it, data URI."""

    title: str
    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class Row:
    """One image on the page: key, its tags as (name, colour), and a column of pictures a phase."""

    key: str
    tags: list[tuple[str, str]]
    columns: list[list[Picture]]


@dataclass(frozen=True)
class Line:
    """One phase in the table; cells are empty where a phase says nothing of it."""

    name: str
    what: str
    left: str
    finished: bool
    mined: str = ""
    contested: str = ""
    labelled: str = ""
    ignored: str = ""
    loss: str = ""
    miou: str = ""
    scored_on: str = ""


def inspect_phases(
    uri: str, *, out: str, num: int = 12, num_stats: int = 200, keys: Sequence[str] = (), labels: str | None = None
) -> RenderableType:
    """Look at the phases in a folder, write the page and give what to print.

    Args:
        uri: the ``out`` of a recipe of phases, or the folder of one relabel phase; not all need to be finished.
        out: HTML file, any fsspec URI.
        num: images shown, evenly spaced over the data set.
        num_stats: images over which mined pixels are counted, evenly spaced.
        keys: samples shown instead; each may hold several, with commas between.
        labels: data set with the true labels of the same keys; default: the data set's own, where it has some.

    Raises:
        UserError: a folder without phases, a key or labels that are not there, or a file that cannot be written.
    """
    stages = open_stages(uri)
    data = home(stages)
    ids = choose(data, [key for text in keys for key in text.split(",") if key], num)
    seen = look(data, ids, [stage for stage in stages if shown(stage, data)])
    if labels is not None:
        add_truth(seen, data, labels)
    shares = {stage.name: measure(stage, num_stats) for stage in stages if stage.relabels and stage.finished}
    storage.write_bytes(out, render(uri, stages, shares, data, seen, num_stats).encode())
    lines = [_line(stage, shares.get(stage.name, Shares())) for stage in stages]
    return Group(_terminal_table(lines), Text(f"page: {out}", no_wrap=True, overflow="ignore"))


def render(
    uri: str, stages: Sequence[Stage], shares: Mapping[str, Shares], data: Dataset, seen: Sequence[Seen], num_stats: int
) -> str:
    """The HTML text; everything that comes from a folder is escaped."""
    table = data.table
    names = [stage for stage in stages if any(stage.name in one.maps for one in seen)]
    kinds = {stage.kind for stage in names}
    return template("phases.html.j2").render(
        uri=uri,
        name=_last(uri),
        data_uri=data.uri,
        tiles=_tiles(stages, shares, data),
        lines=[_line(stage, shares.get(stage.name, Shares())) for stage in stages],
        charts=_charts(stages, shares),
        rows=[_row(one, names, table) for one in seen],
        num_columns=len(names) + 1 + any(one.truth is not None for one in seen),
        legend=_legend(seen, table),
        kinds=kinds,
        masks=bool(kinds - {"erase"}) or any(one.truth is not None for one in seen),
        truth=any(one.truth is not None for one in seen),
        num_measured=min(num_stats, len(data)),
        num_images=len(data),
        ramp=", ".join(f"rgb({r}, {g}, {b})" for r, g, b in entropy_ramp()[::51].tolist()),
        mean_pixel=_css(draw.MEAN_PIXEL),
        open_colours=(_css(draw.OPEN), _css(draw.OPEN_LINE)),
    )


def _css(colour: Sequence[int]) -> str:
    return "rgb({}, {}, {})".format(*colour)


# The table and the charts ---------------------------------------------------------------------------------------------


def _line(stage: Stage, shares: Shares) -> Line:
    known = {"labelled": shares.labelled, "mined": shares.mined, "contested": shares.contested}
    known["ignored"] = None if shares.labelled is None else 1 - shares.labelled
    miou = stage.scores.get("miou")
    return Line(
        stage.name,
        _what(stage),
        _left(stage),
        stage.finished,
        **{name: percent(share) for name, share in known.items() if share is not None},
        loss="" if stage.loss is None else number(stage.loss),
        miou="" if miou is None else f"{100 * miou:.1f}",
        scored_on=_scored_on(stage),
    )


def _what(stage: Stage) -> str:
    """The kind of a phase, what it goes on from and what it sets itself, in words."""
    recipe = stage.recipe
    parts = [stage.kind]
    if recipe.init_from and (not isinstance(recipe, RelabelRecipe) or RELABELS[stage.kind].needs_network):
        parts.append(f"network of {_last(recipe.init_from)}")
    if columns := stage.domain.columns:
        parts.append(f"columns of {_last(columns[-1])}")
    own = recipe.relabel if isinstance(recipe, RelabelRecipe) else recipe.method
    changed = own.model_dump(exclude={"name", "domain"}, exclude_defaults=True)
    return ", ".join([*parts, *(f"{name}={value}" for name, value in changed.items())])


def _last(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def _left(stage: Stage) -> str:
    """What a phase has left behind, in words."""
    unit = "row groups" if stage.relabels else "steps"
    if not stage.done:
        return "nothing yet"
    if not stage.finished:
        return f"unfinished: {stage.done:,} of {stage.total:,} {unit}"
    if stage.relabels:
        return ", ".join(RELABELS[stage.kind].writes)
    return f"network, {stage.total:,} steps"


def _scored_on(stage: Stage) -> str:
    """What a score was measured on, in words."""
    scores = stage.scores
    if "miou" not in scores:
        return ""
    what = f"{scores['num_images']:,} images of {_last(str(scores.get('uri') or 'its evaluation set'))}"
    if "coverage" in scores:
        return f"{what}, where labelled: {percent(scores['coverage'])} of the true pixels"
    return f"{what}, step {scores['step']:,}" if "step" in scores else what


def _tiles(stages: Sequence[Stage], shares: Mapping[str, Shares], data: Dataset) -> list[tuple[str, str]]:
    """The large numbers at the head: what, value."""
    done = sum(stage.finished for stage in stages)
    tiles = [("phases finished", f"{done} of {len(stages)}"), ("images", f"{len(data):,}")]
    for title, kind, part in (("mined", "erase", "mined"), ("labelled", "compose", "labelled")):
        if last := next((s for s in reversed(stages) if s.kind == kind and s.name in shares), None):
            tiles.append((f"pixels {title}, {last.name}", share_text(getattr(shares[last.name], part))))
    if best := next((s for s in reversed(stages) if "miou" in s.scores and not s.relabels), None):
        tiles.append((f"mIoU, {best.name}", f"{100 * best.scores['miou']:.1f} %"))
    return tiles


def _charts(stages: Sequence[Stage], shares: Mapping[str, Shares]) -> list[tuple[str, str, Markup]]:
    """Of rounds: title, last value and chart of what changes from one to the next; none of a single round."""
    erasing = [shares[stage.name] for stage in stages if stage.kind == "erase" and stage.name in shares]
    found = {
        "final training loss": [stage.loss for stage in stages if stage.kind == "classify"],
        "pixels mined [%]": [_hundred(share.mined) for share in erasing],
        "pixels contested [%]": [_hundred(share.contested) for share in erasing],
        "mIoU, erase [%]": [_hundred(s.scores.get("miou")) for s in stages if s.kind == "erase"],
        "mIoU, classify [%]": [_hundred(s.scores.get("miou")) for s in stages if s.kind == "classify"],
    }
    charts = []
    for title, values in found.items():
        points = [(float(i), value) for i, value in enumerate(values, 1) if value is not None]
        if len(points) > 1:
            label = f"{title} over rounds, from {number(points[0][1])} to {number(points[-1][1])}"
            line = Series(title, points, RUN, markers=True)
            chart = line_chart([line], label=label, x_label="round", legend=False, from_zero=True, size=(280, 164))
            charts.append((title, number(points[-1][1]), chart))
    return charts


def _hundred(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _terminal_table(lines: Sequence[Line]) -> Table:
    """The phases for the terminal."""
    table = Table(box=None, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    table.add_column("left behind")
    titles = {"mined": "mined", "contested": "contested", "labelled": "labelled", "loss": "loss", "mIoU [%]": "miou"}
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for line in lines:
        numbers = (getattr(line, name) or UNKNOWN for name in titles.values())
        table.add_row(escape(line.name), escape(line.left), *numbers, style="" if line.finished else "dim")
    return table


# The pictures ---------------------------------------------------------------------------------------------------------


def _row(one: Seen, stages: Sequence[Stage], table: ClassTable) -> Row:
    """The image, a column a phase, and last the truth."""
    tags = [(table.classes[tag], _css(table.palette[tag])) for tag in one.tags or []]
    words = ", ".join(name for name, _ in tags) or "none"
    columns = [[Picture("image", "", f"image {one.key}, tags: {words}", jpeg(one.image))]]
    columns += [list(_pictures(stage, one, table)) for stage in stages]
    if one.truth is not None:
        alt = f"true classes of {one.key}: {describe(one.truth, table)}"
        columns.append([Picture("truth", "", alt, png(draw.mask(one.truth, table)))])
    return Row(one.key, tags, columns)


def _pictures(stage: Stage, one: Seen, table: ClassTable) -> Iterator[Picture]:
    """What one phase made of one image."""
    maps, name = one.maps.get(stage.name, {}), stage.name
    if "mined" in maps:
        source = jpeg(draw.erased(one.image, maps[BEFORE], maps["mined"], table))
        gone = _share(maps["mined"] != IGNORE)
        new = _share(maps["mined"] != maps[BEFORE])
        claimed = np.where(maps["mined"] == CONTESTED, IGNORE, maps["mined"]).astype(np.uint8)
        alt = f"{name}: mined so far in {one.key}: {describe(claimed, table)}"
        yield Picture(name, f"{gone:.0%} found, {new:.0%} new", alt, source)
    if "heat_now" in maps:
        mean = f"mean {maps['heat_now'].mean() / 255:.2f}"
        alt = f"{name}: heat in {one.key}, {mean} of 1"
        yield Picture("heat", mean, alt, jpeg(draw.heat(one.image, maps["heat_now"])))
    if "label" in maps:
        title = "classes by heat" if "mined" in maps else name
        alt = f"{name}: {'' if title == name else f'{title}, '}classes in {one.key}: {describe(maps['label'], table)}"
        yield Picture(title, _mask_words(maps["label"], one.truth, table), alt, png(draw.mask(maps["label"], table)))
    if "saliency" in maps:
        alt = f"{name}: saliency in {one.key}, mean {maps['saliency'].mean() / 255:.2f} of 1"
        yield Picture("saliency", "", alt, jpeg(draw.grey(maps["saliency"])))


def _share(where: np.ndarray) -> float:
    return float(where.mean())


def _mask_words(label: Map, truth: Map | None, table: ClassTable) -> str:
    """How much of a mask says something, and its mIoU there, where it says not all and the truth is known."""
    words = [] if (label != IGNORE).all() else [f"{_share(label != IGNORE):.0%} labelled"]
    if truth is not None:
        said = np.where(label == IGNORE, IGNORE, truth)
        prediction, target = (torch.from_numpy(each.astype(np.int64)) for each in (label, said))
        miou = image_miou(prediction, target, table.num_classes)
        words += [f"mIoU {100 * miou:.0f}"] if math.isfinite(miou) else []
    return ", ".join(words)


def _legend(seen: Sequence[Seen], table: ClassTable) -> list[tuple[str, str]]:
    """Names and colours of the classes in tags and maps, in the table's order."""
    present: set[int] = set()
    for one in seen:
        drawn = [maps[name] for maps in one.maps.values() for name in ("mined", "label") if name in maps]
        present |= {*(one.tags or []), *(int(i) for drawn_HW in drawn for i in np.unique(drawn_HW))}
        present |= set() if one.truth is None else {int(i) for i in np.unique(one.truth)}
    return [(table.classes[i], _css(table.palette[i])) for i in sorted(present) if i < table.num_classes]
