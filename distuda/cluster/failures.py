"""What went wrong on a worker, told as one sentence, and whether trying again may help."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from distuda import storage
from distuda.errors import RunFailed, UserError

if TYPE_CHECKING:
    from ray.train import TrainingFailedError


class WorkerFailed(Exception):
    """An exception of a worker in words; unlike some exceptions themselves, it always survives the way to the driver.

    Args:
        sentence: kind and message of the exception.
        trace: its formatted traceback.
        may_pass: whether a restart may help.
    """

    def __init__(self, sentence: str, trace: str, may_pass: bool) -> None:
        super().__init__(sentence, trace, may_pass)
        self.sentence, self.trace, self.may_pass = sentence, trace, may_pass

    def __str__(self) -> str:
        return self.sentence


@contextmanager
def told() -> Iterator[None]:
    """Exceptions leave the block as `UserError` or `WorkerFailed`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise WorkerFailed(sentence_of(error), traceback.format_exc(), _may_pass(error)) from None


def sentence_of(error: BaseException) -> str:
    """Kind and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _may_pass(error: Exception) -> bool:
    """Lost peers and stumbling networks or storage may be gone next time; a mistake in the code will not be."""
    if isinstance(error, OSError | torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo", "nccl", "connection closed", "timed out")
    )


def root_cause(error: "TrainingFailedError") -> WorkerFailed | UserError:
    """The failure that explains the others: the user's mistake, then ours, then a lost process or node."""
    from ray.train import WorkerGroupError

    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    for _, failure in sorted(failures.items()):
        if isinstance(failure, UserError):
            return failure
    told_failures = [(rank, failure) for rank, failure in sorted(failures.items()) if isinstance(failure, WorkerFailed)]
    trace = "\n".join(f"rank {rank}:\n{failure.trace}" for rank, failure in told_failures)
    for rank, failure in told_failures:
        if not failure.may_pass:
            return WorkerFailed(f"worker {rank} failed with {failure.sentence}", trace, False)
    lost = [rank for rank, failure in sorted(failures.items()) if not isinstance(failure, WorkerFailed)]
    trace = f"{trace}\n{error}"
    if lost:
        ranks = " and ".join(map(str, lost))
        return WorkerFailed(
            f"worker {ranks} was lost (process or node ended without a word, often for lack of memory)", trace, True
        )
    if told_failures:
        rank, failure = told_failures[0]
        return WorkerFailed(f"worker {rank} failed with {failure.sentence}", trace, True)
    # what Ray's controller can wait out or start again it has; what it hands on will not pass
    return WorkerFailed(f"Ray could not run the workers: {str(error).strip().splitlines()[-1]}", trace, False)


def failed(sentence: str, trace: str, out: str) -> RunFailed:
    """The exception for the console; the trace goes into the run folder."""
    where = storage.join(out, "error.txt")
    storage.write_bytes(where, trace.encode())
    return RunFailed(f"{sentence}. The full trace is in {where}.")
