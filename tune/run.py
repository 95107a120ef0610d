"""One trial's training, advanced from evaluation to evaluation: in a thread here, or as a process of its own.

Both kinds train in the trial's run folder and go on from its newest checkpoint, whoever was there before. Both are
a `TrialRun`: `next` trains until the next evaluation, `stop` ends what is left.
"""

import ctypes
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distuda import storage
from distuda.cluster.failures import sentence_of
from distuda.cluster.train import newest_step
from distuda.engine.loop import Stopped
from distuda.engine.run import read_rows
from distuda.errors import RunFailed, UserError
from distuda.phases import train_phases
from distuda.plan import Phase, load_phases
from distuda.recipe import Recipe
from tune.space import words_of
from tune.standby import Standby

Row = dict[str, Any]


class LostError(RunFailed):
    """The process that trained was killed from outside; another one may go on."""


@dataclass(frozen=True)
class Task:
    """What all trials of a sweep share; travels to where they run.

    Attributes:
        recipe: path of the YAML file, or None.
        words: overrides for every trial, under those of its configuration.
        cwd: where relative paths are meant from, on nodes that have it.
        threads: that each process of a trial computes with.
    """

    recipe: str | None
    words: tuple[str, ...]
    cwd: str
    threads: int = 1

    def phases(self, words: Sequence[str], folder: str) -> list[Phase]:
        """A trial's checked phases."""
        return load_phases(self.recipe, self.all_words(words, folder))

    def all_words(self, words: Sequence[str], folder: str) -> list[str]:
        """Everything that a trial overrides of the recipe."""
        return [*self.words, *words, *words_of({"out": folder, "resume": True})]


class TrialRun(Protocol):
    """A training under way."""

    def next(self) -> Row | None:
        """The next evaluation's row, its ``step`` counted over all phases; None once all is done.

        Raises:
            UserError, RunFailed: what the training ended with.
            LostError: its process was killed.
        """

    def stop(self) -> None:
        """End it; its checkpoints stay. Nothing happens where it is over."""


def total_steps(phases: Sequence[Phase]) -> int:
    """Optimiser steps of all phases that train."""
    return sum(phase.recipe.steps for phase in phases if isinstance(phase.recipe, Recipe))


def _trained(phases: Sequence[Phase]) -> list[tuple[Recipe, int]]:
    """Each phase that trains, with the steps of those before it."""
    found, before = [], 0
    for phase in phases:
        if isinstance(phase.recipe, Recipe):
            found.append((phase.recipe, before))
            before += phase.recipe.steps
    return found


def offsets(phases: Sequence[Phase]) -> dict[str, int]:
    """Run folder of each phase that trains -> steps of those before it."""
    return {str(recipe.out): before for recipe, before in _trained(phases)}


def steps_before_last(phases: Sequence[Phase]) -> int:
    """Optimiser steps of all phases that train but the last, whose evaluations decide."""
    return _trained(phases)[-1][1]


def recorded(phases: Sequence[Phase]) -> list[Row]:
    """The evaluations that lie in a trial's run folder, as its `TrialRun` gave them."""
    return [
        {**row, "step": row["step"] + before} for recipe, before in _trained(phases) for row in _evaluations(recipe)
    ]


def kept(phases: Sequence[Phase]) -> list[Row]:
    """`recorded` without those whose checkpoint is still to be written, where one is due at their step."""
    rows = []
    for recipe, before in _trained(phases):
        newest = newest_step(recipe)
        for row in _evaluations(recipe):
            due = row["step"] % recipe.checkpoint.every_steps == 0 or row["step"] == recipe.steps
            if row["step"] <= newest or not due:
                rows.append({**row, "step": row["step"] + before})
    return rows


def _evaluations(recipe: Recipe) -> list[Row]:
    return [row for row in read_rows(str(recipe.out)) if row["kind"] == "evaluation"]


class ThreadRun:
    """A training in a thread of this process, which waits at every evaluation until the next one is asked for.

    Args:
        phases: with ``workers=0``.
        threads: that torch computes with.
    """

    def __init__(self, phases: Sequence[Phase], threads: int) -> None:
        self._offsets, self._threads = offsets(phases), threads
        self._rows: queue.Queue[Row | BaseException | None] = queue.Queue()
        self._go = threading.Semaphore(0)
        self._stopping = False
        self._thread = threading.Thread(target=self._train, args=(phases,), name="distuda-trial", daemon=True)
        self._started = False

    def next(self) -> Row | None:
        """As `TrialRun.next`."""
        if not self._started:
            self._started = True
            self._thread.start()
        else:
            self._go.release()
        item = self._rows.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """As `TrialRun.stop`; the thread ends at its next evaluation at the latest."""
        self._stopping = True
        self._go.release()
        if self._started:
            self._thread.join()

    def _train(self, phases: Sequence[Phase]) -> None:
        import torch

        torch.set_num_threads(self._threads)
        try:
            train_phases(phases, self._on_evaluation)
            self._rows.put(None)
        except Stopped:
            self._rows.put(None)
        except BaseException as error:
            self._rows.put(error)

    def _on_evaluation(self, folder: str, row: Row) -> None:
        if self._stopping:
            raise Stopped
        self._rows.put({**row, "step": row["step"] + self._offsets[folder]})
        self._go.acquire()
        if self._stopping:
            raise Stopped


