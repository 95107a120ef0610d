"""The training loop. It knows nothing of Ray, of files' layouts or of any particular method."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distuda import storage
from distuda.data.augment import RareClassFocus, region_size
from distuda.data.batch import Batch
from distuda.data.dataset import Dataset
from distuda.data.order import Order
from distuda.data.reader import iterate_once, read_batches
from distuda.data.tolerance import STRICT, Tolerance
from distuda.engine.calibrate import calibrate, calibration_images
from distuda.engine.checkpoint import Checkpoints, restore
from distuda.engine.evaluate import evaluate
from distuda.engine.inputs import Data, doubts, open_data
from distuda.engine.log import Console, Means, MetricsLog, TensorBoard, memory_gib, warn
from distuda.engine.run import build_method, environment
from distuda.engine.step import Step, sync_buffers
from distuda.errors import UserError
from distuda.methods.method import Method
from distuda.recipe import Domain, Recipe, RelabelRecipe, Source, to_yaml
from distuda.resume import changes

OpenStream = Callable[..., Iterator[Batch]]

OnEvaluation = Callable[[str, dict[str, Any]], None]
"""Told a run folder and each of its evaluation rows, after a checkpoint that is due; may raise `Stopped`."""


class Stopped(BaseException):
    """Raised by who is told of evaluations and has seen enough; no failure, so no ``except Exception`` takes it."""


@dataclass
class Worker:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0


def choose_device(recipe: Recipe | RelabelRecipe, local_rank: int = 0) -> torch.device:
    """The recipe's device; `auto` takes CUDA where there is one."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device='cuda', but torch sees no CUDA device here. Use device=auto, or install a CUDA build of torch."
        )
    use_cuda = recipe.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")


def settle(recipe: Recipe) -> Recipe:
    """The recipe with its run folder decided, and refused where that folder holds another run.

    Raises:
        UserError: the folder is taken and ``resume`` is off, or the run there has checkpoints of a different recipe.
    """
    if recipe.out is None:
        out = f"runs/{recipe.method.name}-{datetime.now():%Y%m%d-%H%M%S}"
        recipe = recipe.model_copy(update={"out": out})
    assert recipe.out is not None
    existing = storage.join(recipe.out, "recipe.yaml")
    if not storage.exists(existing):
        return recipe
    if not recipe.resume:
        raise UserError(
            f"out={recipe.out!r} holds a run already. Add resume=true to go on with it, or choose another folder."
        )
    if Checkpoints(recipe.out, recipe.checkpoint).latest() is None:
        return recipe  # stopped before its first checkpoint: it begins anew, so nothing binds it to its old recipe
    if different := changes(storage.read_bytes(existing).decode(), recipe):
        raise UserError(
            f"cannot resume {recipe.out!r} with a different recipe: {'; '.join(different)}. "
            "Restore these values, or start a new run with another `out` and init_from."
        )
    return recipe


def fit(
    recipe: Recipe,
    worker: Worker | None = None,
    open_stream: OpenStream = read_batches,
    on_evaluation: OnEvaluation | None = None,
) -> str:
    """Train as the recipe says, from the last checkpoint if there is one; gives the run folder.

    Args:
        recipe: settled (`settle`), the same on every rank.
        worker: this process; alone on the recipe's device by default.
        open_stream: `reader.read_batches` in process, `stream.stream_batches` under Ray.
        on_evaluation: told of each evaluation; of a run with several ranks none is.
    """
    worker = worker or Worker(device=choose_device(recipe))
    data = open_data(recipe)
    frequency = torch.tensor(data.source.class_frequencies(), dtype=torch.float32)
    method = build_method(recipe, data.source.table, frequency).to(worker.device).train()
    with Session(recipe, worker, data, method) as session:
        session.resume()
        streams = session.streams(open_stream)
        while session.step_number < recipe.steps:
            session.advance(streams)
            if session.due(recipe.log_every_steps):
                session.log()
            if session.due(recipe.evaluation.every_steps):
                session.evaluate()
            if session.due(recipe.checkpoint.every_steps):
                session.save()
            if on_evaluation and session.scored_step == session.step_number:
                session.checkpoints.wait()
                on_evaluation(session.out, session.row)
    assert recipe.out is not None
    return recipe.out


