"""Networks that also say which classes an image holds: class activation maps, and segmentation that heeds them.

Zhou, Khosla, Lapedriza, Oliva, Torralba: Learning Deep Features for Discriminative Localization, CVPR 2016. Wei, Feng,
Liang, Cheng, Zhao, Yan: Object Region Mining with Adversarial Erasing, CVPR 2017 (AE-PSL).

Shape legend: B images, C classes, H and W pixels, h and w places of the last feature map.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distuda.models.guided_filter import guided_filter
from distuda.models.segmenter import Features, Output, Segmenter, Wrapper

EPS = 1e-3
"""Of the guided filter: variance of a grey level in [0, 1] below which a window counts as flat."""

PRIOR = 0.1
"""Share of a table's classes that an image holds, roughly: where the tags' scores start. At 0.5 a short training
spends itself on the many classes that are absent (Lin et al., Focal Loss, ICCV 2017, section 3.3)."""

NEVER = -1e4
"""Logit of a class that an image cannot hold; finite, so that softmax and low precision stay sound."""


class TagHead(nn.Module):
    """Global average pooling of the last feature map and one linear layer (AE-PSL, section 3.1).

    Args:
        channels: of the last feature map.
        num_classes: C.
        background: the class that no tag names, or None; its score is always `NEVER`.
    """

    def __init__(self, channels: int, num_classes: int, background: int | None) -> None:
        super().__init__()
        self.weights = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.weights.weight, std=0.01)
        nn.init.constant_(self.weights.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]
        possible_C = torch.ones(num_classes, dtype=torch.bool)
        if background is not None:
            possible_C[background] = False
        self.possible_C: Tensor
        self.register_buffer("possible_C", possible_C, persistent=False)

    def forward(self, features: Features) -> Tensor:
        """Logits of the image's tags, (B, C) float32."""
        scores_BC = self.weights(features[-1].mean(dim=(2, 3), keepdim=True)).flatten(1).float()
        return scores_BC.masked_fill(~self.possible_C, NEVER)

    def activation(self, features: Features) -> Tensor:
        """Class activation maps without the bias, negative values cut off, (B, C, h, w) float32; background 0."""
        maps_BChw = F.conv2d(features[-1], self.weights.weight).float().relu()
        return maps_BChw * self.possible_C[:, None, None]


class Localiser(Wrapper):
    """A classifier of tags that shows where it looked.

    ``main`` are heat maps, not logits of a softmax: each class's activation divided by its largest value in the image,
    times how likely the class is beside the likeliest one; the background, where there is one, has the constant
    ``background_heat``. Their largest value is the class map.

    Args:
        network: its encoder is used, and its heads are not.
        head: over the encoder's last map.
        squared: whether the scores are shares of a softmax (squared label loss), or independent (sigmoid).
        background: train id of the background, or None.
        background_heat: heat below which a pixel is background, in [0, 1].
    """

    gives_tags = True
    gives_heat = True

    def __init__(
        self, network: Segmenter, head: TagHead, *, squared: bool, background: int | None, background_heat: float
    ) -> None:
        super().__init__(network)
        self.head, self.has_aux = head, False  # `heads` gives heat alone
        self.squared, self.background, self.background_heat = squared, background, background_heat

    def scores(self, features: Features) -> Tensor:
        """How likely each tag is, (B, C) in [0, 1]."""
        logits_BC = self.head(features)
        return logits_BC.softmax(dim=1) if self.squared else logits_BC.sigmoid()

    def heads(self, features: Features) -> tuple[Tensor, None]:
        """Heat maps at feature resolution, (B, C, h, w) in [0, 1]."""
        maps_BChw, scores_BC = self.head.activation(features), self.scores(features)
        heat = maps_BChw / maps_BChw.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        heat = heat * (scores_BC / scores_BC.amax(dim=1, keepdim=True))[:, :, None, None]
        if self.background is not None:
            here = torch.arange(self.num_classes, device=heat.device) == self.background
            heat = torch.where(here[:, None, None], self.background_heat, heat)
        return heat, None

    def predict(self, image_BCHW: Tensor, seed_B: Tensor | None) -> Output:
        """Heat maps at input size and the tags' scores."""
        output = super().predict(image_BCHW, seed_B)
        return output._replace(tags_BC=self.scores(output.features))

    def head_parameters(self) -> list[nn.Parameter]:
        """The linear layer."""
        return list(self.head.parameters())

    @torch.no_grad()
    def heat(self, image_BCHW: Tensor, scales: tuple[float, ...] = (1.0,), tags: Sequence[int] | None = None) -> Tensor:
        """Class activation maps at input size, not divided by anything, mean over scales and their mirror images.

        Args:
            image_BCHW: float RGB in [0, 1].
            scales: factors of the image's size.
            tags: classes that are looked for, none = all; the maps of others cost memory at the image's size.

        Returns:
            (B, C, H, W) float32, at least 0; of ``tags``, in their order.
        """
        size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
        wanted = list(range(self.num_classes) if tags is None else tags)
        total = torch.zeros(len(image_BCHW), len(wanted), *size, device=image_BCHW.device)
        for scale in scales:
            side = tuple(max(self.min_side, round(scale * s)) for s in size)
            scaled = F.interpolate(image_BCHW, size=side, mode="bilinear", align_corners=False)
            for view, back in ((scaled, False), (scaled.flip(-1), True)):
                maps = self.resize(self.head.activation(self.encode(self.normalise(view)))[:, wanted], size)
                total += maps.flip(-1) if back else maps
        return total / (2 * len(scales))


