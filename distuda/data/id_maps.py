"""What the ids in a data set's label files mean, and the maps from them to the train ids of any class table.

Ids are listed by class name, so that one list serves every subset of classes. Sources: cityscapesScripts
(helpers/labels.py), the class lists in the SYNTHIA and VIPER releases, and the protocols of AdvEnt (16 and 13 classes)
and DA-VSN (15, 12 and 11 classes).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distuda import storage
from distuda.data.class_tables import CLASS_TABLES
from distuda.data.labels import IGNORE, ClassTable, IdMap, identity_map
from distuda.errors import UserError, nearest

# Where a table has no class of that name, its pixels count as this one.
_MERGED: dict[str, dict[str, str]] = {"viper15": {"rider": "person"}}


@dataclass(frozen=True)
class Ids:
    """The ids of one kind of label file.

    Attributes:
        classes: id -> class name; several ids may share one.
        others: ids that occur and mean nothing that is trained; any further id is an error.
    """

    classes: Mapping[int, str]
    others: frozenset[int]


def _ids(classes: Mapping[int, str], known: Iterable[int], *, ignore: int | None = IGNORE) -> Ids:
    void = set() if ignore is None else {ignore}
    return Ids(classes, frozenset({*known, *void} - set(classes)))


def _train_ids(table: str) -> Ids:
    return _ids(dict(enumerate(CLASS_TABLES[table].classes)), ())


_CITYSCAPES = dict(
    zip(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        CLASS_TABLES["cityscapes19"].classes,
        strict=True,
    )
)

_SYNTHIA = {
    1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole", 8: "car",
    9: "traffic sign", 10: "person", 11: "bicycle", 12: "motorcycle", 15: "traffic light", 16: "terrain", 17: "rider",
    18: "truck", 19: "bus", 20: "train", 21: "wall",
}  # fmt: skip

# The video sequences use an older list: 11 is a cyclist there, and there is nothing beyond 15.
_SYNTHIA_SEQ = {i: name for i, name in _SYNTHIA.items() if i <= 10 or i == 15} | {11: "rider"}

_VIPER = {
    2: "sky", 3: "road", 4: "sidewalk", 6: "terrain", 7: "vegetation", 8: "vegetation", 9: "building", 11: "fence",
    13: "traffic light", 14: "traffic sign", 20: "person", 22: "bicycle", 23: "motorcycle", 24: "car", 26: "bus",
    27: "truck",
}  # fmt: skip

LABEL_IDS: dict[str, Ids] = {
    "cityscapes_ids": _ids(_CITYSCAPES, range(34)),
    "cityscapes_train_ids": _train_ids("cityscapes19"),
    "gta5_ids": _ids(_CITYSCAPES, range(35)),  # Cityscapes' ids, and 34 for licence plates
    # SYNTHIA has no 255; files that do are copies with train ids, and all their other ids would fit by accident
    "synthia_ids": _ids(_SYNTHIA, range(23), ignore=None),
    "synthia_seq_ids": _ids(_SYNTHIA_SEQ, range(16), ignore=None),
    "viper_ids": _ids(_VIPER, range(32)),
    "voc_ids": _train_ids("voc21"),
    "camvid_segnet": _ids(dict(enumerate(CLASS_TABLES["camvid11"].classes)), (11,)),
}
"""Every kind of ids that can be named on the command line; without one, files hold train ids and 255."""


def find_id_map(name: str | None, table: ClassTable) -> IdMap:
    """The map from ids of that name to the table's train ids; without a name, the identity on the table.

    A ``.json`` file or URI holds a map of one's own: ``{"7": "road", "26": "car", "0": "ignore"}``.

    Raises:
        UserError: no such ids, or ids that never give one of the table's classes.
    """
    if name is None:
        return identity_map(table)
    if name.endswith(".json"):
        return _map_in(name, table)
    if name not in LABEL_IDS:
        raise UserError(
            f"no id map {name!r}{nearest(name, LABEL_IDS)}. Known: {', '.join(LABEL_IDS)}; or give a .json file like "
            '{"7": "road", "0": "ignore"}.'
        )
    ids = LABEL_IDS[name]
    merged = _MERGED.get(table.name, {})
    named = {i: merged.get(known, known) for i, known in ids.classes.items()}
    absent = [known for known in table.classes if known not in named.values()]
    if absent:
        fitting = [other.name for other in CLASS_TABLES.values() if _covers(ids, other)]
        raise UserError(
            f"id map {name!r} never gives {', '.join(map(repr, absent[:3]))} of class table {table.name!r}. "
            f"It fits {', '.join(fitting)}."
        )
    train = {i: table.index(known) for i, known in named.items() if known in table.classes}
    return IdMap(name, train, ids.others | (set(named) - set(train)))


def _map_in(uri: str, table: ClassTable) -> IdMap:
    try:
        named = {int(i): str(known) for i, known in json.loads(storage.read_bytes(uri)).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{uri!r} is not an id map ({error}). It must name a class, or ignore, for each id: "
            '{"7": "road", "0": "ignore"}.'
        ) from error
    if outside := [i for i in named if not 0 <= i < 65536]:
        raise UserError(f"id map {uri!r} has id {outside[0]}; ids are 0 to 65535.")
    train = {i: table.index(known) for i, known in named.items() if known != "ignore"}
    if not train:
        raise UserError(f"id map {uri!r} ignores every id. Give some of them classes of {table.name!r}.")
    return IdMap(Path(uri).stem, train, frozenset(named) - set(train) | {IGNORE} - set(train))


def map_by_name(own: ClassTable, table: ClassTable) -> IdMap:
    """The map from a data set's own table to another one by class name; case, ``-`` and ``_`` make no difference.

    Classes of ``own`` without a counterpart are ignored, and a class of ``table`` may be given by none.

    Raises:
        UserError: no class has a counterpart.
    """
    place = {_plain(known): i for i, known in enumerate(table.classes)}
    train = {i: place[_plain(known)] for i, known in enumerate(own.classes) if _plain(known) in place}
    if not train:
        raise UserError(
            f"none of the classes of the data set ({', '.join(own.classes[:5])}, ...) is in class table "
            f"{table.name!r}. Leave the class table out to keep the data set's own."
        )
    return IdMap(f"{own.name} to {table.name}", train, frozenset(range(own.num_classes)) - set(train) | {IGNORE})


def _plain(name: str) -> str:
    return name.casefold().replace("-", " ").replace("_", " ").strip()


def _covers(ids: Ids, table: ClassTable) -> bool:
    return set(table.classes) <= set(ids.classes.values())
