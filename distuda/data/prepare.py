"""A source folder to a shard folder: checked, restartable, parallel, and refusing nothing silently."""

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.table import Table

from distuda import storage
from distuda.data.class_tables import class_table
from distuda.data.clips import FLOW, previous_frames
from distuda.data.conversion import BadSample, Conversion
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.decode import Size
from distuda.data.id_maps import find_id_map, map_by_name
from distuda.data.labels import IGNORE, ClassTable, IdMap
from distuda.data.layouts import Entry, Layout, Reading, find_layout
from distuda.data.layouts.entry import choose
from distuda.data.manifest import PROGRESS, Manifest, read_manifest
from distuda.data.pairs import Pairs, find_pairs
from distuda.data.shards import ROW_GROUP_BYTES, SHARD_SAMPLES, finish, is_complete
from distuda.data.source import Tree
from distuda.errors import UserError

BAD_SAMPLES = "bad_samples.jsonl"
"""One line a sample that was left out: key, image, label, reason."""

PLAN = "plan.json"

PARALLEL_FROM = 2000
"""Samples from which Ray is started unless the user says otherwise; below, its start takes longer than it saves."""


@dataclass(frozen=True)
class Summary:
    """What `prepare` made.

    Attributes:
        uri: the finished shard folder.
        manifest: its manifest.
        num_bad: samples that were left out; they are listed in `BAD_SAMPLES` in the folder.
        unmapped: classes of the source's own table that the chosen class table lacks; their pixels are ignored.
        flow: folder of the clips' optical flow, inside ``uri``; empty unless it was asked for.
    """

    uri: str
    manifest: Manifest
    num_bad: int
    unmapped: tuple[str, ...] = ()
    flow: str = ""

    @property
    def num_samples(self) -> int:
        """Samples in the folder."""
        return self.manifest.num_samples

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of each class among labelled pixels, (C,); zeros without labels."""
        return Dataset(self.uri, self.manifest).class_frequencies()

    def render(self) -> Table:
        """Counts and class frequencies for the console."""
        megabytes = sum(group.bytes for group in self.manifest.row_groups) / 1e6
        bad = f", {self.num_bad} left out (see {BAD_SAMPLES})" if self.num_bad else ""
        labelled = self.manifest.num_labelled
        some = f", {labelled} with labels" if 0 < labelled < self.num_samples else ""
        pairs = f", {self.manifest.num_pairs} with a pair" if self.manifest.num_pairs else ""
        flow = ", flow beside them" if self.flow else ""
        title = f"{self.uri}: {self.num_samples} samples{some}{pairs}{flow}, {megabytes:.1f} MB{bad}"
        table = Table("class", "share of pixels", title=title, title_justify="left", min_width=len(title))
        if self.unmapped:
            table.caption = f"ignored, not in {self.manifest.table.name}: {', '.join(self.unmapped)}"
        for name, share in zip(self.manifest.table.classes, self.class_frequencies(), strict=True):
            table.add_row(name, f"{share:.2%}" if labelled else "no labels")
        return table


def prepare(
    layout: str,
    source_uri: str,
    destination_uri: str,
    *,
    split: str | None = None,
    variant: str | None = None,
    classes: str | None = None,
    id_map: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    every: int = 1,
    labels: bool = True,
    tags: Literal["auto", "masks", "none"] = "auto",
    resize: Size | None = None,
    cut_bottom: int = 0,
    pairs: str | None = None,
    pair_list: str | None = None,
    flow: bool = False,
    limit: int | None = None,
    max_bad_share: float | None = None,
    workers: int | None = None,
    row_group_bytes: int = ROW_GROUP_BYTES,
    shard_samples: int = SHARD_SAMPLES,
) -> Summary:
    """Convert a source folder; run it again after a crash and finished shards are kept.

    Args:
        layout: a key of `LAYOUTS`.
        source_uri: folder or archive, any fsspec URI.
        destination_uri: any fsspec URI; missing, empty, or left by an interrupted run.
        split: part of the source, None = all of it.
        variant: kind of the data set where several lie side by side, None = the layout's first.
        classes: name of the class table, None = that of the layout.
        id_map: name of the label files' ids, None = that of the layout.
        include: globs on keys; when there are any, a sample needs one match.
        exclude: globs on keys; a sample that matches one is left out.
        every: take one sample in so many, the first of each clip included; for video.
        labels: False writes an unlabelled set even where labels exist.
        tags: image-level labels: "auto" = those that the layout gives, "masks" = the classes in the label, "none".
        resize: (height, width) to store smaller images; None keeps the files as they are.
        cut_bottom: rows left out below, before resizing: a bonnet, or what a paper's loader cuts [pixels].
        pairs: a prepared data set of the other domain whose images become the pairs of the samples with the same key;
            they are stored as they are there, and a sample without a partner has none.
        pair_list: CSV file with the columns ``key`` and ``other_key``, where partners have other keys.
        flow: compute optical flow between the frames of clips and keep it in the folder ``flow`` of the destination,
            where `open_dataset` finds it.
        limit: only so many samples, the first in key order.
        max_bad_share: share of samples that may be unusable, 0..1; above it the run fails. None = the layout's.
        workers: Ray workers that write at once; 0 = in this process; None = one a CPU from `PARALLEL_FROM` samples on.
        row_group_bytes: encoded bytes of a row group, the unit of reading.
        shard_samples: samples of a shard, the unit of writing and restarting.

    Raises:
        UserError: empty source, too many bad samples, no pair found, no clips for flow, or a destination that holds
            something else.
    """
    kind, tree = find_layout(layout), Tree(source_uri)
    table, ids, unmapped = _class_ids(layout, kind, tree, split, classes, id_map)
    found = kind.entries(tree, split, _variant(layout, kind, variant))
    entries = list(islice(_thinned(_selected(found, include, exclude), every), limit))
    _require(layout, kind, tree, entries, labels)
    if flow:
        _require_clips(layout, entries)
    if cut_bottom < 0:
        raise UserError(f"--cut-bottom {cut_bottom} is below 0. Give a number of rows.")
    reading = Reading(kind, table, ids, labels, tags, resize, cut_bottom)
    job = Conversion(destination_uri, reading, row_group_bytes, _partners(entries, pairs, pair_list))
    written = replace(_write(layout, job, entries, shard_samples, workers, max_bad_share), unmapped=unmapped)
    return replace(written, flow=_write_flow(written, workers)) if flow else written


def _write(
    layout: str,
    job: Conversion,
    entries: Sequence[Entry],
    shard_samples: int,
    workers: int | None,
    max_bad_share: float | None,
) -> Summary:
    """The finished set: as it lies there already, or with all shards written that were missing."""
    plan, uri = _plan(layout, job, entries, shard_samples), job.destination
    if is_complete(uri):
        return _already_there(uri, plan)
    _begin(uri, plan)
    shards = [entries[i : i + shard_samples] for i in range(0, len(entries), shard_samples)]
    bad = job.write_all(shards, _num_workers(len(entries)) if workers is None else workers)
    _judge(job, shards, bad, job.reading.layout.bad_share if max_bad_share is None else max_bad_share)
    sparse = any(entry.unlabelled for entry in entries)
    manifest = finish(uri, job.reading.table, job.parts(len(shards)), plan, sparse=sparse)
    return Summary(uri, manifest, sum(map(len, bad)))


def _require_clips(layout: str, entries: Sequence[Entry]) -> None:
    """Refuse flow where no frame has the one before beside it."""
    places = {"clip": pa.array([e.clip for e in entries], pa.string()), "frame": [e.frame for e in entries]}
    if not (previous_frames(pa.table(places)) >= 0).any():
        raise UserError(
            f"layout {layout!r} gives no two frames in a row here, so there is no flow to compute. Leave out "
            "--flow, or prepare a layout or variant of clips."
        )


def _write_flow(written: Summary, workers: int | None) -> str:
    """Flow beside finished shards, a row group at a time; what an interrupted run left is gone on with."""
    from distuda.recipe import parse_relabel  # phases are built on data sets, so they are not known before
    from distuda.relabel.job import is_finished, relabel

    uri = open_dataset(written.uri).absolute().uri  # the same recipe wherever the command is given again
    workers = _num_workers(written.num_samples) if workers is None else workers
    values = {"out": storage.join(uri, FLOW), "resume": True, "workers": workers}
    recipe = parse_relabel({**values, "source": {"uri": uri}, "relabel": {"name": FLOW}})
    return storage.join(uri, FLOW) if is_finished(recipe) else relabel(recipe)


def _partners(entries: Sequence[Entry], pairs: str | None, pair_list: str | None) -> Pairs | None:
    if pair_list and not pairs:
        raise UserError(f"the list of pairs {pair_list!r} needs the data set it names images of. Add --pairs.")
    return find_pairs([entry.key for entry in entries], pairs, pair_list) if pairs else None


def _class_ids(
    layout: str, kind: Layout, tree: Tree, split: str | None, classes: str | None, id_map: str | None
) -> tuple[ClassTable, IdMap, tuple[str, ...]]:
    """The class table to write, the map to its train ids, and what the source's own table has beyond it."""
    if kind.own_table is not None:
        if id_map is not None:
            raise UserError(f"layout {layout!r} carries its own class ids. Leave the id map {id_map!r} out.")
        own = kind.own_table(tree, split)
        table = own if classes is None else class_table(classes)
        ids = map_by_name(own, table)
        return table, ids, tuple(own.classes[i] for i in sorted(ids.ignored - {IGNORE}))
    if classes is None and kind.classes is None:
        raise UserError(f"layout {layout!r} has no class table of its own. Name one, for instance cityscapes19.")
    table = class_table(classes or str(kind.classes))
    return table, find_id_map(id_map or kind.ids, table), ()


