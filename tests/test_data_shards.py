from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_trees import TABLE, encode, label, picture, samples

from distuda import storage
from distuda.data import dataset as dataset_module
from distuda.data.class_tables import class_table
from distuda.data.dataset import open_dataset
from distuda.data.manifest import MANIFEST, Manifest
from distuda.data.sample import Sample
from distuda.data.shards import finish, write_shard, write_shards
from distuda.errors import UserError


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_what_is_written_is_read_back(tmp_path: Path, scheme: str) -> None:
    uri = str(tmp_path / "set") if scheme == "local" else f"memory://{tmp_path}/set"
    written = list(samples(11))
    manifest = write_shards(written, uri, TABLE, row_group_bytes=2000, shard_samples=4)
    data = open_dataset(uri)
    assert data.manifest == manifest == Manifest.from_json(manifest.to_json())
    assert len(data) == 11 and data.labelled and data.table == TABLE
    assert len({group.file for group in data.groups}) == 3 and len(data.groups) > 3
    rows = [row for number in range(len(data.groups)) for row in data.read_group(number).to_pylist()]
    assert [(row["key"], row["image"], row["label"]) for row in rows] == [(s.key, s.image, s.label) for s in written]
    assert data.index["key"].to_pylist() == [s.key for s in written]
    storage.remove(uri)


def test_class_pixels_count_the_labels(tmp_path: Path) -> None:
    write_shards(samples(7), str(tmp_path / "set"), TABLE, row_group_bytes=1500, shard_samples=3)
    data = open_dataset(str(tmp_path / "set"))
    expected = sum(np.bincount(label(i).ravel(), minlength=256)[:3] for i in range(7))
    assert data.class_pixels().tolist() == expected.tolist()
    assert data.class_frequencies().sum() == pytest.approx(1)
    assert np.sum(data.index["class_pixels"].to_pylist(), axis=0).tolist() == expected.tolist()


def test_content_hash_tells_content_not_arrangement(tmp_path: Path) -> None:
    a = write_shards(samples(5), str(tmp_path / "a"), TABLE, row_group_bytes=10, shard_samples=2)
    b = write_shards(samples(5), str(tmp_path / "b"), TABLE)
    changed = [replace(s, image=encode(picture(99))) if s.key.endswith("3") else s for s in samples(5)]
    c = write_shards(changed, str(tmp_path / "c"), TABLE)
    assert a.content_hash == b.content_hash != c.content_hash


def test_unlabelled_set(tmp_path: Path) -> None:
    write_shards(samples(3, labelled=False), str(tmp_path / "set"), TABLE)
    data = open_dataset(str(tmp_path / "set"))
    assert not data.labelled and data.class_frequencies().tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="needs labels"):
        data.rare_class_weights()


def test_half_written_folder_is_never_opened(tmp_path: Path) -> None:
    def breaks() -> object:
        yield from samples(5)
        raise RuntimeError("power cut")

    uri = str(tmp_path / "set")
    with pytest.raises(RuntimeError):
        write_shards(breaks(), uri, TABLE, shard_samples=2)  # type: ignore[arg-type]
    assert not list((tmp_path / "set").glob(".*part")), "a part file was left behind"
    assert (tmp_path / "set" / "shard-00001.parquet").exists()
    with pytest.raises(UserError, match="incomplete"):
        open_dataset(uri)


def test_folders_that_are_no_data_set_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing or empty.*distuda prepare"):
        open_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no shards.*distuda prepare"):
        open_dataset(str(tmp_path))
    write_shards(samples(2), str(tmp_path / "set"), TABLE)
    (tmp_path / "set" / MANIFEST).write_text(
        (tmp_path / "set" / MANIFEST).read_text().replace('version": 2', 'version": 9')
    )
    with pytest.raises(UserError, match="schema 9"):
        open_dataset(str(tmp_path / "set"))


