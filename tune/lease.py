"""One driver a sweep: two that train the same trials at once would write over each other's runs.

A job goes on when the command that submitted it is killed, so whoever resumes its sweep may not know that it runs.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from distuda import storage
from distuda.errors import UserError

BEAT_S = 15.0
"""Between two signs of life [s]."""

GONE_S = 60.0
"""After which a driver of another machine is taken to be gone [s]; of one on this machine it is known at once."""


class Lease:
    """Held while a driver works on a sweep's folder; says so in ``driver.json`` there, again and again.

    Args:
        out: the sweep's folder.

    Raises:
        UserError: on entering, where another driver holds it.
    """

    def __init__(self, out: str) -> None:
        self.path = storage.join(out, "driver.json")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="distuda-lease", daemon=True)

    def __enter__(self) -> "Lease":
        if storage.exists(self.path) and (seen := _alive(json.loads(storage.read_bytes(self.path)))):
            raise UserError(
                f"another driver works on {os.path.dirname(self.path)!r}: {seen}. Wait for it, or end it "
                "(a job by `ray job stop`) and go on by --resume."
            )
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=10)  # it may hang on storage that is away
        storage.remove(self.path)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(Exception):  # the storage is away; the sweep itself will say so
                self._write()

    def _write(self) -> None:
        said = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        storage.write_bytes(self.path, json.dumps(said).encode())


def _alive(driver: dict[str, Any]) -> str:
    """Who it is and when it was last seen; nothing where it is gone, or is this process."""
    age_s = time.time() - driver["time"]
    here = driver["host"] == socket.gethostname()
    if age_s > GONE_S or (here and (driver["pid"] == os.getpid() or not _runs(driver["pid"]))):
        return ""
    return f"process {driver['pid']} on {driver['host']}, seen {max(0.0, age_s):.0f} s ago"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
