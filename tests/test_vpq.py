"""VPQ against the definition in dictionaries and loops over pixels, and temporal consistency."""

import math
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from numpy.typing import NDArray

from distuda.metrics.vpq import IOU_UNIT, TemporalConsistency, VideoPanopticQuality

IGNORE = 255
Segment = tuple[int, int]  # class, instance
Overlaps = dict[tuple[Segment, Segment], int]


class Frame(NamedTuple):
    prediction: NDArray[Any]
    label: NDArray[Any]
    prediction_instance: NDArray[Any]
    label_instance: NDArray[Any]


Clip = list[Frame]


def read_pixels(frames: Sequence[Frame], things: Iterable[int], panoptic: bool) -> Overlaps:
    """Pixels that each pair of (true, predicted) segments shares in a window, pixel by pixel."""
    counted = set(things) if panoptic else set()
    overlaps: Overlaps = {}
    for frame in frames:
        for guess, truth, guess_number, truth_number in zip(*(m.ravel().tolist() for m in frame), strict=True):
            pair = (
                (truth, truth_number if truth in counted else 0),
                (guess, guess_number if guess in counted else 0),
            )
            overlaps[pair] = overlaps.get(pair, 0) + 1
    return overlaps


def count_tubes(overlaps: Overlaps, things: Iterable[int], panoptic: bool) -> dict[int, list[float]]:
    """Class -> TP, FP, FN, sum of IoU of one window, from the definition."""
    crowds = {(c, 0) for c in things} if panoptic else set()
    true_area: dict[Segment, int] = {}
    guessed_area: dict[Segment, int] = {}
    void: dict[Segment, int] = {}
    forgiven: dict[Segment, int] = {}
    for (truth, guess), pixels in overlaps.items():
        true_area[truth] = true_area.get(truth, 0) + pixels
        guessed_area[guess] = guessed_area.get(guess, 0) + pixels
        if truth[0] == IGNORE:
            void[guess] = void.get(guess, 0) + pixels
        if truth[0] == IGNORE or (truth in crowds and truth[0] == guess[0]):
            forgiven[guess] = forgiven.get(guess, 0) + pixels
    counts: dict[int, list[float]] = {}
    matched_truths, matched_guesses = set(), set()
    for (truth, guess), pixels in overlaps.items():
        if truth[0] != guess[0] or truth[0] == IGNORE or truth in crowds:
            continue
        iou = pixels / (guessed_area[guess] + true_area[truth] - pixels - void.get(guess, 0))
        if iou > 0.5:
            assert truth not in matched_truths and guess not in matched_guesses
            matched_truths.add(truth)
            matched_guesses.add(guess)
            row = counts.setdefault(truth[0], [0, 0, 0, 0.0])
            row[0] += 1
            row[3] += iou
    for truth in true_area:
        if truth[0] != IGNORE and truth not in crowds and truth not in matched_truths:
            counts.setdefault(truth[0], [0, 0, 0, 0.0])[2] += 1
    for guess, area in guessed_area.items():
        if guess[0] != IGNORE and guess not in matched_guesses and not forgiven.get(guess, 0) / area > 0.5:
            counts.setdefault(guess[0], [0, 0, 0, 0.0])[1] += 1
    return counts


def slow_counts(clips: Iterable[Clip], classes: int, things: Iterable[int], window: int, panoptic: bool) -> Any:
    """(4, C) over all windows of all clips."""
    total = np.zeros((4, classes))
    for clip in clips:
        for first in range(len(clip) - window + 1):
            overlaps = read_pixels(clip[first : first + window], things, panoptic)
            for name, row in count_tubes(overlaps, things, panoptic).items():
                total[:, name] += row
    return total


def slow_quality(counts: Any) -> list[float]:
    return [i / (tp + fp / 2 + fn / 2) if tp + fp + fn else math.nan for tp, fp, fn, i in counts.T]


