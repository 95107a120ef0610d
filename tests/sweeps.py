"""What the tests of sweeps share: a small plan, and its trials."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from settings import TINY

from distuda.engine.run import read_rows
from tune.plan import Plan
from tune.records import Record, Records
from tune.space_file import load_space

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
