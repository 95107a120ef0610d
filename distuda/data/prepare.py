"""A source folder to a shard folder: checked, restartable, parallel when asked, and refusing nothing silently."""

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from distuda import storage
from distuda.data.decode import SampleError, Size
from distuda.data.labels import ClassTable, IdMap, class_table, find_id_map
from distuda.data.layouts import Entry, find_layout, load_sample
from distuda.data.manifest import PROGRESS, Manifest, read_manifest
from distuda.data.sample import Sample
from distuda.data.shards import (
    ROW_GROUP_BYTES,
    SHARD_SAMPLES,
    Part,
    finish,
    is_complete,
    shard_name,
    write_shard,
)
from distuda.errors import UserError

BAD_SAMPLES = "bad_samples.jsonl"
"""One line a sample that was left out: key, image, label, reason."""

PLAN = "plan.json"


@dataclass(frozen=True)
class Summary:
    """What `prepare` made.

    Attributes:
        uri: the finished shard folder.
        manifest: its manifest.
        num_bad: samples that were left out; they are listed in `BAD_SAMPLES` in the folder.
    """

    uri: str
    manifest: Manifest
    num_bad: int

    @property
    def num_samples(self) -> int:
        """Samples in the folder."""
        return sum(group.rows for group in self.manifest.row_groups)

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of each class among labelled pixels, (C,); zeros without labels."""
        pixels = np.asarray([group.class_pixels for group in self.manifest.row_groups], np.float64).sum(axis=0)
        return np.asarray(pixels / max(1.0, float(pixels.sum())), np.float64)

    def render(self) -> Table:
        """Counts and class frequencies for the console."""
        megabytes = sum(group.bytes for group in self.manifest.row_groups) / 1e6
        bad = f", {self.num_bad} left out (see {BAD_SAMPLES})" if self.num_bad else ""
        title = f"{self.uri}: {self.num_samples} samples, {megabytes:.1f} MB{bad}"
        table = Table("class", "share of pixels", title=title, title_justify="left", min_width=len(title))
        for name, share in zip(self.manifest.table.classes, self.class_frequencies(), strict=True):
            table.add_row(name, f"{share:.2%}" if self.manifest.labelled else "no labels")
        return table


@dataclass(frozen=True)
class _Job:
    """Everything a worker needs to write one shard."""

    destination: str
    table: ClassTable
    ids: IdMap
    labels: bool
    resize: Size | None
    row_group_bytes: int


def prepare(
    layout: str,
    source_uri: str,
    destination_uri: str,
    *,
    split: str | None = None,
    classes: str | None = None,
    id_map: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    labels: bool = True,
    resize: Size | None = None,
    limit: int | None = None,
    max_bad_share: float = 0.0,
    workers: int = 0,
    row_group_bytes: int = ROW_GROUP_BYTES,
    shard_samples: int = SHARD_SAMPLES,
) -> Summary:
    """Convert a source folder; run it again after a crash and finished shards are kept.

    Args:
        layout: a key of `LAYOUTS`.
        source_uri: any fsspec URI.
        destination_uri: any fsspec URI; missing, empty, or left by an interrupted run.
        split: part of the source, None = all of it.
        classes: name of the class table, None = that of the layout.
        id_map: name of the id map, None = that of the layout.
        include: globs on keys; when there are any, a sample needs one match.
        exclude: globs on keys; a sample that matches one is left out.
        labels: False writes an unlabelled set even where labels exist.
        resize: (height, width) to store smaller images; None keeps the files as they are.
        limit: only so many samples, the first in key order.
        max_bad_share: share of samples that may be unusable, 0..1; above it the run fails.
        workers: Ray workers that write shards at once; 0 = in this process, without Ray.
        row_group_bytes: encoded bytes of a row group, the unit of reading.
        shard_samples: samples of a shard, the unit of writing and restarting.

    Raises:
        UserError: empty source, too many bad samples, or a destination that holds something else.
    """
    kind = find_layout(layout)
    if classes is None and kind.classes is None:
        raise UserError(f"layout {layout!r} has no class table of its own. Name one, for instance cityscapes19.")
    table = class_table(classes or str(kind.classes))
    entries = list(islice(_selected(kind.entries(source_uri, split), include, exclude), limit))
    if not entries:
        raise UserError(f"no sample found in {source_uri!r}. Layout {layout!r} expects {kind.summary}; check filters.")
    known_ids = id_map if id_map or classes not in (None, kind.classes) else kind.id_map
    job = _Job(destination_uri, table, find_id_map(known_ids, table), labels, resize, row_group_bytes)
    plan = _plan(job, entries, shard_samples)
    if is_complete(destination_uri):
        return _already_there(destination_uri, plan)
    _begin(destination_uri, plan)
    shards = [entries[i : i + shard_samples] for i in range(0, len(entries), shard_samples)]
    bad = _write_all(job, shards, workers)
    _judge(job, shards, bad, max_bad_share)
    parts = [Part.load(_part_uri(destination_uri, number)) for number in range(len(shards))]
    return Summary(destination_uri, finish(destination_uri, table, parts, plan), sum(map(len, bad)))


def _selected(entries: Iterable[Entry], include: Sequence[str], exclude: Sequence[str]) -> Iterator[Entry]:
    for entry in entries:
        wanted = not include or any(fnmatch.fnmatchcase(entry.key, glob) for glob in include)
        if wanted and not any(fnmatch.fnmatchcase(entry.key, glob) for glob in exclude):
            yield entry


def _plan(job: _Job, entries: Sequence[Entry], shard_samples: int) -> str:
    """Hash of all that decides the shards: equal plans may share finished shards."""
    facts = {
        "entries": [asdict(entry) for entry in entries],
        "classes": job.table.to_json(),
        "ids": [job.ids.name, sorted(job.ids.train_ids.items()), sorted(job.ids.ignored)],
        "options": [job.labels, job.resize, job.row_group_bytes, shard_samples],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _already_there(uri: str, plan: str) -> Summary:
    manifest = read_manifest(uri)
    if manifest.plan != plan:
        raise UserError(f"{uri!r} holds another data set already. Choose another folder or remove it first.")
    listed = storage.join(uri, BAD_SAMPLES)
    return Summary(uri, manifest, len(storage.read_bytes(listed).splitlines()) if storage.exists(listed) else 0)


def _begin(uri: str, plan: str) -> None:
    """Mark the folder as under way, or refuse one that is under way with another plan."""
    marker = storage.join(uri, PROGRESS, PLAN)
    if storage.exists(marker):
        if storage.read_bytes(marker).decode() != plan:
            raise UserError(
                f"{uri!r} holds an unfinished set made with other options or files. Remove it and run again."
            )
    elif entries := storage.list_folder(uri):
        raise UserError(f"{uri!r} is not empty (it holds {entries[0]!r}). Choose another folder or remove it first.")
    else:
        storage.write_bytes(marker, plan.encode())


def _write_all(job: _Job, shards: Sequence[Sequence[Entry]], workers: int) -> list[list[dict[str, Any]]]:
    """Write the shards that are missing; the bad samples of each shard, finished earlier or now."""
    done = set(storage.list_folder(storage.join(job.destination, PROGRESS)))
    missing = [number for number in range(len(shards)) if shard_name(number) not in done]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task("preparing", total=sum(map(len, shards)))
        progress.advance(task, sum(len(shards[n]) for n in set(range(len(shards))) - set(missing)))
        if workers:
            _write_with_ray(job, shards, missing, workers, partial(progress.advance, task))
        else:
            for number in missing:
                _write_one(job, shards[number], number, partial(progress.advance, task))
    return [_read_bad(job.destination, number) for number in range(len(shards))]


def _write_one(job: _Job, entries: Sequence[Entry], number: int, advance: Callable[[int], None]) -> None:
    """Write a shard, then its bad samples, then its part: the part's presence means the shard is done."""
    bad: list[dict[str, Any]] = []

    def good() -> Iterator[Sample]:
        for entry in entries:
            try:
                yield load_sample(entry, job.table, job.ids, labels=job.labels, resize=job.resize)
            except SampleError as error:
                bad.append({"key": entry.key, "image": entry.image, "label": entry.label, "reason": error.reason})
            advance(1)

    part = write_shard(good(), job.destination, number, job.table.num_classes, job.row_group_bytes)
    if bad:
        lines = "".join(json.dumps(line) + "\n" for line in bad)
        storage.write_bytes(_bad_uri(job.destination, number), lines.encode())
    part.save(_part_uri(job.destination, number))


