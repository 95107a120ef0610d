"""Training on source labels alone: the floor of every comparison; with target labels too, its ceiling (the oracle)."""

from typing import Literal

from pydantic import Field

from distuda.data.batch import Batch
from distuda.methods.feature_distance import DistanceConfig, NearStart
from distuda.methods.method import Losses


class SourceOnly(NearStart):
    """Cross-entropy on the source; target images are not looked at unless ``use_target_labels`` is set."""

    class Config(DistanceConfig):
        """Fields of `SourceOnly`."""

        name: Literal["source_only"] = "source_only"
        calibrate_images: int = Field(
            0,
            ge=0,
            description="target images by which batch-norm statistics are set before evaluation: AdaBN alone [images]",
        )
        use_target_labels: bool = Field(
            False, description="the oracle: also train on target labels; an upper bound, never an adaptation result"
        )

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """Source labels; the oracle also target labels."""
            return {"source": ("label",), **({"target": ("label",)} if self.use_target_labels else {})}

    config: Config

    def forward(self, source: Batch, target: Batch | None = None) -> Losses:
        """Source loss, and the target's when the oracle is asked for."""
        views = {"src": self.labelled_view(source)}
        if self.config.use_target_labels:
            assert target is not None
            views["tgt"] = self.labelled_view(target)
        outputs = self.run_student(views)
        terms = self.learn_source(outputs["src"], views["src"])
        if self.config.use_target_labels:
            terms |= self.supervise(outputs["tgt"], views["tgt"], "seg_tgt")
        return Losses(terms)