def _rare_classes(domain: Source, dataset: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """`Dataset.rare_class_weights` of the source, where it is sampled so."""
    if domain.rare_class_temperature is None:
        return None
    return dataset.rare_class_weights(domain.rare_class_temperature, domain.rare_class_min_pixels)


class Session:
    """What lives as long as one call of `fit`: counters, logs, streams and checkpoints."""

    def __init__(self, recipe: Recipe, worker: Worker, data: Data, method: Method) -> None:
        assert recipe.out is not None
        self.recipe, self.worker, self.data, self.method, self.out = recipe, worker, data, method, recipe.out
        self.rare = _rare_classes(recipe.source, data.source)
        focus = None
        if self.rare is not None:
            weight_C = torch.tensor(self.rare[1], dtype=torch.float32, device=worker.device)
            source = recipe.source
            focus = RareClassFocus(weight_C, source.rare_class_min_pixels, source.rare_class_crop_pixels)
        self.step = Step(method, recipe, worker.device, focus)
        self.checkpoints = Checkpoints(self.out, recipe.checkpoint)
        self.step_number = self.first_step = 0
        self.scored_step = -1
        self.orders: dict[str, Order] = {}
        self.histories: dict[str, Any] = {"source": (), "target": ()}
        self.tolerances = {name: self._tolerance(name) for name in ("source", "target")}
        self.scores: dict[str, Any] = {}
        self.row: dict[str, Any] = {}
        self.calibration: list[Tensor] | None = None
        self.scalars: dict[str, Tensor] = {}
        self.means = Means()
        self._closing = ExitStack()
        self._wait_s, self._clock_s, self._clock_step = 0.0, time.monotonic(), 0

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def _tolerance(self, name: str) -> Tolerance:
        """How many bad samples of a domain are passed over, listed in the run folder by the rank that met them."""
        domain: Domain = getattr(self.recipe, name)
        listed = storage.join(self.out, f"bad_samples-{name}-{self.worker.rank}.jsonl")
        return Tolerance(len(getattr(self.data, name) or ()), domain.max_bad_share, listed)

    def resume(self) -> None:
        """Go on from the newest checkpoint, or lay out a new run folder; then open the logs."""
        checkpoint = self.checkpoints.latest()
        if checkpoint:
            meta = restore(checkpoint, self.method, self.step)
            self.step_number = self.first_step = self._clock_step = meta["step"]
            self.histories = meta["history"]
        if self.worker.leads:
            self._describe_run()
            self.log_file = MetricsLog(self.out, self.first_step)
            self.tensorboard = TensorBoard(self.out) if self.recipe.tensorboard else None
            for sentence in doubts(self.recipe, self.data):
                warn(sentence)
            title = f"{self.recipe.method.name}"
            self.console = Console(title, self.recipe.steps, self.first_step)
            self._closing.callback(self.log_file.flush)
            self._closing.callback(self.console.close)
        self._closing.callback(self.checkpoints.wait)

    def _describe_run(self) -> None:
        recipe = self.recipe.model_copy(update={"resume": False})
        table = self.data.source.table
        for name, text in (
            ("classes.json", json.dumps(table.to_json(), indent=1)),
            ("environment.json", json.dumps(environment(recipe) | {"workers": self.worker.world}, indent=1)),
            ("recipe.yaml", to_yaml(recipe)),  # last: it makes the folder a run
        ):
            storage.write_bytes(storage.join(self.out, name), text.encode())

    def streams(self, open_stream: OpenStream) -> dict[str, Iterator[Batch]]:
        """Endless batches of the domains that training reads, from where the checkpoint left them."""
        return {name: self._stream(name, open_stream) for name in self.recipe.reads}

    def _stream(self, name: str, open_stream: OpenStream) -> Iterator[Batch]:
        domain: Domain = getattr(self.recipe, name)
        dataset: Dataset = getattr(self.data, name)
        rare = name == "source" and self.rare is not None
        # with rare classes the step looks for a crop with one, so it needs the whole image
        region = None if rare else region_size(self.recipe.augment)
        columns = self.recipe.reads[name]
        if name == "source":
            columns += tuple(column for column in self.recipe.method.reads_if_there if dataset.holds(column))
        num_frames = self.recipe.method.num_frames.get(name, 1)
        self.orders[name] = Order(
            dataset.rows_per_group, seed=self.recipe.seed, domain=name, rank=self.worker.rank, world=self.worker.world,
            window=domain.window, history=self.histories[name],
            weights=self._weights(name, dataset, columns, num_frames),
        )  # fmt: skip
        stream = open_stream(
            dataset, self.orders[name], batch_size=self.recipe.batch_size, size=domain.size,
            region=region, columns=columns, num_frames=num_frames, tolerance=self.tolerances[name],
        )  # fmt: skip
        return self._closing.enter_context(closing(stream))  # type: ignore[type-var]

    def _weights(
        self, name: str, dataset: Dataset, columns: Sequence[str], num_frames: int
    ) -> NDArray[np.float64] | None:
        """How often to draw each sample of a domain, (N,); None where all come equally often."""
        weights = self.rare[0] if name == "source" and self.rare is not None else None
        if "pair" in columns and dataset.manifest.num_pairs < len(dataset):
            weights = dataset.pair_weights()
        labelled = "label" in columns
        if num_frames == 1 and (dataset.labelled or not labelled):
            return weights
        ends = dataset.clip_weights(num_frames, labelled=labelled)
        if weights is None:
            return ends
        if name == "source" and self.rare is not None and not (weights * ends).any():
            least = self.recipe.source.rare_class_min_pixels
            raise UserError(
                f"no frame of {dataset.uri!r} with {num_frames - 1} before it has more than "
                f"source.rare_class_min_pixels={least} pixels of any class. Lower that, or set "
                "source.rare_class_temperature=none."
            )
        return weights * ends

    def advance(self, streams: Mapping[str, Iterator[Batch]]) -> None:
        """One step; the time spent waiting for data is counted apart."""
        asked_s = time.monotonic()
        batches = {name: next(stream) for name, stream in streams.items()}
        self._wait_s += time.monotonic() - asked_s
        self.scalars = self.step(**batches)
        self.means.add(self.scalars)
        self.step_number += 1
        self.scores = {}  # those of other weights; a checkpoint is judged by its own
        if self.worker.leads:
            self.console.step(self.step_number)

    def due(self, every_steps: int) -> bool:
        """Whether something that happens every so many steps, and after the last one, happens now."""
        return self.step_number % every_steps == 0 or self.step_number == self.recipe.steps

    def log(self) -> None:
        """Write a training row, means since the one before. This is where the host waits for the device."""
        values = self._finite(self.means.take())
        now_s, steps = time.monotonic(), max(1, self.step_number - self._clock_step)
        images = len(self.recipe.reads) * self.recipe.batch_size * self.worker.world * steps
        row = {"kind": "train", "step": self.step_number, **values, "lr": self.step.optimizers[0].param_groups[0]["lr"]}
        row |= {"images_per_s": images / (now_s - self._clock_s), "data_wait_s": self._wait_s / steps}
        row |= {"memory_gib": memory_gib(self.worker.device)}
        if bad := sum(map(len, self.tolerances.values())):
            row["bad_samples"] = bad
        self._wait_s, self._clock_s, self._clock_step = 0.0, now_s, self.step_number
        if self.worker.leads:
            self._add(row)
            self.console.train(row)

    def _finite(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Losses and metrics; refuses to go on with a run that diverged."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise RuntimeError(
                f"{', '.join(bad)} became {values[bad[0]]} by step {self.step_number}. Lower optimizer.lr, set "
                "optimizer.clip_norm=1, or use precision=fp32."
            )
        return values

    def _require_finite_weights(self) -> None:
        """A loss says what the weights were before the step; the step itself may have ruined them."""
        names, parameters = zip(*self.method.named_parameters(), strict=True)
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters]).tolist()
        if bad := [name for name, good in zip(names, finite, strict=True) if not good]:
            raise RuntimeError(
                f"{len(bad)} of {len(names)} weights became infinite or nan in step {self.step_number} ({bad[0]}). "
                "Go on from the checkpoint before with resume=true and a lower optimizer.lr or optimizer.clip_norm=1."
            )

    def settle_statistics(self) -> None:
        """Batch-norm statistics fit to be evaluated or kept: equal on all ranks, and the target's where asked."""
        sync_buffers(self.method)
        num = self.recipe.method.calibrate_images
        if not num:
            return
        assert self.data.target is not None
        if self.calibration is None:  # every rank takes the same images, so no rank count changes the result
            self.calibration = calibration_images(
                self.data.target, num, self.recipe.evaluation.size, self.tolerances["target"]
            )
        calibrate(self.method.predictor(), self.calibration, bf16=self.recipe.precision == "bf16")

    def evaluate(self) -> None:
        """Score the predictor on the evaluation set, all ranks together."""
        self.settle_statistics()
        recipe, worker = self.recipe, self.worker
        samples = iterate_once(
            self.data.evaluation,
            rank=worker.rank,
            world=worker.world,
            size=recipe.evaluation.size,
            limit=recipe.evaluation.limit,
            tolerance=STRICT if recipe.evaluation.uri else self.tolerances["target" if self.data.target else "source"],
        )
        if not recipe.evaluation.uri:  # the images' own labels, if they have any, are not looked at
            samples = (replace(batch, label_BHW=None) for batch in samples)
        opened = self.data.source_scores
        scores = evaluate(
            self.method.predictor(),
            samples,
            self.data.source.table,
            scores=recipe.evaluation.scores,
            source=opened.side(self.tolerances["source"], rank=worker.rank, world=worker.world) if opened else None,
            bf16=recipe.precision == "bf16",
        )
        self.scores, self.scored_step = scores, self.step_number
        self.row = {"kind": "evaluation", "step": self.step_number, **scores}
        if worker.leads:
            self._add(self.row)
            self.console.evaluation(self.row)
            self.log_file.flush()
        self._clock_s, self._clock_step = time.monotonic(), self.step_number

    def save(self) -> None:
        """Snapshot for a checkpoint; rank 0 writes it in the background."""
        # every resume would start from a diverged checkpoint
        self._finite({name: float(value) for name, value in self.scalars.items()})
        self._require_finite_weights()
        if self.scored_step != self.step_number:
            self.settle_statistics()
        if self.worker.leads:
            self.log_file.flush()  # a resumed run drops no row up to its checkpoint
            samples = (self.step_number - self.first_step) * self.recipe.batch_size
            history = {name: order.history_after(samples) for name, order in self.orders.items()}
            meta = {"step": self.step_number, "history": history, "scores": self.scores}
            self.checkpoints.save(self.method, self.step, meta)

    def _add(self, row: dict[str, Any]) -> None:
        self.log_file.add(row)
        if self.tensorboard:
            self.tensorboard.add(row)
