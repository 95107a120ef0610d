"""Self-training with an EMA teacher and cross-domain ClassMix (DACS), raised by what came after it, each a field:
DAFormer's feature distance and margins, MIC's masked consistency.

Tranheden, Olsson, Pinto, Svensson: DACS, WACV 2021. Hoyer, Dai, Van Gool: DAFormer, CVPR 2022, and HRDA, ECCV 2022.
Hoyer, Dai, Wang, Van Gool: MIC, CVPR 2023. The card in docs/methods/self_training.md says what was measured.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Tensor, nn

from distuda import losses
from distuda.data import augment
from distuda.data.batch import Batch
from distuda.data.clips import FLOW
from distuda.draws import fold
from distuda.engine.ema import update_ema
from distuda.errors import UserError
from distuda.methods.feature_distance import DistanceConfig, NearStart
from distuda.methods.method import Context, Losses, Method, MethodConfig, View
from distuda.models.segmenter import Output, Segmenter
from distuda.models.statistics import copy_statistics, still_statistics
from distuda.warp import warp, warp_label

Supervise = Callable[[Output, View, str], dict[str, Tensor]]
"""`Method.supervise` of the method that owns the student."""


class TeachingConfig(BaseModel):
    """Fields of `Teaching`; defaults are DACS's unless said otherwise."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    ema_decay: float = Field(0.99, ge=0, lt=1, description="largest decay of the teacher's moving average")
    confidence: float = Field(
        0.968, ge=0, le=1, description="probability above which a pseudo-label counts as sure; sets the target's weight"
    )
    weighting: Literal["share", "pixel"] = Field(
        "share",
        description="weight of target pixels: the share of sure ones for all alike (DACS), or 1 if sure, else 0",
    )
    statistics: Literal["target", "source"] = Field(
        "target",
        description="batch-norm statistics that the teacher labels by: each target batch's (DACS), or the running ones "
        "of source batches, which views of the target then leave alone (with calibrate_images=0)",
    )
    margins: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt] = Field(
        (0, 0, 0, 0),
        description="rows and columns of target crops without pseudo-labels: top, bottom, left, right [pixels] "
        "(DAFormer: 15, 120, 0, 0 of 512 rows, for rectification artefacts and the bonnet)",
    )
    lambda_mix: float = Field(1.0, ge=0, description="weight of the loss on mixed images")
    lambda_mask: float = Field(0.0, ge=0, description="weight of masked consistency, 0 = off (MIC: 1)")
    mask_ratio: float = Field(0.7, ge=0, lt=1, description="share of blocks hidden (MIC: 0.7)")
    mask_block: int = Field(
        32, ge=1, description="side of a hidden block [pixels] (MIC: 64 at full, 32 at half Cityscapes resolution)"
    )
    lambda_video: float = Field(
        0.0, ge=0, description="weight of video consistency: labels of the frame before carried here, 0 = off (clips)"
    )
    flow_agreement: bool = Field(
        False, description="pseudo-labels count only where those of the frame before, carried here, agree (clips)"
    )

    @property
    def looks_back(self) -> bool:
        """Whether target frames are read with the frame before."""
        return self.flow_agreement or self.lambda_video > 0


def reads_of(config: TeachingConfig | None) -> dict[str, tuple[str, ...]]:
    """`MethodConfig.reads` of a method with this teacher, or without one."""
    return {"source": ("label",), "target": (FLOW,) if config and config.looks_back else ()}


def num_frames_of(config: TeachingConfig | None) -> Mapping[str, int]:
    """`MethodConfig.num_frames` of a method with this teacher, or without one."""
    return {"target": 2} if config and config.looks_back else {}


def require_statistics(config: MethodConfig, taught: TeachingConfig | None) -> None:
    """Refuse to mix or replace statistics of the source that a teacher is to label by."""
    if taught is not None and taught.statistics == "source" and (config.forward == "joint" or config.calibrate_images):
        raise UserError(
            f"statistics=source labels by the source's batch-norm statistics, which forward={config.forward} with "
            f"calibrate_images={config.calibrate_images} does not keep. Set calibrate_images=0 and forward=per_domain."
        )


