"""Parts of a sweep on their own: the search that goes on, checkpoints that change hands, shares of a cluster."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from sweeps import checkpoint, plan_for

from distuda import storage
from distuda.cluster.local import forget_threads_of_ray
from distuda.engine.checkpoint import META, TRAINING, WEIGHTS
from distuda.errors import UserError
from distuda.recipe import Recipe, load_recipe
from tune import resources, trial
from tune import sweep as sweeping
from tune.lease import Lease
from tune.plan import agree, last_recipe, settle
from tune.records import DONATED, Record, Records
from tune.resources import HEAD, share_of_cluster, threads_of
from tune.run import Task
from tune.search import Tpe
from tune.space import Configuration
from tune.space_file import load_space
from tune.sweep import _Run, sweep
from tune.trial import DONATIONS, adopt, donate


def test_no_suggestion_is_trained_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.yaml").write_text("augment.flip: {choice: [0, 0.5]}\nbatch_size: {choice: [1, 2]}\n")
    offered: list[Configuration] = []

    def offer(number: int, configuration: Configuration) -> list[Record]:
        offered.append(configuration)
        return [Record(f"{number:04d}", number, 0, configuration)]

    search = Tpe(load_space(str(tmp_path / "space.yaml")), 16, 0, [], offer, lambda record: {"trial": record.id})
    for i in range(4):
        assert search.suggest(str(i)) == {"trial": f"{i:04d}"}
        if i % 2:  # some are still under way when they come again
            search.on_trial_complete(str(i), {"objective": i / 10})
    assert search.suggest("4") == search.suggest("5") == "FINISHED"
    assert len({str(one) for one in offered}) == 4 == len(offered)
    assert (
        "were not new: 4 configurations differ enough, and these are trained instead of 16" in capsys.readouterr().err
    )


def test_a_search_for_fewer_does_not_wait_for_what_is_over_its_number(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, phases = settle(plan_for(tmp_path, domains, search="tpe", num=2))
    records = Records(plan.out)
    for number, status in enumerate(("finished", "finished", "running")):
        records.add(number, {}, 1)[0].status = status  # type: ignore[assignment]
    monkeypatch.setattr(sweeping, "share_of_cluster", lambda *_, **__: (1, {"CPU": 1.0}))
    monkeypatch.setattr(_Run, "_tuner", lambda *_: type("Tuner", (), {"fit": lambda self: None})())
    _Run(plan, phases, records, Lease(plan.out)).search()
    with pytest.raises(KeyboardInterrupt):
        _Run(replace(plan, num=3), phases, records, Lease(plan.out)).search()


def test_seeds_of_what_a_scheduler_ends_are_over_too(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were begun before the sweep had one."""
    plan, phases = settle(plan_for(tmp_path, domains, seeds=2, scheduler="asha"))
    records = Records(plan.out)
    for number, status in enumerate(("finished", "stopped", "stopped", "failed")):
        for record, one in zip(records.add(number, {}, 2), (status, "running"), strict=True):
            record.status = one  # type: ignore[assignment]
    monkeypatch.setattr(_Run, "_listed", lambda self: [r for r in self.records if not r.repeat])

    def fit(self: _Run, listed: list[Record], *_: Any) -> None:
        for record in listed:
            record.status = "finished" if record.repeat else record.status

    monkeypatch.setattr(_Run, "_sit", fit)
    _Run(plan, phases, records, Lease(plan.out)).search()
    assert [record.status for record in records if record.repeat] == ["finished", "stopped", "stopped", "running"]


def test_a_search_that_goes_on_does_not_begin_again() -> None:
    space = load_space("advent")

    def drawn(begun: list[Configuration], num: int) -> list[Configuration]:
        offered: list[Configuration] = []

        def offer(number: int, configuration: Configuration) -> list[Record]:
            offered.append(configuration)
            return [Record(f"{number:04d}", number, 0, configuration)]

        search = Tpe(space, num, 0, begun, offer, lambda record: {"trial": record.id})
        for i in range(num):
            search.suggest(str(i))
        return offered

    first = drawn([], 4)
    assert drawn(first, 12)[:4] == first
    assert len({str(one) for one in drawn(first, 12)}) == 12


