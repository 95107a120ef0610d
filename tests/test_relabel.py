"""Relabel phases: what is mined, composed and predicted, columns beside the shards, and going on after an end."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from settings import TABLE, tiny_recipe, tiny_samples

from distuda.cli import main
from distuda.data.columns import COLUMNS, CONTESTED, GROUPS, open_columns, read_group, write_group
from distuda.data.dataset import open_dataset
from distuda.data.decode import SampleError
from distuda.data.labels import ClassTable
from distuda.data.order import Order
from distuda.data.reader import read_batches
from distuda.data.sample import Sample
from distuda.data.shards import finish, write_shard, write_shards
from distuda.engine.loop import fit, settle
from distuda.errors import UserError
from distuda.recipe import RelabelRecipe, parse_relabel
from distuda.relabel import job
from distuda.relabel.compose import Compose
from distuda.relabel.erase import claim, decide, top_region
from distuda.relabel.relabeller import Task, encode_map
from distuda.relabel.score import score_labels

WITH_BACKGROUND = ClassTable("bg3", ("background", "cat", "dog"), ((0, 0, 0), (9, 9, 9), (7, 7, 7)))
OF = 255
"""No label."""


def tagged(count: int, seed: int, **changes: Any) -> list[Sample]:
    samples = tiny_samples(count, seed, labelled=False)
    for number, sample in enumerate(samples):
        sample.tags = [number % 4, 3]
        for name, value in changes.items():
            setattr(sample, name, value)
    return samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tagged images in several row groups, their true labels apart, and a classifier of two steps."""
    root = tmp_path_factory.mktemp("relabel")
    write_shards(tagged(9, 1), str(root / "tagged"), TABLE, row_group_bytes=12_000)
    write_shards(tiny_samples(9, 1), str(root / "true"), TABLE)
    words = ["method.name=classify", "model.weights=imagenet", "steps=2", "evaluation.uri=none", "target.uri=none"]
    fit(settle(tiny_recipe(f"source.uri={root / 'tagged'}", *words, f"out={root / 'classify'}")))
    return root


def erasing(folder: Path, out: Path, **more: Any) -> RelabelRecipe:
    values = {"out": str(out), "init_from": str(folder / "classify"), "relabel": {"name": "erase"}, "precision": "fp32"}
    source = {"uri": str(folder / "tagged"), **more.pop("source", {})}
    return parse_relabel({**values, "source": source, "device": "cpu", **more})


def columns_of(out: Path, number: int) -> list[dict[str, Any]]:
    return read_group(str(out), number).to_pylist()


# What is written -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "share", "expected"),
    [
        ("max", 0.2, [0, 0, 0, 1, 1]),  # at least 8 of 10
        ("cam", 0.2, [0, 0, 1, 1, 1]),  # at least 2 of 10
        ("quantile", 0.2, [0, 0, 0, 0, 1]),  # one pixel of five
        ("max", 0.01, [0, 0, 0, 0, 1]),
    ],
)
def test_the_three_readings_of_the_top_share(region: Any, share: float, expected: list[int]) -> None:
    heat = np.array([[0, 1, 5, 8, 10]], np.float32)
    everywhere = np.ones(heat.shape, bool)
    assert top_region(heat, region, share, everywhere)[0].astype(int).tolist() == expected
    assert not top_region(np.zeros((2, 2), np.float32), region, share, np.ones((2, 2), bool)).any()


@pytest.mark.parametrize(("region", "expected"), [("max", [4]), ("cam", [1, 2, 3, 4]), ("quantile", [4])])
def test_the_top_share_of_what_is_left_counts_nothing_that_is_gone(region: Any, expected: list[int]) -> None:
    """Five of ten pixels are left: a fifth of them is one, however many are gone and however hot those were."""
    heat = np.array([[1, 3, 4, 5, 9, 90, 91, 92, 93, 94]], np.float32)
    left = np.arange(10)[None] < 5
    assert np.flatnonzero(top_region(heat, region, 0.2, left)).tolist() == expected
    assert not top_region(heat, region, 0.2, ~left & left).any()


