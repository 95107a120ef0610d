"""GTA5: ``images/00001.png`` to ``24966.png`` and palette PNGs of Cityscapes ids in ``labels/`` under the same names.

Richter, Vineet, Roth, Koltun: Playing for Data, ECCV 2016.
"""

from collections.abc import Iterator

from distuda.data.layouts.entry import Entry, Layout, choose, find_in, label_hint, pairs
from distuda.data.source import Tree

SPLITS = ("train",)

_SITE = "https://download.visinf.tu-darmstadt.de/data/from_games/, where one must register or accept the research terms"
_HINT = label_hint("one of 01_labels.zip to 10_labels.zip", "labels/", _SITE)
_TOPS = ("GTA5", "gta5", "gta", "GTAV", "gtav")


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Every image; its key is its number, such as ``00001``."""
    choose("split", split, SPLITS)
    return pairs(find_in(tree, "images", _TOPS), find_in(tree, "labels", _TOPS), _HINT)


LAYOUT = Layout(
    entries=entries,
    classes="cityscapes19",
    ids="gta5_ids",
    summary="images/ and labels/ with the same names (GTA5)",
    obtain=f"01_images.zip to 10_images.zip and 01_labels.zip to 10_labels.zip from {_SITE}",
    images="01_images.zip to 10_images.zip, which fill images/",
    splits=SPLITS,
    bad_share=0.001,  # a few of the published images and labels differ in size
)
