"""Recipes of phases: what each phase is made of, that they go on from one another, and what is refused."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from settings import TABLE, TINY, tiny_samples

import distuda.phases as running
from distuda.cli import main
from distuda.data.shards import write_shards
from distuda.engine.run import open_run, read_rows
from distuda.errors import UserError
from distuda.phases import train_phases
from distuda.plan import PHASES, Phase, fewer_rounds, load_phases, phase_folders, to_yaml
from distuda.recipe import RelabelRecipe, load_recipe

TWO = """
steps: 9
method: {name: minent, lambda_ent: 0.5}
phases:
- {name: teacher, method: {name: source_only}, optimizer: {lr: 0.5}}
- {name: adapted, steps: 7, checkpoint: {every_steps: '${steps}'}}
"""


def written(folder: Path, text: str, name: str = "phases.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def refused(path: str, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load_phases(path, words)
    return str(caught.value)


def test_fields_of_a_phase_win_over_shared_ones_and_words_over_both(tmp_path: Path) -> None:
    path = written(tmp_path, TWO)
    first, second = (phase.recipe for phase in load_phases(path))
    assert (first.steps, second.steps, second.checkpoint.every_steps) == (9, 7, 7)
    assert (first.method.name, first.optimizer.lr) == ("source_only", 0.5)
    assert second.method.lambda_ent == 0.5 and second.optimizer.lr != 0.5
    words = ["seed=4", "optimizer.lr=0.25", "phases.adapted.steps=3", "steps=5", "phases.adapted.method=self_training"]
    first, second = (phase.recipe for phase in load_phases(path, words))
    assert (first.steps, second.steps, second.method.name) == (5, 3, "self_training")
    assert {first.seed, second.seed} == {4} and {first.optimizer.lr, second.optimizer.lr} == {0.25}


def test_each_phase_has_a_folder_and_goes_on_from_the_one_before(tmp_path: Path) -> None:
    path = written(tmp_path, TWO + "- {name: third, init_from: teacher}\n- {name: fourth, init_from: none}\n")
    phases = load_phases(path, ["out=s3://bucket/all/", "init_from=old/run", "phases.adapted.init_from=other/run"])
    assert [phase.name for phase in phases] == ["teacher", "adapted", "third", "fourth"]
    assert [phase.recipe.out for phase in phases] == [f"s3://bucket/all/{phase.name}" for phase in phases]
    starts = [phase.recipe.init_from for phase in phases]
    assert starts == ["old/run", "other/run", "s3://bucket/all/teacher", None]
    assert load_phases(path, ["out=x"])[1].recipe.init_from == "x/teacher"
    assert all(str(phase.recipe.out).startswith("runs/minent-") for phase in load_phases(path))


def test_a_recipe_without_phases_is_one_nameless_phase(tmp_path: Path) -> None:
    path = written(tmp_path, "steps: 3\n")
    assert load_phases(path, ["seed=2"]) == [Phase("", load_recipe(path, ["seed=2"]))]
    assert "has no phases" in refused(path, "phases.a.steps=3")
    assert "'recipes/advent.yaml' is not the first word" in refused(path, "steps=3", "recipes/advent.yaml")


@pytest.mark.parametrize(
    ("text", "word", "says"),
    [
        (TWO, "phases.adaptd.steps=3", ["no phase 'adaptd'", "did you mean 'adapted'", "teacher, adapted"]),
        (TWO, "phases.adapted.stps=3", ["phase 'adapted'", "unknown field 'stps'", "did you mean 'steps'"]),
        (TWO, "phases.adapted.out=x", ["phase 'adapted' has no 'out' of its own"]),
        (TWO, "phases.adapted.steps", ["phase 'adapted'", "has no '='"]),
        (
            TWO,
            "method.lambda_ent=1",
            ["phase 'teacher'", "unknown field 'method.lambda_ent'", "phases.NAME.method.lambda_ent=1"],
        ),
        (TWO + "- {name: teacher}\n", "", ["two phases have the name 'teacher'"]),
        (TWO + "- {name: ../x}\n", "", ["phase 3 has the name '../x'", "plain word"]),
        (TWO + "- {steps: 3}\n", "", ["phase 3 has the name None"]),
        (TWO + "- {name: x, resume: true}\n", "", ["phase 'x' has no 'resume' of its own"]),
        (TWO + "- {name: x, stps: 3}\n", "", ["phase 'x'", "unknown field 'stps'"]),
        ("phases: []\n", "", ["list of mappings"]),
        ("phases: {name: x}\n", "", ["list of mappings"]),
        ("phases: [x]\n", "", ["list of mappings"]),
        ("phases: [{name: a}]\n", "rounds=2", ["rounds=2", "'repeat'"]),
        ("phases: [{name: a, round: true}]\n", "", ["phase 1 has round True"]),
        ("phases: [{name: a, round: two}]\n", "", ["phase 1 has round 'two'", "whole number"]),
    ],
)
def test_a_mistake_is_named(text: str, word: str, says: list[str], tmp_path: Path) -> None:
    message = refused(written(tmp_path, text), *[word] * bool(word))
    assert all(part in message for part in says), message


def test_one_recipe_is_not_read_out_of_phases(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has phases"):
        load_recipe(written(tmp_path, TWO))


def test_yaml_round_trip(tmp_path: Path) -> None:
    path = written(tmp_path, TWO + "- {name: third, init_from: teacher}\n- {name: fourth, init_from: none}\n")
    phases = load_phases(path, ["out=runs/a b#c", "init_from=old/run"])
    assert load_phases(written(tmp_path, to_yaml(phases), "again.yaml")) == phases


def test_ranks_need_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "out=FOLDER" in refused(written(tmp_path, TWO))


# Training ------------------------------------------------------------------------------------------------------------

REGRESSION = """
phases:
- {name: teacher, method: {name: source_only}, steps: 2}
- {name: regression, method: {name: feature_regression, pairs: synthetic}, steps: 3}
"""
WORDS = [word for word in TINY if not word.startswith(("steps", "method"))]


def test_phases_train_in_turn_and_finished_ones_are_passed_over(
    tmp_path: Path, domains: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(tmp_path, REGRESSION), tmp_path / "run"
    words = [*WORDS, *domains, f"out={out}"]

    def train(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["distuda", "train", path, *words, *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0)

    assert train() == 0 and f"run folder: {out}/regression" in capsys.readouterr().out
    teacher, student = open_run(f"{out}/teacher"), open_run(f"{out}/regression")
    assert (teacher.step, student.step, student.recipe.init_from) == (2, 3, f"{out}/teacher")
    same = [name for name, value in teacher.predictor.state_dict().items()
            if torch.equal(value, student.predictor.state_dict()[name])]  # fmt: skip
    assert any(name.startswith("decoder") for name in same) and not all(
        name in same for name in ("encoder.stem.0.weight",)
    )
    assert load_phases(str(out / PHASES)) == load_phases(path, words)

    assert train() == 2 and "phase 'teacher'" in (said := capsys.readouterr().err) and "resume=true" in said
    assert train("resume=true", "phases.teacher.steps=5") == 2 and "steps: 2 -> 5" in capsys.readouterr().err
    before = {name: (out / name / "metrics.jsonl").stat().st_mtime_ns for name in ("teacher", "regression")}
    for folder in (out / "regression" / "checkpoints").iterdir():
        (folder / "meta.json").unlink()  # as if it had been stopped before its checkpoint was complete
    assert train("resume=true") == 0
    after = {name: (out / name / "metrics.jsonl").stat().st_mtime_ns for name in before}
    assert after["teacher"] == before["teacher"] and after["regression"] > before["regression"]
    assert open_run(f"{out}/regression").step == 3 and len(read_rows(f"{out}/teacher")) == 3


def test_all_phases_are_checked_before_the_first_trains(tmp_path: Path, domains: list[str]) -> None:
    path = written(tmp_path, REGRESSION)
    words = [*WORDS, *domains, f"out={tmp_path / 'run'}"]
    for word, says in (
        ("phases.regression.method.pairs=given", "has no pairs.* Prepare it with --pairs"),
        ("phases.regression.init_from=none", "goes on from a trained network"),
        ("phases.regression.init_from=techer", "neither a phase before this one nor a run.*did you mean 'teacher'"),
        ("phases.regression.method.layers=[5]", r"method.layers=\[5\]: the network gives 2 feature maps"),
        ("phases.regression.method.layers=[1,-1]", "names a feature map twice"),
        ("phases.regression.model.detail=[16,24]", "features of one scale"),
        ("phases.regression.model.name=deeplabv2_resnet18", "whose network is another: model.name='lite' there"),
    ):
        with pytest.raises(UserError, match=f"phase 'regression'.*{says}"):
            train_phases(load_phases(path, [*words, word]))
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_a_folder_of_phases_names_its_runs(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PHASES).write_text(to_yaml(load_phases(written(tmp_path, TWO), ["out=moved"])))
    assert phase_folders(str(tmp_path / "run")) == [f"{tmp_path}/run/{name}" for name in ("teacher", "adapted")]
    with pytest.raises(UserError, match=r"run/adapted, .*run/teacher"):
        open_run(str(tmp_path / "run"))
    assert phase_folders(str(tmp_path / "elsewhere")) == []


# Rounds and relabel phases -------------------------------------------------------------------------------------------

ERASING = """
steps: 2
rounds: 3
target: {uri: none}
evaluation: {uri: none}
phases:
- repeat:
  - {name: classify, method: classify, init_from: none}
  - {name: erase, relabel: erase}