def test_what_two_classes_claim_is_contested_and_stays_so() -> None:
    mined = np.array([[OF, 1, 2, CONTESTED]], np.uint8)
    claim(mined, np.array([[True, True, True, True]]), 1)
    assert mined.tolist() == [[1, 1, CONTESTED, CONTESTED]]


def test_the_strongest_tag_wins_and_the_background_where_none_is_strong() -> None:
    strength = np.array([[[0.9, 0.1, 0.1]], [[0.2, 0.6, 0.05]]], np.float32)
    assert decide(strength, [1, 2], 0.2, 0).tolist() == [[1, 2, 0]]
    assert decide(strength, [1, 2], 0.2, None).tolist() == [[1, 2, 1]]
    assert decide(strength[:0], [], 0.2, 0).tolist() == [[0, 0, 0]] and decide(strength[:0], [], 0.2, None)[0, 0] == OF


def composed(table: ClassTable, tags: list[int], mined: Any, guess: Any, salient: Any, **fields: Any) -> list[int]:
    row = {"key": "k", "image": b"", "tags": tags}
    for name, values in (("mined", mined), ("label", guess), ("saliency", salient)):
        row[name] = encode_map(np.array([values], np.uint8))
    return Compose(Compose.Config(**fields), Task(table))(row)["label"][0].tolist()


def test_masks_keep_what_is_sure() -> None:
    """Columns: a mined cat that stands out, one that does not, contested, neither, background."""
    mined, guess, salient = [1, 1, CONTESTED, OF, OF], [1, 1, 2, 2, 1], [200, 3, 200, 200, 3]
    assert composed(WITH_BACKGROUND, [1, 2], mined, guess, salient) == [1, OF, OF, OF, 0]
    assert composed(WITH_BACKGROUND, [1, 2], mined, guess, salient, contested="label") == [1, OF, 2, OF, 0]
    assert composed(WITH_BACKGROUND, [1, 2], mined, guess, salient, unassigned="label") == [1, OF, OF, 2, 0]
    assert composed(WITH_BACKGROUND, [1, 2], mined, guess, salient, background=False) == [1, 1, OF, OF, OF]
    dogs = {"saliency_threshold": 0.005, "class_thresholds": {"dog": 0.9}}
    assert composed(WITH_BACKGROUND, [1], mined, guess, salient, **dogs) == [1, 1, OF, OF, OF]
    assert composed(WITH_BACKGROUND, [2], mined, guess, salient, **dogs) == [OF, OF, OF, 0, 0]
    assert composed(WITH_BACKGROUND, [1, 2], mined, guess, salient, **dogs) == [1, 1, OF, OF, OF]  # the cat's is less


def test_stuff_takes_the_part_of_a_background_that_the_table_lacks() -> None:
    """TABLE: ground, wall and sky are stuff, lamps are things. What is stuff need not stand out."""
    mined, guess, salient = [3, 0, OF, OF], [3, 0, 2, 3], [3, 3, 3, 3]
    assert composed(TABLE, [0, 2, 3], mined, guess, salient) == [OF, 0, 2, OF]  # two kinds of stuff: as guessed
    assert composed(TABLE, [0, 3], mined, guess, salient) == [OF, 0, 0, 0]  # one kind: that
    assert composed(TABLE, [3], mined, guess, salient) == [OF, 0, OF, OF]


def test_an_unknown_class_of_a_threshold_is_named() -> None:
    with pytest.raises(UserError, match=r"relabel.class_thresholds: .*no class 'dgo' \(did you mean 'dog'"):
        Compose.require(Compose.Config(class_thresholds={"dgo": 0.1}), WITH_BACKGROUND)


# The job -------------------------------------------------------------------------------------------------------------


