"""The contract of a method: one module that owns its networks and turns two batches into named losses.

The loop never asks which method it is. DDP wraps the method, so there is one forward, one backward and one all-reduce
a step, whatever happens inside.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from distuda import losses
from distuda.data import augment
from distuda.data.augment import PhotometryConfig
from distuda.data.batch import Batch
from distuda.data.labels import ClassTable
from distuda.errors import UserError
from distuda.models.segmenter import Output, Segmenter, cut


class MethodConfig(BaseModel):
    """Fields every method has; a method's own fields follow in its subclass."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    name: str = Field("", description="which method")
    lambda_seg_aux: float = Field(0.1, ge=0, description="weight of the auxiliary head's source loss (ADVENT 1.1)")
    lambda_detail: float = Field(
        0.1, ge=0, le=1, description="with model.detail, share of the loss that the detail crop has alone (HRDA)"
    )
    forward: Literal["per_domain", "joint"] = Field(
        "per_domain",
        description="run the network once a domain (batch-norm statistics a domain, as the papers) or once on both",
    )
    calibrate_images: int = Field(
        64,
        ge=0,
        description="target images by which batch-norm statistics are set before evaluation (AdaBN), 0 = off; it loses "
        "where classes are much more frequent in one domain than in the other [images]",
    )

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """What training looks at beside the images, by domain; without a ``target`` no target image is read."""
        return {"source": ("label",), "target": ()}

    @property
    def reads_if_there(self) -> tuple[str, ...]:
        """Columns of the source that training takes into account where a relabel phase has written them."""
        return ()

    @property
    def num_frames(self) -> Mapping[str, int]:
        """Frames a sample of each domain, itself and those before it in its clip; 1 for a domain not named."""
        return {}

    @property
    def needs_trained_start(self) -> bool:
        """Whether the method starts from a trained network and means nothing without (``init_from``)."""
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
        flip: share of the samples that are mirrored.
        table: names and things of the classes; None where nothing asks for them.
    """

    num_classes: int
    class_frequency_src: Tensor
    photometry: PhotometryConfig = field(default_factory=lambda: PhotometryConfig())
    photometry_labelled: bool = True
    flip: float = 0.0
    table: ClassTable | None = None

    def class_ids(self, names: list[str] | None, field: str) -> tuple[int, ...]:
        """Train ids of these classes, or of all things; an unknown name is the user's error and names the ``field``."""
        assert self.table is not None
        if names is None:
            return tuple(sorted(self.table.things))
        try:
            return tuple(self.table.index(name) for name in names)
        except UserError as error:
            raise UserError(f"{field}: {error}") from None


class View(NamedTuple):
    """Images as the student sees them in a step, and what they teach.

    Attributes:
        image_BCHW: float RGB in [0, 1].
        seed_B: the samples' seeds.
        label_BHW: int64 train ids, 255 = ignore; None where nothing is taught directly.
        weight_BHW: float weights of the pixels in [0, 1]; None = plain mean over labelled pixels.
    """

    image_BCHW: Tensor
    seed_B: Tensor
    label_BHW: Tensor | None = None
    weight_BHW: Tensor | None = None


class Method(nn.Module):
    """Base of all methods: owns the student and counts its steps.

    Args:
        config: this method's own typed configuration.
        student: the network being adapted; also what `predictor` gives unless a method overrides it.
        context: facts about the run and the data.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    step: Tensor
    forward: Callable[..., Losses]
    """``forward(source, target)``: the batches of the domains that ``config.reads`` names, augmented, on the method's
    device, float RGB in [0, 1]."""

    def __init__(self, config: Any, student: Segmenter, context: Context) -> None:
        super().__init__()
        self.config, self.student, self.context = config, student, context
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

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

    def labelled_view(self, batch: Batch) -> View:
        """What a supervised loss sees: the images, jittered where the recipe says so, and their labels, if any."""
        image_BCHW = batch.image_BCHW
        if self.context.photometry_labelled:
            image_BCHW = augment.photometry(image_BCHW, batch.seed_B, self.context.photometry, "labelled")
        return View(image_BCHW, batch.seed_B, batch.label_BHW)

    def run_student(self, views: Mapping[str, View]) -> dict[str, Output]:
        """The student on every view, in one or several passes as ``config.forward`` says."""
        if self.config.forward == "per_domain":
            return {name: self.student(view.image_BCHW, view.seed_B) for name, view in views.items()}
        images = [view.image_BCHW for view in views.values()]
        if len({image.shape[1:] for image in images}) > 1:
            sizes = " and ".join(f"{image.shape[2]}x{image.shape[3]}" for image in images)
            raise UserError(
                f"method.forward=joint needs equal sizes, not {sizes}. Set augment.crop, or use per_domain."
            )
        joint: Output = self.student(torch.cat(images), torch.cat([view.seed_B for view in views.values()]))
        return dict(zip(views, joint.split([len(image) for image in images]), strict=True))

    def supervise(self, output: Output, view: View, name: str = "seg_src") -> dict[str, Tensor]:
        """Cross-entropy of the main head and, where there is one, of the auxiliary head with the view's labels.

        An auxiliary head that covers a part of each image is HRDA's detail branch: the two losses then share one
        weight (ECCV 2022, section 3.3), and the labels are cut to that part.
        """
        assert view.label_BHW is not None
        main = losses.cross_entropy(output.main, view.label_BHW, view.weight_BHW)
        if output.aux is None:
            return {name: main}
        if output.origin_B2 is None:
            aux = losses.cross_entropy(output.aux, view.label_BHW, view.weight_BHW)
            return {name: main, f"{name}_aux": self.config.lambda_seg_aux * aux}
        size = (output.aux.shape[-2], output.aux.shape[-1])
        label = cut(view.label_BHW, output.origin_B2, size)
        weight = None if view.weight_BHW is None else cut(view.weight_BHW, output.origin_B2, size)
        share = self.config.lambda_detail
        return {
            name: (1 - share) * main,
            f"{name}_detail": share * losses.cross_entropy(output.aux, label, weight),
        }
