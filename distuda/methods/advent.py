"""ADVENT: entropy minimisation, direct (MinEnt) and adversarial (AdvEnt).

Vu, Jain, Bucher, Cord, Perez: ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic
Segmentation, CVPR 2019. The card in docs/methods/advent.md says which facts are certain.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distuda import losses
from distuda.data.batch import Batch
from distuda.methods.adversary import Judges, levels, suffixes
from distuda.methods.feature_distance import DistanceConfig, NearStart
from distuda.methods.method import Context, Group, Losses, MethodConfig, View
from distuda.models.segmenter import Output, Segmenter


class PriorConfig(MethodConfig):
    """Fields of the class prior (the paper's CP), for both methods."""

    class_prior: float = Field(
        0.0, ge=0, description="factor on the target term's weight for the class-prior hinge, 0 = off (unpublished)"
    )
    class_prior_mu: float = Field(0.5, ge=0, le=1, description="relaxation of the class prior (paper: 0.5)")


def prior_terms(logits_BCHW: Tensor, config: PriorConfig, context: Context) -> dict[str, Tensor]:
    """The class-prior hinge on target logits, if it is switched on."""
    if not config.class_prior:
        return {}
    prior_C = context.class_frequency_src.to(logits_BCHW.device)
    return {"prior_tgt": config.class_prior * losses.class_prior(logits_BCHW, prior_C, config.class_prior_mu)}


class MinEnt(NearStart):
    """Source cross-entropy plus the mean prediction entropy of target images."""

    class Config(DistanceConfig, PriorConfig):
        """Fields of `MinEnt`; defaults are the paper's (GTA5 -> Cityscapes, DeepLab-v2)."""

        name: Literal["minent"] = "minent"
        lambda_ent: float = Field(0.001, ge=0, description="weight of the main head's entropy")
        lambda_ent_aux: float = Field(0.0002, ge=0, description="weight of the auxiliary head's entropy")
        start_step: int = Field(
            0, ge=0, description="steps of source-only training before the entropy term acts [steps]"
        )
        entropy_range: float = Field(
            1.0, gt=0, le=1, description="share of each image's highest-entropy pixels used; the paper's ER is 0.3"
        )
        entropy_range_divide_by_all: bool = Field(
            False,
            description="divide the selected entropy by all pixels, not by the selected ones (our reading: false)",
        )

    config: Config

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Two domains, one summed objective."""
        views = {"src": self.labelled_view(source), "tgt": View(target.image_BCHW, target.seed_B)}
        outputs = self.run_student(views)
        output_tgt = outputs["tgt"]
        terms = self.learn_source(outputs["src"], views["src"])
        ramp = self.ramp(self.config.start_step)
        for suffix, logits, weight in (
            ("", output_tgt.main, self.config.lambda_ent),
            ("_aux", output_tgt.aux, self.config.lambda_ent_aux),
        ):
            if logits is not None and (not suffix or output_tgt.origin_B2 is None):  # a detail window is no second head
                terms |= {name + suffix: ramp * weight * loss for name, loss in self._target_terms(logits).items()}
        return Losses(terms, {"entropy_tgt": losses.entropy_map(output_tgt.main.detach()).mean()})

    def _target_terms(self, logits_BCHW: Tensor) -> dict[str, Tensor]:
        config = self.config
        entropy = losses.entropy(logits_BCHW, config.entropy_range, divide_by_all=config.entropy_range_divide_by_all)
        return {"ent_tgt": entropy, **prior_terms(logits_BCHW, config, self.context)}


class AdversaryConfig(MethodConfig):
    """Fields of the methods that have discriminators."""

    lambda_adv: float = Field(0.001, ge=0, description="weight of the main head's fooling loss")
    lambda_adv_aux: float = Field(0.0002, ge=0, description="weight of the auxiliary head's fooling loss")
    discriminator_lr: float = Field(1e-4, gt=0, description="Adam learning rate of the discriminators")
    discriminator_input: Literal["self_information", "softmax"] = Field(
        "self_information", description="what the discriminators see (softmax: AdaptSegNet, CVPR 2018)"
    )
    start_step: int = Field(
        0, ge=0, description="steps in which only the discriminators look at the target, before fooling starts [steps]"
    )


class AdvEntConfig(AdversaryConfig, PriorConfig, DistanceConfig):
    """Fields of `AdvEnt` and of the methods built on it."""


class AdvEnt(NearStart):
    """Source cross-entropy plus discriminators on weighted self-information maps, one a head.

    With ``discriminator_input: softmax`` this is AdaptSegNet's output-space adaptation (Tsai et al., CVPR 2018).
    """

    class Config(AdvEntConfig):
        """Fields of `AdvEnt`; defaults are the paper's."""

        name: Literal["advent"] = "advent"

    config: AdvEntConfig

    def __init__(self, config: AdvEntConfig, student: Segmenter, context: Context) -> None:
        super().__init__(config, student, context)
        self.discriminators = Judges(context.num_classes, 2 if student.has_aux else 1)

    def parameter_groups(self) -> list[Group]:
        """The student's groups and one for the discriminators."""
        parameters = [p for judges in self.judges() for p in judges.parameters()]
        return [*super().parameter_groups(), Group("discriminator", parameters, self.config.discriminator_lr)]

    def judges(self) -> list[Judges]:
        """All discriminators."""
        return [self.discriminators]

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Segmentation, fooling and discriminator terms in one objective."""
        views = {"src": self.labelled_view(source), "tgt": View(target.image_BCHW, target.seed_B)}
        outputs = self.run_student(views)
        adversarial = self.oppose(outputs["src"], outputs["tgt"])
        return Losses(self.learn_source(outputs["src"], views["src"]) | adversarial.objective, adversarial.metrics)

    def oppose(self, output_src: Output, output_tgt: Output) -> Losses:
        """Fooling and discriminator terms of every level, and the class prior's."""
        weights = self.level_weights(self.config.lambda_adv, self.config.lambda_adv_aux)
        maps_src = [self.judged_maps(logits.detach()) for logits in levels(output_src)]  # only ever judged
        maps_tgt = [self.judged_maps(logits) for logits in levels(output_tgt)]
        made = self.discriminators.oppose(maps_src, maps_tgt, weights)
        for logits, weight, suffix in zip(levels(output_tgt), weights, suffixes(), strict=False):
            terms = prior_terms(logits, self.config, self.context)
            made.objective |= {name + suffix: weight * loss for name, loss in terms.items()}
        return made

    def level_weights(self, main: float, aux: float) -> list[Tensor]:
        """Weights of the levels' fooling terms now: 0 before ``start_step``."""
        ramp = self.ramp(self.config.start_step)
        return [ramp * main, ramp * aux]

    def judged_maps(self, logits_BCHW: Tensor) -> Tensor:
        """What a discriminator sees of logits, (B, C, H, W)."""
        if self.config.discriminator_input == "softmax":
            return logits_BCHW.float().softmax(dim=1)
        return losses.self_information(logits_BCHW)


class Ensemble(Segmenter):
    """Average of several networks' up-sampled main logits: the paper's AdvEnt + MinEnt, made at evaluation only.

    Args:
        members: networks with the same classes.
    """

    def __init__(self, members: list[Segmenter]) -> None:
        super().__init__(members[0].num_classes, align_corners=members[0].align_corners)
        self.members = nn.ModuleList(members)

    def forward(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Output:
        """Float RGB in [0, 1] -> averaged logits at input size; no auxiliary head."""
        return Output(torch.stack([member(image_BCHW).main for member in self.members]).mean(dim=0))
