"""The same batches as `reader.read_batches`, with the reading done by Ray Data on whatever nodes there are.

Ray maps positions to windows of our own order (`Dataset.read_window`), so there is no epoch for Ray to turn and nothing
for it to shuffle. Bytes travel encoded through the object store and are decoded in threads of the consumer, which
needs less memory than sending pixels and is faster on one machine. Positions come in stretches; the next stretch
is started before the current one ends, since a start takes some tenths of a second.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from importlib import import_module
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import ray.data

from distuda.cluster.local import quiet_data, start_ray
from distuda.data.batch import Batch
from distuda.data.dataset import Dataset, read_windows, rows_of
from distuda.data.decode import Size
from distuda.data.order import Order, Window
from distuda.data.reader import Row, decode_batches, require, threads
from distuda.data.tolerance import STRICT, Tolerance

STRETCH = 64
"""Windows handed to one Ray Data execution."""

LEAD = 8
"""Windows before the end of a stretch at which the next one is started."""


def stream_batches(
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
    """Endless batches of one rank, equal to those of `reader.read_batches`; arguments as there.

    Starts Ray on this machine unless it runs already. Each rank calls this for itself. One logical CPU has to be left
    to data, or the stream waits for ever.
    """
    require(dataset, columns)
    start_ray()
    quiet_data()
    read = partial(read_windows, dataset=dataset, columns=columns, num_frames=num_frames)
    with closing(_rows(dataset, order, read)) as rows:
        yield from decode_batches(
            rows, dataset.table.num_classes, batch_size, columns, num_frames, size, region, prefetch, tolerance
        )


READING = 2
"""Windows that are read at once."""

STORED_WINDOWS = 4
"""Windows that may wait in the object store: with those being read, what the stream needs of its memory."""

Tables = Generator[pa.Table, None, None]
Read = Callable[..., Iterator[pa.Table]]


def warm_up() -> None:
    """Have Ray start the processes that will read, without waiting for them.

    Each takes some seconds to import Ray Data; a worker that calls this before it builds its networks finds them ready.
    """

    def ready() -> None:  # a function within, so that it does not bring this module and torch with it
        for name in ("ray.data", "distuda.data.dataset"):
            import_module(name)

    reading = ray.remote(num_cpus=1)(ready)
    for _ in range(READING):
        reading.remote()


def _rows(dataset: Dataset, order: Order, read: Read) -> Generator[Row, None, None]:
    windows = order.windows()
    with threads(1) as pool:
        following = pool.submit(_begin, dataset, list(islice(windows, STRETCH)), read)
        try:
            while True:
                first, tables = following.result()
                with closing(tables):
                    for number, table in enumerate(chain([first], tables), start=1):
                        if number == STRETCH - LEAD:
                            following = pool.submit(_begin, dataset, list(islice(windows, STRETCH)), read)
                        yield from rows_of(table)
        finally:
            _abandon(following)


def _begin(dataset: Dataset, windows: list[Window], read: Read) -> tuple[pa.Table, Tables]:
    """Start a stretch: its first table (one a window) and the generator of the others."""
    tables = _tables(dataset, windows, read)
    return next(tables), tables


def _tables(dataset: Dataset, windows: list[Window], read: Read) -> Tables:
    positions = ray.data.range(len(windows), override_num_blocks=len(windows))
    options = positions.context.execution_options
    options.preserve_order = True
    # without a limit Ray reads ahead by a gigabyte (benchmarks/input_throughput.md)
    room = STORED_WINDOWS * max(sum(dataset.groups[g].bytes for g in np.unique(w.groups)) for w in windows)
    options.resource_limits = options.resource_limits.copy(object_store_memory=room)
    context = positions.context
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Breathing]
    read = partial(read, windows=windows)
    blocks = positions.map_batches(read, batch_size=1, zero_copy_batch=True, concurrency=READING)
    yield from blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


class _Breathing:
    """Lets Ray Data's scheduling loop sleep between its steps.

    The loop turns without a pause while it waits for room, in a thread of this process: it took more than half a core
    from the threads that decode. A window lasts seconds, so some hundredths later is early enough.
    """

    PAUSE_S = 0.05

    def before_execution_starts(self, executor: object) -> None:
        """Nothing to do."""

    def on_execution_step(self, executor: object) -> None:
        """Called by Ray Data after each step of its loop."""
        time.sleep(self.PAUSE_S)

    def after_execution_succeeds(self, executor: object) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Nothing to do."""


def _abandon(following: Future[tuple[pa.Table, Tables]]) -> None:
    """End a stretch that was started and is not wanted any more."""
    if not following.cancel() and following.exception() is None:
        following.result()[1].close()
