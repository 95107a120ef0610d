"""What a sweep keeps of its trials: one small file each, so that nothing finished is ever run again.

    SWEEP/sweep.json                    what is searched; a resumed sweep must agree
          trials/0007/trial.json        one trial, beside the run it trained (recipe.yaml, metrics.jsonl, checkpoints/)
          trials/0007-1/...             the same configuration with another seed
          results.parquet  best.yaml  sweep.html

Only the driver writes these; whoever trains writes the run.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from distuda import storage
from tune.space import Configuration, words_of

Status = Literal["waiting", "running", "finished", "stopped", "failed"]

ENDED: tuple[Status, ...] = ("finished", "stopped")
"""Trials that are not run again. A failed one is tried again when its sweep is resumed."""


@dataclass
class Record:
    """One trial.

    Attributes:
        id: name of its folder.
        number: of its configuration, from 0.
        repeat: which seed, from 0.
        configuration: what was chosen from the space.
        status: where it stands; ``stopped`` = ended early by the scheduler.
        reason: of a failed one, its root cause in one sentence.
        step: of the last evaluation, or of the checkpoint of another that it has gone on from, counted over all phases.
        seconds: spent on it, waiting for others not counted [s].
        scores: of the last evaluation.
        history: with population-based training, the configurations before: the step they ended at and what they were.
        donor: with population-based training, the trial and step of the checkpoint that it is yet to go on from.
        adopted: the last that it was given.
    """

    id: str
    number: int
    repeat: int
    configuration: Configuration
    status: Status = "waiting"
    reason: str = ""
    step: int = 0
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    history: list[tuple[int, Configuration]] = field(default_factory=list)
    donor: tuple[str, int] | None = None
    adopted: tuple[str, int] | None = None

    def words(self, seed: int) -> list[str]:
        """Overrides of this trial: its configuration and its seed."""
        return [*words_of(self.configuration), *([f"seed={seed + self.repeat}"] if self.repeat else [])]


class Records:
    """The trials of one sweep.

    Args:
        out: the sweep's folder.
        check: called before a trial's record or checkpoints are changed; raises where another driver does that.
    """

    def __init__(self, out: str, check: Callable[[], None] = lambda: None) -> None:
        self.out, self.check = out, check
        self.by_id: dict[str, Record] = {}
        for name in storage.list_folder(storage.join(out, "trials")):
            path = storage.join(self.folder(name), "trial.json")
            if storage.exists(path):
                record = self.by_id[name] = Record(**json.loads(storage.read_bytes(path)))
                record.adopted = (record.adopted[0], record.adopted[1]) if record.adopted else None  # JSON has lists

    def __iter__(self) -> Any:
        return iter(self.by_id[name] for name in sorted(self.by_id))

    def __len__(self) -> int:
        return len(self.by_id)

    def folder(self, trial: str) -> str:
        """A trial's run folder."""
        return storage.join(self.out, "trials", trial)

    def add(self, number: int, configuration: Configuration, seeds: int) -> list[Record]:
        """The records of a configuration, one a seed: those there are, or new ones."""
        found = []
        for repeat in range(seeds):
            name = f"{number:04d}" + (f"-{repeat}" if repeat else "")
            if name not in self.by_id:
                self.save(Record(name, number, repeat, configuration))
            found.append(self.by_id[name])
        return found

    def save(self, record: Record) -> None:
        """Keep a record."""
        self.check()
        self.by_id[record.id] = record
        path = storage.join(self.folder(record.id), "trial.json")
        storage.write_bytes(path, json.dumps(asdict(record), indent=1).encode())

    def ended(self) -> list[Record]:
        """Trials with a result, finished ones and those stopped early."""
        return [record for record in self if record.status in ENDED]

    def free_checkpoints(self, keep: Iterable[str]) -> None:
        """Remove the checkpoints of ended trials that are not to be kept.

        A trial that was just stopped may be writing one still; the next call removes what is left of it.
        """
        self.check()
        kept = set(keep)
        for record in self.ended():
            if record.id not in kept:
                with suppress(OSError):
                    _remove_checkpoints(self.folder(record.id))

    def free_donations(self) -> None:
        """Remove what trials kept for others of their population."""
        self.check()
        for record in self:
            storage.remove(storage.join(self.folder(record.id), DONATED))


DONATED = "donated"
"""Folder in a trial's, of checkpoints that others of its population may go on from."""


def _remove_checkpoints(folder: str) -> None:
    """Of a run, or of every phase in it."""
    storage.remove(storage.join(folder, "checkpoints"))
    if storage.exists(storage.join(folder, "phases.yaml")):
        for name in storage.list_folder(folder):
            if storage.exists(storage.join(folder, name, "checkpoints")):
                storage.remove(storage.join(folder, name, "checkpoints"))
