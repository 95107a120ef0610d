"""Clips in evaluations: `evaluate` against metrics fed by hand, over ranks, with sparse labels; the printed tables."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_trees import TABLE, encode
from rich.console import Console
from test_clips import FRAMES, SIZE, frame, moving, written
from torch import Tensor, nn

from distuda.data.batch import Batch
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.reader import iterate_once
from distuda.data.sample import Sample
from distuda.data.shards import finish, write_shard
from distuda.engine.evaluate import evaluate
from distuda.engine.video import Video
from distuda.metrics.vpq import TemporalConsistency, VideoPanopticQuality
from distuda.models.segmenter import Output
from distuda.report.tables import scores
from distuda.warp import warp_label

LONG = [("a", n) for n in range(6)] + [("b", n) for n in range(5)]


class Bands(nn.Module):
    """Classes by brightness; counts the images it was asked for."""

    align_corners = False
    gives_heat = False

    def __init__(self) -> None:
        super().__init__()
        self.sharp, self.calls = nn.Parameter(torch.tensor(8.0)), 0

    def forward(self, image_BCHW: Tensor) -> Output:
        self.calls += len(image_BCHW)
        centres = torch.linspace(0.45, 0.55, TABLE.num_classes)[:, None, None]
        return Output(-self.sharp * (image_BCHW.mean(1, keepdim=True) - centres).abs())


def classes_of(image_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return Bands()(image_BCHW.float() / 255).main.argmax(1)


def clips() -> list[Sample]:
    """Two noisy clips of a moving texture; labels are what `Bands` says but for a void corner and a slip that grows."""
    samples, noise = moving(LONG), np.random.default_rng(1)
    for place, sample in enumerate(samples):
        image = frame(LONG[place][1]).astype(np.int64) + noise.integers(-40, 41, (*SIZE, 1))
        image = image.clip(0, 255).astype(np.uint8)
        label = classes_of(torch.from_numpy(image).permute(2, 0, 1)[None])[0].numpy().astype(np.uint8)
        label = np.roll(label, place, axis=1)
        label[:9, :12] = 255
        sample.image, sample.label = encode(image), encode(label)
    return samples


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return written(tmp_path / "set", clips())


def run(batches: Any) -> dict[str, Any]:
    return evaluate(Bands(), batches, TABLE)  # type: ignore[arg-type]


def test_evaluation_gives_what_the_metrics_give_by_hand(data: Dataset) -> None:
    row = run(iterate_once(data))
    quality = VideoPanopticQuality(TABLE.num_classes, TABLE.things)
    consistency, last = TemporalConsistency(), None
    for batch in iterate_once(data):
        now = classes_of(batch.image_BCHW)
        assert batch.label_BHW is not None
        quality.update(batch.keys[0][0], now[0], batch.label_BHW[0])
        if batch.keys[0].endswith("000"):
            last = None
        if last is not None:
            assert batch.flow_B2HW is not None and batch.valid_BHW is not None
            consistency.update(now, warp_label(last, batch.flow_B2HW), batch.valid_BHW)
        last = now
    expected = quality.scores()
    assert {name for name in row if name.startswith("vpq")} >= {"vpq", "vpq_1", "vpq_2", "vpq_3", "vpq_4"}
    for name, value in expected.items():
        assert row.get(name) == (value if value == value else None), name
    assert row["temporal_consistency"] == consistency.score()
    assert 0 < row["temporal_consistency"] < 1
    per_class = quality.per_class().mean(axis=0)
    assert [row["vpq_per_class"][name] for name in TABLE.classes] == [v if v == v else None for v in per_class.tolist()]


def test_a_class_of_short_clips_alone_has_the_mean_over_the_windows_it_is_in() -> None:
    video, size = Video(TABLE, no_call), (8, 8)
    for clip, length, name in (("long", 4, 0), ("short", 2, 1)):
        label = torch.full((1, *size), name)
        for number in range(length):
            batch = Batch(torch.zeros(1, 3, *size), label, torch.zeros(1), keys=[f"{clip}{number}"], clips=[clip])
            video.update(batch, label)
    row = video.row()
    assert row["vpq_2"] == row["vpq_4"] == row["vpq"] == 1
    assert [row["vpq_per_class"][name] for name in TABLE.classes] == [1, 1, None]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_add_up_to_one_process(data: Dataset, world: int) -> None:
    whole, parts = Video(TABLE, no_call), []
    feed(whole, iterate_once(data))
    for rank in range(world):
        parts.append(Video(TABLE, no_call))
        feed(parts[-1], iterate_once(data, rank=rank, world=world))
    assert torch.equal(sum(part.quality.counts_W4C for part in parts), whole.quality.counts_W4C)  # type: ignore[arg-type]
    assert torch.equal(sum(part.consistency.counts for part in parts), whole.consistency.counts)  # type: ignore[arg-type]
    assert sum(bool(part.quality.counts_W4C.sum()) for part in parts) == 2, "two clips go to two ranks"


def no_call(image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    raise AssertionError("every frame before was scored itself")


def feed(video: Video, batches: Any) -> None:
    for batch in batches:
        video.update(batch, classes_of(batch.image_BCHW))


def test_frames_before_sparse_labels_are_predicted(tmp_path: Path) -> None:
    samples = clips()
    for place, sample in enumerate(samples):
        sample.label = sample.label if place in (2, 4, 8) else None
    folder = str(tmp_path / "sparse")
    finish(folder, TABLE, [write_shard(iter(samples), folder, 0, 3, 12_000)], sparse=True)
    network = Bands()
    row = evaluate(network, iterate_once(open_dataset(folder)), TABLE)  # type: ignore[arg-type]
    assert row["num_images"] == 3 and network.calls == 6, "three that are scored and the one before each"
    consistency = TemporalConsistency()
    for batch in iterate_once(open_dataset(folder)):
        assert batch.before is not None and batch.flow_B2HW is not None and batch.valid_BHW is not None
        warped = warp_label(classes_of(batch.before.image_BCHW), batch.flow_B2HW)
        consistency.update(classes_of(batch.image_BCHW), warped, batch.valid_BHW)
    assert row["temporal_consistency"] == consistency.score()
    assert "vpq_2" in row and "vpq_3" not in row and "vpq" not in row, "the longest run of labelled frames has two"
    assert "-" in printed(scores(row)).split("all classes")[1].splitlines()[0], "the mean over windows is not known"


def test_clips_without_labels_and_stills(data: Dataset, tmp_path: Path) -> None:
    def unlabelled(batch: Batch) -> Batch:
        batch.label_BHW = None
        return batch

    row = run(map(unlabelled, iterate_once(data)))
    assert "temporal_consistency" in row and not any(name.startswith("vpq") for name in row)
    assert "temporal consistency" in printed(scores(row)) and "VPQ" not in printed(scores(row))
    samples = moving(FRAMES)
    for sample in samples:
        sample.clip = sample.frame = None
    row = run(iterate_once(written(tmp_path / "stills", samples)))
    assert not any(name.startswith("vpq") or "temporal" in name for name in row)
    text = printed(scores(row))
    assert "mIoU" in text and "VPQ" not in text and "temporal" not in text


def printed(renderable: Any) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_tables_print_every_window(data: Dataset) -> None:
    row = run(iterate_once(data))
    text = printed(scores(row))
    assert all(f"{length} frame" in text for length in (1, 2, 3, 4))
    for group, key in (("all classes", "vpq"), ("things", "vpq_things"), ("stuff", "vpq_stuff")):
        line = next(line for line in text.splitlines() if group in line)
        shown = [f"{100 * row[name]:.1f}" if name in row else "-" for name in (f"{key}_1", f"{key}_4", key)]
        cells = line.replace("│", " ").split()
        assert [cells[-5], cells[-2], cells[-1]] == shown, line
    assert "A window is so many labelled frames" in text
    assert f"{100 * row['temporal_consistency']:.1f}" in text
    better = row | {"vpq": row["vpq"] + 0.1, "miou": row["miou"] + 0.05}
    compared = printed(scores(better, row))
    assert f"{100 * better['vpq']:.1f} (+10.0)" in compared and "VPQ gain" in compared and "+5.0" in compared


def test_a_model_on_larger_labels_is_scored_at_their_size(data: Dataset) -> None:
    rows = [run(iterate_once(data, size=size)) for size in (None, (24, 32))]
    assert rows[0]["label_sizes"] == rows[1]["label_sizes"] == ["48x64"]
    assert all(0 < row["temporal_consistency"] < 1 for row in rows)
