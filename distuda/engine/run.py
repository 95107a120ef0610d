"""A run's folder: what it holds, and how a finished or interrupted run is opened again.

recipe.yaml  environment.json  classes.json  metrics.jsonl  checkpoints/step-00000500/...  best.json
evaluation-last.json  report.html  model.onnx
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distuda import __version__, storage
from distuda.data.labels import ClassTable
from distuda.engine.checkpoint import Checkpoints, load_tensors
from distuda.errors import UserError
from distuda.methods import METHODS, Context
from distuda.methods.method import Method
from distuda.models import build_model
from distuda.models.segmenter import Segmenter
from distuda.plan import phase_folders
from distuda.recipe import Recipe, load_recipe


@dataclass
class Run:
    """An opened run.

    Attributes:
        uri: its folder.
        recipe: as resolved when it started.
        table: the class table it was trained with.
        predictor: the adapted network, in evaluation mode, on the CPU.
        step: of the opened checkpoint.
    """

    uri: str
    recipe: Recipe
    table: ClassTable
    predictor: Segmenter
    step: int

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: `kind` is ``train`` or ``evaluation``, `step` counts optimiser steps."""
        return read_rows(self.uri)


def read_rows(uri: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first; empty when there are none yet."""
    path = storage.join(uri, "metrics.jsonl")
    if not storage.exists(path):
        return []
    return [json.loads(line) for line in storage.read_bytes(path).decode().splitlines() if line]


def final_loss(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean training loss of the last quarter of a run's logged rows; None where nothing is logged."""
    losses = [float(row["loss"]) for row in rows if row["kind"] == "train"]
    last = losses[-max(1, len(losses) // 4) :]
    return sum(last) / len(last) if last else None


def build_method(recipe: Recipe, table: ClassTable, class_frequency_src: torch.Tensor) -> Method:
    """The recipe's method with its networks at their starting weights, on the CPU."""
    model = build_model(recipe.model, table.num_classes, recipe.seed)
    if recipe.init_from:
        start = open_run(recipe.init_from)
        try:
            model.load_state_dict(start.predictor.core().state_dict())
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip().split(",")[0]
            raise UserError(
                f"init_from={recipe.init_from!r} holds another network than model.name={recipe.model.name!r} with "
                f"{table.num_classes} classes: {first}. Choose a run of the same model."
            ) from error
    views = recipe.augment
    context = Context(
        table.num_classes, class_frequency_src, views.photometry, views.photometry_labelled, views.flip, table
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)  # discriminators, drawn apart from the network
        method: Method = METHODS[recipe.method.name](recipe.method, model, context)
    return method


def open_run(uri: str, which: str = "last") -> Run:
    """A run by its folder.

    Args:
        uri: run folder.
        which: ``last`` or ``best`` (by the recipe's ``checkpoint.best_by``).

    Raises:
        UserError: no run there, or no checkpoint yet.
    """
    if not storage.exists(storage.join(uri, "recipe.yaml")):
        if folders := phase_folders(uri):
            raise UserError(f"{uri!r} holds phases. Give the run folder of one: {', '.join(reversed(folders))}.")
        raise UserError(
            f"{uri!r} is not a run folder: it has no recipe.yaml. Give the folder that `distuda train` printed."
        )
    recipe = load_recipe(storage.join(uri, "recipe.yaml"))
    table = ClassTable.from_json(json.loads(storage.read_bytes(storage.join(uri, "classes.json"))))
    checkpoint = Checkpoints(uri, recipe.checkpoint).find(which)
    neutral = recipe.model_copy(
        update={"init_from": None, "model": recipe.model.model_copy(update={"weights": "none"})}
    )
    method = build_method(neutral, table, torch.full((table.num_classes,), 1 / table.num_classes))
    method.load_state_dict(load_tensors(checkpoint))
    return Run(uri, recipe, table, method.predictor().eval(), int(method.step))


def environment(recipe: Recipe) -> dict[str, Any]:
    """What a run should remember of where it ran."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "distuda": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git": git.stdout.strip() or None,
        "seed": recipe.seed,
    }


def _cpu_name() -> str:
    """The CPU's model where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
