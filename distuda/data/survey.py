"""One pass over chosen samples of a data set: measure some, keep small pictures of some. No row group is read twice."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from distuda.data.dataset import Dataset
from distuda.data.decode import SampleError, decode_sample, resize_image, resize_label
from distuda.data.image_stats import STATISTICS, image_statistics

PICTURE_WIDTH = 320
"""Width of a kept picture, pixels."""

MAX_GROUPS = 64
"""Row groups that a sample of a data set is drawn from; at 16 MiB each, a GiB is read however large the set is."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Picture:
    """One sample, small: key, uint8 RGB (H, W, 3) of `PICTURE_WIDTH` and its label (H, W), None without one."""

    key: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Survey:
    """What the pass brought.

    Attributes:
        values: float64 (N, 7), `STATISTICS` of the measured samples that could be read.
        pictures: by sample number.
        bad: messages about samples that could not be decoded.
    """

    values: NDArray[np.float64]
    pictures: dict[int, Picture]
    bad: list[str]


@dataclass(frozen=True)
class _Look:
    id: int
    values: NDArray[np.float64] | None = None
    picture: Picture | None = None
    error: str = ""


def spread(total: int, count: int) -> Ids:
    """At most ``count`` positions in 0..total-1, evenly spaced, ascending, each once."""
    count = min(count, total)
    return ((2 * np.arange(count, dtype=np.int64) + 1) * total) // max(1, 2 * count)


def accessible(data: Dataset) -> Ids:
    """Numbers of all samples in at most `MAX_GROUPS` evenly spaced row groups."""
    return np.concatenate([np.arange(data.starts[g], data.starts[g + 1]) for g in spread(len(data.groups), MAX_GROUPS)])


def survey(data: Dataset, measured: Ids, shown: Ids, *, progress: bool = True) -> Survey:
    """Decode samples in threads; memory holds two row groups and the results.

    Args:
        data: where to look.
        measured, shown: sample numbers to measure and to keep a picture of; they may overlap.
        progress: whether a bar is drawn on a terminal's stderr.
    """
    wanted = np.unique(np.concatenate([measured, shown]).astype(np.int64))
    looks: Iterator[_Look] | list[_Look] = _looks(data, wanted, set(measured.tolist()), set(shown.tolist()))
    console = Console(stderr=True)
    if progress and console.is_terminal:
        looks = track(looks, f"looking at {escape(data.uri)}", len(wanted), console=console, transient=True)  # type: ignore[assignment]
    done = list(looks)
    values = [look.values for look in done if look.values is not None]
    return Survey(
        np.stack(values) if values else np.empty((0, len(STATISTICS))),
        {look.id: look.picture for look in done if look.picture is not None},
        [look.error for look in done if look.error],
    )


def _looks(data: Dataset, wanted: Ids, measured: set[int], shown: set[int]) -> Iterator[_Look]:
    """Group after group, the next one read while this one is decoded."""
    groups = data.window_of(wanted).groups
    numbers = np.unique(groups).tolist()

    def read(number: int) -> pa.Table:
        rows = wanted[groups == number] - data.starts[number]
        return data.read_group(number, ["key", "image", "label"]).take(rows)

    def look(id_: int, row: dict) -> _Look:
        return _look(id_, row, id_ in measured, id_ in shown)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor() as decoders:
        following = reader.submit(read, numbers[0]) if numbers else None
        for number, successor in zip(numbers, [*numbers[1:], None], strict=True):
            assert following is not None
            rows = following.result().to_pylist()
            following = None if successor is None else reader.submit(read, successor)
            yield from decoders.map(look, wanted[groups == number].tolist(), rows)


def _look(id_: int, row: dict, measure: bool, show: bool) -> _Look:
    try:
        image, label = decode_sample(row, size=None, region=None, seed=0)
    except SampleError as error:
        return _Look(id_, error=str(error))
    values = image_statistics(image) if measure else None
    if not show:
        return _Look(id_, values)
    size = (max(1, round(image.shape[0] * PICTURE_WIDTH / image.shape[1])), PICTURE_WIDTH)
    small = None if label is None else resize_label(label, size)
    return _Look(id_, values, Picture(str(row["key"]), resize_image(image, size), small))