def _write_with_ray(
    job: _Job, shards: Sequence[Sequence[Entry]], missing: Sequence[int], workers: int, advance: Callable[[int], None]
) -> None:
    """One Ray Data block a shard, so that shards are written at once on whatever nodes there are."""
    import ray

    from distuda.cluster.local import quiet_data, start_ray

    if not missing:
        return
    start_ray()
    quiet_data()

    def write(row: dict[str, Any]) -> dict[str, Any]:
        _write_one(job, row["entries"], row["number"], lambda _: None)
        return {"count": len(row["entries"])}

    items = [{"number": number, "entries": list(shards[number])} for number in missing]
    blocks = ray.data.from_items(items, override_num_blocks=len(items))
    for row in blocks.map(write, concurrency=workers).iter_rows():
        advance(row["count"])


def _judge(
    job: _Job, shards: Sequence[Sequence[Entry]], bad: Sequence[Sequence[dict[str, Any]]], allowed: float
) -> None:
    """List the bad samples and fail when they are too many; their shards are then written again by the next run."""
    listed, total = [line for lines in bad for line in lines], sum(map(len, shards))
    if not listed:
        return
    where = storage.join(job.destination, BAD_SAMPLES)
    storage.write_bytes(where, "".join(json.dumps(line) + "\n" for line in listed).encode())
    if len(listed) <= allowed * total:
        return
    for number, lines in enumerate(bad):
        if lines:
            storage.remove(_part_uri(job.destination, number))
            storage.remove(_bad_uri(job.destination, number))
    first = "\n".join(f"  {line['key']}: {line['reason']}" for line in listed[:5])
    raise UserError(
        f"{len(listed)} of {total} samples cannot be used, {allowed:.1%} are allowed:\n{first}\n"
        f"All are listed in {where}. Mend them and run again, or raise the allowed share (max_bad_share)."
    )


def _part_uri(uri: str, number: int) -> str:
    return storage.join(uri, PROGRESS, shard_name(number))


def _bad_uri(uri: str, number: int) -> str:
    return storage.join(uri, PROGRESS, f"bad-{number:05d}.jsonl")


def _read_bad(uri: str, number: int) -> list[dict[str, Any]]:
    where = _bad_uri(uri, number)
    lines = storage.read_bytes(where).splitlines() if storage.exists(where) else []
    return [json.loads(line) for line in lines]


class _Rate(TextColumn):
    """Samples per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        """The rate as text."""
        self.text_format = f"{task.speed or 0:.0f}/s"
        return super().render(task)