def test_columns_stand_beside_the_shards_and_take_the_place_of_the_label(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "tagged").iterdir()}
    uri = job.relabel(erasing(folder, tmp_path / "erase"))
    assert before == {path.name: path.read_bytes() for path in (folder / "tagged").iterdir()}
    data = open_dataset(str(folder / "tagged"), [uri])
    assert len(data.groups) > 2 and data.labelled and not open_dataset(str(folder / "tagged")).labelled
    order = Order(data.rows_per_group, seed=0, domain="source", rank=0, world=1, window=2)
    batch = next(
        read_batches(data, order, batch_size=4, size=None, region=(24, 24), columns=("label", "mined", "tags"))
    )
    assert batch.label_BHW is not None and batch.mined_BHW is not None and batch.tags_BC is not None
    assert batch.label_BHW.shape == batch.mined_BHW.shape == (4, 24, 24)
    for key, tags in zip(batch.keys, batch.tags_BC, strict=True):
        assert tags.nonzero().flatten().tolist() == sorted({int(key.split("-")[1]) % 4, 3})
    written = [row for number in range(len(data.groups)) for row in columns_of(tmp_path / "erase", number)]
    label = {row["key"]: cv2.imdecode(np.frombuffer(row["label"], np.uint8), -1) for row in written}
    assert all(set(np.unique(label[key])) <= {int(key.split("-")[1]) % 4, 3} for key in label)
    pixels = np.sum([np.bincount(one.ravel(), minlength=4) for one in label.values()], axis=0)
    assert data.class_pixels().tolist() == pixels.tolist()
    assert data.rare_class_weights(0.1, 1)[0].shape == (9,)


def test_a_second_round_sees_less_and_adds_to_the_first(folder: Path, tmp_path: Path) -> None:
    little = {"name": "erase", "share": 0.01}
    first = job.relabel(erasing(folder, tmp_path / "one", relabel=little))
    job.relabel(erasing(folder, tmp_path / "two", relabel=little, source={"columns": [first]}))
    grown = 0
    hotter: list[bool] = []
    for number in range(len(open_dataset(str(folder / "tagged")).groups)):
        for old, new in zip(columns_of(tmp_path / "one", number), columns_of(tmp_path / "two", number), strict=True):
            a, b = (cv2.imdecode(np.frombuffer(row["mined"], np.uint8), -1) for row in (old, new))
            assert old["key"] == new["key"] and ((b == a) | (a == OF) | (b == CONTESTED)).all()
            grown += int(((a == OF) & (b != OF)).sum())
            seen = [cv2.imdecode(np.frombuffer(row["heat"], np.uint8), -1) for row in (old, new)]
            said = [cv2.imdecode(np.frombuffer(row["label"], np.uint8), -1) for row in (old, new)]
            assert (seen[1] >= seen[0]).all()
            kept = (seen[1] == seen[0]) & (b >= CONTESTED)
            assert (said[1] == said[0])[kept].all()  # nothing of this round was seen more strongly
            hotter.append(bool((seen[1] > seen[0]).any()))
    assert grown > 0 and any(hotter)


def test_what_is_left_is_mined_and_not_what_is_gone(folder: Path, tmp_path: Path) -> None:
    little = {"name": "erase", "share": 0.01}
    first = job.relabel(erasing(folder, tmp_path / "one", relabel=little))
    within = {**little, "within": "left"}
    job.relabel(erasing(folder, tmp_path / "two", relabel=within, source={"columns": [first]}))
    for old, new in zip(columns_of(tmp_path / "one", 0), columns_of(tmp_path / "two", 0), strict=True):
        a, b = (cv2.imdecode(np.frombuffer(row["mined"], np.uint8), -1) for row in (old, new))
        assert (b == a)[a != OF].all() and (b != OF).sum() > (a != OF).sum()


def test_a_damaged_image_is_passed_over_where_it_may_be(folder: Path, tmp_path: Path) -> None:
    samples = tagged(3, 1)
    samples[1].image = samples[1].image[:60]
    write_shards(samples, str(tmp_path / "odd"), TABLE)
    source: dict[str, Any] = {"uri": str(tmp_path / "odd")}
    with pytest.raises(SampleError, match="1-1"):
        job.relabel(erasing(folder, tmp_path / "strict", source=source))
    out = job.relabel(erasing(folder, tmp_path / "erase", source={**source, "max_bad_share": 0.5}))
    empty = [sum(row["class_pixels"]) == 0 for row in columns_of(tmp_path / "erase", 0)]
    assert empty == [False, True, False] and columns_of(tmp_path / "erase", 0)[1]["heat"] is None
    [listed] = (tmp_path / "erase").glob("bad_samples-*.jsonl")
    assert "1-1" in listed.read_text()
    source |= {"columns": [out], "max_bad_share": 0.5}
    masks = erasing(folder, tmp_path / "masks", relabel={"name": "compose"}, source=source)
    assert open_dataset(str(tmp_path / "odd"), [out, job.relabel(masks)]).rare_class_weights(0.1, 1)[0][1] == 0


