"""Trials without a cluster: what they report and when, what they go on from, what is kept of them."""

import itertools
import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from sweeps import WORDS, plan_for

from distuda import storage
from distuda.engine.checkpoint import META, TRAINING, WEIGHTS
from distuda.errors import RunFailed
from distuda.plan import load_phases
from distuda.recipe import load_recipe
from tune import sweep as sweeping
from tune import trial as trials_module
from tune.lease import Lease
from tune.live import LOST, Observer, _cause
from tune.plan import settle
from tune.records import DONATED, Records
from tune.run import LostError, ProcessRun, Row, Task, give_back_memory, standby_for
from tune.search import scheduler_for
from tune.standby import Standby
from tune.sweep import _Run
from tune.trial import TrialActor, donate


def evaluated(folder: Path, *steps: int) -> None:
    """Leave evaluations of these steps in a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"kind": "evaluation", "step": step, "entropy": step / 10} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def checkpoint(folder: Path, *steps: int) -> None:
    """Leave whole checkpoints of these steps in a run folder."""
    for step in steps:
        path = folder / "checkpoints" / f"step-{step:08d}"
        path.mkdir(parents=True)
        for name in (WEIGHTS, TRAINING, META):
            (path / name).write_text(f"{name} {step}")


class Rows:
    """A training that has these evaluations before it."""

    def __init__(self, *steps: int) -> None:
        self.rows = [{"kind": "evaluation", "step": step, "entropy": step / 10} for step in steps]

    def next(self) -> Row | None:
        return self.rows.pop(0) if self.rows else None

    def stop(self) -> None:
        self.rows = []


class TuneTrial:
    """What Tune tells of a trial; ``copied`` is whose checkpoint it is to go on from."""

    status, error_file, num_failures, max_failures = "RUNNING", None, 0, 3

    def __init__(self, name: str, configuration: dict[str, Any] | None = None, copied: tuple[str, int] | None = None):
        self.trial_id, self.config = name, {"trial": {"configuration": configuration or {}}}
        metrics = {"id": copied[0], "step": copied[1]} if copied else {}
        self.latest_checkpoint_result = type("Result", (), {"metrics": metrics})

    def __str__(self) -> str:
        return self.trial_id


def actor(out: Path, words: list[str], left: Rows, cwd: str = "", **told: Any) -> TrialActor:
    """The actor of trial 0000 of six steps in ``out``, as Tune would have set it up; ``left`` is its training."""
    made = TrialActor.__new__(TrialActor)
    made.config = {"trial": {"words": [], "ended": 0, "replay": True, "donor": None, **told}}
    made._trial_info = type("Info", (), {"trial_name": "0000"})()
    task = Task(None, (*WORDS, *words, "checkpoint.every_steps=2"), cwd or os.getcwd())
    made.setup(made.config, task, str(out), "entropy")
    made._start = lambda: left  # type: ignore[method-assign]
    return made


# What is reported ----------------------------------------------------------------------------------------------------


def test_a_trial_without_its_last_checkpoint_is_not_over(domains: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "0000"
    evaluated(folder, 2, 4, 6)  # killed after the last row and before its checkpoint
    checkpoint(folder, 4)
    trial = actor(tmp_path, domains, Rows(6))
    told = [trial.step() for _ in range(3)]
    assert [(one["step"], one["done"]) for one in told] == [(2, False), (4, False), (6, True)]
    assert trial.run is not None  # the last one was trained, not read


def test_what_has_ended_is_only_told_again(domains: list[str], tmp_path: Path) -> None:
    evaluated(tmp_path / "trials" / "0000", 2, 4, 5)  # stopped at 4, and trained on until its process knew
    trial = actor(tmp_path, domains, Rows(6), ended=4)  # its checkpoints are gone
    assert [(one["step"], one["done"]) for one in (trial.step(), trial.step())] == [(2, False), (4, True)]
    assert trial.run is None


def test_rounds_that_end_early_are_finished(domains: list[str], tmp_path: Path) -> None:
    """`stop_ratio` ends them before the step that was planned."""
    made = actor(tmp_path, domains, Rows(2, 4))
    told = [made.step() for _ in range(3)]
    assert [one["done"] for one in told] == [False, False, True]
    assert told[1]["total"] == 6 and told[-1]["step"] == told[-1]["total"] == 4


def test_a_process_that_is_killed_is_lost_and_has_not_failed(domains: list[str], tmp_path: Path) -> None:
    class Killed(Rows):
        def next(self) -> Row | None:
            raise LostError("killed by SIGKILL")

    made = actor(tmp_path, domains, Killed())
    with pytest.raises(LostError):  # Tune begins another process
        made.step()
    assert made.run is None


def test_between_trials_memory_goes_back_to_the_system(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    made = actor(tmp_path, domains, Rows(2, 4, 6))
    monkeypatch.setattr(trials_module, "give_back_memory", lambda: given.append(made.run is None))
    made.step()
    assert not given and made.reset_config(made.config) and given == [True]
    give_back_memory()  # there is a C library that does it


def test_a_trial_that_is_trained_finds_nothing_left(domains: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "0000"
    evaluated(folder, 2, 4, 6)
    checkpoint(folder, 6)
    for replay, steps in ((True, [2, 4, 6, 6]), (False, [6])):  # of a population nothing is told again but the end
        trial = actor(tmp_path, domains, Rows(), replay=replay)
        told = [trial.step() for _ in steps]
        assert [one["step"] for one in told] == steps and told[-1]["done"] and "failed" not in told[-1]


def test_steps_to_compare_by_are_counted_from_the_last_phase(domains: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "phases.yaml"
    recipe.write_text("phases:\n- {name: first, steps: 2}\n- {name: second, steps: 4, init_from: first}\n")
    made = actor(tmp_path, domains, Rows())
    made.phases = load_phases(str(recipe), [*domains, f"out={tmp_path / 'run'}"])
    early = made._result({"step": 2, "kind": "evaluation"}, over=False)
    assert early["last_step"] == 0 and math.isnan(early["objective"])
    late = made._result({"step": 5, "kind": "evaluation", "entropy": 0.5}, over=False)
    assert (late["step"], late["last_step"], late["total"], late["objective"]) == (5, 3, 6, 0.5)


def test_a_member_whose_donor_gave_up_the_checkpoint_says_so(
    domains: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, donor = tmp_path / "trials" / "0000", tmp_path / "trials" / "0001"
    evaluated(folder, 2)
    checkpoint(folder, 2)
    trial = actor(tmp_path, domains, Rows(4, 6), replay=False)
    trial.load_checkpoint({"folder": str(donor), "step": 2})
    first, second = trial.step(), trial.step()
    assert first["refused"] and first["step"] == 4 and not second["refused"]
    checkpoint(donor / DONATED, 2)
    (donor / DONATED / "checkpoints" / "step-00000002").rename(donor / DONATED / "step-00000002")
    trial = actor(tmp_path, domains, Rows(4), replay=False)
    trial.load_checkpoint({"folder": str(donor), "step": 2})
    assert not trial.step()["refused"]
    records = Records(str(tmp_path))
    records.add(0, {}, 1)
    Observer(records, "entropy", (), 1, 1, 1).on_trial_result(1, [], TuneTrial("0000"), first)
    assert "trial 0000  goes on from its own weights: the other trial's checkpoint was gone" in capsys.readouterr().err


def test_a_member_goes_on_from_what_it_was_given_before_a_kill(domains: list[str], tmp_path: Path) -> None:
    plan, phases = settle(plan_for(tmp_path, domains, search="pbt", num=2, concurrent=0, grace=2))
    records = Records(plan.out)
    [record], _ = records.add(0, {"optimizer.lr": 0.1}, 1), records.add(1, {"optimizer.lr": 0.2}, 1)
    checkpoint(Path(records.folder("0000")), 2)
    checkpoint(Path(records.folder("0001")), 2, 4)
    donate(records.folder("0001"), 4)
    observer = Observer(records, "entropy", ("entropy",), 1, 1, 2)
    trial = TuneTrial("0000", {"optimizer.lr": 0.16}, copied=("0001", 4))
    observer.on_trial_start(1, [], trial)  # and killed before its process has begun
    told = _Run(plan, phases, Records(plan.out), Lease(plan.out))._config(Records(plan.out).by_id["0000"])["trial"]
    for own, folders in ((None, ["step-00000004"]), (records.folder("0000"), ["step-00000002"])):
        shutil.rmtree(tmp_path / "sweep" / "trials" / "0000" / "checkpoints")
        checkpoint(Path(records.folder("0000")), 2)
        member = actor(Path(plan.out), domains, Rows(6), donor=told["donor"], replay=told["replay"])
        member.load_checkpoint(own and {"folder": own, "step": 2})  # Tune has one of its own once it has gone on
        result = member.step()
        assert result["step"] == 6 and result["id"] == "0000"
        assert os.listdir(tmp_path / "sweep" / "trials" / "0000" / "checkpoints") == folders
    observer.on_trial_result(2, [], trial, {"step": 4, "seconds": 1, "failed": "lost", "replayed": False, "done": True})
    assert record.donor == ("0001", 4)
    observer.on_trial_result(2, [], trial, result)
    assert record.donor is None


def test_what_a_member_trained_since_it_copied_another_survives_its_process(domains: list[str], tmp_path: Path) -> None:
    donor = {"folder": str(tmp_path / "trials" / "0001"), "step": 2}
    checkpoint(Path(donor["folder"]), 2)
    donate(donor["folder"], 2)
    for own, reported, words in (([], [4], []), ([4], [6], []), ([6], [4], ["optimizer.lr=0.01"])):
        checkpoint(tmp_path / "trials" / "0000", *own)
        evaluated(tmp_path / "trials" / "0000", *own)
        member = actor(tmp_path, [*domains, *words], Rows(4, 6), replay=False)
        member.load_checkpoint(donor)  # Tune says so of each process until the member has saved for itself
        assert [member.step()["step"]] == reported
        kept = sorted(os.listdir(tmp_path / "trials" / "0000" / "checkpoints"))
        # as another configuration it takes the same checkpoint once more
        assert kept == (["step-00000002", "step-00000004"] if own == [4] else ["step-00000002"])


def test_a_copy_of_the_same_configuration_is_noted_once(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    [record], _ = records.add(0, {"batch_size": 2}, 1), records.add(1, {"batch_size": 2}, 1)
    observer = Observer(records, "entropy", (), 1, 1, 2)
    for name, step, history in (("0000", 2, 0), ("0001", 4, 1), ("0001", 4, 1), ("0001", 6, 2)):
        observer.on_trial_start(1, [], TuneTrial("0000", {"batch_size": 2}, copied=(name, step)))
        assert len(record.history) == history
    assert Records(str(tmp_path)).by_id["0000"].adopted == ("0001", 6)


# A process of its own ------------------------------------------------------------------------------------------------


class Process:
    """A process that does one thing each time it is looked at, and then has ended."""

    returncode = 0

    def __init__(self, doings: Iterator[Any]) -> None:
        self.doings = doings

    def poll(self) -> int | None:
        return next(self.doings, 0)


def test_an_evaluation_is_told_once_its_checkpoint_is_there(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessRun, "PAUSE_S", 0.0)
    folder = tmp_path / "run"
    evaluated(folder, 2, 4)  # of an earlier start, which was killed before its second checkpoint
    checkpoint(folder, 2)
    task = Task(None, (*WORDS, *domains, "checkpoint.every_steps=2"), str(tmp_path))
    run = ProcessRun(task, [], str(folder), Standby({}, None))
    monkeypatch.setattr(Standby, "prepare", lambda self: None)
    there: list[list[int]] = []

    def train() -> Iterator[None]:
        evaluated(folder, 2, 3, 4)
        yield None
        there.append([])
        yield None
        checkpoint(folder, 4)
        there.append([4])
        yield None
        evaluated(folder, 2, 3, 4, 6)
        yield None
        checkpoint(folder, 6)

    run._process = Process(train())  # type: ignore[assignment]
    told = [run.next(), run.next()]
    assert [row and row["step"] for row in told] == [3, 4]  # at step 3 no checkpoint is due, so none is waited for
    assert there == [[], [4]]
    assert [row and row["step"] for row in (run.next(), run.next())] == [6, None]


def test_what_a_process_wrote_lies_in_its_run_folder_wherever_that_is(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path)  # object storage has no folders to be made
    run = ProcessRun(Task(None, (*WORDS, *domains), ""), [], folder, Standby({}, None))
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    assert not run._log.startswith(folder)
    Path(run._log).write_text("failed: no room\n")
    run._process = Process(iter([1]))  # type: ignore[assignment]
    run._process.returncode = 1
    with pytest.raises(RunFailed, match=r"^no room$"):
        run.next()
    assert storage.read_bytes(f"{folder}/console.txt") == b"failed: no room\n" and not Path(run._log).exists()


def test_a_trial_runs_where_the_user_is_or_anywhere(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: began.append(options["cwd"]))
    for cwd in (tmp_path, tmp_path / "nowhere"):
        standby_for(Task(None, (*WORDS, *domains), str(cwd)), "local").prepare()
    assert began == [str(tmp_path), None]
    trial = actor(tmp_path, domains, Rows(2), cwd=str(tmp_path / "nowhere"))  # of the driver's machine alone
    assert trial.step()["step"] == 2


def test_a_folder_may_have_any_name(domains: list[str], tmp_path: Path) -> None:
    plan, phases = settle(plan_for(tmp_path / "run #2: new", domains))
    assert plan.out == str(tmp_path / "run #2: new" / "sweep")
    assert phases[0].recipe.out == f"{plan.out}/trials/base"
    task, folder = Task(None, plan.words, str(tmp_path)), f"{plan.out}/trials/0000"
    assert task.phases([], folder)[0].recipe.out == folder
    given = ProcessRun(task, [], folder, standby_for(task, "local")).words
    assert given[0] == "train" and load_recipe(None, given[1:]).out == folder


# What Tune is told and tells -----------------------------------------------------------------------------------------


def result(last_step: int, objective: float) -> dict[str, Any]:
    return {"step": last_step + 10, "last_step": last_step, "objective": objective, "replayed": False}


def test_the_median_lets_a_trial_train_on_where_others_wait() -> None:
    rule = scheduler_for("median", steps=6, grace=2, judged={})
    first, waiting = TuneTrial("0"), TuneTrial("1")
    waiting.status = "PENDING"
    tune = type("Controller", (), {"get_live_trials": lambda self: [first, waiting]})()
    assert rule.on_trial_result(tune, first, result(4, 0.5)) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("name", ["asha", "median"])
def test_trials_are_compared_in_their_last_phase_alone(name: str) -> None:
    """An early phase may have nothing to score, or score what the searched fields have no bearing on yet."""
    rule = scheduler_for(name, steps=12, grace=4, judged={})
    others = [TuneTrial(str(number)) for number in range(6)]
    tune = type("Controller", (), {"get_live_trials": lambda self: others})()
    for trial in others:
        rule.on_trial_add(tune, trial)
    for early in (float("nan"), 0.9):
        for number, trial in enumerate(others):
            assert rule.on_trial_result(tune, trial, result(-4, early + number)) == TrialScheduler.CONTINUE
    for number, trial in enumerate(others[:5]):
        decision = rule.on_trial_result(tune, trial, result(4, number / 10))
        assert decision == TrialScheduler.CONTINUE  # each is better than all before it
    assert rule.on_trial_result(tune, others[5], result(4, -0.1)) == TrialScheduler.STOP


@pytest.mark.parametrize("name", ["asha", "median"])
def test_nothing_is_decided_again_on_what_is_told_again(name: str) -> None:
    """After a kill trials tell in any order, so one that had been let on could now be the worst."""
    trials = [TuneTrial(str(number)) for number in range(6)]
    rule = scheduler_for(name, steps=12, grace=4, judged={str(trial): 16 for trial in trials[:5]} | {"5": 14})
    tune = type("Controller", (), {"get_live_trials": lambda self: trials})()
    for trial in trials:
        rule.on_trial_add(tune, trial)
    for trial, step in itertools.product(trials[:5], (4, 6)):
        assert rule.on_trial_result(tune, trial, result(step, 0.9)) == TrialScheduler.CONTINUE
    for _ in range(2):  # and once more, by the process after a lost one
        assert rule.on_trial_result(tune, trials[5], result(4, 0.1)) == TrialScheduler.CONTINUE
    assert rule.on_trial_result(tune, trials[5], result(6, 0.1)) == (
        TrialScheduler.STOP if name == "median" else TrialScheduler.CONTINUE  # which looks again at step 12
    )
    if name == "median":
        assert [told["last_step"] for told in rule._results[trials[5]]] == [4, 6]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_what_a_killed_driver_had_not_heard_is_decided_on(name: str) -> None:
    """A distributed trial trains on while nobody asks: its folder may hold more than was ever judged."""
    trials = [TuneTrial(str(number)) for number in range(6)]
    rule = scheduler_for(name, steps=12, grace=4, judged={str(trial): 14 for trial in trials[:5]})
    tune = type("Controller", (), {"get_live_trials": lambda self: trials})()
    for trial in trials:
        rule.on_trial_add(tune, trial)
    for trial in trials[:5]:
        rule.on_trial_result(tune, trial, result(4, 0.9))
    assert rule.on_trial_result(tune, trials[5], {**result(4, 0.1), "replayed": True}) == TrialScheduler.STOP


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_failed_trial_is_compared_with_nobody(domains: list[str], tmp_path: Path, name: str) -> None:
    class Broken(Rows):
        def next(self) -> Row | None:
            raise RunFailed("no room")

    told = actor(tmp_path, domains, Broken()).step()
    assert (told["failed"], told["last_step"]) == ("no room", 0)
    rule = scheduler_for(name, steps=12, grace=4, judged={})
    trials = [TuneTrial(str(number)) for number in range(6)]
    tune = type("Controller", (), {"get_live_trials": lambda self: trials})()
    for trial in trials:
        rule.on_trial_add(tune, trial)
    rule.on_trial_complete(tune, trials[0], told)
    rule.on_trial_complete(tune, trials[1], {**told, **result(4, float("nan"))})
    if name == "asha":
        assert not any(recorded for _, recorded in rule._brackets[0]._rungs)
    for number, trial in enumerate(trials[2:5]):
        assert rule.on_trial_result(tune, trial, result(4, number / 10)) == TrialScheduler.CONTINUE
    assert rule.on_trial_result(tune, trials[5], result(4, -0.1)) == TrialScheduler.STOP


def test_what_is_told_again_takes_nothing_from_a_record(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    under_way, over = records.add(0, {}, 1)[0], records.add(1, {}, 1)[0]
    under_way.status, under_way.step, under_way.scores = "running", 6, {"entropy": 0.9}
    over.status, over.step = "finished", 6
    observer = Observer(records, "entropy", (), 1, 1, 2)
    first = {"step": 2, "seconds": 0.1, "objective": 0.5, "score_entropy": 0.5, "replayed": True, "done": False}
    observer.on_trial_result(1, [], TuneTrial("0000"), first)
    assert (under_way.step, under_way.scores) == (6, {"entropy": 0.9})
    observer.on_trial_result(1, [], TuneTrial("0000"), {**first, "step": 8})  # the driver had not heard of it
    assert (under_way.step, under_way.scores) == (8, {"entropy": 0.5})
    observer.on_trial_error(1, [], TuneTrial("0001"))
    observer.on_trial_error(1, [], TuneTrial("0000"))
    assert (over.status, under_way.status) == ("finished", "failed")


def test_what_fails_as_it_goes_on_keeps_what_is_known(tmp_path: Path) -> None:
    """A storage that is away for a moment must not have a scheduler decide anew on all of it."""
    records = Records(str(tmp_path))
    [record] = records.add(0, {}, 1)
    record.status, record.step, record.scores = "running", 6, {"entropy": 0.9}
    observer = Observer(records, "entropy", (), 1, 1, 1)
    failed = {"step": 0, "last_step": 0, "seconds": 0.1, "objective": math.nan, "replayed": False, "done": True}
    observer.on_trial_result(1, [], TuneTrial("0000"), {**failed, "failed": "no storage"})
    again = {**failed, "step": 4, "objective": 0.4, "score_entropy": 0.4, "done": False, "seconds": 2.0}
    observer.on_trial_result(1, [], TuneTrial("0000"), again)  # trained again, from an older checkpoint
    kept = Records(str(tmp_path)).by_id["0000"]
    assert (kept.status, kept.reason, kept.step, kept.scores) == ("failed", "no storage", 6, {"entropy": 0.9})
    observer.on_trial_result(1, [], TuneTrial("0000"), {**again, "step": 6, "score_entropy": 0.8})
    assert record.scores == {"entropy": 0.8} and record.seconds == 4.1  # of the weights that there are


@pytest.mark.parametrize(("total", "status"), [(6, "finished"), (12, "stopped")])
def test_an_end_is_saved_with_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, status: str
) -> None:
    """Tune has put down its decision by then; one that a kill takes back is not made again."""
    records = Records(str(tmp_path))
    [record] = records.add(0, {}, 1)
    record.status = "running"
    saved: list[tuple[int, str]] = []
    monkeypatch.setattr(Records, "save", lambda self, record: saved.append((record.step, record.status)))
    told = {"step": 6, "seconds": 1.0, "objective": 0.5, "score_entropy": 0.5, "replayed": False}
    told |= {"done": True, "total": total}
    Observer(records, "entropy", ("entropy",), 1, 1, 1).on_trial_result(1, [], TuneTrial("0000"), told)
    assert saved == [(6, status)]


def test_asha_leaves_a_trial_that_tells_its_last_evaluation_again_to_its_other_phases() -> None:
    rule, trial = scheduler_for("asha", steps=12, grace=4, judged={}), TuneTrial("0")
    rule.on_trial_add(None, trial)
    assert rule.on_trial_result(None, trial, {**result(12, 0.5), "replayed": True}) == TrialScheduler.CONTINUE
    assert rule.on_trial_result(None, trial, result(12, 0.5)) == TrialScheduler.STOP


def test_a_trial_may_be_lost_as_often_as_it_gets_on(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    records.add(0, {}, 1)
    observer, trial = Observer(records, "entropy", (), 1, 1, 1), TuneTrial("0000")

    def allowed(failures: int, step: int, replayed: bool = False) -> int:
        trial.num_failures = failures
        told = {"step": step, "seconds": 1.0, "objective": 0.5, "replayed": replayed, "done": False}
        observer.on_trial_result(1, [], trial, told)
        return trial.max_failures

    assert [allowed(0, 2), allowed(2, 2, replayed=True)] == [LOST, LOST]
    assert [allowed(2, 4), allowed(5, 4)] == [2 + LOST, 2 + LOST]
    observer.on_trial_start(1, [], TuneTrial("0000", {"optimizer.lr": 1}, copied=("0001", 2)))
    assert allowed(5, 4) == 5 + LOST  # a member of a population that went back to another's step


def test_a_cause_is_the_exception_and_not_the_advice_below_it(tmp_path: Path) -> None:
    trial = type("Trial", (), {"error_file": str(tmp_path / "error.txt")})()
    died = "Failure # 1 (occurred at noon)\nray.exceptions.ActorDiedError: The actor died unexpectedly.\n"
    failed = "Failure # 2 (occurred at one)\nray::TrialActor.save()\n  File a.py\nRuntimeError: no room:\nTry a disk.\n"
    (tmp_path / "error.txt").write_text(died + failed)
    assert _cause(trial) == "its process failed again and again: RuntimeError: no room:"
    (tmp_path / "error.txt").write_text(failed + died)
    assert _cause(trial) == "its process was lost again and again, often for lack of memory"
    killed = "Failure # 3 (occurred at two)\nray::TrialActor.train()\ntune.run.LostError: killed by SIGTERM\n"
    (tmp_path / "error.txt").write_text(failed + killed)
    assert _cause(trial) == "again and again killed by SIGTERM"
    (tmp_path / "error.txt").write_text(
        "Failure # 3 (occurred at two)\nThe actor died because of an error raised in its creation task, "
        "ray::TrialActor.__init__()\n  File b.py\nModuleNotFoundError: No module named 'cv3'\n"
    )
    assert _cause(trial) == "its process failed again and again: ModuleNotFoundError: No module named 'cv3'"


# What is kept --------------------------------------------------------------------------------------------------------


def test_checkpoints_that_are_still_written_are_freed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(str(tmp_path))
    for number in range(2):
        [record] = records.add(number, {}, 1)
        record.status = "stopped"
        checkpoint(tmp_path / "trials" / record.id, 2)
    remove = storage.remove

    def busy(uri: str) -> None:
        if "0000" in uri:
            raise OSError(39, "Directory not empty", uri)
        remove(uri)

    monkeypatch.setattr(storage, "remove", busy)
    records.free_checkpoints([])
    assert [path.parent.name for path in tmp_path.glob("trials/*/checkpoints")] == ["0000"]
    monkeypatch.setattr(storage, "remove", remove)
    records.free_checkpoints([])
    assert not list(tmp_path.glob("trials/*/checkpoints"))


def test_what_was_left_is_freed_once_nobody_writes(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, phases = settle(plan_for(tmp_path, domains, num=2, keep=1))
    run = _Run(plan, phases, Records(plan.out), Lease(plan.out))
    listed = run._listed()

    class Tuner:
        def fit(self) -> None:
            for record in listed or []:
                record.status, record.scores = "finished", {plan.objective: record.number}
                run.records.save(record)
                checkpoint(Path(run.records.folder(record.id)), 6)

    monkeypatch.setattr(sweeping, "share_of_cluster", lambda *_, **__: (1, {"CPU": 1.0}))
    monkeypatch.setattr(_Run, "_tuner", lambda *_: Tuner())
    run._sit(listed, 2, "none")
    assert [path.parent.name for path in Path(plan.out).glob("trials/*/checkpoints")] == ["0001"]


def test_a_population_that_has_ended_leaves_no_copies_behind(domains: list[str], tmp_path: Path) -> None:
    plan, phases = settle(plan_for(tmp_path, domains, search="pbt", num=2, concurrent=0, grace=2))
    run = _Run(plan, phases, Records(plan.out), Lease(plan.out))
    for record in run._listed() or []:
        record.status = "finished"
        run.records.save(record)
        checkpoint(Path(run.records.folder(record.id)), 6)
        donate(run.records.folder(record.id), 6)
    (Path(plan.out) / "population").mkdir()
    run.search()  # it was killed after the last of them
    assert not (Path(plan.out) / "population").exists() and not list(Path(plan.out).glob(f"trials/*/{DONATED}"))
