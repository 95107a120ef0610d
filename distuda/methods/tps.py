"""TPS, temporal pseudo supervision: what a frame before says, carried here, teaches a strongly changed view of now.

Xing, Guan, Huang, Lu: Domain Adaptive Video Segmentation via Temporal Pseudo Supervision, ECCV 2022; facts from its
released code.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor

from distuda.data import augment
from distuda.data.batch import Batch
from distuda.data.clips import FLOW
from distuda.draws import uniform
from distuda.methods.davsn import two_frames
from distuda.methods.method import Context, Losses, Method, MethodConfig, View
from distuda.methods.video import frame_before
from distuda.models.fusion import Fused
from distuda.models.segmenter import Output, Segmenter
from distuda.warp import compose, inside, resize_flow, warp


class Tps(Method):
    """Cross-entropy of a strong view of frames (now, before) with the labels of an earlier pair, seen plainly."""

    class Config(MethodConfig):
        """Fields of `Tps`; defaults are those of the released code."""

        name: Literal["tps"] = "tps"
        fusion: bool = Field(True, description="mix the logits of the frame before into each frame's (Accel)")
        interval: int = Field(1, ge=1, description="frames between a frame and the one that labels it [frames]")
        lambda_pseudo: float = Field(
            1.0, ge=0, description="weight of the target's pseudo-labels (SYNTHIA-Seq: 1, VIPER: 0.1)"
        )
        confidence: float = Field(0.0, ge=0, le=1, description="probability below which a pseudo-label is left out")
        rescale: tuple[PositiveFloat, PositiveFloat] = Field(
            (1.0, 1.0),
            description="range of the factor by which the strong view is resized, sides multiples of 8 (released: "
            "0.8 to 1.2); one for a whole step",
        )
        start_step: int = Field(0, ge=0, description="steps of source-only training before [steps]")

        forward: Literal["per_domain"] = Field("per_domain", description="frames pass the network one after another")

        @field_validator("rescale")
        @classmethod
        def _rises(cls, rescale: tuple[float, float]) -> tuple[float, float]:
            return augment.rising(rescale, "factor")

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """Labels of the source, and how pixels moved: of the target, and of the source where frames are fused."""
            return {"source": ("label", FLOW) if self.fusion else ("label",), "target": (FLOW,)}

        @property
        def num_frames(self) -> Mapping[str, int]:
            """Now and, where frames are fused, before; of the target also the frame or pair that labels now."""
            return {"source": 2, "target": self.interval + 2} if self.fusion else {"target": self.interval + 1}

    config: Config

    def __init__(self, config: Config, student: Segmenter, context: Context) -> None:
        super().__init__(config, Fused(student) if config.fusion else student, context)

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Source loss, and the target's strong view against the carried labels."""
        views_src = [self.labelled_view(frame) for frame in self._frames(source)]
        terms = self.supervise(self._learnt(views_src, source.flow_B2HW), views_src[0])
        label, weight = self.pseudo_label(target)
        now, *before = (self._strong(frame) for frame in self._frames(target))
        size = self._size(target)
        views = [resized(view, size) for view in (now._replace(label_BHW=label, weight_BHW=weight), *before)]
        flow = None if target.flow_B2HW is None else resize_flow(target.flow_B2HW, size)
        factor = self.ramp(self.config.start_step) * self.config.lambda_pseudo
        supervised = self.supervise(self._learnt(views, flow), views[0], "pseudo_tgt")
        terms |= {name: factor * loss for name, loss in supervised.items()}
        return Losses(terms, {"pseudo_weight": weight.mean()})

    @torch.no_grad()
    def pseudo_label(self, target: Batch) -> tuple[Tensor, Tensor]:
        """Labels of now, (B, H, W), carried from ``interval`` frames before, and their weights; 0 out of its sight and
        where either frame does not fill the crop.

        As from a teacher: nothing is drawn, so no dropout, and HRDA's windows cover the image.
        """
        early, flow = target, None
        for _ in range(self.config.interval):
            assert early.flow_B2HW is not None
            flow = early.flow_B2HW if flow is None else compose(flow, early.flow_B2HW)
            early = frame_before(early)
        assert flow is not None
        output = self._output([frame.image_BCHW for frame in self._frames(early)], early.flow_B2HW)
        carried = warp(output.main.float().softmax(dim=1), flow)
        max_prob, label = carried.max(dim=1)
        known = inside(flow) & (max_prob >= self.config.confidence)
        if target.shown_BHW is not None:
            known &= target.shown_BHW
        if early.shown_BHW is not None:
            known &= warp(early.shown_BHW[:, None].float(), flow, "nearest")[:, 0] > 0
        return label, known.float()

    def _frames(self, batch: Batch) -> list[Batch]:
        """What the network sees to say something of a frame: it and, where frames are fused, the one before."""
        return [batch, frame_before(batch)] if self.config.fusion else [batch]

    def _learnt(self, views: Sequence[View], flow_B2HW: Tensor | None) -> Output:
        """What is learnt from of the first view."""
        return self._output([view.image_BCHW for view in views], flow_B2HW, views[0].seed_B)

    def _output(self, images: Sequence[Tensor], flow_B2HW: Tensor | None, seed_B: Tensor | None = None) -> Output:
        """What the network says of the first of `_frames`."""
        if not self.config.fusion:
            output: Output = self.student(images[0], seed_B)
            return output
        now, before = images
        return two_frames(self.student, now, before, flow_B2HW, seed_B)[1]

    def _size(self, target: Batch) -> tuple[int, int]:
        """Height and width of this step's strong view [pixels]."""
        height, width = target.image_BCHW.shape[-2:]
        low, high = self.config.rescale
        if low == high == 1:
            return height, width
        factor = low + float(uniform(self.step.view(1), "rescale")) * (high - low)  # one number for all ranks
        return max(8, 8 * round(height * factor / 8)), max(8, 8 * round(width * factor / 8))

    def _strong(self, frame: Batch) -> View:
        """The same change of colours and blur for every frame of a clip."""
        image = augment.photometry(frame.image_BCHW, frame.seed_B, self.context.photometry, "strong")
        return View(image, frame.seed_B)


def resized(view: View, size: tuple[int, int]) -> View:
    """A view at another size (height, width): images bilinearly, labels and weights by the nearest pixel."""
    if view.image_BCHW.shape[-2:] == size:
        return view
    image = F.interpolate(view.image_BCHW, size=size, mode="bilinear", align_corners=False)
    if view.label_BHW is None or view.weight_BHW is None:
        return view._replace(image_BCHW=image)
    both = torch.stack([view.label_BHW.float(), view.weight_BHW.float()], dim=1)
    label, weight = F.interpolate(both, size=size, mode="nearest").unbind(1)
    return view._replace(image_BCHW=image, label_BHW=label.long(), weight_BHW=weight)
