"""Self-training with an EMA teacher and cross-domain ClassMix (DACS), with MIC's masked consistency as an option.

Tranheden, Olsson, Pinto, Svensson: DACS, WACV 2021. Hoyer, Dai, Wang, Van Gool: MIC, CVPR 2023 (masked image
consistency). The card in docs/methods/self_training.md says what was measured.
"""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distuda import losses
from distuda.data import augment
from distuda.data.batch import Batch
from distuda.engine.ema import update_ema
from distuda.methods.method import Context, Losses, Method, MethodConfig
from distuda.models.segmenter import Segmenter


class SelfTraining(Method):
    """A teacher labels target crops; the student learns from source crops and from mixes of both domains."""

    class Config(MethodConfig):
        """Fields of `SelfTraining`; defaults are DACS's unless said otherwise."""

        name: Literal["self_training"] = "self_training"
        ema_decay: float = Field(0.99, ge=0, lt=1, description="largest decay of the teacher's moving average")
        confidence: float = Field(
            0.968,
            ge=0,
            le=1,
            description="probability above which a pseudo-label counts as sure; sets the target's weight",
        )
        weighting: Literal["share", "pixel"] = Field(
            "share",
            description="weight of target pixels: the share of sure ones for all alike (DACS), or 1 if sure, else 0",
        )
        lambda_mix: float = Field(1.0, ge=0, description="weight of the loss on mixed images")
        lambda_mask: float = Field(0.0, ge=0, description="weight of masked consistency, 0 = off (MIC: 1)")
        mask_ratio: float = Field(0.7, ge=0, lt=1, description="share of blocks hidden (MIC: 0.7)")
        mask_block: int = Field(
            32, ge=1, description="side of a hidden block [pixels] (MIC: 64 at full, 32 at half Cityscapes resolution)"
        )
        start_step: int = Field(0, ge=0, description="steps of source-only training before the teacher is used [steps]")
        predict_with: Literal["student", "teacher"] = Field(
            "student", description="which network is evaluated and exported"
        )

    config: Config

    def __init__(self, config: Config, student: Segmenter, context: Context) -> None:
        super().__init__(config, student, context)
        self.teacher = copy.deepcopy(student).requires_grad_(False)

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Teacher labels, mix, one pass of the student a view, named losses."""
        assert source.label_BHW is not None
        label_tgt, weight, max_prob = self.pseudo_label(target.image_BCHW)
        mask = augment.classmix_mask(source.label_BHW, source.seed_B, self.context.num_classes)
        image_mix = torch.where(mask[:, None], source.image_BCHW, target.image_BCHW)
        views = {
            "src": (self.labelled_view(source), source.label_BHW, None, 1.0),
            "mix": (
                augment.photometry(image_mix, target.seed_B, self.context.photometry, "mix"),
                torch.where(mask, source.label_BHW, label_tgt),
                torch.where(mask, torch.ones_like(weight), weight),
                self.config.lambda_mix,
            ),
        }
        if self.config.lambda_mask:
            views["mask"] = (self._masked(target), label_tgt, weight, self.config.lambda_mask)
        return self._learn(views, max_prob, weight)

    def _learn(
        self, views: dict[str, tuple[Tensor, Tensor, Tensor | None, float]], max_prob: Tensor, weight: Tensor
    ) -> Losses:
        """The student on every view: (image, label, pixel weights or None, loss weight) by name."""
        ramp = self.ramp(self.config.start_step)
        outputs = self.run_student(*(image for image, *_ in views.values()))
        terms: dict[str, Tensor] = {}
        for output, (name, (_, label, pixel_weight, factor)) in zip(outputs, views.items(), strict=True):
            if pixel_weight is None:
                terms |= self.supervise(output, label, f"seg_{name}")
            else:
                terms[f"self_{name}"] = ramp * factor * losses.cross_entropy(output.main, label, pixel_weight)
        return Losses(terms, {"pseudo_weight": weight.mean(), "pseudo_max_prob": max_prob.mean()})

    @torch.no_grad()
    def pseudo_label(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher's hard labels, their pixel weights and the largest probability; each (B, H, W).

        The weight is one number, the share of all ranks' pixels whose probability reaches ``confidence`` (DACS), or 1
        on those pixels and 0 on the others, which keeps unsure labels of small things out of the loss.
        The teacher normalises by the target batch's own statistics, so its running statistics become the target's.
        """
        max_prob, label = self.teacher(image_BCHW).main.float().softmax(dim=1).max(dim=1)
        sure = max_prob >= self.config.confidence
        weight = sure.float() if self.config.weighting == "pixel" else losses.global_share(sure).expand_as(max_prob)
        return label, weight, max_prob

    def _masked(self, target: Batch) -> Tensor:
        """The target's strong view with blocks hidden; hidden pixels become 0 once normalised."""
        image = augment.photometry(target.image_BCHW, target.seed_B, self.context.photometry, "mask")
        size = (image.shape[-2], image.shape[-1])
        kept = augment.block_mask(target.seed_B, size, self.config.mask_block, self.config.mask_ratio)
        return image * kept + self.student.normalise.mean * (1 - kept)

    def after_step(self) -> None:
        """Move the teacher; its decay grows from 0 so that it starts as the student (DACS)."""
        warm = 1 - 1 / (self.step + 1)
        update_ema(self.teacher, self.student, torch.clamp(warm, max=self.config.ema_decay))
        super().after_step()

    def predictor(self) -> Segmenter:
        """Teacher or student, as ``predict_with`` says."""
        return self.teacher if self.config.predict_with == "teacher" else self.student
