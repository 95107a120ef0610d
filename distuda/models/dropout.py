"""Dropout whose draws belong to the samples: equal on any rank and after any interruption (`distuda.draws`).

A network drops only while `drawn_from` is open around it with seeds; without, as for a teacher, nothing is dropped
whatever mode the network is in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from distuda.draws import fold, uniform


class SampleDropout(nn.Module):
    """Zeros parts of each sample with a probability and scales up the rest.

    Args:
        probability: of a part to be dropped, in [0, 1).
        part: ``channel`` (dropout of whole channels, B and D of (B, D, ...)) or ``sample`` (stochastic depth: the whole
            residual branch of a sample).
    """

    def __init__(self, probability: float, part: Literal["channel", "sample"] = "channel") -> None:
        super().__init__()
        self.probability, self.part = probability, part
        self.seed_B: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, ...) or, a sample at a time, (B, ...), to the same."""
        if self.seed_B is None or not self.training or not self.probability:
            return x
        count = x.shape[1] if self.part == "channel" else 1
        kept = (uniform(self.seed_B, "dropout", count) >= self.probability).to(x.dtype) / (1 - self.probability)
        return x * kept.view(len(x), count, *[1] * (x.ndim - 2))


@contextmanager
def drawn_from(network: nn.Module, seed_B: Tensor | None) -> Iterator[None]:
    """In the block the network's `SampleDropout` modules drop by these seeds, each in its own way."""
    modules = [module for module in network.modules() if isinstance(module, SampleDropout)]
    for number, module in enumerate(modules):
        module.seed_B = None if seed_B is None else fold(seed_B, number)
    try:
        yield
    finally:
        for module in modules:
            module.seed_B = None
