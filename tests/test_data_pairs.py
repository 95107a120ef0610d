"""Pairs: joined by key or by a list, read back in step with their images, and absent without harm."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_trees import TABLE, encode, picture, samples, write_camvid

from distuda.data.augment import GeometryConfig, geometry
from distuda.data.batch import Batch
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.decode import SampleError, decode_image, decode_pair, decode_sample
from distuda.data.manifest import INDEX, Manifest
from distuda.data.order import Order
from distuda.data.prepare import prepare
from distuda.data.reader import read_batches
from distuda.data.sample import SCHEMA, Sample
from distuda.data.shards import write_shards
from distuda.errors import UserError

KEYS = ["0006R0_f00930", "0016E5_00390", "0001TP_006690", "0001TP_006720"]


def paired(count: int, size: tuple[int, int] = (12, 16), without: tuple[int, ...] = ()) -> Iterator[Sample]:
    """Samples whose pair is the negative of their image, or another picture where the size differs."""
    for i, sample in enumerate(samples(count, labelled=False)):
        pair = 255 - picture(i) if size == (12, 16) else picture(i, *size)
        yield sample if i in without else replace(sample, pair=encode(pair))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    write_shards(paired(13), str(tmp_path / "set"), TABLE, row_group_bytes=4000, shard_samples=5)
    return open_dataset(str(tmp_path / "set"))


def order(data: Dataset, **options: object) -> Order:
    return Order(data.rows_per_group, seed=3, domain="target", window=2, **options)  # type: ignore[arg-type]


# Preparing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A CamVid tree, and another one of other pictures, prepared; the second lacks one key and has one more."""
    write_camvid(tmp_path / "new", "train", KEYS)
    write_camvid(tmp_path / "old", "train", ["0006R0_extra", *KEYS[:-1]], (24, 32))
    prepare("camvid", str(tmp_path / "old"), str(tmp_path / "old-shards"), row_group_bytes=1500)
    return str(tmp_path / "new"), str(tmp_path / "old-shards")


def pairs_by_key(uri: str) -> dict[str, bytes | None]:
    data = open_dataset(uri)
    rows = [row for group in range(len(data.groups)) for row in data.read_group(group).to_pylist()]
    return {row["key"]: row["pair"] for row in rows}


def test_samples_of_the_same_key_become_pairs(two: tuple[str, str], tmp_path: Path) -> None:
    summary = prepare("camvid", two[0], str(tmp_path / "out"), pairs=two[1], shard_samples=3)
    pairs = pairs_by_key(summary.uri)
    for key in KEYS[:-1]:
        assert pairs[key] == (tmp_path / "old" / "train" / f"{key}.jpg").read_bytes(), "pairs are never re-encoded"
    assert pairs[KEYS[-1]] is None and summary.manifest.num_pairs == 3
    assert "3 with a pair" in str(summary.render().title)
    plain = prepare("camvid", two[0], str(tmp_path / "plain"))
    assert plain.manifest.num_pairs == 0 and plain.manifest.content_hash != summary.manifest.content_hash
    again = prepare("camvid", two[0], str(tmp_path / "out"), pairs=two[1], shard_samples=3)
    assert again.manifest == summary.manifest
    with pytest.raises(UserError, match="holds another data set"):
        prepare("camvid", two[0], str(tmp_path / "out"), shard_samples=3)


def test_a_list_names_partners(two: tuple[str, str], tmp_path: Path) -> None:
    lines = ["key,other_key", f"{KEYS[0]},{KEYS[1]}", f"{KEYS[3]},0006R0_extra", "elsewhere,0006R0_extra"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    summary = prepare(
        "camvid", two[0], str(tmp_path / "out"), pairs=two[1], pair_list=str(tmp_path / "pairs.csv"), workers=0
    )
    pairs = pairs_by_key(summary.uri)
    assert {key for key, pair in pairs.items() if pair} == {KEYS[0], KEYS[3]}
    assert pairs[KEYS[0]] == (tmp_path / "old" / "train" / f"{KEYS[1]}.jpg").read_bytes()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"key,other_key\n{KEYS[0]},0006R0_extr\n", "names '0006R0_extr'.*did you mean '0006R0_extra'"),
        (f"key,other_key\n{KEYS[0]},{KEYS[0]}\n{KEYS[0]},{KEYS[1]}\n", "twice"),
        (f"{KEYS[0]},{KEYS[0]}\n", "no column 'key'"),
        ("key,other_key\n", "no two samples are paired"),
        ("key,other_key\nelsewhere,0006R0_extra\n", "no two samples are paired"),
        ("\xff", "UTF-8"),
    ],
)
def test_a_list_that_cannot_be_used(text: str, says: str, two: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=says):
        prepare("camvid", two[0], str(tmp_path / "out"), pairs=two[1], pair_list=str(tmp_path / "pairs.csv"))
    assert not (tmp_path / "out").exists()


