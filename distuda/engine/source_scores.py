"""What label-free scores look at in the source: class frequencies, and labelled images for `source_miou`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from distuda.data.batch import Batch
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.reader import iterate_once
from distuda.data.tolerance import STRICT, Tolerance
from distuda.engine.evaluate import SourceSide
from distuda.errors import UserError
from distuda.metrics.label_free import NEED_SOURCE
from distuda.recipe import Recipe


@dataclass(frozen=True)
class SourceScores:
    """The opened source of a run whose evaluations look at it.

    Attributes:
        recipe: of the run.
        trained_on: the source; it gives the class frequencies.
        held_out: source images that are not trained on; None = the first that are.
        wanted: those of `NEED_SOURCE` that are computed.
    """

    recipe: Recipe
    trained_on: Dataset
    held_out: Dataset | None
    wanted: tuple[str, ...]

    def side(self, tolerance: Tolerance = STRICT, *, rank: int = 0, world: int = 1) -> SourceSide:
        """A rank's part for one evaluation; ``tolerance`` is that of images trained on."""
        frequency_C = torch.tensor(self.trained_on.class_frequencies(), dtype=torch.float32)
        if "source_miou" not in self.wanted:
            return SourceSide(frequency_C)
        return SourceSide(frequency_C, self._samples(tolerance, rank, world), self._images())

    def _samples(self, tolerance: Tolerance, rank: int, world: int) -> Iterator[Batch]:
        return iterate_once(
            self._dataset(),
            rank=rank,
            world=world,
            size=self.recipe.source.size,
            limit=self.recipe.evaluation.source_limit,
            moving=False,
            tolerance=tolerance if self.held_out is None else STRICT,
        )

    def _images(self) -> str:
        dataset = self._dataset()
        count = min(self.recipe.evaluation.source_limit, dataset.manifest.num_labelled or len(dataset))
        return f"the first {count} {'training' if self.held_out is None else 'held-out'} images of {dataset.uri}"

    def _dataset(self) -> Dataset:
        return self.trained_on if self.held_out is None else self.held_out


def open_source_scores(
    recipe: Recipe, names: Sequence[str], source: Dataset, *, labels_come: bool = False
) -> SourceScores | None:
    """What the scores of these names need of the source; None where they need nothing.

    Args:
        recipe: of the run.
        names: label-free scores.
        source: the opened source.
        labels_come: a phase before this one will write the source's labels; their absence is no mistake yet.

    Raises:
        UserError: the source has no labels; held-out images are missing, without labels or of other classes.
    """
    wanted = tuple(name for name in NEED_SOURCE if name in names)
    if not wanted:
        return None
    if not (labels_come or source.class_pixels().any()):
        raise UserError(
            f"{wanted[0]!r} in evaluation.scores looks at the source's labels, and source.uri={source.uri!r} has none. "
            "Leave it out."
        )
    uri = recipe.evaluation.source_uri if "source_miou" in wanted else None
    held_out = open_dataset(uri) if uri else None
    if held_out is not None and not held_out.manifest.num_labelled:
        raise UserError(f"evaluation.source_uri={uri!r} has no labels. Name labelled source images, or none.")
    if held_out is not None and held_out.table.classes != source.table.classes:
        raise UserError(
            f"source has class table {source.table.name!r} {list(source.table.classes)}, evaluation.source_uri has "
            f"{held_out.table.name!r} {list(held_out.table.classes)}. Prepare both with the same --classes."
        )
    return SourceScores(recipe, source, held_out, wanted)