class Teaching(nn.Module):
    """The teacher and what it makes of two batches: views of the target with pseudo-labels, mixed or masked.

    Args:
        config: this component's fields.
        student: the network to start from and to follow; copied, not kept.
        context: number of classes and photometry.
    """

    def __init__(self, config: TeachingConfig, student: Segmenter, context: Context) -> None:
        super().__init__()
        self.config, self.context = config, context
        if config.margins[2] != config.margins[3] and context.flip:
            raise UserError(
                f"margins={list(config.margins)} leave out more on one side, which mirrored crops have on the other. "
                "Make the last two equal, or set augment.flip=0."
            )
        self.teacher = copy.deepcopy(student).requires_grad_(False)

    def train(self, mode: bool = True) -> "Teaching":
        """The teacher normalises by running statistics where they are the source's."""
        super().train(mode)
        self.teacher.train(mode and self.config.statistics == "target")
        return self

    def run(self, method: Method, views: dict[str, View]) -> dict[str, Output]:
        """The student of the method that owns it on all views, ``src`` among them; see ``statistics``."""
        if self.config.statistics == "target":
            return method.run_student(views)
        outputs = method.run_student({"src": views["src"]})
        with still_statistics(method.student):
            return outputs | method.run_student({name: view for name, view in views.items() if name != "src"})

    def views(self, source: Batch, target: Batch) -> tuple[dict[str, View], dict[str, Tensor]]:
        """What the student learns from beside the source (``mix``, ``mask``), and metrics."""
        label_tgt, weight, max_prob = self.pseudo_label(target)
        views: dict[str, View] = {}
        metrics = {"pseudo_weight": weight.mean(), "pseudo_max_prob": max_prob.mean()}
        if self.config.looks_back:
            carried, weight_carried = self.carried_label(target)
            metrics["flow_agreement"] = (carried == label_tgt).float().mean()
            if self.config.flow_agreement:
                weight = weight * (carried == label_tgt)
            if self.config.lambda_video:
                views["video"] = View(target.image_BCHW, target.seed_B, carried, weight_carried)
        plain = View(target.image_BCHW, target.seed_B, label_tgt, weight)
        if self.config.lambda_mix:
            views["mix"] = _mixed(source, plain, self.context.num_classes)
        if self.config.lambda_mask:
            views["mask"] = plain
        return {name: self._strong(view, name) for name, view in views.items()}, metrics

    def terms(
        self,
        supervise: Supervise,
        outputs: dict[str, Output],
        views: dict[str, View],
        ramp: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of the student's outputs on `views`, weighted; ``supervise`` is the method's."""
        config = self.config
        factors = {"mix": config.lambda_mix, "mask": config.lambda_mask, "video": config.lambda_video}
        made = {name: supervise(outputs[name], view, f"self_{name}") for name, view in views.items()}
        return {key: ramp * factors[name] * loss for name, terms in made.items() for key, loss in terms.items()}

    @torch.no_grad()
    def pseudo_label(self, target: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's hard labels, their pixel weights and the largest probability; each (B, H, W).

        The weight is one number, the share of all ranks' pixels whose probability reaches ``confidence`` (DACS), or 1
        on those pixels and 0 on the others, which keeps unsure labels of small things out of the loss; 0 in margins and
        beside images that do not fill the crop. With ``statistics=target`` the teacher normalises by the batch itself,
        so its running ones become the target's.
        """
        max_prob, label = self.teacher(target.image_BCHW).main.float().softmax(dim=1).max(dim=1)
        sure = max_prob >= self.config.confidence
        shown = torch.ones_like(sure) if target.shown_BHW is None else target.shown_BHW
        weight = sure if self.config.weighting == "pixel" else losses.global_share(sure, shown).expand_as(max_prob)
        weight = weight * shown.float()
        return label, self._without_margins(weight), max_prob

    @torch.no_grad()
    def carried_label(self, target: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's labels of the frames before at each pixel of now, 255 where it was hidden; their weights."""
        assert target.before is not None and target.flow_B2HW is not None and target.valid_BHW is not None
        label, weight, _ = self.pseudo_label(target.before)
        carried = warp_label(label, target.flow_B2HW).where(target.valid_BHW, losses.IGNORE)
        weight = warp(weight[:, None], target.flow_B2HW, "nearest")[:, 0]
        return carried, weight * (carried != losses.IGNORE)

    def _without_margins(self, weight_BHW: Tensor) -> Tensor:
        top, bottom, left, right = self.config.margins
        height, width = weight_BHW.shape[1:]
        if top + bottom >= height or left + right >= width:
            raise UserError(
                f"margins={list(self.config.margins)} leave nothing of a target crop of {width}x{height} pixels. "
                "Choose smaller ones."
            )
        inner = weight_BHW[:, top : height - bottom, left : width - right]
        return F.pad(inner, (left, right, top, bottom))

    def _strong(self, view: View, name: str) -> View:
        """The view through jitter and blur of its own; ``mask`` with blocks hidden, which are 0 once normalised."""
        image = augment.photometry(view.image_BCHW, view.seed_B, self.context.photometry, name)
        if name == "mask":
            size = (image.shape[-2], image.shape[-1])
            kept = augment.block_mask(view.seed_B, size, self.config.mask_block, self.config.mask_ratio)
            image = image * kept + self.teacher.normalise.mean * (1 - kept)
        return view._replace(image_BCHW=image, seed_B=fold(view.seed_B, name))

    def follow(self, student: Segmenter, step: Tensor) -> None:
        """Move the teacher; its decay grows from 0 so that it starts as the student (DACS)."""
        update_ema(self.teacher, student, torch.clamp(1 - 1 / (step + 1), max=self.config.ema_decay))
        if self.config.statistics == "source":
            copy_statistics(self.teacher, student)


def _mixed(source: Batch, target: View, num_classes: int) -> View:
    """The target with half of the classes of each source image pasted onto it, labels alike, at weight 1."""
    assert source.label_BHW is not None and target.label_BHW is not None and target.weight_BHW is not None
    pasted = augment.classmix_mask(source.label_BHW, source.seed_B, num_classes)
    if source.shown_BHW is not None:  # what is black beside a small image hides nothing of the target
        pasted = pasted & source.shown_BHW
    return View(
        torch.where(pasted[:, None], source.image_BCHW, target.image_BCHW),
        target.seed_B,
        torch.where(pasted, source.label_BHW, target.label_BHW),
        torch.where(pasted, torch.ones_like(target.weight_BHW), target.weight_BHW),
    )


class SelfTraining(NearStart):
    """A teacher labels target crops; the student learns from source crops and from mixes of both domains."""

    class Config(DistanceConfig, TeachingConfig):
        """Fields of `SelfTraining`."""

        name: Literal["self_training"] = "self_training"

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """With video consistency also how the target's pixels moved."""
            return reads_of(self)

        @property
        def num_frames(self) -> Mapping[str, int]:
            """With video consistency target frames come with the one before."""
            return num_frames_of(self)

        start_step: int = Field(0, ge=0, description="steps of source-only training before the teacher is used [steps]")
        predict_with: Literal["student", "teacher"] = Field(
            "student", description="which network is evaluated and exported"
        )

    config: Config

    def __init__(self, config: Config, student: Segmenter, context: Context) -> None:
        require_statistics(config, config)
        super().__init__(config, student, context)
        self.teaching = Teaching(config, student, context)

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Teacher labels, mix, one pass of the student a view, named losses."""
        taught, metrics = self.teaching.views(source, target)
        views = {"src": self.labelled_view(source), **taught}
        outputs = self.teaching.run(self, views)
        terms = self.learn_source(outputs["src"], views["src"])
        terms |= self.teaching.terms(self.supervise, outputs, taught, self.ramp(self.config.start_step))
        return Losses(terms, metrics)

    def after_step(self) -> None:
        """Move the teacher."""
        self.teaching.follow(self.student, self.step)
        super().after_step()

    def predictor(self) -> Segmenter:
        """Teacher or student, as ``predict_with`` says."""
        return self.teaching.teacher if self.config.predict_with == "teacher" else self.student
