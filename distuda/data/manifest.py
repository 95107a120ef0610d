"""The small file at the root of a shard folder that says what lies in it; written last, so it means complete."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from distuda import storage
from distuda.data.labels import ClassTable
from distuda.errors import UserError

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
INDEX = "samples.parquet"
PROGRESS = "_progress"
"""Folder of finished parts while shards are being written; removed once the manifest is there."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("class_pixels", pa.list_(pa.int64())),
        pa.field("digest", pa.binary(32), nullable=False),
        pa.field("tags", pa.list_(pa.int32())),
        pa.field("clip", pa.string()),
        pa.field("frame", pa.int32()),
        pa.field("has_instances", pa.bool_()),
        pa.field("has_pair", pa.bool_()),
        pa.field("has_flow", pa.bool_()),
    ]
)
"""One line a sample, in the order of shards, row groups and rows; ``class_pixels`` is null without a label, ``digest``
is the SHA-256 of image, label and pair. Tags, clip and frame are those of the sample, so clips and tags are found
without reading an image."""


@dataclass(frozen=True)
class RowGroup:
    """One unit of reading.

    Attributes:
        file: shard file name, relative to the folder.
        index: number of the row group in that file.
        rows: samples in it.
        bytes: encoded images, labels, instances, pairs and flow together.
        class_pixels: labelled pixels per train id, C values.
    """

    file: str
    index: int
    rows: int
    bytes: int
    class_pixels: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {**self.__dict__, "class_pixels": list(self.class_pixels)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RowGroup":
        """The inverse of `to_json`."""
        return cls(data["file"], data["index"], data["rows"], data["bytes"], tuple(data["class_pixels"]))


@dataclass(frozen=True)
class Manifest:
    """What a shard folder holds.

    Attributes:
        table: the class table of the labels, in full.
        row_groups: in the order of the samples.
        num_labelled: samples with a label; in video data often one frame in many.
        content_hash: hex SHA-256 over keys, images, labels and pairs in order; equal data, equal hash.
        plan: hash of the options that `prepare` ran with; empty when written directly.
        num_pairs: samples with the other domain's image of the same view.
        num_flows: samples with optical flow to the frame before.
    """

    table: ClassTable
    row_groups: tuple[RowGroup, ...]
    num_labelled: int
    content_hash: str
    plan: str = ""
    num_pairs: int = 0
    num_flows: int = 0

    @property
    def num_samples(self) -> int:
        """Samples in the folder."""
        return sum(group.rows for group in self.row_groups)

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label."""
        return self.num_labelled == self.num_samples

    def to_json(self) -> dict[str, Any]:
        """Plain types, as they lie in the file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "classes": self.table.to_json(),
            "num_labelled": self.num_labelled,
            "content_hash": self.content_hash,
            "plan": self.plan,
            "num_pairs": self.num_pairs,
            "num_flows": self.num_flows,
            "row_groups": [group.to_json() for group in self.row_groups],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """The inverse of `to_json`."""
        groups = tuple(RowGroup.from_json(group) for group in data["row_groups"])
        table = ClassTable.from_json(data["classes"])
        num_pairs, num_flows = data.get("num_pairs", 0), data.get("num_flows", 0)  # sets from before there were any
        return cls(table, groups, data["num_labelled"], data["content_hash"], data["plan"], num_pairs, num_flows)


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Make a shard folder complete."""
    storage.write_bytes(storage.join(uri, MANIFEST), json.dumps(manifest.to_json(), indent=1).encode())


def read_manifest(uri: str) -> Manifest:
    """The manifest of a complete shard folder; anything else is the user's error and says what to do."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        raise UserError(_why_not(uri))
    data = json.loads(storage.read_bytes(storage.join(uri, MANIFEST)))
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{uri!r} was written with shard schema {data.get('schema_version')!r}, "
            f"this version reads {SCHEMA_VERSION}. Run `distuda prepare` again."
        )
    return Manifest.from_json(data)


def _why_not(uri: str) -> str:
    entries = storage.list_folder(uri)
    if not entries:
        return f"no data set at {uri!r}: missing or empty. Make one with `distuda prepare LAYOUT SOURCE {uri}`."
    if PROGRESS in entries or any(entry.endswith(".parquet") for entry in entries):
        return (
            f"the data set at {uri!r} is incomplete (no {MANIFEST}). Run the same `distuda prepare` again to finish it."
        )
    return f"{uri!r} holds files but no shards. Convert it first: `distuda prepare LAYOUT {uri} DESTINATION`."
