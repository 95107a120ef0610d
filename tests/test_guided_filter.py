import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distuda.models.guided_filter import guided_filter

Array = NDArray[np.float64]


def images(height: int, width: int, channels: int = 4, batch: int = 1, grey: bool = False) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(height * width)
    guide = torch.rand(batch, 1 if grey else 3, height, width, generator=draws).expand(-1, 3, -1, -1).contiguous()
    return guide, torch.randn(batch, channels, height, width, generator=draws).mul(2).softmax(1)


def by_definition(guide_HWC: Array, map_HW: Array, radius: int, eps: float) -> Array:
    """Equations 19 to 21 of the paper (TPAMI), window by window."""
    height, width = map_HW.shape

    def around(y: int, x: int) -> tuple[slice, slice]:
        return slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)

    slopes, offsets = np.zeros((height, width, 3)), np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        colours, values = guide_HWC[around(y, x)].reshape(-1, 3), map_HW[around(y, x)].reshape(-1)
        centred = colours - colours.mean(0)
        covariance = centred.T @ centred / len(values)
        slopes[y, x] = np.linalg.solve(covariance + eps * np.eye(3), centred.T @ values / len(values))
        offsets[y, x] = values.mean() - slopes[y, x] @ colours.mean(0)
    return np.array(
        [
            [
                slopes[around(y, x)].reshape(-1, 3).mean(0) @ guide_HWC[y, x] + offsets[around(y, x)].mean()
                for x in range(width)
            ]
            for y in range(height)
        ]
    )


@pytest.mark.parametrize(("height", "width", "radius"), [(13, 18, 3), (13, 18, 1), (9, 5, 16), (1, 7, 2), (1, 1, 4)])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("eps", [1e-2, 1e-5])
def test_equals_the_definition(height: int, width: int, radius: int, grey: bool, eps: float) -> None:
    guide, maps = images(height, width, grey=grey)
    got = guided_filter(guide, maps, radius, eps)[0].double().numpy()
    wanted = [
        by_definition(guide[0].permute(1, 2, 0).double().numpy(), m, radius, eps) for m in maps[0].double().numpy()
    ]
    assert np.abs(got - np.stack(wanted)).max() < 2e-4


def test_photograph_like_guide_with_dark_and_bright_halves() -> None:
    """Nearly flat, strongly correlated colours at both ends of the range: where float32 loses most."""
    guide, maps = images(20, 24)
    guide = (0.02 + 0.95 * (torch.arange(24) > 11)) + 0.01 * guide
    got = guided_filter(guide, maps, 4, 1e-4)[0, 0].double().numpy()
    wanted = by_definition(guide[0].permute(1, 2, 0).double().numpy(), maps[0, 0].double().numpy(), 4, 1e-4)
    assert np.abs(got - wanted).max() < 2e-4


def test_outline_moves_to_the_edge_of_the_guide() -> None:
    guide = torch.zeros(1, 3, 24, 40)
    guide[..., 20:] = 0.6
    maps = torch.zeros(1, 1, 24, 40)
    maps[..., 17:] = 1.0  # the outline lies three pixels off
    got = guided_filter(guide, maps, 8, 1e-4)
    assert bool((got[..., :20] < 0.5).all()) and bool((got[..., 20:] > 0.5).all())
    flat = guided_filter(torch.full_like(guide, 0.3), maps, 8, 1e-4)
    assert bool((flat[..., 17:20] > 0.5).all())  # without an edge nothing draws it


def test_probabilities_still_sum_to_one_and_batches_do_not_mix() -> None:
    guide, maps = images(21, 17, channels=5, batch=2)
    got = guided_filter(guide, maps, 4, 1e-3)
    assert torch.allclose(got.sum(1), torch.ones(2, 21, 17), atol=1e-4)
    assert torch.allclose(got[1:], guided_filter(guide[1:], maps[1:], 4, 1e-3), atol=1e-5)


def test_half_precision_is_computed_in_full() -> None:
    guide, maps = images(12, 15)
    got = guided_filter(guide, maps.bfloat16(), 3, 1e-3)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, guided_filter(guide, maps.bfloat16().float(), 3, 1e-3).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):  # as an evaluation runs, which would cast the matrix products
        inside = guided_filter(guide, maps, 3, 1e-3)
    assert torch.equal(inside, guided_filter(guide, maps, 3, 1e-3))


class _Filter(nn.Module):
    def forward(self, guide: Tensor, maps: Tensor) -> Tensor:
        return guided_filter(guide, maps, 6, 1e-3)


def test_exported_graph_gives_the_same_at_every_size() -> None:
    axes = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that guide and map share their axes
        program = torch.onnx.export(
            _Filter().eval(),
            images(30, 42, batch=2),
            dynamic_shapes=(axes, axes),
            opset_version=20,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for height, width, batch in [(30, 42, 2), (61, 35, 1), (5, 90, 3)]:
        guide, maps = images(height, width, batch=batch)
        (got,) = session.run(None, {names[0]: guide.numpy(), names[1]: maps.numpy()})
        assert np.abs(got - guided_filter(guide, maps, 6, 1e-3).numpy()).max() < 1e-4
