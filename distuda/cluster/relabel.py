"""A relabel phase as a Ray Data job: row groups go to a pool of actors that hold the network."""

import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distuda import storage
from distuda.cluster.failures import WorkerFailed, failed, told
from distuda.cluster.local import num_cores, quiet_data, require_gpus, start_ray
from distuda.data.dataset import Dataset
from distuda.errors import UserError
from distuda.recipe import RelabelRecipe
from distuda.relabel import RELABELS

if TYPE_CHECKING:
    from distuda.relabel.job import Worker


class Actor:
    """One of the pool.

    Args:
        options: what `distuda.relabel.job.Worker` takes.
        threads: of its arithmetic.
    """

    def __init__(self, options: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.options = options

    @cached_property
    def worker(self) -> "Worker":
        """Holds the network; made by the first call, where a mistake can be told."""
        from distuda.relabel.job import Worker

        return Worker(**self.options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Numbers of row groups to the samples each has.

        A failure is handed on as data: of an exception Ray Data brings back the text alone.
        """
        try:
            with told(), torch.inference_mode():
                counts, failure = [self.worker(int(number)) for number in batch["number"]], b""
        except (UserError, WorkerFailed) as error:
            counts, failure = [0] * len(batch["number"]), pickle.dumps(error)
        return {"count": np.asarray(counts), "failure": np.asarray([failure] * len(counts), object)}


def on_actors(recipe: RelabelRecipe, dataset: Dataset, left: Sequence[int], columns: Sequence[str]) -> Iterator[int]:
    """Relabel row groups by ``recipe.workers`` actors; gives the samples of each as it is done."""
    import ray
    import ray.data

    start_ray(num_cpus=max(num_cores(), recipe.workers) + 1)
    quiet_data()
    workers = min(recipe.workers, len(left))
    have = ray.cluster_resources()
    wants_gpu = recipe.device == "cuda" or (recipe.device == "auto" and have.get("GPU", 0) > 0)
    use_gpu = wants_gpu and RELABELS[recipe.relabel.name].needs_network
    if use_gpu:
        require_gpus(workers, "workers", lambda sentence: print(sentence, file=sys.stderr, flush=True))
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, num_cores() // workers))
    where = recipe.model_copy(update={"out": _absolute(recipe.out), "init_from": _absolute(recipe.init_from)})
    options = {"recipe": where, "dataset": dataset.absolute(), "columns": list(columns)}
    numbers = ray.data.from_items([{"number": number} for number in left], override_num_blocks=len(left))
    counts = numbers.map_batches(
        Actor, fn_constructor_args=(options, threads), batch_size=1, concurrency=workers, num_cpus=1,
        num_gpus=1 if use_gpu else None,
    )  # fmt: skip
    for row in counts.iter_rows():
        if row["failure"]:
            cause = pickle.loads(row["failure"])  # our own actor's
            if isinstance(cause, UserError):
                raise cause
            raise failed(f"relabelling failed with {cause.sentence}", cause.trace, str(recipe.out))
        yield int(row["count"])


def _absolute(uri: str | None) -> str | None:
    """Actors do not live where the user is."""
    return storage.filesystem(uri)[1] if uri is not None and storage.is_local(uri) else uri
