"""Clips: who comes before whom, frames that are cut alike, flow computed, stored and carried through augmentation."""

from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from data_trees import TABLE, encode
from numpy.typing import NDArray

from distuda.data.augment import GeometryConfig, geometry
from distuda.data.batch import Batch
from distuda.data.clips import earlier, in_clip_order, previous_frames, with_previous
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.flow import compute_flow, decode_flow, encode_flow
from distuda.data.order import Order
from distuda.data.prepare import prepare
from distuda.data.reader import iterate_once, read_batches
from distuda.data.sample import Sample
from distuda.data.shards import finish, write_shard, write_shards
from distuda.errors import UserError
from distuda.warp import inside, warp

SIZE = (48, 64)
MOVE = (3, -2)  # of the scene a frame, (x, y) in pixels


def texture(height: int = 160, width: int = 200) -> NDArray[np.uint8]:
    rough = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def frame(number: int) -> NDArray[np.uint8]:
    """A window on a texture that moves by `MOVE` a frame."""
    top, left = 60 - MOVE[1] * number, 60 - MOVE[0] * number
    return texture()[top : top + SIZE[0], left : left + SIZE[1]]


def moving(names: list[tuple[str, int]], *, unlabelled: tuple[int, ...] = (), flow: bool = False) -> list[Sample]:
    made = []
    exact = np.broadcast_to(-np.array(MOVE, np.float32), (*SIZE, 2)).copy()
    for place, (clip, number) in enumerate(names):
        ids = encode(np.full(SIZE, number % 3, np.uint8))
        made.append(
            Sample(
                key=f"{clip}-{number:03d}",
                image=encode(frame(number)),
                label=None if place in unlabelled else ids,
                clip=clip,
                frame=number,
                height=SIZE[0],
                width=SIZE[1],
                flow=encode_flow(exact, np.ones(SIZE, bool)) if flow else None,
            )
        )
    return made


def written(folder: Path, samples: list[Sample]) -> Dataset:
    write_shards(samples, str(folder), TABLE, row_group_bytes=12_000)
    return open_dataset(str(folder))


FRAMES = [("a", n) for n in range(5)] + [("b", n) for n in range(4)]


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return written(tmp_path / "set", moving(FRAMES))


def index(clips: list[str | None], frames: list[int | None]) -> pa.Table:
    return pa.table({"clip": pa.array(clips, pa.string()), "frame": pa.array(frames, pa.int32())})


def test_the_frame_before_is_the_nearest_at_the_clips_own_step() -> None:
    clips = ["a", "a", "a", "a", None, "b", "b", "b", "c"]
    frames = [20, 9, 10, 19, None, 4, 2, 6, 1]
    assert previous_frames(index(clips, frames)).tolist() == [3, -1, 1, -1, -1, 6, -1, 5, -1]
    assert previous_frames(index([None, None], [None, None])).tolist() == [-1, -1]
    previous = np.array([-1, 0, 1, -1, 3])
    assert with_previous(previous, 1).all()
    assert with_previous(previous, 2).tolist() == [False, True, True, False, True]
    assert with_previous(previous, 3).tolist() == [False, False, True, False, False]
    assert earlier(previous, np.array([2, 4]), 2).tolist() == [1, 3]
    assert earlier(previous, np.array([2, 1]), 3).tolist() == [0]
    assert in_clip_order(index(["b", "a", None, "b", "a"], [1, 7, None, 0, 3]), np.arange(5)).tolist() == [
        3,
        0,
        4,
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("frames", "parted"),
    [
        ([0, 30, 60, 89, 119, 149], []),  # CamVid's 0016E5 has one such gap
        ([0, 30, 60, 91, 121], []),
        ([0, 29, 59, 90], []),
        ([0, 33, 67, 100, 133, 167], []),  # times in milliseconds
        ([0, 5, 35, 65, 95], [1]),
        ([0, 30, 60, 120, 150, 180], [3]),
        ([0, 30, 65], [2]),
        ([0, 1, 2, 4, 5], [3]),
        ([0, 0, 1, 2], [1]),
    ],
)
def test_one_odd_number_does_not_take_a_clip_apart_and_a_hole_does(frames: list[int], parted: list[int]) -> None:
    expected = [-1 if place in (0, *parted) else place - 1 for place in range(len(frames))]
    assert previous_frames(index(["a"] * len(frames), list(frames))).tolist() == expected