# Checkpoints that change hands ---------------------------------------------------------------------------------------


def test_a_donor_keeps_what_its_own_pruning_takes(tmp_path: Path) -> None:
    donor, thief = tmp_path / "donor", tmp_path / "thief"
    steps = range(10, 10 * (DONATIONS + 2), 10)
    for step in steps:
        checkpoint(donor, step)
        donate(str(donor), step)
    donate(str(donor), 5)  # no checkpoint of that step: nothing to give
    assert sorted(f.name for f in (donor / DONATED).glob("step-*")) == [f"step-{step:08d}" for step in steps[1:]]
    checkpoint(thief, 30)
    phases = Task(None, (), str(tmp_path)).phases([], str(thief))
    assert not adopt({"folder": str(donor), "step": 10}, phases)  # given up since: the thief keeps its own
    assert (thief / "checkpoints" / "step-00000030" / META).exists()
    for folder in (donor / "checkpoints").iterdir():
        (folder / META).unlink()
    assert adopt({"folder": str(donor), "step": 20}, phases)
    assert [f.name for f in (thief / "checkpoints").iterdir()] == ["step-00000020"]
    assert (thief / "checkpoints" / "step-00000020" / WEIGHTS).read_text() == f"{WEIGHTS} 20"


def test_a_donor_that_has_copied_a_slower_one_keeps_what_it_gave_last(tmp_path: Path) -> None:
    for step in (8, 10, 12, 14, 6):
        checkpoint(tmp_path, step)
        donate(str(tmp_path), step)
    assert {f.name for f in (tmp_path / DONATED).glob("step-*")} == {f"step-{step:08d}" for step in (10, 12, 14, 6)}


