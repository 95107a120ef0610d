"""Dropout by the sample's seed: the mean stays, a sample's draws are its own, and without seeds nothing is dropped."""

import pytest
import torch
from torch import nn

from distuda.draws import fold
from distuda.models.dropout import SampleDropout, drawn_from

SEEDS = fold(torch.arange(20000), "samples")


@pytest.mark.parametrize(("part", "shape"), [("channel", (8, 2, 2)), ("sample", (3, 2, 8))])
def test_parts_are_dropped_whole_and_the_mean_stays(part: str, shape: tuple[int, ...]) -> None:
    drop = SampleDropout(0.25, part)  # type: ignore[arg-type]
    with drawn_from(drop, SEEDS):
        y = drop(torch.ones(len(SEEDS), *shape))
    assert y.unique().tolist() == [0, pytest.approx(4 / 3)] and float(y.mean()) == pytest.approx(1, abs=0.03)
    parts = y.flatten(2) if part == "channel" else y.flatten(1)
    assert (parts == parts[..., :1]).all()


def test_draws_belong_to_the_sample_and_the_module() -> None:
    network = nn.Sequential(SampleDropout(0.5), SampleDropout(0.5))
    x = torch.ones(4, 64, 1, 1)
    with drawn_from(network, SEEDS[:4]):
        both, first, second = network(x), network[0](x), network[1](x)
    with drawn_from(network, SEEDS[2:4]):
        assert torch.equal(network(x[2:]), both[2:])
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_nothing_is_dropped_without_seeds_or_in_evaluation() -> None:
    drop, x = SampleDropout(0.5), torch.ones(4, 64, 1, 1)
    assert torch.equal(drop(x), x)
    with drawn_from(drop, None):
        assert torch.equal(drop(x), x)
    with drawn_from(drop.eval(), SEEDS[:4]):
        assert torch.equal(drop(x), x)
