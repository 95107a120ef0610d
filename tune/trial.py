"""A trial as Ray Tune sees it: a long-lived actor that trains one after another and reports each evaluation.

Weights never pass through Tune. A trial is its run folder: a lost actor, a killed driver or a lost cluster leave it as
it is, and whoever comes next goes on from its newest checkpoint. An actor that is given a trial with evaluations
behind it first reports these again, so that schedulers and searches know as much as if nothing had happened.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from distuda import storage
from distuda.engine.checkpoint import META, TRAINING, WEIGHTS
from distuda.errors import RunFailed, UserError
from distuda.plan import Phase
from distuda.recipe import Recipe, to_yaml
from tune.records import DONATED
from tune.run import (
    LostError,
    ProcessRun,
    Row,
    Task,
    ThreadRun,
    TrialRun,
    give_back_memory,
    kept,
    numbers,
    reason,
    recorded,
    standby_for,
    steps_before_last,
    total_steps,
    trace_of,
)
from tune.standby import Standby

TARGET_MIOU = "target_miou"
"""The oracle: looks at labels that nobody has."""

ADOPTED = "adopted.json"
"""File in the run folder of a member of a population: which checkpoint it took last, and as what recipe."""

DONATIONS = 4
"""Checkpoints that a trial of a population keeps for others: one may wait several decisions for its turn to take it."""


def key_of(score: str) -> str:
    """What an evaluation row calls a score that the user names."""
    return "miou" if score == TARGET_MIOU else score


class TrialActor(tune.Trainable):
    """Trains the trials it is given, one at a time.

    A trial's ``config["trial"]`` is what `sweep` says of it: ``id``, ``words``, ``configuration``, ``ended`` (the step
    of the last evaluation that counts where it is over, else 0), ``replay`` and ``donor`` (the checkpoint of another
    that an earlier sitting gave it, ``folder`` and ``step``, or None). Of each evaluation it reports its ``id``,
    ``step``, ``last_step`` (counted from where the last phase begins), ``objective`` and every score as ``score_NAME``,
    ``replayed`` where it was trained before this process began, and ``refused`` where it was to go on from another's
    checkpoint that was gone; a trial that failed reports once more, with ``failed`` as its cause and NaN for its
    objective. A process that was killed raises, so that Tune begins another.
    """

    run: TrialRun | None
    standby: Standby | None
    donor: dict[str, Any] | None
    refused: bool

    def setup(self, config: dict[str, Any], task: Task, out: str, objective: str) -> None:
        """Tune calls it once an actor."""
        self.task, self.out, self.objective = task, out, objective
        self.standby = None
        self._forget()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune calls it to give the actor another trial, or the same one another configuration."""
        self.cleanup()
        self._forget()
        return True

    def cleanup(self) -> None:
        """Tune calls it when it has seen enough."""
        if self.run:
            self.run.stop()
            self.run = None
            give_back_memory()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Where the weights lie: in the run folder. Tune asks when it pauses a trial or copies a good one."""
        donate(self.folder, self.reported)
        return {"folder": self.folder, "step": self.reported}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on from this trial's own checkpoints, or from those of one that did better."""
        if checkpoint:
            self.donor = checkpoint if checkpoint["folder"] != self.folder else None

    @property
    def trial_config(self) -> dict[str, Any]:
        """What the sweep says of the trial at hand."""
        config: dict[str, Any] = self.config["trial"]
        return config

    @property
    def folder(self) -> str:
        """The run folder of the trial at hand, by Tune's name for it: a copied configuration has another's id."""
        return storage.join(self.out, "trials", self.trial_name)

    def _forget(self) -> None:
        self.run, self.donor = None, self.trial_config["donor"]
        self.refused = False
        self.phases: list[Phase] = []
        self.replay: list[Row] = []
        self.reported = 0
        self.last: dict[str, Any] = {}

    def step(self) -> dict[str, Any]:
        """Train until the next evaluation and report it."""
        began_s = time.monotonic()
        try:
            result = self._step()
        except LostError:
            self.cleanup()
            raise
        except Exception as error:
            self.cleanup()
            if not isinstance(error, UserError | RunFailed):
                storage.write_bytes(storage.join(self.folder, "error.txt"), trace_of(error).encode())
            said = {"objective": math.nan, "done": True, "replayed": False, "failed": reason(error)}
            result = {"last_step": 0, **self.last, "step": self.reported, **said}
        self.last = result
        refused, self.refused = self.refused, False
        return {**result, "id": self.trial_name, "refused": refused, "seconds": time.monotonic() - began_s}

    def _step(self) -> dict[str, Any]:
        if not self.phases:
            self._open()
        if self.replay:
            row = self.replay.pop(0)
            # one that has not ended goes on, if only to find that nothing is left
            return self._result(row, over=not self.replay and bool(self.trial_config["ended"]), replayed=True)
        self.run = self.run or self._start()
        while (row_or_none := self.run.next()) is not None:
            if row_or_none["step"] > self.reported:
                return self._result(row_or_none, over=self._is_trained(row_or_none) and self.run.next() is None)
        # nothing is left, whatever was planned: rounds may end before the last one
        if self.last:
            return {**self.last, "total": self.last["step"], "done": True}
        if rows := recorded(self.phases):  # of a member of a population that was trained to its end before
            return {**self._result(rows[-1], over=True), "total": rows[-1]["step"]}
        raise RunFailed("the training ended without an evaluation")

    def _open(self) -> None:
        if Path(self.task.cwd).is_dir():  # Tune has moved us; relative paths are meant from where the user is
            os.chdir(self.task.cwd)
        self.phases = self.task.phases(self.trial_config["words"], self.folder)
        if self.donor and adopt(self.donor, self.phases):
            self.reported = max([self.donor["step"], *(row["step"] for row in kept(self.phases))])
        elif self.trial_config["replay"]:
            # of one that has ended the checkpoints may be gone, and a process may have trained on until it was stopped
            ended = self.trial_config["ended"]
            self.replay = [r for r in recorded(self.phases) if r["step"] <= ended] if ended else kept(self.phases)
        else:
            self.refused = bool(self.donor)
            describe(self.phases)
            self.reported = max((row["step"] for row in kept(self.phases)), default=0)

    def _start(self) -> TrialRun:
        recipe = self.phases[-1].recipe
        if recipe.workers == 0:
            return ThreadRun(self.phases, self.task.threads)
        self.standby = self.standby or standby_for(self.task, ray.get_runtime_context().gcs_address)
        return ProcessRun(self.task, self.trial_config["words"], self.folder, self.standby)

    def _is_trained(self, row: Row) -> bool:
        return bool(row["step"] >= total_steps(self.phases))

    def _result(self, row: Row, *, over: bool, replayed: bool = False) -> dict[str, Any]:
        scores = numbers(row)
        name = key_of(self.objective)
        self.reported = row["step"]
        last_step = row["step"] - steps_before_last(self.phases)
        said = {"step": row["step"], "last_step": last_step, "done": over, "replayed": replayed}
        if name not in scores:
            if last_step <= 0:  # of an early phase, which may have nothing to score
                return {**said, "objective": math.nan}
            raise UserError(f"no evaluation has the score {self.objective!r}. It has: {', '.join(scores)}.")
        named = {f"score_{key}": value for key, value in scores.items()}
        return {**said, "total": total_steps(self.phases), "objective": scores[name], **named}


