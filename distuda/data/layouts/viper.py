"""VIPER: ``<split>/img/001/001_00001.jpg``, classes in ``<split>/cls/`` and instances in ``<split>/inst/`` as PNGs.

Richter, Hayder, Koltun: Playing for Benchmarks, ICCV 2017. Class files are palette PNGs whose index is the id; copies
in the colours of the palette circulate as well, and each file is read by what it is. The car that carries the camera
is ignored, as in DA-VSN (Guan et al., ICCV 2021).
"""

import re
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.decode import SampleError, decode_label, image_size
from distuda.data.layouts.entry import (
    Annotation,
    Entry,
    Layout,
    choose,
    decode_planes,
    find_in,
    label_hint,
    read_instances,
    stem,
)
from distuda.data.source import Tree

SPLITS = ("train", "val", "test")
UNLABELLED, CAR = 0, 24

# Colour of each id. Trains (29) have the colour of vans (25) and are read as such; no class table has either.
PALETTE = (
    0x000000, 0x6F4A00, 0x4682B4, 0x804080, 0xF423E8, 0xE6968C, 0x98FB98, 0x57B623, 0x238E23, 0x464646, 0x999999,
    0xBE9999, 0x961414, 0xFAAA1E, 0xDCDC00, 0xB4B464, 0xAD9999, 0xA89999, 0x510015, 0x510051, 0xDC143C, 0xFF0000,
    0x770B20, 0x0000E6, 0x00008E, 0x005064, 0x003C64, 0x000046, 0x00005A, 0x005064, 0x006464, 0x32005A,
)  # fmt: skip
_COLOURS, _IDS = np.unique(np.array(PALETTE, np.uint32), return_index=True)

_SITE = "https://playing-for-benchmarks.org/download/, where one must register or accept the research terms"
_HINT = label_hint("train_cls_00-77_<0 to 9>.zip (or val_cls_00-47_…)", "<split>/cls/", _SITE)
_TOPS = ("VIPER", "viper", "Viper")
_FRAME = re.compile(r"(?:.*/)?(?P<sequence>\d+)_(?P<frame>\d+)")


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Frames of one split, or of all that are there; keys as ``train/001_00010``; some may lack a label."""
    for name in choose("split", split, SPLITS):
        images, labels, instances = (find_in(tree, f"{name}/{part}", _TOPS) for part in ("img", "cls", "inst"))
        # some frames have labels; where not one has, they are missing, misplaced or misnamed
        sparse = not labels.keys().isdisjoint(f"{stem(path)}.png" for path in images)
        for path, image in images.items():
            if place := _FRAME.fullmatch(stem(path)):
                label = labels.get(f"{stem(path)}.png")
                clip, frame = f"{name}/{place['sequence']}", place["frame"]
                unlabelled = name == "test" or (label is None and sparse)
                yield Entry(
                    key=f"{clip}_{frame}", image=image, label=label, unlabelled=unlabelled, label_hint=_HINT,
                    instance=instances.get(f"{stem(path)}.png"), clip=clip, frame=int(frame),
                )  # fmt: skip


def annotate(entry: Entry) -> Annotation:
    """Ids without the ego vehicle; instances are numbered 256 * green + blue, unique in their class and clip."""
    assert entry.label is not None
    ids = _decode_classes(entry.label.read(), entry.key)
    ego = _ego_vehicle(ids)
    instance = read_instances(entry, _decode_instances)
    if instance is not None and instance.shape == ids.shape:
        instance[ego] = 0
    return Annotation(np.where(ego, UNLABELLED, ids), instance)


def _decode_classes(content: bytes, key: str) -> NDArray[Any]:
    image_size(content, key)
    if content[25:26] != b"\x02":  # the colour type in a PNG's header; 2 = RGB
        return decode_label(content, key)
    rgb = decode_planes(content, key).astype(np.uint32)
    colours = rgb[:, :, 0] << 16 | rgb[:, :, 1] << 8 | rgb[:, :, 2]
    place = np.searchsorted(_COLOURS, colours).clip(max=len(_COLOURS) - 1)
    if (unknown := colours[_COLOURS[place] != colours]).size:
        raise SampleError(key, f"{unknown.size} px of a colour that is no class, such as #{unknown[0]:06x}.")
    return _IDS[place].astype(np.uint8)


def _decode_instances(content: bytes, key: str) -> NDArray[np.uint16]:
    planes = decode_planes(content, key)
    if planes.ndim != 3 or planes.dtype != np.uint8:
        raise SampleError(key, "expected three channels of 8 bits. Take the published file.")
    return np.asarray(planes[:, :, 1].astype(np.uint16) * 256 + planes[:, :, 2])


def _ego_vehicle(ids_HW: NDArray[Any]) -> NDArray[np.bool_]:
    """The connected car pixels that touch the centre of the bottom row."""
    _, parts = cv2.connectedComponents((ids_HW == CAR).astype(np.uint8))
    bottom = parts[-1, parts.shape[1] // 2]
    return np.asarray((parts == bottom) & (bottom > 0))


LAYOUT = Layout(
    entries=entries,
    classes="viper15",
    ids="viper_ids",
    summary="<split>/img/<sequence>/, <split>/cls/<sequence>/ and, for instances, <split>/inst/<sequence>/",
    obtain=f"train_img_00-77_0_jpg.zip, train_cls_00-77_0.zip, train_inst_00-77_0.zip and others from {_SITE}",
    images="train_img_00-77_<0 to 9>_jpg.zip (val_img_00-47_…, test_img_00-60_…), which fill <split>/img/",
    splits=SPLITS,
    annotate=annotate,
)
