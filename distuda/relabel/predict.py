"""A trained network's own predictions as labels: PSL++ of AE-PSL, and self-training between two phases."""

from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distuda.data.decode import SampleError, decode_image
from distuda.data.labels import IGNORE
from distuda.engine.evaluate import logits_at
from distuda.errors import UserError
from distuda.models.tags import NEVER
from distuda.relabel.relabeller import Map, RelabelConfig, Relabeller, Row, Task, image_of, map_of


class Predict(Relabeller):
    """The arg-max of the network's logits; classes that are no tag of the image cannot win, unsure pixels are ignored.

    How sure the network is of a pixel is its probability among all classes: where it sees what no tag names, the
    likeliest tag is not sure. Known tags take the place of a branch that guesses them (`models.tags.Prohibiting`).

    Writes ``label``.
    """

    class Config(RelabelConfig):
        """Fields of `Predict`."""

        name: Literal["predict"] = "predict"
        only_tags: bool = Field(True, description="images with tags keep those and the background alone")
        confidence: float = Field(0.0, ge=0, le=1, description="probability below which a pixel is ignored")
        image: Literal["own", "pair"] = Field(
            "own", description="whose labels are written: the image's own, or copies of its pair's, pixel by pixel"
        )
        keep_labels: bool = Field(
            False, description="labels that are there stay, and only pixels that they ignore are predicted (ours)"
        )

        @property
        def reads(self) -> tuple[str, ...]:
            """The other domain's image and the labels there are, where they are looked at."""
            return (*(["pair"] if self.image == "pair" else []), *(["label"] if self.keep_labels else []))

    writes = ("label",)
    reads_if_there = ("tags",)

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        if config.confidence and task.network is not None and task.network.gives_heat:
            raise UserError(
                f"relabel.confidence={config.confidence:g} asks for probabilities, and a run of method 'classify' "
                "gives heat maps. Set it to 0, or go on from a network that segments."
            )

    @torch.no_grad()
    def __call__(self, row: Row) -> dict[str, Map]:
        """Columns of one sample."""
        network = self.task.network
        assert network is not None
        image = image_of(row)
        shown = self.shown(image if self.config.image == "own" else self._pair(row))
        known = self.config.only_tags and row.get("tags") is not None
        with self.autocast(), network.knowing_tags() if known else nullcontext():
            logits = logits_at(network, shown * 255, (image.shape[0], image.shape[1]))[0]
        probability, barred = logits.softmax(dim=0), torch.zeros(len(logits), dtype=torch.bool)
        if known:
            barred = self.barred(self.tags(row))
        label = logits.masked_fill(barred.to(logits.device)[:, None, None], NEVER).argmax(dim=0)
        sure = probability.gather(0, label[None])[0] >= self.config.confidence
        label[~sure] = IGNORE
        own = np.asarray(label.cpu(), np.uint8)
        return {"label": kept_over(row, own) if self.config.keep_labels else own}

    def _pair(self, row: Row) -> Map:
        """The other domain's image, uint8 RGB (H, W, 3) of any size; one that a sample lacks is the user's to mend."""
        if row["pair"] is None:
            raise UserError(
                f"sample {row['key']!r} has no pair. Prepare pairs for all images, or set relabel.image=own."
            )
        return decode_image(row["pair"], f"{row['key']} (pair)")

    def barred(self, tags: list[int]) -> Tensor:
        """Classes that cannot win in an image with these tags, (C,) bool; none where nothing would be left."""
        table = self.task.table
        allowed = tags if table.background is None else [*tags, table.background]
        barred_C = torch.full((table.num_classes,), bool(allowed))
        barred_C[allowed] = False
        return barred_C


def kept_over(row: Row, label_HW: Map) -> Map:
    """A label in which whatever the sample's own label says has replaced what was there, uint8 (H, W)."""
    if row["label"] is None:
        return label_HW
    kept = map_of(row, "label")
    if kept.shape != label_HW.shape:
        sizes = f"label {kept.shape[::-1]} and image {label_HW.shape[::-1]}"
        raise SampleError(str(row["key"]), f"{sizes} differ in size (width, height).")
    return np.where(kept == IGNORE, label_HW, kept)