def test_no_partner_at_all_is_refused(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no two samples have the same key.*--pair-list"):
        prepare("camvid", two[0], str(tmp_path / "out"), pairs=two[1], include=[KEYS[-1]])
    with pytest.raises(UserError, match="Add --pairs"):
        prepare("camvid", two[0], str(tmp_path / "out"), pair_list="pairs.csv")


# Reading -------------------------------------------------------------------------------------------------------------


def test_pairs_come_in_step_with_their_images(data: Dataset) -> None:
    for region in (None, (6, 8)):
        for batch in islice(read_batches(data, order(data), batch_size=3, size=None, region=region,
                                         columns=("pair",)), 6):  # fmt: skip
            assert batch.pair_BCHW is not None and torch.equal(batch.pair_BCHW, 255 - batch.image_BCHW)
    batch = next(read_batches(data, order(data), batch_size=3, size=None, region=None, columns=()))
    assert batch.pair_BCHW is None


def test_a_pair_of_another_size_is_brought_to_the_images() -> None:
    row = next(paired(1, (24, 40))).__dict__
    assert decode_pair(row, size=None, region=None, seed=0).shape == (12, 16, 3)
    for size, region, shape in (
        ((10, 14), None, (10, 14, 3)),
        ((10, 14), (6, 8), (6, 8, 3)),
        (None, (6, 20), (6, 20, 3)),
    ):
        image, _ = decode_sample(row, size=size, region=region, seed=5)
        assert decode_pair(row, size=size, region=region, seed=5).shape == image.shape == shape


def test_a_damaged_pair_is_a_bad_sample() -> None:
    row = {**next(paired(1)).__dict__, "pair": b"nothing"}
    with pytest.raises(SampleError, match=r"clip/0000 \(pair\)"):
        decode_pair(row, size=None, region=None, seed=0)


def test_both_readers_give_the_same_pairs(data: Dataset) -> None:
    stream = pytest.importorskip("distuda.data.stream")
    options = {"batch_size": 3, "size": (10, 14), "region": (6, 8), "columns": ("pair",)}
    streamed = stream.stream_batches(data, order(data), **options)
    for a, b in islice(zip(streamed, read_batches(data, order(data), **options), strict=False), 5):  # type: ignore[arg-type]
        assert a.keys == b.keys and a.pair_BCHW is not None and torch.equal(a.pair_BCHW, b.pair_BCHW)
    streamed.close()


def test_where_some_have_no_pair_the_others_are_drawn(tmp_path: Path) -> None:
    write_shards(paired(10, without=(0, 3, 4, 9)), str(tmp_path / "set"), TABLE, row_group_bytes=2500)
    data = open_dataset(str(tmp_path / "set"))
    assert data.paired and data.manifest.num_pairs == 6
    turns = order(data, weights=data.pair_weights())
    batches = read_batches(data, turns, batch_size=2, size=None, region=None, columns=("pair",))
    keys = [key for batch in islice(batches, 30) for key in batch.keys]
    assert set(keys) == {f"clip/{i:04d}" for i in (1, 2, 5, 6, 7, 8)}


def test_a_set_from_before_there_were_pairs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(samples(5), str(tmp_path / "set"), TABLE)
    for name, column in (("shard-00000.parquet", "pair"), (INDEX, "has_pair")):
        path = tmp_path / "set" / name
        table = pq.read_table(path).drop_columns([column])
        pq.write_table(table, path)
    manifest = open_dataset(str(tmp_path / "set")).manifest
    old = {name: value for name, value in manifest.to_json().items() if name != "num_pairs"}
    assert Manifest.from_json(old) == manifest
    data = open_dataset(str(tmp_path / "set"))
    assert not data.paired
    batch = next(read_batches(data, order(data), batch_size=3, size=None, region=None, columns=("label",)))
    assert batch.image_BCHW.shape == (3, 3, 12, 16)
    with pytest.raises(UserError, match="has no pairs"):
        next(read_batches(data, order(data), batch_size=3, size=None, region=None, columns=("label", "pair")))


def test_the_schema_has_the_pair() -> None:
    assert SCHEMA.field("pair").nullable


# Augmenting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [None, (6, 8)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.8, 1.5)])
def test_geometry_turns_and_cuts_pairs_as_images(crop: tuple[int, int] | None, scale: tuple[float, float]) -> None:
    image = torch.from_numpy(np.stack([decode_image(encode(picture(i)), "k") for i in range(8)])).permute(0, 3, 1, 2)
    batch = Batch(image, torch.full((8, 12, 16), 2), torch.arange(8), [str(i) for i in range(8)], image.flip(1))
    done = geometry(batch, GeometryConfig(crop=crop, scale=scale))
    assert done.pair_BCHW is not None
    torch.testing.assert_close(done.pair_BCHW, done.image_BCHW.flip(1))
    parts = done.split(2)
    assert [part.keys for part in parts] == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    assert all(part.pair_BCHW is not None and part.pair_BCHW.shape == part.image_BCHW.shape for part in parts)
    assert done.to("cpu").pair_BCHW is not None
