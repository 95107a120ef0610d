"""The same recipe in this process, under Ray and under torchrun; workers that are lost; mistakes made there."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from settings import tiny_recipe

from distuda.cluster import train as room
from distuda.cluster.failures import WorkerFailed, root_cause
from distuda.cluster.train import train
from distuda.engine.checkpoint import Checkpoints, load_tensors
from distuda.engine.loop import Session
from distuda.engine.run import read_rows
from distuda.errors import RunFailed, UserError
from distuda.recipe import Recipe

pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("one_thread")]
ROOT = Path(__file__).parent.parent
MEASURED = {"images_per_s", "data_wait_s", "memory_gib"}


@pytest.fixture(autouse=True)
def quick_to_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")  # notice sooner that workers have ended


def recipe_for(domains: list[str], out: Path, *words: str) -> Recipe:
    return tiny_recipe(*domains, f"out={out}", "augment.crop=[32,32]", "steps=4", *words)


def rows(out: Path) -> list[dict[str, Any]]:
    """What a run measured, without what depends on the machine."""
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in read_rows(str(out))]


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    assert recipe.out is not None
    return load_tensors(Checkpoints(recipe.out, recipe.checkpoint).find("last"))


def listening() -> set[str]:
    """Addresses on which this process and its descendants listen."""
    me = psutil.Process()
    found = set()
    for process in (me, *me.children(recursive=True)):
        try:
            listeners = [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            found |= {address.removeprefix("::ffff:") for address in listeners}  # IPv4 as an IPv6 socket shows it
        except psutil.NoSuchProcess:
            continue
    return found


class Watcher(threading.Thread):
    """Collects listening addresses until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.addresses: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.3):
            self.addresses |= listening()


