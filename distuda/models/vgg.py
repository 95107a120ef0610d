"""DeepLab-v2 on VGG-16, the smaller network of AdaptSegNet's and APODA's tables, and its published weights.

Simonyan and Zisserman: VGG, ICLR 2015; the dilated form is that of the code of Tsai et al., "Learning to Adapt
Structured Output Space", CVPR 2018. Trunk parameters carry its names (``features.0`` to ``features.31``).
Shape legend: B images, C classes, H and W pixels, h and w pixels at output stride 8.
"""

import hashlib
import logging

from torch import Tensor, nn

from distuda.errors import UserError
from distuda.models.deeplab import CAFFE_MEAN_BGR, DILATIONS, Head, HeadBranches
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

# Channels and dilation of the thirteen VGG convolutions and of fc6 and fc7; 0 is a 2x2 max-pool.
_LAYERS = [
    (64, 1), (64, 1), (0, 0), (128, 1), (128, 1), (0, 0), (256, 1), (256, 1), (256, 1), (0, 0),
    (512, 1), (512, 1), (512, 1), (512, 2), (512, 2), (512, 2), (1024, 4), (1024, 4),
]  # fmt: skip
_HEAD = "main_head."
_FRESH = ("features.29.", "features.31.", _HEAD)  # fc6, fc7 and the head: what image classifiers do not bring
_HEAD_NAMES = {"classifier.conv2d_list.": "main_head.branches."}
# conv5 of an image classifier, where the pool between conv4 and conv5 counts as a layer
_CONV5 = {"features.24.": "features.23.", "features.26.": "features.25.", "features.28.": "features.27."}
_CAFFE_STD = 57.0  # rough standard deviation of mean-subtracted 0..255 photographs
TORCHVISION_SHA256 = "397923af"  # first digits of torchvision's vgg16-397923af.pth

IMAGENET_ADVICE = (
    "weights 'imagenet': VGG-16's ImageNet weights are not shipped with Distuda and nothing is downloaded. Fetch "
    "vgg16-00b39a1b.pth (the Caffe weights that the papers used, from github.com/jcjohnson/pytorch-vgg) or "
    "torchvision's vgg16-397923af.pth and pass the path as weights, or choose weights 'none'."
)

log = logging.getLogger(__name__)


class DeepLabV2Vgg16(Segmenter):
    """DeepLab-v2 on VGG-16 at output stride 8: pool4 and pool5 removed, conv5 dilated by 2, fc6 and fc7 by 4.

    Fed with RGB in [0, 1] and normalised the Caffe way inside. One level, no batch norm, no dropout. The paper's code
    has one learning rate for all of it: set ``optimizer.head_lr_factor`` to 1.

    Args:
        num_classes: C of the logits.
        head_branches: ``all`` sums dilations 6, 12, 18 and 24; ``reduced`` only 6 and 12, which is what the released
            AdaptSegNet code computes, so choose it to evaluate AdaptSegNet weights.
    """

    def __init__(self, num_classes: int, *, head_branches: HeadBranches = "all") -> None:
        super().__init__(num_classes, align_corners=True)
        self.head_branches = head_branches
        self.normalise = Normalise([m / 255 for m in reversed(CAFFE_MEAN_BGR)], [1.0] * 3, bgr=True, scale=255.0)
        self.features = _trunk()
        self.main_head = Head(1024, num_classes, DILATIONS[head_branches])

    def encode(self, x_BCHW: Tensor) -> Features:
        """Normalised image to fc7's map (B, 1024, H // 8, W // 8)."""
        return (self.features(x_BCHW),)

    def heads(self, features: Features) -> tuple[Tensor, None]:
        """Logits (B, C, h, w); no auxiliary head."""
        return self.main_head(features[0]), None

    def head_parameters(self) -> list[nn.Parameter]:
        """The classifier; fc6 and fc7 count as trunk."""
        return list(self.main_head.parameters())


def _trunk() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, dilation in _LAYERS:
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        if channels == 3:  # nothing normalises later on, so without pretrained weights 0..255 would reach the logits
            nn.init.normal_(convolution.weight, std=(2 / 27) ** 0.5 / _CAFFE_STD)
        layers += [convolution, nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)


def initialise_vgg(model: DeepLabV2Vgg16, weights: str) -> list[str]:
    """Give a fresh network its starting weights; returns what was left out or changed, one sentence each.

    Args:
        weights: ``none``, or the path or URI of a file for `load_vgg`; a classifier that does not fit is left out.

    Raises:
        UserError: for ``imagenet`` (no such weights are shipped), a path of another type, or a file that does not fit.
    """
    path = weights_file(weights, IMAGENET_ADVICE)
    return load_vgg(model, path, strict_heads=False) if path else []


def load_vgg(model: DeepLabV2Vgg16, path: str, *, strict_heads: bool = True) -> list[str]:
    """Load a weights file whole or not at all; returns, and logs, what was left out or changed.

    An AdaptSegNet VGG (``classifier.conv2d_list``) fills everything. An image classifier under torchvision's names
    gives the thirteen convolutions; fc6, fc7 and the head keep their values. It is taken as Caffe weights, made for
    BGR in 0..255, unless it is torchvision's own file: then the first convolution is rewritten.

    Args:
        path: ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``, local or a URI.
        strict_heads: refuse a segmentation file whose classifier is not the model's; else leave that out.

    Raises:
        UserError: the file cannot be read safely, or lists every missing, unexpected or wrongly shaped tensor.
    """
    state = {PREFIXES.sub("", name): tensor for name, tensor in read_tensors(path).items()}
    is_image_classifier = any(name.startswith(tuple(_CONV5)) for name in state)
    renames = _CONV5 if is_image_classifier else _HEAD_NAMES
    notes = leave_out(state, r"^classifier\.\d", "an image classifier") if is_image_classifier else []
    state = {rename(name, renames): tensor for name, tensor in state.items()}
    if model.head_branches == "reduced":
        notes += leave_out(state, r"_head\.branches\.[23]\.", "the branches of dilation 18 and 24 (a reduced head)")
    if not strict_heads:
        notes += leave_out_misfit_head(model, state, _HEAD)
    kept = _FRESH if is_image_classifier else ()
    if not strict_heads and not any(name.startswith(_HEAD) for name in state):
        kept = (*kept, _HEAD)
    _check(model, state, renames, path, kept)
    if is_image_classifier:
        notes += _to_caffe_input(state, path)
    model.load_state_dict({**model.state_dict(), **state})
    for note in notes:
        log.warning("%s", note)
    return notes


def _check(model: DeepLabV2Vgg16, state: State, renames: dict[str, str], path: str, kept: tuple[str, ...]) -> None:
    """Compare names and shapes with the model's, but for parameters that keep their values."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith(kept)}
    to_theirs = {ours: theirs for theirs, ours in renames.items()}
    if listing := differences(expected, state, lambda name: rename(name, to_theirs)):
        raise UserError(
            f"{path!r} does not fit DeepLab-v2 on VGG-16 with {model.num_classes} classes. Pass the state dict of "
            f"AdaptSegNet's VGG network or of an image classifier (VGG-16 without batch norm). Tensors {listing}."
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
