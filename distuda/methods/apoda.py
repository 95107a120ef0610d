"""APODA: features of both domains are perturbed point by point, and the classifier learns not to mind.

Yang, Xu, Li, Qi, Shen, Li, Lin: An Adversarial Perturbation Oriented Domain Adaptation Approach for Semantic
Segmentation, AAAI 2020. Only the abstract and result rows were at hand; docs/methods/apoda.md says what is our reading.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from distuda import losses
from distuda.data.batch import Batch
from distuda.losses import IGNORE
from distuda.methods.advent import AdvEnt, AdvEntConfig
from distuda.methods.adversary import SOURCE, TARGET
from distuda.methods.method import Context, Losses, View
from distuda.methods.perturbation import AttackConfig, perturb, require_attackable
from distuda.methods.self_training import Teaching, TeachingConfig, num_frames_of, reads_of, require_statistics
from distuda.models.dropout import drawn_from
from distuda.models.segmenter import Features, Output, Segmenter, require_one_scale
from distuda.models.statistics import still_statistics

DOMAINS = {"src": SOURCE, "tgt": TARGET}


class Apoda(AdvEnt):
    """Output-space adaptation plus perturbed features of both domains, which the heads must read as the clean ones.

    The attack and the defence run on the heads alone; the trunk is passed once a domain, as in AdvEnt. With
    ``self_training`` set, a teacher's mixed images are learnt from as well.
    """

    class Config(AdvEntConfig):
        """Fields of `Apoda`; values the paper does not give are our reading."""

        name: Literal["apoda"] = "apoda"
        discriminator_input: Literal["self_information", "softmax"] = Field(
            "softmax", description="what the discriminator sees: softmax as AdaptSegNet, the paper's base, or AdvEnt's"
        )
        attack: AttackConfig = Field(default_factory=lambda: AttackConfig(), description="how features are perturbed")
        lambda_seg_perturbed: float = Field(
            1.0, ge=0, description="weight of the cross-entropy on perturbed source features"
        )
        lambda_consistency: float = Field(
            0.2, ge=0, description="weight of the distance between clean and perturbed predictions, each domain"
        )
        consistency: Literal["symmetric_kl", "jensen_shannon", "l2"] = Field(
            "symmetric_kl", description="distance between clean and perturbed predictions"
        )
        lambda_ent: float = Field(0.001, ge=0, description="weight of the target's mean entropy")
        into_trunk: bool = Field(
            True, description="perturbed features teach the trunk as well, not the heads only (the abstract's wording)"
        )
        discriminate_perturbed: bool = Field(
            False, description="the discriminator also learns to place perturbed features in their own domain (TAT)"
        )
        start_step: int = Field(
            0,
            ge=0,
            description="steps of source-only training and of the discriminators' before all other terms start [steps]",
        )
        self_training: TeachingConfig | None = Field(
            None, description="a teacher and ClassMix beside it, e.g. {confidence: 0.9, weighting: pixel}; none = off"
        )

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """With a teacher that looks back also how the target's pixels moved."""
            return reads_of(self.self_training)

        @property
        def num_frames(self) -> Mapping[str, int]:
            """With a teacher that looks back target frames come with the one before."""
            return num_frames_of(self.self_training)

        @field_validator("forward")
        @classmethod
        def _per_domain(cls, forward: str) -> str:
            if forward == "joint":  # perturbed features of one domain would be normalised otherwise than clean ones
                raise ValueError("apoda runs the network once a domain; set per_domain")
            return forward

    config: Config

    def __init__(self, config: Config, student: Segmenter, context: Context) -> None:
        require_one_scale(student, config.name)
        require_attackable(student, config.attack)
        super().__init__(config, student, context)
        taught = config.self_training
        require_statistics(config, taught)
        self.teaching = Teaching(taught, student, context) if taught else None

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Base terms, then the defence of both domains' features."""
        views = {"src": self.labelled_view(source), "tgt": View(target.image_BCHW, target.seed_B)}
        taught, metrics = self.teaching.views(source, target) if self.teaching else ({}, {})
        outputs = self.teaching.run(self, {**views, **taught}) if self.teaching else self.run_student(views)
        made = self.oppose(outputs["src"], outputs["tgt"])
        made.objective |= self.learn_source(outputs["src"], views["src"])
        made.metrics |= metrics
        ramp = self.ramp(self.config.start_step)
        made.objective["ent_tgt"] = ramp * self.config.lambda_ent * losses.entropy(outputs["tgt"].main)
        if self.teaching is not None:
            made.objective |= self.teaching.terms(self.supervise, outputs, taught, ramp)
        with still_statistics(self.student):
            for name, view in views.items():
                with drawn_from(self.student, view.seed_B):  # dropout as the clean features met it
                    defence = self.defend(name, view, outputs[name])
                made.objective |= {key: ramp * loss for key, loss in defence.objective.items()}
                made.metrics |= defence.metrics
        return made

    def defend(self, name: str, view: View, output: Output) -> Losses:
        """Losses on one domain's perturbed features; ``name`` is ``src`` or ``tgt``."""
        config, size = self.config, (view.image_BCHW.shape[-2], view.image_BCHW.shape[-1])
        objectives = partial(self.attacked, DOMAINS[name], view, output)
        epsilons = (config.attack.epsilon_adv, config.attack.epsilon_cls)
        moves = perturb(output.features, objectives, epsilons, config.attack, view.seed_B)
        features = output.features if config.into_trunk else tuple(f.detach() for f in output.features)
        moved = tuple(feature + move.to(feature.dtype) for feature, move in zip(features, moves, strict=True))
        perturbed = self.student.resize(self.student.main_logits(moved), size)
        distance = _distance(output.main, perturbed, config.consistency)
        terms = {f"consistency_{name}": config.lambda_consistency * distance}
        if view.label_BHW is not None:
            loss = losses.cross_entropy(perturbed, view.label_BHW)
            terms[f"seg_perturbed_{name}"] = config.lambda_seg_perturbed * loss
        if config.discriminate_perturbed:
            judged = self.discriminators[0](self.judged_maps(perturbed.detach()))
            terms[f"discriminator_perturbed_{name}"] = 0.5 * losses.domain_bce(judged, DOMAINS[name])
        changed = perturbed.argmax(1) != output.main.argmax(1)
        return Losses(terms, {f"flipped_{name}": changed.float().mean()})

    def attacked(self, domain: int, view: View, clean: Output, features: Features) -> tuple[Tensor, Tensor]:
        """What the attack raises: minus the loss of being taken for the other domain, and the classifier's error."""
        size = (view.image_BCHW.shape[-2], view.image_BCHW.shape[-1])
        logits = self.student.main_logits(features)
        zero = logits.new_zeros(())
        adversarial = zero
        if self.config.attack.epsilon_adv:  # the discriminator learns from maps of input size
            maps = self.judged_maps(self.student.resize(logits, size))
            adversarial = -losses.domain_bce(self.discriminators.judge_frozen(maps), 1 - domain)
        return adversarial, self._error(view, clean, logits) if self.config.attack.epsilon_cls else zero

    def _error(self, view: View, clean: Output, logits_BChw: Tensor) -> Tensor:
        """Cross-entropy with the label, nearest at feature size; without labels as ``target_attack`` says."""
        logits = logits_BChw.float()
        label = view.label_BHW
        if label is None and self.config.attack.target_attack == "norm":
            return -logits.softmax(dim=1).square().sum(dim=1).sqrt().sum()
        if label is None:
            label = clean.main.detach().argmax(dim=1)
        small = F.interpolate(label[:, None].float(), size=logits.shape[-2:], mode="nearest")[:, 0].long()
        return F.cross_entropy(logits, small, ignore_index=IGNORE, reduction="sum")

    def after_step(self) -> None:
        """Move the teacher, if there is one."""
        if self.teaching is not None:
            self.teaching.follow(self.student, self.step)
        super().after_step()


def _distance(clean_BCHW: Tensor, perturbed_BCHW: Tensor, kind: str) -> Tensor:
    """Mean over pixels of a symmetric distance between two predictions given as logits."""
    log_p, log_q = clean_BCHW.float().log_softmax(dim=1), perturbed_BCHW.float().log_softmax(dim=1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "l2":
        return (p - q).square().sum(dim=1).mean()
    if kind == "symmetric_kl":
        return 0.5 * ((p - q) * (log_p - log_q)).sum(dim=1).mean()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(dim=1).mean()