def _require(layout: str, kind: Layout, tree: Tree, entries: Sequence[Entry], labels: bool) -> None:
    """Refuse a source of which nothing was found, or no label where labels are wanted."""
    if not entries:
        raise UserError(_nothing(layout, kind, tree))
    lacking = [] if any(entry.label for entry in entries) else [entry for entry in entries if not entry.unlabelled]
    if labels and lacking:
        raise UserError(f"no label for any image in {tree.uri!r}. {_no_label_advice(kind, lacking[0])}")


def _variant(layout: str, kind: Layout, variant: str | None) -> str | None:
    if not kind.variants:
        if variant is not None:
            raise UserError(f"layout {layout!r} has no variants. Leave {variant!r} out.")
        return None
    return choose("variant", variant or kind.variants[0], kind.variants)[0]


def _nothing(layout: str, kind: Layout, tree: Tree) -> str:
    """Why there is no sample, and where the data set comes from."""
    images = f" Images come in {kind.images}." if kind.images else ""
    obtain = f" It comes as {kind.obtain}." if kind.obtain else ""
    found = "no sample found in" if storage.exists(tree.uri) else "no sample found: there is nothing at"
    return (
        f"{found} {tree.uri!r}.{images} Layout {layout!r} expects {kind.summary}, unpacked or as the "
        f"archives they come in.{obtain} Check the folder, the split and the filters."
    )


