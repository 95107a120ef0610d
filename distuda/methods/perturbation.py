"""Point-wise adversarial perturbation of feature maps: the attack of APODA, apart from the method that defends.

Yang, Xu, Li, Qi, Shen, Li, Lin: An Adversarial Perturbation Oriented Domain Adaptation Approach for Semantic
Segmentation (APODA), AAAI 2020. The full text was not at hand: docs/methods/apoda.md says what is our reading.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distuda.draws import normal
from distuda.errors import UserError
from distuda.models.segmenter import Features, Segmenter, pick_layers

FIELD = "method.attack.layers"

Objectives = Callable[[Features], tuple[Tensor, ...]]
"""Features of a batch -> the scalars an attack raises."""


class AttackConfig(BaseModel):
    """How features are perturbed."""

    model_config = ConfigDict(extra="forbid")

    layers: list[int] = Field([-1], min_length=1, description="which maps of the encoder are perturbed; -1 = the last")
    num_steps: int = Field(3, ge=1, description="steps of the attack")
    epsilon_adv: float = Field(
        0.015, ge=0, description="step against the discriminator [share of the mean feature norm]"
    )
    epsilon_cls: float = Field(0.015, ge=0, description="step against the classifier [share of the mean feature norm]")
    normalise: Literal["location", "sign", "global"] = Field(
        "location",
        description="length of a step: the same at every location by the L2 norm or by the sign of each channel, or "
        "free to differ within one norm an image",
    )
    direction: Literal["gradient", "random"] = Field(
        "gradient", description="along the gradients, or the control: as far, in random directions"
    )
    target_attack: Literal["norm", "prediction"] = Field(
        "norm",
        description="against the classifier without labels: lower the L2 norm of the softmax, or raise the "
        "cross-entropy of the present prediction",
    )


def perturb(
    features: Features, objectives: Objectives, epsilons: Sequence[float], config: AttackConfig, seed_B: Tensor
) -> Features:
    """How far each chosen map moves to raise the objectives, float32 and detached; zeros for the other maps.

    A step moves every location, for each objective, by its ``epsilon`` times the image's mean length of a location's
    vector. Gradients are taken with respect to the features alone: no weight's gradient is touched.

    Args:
        features: (B, D, h, w) each; not changed.
        objectives: gives as many scalars as there are ``epsilons``.
        epsilons: step of each objective; those of 0 are not followed.
        config: steps, directions and their normalisation.
        seed_B: the samples' seeds, for the random control.
    """
    chosen = sorted(pick_layers(features, config.layers, FIELD))
    start = [feature.detach().float() for feature in features]
    moved = list(start)
    lengths = [feature.norm(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True) for feature in start]
    followed = [i for i, epsilon in enumerate(epsilons) if epsilon]
    for _ in range(config.num_steps if followed else 0):
        slopes = _slopes(moved, chosen, objectives, followed)
        for i in followed:
            for j, slope in zip(chosen, slopes[i], strict=True):
                moved[j] = moved[j] + epsilons[i] * lengths[j] * _unit(slope, config.normalise)
    moves = [after - before for after, before in zip(moved, start, strict=True)]
    if config.direction == "random":  # the control: as far as the attack goes, but anywhere
        for j in chosen:
            noise = normal(seed_B, f"attack/{j}", *moves[j].shape[1:])
            moves[j] = F.normalize(noise, dim=1) * moves[j].norm(dim=1, keepdim=True)
    return tuple(moves)


def require_attackable(student: Segmenter, config: AttackConfig) -> None:
    """Refuse layers that a network does not have, or that its main head does not look at."""
    was_training = student.training
    student.eval()  # nothing may move the statistics
    with torch.enable_grad():
        features = student.encode(student.normalise(torch.zeros(1, 3, 64, 64)))
        chosen = pick_layers(features, config.layers, FIELD)
        leaves = tuple(feature.detach().requires_grad_() for feature in features)
        slopes = torch.autograd.grad(student.main_logits(leaves).sum(), leaves, allow_unused=True)
    student.train(was_training)
    if idle := [layer for layer, place in zip(config.layers, chosen, strict=True) if slopes[place] is None]:
        raise UserError(
            f"{FIELD}={config.layers}: the main head of this network does not look at feature map {idle[0]}. Take "
            "[-1], the last."
        )


def _slopes(
    features: list[Tensor], chosen: list[int], objectives: Objectives, followed: list[int]
) -> dict[int, list[Tensor]]:
    """Gradients of the followed objectives with respect to the chosen maps, from one forward."""
    with torch.enable_grad():
        leaves = [feature.detach().requires_grad_(j in chosen) for j, feature in enumerate(features)]
        values = objectives(tuple(leaves))
        wanted = [leaves[j] for j in chosen]
        return {
            i: [slope.float() for slope in torch.autograd.grad(values[i], wanted, retain_graph=i != followed[-1])]
            for i in followed
        }


def _unit(slope_BDhw: Tensor, normalise: str) -> Tensor:
    """Of length 1 at every location; ``global``: of length 1 in the quadratic mean over an image's locations."""
    if normalise == "sign":
        return slope_BDhw.sign() / slope_BDhw.shape[1] ** 0.5
    # slopes of saturated predictions are so small that their squares would be 0: first to a largest entry of 1
    together = 1 if normalise == "location" else (1, 2, 3)
    slope_BDhw = slope_BDhw / slope_BDhw.abs().amax(dim=together, keepdim=True).clamp(min=1e-30)
    if normalise == "location":
        return F.normalize(slope_BDhw, dim=1)
    square_B111 = slope_BDhw.square().sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    return slope_BDhw / square_B111.sqrt().clamp(min=1e-12)
