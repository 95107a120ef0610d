"""Checkpoints of a run, on any URI: written off the step's path, whole or not at all, newest and best kept.

    checkpoints/step-00000500/method.safetensors   every network, buffer and counter of the method
                              training.pt          optimisers and schedules (tensors and plain values only)
                              meta.json            step, data position, scores; written last, so it means complete

There is no random state to save: every draw is a pure function of the recipe's seed and the data position.
"""

import io
import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from distuda import storage
from distuda.engine.step import Step
from distuda.errors import UserError
from distuda.methods.method import Method
from distuda.recipe import CheckpointConfig

WEIGHTS, TRAINING, META = "method.safetensors", "training.pt", "meta.json"


class Checkpoints:
    """The checkpoints folder of one run; one writer (rank 0), any number of readers.

    Args:
        run_uri: the run folder.
        config: how many are kept and what ``best`` means.
    """

    def __init__(self, run_uri: str, config: CheckpointConfig) -> None:
        self.run_uri, self.config = run_uri, config
        self.folder = storage.join(run_uri, "checkpoints")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="distuda-checkpoint")
        self._pending: Future[None] | None = None

    def save(self, method: Method, step: Step, meta: dict[str, Any]) -> None:
        """Snapshot now, write in the background. ``meta`` has ``step``, ``history`` and ``scores``.

        An error of the previous write is raised here; two writes never overlap.
        """
        self.wait()
        weights = {
            name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in method.state_dict().items()
        }
        buffer = io.BytesIO()
        torch.save(step.state_dict(), buffer)
        self._pending = self._writer.submit(self._write, weights, buffer.getvalue(), meta)

    def wait(self) -> None:
        """Until the last write is done; raises what it raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, weights: dict[str, Tensor], training: bytes, meta: dict[str, Any]) -> None:
        folder = storage.join(self.folder, f"step-{meta['step']:08d}")
        storage.write_bytes(storage.join(folder, WEIGHTS), save_safetensors(weights))
        storage.write_bytes(storage.join(folder, TRAINING), training)
        storage.write_bytes(storage.join(folder, META), json.dumps(meta, indent=1).encode())
        self._note_best(meta)
        self._prune()

    def _note_best(self, meta: dict[str, Any]) -> None:
        """Point best.json at this checkpoint if its score is higher than the best so far."""
        score = meta["scores"].get(_score_name(self.config))
        if score is None:
            return
        path = storage.join(self.run_uri, "best.json")
        if storage.exists(path):
            before = json.loads(storage.read_bytes(path))
            if before["by"] == self.config.best_by and before["score"] >= score:
                return
        best = {"step": meta["step"], "by": self.config.best_by, "score": score}
        storage.write_bytes(path, json.dumps(best, indent=1).encode())

    def _prune(self) -> None:
        names = self._complete()
        best = self._best_step()
        for name in names[: -self.config.keep_last]:
            if int(name.split("-")[1]) != best:
                storage.remove(storage.join(self.folder, name))

    def _best_step(self) -> int | None:
        path = storage.join(self.run_uri, "best.json")
        return int(json.loads(storage.read_bytes(path))["step"]) if storage.exists(path) else None

    def _complete(self) -> list[str]:
        names = [name for name in storage.list_folder(self.folder) if name.startswith("step-")]
        return [name for name in names if storage.exists(storage.join(self.folder, name, META))]

    def latest(self) -> str | None:
        """URI of the newest complete checkpoint, or None."""
        names = self._complete()
        return storage.join(self.folder, names[-1]) if names else None

    def find(self, which: str) -> str:
        """URI of the ``last`` or ``best`` checkpoint. Raises `UserError` when there is none."""
        names = self._complete()
        if which == "best":
            names = [name for name in names if int(name.split("-")[1]) == self._best_step()]
        if not names:
            raise UserError(
                f"{self.run_uri!r} has no {which} checkpoint. Train it, or resume it with resume=true. (Of a sweep's "
                "trials only the best keep theirs: --keep.)"
            )
        return storage.join(self.folder, names[-1])


def _score_name(config: CheckpointConfig) -> str:
    return "miou" if config.best_by == "target_miou" else config.best_by


def load_tensors(checkpoint_uri: str) -> dict[str, Tensor]:
    """The method's state dict, on the CPU."""
    return load_safetensors(storage.read_bytes(storage.join(checkpoint_uri, WEIGHTS)))


def load_meta(checkpoint_uri: str) -> dict[str, Any]:
    """Step, data position and scores of a checkpoint."""
    meta: dict[str, Any] = json.loads(storage.read_bytes(storage.join(checkpoint_uri, META)))
    return meta


def restore(checkpoint_uri: str, method: Method, step: Step) -> dict[str, Any]:
    """Fill method, optimisers and schedules; gives the checkpoint's meta."""
    method.load_state_dict(load_tensors(checkpoint_uri))
    training = storage.read_bytes(storage.join(checkpoint_uri, TRAINING))
    step.load_state_dict(torch.load(io.BytesIO(training), map_location=step.device, weights_only=True))
    return load_meta(checkpoint_uri)