class Prohibiting(Wrapper):
    """A segmentation network with a branch that knows the image's tags: classes it thinks absent are not predicted.

    Args:
        network: the segmentation network.
        head: over the encoder's last map.
        threshold: p, the score below which a class is prohibited, in [0, 1] (AE-PSL: 0.1); the background never is,
            nor, without one, the likeliest class.
        radius: of the guided filter that fits probabilities to the image's edges [pixels], 0 = none. The paper's dense
            CRF has this part; a filter is what can be exported.
    """

    gives_tags = True

    def __init__(self, network: Segmenter, head: TagHead, threshold: float, radius: int = 0) -> None:
        super().__init__(network)
        self.head, self.threshold, self.radius = head, threshold, radius
        self.has_background = not bool(head.possible_C.all())

    @contextmanager
    def knowing_tags(self) -> Iterator[None]:
        """Prohibits nothing inside the block."""
        threshold, self.threshold = self.threshold, 0.0
        try:
            yield
        finally:
            self.threshold = threshold

    def predict(self, image_BCHW: Tensor, seed_B: Tensor | None) -> Output:
        """Logits at input size, `NEVER` for prohibited classes, and the tags' scores."""
        output = super().predict(image_BCHW, seed_B)
        if self.radius:
            fitted = guided_filter(image_BCHW, output.main.float().softmax(dim=1), self.radius, EPS)
            output = output._replace(main=fitted.clamp(min=1e-6).log())
        scores_BC = self.head(output.features).sigmoid()
        allowed_BC = (scores_BC >= self.threshold) | ~self.head.possible_C
        if not self.has_background:  # something has to win: the likeliest tag
            allowed_BC = allowed_BC | (scores_BC == scores_BC.amax(dim=1, keepdim=True))
        main = output.main.masked_fill(~allowed_BC[:, :, None, None], NEVER)
        return output._replace(main=main, tags_BC=scores_BC)

    def head_parameters(self) -> list[nn.Parameter]:
        """The network's own heads and the branch."""
        return [*self.network.head_parameters(), *self.head.parameters()]


def last_channels(network: Segmenter) -> int:
    """Channels of the last feature map."""
    was_training = network.training
    network.eval()  # nothing may move the statistics
    with torch.no_grad():
        channels = network.encode(network.normalise(torch.zeros(1, 3, 64, 64)))[-1].shape[1]
    network.train(was_training)
    return channels
