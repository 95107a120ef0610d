"""Runs: interrupted equals uninterrupted, folders are whole, ruined runs stop and say why."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from settings import SETTINGS, TABLE, names_in, run_words, tiny_batch, tiny_method, tiny_recipe

from distuda.data.batch import Batch
from distuda.data.dataset import open_dataset
from distuda.data.reader import read_batches
from distuda.engine import checkpoint as checkpoints
from distuda.engine.calibrate import calibrate, calibration_images
from distuda.engine.checkpoint import Checkpoints, load_tensors
from distuda.engine.log import MetricsLog
from distuda.engine.loop import fit, settle
from distuda.engine.run import open_run, read_rows
from distuda.engine.step import Step
from distuda.errors import UserError
from distuda.methods import METHODS

CLOCKS = {"images_per_s", "data_wait_s", "memory_gib"}


class PowerCut(Exception):
    """What ends an interrupted run."""


def cut_after(batches: int) -> Any:
    """`read_batches` that raises when asked for one batch more."""

    def stream(*args: Any, **kwargs: Any) -> Iterator[Batch]:
        inner = read_batches(*args, **kwargs)
        try:
            yield from islice(inner, batches)
        finally:
            inner.close()
        raise PowerCut

    return stream


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in read_rows(str(out))]


def tensors_of(out: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoints.load_tensors(str(out / "checkpoints" / f"step-{step:08d}"))


RESUMED = (  # each method, and those variants whose networks or draws have a state of their own
    "source_only", "minent", "advent_multi_level", "apoda_multi_level", "apoda_taught", "feature_regression_layers",
    "classify", "psl", "vat", "vst", "davsn_multi_level", "tps", "self_training_masked", "self_training_distance",
    "self_training_detail", "self_training_video", "self_training_rare",
)  # fmt: skip


def test_every_method_is_interrupted_and_resumed() -> None:
    assert {tiny_recipe(*SETTINGS[name]).method.name for name in RESUMED} == set(METHODS)


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_run_equals_an_uninterrupted_one(name: str, domains: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    if "label" in tiny_recipe(*SETTINGS[name]).method.reads.get("target", ()):  # needs a labelled target
        domains = [*domains, domains[0].replace("source.uri", "target.uri")]
    words = [*SETTINGS[name], "steps=4", "evaluation.every_steps=2", "checkpoint.every_steps=2", "evaluation.limit=1"]
    fit(settle(tiny_recipe(*domains, *words, f"out={whole}")))
    with pytest.raises(PowerCut):
        fit(settle(tiny_recipe(*domains, *words, f"out={cut}")), open_stream=cut_after(3))
    assert [row["step"] for row in read_rows(str(cut))] == [1, 2, 2, 3]  # step 3 is lost and will be run again
    fit(settle(tiny_recipe(*domains, *words, f"out={cut}", "resume=true")))

    expected, resumed = tensors_of(whole, 4), tensors_of(cut, 4)
    assert expected.keys() == resumed.keys()
    different = [key for key, value in expected.items() if not torch.equal(value, resumed[key])]
    assert not different
    assert timeless(whole) == timeless(cut)
    assert [(row["kind"], row["step"]) for row in timeless(cut)] == [
        ("train", 1), ("train", 2), ("evaluation", 2), ("train", 3), ("train", 4), ("evaluation", 4),
    ]  # fmt: skip
    assert any(not torch.equal(value, expected[key]) for key, value in tensors_of(whole, 2).items())


@pytest.fixture(scope="module")
def finished(domains: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run: checkpoints at 2, 4, 5; evaluations at 3, 5."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    words = ["steps=5", "checkpoint.every_steps=2", "evaluation.every_steps=3", "checkpoint.keep_last=5"]
    fit(settle(tiny_recipe(*run_words(domains, out, *words))))
    return out


def test_a_run_folder_is_complete_and_holds_nothing_half_written(finished: Path) -> None:
    assert names_in(finished) == [
        "best.json", "checkpoints", "classes.json", "environment.json", "metrics.jsonl", "recipe.yaml",
    ]  # fmt: skip
    assert names_in(finished / "checkpoints") == ["step-00000002", "step-00000004", "step-00000005"]
    for folder in (finished / "checkpoints").iterdir():
        assert names_in(folder) == ["meta.json", "method.safetensors", "training.pt"]
    assert not list(finished.rglob("*.part"))
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["torch"] == torch.__version__


def test_a_checkpoint_is_judged_by_its_own_scores(finished: Path) -> None:
    """Step 4 was saved after the evaluation of step 3; that score belongs to weights nobody kept."""
    metas = {step: checkpoints.load_meta(str(finished / f"checkpoints/step-{step:08d}")) for step in (2, 4, 5)}
    assert metas[2]["scores"] == metas[4]["scores"] == {}
    assert json.loads((finished / "best.json").read_text())["step"] == 5
    assert metas[5]["scores"]["num_images"] == 2


def test_open_run_gives_the_trained_predictor(finished: Path) -> None:
    run = open_run(str(finished))
    assert run.step == 5 and run.table == TABLE and not run.predictor.training
    state = tensors_of(finished, 5)
    assert all(torch.equal(value, state[f"student.{key}"]) for key, value in run.predictor.state_dict().items())
    assert open_run(str(finished), "best").step == 5
    assert [row["kind"] for row in run.rows()].count("evaluation") == 2
    with pytest.raises(UserError, match="not a run folder"):
        open_run(str(finished / "checkpoints"))


def test_a_finished_run_resumes_to_itself(finished: Path, domains: list[str]) -> None:
    before = timeless(finished)
    words = ["steps=5", "checkpoint.keep_last=5", "resume=true"]
    fit(settle(tiny_recipe(*run_words(domains, finished, *words))), open_stream=cut_after(0))
    assert timeless(finished) == before


def test_init_from_starts_at_the_other_runs_weights(finished: Path, domains: list[str], tmp_path: Path) -> None:
    from distuda.engine.run import build_method

    recipe = tiny_recipe(*SETTINGS["self_training"], f"init_from={finished}", "seed=9")
    method = build_method(recipe, TABLE, torch.full((4,), 0.25))
    state = tensors_of(finished, 5)
    for network in (method.student, method.teaching.teacher):
        assert all(torch.equal(value, state[f"student.{key}"]) for key, value in network.state_dict().items())
    with pytest.raises(UserError, match="holds another network"):
        other = tiny_recipe(*SETTINGS["advent_multi_level"], f"init_from={finished}")
        build_method(other, TABLE, torch.full((4,), 0.25))


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_taken_folder_and_a_changed_recipe_are_refused(finished: Path, domains: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds a run already.*resume=true"):
        settle(tiny_recipe(*run_words(domains, finished, "steps=5")))
    changed = ["steps=5", "resume=true", "optimizer.lr=0.5", "batch_size=1"]
    with pytest.raises(UserError, match=r"batch_size: 2 -> 1; optimizer.lr: 0.0002 -> 0.5"):
        settle(tiny_recipe(*run_words(domains, finished, *changed)))
    (tmp_path / "begun").mkdir()  # refused or ended before its first checkpoint: nothing to go on from
    (tmp_path / "begun" / "recipe.yaml").write_text((finished / "recipe.yaml").read_text())
    settle(tiny_recipe(*run_words(domains, tmp_path / "begun", *changed)))
    freely = ["log_every_steps=7", "source.max_bad_share=0.1"]
    settle(tiny_recipe(*run_words(domains, finished, "steps=5", "resume=true", *freely)))


def test_without_a_folder_one_is_chosen() -> None:
    assert settle(tiny_recipe("method=advent")).out.startswith("runs/advent-")


def test_a_compiled_step_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        captured.append(graph)
        return graph.forward  # what was captured, run as it is

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    losses = []
    for words in ([], ["compile=true"]):
        recipe = tiny_recipe(*words)
        step = Step(tiny_method(recipe), recipe, torch.device("cpu"))
        losses.append([step(*(tiny_batch(2, i, domain) for domain in ("source", "target")))["loss"] for i in (1, 2)])
    torch.testing.assert_close(losses[0], losses[1])
    assert len(captured) == 1  # whole: a break in it would cost what compiling gains


def test_an_unwritable_folder_is_refused_before_the_first_step(domains: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        fit(settle(tiny_recipe(*run_words(domains, tmp_path / "file" / "run"))), open_stream=cut_after(0))


def test_a_diverged_run_stops_and_leaves_no_poisoned_checkpoint(domains: list[str], tmp_path: Path) -> None:
    words = ["optimizer.name=sgd", "optimizer.lr=1e30", "log_every_steps=100", "checkpoint.every_steps=4"]
    words.append("evaluation.every_steps=100")
    with pytest.raises(RuntimeError, match=r"became nan by step 4. Lower optimizer.lr"):
        fit(settle(tiny_recipe(*run_words(domains, tmp_path / "run", *words))))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_step_that_ruins_the_weights_is_not_kept_though_its_loss_was_finite(
    domains: list[str], tmp_path: Path
) -> None:
    words = ["optimizer.name=sgd", "optimizer.lr=3e37", "optimizer.weight_decay=1000", "checkpoint.every_steps=1"]
    with pytest.raises(RuntimeError, match=r"of \d+ weights became infinite or nan in step 1 \("):
        fit(settle(tiny_recipe(*run_words(domains, tmp_path / "run", *words))))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_checkpoints_between_evaluations_have_the_target_s_statistics_too(domains: list[str], tmp_path: Path) -> None:
    words = ["method.name=minent", "method.calibrate_images=4", "steps=2", "evaluation.every_steps=100"]
    words += ["checkpoint.every_steps=1"]
    run = fit(settle(tiny_recipe(*run_words(domains, tmp_path / "run", *words))))
    weights = load_tensors(Checkpoints(run, tiny_recipe().checkpoint).folder + "/step-00000001")
    means = {name: value for name, value in weights.items() if name.endswith("running_mean")}
    opened = open_run(run)
    opened.predictor.load_state_dict({k.removeprefix("student."): v for k, v in weights.items() if "student." in k})
    target = opened.recipe.target
    calibrate(opened.predictor, calibration_images(open_dataset(str(target.uri)), 4, opened.recipe.evaluation.size))
    for name, value in opened.predictor.state_dict().items():
        if name.endswith("running_mean"):
            assert torch.allclose(value, means[f"student.{name}"], atol=1e-5), name


# Logs ----------------------------------------------------------------------------------------------------------------


def test_every_row_up_to_a_checkpoint_is_on_disk_with_it(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MetricsLog, "FLUSH_EVERY_S", 1e9)
    seen: list[list[int]] = []

    def watching(*args: Any, **kwargs: Any) -> Iterator[Batch]:
        for number, batch in enumerate(read_batches(*args, **kwargs)):
            if number == 2:
                seen.append([row["step"] for row in read_rows(str(tmp_path / "run"))])
            yield batch

    words = ["steps=3", "checkpoint.every_steps=2", "evaluation.every_steps=100"]
    fit(settle(tiny_recipe(*run_words(domains, tmp_path / "run", *words))), open_stream=watching)
    assert seen[0] == [1, 2]


def test_metrics_log_drops_rows_that_will_be_run_again(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path), 0)
    for step in (1, 2, 3):
        log.add({"kind": "train", "step": step})
    log.flush()
    again = MetricsLog(str(tmp_path), 2)
    again.add({"kind": "train", "step": 3, "new": True})
    again.flush()
    assert [row.get("new", False) for row in read_rows(str(tmp_path))] == [False, False, True]
    assert MetricsLog(str(tmp_path), 0).rows == []


def test_a_row_is_the_mean_of_the_steps_since_the_last(domains: list[str], tmp_path: Path) -> None:
    losses = {}
    for every in (1, 2):
        words = ["steps=5", f"log_every_steps={every}", "evaluation.every_steps=5", f"out={tmp_path / str(every)}"]
        fit(settle(tiny_recipe(*domains, *words)))
        rows = read_rows(str(tmp_path / str(every)))
        losses[every] = {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
    single = losses[1]
    assert list(losses[2]) == [2, 4, 5] and len(set(single.values())) == 5
    assert losses[2] == pytest.approx(
        {2: (single[1] + single[2]) / 2, 4: (single[3] + single[4]) / 2, 5: single[5]}, rel=1e-5
    )


def test_tensorboard_events_are_written_when_asked(domains: list[str], tmp_path: Path) -> None:
    fit(settle(tiny_recipe(*domains, "steps=1", "tensorboard=true", f"out={tmp_path / 'run'}")))
    events = list((tmp_path / "run" / "tensorboard").glob("events.*"))
    assert len(events) == 1 and b"train/loss" in events[0].read_bytes() and b"iou/wall" in events[0].read_bytes()
