"""What all label-free scores have in common: what they are made from, and how they are fed, summed and read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from distuda.data.batch import Batch

Predict = Callable[[Tensor, tuple[int, int]], Tensor]
"""RGB images (B, 3, H, W) with values in [0, 255], (height, width) -> main logits (B, C, height, width), float32."""


def _no_predict(image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    raise ValueError("this score asks for predictions of its own and was given no network")


@dataclass(frozen=True)
class Setting:
    """What scores are made from.

    Attributes:
        num_classes: C of the logits.
        device: where sums lie; ranks that see no image must have theirs where the others have.
        predict: the network that is scored, for scores that show it further images.
        frequency_src_C: share of each class among the source's labelled pixels, sums to 1; None when not known.
    """

    num_classes: int
    device: torch.device | str = "cpu"
    predict: Predict = _no_predict
    frequency_src_C: Tensor | None = None


class Score(Protocol):
    """A label-free score, or several that share their sums. Higher is better, always.

    Attributes:
        domain: whose images it is fed.
    """

    domain: ClassVar[Literal["source", "target"]]

    def update(self, batch: Batch, logits_BCHW: Tensor, prediction_BHW: Tensor) -> None:
        """Add images.

        Args:
            batch: uint8 images and their seeds; a label is looked at by scores of the source alone.
            logits_BCHW: what the network says of them, at any size.
            prediction_BHW: the class maps that follow from it.
        """

    def all_reduce(self) -> None:
        """Bring together what all ranks saw; nothing with one rank. A rank that saw no image takes part."""

    def scores(self) -> dict[str, float]:
        """By name; NaN where too little was seen."""
