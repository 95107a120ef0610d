"""Tables for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from distuda.recipe import fields


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


def scores(row: Mapping[str, Any], baseline: Mapping[str, Any] | None = None) -> Table:
    """IoU by class and what it was measured on; with a baseline, both and the difference in points.

    Args:
        row, baseline: as `engine.evaluate.evaluate` returns them, IoU in [0, 1].
    """
    sizes = ", ".join(row.get("label_sizes", []))
    title = f"{row['num_images']} images" + (f", labels {sizes}" if sizes else ", no labels")
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for name in ("source only", "adapted", "gain") if baseline else ("IoU",):
        table.add_column(name, justify="right")
    for name, value in row.get("iou", {}).items():
        table.add_row(name, *_cells(value, baseline["iou"].get(name) if baseline else None, bool(baseline)))
    table.add_section()
    if "miou" in row:
        table.add_row(
            "mIoU", *_cells(row["miou"], baseline["miou"] if baseline else None, bool(baseline)), style="bold"
        )
    if "coverage" in row:
        table.add_row("share of labelled pixels that are not ignored", _percent(row["coverage"]))
    for name in ("information_maximisation", "entropy"):
        if name not in row:
            continue
        before = [f"{baseline[name]:.3f}"] if baseline else []
        after = [f"{row[name] - baseline[name]:+.3f}"] if baseline else []
        table.add_row(f"{name} (label-free)", *before, f"{row[name]:.3f}", *after, style="dim")
    return table


def _cells(value: float | None, before: float | None, compared: bool) -> list[str]:
    cells = [_percent(value)]
    if compared:
        gain = "" if value is None or before is None else f"{100 * (value - before):+.1f}"
        cells = [_percent(before), *cells, gain]
    return cells


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
