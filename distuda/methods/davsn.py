"""DA-VSN: discriminators on pairs of frames, and target frames that learn from surer ones before them.

Guan, Huang, Xiao, Lu: Domain Adaptive Video Segmentation via Temporal Consistency Regularization, ICCV 2021; facts from
its released code. Discriminators see the logits of two frames under one softmax over 2C channels.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distuda import losses
from distuda.data.batch import Batch
from distuda.data.clips import FLOW
from distuda.methods.adversary import Judges, divergence, levels, suffixes
from distuda.methods.method import Context, Group, Losses, Method
from distuda.methods.video import VideoConfig, detached, frame_before, sequence_maps
from distuda.models.fusion import Fused
from distuda.models.segmenter import Output, Segmenter
from distuda.warp import inside, warp


class DaVsn(Method):
    """Temporal consistency regularisation across domains (adversarial) and inside the target (propagated)."""

    class Config(VideoConfig):
        """Fields of `DaVsn`; defaults are those of the released code."""

        name: Literal["davsn"] = "davsn"
        fusion: bool = Field(True, description="mix the logits of the frame before into each frame's (Accel)")
        lambda_divergence: float = Field(0.001, ge=0, description="weight that keeps the two discriminators different")
        lambda_intra: float = Field(0.001, ge=0, description="weight of propagated target predictions")
        discriminator_input: Literal["softmax"] = Field("softmax", description="of two frames together")
        forward: Literal["per_domain"] = Field("per_domain", description="frames pass the network one after another")

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """Labels of the source, and how pixels moved: of the target, and of the source where frames are fused."""
            return {"source": ("label", FLOW) if self.fusion else ("label",), "target": (FLOW,)}

    config: Config
    student: Segmenter

    def __init__(self, config: Config, student: Segmenter, context: Context) -> None:
        super().__init__(config, Fused(student) if config.fusion else student, context)
        num_levels = 2 if student.has_aux else 1
        self.temporal_judges = Judges(2 * context.num_classes, num_levels)
        self.spatial_judges = Judges(2 * context.num_classes, num_levels)

    def parameter_groups(self) -> list[Group]:
        """The student's groups and one for the discriminators."""
        parameters = [*self.temporal_judges.parameters(), *self.spatial_judges.parameters()]
        return [*super().parameter_groups(), Group("discriminator", parameters, self.config.discriminator_lr)]

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Now with gradients, the frame before without, as released."""
        view_src = self.labelled_view(source)
        image_src = self.labelled_view(frame_before(source)).image_BCHW
        now_src, fused_src, before_src = two_frames(
            self.student, view_src.image_BCHW, image_src, source.flow_B2HW, source.seed_B
        )
        image_tgt = frame_before(target).image_BCHW
        now_tgt, _, before_tgt = two_frames(self.student, target.image_BCHW, image_tgt, target.flow_B2HW, target.seed_B)
        made = self.across(now_src, before_src, now_tgt, before_tgt)
        made.objective |= self.supervise(fused_src, view_src)
        ramp = self.ramp(self.config.start_step)
        # not the fused prediction: it holds the frame before already, and could agree with it by copying
        intra, used = propagated(now_tgt.main, before_tgt.main, target)
        made.objective["intra_tgt"] = ramp * self.config.lambda_intra * intra
        made.metrics["propagated"] = used
        return made

    def across(self, now_src: Output, before_src: Output, now_tgt: Output, before_tgt: Output) -> Losses:
        """Fooling and discriminator terms of pairs (now, before) and of (now, now), and what keeps the two apart."""
        config, ramp = self.config, self.ramp(self.config.start_step)
        weights = [ramp * config.lambda_adv, ramp * config.lambda_adv_aux]
        now_src = detached(now_src)
        made = self.temporal_judges.oppose(
            _pairs(now_src, before_src), _pairs(now_tgt, before_tgt), weights, "temporal"
        )
        spatial = self.spatial_judges.oppose(_pairs(now_src, now_src), _pairs(now_tgt, now_tgt), weights, "spatial")
        made.objective |= spatial.objective
        made.metrics |= spatial.metrics
        for one, other, suffix in zip(self.temporal_judges, self.spatial_judges, suffixes(), strict=False):
            made.objective[f"divergence{suffix}"] = config.lambda_divergence * divergence(one, other)
        return made


def two_frames(
    student: Segmenter,
    now_BCHW: Tensor,
    before_BCHW: Tensor,
    flow_B2HW: Tensor | None,
    seed_B: Tensor | None = None,
) -> tuple[Output, Output, Output]:
    """A network's outputs of now, of now with the frame before fused in, and of the frame before without gradients.

    Without `Fused` the first two are the same. Nothing is drawn for the frame before, which teaches and is not learnt
    through.

    Args:
        student: the network, maybe within `Fused`.
        now_BCHW, before_BCHW: float RGB in [0, 1].
        flow_B2HW: backward flow from now to the frame before, None = nothing moved.
        seed_B: for now where it is learnt from; without, nothing is drawn for it either.
    """
    network = student.core()
    # first with gradients: until torch 2.11, autocast keeps the weights that a pass without them has cast, history lost
    output: Output = network(now_BCHW, seed_B)
    with torch.no_grad():
        earlier: Output = network(before_BCHW)
    return output, student.fuse(output, earlier, flow_B2HW) if isinstance(student, Fused) else output, earlier


def propagated(now_BCHW: Tensor, before_BCHW: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """L1 distance to the probabilities of the frame before where those are surer, and the share of such pixels.

    Args:
        now_BCHW, before_BCHW: logits; the second is not learnt through.
        batch: with flow, and where it holds.
    """
    assert batch.flow_B2HW is not None and batch.valid_BHW is not None
    with torch.no_grad():
        carried = warp(before_BCHW.float().softmax(dim=1), batch.flow_B2HW)
        entropy_before = warp(losses.entropy_map(before_BCHW)[:, None], batch.flow_B2HW)[:, 0]
        seen = batch.valid_BHW & inside(batch.flow_B2HW)  # a crop does not see where some of its pixels came from
        surer = (entropy_before < losses.entropy_map(now_BCHW)) & seen
    distance_BHW = (now_BCHW.float().softmax(dim=1) - carried).abs().mean(dim=1)
    return (distance_BHW * surer).mean(), surer.float().mean()


def _pairs(now: Output, before: Output) -> list[Tensor]:
    """One softmax over both frames' logits, a level; frames stay where they are, as released."""
    pairs = zip(levels(now), levels(before), strict=True)
    return [sequence_maps(here, there, None, joint=True) for here, there in pairs]
