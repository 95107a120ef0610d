"""What an evaluation of clips adds to a row of scores, in the order in which tables print it."""

from collections.abc import Mapping
from typing import Any

GROUPS = {"all classes": "vpq", "things": "vpq_things", "stuff": "vpq_stuff"}
"""Title -> key of the mean over windows; the key of one window ends with its number of frames."""

WINDOW = (
    "A window is so many labelled frames of a clip in a row. In it all pixels of a class make one tube, which is found "
    "if it overlaps the true tube by more than half (IoU)."
)
CONSISTENCY = "Temporal consistency: share of pixels with the class that optical flow brings from the frame before."
"""What readers of a table are told below it."""


def windows(row: Mapping[str, Any]) -> list[int]:
    """Lengths of the windows that were scored, in frames, ascending; empty for still images."""
    return sorted(int(name[4:]) for name in row if name.startswith("vpq_") and name[4:].isdigit())


def quality(row: Mapping[str, Any], key: str, lengths: list[int]) -> list[float | None]:
    """Of one group the quality by window, and last its mean over windows, in [0, 1]; None where it is not known."""
    return [*(row.get(f"{key}_{length}") for length in lengths), row.get(key)]
