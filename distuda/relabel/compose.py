"""Mined regions and a background cue to masks that a segmentation network can learn from.

Wei et al.: AE-PSL, CVPR 2017, section 3.2.
"""

from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeFloat

from distuda.data.columns import CONTESTED
from distuda.data.decode import SampleError
from distuda.data.labels import IGNORE, ClassTable
from distuda.data.saliency import saliency
from distuda.errors import UserError
from distuda.relabel.relabeller import Map, RelabelConfig, Relabeller, Row, Task, image_of, map_of


class Compose(Relabeller):
    """Mined pixels keep their class, what does not stand out is background, all else is ignored.

    Ignored are also pixels that several classes claim, and pixels of objects that do not stand out. Where the class
    table has no background, its stuff has that part: what does not stand out and was not mined becomes the stuff tag
    of the image that the round's label names there, or the only one there is.

    Writes ``label`` and ``saliency``; the latter is computed (`data.saliency`) unless there is such a column.
    """

    class Config(RelabelConfig):
        """Fields of `Compose`."""

        name: Literal["compose"] = "compose"
        background: bool = Field(True, description="label what does not stand out; false = mined regions alone")
        saliency_threshold: float = Field(
            0.06, ge=0, le=1, description="saliency of the picture's range [0, 1] below which a pixel is background"
        )
        class_thresholds: dict[str, NonNegativeFloat] = Field(
            {},
            description="thresholds of these tags in the place of saliency_threshold; the smallest of an image's tags "
            "counts",
        )
        contested: Literal["ignore", "label"] = Field(
            "ignore", description="pixels that several classes claim: ignored, or the round's label"
        )
        unassigned: Literal["ignore", "label"] = Field(
            "ignore", description="pixels that are neither mined nor background: ignored, or the round's label"
        )

        @property
        def reads(self) -> tuple[str, ...]:
            """Tags, and what `Erase` has written."""
            return ("tags", "mined", "label")

    writes = ("label", "saliency")
    reads_if_there = ("saliency",)
    needs_network = False

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        self.thresholds = dict(zip(_classes(config, task.table), config.class_thresholds.values(), strict=True))

    @classmethod
    def require(cls, config: Config, table: ClassTable) -> None:
        """A background, or stuff that takes its part, and thresholds of classes that there are."""
        _classes(config, table)
        if config.background and table.background is None and len(table.things) in (0, table.num_classes):
            raise UserError(
                f"class table {table.name!r} has no background and does not say which classes are things and which "
                'stuff, so nothing can be labelled where nothing stands out. Write "things" into the file for '
                "`distuda prepare --classes`, add a class named background, or set background: false."
            )

    def __call__(self, row: Row) -> dict[str, Map]:
        """Columns of one sample."""
        guess, mined, tags = map_of(row, "label"), map_of(row, "mined"), self.tags(row)
        given = row.get("saliency")
        stands_out = np.asarray(saliency(image_of(row)) * 255, np.uint8) if given is None else map_of(row, "saliency")
        if stands_out.shape != mined.shape:
            sizes = " and the image ".join(f"{width}x{height}" for height, width in (stands_out.shape, mined.shape))
            raise SampleError(str(row["key"]), f"its saliency is {sizes}. Write it at the image's size.")
        plain = stands_out < 255 * self.threshold(tags)
        label = np.where(mined < CONTESTED, mined, IGNORE)
        if self.config.background:
            ground = self.ground(guess, tags)
            free = plain & (mined == IGNORE)
            label[free] = ground[free]
            label[plain & np.isin(mined, self.objects())] = IGNORE
        for rule, where in (
            (self.config.contested, mined == CONTESTED),
            (self.config.unassigned, (mined == IGNORE) & (label == IGNORE)),
        ):
            if rule == "label":
                label[where] = guess[where]
        return {"label": label.astype(np.uint8), "saliency": stands_out}

    def threshold(self, tags: list[int]) -> float:
        """The saliency below which a pixel of an image with these tags is background."""
        usual = self.config.saliency_threshold
        return float(min((self.thresholds.get(tag, usual) for tag in tags), default=usual))

    def objects(self) -> list[int]:
        """Classes that have to stand out: things, or where the table names none, all but the background."""
        table = self.task.table
        return sorted(table.things) or [c for c in range(table.num_classes) if c != table.background]

    def ground(self, guess_HW: Map, tags: list[int]) -> Map:
        """What a pixel is that does not stand out: the background, or a stuff tag, or unknown (255)."""
        background = self.task.table.background
        if background is not None:
            return np.full(guess_HW.shape, background, np.uint8)
        stuff = [tag for tag in tags if tag not in self.objects()]
        if len(stuff) == 1:
            return np.full(guess_HW.shape, stuff[0], np.uint8)
        return np.where(np.isin(guess_HW, stuff), guess_HW, IGNORE).astype(np.uint8)


def _classes(config: Compose.Config, table: ClassTable) -> list[int]:
    """Train ids of the classes that have a threshold of their own."""
    try:
        return [table.index(name) for name in config.class_thresholds]
    except UserError as error:
        raise UserError(f"relabel.class_thresholds: {error}") from None
