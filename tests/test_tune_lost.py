"""Sweeps whose trials lose the processes that train them."""

from pathlib import Path

import pytest
from sweeps import SPACE, again_and_again, evaluations, kill_processes, plan_for, trials

from distuda.engine.run import read_rows
from distuda.errors import RunFailed
from tune.live import LOST
from tune.sweep import sweep

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("one_thread")]


def test_a_lost_worker_costs_the_steps_since_its_checkpoint(
    domains: list[str], tmp_path: Path, local_ray: None
) -> None:
    """However often it is lost, as long as the trial gets on in between."""
    folder, seen, killed = tmp_path / "sweep" / "trials" / "0000", 0, 0

    def kill() -> None:
        nonlocal seen, killed
        if killed <= LOST and evaluations(folder) > seen:
            killed += kill_processes("Trainable")
            seen = evaluations(folder)

    with again_and_again(kill):
        sweep(plan_for(tmp_path, domains, SPACE, "steps=60", num=1))
    assert killed == LOST + 1 and [r.status for r in trials(tmp_path)] == ["finished"]
    rows = read_rows(str(folder))
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == list(range(2, 61, 2))


def test_a_trial_that_is_lost_without_getting_on_has_failed(
    domains: list[str], tmp_path: Path, local_ray: None
) -> None:
    with again_and_again(lambda: kill_processes("Trainable")), pytest.raises(RunFailed, match="lost again and again"):
        sweep(plan_for(tmp_path, domains, SPACE, num=1))
    assert [r.status for r in trials(tmp_path)] == ["failed"]


@pytest.mark.timeout(600)
def test_trials_with_workers_are_processes_beside_each_other(
    domains: list[str], tmp_path: Path, local_ray: None
) -> None:
    """On three logical CPUs: a worker each, one that both read by. All workers are lost, then what drives them."""
    folder, victims = tmp_path / "sweep" / "trials" / "0001", ["ray::RayTrainWorker", "tune.child"]

    def kill() -> None:
        if victims and evaluations(folder) >= 5 - 2 * len(victims) and kill_processes(victims[0]):
            victims.pop(0)

    with again_and_again(kill):
        sweep(plan_for(tmp_path, domains, SPACE, "workers=1", "steps=20", num=2, concurrent=2))
    ended = trials(tmp_path)
    assert not victims and [(trial.status, trial.step) for trial in ended] == [("finished", 20)] * 2
    for trial in ended:
        rows = [row for row in read_rows(str(folder.parent / trial.id)) if row["kind"] == "evaluation"]
        assert [row["step"] for row in rows] == list(range(2, 21, 2))
        assert trial.scores["entropy"] == rows[-1]["entropy"]