def _no_label_advice(kind: Layout, entry: Entry) -> str:
    """What to do where a source has images but not one label."""
    where = entry.label_hint or f"Expected {kind.summary}."
    return f"{where} For an unlabelled set leave labels out (--no-labels)."


def _selected(entries: Iterable[Entry], include: Sequence[str], exclude: Sequence[str]) -> Iterator[Entry]:
    for entry in entries:
        wanted = not include or any(fnmatch.fnmatchcase(entry.key, glob) for glob in include)
        if wanted and not any(fnmatch.fnmatchcase(entry.key, glob) for glob in exclude):
            yield entry


def _thinned(entries: Iterable[Entry], every: int) -> Iterator[Entry]:
    """One entry in ``every``, counted anew in each clip and by frame: by name, frame 10 would come before 2."""
    if every < 1:
        raise UserError(f"every = {every} takes no sample. Give 1 to take all, 2 for every second, and so on.")
    if every == 1:
        yield from entries
        return
    for _, frames in groupby(entries, key=lambda entry: entry.clip):
        yield from sorted(frames, key=lambda entry: entry.frame or 0)[::every]


def _num_workers(num_samples: int) -> int:
    from distuda.cluster.local import num_cores

    return num_cores() if num_samples >= PARALLEL_FROM else 0


def _plan(layout: str, job: Conversion, entries: Sequence[Entry], shard_samples: int) -> str:
    """Hash of all that decides the shards: equal plans may share finished shards."""
    how = job.reading
    facts: dict[str, Any] = {
        "layout": layout,
        "classes": how.table.to_json(),
        "ids": [how.ids.name, sorted(how.ids.train_ids.items()), sorted(how.ids.ignored)],
        "options": [how.labels, how.tags, how.resize, job.row_group_bytes, shard_samples],
    }
    if how.cut_bottom:  # sets that are not cut keep the plan they had before any could be
        facts["cut_bottom"] = how.cut_bottom
    if job.pairs is not None:  # sets without pairs keep the plan they had before there were any
        facts["pairs"] = job.pairs.digest()
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for entry in entries:
        total.update(repr(entry).encode())
    return total.hexdigest()


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


def _judge(
    job: Conversion, shards: Sequence[Sequence[Entry]], bad: Sequence[Sequence[BadSample]], allowed: float
) -> None:
    """List the bad samples and fail when they are too many; their shards are then written again by the next run."""
    listed: list[dict[str, Any]] = [line for lines in bad for line in lines]
    total = sum(map(len, shards))
    if not listed:
        return
    where = storage.join(job.destination, BAD_SAMPLES)
    storage.write_bytes(where, "".join(json.dumps(line) + "\n" for line in listed).encode())
    if len(listed) <= allowed * total:
        return
    for number, lines in enumerate(bad):
        if lines:
            job.forget(number)
    first = "\n".join(f"  {line['key']}: {line['reason']}" for line in listed[:5])
    raise UserError(
        f"{len(listed)} of {total} samples cannot be used, {allowed:.1%} are allowed:\n{first}\n"
        f"All are listed in {where}. Mend them and run again, or raise the allowed share (max_bad_share)."
    )