def options(**others: object) -> dict[str, object]:
    return {"batch_size": 3, "size": None, "region": None, "columns": ("label", "flow"), **others}


def test_frames_before_come_with_the_sample_and_are_cut_alike(data: Dataset) -> None:
    assert len(data.groups) > 1, "frames before must also be found in other row groups"
    weights = data.clip_weights(3, labelled=True)
    assert np.flatnonzero(weights).tolist() == [2, 3, 4, 7, 8]
    order = Order(data.rows_per_group, seed=1, domain="target", weights=weights)
    batches = read_batches(data, order, **options(region=(30, 40), num_frames=3))  # type: ignore[arg-type]
    for batch in islice(batches, 6):
        assert batch.before is not None and batch.before.before is not None and batch.before.before.before is None
        for place, key in enumerate(batch.keys):
            number = int(key[-3:])
            one: Batch | None = batch
            whole = [torch.from_numpy(frame(number - back)).permute(2, 0, 1) for back in range(3)]
            top, left = where(whole[0], batch.image_BCHW[place])
            for back in range(3):
                assert one is not None and one.label_BHW is not None
                cut = whole[back][:, top : top + 30, left : left + 40]
                assert torch.equal(one.image_BCHW[place], cut)
                assert (one.label_BHW[place] == (number - back) % 3).all()
                one = one.before


def where(whole: torch.Tensor, part: torch.Tensor) -> tuple[int, int]:
    """Where a cut lies in a picture."""
    height, width = part.shape[1:]
    places = [(t, x) for t in range(whole.shape[1] - height + 1) for x in range(whole.shape[2] - width + 1)]
    return next((t, x) for t, x in places if torch.equal(whole[:, t : t + height, x : x + width], part))


def test_ray_data_gives_the_same_clips(data: Dataset) -> None:
    from distuda.data.stream import stream_batches

    def order() -> Order:
        return Order(data.rows_per_group, seed=1, domain="target", weights=data.clip_weights(2, labelled=False))

    arguments = options(num_frames=2, region=(30, 40))
    here = islice(read_batches(data, order(), **arguments), 5)  # type: ignore[arg-type]
    there = islice(stream_batches(data, order(), **arguments), 5)  # type: ignore[arg-type]
    for one, other in zip(here, there, strict=True):
        assert one.keys == other.keys and one.before is not None and other.before is not None
        for a, b in ((one, other), (one.before, other.before)):
            for name, value in vars(a).items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value, getattr(b, name)), name


def test_a_frame_before_without_label_is_ignored_and_samples_have_one(tmp_path: Path) -> None:
    samples = moving(FRAMES)
    for number in (0, 1, 2, 3, 5, 6, 8):
        samples[number].label = None
    part = write_shard(iter(samples), str(tmp_path / "s"), 0, 3, 12_000)
    finish(str(tmp_path / "s"), TABLE, [part], sparse=True)
    data = open_dataset(str(tmp_path / "s"))
    weights = data.clip_weights(2, labelled=True)
    assert np.flatnonzero(weights).tolist() == [4, 7]
    order = Order(data.rows_per_group, seed=1, domain="source", weights=weights)
    batch = next(read_batches(data, order, **options(num_frames=2)))  # type: ignore[arg-type]
    assert batch.label_BHW is not None and (batch.label_BHW != 255).all()
    assert batch.before is not None and batch.before.label_BHW is not None and (batch.before.label_BHW == 255).all()


def test_runs_that_are_too_short_are_told(tmp_path: Path) -> None:
    data = written(tmp_path / "set", moving(FRAMES))
    with pytest.raises(UserError, match=r"no frame with 6 before it: 7 frames .* its longest run has 5\."):
        data.clip_weights(7, labelled=False)
    sparse = moving(FRAMES, unlabelled=(2, 3, 4, 6, 7, 8))
    finish(str(tmp_path / "s"), TABLE, [write_shard(iter(sparse), str(tmp_path / "s"), 0, 3, 12_000)], sparse=True)
    with pytest.raises(UserError, match=r"no labelled frame with 2 before it: .* longest run up to a label has 2\."):
        open_dataset(str(tmp_path / "s")).clip_weights(3, labelled=True)


