"""Run a relabel phase: every row group of a data set looked at once, in this process or by Ray actors.

A row group's columns appear whole or not at all, so a phase that was interrupted goes on with those that are missing.
"""

import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress

from distuda import storage
from distuda.data.clips import Ids, in_clip_order, neighbours
from distuda.data.columns import COLUMNS, finish, groups_done, open_columns, write_group
from distuda.data.dataset import Dataset, open_dataset, rows_of
from distuda.data.labels import IGNORE
from distuda.data.sample import SCHEMA
from distuda.data.shards import count_pixels
from distuda.data.tolerance import Tolerance, read_list, require_few
from distuda.engine.loop import choose_device
from distuda.engine.run import open_run
from distuda.errors import UserError
from distuda.models.segmenter import Segmenter
from distuda.recipe import Domain, RelabelRecipe
from distuda.relabel import RELABELS, Relabeller
from distuda.relabel.relabeller import Counts, Recent, Row, Task, encode_map
from distuda.resume import differences

RELABEL = "relabel.yaml"
"""The resolved recipe of a relabel phase, in its folder."""

BAD_SAMPLES = "bad_samples"
"""What the names of the lists of unusable samples begin with; each process has its own."""


def relabel(recipe: RelabelRecipe) -> str:
    """Write the phase's columns and give its folder; with ``resume``, only those that are missing.

    Raises:
        UserError: data without what the phase looks at, no network where one is needed, a folder that holds others.
    """
    dataset, kind = open_domain(recipe), RELABELS[recipe.relabel.name]
    assert recipe.out is not None
    require_fresh(recipe)
    storage.write_bytes(storage.join(recipe.out, RELABEL), OmegaConf.to_yaml(_described(recipe)).encode())
    # what only some samples have is looked at where it is
    there = [column for column in kind.reads_if_there if column in SCHEMA.names or dataset.holds(column)]
    columns = [*recipe.relabel.reads, *there]
    left = sorted(set(range(len(dataset.groups))) - groups_done(recipe.out))
    done = len(dataset) - sum(dataset.rows_per_group[number] for number in left)
    title = f"{recipe.relabel.name}: looking at {len(dataset)} images"
    console, live = Console(stderr=True), sys.stderr.isatty()
    if not live:
        console.print(f"{title}, {done} of them done already" if done else title, highlight=False)
    started_s = time.monotonic()
    with Progress(console=console, transient=True, disable=not live) as progress:
        task = progress.add_task(title, total=len(dataset), completed=done)
        for count in _work(recipe, dataset, left, columns):
            progress.advance(task, count)
    rate = (len(dataset) - done) / max(1e-6, time.monotonic() - started_s)
    console.print(f"{recipe.relabel.name}: done, {rate:.1f} images/s", highlight=False)
    if not storage.exists(storage.join(recipe.out, COLUMNS)):
        _judge(recipe, len(dataset))
        finish(recipe.out, dataset, kind.writes)
    return recipe.out


def open_domain(recipe: RelabelRecipe, coming: Collection[str] = ()) -> Dataset:
    """The data set that a phase looks at, with every column it needs but for those still ``coming``."""
    domain: Domain = getattr(recipe, recipe.relabel.domain)
    if domain.uri is None:
        raise UserError(f"relabel {recipe.relabel.name!r} looks at the {recipe.relabel.domain}, and its uri is none.")
    dataset = open_dataset(domain.uri, domain.columns)
    if RELABELS[recipe.relabel.name].needs_clips and not dataset.moving:
        raise UserError(
            f"relabel {recipe.relabel.name!r} looks at frames in a row, and {domain.uri!r} holds no clips. Prepare "
            "frames of video, with all frames of a clip."
        )
    RELABELS[recipe.relabel.name].require(recipe.relabel, dataset.table)
    for column in recipe.relabel.reads:
        if column in coming:
            continue
        try:
            dataset.require(column)
        except UserError as error:
            raise UserError(f"relabel {recipe.relabel.name!r} looks at {column!r}: {error}") from None
    return dataset


