"""Video panoptic quality over windows of frames, for panoptic and for semantic tubes, and temporal consistency.

VPQ is Kim, Woo, Lee and Kweon, "Video Panoptic Segmentation", CVPR 2020, section 3.2, counted as its evaluation of
Cityscapes-VPS counts; with a window of one frame it is the panoptic quality of Kirillov et al., CVPR 2019. A tube is
all that carries one segment id inside a window, so its area is the sum of its areas in the frames. That is why each
frame is read once: it leaves a short table of (true segment, predicted segment, pixels), and windows add tables.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distuda.losses import IGNORE

Map: TypeAlias = Tensor | NDArray[Any]

MAX_INSTANCE = (1 << 22) - 1
# IoU is summed as whole multiples of 2^-40: sums of integers are the same in any order, so any split over ranks gives
# the same bits. A tube is off by 5e-13 at most, and 8 million matched tubes of one class fit.
IOU_UNIT = 2.0**-40
TP, FP, FN, IOU = range(4)
_INSTANCE_BITS, _SEGMENT_BITS = 22, 30  # a segment is (class, instance); a key is (true segment, predicted segment)


class _Overlaps(NamedTuple):
    """Pixels a pair of segments share, sparse and sorted by key; both int64 (K,)."""

    keys_K: NDArray[np.int64]
    pixels_K: NDArray[np.int64]


class VideoPanopticQuality:
    """Counts of tubes by window length and class, summed over clips and, with `all_reduce`, over ranks.

    A clip goes whole to one rank, its frames in order; memory holds the tables of as many frames as the longest window.

    Args:
        num_classes: C, at most 255; 255 is void in labels and "no segment" in predictions.
        things: ids of countable objects. They make the groups of `scores` and, in panoptic tubes, carry instances.
        windows: lengths in frames. Those that Cityscapes-VPS calls k = 0, 5, 10, 15 are 1, 2, 3, 4 annotated frames.
        panoptic: things are tubes by class and instance, stuff by class. Otherwise, semantic: every class is one tube.

    Attributes:
        counts_W4C: int64, by window and class: TP, FP, FN and the sum of matched IoU in multiples of ``IOU_UNIT``.
    """

    def __init__(
        self,
        num_classes: int,
        things: Iterable[int] = (),
        *,
        windows: tuple[int, ...] = (1, 2, 3, 4),
        panoptic: bool = False,
    ) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"{num_classes} classes; 1 to {IGNORE} are possible")
        if not windows or min(windows) < 1 or len(set(windows)) < len(windows):
            raise ValueError(f"windows {windows} must be different lengths of at least one frame")
        self.num_classes, self.windows, self.panoptic = num_classes, tuple(windows), panoptic
        self.things = np.zeros(IGNORE + 1, bool)
        self.things[list(things)] = True
        if self.things[num_classes:].any():
            raise ValueError(f"things {np.flatnonzero(self.things).tolist()} must be ids below {num_classes}")
        self.counts_W4C = torch.zeros(len(windows), 4, num_classes, dtype=torch.int64)
        self._clip: str | None = None
        self._finished: set[str] = set()
        self._frames: deque[_Overlaps] = deque(maxlen=max(windows))

    def update(
        self,
        clip: str,
        prediction_HW: Map,
        label_HW: Map,
        prediction_instance_HW: Map | None = None,
        label_instance_HW: Map | None = None,
    ) -> None:
        """Add the next annotated frame of a clip: every window that ends with it is counted.

        All maps are integers of one shape. Pixels leave their device: narrow maps to uint8 or uint16 there.

        Args:
            clip: name; another name than the last begins a new clip, and the windows begin anew.
            prediction_HW, label_HW: class ids, or 255.
            prediction_instance_HW: of panoptic tubes, [0, 2^22): with its class it names an object throughout the clip.
                Values on stuff are not looked at; a thing without a number (0) is one more object of its class.
            label_instance_HW: the same for the truth, except that a thing's 0 is a crowd, as in `data.sample`.

        Raises:
            ValueError: shapes differ, an id is out of range, instances are missing, or a finished clip comes back.
        """
        self._begin(clip)
        maps = [label_HW, prediction_HW]
        if self.panoptic:
            if label_instance_HW is None or prediction_instance_HW is None:
                raise ValueError("panoptic tubes need the instance maps of prediction and label")
            maps += [label_instance_HW, prediction_instance_HW]
        self._frames.append(self._overlaps(*(np.asarray(m.cpu() if isinstance(m, Tensor) else m) for m in maps)))
        newest = list(self._frames)
        for number, length in enumerate(self.windows):
            if length <= len(newest):
                self.counts_W4C[number] += torch.from_numpy(self._count(_add(newest[-length:])))

    def all_reduce(self) -> None:
        """Sum over ranks; nothing with one rank."""
        self.counts_W4C = _sum_over_ranks(self.counts_W4C)

    def per_class(self) -> NDArray[np.float64]:
        """VPQ in [0, 1] by window and class (W, C); NaN for classes without a true positive, a false one or a miss."""
        tp, fp, fn, iou = np.moveaxis(self.counts_W4C.cpu().numpy().astype(np.float64), 1, 0)
        tubes = tp + fp / 2 + fn / 2
        return np.divide(iou * IOU_UNIT, tubes, out=np.full_like(iou, np.nan), where=tubes > 0)

    def scores(self) -> dict[str, float]:
        """``vpq_N``, the mean over classes for a window of N frames, and ``vpq``, the mean over the windows; the same
        over things (``vpq_things_N``, ``vpq_things``) and stuff. All in [0, 1]; NaN where a window has no class of the
        group, as when all clips are shorter than it.
        """
        quality_WC, things_C = self.per_class(), self.things[: self.num_classes]
        groups = {"vpq": np.ones_like(things_C), "vpq_things": things_C, "vpq_stuff": ~things_C}
        found: dict[str, float] = {}
        for name, chosen_C in groups.items():
            means = [_mean(row[chosen_C]) for row in quality_WC]
            found[name] = float(np.mean(means))
            found |= {f"{name}_{length}": mean for length, mean in zip(self.windows, means, strict=True)}
        return found

    def _begin(self, clip: str) -> None:
        if clip == self._clip:
            return
        if clip in self._finished:
            raise ValueError(f"clip {clip!r} comes back after {self._clip!r}; give its frames in one go")
        if self._clip is not None:
            self._finished.add(self._clip)
        self._clip = clip
        self._frames.clear()

    def _overlaps(self, *maps: NDArray[Any]) -> _Overlaps:
        """The table of one frame. Maps are flat over wide runs of pixels, so only where one changes is looked at."""
        if len({m.shape for m in maps}) > 1:
            raise ValueError(f"maps of one frame differ in shape: {', '.join(str(m.shape) for m in maps)}")
        flat = [m.reshape(-1) for m in maps]
        if not flat[0].size:
            return _Overlaps(np.empty(0, np.int64), np.empty(0, np.int64))
        change = np.ones(flat[0].size, bool)
        np.not_equal(flat[0][1:], flat[0][:-1], out=change[1:])
        for values in flat[1:]:
            change[1:] |= values[1:] != values[:-1]
        starts = np.flatnonzero(change)
        lengths = np.diff(starts, append=len(change))
        truth, prediction, *instances = (values[starts].astype(np.int64) for values in flat)
        truth, prediction = self._segments(truth, *instances[:1]), self._segments(prediction, *instances[1:])
        return _table(truth << _SEGMENT_BITS | prediction, lengths)

    def _segments(self, classes: NDArray[np.int64], instances: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """One number a segment: the class in the high bits, the instance, 0 on stuff and void, in the low ones."""
        wrong = ((classes < 0) | (classes >= self.num_classes)) & (classes != IGNORE)
        if wrong.any():
            raise ValueError(f"class id {classes[wrong][0]} is outside [0, {self.num_classes}) and not {IGNORE}")
        if instances is None:
            return classes << _INSTANCE_BITS
        instances = np.where(self.things[classes], instances, 0)
        if instances.size and (instances.min() < 0 or instances.max() > MAX_INSTANCE):
            raise ValueError(f"instances {instances.min()} to {instances.max()} are outside [0, {MAX_INSTANCE}]")
        return classes << _INSTANCE_BITS | instances

    def _count(self, window: _Overlaps) -> NDArray[np.int64]:
        """TP, FP, FN and IoU units of one window, (4, C).

        A pair of one class matches above an IoU of one half, which leaves a tube at most one partner. Predicted pixels
        on void leave the union; a tube that lies by more than half on void, or on a crowd of its class, is no mistake.
        """
        pixels = window.pixels_K
        truths, truth_K = np.unique(window.keys_K >> _SEGMENT_BITS, return_inverse=True)
        guesses, guess_K = np.unique(window.keys_K & ((1 << _SEGMENT_BITS) - 1), return_inverse=True)
        truth_class, guess_class = truths >> _INSTANCE_BITS, guesses >> _INSTANCE_BITS
        unnumbered = (truths & MAX_INSTANCE) == 0
        crowd = self.things[truth_class] & unnumbered if self.panoptic else np.zeros(len(truths), bool)
        void_K = truth_class[truth_K] == IGNORE
        same_K = (truth_class[truth_K] == guess_class[guess_K]) & ~void_K

        truth_area = _sum_by(truth_K, pixels, len(truths))
        guess_area = _sum_by(guess_K, pixels, len(guesses))
        on_void = _sum_by(guess_K[void_K], pixels[void_K], len(guesses))
        crowded_K = same_K & crowd[truth_K]
        on_crowd = _sum_by(guess_K[crowded_K], pixels[crowded_K], len(guesses))
        union_K = truth_area[truth_K] + guess_area[guess_K] - pixels - on_void[guess_K]
        iou_K = pixels / np.maximum(union_K, 1)  # 0 only for pairs that cannot match: all of both on void
        match_K = same_K & ~crowd[truth_K] & (iou_K > 0.5)

        missed = (truth_class != IGNORE) & ~crowd
        missed[truth_K[match_K]] = False
        mistaken = (guess_class != IGNORE) & (2 * (on_void + on_crowd) <= guess_area)
        mistaken[guess_K[match_K]] = False
        hit_class = truth_class[truth_K[match_K]]
        units = np.rint(iou_K[match_K] / IOU_UNIT).astype(np.int64)
        by_class = (hit_class, guess_class[mistaken], truth_class[missed])
        tubes = [np.bincount(classes, minlength=self.num_classes) for classes in by_class]
        return np.stack([*tubes, _sum_by(hit_class, units, self.num_classes)])


class TemporalConsistency:
    """Share of pixels whose class is that of the previous frame's prediction, warped by the flow onto this frame.

    Over frames, |{pixels with valid flow: now = warped}| / |{pixels with valid flow}|, in [0, 1], higher = steadier.
    Per-frame video segmentation is judged by the mIoU of the same two maps (Liu et al., ECCV 2020). It is fooled by
    predictions that never change, right or wrong, and says little of frames far apart, as of one a second.

    Attributes:
        counts: int64 (2,): pixels that agree, pixels with valid flow; summed over frames and, with `all_reduce`, ranks.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64)

    def update(self, prediction: Map, warped_previous: Map, valid: Map) -> None:
        """Add one or more frames; three maps of the same shape, (H, W) or (B, H, W), on one device.

        Args:
            prediction, warped_previous: class ids, integers.
            valid: bool or 0 and 1, where the flow passed the forward-backward check and points into the frame.
        """
        now, before, where = (torch.as_tensor(m).detach() for m in (prediction, warped_previous, valid))
        if not now.shape == before.shape == where.shape:
            raise ValueError(
                f"prediction {tuple(now.shape)}, warped {tuple(before.shape)} and valid {tuple(where.shape)} "
                "differ in shape"
            )
        where = where.bool()
        counts = torch.stack([((now == before) & where).sum(), where.sum()])
        self.counts = self.counts.to(counts.device) + counts

    def all_reduce(self) -> None:
        """Sum over ranks; nothing with one rank."""
        self.counts = _sum_over_ranks(self.counts)

    def score(self) -> float:
        """In [0, 1]; NaN without a valid pixel."""
        agree, valid = self.counts.tolist()
        return agree / valid if valid else float("nan")


def _table(keys: NDArray[np.int64], pixels: NDArray[np.int64]) -> _Overlaps:
    """Add up the pixels of equal keys."""
    distinct = np.unique(keys)
    return _Overlaps(distinct, _sum_by(np.searchsorted(distinct, keys), pixels, len(distinct)))


def _add(frames: list[_Overlaps]) -> _Overlaps:
    if len(frames) == 1:
        return frames[0]
    return _table(np.concatenate([f.keys_K for f in frames]), np.concatenate([f.pixels_K for f in frames]))


def _sum_by(index: NDArray[np.int64], values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Sum of ``values`` by ``index``; exact up to 2^53, since bincount adds doubles."""
    return np.bincount(index, values, size).astype(np.int64)


def _mean(quality: NDArray[np.float64]) -> float:
    seen = quality[np.isfinite(quality)]
    return float(seen.mean()) if seen.size else float("nan")


def _sum_over_ranks(counts: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts
    # NCCL sums on a GPU only, and a rank that was given no frame has its counts on the CPU.
    summed = counts.cuda() if torch.distributed.get_backend() == "nccl" else counts.clone()
    torch.distributed.all_reduce(summed)
    return summed
