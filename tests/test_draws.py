"""Draws are uniform, independent by name and seed, and a function of the sample alone."""

import zlib

import numpy as np
import pytest
import torch

from distuda import draws
from distuda.data import order

SEEDS = torch.tensor([draws.sample_seed(0, "source", i) for i in range(400)])


MASK = 2**64 - 1


def mix(x: int) -> int:
    """SplitMix64's finaliser on Python integers, as its authors print it."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_the_generator_is_splitmix64_and_frozen() -> None:
    """Runs made earlier must be resumable."""
    seed, golden = 12345678901234567, 0x9E3779B97F4A7C15
    folded = mix((mix((seed + 2 * zlib.crc32(b"x") + 1) & MASK) + golden) & MASK)
    expected = [(mix((folded + i * golden) & MASK) >> 40) / 2**24 for i in range(1, 6)]
    assert draws.uniform(torch.tensor([seed]), "x", 5)[0].tolist() == expected
    assert draws.sample_seed(0, "source", 0) == 3079577649104893163


def test_uniform_moments() -> None:
    values = draws.uniform(SEEDS, "a", 500)
    assert values.dtype == torch.float32
    assert values.min() >= 0 and values.max() < 1
    assert values.mean().item() == pytest.approx(1 / 2, abs=3e-3)
    assert values.var().item() == pytest.approx(1 / 12, abs=1e-3)
    counts = torch.histc(values, 20, 0, 1)
    assert (counts / counts.mean() - 1).abs().max() < 0.05


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item())


def test_names_seeds_and_neighbours_are_uncorrelated() -> None:
    a, b = draws.uniform(SEEDS, "a", 500), draws.uniform(SEEDS, "b", 500)
    assert correlation(a, b) < 0.01
    assert correlation(a[1:], a[:-1]) < 0.01
    assert correlation(a[:, 1:], a[:, :-1]) < 0.01
    plain = draws.uniform(torch.arange(400), "a", 500)  # consecutive seeds
    assert correlation(plain[1:], plain[:-1]) < 0.01


def test_first_draws_of_a_domain_are_uniform() -> None:
    """One draw a sample, as a flip uses it."""
    values = draws.uniform(torch.tensor([draws.sample_seed(3, "target", i) for i in range(2000)]), "flip")
    assert values.mean().item() == pytest.approx(0.5, abs=0.03)


def test_batch_composition_does_not_matter() -> None:
    whole = draws.uniform(SEEDS[:8], "a", 2, 3)
    assert torch.equal(whole[3:5], draws.uniform(SEEDS[3:5], "a", 2, 3))
    assert torch.equal(whole.flip(0), draws.uniform(SEEDS[:8].flip(0), "a", 2, 3))


def test_shapes() -> None:
    assert draws.uniform(SEEDS[:2], "a").shape == (2,)
    assert draws.uniform(SEEDS[:2], "a", 3, 4).shape == (2, 3, 4)


@pytest.mark.parametrize("name", ["flip", "", 0, 5, 2**40, -3])
def test_numpy_fold_is_the_same(name: str | int) -> None:
    seeds = np.array([0, 1, -1, 2**62, -(2**63)])
    np.testing.assert_array_equal(order.fold(seeds, name), draws.fold(torch.from_numpy(seeds), name).numpy())


def test_numpy_fold_of_many_salts() -> None:
    salts = np.arange(5)
    expected = [draws.sample_seed(7, "source", int(salt)) for salt in salts]
    np.testing.assert_array_equal(order.fold(order.fold(np.array([7]), "source"), salts), expected)


def test_sample_seeds_do_not_repeat() -> None:
    seeds = {draws.sample_seed(s, d, p) for s in range(3) for d in ("source", "target") for p in range(200)}
    assert len(seeds) == 1200
