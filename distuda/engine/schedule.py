"""Optimisers and learning-rate schedule of a method's parameter groups."""

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from distuda.methods.method import Group, Method
from distuda.recipe import OptimizerConfig

# Discriminators: Adam with these betas in ADVENT's and AdaptSegNet's code.
_ADVERSARIAL_BETAS = (0.9, 0.99)


def build_optimizers(method: Method, config: OptimizerConfig) -> list[Optimizer]:
    """The student's optimiser and, where a group asks for it, an Adam of its own."""
    groups = method.parameter_groups()
    student = [part for group in groups if group.adam_lr is None for part in _student_groups(group, config)]
    optimizers: list[Optimizer] = []
    if config.name == "adamw":
        optimizers.append(torch.optim.AdamW(student, lr=config.lr, betas=config.betas))
    else:
        optimizers.append(torch.optim.SGD(student, lr=config.lr, momentum=config.momentum))
    for group in groups:
        if group.adam_lr is not None:
            optimizers.append(torch.optim.Adam(group.parameters, lr=group.adam_lr, betas=_ADVERSARIAL_BETAS))
    return optimizers


def _student_groups(group: Group, config: OptimizerConfig) -> list[dict[str, object]]:
    """Split into decayed weights and, with AdamW, undecayed norms and biases."""
    lr = config.lr * (config.head_lr_factor if group.role == "head" else 1.0)
    if config.name == "sgd":
        return [{"params": group.parameters, "lr": lr, "weight_decay": config.weight_decay}]
    vectors: list[nn.Parameter] = [p for p in group.parameters if p.ndim <= 1]
    tensors: list[nn.Parameter] = [p for p in group.parameters if p.ndim > 1]
    split = [(tensors, config.weight_decay), (vectors, 0.0)]
    return [{"params": params, "lr": lr, "weight_decay": decay} for params, decay in split if params]


def build_schedules(optimizers: list[Optimizer], config: OptimizerConfig, steps: int) -> list[LambdaLR]:
    """One schedule an optimiser; only the student's (the first) warms up."""

    def decay(step: int) -> float:
        if config.schedule == "constant":
            return 1.0
        done = step / (config.decay_steps or steps)
        if config.schedule == "step":
            return float(config.step_factor ** sum(done >= share for share in config.step_at))
        return float(max(0.0, 1 - done) ** config.poly_power)

    def warmed(step: int) -> float:
        return decay(step) * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else decay(step)

    return [LambdaLR(optimizer, warmed if i == 0 else decay) for i, optimizer in enumerate(optimizers)]
