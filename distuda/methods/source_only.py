"""Training on source labels alone: the floor of every comparison; with target labels too, its ceiling (the oracle)."""

from typing import Literal

from pydantic import Field

from distuda.data.batch import Batch
from distuda.methods.method import Losses, Method, MethodConfig


class SourceOnly(Method):
    """Cross-entropy on the source; target images are not looked at unless ``use_target_labels`` is set."""

    class Config(MethodConfig):
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
        def needs_target_labels(self) -> bool:
            """The oracle trains on target labels."""
            return self.use_target_labels

    config: Config

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Source loss, and the target's when the oracle is asked for."""
        assert source.label_BHW is not None
        if not self.config.use_target_labels:
            return Losses(self.supervise(self.student(self.labelled_view(source)), source.label_BHW))
        assert target.label_BHW is not None
        output_src, output_tgt = self.run_student(self.labelled_view(source), self.labelled_view(target))
        terms = self.supervise(output_src, source.label_BHW)
        return Losses(terms | self.supervise(output_tgt, target.label_BHW, "seg_tgt"))
