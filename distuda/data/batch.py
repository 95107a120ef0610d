"""What a training step receives: images, labels and the seeds that decide every random draw about them.

Shape legend, used in every file: B samples, C classes or channels, H height, W width.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """One domain's samples on one device.

    Fresh from a stream, ``image_BCHW`` is uint8 RGB and not yet augmented; after `augment.geometry` it is float32
    RGB in [0, 1] at crop size.

    Attributes:
        image_BCHW: uint8 in [0, 255] or float32 in [0, 1], RGB.
        label_BHW: int64 train ids, 255 = ignore; None when the domain has no labels.
        seed_B: int64, one seed a sample. Every draw about a sample is a pure function of its seed, so the draws do
            not depend on rank, world size or how often a run was interrupted.
        keys: the samples' keys, for messages.
        pair_BCHW: the other domain's images of (nearly) the same views, as ``image_BCHW`` in type, size, crop and flip;
            None unless the method asked for them.
    """

    image_BCHW: Tensor
    label_BHW: Tensor | None
    seed_B: Tensor
    keys: list[str] = field(default_factory=list)
    pair_BCHW: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        label_BHW = None if self.label_BHW is None else self.label_BHW.to(device, non_blocking=True)
        return replace(
            self,
            image_BCHW=self.image_BCHW.to(device, non_blocking=True),
            label_BHW=label_BHW,
            seed_B=self.seed_B.to(device, non_blocking=True),
            pair_BCHW=None if self.pair_BCHW is None else self.pair_BCHW.to(device, non_blocking=True),
        )

    def split(self, parts: int) -> list["Batch"]:
        """Equal micro-batches in order, for gradient accumulation; the sample count must divide by ``parts``."""
        images = self.image_BCHW.chunk(parts)
        labels = [None] * parts if self.label_BHW is None else list(self.label_BHW.chunk(parts))
        seeds = self.seed_B.chunk(parts)
        size = len(self.keys) // parts
        keys = [self.keys[i * size : (i + 1) * size] for i in range(parts)]
        pairs = [None] * parts if self.pair_BCHW is None else list(self.pair_BCHW.chunk(parts))
        return [Batch(*row) for row in zip(images, labels, seeds, keys, pairs, strict=True)]