def test_bad_input_is_refused(tmp_path: Path) -> None:
    good = next(samples(1))
    cases: list[tuple[list[Sample], str]] = [
        ([], "no sample"),
        ([good, good], "occurs 2 times"),
        ([good, replace(good, key="other", label=None)], "no label"),
        ([replace(good, key="../../etc/passwd")], "keys may hold"),
        ([replace(good, label=encode(np.full((12, 16), 7, np.uint8)))], "label id 7 is outside"),
        ([replace(good, tags=[0, 7])], "tag 7 is outside"),
        ([replace(good, tags=[-1])], "tag -1 is outside"),
    ]
    for number, (bad, message) in enumerate(cases):
        with pytest.raises(UserError, match=message):
            write_shards(bad, str(tmp_path / str(number)), TABLE)
    write_shards([good], str(tmp_path / "full"), TABLE)
    with pytest.raises(UserError, match="not empty"):
        write_shards([good], str(tmp_path / "full"), TABLE)


def test_a_missing_or_damaged_shard_is_named(tmp_path: Path) -> None:
    write_shards(samples(4), str(tmp_path / "set"), TABLE, shard_samples=2)
    data = open_dataset(str(tmp_path / "set"))
    (tmp_path / "set" / "shard-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00001.parquet.*missing"):
        data.read_group(1)
    (tmp_path / "set" / "shard-00000.parquet").write_bytes(b"not parquet, whatever it says on the tin")
    with pytest.raises(UserError, match=r"shard-00000.parquet.*damaged"):
        data.read_group(0)


def test_rare_class_weights_are_the_marginals_of_the_published_draw(tmp_path: Path) -> None:
    common, rare = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    rare[:3] = 1  # 30 pixels of class 1; class 2 never reaches the limit
    rare[9, 9] = 2
    labels = [common, common, common, rare]
    made = [
        Sample(key=str(i), image=encode(picture(i, 10, 10)), label=encode(x), height=10, width=10)
        for i, x in enumerate(labels)
    ]
    write_shards(made, str(tmp_path / "set"), TABLE)
    (tmp_path / "set" / "shard-00000.parquet").unlink()  # the manifest and its index are enough
    weights, parts = open_dataset(str(tmp_path / "set")).rare_class_weights(temperature=0.5, min_pixels=20)
    frequency = np.array([369, 30]) / 400
    chance = np.exp((1 - frequency) / 0.5) / np.exp((1 - frequency) / 0.5).sum()
    assert weights == pytest.approx([chance[0] / 4] * 3 + [chance[0] / 4 + chance[1]])
    assert parts[:3] == pytest.approx([chance[0] / 4, chance[1], 0])  # and so which class a sample was drawn for


def test_rare_class_weights_pass_over_what_has_no_label(tmp_path: Path) -> None:
    made = list(samples(6))
    write_shards(made[::2], str(tmp_path / "labelled"), TABLE)
    for sample in made[1::2]:
        sample.label = None
    finish(str(tmp_path / "some"), TABLE, [write_shard(made, str(tmp_path / "some"), 0, 3, 10_000)], sparse=True)
    alone, _ = open_dataset(str(tmp_path / "labelled")).rare_class_weights(min_pixels=5)
    weights, _ = open_dataset(str(tmp_path / "some")).rare_class_weights(min_pixels=5)
    assert weights[::2] == pytest.approx(alone) and not weights[1::2].any() and alone.all()


def test_streets_are_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTUDA_CACHE", str(tmp_path))
    uri = "streets://day?num=2&size=48x64"
    data = open_dataset(uri)
    assert len(data) == 2 and data.labelled and data.table == class_table("streets11")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(dataset_module, "write_shards", never)
    assert open_dataset("streets://day/train?size=48x64&num=2").uri == data.uri
    (Path(data.uri) / MANIFEST).unlink()  # as after a crash
    with pytest.raises(AssertionError, match="rendered again"):
        open_dataset(uri)
