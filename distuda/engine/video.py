"""What an evaluation says of clips beside mIoU: video panoptic quality and temporal consistency."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distuda.data.batch import Batch
from distuda.data.labels import ClassTable
from distuda.metrics.vpq import TemporalConsistency, VideoPanopticQuality
from distuda.warp import resize_flow, warp_label

Predict = Callable[[Tensor, tuple[int, int]], Tensor]
"""uint8 images and a (height, width) -> class maps of that size."""


class Video:
    """Gathers over frames in the order of their clips; still images leave it empty.

    Args:
        table: names and things of the classes.
        predict: for the frames before those that are scored, where they were not the last to be scored themselves.
    """

    def __init__(self, table: ClassTable, predict: Predict) -> None:
        self.table, self.predict = table, predict
        self.quality = VideoPanopticQuality(table.num_classes, sorted(table.things))
        self.consistency = TemporalConsistency()
        self._last: tuple[str, Tensor] | None = None

    def update(self, batch: Batch, prediction_BHW: Tensor) -> None:
        """Add one frame: a batch of one as `reader.iterate_once` gives it, and its class map (1, H, W)."""
        if not (batch.clips and batch.clips[0]):
            return
        size = (prediction_BHW.shape[-2], prediction_BHW.shape[-1])
        if batch.before is not None:
            assert batch.flow_B2HW is not None and batch.valid_BHW is not None
            warped = warp_label(self._before(batch.before, size), resize_flow(batch.flow_B2HW, size))
            valid = torch.nn.functional.interpolate(batch.valid_BHW[:, None].float(), size=size)[:, 0] > 0
            self.consistency.update(prediction_BHW, warped, valid)
        self._last = (batch.keys[0], prediction_BHW)
        if batch.label_BHW is not None:
            maps = (prediction_BHW[0].to(torch.uint8), batch.label_BHW[0].to(torch.uint8))
            self.quality.update(batch.clips[0], *maps)

    def _before(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        if self._last is not None and self._last[0] == batch.keys[0] and self._last[1].shape[1:] == size:
            return self._last[1]
        return self.predict(batch.image_BCHW, size)

    def row(self) -> dict[str, Any]:
        """``vpq``, ``vpq_1`` ... and their things and stuff (`VideoPanopticQuality.scores`, semantic tubes), by class
        ``vpq_per_class`` (the mean over the windows in which the class has a value, None without one), and
        ``temporal_consistency``; all in [0, 1]. What no frame says anything about is left out.
        """
        self.quality.all_reduce()
        self.consistency.all_reduce()
        row: dict[str, Any] = {}
        if int(self.quality.counts_W4C.sum()):
            row = {name: value for name, value in self.quality.scores().items() if value == value}
            named = zip(self.table.classes, self.quality.per_class().T, strict=True)
            row["vpq_per_class"] = {name: _mean(quality_W[np.isfinite(quality_W)]) for name, quality_W in named}
        if int(self.consistency.counts[1]):
            row["temporal_consistency"] = self.consistency.score()
        return row


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
