"""Relabel phases that look along clips: aggregated predictions, thresholds a clip, and flow kept beside the data."""

import math
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from data_trees import TABLE, encode, write_camvid
from numpy.typing import NDArray
from test_clips import FRAMES, MOVE, SIZE, frame, moving, written

from distuda.cli import main
from distuda.data.clips import neighbours
from distuda.data.columns import COLUMNS, GROUPS, finish, read_group, write_group
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.decode import SampleError
from distuda.data.flow import compute_flow, compute_flows
from distuda.data.order import Order
from distuda.data.prepare import prepare
from distuda.data.reader import read_batches
from distuda.data.shards import write_shards
from distuda.errors import UserError
from distuda.models.segmenter import Output, Segmenter
from distuda.recipe import RelabelRecipe, parse_relabel
from distuda.relabel import job
from distuda.relabel.aggregate import Aggregate
from distuda.relabel.confident import Confident, thresholds
from distuda.relabel.flow import FlowToBefore
from distuda.relabel.predict import Predict
from distuda.relabel.relabeller import Task, encode_map

INNER = np.s_[..., 12:-12, 12:-12]


class Known(Segmenter):
    """A network that knows what to say of each picture, and counts how often it is asked."""

    def __init__(self, says: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(TABLE.num_classes)
        self.says, self.asked = says, 0
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, image_BCHW: torch.Tensor, seed_B: torch.Tensor | None = None) -> Output:
        self.asked += 1
        return Output(self.says(image_BCHW).log())


