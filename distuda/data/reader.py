"""Shards to batches in one process: rows are read and decoded ahead in threads, batches come in exact order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from distuda.data.batch import Batch
from distuda.data.clips import FLOW, decode_clip, flow_between, in_clip_order
from distuda.data.dataset import Dataset, rows_of
from distuda.data.decode import Pictures, Size, decode_row, decode_sample, resize_image
from distuda.data.order import Ids, Order, Window
from distuda.data.tolerance import STRICT, Tolerance
from distuda.errors import UserError

DECODE_THREADS = min(8, os.cpu_count() or 1)
"""Threads that decode; decoders release the interpreter lock, so they use that many cores."""

Row = dict[str, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_batches(
    dataset: Dataset,
    order: Order,
    *,
    batch_size: int,
    size: Size | None,
    region: Size | None,
    columns: Sequence[str] = ("label",),
    num_frames: int = 1,
    prefetch: int = 4,
    tolerance: Tolerance = STRICT,
) -> Iterator[Batch]:
    """Endless batches of one rank, read in this process.

    Args:
        dataset: where the samples lie.
        order: which sample comes when; `Order.history_after` gives the position to save.
        batch_size: samples a batch.
        size: (height, width) after resizing, None = native.
        region: (height, width) of the seeded window cut after resizing, None = the whole image.
        columns: what batches carry beside the images: ``label``, ``pair``, ``tags``, ``mined``, ``flow``; every sample
            of the order must have them, but for flow, which is computed where it does not lie in the data set.
        num_frames: frames a sample, itself and those before it; every sample of the order must have so many.
        prefetch: batches decoded ahead.
        tolerance: what happens to samples that cannot be used. The place of one that is passed over goes to the next
            good sample of its batch, with another crop, so positions and batch sizes stay what they are.

    Returns:
        uint8 images, int64 labels or None, int64 seeds; closing the iterator stops its threads.
    """
    require(dataset, columns)
    num_classes = dataset.table.num_classes
    with threads(1) as pool:
        tables = ahead(pool, lambda window: dataset.read_window(window, columns, num_frames), order.windows(), 1)
        rows = (row for table in tables for row in rows_of(table))
        yield from decode_batches(rows, num_classes, batch_size, columns, num_frames, size, region, prefetch, tolerance)


def iterate_once(
    dataset: Dataset,
    *,
    rank: int = 0,
    world: int = 1,
    size: Size | None = None,
    limit: int | None = None,
    moving: bool = True,
    tolerance: Tolerance = STRICT,
) -> Iterator[Batch]:
    """Every sample once, or the first ``limit``, one a batch, in stored order, for evaluation.

    Of a set in which only some samples have labels, those. Each comes on exactly one rank and none is repeated to fill
    up, so counts summed over ranks are those of one process. Images are resized to ``size``; labels (None without)
    keep their native size. Unusable samples are left out where they are tolerated.

    Of clips the frames come in their order, a clip whole on one rank; without ``moving`` as single images.
    """
    ids = dataset.labelled_ids() if 0 < dataset.manifest.num_labelled < len(dataset) else np.arange(len(dataset))
    ids = in_clip_order(dataset.index, ids[:limit]) if dataset.moving else ids[:limit]
    mine = _share(dataset, ids, rank, world)
    yield from read_samples(dataset, mine, size=size, moving=moving, tolerance=tolerance)


def read_samples(
    dataset: Dataset, ids: Ids, *, size: Size | None = None, moving: bool = True, tolerance: Tolerance = STRICT
) -> Iterator[Batch]:
    """The samples of these numbers, one a batch: images resized to ``size``, labels at their own.

    Those of clips, unless ``moving`` is off, come with ``clips`` filled and, where there is one, the frame ``before``
    and the flow to it, at the size of the image.
    """
    columns, num_frames = (("label", "clip", FLOW), 2) if moving and dataset.moving else (("label",), 1)
    with threads(1) as reading, threads(DECODE_THREADS) as decoding:
        tables = ahead(
            reading, lambda window: dataset.read_window(window, columns, num_frames), _stored(dataset, ids), 1
        )
        rows = (row for table in tables for row in rows_of(table))
        batches = ahead(decoding, lambda row: tolerance.attempt(lambda: _whole(row, size)), rows, 4)
        yield from (batch for batch in batches if batch is not None)


def decode_batches(
    rows: Iterable[Row],
    num_classes: int,
    batch_size: int,
    columns: Sequence[str],
    num_frames: int,
    size: Size | None,
    region: Size | None,
    prefetch: int,
    tolerance: Tolerance = STRICT,
) -> Iterator[Batch]:
    """Rows of `Dataset.read_window` to batches, each decoded by one of a few threads; no unfilled batch at the end."""

    def picture(row: Row, seed: int) -> Pictures | None:
        placed: dict[str, Any] = {"size": size, "region": region, "seed": seed}
        if num_frames == 1:
            return tolerance.attempt(lambda: decode_row(row, columns, **placed))
        return tolerance.attempt(lambda: decode_clip(row, columns, num_frames=num_frames, **placed))

    def make(rows: list[Row]) -> Batch:
        """One batch, whole also where some of its rows cannot be used."""
        pictures, keys = [], []
        for place, row in enumerate(rows):
            # a bad sample's place goes to the next good one of the batch; the place's own seed makes it another crop
            tried = ((other, picture(other, row["seed"])) for other in rows[place:] + rows[:place])
            used, found = next(((other, found) for other, found in tried if found is not None), (row, None))
            if found is None:
                raise UserError(
                    f"no sample of a batch can be used ({', '.join(str(r['key']) for r in rows)}). Mend the data set."
                )
            pictures.append(found)
            keys.append(str(used["key"]))
        return collate(pictures, [row["seed"] for row in rows], keys, num_classes)

    with threads(DECODE_THREADS) as pool:
        yield from ahead(pool, make, _grouped(rows, batch_size), prefetch)


def collate(pictures: Sequence[Pictures], seeds: list[int], keys: list[str], num_classes: int = 0) -> Batch:
    """Decoded samples of one size (`decode.decode_row`) to a batch; ``num_classes`` is needed for tags alone."""
    images = [found["image"] for found in pictures]
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{w}x{h}" for h, w, _ in shapes))
        raise UserError(f"images of one batch differ in size ({sizes}). Set the domain's size, or augment.crop.")
    stacked = {name: torch.from_numpy(np.stack([found[name] for found in pictures]))
               for name in pictures[0] if name not in ("tags", "before", "shown", "stored")}  # fmt: skip
    batch = Batch(stacked["image"].permute(0, 3, 1, 2), None, torch.tensor(seeds, dtype=torch.int64), keys)
    if "label" in stacked:
        batch.label_BHW = stacked["label"].long()
    if "mined" in stacked:
        batch.mined_BHW = stacked["mined"].long()
    if "pair" in stacked:
        batch.pair_BCHW = stacked["pair"].permute(0, 3, 1, 2)
    if "flow" in stacked:
        batch.flow_B2HW, batch.valid_BHW = stacked["flow"].permute(0, 3, 1, 2), stacked["valid"]
    if any("shown" in found for found in pictures):
        shown = [found.get("shown", np.ones(images[0].shape[:2], np.bool_)) for found in pictures]
        batch.shown_BHW = torch.from_numpy(np.stack(shown))
    if "before" in pictures[0]:
        batch.before = collate([found["before"] for found in pictures], seeds, keys, num_classes)
    if "stored" in pictures[0]:
        batch.stored_B = torch.tensor([found["stored"] for found in pictures])
    if "tags" in pictures[0]:
        batch.tags_BC = torch.zeros(len(keys), num_classes, dtype=torch.bool)
        for row, found in zip(batch.tags_BC, pictures, strict=True):
            row[torch.from_numpy(found["tags"])] = True
    return batch


def require(dataset: Dataset, columns: Sequence[str]) -> None:
    """Refuse to read what a data set does not have; its order draws what has a label."""
    for column in columns:
        dataset.require(column, drawn=True)


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Results of a function in order, with ``depth`` calls under way beyond the one that is waited for."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that, when left early, drops what has not begun."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="distuda-data")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []


def _stored(dataset: Dataset, ids: Ids) -> Iterator[Window]:
    """Samples in order, those that lie together in a row group as a window; seeds are the numbers."""
    group = np.searchsorted(dataset.starts, ids, side="right")
    for here in np.split(ids, np.flatnonzero(np.diff(group)) + 1):
        if len(here):
            yield dataset.window_of(here)


def _share(dataset: Dataset, ids: Ids, rank: int, world: int) -> Ids:
    """A rank's part of the samples: consecutive, and cut between clips only."""
    cuts = [r * len(ids) // world for r in (rank, rank + 1)]
    if not dataset.moving or world == 1:
        return ids[slice(*cuts)]
    clips = np.array([name or f"\n{i}" for i, name in enumerate(dataset.index["clip"].to_pylist())])[ids]
    starts = np.flatnonzero(np.concatenate([[True], clips[1:] != clips[:-1], [True]]))
    low, high = (starts[np.searchsorted(starts, cut)] for cut in cuts)
    return ids[low:high]


def _whole(row: Row, size: Size | None) -> Batch:
    native, label = decode_sample(row, size=None, region=None, seed=0)
    found: Pictures = {"image": native if size is None else resize_image(native, size)}
    if label is not None:
        found["label"] = label
    before = row.get("before")
    if before is not None:
        shown, _ = decode_sample({**before, "label": None}, size=size or native.shape[:2], region=None, seed=0)
        found["flow"], found["valid"] = flow_between(row, found["image"], shown)
        found["before"] = {"image": shown}
    batch = collate([found], [row["seed"]], [str(row["key"])])
    batch.clips = [row.get("clip") or ""]
    if batch.before is not None and before is not None:
        batch.before.keys = [str(before["key"])]
    return batch
