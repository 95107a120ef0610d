"""What every layout yields: where the files of one sample lie, and how they become a `Sample`."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distuda import storage
from distuda.data.decode import SampleError, Size, decode_image, decode_label, resize_image, resize_label
from distuda.data.labels import ClassTable, IdMap
from distuda.data.sample import Sample
from distuda.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One sample of a source folder, not yet read.

    Attributes:
        key: of the sample.
        image: URI of the image file.
        label: URI of the label file; None when there is none.
        tags: class names known to be in the image; None when unknown.
        clip, frame: place in a video; None for still images.
    """

    key: str
    image: str
    label: str | None = None
    tags: tuple[str, ...] | None = None
    clip: str | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Layout:
    """How a kind of source folder is read.

    Attributes:
        entries: (folder URI, split or None for all) -> entries in key order; cheap, opens no image.
        classes: the class table's name unless the user names another; None when the user has to.
        id_map: the id map's name unless the user names another; None when files hold train ids.
        summary: one line on what the folder looks like.
    """

    entries: Callable[[str, str | None], Iterable[Entry]]
    classes: str | None
    id_map: str | None
    summary: str


def find_images(uri: str) -> dict[str, str]:
    """Relative path without suffix -> URI of every image below a folder, sorted; empty when it is missing."""
    fs, root = storage.filesystem(uri)
    paths = sorted(str(path) for path in fs.find(root)) if fs.isdir(root) else []
    relative = [path[len(root.rstrip("/")) + 1 :] for path in paths if path.lower().endswith(IMAGE_SUFFIXES)]
    return {path.rsplit(".", 1)[0]: storage.join(uri, path) for path in relative}


def load_sample(entry: Entry, table: ClassTable, ids: IdMap, *, labels: bool, resize: Size | None) -> Sample:
    """Read and check one sample; the image stays as it came unless ``resize`` (height, width) asks for another size.

    Raises:
        SampleError: names the key and why the sample cannot be used.
    """
    try:
        content = storage.read_bytes(entry.image)
        image = _checked_image(content, entry.key)
        label = _load_label(entry, ids, image.shape[:2]) if labels else None
        tags = None if entry.tags is None else [table.index(name) for name in entry.tags]
    except SampleError:
        raise
    except UserError as error:
        raise SampleError(entry.key, str(error)) from error
    if resize is not None:
        image = resize_image(image, resize)
        content = _encode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        label = None if label is None else resize_label(label, resize)
    return Sample(
        key=entry.key,
        image=content,
        label=None if label is None else _encode(".png", label, []),
        tags=tags,
        clip=entry.clip,
        frame=entry.frame,
        height=image.shape[0],
        width=image.shape[1],
    )


def _checked_image(content: bytes, key: str) -> NDArray[np.uint8]:
    image = decode_image(content, key)
    if content[:2] != b"\xff\xd8":  # OpenCV accepts a file that ends too early; PIL does not
        try:
            with Image.open(io.BytesIO(content)) as strict:
                strict.load()
        except (OSError, SyntaxError) as error:
            raise SampleError(key, f"damaged image ({error}). Replace the file.") from error
    return image


def _load_label(entry: Entry, ids: IdMap, size: tuple[int, ...]) -> NDArray[np.uint8]:
    if entry.label is None:
        raise SampleError(entry.key, f"no label file for {entry.image!r}.")
    try:
        label = ids.apply(decode_label(storage.read_bytes(entry.label), entry.key))
    except SampleError as error:
        raise SampleError(entry.key, f"{error.reason} ({entry.label!r})") from error
    except UserError as error:
        raise SampleError(entry.key, f"{error} ({entry.label!r})") from error
    if label.shape != size:
        raise SampleError(
            entry.key,
            f"label is {label.shape[1]}x{label.shape[0]} but the image is {size[1]}x{size[0]} ({entry.label!r}).",
        )
    return label


def _encode(suffix: str, array: NDArray[np.uint8], options: list[int]) -> bytes:
    done, content = cv2.imencode(suffix, np.ascontiguousarray(array), options)
    assert done
    return content.tobytes()
