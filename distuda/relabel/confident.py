"""Labels of which only the sure pixels are kept, sure for their class and their clip.

Video self-training's thresholds, our reading (methods card docs/methods/video_self_training.md): a class that a clip
shows dimly keeps its best half instead of nothing. Zou et al. (CBST, ECCV 2018) choose a share of each class likewise.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from distuda.data.labels import IGNORE
from distuda.relabel.relabeller import Counts, Map, RelabelConfig, Relabeller, Row, map_of


class Confident(Relabeller):
    """Ignores every pixel whose confidence is below its class's threshold min(limit, quantile over the clip).

    Reads ``label`` and ``confidence`` as `Aggregate` writes them; writes ``label``. A frame without confidences is one
    that was passed over (``max_bad_share``): it counts for no threshold, and nothing of it is labelled.
    """

    class Config(RelabelConfig):
        """Fields of `Confident`."""

        name: Literal["confident"] = "confident"
        domain: Literal["source", "target"] = Field("target", description="whose samples are looked at")
        limit: float = Field(0.9, ge=0, le=1, description="probability from which a pixel is always kept (our reading)")
        share: float = Field(
            0.5, ge=0, le=1, description="quantile of a class's confidences below which its pixels are ignored"
        )
        per: Literal["clip", "set"] = Field(
            "clip", description="what the quantile is taken over: all frames of the clip (a still alone), or the set"
        )

        @property
        def reads(self) -> tuple[str, ...]:
            """What `Aggregate` has written."""
            return ("label", "confidence")

    config: Config
    writes = ("label",)
    needs_network = False

    @property
    def surveys(self) -> Literal["clip", "set"]:
        """Clip or set."""
        return self.config.per

    def survey(self, row: Row) -> Counts:
        """Pixels of each class and confidence, (C, 256)."""
        num_classes = self.task.table.num_classes
        if row["confidence"] is None:
            return np.zeros((num_classes, 256), np.int64)
        label, confidence = map_of(row, "label"), map_of(row, "confidence")
        known = label != IGNORE
        cell = label[known].astype(np.int64) * 256 + confidence[known]
        return np.bincount(cell, minlength=256 * num_classes).reshape(num_classes, 256)

    def __call__(self, row: Row) -> dict[str, Map]:
        """Columns of one sample."""
        label = map_of(row, "label").copy()
        if row["confidence"] is None:
            return {"label": np.full_like(label, IGNORE)}
        limits_C = thresholds(row["survey"], self.config.share, 255 * self.config.limit)
        known = label != IGNORE
        label[known] = np.where(map_of(row, "confidence")[known] < limits_C[label[known]], IGNORE, label[known])
        return {"label": label}


def thresholds(counts_CN: Counts, share: float, limit: float) -> NDArray[np.float64]:
    """Of each class the smallest value that at least a share of its pixels do not exceed, at most ``limit``, (C,)."""
    below_CN = counts_CN.cumsum(axis=1)
    wanted_C1 = np.maximum(share * below_CN[:, -1:] - 1e-6, 1)  # a product's rounding must not ask for a pixel more
    reached_CN = below_CN >= wanted_C1
    return np.minimum(reached_CN.argmax(axis=1), limit)