def test_unusable_samples_of_all_processes_count_together(folder: Path, tmp_path: Path) -> None:
    """Two processes passed over one each where one may be: the phase is not finished until the share is raised."""
    samples = tagged(6, 1)
    for number in (1, 4):
        samples[number].image = samples[number].image[:60]
    parts = [write_shard(samples[3 * i : 3 * i + 3], str(tmp_path / "odd"), i, 4, 2**20) for i in (0, 1)]
    finish(str(tmp_path / "odd"), TABLE, parts)
    out, source = tmp_path / "erase", {"uri": str(tmp_path / "odd"), "max_bad_share": 0.2}
    for left in (0, 1):  # each as a process of its own that is ended then
        recipe = erasing(folder, out, source=source)
        worker = job.Worker(recipe, job.open_domain(recipe), ["image", "tags"])
        assert worker(left) == 3
        [listed] = out.glob(f"bad_samples-*-{os.getpid()}.jsonl")
        listed.rename(out / f"bad_samples-other-{left}.jsonl")
    with pytest.raises(UserError, match=r"2 of 6 samples.*max_bad_share=0.2.*other-0.*other-1"):
        job.relabel(recipe)
    source["max_bad_share"] = 0.4
    assert job.relabel(erasing(folder, out, source=source, resume=True)) == str(out)
    assert open_dataset(str(tmp_path / "odd"), [str(out)])


def test_saliency_of_ones_own_has_to_fit_the_samples(folder: Path, tmp_path: Path) -> None:
    uri = str(folder / "tagged")
    first = job.relabel(erasing(folder, tmp_path / "erase"))
    data, own = open_dataset(uri), tmp_path / "own"

    def masks(size: tuple[int, int], turn: int) -> RelabelRecipe:
        shutil.rmtree(own, ignore_errors=True)
        for number in range(len(data.groups)):
            keys = data.read_group(number, ["key"])["key"].to_pylist()
            rows = [{"key": key, "saliency": encode_map(np.full(size, 9, np.uint8))} for key in keys[::turn]]
            write_group(str(own), number, rows, ["saliency"])
        facts = {"format": 1, "base": data.manifest.content_hash, "names": ["saliency"], "class_pixels": []}
        (own / COLUMNS).write_text(json.dumps({**facts, "num_labelled": 0}))
        out = tmp_path / f"masks-{size[0]}-{turn}"
        return erasing(folder, out, relabel={"name": "compose"}, source={"columns": [first, str(own)]})

    job.relabel(masks((40, 56), 1))
    with pytest.raises(SampleError, match=r"1-\d.*its saliency is 56x20 and the image 56x40"):
        job.relabel(masks((20, 56), 1))
    with pytest.raises(UserError, match=r"not in the order of .*row 0 of a row group is '1-\d', the sample there"):
        job.relabel(masks((40, 56), -1))


def test_tags_count_also_where_only_some_images_have_them(folder: Path, tmp_path: Path) -> None:
    samples = tagged(4, 1, tags=[1])
    samples[3].tags = None
    write_shards(samples, str(tmp_path / "some"), TABLE)
    words = ["source.uri=" + str(folder / "true"), "evaluation.uri=none", "target.uri=none", f"out={tmp_path / 'net'}"]
    fit(settle(tiny_recipe("method.name=source_only", "method.calibrate_images=0", "steps=1", *words)))
    source = {"uri": str(tmp_path / "some")}
    recipe = erasing(
        folder, tmp_path / "own", relabel={"name": "predict"}, init_from=str(tmp_path / "net"), source=source
    )
    job.relabel(recipe)
    labels = [cv2.imdecode(np.frombuffer(row["label"], np.uint8), -1) for row in columns_of(tmp_path / "own", 0)]
    assert all((label == 1).all() for label in labels[:3]) and (labels[3] != 1).any()


