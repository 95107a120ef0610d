"""Sweeps in small: searches, schedulers, phases."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sweeps import SPACE, plan_for, trials

from distuda.engine.run import read_rows
from distuda.errors import UserError
from distuda.plan import load_phases
from distuda.recipe import Recipe
from tune.plan import Plan
from tune.sweep import sweep

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("one_thread")]


def test_random_search_trains_each_trial_and_writes_what_it_found(
    domains: list[str], tmp_path: Path, local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    text = SPACE + "method.calibrate_images: {choice: [0, 2]}\n"
    files = sweep(plan_for(tmp_path, domains, text, seeds=2, num=2))
    found = trials(tmp_path)
    assert [(r.id, r.status, r.step) for r in found] == [
        ("0000", "finished", 6), ("0000-1", "finished", 6), ("0001", "finished", 6), ("0001-1", "finished", 6)
    ]  # fmt: skip
    assert found[0].configuration == found[1].configuration != found[2].configuration
    for record in found:
        folder = tmp_path / "sweep" / "trials" / record.id
        assert [row["step"] for row in read_rows(str(folder)) if row["kind"] == "evaluation"] == [2, 4, 6]
        assert record.scores["entropy"] == read_rows(str(folder))[-1]["entropy"]
    table = pq.read_table(files["results.parquet"]).to_pydict()
    assert sorted(set(table["place"])) == [1, 2] and all(table["target_miou (oracle)"])
    assert table["chosen_by"][0].startswith("by information_maximisation, augmentation_consistency, mean place")
    assert all(table["augmentation_consistency"])
    best = load_phases(files["best.yaml"])[0].recipe
    assert isinstance(best, Recipe) and best.out is None and best.seed == 0
    first = table["place"].index(1)
    assert best.optimizer.lr == table["optimizer.lr"][first]
    assert len([f for f in (tmp_path / "sweep" / "trials").glob("*/checkpoints")]) == 3  # the best three keep theirs
    assert not list((tmp_path / "sweep" / "trials").glob("*/donated"))  # and nobody keeps a copy for others
    assert "trial 0001-1  finished after step 6" in capfd.readouterr().err


def test_asha_ends_bad_trials_early_by_our_own_steps(domains: list[str], tmp_path: Path, local_ray: None) -> None:
    text = "optimizer.lr: {choice: [1.0e-9, 1.0e-3]}\n"  # two steps at the higher rate make it less sure
    files = sweep(plan_for(tmp_path, domains, text, search="grid", scheduler="asha", objective="entropy", concurrent=1,
                           grace=2, seeds=2))  # fmt: skip
    found = {r.id: r for r in trials(tmp_path)}
    # a second seed is spent on what the first has brought to its end
    assert {name: r.status for name, r in found.items()} == {
        "0000": "finished", "0000-1": "finished", "0001": "stopped"
    }  # fmt: skip
    assert found["0001"].step == 2 and found["0001"].scores["entropy"] < evaluated(tmp_path, "0000")[0]["entropy"]
    assert pq.read_table(files["results.parquet"])["place"].to_pylist() == [1, 1, None]
    run = tmp_path / "sweep" / "trials" / "0001"
    assert max(row["step"] for row in read_rows(str(run))) == 2  # no step was trained for nothing


def evaluated(folder: Path, trial: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(str(folder / "sweep" / "trials" / trial)) if row["kind"] == "evaluation"]


def test_the_median_ends_bad_trials_and_not_the_first(domains: list[str], tmp_path: Path, local_ray: None) -> None:
    text = "optimizer.lr: {choice: [1.0e-3, 9.0e-4, 8.0e-4, 1.0e-9]}\n"
    plan = plan_for(tmp_path, domains, text, "steps=12", search="grid", scheduler="median", objective="entropy",
                    concurrent=1, grace=2)  # fmt: skip
    sweep(plan)
    found = trials(tmp_path)
    assert [r.status for r in found[:3]] == ["finished"] * 3
    assert found[3].status == "stopped" and 2 <= found[3].step < 12


def test_fields_of_phases_are_searched_and_steps_counted_over_all(
    domains: list[str], tmp_path: Path, local_ray: None
) -> None:
    recipe = tmp_path / "phases.yaml"
    recipe.write_text(
        "phases:\n- {name: first, steps: 2}\n- {name: second, steps: 4, method: {name: minent}, init_from: first}\n"
    )
    text = "phases.second.method.lambda_ent: {choice: [0.001, 0.01]}\n"
    plan = plan_for(tmp_path, domains, text, search="grid")
    words = tuple(word for word in plan.words if not word.startswith(("method", "steps")))
    files = sweep(replace(plan, recipe=str(recipe), words=words))
    found = trials(tmp_path)
    assert [(r.status, r.step) for r in found] == [("finished", 6)] * 2
    for record, value in zip(found, (0.001, 0.01), strict=True):
        run = tmp_path / "sweep" / "trials" / record.id
        assert record.scores["entropy"] == read_rows(str(run / "second"))[-1]["entropy"]
        assert record.configuration == {"phases.second.method.lambda_ent": value}
    best = load_phases(files["best.yaml"])
    assert [phase.name for phase in best] == ["first", "second"]


def test_tpe_meets_fields_as_it_goes_and_goes_on_where_it_was(
    domains: list[str], tmp_path: Path, local_ray: None
) -> None:
    text = SPACE + "method.name: {choice: {source_only: {}, minent: {method.lambda_ent: {uniform: [0.001, 0.1]}}}}\n"
    # of the words only those of no method: the option decides
    plan = plan_for(tmp_path, domains, text, search="tpe", num=4)
    plan = Plan(**{**vars(plan), "words": tuple(w for w in plan.words if not w.startswith("method"))})
    sweep(plan)
    before = [r.configuration for r in trials(tmp_path)]
    assert len(before) == 4
    for one in before:
        assert ("method.lambda_ent" in one) == (one["method.name"] == "minent")
    times = {r.id: (tmp_path / "sweep/trials" / r.id / "metrics.jsonl").stat().st_mtime_ns for r in trials(tmp_path)}
    sweep(Plan(**{**vars(plan), "num": 5, "resume": True}))
    assert [r.configuration for r in trials(tmp_path)][:4] == before and len(trials(tmp_path)) == 5
    for name, written in times.items():
        assert (tmp_path / "sweep/trials" / name / "metrics.jsonl").stat().st_mtime_ns == written


def test_a_population_goes_on_from_its_best(domains: list[str], tmp_path: Path, local_ray: None) -> None:
    text = "optimizer.lr: {loguniform: [1.0e-9, 1.0e-2]}\n"
    plan = plan_for(tmp_path, domains, text, "steps=10", search="pbt", num=4, objective="entropy", grace=2, seed=1)
    sweep(plan)
    found = trials(tmp_path)
    assert all(r.status == "finished" and r.step == 10 for r in found)
    copied = [r for r in found if r.history]
    assert copied
    for record in copied:
        folder = str(tmp_path / "sweep" / "trials" / record.id)
        recipe = load_phases(f"{folder}/recipe.yaml")[0].recipe
        assert isinstance(recipe, Recipe)
        assert recipe.optimizer.lr == record.configuration["optimizer.lr"] != record.history[-1][1]["optimizer.lr"]
        rates = {row["step"]: row["lr"] for row in read_rows(folder) if row["kind"] == "train"}
        assert rates[9] == pytest.approx(recipe.optimizer.lr * (1 - 9 / 10) ** recipe.optimizer.poly_power)


def test_a_folder_holds_one_sweep(domains: list[str], tmp_path: Path, local_ray: None) -> None:
    plan = plan_for(tmp_path, domains, num=1)
    sweep(plan)
    with pytest.raises(UserError, match="holds a sweep already"):
        sweep(plan)
    with pytest.raises(UserError, match=r"begun otherwise: recipe.batch_size: 2 -> 1"):
        sweep(replace(plan, words=(*plan.words, "batch_size=1"), resume=True))
