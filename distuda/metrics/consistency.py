"""Whether a network says the same of an image and of a changed one."""

from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from distuda.data.augment import PhotometryConfig, photometry
from distuda.data.batch import Batch
from distuda.metrics.confusion import Confusion, class_map
from distuda.metrics.score import Setting

JITTER = PhotometryConfig(probability=1, brightness=0.25, contrast=0.25, saturation=0.25, hue=0.05, blur=0)
"""How colours are changed. The hue hardly turns: a green sky is another scene, not another view of this one. Fixed, so
that trials that differ in ``augment`` are compared by the same measure."""


class AugmentationConsistency:
    """Overlap of the predictions on an image and on it mirrored, in other colours; in [0, 1], 1 = always the same.

    With A_c and B_c the pixels predicted as c on the images and, mirrored back, on the changed ones, of the whole set:

        1/C sum_c |A_c and B_c| / |A_c or B_c|,   a class that is in neither counting 0.

    Plain agreement of pixels, and also the mean over the classes that occur, is 1 for a network that calls everything
    road. Here that scores 1/C, and a lost rare class costs as much as a lost frequent one, as in mIoU. The price is a
    ceiling below 1 where the set does not show some class; it is the same for all who are compared on that set. Fooled
    by mistakes that do not depend on colour and side, and kind to methods trained for this very consistency.

    Colours are drawn from the samples' seeds, their numbers in the set, so the score does not depend on ranks.
    Agreement over augmented views as a sign of reliability follows Prabhu, Khare, Kartik and Hoffman, "AUGCO", 2021.

    Costs one more forward pass an image, with jitter and counting 1.4 of `lite` on a CPU.
    """

    domain: ClassVar[Literal["source", "target"]] = "target"

    def __init__(self, setting: Setting) -> None:
        self.predict = setting.predict
        self.confusion = Confusion(setting.num_classes)
        self.confusion.counts_CC = self.confusion.counts_CC.to(setting.device)

    def update(self, batch: Batch, logits_BCHW: Tensor, prediction_BHW: Tensor) -> None:
        """Add images, each seen once more."""
        size = (prediction_BHW.shape[-2], prediction_BHW.shape[-1])
        changed = photometry(batch.image_BCHW.float() / 255, batch.seed_B, JITTER, "augmentation_consistency").flip(-1)
        again = class_map(self.predict(changed * 255, size)).flip(-1)
        self.confusion.update(again, prediction_BHW)

    def all_reduce(self) -> None:
        """Sum over ranks; nothing with one rank."""
        self.confusion.all_reduce()

    def scores(self) -> dict[str, float]:
        """``augmentation_consistency``; NaN without an image."""
        seen = bool(self.confusion.counts_CC.any())
        return {"augmentation_consistency": float(np.nan_to_num(self.confusion.iou()).mean()) if seen else float("nan")}
