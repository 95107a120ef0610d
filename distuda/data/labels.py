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

    @property
    def background(self) -> int | None:
        """Train id of the class named "background", which no image-level tag names; None where all are named."""
        return self.classes.index("background") if "background" in self.classes else None

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
        beyond = label_HW[(label_HW >= len(self._lut)) | (label_HW < 0)]
        train = self._lut[np.clip(label_HW, 0, len(self._lut) - 1)]
        unknown = np.concatenate([beyond, label_HW[train == _UNMAPPED]])
        if unknown.size:
            ids, counts = np.unique(unknown, return_counts=True)
            listed = ", ".join(f"{i} ({n} px)" for i, n in zip(ids[:5], counts[:5], strict=True))
            raise UserError(f"label id {listed} is not in the id map {self.name!r}")
        return np.asarray(train, np.uint8)


def identity_map(table: ClassTable, ignored: Iterable[int] = (IGNORE,)) -> IdMap:
    """The map for files that hold the table's train ids already."""
    return IdMap(table.name, {i: i for i in range(table.num_classes)}, frozenset(ignored))
