"""One optimiser step: autocast, accumulation, clipping, all optimisers. Nothing in it waits for the device."""

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from distuda import draws
from distuda.data.augment import RareClassFocus, geometry
from distuda.data.batch import Batch
from distuda.data.style import restyled
from distuda.engine.schedule import build_optimizers, build_schedules
from distuda.methods.method import Method
from distuda.recipe import Recipe


class Step:
    """Everything one call needs: method, optimisers, schedules.

    Args:
        method: on its device; wrapped in DDP here when a process group is up.
        recipe: precision, accumulation, clipping, augmentation, optimiser.
        device: where the batches go.
        focus: with rare-class sampling, which source crops are good enough.
    """

    def __init__(
        self, method: Method, recipe: Recipe, device: torch.device, focus: RareClassFocus | None = None
    ) -> None:
        self.method, self.recipe, self.device = method, recipe, device
        self.optimizers: list[Optimizer] = build_optimizers(method, recipe.optimizer)
        self.schedules: list[LambdaLR] = build_schedules(self.optimizers, recipe.optimizer, recipe.steps)
        self.focus = focus
        self.wrapped = _wrap(method, recipe, device)

    def __call__(self, source: Batch | None = None, target: Batch | None = None) -> dict[str, Tensor]:
        """Consume one raw batch a domain; gives the detached losses and metrics of the step, still on the device.

        A batch of a domain that the method does not read is left alone, and need not be given.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        parts = self.recipe.accumulate
        batches = {name: batch.split(parts) for name, batch in self._batches(source, target).items()}
        scalars: list[dict[str, Tensor]] = []
        for i in range(parts):
            with self._no_all_reduce(last=i == parts - 1), self._autocast():
                losses = self.wrapped(**{name: micro[i] for name, micro in batches.items()})
                # The total is made inside autocast but in float32 (`Losses.total`).
                (losses.total() / parts).backward()
            scalars.append(losses.scalars())
        self._update()
        return {name: torch.stack([part[name] for part in scalars]).mean() for name in scalars[0]}

    def _update(self) -> None:
        if self.recipe.optimizer.clip_norm:
            parameters = [
                p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]
            ]
            nn.utils.clip_grad_norm_(parameters, self.recipe.optimizer.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()
        self.method.after_step()

    def _batches(self, source: Batch | None, target: Batch | None) -> dict[str, Batch]:
        """What the method is given, cropped, the source in the target's style where the recipe says so."""
        cropped = {
            name: geometry(batch.to(self.device), self.recipe.augment, self.focus if name == "source" else None)
            for name, batch in (("source", source), ("target", target))
            if batch is not None and name in self.recipe.reads
        }
        if self.recipe.augment.style != "none":
            cropped["source"] = restyled(cropped["source"], cropped["target"], self.recipe.augment)
        return {name: self._laid_out(cropped[name]) for name in self.recipe.method.reads if name in cropped}

    def _laid_out(self, batch: Batch) -> Batch:
        """In the recipe's memory layout."""
        frame: Batch | None = batch
        while frame is not None and self.recipe.channels_last:
            frame.image_BCHW = frame.image_BCHW.contiguous(memory_format=torch.channels_last)
            frame = frame.before
        return batch

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _no_all_reduce(self, *, last: bool) -> Any:
        return (
            nullcontext() if last or not isinstance(self.wrapped, DistributedDataParallel) else self.wrapped.no_sync()
        )

    def state_dict(self) -> dict[str, Any]:
        """Optimisers and schedules; tensors and plain values only."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [{"last_epoch": schedule.last_epoch} for schedule in self.schedules],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; rates and other options are the recipe's, not the saved ones.

        They are the same unless a sweep has given the run another recipe (population-based training).
        """
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            options = [
                {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(saved)
            for group, own in zip(optimizer.param_groups, options, strict=True):
                group.update(own)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.last_epoch = saved["last_epoch"]
            groups = schedule.optimizer.param_groups
            for group, rate, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["lr"] = rate * factor(schedule.last_epoch)


def _wrap(method: Method, recipe: Recipe, device: torch.device) -> nn.Module:
    """The method itself, compiled and under DDP as the run asks."""
    if recipe.channels_last:
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped: nn.Module = method
    if recipe.compile:
        # not at its definition: saying so imports the compiler, a second that who does not train need not pay
        torch.compiler.assume_constant_result(draws.salt)
        wrapped = torch.compile(wrapped)  # type: ignore[assignment]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Buffers are a rank's own in a step (two forwards a step would trip over a broadcast); `sync_buffers`
        # averages them before anyone looks.
        ids = [device.index] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(wrapped, device_ids=ids, **_own_buffers())
    return wrapped


def _own_buffers() -> dict[str, Any]:
    """DDP's argument that leaves buffers alone in a step, under the name this torch has for it."""
    known = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


@torch.no_grad()
def sync_buffers(method: nn.Module) -> None:
    """Average floating-point buffers (batch-norm statistics) over ranks, in place; nothing with one rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    floats = [buffer for buffer in method.buffers() if buffer.is_floating_point()]
    flat = torch.cat([buffer.flatten() for buffer in floats])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for buffer, part in zip(floats, flat.split([buffer.numel() for buffer in floats]), strict=True):
        buffer.copy_(part.view_as(buffer))
