"""The contract every segmentation network keeps: normalise, encode to features, decode to logits at input size.

Shape legend: B images, C classes, H and W pixels; ``features`` is the network's own tuple of maps.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distuda.errors import UserError
from distuda.models.dropout import drawn_from

Features = tuple[Tensor, ...]


class Output(NamedTuple):
    """What a network gives for a batch.

    Attributes:
        main: logits (B, C, H, W) at input size.
        aux: logits of a second head, or None: at input size (multi-level networks), or of a part of each image
            (``origin_B2`` is then set).
        features: what `Segmenter.encode` gave.
        origin_B2: int64 top and left of the part that ``aux`` covers, one row an image [pixels].
        tags_BC: how likely each class is somewhere in the image, in [0, 1]; of networks that ``gives_tags`` alone.
    """

    main: Tensor
    aux: Tensor | None = None
    features: Features = ()
    origin_B2: Tensor | None = None
    tags_BC: Tensor | None = None

    def split(self, counts: list[int]) -> list["Output"]:
        """A joint batch's output, cut back into its parts of so many images each."""
        mains, features = self.main.split(counts), [feature.split(counts) for feature in self.features]
        auxes = [None] * len(counts) if self.aux is None else self.aux.split(counts)
        origins = [None] * len(counts) if self.origin_B2 is None else self.origin_B2.split(counts)
        parts = zip(*features, strict=True) if features else [()] * len(counts)
        return [Output(*row) for row in zip(mains, auxes, parts, origins, strict=True)]


