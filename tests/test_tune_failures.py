"""Sweeps that lose a trial, the driver or the head; a trial that is a process of its own."""

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
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from sweeps import ROOT, SPACE, WORDS, evaluations, plan_for, trials

from distuda.engine.run import read_rows
from distuda.errors import RunFailed, UserError
from tune.plan import Plan
from tune.records import ENDED
from tune.run import LostError, ProcessRun, Task, standby_for
from tune.space_file import load_space
from tune.sweep import sweep

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("one_thread")]


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


@pytest.mark.parametrize(("victim", "scheduler"), [("driver", "none"), ("driver", "asha"), ("head", "none")])
def test_a_kill_loses_nothing_that_was_finished(
    victim: str, scheduler: str, domains: list[str], tmp_path: Path, local_ray: None
) -> None:
    import ray

    (tmp_path / "space.yaml").write_text(SPACE)
    out = tmp_path / "sweep"
    words = [*WORDS, *domains, "steps=40"]
    command = [sys.executable, "-m", "distuda", "sweep", *words, "--space", str(tmp_path / "space.yaml"), "--num", "3",
               "--concurrent", "1", "--scheduler", scheduler, "--out", str(out)]  # fmt: skip
    environment = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "3"}
    if victim == "driver":  # the other one brings a cluster of its own
        environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    shown: list[bytes] = []
    terminal, error = pty.openpty()  # a terminal has the live table
    threading.Thread(target=drain, args=(terminal, shown), daemon=True).start()
    driver = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=error)
    os.close(error)
    try:
        wait_until(
            lambda: evaluations(out / "trials" / "0001") and b"of 3 trials, 1 finished" in b"".join(shown), driver
        )
        if victim == "head":
            [head] = [p for p in psutil.Process(driver.pid).children(recursive=True) if p.name() == "gcs_server"]
            head.kill()
            assert driver.wait(timeout=60) != 0
    finally:
        driver.kill()
        driver.wait()
    before = written(out)
    assert "0000" in before and (scheduler == "asha" or "0001" not in before)
    space = load_space(str(tmp_path / "space.yaml"))
    sweep(Plan(None, tuple(words), space, str(out), num=3, concurrent=1, scheduler=scheduler, resume=True))
    assert written(out).items() >= before.items()
    ended = trials(tmp_path)
    assert [r.status for r in ended] == ["finished"] * 3 or scheduler == "asha"
    assert len(ended) == 3 and {r.status for r in ended} <= {"finished", "stopped"}
    for record in ended:
        rows = read_rows(str(out / "trials" / record.id))
        assert [r["step"] for r in rows if r["kind"] == "evaluation"] == list(range(2, record.step + 1, 2))


def test_the_process_of_a_trial_tells_its_cause_and_ends_with_its_parent(domains: list[str], tmp_path: Path) -> None:
    task = Task(None, (*WORDS, *domains, "source.uri=/nowhere"), str(tmp_path))
    with pytest.raises(UserError, match="nowhere"):
        ProcessRun(task, [], str(tmp_path / "bad"), standby_for(task, "127.0.0.1:1")).next()
    task = Task(None, (*WORDS, *domains, "steps=100000"), str(tmp_path))
    standby = standby_for(task, "local")
    long = ProcessRun(task, [], str(tmp_path / "long"), standby)
    assert long.next()
    process, waiting = long._process, standby._waiting
    assert process is not None and process.stdin is not None and process.poll() is None
    process.stdin.close()  # what the kernel does when the parent dies
    assert process.wait(timeout=20) == -signal.SIGKILL
    with pytest.raises(LostError, match="was killed by SIGKILL, often for lack of memory"):
        while long.next():
            pass
    assert waiting is not None
    waiting.kill()


def test_a_process_waits_for_the_next_trial_and_ends_by_itself(domains: list[str], tmp_path: Path) -> None:
    task = Task(None, (*WORDS, *domains, "steps=100000"), str(tmp_path))
    standby = standby_for(task, "local")
    standby.prepare()
    waiting = standby._waiting
    assert waiting is not None and waiting.poll() is None
    run = ProcessRun(task, [], str(tmp_path / "next"), standby)
    assert run.next() and run._process is waiting
    run.stop()
    assert waiting.poll() is not None
    left = standby._waiting  # made ready once the trial trained
    assert left is not None and left is not waiting and left.stdin is not None
    left.stdin.close()
    assert left.wait(timeout=120) == 0  # one that was told nothing


def status(out: Path, trial: str) -> str:
    path = out / "trials" / trial / "trial.json"
    return str(json.loads(path.read_text())["status"]) if path.exists() else ""


def written(out: Path) -> dict[str, int]:
    """Ended trials, with the time of the last word on their training."""
    ended = [folder for folder in (out / "trials").iterdir() if status(out, folder.name) in ENDED]
    return {folder.name: (folder / "metrics.jsonl").stat().st_mtime_ns for folder in ended}


def drain(terminal: int, shown: list[bytes]) -> None:
    """Keep what a process writes to its terminal, until it has ended."""
    with suppress(OSError):
        while chunk := os.read(terminal, 65536):
            shown.append(chunk)


def wait_until(done: Callable[[], Any], driver: "subprocess.Popen[bytes]", patience_s: float = 120) -> None:
    give_up_s = time.monotonic() + patience_s
    while not done():
        assert driver.poll() is None and time.monotonic() < give_up_s
        time.sleep(0.2)
