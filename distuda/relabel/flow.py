"""Optical flow computed once and kept beside a data set, so that no epoch computes it again."""

from typing import Literal

from distuda.data.clips import FLOW
from distuda.data.decode import resize_image
from distuda.data.flow import compute_flow, encode_flow
from distuda.relabel.relabeller import RelabelConfig, Relabeller, Row, image_of


class FlowToBefore(Relabeller):
    """Backward flow of each frame to the clip's frame before, at the size of its image (`data.flow`).

    Writes ``flow``; null for stills and for frames without one before.
    """

    class Config(RelabelConfig):
        """Fields of `FlowToBefore`."""

        name: Literal["flow"] = "flow"

    writes = (FLOW,)
    needs_network = False
    needs_clips = True

    @property
    def around(self) -> tuple[int, int]:
        """The frame before."""
        return 1, 0

    def __call__(self, row: Row) -> dict[str, bytes | None]:
        """Columns of one sample."""
        before = row["around"].get(-1)
        if before is None:
            return {FLOW: None}
        image = image_of(row)
        size = (image.shape[0], image.shape[1])
        return {FLOW: encode_flow(*compute_flow(image, resize_image(image_of(before), size)))}
