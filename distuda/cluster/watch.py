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
        self.out, self.recipe, self.done = recipe.out, recipe, done
        self.console: Console | None = None  # comes once the workers are up, so that its ETA does not count their start
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
        if self.console:
            self.console.close()

    def say(self, line: str) -> None:
        """A line of text, above the bar where there is one."""
        if self.console and self.console.live:
            self.console.bar.console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _follow(self) -> None:
        over = False
        while not over:
            over = self._over.wait(self._pause_s)
            try:
                alive = self.console is not None or storage.exists(storage.join(self.out, "recipe.yaml"))
                rows = read_rows(self.out) if alive else []
            except Exception:  # storage that stumbles is the workers' business; here it only costs one look
                continue
            if alive:
                self.console = self.console or Console(self.recipe.method.name, self.recipe.steps, self.done)
                self._show(self.console, [row for row in rows if _identity(row) not in self._seen])

    def _show(self, console: Console, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._seen.add(_identity(row))
            console.step(row["step"])
            (console.train if row["kind"] == "train" else console.evaluation)(row)


def _identity(row: dict[str, Any]) -> tuple[str, int]:
    return row["kind"], row["step"]
