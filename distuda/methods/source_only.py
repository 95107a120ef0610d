"""Training on labels alone: of the source (the floor of every comparison), of both (its ceiling), or of the target."""

from typing import Literal

from pydantic import Field, model_validator

from distuda.data.batch import Batch
from distuda.methods.feature_distance import DistanceConfig, NearStart
from distuda.methods.method import Losses


class SourceOnly(NearStart):
    """Cross-entropy on the source, on the target where ``use_target_labels`` is set, or on both."""

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
        use_source_labels: bool = Field(
            True,
            description="false, with use_target_labels: the target's labels alone, whether given (fine-tuning) or "
            "written by a relabel phase",
        )

        @model_validator(mode="after")
        def _something_to_learn(self) -> "SourceOnly.Config":
            if not (self.use_source_labels or self.use_target_labels):
                raise ValueError("use_source_labels and use_target_labels are both false, so nothing is learnt")
            if self.lambda_distance and not self.use_source_labels:
                raise ValueError("lambda_distance looks at source images, and use_source_labels is false")
            return self

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """Labels of the domains that are trained on."""
            used = {"source": self.use_source_labels, "target": self.use_target_labels}
            return {name: ("label",) for name, is_used in used.items() if is_used}

    config: Config

    def forward(self, source: Batch | None = None, target: Batch | None = None) -> Losses:
        """The loss of each domain whose labels are used."""
        given = {"src": source, "tgt": target}
        views = {name: self.labelled_view(batch) for name, batch in given.items() if batch is not None}
        outputs = self.run_student(views)
        terms = self.learn_source(outputs["src"], views["src"]) if "src" in views else {}
        if "tgt" in views:
            terms |= self.supervise(outputs["tgt"], views["tgt"], "seg_tgt")
        return Losses(terms)
