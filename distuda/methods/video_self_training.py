"""Video self-training (VST), the online half: pseudo-labels are learnt where the network agrees with itself over time.

Shin, Park, Woo, Kweon: Unsupervised Domain Adaptation for Video Semantic Segmentation, arXiv 2107.11052, 2021. Only the
abstract is public ("pseudo labels made robust by temporal information", on target data alone); the rest is our reading
and that of a later re-implementation. The labels come from relabel phases (`relabel.aggregate`, `relabel.confident`);
the card docs/methods/video_self_training.md says what is certain.

Shape legend: B clips, C classes, H and W pixels; "before" is the frame before.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distuda.data.batch import Batch
from distuda.data.clips import FLOW
from distuda.losses import IGNORE
from distuda.methods.method import Losses, Method, MethodConfig, View
from distuda.warp import inside, warp, warp_label


class VideoSelfTraining(Method):
    """Cross-entropy of target crops, plainly seen, with the labels that stand beside the target.

    Pixels where the student's prediction disagrees with its own of the frame before, carried here along optical flow,
    are left out (or weighed down) in every step anew. The frame before passes the student without gradient and draws.

    What becomes of pixels whose flow does not hold (``unmatched``) is in no source that we could read. Our reading
    keeps them: they were not found to disagree, their labels have passed the offline filters, and without them the
    network would hardly ever learn the rims of moving things and of the image, where everything new appears. The
    re-implementation that we know (methods card) drops them.
    """

    class Config(MethodConfig):
        """Fields of `VideoSelfTraining`."""

        name: Literal["vst"] = "vst"
        agreement: Literal["filter", "weigh", "none"] = Field(
            "filter",
            description="pixels where predictions of two frames disagree: left out, weighed by the overlap of both "
            "softmaxes, or learnt as all others (frames are then seen alone)",
        )
        unmatched: Literal["keep", "drop"] = Field(
            "keep", description="pixels that nothing is known of in the frame before (our reading)"
        )

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """The target alone, with labels of relabel phases and how pixels moved."""
            return {"target": ("label", FLOW) if self.agreement != "none" else ("label",)}

        @property
        def num_frames(self) -> Mapping[str, int]:
            """A frame and, to agree with, the one before it."""
            return {"target": 2} if self.agreement != "none" else {}

    config: Config

    def forward(self, target: Batch) -> Losses:
        """One pass of the student with gradient, one without, one loss."""
        assert target.label_BHW is not None
        view = View(target.image_BCHW, target.seed_B, target.label_BHW)
        output = self.run_student({"tgt": view})["tgt"]
        view, metrics = self.trusted(view, output.main.detach(), target)
        return Losses(self.supervise(output, view, "pseudo_tgt"), metrics)

    @torch.no_grad()
    def trusted(self, view: View, logits_BCHW: Tensor, target: Batch) -> tuple[View, dict[str, Tensor]]:
        """The view with what its labels are worth, and metrics.

        A filter takes labels away, so that the loss is the mean over those that are left; weights change the sum only
        (`losses.cross_entropy`).
        """
        label, config = view.label_BHW, self.config
        assert label is not None
        metrics = {"labelled": (label != IGNORE).float().mean()}
        if config.agreement == "none":
            return view, metrics
        assert target.before is not None and target.flow_B2HW is not None and target.valid_BHW is not None
        before = self.student(target.before.image_BCHW).main
        agreement = (agrees if config.agreement == "filter" else overlap)(logits_BCHW, before, target.flow_B2HW)
        known = target.valid_BHW & inside(target.flow_B2HW)
        metrics["agreement"] = (agreement * known).sum() / known.sum().clamp(min=1)
        weight = torch.where(known, agreement, float(config.unmatched == "keep"))
        if config.agreement == "weigh":
            return view._replace(weight_BHW=weight), metrics
        left = torch.where(weight > 0, label, IGNORE)
        metrics["learnt"] = (left != IGNORE).float().mean()
        return view._replace(label_BHW=left), metrics


def agrees(now_BCHW: Tensor, before_BCHW: Tensor, flow_B2HW: Tensor) -> Tensor:
    """1 where the arg-max of logits is that of the frame before at the place flow leads to, else 0, (B, H, W) float."""
    return (now_BCHW.argmax(dim=1) == warp_label(before_BCHW.argmax(dim=1), flow_B2HW)).float()


def overlap(now_BCHW: Tensor, before_BCHW: Tensor, flow_B2HW: Tensor) -> Tensor:
    """What the softmax now and that of the frame before, carried here, have in common, (B, H, W) float in [0, 1].

    The sum over classes of the smaller probability: 1 for equal ones, 0 for those that share no class.
    """
    carried = warp(before_BCHW.float().softmax(dim=1), flow_B2HW)
    return torch.minimum(now_BCHW.float().softmax(dim=1), carried).sum(dim=1).clamp(max=1)