- {name: masks, relabel: {name: compose}}
- {name: segment, method: psl, init_from: none}
- {name: own, relabel: predict, source: {columns: [erase]}}
- {name: again, method: psl}
"""


def test_rounds_are_unrolled_and_columns_go_from_phase_to_phase(tmp_path: Path) -> None:
    path = written(tmp_path, ERASING)
    phases = load_phases(path, ["out=o", "rounds=2", "phases.erase.relabel.share=0.3", "phases.erase_2.workers=1"])
    names = ["classify_1", "erase_1", "classify_2", "erase_2", "masks", "segment", "own", "again"]
    assert [phase.name for phase in phases] == names
    columns = {phase.name: phase.recipe.source.columns for phase in phases}
    assert columns["classify_1"] == columns["erase_1"] == []
    assert columns["classify_2"] == columns["erase_2"] == ["o/erase_1"]
    assert columns["masks"] == columns["own"] == ["o/erase_2"]
    assert columns["segment"] == ["o/masks"] and columns["again"] == ["o/own"]
    starts = {phase.name: phase.recipe.init_from for phase in phases}
    assert starts["classify_2"] is None and starts["erase_2"] == starts["masks"] == "o/classify_2"
    assert starts["own"] == starts["again"] == "o/segment"
    one, two = phases[1].recipe, phases[3].recipe
    assert isinstance(one, RelabelRecipe) and isinstance(two, RelabelRecipe)
    assert one.relabel.share == two.relabel.share == 0.3  # type: ignore[attr-defined]
    assert (one.workers, two.workers) == (0, 1)


def test_shared_columns_stay_beside_those_of_phases(tmp_path: Path) -> None:
    path = written(tmp_path, ERASING)
    phases = {phase.name: phase.recipe for phase in load_phases(path, ["out=o", "source.columns=[mine]"])}
    assert phases["classify_1"].source.columns == ["mine"] and phases["masks"].source.columns == ["mine", "o/erase_3"]


def test_unrolled_phases_are_read_back(tmp_path: Path) -> None:
    """With what ends the rounds early and which phase is which round's, so that a run from them does the same."""
    phases = load_phases(written(tmp_path, ERASING), ["out=o", "stop_ratio=1.5"])
    assert [phase.round for phase in phases if phase.base == "erase"] == [1, 2, 3]
    assert load_phases(written(tmp_path, to_yaml(phases), "again.yaml")) == phases
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / PHASES).write_text(to_yaml(phases))
    assert [Path(folder).name for folder in phase_folders(str(tmp_path / "o"))] == [phase.name for phase in phases]