def test_columns_of_other_tags_are_refused(tmp_path: Path) -> None:
    hashes = []
    for tags in ([1, 2], [2, 1], [1, 3], None):
        write_shards(tagged(2, 1, tags=tags), str(tmp_path / str(tags)), TABLE)
        hashes.append(open_dataset(str(tmp_path / str(tags))).manifest.content_hash)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_masks_need_a_background_or_stuff(folder: Path, tmp_path: Path) -> None:
    table = ClassTable("bare", TABLE.classes, TABLE.palette)
    write_shards(tagged(2, 1), str(tmp_path / "bare"), table)
    recipe = erasing(folder, tmp_path / "masks", relabel={"name": "compose"}, source={"uri": str(tmp_path / "bare")})
    with pytest.raises(UserError, match="class table 'bare' has no background and does not say which"):
        job.open_domain(recipe)


def test_the_cause_of_an_actor_s_failure_is_told(folder: Path, tmp_path: Path, local_ray: None) -> None:
    samples = tagged(3, 1)
    samples[1].image = samples[1].image[:60]
    write_shards(samples, str(tmp_path / "odd"), TABLE)
    recipe = erasing(folder, tmp_path / "erase", source={"uri": str(tmp_path / "odd")}, workers=1)
    with pytest.raises(UserError, match="1-1"):
        job.relabel(recipe)
    with pytest.raises(UserError, match=r"knows other classes"):  # what an actor finds before it has looked at a sample
        write_shards(tagged(3, 1), str(tmp_path / "renamed"), replace(TABLE, classes=("a", *TABLE.classes[1:])))
        job.relabel(erasing(folder, tmp_path / "other", source={"uri": str(tmp_path / "renamed")}, workers=1))
    with pytest.raises(UserError, match=r"workers=1 need a GPU each and this machine has 0"):
        job.relabel(erasing(folder, tmp_path / "gpu", workers=1, device="cuda"))


def test_actors_write_what_one_process_writes(folder: Path, tmp_path: Path, local_ray: None) -> None:
    job.relabel(erasing(folder, tmp_path / "here"))
    job.relabel(erasing(folder, tmp_path / "there", workers=2))
    names = sorted(path.name for path in (tmp_path / "here" / GROUPS).iterdir())
    assert names == sorted(path.name for path in (tmp_path / "there" / GROUPS).iterdir())
    for number in range(len(names)):
        assert columns_of(tmp_path / "here", number) == columns_of(tmp_path / "there", number)


