import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_trees import TABLE, encode, label, picture, samples

from distuda.data.dataset import Dataset, open_dataset
from distuda.data.decode import SampleError, decode_image, decode_label, decode_sample, resize_image, resize_label
from distuda.data.order import Order
from distuda.data.reader import iterate_once, read_batches
from distuda.data.sample import Sample
from distuda.data.shards import write_shards
from distuda.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    write_shards(samples(13), str(tmp_path / "set"), TABLE, row_group_bytes=2000, shard_samples=5)
    return open_dataset(str(tmp_path / "set"))


def order(data: Dataset, **options: object) -> Order:
    return Order(data.rows_per_group, **{"seed": 3, "domain": "source", **options})  # type: ignore[arg-type]


def test_batches_follow_the_order_and_hold_the_pictures(data: Dataset) -> None:
    batches = read_batches(data, order(data), batch_size=4, size=None, region=None, columns=("label",))
    windows = order(data).windows()
    ids = np.concatenate([next(windows).ids for _ in range(4)]).tolist()
    seeds = [int(s) for _ in range(1) for s in next(order(data).windows()).seeds]
    for number in range(3):
        batch = next(batches)
        expected = [i % 13 for i in ids[4 * number : 4 * number + 4]]
        assert batch.keys == [f"clip/{i:04d}" for i in expected]
        assert batch.image_BCHW.dtype == torch.uint8 and batch.seed_B.dtype == torch.int64
        assert batch.label_BHW is not None and batch.label_BHW.dtype == torch.int64
        for row, i in enumerate(expected):
            assert np.array_equal(batch.image_BCHW[row].permute(1, 2, 0).numpy(), picture(i))
            assert np.array_equal(batch.label_BHW[row].numpy(), label(i))
        if number == 0:
            assert batch.seed_B.tolist() == seeds[:4]
    batches.close()  # type: ignore[attr-defined]


def test_an_interrupted_reader_goes_on_with_the_same_pixels(data: Dataset) -> None:
    options = {"batch_size": 3, "size": (10, 14), "region": (6, 8), "columns": ("label",)}
    whole = read_batches(data, order(data), **options)  # type: ignore[arg-type]
    for _ in range(5):
        next(whole)
    later = read_batches(data, order(data, history=order(data).history_after(15)), **options)  # type: ignore[arg-type]
    for _ in range(6):
        a, b = next(whole), next(later)
        assert a.keys == b.keys and torch.equal(a.image_BCHW, b.image_BCHW) and torch.equal(a.seed_B, b.seed_B)
        assert a.image_BCHW.shape == (3, 3, 6, 8)