def require_fresh(recipe: RelabelRecipe) -> None:
    """Refuse a folder that holds another relabel phase, or this one unless it is to be resumed."""
    assert recipe.out is not None
    if not storage.exists(storage.join(recipe.out, RELABEL)):
        return
    if not recipe.resume:
        raise UserError(f"out={recipe.out!r} holds a relabel phase already. Add resume=true, or choose another.")
    if different := differences(read_relabel(recipe.out), _described(recipe)):
        raise UserError(
            f"cannot go on with {recipe.out!r}: it was begun with another recipe ({'; '.join(different)}). Restore "
            "these values, or choose another out."
        )


def _described(recipe: RelabelRecipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"out", "resume", "workers", "device"})


def read_relabel(uri: str) -> dict[str, Any]:
    """What a relabel phase's folder says of itself."""
    values = OmegaConf.to_container(OmegaConf.create(storage.read_bytes(storage.join(uri, RELABEL)).decode()))
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def is_finished(recipe: RelabelRecipe) -> bool:
    """Whether all of the phase's columns are there."""
    assert recipe.out is not None
    return storage.exists(storage.join(recipe.out, COLUMNS))


def holds_labels(uri: str) -> bool:
    """Whether a folder is a relabel phase's."""
    return storage.exists(storage.join(uri, RELABEL))


def open_labels(uri: str) -> Dataset:
    """The data set that a finished relabel phase looked at, with the phase's columns."""
    values = read_relabel(uri)
    domain = values[values["relabel"]["domain"]]
    dataset = open_dataset(domain["uri"], domain["columns"])
    return open_dataset(domain["uri"], [*domain["columns"], open_columns(uri, dataset.manifest.content_hash).uri])


def _judge(recipe: RelabelRecipe, num_samples: int) -> None:
    """Refuse too many unusable samples in all: a process knows only of those that it has met since it started."""
    assert recipe.out is not None
    domain: Domain = getattr(recipe, recipe.relabel.domain)
    lists = [storage.join(recipe.out, name) for name in storage.list_folder(recipe.out) if name.startswith(BAD_SAMPLES)]
    bad = {key: reason for uri in lists for key, reason in read_list(uri).items()}
    require_few(bad, num_samples, domain.max_bad_share, ", ".join(lists))