def by_picture(probability_of: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What is said of frame n of the moving texture: the n-th map of probabilities (C, H, W)."""
    frames = [torch.from_numpy(frame(n)).permute(2, 0, 1).float() / 255 for n in range(len(probability_of))]

    def says(image_BCHW: torch.Tensor) -> torch.Tensor:
        return probability_of[next(n for n, one in enumerate(frames) if torch.equal(one, image_BCHW[0]))][None]

    return says


def by_colour(image_BCHW: torch.Tensor) -> torch.Tensor:
    """Probabilities that follow the colours, so that they move with the scene."""
    return (4 * image_BCHW).softmax(dim=1)


def decoded(content: bytes) -> NDArray[Any]:
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))


def looked(relabeller: Aggregate, number: int, count: int) -> dict[str, NDArray[Any]]:
    """What aggregating makes of one frame of a clip of so many."""
    rows = [{"key": str(n), "image": encode(frame(n))} for n in range(count)]
    near = {d: rows[number + d] for d in (-2, -1, 1, 2) if 0 <= number + d < count}
    return dict(relabeller({**rows[number], "around": near}))


# Who is around -------------------------------------------------------------------------------------------------------


def test_neighbours_follow_the_clip_both_ways() -> None:
    previous = np.array([3, 0, -1, 2, -1])  # 2 -> 3 -> 0 -> 1, and 4 alone
    found = neighbours(previous, np.array([0, 2, 4]), 2, 1)
    assert {d: ids.tolist() for d, ids in found.items()} == {-1: [3, -1, -1], -2: [2, -1, -1], 1: [1, 3, -1]}


# Aggregated predictions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2])
def test_the_mean_is_over_the_frames_whose_flow_holds(number: int) -> None:
    """Each frame says the same of all its pixels, so the mean at a pixel says which frames counted there."""
    said = torch.rand(5, TABLE.num_classes, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    network = Known(by_picture([p[:, None, None].expand(-1, *SIZE) for p in said]))
    made = looked(Aggregate(Aggregate.Config(), Task(TABLE, network)), number, 5)
    total, count = np.broadcast_to(said[number][:, None, None], (3, *SIZE)).copy(), np.ones(SIZE)
    for other in {number - 2, number - 1, number + 1, number + 2} & set(range(5)):
        flow, valid = compute_flow(frame(number), frame(other))
        assert 0 < valid.mean() < 1
        counts = valid.astype(float)
        for axis, last in ((0, SIZE[1] - 1), (1, SIZE[0] - 1)):  # a pixel that is half out of sight counts half
            place = flow[..., axis] + np.indices(SIZE)[1 - axis]
            counts *= np.clip(np.minimum(place + 1, last + 1 - place), 0, 1)
        total += said[other].numpy()[:, None, None] * counts
        count += counts
    mean = total / count
    assert np.abs(made["confidence"] / 255 - mean.max(axis=0)).max() <= 0.5 / 255 + 1e-5
    assert (made["label"] == mean.argmax(axis=0)).all() and len(np.unique(count.round())) > 2


def test_neighbours_are_carried_to_where_the_frame_shows_them() -> None:
    """The frame itself is nearly blind; its neighbours know blocks of the scene, which lie elsewhere in them."""
    blocks = np.random.default_rng(5).integers(0, 3, (20, 25)).repeat(8, 0).repeat(8, 1)

    def truth(n: int) -> NDArray[Any]:
        top, left = 60 - MOVE[1] * n, 60 - MOVE[0] * n
        return blocks[top : top + SIZE[0], left : left + SIZE[1]]

    sure = [torch.from_numpy(np.moveaxis(np.eye(3)[truth(n)], -1, 0)).float() * 0.94 + 0.02 for n in range(5)]
    sure[2] = torch.tensor([0.3, 0.3, 0.4])[:, None, None].expand(3, *SIZE)
    alone, together = (
        (looked(Aggregate(Aggregate.Config(offsets=k), Task(TABLE, Known(by_picture(sure)))), 2, count)["label"])
        for k, count in ((2, 3), (2, 5))
    )
    right = (together == truth(2))[INNER].mean()
    unmoved = np.mean([(truth(n) == truth(2))[INNER].mean() for n in (0, 1, 3, 4)])
    assert right > 0.9 > 0.75 > unmoved and (alone == truth(2))[INNER].mean() > unmoved


def test_both_flows_at_once_are_those_of_two_calls() -> None:
    for one, other in ((frame(0), frame(1)), (frame(0)[:8], frame(1)[:8])):
        for made, expected in zip(compute_flows(one, other), (compute_flow(one, other), compute_flow(other, one)),
                                  strict=True):  # fmt: skip
            assert np.array_equal(made[0], expected[0]) and np.array_equal(made[1], expected[1])


def test_a_damaged_neighbour_is_left_out_and_a_damaged_frame_is_told() -> None:
    rows = [{"key": str(n), "image": encode(frame(n))} for n in range(4)]
    damaged = {"key": "damaged", "image": rows[1]["image"][:60]}
    aggregate = Aggregate(Aggregate.Config(), Task(TABLE, Known(by_colour)))
    expected = aggregate({**rows[2], "around": {-2: rows[0], 1: rows[3]}})
    made = aggregate({**rows[2], "around": {-2: rows[0], -1: damaged, 1: rows[3]}})
    assert all(np.array_equal(made[name], expected[name]) for name in ("label", "confidence"))
    with pytest.raises(SampleError, match="damaged"):
        aggregate({**damaged, "around": {1: rows[2]}})


@pytest.mark.parametrize("size", [None, (24, 32)], ids=["native", "resized"])
def test_an_image_without_a_clip_is_simply_predicted(size: tuple[int, int] | None) -> None:
    network = Known(by_colour)
    row = {"key": "k", "image": encode(frame(0))}
    made = Aggregate(Aggregate.Config(), Task(TABLE, network, size))(row)
    expected = Predict(Predict.Config(confidence=0.6), Task(TABLE, network, size))(row)["label"]
    kept = expected != 255
    assert np.array_equal(made["label"][kept], expected[kept]) and kept.any() and not kept.all()
    edge = np.abs(made["confidence"].astype(int) - 0.6 * 255) < 1
    assert np.array_equal((made["confidence"] >= 0.6 * 255) | edge, kept | edge)


def recipe_for(
    data: Dataset, out: Path, relabel: dict[str, Any], columns: tuple[str, ...] = (), **target: Any
) -> RelabelRecipe:
    values = {"out": str(out), "relabel": {"domain": "target", **relabel}, "precision": "fp32", "device": "cpu"}
    return parse_relabel({**values, "target": {"uri": data.uri, "columns": list(columns), **target}})


def rows_in(out: Path) -> dict[str, dict[str, Any]]:
    """All rows that a phase wrote, by key."""
    numbers = sorted(int(path.stem) for path in (out / GROUPS).iterdir())
    return {row["key"]: row for number in numbers for row in read_group(str(out), number).to_pylist()}


def aggregated(data: Dataset, out: Path, monkeypatch: pytest.MonkeyPatch, **target: Any) -> int:
    """Run the phase; gives how often the network was asked."""
    network = Known(by_colour)
    monkeypatch.setattr(job, "build", lambda recipe, dataset: Aggregate(recipe.relabel, Task(dataset.table, network)))
    job.relabel(recipe_for(data, out, {"name": "aggregate"}, **target))
    return network.asked


def test_row_groups_do_not_cut_clips_and_each_frame_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = written(tmp_path / "many", moving(FRAMES))
    write_shards(moving(FRAMES), str(tmp_path / "one"), TABLE)
    mixed = written(tmp_path / "mixed", moving([FRAMES[i] for i in (3, 8, 0, 5, 1, 7, 2, 6, 4)]))
    one = open_dataset(str(tmp_path / "one"))
    assert len(many.groups) > 3 and len(one.groups) == 1
    assert aggregated(many, tmp_path / "a", monkeypatch) == aggregated(one, tmp_path / "b", monkeypatch) == len(FRAMES)
    aggregated(mixed, tmp_path / "c", monkeypatch)
    for other in ("b", "c"):
        assert rows_in(tmp_path / "a") == rows_in(tmp_path / other)
    for data, out in ((many, "a"), (mixed, "c")):
        for number in range(len(data.groups)):  # a row group's file holds its own rows, in its order
            here = read_group(str(tmp_path / out), number, ["key"])["key"]
            assert here.to_pylist() == data.read_group(number, ["key"])["key"].to_pylist()
    label, confidence = (decoded(rows_in(tmp_path / "a")["a-002"][name]) for name in ("label", "confidence"))
    said = by_colour(torch.from_numpy(frame(2)).permute(2, 0, 1)[None].float() / 255)[0].numpy()
    assert label.shape == confidence.shape == SIZE and confidence.dtype == np.uint8
    assert (label == said.argmax(axis=0))[INNER].mean() > 0.95
    assert np.abs(confidence / 255 - said.max(axis=0))[INNER].mean() < 0.03


# Thresholds ----------------------------------------------------------------------------------------------------------


def guessed(data: Dataset, folder: Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Random labels and confidences beside a data set, as an earlier phase would have written them; and by key."""
    rng = np.random.default_rng(2)
    made = {}
    for number in range(len(data.groups)):
        rows = []
        for key in data.read_group(number, ["key"])["key"].to_pylist():
            label = rng.choice([0, 1, 2, 255], SIZE, p=[0.6, 0.3, 0.05, 0.05]).astype(np.uint8)
            low = int(rng.integers(0, 200))
            made[key] = label, rng.integers(low, 256, SIZE).astype(np.uint8)
            maps = {name: encode_map(one) for name, one in zip(("label", "confidence"), made[key], strict=True)}
            rows.append({"key": key, **maps, "class_pixels": [int((label == c).sum()) for c in range(3)]})
        write_group(str(folder), number, rows, ["label", "confidence"])
    finish(str(folder), data, ["label", "confidence"])
    return made


def kept(
    label: NDArray[Any], confidence: NDArray[Any], group: list[tuple[Any, Any]], limit: float, share: float
) -> Any:
    """The definition, pixel by pixel."""
    result = label.copy()
    for c in range(3):
        values = sorted(int(v) for one, sure in group for v in sure[one == c])
        theta = values[max(0, math.ceil(share * len(values)) - 1)] / 255 if values else 0
        for y, x in zip(*np.nonzero(label == c), strict=True):
            if confidence[y, x] / 255 < min(limit, theta):
                result[y, x] = 255
    return result


@pytest.mark.parametrize(("fields", "per"), [({}, "clip"), ({"limit": 0.6, "share": 0.8}, "clip"), ({}, "set")])
def test_only_sure_pixels_of_a_class_are_kept(fields: dict[str, Any], per: str, tmp_path: Path) -> None:
    samples = moving([*FRAMES, ("still", 0), ("still", 1)])
    for sample in samples[-2:]:
        sample.clip = sample.frame = None
    data = written(tmp_path / "set", samples)
    made = guessed(data, tmp_path / "guess")
    relabel = {"name": "confident", **fields, "per": per}
    out = tmp_path / "out"
    job.relabel(recipe_for(data, out, relabel, columns=(str(tmp_path / "guess"),)))
    for key, row in rows_in(out).items():
        clip = [one for other, one in made.items() if per == "set" or (other[0] == key[0] and key[0] in "ab")]
        label, confidence = made[key]
        expected = kept(label, confidence, clip or [made[key]], fields.get("limit", 0.9), fields.get("share", 0.5))
        assert np.array_equal(decoded(row["label"]), expected), key
        assert row["class_pixels"] == [int((expected == c).sum()) for c in range(3)]
        assert 0 < (expected == 255).mean() < 0.75
    again = open_dataset(data.uri, [str(tmp_path / "guess"), str(out)])
    assert again.labelled and again.holds("confidence")
    assert again.class_pixels().tolist() == np.sum([r["class_pixels"] for r in rows_in(out).values()], axis=0).tolist()


@pytest.mark.parametrize("per", ["clip", "set"])
def test_a_frame_that_was_passed_over_stops_no_phase_after_it(
    per: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = moving(FRAMES)
    samples[2].image = samples[2].image[:60]
    data = written(tmp_path / "set", samples)
    aggregated(data, tmp_path / "a", monkeypatch, max_bad_share=0.2)
    monkeypatch.undo()
    recipe = recipe_for(data, tmp_path / "out", {"name": "confident", "per": per}, columns=(str(tmp_path / "a"),))
    job.relabel(recipe)
    made = rows_in(tmp_path / "out")
    assert (decoded(made["a-002"]["label"]) == 255).all()
    assert all((decoded(made[key]["label"]) != 255).any() for key in made if key != "a-002")


def test_thresholds_of_a_histogram() -> None:
    counts = np.zeros((4, 256), np.int64)
    counts[0, [10, 20, 30, 40]] = 1
    counts[1, [250, 255]] = 5
    counts[2, 7] = 1
    assert thresholds(counts, 0.5, 229.5).tolist() == [20, 229.5, 7, 0]
    assert thresholds(counts, 0.0, 229.5).tolist() == [10, 229.5, 7, 0]
    assert thresholds(counts, 1.0, 255).tolist() == [40, 255, 7, 0]
    counts[0, 50:56] = 1
    assert thresholds(counts, 0.3, 255)[0] == 30  # the third of ten, though 0.3 * 10 may be more than 3 in floats


def test_thresholds_need_confidences(tmp_path: Path) -> None:
    data = written(tmp_path / "set", moving(FRAMES[:3]))
    with pytest.raises(UserError, match=r"'confident' looks at 'confidence': .* no column 'confidence' beside it"):
        job.relabel(recipe_for(data, tmp_path / "out", {"name": "confident"}))
    assert Confident.writes == ("label",) and not Confident.needs_network


# Flow beside the data ------------------------------------------------------------------------------------------------


def read(data: Dataset) -> list[Any]:
    order = Order(data.rows_per_group, seed=1, domain="t", weights=data.clip_weights(2, labelled=False))
    return list(islice(read_batches(data, order, batch_size=3, size=None, region=(32, 40), columns=("label", "flow"),
                                    num_frames=2), 4))  # fmt: skip


def test_flow_that_is_kept_is_the_flow_that_would_be_computed(tmp_path: Path) -> None:
    data = written(tmp_path / "set", moving(FRAMES))
    computed = read(data)
    out = job.relabel(recipe_for(data, tmp_path / "out", {"name": "flow"}))
    rows = rows_in(tmp_path / "out")
    assert [key for key, row in rows.items() if row["flow"] is None] == ["a-000", "b-000"]
    assert set(rows["a-001"]) == {"key", "flow"}
    beside = open_dataset(data.uri, [out])
    assert beside.has_flow and not data.has_flow
    for one, other in zip(computed, read(beside), strict=True):
        assert one.keys == other.keys and torch.equal(one.valid_BHW, other.valid_BHW)
        assert torch.equal(one.image_BCHW, other.image_BCHW) and torch.equal(one.label_BHW, other.label_BHW)
        off = (one.flow_B2HW - other.flow_B2HW).abs()
        assert 0 < off.max() <= 1 / 128 + 1e-6


def camvid(root: Path, numbers: list[int]) -> str:
    write_camvid(root, "train", [f"0001TP_{number:06d}" for number in numbers], size=SIZE)
    return str(root)


def command(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["distuda", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def test_prepare_keeps_flow_beside_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, uri = camvid(tmp_path / "camvid", [0, 30, 60, 120]), str(tmp_path / "out")
    assert command("prepare", "camvid", source, uri) == 0
    plain = open_dataset(uri)
    assert not plain.has_flow
    assert command("prepare", "camvid", source, uri, "--flow") == 0 and "flow beside them" in capsys.readouterr().out
    data = open_dataset(uri)
    assert data.has_flow and data.manifest == plain.manifest
    rows = rows_in(tmp_path / "out" / "flow")
    assert [row["flow"] is None for row in rows.values()] == [True, False, False, True]
    stamp = (tmp_path / "out" / "flow" / COLUMNS).stat().st_mtime_ns
    assert command("prepare", "camvid", source, uri, "--flow") == 0
    assert (tmp_path / "out" / "flow" / COLUMNS).stat().st_mtime_ns == stamp, "what is there is not computed again"
    own = job.relabel(recipe_for(data, tmp_path / "own", {"name": "flow"}))
    assert open_dataset(uri, [own])._beside("flow") == open_dataset(uri, [own]).columns[-1], "named ones count"
    described = tmp_path / "out" / "flow" / COLUMNS
    described.write_text(described.read_text().replace(data.manifest.content_hash, "0" * 64))
    with pytest.raises(UserError, match="belong to another data set"):
        open_dataset(uri)


def test_flow_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, uri = camvid(tmp_path / "camvid", list(range(0, 300, 30))), str(tmp_path / "out")
    whole, looked_at = job.Worker.__call__, []

    def dies(worker: job.Worker, number: int) -> int:
        if len(looked_at) == 1:
            raise KeyboardInterrupt
        looked_at.append(number)
        return whole(worker, number)

    monkeypatch.setattr(job.Worker, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare("camvid", source, uri, flow=True, row_group_bytes=12_000)
    assert len(open_dataset(uri).groups) > 2 and not open_dataset(uri).has_flow
    looked_at += [-1]  # lets it live
    assert prepare("camvid", source, uri, flow=True, row_group_bytes=12_000).flow == f"{uri}/flow"
    assert looked_at == [0, -1, *range(1, len(open_dataset(uri).groups))] and open_dataset(uri).has_flow


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_actors_take_a_gpu_for_a_network_alone(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.data

    from distuda.cluster import relabel as cluster

    asked = []

    class Numbers:
        def map_batches(self, actor: Any, **options: Any) -> "Numbers":
            asked.append(options["num_gpus"])
            return self

        def iter_rows(self) -> list[dict[str, Any]]:
            return []

    monkeypatch.setattr(cluster, "start_ray", lambda **options: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(ray.data, "from_items", lambda items, **options: Numbers())
    data = written(tmp_path / "clips", moving(FRAMES))
    changed = {"workers": 2, "device": device}
    recipes = [recipe_for(data, tmp_path / name, {"name": name}) for name in ("flow", "predict")]
    flow, predict = (recipe.model_copy(update=changed) for recipe in recipes)
    assert list(cluster.on_actors(flow, data, [0, 1], ["image"])) == [] and asked == [None]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="workers=2 need a GPU each and this machine has 1"):
        list(cluster.on_actors(predict, data, [0, 1], ["image"]))
    assert list(cluster.on_actors(predict, data, [0], ["image"])) == [] and asked == [None, 1]


def test_flow_needs_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = moving(FRAMES[:3])
    for sample in samples:
        sample.clip = sample.frame = None
    with pytest.raises(UserError, match=r"relabel 'flow' looks at frames in a row, and .* holds no clips"):
        job.relabel(recipe_for(written(tmp_path / "stills", samples), tmp_path / "flow", {"name": "flow"}))
    source = camvid(tmp_path / "camvid", [0])
    assert command("prepare", "camvid", source, str(tmp_path / "out"), "--flow") == 2
    assert "no two frames in a row" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert FlowToBefore.needs_clips
