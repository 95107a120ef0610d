"""Sweeps in small: searches, schedulers, failures, interruption, results."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from settings import TINY

from distuda.engine.run import read_rows
from distuda.errors import RunFailed, UserError
from distuda.plan import load_phases
from distuda.recipe import Recipe
from tune import sweep as room
from tune.charts import axis_of
from tune.records import Record, Records
from tune.report import render
from tune.results import best_yaml, ranking
from tune.run import ProcessRun, Task
from tune.space import load_space
from tune.sweep import Plan, sweep

ROOT = Path(__file__).parent.parent

SPACE = "optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}\n"
WORDS = [*TINY, "augment.crop=[32,32]", "evaluation.every_steps=2"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def plan_for(folder: Path, domains: list[str], text: str = SPACE, *words: str, **options: Any) -> Plan:
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(text)
    given = {"num": 3, "concurrent": 2, **options}
    return Plan(
        None, (*WORDS, *domains, *words), load_space(str(folder / "space.yaml")), str(folder / "sweep"), **given
    )


def trials(folder: Path) -> list[Record]:
    return list(Records(str(folder / "sweep")))


def test_random_search_trains_each_trial_and_writes_what_it_found(
    domains: list[str], tmp_path: Path, local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    text = SPACE + "method.calibrate_images: {choice: [0, 2]}\n"
    files = sweep(plan_for(tmp_path, domains, text, seeds=2, choose=("aggregate",), num=2))
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
    best = load_phases(files["best.yaml"])[0].recipe
    assert isinstance(best, Recipe) and best.out is None and best.seed == 0
    first = table["place"].index(1)
    assert best.optimizer.lr == table["optimizer.lr"][first]
    assert len([f for f in (tmp_path / "sweep" / "trials").glob("*/checkpoints")]) == 3  # the best three keep theirs
    assert "trial 0001-1  finished after step 6" in capfd.readouterr().err


def test_asha_ends_bad_trials_early_by_our_own_steps(domains: list[str], tmp_path: Path, local_ray: None) -> None:
    text = "optimizer.lr: {choice: [1.0e-3, 1.0e-9]}\n"
    sweep(plan_for(tmp_path, domains, text, search="grid", scheduler="asha", objective="entropy", concurrent=1, grace=2,
                   seeds=2))  # fmt: skip
    found = {r.id: r for r in trials(tmp_path)}
    assert found["0000"].status == "finished"
    assert [found[name].status for name in ("0001", "0001-1")] == ["stopped", "stopped"]
    assert all(found[name].step == 2 for name in ("0001", "0001-1"))
    run = tmp_path / "sweep" / "trials" / "0001"
    assert max(row["step"] for row in read_rows(str(run))) == 2  # no step was trained for nothing


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


def test_a_failed_trial_is_told_with_its_cause_and_stops_nothing(
    domains: list[str], tmp_path: Path, local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "optimizer.lr: {choice: [1.0e-3, 1.0e+30]}\n"
    files = sweep(plan_for(tmp_path, domains, text, search="grid", concurrent=1))
    good, bad = trials(tmp_path)
    assert (good.status, bad.status) == ("finished", "failed")
    assert "Lower optimizer.lr" in bad.reason and "\n" not in bad.reason
    assert f"trial 0001  failed: {bad.reason}" in capfd.readouterr().err
    assert pq.read_table(files["results.parquet"])["reason"].to_pylist() == [None, bad.reason]
    with pytest.raises(RunFailed, match=r"no trial came to an end; the first failed with: .*Lower optimizer.lr"):
        sweep(plan_for(tmp_path / "none", domains, "optimizer.lr: {choice: [1.0e+30]}\n", search="grid"))


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


@pytest.mark.parametrize("victim", ["driver", "head"])
def test_a_kill_loses_nothing_that_was_finished(
    victim: str, domains: list[str], tmp_path: Path, local_ray: None
) -> None:
    import ray

    (tmp_path / "space.yaml").write_text(SPACE)
    out = tmp_path / "sweep"
    words = [*WORDS, *domains, "steps=40"]
    command = [sys.executable, "-m", "distuda", "sweep", *words, "--space", str(tmp_path / "space.yaml"), "--num", "3",
               "--concurrent", "1", "--out", str(out)]  # fmt: skip
    environment = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "3"}
    if victim == "driver":  # the other one brings a cluster of its own
        environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    shown: list[bytes] = []
    terminal, error = pty.openpty()  # a terminal has the live table
    threading.Thread(target=drain, args=(terminal, shown), daemon=True).start()
    driver = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=error)
    os.close(error)
    try:
        wait_until(lambda: evaluations(out / "trials" / "0001") and status(out, "0000") == "finished", driver)
        if victim == "head":
            [head] = [p for p in psutil.Process(driver.pid).children(recursive=True) if p.name() == "gcs_server"]
            head.kill()
            assert driver.wait(timeout=60) != 0
    finally:
        driver.kill()
        driver.wait()
    assert b"of 3 trials, 1 finished" in b"".join(shown)
    before = (out / "trials" / "0000" / "metrics.jsonl").stat().st_mtime_ns
    reached = evaluations(out / "trials" / "0001")
    assert status(out, "0001") == "running" and reached < 20
    sweep(
        Plan(None, tuple(words), load_space(str(tmp_path / "space.yaml")), str(out), num=3, concurrent=1, resume=True)
    )
    assert [r.status for r in trials(tmp_path)] == ["finished"] * 3
    assert (out / "trials" / "0000" / "metrics.jsonl").stat().st_mtime_ns == before
    rows = read_rows(str(out / "trials" / "0001"))
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == list(range(2, 41, 2))


def test_a_folder_holds_one_sweep(domains: list[str], tmp_path: Path, local_ray: None) -> None:
    plan = plan_for(tmp_path, domains, num=1)
    sweep(plan)
    with pytest.raises(UserError, match="holds a sweep already"):
        sweep(plan)
    with pytest.raises(UserError, match="begun with another recipe"):
        sweep(replace(plan, words=(*plan.words, "batch_size=1"), resume=True))


def status(out: Path, trial: str) -> str:
    path = out / "trials" / trial / "trial.json"
    return str(json.loads(path.read_text())["status"]) if path.exists() else ""


def evaluations(folder: Path) -> int:
    return sum(row["kind"] == "evaluation" for row in read_rows(str(folder)))


def drain(terminal: int, shown: list[bytes]) -> None:
    """Keep what a process writes to its terminal, until it has ended."""
    with suppress(OSError):
        while chunk := os.read(terminal, 65536):
            shown.append(chunk)


def wait_until(done: Callable[[], Any], driver: "subprocess.Popen[bytes]", patience_s: float = 250) -> None:
    give_up_s = time.monotonic() + patience_s
    while not done():
        assert driver.poll() is None and time.monotonic() < give_up_s
        time.sleep(0.2)


def test_a_lost_worker_costs_the_steps_since_its_checkpoint(
    domains: list[str], tmp_path: Path, local_ray: None
) -> None:
    plan = plan_for(tmp_path, domains, SPACE, "steps=20", num=1)
    killed: list[int] = []

    def kill() -> None:
        folder = tmp_path / "sweep" / "trials" / "0000"
        while not evaluations(folder):
            time.sleep(0.2)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(word.startswith("ray::") and "Trainable" in word for word in process.cmdline()):
                    process.kill()
                    killed.append(process.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    sweep(plan)
    killer.join(10)
    assert killed and [r.status for r in trials(tmp_path)] == ["finished"]
    rows = read_rows(str(tmp_path / "sweep" / "trials" / "0000"))
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == list(range(2, 21, 2))


def test_a_trial_with_workers_is_a_process_of_its_own(domains: list[str], tmp_path: Path, local_ray: None) -> None:
    sweep(plan_for(tmp_path, domains, SPACE, "workers=1", num=1))
    [only] = trials(tmp_path)
    assert (only.status, only.step) == ("finished", 6)
    assert only.scores["entropy"] == read_rows(str(tmp_path / "sweep" / "trials" / "0000"))[-1]["entropy"]


def test_the_process_of_a_trial_tells_its_cause_and_ends_with_its_parent(domains: list[str], tmp_path: Path) -> None:
    task = Task(None, (*WORDS, *domains, "source.uri=/nowhere"), str(tmp_path))
    with pytest.raises(UserError, match="nowhere"):
        ProcessRun(task, [], str(tmp_path / "bad"), "127.0.0.1:1").next()
    long = ProcessRun(
        Task(None, (*WORDS, *domains, "steps=100000"), str(tmp_path)), [], str(tmp_path / "long"), "local"
    )
    assert long.next()
    process = long._process
    assert process is not None and process.stdin is not None and process.poll() is None
    process.stdin.close()  # what the kernel does when the parent dies
    assert process.wait(timeout=20) == -signal.SIGKILL


MISTAKES = {
    "space": ("optimizer.lrr: {uniform: [0, 1]}\n", {}, "unknown field 'optimizer.lrr'"),
    "objective": (SPACE, {"objective": "entropi"}, "'entropi' is no score, did you mean 'entropy'"),
    "pbt": (SPACE, {"search": "pbt", "scheduler": "asha"}, "is a scheduler itself"),
    "num": (SPACE, {"num": 0}, "--num 0 is too few"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_ray_starts(
    mistake: str, domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, options, message = MISTAKES[mistake]
    monkeypatch.setattr(room, "start_ray", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises(UserError, match=message):
        sweep(plan_for(tmp_path, domains, text, **options))
    assert not (tmp_path / "sweep").exists()


def made(tmp_path: Path, scores: list[tuple[str, float, float]]) -> Records:
    records = Records(str(tmp_path))
    for number, (ended, first, second) in enumerate(scores):
        [record] = records.add(number, {"optimizer.lr": 0.1 * (number + 1)}, 1)
        record.status, record.scores = ended, {"entropy": first, "source_miou": second}  # type: ignore[assignment]
        records.save(record)
    return records


def test_the_choice_is_by_mean_place_over_finished_trials(tmp_path: Path) -> None:
    records = made(
        tmp_path, [("finished", 0.9, 0.1), ("finished", 0.8, 0.8), ("finished", 0.1, 0.7), ("stopped", 1, 1)]
    )
    assert [one.number for one in ranking(records, ["entropy"], 1)] == [0, 1, 2]
    both = ranking(records, ["entropy", "source_miou"], 1)
    assert [(one.number, one.rank) for one in both] == [(1, 1.5), (0, 2.0), (2, 2.5)]
    assert [
        one.number for one in ranking(made(tmp_path / "b", [("stopped", 0.1, 0), ("failed", 0, 0)]), ["entropy"], 1)
    ] == [0]


def test_options_of_a_chart_are_numbers_by_size_then_words() -> None:
    axis = axis_of("x", [0.001, 1e-09, "none", 0.0008, None, 10, 9], None)
    assert [label for _, label in axis.marks()] == ["1e-09", "0.0008", "0.001", "9", "10", "none"]


def test_null_is_an_option_that_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("source.rare_class_temperature: {choice: [null, 0.05]}\n")
    records = made(tmp_path, [("finished", 0.9, 0.1), ("finished", 0.8, 0.8)])
    for record, value in zip(records, (None, 0.05), strict=True):
        record.configuration = {"source.rare_class_temperature": value}
        records.save(record)
    page = render(
        records, ranking(records, ["entropy"], 1), load_space(str(tmp_path / "space.yaml")), "entropy", ["entropy"]
    )
    assert ">null</text>" in page and ">0.05</text>" in page


def test_the_oracle_is_called_so_everywhere(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    [record] = records.add(0, {"optimizer.lr": 0.1}, 1)
    record.status, record.scores = "finished", {"miou": 0.5, "entropy": -0.1}
    records.save(record)
    ranked = ranking(records, ["target_miou"], 1)
    (tmp_path / "space.yaml").write_text(SPACE)
    page = render(records, ranked, load_space(str(tmp_path / "space.yaml")), "target_miou", ["target_miou"])
    assert "<b>Oracle.</b>" in page and "target_miou (oracle)" in page and "http" not in page.replace("http-equiv", "")
    assert best_yaml(load_phases(None, []), ["target_miou"], "s").startswith(
        "# The best configuration of s by target_miou (oracle)"
    )