def standby_for(task: Task, address: str) -> Standby:
    """Where the processes of a task's trials come from, which train on the Ray cluster of this address."""
    # Ray has set the variable here too, by what this process takes of it
    environment = {**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": str(task.threads)}
    return Standby(environment, task.cwd if Path(task.cwd).is_dir() else None)


class ProcessRun:
    """A training by Ray Train workers, driven by a process of its own and followed through its metrics.jsonl.

    An evaluation is told once its checkpoint is there, which is written after the row: who is told may copy it. The
    process ends with this one, however this one ends.

    Args:
        task: whose recipe and words it takes.
        words: of the configuration.
        folder: the trial's run folder.
        standby: where processes come from; once this one trains, another one is made ready there.
    """

    PAUSE_S = 0.5

    def __init__(self, task: Task, words: Sequence[str], folder: str, standby: Standby) -> None:
        self.words = ["train", *([task.recipe] if task.recipe else []), *task.all_words(words, folder)]
        self._phases, self._folder, self._standby = task.phases(words, folder), folder, standby
        self._first_sign = storage.join(next(iter(offsets(self._phases))), "metrics.jsonl")
        self._followed = False
        self._seen = {row["step"] for row in kept(self._phases)}
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: list[Row] = []

    def next(self) -> Row | None:
        """As `TrialRun.next`."""
        process = self._process = self._process or self._start()
        while True:
            over = process.poll() is not None  # looked at before the rows: none can come between
            self._look(recorded(self._phases) if over else kept(self._phases))
            if not (over or self._followed) and storage.exists(self._first_sign):
                self._standby.prepare()
                self._followed = True
            if self._waiting:
                return self._waiting.pop(0)
            if over:
                said = self._take_log()
                self._raise_failure(process.returncode, said)
                return None
            time.sleep(self.PAUSE_S)

    def _start(self) -> "subprocess.Popen[bytes]":
        Path(self._log).parent.mkdir(parents=True, exist_ok=True)
        Path(self._log).write_bytes(b"")  # a process that ends before it writes has not the last one's words
        return self._standby.take(self.words, self._log)

    @property
    def _log(self) -> str:
        if storage.is_local(self._folder):
            return storage.join(self._folder, "console.txt")
        return os.path.join(tempfile.gettempdir(), f"distuda-trial-{os.getpid()}.txt")

    def _take_log(self) -> str:
        """What the process wrote, which then lies in the run folder wherever that is."""
        said = Path(self._log).read_bytes() if Path(self._log).exists() else b""
        if said and not storage.is_local(self._folder):
            storage.write_bytes(storage.join(self._folder, "console.txt"), said)
            Path(self._log).unlink()
        return said.decode(errors="replace")

    def _look(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row["step"] not in self._seen:
                self._seen.add(row["step"])
                self._waiting.append(row)

    def _raise_failure(self, code: int, said: str) -> None:
        if code == 0:
            return
        if code < 0:
            name = signal.Signals(-code).name
            raise LostError(f"the trial's process was killed by {name}{', often for lack of memory' * (code == -9)}")
        lines = said.strip().splitlines()
        sentence = lines[-1] if lines else f"the training ended with code {code} without a word"
        for kind in ("error: ", "failed: "):
            sentence = sentence.removeprefix(kind)
        raise UserError(sentence) if code == 2 else RunFailed(sentence)

    def stop(self) -> None:
        """As `TrialRun.stop`."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
                break
        if not storage.is_local(self._folder):
            Path(self._log).unlink(missing_ok=True)


def give_back_memory() -> None:
    """Return to the system what a training has freed; a process of many trials would otherwise only grow.

    Each training has threads of its own, and with glibc each thread's arena keeps what it once had: some 100 MB a trial
    with small images, gigabytes in a long sweep.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reason(error: BaseException) -> str:
    """A failure's root cause in one sentence."""
    if isinstance(error, UserError | RunFailed):
        return str(error).strip().splitlines()[0]
    return sentence_of(error)


def trace_of(error: BaseException) -> str:
    """The traceback as text."""
    return "".join(traceback.format_exception(error))


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The scores of an evaluation row: whatever is a number, without counts."""
    skipped = ("step", "num_images", "num_pixels")
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in skipped
    }
