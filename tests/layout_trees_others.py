"""Tiny trees of PASCAL VOC, COCO panoptic, Cityscapes-VPS and videos, named and encoded as their owners do."""

import json
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
from data_trees import encode, picture
from numpy.typing import NDArray
from PIL import Image

from distuda.data.class_tables import CLASS_TABLES, bit_palette

HEIGHT, WIDTH = 12, 24

VOC_MASK = np.tile(np.array([*range(21), 255, 255, 0], np.uint8), (HEIGHT, 1))
"""Every id that VOC has, one a column."""

VOC_SPLITS = {
    "train": ["2007_000032", "2007_000039"],
    "val": ["2007_000033"],
    "trainval": ["2007_000032", "2007_000033", "2007_000039"],
    "test": ["2008_000006"],
    "trainaug": ["2007_000032", "2007_000039", "2008_000002"],
}

XML = """<annotation><filename>{key}.jpg</filename>
<object><name>person</name><difficult>0</difficult><part><name>head</name></part></object>
<object><name>diningtable</name><difficult>1</difficult></object>
<object><name>person</name><difficult>0</difficult></object></annotation>"""


def _write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _jpeg(number: int) -> bytes:
    return encode(picture(number, HEIGHT, WIDTH), "JPEG")


def _palette_png(path: Path, ids: NDArray[np.uint8]) -> None:
    image = Image.fromarray(ids, "P")
    image.putpalette([part for colour in bit_palette(256) for part in colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_voc(root: Path, *, augmented: bool = True) -> Path:
    """``root/VOCdevkit/VOC2012``; masks as palette PNGs, those of the augmented set as grey ones."""
    base = root / "VOCdevkit" / "VOC2012"
    for number, key in enumerate(sorted({key for keys in VOC_SPLITS.values() for key in keys})):
        _write(base / "JPEGImages" / f"{key}.jpg", _jpeg(number))
        if key not in VOC_SPLITS["test"]:
            _write(base / "Annotations" / f"{key}.xml", XML.format(key=key))
    (base / "Annotations" / "2007_000039.xml").unlink()
    for key in VOC_SPLITS["trainval"]:
        _palette_png(base / "SegmentationClass" / f"{key}.png", VOC_MASK)
        objects = np.where(VOC_MASK == 255, 255, (VOC_MASK > 10) + 2 * (VOC_MASK == 5)).astype(np.uint8)
        _palette_png(base / "SegmentationObject" / f"{key}.png", objects)
    for split, keys in VOC_SPLITS.items():
        if split != "trainaug":
            _write(base / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{key}\n" for key in keys))
    if augmented:
        lines = (f"/JPEGImages/{key}.jpg /SegmentationClassAug/{key}.png\n" for key in VOC_SPLITS["trainaug"])
        _write(base / "ImageSets" / "Segmentation" / "trainaug.txt", "".join(lines))
        for key in VOC_SPLITS["trainaug"] + VOC_SPLITS["val"]:
            _write(base / "SegmentationClassAug" / f"{key}.png", encode(VOC_MASK[:, ::-1]))
    return base


def pack(folder: Path, archive: Path) -> Path:
    """All files of a folder in a zip or tar; paths relative to the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".tar":
        with tarfile.open(archive, "w") as tar:
            for path in files:
                tar.add(path, str(path.relative_to(folder)))
    else:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in files:
                packed.write(path, path.relative_to(folder))
    return archive


def colours(segments: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Segment ids (H, W) as panoptic PNGs hold them: red the lowest byte, blue the highest."""
    return np.stack([segments >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


COCO_CATEGORIES = [
    {"id": 200, "name": "Traffic_Light", "isthing": 1, "color": [250, 170, 30]},
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 92, "name": "banner", "isthing": 0},
]
COCO_SEGMENTS = np.repeat(np.array([0, 17, 300, 70000, 16777215, 5], np.int64), WIDTH // 6)[None].repeat(HEIGHT, 0)
"""Void, then a banner, two people, a crowd and a traffic light."""

COCO_INFO = [
    {"id": 17, "category_id": 92, "iscrowd": 0},
    {"id": 300, "category_id": 1, "iscrowd": 0},
    {"id": 70000, "category_id": 1, "iscrowd": 0},
    {"id": 16777215, "category_id": 1, "iscrowd": 1},
    {"id": 5, "category_id": 200, "iscrowd": 0},
]


def write_coco(root: Path, split: str = "val2017", count: int = 2) -> Path:
    """``annotations/panoptic_<split>.json``, the folder of PNGs beside it and ``<split>/`` with the images."""
    names = [f"{number:012d}" for number in (139, 285, 632)[:count]]
    for number, name in enumerate(names):
        _write(root / split / f"{name}.jpg", _jpeg(number))
        _write(root / "annotations" / f"panoptic_{split}" / f"{name}.png", encode(colours(COCO_SEGMENTS)))
    data = {
        "images": [{"id": int(name), "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH} for name in names],
        "annotations": [
            {"image_id": int(name), "file_name": f"{name}.png", "segments_info": COCO_INFO} for name in names
        ],
        "categories": COCO_CATEGORIES,
    }
    path = root / "annotations" / f"panoptic_{split}.json"
    _write(path, json.dumps(data))
    return path


VPS_CLIPS = {"train": ["0001"], "val": ["0005", "0010"], "test": ["0003"]}
VPS_FIRST = {"0001": 279, "0005": 1736, "0010": 100, "0003": 900}
"""First labelled frame of each clip; the others follow every five."""


def vps_keys(clip: str) -> list[str]:
    """Ids of the six labelled frames of a clip: clip, running number, city, sequence, frame."""
    start = 6 * (int(clip) - 1) + 1
    return [f"{clip}_{start + i:04d}_frankfurt_000000_{VPS_FIRST[clip] + 5 * i:06d}" for i in range(6)]


def vps_segments(clip: str, position: int) -> NDArray[np.int64]:
    """Segment ids of a frame: void, road, then a car that leaves, a person that comes, and a bicycle that stays."""
    base = 100_000 + int(clip)
    car, person = (base if position < 4 else 0), (400 if position > 1 else 0)
    return np.repeat(np.array([0, 128, car, person, base + 65536, 128], np.int64), WIDTH // 6)[None].repeat(HEIGHT, 0)


def vps_category(segment: int) -> int:
    """Train id of a segment."""
    return {128: 0, 400: 11}.get(segment, 18 if segment > 160_000 else 13)


def write_vps(root: Path) -> None:
    """Cityscapes-VPS as the preparation scripts of its authors leave it."""
    for split, clips in VPS_CLIPS.items():
        annotations = []
        for clip in clips:
            for position, key in enumerate(vps_keys(clip)):
                original = position == 3  # the frame that Cityscapes itself has labelled
                image, mask = ("leftImg8bit", "gtFine_color") if original else ("newImg8bit", "final_mask")
                _write(root / split / "img" / f"{key}_{image}.png", encode(picture(position, HEIGHT, WIDTH)))
                if split != "test":
                    annotations.append(_vps_labels(root / split, clip, position, f"{key}_{mask}.png", key))
        if split != "test":
            data = {"images": [], "annotations": annotations, "categories": _VPS_CATEGORIES}
            _write(root / f"panoptic_gt_{split}_city_vps.json", json.dumps(data))
    for clip in VPS_CLIPS["val"]:
        for frame in range(VPS_FIRST[clip] - 4, VPS_FIRST[clip] + 26):
            name = f"frankfurt_000000_{frame:06d}_leftImg8bit.png"
            _write(root / "val" / "img_all" / name, encode(picture(frame, HEIGHT, WIDTH)))
    _write(root / "val/img_all/lindau_000000_000001_leftImg8bit.png", encode(picture(0, HEIGHT, WIDTH)))


_VPS_CATEGORIES = [
    {"id": i, "name": name, "isthing": int(i > 10), "trainid": i}
    for i, name in enumerate(CLASS_TABLES["cityscapes19"].classes)
]


def _vps_labels(folder: Path, clip: str, position: int, name: str, key: str) -> dict[str, object]:
    """Writes the three kinds of masks of a frame and gives its annotation in the JSON."""
    segments = vps_segments(clip, position)
    present = sorted(set(np.unique(segments).tolist()) - {0})
    classes = np.where(segments == 0, 255, np.vectorize(vps_category)(segments)).astype(np.uint8)
    things = np.where((classes > 10) & (classes < 255), classes.astype(np.uint16) * 1000 + 2, classes)
    _write(folder / "panoptic_video" / name, encode(colours(segments)))
    _write(folder / "labelmap" / name, encode(classes))
    _write(folder / "panoptic_inst" / name, encode(things.astype(np.uint16)))
    info = [{"id": s, "category_id": vps_category(s), "iscrowd": 0} for s in present]
    return {"image_id": key, "file_name": name, "segments_info": info}


def write_video(path: Path, count: int = 12, codec: str = "MJPG") -> list[NDArray[np.uint8]]:
    """A video of moving bars, and its frames as OpenCV's own sequential decoding gives them, BGR."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (64, 48))
    for number in range(count):
        frame = np.full((48, 64, 3), 12 * number, np.uint8)
        frame[:, 4 * number : 4 * number + 8] = (255, 255 - 15 * number, 10 * number)
        writer.write(frame)
    writer.release()
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(np.asarray(read[1], np.uint8))
    return frames
