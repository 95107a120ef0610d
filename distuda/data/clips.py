"""Clips: which sample comes before which, and a frame decoded together with those before it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distuda.data.decode import Pictures, Size, decode_row, image_size, shown_part, window
from distuda.data.flow import Flow, Valid, compute_flow, decode_flow
from distuda.data.labels import IGNORE

Ids = NDArray[np.int64]

FLOW = "flow"
"""Column of optical flow to the frame before; where a data set has none, it is computed when frames are decoded."""

_FILL = {"label": IGNORE, "mined": IGNORE}


def previous_frames(index: pa.Table) -> Ids:
    """Number of the sample that shows the frame before, (N,); -1 for stills and where that frame is not there.

    The frame before is the one of the same clip with the next lower number, unless that is further off, or nearer, than
    the frames of the clip usually are: with frames 9, 10, 19, 20 the one before 10 is 9, and 19 has none.

    Args:
        index: one line a sample, with ``clip`` and ``frame`` (`manifest.INDEX_SCHEMA`).
    """
    previous = np.full(index.num_rows, -1, np.int64)
    known = np.flatnonzero(pc.and_(index["clip"].is_valid(), index["frame"].is_valid()).to_numpy())
    names = index["clip"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)[known]
    clips, frames = names.astype(np.int64), index["frame"].to_numpy()[known].astype(np.int64)
    turn = np.lexsort((frames, clips))
    for clip in np.split(turn, np.flatnonzero(np.diff(clips[turn])) + 1):
        joined = _usual(np.diff(frames[clip]))
        previous[known[clip[1:][joined]]] = known[clip[:-1][joined]]
    return previous


def _usual(gaps: Ids) -> NDArray[np.bool_]:
    """Which gaps between a clip's frames are its own step: of the length that most have, give or take a tenth.

    Of two lengths that as many have the shorter counts. A tenth, because numbers may be times, which jitter, and one
    odd number must not take a clip apart.
    """
    lengths = np.sort(gaps[gaps > 0])
    if not len(lengths):
        return np.zeros(len(gaps), np.bool_)
    first, last = np.searchsorted(lengths, 0.9 * lengths), np.searchsorted(lengths, 1.1 * lengths, "right")
    step = lengths[np.argmax(last - first)]
    return (gaps >= 0.9 * step) & (gaps <= 1.1 * step)


def with_previous(previous: Ids, num_frames: int) -> NDArray[np.bool_]:
    """Which samples are the last of so many frames in a row, (N,) bool."""
    there, ids = np.ones(len(previous), np.bool_), np.arange(len(previous))
    for _ in range(num_frames - 1):
        ids = np.where(there, previous[ids], 0)
        there &= ids >= 0
    return there


def earlier(previous: Ids, ids: Ids, num_frames: int) -> Ids:
    """The distinct samples among the ``num_frames - 1`` before each of ``ids`` that are not in ``ids``, ascending."""
    found, here = [np.empty(0, np.int64)], ids
    for _ in range(num_frames - 1):
        here = previous[here]
        here = here[here >= 0]
        found.append(here)
    return np.setdiff1d(np.concatenate(found), ids)


def neighbours(previous: Ids, ids: Ids, before: int, after: int) -> dict[int, Ids]:
    """Numbers of the samples so many frames off each of ``ids``, by offset; -1 where there is none.

    Args:
        previous: as `previous_frames` gives it.
        ids: of samples.
        before, after: how many frames off at most; offsets are -before ... -1 and 1 ... after.
    """
    following = np.full_like(previous, -1)
    following[previous[previous >= 0]] = np.flatnonzero(previous >= 0)
    found: dict[int, Ids] = {}
    for sign, step, count in ((-1, previous, before), (1, following, after)):
        here = ids
        for distance in range(1, count + 1):
            here = np.where(here >= 0, step[here], -1)
            found[sign * distance] = here
    return found


def in_clip_order(index: pa.Table, ids: Ids) -> Ids:
    """The same samples, those of a clip together and by frame; clips and stills in the order of their first sample."""
    clips = index["clip"].to_pylist()
    frames = index["frame"].fill_null(0).to_numpy()
    first: dict[Any, int] = {}
    place = np.array([i if clips[i] is None else first.setdefault(clips[i], int(i)) for i in ids], np.int64)
    return ids[np.lexsort((frames[ids], place))]


def decode_clip(
    row: Mapping[str, Any],
    columns: Sequence[str],
    *,
    num_frames: int,
    size: Size | None,
    region: Size | None,
    seed: int,
) -> Pictures:
    """A frame and, as ``before``, those before it: the same size and place in all.

    Args:
        row: as `decode_row` wants it, with the frame before as ``before`` where there is one.
        columns: as there (frames before may lack a label), and `FLOW`: gives ``flow`` float32 (H, W, 2), backward in
            pixels of the shown image, and ``valid`` bool (H, W) of every frame that has one before.
        num_frames: how many frames at most.
        size, region, seed: as for `decode_sample`.
    """
    rows = list(islice(_chain(row), num_frames))
    plain = [name for name in columns if name != FLOW]
    frames = [decode_row(rows[0], plain, size=size, region=None, seed=seed)]
    shown = frames[0]["image"].shape[:2]  # frames of one clip may differ in size where nothing has resized them
    frames += [decode_row(one, plain, size=shown, region=None, seed=seed) for one in rows[1:]]
    if "label" in columns:
        for frame in frames[1:]:
            frame.setdefault("label", np.full(frame["image"].shape[:2], IGNORE, np.uint8))
    if FLOW in columns:
        for one, frame, before in zip(rows, frames, frames[1:], strict=False):
            frame["flow"], frame["valid"] = flow_between(one, frame["image"], before["image"])
    if region is not None:
        frames = [_cut(frame, region, seed) for frame in frames]
    for frame, before in pairwise(frames):
        frame["before"] = before
    return frames[0]


def _chain(row: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    while row is not None:
        yield row
        row = row.get("before")


def flow_between(row: Mapping[str, Any], image: NDArray[np.uint8], before: NDArray[np.uint8]) -> tuple[Flow, Valid]:
    """Backward flow of a frame in pixels of the shown image and where it holds; computed where the row has none."""
    if row.get(FLOW) is None:
        return compute_flow(image, before)
    key = str(row["key"])
    shown = (image.shape[0], image.shape[1])
    return decode_flow(row[FLOW], key, image_size(row["image"], key), shown)


def _cut(frame: Pictures, region: Size, seed: int) -> Pictures:
    cut: Pictures = {
        name: values if name in ("tags", "stored") else window(values, region, seed, _FILL.get(name, 0))
        for name, values in frame.items()
    }
    if (shown := shown_part(frame["image"].shape[:2], region)) is not None:
        cut["shown"] = shown
    return cut
