"""Adversarial erasing: the regions that a classifier of tags looks at most, added to those of earlier rounds.

Wei et al.: AE-PSL, CVPR 2017, section 3.1. Shape legend: C classes, H and W pixels of the image.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from distuda.data.columns import CONTESTED
from distuda.data.labels import IGNORE
from distuda.errors import UserError
from distuda.models.tags import Localiser
from distuda.relabel.relabeller import Map, RelabelConfig, Relabeller, Row, Task, image_of, map_of

Region = Literal["max", "quantile", "cam"]


class Erase(Relabeller):
    """Class activation maps of each tag, their top region, and what they make of every pixel.

    Writes ``mined`` (all rounds together), ``heat`` (how strongly a classifier, of this round or an earlier one, saw
    any tag, as a share of the tag's largest heat in that round), ``heat_now`` (this round's alone) and ``label``: the
    class that was mined, elsewhere the tag that was seen most strongly, or the background.
    """

    class Config(RelabelConfig):
        """Fields of `Erase`."""

        name: Literal["erase"] = "erase"
        region: Region = Field(
            "max",
            description="what 'the top share' of a heat map H is: H >= (1 - share) max H, the share of pixels with the "
            "largest H (quantile), or H >= share max H (cam)",
        )
        within: Literal["image", "left"] = Field(
            "image", description="where the top share is looked for: the whole map, or what is not yet erased (ours)"
        )
        share: float = Field(0.2, gt=0, lt=1, description="of the heat map that is mined and erased")
        scales: list[PositiveFloat] = Field(
            [1.0], min_length=1, description="image sizes over which heat maps are averaged, each with its mirror image"
        )
        background_heat: float = Field(
            0.2, ge=0, le=1, description="share of a tag's largest heat below which a pixel is labelled background"
        )

        @property
        def reads(self) -> tuple[str, ...]:
            """What there is to find."""
            return ("tags",)

    writes = ("label", "mined", "heat", "heat_now")
    reads_if_there = ("mined", "heat", "label")

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        if not isinstance(task.network, Localiser):
            raise UserError("erasing needs a run of method 'classify'. Name it with init_from, or put it before.")

    def __call__(self, row: Row) -> dict[str, Map]:
        """Columns of one sample."""
        image = image_of(row)
        mined = np.full(image.shape[:2], IGNORE, np.uint8) if row.get("mined") is None else map_of(row, "mined").copy()
        tags = self.tags(row)
        heat_NHW = self.heat(image, mined, tags)
        left = mined == IGNORE if self.config.within == "left" else np.ones(mined.shape, bool)
        for tag, heat_HW in zip(tags, heat_NHW, strict=True):
            claim(mined, top_region(heat_HW, self.config.region, self.config.share, left), tag)
        strength = heat_NHW / np.maximum(heat_NHW.max(axis=(1, 2), keepdims=True), 1e-6)
        label = decide(strength, tags, self.config.background_heat, self.task.table.background)
        strongest = now = np.asarray(strength.max(axis=0, initial=0) * 255, np.uint8)
        if row.get("heat") is not None:  # of an earlier round, and so is the label; without, it is the data set's own
            before = map_of(row, "heat")
            label = np.where(before >= strongest, map_of(row, "label"), label)
            strongest = np.maximum(before, strongest)
        known = mined < CONTESTED
        label[known] = mined[known]
        return {"label": label, "mined": mined, "heat": strongest, "heat_now": now}

    @torch.no_grad()
    def heat(self, image_HWC: Map, mined_HW: Map, tags: list[int]) -> NDArray[np.float32]:
        """Class activation maps of these classes, (N, H, W), of an image from which the mined pixels are erased."""
        network = self.task.network
        assert isinstance(network, Localiser)
        size = (image_HWC.shape[0], image_HWC.shape[1])
        if not tags:
            return np.zeros((0, *size), np.float32)
        fill = (network.normalise.mean.flatten() * 255).round().to(torch.uint8).cpu().numpy()
        left = np.where((mined_HW != IGNORE)[..., None], fill, image_HWC)
        with self.autocast():
            heat = network.heat(self.shown(left), tuple(self.config.scales), tags)
        return np.asarray(F.interpolate(heat, size=size, mode="bilinear", align_corners=False)[0].cpu(), np.float32)


def top_region(
    heat_HW: NDArray[np.float32], region: Region, share: float, left_HW: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """The mined part of one heat map, looked for among the pixels that are ``left_HW``; none where there is no heat."""
    highest = heat_HW.max(where=left_HW, initial=0)
    if highest <= 0:
        return np.zeros(heat_HW.shape, bool)
    limits = {"max": (1 - share) * highest, "cam": share * highest}
    limit = np.quantile(heat_HW[left_HW], 1 - share) if region == "quantile" else limits[region]
    return np.asarray((heat_HW >= limit) & (heat_HW > 0) & left_HW)


def claim(mined_HW: Map, region_HW: NDArray[np.bool_], tag: int) -> None:
    """Add a region to what was mined, in place; where another class was first, both are contested."""
    others = region_HW & (mined_HW != IGNORE) & (mined_HW != tag)
    mined_HW[region_HW & (mined_HW == IGNORE)] = tag
    mined_HW[others] = CONTESTED


def decide(strength_NHW: NDArray[np.float32], tags: list[int], least: float, background: int | None) -> Map:
    """The strongest of the tags at every pixel; background, where the table has one, if none reaches ``least``."""
    if not tags:
        return np.full(strength_NHW.shape[1:], IGNORE if background is None else background, np.uint8)
    label = np.asarray(tags, np.uint8)[strength_NHW.argmax(axis=0)]
    if background is not None:
        label[strength_NHW.max(axis=0) < least] = background
    return label
