"""VPQ of clips: tables of each frame added over windows, against pixels read anew for each window.

    OMP_NUM_THREADS=1 python benchmarks/vpq_speed.py --clips 4 --pixel-clips 1

Interleaved clip by clip in one process, windows of 1 to 4 frames; medians, and the ratio clip by clip. Compared are
`distuda.metrics.vpq`, the definition in dictionaries and loops over pixels as tests/test_vpq.py has it (on the first
``--pixel-clips`` clips only: it takes minutes a clip), and that with numpy's unique over the volume of each window in
place of the loop over pixels, which is how evaluation scripts usually count. All counts are checked to be equal.
Clips are drawn: drifting boxes of 19 classes with 60 numbered objects; predictions have ragged borders and speckle.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from distuda.losses import IGNORE
from distuda.metrics.vpq import IOU_UNIT, VideoPanopticQuality

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from test_vpq import Clip, Frame, Overlaps, count_tubes, read_pixels

CLASSES, THINGS, WINDOWS = 19, range(11, 19), (1, 2, 3, 4)
Counts = NDArray[np.float64]
Reader = Callable[[Sequence[Frame], Sequence[int], bool], Overlaps]


def draw_clip(seed: int, frames: int, size: tuple[int, int], speckle: float) -> Clip:
    """Stuff in 12 large boxes, one of them void, and 60 things in small ones; all drift by some pixels a frame."""
    random = np.random.default_rng(seed)
    height, width = size
    names = np.concatenate([random.integers(0, 11, 11), [IGNORE], random.choice(THINGS, 60)])
    extents = np.concatenate([random.integers(height // 4, height, (12, 2)), random.integers(8, height // 6, (60, 2))])
    corners = random.integers(0, [height, width], (72, 2))
    speeds = random.integers(-6, 7, (72, 2))
    clip = []
    for time_step in range(frames):
        label, numbers = np.zeros(size, np.uint8), np.zeros(size, np.uint16)
        for i, (top, left) in enumerate(np.clip(corners + time_step * speeds, 0, None)):
            box = np.s_[top : top + extents[i, 0], left : left + extents[i, 1]]
            label[box], numbers[box] = names[i], max(i - 11, 0)
        clip.append(Frame(*ragged(label, numbers, random, speckle)))
    return clip


def ragged(
    label: NDArray[np.uint8], numbers: NDArray[np.uint16], random: np.random.Generator, speckle: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint16]]:
    """Predictions from labels: borders waver by some pixels and a share of pixels has any class; then both truths."""
    height, width = label.shape
    coarse = random.normal(0, 6, (2, height // 8, width // 8)).astype(np.float32)
    down, right = (cv2.resize(c, (width, height)).astype(np.int64) for c in coarse)
    rows = np.clip(np.arange(height)[:, None] + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    guess, guess_numbers = label[rows, columns], numbers[rows, columns]
    guess[guess == IGNORE] = 0
    noisy = random.random(label.shape, dtype=np.float32) < speckle
    guess[noisy] = random.integers(0, CLASSES, int(noisy.sum()))
    return guess, label, guess_numbers, numbers


def by_unique(frames: Sequence[Frame], things: Sequence[int], panoptic: bool) -> Overlaps:
    """What `read_pixels` gives, by one sort of the window's pixels."""
    guess, truth, *numbers = (np.stack(maps).astype(np.int64) for maps in zip(*frames, strict=True))
    counted = np.isin(np.arange(IGNORE + 1), things) & panoptic
    guess, truth = (c << 16 | np.where(counted[c], n, 0) for c, n in zip((guess, truth), numbers, strict=True))
    keys, pixels = np.unique(truth << 32 | guess, return_counts=True)
    pairs = zip((keys >> 32).tolist(), (keys & 0xFFFFFFFF).tolist(), pixels.tolist(), strict=True)
    return {(divmod(t, 1 << 16), divmod(g, 1 << 16)): n for t, g, n in pairs}


def anew(clip: Clip, panoptic: bool, read: Reader) -> Counts:
    """(W, 4, C): every window is read by itself."""
    total = np.zeros((len(WINDOWS), 4, CLASSES))
    for number, window in enumerate(WINDOWS):
        for first in range(len(clip) - window + 1):
            overlaps = read(clip[first : first + window], THINGS, panoptic)
            for name, row in count_tubes(overlaps, THINGS, panoptic).items():
                total[number, :, name] += row
    return total


def ours(clip: Clip, panoptic: bool) -> Counts:
    """Counts of a clip by the streamed metric."""
    metric = VideoPanopticQuality(CLASSES, THINGS, windows=WINDOWS, panoptic=panoptic)
    for frame in clip:
        metric.update("clip", *frame)
    counts = metric.counts_W4C.numpy().astype(np.float64)
    counts[:, 3] *= IOU_UNIT
    return counts


VARIANTS: dict[str, Callable[[Clip, bool], Counts]] = {
    "ours": ours,
    "unique of each window": lambda clip, panoptic: anew(clip, panoptic, by_unique),
    "definition, pixel by pixel": lambda clip, panoptic: anew(clip, panoptic, read_pixels),
}


def timed(clip: Clip, panoptic: bool, names: Sequence[str]) -> dict[str, float]:
    """Seconds a variant; all must count the same."""
    seconds, counts = {}, {}
    for name in names:
        started_s = time.perf_counter()
        counts[name] = VARIANTS[name](clip, panoptic)
        seconds[name] = time.perf_counter() - started_s
    for name in names:
        np.testing.assert_allclose(counts[name], counts["ours"], rtol=0, atol=1e-9)
    hits, mistakes, misses = counts["ours"][:, :3].sum(axis=(0, 2))
    assert hits and (not panoptic or (mistakes and misses)), "the clip must hold hits, mistakes and misses"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--pixel-clips", type=int, default=1, help="clips that the loop over pixels reads too")
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--speckle", type=float, default=0.01, help="share of predicted pixels of any class")
    arguments = parser.parse_args()
    times: dict[tuple[bool, str], list[float]] = {(p, name): [] for p in (True, False) for name in VARIANTS}
    small = draw_clip(0, arguments.frames, (64, 128), 0.01)
    for panoptic in (True, False):
        timed(small, panoptic, list(VARIANTS))  # warms up
    for i in range(arguments.clips):
        clip = draw_clip(i, arguments.frames, tuple(arguments.size), arguments.speckle)
        names = list(VARIANTS) if i < arguments.pixel_clips else list(VARIANTS)[:2]
        for panoptic in (True, False):
            for name, elapsed_s in timed(clip, panoptic, names).items():
                times[panoptic, name].append(elapsed_s)
        print(f"clip {i + 1} of {arguments.clips}", file=sys.stderr)
    print(f"numpy {np.__version__}, torch {torch.__version__}, threads {torch.get_num_threads()}; {arguments}\n")
    print("| tubes | variant | clips | median s a clip | min - max s | ours is faster, median of pairs (min) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (panoptic, name), values in times.items():
        if values:
            ratios = [b / a for a, b in zip(times[panoptic, "ours"], values, strict=False)]
            spread = f"{statistics.median(values):.3f} | {min(values):.3f} - {max(values):.3f}"
            faster = f"{statistics.median(ratios):.0f}x ({min(ratios):.0f}x)"
            print(f"| {'panoptic' if panoptic else 'semantic'} | {name} | {len(values)} | {spread} | {faster} |")


if __name__ == "__main__":
    main()
