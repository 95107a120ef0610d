"""Pictures of class maps: a palette PNG that keeps the ids, and an overlay with a legend for human eyes."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.5
"""Share of the class colour in an overlay; the image has the rest."""

_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (165, 165, 165)


def encode_class_map(class_map_HW: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """An 8-bit palette PNG: reading its indices gives the train ids, looking at it shows the colours.

    Args:
        class_map_HW: train ids; 255 and other ids without a colour show black.
        palette: uint8 (C, 3), RGB.
    """
    picture = Image.fromarray(class_map_HW)
    picture.putpalette(_lookup(palette).tobytes())
    return encode_image(picture)


def encode_image(picture: Image.Image) -> bytes:
    """A quickly packed PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def draw_overlay(
    image_HWC: NDArray[np.uint8],
    class_map_HW: NDArray[np.uint8],
    classes: Sequence[str],
    palette: NDArray[np.uint8],
) -> Image.Image:
    """The image under its classes' colours, borders between classes in full colour, and a legend below.

    The legend lists every class in the same place for every image of one size, so that frames can be compared; those
    that the class map lacks are faint.
    """
    blended = blend(image_HWC, class_map_HW, palette)
    present = np.bincount(class_map_HW.ravel(), minlength=256)[: len(classes)] > 0
    legend = draw_legend(image_HWC.shape[1], image_HWC.shape[0], classes, palette, present)
    picture = Image.new("RGB", (image_HWC.shape[1], image_HWC.shape[0] + legend.height), _PAPER)
    picture.paste(Image.fromarray(blended), (0, 0))
    picture.paste(legend, (0, image_HWC.shape[0]))
    return picture


def blend(
    image_HWC: NDArray[np.uint8], class_map_HW: NDArray[np.uint8], palette: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The image under its classes' colours, uint8 RGB (H, W, 3); borders between classes in full colour."""
    colours = _lookup(palette)[class_map_HW]
    opacity = np.where(_borders(class_map_HW), 1.0, OPACITY)[..., None]
    opacity[class_map_HW >= len(palette)] = 0  # no class, no colour
    return np.asarray((image_HWC * (1 - opacity) + colours * opacity).round(), np.uint8)


def _lookup(palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (256, 3): a colour for every id, black beyond the palette."""
    lut = np.zeros((256, 3), np.uint8)
    lut[: len(palette)] = palette
    return lut


def _borders(class_map_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another class."""
    border = np.zeros(class_map_HW.shape, bool)
    border[:, :-1] |= class_map_HW[:, :-1] != class_map_HW[:, 1:]
    border[:-1] |= class_map_HW[:-1] != class_map_HW[1:]
    return border


def draw_legend(
    width: int, height: int, classes: Sequence[str], palette: NDArray[np.uint8], present: NDArray[np.bool_]
) -> Image.Image:
    """A strip as wide as an image of that size: a swatch and a name a class, in columns; those not present faint."""
    text_height = int(np.clip(height / 28, 11, 32))
    font = ImageFont.load_default(text_height)
    gap, row_height = text_height // 2, text_height + text_height // 2
    column_width = max(int(font.getlength(name)) for name in classes) + text_height + 3 * gap
    columns = max(1, (width - gap) // column_width)
    rows = -(-len(classes) // columns)
    strip = Image.new("RGB", (width, rows * row_height + gap), _PAPER)
    draw = ImageDraw.Draw(strip)
    for i, name in enumerate(classes):
        x, y = gap + (i % columns) * column_width, gap + (i // columns) * row_height
        colour = (int(palette[i][0]), int(palette[i][1]), int(palette[i][2]))
        ink = _INK if present[i] else _FAINT
        draw.rectangle((x, y, x + text_height, y + text_height - 2), fill=colour if present[i] else None, outline=ink)
        if not present[i]:  # a small dot of the colour stays, so the legend is complete
            centre_x, centre_y, radius = x + text_height / 2, y + text_height / 2 - 1, max(2, text_height // 6)
            draw.ellipse(
                (centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius), fill=colour, width=0
            )
        draw.text((x + text_height + gap, y + text_height / 2 - 1), name, fill=ink, font=font, anchor="lm")
    return strip
