"""`distuda train`: one function for this process, for torchrun's ranks and for the workers of a Ray cluster.

All of them run the same `engine.loop.fit`. The run folder is the only truth: whoever starts in it goes on from its
newest complete checkpoint, so Ray has nothing to keep, and losing a process or a node costs the steps since then.
"""

import math
import os
import tempfile
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distuda import storage
from distuda.cluster.failures import failed, root_cause, sentence_of, told
from distuda.cluster.interrupts import keep_interrupts
from distuda.cluster.local import num_cores, require_gpus, start_ray
from distuda.cluster.watch import Watch
from distuda.data.batch import Batch
from distuda.data.dataset import Dataset
from distuda.data.order import Order
from distuda.engine.checkpoint import Checkpoints
from distuda.engine.distributed import settle_together, worker_from_environment
from distuda.engine.inputs import open_data
from distuda.engine.loop import OnEvaluation, Worker, choose_device, fit, settle
from distuda.errors import RunFailed, UserError
from distuda.recipe import Recipe

if TYPE_CHECKING:
    from ray.train import ScalingConfig

PATIENCE = 3
"""Failures in a row, without a new checkpoint between them, after which a run is given up."""

PREFLIGHT = ".preflight"
"""Folder in the run folder where driver and workers leave a mark for each other."""


def train(recipe: Recipe, on_evaluation: OnEvaluation | None = None) -> str:
    """Train as the recipe says and give the run folder.

    ``workers=0`` trains in this process, or as one rank where torchrun's variables are set. Otherwise that many Ray
    Train workers do, on this machine or on the cluster that ``RAY_ADDRESS`` names; lost workers are replaced and go
    on from the newest checkpoint for as long as there is progress between losses. Workers share a machine's cores
    evenly unless ``OMP_NUM_THREADS`` is set here. In this process, ``on_evaluation`` is told of every evaluation.

    Raises:
        UserError: a mistake in the recipe, the data or the storage, wherever it was noticed; never tried again.
        RunFailed: anything else; the trace lies in ``error.txt`` in the run folder.
    """
    require_start(recipe)
    return _train_on_ray(recipe) if recipe.workers else _train_here(recipe, on_evaluation)


def require_start(recipe: Recipe) -> None:
    """Refuse a method that goes on from a trained network where none is named."""
    if recipe.method.needs_trained_start and not recipe.init_from:
        raise UserError(
            f"method {recipe.method.name!r} goes on from a trained network. Name its run folder with init_from=RUN, or "
            "use a recipe of phases that trains it first, as recipes/feature_regression.yaml does."
        )


def _train_here(recipe: Recipe, on_evaluation: OnEvaluation | None) -> str:
    with worker_from_environment(recipe) as worker:
        recipe = settle_together(recipe, worker)
        assert recipe.out is not None
        try:
            return fit(recipe, worker, on_evaluation=on_evaluation)
        except UserError:
            raise
        except Exception as error:
            raise failed(f"training failed with {sentence_of(error)}", traceback.format_exc(), recipe.out) from error


def _train_on_ray(recipe: Recipe) -> str:
    recipe = settle(recipe)
    assert recipe.out is not None
    require_lasting(recipe.out)
    open_data(recipe)  # most mistakes show here, before anything is started
    start_ray(num_cpus=max(num_cores(), recipe.workers) + 1)
    reached, failures = newest_step(recipe), 0
    with Watch(recipe, reached) as watch:
        watch.say(
            f"training in {recipe.out} with {recipe.workers} Ray worker{'s' * (recipe.workers > 1)}; starting them"
        )
        while (error := _attempt(recipe, watch.say)) is not None:
            cause, step = root_cause(error), newest_step(recipe)
            if isinstance(cause, UserError):
                raise cause
            failures, reached = (1 if step > reached else failures + 1), max(step, reached)
            if not cause.may_pass or failures > PATIENCE:
                raise failed(cause.sentence, cause.trace, recipe.out)
            watch.say(f"{cause.sentence}. Going on from step {step}.")
    return recipe.out


def _attempt(recipe: Recipe, say: Any) -> Any:
    """Run the workers once; gives the `ray.train.TrainingFailedError` they ended with, or None."""
    from ray.train import LoggingConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from distuda.cluster.process_group import process_group

    scaling = scaling_for(recipe)
    require_gpus(scaling.total_resources.get("GPU", 0), "workers", say)
    with tempfile.TemporaryDirectory(prefix="distuda-ray-") as scratch, _preflight(recipe) as token:
        trainer = TorchTrainer(
            work,
            train_loop_config={
                "recipe": recipe,
                "token": token,
                "cwd": os.getcwd(),
                "threads": os.environ.get("OMP_NUM_THREADS"),
            },
            scaling_config=scaling,
            torch_config=process_group(recipe.workers),
            run_config=RunConfig(name=token, storage_path=scratch, logging_config=LoggingConfig(log_level="ERROR")),
        )
        try:
            with _interruptible():
                trainer.fit()
        except TrainingFailedError as error:
            return error
    return None


