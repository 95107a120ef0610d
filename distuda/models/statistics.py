"""Batch-norm statistics of a network while it trains: left alone for some passes, or taken from another network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm in the block normalises as ever but leaves its running statistics alone."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def copy_statistics(network: nn.Module, other: nn.Module) -> None:
    """Give a network the buffers, running statistics among them, of another one of the same kind."""
    for mine, theirs in zip(network.buffers(), other.buffers(), strict=True):
        mine.copy_(theirs)
