"""What the tests of sweeps share: a small plan, and its trials."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from settings import TINY

from distuda.engine.checkpoint import META, TRAINING, WEIGHTS
from distuda.engine.run import read_rows
from tune.plan import Plan
from tune.records import Record, Records
from tune.run import Row, Task
from tune.space_file import load_space
from tune.trial import TrialActor

ROOT = Path(__file__).parent.parent

SPACE = "optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}\n"

WORDS = [*TINY, "augment.crop=[32,32]", "evaluation.every_steps=2"]


def plan_for(folder: Path, domains: list[str], text: str = SPACE, *words: str, **options: Any) -> Plan:
    """Three trials, or all of a grid, two at once, of ``text`` in ``folder/sweep``; ``options``: fields of `Plan`."""
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(text)
    given = {"num": None if options.get("search") == "grid" else 3, "concurrent": 2, **options}
    return Plan(
        None, (*WORDS, *domains, *words), load_space(str(folder / "space.yaml")), str(folder / "sweep"), **given
    )


def trials(folder: Path) -> list[Record]:
    """The records of `plan_for`'s sweep."""
    return list(Records(str(folder / "sweep")))


def evaluations(folder: Path) -> int:
    """How many a run folder has."""
    return sum(row["kind"] == "evaluation" for row in read_rows(str(folder)))


def kill_processes(kind: str) -> int:
    """Kill the processes started from here with this in their command, and tell how many there were."""
    killed = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(kind in word for word in process.cmdline()):
                process.kill()
                killed += 1
    return killed


@contextmanager
def again_and_again(act: Callable[[], object]) -> Iterator[None]:
    """Do it every 0.2 s as long as the block runs."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(0.2):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


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
