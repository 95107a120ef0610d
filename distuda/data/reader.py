"""Shards to batches in one process: rows are read and decoded ahead in threads, batches come in exact order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from distuda.data.batch import Batch
from distuda.data.dataset import Dataset, rows_of
from distuda.data.decode import Size, decode_pair, decode_sample, resize_image
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
    labels: bool,
    pairs: bool = False,
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
        labels: whether batches carry labels; needs a labelled data set.
        pairs: whether batches carry pairs; every sample of the order must have one.
        prefetch: batches decoded ahead.
        tolerance: what happens to samples that cannot be used. The place of one that is passed over goes to the next
            good sample of its batch, with another crop, so positions and batch sizes stay what they are.

    Returns:
        uint8 images, int64 labels or None, int64 seeds; closing the iterator stops its threads.
    """
    require(dataset, labels, pairs)
    with threads(1) as pool:
        tables = ahead(pool, lambda window: dataset.read_window(window, labels, pairs), order.windows(), 1)
        rows = (row for table in tables for row in rows_of(table))
        yield from decode_batches(rows, batch_size, size, region, prefetch, tolerance, pairs)


def iterate_once(
    dataset: Dataset,
    *,
    rank: int = 0,
    world: int = 1,
    size: Size | None = None,
    limit: int | None = None,
    tolerance: Tolerance = STRICT,
) -> Iterator[Batch]:
    """Every sample once, or the first ``limit``, one a batch, in stored order, for evaluation.

    Of a set in which only some samples have labels, those. Each comes on exactly one rank and none is repeated to fill
    up, so counts summed over ranks are those of one process. Images are resized to ``size``; labels (None without)
    keep their native size. Unusable samples are left out where they are tolerated.
    """
    ids = dataset.labelled_ids() if 0 < dataset.manifest.num_labelled < len(dataset) else np.arange(len(dataset))
    ids = ids[:limit]
    mine = ids[rank * len(ids) // world : (rank + 1) * len(ids) // world]
    with threads(1) as reading, threads(DECODE_THREADS) as decoding:
        tables = ahead(reading, lambda window: dataset.read_window(window, True), _stored(dataset, mine), 1)
        rows = (row for table in tables for row in rows_of(table))
        batches = ahead(decoding, lambda row: tolerance.attempt(lambda: _whole(row, size)), rows, 4)
        yield from (batch for batch in batches if batch is not None)


def decode_batches(
    rows: Iterable[Row],
    batch_size: int,
    size: Size | None,
    region: Size | None,
    prefetch: int,
    tolerance: Tolerance = STRICT,
    pairs: bool = False,
) -> Iterator[Batch]:
    """Rows of `Dataset.read_window` to batches, each decoded by one of a few threads; no unfilled batch at the end."""

    def picture(row: Row, seed: int) -> Any:
        return tolerance.attempt(lambda: pictures_of(row, seed))

    def pictures_of(row: Row, seed: int) -> tuple[Any, ...]:
        found = decode_sample(row, size=size, region=region, seed=seed)
        return (*found, decode_pair(row, size=size, region=region, seed=seed)) if pairs else found

    def make(rows: list[Row]) -> Batch:
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
        return collate(pictures, [row["seed"] for row in rows], keys)

    with threads(DECODE_THREADS) as pool:
        yield from ahead(pool, make, _grouped(rows, batch_size), prefetch)


def collate(pictures: list[tuple[Any, ...]], seeds: list[int], keys: list[str]) -> Batch:
    """Decoded (image, label or None) or (image, label or None, pair) of one size to a batch."""
    images, labels, *pairs = zip(*pictures, strict=True)
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{w}x{h}" for h, w, _ in shapes))
        raise UserError(f"images of one batch differ in size ({sizes}). Set a size or a region for the domain.")
    label = None if labels[0] is None else torch.from_numpy(np.stack(labels)).long()
    pair = _stacked(pairs[0]) if pairs else None
    return Batch(_stacked(images), label, torch.tensor(seeds, dtype=torch.int64), keys, pair)


def _stacked(images: tuple[Any, ...]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def require(dataset: Dataset, labels: bool, pairs: bool) -> None:
    """Refuse to read labels or pairs from a data set that has none."""
    if labels and not dataset.labelled:
        raise UserError(f"{dataset.uri!r} has no labels, but this domain needs them. Prepare it with labels.")
    if pairs and not dataset.paired:
        raise UserError(f"{dataset.uri!r} has no pairs, but this domain needs them. Prepare it with --pairs.")


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
    """Samples by ascending number, a row group a window; seeds are the numbers."""
    for here in np.split(ids, np.searchsorted(ids, dataset.starts[1:-1])):
        if len(here):
            yield dataset.window_of(here)


def _whole(row: Row, size: Size | None) -> Batch:
    native, label = decode_sample(row, size=None, region=None, seed=0)
    image = native if size is None else resize_image(native, size)
    return collate([(image, label)], [row["seed"]], [str(row["key"])])
