"""Cityscapes: ``leftImg8bit/<split>/<city>/`` with fine labels in ``gtFine/``, or clips in ``leftImg8bit_sequence/``.

Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016. Labels of the test split are
withheld (its files are void), and a clip of 30 frames has a label for one of them. Frames of ``train_extra`` have
coarse labels when ``gtCoarse/`` is there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from distuda.data.decode import decode_label
from distuda.data.layouts.entry import Annotation, Entry, Layout, choose, find_in, label_hint, read_instances
from distuda.data.source import File, Tree

SPLITS = ("train", "val", "test", "train_extra")
SITE = "https://www.cityscapes-dataset.com/downloads/, where one must register"

TOPS = (
    "cityscapes", "Cityscapes", "CityScapes", "leftImg8bit_trainvaltest", "leftImg8bit_trainextra",
    "leftImg8bit_sequence_trainvaltest", "leftImg8bit_trainvaltest_foggy", "leftImg8bit_trainval_foggyDBF",
    "gtFine_trainvaltest", "gtCoarse",
)  # fmt: skip
"""Folders that copies add on top: the data set's name, or that of the archive."""

_HINTS = {
    "gtFine": label_hint("gtFine_trainvaltest.zip", "gtFine/", SITE),
    "gtCoarse": label_hint("gtCoarse.zip", "gtCoarse/", SITE),
}


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Frames of one split, or of all splits that are there; keys as ``train/aachen/aachen_000000_000019``."""
    folder = "leftImg8bit_sequence" if variant == "sequence" else "leftImg8bit"
    for name in choose("split", split, SPLITS):
        frames = with_labels(tree, name, by_frame(find_in(tree, f"{folder}/{name}", TOPS), "_leftImg8bit.png"))
        yield from _clips(list(frames)) if variant == "sequence" else frames


def by_frame(files: Mapping[str, File], ending: str) -> dict[str, File]:
    """City and frame, such as ``aachen/aachen_000000_000019`` -> the file with that ending."""
    return {path.removesuffix(ending): file for path, file in files.items() if path.endswith(ending)}


def with_labels(tree: Tree, split: str, images: Mapping[str, File]) -> Iterator[Entry]:
    """Still images with the labels and instances that belong to them."""
    truth = "gtCoarse" if split == "train_extra" else "gtFine"
    files = {} if split == "test" else find_in(tree, f"{truth}/{split}", TOPS)
    unlabelled = split == "test" or (split == "train_extra" and not files)
    for frame, image in images.items():
        label, instance = (files.get(f"{frame}_{truth}_{kind}.png") for kind in ("labelIds", "instanceIds"))
        yield Entry(
            key=f"{split}/{frame}", image=image, label=label, unlabelled=unlabelled, instance=instance,
            label_hint=_HINTS[truth],
        )  # fmt: skip


def annotate(entry: Entry) -> Annotation:
    """Ids, and class id * 1000 + number for each thing that is told apart; groups and stuff are no instances."""
    assert entry.label is not None
    found = read_instances(entry)
    instance = None if found is None else np.where(found >= 1000, found, 0).astype(np.uint16)
    return Annotation(decode_label(entry.label.read(), entry.key), instance)


def _clips(frames: list[Entry]) -> Iterator[Entry]:
    """Frames without a gap are one clip, named by the first, since some cities number all their clips through."""
    some_labels = any(entry.label is not None for entry in frames)
    clip, expected = "", ("", 0)
    for entry in frames:
        drive, _, number = entry.key.rpartition("_")
        if (drive, int(number)) != expected:
            clip = entry.key
        expected = (drive, int(number) + 1)
        unlabelled = entry.unlabelled or (some_labels and entry.label is None)
        yield replace(entry, clip=clip, frame=int(number), unlabelled=unlabelled)


LAYOUT = Layout(
    entries=entries,
    classes="cityscapes19",
    ids="cityscapes_ids",
    summary="leftImg8bit/<split>/<city>/ (for clips leftImg8bit_sequence/) and gtFine/<split>/<city>/",
    obtain="leftImg8bit_trainvaltest.zip (for clips leftImg8bit_sequence_trainvaltest.zip) and "
    f"gtFine_trainvaltest.zip from {SITE}",
    images="leftImg8bit_trainvaltest.zip, which fills leftImg8bit/ (for clips leftImg8bit_sequence_trainvaltest.zip, "
    "which fills leftImg8bit_sequence/)",
    splits=SPLITS,
    variants=("fine", "sequence"),
    annotate=annotate,
)