def test_an_interrupted_phase_goes_on_with_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, looked = tmp_path / "erase", []
    whole = job.Worker.__call__

    def dies(worker: job.Worker, number: int) -> int:
        if looked:
            raise KeyboardInterrupt
        looked.append(number)
        return whole(worker, number)

    monkeypatch.setattr(job.Worker, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        job.relabel(erasing(folder, out))
    with pytest.raises(UserError, match="no columns at"):
        open_dataset(str(folder / "tagged"), [str(out)])
    with pytest.raises(UserError, match="resume=true"):
        job.relabel(erasing(folder, out))
    with pytest.raises(UserError, match=r"another recipe \(relabel.share: 0.2 -> 0.5\)"):
        job.relabel(erasing(folder, out, resume=True, relabel={"name": "erase", "share": 0.5}))
    first = (out / GROUPS / "00000.parquet").stat().st_mtime_ns

    def counted(worker: job.Worker, number: int) -> int:
        looked.append(number)
        return whole(worker, number)

    monkeypatch.setattr(job.Worker, "__call__", counted)
    job.relabel(erasing(folder, out, resume=True))
    assert looked == list(range(len(open_dataset(str(folder / "tagged"), [str(out)]).groups)))
    assert (out / GROUPS / "00000.parquet").stat().st_mtime_ns == first


def test_labels_are_scored_where_they_say_something(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """The truth itself as labels, a part of each ignored, is right wherever it speaks."""
    job.relabel(erasing(folder, tmp_path / "erase"))
    truth = {sample.key: sample.label for sample in tiny_samples(9, 1)}
    for path in (tmp_path / "erase" / GROUPS).iterdir():
        rows = read_group(str(tmp_path / "erase"), int(path.stem)).to_pylist()
        for row in rows:
            label = cv2.imdecode(np.frombuffer(truth[row["key"]], np.uint8), -1)
            label[:20] = OF
            row["label"] = encode_map(label)
        write_group(str(tmp_path / "erase"), int(path.stem), rows, ["label", "mined", "heat"])
    row = score_labels(str(tmp_path / "erase"), str(folder / "true"))
    assert row["miou"] == 1 and row["num_images"] == 9 and 0.4 < row["coverage"] < 0.6
    main_of(["evaluate", str(tmp_path / "erase"), "--data", str(folder / "true")])
    assert "100.0" in capsys.readouterr().out
    with pytest.raises(UserError, match="no sample of"):
        write_shards(tiny_samples(2, 5), str(tmp_path / "others"), TABLE)
        score_labels(str(tmp_path / "erase"), str(tmp_path / "others"))


def main_of(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["distuda", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code


# Bad input -----------------------------------------------------------------------------------------------------------


def test_samples_without_tags_are_named(folder: Path, tmp_path: Path) -> None:
    write_shards([*tagged(2, 1), *tagged(1, 2, tags=None)], str(tmp_path / "some"), TABLE)
    source = {"uri": str(tmp_path / "some")}
    with pytest.raises(UserError, match=r"looks at 'tags': 1 of 3 samples .* have no tags .* '2-0'"):
        job.relabel(erasing(folder, tmp_path / "erase", source=source))
    words = ["method.name=classify", "evaluation.uri=none", "target.uri=none", f"out={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"looks at 'tags' of the source \(source.uri\): 1 of 3 samples"):
        fit(settle(tiny_recipe(f"source.uri={tmp_path / 'some'}", *words)))


def test_an_image_with_every_class_and_one_with_none_have_results(folder: Path, tmp_path: Path) -> None:
    samples = [*tagged(1, 1, tags=[0, 1, 2, 3]), *tagged(1, 2, tags=[])]
    write_shards(samples, str(tmp_path / "odd"), TABLE)
    job.relabel(erasing(folder, tmp_path / "erase", source={"uri": str(tmp_path / "odd")}))
    every, none = columns_of(tmp_path / "erase", 0)
    assert sum(every["class_pixels"]) == 40 * 56 and sum(none["class_pixels"]) == 0
    words = ["method.name=classify", "steps=2", "evaluation.uri=none", "target.uri=none", f"out={tmp_path / 'run'}"]
    assert fit(settle(tiny_recipe(f"source.uri={tmp_path / 'odd'}", *words)))


def test_a_network_that_is_no_classifier_cannot_erase(folder: Path, domains: list[str], tmp_path: Path) -> None:
    fit(settle(tiny_recipe(*domains, "steps=1", f"out={tmp_path / 'run'}")))
    with pytest.raises(UserError, match="needs a run of method 'classify'"):
        job.relabel(erasing(folder, tmp_path / "erase", init_from=str(tmp_path / "run")))
    with pytest.raises(UserError, match="Name its run with init_from"):
        job.relabel(erasing(folder, tmp_path / "other", init_from=None))


def test_columns_of_other_data_are_refused(folder: Path, tmp_path: Path) -> None:
    uri = job.relabel(erasing(folder, tmp_path / "erase"))
    with pytest.raises(UserError, match="belong to another data set"):
        open_dataset(str(folder / "true"), [uri])
    with pytest.raises(UserError, match=r"looks at 'mined': .* has no column 'mined' beside it"):
        job.relabel(erasing(folder, tmp_path / "masks", relabel={"name": "compose"}, init_from=None))
    shutil.rmtree(tmp_path / "erase" / GROUPS)
    content_hash = open_dataset(str(folder / "tagged")).manifest.content_hash
    assert open_columns(uri, content_hash).names
    described = tmp_path / "erase" / COLUMNS
    described.write_text(described.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="of format 2; this version reads 1"):
        open_columns(uri, content_hash)