def test_closing_the_iterator_stops_its_threads(data: Dataset) -> None:
    batches = read_batches(data, order(data), batch_size=2, size=None, region=None, columns=())
    assert next(batches).label_BHW is None
    assert any(t.name.startswith("distuda-data") for t in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not any(t.name.startswith("distuda-data") for t in threading.enumerate())


def test_labels_that_are_missing_are_named(tmp_path: Path) -> None:
    write_shards(samples(3, labelled=False), str(tmp_path / "set"), TABLE)
    bare = open_dataset(str(tmp_path / "set"))
    with pytest.raises(UserError, match="has no labels"):
        next(read_batches(bare, order(bare), batch_size=1, size=None, region=None, columns=("label",)))


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    sizes = [(10, 10), (12, 9)]
    made = [Sample(key=str(i), image=encode(picture(i, *s)), height=s[0], width=s[1]) for i, s in enumerate(sizes)]
    write_shards(made, str(tmp_path / "set"), TABLE)
    mixed = open_dataset(str(tmp_path / "set"))
    with pytest.raises(UserError, match="differ in size"):
        next(read_batches(mixed, order(mixed), batch_size=2, size=None, region=None, columns=()))
    batch = next(read_batches(mixed, order(mixed), batch_size=2, size=None, region=(11, 10), columns=()))
    assert batch.image_BCHW.shape == (2, 3, 11, 10)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_sees_each_sample_once(data: Dataset, world: int) -> None:
    keys = [[b.keys[0] for b in iterate_once(data, rank=rank, world=world)] for rank in range(world)]
    assert [key for part in keys for key in part] == [f"clip/{i:04d}" for i in range(13)]


def test_evaluation_keeps_labels_at_native_size(data: Dataset) -> None:
    batch = next(iterate_once(data, size=(24, 32)))
    assert batch.image_BCHW.shape == (1, 3, 24, 32)
    assert batch.label_BHW is not None and np.array_equal(batch.label_BHW[0].numpy(), label(0))


def test_more_ranks_than_samples_leave_some_without(tmp_path: Path) -> None:
    write_shards(samples(2), str(tmp_path / "set"), TABLE)
    two = open_dataset(str(tmp_path / "set"))
    assert sorted(sum(1 for _ in iterate_once(two, rank=rank, world=5)) for rank in range(5)) == [0, 0, 0, 1, 1]


def test_window_cuts_image_and_label_alike() -> None:
    image = np.repeat(np.arange(30 * 40, dtype=np.uint16).reshape(30, 40, 1) % 251, 3, axis=2).astype(np.uint8)
    row = {"key": "k", "image": encode(image), "label": encode(image[:, :, 0])}
    places = set()
    for seed in range(30):
        cut, ids = decode_sample(row, size=None, region=(8, 9), seed=seed)
        again, _ = decode_sample(row, size=None, region=(8, 9), seed=seed)
        assert cut.shape == (8, 9, 3) and ids is not None
        assert np.array_equal(cut[:, :, 0], ids) and np.array_equal(cut, again)
        places.add(cut.tobytes())
    assert len(places) > 20


def test_small_images_are_padded_with_ignored_pixels() -> None:
    row = {"key": "k", "image": encode(picture(1)), "label": encode(label(1))}
    image, ids = decode_sample(row, size=None, region=(20, 16), seed=5)
    assert ids is not None and image.shape == (20, 16, 3)
    assert np.array_equal(image[:12], picture(1)) and not image[12:].any()
    assert np.array_equal(ids[:12], label(1)) and (ids[12:] == 255).all()


def test_batches_say_where_small_images_end(tmp_path: Path) -> None:
    whole, mixed = [label(i) // 255 for i in range(4)], list(samples(4))
    for number, sample in enumerate(mixed):
        side = (12, 16) if number % 2 else (20, 24)
        sample.image = encode(resize_image(picture(number), side))
        sample.label, sample.height, sample.width = encode(resize_label(whole[number], side)), *side
    write_shards(mixed, str(tmp_path / "set"), TABLE)
    data = open_dataset(str(tmp_path / "set"))
    options: dict[str, Any] = {"batch_size": 4, "size": None, "columns": ("label",)}
    batch = next(read_batches(data, order(data), region=(18, 14), **options))
    assert batch.label_BHW is not None and batch.shown_BHW is not None
    assert torch.equal(batch.shown_BHW, batch.label_BHW != 255)
    assert sorted(batch.shown_BHW.float().mean(dim=(1, 2)).tolist()) == pytest.approx([12 / 18, 12 / 18, 1, 1])
    assert next(read_batches(data, order(data), region=(12, 14), **options)).shown_BHW is None


def test_labels_are_resized_without_new_ids() -> None:
    ids = np.array([[0, 10], [255, 3]], np.uint8).repeat(8, 0).repeat(8, 1)
    assert resize_label(ids, (4, 4)).tolist() == [[0, 0, 10, 10]] * 2 + [[255, 255, 3, 3]] * 2
    flat = np.full((16, 16, 3), 90, np.uint8)
    flat[::2] = 110
    assert (resize_image(flat, (4, 4)) == 100).all(), "shrinking has to average"


def test_jpeg_grey_and_alpha_become_rgb() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    assert abs(int(decode_image(encode(red, "JPEG"), "k")[4, 4, 0]) - 200) < 4
    assert decode_image(encode(red[..., 0], "JPEG"), "k").shape == (8, 8, 3)
    assert decode_image(encode(red[..., 0]), "k")[4, 4].tolist() == [200, 200, 200]
    assert decode_image(encode(np.dstack([red, red[..., :1]])), "k")[4, 4].tolist() == [200, 0, 0]


def _bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims side x side pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + struct.pack(">I", 10) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + body


def test_unusable_pictures_are_named() -> None:
    jpeg = encode(picture(1, 64, 64), "JPEG")
    bad = {"empty": b"", "text": b"hello", "short": jpeg[: len(jpeg) // 2], "png": encode(picture(1))[:200]}
    for name, content in bad.items():
        with pytest.raises(SampleError, match=f"'{name}'"):
            decode_image(content, name)
    for side in (9_400, 60_000):  # beyond our limit, and beyond the one at which PIL refuses by itself
        with pytest.raises(SampleError, match="limit"):
            decode_image(_bomb(side), "bomb")
    with pytest.raises(SampleError, match="mode RGB"):
        decode_label(encode(picture(1)), "k")
    with pytest.raises(SampleError, match="differ in size"):
        decode_sample(
            {"key": "k", "image": encode(picture(1)), "label": encode(label(1, 5, 5))}, size=None, region=None, seed=0
        )


def test_reading_needs_no_ray() -> None:
    code = "import sys, distuda.data.reader, distuda.data.prepare; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, distuda.data.dataset; sys.exit('torch' in sys.modules)"  # what Ray's workers import
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
