"""The process of one trial: imports what a training needs, waits to be told which, and is `distuda` from then on.

Its standard input is held by the one that started it: one line says what to train and where its words go, and the end
of it is that one's end, whatever became of it, which ends this process too.
"""

import json
import os
import signal
import sys
import threading
from contextlib import suppress


def _warm_up() -> None:
    """Import what every training needs; where that fails, the training will say why."""
    with suppress(Exception):
        import ray.data
        import ray.train.torch  # noqa: F401

        import distuda.cluster.train
        import distuda.data.stream
        import distuda.phases  # noqa: F401


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _train() -> None:
    _warm_up()
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as unbuffered:  # takes along nothing after the line
        told = unbuffered.readline()
    if not told:
        return
    words = json.loads(told)
    with open(words["log"], "wb") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv[1:] = words["words"]
    from distuda.cli import main

    main()


if __name__ == "__main__":
    _train()
