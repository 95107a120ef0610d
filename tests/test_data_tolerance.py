import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from data_trees import TABLE, samples

from distuda.data.dataset import Dataset, open_dataset
from distuda.data.decode import SampleError
from distuda.data.order import Order
from distuda.data.reader import iterate_once, read_batches
from distuda.data.sample import Sample
from distuda.data.shards import write_shards
from distuda.data.tolerance import Tolerance
from distuda.errors import UserError

OPTIONS = {"batch_size": 4, "size": None, "region": (8, 8), "columns": ("label",)}


def _with_damage(bad: set[int], count: int = 20) -> Iterator[Sample]:
    for number, sample in enumerate(samples(count)):
        if number in bad:
            sample.image = sample.image[: len(sample.image) // 2]
        yield sample


def _data(folder: Path, bad: set[int]) -> Dataset:
    write_shards(_with_damage(bad), str(folder), TABLE, row_group_bytes=4000)
    return open_dataset(str(folder))


def _order(data: Dataset, history: object = ()) -> Order:
    return Order(data.rows_per_group, seed=1, domain="source", history=history)  # type: ignore[arg-type]


def test_strict_is_the_default_and_names_the_sample(tmp_path: Path) -> None:
    data = _data(tmp_path / "set", {7})
    with pytest.raises(SampleError, match="clip/0007"):
        list(islice(read_batches(data, _order(data), **OPTIONS), 5))  # type: ignore[arg-type]
    with pytest.raises(SampleError, match="clip/0007"):
        list(iterate_once(data))


def test_a_bad_sample_is_passed_over_counted_and_listed(tmp_path: Path) -> None:
    data, clean = _data(tmp_path / "set", {7}), _data(tmp_path / "clean", set())
    listed = tmp_path / "bad_samples.jsonl"
    tolerance = Tolerance(len(data), 0.05, str(listed))
    batches = list(islice(read_batches(data, _order(data), tolerance=tolerance, **OPTIONS), 15))  # type: ignore[arg-type]
    whole = list(islice(read_batches(clean, _order(clean), **OPTIONS), 15))  # type: ignore[arg-type]
    assert all(len(batch.keys) == 4 and "clip/0007" not in batch.keys for batch in batches)
    assert len(tolerance) == 1, "three epochs, one sample"
    (line,) = map(json.loads, listed.read_text().splitlines())
    assert line["key"] == "clip/0007" and "damaged" in line["reason"]
    replaced = 0
    for batch, other in zip(batches, whole, strict=True):
        assert batch.seed_B.tolist() == other.seed_B.tolist(), "positions are those of the whole set"
        for i, (key, wanted) in enumerate(zip(batch.keys, other.keys, strict=True)):
            if wanted == "clip/0007":
                replaced += 1
                assert key == other.keys[(i + 1) % 4], "its place goes to the next sample of the batch"
            else:
                assert key == wanted and np.array_equal(batch.image_BCHW[i], other.image_BCHW[i])
    assert replaced == 3
    assert [batch.keys[0] for batch in iterate_once(data, tolerance=tolerance)] == [
        f"clip/{i:04d}" for i in range(20) if i != 7
    ]


def test_resuming_gives_the_same_batches(tmp_path: Path) -> None:
    data = _data(tmp_path / "set", {3, 4})
    whole = read_batches(data, _order(data), tolerance=Tolerance(len(data), 0.1), **OPTIONS)  # type: ignore[arg-type]
    expected = list(islice(whole, 10))[6:]
    history = _order(data).history_after(6 * 4)
    later = read_batches(data, _order(data, history), tolerance=Tolerance(len(data), 0.1), **OPTIONS)  # type: ignore[arg-type]
    assert [batch.keys for batch in islice(later, 4)] == [batch.keys for batch in expected]


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:
    data = _data(tmp_path / "set", {1, 2, 3})
    listed = tmp_path / "bad.jsonl"
    stream = read_batches(data, _order(data), tolerance=Tolerance(len(data), 0.1, str(listed)), **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"3 of 20 samples.*max_bad_share=0.1.*clip/000[123].*bad.jsonl"):
        list(islice(stream, 20))
    assert len(listed.read_text().splitlines()) == 3
    again = Tolerance(len(data), 0.1, str(listed))
    assert len(again) == 3, "a resumed run knows what was met before"


def test_a_batch_without_a_good_sample_stops_the_run(tmp_path: Path) -> None:
    data = _data(tmp_path / "set", set(range(20)))
    stream = read_batches(data, _order(data), tolerance=Tolerance(len(data), 1.0), **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no sample of a batch"):
        next(stream)
