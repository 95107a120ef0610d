"""One driver a sweep: who may work on its folder, and what one does that was away."""

import json
import os
import pickle
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from sweeps import plan_for

from distuda.errors import RunFailed, UserError
from tune import lease
from tune import sweep as sweeping
from tune.lease import Lease
from tune.live import Observer
from tune.plan import agree, settle
from tune.records import Records
from tune.sweep import _Run, sweep


def test_a_sweep_has_one_driver_at_a_time(domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for(tmp_path, domains, resume=True)
    agree(*settle(plan))
    note = tmp_path / "sweep" / "driver.json"

    def left(host: str, pid: int, age_s: float) -> None:
        note.write_text(json.dumps({"host": host, "pid": pid, "time": time.time() - age_s}))

    monkeypatch.setattr(_Run, "search", lambda self: pytest.fail("it searched"))
    for host, pid in ((socket.gethostname(), os.getppid()), ("elsewhere", 1)):
        left(host, pid, 5)
        with pytest.raises(UserError, match=rf"another driver works on '.*sweep': process {pid} on {host}, seen \d"):
            sweep(plan)
    monkeypatch.setattr(_Run, "search", lambda self: None)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for host, pid, age_s in (("elsewhere", 1, 61), (socket.gethostname(), ended.pid, 1)):
        left(host, pid, age_s)
        with pytest.raises(RunFailed):  # nothing was trained
            sweep(plan)
        assert not note.exists()
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    with Lease(plan.out):
        note.unlink()
        give_up_s = time.monotonic() + 20
        while not note.exists() and time.monotonic() < give_up_s:  # it says again that it lives
            time.sleep(0.01)
        assert json.loads(note.read_text())["pid"] == os.getpid()


def test_a_driver_that_was_away_ends_where_another_has_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    note = tmp_path / "driver.json"
    other = json.dumps({"name": "another", "host": "elsewhere", "pid": 1, "time": time.time()})
    with pytest.raises(KeyboardInterrupt), Lease(str(tmp_path)):
        (tmp_path / "other.json").write_text(other)
        (tmp_path / "other.json").replace(note)
        for _ in range(400):  # the interrupt wakes no sleeper
            time.sleep(0.05)
    assert note.read_text() == other and "another driver has taken over" in capsys.readouterr().err


def test_a_driver_that_was_away_ends_where_another_has_come_and_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 60)
    with Lease(str(tmp_path)) as held:
        assert pickle.loads(pickle.dumps(held)).path == held.path  # as Tune does with a search that asks a sweep
        (tmp_path / "driver.json").unlink()
        held.require()  # it was here a moment ago: nobody may have taken it over
        monkeypatch.setattr(lease, "GONE_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            held.require()
    (tmp_path / "driver.json").write_text('{"name": "ano')  # cut off
    with Lease(str(tmp_path)) as held:
        held.require()


def test_a_sign_of_life_that_comes_too_late_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lie over that of a driver who came meanwhile, and who finds its own place free again."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    with pytest.raises(KeyboardInterrupt), Lease(str(tmp_path)) as held:
        write = held._write

        def slowly() -> None:
            time.sleep(0.5)
            write()

        monkeypatch.setattr(lease, "GONE_S", 0.2)
        monkeypatch.setattr(held, "_write", slowly)
        for _ in range(400):
            time.sleep(0.05)
    assert not (tmp_path / "driver.json").exists()


def test_a_storage_that_answers_late_takes_nobodys_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says in the end is how things are then."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    with Lease(str(tmp_path)) as held:
        monkeypatch.setattr(lease, "GONE_S", 0.2)
        look, written_s, looked = held._look, held._written_s, threading.Event()

        def slowly() -> None:
            time.sleep(0.5)
            look()
            looked.set()

        monkeypatch.setattr(held, "_look", slowly)
        assert looked.wait(20)
        give_up_s = time.monotonic() + 20
        while held._written_s == written_s and time.monotonic() < give_up_s:
            time.sleep(0.01)
        monkeypatch.setattr(held, "_look", look)
        held.require()
        assert held._written_s > written_s


def test_a_driver_that_was_away_changes_nothing_before_it_has_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 60)
    with Lease(str(tmp_path)) as held:
        records = Records(str(tmp_path), held.require_if_late)
        [record] = records.add(0, {}, 1)
        note = tmp_path / "trials" / "0000" / "trial.json"
        said = note.read_text().replace("waiting", "finished")
        note.write_text(said)  # by a driver that came and went
        (tmp_path / "driver.json").unlink()
        record.step = 4
        monkeypatch.setattr(lease, "GONE_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            records.save(record)
        record.status = "stopped"
        with pytest.raises(KeyboardInterrupt):
            records.free_checkpoints([])
    assert note.read_text() == said


def test_what_a_driver_without_its_lease_did_is_not_tidied(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, phases = settle(plan_for(tmp_path, domains, num=1))
    records = Records(plan.out)
    handler = signal.getsignal(signal.SIGINT)

    def fit() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Tune leaves its own
        for record in records:
            record.status = "finished"
        Path(plan.out, "driver.json").write_text('{"name": "another"}')

    monkeypatch.setattr(sweeping, "share_of_cluster", lambda *_, **__: (1, {"CPU": 1.0}))
    monkeypatch.setattr(_Run, "_tuner", lambda *_: type("Tuner", (), {"fit": lambda self: fit()})())
    monkeypatch.setattr(Observer, "free", lambda self: pytest.fail("another driver works there"))
    with Lease(plan.out) as held, pytest.raises(KeyboardInterrupt):
        _Run(plan, phases, records, held).search()
    assert signal.getsignal(signal.SIGINT) is handler
