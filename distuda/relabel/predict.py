"""A trained network's own predictions as labels: PSL++ of AE-PSL, and self-training between two phases."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distuda.data.labels import IGNORE
from distuda.engine.evaluate import logits_at
from distuda.models.tags import NEVER
from distuda.relabel.relabeller import Map, RelabelConfig, Relabeller, Row, image_of


class Predict(Relabeller):
    """The arg-max of the network's logits; classes that are no tag of the image cannot win, unsure pixels are ignored.

    Writes ``label``.
    """

    class Config(RelabelConfig):
        """Fields of `Predict`."""

        name: Literal["predict"] = "predict"
        only_tags: bool = Field(True, description="images with tags keep those and the background alone")
        confidence: float = Field(0.0, ge=0, le=1, description="probability below which a pixel is ignored")

    writes = ("label",)
    reads_if_there = ("tags",)

    @torch.no_grad()
    def __call__(self, row: Row) -> dict[str, Map]:
        """Columns of one sample."""
        network = self.task.network
        assert network is not None
        image = image_of(row)
        with self.autocast():
            logits = logits_at(network, self.shown(image) * 255, (image.shape[0], image.shape[1]))[0]
        if self.config.only_tags and row.get("tags") is not None:
            logits = logits.masked_fill(self.barred(self.tags(row)).to(logits.device)[:, None, None], NEVER)
        probability, label = logits.softmax(dim=0).max(dim=0)
        label[probability < self.config.confidence] = IGNORE
        return {"label": np.asarray(label.cpu(), np.uint8)}

    def barred(self, tags: list[int]) -> Tensor:
        """Classes that cannot win in an image with these tags, (C,) bool; none where nothing would be left."""
        table = self.task.table
        allowed = tags if table.background is None else [*tags, table.background]
        barred_C = torch.full((table.num_classes,), bool(allowed))
        barred_C[allowed] = False
        return barred_C
