"""Labels that neighbouring frames agree on: predictions carried along optical flow and averaged.

The offline half of video self-training. Shin, Park, Woo, Kweon: Unsupervised Domain Adaptation for Video Semantic
Segmentation, arXiv 2107.11052, 2021; only the abstract is public, so this is our reading. The card
docs/methods/video_self_training.md says what is certain.

Shape legend: C classes, h and w pixels as the network sees them, H and W of the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distuda.data.decode import SampleError, Size, resize_image
from distuda.data.flow import Flow, Valid, compute_flows
from distuda.relabel.relabeller import Map, Recent, RelabelConfig, Relabeller, Row, Task, image_of
from distuda.warp import warp

Motion = tuple[Flow, Valid]


@dataclass(frozen=True)
class Frame:
    """One frame as the network sees it.

    Attributes:
        key: of the sample.
        native: (height, width) of its image.
        image_hwC: uint8 RGB.
        probability_Chw: softmax of the network, float32 on its device.
    """

    key: str
    native: Size
    image_hwC: Map
    probability_Chw: Tensor


class Aggregate(Relabeller):
    """The arg-max of the network's softmax, averaged over the frames around where flow leads to them and holds.

    Optical flow is computed between frames as the network sees them (`data.flow`); it holds where going there and back
    ends near the start. The frame itself always counts, so images without a clip are simply predicted.

    Writes ``label`` and ``confidence``, the averaged probability of that label.
    """

    class Config(RelabelConfig):
        """Fields of `Aggregate`."""

        name: Literal["aggregate"] = "aggregate"
        domain: Literal["source", "target"] = Field("target", description="whose samples are looked at")
        offsets: int = Field(2, ge=0, description="frames before and after that count (our reading) [frames]")

    config: Config
    writes = ("label", "confidence")

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        self._frames: Recent[str, Frame] = Recent(2 * config.offsets + 1)  # of a clip in order each is made once
        self._back: dict[tuple[str, str], Motion] = {}  # flow that a frame to come will ask for

    @property
    def around(self) -> tuple[int, int]:
        """As far as predictions are carried, both ways."""
        return self.config.offsets, self.config.offsets

    @torch.no_grad()
    def __call__(self, row: Row) -> Mapping[str, Map]:
        """Columns of one sample."""
        frames = self._in_sight(row)
        here = frames.pop(0)
        total_Chw = here.probability_Chw.clone()
        for other in frames.values():
            if other.image_hwC.shape == here.image_hwC.shape:  # clips of mixed sizes are aggregated within a size
                total_Chw += self._carried(here, other)
        network = self.task.network
        assert network is not None
        mean_Chw = total_Chw / total_Chw.sum(dim=0)  # the sum counts the frames in sight
        # logarithms are resized, as a network's logits are: a frame alone gives what `Predict` gives
        logits = network.resize(mean_Chw.clamp(min=1e-30).log()[None], here.native)[0]
        probability, label = logits.softmax(dim=0).max(dim=0)
        confidence = (probability * 255).round().to(torch.uint8)
        return {"label": np.asarray(label.cpu(), np.uint8), "confidence": np.asarray(confidence.cpu(), np.uint8)}

    def _in_sight(self, row: Row) -> dict[int, Frame]:
        """A frame, 0, and those around it by their offset, in their order; without neighbours that are damaged."""
        rows, frames = {0: row, **row.get("around", {})}, {}
        for offset in sorted(rows):
            try:
                frames[offset] = self._frame(rows[offset])
            except SampleError:
                if not offset:  # a neighbour is counted, or stops the phase, when its own turn comes
                    raise
        return frames

    def _frame(self, row: Row) -> Frame:
        return self._frames.get(str(row["key"]), lambda: self._seen(row))

    def _seen(self, row: Row) -> Frame:
        """One pass of the network."""
        network = self.task.network
        assert network is not None
        image = image_of(row)
        small = image if self.task.size is None else resize_image(image, self.task.size)
        with self.autocast():
            logits = network(self.shown(image)).main[0]
        native = (image.shape[0], image.shape[1])
        return Frame(str(row["key"]), native, small, logits.float().softmax(dim=0))

    def _carried(self, here: Frame, other: Frame) -> Tensor:
        """What another frame says of the pixels of this one, (C, h, w); 0 where flow does not hold."""
        flow, valid = (torch.from_numpy(part).to(here.probability_Chw.device) for part in self._flow(here, other))
        carried_Chw = warp(other.probability_Chw[None], flow.permute(2, 0, 1)[None])[0]
        return carried_Chw * valid

    def _flow(self, here: Frame, other: Frame) -> Motion:
        """Flow of this frame to another; the way back is kept, for it is asked for when the other's turn comes."""
        found = self._back.pop((here.key, other.key), None)
        if found is None:
            found, self._back[other.key, here.key] = compute_flows(here.image_hwC, other.image_hwC)
            if len(self._back) > self.config.offsets * (self.config.offsets + 1):
                del self._back[next(iter(self._back))]
        return found
