"""What a sweep is told of its trials, and what its schedulers decide on."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from sweeps import Rows, TuneTrial, actor

from distuda.errors import RunFailed
from tune.live import LOST, Observer, _cause
from tune.records import Records
from tune.run import Row
from tune.search import scheduler_for


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
    if name == "median":  # an end that could not be saved comes once more
        assert rule.on_trial_result(tune, others[5], result(6, -0.1)) == TrialScheduler.STOP


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
