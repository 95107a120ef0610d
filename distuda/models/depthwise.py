"""Depthwise convolution whose bfloat16 gradients are quick on CPUs.

oneDNN's bfloat16 kernels for the gradients of depthwise convolutions are slow enough to make a whole bfloat16 step of
`lite` slower than a float32 one (`benchmarks/lite_step.md`), while the forward kernel is fast. So here the forward runs
in bfloat16, the input gradient of a stride-1 convolution is another forward convolution, and the rest is computed in
float32. On other devices, and in float32, torch's own gradient is used.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _QuickGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, dilation)
        return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        """Gradients of the input, in its dtype, and of the kernels; stride, padding and dilation have none."""
        (grad,), (x, weight), (stride, padding, dilation) = grads, ctx.saved_tensors, ctx.geometry
        groups, kernel = x.shape[1], weight.shape[-1]
        same = stride == 1 and 2 * padding == dilation * (kernel - 1)
        grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
            grad.float(), x.float(), weight.float(), None, [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0],
            groups, [not same, True, False],
        )  # fmt: skip
        if same:  # correlation with the flipped kernel: one more forward convolution
            grad_x = F.conv2d(grad, weight.flip(2, 3), None, 1, padding, dilation, groups)
        return grad_x.to(x.dtype), grad_w.to(weight.dtype), None, None, None


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    """One kernel a channel, no bias, as `torch.nn.functional.conv2d` with ``groups = C``.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, k, k) parameter, float32.
        stride, padding, dilation: the same in both directions.
    """
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled():
        return _QuickGradient.apply(x, weight.to(torch.bfloat16), stride, padding, dilation)
    return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])


class DepthwiseConv2d(nn.Conv2d):
    """One 3x3 kernel a channel at stride 1, padded to keep the size; parameters as those of `torch.nn.Conv2d`."""

    def __init__(self, channels: int, *, dilation: int = 1, bias: bool = False) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        dilation = self.dilation[0]
        y = depthwise_conv2d(x, self.weight, 1, dilation, dilation)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]
