"""Depthwise convolution whose bfloat16 gradients are quick on CPUs.

oneDNN's bfloat16 kernels for the gradients of depthwise convolutions are slow enough to make a whole bfloat16 step of
`lite` slower than a float32 one (`benchmarks/lite_step.md`), except the gradient of a kernel of 3 x 3 without dilation;
the forward ones are fast. So here the input gradient of a stride-1 convolution is another forward convolution, that of
the few others is computed in float32, and a kernel's gradient is put together from windows of 3 x 3. On other devices,
and in float32, torch's own gradients are used.
"""

from itertools import product
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
        if stride == 1 and 2 * padding == dilation * (kernel - 1):  # correlation with the flipped kernel
            grad_x = F.conv2d(grad, weight.flip(2, 3), None, 1, padding, dilation, groups)
        else:
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad.float(), x.float(), weight.float(), None, [stride] * 2, [padding] * 2, [dilation] * 2, False,
                [0, 0], groups, [True, False, False],
            )  # fmt: skip
        return grad_x.to(x.dtype), _kernel_gradient(grad, x, kernel, stride, padding, dilation), None, None, None


def _kernel_gradient(grad: Tensor, x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(C, 1, k, k) from windows of 3 x 3 without dilation, the one size that has a quick bfloat16 kernel."""
    below, right = -grad.shape[-2] % dilation, -grad.shape[-1] % dilation
    x = F.pad(x, (padding, padding + right, padding, padding + below))
    if dilation > 1:
        x, grad = _phases(x, dilation), _phases(F.pad(grad, (0, right, 0, below)), dilation)
    channels = x.shape[1]
    height, width = (stride * (side - 1) + 3 for side in grad.shape[-2:])
    result = grad.new_empty(channels, 1, kernel, kernel)
    for i, j in product(range(0, kernel - 1, 2), repeat=2):
        window = x[..., i : i + height, j : j + width].contiguous(memory_format=torch.channels_last)
        _, result[..., i : i + 3, j : j + 3], _ = torch.ops.aten.convolution_backward(
            grad, window, grad.new_empty(channels, 1, 3, 3), None, [stride] * 2, [0, 0], [1, 1], False,
            [0, 0], channels, [False, True, False],
        )  # fmt: skip
    return result


def _phases(x: Tensor, dilation: int) -> Tensor:
    """(B, C, H, W) to (B d d, C, H / d, W / d), channels last: pixels that a dilated kernel sees together."""
    b, c, h, w = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(b, h // dilation, dilation, w // dilation, dilation, c)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(-1, h // dilation, w // dilation, c).permute(0, 3, 1, 2)


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    """One kernel a channel, no bias, as `torch.nn.functional.conv2d` with ``groups = C``.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, k, k) parameter, float32.
        stride, padding, dilation: the same in both directions.
    """
    odd, plain = weight.shape[-1] % 2 == 1 and weight.shape[-1] > 1, stride == 1 or dilation == 1
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled() and odd and plain:
        return _QuickGradient.apply(x, weight.to(torch.bfloat16), stride, padding, dilation)
    return F.conv2d(x, weight.to(x.dtype), None, stride, padding, dilation, x.shape[1])


class DepthwiseConv2d(nn.Conv2d):
    """One 3x3 kernel a channel at stride 1, padded to keep the size; parameters as those of `torch.nn.Conv2d`."""

    def __init__(self, channels: int, *, dilation: int = 1, bias: bool = False) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        dilation = self.dilation[0]
        y = depthwise_conv2d(x, self.weight, 1, dilation, dilation)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]
