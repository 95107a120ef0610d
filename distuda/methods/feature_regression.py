"""Feature regression: a network for a new camera learns to see what a trained network saw with the old one.

Benbihi, Geist, Pradalier: Deep representation learning for domain adaptation of semantic image segmentation,
arXiv 1805.04141, 2018 (later Semi-supervised domain adaptation with representation learning for semantic segmentation
across time, ICONIP 2019). The texts leave layers, norm and transformations open; the card in
docs/methods/feature_regression.md says what is our reading and what was measured.

Shape legend: B samples, C channels, H and W pixels of a feature map.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, ValidationInfo, field_validator
from torch import Tensor, nn

from distuda.data.batch import Batch
from distuda.data.transformations import CameraConfig, MisalignmentConfig, camera, misalign
from distuda.methods.method import Context, Group, Losses, Method, MethodConfig
from distuda.models.segmenter import Features, Segmenter, pick_layers, require_one_scale, trunk_of


class FeatureRegression(Method):
    """The trunk of the student is moved until its features of domain B are those of the frozen teacher of domain A.

    The teacher is the network the run starts from (``init_from``, or the phase before). No label is looked at, and the
    head stays the teacher's.
    """

    class Config(MethodConfig):
        """Fields of `FeatureRegression`."""

        name: Literal["feature_regression"] = "feature_regression"
        calibrate_images: int = Field(
            0, ge=0, description="target images by which batch-norm statistics are set before evaluation [images]"
        )
        pairs: Literal["given", "synthetic"] = Field(
            "given",
            description="the target's own pairs (`distuda prepare --pairs`), or source images and changes of them",
        )
        layers: list[int] = Field(
            [-1], min_length=1, description="which of the encoder's feature maps are compared; -1 = the last"
        )
        layer_weights: list[NonNegativeFloat] | None = Field(
            None, description="weight of each layer's distance, none = 1 each"
        )
        distance: Literal["l2", "l1", "cosine"] = Field(
            "l2", description="mean squared or absolute difference, or 1 - cosine of the channels at each place"
        )
        camera: CameraConfig = Field(
            default_factory=lambda: CameraConfig(), description="camera change of synthetic pairs"
        )
        misalignment: MisalignmentConfig = Field(
            default_factory=lambda: MisalignmentConfig(), description="misalignment of synthetic pairs"
        )

        @field_validator("layers")
        @classmethod
        def _once_each(cls, layers: list[int]) -> list[int]:
            if len(set(layers)) < len(layers):
                raise ValueError("a layer is named twice")
            return layers

        @field_validator("layer_weights")
        @classmethod
        def _one_a_layer(cls, weights: list[float] | None, info: ValidationInfo) -> list[float] | None:
            layers = info.data.get("layers", ())
            if weights is not None and len(weights) != len(layers):
                raise ValueError(f"{len(weights)} weights for {len(layers)} layers; give one a layer")
            return weights

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """The target's pairs, or else the source's images to make pairs of; no label in either case."""
            return {"target": ("pair",)} if self.pairs == "given" else {"source": ()}

        @property
        def needs_trained_start(self) -> bool:
            """The teacher is the network the run starts from."""
            return True

    config: Config

    def __init__(self, config: Config, student: Segmenter, context: Context) -> None:
        require_one_scale(student, config.name)
        super().__init__(config, student, context)
        self.teacher = trunk_of(student).requires_grad_(False).eval()
        learning = self._behind_layers(student)
        student.requires_grad_(False)
        for parameter in learning:
            parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> "FeatureRegression":
        """The teacher keeps domain A's batch-norm statistics, so it never leaves evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, source: Batch | None = None, target: Batch | None = None) -> Losses:
        """The teacher on domain A, the student's trunk on domain B, the distance of each chosen layer."""
        image_a, image_b = self.views(source, target)
        with torch.no_grad():
            wanted = self._chosen(self.teacher.encode(self.teacher.normalise(image_a)))
        got = self._chosen(self.student.encode(self.student.normalise(image_b)))
        weights = self.config.layer_weights or [1.0] * len(wanted)
        parts = zip(self.config.layers, weights, got, wanted, strict=True)
        return Losses({f"features_{layer}": weight * self.distance(b, a) for layer, weight, b, a in parts})

    def views(self, source: Batch | None, target: Batch | None) -> tuple[Tensor, Tensor]:
        """The same scenes as the old camera (A) and the new one (B) see them, float RGB in [0, 1]."""
        if self.config.pairs == "given":
            assert target is not None and target.pair_BCHW is not None
            return target.pair_BCHW, target.image_BCHW
        assert source is not None
        changed = camera(source.image_BCHW, source.seed_B, self.config.camera)
        return source.image_BCHW, misalign(changed, source.seed_B, self.config.misalignment)

    def distance(self, got_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
        """Mean distance of two feature maps, a float32 scalar; every image weighs the same on every rank."""
        got, wanted = got_BCHW.float(), wanted_BCHW.float()
        if self.config.distance == "cosine":
            return 1 - F.cosine_similarity(got, wanted, dim=1).mean()
        return F.l1_loss(got, wanted) if self.config.distance == "l1" else F.mse_loss(got, wanted)

    def parameter_groups(self) -> list[Group]:
        """The student's trunk, as far as the chosen layers depend on it."""
        return [Group("encoder", [p for p in self.student.parameters() if p.requires_grad])]

    def _chosen(self, features: Features) -> list[Tensor]:
        """The feature maps of ``layers``, in their order."""
        return [features[layer] for layer in pick_layers(features, self.config.layers, "method.layers")]

    def _behind_layers(self, student: Segmenter) -> list[nn.Parameter]:
        """The trunk's parameters that the chosen layers depend on; DDP refuses a step in which others are trainable."""
        trunk, was_training = student.encoder_parameters(), student.training
        student.eval()  # nothing may move the statistics
        with torch.enable_grad():
            chosen = self._chosen(student.encode(student.normalise(torch.zeros(1, 3, 64, 64))))
            grads = torch.autograd.grad([feature.sum() for feature in chosen], trunk, allow_unused=True)
        student.train(was_training)
        return [parameter for parameter, grad in zip(trunk, grads, strict=True) if grad is not None]
