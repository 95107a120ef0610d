"""A sweep as it runs: a live table on a terminal, one line an event elsewhere; and the keeper of its records."""

import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune.records import ENDED, Record, Records
from tune.results import chosen_by, how_chosen, label_of, may_lead, worth_keeping
from tune.run import LostError
from tune.space import Configuration, words_of
from tune.trial import key_of

LOST = 3
"""Times a trial's process may be lost without a new evaluation before the trial counts as failed."""


class Observer(tune.Callback):
    """Tune tells it of everything; it keeps the trials' records, their checkpoints in bounds, and the user informed.

    Args:
        records: of the sweep.
        objective: what is searched by.
        choose: what decides in the end, as the user named it.
        seeds: trials a configuration.
        keep: ended trials whose checkpoints stay, the best ones.
        num: trials in all, as far as known.
    """

    ROWS = 16

    def __init__(
        self, records: Records, objective: str, choose: Sequence[str], seeds: int, keep: int, num: int
    ) -> None:
        self.records, self.objective, self.choose = records, objective, choose
        self.seeds, self.keep, self.num = seeds, keep, num
        self.live = Live(console=Console(stderr=True), refresh_per_second=2) if sys.stderr.isatty() else None
        self.began_s = time.monotonic()
        self._told: set[tuple[str, int, str]] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks when it starts; the copy, which nobody uses, has no terminal."""
        return {**self.__dict__, "live": None}

    def __enter__(self) -> "Observer":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.update(self.table())
            self.live.stop()

    def _of(self, trial: Any) -> Record:
        return self.records.by_id[str(trial)]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, goes on, or (population-based training) goes on as another configuration."""
        record = self._of(trial)
        given = trial.config["trial"]["configuration"]
        if (donor := _donor(trial, record)) and (donor, given) != (record.adopted, record.configuration):
            record.history.append((record.step, record.configuration))
            record.configuration = given
            record.donor = record.adopted = donor
            record.step = donor[1]
            self._say(record, f"goes on from another trial with {' '.join(words_of(given))}")
        elif record.status == "waiting":
            self._say(record, f"starts with {' '.join(words_of(given))}")
        if record.status not in ENDED:
            record.status, record.reason = "running", ""
            self.records.save(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An evaluation, or the end of a trial that failed."""
        record = self._of(trial)
        refused, reason = result.get("refused"), result.get("failed")
        # otherwise a resumed trial, or the process after a lost one, tells or trains again what is known
        gets_on = not reason and (result["step"] > record.step or refused)
        new = gets_on or (not reason and result["step"] == record.step and not result["replayed"])
        if gets_on:
            trial.max_failures = trial.num_failures + LOST
        if record.status in ENDED:
            return
        record.seconds += 0.0 if result["replayed"] else float(result["seconds"])
        if refused:
            self._say(record, "goes on from its own weights: the other trial's checkpoint was gone")
        if new:
            record.step, record.donor, record.scores = int(result["step"]), None, _scores(result)
            self._say(record, f"step {record.step}  {label_of(self.objective)} {result['objective']:.4f}")
        if reason:
            record.status, record.reason = "failed", reason
            self._say(record, f"failed: {reason}")
            self.records.save(record)
        elif result["done"]:  # also by the scheduler: a decision that is not saved with its result could be forgotten
            self._end(record, result)
        elif new:
            self.records.save(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended without a last result."""
        record = self._of(trial)
        if record.status == "running":
            self._end(record, trial.last_result or {})

    def _end(self, record: Record, result: dict[str, Any]) -> None:
        """It was trained, or stopped by the scheduler."""
        record.status = "finished" if result.get("step", 0) >= result.get("total", 0) else "stopped"
        self.records.save(record)
        self._say(record, f"{record.status} after step {record.step}, {record.seconds:.0f} s")
        self.free()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's actor failed once too often: it was lost, or Tune could not work with it."""
        record = self._of(trial)
        if record.status in ENDED:  # what it has trained is there, though it could not be told again
            return
        record.status, record.reason = "failed", _cause(trial)
        self.records.save(record)
        self._say(record, f"failed: {record.reason}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Every turn of Tune's loop."""
        if self.live:
            self.live.update(self.table())

    def _value(self, record: Record) -> float:
        return record.scores.get(key_of(self.objective), float("-inf"))

    def free(self) -> None:
        """Remove the checkpoints of ended trials that neither are the best nor can be, once it is known which are."""
        if best := worth_keeping(self.records, self._by(), self.objective, self.seeds, self.keep):
            self.records.free_checkpoints([*best, *may_lead(self.records, self._by(), self.seeds)])

    def _by(self) -> list[str]:
        return chosen_by(self.choose, self.objective, self.records)

    def _say(self, record: Record, text: str) -> None:
        key = (record.id, record.step, text)
        if key in self._told:
            return
        self._told.add(key)
        if not self.live:
            print(f"trial {record.id}  {text}", file=sys.stderr, flush=True)
        elif record.status == "failed":  # the table has no room for a cause
            self.live.console.print(f"trial {record.id}  {text}", markup=False, highlight=False)

    def table(self) -> Table:
        """The best trials so far and those under way."""
        counts = {status: sum(r.status == status for r in self.records) for status in ("finished", "stopped", "failed")}
        said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        minutes = (time.monotonic() - self.began_s) / 60
        title = f"{len(self.records)} of {self.num} trials, {said or 'none ended'}, {minutes:.1f} min"
        title += f"; score: {label_of(self.objective)}, chosen {how_chosen(self._by(), self.objective)}"
        table = Table(title=title, title_justify="left")
        for name in ("trial", "status", "step", "score", "s", "configuration"):
            table.add_column(name)
        rows = sorted(self.records, key=lambda r: (r.status != "running", r.status == "failed", -self._value(r)))
        for record in rows[: self.ROWS]:
            value = self._value(record)
            words = Text(record.reason or _briefly(record.configuration), no_wrap=True, overflow="ellipsis")
            table.add_row(
                record.id, record.status, str(record.step), f"{value:.4f}" if value > float("-inf") else "",
                f"{record.seconds:.0f}", words,
            )  # fmt: skip
        return table


def _scores(result: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("score_"): float(value) for name, value in result.items() if name.startswith("score_")}


def _donor(trial: Any, record: Record) -> tuple[str, int] | None:
    """The trial and step of the checkpoint that Tune has a trial go on from, where it is another's."""
    copied = getattr(trial.latest_checkpoint_result, "metrics", None) or {}
    return (copied["id"], int(copied["step"])) if copied.get("id", record.id) != record.id else None


def _cause(trial: Any) -> str:
    """What Tune wrote down of an actor's last failure, in one sentence: the exception, not the advice below it."""
    path = trial.error_file
    text = Path(path).read_text(errors="replace") if path and Path(path).exists() else ""
    lines = text.rpartition("Failure # ")[2].strip().splitlines()
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Failed)\b", line)]
    if lost := [line for line in named if f"{LostError.__name__}: " in line]:
        return f"again and again {lost[-1].partition(f'{LostError.__name__}: ')[2]}"
    raised = [line for line in named if "ActorDiedError" not in line]
    died = named or not lines or any("died" in line for line in lines)  # Ray also says so of one that never began
    if not raised and died:
        return "its process was lost again and again, often for lack of memory"
    return f"its process failed again and again: {(raised or lines)[-1].strip()}"


def _briefly(configuration: Configuration) -> str:
    """Its words with the last part of each field's name and three digits of numbers: a line of a table is short."""
    rounded = {name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in configuration.items()}
    named = (word.split("=", 1) for word in words_of(rounded))
    return " ".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in named)
