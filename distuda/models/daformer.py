"""Decoders over the stage maps of any encoder, and the network that joins the two.

`DaformerDecoder`: Hoyer, Dai, Van Gool: DAFormer, CVPR 2022, section 3.2 and table 7. `MlpDecoder`: SegFormer,
NeurIPS 2021, section 3.2. Shape legend: B images, C classes, h and w cells of the finest map, D channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distuda.models.depthwise import DepthwiseConv2d
from distuda.models.dropout import SampleDropout
from distuda.models.segmenter import Features, Normalise, Segmenter
from distuda.models.weights import IMAGENET_RGB, Statistics

_DROPOUT = 0.1


class StageDecoder(nn.Module):
    """What both decoders share: every map is projected, up-sampled to the finest, fused, and classified.

    Args:
        channels: of each map, finest first.
        num_classes: C of the logits.
        width: channels of each projected map, and of what ``fuse`` gives.
        fuse: (B, len(channels) * width, h, w) to (B, width, h, w).
    """

    def __init__(self, channels: Sequence[int], num_classes: int, width: int, fuse: nn.Module) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in channels)
        self.fuse, self.dropout = fuse, SampleDropout(_DROPOUT)
        self.classify = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)

    def forward(self, features: Features) -> Tensor:
        """Maps (B, D_i, h_i, w_i), finest first, to logits (B, C, h, w) at the finest map's size."""
        size = features[0].shape[-2:]
        projected = [project(x) for project, x in zip(self.project, features, strict=True)]
        coarse = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in projected[1:]]
        return self.classify(self.dropout(self.fuse(torch.cat([projected[0], *coarse], dim=1))))


class MlpDecoder(StageDecoder):
    """SegFormer's decoder: a 1x1 convolution fuses. The paper's width is 256 for MiT-B0 and B1, 768 from B2."""

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 768) -> None:
        super().__init__(channels, num_classes, width, _conv_bn_relu(len(channels) * width, width, 1))


class DaformerDecoder(StageDecoder):
    """DAFormer's decoder: a depthwise separable atrous pyramid without image pooling fuses."""

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 256) -> None:
        super().__init__(channels, num_classes, width, SeparableAspp(len(channels) * width, width))


class SeparableAspp(nn.Module):
    """One 1x1 branch and three separable 3x3 branches of dilation 6, 12 and 18, joined by a 3x3 convolution."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        separable = (
            nn.Sequential(
                DepthwiseConv2d(in_channels, dilation=dilation),
                nn.BatchNorm2d(in_channels),
                nn.ReLU(inplace=True),
                *_conv_bn_relu(in_channels, width, 1),
            )
            for dilation in (6, 12, 18)
        )
        self.branches = nn.ModuleList([_conv_bn_relu(in_channels, width, 1), *separable])
        self.bottleneck = _conv_bn_relu(4 * width, width, 3)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, width, h, w)."""
        return self.bottleneck(torch.cat([branch(x_BDhw) for branch in self.branches], dim=1))


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class EncoderDecoder(Segmenter):
    """Any encoder that gives stage maps, with one of the decoders above.

    Args:
        num_classes: C of the logits.
        encoder: normalised image (B, 3, H, W) to a tuple of maps, finest first.
        decoder: that tuple to logits at the finest map's size.
        statistics: mean and standard deviation of RGB that the encoder was trained with, on the [0, 1] scale.
        multiple: images are padded below and on the right to a multiple of this, and the logits cut back, for encoders
            that take no other sizes [pixels].
    """

    def __init__(
        self,
        num_classes: int,
        encoder: nn.Module,
        decoder: StageDecoder,
        *,
        statistics: Statistics = IMAGENET_RGB,
        multiple: int = 1,
    ) -> None:
        super().__init__(num_classes)
        self.normalise = Normalise(*map(list, statistics))
        self.encoder, self.decoder, self.multiple = encoder, decoder, multiple

    def encode(self, x_BCHW: Tensor) -> Features:
        """Normalised image to the encoder's maps; where it was padded, with the mean colour, they cover the padding."""
        if self.multiple > 1:
            height, width = x_BCHW.shape[-2:]
            x_BCHW = F.pad(x_BCHW, (0, -width % self.multiple, 0, -height % self.multiple))
        return tuple(self.encoder(x_BCHW))

    def heads(self, features: Features) -> tuple[Tensor, None]:
        """Logits at the finest map's size, stride 4 in most encoders; no auxiliary head."""
        return self.decoder(features), None

    def head_parameters(self) -> list[nn.Parameter]:
        """The decoder's parameters."""
        return list(self.decoder.parameters())

    def resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits up-sampled to ``size`` (height, width); what covers the padding is cut off."""
        if self.multiple == 1:
            return super().resize(logits, size)
        height, width = (side + -side % self.multiple for side in size)
        return super().resize(logits, (height, width))[..., : size[0], : size[1]]