def test_a_run_interrupted_here_goes_on_under_ray_as_if_it_had_never_left(
    domains: list[str], tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["checkpoint.every_steps=2", "resume=true"]
    here, moved = recipe_for(domains, tmp_path / "here", *words), recipe_for(domains, tmp_path / "moved", *words)
    train(here)
    advance = Session.advance

    def interrupted(self: Session, *batches: Any) -> None:
        if self.step_number == 3:
            raise KeyboardInterrupt
        advance(self, *batches)

    with monkeypatch.context() as change, pytest.raises(KeyboardInterrupt):
        change.setattr(Session, "advance", interrupted)
        train(moved)
    train(moved.model_copy(update={"workers": 1}))
    assert rows(tmp_path / "here") == rows(tmp_path / "moved")
    for name, tensor in weights(here).items():
        assert torch.equal(tensor, weights(moved)[name]), name
    assert not (tmp_path / "moved" / ".preflight").exists()


def die_once(marker: Path, step: int) -> Any:
    """A `fit` whose process is killed, once, at the given step on the last rank."""
    from distuda.engine.loop import Session, fit

    def dying_fit(recipe: Recipe, worker: Any, open_stream: Any) -> str:
        advance = Session.advance

        def fatal(self: Session, *batches: Any) -> None:
            advance(self, *batches)
            if worker.rank == worker.world - 1 and self.step_number == step and not marker.exists():
                marker.touch()
                self.checkpoints.wait()
                os.kill(os.getpid(), signal.SIGKILL)

        Session.advance = fatal  # type: ignore[method-assign]
        return fit(recipe, worker, open_stream)

    return dying_fit


def changed_work(fit: Any) -> Any:
    """`train.work` with another `fit`; sent to the workers by value."""

    def work(config: dict[str, Any]) -> None:
        from distuda.cluster import train as room

        room.fit = fit
        room.work(config)

    return work


def test_two_workers_survive_the_loss_of_one_and_listen_on_loopback_only(
    domains: list[str],
    tmp_path: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(room, "work", changed_work(die_once(tmp_path / "died", step=3)))
    watcher = Watcher()
    watcher.start()
    train(recipe_for(domains, out, "workers=2", "checkpoint.every_steps=2"))
    watcher.over.set()
    watcher.join()
    assert watcher.addresses == {"127.0.0.1"}
    assert (tmp_path / "died").exists()
    assert [(row["kind"], row["step"]) for row in rows(out)] == [
        *(("train", i) for i in (1, 2, 3, 4)),
        ("evaluation", 4),
    ]
    assert rows(out)[-1]["num_images"] == 3
    assert json.loads((out / "environment.json").read_text())["workers"] == 2
    shown = capfd.readouterr().err
    assert "Going on from step 2." in shown and "step 4/4  mIoU" in shown and "Traceback" not in shown


def test_the_users_mistake_on_a_worker_is_told_once_and_not_tried_again(
    domains: list[str], tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = tmp_path / "tries"

    def mistaken(*_: Any, **__: Any) -> str:
        with tries.open("a") as file:
            file.write("x")
        raise UserError("crop is larger than the sky. Choose a smaller one.")

    monkeypatch.setattr(room, "work", changed_work(mistaken))
    with pytest.raises(UserError, match=r"^crop is larger than the sky. Choose a smaller one.$"):
        train(recipe_for(domains, tmp_path / "run", "workers=1"))
    assert tries.read_text() == "x"


def test_our_mistake_on_a_worker_is_one_sentence_with_the_trace_in_a_file(
    domains: list[str], tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        return {}["nowhere"]  # type: ignore[no-any-return]

    monkeypatch.setattr(room, "work", changed_work(broken))
    with pytest.raises(
        RunFailed, match=r"^worker 0 failed with KeyError: 'nowhere'\. The full trace is in .*error.txt\.$"
    ):
        train(recipe_for(domains, tmp_path / "run", "workers=1"))
    assert "in broken" in (tmp_path / "run" / "error.txt").read_text()


def test_our_mistake_in_this_process_is_told_the_same_way(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise ValueError("no such thing\nsecond line")

    monkeypatch.setattr(room, "fit", broken)
    with pytest.raises(RunFailed, match=r"^training failed with ValueError: no such thing\. The full trace"):
        train(recipe_for(domains, tmp_path / "run"))
    assert "second line" in (tmp_path / "run" / "error.txt").read_text()


def test_the_cause_is_found_among_its_consequences() -> None:
    from ray.train import WorkerGroupError

    consequence = WorkerFailed("RuntimeError: connection closed by peer", "trace 0", True)
    lost = RuntimeError("the worker died")
    cause = WorkerFailed("ZeroDivisionError: division by zero", "trace 1", False)
    assert isinstance(root_cause(WorkerGroupError("", {0: consequence, 1: UserError("yours")})), UserError)
    found = root_cause(WorkerGroupError("", {0: consequence, 1: cause}))
    assert isinstance(found, WorkerFailed) and not found.may_pass and "trace 0" in found.trace
    assert found.sentence == "worker 1 failed with ZeroDivisionError: division by zero"
    found = root_cause(WorkerGroupError("", {0: consequence, 1: lost}))
    assert isinstance(found, WorkerFailed) and found.may_pass and found.sentence.startswith("worker 1 was lost")


def test_a_folder_that_is_not_shared_is_refused(domains: list[str], tmp_path: Path) -> None:
    recipe = recipe_for(domains, tmp_path / "run")
    with pytest.raises(UserError, match="does not see what driver wrote"):
        room._check_shared(recipe, room.Worker(), "token")


def test_a_run_folder_that_would_vanish_with_its_job_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside = tmp_path / "runtime_resources" / "working_dir_files" / "pkg"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with pytest.raises(UserError, match="Ray removes after the job"):
        room.require_lasting("runs/one")
    room.require_lasting(str(tmp_path / "run"))
    room.require_lasting("s3://bucket/run")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ranks_named_by_the_environment_train_together(domains: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "rank.py").write_text(
        "import sys\n"
        "from distuda.cluster.train import train\n"
        "from distuda.recipe import load_recipe\n"
        "train(load_recipe(sys.argv[1]))\n"
        "assert 'ray' not in sys.modules\n"
    )
    from distuda.recipe import to_yaml

    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_for(domains, out)))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "rank.py"), str(tmp_path / "recipe.yaml")]
    watcher = Watcher()
    watcher.start()
    ranks = [subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}) for rank in range(2)]
    try:
        assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    finally:
        watcher.over.set()
        for rank in ranks:
            rank.kill()
    assert watcher.addresses == {"127.0.0.1"}
    assert rows(out)[-1]["num_images"] == 3


def test_an_incomplete_environment_is_explained(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE=2 is set, but RANK, MASTER_ADDR, MASTER_PORT is not"):
        train(recipe_for(domains, tmp_path / "run"))
