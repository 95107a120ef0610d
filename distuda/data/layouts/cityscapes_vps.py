"""Cityscapes-VPS: six labelled frames in thirty of each Cityscapes validation clip, instances the same over a clip.

Kim, Woo, Lee, Kweon: Video Panoptic Segmentation, CVPR 2020. Folders and names are those that the scripts in
``prepare_data/`` of the repository mcahny/vps leave behind; class ids are the 19 train ids of Cityscapes.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from distuda.data.class_tables import CLASS_TABLES
from distuda.data.layouts import panoptic
from distuda.data.layouts.entry import Annotation, Entry, Layout, choose, plain_annotation, read_instances
from distuda.data.source import Tree

SPLITS = ("train", "val", "test")

VARIANTS = ("panoptic_video", "labelmap", "img_all")
"""Objects as VPQ counts them; classes, with groups of objects; all thirty frames of val or test, six with objects."""

_OBTAIN = (
    "cityscapes-vps-dataset-1.0.zip, linked from github.com/mcahny/vps, completed with gtFine_trainvaltest.zip and "
    "leftImg8bit_sequence_trainvaltest.zip of cityscapes-dataset.com (registration) by the scripts in prepare_data/"
)
_MADE = "made by prepare_data/{script} --mode {split} of github.com/mcahny/vps"
_ROOTS = ("cityscapes_vps", "cityscapes-vps-dataset-1.0", "data/cityscapes_vps")
_IMAGE = re.compile(r"((?P<clip>\d{4})_\d{4}_(?P<place>[a-z-]+_\d{6})_(?P<frame>\d{6}))_(new|left)Img8bit\.png")
_BETWEEN = re.compile(r"(?P<place>[a-z-]+_\d{6})_(?P<frame>\d{6})_leftImg8bit\.png")
_MASK = re.compile(r"_(final_mask|gtFine_color)\.png")
_BEFORE, _AFTER = 4, 25  # frames of a clip before and after its first labelled one
_THINGS = CLASS_TABLES["cityscapes19"].things
_SAME_IDS = {train_id: train_id for train_id in range(19)}


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Frames of one split, or of all splits that are there."""
    for name in choose("split", split, SPLITS):
        base = tree.root(f"{name}/img", _ROOTS)
        frames = list(_frames(base, name))
        if frames and name != "test":
            label = _with_classes if variant == "labelmap" else _with_objects
            frames = list(label(base, name, frames))
        yield from _all_frames(base, name, frames) if variant == "img_all" else frames


def _frames(base: Tree, split: str) -> Iterator[Entry]:
    for name, file in base.find(f"{split}/img").items():
        if part := _IMAGE.fullmatch(name):
            unlabelled, number = split == "test", int(part["frame"])
            yield Entry(key=part[1], image=file, clip=part["clip"], frame=number, unlabelled=unlabelled)


def _with_objects(base: Tree, split: str, frames: Sequence[Entry]) -> Iterator[Entry]:
    """With labels out of the JSON and ``panoptic_video``; things are numbered anew over each clip."""
    name = f"panoptic_gt_{split}_city_vps.json"
    file, masks = base.file(name), base.find(f"{split}/panoptic_video")
    of_frame = {item["image_id"]: item for item in panoptic.read_json(file)["annotations"]} if file else {}
    clips: dict[str | None, list[Any]] = defaultdict(list)
    for key, item in of_frame.items():
        clips[key[:4]].append(item)
    numbers = {clip: panoptic.number_things(items, _THINGS) for clip, items in clips.items()}
    made = _MADE.format(script="create_panoptic_video_labels.py", split=split)
    hint = f"It is in {split}/panoptic_video/ and {name} beside {split}/, {made}; variant 'labelmap' does without."
    for entry in frames:
        item = of_frame.get(entry.key, {"file_name": "", "segments_info": []})
        segments = panoptic.segment_classes(item, _SAME_IDS, numbers.get(entry.clip, {}))
        yield replace(entry, label=masks.get(item["file_name"]), segments=segments, label_hint=hint)


def _with_classes(base: Tree, split: str, frames: Sequence[Entry]) -> Iterator[Entry]:
    """With the classes of ``labelmap``, and the objects of ``panoptic_inst`` where that is there."""
    labels, objects = (
        {_MASK.sub("", name): file for name, file in base.find(f"{split}/{folder}").items()}
        for folder in ("labelmap", "panoptic_inst")
    )
    hint = f"It is in {split}/labelmap/, {_MADE.format(script='create_panoptic_labels.py', split=split)}."
    for entry in frames:
        yield replace(entry, label=labels.get(entry.key), instance=objects.get(entry.key), label_hint=hint)


def _all_frames(base: Tree, split: str, frames: Sequence[Entry]) -> Iterator[Entry]:
    """Every frame of the clips; files of ``img_all`` that belong to none of them are another split's."""
    found = [(_BETWEEN.fullmatch(name), file) for name, file in base.find(f"{split}/img_all").items()]
    files = {(part["place"], int(part["frame"])): file for part, file in found if part}
    for clip, labelled in groupby(frames, key=lambda entry: entry.clip):
        known = {entry.frame or 0: entry for entry in labelled}
        place, first = known[min(known)].key[10:-7], min(known)
        for number in range(first - _BEFORE, first + _AFTER + 1):
            if (place, number) in files:
                image, key = files[place, number], f"{clip}_{place}_{number:06d}"
                unlabelled = Entry(key=key, image=image, clip=clip, frame=number, unlabelled=True)
                yield replace(known.get(number, unlabelled), key=key, image=image)


def annotate(entry: Entry) -> Annotation:
    """Train ids and the objects' numbers, the same in all frames of a clip."""
    if entry.segments is not None:
        return panoptic.annotate(entry)
    ids, objects = plain_annotation(entry).ids_HW, read_instances(entry)
    if objects is None:
        return Annotation(ids)
    return Annotation(ids, np.where(objects >= 1000, objects, 0).astype(np.uint16))  # class * 1000 + number for things


LAYOUT = Layout(
    entries=entries,
    classes="cityscapes19",
    ids="cityscapes_train_ids",
    images="leftImg8bit_sequence_trainvaltest.zip, out of which SPLIT/img/ and SPLIT/img_all/ are filled",
    summary="SPLIT/img/ with SPLIT/panoptic_video/ and panoptic_gt_SPLIT_city_vps.json, or SPLIT/labelmap/",
    obtain=_OBTAIN,
    splits=SPLITS,
    variants=VARIANTS,
    annotate=annotate,
)
