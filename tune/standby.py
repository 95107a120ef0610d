"""A process that waits for the next trial, so that a free slot waits for no imports."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence


class Standby:
    """Processes of trials (`child`), at most one of them waiting.

    Args:
        environment: of each.
        cwd: where each begins; None = here.
    """

    def __init__(self, environment: Mapping[str, str], cwd: str | None) -> None:
        self._environment, self._cwd = dict(environment), cwd
        self._waiting: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Have one wait for `take`."""
        if self._waiting is None or self._waiting.poll() is not None:
            self._waiting = self._begin()

    def take(self, words: Sequence[str], log: str) -> "subprocess.Popen[bytes]":
        """Tell the waiting one, or a new one, to be `distuda` with these words and to write to this file."""
        process, self._waiting = self._waiting or self._begin(), None
        line = json.dumps({"words": list(words), "log": log}).encode() + b"\n"
        try:
            _tell(process, line)
        except BrokenPipeError:  # the waiting one was killed meanwhile
            _tell(process := self._begin(), line)
        return process

    def _begin(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tune.child"], stdin=subprocess.PIPE, env=self._environment, cwd=self._cwd,
            start_new_session=True,
        )  # fmt: skip


def _tell(process: "subprocess.Popen[bytes]", line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.flush()
