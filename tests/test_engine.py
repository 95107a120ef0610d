"""Runs: interrupted equals uninterrupted, scores equal brute force, checkpoints are whole, mistakes are named."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from settings import SETTINGS, TABLE, tiny_batch, tiny_method, tiny_recipe, tiny_samples

from distuda.data import shards
from distuda.data.batch import Batch
from distuda.data.class_tables import class_table
from distuda.data.dataset import open_dataset
from distuda.data.labels import ClassTable
from distuda.data.reader import iterate_once, read_batches
from distuda.data.shards import write_shards
from distuda.engine import checkpoint as checkpoints
from distuda.engine.calibrate import calibrate, calibration_images
from distuda.engine.checkpoint import Checkpoints, load_tensors
from distuda.engine.evaluate import evaluate
from distuda.engine.inputs import open_data
from distuda.engine.log import MetricsLog
from distuda.engine.loop import fit, settle
from distuda.engine.run import open_run, read_rows
from distuda.engine.step import Step
from distuda.errors import UserError
from distuda.methods import METHODS
from distuda.models.segmenter import Output
from distuda.recipe import Recipe
from distuda.report.tables import scores

CADENCE = ["evaluation.every_steps=3", "checkpoint.every_steps=3", "evaluation.limit=2"]
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


def run_words(domains: list[str], out: Path, *words: str) -> list[str]:
    return [*domains, f"out={out}", *CADENCE, *words]


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in read_rows(str(out))]


def tensors_of(out: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoints.load_tensors(str(out / "checkpoints" / f"step-{step:08d}"))


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


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


def test_a_taken_folder_and_a_changed_recipe_are_refused(finished: Path, domains: list[str]) -> None:
    with pytest.raises(UserError, match=r"holds a run already.*resume=true"):
        settle(tiny_recipe(*run_words(domains, finished, "steps=5")))
    changed = ["steps=5", "resume=true", "optimizer.lr=0.5", "batch_size=1"]
    with pytest.raises(UserError, match=r"batch_size: 2 -> 1; optimizer.lr: 0.0002 -> 0.5"):
        settle(tiny_recipe(*run_words(domains, finished, *changed)))
    settle(tiny_recipe(*run_words(domains, finished, "steps=5", "resume=true", "log_every_steps=7")))


def test_without_a_folder_one_is_chosen() -> None:
    assert settle(tiny_recipe("method=advent")).out.startswith("runs/advent-")


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


def test_accumulation_must_divide_the_batch(domains: list[str]) -> None:
    with pytest.raises(UserError, match="accumulate=2 does not divide batch_size=3"):
        open_data(tiny_recipe(*domains, "accumulate=2", "batch_size=3"))


def test_missing_data_is_refused(domains: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set at"):
        open_data(tiny_recipe(*domains, f"target.uri={tmp_path / 'none'}"))


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


# Evaluation ----------------------------------------------------------------------------------------------------------


def brute_force(recipe: Recipe, uri: str, size: tuple[int, int] | None) -> tuple[list[float], float]:
    """IoU a class and accuracy from all pixels of all images in one list."""
    model = tiny_method(recipe).student.eval()
    guesses, truths = [], []
    for sample in iterate_once(open_dataset(uri), size=size):
        with torch.no_grad():
            logits = model(sample.image_BCHW / 255).main
        logits = torch.nn.functional.interpolate(logits, sample.label_BHW.shape[-2:], mode="bilinear")
        guesses.append(logits.argmax(1).flatten().numpy())
        truths.append(sample.label_BHW.flatten().numpy())
    guess, truth = np.concatenate(guesses), np.concatenate(truths)
    guess, truth = guess[truth != 255], truth[truth != 255]
    pairs = [(guess == c, truth == c) for c in range(TABLE.num_classes)]
    return [(p & g).sum() / (p | g).sum() if (p | g).any() else np.nan for p, g in pairs], (guess == truth).mean()


@pytest.mark.parametrize("size", [None, (48, 64)])
def test_evaluate_equals_brute_force_at_label_size(size: tuple[int, int] | None, tmp_path: Path) -> None:
    uri = str(tmp_path / "mixed")  # images of several sizes in one set
    samples = [
        sample
        for seed, shape in ((1, (40, 56)), (2, (48, 40)), (3, (33, 47)))
        for sample in tiny_samples(1, seed, size=shape)
    ]
    write_shards(samples, uri, TABLE)
    recipe = tiny_recipe()
    model = tiny_method(recipe).student.train()
    scores = evaluate(model, iterate_once(open_dataset(uri), size=size), TABLE)
    iou, accuracy = brute_force(recipe, uri, size)
    assert list(scores["iou"]) == list(TABLE.classes)
    np.testing.assert_allclose([np.nan if v is None else v for v in scores["iou"].values()], iou)
    assert scores["miou"] == pytest.approx(np.nanmean(iou)) and scores["accuracy"] == pytest.approx(accuracy)
    assert scores["label_sizes"] == ["33x47", "40x56", "48x40"] and scores["num_images"] == 3
    assert model.training


class Road(torch.nn.Linear):
    """Sees the first of twelve classes everywhere."""

    align_corners = False

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, image_BCHW: torch.Tensor) -> Output:
        logits = torch.zeros(len(image_BCHW), 12, *image_BCHW.shape[2:])
        logits[:, 0] = 1
        return Output(logits)


def test_the_mean_over_the_classes_that_papers_average_is_there_too() -> None:
    table = class_table("synthia_seq12")
    network: Any = Road()
    one = tiny_batch(1, 1)
    one.label_BHW = torch.zeros(1, 40, 56, dtype=torch.int64)
    one.label_BHW[:, :20] = table.index("fence")
    row = evaluate(network, [one], table)
    assert row["miou"] == 0.25 and row["miou_synthia_seq11"] == row["iou"]["road"] == 0.5
    console = Console(width=100, record=True)
    console.print(scores(row))
    assert "mIoU over synthia_seq11 │ 50.0" in " ".join(console.export_text().split())
    one.label_BHW[:] = 0
    assert not [name for name in evaluate(tiny_method(tiny_recipe()).student, [one], TABLE) if name.startswith("miou_")]


def test_unlabelled_images_have_label_free_scores_only(domains: list[str]) -> None:
    target = open_dataset(domains[1].split("=")[1])
    scores = evaluate(tiny_method(tiny_recipe()).student, iterate_once(target), TABLE)
    names = {"entropy", "information_maximisation", "temporal_consistency"}  # the images are frames of a clip
    assert set(scores) == {"num_images", *names} and scores["num_images"] == 7


def test_without_evaluation_data_the_targets_labels_are_not_looked_at(domains: list[str], tmp_path: Path) -> None:
    labelled = domains[0].split("=")[1]
    words = ["evaluation.uri=none", f"target.uri={labelled}", "steps=1"]
    fit(settle(tiny_recipe(*run_words(domains, tmp_path / "run", *words))))
    row = read_rows(str(tmp_path / "run"))[-1]
    assert row["kind"] == "evaluation" and "miou" not in row and row["num_images"] == 2


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


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (["method.start_step=0"], ""),
        (["method.start_step=1"], "warning: method.start_step=1 is not within steps=1"),
        (["method.lambda_distance=0.1"], "warning: method.lambda_distance=0.1 keeps features near those of random"),
        (["method.lambda_distance=0.1", "model.weights=imagenet"], ""),
    ],
)
def test_what_is_hardly_meant_is_told(
    words: list[str], warning: str, domains: list[str], tmp_path: Path, capsys: Any
) -> None:
    words = ["method.name=minent", *words, "steps=1", "evaluation.limit=1", f"out={tmp_path / 'run'}"]
    fit(settle(tiny_recipe(*domains, *words)))
    said = capsys.readouterr().err
    assert warning in said if warning else "warning" not in said


# Checkpoints ---------------------------------------------------------------------------------------------------------


def saved(run: Path, scores: dict[int, float], *words: str) -> Checkpoints:
    """Checkpoints of a tiny stand-in method with these scores by step."""
    recipe = tiny_recipe(*words)
    method = torch.nn.Linear(2, 2)
    step = Step.__new__(Step)
    step.optimizers, step.schedules, step.device = [torch.optim.SGD(method.parameters(), 0.1)], [], torch.device("cpu")
    folder = Checkpoints(str(run), recipe.checkpoint)
    for number, score in scores.items():
        meta = {"step": number, "history": {}, "scores": {"information_maximisation": score, "miou": -score}}
        folder.save(method, step, meta)  # type: ignore[arg-type]
    folder.wait()
    return folder


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    folder = saved(tmp_path, {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.9}, "checkpoint.keep_last=2")
    assert names_in(tmp_path / "checkpoints") == ["step-00000002", "step-00000004", "step-00000005"]
    assert folder.find("best").endswith("step-00000002") and folder.find("last").endswith("step-00000005")
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"step": 2, "by": "information_maximisation", "score": 0.9}


def test_another_measure_of_best_does_not_compare_with_the_old_one(tmp_path: Path) -> None:
    saved(tmp_path, {1: 0.9})
    saved(tmp_path, {2: 0.5}, "checkpoint.best_by=target_miou")
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "by": "target_miou", "score": -0.5}


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path) -> None:
    folder = saved(tmp_path, {1: 0.1, 2: 0.2})
    (tmp_path / "checkpoints" / "step-00000003").mkdir()
    (tmp_path / "checkpoints" / "step-00000003" / "method.safetensors").write_bytes(b"half")
    assert folder.latest().endswith("step-00000002") and folder.find("last").endswith("step-00000002")


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    folder = Checkpoints(str(tmp_path), tiny_recipe().checkpoint)
    assert folder.latest() is None
    for which in ("last", "best"):
        with pytest.raises(UserError, match=f"no {which} checkpoint"):
            folder.find(which)


def test_a_failed_write_is_raised_and_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write"):
        saved(tmp_path, {1: 0.1})


def test_save_takes_a_snapshot(tmp_path: Path) -> None:
    """Training goes on while the writer writes; what is saved is the moment of the call."""
    recipe = tiny_recipe()
    method = tiny_method(recipe)
    step = Step(method, recipe, torch.device("cpu"))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    folder = Checkpoints(str(tmp_path), recipe.checkpoint)
    folder.save(method, step, {"step": 0, "history": {}, "scores": {}})
    step(tiny_batch(2, 1), tiny_batch(2, 2))
    folder.wait()
    loaded = checkpoints.load_tensors(folder.find("last"))
    assert all(torch.equal(value, before[key]) for key, value in loaded.items()) and loaded.keys() == before.keys()


def test_tensorboard_events_are_written_when_asked(domains: list[str], tmp_path: Path) -> None:
    fit(settle(tiny_recipe(*domains, "steps=1", "tensorboard=true", f"out={tmp_path / 'run'}")))
    events = list((tmp_path / "run" / "tensorboard").glob("events.*"))
    assert len(events) == 1 and b"train/loss" in events[0].read_bytes() and b"iou/wall" in events[0].read_bytes()


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


RARE = ["source.rare_class_temperature=0.1", "source.rare_class_min_pixels=50"]


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