def test_a_member_that_is_killed_as_it_copies_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    donor, thief = tmp_path / "donor", tmp_path / "thief"
    checkpoint(donor, 10)
    donate(str(donor), 10)
    checkpoint(thief, 20)

    def kill(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(trial, "_write", kill)
    with pytest.raises(RuntimeError):
        adopt({"folder": str(donor), "step": 10}, Task(None, (), str(tmp_path)).phases([], str(thief)))
    assert (thief / "checkpoints" / "step-00000020" / META).exists()


def test_a_member_keeps_its_own_of_the_same_step_where_the_donor_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor, thief = tmp_path / "donor", tmp_path / "thief"
    checkpoint(donor, 10)
    donate(str(donor), 10)
    checkpoint(thief, 10)
    read = storage.read_bytes

    def gone(uri: str) -> bytes:
        if uri.startswith(str(donor)) and uri.endswith(TRAINING):  # removed while it is read
            raise UserError(f"cannot read {uri}") from FileNotFoundError(uri)
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", gone)
    assert not adopt({"folder": str(donor), "step": 10}, Task(None, (), str(tmp_path)).phases([], str(thief)))
    assert (thief / "checkpoints" / "step-00000010" / META).exists()


def test_members_of_a_population_that_have_ended_are_left_alone(domains: list[str], tmp_path: Path) -> None:
    plan, phases = settle(plan_for(tmp_path, domains, search="pbt", num=3, concurrent=0, grace=2))
    records = Records(plan.out)
    everyone = _Run(plan, phases, records, Lease(plan.out))._listed()
    assert everyone is not None and len(everyone) == 3
    everyone[0].status, everyone[1].status = "finished", "failed"
    left = _Run(plan, phases, records, Lease(plan.out))._listed()
    assert left is not None and [record.id for record in left] == ["0001", "0002"]
    assert not any(_Run(plan, phases, records, Lease(plan.out))._config(record)["trial"]["ended"] for record in left)


def test_a_recipe_that_is_edited_under_way_changes_no_trial(domains: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optimizer: {weight_decay: 0.01}\n")
    plan, phases = settle(replace(plan_for(tmp_path, domains), recipe=str(recipe)))
    plan = agree(plan, phases)
    recipe.write_text("optimizer: {weight_decay: 0.5}\n")
    [phase] = Task(plan.recipe, plan.words, str(tmp_path)).phases([], str(tmp_path / "trial"))
    assert isinstance(phase.recipe, Recipe) and phase.recipe.optimizer.weight_decay == 0.01
    edited, phases = settle(replace(plan_for(tmp_path, domains, resume=True), recipe=str(recipe)))
    with pytest.raises(UserError, match=r"begun otherwise: recipe.optimizer.weight_decay: 0.01 -> 0.5. Restore"):
        agree(edited, phases)


def test_a_space_in_another_order_draws_others_and_is_refused(domains: list[str], tmp_path: Path) -> None:
    lines = ["augment.style: {choice: [none, fourier]}\n", "optimizer.head_lr_factor: {int: [1, 3]}\n"]
    agree(*settle(plan_for(tmp_path, domains, "".join(lines))))
    with pytest.raises(UserError, match=r"begun otherwise: order: .*'\]. Restore these values, or choose another"):
        agree(*settle(plan_for(tmp_path, domains, "".join(lines[::-1]), resume=True)))
    nested = "method.name: {choice: {source_only: {}, minent: {method.lambda_ent: {loguniform: [1.0e-3, 0.1]}}}}\n"
    plan = plan_for(tmp_path, domains, nested, resume=True)
    said = r"method.name: None -> choice \[source_only, minent with {method.lambda_ent: loguniform \[0.001, 0.1\]}\]"
    with pytest.raises(UserError, match=said):
        agree(*settle(replace(plan, words=tuple(word for word in plan.words if not word.startswith("method")))))


def test_what_this_machine_has_not_leaves_no_sweep_behind(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("1 GPUs a trial")

    monkeypatch.setattr(sweeping, "share_of_cluster", refuse)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "notes.txt").write_text("the user's own")
    for _ in range(2):
        with pytest.raises(UserError, match="1 GPUs a trial"):
            sweep(plan_for(tmp_path, domains, resume=True))
        assert "no sweep in" in capsys.readouterr().err
    assert (tmp_path / "sweep" / "notes.txt").exists() and not list((tmp_path / "sweep" / "trials").iterdir())


def test_a_sweep_that_was_moved_goes_on(domains: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "phases.yaml"
    recipe.write_text("phases:\n- {name: first, steps: 2}\n- {name: second, steps: 4, init_from: first}\n")
    plan = replace(plan_for(tmp_path, domains), recipe=str(recipe))
    plan = replace(plan, words=tuple(word for word in plan.words if not word.startswith("steps")))
    agree(*settle(plan))
    (tmp_path / "sweep").rename(tmp_path / "moved")
    resumed = replace(plan, out=f"{tmp_path}/moved/", resume=True)
    agree(*settle(resumed))
    with pytest.raises(UserError, match=r"otherwise: seed: 0 -> 1; recipe.phases.second.batch_size: 2 -> 1. Restore"):
        agree(*settle(replace(resumed, seed=1, words=(*resumed.words, "phases.second.batch_size=1"))))


def test_a_sweep_that_goes_on_may_choose_by_any_score_that_its_trials_have(domains: list[str], tmp_path: Path) -> None:
    agree(*settle(plan_for(tmp_path, domains)))
    on = plan_for(tmp_path, domains, resume=True)
    for choose in (("entropy",), ("information_maximisation", "augmentation_consistency"), ("target_miou",)):
        agree(*settle(replace(on, choose=choose)))
    with pytest.raises(UserError, match=r"--choose source_miou: the trials .* do not compute it. They have: ent"):
        settle(replace(on, choose=("entropy", "source_miou")))
    with pytest.raises(UserError, match=r"begun otherwise: recipe.evaluation.scores"):
        agree(*settle(replace(on, words=(*on.words, "evaluation.scores=all"))))
    # one that was begun to be chosen by one score has no aggregate to offer, and chooses by what there is
    agree(*settle(replace(plan_for(tmp_path / "b", domains), choose=("entropy",))))
    plan, phases = settle(plan_for(tmp_path / "b", domains, resume=True))
    agree(plan, phases)
    assert last_recipe(phases).evaluation.scores == ["entropy", "information_maximisation"]


def test_trials_that_have_ended_come_first(domains: list[str], tmp_path: Path) -> None:
    """What they tell again is what a scheduler compares the others with."""
    plan, phases = settle(plan_for(tmp_path, domains, num=3, scheduler="asha"))
    records = Records(plan.out)
    run = _Run(plan, phases, records, Lease(plan.out))
    listed = run._listed()
    assert listed is not None
    listed[0].status, listed[2].status, listed[2].step = "running", "stopped", 4
    again = run._listed()
    assert again is not None and [record.id for record in again] == ["0002", "0000", "0001"]
    assert [run._config(record)["trial"]["ended"] for record in again] == [4, 0, 0]


# Shares of a cluster -------------------------------------------------------------------------------------------------


def share(
    monkeypatch: pytest.MonkeyPatch, nodes: list[Mapping[str, float]], *words: str, num: int = 16, **wanted: Any
) -> tuple[int, dict[str, float]]:
    """`share_of_cluster` on a cluster of such nodes."""
    total: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            total[name] = total.get(name, 0) + amount
    monkeypatch.setattr(resources, "start_ray", lambda **_: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": dict(node)} for node in nodes])
    options = {"concurrent": 0, "cpus": None, "gpus": None, **wanted}
    return share_of_cluster(load_recipe(None, words), num, **options)


FOUR = [{"CPU": 16.0}] * 4
ONE_GPU = [{"CPU": 8.0, "GPU": 1.0}] * 2


def test_a_trial_takes_no_more_than_a_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share(monkeypatch, [{"CPU": 3.0}]) == (2, {"CPU": 1.0})
    assert share(monkeypatch, FOUR, num=3) == (3, {"CPU": 16.0})
    assert share(monkeypatch, FOUR, num=16, concurrent=2) == (2, {"CPU": 16.0})
    assert share(monkeypatch, FOUR, num=16, cpus=4) == (15, {"CPU": 4})
    assert share(monkeypatch, ONE_GPU) == (2, {"CPU": 7.0, "GPU": 1.0})
    assert share(monkeypatch, ONE_GPU, gpus=0.5) == (4, {"CPU": 3.5, "GPU": 0.5})
    # as many as run at once find room, each on one node, and a whole CPU is left
    for num, cpus in ((5, 8.0), (6, 8.0), (10, 5.33), (16, 3.75)):
        assert share(monkeypatch, FOUR, num=num) == (num, {"CPU": cpus})
    assert share(monkeypatch, [{"CPU": 64.0}, *ONE_GPU]) == (2, {"CPU": 8.0, "GPU": 1.0})
    assert share(monkeypatch, ONE_GPU, concurrent=3) == (3, {"CPU": 7.0, "GPU": 1.0})
    assert share(monkeypatch, [{"CPU": 0.0}]) == (1, {"CPU": 1.0})
    assert share(monkeypatch, ONE_GPU, "device=cpu")[1] == {"CPU": 1.0}


def test_a_cluster_that_grows_is_waited_for_by_all_trials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    head = [{"CPU": 3.0}]
    assert share(monkeypatch, head, "device=cuda") == (16, {"CPU": 1.0, "GPU": 1.0})
    assert share(monkeypatch, head, "device=cuda", cpus=4, concurrent=5) == (5, {"CPU": 4, "GPU": 1.0})
    assert share(monkeypatch, head, cpus=8) == (16, {"CPU": 8})
    capsys.readouterr()
    assert share(monkeypatch, head, "device=cuda", "workers=2", concurrent=3) == (3, {HEAD: 0.2501})
    assert not capsys.readouterr().err
    assert share(monkeypatch, head, "device=cuda", "workers=2") == (1, {HEAD: 0.5001})
    assert "2 GPUs a trial, but the cluster has 0; waiting until it has grown" in capsys.readouterr().err


def test_a_trial_computes_with_the_cpus_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone, four = load_recipe(None, []), load_recipe(None, ["workers=4"])
    assert threads_of(alone, *share(monkeypatch, FOUR, num=3)) == 16
    assert threads_of(alone, 2, {"CPU": 7.5, "GPU": 1.0}) == 7
    assert threads_of(alone, 4, {"CPU": 0.5}) == 1
    monkeypatch.setattr(resources, "num_cores", lambda: 16)
    for at_once, threads in ((1, 4), (2, 2), (3, 1), (9, 1)):  # on this machine
        assert threads_of(four, at_once, {HEAD: 0.1}) == threads
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    for wanted, threads in ((0, 1), (2, 7)):  # 64 CPUs: twelve trials with one each to read by, or two
        assert threads_of(four, *share(monkeypatch, FOUR, "workers=4", concurrent=wanted)) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(alone, 2, {"CPU": 16.0}) == threads_of(four, 2, {HEAD: 0.1}) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert threads_of(alone, 2, {"CPU": 16.0}) == 16


@pytest.mark.parametrize(
    ("job", "before", "after"),
    [
        (None, "1", "1"),
        ({"runtime_env": {"env_vars": {}}}, "1", None),
        ({"metadata": {}}, "1", None),
        ({"runtime_env": None}, "4", "4"),
        ({"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}, "1", "1"),
    ],
)
def test_the_threads_that_ray_gives_a_job_are_nobodys_wish(
    monkeypatch: pytest.MonkeyPatch, job: Any, before: str, after: str | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", before)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if job is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    forget_threads_of_ray()
    assert os.environ.get("OMP_NUM_THREADS") == after


def test_trials_with_workers_run_as_far_as_their_gpus_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    big = [{"CPU": 32.0, "GPU": 2.0}] * 2
    assert share(monkeypatch, big, "workers=2") == (2, {HEAD: 0.3334})
    assert share(monkeypatch, big, "workers=2", "device=cpu") == (16, {HEAD: 0.0589})
    assert share(monkeypatch, big, "workers=2", concurrent=3) == (3, {HEAD: 0.2501})


@pytest.mark.parametrize("at_once", [1, 2, 3, 16, 30, 64, 90])
def test_as_many_trials_with_workers_as_have_room_and_no_more(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Also of a population, whose members Tune starts as long as there are resources; Ray Train has its own there."""
    _, resources = share(monkeypatch, [{"CPU": 2.0 * at_once}], "workers=1", num=1000)
    units, of_train = round(resources[HEAD] * 10_000), 10 * (at_once + 1)
    assert at_once * units + of_train <= 10_000
    assert (10_000 - of_train) // units == at_once


def test_what_no_node_holds_is_refused_or_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"8 CPUs a trial, but the largest node has 3. Lower --cpus"):
        share(monkeypatch, [{"CPU": 3.0}], cpus=8)
    with pytest.raises(UserError, match=r"1 GPUs a trial, .* has 0. Lower --gpus or set device=cpu"):
        share(monkeypatch, [{"CPU": 3.0}], "device=cuda")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert share(monkeypatch, [{"CPU": 3.0}], "device=cuda")[1]["GPU"] == 1.0
    assert "1 GPUs a trial, but the largest node has 0; waiting until the cluster has grown" in capsys.readouterr().err