class Normalise(nn.Module):
    """RGB in [0, 1] to what the pretrained encoder expects.

    Args:
        mean, std: three values each, in RGB order, on the [0, 1] scale.
        bgr: reverse the channels after normalising (Caffe-style weights).
        scale: final factor (255 for networks fed with mean-subtracted 0..255 values).
    """

    def __init__(self, mean: list[float], std: list[float], *, bgr: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.bgr, self.scale = bgr, scale

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Float RGB [0, 1] (B, 3, H, W) to normalised, same shape."""
        x = (image_BCHW - self.mean) / self.std * self.scale
        return x.flip(1) if self.bgr else x


class Segmenter(nn.Module):
    """Base of all networks: subclasses set ``normalise`` and write `encode`, `heads` and `parameter_groups`.

    Args:
        num_classes: channels of the logits.
        align_corners: how logits are up-sampled to input size (True in the ADVENT family, False elsewhere).
    """

    normalise: Normalise
    has_aux: bool = False  # whether `heads` gives auxiliary logits
    freeze_statistics: bool = False  # batch norm by running statistics, also in training mode
    gives_tags: bool = False  # whether `forward` also tells which classes an image holds (`Output.tags_BC`)
    gives_heat: bool = False  # whether the main map is strengths in [0, 1] and not logits of a softmax
    one_scale: bool = True  # whether `encode` and `heads` are all of a prediction
    min_side: int = 32  # shortest side of a training image [pixels]

    def __init__(self, num_classes: int, *, align_corners: bool = False) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, align_corners

    def train(self, mode: bool = True) -> "Segmenter":
        """Training or evaluation mode; batch norm stays in evaluation mode where its statistics are frozen."""
        super().train(mode)
        if self.freeze_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def encode(self, x_BCHW: Tensor) -> Features:
        """Normalised image to features."""
        raise NotImplementedError

    def heads(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Features to (main, auxiliary or None) logits at feature resolution, float."""
        raise NotImplementedError

    def main_logits(self, features: Features) -> Tensor:
        """The main logits of `heads`; networks with an auxiliary head do not run that one for it."""
        return self.heads(features)[0]

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn at the head's rate (freshly initialised ones)."""
        raise NotImplementedError

    def encoder_parameters(self) -> list[nn.Parameter]:
        """All other trainable parameters: those that usually start from pretrained weights."""
        heads = {id(p) for p in self.head_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in heads]

    def decode(self, features: Features, size: tuple[int, int]) -> Output:
        """Features to logits up-sampled to ``size`` (height, width)."""
        main, aux = self.heads(features)
        return Output(self.resize(main, size), None if aux is None else self.resize(aux, size), features)

    def forward(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Output:
        """float32 RGB in [0, 1], (B, 3, H, W), any H and W of at least 32 -> logits (B, C, H, W).

        ``seed_B`` is given when the network learns: dropout, and whatever else it draws, is drawn from these seeds.
        """
        if seed_B is not None:
            self.check_side(min(image_BCHW.shape[-2:]))
        with drawn_from(self, seed_B):
            return self.predict(image_BCHW, seed_B)

    def predict(self, image_BCHW: Tensor, seed_B: Tensor | None) -> Output:
        """What `forward` does; networks that are more than encoder and heads write their own."""
        features = self.encode(self.normalise(image_BCHW))
        return self.decode(features, (image_BCHW.shape[-2], image_BCHW.shape[-1]))

    def core(self) -> "Segmenter":
        """The network that another run can start from: this one, without what a method has put around it."""
        return self

    @contextmanager
    def knowing_tags(self) -> Iterator[None]:
        """For predictions of images whose tags are known: a network that guesses them leaves its guesses aside."""
        yield

    def check_side(self, side: int) -> None:
        """Refuse training images of which a side is too short for the network [pixels]."""
        if side < self.min_side:
            raise UserError(
                f"the network sees {side} pixels across, but needs {self.min_side}. Enlarge augment.crop (the "
                "context of model.detail is half of it) or model.detail."
            )

    def resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits up-sampled to ``size`` (height, width), as this network is trained to."""
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)


class Wrapper(Segmenter):
    """Base of networks around another one: its features, its heads and its facts, until a subclass says otherwise.

    Args:
        network: what is wrapped.
    """

    def __init__(self, network: Segmenter) -> None:
        super().__init__(network.num_classes, align_corners=network.align_corners)
        self.network, self.normalise = network, network.normalise
        self.has_aux, self.min_side, self.one_scale = network.has_aux, network.min_side, network.one_scale

    def core(self) -> Segmenter:
        """The network without what is around it."""
        return self.network

    def encode(self, x_BCHW: Tensor) -> Features:
        """The network's own features."""
        return self.network.encode(x_BCHW)

    def heads(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """The network's own logits."""
        return self.network.heads(features)


def pick_layers(features: Features, layers: Sequence[int], field: str) -> list[int]:
    """Positions of the chosen maps, counted from the first, in the order of ``layers``; -1 is the last map.

    Raises:
        UserError: a network without such a map; names the recipe's ``field``.
    """
    count = len(features)
    if any(not -count <= layer < count for layer in layers):
        raise UserError(
            f"{field}={list(layers)}: the network gives {count} feature maps. Choose from {-count} to {count - 1}."
        )
    places = [layer % count for layer in layers]
    if len(set(places)) < len(places):
        raise UserError(f"{field}={list(layers)} names a feature map twice: there are {count}. Leave one out.")
    return places


def trunk_of(network: Segmenter) -> Segmenter:
    """A copy that can only encode: every module that is all head is gone, and is in no checkpoint."""
    trunk = copy.deepcopy(network)
    heads = set(trunk.head_parameters())
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            parameters = set(child.parameters())
            if parameters and parameters <= heads:
                setattr(module, name, nn.Identity())
    return trunk


def require_one_scale(network: Segmenter, method: str) -> None:
    """Refuse a network whose features are not all that its prediction comes from."""
    if not network.one_scale:
        raise UserError(f"method {method!r} works on the features of one scale. Set model.detail=none.")


def cut(map_BnHW: Tensor, origin_B2: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of each image's map (B, ..., H, W) of that size (height, width) below and right of its origin."""
    height, width = map_BnHW.shape[-2:]
    rows = origin_B2[:, :1] + torch.arange(size[0], device=map_BnHW.device)
    columns = origin_B2[:, 1:] + torch.arange(size[1], device=map_BnHW.device)
    flat = map_BnHW.reshape(len(map_BnHW), -1, height * width)
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    part = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
    return part.view(*map_BnHW.shape[:-2], *size)