def donate(folder: str, step: int) -> None:
    """Keep a copy of the checkpoint of an evaluated step where the run's own pruning does not reach it.

    The last ones that were given stay, whatever their steps: who copied a slower one gives of lower steps than before.
    """
    name, note = f"step-{step:08d}", storage.join(folder, DONATED, "order.json")
    if (parts := _parts(storage.join(folder, "checkpoints", name))) is None:
        return
    _write(parts, storage.join(folder, DONATED, name))
    before = json.loads(storage.read_bytes(note)) if storage.exists(note) else []
    order = [*(other for other in before if other != name), name]
    for old in order[:-DONATIONS]:
        storage.remove(storage.join(folder, DONATED, old))
    storage.write_bytes(note, json.dumps(order[-DONATIONS:]).encode())


def adopt(donor: dict[str, Any], phases: list[Phase]) -> bool:
    """Put another run's checkpoint in place of a run's own, and the run's new recipe beside it.

    Nothing is done where that had been done: a process that is lost later is told of the same donor again, and what
    was trained since must not go. False where the donor has given the checkpoint up: the run then goes on from its own,
    as the new recipe says.
    """
    recipe = phases[0].recipe
    assert isinstance(recipe, Recipe) and recipe.out is not None
    note = storage.join(recipe.out, ADOPTED)
    said = json.dumps({**donor, "recipe": to_yaml(recipe)}).encode()
    if storage.exists(note) and storage.read_bytes(note) == said:
        return True
    describe(phases)
    name = f"step-{donor['step']:08d}"
    given = storage.join(donor["folder"], DONATED, name)
    mine = storage.join(recipe.out, "checkpoints")
    if (parts := _parts(given)) is None:
        return False
    storage.remove(storage.join(mine, name))  # of the same step: a copy on top of it would look whole half-way
    _write(parts, storage.join(mine, name))
    for old in storage.list_folder(mine):  # not before there is the other: it must not begin anew if killed here
        if old != name:
            storage.remove(storage.join(mine, old))
    storage.remove(storage.join(recipe.out, "best.json"))
    storage.write_bytes(note, said)
    return True


def _parts(checkpoint: str) -> dict[str, bytes] | None:
    """The files of a complete checkpoint, its meta file last; None where there is none."""
    if not storage.exists(storage.join(checkpoint, META)):
        return None
    try:
        return {part: storage.read_bytes(storage.join(checkpoint, part)) for part in (WEIGHTS, TRAINING, META)}
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # removed meanwhile
            return None
        raise


def _write(parts: dict[str, bytes], to: str) -> None:
    """Write a checkpoint, its meta file last: that makes it complete."""
    for part, content in parts.items():
        storage.write_bytes(storage.join(to, part), content)


def describe(phases: list[Phase]) -> None:
    """Leave the recipe in a run folder that has another one's: the configuration has changed under way."""
    recipe = phases[0].recipe
    assert isinstance(recipe, Recipe) and recipe.out is not None
    path = storage.join(recipe.out, "recipe.yaml")
    if storage.exists(path):
        storage.write_bytes(path, to_yaml(recipe.model_copy(update={"resume": False})).encode())
