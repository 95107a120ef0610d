"""Foggy Cityscapes: ``leftImg8bit_foggy/<split>/<city>/``, rendered fog on Cityscapes, whose labels it shares.

Sakaridis, Dai, Van Gool: Semantic Foggy Scene Understanding with Synthetic Data, IJCV 2018. ``beta`` is the fog's
attenuation [1/m]: 0.02, 0.01 and 0.005 leave about 150 m, 300 m and 600 m of sight. The second rendering,
``leftImg8bit_foggyDBF/``, is read when the first is not there.
"""

from collections.abc import Iterator
from dataclasses import replace

from distuda.data.layouts.cityscapes import SITE, SPLITS, TOPS, annotate, by_frame, with_labels
from distuda.data.layouts.entry import Entry, Layout, choose, find_in
from distuda.data.source import Tree

BETAS = ("beta_0.02", "beta_0.01", "beta_0.005")

_FOLDERS = ("leftImg8bit_foggy", "leftImg8bit_foggyDBF")


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Frames of one split, or of all that are there; keys as ``train/aachen/aachen_000000_000019_beta_0.02``."""
    betas = BETAS if variant == "all" else (variant or BETAS[0],)
    for name in choose("split", split, SPLITS):
        files = next((found for folder in _FOLDERS if (found := find_in(tree, f"{folder}/{name}", TOPS))), {})
        frames = [
            replace(entry, key=f"{entry.key}_{beta}")
            for beta in betas
            for entry in with_labels(tree, name, by_frame(files, f"_leftImg8bit_foggy_{beta}.png"))
        ]
        yield from sorted(frames, key=lambda entry: entry.key)


LAYOUT = Layout(
    entries=entries,
    classes="cityscapes19",
    ids="cityscapes_ids",
    summary="leftImg8bit_foggy/<split>/<city>/ and gtFine/<split>/<city>/",
    obtain="leftImg8bit_trainvaltest_foggy.zip (or leftImg8bit_trainval_foggyDBF.zip) and "
    f"gtFine_trainvaltest.zip from {SITE}",
    images="leftImg8bit_trainvaltest_foggy.zip, which fills leftImg8bit_foggy/",
    splits=SPLITS,
    variants=(*BETAS, "all"),
    annotate=annotate,
)
