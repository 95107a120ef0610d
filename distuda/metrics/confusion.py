"""mIoU by the Cityscapes convention: one int64 confusion matrix over the whole set, at native label size.

Pixels whose label is ignored never count, classes that neither occur nor are predicted leave the mean
(cityscapesScripts, evalPixelLevelSemanticLabeling).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from distuda.losses import IGNORE


def class_map(logits_BCHW: Tensor) -> Tensor:
    """The class of the largest logit a pixel, the first of equals, (B, H, W) int64."""
    return logits_BCHW.max(dim=1).indices  # torch's argmax takes two to five times as long on a CPU


@dataclass
class Confusion:
    """Counts by (label, prediction), summed over images and, with `all_reduce`, over ranks.

    Args:
        num_classes: C; predictions must be in [0, C).
    """

    num_classes: int
    counts_CC: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts_CC = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

    def update(self, prediction_HW: Tensor, label_HW: Tensor) -> None:
        """Add one or more images; both integer tensors of the same shape, on one device.

        Raises:
            ValueError: shapes differ, or a pixel whose label counts has a label or a prediction outside [0, C).
        """
        if prediction_HW.shape != label_HW.shape:
            raise ValueError(
                f"prediction {tuple(prediction_HW.shape)} and label {tuple(label_HW.shape)} differ in shape"
            )
        index = label_HW.flatten().long() * self.num_classes + self._counted(prediction_HW, label_HW).flatten()
        counts = torch.bincount(index, minlength=(IGNORE + 1) * self.num_classes).view(-1, self.num_classes)
        if counts[self.num_classes : IGNORE].any() or len(counts) > IGNORE + 1:
            wrong = label_HW[(label_HW >= self.num_classes) & (label_HW != IGNORE)]
            raise ValueError(f"an id is outside [0, {self.num_classes}): label {wrong.max()}")
        self.counts_CC = self.counts_CC.to(counts.device) + counts[: self.num_classes]

    def _counted(self, prediction_HW: Tensor, label_HW: Tensor) -> Tensor:
        """The prediction with any class in place of what it says where the label is ignored, if it says no class."""
        if not prediction_HW.numel() or int(prediction_HW.max()) < self.num_classes:
            return prediction_HW
        prediction_HW = prediction_HW.masked_fill(label_HW == IGNORE, 0)
        if int(prediction_HW.max()) >= self.num_classes:
            raise ValueError(f"an id is outside [0, {self.num_classes}): prediction {prediction_HW.max()}")
        return prediction_HW

    def all_reduce(self) -> None:
        """Sum over ranks; nothing with one rank."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counts_CC)

    def iou(self) -> np.ndarray:
        """Intersection over union a class, float64 in [0, 1]; NaN for classes without a pixel on either side."""
        counts = self.counts_CC.cpu().numpy().astype(np.float64)
        hits = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - hits
        return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Mean IoU in [0, 1] over the classes that occur or are predicted; over those alone, where some are named."""
        iou = self.iou() if classes is None else self.iou()[list(classes)]
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def accuracy(self) -> float:
        """Share of labelled pixels predicted right, in [0, 1]."""
        return float(self.counts_CC.diagonal().sum() / self.counts_CC.sum().clamp(min=1))
