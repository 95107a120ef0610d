"""Exponential moving average of a network's parameters."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: Tensor | float) -> None:
    """``average <- decay * average + (1 - decay) * network``, parameters only.

    Buffers stay the average's own: batch-norm statistics belong to the images the average has seen (DACS's code).

    Args:
        decay: scalar in [0, 1); a device tensor avoids a host synchronisation.
    """
    averaged: list[Tensor] = list(average.parameters())
    # not _foreach_lerp_: given a tensor as weight it reads the value on the host
    fresh: list[Tensor] = [p.detach() for p in network.parameters()]
    moved = list(torch._foreach_sub(fresh, averaged))
    torch._foreach_mul_(moved, 1 - decay)
    torch._foreach_add_(averaged, moved)
