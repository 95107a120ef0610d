"""What a run reads is checked before anything is spent: missing, sparse, damaged and contradictory data."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import encode
from settings import TABLE, run_words, tiny_recipe, tiny_samples

from distuda.data import shards
from distuda.data.batch import Batch
from distuda.data.dataset import open_dataset
from distuda.data.labels import ClassTable
from distuda.data.reader import iterate_once, read_batches
from distuda.data.shards import write_shards
from distuda.engine.inputs import doubts, open_data
from distuda.engine.loop import fit, settle
from distuda.engine.run import read_rows
from distuda.errors import UserError

RARE = ["source.rare_class_temperature=0.1", "source.rare_class_min_pixels=50"]


def test_an_oracle_without_target_labels_is_refused(domains: list[str]) -> None:
    with pytest.raises(UserError, match="looks at 'label' of the target"):
        open_data(tiny_recipe(*domains, "method.use_target_labels=true"))


def test_an_unlabelled_source_is_refused(domains: list[str]) -> None:
    target = domains[1].split("=")[1]
    with pytest.raises(UserError, match=r"source\.uri.*has no labels"):
        open_data(tiny_recipe(*domains, f"source.uri={target}"))


@pytest.mark.parametrize("name", ["target", "evaluation"])
def test_different_class_tables_are_refused(name: str, domains: list[str], tmp_path: Path) -> None:
    other = ClassTable("other", (*TABLE.classes[:3], "post"), TABLE.palette)
    write_shards(tiny_samples(2, 9), str(tmp_path / "other"), other)
    with pytest.raises(UserError, match=f"'tiny4'.*{name} has 'other'.*post"):
        open_data(tiny_recipe(*domains, f"{name}.uri={tmp_path / 'other'}"))


def test_target_miou_needs_labels(domains: list[str]) -> None:
    target = domains[1].split("=")[1]
    for word in (f"evaluation.uri={target}", "evaluation.uri=none"):
        with pytest.raises(UserError, match="target_miou"):
            open_data(tiny_recipe(*domains, word, "checkpoint.best_by=target_miou"))


def test_accumulation_must_divide_the_batch(domains: list[str]) -> None:
    with pytest.raises(UserError, match="accumulate=2 does not divide batch_size=3"):
        open_data(tiny_recipe(*domains, "accumulate=2", "batch_size=3"))


def test_missing_data_is_refused(domains: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set at"):
        open_data(tiny_recipe(*domains, f"target.uri={tmp_path / 'none'}"))


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (["method.start_step=0"], ""),
        (["method.start_step=1"], "warning: method.start_step=1 is not within steps=1"),
        (["method.lambda_distance=0.1"], "warning: method.lambda_distance=0.1 keeps features near those of random"),
        (["method.lambda_distance=0.1", "model.weights=imagenet"], ""),
        (["optimizer.warmup_steps=1"], "warning: optimizer.warmup_steps=1 is not within steps=1"),
        ([*RARE, "source.rare_class_crop_pixels=1536"], "warning: source.rare_class_crop_pixels=1536 is all of a crop"),
        ([*RARE, "source.rare_class_crop_pixels=9"], ""),
    ],
)
def test_what_is_hardly_meant_is_told(
    words: list[str], warning: str, domains: list[str], tmp_path: Path, capsys: Any
) -> None:
    words = ["method.name=minent", *words, "steps=1", "evaluation.limit=1", f"out={tmp_path / 'run'}"]
    fit(settle(tiny_recipe(*domains, *words)))
    said = capsys.readouterr().err
    assert warning in said if warning else "warning" not in said


def test_bad_samples_are_listed_in_the_run_folder(domains: list[str], tmp_path: Path) -> None:
    damaged = list(tiny_samples(8, seed=3))
    damaged[5].image = damaged[5].image[:60]
    write_shards(damaged, str(tmp_path / "target"), TABLE)
    words = run_words(domains, tmp_path / "run", f"target.uri={tmp_path / 'target'}", "steps=6", "log_every_steps=1")
    words.append("method.name=minent")
    with pytest.raises(UserError, match=damaged[5].key):
        fit(settle(tiny_recipe(*words, f"out={tmp_path / 'strict'}", "evaluation.uri=null")))
    fit(settle(tiny_recipe(*words, "target.max_bad_share=0.2", "evaluation.uri=null", "evaluation.limit=null")))
    listed = (tmp_path / "run" / "bad_samples-target-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in listed] == [damaged[5].key]
    rows = read_rows(str(tmp_path / "run"))
    assert [row for row in rows if row["kind"] == "train"][-1]["bad_samples"] == 1
    assert [row for row in rows if row["kind"] == "evaluation"][-1]["num_images"] == 7


def test_rare_classes_are_looked_for_in_images_of_one_size(domains: list[str], tmp_path: Path) -> None:
    write_shards([*tiny_samples(2, 1), *tiny_samples(2, 2, size=(48, 64))], str(tmp_path / "mixed"), TABLE)
    words = [*domains, f"source.uri={tmp_path / 'mixed'}", "source.rare_class_temperature=0.1"]
    with pytest.raises(UserError, match=r"have 2 sizes, such as \[40,56\] and \[48,64\].*source.size"):
        open_data(tiny_recipe(*words))
    open_data(tiny_recipe(*words, "source.size=[40,56]"))


def test_rare_classes_that_no_clip_ends_with_are_told(domains: list[str], tmp_path: Path) -> None:
    nothing = encode(np.full((40, 56), 255, np.uint8))
    first, second = tiny_samples(2, 1, clip_frames=2)
    write_shards([first, replace(second, label=nothing)], str(tmp_path / "clip"), TABLE)
    words = [*domains, f"source.uri={tmp_path / 'clip'}", f"out={tmp_path / 'run'}", "method.name=vat", *RARE]
    with pytest.raises(UserError, match=r"no frame of .*clip' with 1 before it .* source.rare_class_min_pixels=50"):
        fit(settle(tiny_recipe(*words)))


def test_a_style_needs_source_images(domains: list[str]) -> None:
    words = ["method.name=feature_regression", "method.pairs=given", "augment.style=fourier"]
    with pytest.raises(UserError, match=r"augment.style='fourier'.*'feature_regression' looks at no source image"):
        open_data(tiny_recipe(*domains, *words), coming={"target": ["pair"]})


def test_a_target_smaller_than_the_crop_is_told(domains: list[str]) -> None:
    for words, told in (
        (["augment.crop=[64,48]"], "[40,56]"),
        (["augment.scale=[0.5,1]"], "augment.scale=0.5"),
        ([], ""),
    ):
        recipe = tiny_recipe(*domains, "method.name=minent", *words)
        said = list(doubts(recipe, open_data(recipe)))
        assert [told in sentence for sentence in said] == [True] * bool(told)


def test_windows_larger_than_the_crop_are_refused(domains: list[str]) -> None:
    with pytest.raises(UserError, match=r"model.detail=\[16,64\] \(height, width\) does not fit into .*\[32,48\]"):
        open_data(tiny_recipe(*domains, "model.detail=[16,64]"))


def sparse(folder: Path) -> str:
    """Nine samples; those of number 0, 4 and 8 have a label."""
    frames = list(tiny_samples(9, seed=3))
    for number, frame in enumerate(frames):
        frame.label = frame.label if number % 4 == 0 else None
    part = shards.write_shard(frames, str(folder), 0, TABLE.num_classes, 2000)
    shards.finish(str(folder), TABLE, [part], sparse=True)
    return str(folder)


def test_a_sparsely_labelled_set_is_scored_on_its_labels(tmp_path: Path, domains: list[str]) -> None:
    frames = list(tiny_samples(9, seed=3))
    data = open_dataset(sparse(tmp_path / "clip"))
    assert not data.labelled and data.manifest.num_labelled == 3
    keys = [[batch.keys[0] for batch in iterate_once(data, rank=rank, world=2)] for rank in range(2)]
    assert keys[0] + keys[1] == [frames[i].key for i in (0, 4, 8)] and keys[0] and keys[1]
    assert all(batch.label_BHW is not None for batch in iterate_once(data))
    opened = open_data(tiny_recipe(*domains, f"evaluation.uri={data.uri}", "checkpoint.best_by=target_miou"))
    assert opened.evaluation.uri == data.uri, "some labels make a score"


@pytest.mark.parametrize(
    "words", [["source.uri"], ["source.uri", *RARE], ["target.uri", "method.use_target_labels=true"]]
)
def test_of_a_sparsely_labelled_domain_the_labelled_samples_are_learnt(
    words: list[str], domains: list[str], tmp_path: Path
) -> None:
    uri, (name, *more) = sparse(tmp_path / "some"), words
    recipe = tiny_recipe(*run_words(domains, tmp_path / "run", *more, f"{name}={uri}", "steps=4"))
    seen: set[str] = set()

    def watched(dataset: Any, *args: Any, **options: Any) -> Iterator[Batch]:
        for batch in read_batches(dataset, *args, **options):
            assert "label" not in options["columns"] or batch.label_BHW is not None
            seen.update(batch.keys if dataset.uri == uri else ())
            yield batch

    fit(settle(recipe), open_stream=watched)
    assert seen and seen <= {"3-0", "3-4", "3-8"}
    with pytest.raises(UserError, match=r"6 of 9 samples of .*some' have no label \(the first is '3-1'\)"):
        open_dataset(uri).require("label")
