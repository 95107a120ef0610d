"""Tiny data sets that the data tests write themselves."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distuda.data.labels import ClassTable
from distuda.data.sample import Sample

TABLE = ClassTable("three", ("ground", "sky", "thing"), ((10, 20, 30), (40, 50, 60), (70, 80, 90)), frozenset({2}))


def encode(array: NDArray[np.generic], kind: str = "PNG") -> bytes:
    """An array as a file's bytes."""
    content = io.BytesIO()
    Image.fromarray(array).save(content, kind)
    return content.getvalue()


def picture(number: int, height: int = 12, width: int = 16) -> NDArray[np.uint8]:
    """A noisy image whose top left pixel is its number."""
    image = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    image[0, 0] = number % 256
    return image


def label(number: int, height: int = 12, width: int = 16, classes: int = 3) -> NDArray[np.uint8]:
    """Random train ids; the last column is ignored."""
    ids = np.random.default_rng(1000 + number).integers(0, classes, (height, width), np.uint8)
    ids[:, -1] = 255
    return ids


def samples(count: int, *, labelled: bool = True) -> Iterator[Sample]:
    """Numbered samples with PNG images, so that pixels can be compared exactly."""
    for i in range(count):
        png = encode(label(i)) if labelled else None
        yield Sample(key=f"clip/{i:04d}", image=encode(picture(i)), label=png, height=12, width=16)


def write_camvid(root: Path, split: str, keys: list[str], size: tuple[int, int] = (12, 16)) -> None:
    """A split of a SegNet-style CamVid tree; labels hold all ids 0..11."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / f"{split}annot").mkdir(exist_ok=True)
    for i, key in enumerate(keys):
        (root / split / f"{key}.jpg").write_bytes(encode(picture(i, *size), "JPEG"))
        (root / f"{split}annot" / f"{key}.png").write_bytes(encode(label(i, *size, classes=12) % 12))
