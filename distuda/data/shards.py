"""Samples to Parquet shards on any fsspec URI, and back one row group at a time."""

import hashlib
import json
import os
import re
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distuda import storage
from distuda.data.decode import SampleError, decode_label
from distuda.data.labels import ClassTable
from distuda.data.manifest import INDEX, INDEX_SCHEMA, MANIFEST, PROGRESS, Manifest, RowGroup, write_manifest
from distuda.data.sample import SCHEMA, Sample
from distuda.errors import UserError
from distuda.outage import persist

ROW_GROUP_BYTES = 16 * 2**20
"""Default size of a row group, the unit of reading and of shuffling."""

SHARD_SAMPLES = 256
"""Default number of samples a shard file, the unit of writing and of restarting."""

_KEY = re.compile(r"[A-Za-z0-9._\-]+(/[A-Za-z0-9._\-]+)*")


@dataclass
class Part:
    """One written shard: its row groups and its lines of the index."""

    groups: list[RowGroup] = field(default_factory=list)
    index: list[pa.RecordBatch] = field(default_factory=list)

    def table(self) -> pa.Table:
        """The index lines."""
        return pa.Table.from_batches(self.index, INDEX_SCHEMA)

    def save(self, uri: str) -> None:
        """Keep the part beside the shard until the manifest is written."""
        meta = {"row_groups": json.dumps([group.to_json() for group in self.groups])}
        with _whole_file(uri) as path:
            pq.write_table(self.table().replace_schema_metadata(meta), path)

    @classmethod
    def load(cls, uri: str) -> "Part":
        """The inverse of `save`."""
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
        groups = [RowGroup.from_json(group) for group in json.loads(table.schema.metadata[b"row_groups"])]
        return cls(groups, table.cast(INDEX_SCHEMA).to_batches())


def write_shards(
    samples: Iterable[Sample],
    uri: str,
    table: ClassTable,
    *,
    row_group_bytes: int = ROW_GROUP_BYTES,
    shard_samples: int = SHARD_SAMPLES,
) -> Manifest:
    """Write samples as they come and make the folder complete; memory holds one row group.

    Args:
        samples: with unique keys, all labelled or none; order is kept.
        uri: an empty or missing folder.
        table: what the labels mean.
        row_group_bytes: encoded bytes after which a row group is closed.
        shard_samples: samples a file.
    """
    require_empty(uri)
    storage.write_bytes(storage.join(uri, PROGRESS, "started"), b"")
    remaining = iter(samples)
    parts: list[Part] = []
    while (first := next(remaining, None)) is not None:
        shard = chain([first], islice(remaining, shard_samples - 1))
        parts.append(write_shard(shard, uri, len(parts), table.num_classes, row_group_bytes))
    return finish(uri, table, parts)


def require_empty(uri: str) -> None:
    """Refuse a folder that holds something already."""
    if entries := storage.list_folder(uri):
        raise UserError(f"{uri!r} is not empty (it holds {entries[0]!r}). Choose another folder or remove it first.")


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.parquet"


def write_shard(samples: Iterable[Sample], uri: str, number: int, num_classes: int, row_group_bytes: int) -> Part:
    """Write one shard file; it appears whole or not at all."""
    part, name = Part(), shard_name(number)
    with _whole_file(storage.join(uri, name)) as path:
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(path, SCHEMA, **options) as writer:
            for rows in _by_bytes(samples, row_group_bytes):
                writer.write_table(
                    pa.Table.from_pylist([row.__dict__ for row in rows], SCHEMA), row_group_size=len(rows)
                )
                _record(part, rows, name, num_classes)
    return part


def finish(uri: str, table: ClassTable, parts: Sequence[Part], plan: str = "", *, sparse: bool = False) -> Manifest:
    """Write index and manifest over written shards, then remove the traces of progress.

    Unless ``sparse``, either all samples have labels or none.
    """
    groups = tuple(group for part in parts for group in part.groups)
    if not groups:
        raise UserError(f"there is no sample to write to {uri!r}. Check the source folder and the filters.")
    index = pa.concat_tables([part.table() for part in parts])
    keys = index["key"].to_pylist()
    key, times = Counter(keys).most_common(1)[0]
    if times > 1:
        raise UserError(f"key {key!r} occurs {times} times. Keys must be unique in a data set; rename the files.")
    num_unlabelled = index["class_pixels"].null_count
    if not sparse and 0 < num_unlabelled < len(keys):
        raise UserError(f"{num_unlabelled} of {len(keys)} samples have no label. Give all of them labels, or none.")
    with _whole_file(storage.join(uri, INDEX)) as path:
        pq.write_table(index, path)
    num_pairs, num_flows = (int(np.count_nonzero(index[name].to_numpy())) for name in ("has_pair", "has_flow"))
    manifest = Manifest(table, groups, len(keys) - num_unlabelled, _content_hash(index), plan, num_pairs, num_flows)
    write_manifest(uri, manifest)
    storage.remove(storage.join(uri, PROGRESS))
    storage.remove_parts(uri)
    return manifest