def test_what_followed_a_round_that_is_left_out_follows_the_one_before(tmp_path: Path) -> None:
    phases = load_phases(written(tmp_path, ERASING), ["out=o"])
    assert fewer_rounds(phases, 2) == [
        replace(phase, stop_ratio=None) for phase in load_phases(str(tmp_path / "phases.yaml"), ["out=o", "rounds=2"])
    ]


def test_numbers_in_the_names_of_other_phases_are_no_rounds(tmp_path: Path) -> None:
    """Where the second round was in vain, masks of the third threshold stay what the network learns."""
    text = ERASING.replace("{name: masks, relabel: {name: compose}}", "{name: masks_1, relabel: {name: compose}}")
    text = text.replace("- {name: segment,", "- {name: masks_3, relabel: {name: compose}}\n- {name: segment,")
    phases = load_phases(written(tmp_path, text), ["out=o", "rounds=2"])
    done, left = phases[:3], phases[3:]
    kept = {phase.name: phase.recipe for phase in fewer_rounds(left, 1, done)}
    assert list(kept) == ["masks_1", "masks_3", "segment", "own", "again"]
    assert kept["segment"].source.columns == ["o/masks_3"] and kept["masks_1"].source.columns == ["o/erase_1"]
    assert kept["masks_1"].init_from == "o/classify_1", "what went on from the round in vain goes on from the first"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rounds=0"], ["rounds=0 is not valid", "at least 1"]),
        (["rounds=two"], ["rounds='two' is not valid"]),
        (["stop_ratio=-1"], ["stop_ratio=-1 is not valid", "greater than 0"]),
        (["phases.masks.relabel.saliency_treshold=1"], ["phase 'masks'", "did you mean 'saliency_threshold'"]),
        (["phases.erase_9.workers=1"], ["no phase 'erase_9'", "erase_3"]),
        (["phases.masks.relabel=compos"], ["phase 'masks'", "not a relabel phase", "did you mean 'compose'"]),
        (["phases.masks.steps=3"], ["phase 'masks'", "unknown field 'steps'"]),
        (["phases.erase.round=2"], ["phase 'erase_1'", "unknown field 'round'"]),
        (["stpes=3"], ["unknown field 'stpes' (did you mean 'steps'?). Fields there: "]),
    ],
)
def test_a_mistake_in_rounds_or_relabel_phases_is_named(words: list[str], says: list[str], tmp_path: Path) -> None:
    message = refused(written(tmp_path, ERASING), *words)
    assert all(part in message for part in says), message


