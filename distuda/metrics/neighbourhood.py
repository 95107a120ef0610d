"""Whether predictions form dense clusters: soft neighbourhood density of a sample of pixels."""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distuda.data.batch import Batch
from distuda.draws import fold, uniform
from distuda.losses import world_size
from distuda.metrics.score import Setting

PIXELS_PER_IMAGE = 100
"""Drawn from each image, as in the authors' own scripts."""

MAX_PIXELS = 4096
"""Kept of all images: 1 MB with 60 classes; their similarities take one core 0.2 s."""

TEMPERATURE = 0.05
"""Of the similarities, as in the paper."""

_ROWS = 512  # of the similarity matrix at once: 8 MB
_NAME = "soft_neighbourhood_density"


class NeighbourhoodDensity:
    """Soft neighbourhood density (Saito et al., "Tune it the Right Way", ICCV 2021), in [0, 1], higher = denser.

    With f_i the softmax output of pixel i scaled to length 1, N pixels and the softmax over all j but i:

        1/N sum_i H(softmax_j(f_i . f_j / 0.05)) / log(N - 1)

    A pixel with many neighbours of about its own prediction has an even similarity distribution, of high entropy. The
    paper's number is this times log(N - 1). It is fooled by collapse: where all pixels are predicted alike, sure or
    not, it is 1.

    Which pixels: 100 an image (with replacement), and of those of all images the 4096 whose 64-bit numbers are lowest,
    both drawn from the samples' seeds, their numbers in the set. That is a uniform sample that ranks can draw apart:
    the lowest of all are among the lowest of each. So memory is bounded (4096 (C + 2) floats a rank) and the result
    depends neither on how images are split over ranks nor on their order. The pixels are of several images, as the
    paper's samples are in classification; the authors' script for segmentation scores each image apart.

    Costs little an image, and the similarities of 4096 pixels at the end.
    """

    domain: ClassVar[Literal["source", "target"]] = "target"

    def __init__(self, setting: Setting) -> None:
        self.pixels_NC = torch.zeros(0, setting.num_classes, device=setting.device)
        self.order_N = torch.zeros(0, dtype=torch.int64, device=setting.device)

    def update(self, batch: Batch, logits_BCHW: Tensor, prediction_BHW: Tensor) -> None:
        """Add images: the seeds say which pixels' logits are looked at."""
        flat_BCP = logits_BCHW.flatten(2)
        draws_BK = uniform(batch.seed_B, f"{_NAME}/place", PIXELS_PER_IMAGE)
        place_BK = (draws_BK.double() * flat_BCP.shape[2]).long()
        chosen_BCK = flat_BCP.gather(2, place_BK[:, None].expand(-1, flat_BCP.shape[1], -1))
        features_BCK = F.normalize(chosen_BCK.float().softmax(dim=1), dim=1)
        number_BK = fold(batch.seed_B, _NAME)[:, None] + torch.arange(PIXELS_PER_IMAGE, device=batch.seed_B.device)
        order_BK = fold(number_BK, "order")
        self._keep(
            torch.cat([self.order_N, order_BK.flatten()]),
            torch.cat([self.pixels_NC, features_BCK.transpose(1, 2).flatten(0, 1)]),
        )

    def _keep(self, order_N: Tensor, pixels_NC: Tensor) -> None:
        """The pixels of the lowest numbers, ascending, so that sums are taken in one order too."""
        first = order_N.argsort()[:MAX_PIXELS]
        self.order_N, self.pixels_NC = order_N[first], pixels_NC[first]

    def all_reduce(self) -> None:
        """The lowest of all ranks' pixels on each rank; nothing with one rank."""
        if world_size() == 1:
            return
        parts: list[Any] = [None] * world_size()
        torch.distributed.all_gather_object(parts, (self.order_N.cpu(), self.pixels_NC.cpu()))
        orders, pixels = zip(*parts, strict=True)
        device = self.order_N.device
        self._keep(torch.cat(orders).to(device), torch.cat(pixels).to(device))

    def scores(self) -> dict[str, float]:
        """``soft_neighbourhood_density``; NaN below three pixels."""
        count = len(self.pixels_NC)
        if count < 3:
            return {_NAME: math.nan}
        total = 0.0
        for start in range(0, count, _ROWS):
            rows = self.pixels_NC[start : start + _ROWS]
            similarity = rows @ self.pixels_NC.T / TEMPERATURE
            similarity.diagonal(start).fill_(-math.inf)  # nobody is a neighbour of itself
            total += float(torch.special.entr(similarity.softmax(dim=1)).sum(dtype=torch.float64))
        return {_NAME: total / count / math.log(count - 1)}