def work(config: dict[str, Any]) -> None:
    """What each Ray Train worker does: find its place, check the storage, `fit`."""
    from ray.train import get_context

    from distuda.data.stream import warm_up

    warm_up()
    recipe: Recipe = config["recipe"]
    context = get_context()
    with told():
        if Path(config["cwd"]).is_dir():  # Ray Train has moved us; relative paths are meant from where the user is
            os.chdir(config["cwd"])
        rank, world = context.get_world_rank(), context.get_world_size()
        # Ray sets OMP_NUM_THREADS from a worker's logical CPUs, which say nothing about cores
        torch.set_num_threads(int(config["threads"] or max(1, num_cores() // context.get_local_world_size())))
        worker = Worker(rank, world, _device(recipe, context.get_local_rank()))
        _check_shared(recipe, worker, config["token"])
        fit(recipe, worker, open_stream=_open_stream)


def _open_stream(dataset: Dataset, order: Order, **options: Any) -> Iterator[Batch]:
    """`stream_batches`, with paths made absolute: Ray's reading tasks do not live where the user is."""
    from distuda.data.stream import stream_batches

    return stream_batches(dataset.absolute(), order, **options)


def _device(recipe: Recipe, local_rank: int) -> torch.device:
    device = choose_device(recipe, local_rank)
    if device.type != "cuda":
        return device
    import ray.train.torch

    return ray.train.torch.get_device()


def scaling_for(recipe: Recipe) -> "ScalingConfig":
    """How many workers with which share of the cluster as it is now.

    A worker takes one logical CPU, or less where there are few: one is always left to Ray Data, for workers that
    wait for data on a cluster without a free CPU would wait for ever without a word.
    """
    import ray
    from ray.train import ScalingConfig

    have = ray.cluster_resources()
    use_gpu = recipe.device == "cuda" or (recipe.device == "auto" and have.get("GPU", 0) > 0)
    spare = have.get("CPU", 0) - 1
    if spare <= 0:
        raise UserError(
            "the Ray cluster has one logical CPU, and data needs one of its own. Start it with --num-cpus=2 or more."
        )
    share = min(1.0, math.floor(100 * spare / recipe.workers) / 100)
    resources = {"CPU": share} | ({"GPU": 1} if use_gpu else {})
    return ScalingConfig(num_workers=recipe.workers, use_gpu=use_gpu, resources_per_worker=resources)


def require_lasting(out: str) -> None:
    """Refuse a run folder inside the working directory that Ray makes for a job and removes after it."""
    if storage.is_local(out) and "/runtime_resources/" in str(Path(storage.filesystem(out)[1]).absolute()):
        raise UserError(
            f"out={out!r} lies in the job's own working directory, which Ray removes after the job. "
            "Give an absolute path that lasts or a URI, for example out=s3://bucket/run."
        )


@contextmanager
def _preflight(recipe: Recipe) -> Iterator[str]:
    """A fresh token that the driver has left in the run folder; its folder goes when the block ends."""
    assert recipe.out is not None
    token = uuid.uuid4().hex[:12]
    storage.write_bytes(storage.join(recipe.out, PREFLIGHT, token, "driver"), b"")
    try:
        yield token
    finally:
        storage.remove(storage.join(recipe.out, PREFLIGHT))


def _check_shared(recipe: Recipe, worker: Worker, token: str) -> None:
    """Every worker leaves a mark in the run folder and must see all others' and the driver's."""
    assert recipe.out is not None
    folder = storage.join(recipe.out, PREFLIGHT, token)
    storage.write_bytes(storage.join(folder, f"worker-{worker.rank}"), b"")
    if worker.world > 1:
        torch.distributed.barrier()
    marks = storage.list_folder(folder)
    missing = [name for name in ("driver", *(f"worker-{rank}" for rank in range(worker.world))) if name not in marks]
    if missing:
        raise UserError(
            f"out={recipe.out!r} is not one folder for all: worker {worker.rank} on {os.uname().nodename} does not see "
            f"what {missing[0]} wrote there. Give a URI or a path that all nodes share, for example out=s3://bucket/run."
        )


def newest_step(recipe: Recipe) -> int:
    """Step of the newest complete checkpoint, 0 without one."""
    assert recipe.out is not None
    newest = Checkpoints(recipe.out, recipe.checkpoint).latest()
    return int(newest.rsplit("-", 1)[1]) if newest else 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the block as `KeyboardInterrupt`, the workers stopped; Ray's handler does not outlive the block."""
    from ray.exceptions import RayActorError

    try:
        with keep_interrupts():
            yield
    except SystemExit as error:  # what Ray Train's handler raises once the workers are stopped
        raise KeyboardInterrupt from error
    except RayActorError as error:
        sentence = f"Ray's controller was lost ({str(error).splitlines()[0]})"
        raise RunFailed(f"{sentence}. Go on with resume=true.") from error
