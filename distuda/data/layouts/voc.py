"""PASCAL VOC 2012 with the augmented masks of Hariharan et al. and image tags from the boxes.

Everingham et al.: The PASCAL Visual Object Classes Challenge: A Retrospective, IJCV 2015. Hariharan et al.: Semantic
Contours from Inverse Detectors, ICCV 2011 (SBD), whose masks are read in their usual form as PNGs.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import numpy as np

from distuda.data.decode import SampleError
from distuda.data.labels import IGNORE
from distuda.data.layouts.entry import Annotation, Entry, Layout, choose, plain_annotation, read_instances, stem
from distuda.data.source import File, Tree
from distuda.errors import UserError

SPLITS = ("trainval", "train", "val", "test", "trainaug")

_ROOTS = ("VOC2012", "VOCdevkit/VOC2012")
_LISTS = "ImageSets/Segmentation"
_OBTAIN = (
    "VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012, no registration; for trainaug also "
    "SegmentationClassAug.zip and trainaug.txt; for test VOC2012test.tar (registration), whose labels are not published"
)
_AUGMENTED = (
    "It is SegmentationClassAug/{key}.png out of SegmentationClassAug.zip, which belongs beside JPEGImages or beside "
    "the tar, in the folder that you name. SBD's own masks are Matlab files (.mat) and are not read."
)
_TRAINAUG = (
    f"The 10,582 names belong in VOC2012/{_LISTS}/trainaug.txt: those in SegmentationClassAug.zip that are not in "
    "val.txt. The list comes with most DeepLab repositories."
)


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Images of a split, of ``trainval`` where none is named; their tags are read later."""
    (name,) = choose("split", split or SPLITS[0], SPLITS)
    base = tree.root("JPEGImages", _ROOTS)
    if not base.has("JPEGImages"):
        raise UserError(f"no VOCdevkit/VOC2012/JPEGImages in {tree.uri!r}. It comes as {_OBTAIN}.")
    images = {stem(path): file for path, file in base.find("JPEGImages").items()}
    labels = _pngs(base, "SegmentationClassAug" if name == "trainaug" else "SegmentationClass")
    if name == "trainaug":  # the zip may also lie beside the tar
        labels = _pngs(tree, "SegmentationClassAug") | labels
    objects = _pngs(base, "SegmentationObject")
    tags = {stem(path): file for path, file in base.find("Annotations", (".xml",)).items()}
    for key in _listed(tree, base, name):
        if key not in images:
            raise UserError(f"{name}.txt lists {key!r}, but VOC2012/JPEGImages/{key}.jpg is not in {tree.uri!r}.")
        hint = _AUGMENTED if name == "trainaug" else f"It comes as VOC2012/SegmentationClass/{key}.png in {_OBTAIN}."
        yield Entry(
            key=key,
            image=images[key],
            label=labels.get(key),
            instance=objects.get(key),
            tag_file=tags.get(key),
            unlabelled=name == "test",
            label_hint=hint.format(key=key),
        )


def _pngs(tree: Tree, folder: str) -> dict[str, File]:
    return {stem(path): file for path, file in tree.find(folder, (".png",)).items()}


def _listed(tree: Tree, base: Tree, split: str) -> list[str]:
    """The ids of a split, sorted; a line holds an id, or the paths of image and mask, as some lists do."""
    file = base.file(f"{_LISTS}/{split}.txt") or tree.file(f"{split}.txt")
    if file is None:
        how = _TRAINAUG if split == "trainaug" else f"It comes as {_OBTAIN}."
        raise UserError(f"no VOC2012/{_LISTS}/{split}.txt in {tree.uri!r}. {how}")
    lines = file.read().decode().splitlines()
    return sorted({stem(line.split()[0].rsplit("/", 1)[-1]) for line in lines if line.strip()})


def annotate(entry: Entry) -> Annotation:
    """Class ids 0..20 and 255; instances of the image where ``SegmentationObject`` has it, borders without one."""
    ids, objects = plain_annotation(entry).ids_HW, read_instances(entry)
    return Annotation(ids, None if objects is None else np.where(objects == IGNORE, 0, objects).astype(np.uint16))


def tags(entry: Entry) -> tuple[str, ...] | None:
    """Classes of the annotated objects, those marked difficult included; None without an annotation."""
    if entry.tag_file is None:
        return None
    try:
        root = ElementTree.fromstring(entry.tag_file.read())
    except ElementTree.ParseError as error:
        raise SampleError(entry.key, f"{str(entry.tag_file)!r} is no readable XML ({error}). Replace it.") from error
    return tuple(sorted({item.findtext("name", "").strip() for item in root.findall("object")}))


LAYOUT = Layout(
    entries=entries,
    classes="voc21",
    ids="voc_ids",
    summary="VOCdevkit/VOC2012 with JPEGImages/ SegmentationClass/ ImageSets/ Annotations/ (no split: trainval)",
    obtain=_OBTAIN,
    images="VOCtrainval_11-May-2012.tar",
    splits=SPLITS,
    annotate=annotate,
    tags=tags,
)
