"""Class tables (names, colours, things) and the maps from a data set's own label ids to train ids."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distuda.errors import UserError, nearest

RGB = tuple[int, int, int]
IGNORE = 255
"""The train id of pixels that neither train nor score."""

_UNMAPPED = -1


@dataclass(frozen=True)
class ClassTable:
    """What the train ids 0..C-1 of a data set mean.

    Attributes:
        name: how recipes and manifests call the table.
        classes: one name a train id.
        palette: one colour a train id, RGB in 0..255.
        things: train ids of countable objects; all others are stuff.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    things: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.palette):
            raise UserError(f"class table {self.name!r}: {len(self.classes)} classes but {len(self.palette)} colours.")
        if len(set(self.classes)) != len(self.classes):
            raise UserError(f"class table {self.name!r} names a class twice.")
        if not 0 < len(self.classes) <= IGNORE:
            raise UserError(f"class table {self.name!r} has {len(self.classes)} classes; 1 to {IGNORE} are possible.")
        if self.things - set(range(len(self.classes))):
            raise UserError(f"class table {self.name!r}: things must be train ids below {len(self.classes)}.")

    @property
    def num_classes(self) -> int:
        """C, the number of train ids."""
        return len(self.classes)

    def index(self, name: str) -> int:
        """The train id of a class name; an unknown name is the user's error."""
        if name not in self.classes:
            raise UserError(f"class table {self.name!r} has no class {name!r}{nearest(name, self.classes)}.")
        return self.classes.index(name)

    def colours(self) -> NDArray[np.uint8]:
        """uint8 (256, 3): the colour of every possible label value; ids without a class are black."""
        lut = np.zeros((256, 3), np.uint8)
        lut[: self.num_classes] = self.palette
        return lut

    def to_json(self) -> dict[str, Any]:
        """Plain types for a manifest or the metadata of an exported model."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(colour) for colour in self.palette],
            "things": sorted(self.things),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ClassTable":
        """The inverse of `to_json`."""
        palette = tuple((int(r), int(g), int(b)) for r, g, b in data["palette"])
        return cls(str(data["name"]), tuple(data["classes"]), palette, frozenset(data["things"]))


@dataclass(frozen=True)
class IdMap:
    """From the ids in label files to train ids; an id that is neither mapped nor ignored is an error.

    Attributes:
        name: how the command line and messages call the map.
        train_ids: source id -> train id.
        ignored: source ids that become `IGNORE`.
    """

    name: str
    train_ids: Mapping[int, int]
    ignored: frozenset[int] = frozenset({IGNORE})
    _lut: NDArray[np.int16] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = {**dict.fromkeys(self.ignored, IGNORE), **self.train_ids}
        lut = np.full(256 if max(known) < 256 else 65536, _UNMAPPED, np.int16)
        for source, train in known.items():
            lut[source] = train
        object.__setattr__(self, "_lut", lut)

    def apply(self, label_HW: NDArray[Any]) -> NDArray[np.uint8]:
        """Train ids (uint8, 255 = ignore) of a label image of unsigned integers; unknown ids are the user's error."""
        beyond = label_HW[label_HW >= len(self._lut)]
        train = self._lut[np.minimum(label_HW, len(self._lut) - 1)]
        unknown = np.concatenate([beyond, label_HW[train == _UNMAPPED]])
        if unknown.size:
            ids, counts = np.unique(unknown, return_counts=True)
            listed = ", ".join(f"{i} ({n} px)" for i, n in zip(ids[:5], counts[:5], strict=True))
            raise UserError(f"label id {listed} is not in the id map {self.name!r}")
        return np.asarray(train, np.uint8)


def identity_map(table: ClassTable, ignored: Iterable[int] = (IGNORE,)) -> IdMap:
    """The map for files that hold the table's train ids already."""
    return IdMap(table.name, {i: i for i in range(table.num_classes)}, frozenset(ignored))


def _cityscapes_map() -> IdMap:
    """The official `labels.py` of cityscapesScripts: 19 ids train, all others are ignored (-1 is stored as 255)."""
    train = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    ignored = (set(range(34)) - set(train)) | {IGNORE}
    return IdMap("cityscapes_ids", {source: i for i, source in enumerate(train)}, frozenset(ignored))


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


def _bit_palette(count: int) -> tuple[RGB, ...]:
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
    _bit_palette(21),
    frozenset(range(1, 21)),
)  # fmt: skip

_MSRC = ClassTable(
    "msrc23",
    (
        "building", "grass", "tree", "cow", "horse", "sheep", "sky", "mountain", "aeroplane", "water", "face", "car",
        "bicycle", "flower", "sign", "bird", "book", "chair", "road", "cat", "dog", "body", "boat",
    ),
    _bit_palette(24)[1:],
)  # fmt: skip

CLASS_TABLES: dict[str, ClassTable] = {t.name: t for t in (_CAMVID, _CITYSCAPES, _STREETS, _VOC, _MSRC)}
"""Every class table that can be named on the command line."""

ID_MAPS: dict[str, IdMap] = {
    "cityscapes_ids": _cityscapes_map(),  # also GTA5, whose palette indices are Cityscapes ids
    "camvid_segnet": identity_map(_CAMVID, (11, IGNORE)),
}
"""Every id map that can be named on the command line; without one, files hold train ids and 255."""


def class_table(name: str) -> ClassTable:
    """The class table of that name."""
    if name not in CLASS_TABLES:
        raise UserError(f"no class table {name!r}{nearest(name, CLASS_TABLES)}. Known: {', '.join(CLASS_TABLES)}.")
    return CLASS_TABLES[name]


def find_id_map(name: str | None, table: ClassTable) -> IdMap:
    """The id map of that name, or the identity on the table when there is none; targets must lie in the table."""
    if name is None:
        return identity_map(table)
    if name not in ID_MAPS:
        raise UserError(f"no id map {name!r}{nearest(name, ID_MAPS)}. Known: {', '.join(ID_MAPS)}.")
    chosen = ID_MAPS[name]
    if max(chosen.train_ids.values()) >= table.num_classes:
        raise UserError(
            f"id map {name!r} gives train ids beyond class table {table.name!r} ({table.num_classes} classes)."
        )
    return chosen
