"""Look at a data set before spending time on it: what is in it, what it looks like, how it differs from another."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distuda.data.dataset import Dataset, open_dataset
from distuda.data.labels import ClassTable
from distuda.data.survey import Ids, Picture, accessible, spread, survey

MAX_FRAMES = 40
"""Frames of a clip's preview."""

_MAX_STRIDE = 4  # a preview skips at most so many frames, so that motion can be followed and little is read


@dataclass(frozen=True)
class ClassShares:
    """How common each class is, all float64 (C,) in [0, 1], None where nothing is known.

    Attributes:
        pixels: share of the labelled pixels; sums to 1.
        images: share of the labelled samples that show it.
        tags: share of the tagged samples that carry it as image-level label.
    """

    pixels: NDArray[np.float64] | None
    images: NDArray[np.float64] | None
    tags: NDArray[np.float64] | None


@dataclass(frozen=True)
class Facts:
    """What the manifest and the index say; no image is read for it.

    Attributes:
        name: the URI as it was asked for.
        dataset: the opened data set.
        sizes: ((width, height), samples), most common first.
        num_tagged, num_instances: samples with image-level labels, with instance ids.
        shares: how common each class is.
        clips: name -> frames, in the order of the shards.
    """

    name: str
    dataset: Dataset
    sizes: list[tuple[tuple[int, int], int]]
    num_tagged: int
    num_instances: int
    shares: ClassShares
    clips: dict[str, int]

    @property
    def table(self) -> ClassTable:
        """Names and colours of the train ids."""
        return self.dataset.table

    @property
    def num_labelled(self) -> int:
        """Samples with a label."""
        return self.dataset.manifest.num_labelled

    @property
    def bytes(self) -> int:
        """Encoded images, labels and instances together."""
        return sum(group.bytes for group in self.dataset.groups)


@dataclass(frozen=True)
class Clip:
    """Frames of one clip in order, as small pictures; ``stride`` is the step between them, ``frames`` the whole."""

    name: str
    frames: int
    stride: int
    pictures: list[Picture]


@dataclass(frozen=True)
class Inspection:
    """All that is known about a data set after a look.

    Attributes:
        facts: from the index alone.
        values: float64 (N, 7), `image_stats.STATISTICS` of N evenly spaced images.
        pictures: evenly spaced samples, labelled ones where there are labels.
        clips: previews.
        bad: one message a sample that could not be decoded.
    """

    facts: Facts
    values: NDArray[np.float64]
    pictures: list[Picture]
    clips: list[Clip]
    bad: list[str]


def inspect(uri: str, *, num: int = 12, num_stats: int = 200, num_clips: int = 2, progress: bool = True) -> Inspection:
    """Look at the data set at a URI.

    Args:
        uri: prepared shards or ``streets://STYLE``.
        num: pictures to keep.
        num_stats: images to measure, evenly spaced over at most `survey.MAX_GROUPS` row groups.
        num_clips: clips to preview, evenly spaced over those with at least two frames.
        progress: whether a bar is drawn on a terminal's stderr.

    Raises:
        UserError: no complete data set there.
    """
    facts = gather_facts(uri)
    reachable = accessible(facts.dataset)
    candidates = _labelled(facts, reachable)
    shown = candidates[spread(len(candidates), num)]
    frames = _clip_frames(facts, num_clips)
    measured = reachable[spread(len(reachable), num_stats)]
    seen = survey(facts.dataset, measured, np.concatenate([shown, *frames.values()]), progress=progress)
    pictures = [seen.pictures[i] for i in shown.tolist() if i in seen.pictures]
    return Inspection(facts, seen.values, pictures, _clips(facts, frames, seen.pictures), seen.bad)


def gather_facts(uri: str) -> Facts:
    """What manifest and index say about the data set at a URI."""
    data = open_dataset(uri)
    index = data.index
    sizes = Counter(zip(index["width"].to_pylist(), index["height"].to_pylist(), strict=True))
    tags = index["tags"].drop_null()
    return Facts(
        name=uri,
        dataset=data,
        sizes=sizes.most_common(),
        num_tagged=len(tags),
        num_instances=int(pc.sum(index["has_instances"]).as_py() or 0),
        shares=_shares(data, tags),
        clips={name: n for name, n in _clip_lengths(index["clip"])},
    )


def _shares(data: Dataset, tags: pa.ChunkedArray) -> ClassShares:
    """From the index alone; arrays stay flat, so that a million samples are no trouble."""
    count = data.table.num_classes
    pixels = images = tagged = None
    if known := data.manifest.num_labelled:
        flat = data.index["class_pixels"].drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False)
        pixels = data.class_frequencies()
        images = (flat.reshape(known, count) > 0).mean(axis=0)
    if len(tags):
        flat = tags.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        tagged = np.bincount(flat, minlength=count)[:count] / len(tags)
    return ClassShares(pixels, images, tagged)


def _clip_lengths(clips: pa.ChunkedArray) -> list[tuple[str, int]]:
    counted = clips.drop_null().value_counts()
    return [(entry["values"], entry["counts"]) for entry in counted.to_pylist()]


def _labelled(facts: Facts, ids: Ids) -> Ids:
    """The samples with a label, if there are any among them; else all."""
    known = np.intersect1d(ids, facts.dataset.labelled_ids())
    return known if len(known) else ids


def _clip_frames(facts: Facts, count: int) -> dict[str, Ids]:
    """Sample numbers of the frames that a preview shows, by clip."""
    long_enough = [name for name, frames in facts.clips.items() if frames > 1]
    chosen = [long_enough[i] for i in spread(len(long_enough), count).tolist()]
    index = facts.dataset.index
    frames: dict[str, Ids] = {}
    for name in chosen:
        ids = np.flatnonzero(pc.fill_null(pc.equal(index["clip"], name), False).to_numpy()).astype(np.int64)
        order = np.argsort(index["frame"].take(ids).fill_null(0).to_numpy(), kind="stable")
        frames[name] = ids[order][:: _stride(len(ids))][:MAX_FRAMES]
    return frames


def _clips(facts: Facts, frames: dict[str, Ids], pictures: dict[int, Picture]) -> list[Clip]:
    """The previews, of what could be read; nothing moves with a single frame."""
    clips = []
    for name, ids in frames.items():
        found = [pictures[i] for i in ids.tolist() if i in pictures]
        if len(found) > 1:
            clips.append(Clip(name, facts.clips[name], _stride(facts.clips[name]), found))
    return clips


def _stride(frames: int) -> int:
    """Step between the shown frames of a clip: as small as the limits allow."""
    return min(_MAX_STRIDE, -(-frames // MAX_FRAMES))