def test_stills_have_no_clips(tmp_path: Path) -> None:
    samples = moving(FRAMES)
    for sample in samples:
        sample.clip = sample.frame = None
    data = written(tmp_path / "stills", samples)
    assert not data.moving
    with pytest.raises(UserError, match="holds no clips"):
        data.require("flow")
    with pytest.raises(UserError, match=r"no frame with 1 before it: 2 frames .* its longest run has 1\."):
        data.clip_weights(2, labelled=True)
    assert all(batch.before is None and batch.clips == [""] for batch in iterate_once(data))


def test_evaluation_goes_through_clips_in_order_and_keeps_each_on_one_rank(tmp_path: Path) -> None:
    mixed = [("b", 1), ("a", 2), ("a", 0), ("b", 0), ("a", 1), ("b", 2), ("b", 3)]
    data = written(tmp_path / "set", moving(mixed))
    seen = [(batch.clips[0], batch.keys[0], batch.before and batch.before.keys[0]) for batch in iterate_once(data)]
    assert [key for _, key, _ in seen] == ["b-000", "b-001", "b-002", "b-003", "a-000", "a-001", "a-002"]
    assert [before for *_, before in seen] == [None, "b-000", "b-001", "b-002", None, "a-000", "a-001"]
    for world in (2, 3):
        parts = [[batch.keys[0] for batch in iterate_once(data, rank=r, world=world)] for r in range(world)]
        assert [key for part in parts for key in part] == [key for _, key, _ in seen]
        assert not {key[0] for key in parts[0]} & {key[0] for key in parts[1]}


@pytest.mark.parametrize("stored", [False, True], ids=["computed", "column"])
@pytest.mark.parametrize("size", [None, (96, 128)], ids=["native", "resized"])
def test_flow_of_a_moving_picture(tmp_path: Path, stored: bool, size: tuple[int, int] | None) -> None:
    data = written(tmp_path / "set", moving(FRAMES, flow=stored))
    assert data.has_flow == stored
    order = Order(data.rows_per_group, seed=1, domain="t", weights=data.clip_weights(2, labelled=False))
    batch = next(read_batches(data, order, **options(num_frames=2, size=size)))  # type: ignore[arg-type]
    assert batch.flow_B2HW is not None and batch.valid_BHW is not None and batch.before is not None
    assert batch.flow_B2HW.dtype == torch.float32 and batch.valid_BHW.dtype == torch.bool
    expected = -torch.tensor(MOVE).float() * (1 if size is None else 2)
    inner = batch.flow_B2HW[:, :, 12:-12, 12:-12]
    assert (inner - expected[:, None, None]).abs().mean() < (1e-6 if stored else 0.2)
    assert batch.valid_BHW[:, 12:-12, 12:-12].float().mean() > 0.9
    same = warp(batch.before.image_BCHW.float(), batch.flow_B2HW)
    known = batch.valid_BHW & inside(batch.flow_B2HW)
    assert (same - batch.image_BCHW.float()).abs().mean(dim=1)[known].mean() < (4 if size is None else 8)


def test_flow_computed_is_not_valid_where_something_was_hidden() -> None:
    before = frame(0).copy()
    now = before.copy()
    before[10:30, 10:30], now[10:30, 26:46] = 255, 255  # a white box moves right and uncovers what was behind it
    noise = np.random.default_rng(3).integers(0, 60, (20, 20, 3), np.uint8)
    before[10:30, 10:30] -= noise
    now[10:30, 26:46] -= noise
    flow, valid = compute_flow(now, before)
    assert flow.shape == (*SIZE, 2) and valid.dtype == np.bool_
    assert valid[32:44].mean() > 0.9 and np.abs(flow[32:44]).max() < 1
    assert valid[12:28, 12:24].mean() < 0.6


def test_pictures_too_small_for_flow_have_none_that_holds() -> None:
    tiny = np.zeros((8, 30, 3), np.uint8)
    flow, valid = compute_flow(tiny, tiny)
    assert flow.shape == (8, 30, 2) and not valid.any()
    flow, valid = compute_flow(*[np.zeros((16, 16, 3), np.uint8)] * 2)
    assert np.isfinite(flow).all() and valid.shape == (16, 16)


