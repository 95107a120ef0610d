"""Video adversarial training (VAT): discriminators on single frames and on pairs of frames, and a tube loss.

Shin, Park, Woo, Kweon: Unsupervised Domain Adaptation for Video Semantic Segmentation, arXiv 2107.11052, 2021. Only the
abstract and a later re-implementation are public; the card in docs/methods/video.md says what is our reading. The
second phase, video self-training, is `methods.video_self_training`.

Shape legend: B clips, C classes, H and W pixels; "before" is the frame before.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distuda import losses
from distuda.data.batch import Batch
from distuda.data.clips import FLOW
from distuda.methods.advent import AdvEnt, AdvEntConfig, AdversaryConfig
from distuda.methods.adversary import Judges, levels
from distuda.methods.method import Context, Losses, View
from distuda.models.segmenter import Output, Segmenter
from distuda.warp import warp


class VideoConfig(AdversaryConfig):
    """Fields of the adversarial methods that look at pairs of frames."""

    @property
    def num_frames(self) -> Mapping[str, int]:
        """A frame and the one before it."""
        return {"source": 2, "target": 2}


class VideoAdversarial(AdvEnt):
    """AdvEnt on single frames, and discriminators on [prediction, prediction of the frame before carried here]."""

    class Config(VideoConfig, AdvEntConfig):
        """Fields of `VideoAdversarial`."""

        name: Literal["vat"] = "vat"
        lambda_tube: float = Field(1.0, ge=0, description="weight of the tube loss on source clips (our reading)")
        lambda_sequence: float = Field(0.001, ge=0, description="weight of fooling the sequence discriminator")
        lambda_sequence_aux: float = Field(0.0002, ge=0, description="the same for the auxiliary head's")
        warp: bool = Field(
            True, description="carry the prediction of the frame before along optical flow (our reading)"
        )
        sequence_input: Literal["each", "joint"] = Field(
            "each", description="softmax of each frame's C logits, or one over the 2C of both (a later code base)"
        )

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """Labels of the source and, where predictions are carried, of both domains how pixels moved."""
            return {"source": ("label", FLOW), "target": (FLOW,)} if self.warp else {"source": ("label",), "target": ()}

    config: Config

    def __init__(self, config: Config, student: Segmenter, context: Context) -> None:
        super().__init__(config, student, context)
        self.sequence_judges = Judges(2 * context.num_classes, len(self.discriminators))

    def judges(self) -> list[Judges]:
        """Those of single frames and those of pairs."""
        return [self.discriminators, self.sequence_judges]

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Both frames of both domains, one summed objective."""
        config = self.config
        views_src = (self.labelled_view(source), self.labelled_view(frame_before(source)))
        views_tgt = tuple(View(frame.image_BCHW, frame.seed_B) for frame in (target, frame_before(target)))
        outputs = self.run_student({"src": joined(views_src), "tgt": joined(views_tgt)})
        now_src, before_src = outputs["src"].split([len(source.seed_B)] * 2)
        now_tgt, before_tgt = outputs["tgt"].split([len(target.seed_B)] * 2)
        made = self.oppose(now_src, now_tgt)
        made.objective |= self.learn_source(now_src, views_src[0])
        made.objective |= self.supervise(before_src, views_src[1], "seg_before")
        labels = torch.stack([_label(view) for view in views_src], dim=1)
        tube = losses.tube(torch.stack([now_src.main, before_src.main], dim=1), labels)
        made.objective["tube_src"] = config.lambda_tube * tube
        pairs_src = self.sequences(detached(now_src), detached(before_src), source)
        pairs_tgt = self.sequences(now_tgt, before_tgt, target)
        weights = self.level_weights(config.lambda_sequence, config.lambda_sequence_aux)
        sequence = self.sequence_judges.oppose(pairs_src, pairs_tgt, weights, "sequence")
        return Losses(made.objective | sequence.objective, made.metrics | sequence.metrics)

    def sequences(self, now: Output, before: Output, batch: Batch) -> list[Tensor]:
        """What a sequence discriminator sees: a map of 2C channels a level."""
        flow = batch.flow_B2HW if self.config.warp else None
        pairs = zip(levels(now), levels(before), strict=True)
        return [sequence_maps(here, there, flow, joint=self.config.sequence_input == "joint") for here, there in pairs]


def sequence_maps(now_BCHW: Tensor, before_BCHW: Tensor, flow_B2HW: Tensor | None, *, joint: bool) -> Tensor:
    """Two frames' logits as probabilities side by side, (B, 2C, H, W) float32.

    Args:
        now_BCHW, before_BCHW: logits.
        flow_B2HW: backward flow along which the frame before is carried, 0 beyond its borders; None = left in place.
        joint: one softmax over all 2C channels, else one a frame.
    """
    if joint:
        before = before_BCHW if flow_B2HW is None else warp(before_BCHW, flow_B2HW)
        return torch.cat([now_BCHW.float(), before.float()], dim=1).softmax(dim=1)
    before = before_BCHW.float().softmax(dim=1)
    return torch.cat([now_BCHW.float().softmax(dim=1), before if flow_B2HW is None else warp(before, flow_B2HW)], dim=1)


def frame_before(batch: Batch) -> Batch:
    """The frames before a clip batch's; `Method.num_frames` asked for them."""
    assert batch.before is not None
    return batch.before


def joined(views: tuple[View, ...]) -> View:
    """Frames of one domain as one view, so that they pass the network, and its batch norm, together."""
    return View(torch.cat([view.image_BCHW for view in views]), torch.cat([view.seed_B for view in views]))


def detached(output: Output) -> Output:
    """The same logits without their history."""
    return output._replace(main=output.main.detach(), aux=None if output.aux is None else output.aux.detach())


def _label(view: View) -> Tensor:
    assert view.label_BHW is not None
    return view.label_BHW
