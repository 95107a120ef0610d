"""Random numbers as a pure function of (seed, name): no state to save, the same on every rank, device and resume.

A counter-based generator after SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
OOPSLA 2014), written with int64 tensors so that draws stay on the device and cost no host synchronisation.
"""

import math
import zlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (zero-filling) right shift; torch's shift of int64 is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def salt(name: str) -> int:
    """The number that stands for a name; the same for ever, so `engine.step` may tell a compiler so."""
    return zlib.crc32(name.encode())


def fold(seed_B: Tensor, name: str | int) -> Tensor:
    """New seeds for a named use: two names give independent draws from the same seeds."""
    number = salt(name) if isinstance(name, str) else name
    return _mix(_mix(seed_B + (number * 2 + 1)) + _GOLDEN)


def uniform(seed_B: Tensor, name: str, *shape: int) -> Tensor:
    """float32 draws in [0, 1), shape (B, *shape)."""
    count = 1
    for size in shape:
        count *= size
    counter = torch.arange(1, count + 1, device=seed_B.device, dtype=torch.int64) * _GOLDEN
    bits = _mix(fold(seed_B, name)[:, None] + counter[None, :])
    return (_shift_right(bits, 40).to(torch.float32) * 2.0**-24).reshape(len(seed_B), *shape)


def normal(seed_B: Tensor, name: str, *shape: int) -> Tensor:
    """float32 draws of the standard normal distribution, shape (B, *shape); Box and Muller's transform."""
    radius, angle = uniform(seed_B, name, 2, *shape).unbind(1)
    return (-2 * torch.log1p(-radius)).sqrt() * (2 * math.pi * angle).cos()


def sample_seed(seed: int, domain: str, position: int) -> int:
    """The seed of the sample at a position of a domain's endless sequence; int64."""
    start = torch.tensor([seed], dtype=torch.int64)
    return int(fold(fold(start, domain), position)[0])