def test_stored_flow_comes_back() -> None:
    flow = np.random.default_rng(0).uniform(-90, 90, (6, 8, 2)).astype(np.float32)
    flow[0, 0] = 600  # beyond what the file can say
    back, valid = decode_flow(encode_flow(flow, np.ones((6, 8), bool)), "k", (6, 8), (6, 8))
    assert not valid[0, 0] and valid.sum() == 47
    assert np.abs(back - flow)[valid].max() <= 1 / 128
    twice, _ = decode_flow(encode_flow(flow, np.ones((6, 8), bool)), "k", (6, 8), (12, 16))
    assert np.allclose(twice[::2, ::2], 2 * back)
    with pytest.raises(UserError, match="flow is no 16-bit PNG"):
        decode_flow(encode(np.zeros((6, 8), np.uint8)), "k", (6, 8), (6, 8))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0)], ids=["fixed", "zoomed"])
@pytest.mark.parametrize("crop", [None, (32, 40)], ids=["whole", "crop"])
def test_flow_still_leads_to_the_same_place_after_crop_zoom_and_flip(
    data: Dataset, scale: tuple[float, float], crop: tuple[int, int] | None
) -> None:
    samples = list(islice(stills(), 8))
    batch = Batch(
        torch.stack([now for now, _ in samples]), None, torch.arange(8), [str(i) for i in range(8)],
        before=Batch(torch.stack([before for _, before in samples]), None, torch.arange(8)),
        flow_B2HW=-torch.tensor(MOVE).float()[None, :, None, None].expand(8, 2, *SIZE).clone(),
        valid_BHW=torch.ones(8, *SIZE, dtype=torch.bool),
    )  # fmt: skip
    made = geometry(batch, GeometryConfig(crop=crop, scale=scale, flip=0.5))
    assert made.before is not None and made.flow_B2HW is not None and made.valid_BHW is not None
    assert len({bool(flow[0, 0, 0] < 0) for flow in made.flow_B2HW}) == 2, "some must be flipped, some not"
    carried = warp(made.before.image_BCHW, made.flow_B2HW)
    shown = made.image_BCHW.sum(1) > 0
    inner = made.valid_BHW & inside(made.flow_B2HW) & shown & (carried.sum(1) > 0)
    inner[:, :3], inner[:, -3:], inner[..., :3], inner[..., -3:] = False, False, False, False
    assert (carried - made.image_BCHW).abs().mean(dim=1)[inner].mean() < 0.02
    outside = (made.image_BCHW.sum(1) == 0) & made.valid_BHW
    assert outside.float().mean() < 0.01, "what lies outside the window holds no flow"


def stills() -> "list[tuple[torch.Tensor, torch.Tensor]]":
    pairs = [(frame(n + 1), frame(n)) for n in range(8)]
    return [(torch.from_numpy(a).permute(2, 0, 1), torch.from_numpy(b).permute(2, 0, 1)) for a, b in pairs]


def test_folders_of_frames_are_clips_when_asked_for(tmp_path: Path) -> None:
    names = ["drive_1/frame_0009.png", "drive_1/frame_0010.png", "drive_2/3.png", "drive_2/4.png"]
    for number, name in enumerate(names):
        path = tmp_path / "in" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(frame(number)))
    plain: dict[str, Any] = {"classes": "camvid11", "labels": False}
    made = prepare(
        "folder", str(tmp_path / "in"), str(tmp_path / "out"), classes="camvid11", labels=False, variant="clips"
    )
    data = open_dataset(made.uri)
    assert data.index["clip"].to_pylist() == ["drive_1", "drive_1", "drive_2", "drive_2"]
    assert data.index["frame"].to_pylist() == [9, 10, 3, 4] and data.previous.tolist() == [-1, 0, -1, 2]
    stills = prepare("folder", str(tmp_path / "in"), str(tmp_path / "stills"), **plain)
    assert not open_dataset(stills.uri).moving
    (tmp_path / "in" / "images" / "alone.png").write_bytes(encode(frame(0)))
    with pytest.raises(UserError, match="'alone' is no frame of a clip"):
        prepare("folder", str(tmp_path / "in"), str(tmp_path / "no"), **plain, variant="clips")
