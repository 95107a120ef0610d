"""The contract of a relabel phase: one row of a data set in, columns about its image out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distuda.data.decode import Size, decode_image, decode_label, resize_image
from distuda.data.labels import ClassTable
from distuda.errors import UserError
from distuda.models.segmenter import Segmenter

Row = Mapping[str, Any]
Map = NDArray[np.uint8]


class RelabelConfig(BaseModel):
    """Fields every relabel phase has."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    name: str = Field("", description="what is written")
    domain: Literal["source", "target"] = Field("source", description="whose samples are looked at")


@dataclass
class Task:
    """What a relabeller works with.

    Attributes:
        table: of the data set.
        network: what the phase before has learnt, in evaluation mode on its device; None where none is needed.
        size: (height, width) that images are shown to the network at, None = native.
        bf16: whether the network computes in bfloat16.
    """

    table: ClassTable
    network: Segmenter | None = None
    size: Size | None = None
    bf16: bool = False


class Relabeller:
    """Base of all relabel phases: subclasses name their columns and write `__call__`.

    Args:
        config: the phase's own typed configuration.
        task: network and facts about the data.
    """

    Config: ClassVar[type[RelabelConfig]] = RelabelConfig
    writes: ClassVar[tuple[str, ...]] = ()
    """Columns it writes (`data.columns`)."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Columns it cannot do without."""
    reads_if_there: ClassVar[tuple[str, ...]] = ()
    """Columns it takes into account where an earlier phase, or `distuda prepare`, has written them."""
    needs_network: ClassVar[bool] = True

    def __init__(self, config: Any, task: Task) -> None:
        self.config, self.task = config, task

    def __call__(self, row: Row) -> dict[str, Map]:
        """Columns of one sample: uint8 maps (H, W) at the image's own size.

        Args:
            row: ``key``, ``image`` and the columns of `reads`, encoded.
        """
        raise NotImplementedError

    def tags(self, row: Row) -> list[int]:
        """Train ids the image holds, without the background; an image without any has nothing to find."""
        return [tag for tag in row["tags"] if tag != self.task.table.background]

    def shown(self, image_HWC: Map) -> Tensor:
        """An image as the network takes it: (1, 3, h, w) float RGB in [0, 1] on its device."""
        small = image_HWC if self.task.size is None else resize_image(image_HWC, self.task.size)
        return torch.from_numpy(small).permute(2, 0, 1)[None].to(self._device).float() / 255

    def autocast(self) -> torch.autocast:
        """The arithmetic of the network."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.task.bf16)

    @property
    def _device(self) -> torch.device:
        assert self.task.network is not None
        return next(self.task.network.parameters()).device


def image_of(row: Row) -> Map:
    """The decoded image, uint8 RGB (H, W, 3)."""
    return decode_image(row["image"], str(row["key"]))


def map_of(row: Row, column: str) -> Map:
    """One decoded column, uint8 (H, W)."""
    if row[column] is None:
        raise UserError(f"sample {row['key']!r} has no {column!r}. Run the phase that writes it again.")
    return np.asarray(decode_label(row[column], str(row["key"])), np.uint8)


def encode_map(map_HW: Map) -> bytes:
    """One map as 8-bit PNG."""
    return bytes(cv2.imencode(".png", map_HW)[1])
