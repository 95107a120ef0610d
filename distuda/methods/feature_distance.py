"""DAFormer's feature distance: on things of the source the student's features stay near those it started with.

Hoyer, Dai, Van Gool: DAFormer, CVPR 2022, section 3.3 (thing-class ImageNet feature distance). An encoder that starts
from ImageNet knows things that the source shows poorly; without a rein it forgets them. Of stuff it keeps the network
from learning a place's layout instead of its looks (`benchmarks/accuracy_synthetic_to_real.md`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distuda import losses
from distuda.errors import UserError
from distuda.methods.method import Context, Method, MethodConfig, View
from distuda.models.segmenter import Features, Output, Segmenter, trunk_of


class DistanceConfig(MethodConfig):
    """Fields of `NearStart`."""

    lambda_distance: float = Field(
        0.0, ge=0, description="weight of the feature distance to the starting encoder, 0 = off (DAFormer: 0.005)"
    )
    distance_classes: list[str] | None = Field(
        None, description="names of the classes whose features are kept, none = the class table's things"
    )
    distance_min_share: float = Field(
        0.75, gt=0, le=1, description="share of a feature cell's pixels that must be of one of these classes"
    )


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


class NearStart(Method):
    """Base of the methods whose features of the source may be kept near those they start with."""

    config: Any

    def __init__(self, config: Any, student: Segmenter, context: Context) -> None:
        super().__init__(config, student, context)
        self.distance = None
        if config.lambda_distance:
            kept = context.class_ids(config.distance_classes, "method.distance_classes")
            self.distance = FeatureDistance(student, kept, config.distance_min_share)

    def learn_source(self, output: Output, view: View) -> dict[str, Tensor]:
        """What source labels teach, and how far the features have gone."""
        terms = self.supervise(output, view)
        if self.distance is not None:
            terms["distance_src"] = self.config.lambda_distance * self.distance(output.features, view)
        return terms