class Worker:
    """One process that relabels row groups; what it needs is loaded once.

    Args:
        recipe: of the phase.
        dataset: with local paths that hold where this process lives.
        columns: to read.
    """

    def __init__(self, recipe: RelabelRecipe, dataset: Dataset, columns: Sequence[str]) -> None:
        assert recipe.out is not None
        self.out, self.dataset, self.columns = recipe.out, dataset, list(columns)
        self.relabeller = build(recipe, dataset)
        share = getattr(recipe, recipe.relabel.domain).max_bad_share
        listed = storage.join(recipe.out, f"{BAD_SAMPLES}-{os.uname().nodename}-{os.getpid()}.jsonl")
        self.tolerance = Tolerance(len(dataset), share, listed)
        self._surveys: Recent[str, Counts] = Recent(8)

    def __call__(self, number: int) -> int:
        """Relabel one row group; gives how many samples it has."""
        ids = self.dataset.group_window(number).ids
        turn = in_clip_order(self.dataset.index, ids) if any(self.relabeller.around) else ids
        made = dict(zip(turn.tolist(), self._looked_at(self._rows(turn)), strict=True))
        rows = [made[place] or self._nothing(place) for place in ids.tolist()]
        write_group(self.out, number, rows, self.relabeller.writes)
        return len(ids)

    def _rows(self, ids: Ids) -> Iterator[Row]:
        """What the relabeller gets of each sample; all are read at once, with the frames around them."""
        before, after = self.relabeller.around
        near = neighbours(self.dataset.previous, ids, before, after) if before or after else {}
        others = np.setdiff1d(np.concatenate([[-1], *near.values()]), np.append(ids, -1)).astype(np.int64)
        read = np.concatenate([ids, others])
        rows = list(rows_of(self.dataset.read_window(self.dataset.window_of(read), self.columns)))
        row_of = dict(zip(read.tolist(), rows, strict=True))
        for place, number in enumerate(ids.tolist()):
            row = row_of[number]
            if near:
                row = {**row, "around": {d: row_of[at[place]] for d, at in near.items() if at[place] >= 0}}
            if self.relabeller.surveys:
                row = {**row, "survey": self._survey(number, row)}
            yield row

    def _survey(self, number: int, row: Row) -> Counts:
        """The sum of counts over the clip of a sample, or over all samples."""
        clip = self.dataset.index["clip"][number].as_py() if self.relabeller.surveys == "clip" else ""
        return self.relabeller.survey(row) if clip is None else self._surveys.get(clip, lambda: self._counted(clip))

    def _counted(self, clip: str) -> Counts:
        """The sum of counts over a clip, or over all samples, a row group at a time and without their images."""
        index = self.dataset.index
        ids = np.flatnonzero(pc.equal(index["clip"], clip).fill_null(False)) if clip else np.arange(len(index))
        window = self.dataset.window_of(ids)
        counts: list[Counts] = []
        for group in np.unique(window.groups).tolist():
            table = self.dataset.read_group(group, ["key", *self.columns]).take(window.rows[window.groups == group])
            counts.append(np.sum([self.relabeller.survey(row) for row in table.to_pylist()], axis=0))
        return np.asarray(np.sum(counts, axis=0), np.int64)

    def _looked_at(self, rows: Iterator[Row]) -> list[dict[str, Any] | None]:
        if self.relabeller.needs_network:
            return [self._attempt(row) for row in rows]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # decoders, OpenCV and numpy let others run
            return list(pool.map(self._attempt, rows))

    def _attempt(self, row: Row) -> dict[str, Any] | None:
        """The columns of one sample; None of an unusable one that may be passed over."""
        made: dict[str, Any] | None = self.tolerance.attempt(lambda: self._encoded(row))
        return made

    def _nothing(self, number: int) -> dict[str, Any]:
        """What stands beside a sample that was passed over: maps of class ids that say nothing, none of the others."""
        height, width = (int(self.dataset.index[side][number].as_py()) for side in ("height", "width"))
        empty = encode_map(np.full((height, width), IGNORE, np.uint8))
        row: dict[str, Any] = {"key": self.dataset.index["key"][number].as_py()}
        row |= {name: empty for name in ("label", "mined") if name in self.relabeller.writes}
        return row | ({"class_pixels": [0] * self.dataset.table.num_classes} if "label" in row else {})

    def _encoded(self, row: Row) -> dict[str, Any]:
        """The columns of one sample as they are written."""
        made = {
            name: encode_map(values) if isinstance(values, np.ndarray) else values
            for name, values in self.relabeller(row).items()
        }
        counts = {}
        if isinstance(label := made.get("label"), bytes):
            counts["class_pixels"] = count_pixels(label, str(row["key"]), self.dataset.table.num_classes)
        return {"key": row["key"], **made, **counts}


def build(recipe: RelabelRecipe, dataset: Dataset, network: Segmenter | None = None) -> Relabeller:
    """The phase's relabeller with its network on the recipe's device; ``network`` in the place of ``init_from``'s."""
    kind = RELABELS[recipe.relabel.name]
    domain: Domain = getattr(recipe, recipe.relabel.domain)
    task = Task(dataset.table, size=domain.size, bf16=recipe.precision == "bf16")
    if kind.needs_network:
        if recipe.init_from is None:
            raise UserError(f"relabel {recipe.relabel.name!r} needs a trained network. Name its run with init_from.")
        task.network = (network or _trained(recipe.init_from, dataset)).to(choose_device(recipe)).eval()
    return kind(recipe.relabel, task)


def _trained(uri: str, dataset: Dataset) -> Segmenter:
    """The final network of a run that knows the data set's classes."""
    run = open_run(uri)
    if run.table.classes != dataset.table.classes:
        raise UserError(f"the network at {uri!r} knows other classes than {dataset.uri!r}.")
    return run.predictor


def _work(recipe: RelabelRecipe, dataset: Dataset, left: Sequence[int], columns: Sequence[str]) -> Iterator[int]:
    if not left:
        return
    if recipe.workers:
        from distuda.cluster.relabel import on_actors

        yield from on_actors(recipe, dataset, left, columns)
        return
    worker = Worker(recipe, dataset, columns)
    with torch.inference_mode():
        yield from map(worker, left)
