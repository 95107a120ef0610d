"""Trials without a cluster: what they report and when, what they go on from, what is kept of them."""

import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sweeps import WORDS, Rows, TuneTrial, actor, checkpoint, evaluated, plan_for

from distuda import storage
from distuda.errors import RunFailed
from distuda.plan import load_phases
from distuda.recipe import load_recipe
from tune import sweep as sweeping
from tune import trial as trials_module
from tune.lease import Lease
from tune.live import Observer
from tune.plan import settle
from tune.records import DONATED, Records
from tune.run import LostError, ProcessRun, Row, Task, give_back_memory, standby_for
from tune.standby import Standby
from tune.sweep import _Run
from tune.trial import donate

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
