"""Pictures of what phases find in an image: erased regions, heat, saliency and masks with what they leave open."""

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.columns import CONTESTED
from distuda.data.labels import IGNORE, ClassTable
from distuda.models.weights import IMAGENET_RGB
from distuda.report.panels import entropy_ramp

MEAN_PIXEL = tuple(round(255 * part) for part in IMAGENET_RGB[0])
"""What stands in an image where something was erased."""

OPEN, OPEN_LINE = (236, 238, 241), (176, 183, 192)
"""Ground and lines of the hatching where a mask says nothing."""

_TINT = 0.6  # of a class's colour over what was found of it

Map = NDArray[np.uint8]


def erased(image_HWC: Map, before_HW: Map, mined_HW: Map, table: ClassTable) -> Map:
    """The image of one round: grey what it was not shown, tinted what it found, hatched where classes disagree.

    Args:
        image_HWC: uint8 RGB.
        before_HW, mined_HW: column ``mined`` of the round before and of this one; 255 = not mined.
        table: of the classes; each region has an outline of its class's colour.
    """
    picture = image_HWC.copy()
    picture[before_HW != IGNORE] = MEAN_PIXEL
    new = mined_HW != before_HW
    claimed = new & (mined_HW < CONTESTED)
    colours = table.colours()[mined_HW]
    picture[claimed] = ((1 - _TINT) * picture[claimed] + _TINT * colours[claimed]).astype(np.uint8)
    edge = edges(mined_HW) & (mined_HW < CONTESTED)
    picture[edge] = colours[edge]
    contested = mined_HW == CONTESTED
    picture[contested & stripes(mined_HW.shape)] = 255
    picture[contested & stripes(mined_HW.shape, 2)] = 0  # beside the white, so that both show on any picture
    return picture


def heat(image_HWC: Map, heat_HW: Map) -> Map:
    """Heat by colour over the image in grey; 255 is the most."""
    grey = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)[..., None]
    return np.asarray(0.35 * grey + 0.65 * entropy_ramp()[heat_HW], np.uint8)


def grey(values_HW: Map) -> Map:
    """A map from black, 0, to white, 255."""
    return np.repeat(values_HW[..., None], 3, axis=2)


def mask(label_HW: Map, table: ClassTable) -> Map:
    """Class colours; hatched where the label is ignored."""
    picture = table.colours()[label_HW]
    ignored = label_HW == IGNORE
    picture[ignored] = OPEN
    picture[ignored & stripes(label_HW.shape)] = OPEN_LINE
    return picture


def edges(map_HW: Map) -> NDArray[np.bool_]:
    """Pixels that have a neighbour of another value."""
    kernel = np.ones((3, 3), np.uint8)
    return np.asarray(cv2.dilate(map_HW, kernel) != cv2.erode(map_HW, kernel))


def stripes(shape: tuple[int, ...], shift: int = 0) -> NDArray[np.bool_]:
    """Diagonal lines, two pixels of six, further on by a shift."""
    rows, columns = np.indices(shape)
    return np.asarray((rows + columns - shift) % 6 < 2)
