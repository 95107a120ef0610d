"""Look at a data set before spending time on it: counts, sizes, class frequencies and a sheet of pictures."""

import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console, Group, RenderableType
from rich.table import Table

from distuda import storage
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.decode import decode_sample, resize_image, resize_label
from distuda.data.labels import IGNORE, ClassTable
from distuda.data.order import Window

CELL_WIDTH = 320
"""Width of one picture on the contact sheet, pixels."""

COLUMNS = 4
_GAP, _CAPTION, _LEGEND_ROW = 8, 18, 22
_PAPER, _INK = (250, 250, 250), (30, 30, 30)


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        dataset: the opened data set.
        sizes: ("width x height", samples), most common first.
        holders: samples that show each class, (C,); zeros without labels.
    """

    dataset: Dataset
    sizes: list[tuple[str, int]]
    holders: NDArray[np.int64]

    def __rich__(self) -> RenderableType:
        data = self.dataset
        megabytes = sum(group.bytes for group in data.groups) / 1e6
        kind = "labelled" if data.labelled else "unlabelled"
        shown = ", ".join(f"{size} ({count})" for size, count in self.sizes[:5])
        more = f" and {len(self.sizes) - 5} more" if len(self.sizes) > 5 else ""
        lines = [
            f"{data.uri}",
            f"{len(data)} samples, {kind}, {megabytes:.1f} MB in {len(data.groups)} row groups",
            f"sizes: {shown}{more}",
            f"classes: {data.table.name} ({data.table.num_classes}), content {data.manifest.content_hash[:12]}",
        ]
        return Group(*lines, self._classes()) if data.labelled else Group(*lines)

    def __str__(self) -> str:
        console = Console(width=100, file=io.StringIO(), record=True)
        console.print(self)
        return console.export_text()

    def _classes(self) -> Table:
        table = Table("id", "class", "colour", "kind", "share of pixels", "samples with it")
        frequencies, things = self.dataset.class_frequencies(), self.dataset.table.things
        for i, name in enumerate(self.dataset.table.classes):
            r, g, b = self.dataset.table.palette[i]
            kind = "thing" if i in things else "stuff"
            swatch = f"[on rgb({r},{g},{b})]      [/]"
            table.add_row(str(i), name, swatch, kind, f"{frequencies[i]:.2%}", str(self.holders[i]))
        return table


def inspect(uri: str, *, out: str | None = None, num: int = 12) -> Inspection:
    """Summarise the data set at a URI; with ``out``, also write a PNG sheet of ``num`` samples, evenly spaced."""
    data = open_dataset(uri)
    sizes = Counter(
        f"{w} x {h}" for h, w in zip(*(data.index[c].to_pylist() for c in ("height", "width")), strict=True)
    )
    holders = np.zeros(data.table.num_classes, np.int64)
    if data.labelled:
        holders = (np.array(data.index["class_pixels"].to_pylist()) > 0).sum(axis=0)
    if out is not None:
        content = io.BytesIO()
        contact_sheet(data, num).save(content, "PNG")
        storage.write_bytes(out, content.getvalue())
    return Inspection(data, sizes.most_common(), holders)


def contact_sheet(data: Dataset, num: int) -> Image.Image:
    """Samples in a grid, each beside itself with its label laid over, and a legend of the classes that occur."""
    ids = np.unique(np.linspace(0, len(data) - 1, min(num, len(data))).astype(np.int64))
    starts = np.concatenate([[0], np.cumsum(data.rows_per_group)])
    groups = np.searchsorted(starts, ids, side="right") - 1
    rows = data.read_window(Window(ids, groups, ids - starts[groups], ids)).to_pylist()
    cells, present = [], set()
    for row in rows:
        image, label = decode_sample(row, size=None, region=None, seed=0)
        cells.append(_cell(image, label, data.table, row["key"]))
        present |= set() if label is None else set(np.unique(label).tolist())
    return _sheet(cells, _legend(data.table, present))


def overlay(image_HWC: NDArray[np.uint8], label_HW: NDArray[np.uint8], table: ClassTable) -> NDArray[np.uint8]:
    """Class colours half transparent over an image; ignored pixels darken."""
    mixed = image_HWC * 0.4 + table.colours()[label_HW] * 0.6
    mixed[label_HW == IGNORE] = image_HWC[label_HW == IGNORE] * 0.25
    return mixed.astype(np.uint8)


def _cell(image: NDArray[np.uint8], label: NDArray[np.uint8] | None, table: ClassTable, key: str) -> Image.Image:
    size = (max(1, round(image.shape[0] * CELL_WIDTH / image.shape[1])), CELL_WIDTH)
    small = resize_image(image, size)
    pictures = [small] if label is None else [small, overlay(small, resize_label(label, size), table)]
    cell = Image.new("RGB", (CELL_WIDTH * len(pictures), size[0] + _CAPTION), _PAPER)
    for i, picture in enumerate(pictures):
        cell.paste(Image.fromarray(picture), (i * CELL_WIDTH, 0))
    ImageDraw.Draw(cell).text((2, size[0] + 3), key, _INK, ImageFont.load_default(12))
    return cell


def _legend(table: ClassTable, present: set[int]) -> list[tuple[str, tuple[int, int, int]]]:
    legend = [(table.classes[i], table.palette[i]) for i in sorted(present - {IGNORE})]
    return [*legend, ("ignored (darkened)", (64, 64, 64))] if IGNORE in present else legend


def _sheet(cells: list[Image.Image], legend: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    per_row = max(1, COLUMNS * CELL_WIDTH // max(cell.width for cell in cells))
    grid = [cells[i : i + per_row] for i in range(0, len(cells), per_row)]
    width = _GAP + max(sum(cell.width + _GAP for cell in row) for row in grid)
    font = ImageFont.load_default(13)
    entries = [(name, colour, 30 + int(font.getlength(name))) for name, colour in legend]
    places, x, y = [], _GAP, _GAP + sum(max(cell.height for cell in row) + _GAP for row in grid)
    for name, colour, length in entries:
        if x + length > width - _GAP and x > _GAP:
            x, y = _GAP, y + _LEGEND_ROW
        places.append((x, y, name, colour))
        x += length
    sheet = Image.new("RGB", (width, y + (_LEGEND_ROW if legend else 0)), _PAPER)
    top = _GAP
    for row in grid:
        left = _GAP
        for cell in row:
            sheet.paste(cell, (left, top))
            left += cell.width + _GAP
        top += max(cell.height for cell in row) + _GAP
    draw = ImageDraw.Draw(sheet)
    for x, y, name, colour in places:
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=colour, outline=_INK)
        draw.text((x + 19, y + 2), name, _INK, font)
    return sheet
