"""Columns that a relabel phase writes beside a data set: more about the same samples, the shards left as they are.

    columns.json                what lies here and for which data set; written last, so it means complete
    groups/00000.parquet        one file a row group, rows in its order: key, the columns, class_pixels of a label

A group's file appears whole or not at all, so an interrupted phase goes on with the groups that have none. Columns are:

    label       8-bit PNG of train ids, 255 = ignore; takes the place of the shards' own
    mined       8-bit PNG: the class whose object a pixel was found to be, 254 = several claim it, 255 = none
    heat        8-bit PNG: how strongly the image's tags were seen at a pixel in any round, 255 = a tag's most then
    heat_now    8-bit PNG: the same in this round, whose classifier did not see what was mined before
    saliency    8-bit PNG: how much a pixel stands out of the picture, 255 = most
    confidence  8-bit PNG: probability of the label that was written with it, 255 = 1
    flow        16-bit PNG (`flow.encode_flow`): backward optical flow to the clip's frame before; null without one
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distuda import storage
from distuda.errors import UserError

if TYPE_CHECKING:
    from distuda.data.dataset import Dataset

COLUMNS = "columns.json"
GROUPS = "groups"
FORMAT_VERSION = 1

CONTESTED = 254
"""Value of ``mined`` where more than one class claims a pixel."""


@dataclass(frozen=True)
class Columns:
    """A complete folder of columns.

    Attributes:
        uri: the folder.
        names: which columns it holds.
        base: content hash of the data set they belong to.
        class_pixels: labelled pixels per train id of each row group; empty without a label column.
        num_labelled: samples with a label here.
    """

    uri: str
    names: tuple[str, ...]
    base: str
    class_pixels: tuple[tuple[int, ...], ...] = ()
    num_labelled: int = 0

    def read_group(self, number: int, names: Sequence[str]) -> pa.Table:
        """These columns of one row group, bytes still encoded."""
        return read_group(self.uri, number, names)


def read_group(uri: str, number: int, names: Sequence[str] | None = None) -> pa.Table:
    """Some columns, or all, of one written row group."""
    content = storage.read_bytes(storage.join(uri, GROUPS, _file(number)))
    return pq.read_table(pa.BufferReader(content), columns=None if names is None else list(names))


def write_group(uri: str, number: int, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Write the columns of one row group: each row has ``key``, the named columns and, with a label, its counts.

    A column that is None, or lacks in a row, is null there.
    """
    schema = [pa.field("key", pa.string()), *(pa.field(name, pa.binary()) for name in names)]
    if "label" in names:
        schema.append(pa.field("class_pixels", pa.list_(pa.int64())))
    buffer = io.BytesIO()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.Table.from_pylist(list(rows), pa.schema(schema)), buffer, **options)
    storage.write_bytes(storage.join(uri, GROUPS, _file(number)), buffer.getvalue())


def groups_done(uri: str) -> set[int]:
    """Numbers of the row groups whose columns are written."""
    found = (re.fullmatch(r"(\d+)\.parquet", name) for name in storage.list_folder(storage.join(uri, GROUPS)))
    return {int(match[1]) for match in found if match}


def finish(uri: str, dataset: "Dataset", names: Sequence[str]) -> Columns:
    """Make the folder complete, once every row group of the data set has its columns."""
    counts: list[tuple[int, ...]] = []
    num_labelled = 0
    if "label" in names:
        for number in range(len(dataset.groups)):
            pixels = _counts(uri, number, dataset.table.num_classes)
            counts.append(tuple(pixels.sum(axis=0).tolist()))
            num_labelled += len(pixels)
    columns = Columns(uri, tuple(names), dataset.manifest.content_hash, tuple(counts), num_labelled)
    data = {"format": FORMAT_VERSION, **columns.__dict__}
    del data["uri"]
    storage.write_bytes(storage.join(uri, COLUMNS), json.dumps(data, indent=1).encode())
    return columns


def open_columns(uri: str, base: str) -> Columns:
    """The columns in a folder, refused where they are incomplete or belong to other data.

    Args:
        uri: what a relabel phase wrote.
        base: content hash of the data set that they are wanted for.
    """
    where = storage.join(uri, COLUMNS)
    if not storage.exists(where):
        raise UserError(f"no columns at {uri!r} (no {COLUMNS}). Give a finished relabel phase, or finish it.")
    data = json.loads(storage.read_bytes(where))
    if data.get("format") != FORMAT_VERSION:
        raise UserError(
            f"the columns at {uri!r} are of format {data.get('format')}; this version reads {FORMAT_VERSION}. "
            "Run the relabel phase again."
        )
    if data["base"] != base:
        raise UserError(f"the columns at {uri!r} belong to another data set. Relabel this one, or give theirs.")
    return Columns(uri, tuple(data["names"]), base, tuple(tuple(c) for c in data["class_pixels"]), data["num_labelled"])


def class_pixels(columns: Columns, num_groups: int, num_classes: int) -> np.ndarray:
    """Labelled pixels per train id of each sample, (N, C)."""
    return np.concatenate([_counts(columns.uri, number, num_classes) for number in range(num_groups)])


def _counts(uri: str, number: int, num_classes: int) -> np.ndarray:
    table = read_group(uri, number, ["class_pixels"])
    return np.asarray(table["class_pixels"].to_pylist(), np.int64).reshape(-1, num_classes)


def _file(number: int) -> str:
    return f"{number:05d}.parquet"
