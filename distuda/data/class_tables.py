"""Every class table that can be named on the command line, with the colours its data set publishes."""

import colorsys
import json
from pathlib import Path

from distuda import storage
from distuda.data.labels import RGB, ClassTable
from distuda.errors import UserError, nearest

# The conversion colours of CamVid as published with SegNet.
_CAMVID = ClassTable(
    "camvid11",
    ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    frozenset({8, 9, 10}),
)  # fmt: skip

_CITYSCAPES = ClassTable(
    "cityscapes19",
    (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    (
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
        (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    frozenset(range(11, 19)),
)  # fmt: skip

_STREETS = ClassTable(
    "streets11",
    ("road", "pavement", "building", "sky", "tree", "pole", "sign", "fence", "car", "person", "cyclist"),
    (
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (70, 130, 180), (107, 142, 35), (153, 153, 153),
        (220, 220, 0), (190, 153, 153), (0, 0, 142), (220, 20, 60), (119, 11, 32),
    ),
    frozenset({8, 9, 10}),
)  # fmt: skip


def bit_palette(count: int) -> tuple[RGB, ...]:
    """The PASCAL VOC colours: the bits of the id, three at a time, become the high bits of red, green and blue."""
    colours = [
        tuple(sum((i >> (3 * bit + c) & 1) << (7 - bit) for bit in range(3)) for c in range(3)) for i in range(count)
    ]
    return tuple((r, g, b) for r, g, b in colours)


_VOC = ClassTable(
    "voc21",
    (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    bit_palette(21),
    frozenset(range(1, 21)),
)  # fmt: skip

_MSRC = ClassTable(
    "msrc23",
    (
        "building", "grass", "tree", "cow", "horse", "sheep", "sky", "mountain", "aeroplane", "water", "face", "car",
        "bicycle", "flower", "sign", "bird", "book", "chair", "road", "cat", "dog", "body", "boat",
    ),
    bit_palette(24)[1:],
)  # fmt: skip


def _without(table: ClassTable, name: str, *dropped: str) -> ClassTable:
    """A table of fewer classes, the others in their order and colours."""
    kept = [i for i, known in enumerate(table.classes) if known not in dropped]
    things = frozenset(new for new, old in enumerate(kept) if old in table.things)
    return ClassTable(name, tuple(table.classes[i] for i in kept), tuple(table.palette[i] for i in kept), things)


# SYNTHIA shows no terrain, truck or train; older papers leave out wall, fence and pole as well.
_CITYSCAPES_16 = _without(_CITYSCAPES, "cityscapes16", "terrain", "truck", "train")
_CITYSCAPES_13 = _without(_CITYSCAPES_16, "cityscapes13", "wall", "fence", "pole")

# The two protocols of video adaptation (Guan et al., DA-VSN, ICCV 2021). In viper15 a rider counts as a person.
_VIPER = _without(_CITYSCAPES, "viper15", "wall", "pole", "rider", "train")
_SYNTHIA_SEQ_12 = _without(
    _CITYSCAPES, "synthia_seq12", "wall", "terrain", "truck", "bus", "train", "motorcycle", "bicycle"
)
_SYNTHIA_SEQ_11 = _without(_SYNTHIA_SEQ_12, "synthia_seq11", "fence")

CLASS_TABLES: dict[str, ClassTable] = {
    table.name: table
    for table in (
        _CAMVID, _CITYSCAPES, _CITYSCAPES_16, _CITYSCAPES_13, _VIPER, _SYNTHIA_SEQ_12, _SYNTHIA_SEQ_11, _STREETS, _VOC,
        _MSRC,
    )
}  # fmt: skip
"""Every class table that can be named on the command line."""

AVERAGED: dict[tuple[str, ...], ClassTable] = {
    _CITYSCAPES_16.classes: _CITYSCAPES_13, _SYNTHIA_SEQ_12.classes: _SYNTHIA_SEQ_11,
}  # fmt: skip
"""Classes that papers train with -> the fewer that they also, or only, average over."""


def class_table(name: str) -> ClassTable:
    """The class table of that name, or the one that a ``.json`` file or URI describes.

    Such a file holds ``classes``, a list of names in the order of their train ids, and, if wished, ``palette`` (one
    [red, green, blue] a class), ``things`` (names of countable classes) and ``name``.

    Raises:
        UserError: no such table, or a file that does not describe one.
    """
    if name.endswith(".json"):
        return _table_in(name)
    if name not in CLASS_TABLES:
        raise UserError(
            f"no class table {name!r}{nearest(name, CLASS_TABLES)}. Known: {', '.join(CLASS_TABLES)}; or give a .json "
            "file that lists your own classes."
        )
    return CLASS_TABLES[name]


def _table_in(uri: str) -> ClassTable:
    try:
        data = json.loads(storage.read_bytes(uri))
        classes = [str(known) for known in data["classes"]]
        things = frozenset(classes.index(thing) for thing in data.get("things", []))
        palette = [(int(r), int(g), int(b)) for r, g, b in data.get("palette") or _colours(len(classes))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{uri!r} does not describe a class table ({error}). It must look like "
            '{"classes": ["road", "car"], "things": ["car"], "palette": [[128, 64, 128], [0, 0, 142]]}.'
        ) from error
    return ClassTable(str(data.get("name", Path(uri).stem)), tuple(classes), tuple(palette), things)


def _colours(count: int) -> list[tuple[float, ...]]:
    """Colours that differ in hue by the golden ratio, in saturation and in value by turns; all of them distinct."""
    hues = [(i * 0.618034 % 1, 0.9 - 0.3 * (i % 2), 0.95 - 0.15 * (i % 3)) for i in range(count)]
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(*hue)) for hue in hues]
