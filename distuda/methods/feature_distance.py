"""DAFormer's feature distance: on things of the source the student's features stay near those it started with.

Hoyer, Dai, Van Gool: DAFormer, CVPR 2022, section 3.3 (thing-class ImageNet feature distance). An encoder that starts
from ImageNet knows things that the source shows poorly; without a rein it forgets them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distuda import losses
from distuda.errors import UserError
from distuda.methods.method import View
from distuda.models.segmenter import Features, Segmenter, trunk_of


class FeatureDistance(nn.Module):
    """Distance to a frozen copy of the network as it starts: ImageNet's encoder, or ``init_from``'s.

    Args:
        student: its trunk is copied; it is not kept.
        things: train ids of things; the distance is taken only where the label shows one.
        min_share: share of a feature cell's pixels that must be of one class.
    """

    def __init__(self, student: Segmenter, things: tuple[int, ...], min_share: float) -> None:
        super().__init__()
        if not things:
            raise UserError(
                "method.lambda_distance > 0 keeps features of things, but the class table has none. Name classes in "
                "method.distance_classes, or set lambda_distance=0."
            )
        self.reference = trunk_of(student).requires_grad_(False)
        self.things, self.min_share = things, min_share

    def train(self, mode: bool = True) -> "FeatureDistance":
        """The copy normalises by the statistics it was trained with, also while the student learns."""
        return super().train(False)

    def forward(self, features: Features, view: View) -> Tensor:
        """Mean over thing cells of the last map's distance |f - f0| (L2 over channels), a scalar; 0 without any.

        Args:
            features: the student's for the view's images.
            view: source images with labels.
        """
        assert view.label_BHW is not None
        with torch.no_grad():
            start = self.reference.encode(self.reference.normalise(view.image_BCHW))[-1]
        # a root has no slope at 0, where the student still is its own copy
        distance_Bhw = (features[-1].float() - start.float()).square().sum(dim=1).clamp(min=1e-12).sqrt()
        cells_Bhw = self.thing_cells(view.label_BHW, (distance_Bhw.shape[-2], distance_Bhw.shape[-1]))
        return losses.global_mean((distance_Bhw * cells_Bhw).sum(), cells_Bhw.sum())

    def thing_cells(self, label_BHW: Tensor, size: tuple[int, int]) -> Tensor:
        """Bool (B, h, w): cells of which one thing class covers at least ``min_share``."""
        present = [(label_BHW == thing).float() for thing in self.things]
        share_BThw = F.adaptive_avg_pool2d(torch.stack(present, dim=1), size)
        return share_BThw.amax(dim=1) >= self.min_share
