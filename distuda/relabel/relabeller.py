"""The contract of a relabel phase: one row of a data set in, columns about its image out."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

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
Counts = NDArray[np.int64]

Key = TypeVar("Key")
Value = TypeVar("Value")


class RelabelConfig(BaseModel):
    """Fields every relabel phase has."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    name: str = Field("", description="what is written")
    domain: Literal["source", "target"] = Field("source", description="whose samples are looked at")

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns it cannot do without."""
        return ()


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
    reads_if_there: ClassVar[tuple[str, ...]] = ()
    """Columns it takes into account where an earlier phase, or `distuda prepare`, has written them."""
    needs_network: ClassVar[bool] = True
    """Whether it looks with a trained network; what does without keeps nothing between samples and runs in threads."""
    needs_clips: ClassVar[bool] = False
    """Whether it has nothing to write where there are only stills."""

    def __init__(self, config: Any, task: Task) -> None:
        self.config, self.task = config, task

    @classmethod
    def require(cls, config: Any, table: ClassTable) -> None:
        """Refuse, before anything is spent, settings that have nothing to write for a class table."""

    @property
    def around(self) -> tuple[int, int]:
        """How many frames before and after a sample in its clip it looks at; rows then come in the order of clips."""
        return 0, 0

    @property
    def surveys(self) -> Literal["", "clip", "set"]:
        """Over what `survey` is summed up before a sample is looked at: its clip (a still is alone), or all samples."""
        return ""

    def survey(self, row: Row) -> Counts:
        """What one sample adds to the survey: counts of a fixed shape.

        Args:
            row: ``key`` and the columns of ``config.reads``, encoded; no image.
        """
        raise NotImplementedError

    def __call__(self, row: Row) -> Mapping[str, Map | bytes | None]:
        """Columns of one sample: uint8 maps (H, W) at the image's own size; bytes of what is no such map, or None.

        Args:
            row: ``key``, ``image`` and the columns of ``config.reads``, encoded. One that looks ``around`` finds there
                the rows of the other frames that exist by their offset (-1 is the frame before), and one that
                ``surveys`` the sum of the counts as ``survey``.
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


class Recent(Generic[Key, Value]):
    """The values that were asked for last.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not among them."""
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self.size:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]


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
