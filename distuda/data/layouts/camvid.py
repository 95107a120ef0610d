"""CamVid as arranged for SegNet: ``train/ trainannot/``, ``val/ valannot/``, ``test/ testannot/``; label 11 is void.

Brostow, Fauqueur, Cipolla: Semantic object classes in video, Pattern Recognition Letters 2009; the 11 classes follow
Badrinarayanan, Kendall, Cipolla: SegNet, PAMI 2017.
"""

import re
from collections.abc import Iterator

from distuda import storage
from distuda.data.layouts.entry import Entry, find_images
from distuda.errors import UserError, nearest

SPLITS = ("train", "val", "test")

_FRAME = re.compile(r"(?P<clip>.+)_f?(?P<frame>\d+)")


def entries(uri: str, split: str | None) -> Iterator[Entry]:
    """Frames of one split, or of all splits that are there; ``<clip>_<frame>`` in the file name gives the clip."""
    if split is not None and split not in SPLITS:
        raise UserError(f"camvid has no split {split!r}{nearest(split, SPLITS)}. Known: {', '.join(SPLITS)}.")
    for name in SPLITS if split is None else (split,):
        labels = find_images(storage.join(uri, f"{name}annot"))
        for key, image in find_images(storage.join(uri, name)).items():
            place = _FRAME.fullmatch(key)
            clip, frame = (place["clip"], int(place["frame"])) if place else (None, None)
            yield Entry(key=key, image=image, label=labels.get(key), clip=clip, frame=frame)
