"""Tiny copies of published data sets, in the exact names and encodings of their owners."""

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from data_trees import encode, picture
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 6, 48

# Red, green, blue of VIPER's ids 0 to 31, as published.
VIPER_COLOURS = [
    (0, 0, 0), (111, 74, 0), (70, 130, 180), (128, 64, 128), (244, 35, 232), (230, 150, 140), (152, 251, 152),
    (87, 182, 35), (35, 142, 35), (70, 70, 70), (153, 153, 153), (190, 153, 153), (150, 20, 20), (250, 170, 30),
    (220, 220, 0), (180, 180, 100), (173, 153, 153), (168, 153, 153), (81, 0, 21), (81, 0, 81), (220, 20, 60),
    (255, 0, 0), (119, 11, 32), (0, 0, 230), (0, 0, 142), (0, 80, 100), (0, 60, 100), (0, 0, 70), (0, 0, 90),
    (0, 80, 100), (0, 100, 100), (50, 0, 90),
]  # fmt: skip


def columns(ids: Iterable[int], background: int) -> NDArray[np.uint8]:
    """A label whose upper rows hold one id a column, in their order; the last row and the rest are background."""
    listed = list(ids)
    label = np.full((HEIGHT, WIDTH), background, np.uint8)
    label[:-1, : len(listed)] = listed
    return label


def wrap(root: Path, kind: str, folder: Path) -> str:
    """The tree below ``root`` as it is, as one archive, as an archive for each of its folders, or one folder deeper."""
    if kind == "folder":
        return str(root)
    where = folder / f"wrapped-{kind}"
    where.mkdir()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if kind == "zips":
        for top in {path.relative_to(root).parts[0] for path in files}:
            _zip(where / f"{top}.zip", root, [path for path in files if path.relative_to(root).parts[0] == top])
    elif kind == "zip":
        _zip(where / "set.zip", root, files)
    elif kind == "tar":
        with tarfile.open(where / "set.tar", "w") as packed:
            for path in files:
                packed.add(path, path.relative_to(root))
    else:
        root.rename(where / kind)
    return str(where)


def _zip(archive: Path, root: Path, files: Iterable[Path]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in files:
            packed.write(path, path.relative_to(root))


def write_gta5(root: Path, label: NDArray[np.uint8], count: int = 2) -> None:
    """``images/00001.png`` and palette PNGs in ``labels/``."""
    for i in range(1, count + 1):
        _write(root / f"images/{i:05d}.png", _image(i))
        _write(root / f"labels/{i:05d}.png", palette_png(label))


def write_synthia(root: Path, label: NDArray[np.uint8], folder: str = "GT/LABELS", count: int = 2) -> None:
    """``RGB/0000000.png`` and ids, in 16-bit colour PNGs for the original folder, else in one channel."""
    for i in range(count):
        _write(root / f"RGB/{i:07d}.png", _image(i))
        _write(root / f"{folder}/{i:07d}.png", synthia_png(label) if folder == "GT/LABELS" else encode(label))


def write_synthia_seq(sequence: Path, label: NDArray[np.uint8], view: str = "Omni_F", count: int = 2) -> None:
    """A sequence with its left camera in one direction."""
    for i in range(count):
        _write(sequence / f"RGB/Stereo_Left/{view}/{i:06d}.png", _image(i))
        _write(sequence / f"GT/LABELS/Stereo_Left/{view}/{i:06d}.png", synthia_png(label))
        _write(sequence / f"GT/COLOR/Stereo_Left/{view}/{i:06d}.png", _image(90 + i))
        _write(sequence / f"Depth/Stereo_Left/{view}/{i:06d}.png", _image(80 + i))


def write_listed_synthia_seq(sequence: Path, label: NDArray[np.uint8], count: int = 2) -> None:
    """A sequence as DA-VSN's list names it."""
    for i in range(count):
        _write(sequence / f"rgb/{i:06d}.png", _image(i))
        _write(sequence / f"label/{i:06d}.png", synthia_png(label))


def write_cityscapes(
    root: Path, split: str, frames: Iterable[str], label: NDArray[np.uint8], truth: str | None = "gtFine"
) -> None:
    """Frames such as ``aachen_000000_000019`` with all files that ``gtFine`` or ``gtCoarse`` has for them."""
    for i, frame in enumerate(frames):
        city = frame.split("_")[0]
        _write(root / f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png", _image(i))
        if truth:
            stem = root / f"{truth}/{split}/{city}/{frame}_{truth}"
            write_ground_truth(stem, label)


def write_ground_truth(stem: Path, label: NDArray[np.uint8]) -> None:
    """The files of one Cityscapes annotation; pixels of things are instance 1, those in the first row are a group."""
    instance = label.astype(np.uint16)
    things = (label >= 24) & (label <= 33)
    things[0] = False
    instance[things] = instance[things] * 1000 + 1
    _write(Path(f"{stem}_labelIds.png"), encode(label))
    _write(Path(f"{stem}_instanceIds.png"), encode(instance))
    _write(Path(f"{stem}_color.png"), _image(99))
    _write(Path(f"{stem}_polygons.json"), b"{}")


def write_clips(root: Path, split: str, frames: Iterable[str]) -> None:
    """Frames of ``leftImg8bit_sequence``."""
    for i, frame in enumerate(frames):
        city = frame.split("_")[0]
        _write(root / f"leftImg8bit_sequence/{split}/{city}/{frame}_leftImg8bit.png", _image(i))


def write_foggy(root: Path, split: str, frame: str, folder: str = "leftImg8bit_foggy") -> None:
    """One frame in three densities of fog."""
    for i, beta in enumerate(("0.005", "0.01", "0.02")):
        city = frame.split("_")[0]
        _write(root / f"{folder}/{split}/{city}/{frame}_leftImg8bit_foggy_beta_{beta}.png", _image(i))


def write_viper(root: Path, split: str, place: str, label: NDArray[np.uint8] | None, *, colours: bool = False) -> None:
    """A frame such as ``001_00010`` with classes, as palette index or as colours, and instances."""
    sequence = place.split("_")[0]
    _write(root / f"{split}/img/{sequence}/{place}.jpg", encode(picture(3, HEIGHT, WIDTH), "JPEG"))
    if label is not None:
        content = encode(viper_colours(label)) if colours else palette_png(label)
        _write(root / f"{split}/cls/{sequence}/{place}.png", content)
        number = np.where(label >= 20, 300, 0)
        planes = np.stack([np.where(number, label, 0), number // 256, number % 256], axis=2)
        _write(root / f"{split}/inst/{sequence}/{place}.png", encode(planes.astype(np.uint8)))


def viper_colours(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The published colours of the ids."""
    return np.array(VIPER_COLOURS, np.uint8)[label]


def palette_png(label: NDArray[np.uint8]) -> bytes:
    """Ids as palette indices, with colours that say nothing about them."""
    image = Image.fromarray(label, "L")
    image.putpalette([(7 * i + channel) % 256 for i in range(256) for channel in range(3)])
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def synthia_png(label: NDArray[np.uint8]) -> bytes:
    """Three channels of 16 bits: the id in red, an instance number beyond a byte in green."""
    planes = np.zeros((*label.shape, 3), np.uint16)
    planes[:, :, 2] = label  # OpenCV writes blue, green, red
    planes[:, :, 1] = np.where(np.isin(label, (8, 10, 17)), 976, 0)
    return bytes(cv2.imencode(".png", planes)[1])


def _image(number: int) -> bytes:
    return encode(picture(number, HEIGHT, WIDTH))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
