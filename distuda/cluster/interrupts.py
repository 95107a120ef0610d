"""Ctrl-C after Ray: its trainers and tuners put handlers of their own in place and leave them there."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keep_interrupts() -> Iterator[None]:
    """After the block SIGINT is handled as before it. Nothing to do in other threads, whose handlers nobody can set."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
