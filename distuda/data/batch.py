"""What a training step receives: images, labels and the seeds that decide every random draw about them.

Shape legend, used in every file: B samples, C classes or channels, H height, W width.
"""

from dataclasses import dataclass, field, replace
from typing import Any

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
        tags_BC: bool, the classes known to be in the image; None unless the method asked for them.
        mined_BHW: int64, the class whose object a pixel was found to be, 254 = several claim it, 255 = none; size, crop
            and flip as the image's. None unless the method asked for it.
        shown_BHW: bool, false where there is nothing of the image because it is smaller than the window or crop; size,
            crop and flip as the image's. None = there is nothing of that kind in the batch.
        stored_B: int64, how many pixels each image had before it was resized. None = as many as now.
        before: the clips' frames before these, with the same seeds, crops and flips; their label is 255 where they have
            none. None unless the method asked for clips, and of a clip's first frame.
        flow_B2HW: float32 backward flow to ``before``: what is at (x, y) was at (x + u, y + v) there [pixels].
        valid_BHW: bool, where the flow holds: not at what was hidden or out of sight before.
        clips: name of each sample's clip, empty for stills; filled for evaluation alone.
    """

    image_BCHW: Tensor
    label_BHW: Tensor | None
    seed_B: Tensor
    keys: list[str] = field(default_factory=list)
    pair_BCHW: Tensor | None = None
    tags_BC: Tensor | None = None
    mined_BHW: Tensor | None = None
    shown_BHW: Tensor | None = None
    stored_B: Tensor | None = None
    before: "Batch | None" = None
    flow_B2HW: Tensor | None = None
    valid_BHW: Tensor | None = None
    clips: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        moved: dict[str, Any] = {name: x.to(device, non_blocking=True) for name, x in self._tensors()}
        return replace(self, before=self.before and self.before.to(device), **moved)

    def split(self, parts: int) -> list["Batch"]:
        """Equal micro-batches in order, for gradient accumulation; the sample count must divide by ``parts``."""
        size = len(self.seed_B) // parts
        return [self[i * size : (i + 1) * size] for i in range(parts)]

    def __getitem__(self, part: slice) -> "Batch":
        """Some of the samples."""
        pieces: dict[str, Any] = {name: x[part] for name, x in self._tensors()}
        before = None if self.before is None else self.before[part]
        return replace(self, keys=self.keys[part], clips=self.clips[part], before=before, **pieces)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in self.__dict__.items() if isinstance(value, Tensor)]
