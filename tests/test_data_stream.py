import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from data_trees import TABLE, samples, write_camvid
from settings import TINY

from distuda.data.dataset import Dataset, open_dataset
from distuda.data.order import Order
from distuda.data.prepare import prepare
from distuda.data.reader import read_batches
from distuda.data.shards import write_shards
from distuda.engine.run import read_rows
from distuda.errors import UserError

ray = pytest.importorskip("ray")

from distuda.data import stream  # noqa: E402 (needs Ray)
from distuda.data.batch import Batch  # noqa: E402

OPTIONS = {"batch_size": 3, "size": (10, 14), "region": (6, 8), "columns": ("label",)}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    write_shards(samples(13), str(tmp_path / "set"), TABLE, row_group_bytes=2000, shard_samples=5)
    return open_dataset(str(tmp_path / "set"))


def order(data: Dataset, **options: object) -> Order:
    return Order(data.rows_per_group, **{"seed": 3, "domain": "source", "window": 2, **options})  # type: ignore[arg-type]


def same(first: Iterator[Batch], second: Iterator[Batch], count: int) -> None:
    for a, b in islice(zip(first, second, strict=False), count):
        assert a.keys == b.keys and torch.equal(a.seed_B, b.seed_B) and torch.equal(a.image_BCHW, b.image_BCHW)
        assert a.label_BHW is not None and b.label_BHW is not None and torch.equal(a.label_BHW, b.label_BHW)


def test_both_readers_give_the_same_batches(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STRETCH", 5)  # so that the test passes over several stretches
    monkeypatch.setattr(stream, "LEAD", 2)
    for rank, history in ((0, ()), (1, ((2, 7),))):
        streamed = stream.stream_batches(data, order(data, rank=rank, world=2, history=history), **OPTIONS)  # type: ignore[arg-type]
        read = read_batches(data, order(data, rank=rank, world=2, history=history), **OPTIONS)  # type: ignore[arg-type]
        same(streamed, read, 20)
        streamed.close()  # type: ignore[attr-defined]
        read.close()  # type: ignore[attr-defined]


def test_rays_loop_pauses_in_these_executions_and_in_no_other(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []
    monkeypatch.setattr(stream.time, "sleep", pauses.append)
    next(stream.stream_batches(data, order(data), **OPTIONS))  # type: ignore[arg-type]
    assert stream._Breathing.PAUSE_S in pauses
    pauses.clear()
    assert len(ray.data.range(3).take_all()) == 3
    assert stream._Breathing.PAUSE_S not in pauses


def test_ray_listens_on_loopback_only(data: Dataset) -> None:
    next(stream.stream_batches(data, order(data), **OPTIONS))  # type: ignore[arg-type]
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}


def test_a_missing_shard_reaches_the_consumer_as_a_sentence(data: Dataset) -> None:
    for shard in Path(data.uri).glob("shard-*.parquet"):
        shard.unlink()
    with pytest.raises(UserError, match="is missing though the manifest lists it"):
        next(stream.stream_batches(data, order(data), **OPTIONS))  # type: ignore[arg-type]


def test_parallel_prepare_equals_the_plain_one(tmp_path: Path) -> None:
    write_camvid(tmp_path / "camvid", "train", [f"0006R0_f{i:05d}" for i in range(7)])
    plain = prepare("camvid", str(tmp_path / "camvid"), str(tmp_path / "plain"), shard_samples=2)
    parallel = prepare("camvid", str(tmp_path / "camvid"), str(tmp_path / "parallel"), shard_samples=2, workers=2)
    assert plain.manifest == parallel.manifest


def test_two_workers_become_three_in_mid_epoch_and_every_sample_comes_once(tmp_path: Path) -> None:
    write_shards(samples(60), str(tmp_path / "set"), TABLE, row_group_bytes=4000)
    data = open_dataset(str(tmp_path / "set"))
    options = {"batch_size": 2, "size": None, "region": (6, 8), "columns": ("label",)}

    def served(world: int, batches: int, history: object = ()) -> list[str]:
        keys = []
        for rank in range(world):
            place = order(data, rank=rank, world=world, history=history)
            # a Ray execution a rank would take most of a minute; the readers' batches are equal (see above)
            open_stream = stream.stream_batches if (rank, world) == (0, 3) else read_batches
            for batch in islice(open_stream(data, place, **options), batches):  # type: ignore[arg-type]
                keys += batch.keys
        return keys

    before = served(2, 6)
    history = order(data, world=2).history_after(12)
    after = served(3, 6, history)
    assert len(before) == 24 and len(after) == 36 and sorted(before + after) == sorted(data.index["key"].to_pylist())


ON_TWO_CPUS = """
import sys
from distuda.cluster.local import start_ray
start_ray(num_cpus=2)
from distuda.cluster.train import train
from distuda.recipe import load_recipe
train(load_recipe(None, sys.argv[1:]))
import ray
assert ray.cluster_resources()["CPU"] == 2
"""


@pytest.mark.timeout(300)
def test_streams_worker_and_evaluation_share_two_cpus_without_deadlock(domains: list[str], tmp_path: Path) -> None:
    words = [*TINY, "method.name=minent", f"out={tmp_path / 'run'}", *domains, "workers=1", "steps=6"]
    words += ["evaluation.every_steps=2", "checkpoint.every_steps=2", "source.window=1", "target.window=1"]
    command = [sys.executable, "-c", ON_TWO_CPUS, *words]
    subprocess.run(command, check=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert [row["step"] for row in read_rows(str(tmp_path / "run")) if row["kind"] == "evaluation"] == [2, 4, 6]
