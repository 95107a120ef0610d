"""Training on source labels alone: the floor of every comparison; with target labels too, its ceiling (the oracle)."""

from pydantic import Field

from distuda.data.batch import Batch
from distuda.errors import UserError
from distuda.methods.method import Losses, Method, MethodConfig


class SourceOnly(Method):
    """Cross-entropy on the source; target images are not looked at unless ``use_target_labels`` is set."""

    class Config(MethodConfig):
        """Fields of `SourceOnly`."""

        calibrate_images: int = Field(
            0, ge=0, description="target images by which batch-norm statistics are set before evaluation: AdaBN alone [images]"
        )
        use_target_labels: bool = Field(
            False, description="the oracle: also train on target labels; an upper bound, never an adaptation result"
        )

    config: Config

    def forward(self, source: Batch, target: Batch) -> Losses:
        """Source loss, and the target's when the oracle is asked for."""
        assert source.label_BHW is not None
        if not self.config.use_target_labels:
            return Losses(self.supervise(self.student(self.labelled_view(source)), source.label_BHW))
        if target.label_BHW is None:
            raise UserError(
                "method.use_target_labels=true, but the target has no labels. Prepare it with labels, or set it false."
            )
        output_src, output_tgt = self.run_student(self.labelled_view(source), self.labelled_view(target))
        terms = self.supervise(output_src, source.label_BHW)
        return Losses(terms | self.supervise(output_tgt, target.label_BHW, "seg_tgt"))