def is_complete(uri: str) -> bool:
    """Whether a folder is a finished data set."""
    return storage.exists(storage.join(uri, MANIFEST))


def read_row_group(uri: str, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group of a shard folder, its bytes still encoded."""
    where = storage.join(uri, group.file)
    if storage.is_local(where):
        with pq.ParquetFile(storage.filesystem(where)[1], metadata=_footer(where)) as file:
            return file.read_row_group(group.index, columns=columns)

    def read() -> pa.Table:
        with_ranges_ahead = pq.ParquetFile(storage.native(where), metadata=_footer(where), pre_buffer=True)
        return with_ranges_ahead.read_row_group(group.index, columns=columns)

    return persist(where, read)


@lru_cache(maxsize=4096)
def _footer(uri: str) -> pq.FileMetaData:
    with _explained(uri):
        return pq.read_metadata(storage.filesystem(uri)[1] if storage.is_local(uri) else storage.native(uri))


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Missing and damaged shards in the user's words."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"shard {uri!r} is missing though the manifest lists it. Run `distuda prepare` again."
        ) from error
    except pa.ArrowInvalid as error:
        raise UserError(
            f"shard {uri!r} is damaged ({error}). Remove the data set and run `distuda prepare` again."
        ) from error


def _by_bytes(samples: Iterable[Sample], limit: int) -> Iterator[list[Sample]]:
    """Consecutive samples, closed as soon as their bytes reach the limit."""
    rows: list[Sample] = []
    size = 0
    for sample in samples:
        rows.append(sample)
        size += _num_bytes(sample)
        if size >= limit:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _num_bytes(sample: Sample) -> int:
    pictures = (sample.image, sample.label, sample.instance, sample.pair, sample.flow)
    return sum(len(picture or b"") for picture in pictures)


def _record(part: Part, rows: list[Sample], name: str, num_classes: int) -> None:
    pixels = [None if row.label is None else count_pixels(row.label, row.key, num_classes) for row in rows]
    number = len(part.groups)
    known = [p for p in pixels if p is not None]
    total = tuple(np.sum(known, axis=0).tolist()) if known else (0,) * num_classes
    part.groups.append(RowGroup(name, number, len(rows), sum(_num_bytes(row) for row in rows), total))
    lines = [
        {
            "key": _checked_key(row.key),
            "shard": name,
            "row_group": number,
            "row": i,
            "height": row.height,
            "width": row.width,
            "class_pixels": pixels[i],
            "digest": _digest(row),
            "tags": _checked_tags(row, num_classes),
            "clip": row.clip,
            "frame": row.frame,
            "has_instances": row.instance is not None,
            "has_pair": row.pair is not None,
            "has_flow": row.flow is not None,
        }
        for i, row in enumerate(rows)
    ]
    part.index.append(pa.RecordBatch.from_pylist(lines, INDEX_SCHEMA))


def _checked_key(key: str) -> str:
    """Keys name output files later, so they must not lead out of a folder."""
    if not _KEY.fullmatch(key) or ".." in key.split("/"):
        raise SampleError(key, "keys may hold letters, digits and . _ - / only. Rename the file.")
    return key


def _checked_tags(row: Sample, num_classes: int) -> list[int] | None:
    outside = [tag for tag in row.tags or [] if not 0 <= tag < num_classes]
    if outside:
        raise SampleError(row.key, f"tag {outside[0]} is outside the class table ({num_classes} classes).")
    return row.tags


def count_pixels(label: bytes, key: str, num_classes: int) -> list[int]:
    """Pixels of each train id in an encoded label, C values."""
    counts = np.bincount(decode_label(label, key).ravel(), minlength=256)
    if counts[num_classes:255].any():
        bad = num_classes + int(counts[num_classes:255].argmax())
        raise SampleError(key, f"label id {bad} is outside the class table ({num_classes} classes).")
    return [int(n) for n in counts[:num_classes]]


def _digest(row: Sample) -> bytes:
    """Of everything that training or a relabel phase may look at, so that columns made of other data are refused."""
    tags = b"" if row.tags is None else json.dumps(sorted(row.tags)).encode()
    return hashlib.sha256(row.image + (row.label or b"") + (row.pair or b"") + tags).digest()


def _content_hash(index: pa.Table) -> str:
    total = hashlib.sha256()
    for key, digest in zip(index["key"].to_pylist(), index["digest"].to_pylist(), strict=True):
        total.update(key.encode() + digest)
    return total.hexdigest()


@contextmanager
def _whole_file(uri: str) -> Iterator[Path]:
    """A local path to write to; the URI gets the file when the block ends without an error."""
    if not storage.is_local(uri):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "part"
            yield path
            storage.write_file(path, uri)
        return
    target = storage.filesystem(uri)[1]
    path = Path(target).with_name(f".{Path(target).name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        os.replace(path, target)
    except OSError as error:
        raise UserError(f"cannot write {uri!r}: {error}. Choose a folder this user may write to.") from error
    finally:
        path.unlink(missing_ok=True)
