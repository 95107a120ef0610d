"""SYNTHIA-RAND-CITYSCAPES: ``RGB/0000000.png`` and ids in ``GT/LABELS/`` under the same names.

Ros, Sellart, Materzynska, Vazquez, Lopez: The SYNTHIA Dataset, CVPR 2016. The published labels are PNGs of three 16-bit
channels: the class, the number of the instance (moving things only), nothing. Two copies with one channel circulate,
both of the same ids: ``parsed_LABELS/`` (AdvEnt, DADA) and, in spite of its name, ``synthia_mapped_to_cityscapes/``
(BDL and what follows it). A mapped copy of one's own that holds train ids is read with the id map
``cityscapes_train_ids``.
"""

from collections.abc import Iterator

import numpy as np

from distuda.data.decode import decode_label
from distuda.data.layouts.entry import Annotation, Entry, Layout, choose, decode_planes, find_in, label_hint, pairs
from distuda.data.source import Tree

SPLITS = ("train",)

FOLDERS = {"original": "GT/LABELS", "parsed": "parsed_LABELS", "mapped": "synthia_mapped_to_cityscapes"}
"""Variant -> where its labels lie."""

SITE = "https://synthia-dataset.net/downloads/, where one must register"
_ARCHIVE = "SYNTHIA_RAND_CITYSCAPES.rar (to be unpacked first: a .rar cannot be read in place)"
_TOPS = ("RAND_CITYSCAPES", "SYNTHIA_RAND_CITYSCAPES", "SYNTHIA", "Synthia", "synthia", "GT")


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Every image with the labels of the variant, or with the first labels that are there; keys as ``0000000``."""
    choose("split", split, SPLITS)
    folders = [FOLDERS[variant]] if variant in FOLDERS else list(FOLDERS.values())
    labels = next((found for folder in folders if (found := find_in(tree, folder, _TOPS))), {})
    return pairs(find_in(tree, "RGB", _TOPS), labels, label_hint(_ARCHIVE, f"{folders[0]}/", SITE))


def annotate(entry: Entry) -> Annotation:
    """Ids and instances of a 16-bit colour PNG, or the ids of a single channel."""
    assert entry.label is not None
    content = entry.label.read()
    planes = decode_planes(content, entry.key)
    if planes.ndim == 3 and planes.dtype == np.uint16:
        return Annotation(planes[:, :, 0], planes[:, :, 1])
    return Annotation(decode_label(content, entry.key))


LAYOUT = Layout(
    entries=entries,
    classes="cityscapes16",
    ids="synthia_ids",
    summary="RGB/ and GT/LABELS/ (or parsed_LABELS/, synthia_mapped_to_cityscapes/) with the same names",
    obtain=f"{_ARCHIVE} from {SITE}",
    images="SYNTHIA_RAND_CITYSCAPES.rar, which fills RGB/",
    splits=SPLITS,
    variants=("auto", *FOLDERS),
    annotate=annotate,
)
