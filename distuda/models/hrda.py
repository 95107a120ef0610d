"""Context and detail: any network run on the whole image at half size and on full-size windows, joined by attention.

Hoyer, Dai, Van Gool: HRDA, Context-Aware High-Resolution Domain-Adaptive Semantic Segmentation, ECCV 2022, section 3.
Shape legend: B images, C classes, H and W pixels, n windows an image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distuda.draws import uniform
from distuda.errors import UserError
from distuda.models.daformer import MlpDecoder
from distuda.models.segmenter import Features, Output, Segmenter, cut

CONTEXT_STRIDE = 2
"""The context is the image at half size."""
_ATTENTION_WIDTH = 256


class Hrda(Segmenter):
    """A network on two scales.

    While learning, one window an image is drawn from the image's seed and ``aux`` is its own prediction there; else
    windows at half a window's distance cover the image and are averaged. A class-wise attention map, made of the
    context's features, decides how much of the detail is taken; outside the windows it is 0. Both are joined at input
    size (the paper's code: at a quarter of it).

    Windows lie anywhere (the paper's code: at multiples of 8 pixels).

    Args:
        network: used for both scales; without an auxiliary head.
        detail: height and width of a window [pixels]; half the training crop in the paper.
    """

    one_scale = False

    def __init__(self, network: Segmenter, detail: tuple[int, int]) -> None:
        super().__init__(network.num_classes, align_corners=network.align_corners)
        self.network, self.detail, self.normalise = network, detail, network.normalise
        self.min_side = network.min_side * CONTEXT_STRIDE
        network.check_side(min(detail))
        self.attention = MlpDecoder(_channels(network), network.num_classes, _ATTENTION_WIDTH)

    def encode(self, x_BCHW: Tensor) -> Features:
        """Normalised image to the context's features."""
        half = self._context(x_BCHW.shape[-2]), self._context(x_BCHW.shape[-1])
        return self.network.encode(F.interpolate(x_BCHW, size=half, mode="bilinear", align_corners=False))

    def heads(self, features: Features) -> tuple[Tensor, None]:
        """The context's features to its logits; no auxiliary head."""
        return self.network.heads(features)[0], None

    def head_parameters(self) -> list[nn.Parameter]:
        """The network's own heads and the attention."""
        return [*self.network.head_parameters(), *self.attention.parameters()]

    def predict(self, image_BCHW: Tensor, seed_B: Tensor | None) -> Output:
        """As `Segmenter.forward`; with seeds ``aux`` is one window an image and ``origin_B2`` its place."""
        x_BCHW = self.normalise(image_BCHW)
        size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
        features = self.encode(x_BCHW)
        context = self._lift(self.heads(features)[0], size)
        attention = self._lift(self.attention(features), size).sigmoid()
        if seed_B is None:
            return Output(torch.lerp(context, self._all_windows(x_BCHW), attention.to(context.dtype)), None, features)
        origin_B2 = self._draw_origins(seed_B, size)
        detail = self._predict(cut(x_BCHW, origin_B2, self.detail))
        inside = _paste(torch.ones_like(detail[:, :1]), origin_B2, size)
        main = torch.lerp(context, _paste(detail, origin_B2, size), (attention * inside).to(context.dtype))
        return Output(main, detail, features, origin_B2)

    def _draw_origins(self, seed_B: Tensor, size: tuple[int, int]) -> Tensor:
        """Top and left of one window an image, anywhere in it, int64 (B, 2)."""
        room = [side - part + 1 for side, part in zip(size, self.detail, strict=True)]
        if min(room) < 1:
            raise UserError(
                f"model.detail={list(self.detail)} (height, width) does not fit into the crop {list(size)}. Choose "
                "windows inside it; HRDA's are half as high and half as wide."
            )
        draws = uniform(seed_B, "detail", 2)
        return torch.stack([draws[:, i] * room[i] for i in (0, 1)], dim=1).long()

    def _context(self, side: int) -> int:
        """Pixels of a side of the context: half, and in small images as many as the network needs."""
        return torch.sym_max(side // CONTEXT_STRIDE, self.network.min_side)

    def _lift(self, map_BChw: Tensor, size: tuple[int, int]) -> Tensor:
        """A map made of the context to input size; the network itself knows what of it covers padding."""
        half = self._context(size[0]), self._context(size[1])
        return self.resize(self.network.resize(map_BChw, half), size)

    def _predict(self, x_BCHW: Tensor) -> Tensor:
        """Full-size normalised windows to logits of their size."""
        logits, _ = self.network.heads(self.network.encode(x_BCHW))
        return self.network.resize(logits, (x_BCHW.shape[-2], x_BCHW.shape[-1]))

    def _all_windows(self, x_BCHW: Tensor) -> Tensor:
        """Logits of overlapping windows, averaged where they overlap; (B, C, H, W).

        The image is padded with the mean colour to whole windows. Cut and joined without a loop, so that an exported
        graph takes any size.
        """
        (height, width), (batch, channels) = x_BCHW.shape[-2:], x_BCHW.shape[:2]
        step = self.detail[0] // 2, self.detail[1] // 2
        below = _missing(height, self.detail[0], step[0])
        right = _missing(width, self.detail[1], step[1])
        padded = F.pad(x_BCHW, (0, right, 0, below))
        windows = padded.unfold(2, self.detail[0], step[0]).unfold(3, self.detail[1], step[1])
        flat = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, *self.detail)
        logits = self._predict(flat).flatten(1)
        columns = logits.reshape(batch, -1, logits.shape[1]).transpose(1, 2)
        whole = height + below, width + right
        total = F.fold(columns.float(), whole, self.detail, stride=step)
        pixels = self.detail[0] * self.detail[1]
        count = F.fold(torch.ones_like(columns[:1, :pixels], dtype=torch.float32), whole, self.detail, stride=step)
        return (total / count)[..., :height, :width].to(logits.dtype)


def _missing(side: int, window: int, step: int) -> int:
    """Pixels that a side lacks to hold a whole number of steps beyond its first window."""
    return torch.sym_max(window - side, 0) + (-torch.sym_max(side - window, 0)) % step


def _paste(part_BChw: Tensor, origin_B2: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros (B, C, *size) with each image's part at its origin: `cut` the other way round."""
    batch, channels, height, width = part_BChw.shape
    rows = origin_B2[:, :1] + torch.arange(height, device=part_BChw.device)
    columns = origin_B2[:, 1:] + torch.arange(width, device=part_BChw.device)
    index = (rows[:, :, None] * size[1] + columns[:, None, :]).flatten(1)
    canvas = part_BChw.new_zeros(batch, channels, size[0] * size[1])
    index = index[:, None].expand(-1, channels, -1)
    return canvas.scatter(2, index, part_BChw.flatten(2)).view(batch, channels, *size)


def _channels(network: Segmenter) -> list[int]:
    """Channels of each of a network's feature maps, found by looking at one."""
    mode = network.training
    with torch.no_grad():
        features = network.eval().encode(torch.zeros(1, 3, 64, 64))
    network.train(mode)
    return [feature.shape[1] for feature in features]
