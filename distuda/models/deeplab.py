"""DeepLab-v2 on a dilated ResNet: the network of AdaptSegNet, ADVENT and the papers that compare with them.

Chen et al., "DeepLab", TPAMI 2018; the two-level variant is Tsai et al., "Learning to Adapt Structured Output Space",
CVPR 2018. Trunk parameters carry the published names (``conv1``, ``layer3.0.bn2``, ...), see `distuda.models.weights`.
Shape legend: B images, C classes, H and W pixels, h and w pixels at output stride 8, D channels.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from distuda.models.segmenter import Features, Normalise, Segmenter

Depth = Literal[18, 50, 101]
HeadBranches = Literal["all", "reduced"]

BLOCKS: dict[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DILATIONS: dict[str, tuple[int, ...]] = {"all": (6, 12, 18, 24), "reduced": (6, 12)}
CAFFE_MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)


def _conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size at stride 1."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18); the first carries the stride, both the dilation."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, *, project: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, width, 3, stride=stride, dilation=dilation), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, dilation=dilation), nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, width, h / stride, w / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(x)) + identity)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 (ResNet-50 and 101); Caffe style: the stride is in the first 1x1, the dilation in the 3x3."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, *, project: bool) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1, self.bn1 = _conv(in_channels, width, 1, stride=stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, dilation=dilation), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, out_channels, 1), nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, 4 width, h / stride, w / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return F.relu_(self.bn3(self.conv3(x)) + identity)


class Head(nn.Module):
    """DeepLab-v2 classifier: one dilated 3x3 convolution a branch, each straight to C logits, summed."""

    def __init__(self, in_channels: int, num_classes: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        branches = [nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in dilations]
        for branch in branches:
            nn.init.normal_(branch.weight, std=0.01)
        self.branches = nn.ModuleList(branches)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """Features to (B, C, h, w) logits."""
        first, *others = self.branches
        logits: Tensor = first(x_BDhw)
        for branch in others:
            logits = logits + branch(x_BDhw)
        return logits


class DeepLabV2(Segmenter):
    """DeepLab-v2 at output stride 8, fed with RGB in [0, 1] and normalised the Caffe way inside.

    Batch-norm scale and shift never learn and keep their pretrained values; the statistics stay alive: in train mode
    those of the batch normalise and the running ones move on, as in the released ADVENT and AdaptSegNet training.

    Args:
        num_classes: C of the logits.
        depth: of the ResNet trunk; 101 in the papers, 18 and 50 for smaller machines.
        multi_level: add the auxiliary head on layer3 (the ADVENT and multi-level AdaptSegNet set-up).
        head_branches: ``all`` sums dilations 6, 12, 18 and 24 (ADVENT); ``reduced`` only 6 and 12, which is what the
            released AdaptSegNet code computes, so choose it to evaluate AdaptSegNet weights.
    """

    def __init__(
        self,
        num_classes: int,
        depth: Depth = 101,
        *,
        multi_level: bool = True,
        head_branches: HeadBranches = "all",
    ) -> None:
        super().__init__(num_classes, align_corners=True)
        self.depth, self.has_aux, self.head_branches = depth, multi_level, head_branches
        self.normalise = Normalise([m / 255 for m in reversed(CAFFE_MEAN_BGR)], [1.0] * 3, bgr=True, scale=255.0)

        block, blocks = BasicBlock if depth == 18 else Bottleneck, BLOCKS[depth]
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(block, 64, 64, blocks[0])
        self.layer2 = _stage(block, 64 * block.expansion, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, blocks[2], dilation=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, blocks[3], dilation=4)
        self._prepare_trunk()

        dilations = DILATIONS[head_branches]
        self.aux_head = Head(256 * block.expansion, num_classes, dilations) if multi_level else None
        self.main_head = Head(512 * block.expansion, num_classes, dilations)

    def _prepare_trunk(self) -> None:
        """He's initialisation for runs without pretrained weights (He et al., ICCV 2015); freeze batch-norm affine."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.requires_grad_(False)
                module.bias.requires_grad_(False)

    def encode(self, x_BCHW: Tensor) -> Features:
        """Normalised image to (layer3, layer4), both at output stride 8 rounded up: 320 and 321 pixels become 41."""
        x = self.maxpool(F.relu_(self.bn1(self.conv1(x_BCHW))))
        layer3 = self.layer3(self.layer2(self.layer1(x)))
        return layer3, self.layer4(layer3)

    def heads(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """(layer3, layer4) to main logits from layer4 and, in a multi-level network, auxiliary logits from layer3."""
        return self.main_logits(features), None if self.aux_head is None else self.aux_head(features[0])

    def main_logits(self, features: Features) -> Tensor:
        """(layer3, layer4) to main logits from layer4."""
        return self.main_head(features[1])

    def head_parameters(self) -> list[nn.Parameter]:
        """Both classifiers; they learn at ten times the trunk's rate in the papers."""
        heads = [self.main_head] if self.aux_head is None else [self.main_head, self.aux_head]
        return [parameter for head in heads for parameter in head.parameters()]


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    num_blocks: int,
    *,
    stride: int = 1,
    dilation: int = 1,
) -> nn.Sequential:
    """Residual blocks of one width; the first changes channels or size, so its identity path needs a projection."""
    out_channels = width * block.expansion
    project = stride != 1 or dilation != 1 or in_channels != out_channels
    first = block(in_channels, width, stride, dilation, project=project)
    rest = [block(out_channels, width, 1, dilation, project=False) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)
