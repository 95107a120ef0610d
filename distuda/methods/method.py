"""The contract of a method: one module that owns its networks and turns two batches into named losses.

The loop never asks which method it is. DDP wraps the method, so there is one forward, one backward and one all-reduce
a step, whatever happens inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from distuda import losses
from distuda.data import augment
from distuda.data.augment import PhotometryConfig
from distuda.data.batch import Batch
from distuda.errors import UserError
from distuda.models.segmenter import Output, Segmenter


class MethodConfig(BaseModel):
    """Fields every method has; a method's own fields follow in its subclass."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    name: str = Field("", description="which method")
    lambda_seg_aux: float = Field(0.1, ge=0, description="weight of the auxiliary head's source loss (ADVENT 1.1)")
    forward: Literal["per_domain", "joint"] = Field(
        "per_domain",
        description="run the network once a domain (batch-norm statistics a domain, as the papers) or once on both",
    )
    calibrate_images: int = Field(
        64,
        ge=0,
        description="target images by which batch-norm statistics are set before evaluation (AdaBN), 0 = off [images]",
    )

    @property
    def needs_target_labels(self) -> bool:
        """Whether training looks at target labels; true for oracles only."""
        return False


@dataclass
class Losses:
    """What one forward gives: ``objective`` terms sum to what is minimised, ``metrics`` are only logged.

    All are scalars on the device; nothing here may synchronise with the host.
    """

    objective: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        """The scalar to differentiate."""
        return torch.stack([value.float() for value in self.objective.values()]).sum()

    def scalars(self) -> dict[str, Tensor]:
        """Everything to log, detached, with the total as ``loss``."""
        named = {**self.objective, **self.metrics}
        return {"loss": self.total().detach(), **{name: value.detach() for name, value in named.items()}}


@dataclass
class Group:
    """Parameters stepped together. ``adam_lr`` set: by their own Adam (discriminators); else by the recipe's optimiser.

    ``role`` is ``encoder``, ``head`` or ``discriminator``; heads learn at the recipe's ``head_lr_factor``.
    """

    role: str
    parameters: list[nn.Parameter]
    adam_lr: float | None = None


@dataclass
class Context:
    """What a method may know beyond its batches.

    Attributes:
        num_classes: of both domains.
        class_frequency_src: share of labelled source pixels a class, (C,) float, sums to 1.
        photometry: colour jitter and blur of strong views.
        photometry_labelled: whether labelled images are seen through it as well.
    """

    num_classes: int
    class_frequency_src: Tensor
    photometry: PhotometryConfig = field(default_factory=lambda: PhotometryConfig())
    photometry_labelled: bool = True


class Method(nn.Module):
    """Base of all methods: owns the student and counts its steps.

    Args:
        config: this method's own typed configuration.
        student: the network being adapted; also what `predictor` gives unless a method overrides it.
        context: facts about the run and the data.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    step: Tensor

    def __init__(self, config: Any, student: Segmenter, context: Context) -> None:
        super().__init__()
        self.config, self.student, self.context = config, student, context
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Both batches augmented, on the method's device, float RGB in [0, 1]."""
        raise NotImplementedError

    def parameter_groups(self) -> list[Group]:
        """What each optimiser steps."""
        return [Group("encoder", self.student.encoder_parameters()), Group("head", self.student.head_parameters())]

    def after_step(self) -> None:
        """Called once after the optimisers stepped: moving averages and the like."""
        self.step += 1

    def predictor(self) -> Segmenter:
        """The network that is evaluated and exported."""
        return self.student

    def ramp(self, start_step: int) -> Tensor:
        """0 before ``start_step``, 1 from there on: a device scalar to multiply a loss with."""
        return (self.step >= start_step).float()

    def labelled_view(self, batch: Batch) -> Tensor:
        """The images a supervised loss sees: jittered where the recipe says so."""
        if not self.context.photometry_labelled:
            return batch.image_BCHW
        return augment.photometry(batch.image_BCHW, batch.seed_B, self.context.photometry, "labelled")

    def run_student(self, *images: Tensor) -> Sequence[Output]:
        """The student on each domain's images, in one or several passes as ``config.forward`` says."""
        if self.config.forward == "joint" and len({image.shape[1:] for image in images}) > 1:
            sizes = " and ".join(f"{image.shape[2]}x{image.shape[3]}" for image in images)
            raise UserError(
                f"method.forward=joint needs equal sizes, not {sizes}. Set augment.crop, or use per_domain."
            )
        if self.config.forward == "per_domain":
            return [self.student(image) for image in images]
        joint = self.student(torch.cat(images))
        counts = [len(image) for image in images]
        mains = joint.main.split(counts)
        auxes = [None] * len(images) if joint.aux is None else joint.aux.split(counts)
        return [Output(main, aux) for main, aux in zip(mains, auxes, strict=True)]

    def supervise(self, output: Output, label_BHW: Tensor, name: str = "seg_src") -> dict[str, Tensor]:
        """Cross-entropy of the main and, where there is one, the auxiliary head."""
        terms = {name: losses.cross_entropy(output.main, label_BHW)}
        if output.aux is not None:
            terms[f"{name}_aux"] = self.config.lambda_seg_aux * losses.cross_entropy(output.aux, label_BHW)
        return terms
