"""Pictures of samples with their labels: overlays, inlined files, animated previews and the plain contact sheet."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from distuda.data.labels import IGNORE, RGB, ClassTable
from distuda.data.survey import PICTURE_WIDTH, Picture

FRAME_MS = 120
"""Time that an animated preview shows a frame."""

_COLUMNS, _GAP, _CAPTION, _LEGEND_ROW = 4, 8, 18, 22
_PAPER, _INK, _DARK = (250, 250, 250), (30, 30, 30), (64, 64, 64)


def overlay(image_HWC: NDArray[np.uint8], label_HW: NDArray[np.uint8], table: ClassTable) -> NDArray[np.uint8]:
    """Class colours half transparent over an image; ignored pixels darken."""
    mixed = image_HWC * 0.4 + table.colours()[label_HW] * 0.6
    mixed[label_HW == IGNORE] = image_HWC[label_HW == IGNORE] * 0.25
    return mixed.astype(np.uint8)


def beside(picture: Picture, table: ClassTable, labelled: bool) -> NDArray[np.uint8]:
    """The image, and if asked its overlay to the right; without a label the image again."""
    if not labelled:
        return picture.image
    laid_over = picture.image if picture.label is None else overlay(picture.image, picture.label, table)
    return np.concatenate([picture.image, laid_over], axis=1)


def classes_in(pictures: Sequence[Picture], table: ClassTable) -> list[tuple[str, RGB]]:
    """Names and colours of the classes that the pictures show, in train id order; last, if met, what is ignored."""
    present = {int(i) for picture in pictures if picture.label is not None for i in np.unique(picture.label)}
    legend = [(table.classes[i], table.palette[i]) for i in sorted(present - {IGNORE})]
    return [*legend, ("ignored (darkened)", _DARK)] if IGNORE in present else legend


def jpeg(picture_HWC: NDArray[np.uint8]) -> str:
    """A data URI."""
    return _data_uri([Image.fromarray(picture_HWC)], "JPEG", quality=85, optimize=True)


def png(picture_HWC: NDArray[np.uint8]) -> str:
    """A data URI without loss, for flat colours."""
    return _data_uri([Image.fromarray(picture_HWC)], "PNG", optimize=True)


def animation(pictures: Sequence[Picture], table: ClassTable) -> str:
    """A data URI of an animated WebP that repeats for ever: frames, with their overlay beside them if any has a label.

    Frames without a label stay plain on the overlay's side. All frames get the size of the first.
    """
    labelled = any(picture.label is not None for picture in pictures)
    frames = [Image.fromarray(beside(picture, table, labelled)) for picture in pictures]
    frames = [frame if frame.size == frames[0].size else frame.resize(frames[0].size) for frame in frames]
    return _data_uri(frames, "WEBP", duration=FRAME_MS, loop=0, quality=70, method=3)


def contact_sheet(pictures: Sequence[Picture], table: ClassTable) -> Image.Image:
    """Samples in a grid, each beside itself with its label laid over, and a legend of the classes that occur."""
    cells = [_cell(picture, table) for picture in pictures]
    per_row = max(1, _COLUMNS * PICTURE_WIDTH // max(cell.width for cell in cells))
    grid = [cells[i : i + per_row] for i in range(0, len(cells), per_row)]
    width = _GAP + max(sum(cell.width + _GAP for cell in row) for row in grid)
    top = _GAP + sum(max(cell.height for cell in row) + _GAP for row in grid)
    places, height = _flow(classes_in(pictures, table), width, top)
    sheet = Image.new("RGB", (width, height), _PAPER)
    _paste(sheet, grid)
    draw, font = ImageDraw.Draw(sheet), _font(13)
    for x, y, name, colour in places:
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=colour, outline=_INK)
        draw.text((x + 19, y + 2), name, _INK, font)
    return sheet


def stack(sheets: Sequence[tuple[str, Image.Image]]) -> bytes:
    """Sheets below each other as one PNG file, each under its title when there are several."""
    if len(sheets) == 1:
        return _encoded([sheets[0][1]], "PNG")
    head = 28
    width, height = max(sheet.width for _, sheet in sheets), sum(sheet.height + head for _, sheet in sheets)
    page, top = Image.new("RGB", (width, height), _PAPER), 0
    for title, sheet in sheets:
        ImageDraw.Draw(page).text((_GAP, top + 8), title, _INK, _font(15))
        page.paste(sheet, (0, top + head))
        top += head + sheet.height
    return _encoded([page], "PNG")


def _cell(picture: Picture, table: ClassTable) -> Image.Image:
    pair = Image.fromarray(beside(picture, table, picture.label is not None))
    cell = Image.new("RGB", (pair.width, pair.height + _CAPTION), _PAPER)
    cell.paste(pair, (0, 0))
    ImageDraw.Draw(cell).text((2, pair.height + 3), picture.key, _INK, _font(12))
    return cell


def _flow(legend: Sequence[tuple[str, RGB]], width: int, top: int) -> tuple[list[tuple[int, int, str, RGB]], int]:
    """Where each entry of the legend goes, in rows from ``top`` on, and the height it all needs."""
    places, x, y = [], _GAP, top
    for name, colour in legend:
        length = 30 + int(_font(13).getlength(name))
        if x + length > width - _GAP and x > _GAP:
            x, y = _GAP, y + _LEGEND_ROW
        places.append((x, y, name, colour))
        x += length
    return places, y + (_LEGEND_ROW if legend else 0)


def _paste(sheet: Image.Image, grid: Sequence[Sequence[Image.Image]]) -> None:
    top = _GAP
    for row in grid:
        left = _GAP
        for cell in row:
            sheet.paste(cell, (left, top))
            left += cell.width + _GAP
        top += max(cell.height for cell in row) + _GAP


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _encoded(frames: Sequence[Image.Image], kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    rest = {"save_all": True, "append_images": frames[1:]} if len(frames) > 1 else {}
    frames[0].save(buffer, kind, **rest, **options)
    return buffer.getvalue()


def _data_uri(frames: Sequence[Image.Image], kind: str, **options: int | bool) -> str:
    content = base64.b64encode(_encoded(frames, kind, **options)).decode()
    return f"data:image/{kind.lower()};base64,{content}"
