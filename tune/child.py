"""`distuda` as the process of one trial: it ends when the one that started it does, whatever became of that."""

import os
import signal
import sys
import threading

from distuda.cli import main


def _end_with_parent() -> None:
    """The parent holds the other end of stdin and never writes; the end of the file is the end of the parent."""
    os.read(sys.stdin.fileno(), 1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    main()
