"""The quick bfloat16 gradient of depthwise convolutions against torch's in float32."""

import pytest
import torch
import torch.nn.functional as F

from distuda.models.depthwise import depthwise_conv2d


def gradients(x: torch.Tensor, weight: torch.Tensor, call: object, up: torch.Tensor) -> list[torch.Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = call(x, weight)
    y.backward(up.to(y.dtype))
    return [y.detach(), x.grad, weight.grad]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        (3, 1, 1, 1),
        (5, 1, 2, 1),
        (5, 1, 4, 2),
        (3, 2, 1, 1),
        (5, 2, 0, 1),
        (3, 1, 0, 1),
        (3, 1, 8, 8),
        (5, 1, 3, 3),
        (7, 1, 3, 1),
        (3, 2, 2, 2),
        (2, 1, 0, 1),
    ],
)
def test_gradient_equals_torch_within_bfloat16(kernel: int, stride: int, padding: int, dilation: int) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 15, 18, generator=random).bfloat16()
    weight = torch.randn(8, 1, kernel, kernel, generator=random).bfloat16().float()
    geometry = (stride, padding, dilation)
    reference = F.conv2d(x.float(), weight, None, *geometry, 8)
    up = torch.randn(reference.shape, generator=random).bfloat16().float()
    exact = gradients(x.float(), weight, lambda x, w: F.conv2d(x, w, None, *geometry, 8), up)
    quick = gradients(x, weight, lambda x, w: depthwise_conv2d(x, w, *geometry), up)
    assert [t.dtype for t in quick] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for mine, theirs in zip(quick, exact, strict=True):
        assert (mine.float() - theirs).norm() < 0.01 * theirs.norm()


def test_float32_is_torchs_own() -> None:
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 1, 3, 3)
    up = torch.randn(1, 4, 9, 9)
    mine = gradients(x, weight, lambda x, w: depthwise_conv2d(x, w, 1, 1, 1), up)
    theirs = gradients(x, weight, lambda x, w: F.conv2d(x, w, None, 1, 1, 1, 4), up)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
