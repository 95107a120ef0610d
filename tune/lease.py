"""One driver a sweep: two that train the same trials at once would write over each other's runs.

A job goes on when the command that submitted it is killed, so whoever resumes its sweep may not know that it runs. A
driver that could give no sign of life for long, suspended or cut off from its storage, may find on waking that another
has taken its place, or had and is done; it then ends as if interrupted.
"""

import _thread
import json
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Any

from distuda import storage
from distuda.errors import UserError

BEAT_S = 15.0
"""Between two signs of life [s]."""

GONE_S = 60.0
"""Without a sign of life after which a driver is taken to be gone [s]; one that ended on this machine is at once."""


class Lease:
    """Held while a driver works on a sweep's folder; says so in ``driver.json`` there, again and again.

    Where another driver has taken it over meanwhile, the main thread is interrupted.

    Args:
        out: the sweep's folder.

    Raises:
        UserError: on entering, where another driver holds it.
    """

    def __init__(self, out: str) -> None:
        self.path = storage.join(out, "driver.json")
        self._name = uuid.uuid4().hex
        self._written_s = time.time()
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="distuda-lease", daemon=True)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its search and whom that asks when it starts; the copy, which nobody uses, has no thread."""
        return {"path": self.path}

    def __enter__(self) -> "Lease":
        if (holder := self._holder()) and (seen := _alive(holder)):
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
        if self._holder().get("name") == self._name:
            storage.remove(self.path)

    def require(self) -> None:
        """Look whether it is still held, which the beats may not have told yet.

        Raises:
            KeyboardInterrupt: another driver has taken it over.
        """
        self._look()
        if self._lost:
            raise KeyboardInterrupt

    def require_if_late(self) -> None:
        """`require` where it may be lost at all: for long no sign of life was given. Costs nothing otherwise."""
        if self._lost or self._is_late():
            self.require()

    def _beat(self) -> None:
        while not (self._lost or self._over.wait(BEAT_S)):
            with suppress(Exception):  # the storage is away; the sweep itself will say so
                self._look()
                looked_s, before_s = time.time(), self._written_s
                if not self._lost:
                    self._write()
                    if time.time() - looked_s > BEAT_S and time.time() - before_s > GONE_S:
                        storage.remove(self.path)  # it may lie over another's, who came while this was on its way
                        self._lose()
        if not self._over.is_set():
            _thread.interrupt_main()

    def _is_late(self) -> bool:
        return time.time() - self._written_s > GONE_S

    def _look(self) -> None:
        """Find out whether another driver is, or was, in this one's place."""
        if self._holder().get("name", "" if self._is_late() else self._name) != self._name:
            self._lose()

    def _lose(self) -> None:
        if not self._lost:
            print(f"another driver has taken over {os.path.dirname(self.path)!r}: this one ends",
                  file=sys.stderr, flush=True)  # fmt: skip
        self._lost = True

    def _write(self) -> None:
        now_s = time.time()
        said = {"name": self._name, "host": socket.gethostname(), "pid": os.getpid(), "time": now_s}
        storage.write_bytes(self.path, json.dumps(said).encode())
        self._written_s = now_s

    def _holder(self) -> dict[str, Any]:
        """What lies there; nothing where there is no file, or one that was cut off."""
        if not storage.exists(self.path):
            return {}
        try:
            return dict(json.loads(storage.read_bytes(self.path)))
        except ValueError:
            return {}


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