def draw_clip(
    seed: int, classes: int, things: Sequence[int], frames: int, size: tuple[int, int], crowd: bool = True
) -> Clip:
    """Boxes that drift; the prediction is the truth moved by a pixel, with wrong classes, swapped numbers and void."""
    random = np.random.default_rng(seed)
    used = [c for c in range(classes) if c != 1]  # class 1 never occurs
    corner = random.integers(0, [size[0], size[1]], (8, 2))
    extent = random.integers(1, [size[0] + 1, size[1] + 1], (8, 2))
    names = random.choice([*used, IGNORE], 8)
    numbers = random.integers(0 if crowd else 1, 4, 8)
    clip = []
    for _ in range(frames):
        corner = corner + random.integers(-1, 2, (8, 2))
        label, instance = np.full(size, random.choice(used), np.uint8), np.ones(size, np.uint16)
        for (top, left), (height, width), name, number in zip(corner, extent, names, numbers, strict=True):
            area = np.s_[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
            label[area], instance[area] = name, number
        shift = random.integers(-1, 2, 2)
        guess, number = (np.roll(m, shift, (0, 1)).copy() for m in (label, instance))
        noise = random.random(size) < 0.1
        guess[noise] = random.choice([*used, IGNORE], int(noise.sum()))
        guess[guess == IGNORE] = random.choice([*used, IGNORE])
        if random.random() < 0.3:
            number = np.where(number == 1, 2, np.where(number == 2, 1, number)).astype(np.uint16)
        if random.random() < 0.1:
            guess[:] = IGNORE
        clip.append(Frame(guess, label, number, instance))
    return clip


def score(clips: Iterable[Clip], classes: int, things: Sequence[int], panoptic: bool, **options: Any) -> Any:
    metric = VideoPanopticQuality(classes, things, panoptic=panoptic, **options)
    for name, clip in enumerate(clips):
        for frame in clip:
            metric.update(f"clip {name}", *frame)
    return metric


SETTINGS = [  # classes, things, frames of each clip, size
    (3, [], [6], (9, 7)),
    (4, [2, 3], [6, 4, 1, 2], (12, 17)),
    (7, [0, 4, 5, 6], [5, 5], (1, 40)),
    (19, [11, 12, 13, 14, 15, 16, 17, 18], [6, 6, 3], (16, 32)),
]


@pytest.mark.parametrize("panoptic", [True, False], ids=["panoptic", "semantic"])
@pytest.mark.parametrize("crowd", [True, False], ids=["crowd", "no crowd"])
@pytest.mark.parametrize(("classes", "things", "frames", "size"), SETTINGS)
def test_equals_the_definition(
    classes: int, things: list[int], frames: list[int], size: tuple[int, int], crowd: bool, panoptic: bool
) -> None:
    seen = np.zeros(4)
    for seed in range(6):
        clips = [draw_clip(100 * seed + i, classes, things, n, size, crowd) for i, n in enumerate(frames)]
        metric = score(clips, classes, things, panoptic)
        scores, quality = metric.scores(), metric.per_class()
        means = []
        for number, window in enumerate((1, 2, 3, 4)):
            expected = slow_counts(clips, classes, things, window, panoptic)
            seen += expected.sum(1)
            np.testing.assert_array_equal(metric.counts_W4C[number, :3], expected[:3])
            np.testing.assert_allclose(metric.counts_W4C[number, 3].numpy() * IOU_UNIT, expected[3], rtol=0, atol=1e-9)
            per_class = np.array(slow_quality(expected))
            np.testing.assert_allclose(quality[number], per_class, rtol=0, atol=1e-9)
            assert math.isnan(quality[number, 1]), "a class that never occurs has no quality"
            is_thing = np.isin(np.arange(classes), things)
            groups = {"vpq": per_class, "vpq_things": per_class[is_thing], "vpq_stuff": per_class[~is_thing]}
            for name, values in groups.items():
                values = [v for v in values if not math.isnan(v)]
                wanted = sum(values) / len(values) if values else math.nan
                assert scores[f"{name}_{window}"] == pytest.approx(wanted, abs=1e-9, nan_ok=True)
            means.append(scores[f"vpq_{window}"])
        assert scores["vpq"] == pytest.approx(sum(means) / 4, abs=1e-12, nan_ok=True)
    assert (seen > 0).all(), "the clips must hold hits, mistakes and misses"


def frame(
    prediction: Sequence[int], label: Sequence[int], guess: Sequence[int] = (), truth: Sequence[int] = ()
) -> Frame:
    zeros = [0] * len(label)
    return Frame(*(np.array([row], np.uint8) for row in (prediction, label, guess or zeros, truth or zeros)))


VOID_CASES = {  # prediction, label, numbers of both -> TP, FP, FN, IoU of class 1, which is a thing
    "half is no match": (frame([1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]), (0, 1, 1, 0)),
    "more than half is": (frame([1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]), (1, 0, 0, 0.75)),
    "void leaves the union": (frame([1, 1, 1, 1], [1, 255, 255, 255], [1] * 4, [1, 0, 0, 0]), (1, 0, 0, 1)),
    "more than half on void": (frame([1, 1, 1, 0], [255, 255, 0, 0], [1, 1, 1, 0]), (0, 0, 0, 0)),
    "half on void": (frame([1, 1, 0, 0], [255, 0, 0, 0], [1, 1, 0, 0]), (0, 1, 0, 0)),
    "more than half on a crowd": (frame([1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]), (0, 0, 0, 0)),
    "half on a crowd": (frame([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]), (0, 1, 0, 0)),
    "crowd and void together": (frame([1, 1, 1, 0], [1, 255, 0, 0], [1, 1, 1, 0]), (0, 0, 0, 0)),
    "crowd of another class": (frame([1, 1, 1, 0], [2, 2, 0, 0], [1, 1, 1, 0]), (0, 1, 0, 0)),
    "a crowd stays in the union": (frame([1, 1, 1, 1], [1, 1, 1, 1], [1] * 4, [1, 1, 0, 0]), (0, 1, 1, 0)),
    "two numbers, one object": (frame([1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 2], [1] * 4), (1, 1, 0, 0.75)),
    "nothing predicted": (frame([255] * 4, [1, 1, 0, 0], (), [7, 7, 0, 0]), (0, 0, 1, 0)),
}


@pytest.mark.parametrize("case", VOID_CASES)
def test_rules_by_hand(case: str) -> None:
    one, expected = VOID_CASES[case]
    metric = score([[one]], 3, [1, 2], True, windows=(1,))
    assert (metric.counts_W4C[0, :3, 1].tolist(), float(metric.counts_W4C[0, 3, 1]) * IOU_UNIT) == (
        list(expected[:3]),
        pytest.approx(expected[3], abs=1e-12),
    )


def test_a_swapped_number_costs_windows_and_no_frames() -> None:
    steady = frame([1, 1, 1, 1], [1, 1, 1, 1], [5, 5, 6, 6], [1, 1, 2, 2])
    swapped = steady._replace(prediction_instance=np.array([[6, 6, 5, 5]]))
    scores = score([[steady, swapped]], 2, [1], True, windows=(1, 2)).scores()
    assert (scores["vpq_1"], scores["vpq_2"], scores["vpq"]) == (1.0, 0.0, 0.5)
    assert score([[steady, swapped]], 2, [1], False, windows=(1, 2)).scores()["vpq"] == 1.0


def test_semantic_tubes_are_panoptic_tubes_of_one_segment_a_class() -> None:
    clips = [draw_clip(seed, 6, [3, 4, 5], 5, (12, 14)) for seed in range(4)]
    one = np.ones((12, 14), np.uint8)
    alike = [[f._replace(prediction_instance=one, label_instance=one) for f in clip] for clip in clips]
    semantic, panoptic = score(clips, 6, [3, 4, 5], False), score(alike, 6, [3, 4, 5], True)
    assert torch.equal(semantic.counts_W4C, panoptic.counts_W4C)
    np.testing.assert_equal(semantic.scores(), panoptic.scores())
    bare = VideoPanopticQuality(6, [3, 4, 5])
    for name, clip in enumerate(clips):
        for f in clip:
            bare.update(str(name), f.prediction, f.label)
    assert torch.equal(bare.counts_W4C, semantic.counts_W4C)
    assert not torch.equal(semantic.counts_W4C, score(clips, 6, [3, 4, 5], True).counts_W4C)


def test_a_window_of_one_is_the_sum_over_frames() -> None:
    clips = [draw_clip(seed, 6, [3, 4, 5], 6, (12, 14)) for seed in range(3)]
    frames = [[f] for clip in clips for f in clip]
    alone, whole = score(frames, 6, [3, 4, 5], True), score(clips, 6, [3, 4, 5], True)
    assert torch.equal(alone.counts_W4C[0], whole.counts_W4C[0])
    assert not alone.counts_W4C[1:].any()
    assert math.isnan(alone.scores()["vpq"]) and alone.scores()["vpq_1"] > 0


def test_windows_can_be_chosen() -> None:
    clips = [draw_clip(seed, 6, [3, 4, 5], 6, (12, 14)) for seed in range(3)]
    every, chosen = score(clips, 6, [3, 4, 5], True), score(clips, 6, [3, 4, 5], True, windows=(3, 1))
    assert torch.equal(chosen.counts_W4C, every.counts_W4C[[2, 0]])
    assert chosen.scores()["vpq_3"] == every.scores()["vpq_3"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_clips_split_over_ranks_add_up(ranks: int) -> None:
    clips = [draw_clip(seed, 6, [3, 4, 5], 5, (12, 14)) for seed in range(7)]
    whole = score(clips, 6, [3, 4, 5], True)
    parts = [score(clips[rank::ranks], 6, [3, 4, 5], True) for rank in range(ranks)]
    assert torch.equal(sum(part.counts_W4C for part in parts), whole.counts_W4C)


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    clips = [draw_clip(seed, 6, [3, 4, 5], 5, (12, 14)) for seed in range(3)]
    metric = score(clips[:1] if rank == 0 else clips[1:], 6, [3, 4, 5], True)
    metric.all_reduce()
    consistency = TemporalConsistency()
    if rank == 0:  # the other has no frame
        consistency.update(torch.ones(1, 4), torch.tensor([[1.0, 1.0, 1.0, 0.0]]), torch.ones(1, 4))
    consistency.all_reduce()
    np.savez(f"{folder}/{rank}.npz", counts=metric.counts_W4C.numpy(), consistency=consistency.score())
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_counts_of_one(tmp_path: Path) -> None:
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)
    whole = score([draw_clip(seed, 6, [3, 4, 5], 5, (12, 14)) for seed in range(3)], 6, [3, 4, 5], True)
    for rank in range(2):
        saved = np.load(tmp_path / f"{rank}.npz")
        np.testing.assert_array_equal(saved["counts"], whole.counts_W4C)
        assert saved["consistency"] == 0.75


def test_memory_holds_the_longest_window_only() -> None:
    clip = draw_clip(3, 6, [3, 4, 5], 5, (12, 14)) * 8
    metric = VideoPanopticQuality(6, [3, 4, 5], panoptic=True)
    sizes = []
    for f in clip:
        metric.update("long", *f)
        sizes.append(len(pickle.dumps(metric)))
    assert sizes[3] > sizes[0]
    assert sizes[-5:] == sizes[5:10], "the frames repeat after five"
    expected = slow_counts([clip], 6, [3, 4, 5], 4, True)
    np.testing.assert_array_equal(metric.counts_W4C[3, :3], expected[:3])


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, torch.uint8, torch.uint16, torch.int64])
def test_kinds_of_integers_give_the_same(kind: Any) -> None:
    clip = draw_clip(5, 6, [3, 4, 5], 4, (12, 14))
    alike = score([clip], 6, [3, 4, 5], True)
    metric = VideoPanopticQuality(6, [3, 4, 5], panoptic=True)
    for f in clip:
        is_torch = isinstance(kind, torch.dtype)
        metric.update("a", *(torch.from_numpy(m).to(kind) if is_torch else m.astype(kind) for m in f))
    assert torch.equal(metric.counts_W4C, alike.counts_W4C)


