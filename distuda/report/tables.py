"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from distuda.metrics.label_free import SCORES
from distuda.recipe import fields
from distuda.report.clip_scores import CONSISTENCY, GROUPS, WINDOW, quality, windows


def recipe_fields() -> Table:
    """Every field of a recipe: path with default, meaning with unit, type."""
    table = Table(
        title="Fields of a recipe: FIELD=VALUE (in YAML, nested)", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("field = default", overflow="fold", ratio=2)
    table.add_column("meaning [unit] (type)", overflow="fold", ratio=3)
    for path, kind, default, meaning in fields():
        table.add_row(escape(f"{path} = {default}"), escape(f"{meaning} ({kind})"))
    return table


def known_layouts() -> Table:
    """The data sets that `distuda prepare` reads."""
    from distuda.data.layouts import LAYOUTS

    table = Table(box=None, pad_edge=False)
    for title in ("layout", "looks like", "classes", "splits, variants", "comes as"):
        table.add_column(title, overflow="fold")
    for name, layout in LAYOUTS.items():
        parts = ", ".join(layout.splits) + (f"; {', '.join(layout.variants)}" if layout.variants else "")
        classes = layout.classes or ("in the files" if layout.own_table else "--classes")
        table.add_row(name, escape(layout.summary), classes, parts, layout.obtain)
    return table


def scores(row: Mapping[str, Any], baseline: Mapping[str, Any] | None = None) -> RenderableType:
    """IoU by class and what it was measured on; of clips also video panoptic quality and temporal consistency.

    Args:
        row: as `engine.evaluate.evaluate` returns it, IoU in [0, 1].
        baseline: a row of the same samples; with it both and the difference in points are printed.
    """
    table = _by_class(row, baseline)
    return Group(table, _over_time(row, baseline)) if windows(row) else table


def _by_class(row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> Table:
    sizes = ", ".join(row.get("label_sizes", []))
    title = f"{row['num_images']} images" + (f", labels {sizes}" if sizes else ", no labels")
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    measures = {"iou": "IoU", "vpq_per_class": "VPQ"} if "vpq_per_class" in row else {"iou": "IoU"}
    for short in measures.values():
        for name in ("source only", "adapted", "gain") if baseline else ("",):
            table.add_column(f"{short} {name}".strip() if len(measures) > 1 or not name else name, justify="right")

    def cells(values: Sequence[float | None], before: Sequence[float | None]) -> list[str]:
        pairs = zip(values, before, strict=True)
        return [cell for value, old in pairs for cell in _cells(value, old, baseline is not None)]

    for name in row.get("iou", {}):
        found = [[(side or {}).get(key, {}).get(name) for key in measures] for side in (row, baseline)]
        table.add_row(name, *cells(*found))
    table.add_section()
    if "miou" in row:
        found = [[(side or {}).get(key) for key in ("miou", "vpq")[: len(measures)]] for side in (row, baseline)]
        table.add_row("mIoU, mean VPQ" if len(measures) > 1 else "mIoU", *cells(*found), style="bold")
    for name in means_over_fewer(row):
        found = [[(side or {}).get(name)] for side in (row, baseline)]
        table.add_row(f"mIoU over {name.removeprefix('miou_')}", *cells(*found))
    if "temporal_consistency" in row:
        found = [[(side or {}).get("temporal_consistency")] for side in (row, baseline)]
        table.add_row("temporal consistency (label-free)", *cells(*found))
    if "coverage" in row:
        table.add_row("share of labelled pixels that are not ignored", _percent(row["coverage"]))
    for name in (name for name in SCORES if name in row):
        old = (baseline or {}).get(name)
        before = ["-" if old is None else f"{old:.3f}"] if baseline else []
        after = ["" if old is None else f"{row[name] - old:+.3f}"] if baseline else []
        table.add_row(f"{name} (label-free)", *before, f"{row[name]:.3f}", *after, style="dim")
    if "source_miou_on" in row:
        table.caption, table.caption_justify = f"source_miou: on {escape(row['source_miou_on'])}", "left"
    return table


def means_over_fewer(row: Mapping[str, Any]) -> list[str]:
    """Keys of means over fewer classes than were trained (`class_tables.AVERAGED`), such as ``miou_synthia_seq11``."""
    return [name for name in row if name.startswith("miou_")]


def _over_time(row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> Table:
    """Video panoptic quality by group and window in per cent; with a baseline the gain in brackets."""
    title = "video panoptic quality (VPQ) of semantic tubes" + (", gain over source only" if baseline else "")
    table = Table(title=title, title_justify="left", caption=f"{WINDOW} {CONSISTENCY}", caption_justify="left")
    lengths = windows(row)
    table.add_column("window of")
    for head in [*(f"{length} frame{'s' if length > 1 else ''}" for length in lengths), "mean"]:
        table.add_column(head, justify="right")

    for name, key in GROUPS.items():
        pairs = zip(quality(row, key, lengths), quality(baseline or {}, key, lengths), strict=True)
        cells = [_cells(value, before, baseline is not None) for value, before in pairs]
        table.add_row(name, *(f"{cell[1]} ({cell[2] or '-'})" if baseline else cell[0] for cell in cells))
    return table


def _cells(value: float | None, before: float | None, compared: bool) -> list[str]:
    cells = [_percent(value)]
    if compared:
        gain = "" if value is None or before is None else f"{100 * (value - before):+.1f}"
        cells = [_percent(before), *cells, gain]
    return cells


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
