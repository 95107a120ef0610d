"""DeepLab on VGG-16, in the two dilated forms that papers compare with, and their published weights.

Simonyan and Zisserman: VGG, ICLR 2015. DeepLab-v2 is that of the code of Tsai et al., "Learning to Adapt Structured
Output Space", CVPR 2018, the smaller network of AdaptSegNet's and APODA's tables; DeepLab-LargeFOV that of Chen et al.:
Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs, ICLR 2015, the network of AE-PSL.
Trunk parameters carry the names of AdaptSegNet and of torchvision (``features.0``, ``features.2``, ...).
Shape legend: B images, C classes, H and W pixels, h and w pixels at output stride 8.
"""

import hashlib
import logging
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from distuda.errors import UserError
from distuda.models.deeplab import CAFFE_MEAN_BGR, DILATIONS, Head, HeadBranches
from distuda.models.dropout import SampleDropout
from distuda.models.segmenter import Features, Normalise, Segmenter
from distuda.models.weights import (
    PREFIXES,
    State,
    differences,
    leave_out,
    leave_out_misfit_head,
    read_tensors,
    rename,
    to_caffe_kernel,
    weights_file,
)
from distuda.storage import read_bytes

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and number of convolutions
_FC_CHANNELS = 1024
_HEAD = "main_head."
_HEAD_NAMES = {"classifier.conv2d_list.": "main_head.branches."}
# The thirteen convolutions, and after them fc6 and fc7, in the order of the trunk's
_TORCHVISION_NAMES = [f"features.{i}." for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
_CAFFE_NAMES = [f"conv{b}_{i}." for b, (_, n) in enumerate(_BLOCKS, 1) for i in range(1, n + 1)] + ["fc6.", "fc7."]
_CAFFE_STD = 57.0  # rough standard deviation of mean-subtracted 0..255 photographs
TORCHVISION_SHA256 = "397923af"  # first digits of torchvision's vgg16-397923af.pth

IMAGENET_ADVICE = (
    "weights 'imagenet': VGG-16's ImageNet weights are not shipped with Distuda and nothing is downloaded. Fetch "
    "vgg16-00b39a1b.pth (the Caffe weights that the papers used, from github.com/jcjohnson/pytorch-vgg) or "
    "torchvision's vgg16-397923af.pth and pass the path as weights, or choose weights 'none'. For "
    "deeplab_largefov_vgg16 there is also vgg16_20M.pth (DeepLab's own start, fc6 and fc7 included; "
    "github.com/visinf/1-stage-wseg)."
)

log = logging.getLogger(__name__)


class Vgg16(Segmenter):
    """What both forms share: output stride 8, one level, no batch norm, RGB in [0, 1] normalised the Caffe way inside.

    Args:
        num_classes: C of the logits.
        features: the trunk up to fc7, from `_trunk`.
        main_head: from fc7's map to logits.
    """

    title: ClassVar[str]
    published: ClassVar[str]  # whose state dicts fit, beside those of image classifiers

    def __init__(self, num_classes: int, features: nn.Sequential, main_head: nn.Module) -> None:
        super().__init__(num_classes, align_corners=True)
        self.normalise = Normalise([m / 255 for m in reversed(CAFFE_MEAN_BGR)], [1.0] * 3, bgr=True, scale=255.0)
        self.features, self.main_head = features, main_head

    def encode(self, x_BCHW: Tensor) -> Features:
        """Normalised image to fc7's map (B, 1024, h, w)."""
        return (self.features(x_BCHW),)

    def heads(self, features: Features) -> tuple[Tensor, None]:
        """Logits (B, C, h, w); no auxiliary head."""
        return self.main_head(features[0]), None

    def head_parameters(self) -> list[nn.Parameter]:
        """The classifier; fc6 and fc7 count as trunk."""
        return list(self.main_head.parameters())


class DeepLabV2Vgg16(Vgg16):
    """DeepLab-v2 on VGG-16: pool4 and pool5 removed, conv5 dilated by 2, fc6 and fc7 by 4; h = H // 8, w = W // 8.

    No dropout. The paper's code has one learning rate for all of it: set ``optimizer.head_lr_factor`` to 1.

    Args:
        num_classes: C of the logits.
        head_branches: ``all`` sums dilations 6, 12, 18 and 24; ``reduced`` only 6 and 12, which is what the released
            AdaptSegNet code computes, so choose it to evaluate AdaptSegNet weights.
    """

    title = "DeepLab-v2 on VGG-16"
    published = "AdaptSegNet's VGG network"

    def __init__(self, num_classes: int, *, head_branches: HeadBranches = "all") -> None:
        pools = [[nn.MaxPool2d(2)] for _ in range(3)]
        features = _trunk([*pools, [], []], fc6=(3, 4), fc7=(3, 4))
        super().__init__(num_classes, features, Head(_FC_CHANNELS, num_classes, DILATIONS[head_branches]))
        self.head_branches = head_branches


class DeepLabLargeFovVgg16(Vgg16):
    """DeepLab-LargeFOV on VGG-16, without the CRF: all pools kept, pool4 and pool5 at stride 1; h = H / 8 rounded up.

    As the published Caffe network: pools of 3x3 with padding 1, an average of 3x3 after pool5, conv5 dilated by 2, fc6
    a 3x3 convolution dilated by 12, fc7 and the classifier 1x1. 321 pixels give 41; from sides of 8 k + 1 pixels, as
    in the paper, places lie exactly under their pixels, for others Caffe rounds pooled sizes up and this rounds down.

    Dropout of 0.5 follows fc6 and fc7. Here it takes whole channels of a sample (our reading; Caffe's takes single
    places), so that the mean over places, which classifiers of tags use, is thinned as well.

    Args:
        num_classes: C of the logits.
    """

    title = "DeepLab-LargeFOV on VGG-16"
    published = "DeepLab's start (vgg16_20M: conv1_1 to fc7)"

    def __init__(self, num_classes: int) -> None:
        pools: list[list[nn.Module]] = [[nn.MaxPool2d(3, stride, padding=1)] for stride in (2, 2, 2, 1, 1)]
        pools[-1].append(nn.AvgPool2d(3, 1, padding=1))
        classifier = nn.Conv2d(_FC_CHANNELS, num_classes, 1)
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
        super().__init__(num_classes, _trunk(pools, fc6=(3, 12), fc7=(1, 1), dropout=0.5), classifier)


def _trunk(
    pools: Sequence[Sequence[nn.Module]], *, fc6: tuple[int, int], fc7: tuple[int, int], dropout: float = 0.0
) -> nn.Sequential:
    """VGG-16 up to fc7: what follows each of the five blocks, and side and dilation of fc6's and fc7's kernels."""
    layers: list[nn.Module] = []
    channels = 3
    for number, ((width, count), pool) in enumerate(zip(_BLOCKS, pools, strict=True)):
        for _ in range(count):
            layers += _convolution(channels, width, 3, 2 if number == 4 else 1)
            channels = width
        layers += pool
    for side, dilation in (fc6, fc7):
        layers += _convolution(channels, _FC_CHANNELS, side, dilation)
        layers += [SampleDropout(dropout)] if dropout else []
        channels = _FC_CHANNELS
    return nn.Sequential(*layers)


def _convolution(channels: int, width: int, side: int, dilation: int) -> list[nn.Module]:
    """A convolution that keeps the size, and its ReLU."""
    convolution = nn.Conv2d(channels, width, side, padding=dilation * (side // 2), dilation=dilation)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    if channels == 3:  # nothing normalises later on, so without pretrained weights 0..255 would reach the logits
        nn.init.normal_(convolution.weight, std=(2 / 27) ** 0.5 / _CAFFE_STD)
    return [convolution, nn.ReLU(inplace=True)]


def initialise_vgg(model: Vgg16, weights: str) -> list[str]:
    """Give a fresh network its starting weights; returns what was left out or changed, one sentence each.

    Args:
        weights: ``none``, or the path or URI of a file for `load_vgg`; a classifier that does not fit is left out.

    Raises:
        UserError: for ``imagenet`` (no such weights are shipped), a path of another type, or a file that does not fit.
    """
    path = weights_file(weights, IMAGENET_ADVICE)
    return load_vgg(model, path, strict_heads=False) if path else []


def load_vgg(model: Vgg16, path: str, *, strict_heads: bool = True) -> list[str]:
    """Load a weights file whole or not at all; returns, and logs, what was left out or changed.

    An AdaptSegNet VGG (``classifier.conv2d_list``) fills all of DeepLab-v2. An image classifier under torchvision's
    names gives the thirteen convolutions; fc6, fc7 and the head keep their values. Caffe's names (``conv1_1`` to
    ``fc7``) bring all but the head. The last two are taken as Caffe weights, made for BGR in 0..255, unless it is
    torchvision's own file: then the first convolution is rewritten.

    Args:
        path: ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``, local or a URI.
        strict_heads: refuse a segmentation file whose classifier is not the model's; else leave that out.

    Raises:
        UserError: the file cannot be read safely, or lists every missing, unexpected or wrongly shaped tensor.
    """
    state = {PREFIXES.sub("", name): tensor for name, tensor in read_tensors(path).items()}
    ours = [f"features.{i}." for i, layer in enumerate(model.features) if isinstance(layer, nn.Conv2d)]
    fresh = (*ours[len(_TORCHVISION_NAMES) :], _HEAD)  # fc6, fc7 and the head: what image classifiers do not bring
    is_caffe = any(name.startswith(_CAFFE_NAMES[0]) for name in state)
    is_image_classifier = not is_caffe and not any(rename(name, _HEAD_NAMES).startswith(fresh) for name in state)
    notes = leave_out(state, r"^classifier\.\d", "an image classifier") if is_image_classifier else []
    renames = _HEAD_NAMES
    if is_caffe or is_image_classifier:
        renames = dict(zip(_CAFFE_NAMES if is_caffe else _TORCHVISION_NAMES, ours, strict=False))
    state = {rename(name, renames): tensor for name, tensor in state.items()}
    if isinstance(model, DeepLabV2Vgg16) and model.head_branches == "reduced":
        notes += leave_out(state, r"_head\.branches\.[23]\.", "the branches of dilation 18 and 24 (a reduced head)")
    if not strict_heads:
        notes += leave_out_misfit_head(model, state, _HEAD)
    kept = fresh if is_image_classifier else ()
    if (is_caffe or not strict_heads) and not any(name.startswith(_HEAD) for name in state):
        kept = (*kept, _HEAD)
    _check(model, state, renames, path, kept)
    if is_caffe or is_image_classifier:
        notes += _to_caffe_input(state, path)
    model.load_state_dict({**model.state_dict(), **state})
    for note in notes:
        log.warning("%s", note)
    return notes


def _check(model: Vgg16, state: State, renames: dict[str, str], path: str, kept: tuple[str, ...]) -> None:
    """Compare names and shapes with the model's, but for parameters that keep their values."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith(kept)}
    to_theirs = {ours: theirs for theirs, ours in renames.items()}
    if listing := differences(expected, state, lambda name: rename(name, to_theirs)):
        raise UserError(
            f"{path!r} does not fit {model.title} with {model.num_classes} classes. Pass the state dict of "
            f"{model.published} or of an image classifier (VGG-16 without batch norm). Tensors {listing}."
        )


def _to_caffe_input(state: State, path: str) -> list[str]:
    """Rewrite torchvision's first convolution; the offset goes into its bias.

    Nothing in the tensors tells how their input was scaled, so torchvision's file is known by its checksum.
    """
    if not hashlib.sha256(read_bytes(path)).hexdigest().startswith(TORCHVISION_SHA256):
        return ["took the VGG-16 weights for Caffe's, made for BGR in 0..255; only torchvision's own file is rewritten"]
    state["features.0.weight"], offset = to_caffe_kernel(state["features.0.weight"])
    state["features.0.bias"] = state["features.0.bias"].float() + offset
    return ["torchvision's VGG-16 takes mean-and-std normalised RGB: rewrote its first convolution for BGR in 0..255"]