def test_misuse_is_named() -> None:
    metric = VideoPanopticQuality(3, [1], panoptic=True)
    row, numbers = np.zeros((2, 3), np.uint8), np.ones((2, 3), np.uint16)
    with pytest.raises(ValueError, match="instance maps"):
        metric.update("a", row, row)
    with pytest.raises(ValueError, match="differ in shape"):
        metric.update("a", row, row[:1], numbers, numbers)
    with pytest.raises(ValueError, match="class id 3 is outside"):
        metric.update("a", row, row + 3, numbers, numbers)
    with pytest.raises(ValueError, match="class id -1 is outside"):
        metric.update("a", row.astype(int) - 1, row, numbers, numbers)
    with pytest.raises(ValueError, match="instances"):
        metric.update("a", row + 1, row, numbers.astype(int) << 22, numbers)
    metric.update("b", row, row, numbers, numbers)
    with pytest.raises(ValueError, match="'a' comes back after 'b'"):
        metric.update("a", row, row, numbers, numbers)
    with pytest.raises(ValueError, match="must be ids below 3"):
        VideoPanopticQuality(3, [3])
    with pytest.raises(ValueError, match="windows"):
        VideoPanopticQuality(3, windows=(0, 1))
    with pytest.raises(ValueError, match="classes"):
        VideoPanopticQuality(256)


def test_temporal_consistency_is_the_share_of_valid_pixels_that_agree() -> None:
    random = np.random.default_rng(0)
    now, before = random.integers(0, 3, (2, 4, 9, 11)).astype(np.uint8)
    valid = random.random(now.shape) < 0.7
    agree = sum(a == b for a, b, v in zip(now.flat, before.flat, valid.flat, strict=True) if v)
    streamed, at_once = TemporalConsistency(), TemporalConsistency()
    assert math.isnan(streamed.score())
    at_once.update(now, before, valid)
    for frame_now, frame_before, frame_valid in zip(now, before, valid, strict=True):
        streamed.update(
            torch.from_numpy(frame_now).long(), torch.from_numpy(frame_before), torch.from_numpy(frame_valid)
        )
    assert streamed.score() == at_once.score() == agree / valid.sum()
    assert torch.equal(streamed.counts, at_once.counts)
    with pytest.raises(ValueError, match="differ in shape"):
        streamed.update(now, before[0], valid)