def test_rounds_end_when_the_loss_has_grown_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second classifier is twice as bad: its erasing is not done, and masks come of the first round's."""
    losses = {"classify_1": 1.0, "classify_2": 2.0, "classify_3": 1.0}

    def rows(run: str) -> list[dict[str, Any]]:
        return [{"kind": "train", "loss": 9.0}] * 3 + [{"kind": "train", "loss": losses[Path(run).name]}]

    monkeypatch.setattr(running, "read_rows", rows)
    monkeypatch.setattr(running, "check", lambda phases: None)
    done: list[Phase] = []
    monkeypatch.setattr(running, "_run", lambda phase, _: done.append(phase))
    path = written(tmp_path, ERASING)
    for ratio, count in ((1.5, 1), (2.5, 3), (None, 3)):
        done.clear()
        words = [f"out={tmp_path / str(ratio)}", f"stop_ratio={'none' if ratio is None else ratio}"]
        assert train_phases(load_phases(path, words)).endswith("/again")
        assert sum(phase.base == "erase" for phase in done) == count
        masks = next(phase for phase in done if phase.name == "masks")
        assert masks.recipe.source.columns == [str(tmp_path / str(ratio) / f"erase_{count}")]
    assert "classify_2: its loss ends the rounds; going on with 1" in capsys.readouterr().err
    written_names = [Path(folder).name for folder in phase_folders(str(tmp_path / "1.5"))]
    assert written_names == ["classify_1", "erase_1", "classify_2", "masks", "segment", "own", "again"]
    # the same words again, with what was done until masks: the rounds stay ended, and masks are those that lie there
    monkeypatch.setattr(running, "_is_done", lambda phase: phase.name in {*written_names[:4]})
    checked: list[Sequence[Phase]] = []
    monkeypatch.setattr(running, "check", checked.append)
    train_phases(load_phases(path, [f"out={tmp_path / '1.5'}", "stop_ratio=1.5", "resume=true"]))
    assert [phase.name for phase in checked[0]] == written_names
    assert checked[0][3].recipe.source.columns == [str(tmp_path / "1.5" / "erase_1")]


