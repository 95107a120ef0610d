"""A run that computes elsewhere, seen from this terminal: its metrics.jsonl is followed and shown as if it ran here."""

import sys
import threading
from typing import Any

from distuda import storage
from distuda.engine.log import Console
from distuda.engine.run import read_rows
from distuda.recipe import Recipe


class Watch:
    """Progress of a run for as long as the block lasts; needs nothing of the workers but the run folder.

    Args:
        recipe: settled.
        done: steps already behind the run.
    """

    def __init__(self, recipe: Recipe, done: int) -> None:
        assert recipe.out is not None
        self.out = recipe.out
        self.console = Console(recipe.method.name, recipe.steps, done)  # type: ignore[attr-defined]
        self._seen = {_identity(row) for row in read_rows(self.out)} if done else set()
        self._pause_s = 1.0 if storage.is_local(self.out) else 5.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="distuda-watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.console.close()

    def say(self, line: str) -> None:
        """A line of text, above the bar where there is one."""
        if self.console.live:
            self.console.bar.console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _follow(self) -> None:
        over = False
        while not over:
            over = self._over.wait(self._pause_s)
            try:
                rows = read_rows(self.out)
            except Exception:  # storage that stumbles is the workers' business; here it only costs one look
                continue
            self._show(row for row in rows if _identity(row) not in self._seen)

    def _show(self, rows: Any) -> None:
        for row in rows:
            self._seen.add(_identity(row))
            self.console.step(row["step"])
            (self.console.train if row["kind"] == "train" else self.console.evaluation)(row)


def _identity(row: dict[str, Any]) -> tuple[str, int]:
    return row["kind"], row["step"]