def test_all_of_erasing_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tiny_samples(5, 1, labelled=False), str(tmp_path / "tagged"), TABLE, row_group_bytes=12_000)
    words = ["batch_size=2", "augment.crop=[32,48]", "device=cpu", "rounds=2", "model.weights=none"]
    words += [f"source.uri={tmp_path / 'tagged'}", f"out={tmp_path / 'run'}", "resume=true", "steps=1"]
    path = written(tmp_path, ERASING)
    last = train_phases(load_phases(path, words))
    assert open_run(last).recipe.method.name == "psl" and last.endswith("/again")
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.parquet")}
    monkeypatch.setattr("distuda.cluster.train.train", None)  # nothing is left to train
    assert train_phases(load_phases(path, words)) == last and len(stamps) > 8
    assert stamps == {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.parquet")}


def test_ranks_do_not_relabel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"phase 'erase_1' relabels, .* workers=N"):
        train_phases(load_phases(written(tmp_path, ERASING), [f"out={tmp_path / 'run'}"]))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("phases.erase.init_from=clasify_1", r"phase 'erase_1': init_from='clasify_1' is neither .*'classify_1'"),
        ("phases.erase.init_from=none", "phase 'erase_1': relabel 'erase' needs a trained network"),
        ("phases.own.init_from=/nowhere", "phase 'own': init_from='/nowhere' is neither"),
        ("phases.own.init_from=classify_1 phases.own.relabel.confidence=0.9", "phase 'own': .*gives heat maps. Set it"),
        ("phases.classify.method=psl phases.classify.source.columns=[mine]", "no columns at"),
    ],
)
def test_a_network_that_a_relabel_phase_cannot_use_is_refused_before_anything_runs(
    word: str, says: str, tmp_path: Path
) -> None:
    write_shards(tiny_samples(2, 1, labelled=False), str(tmp_path / "tagged"), TABLE)
    words = [*WORDS, f"source.uri={tmp_path / 'tagged'}", f"out={tmp_path / 'run'}", *word.split()]
    with pytest.raises(UserError, match=says):
        train_phases(load_phases(written(tmp_path, ERASING), words))
    assert not (tmp_path / "run").exists()


def test_erasing_needs_a_classifier_before_it(tmp_path: Path) -> None:
    write_shards(tiny_samples(2, 1), str(tmp_path / "tagged"), TABLE)
    words = [*WORDS, f"source.uri={tmp_path / 'tagged'}", f"out={tmp_path / 'run'}"]
    words.append("phases.classify.method=source_only")
    with pytest.raises(UserError, match="phase 'erase_1': erasing needs a run of method 'classify'"):
        train_phases(load_phases(written(tmp_path, ERASING), words))


def test_a_phase_without_what_it_looks_at_is_refused_before_anything_runs(tmp_path: Path) -> None:
    samples = tiny_samples(2, 1)
    for sample in samples:
        sample.tags = None
    write_shards(samples, str(tmp_path / "untagged"), TABLE)
    words = [f"source.uri={tmp_path / 'untagged'}", f"out={tmp_path / 'run'}"]
    with pytest.raises(
        UserError, match=r"phase 'classify_1': method 'classify' looks at 'tags' of the source .*: 2 of 2"
    ):
        train_phases(load_phases(written(tmp_path, ERASING), words))
    assert not (tmp_path / "run").exists()
