"""From encoded bytes to uint8 arrays: size check, decode, resize and a seeded window. No Ray in here.

EXIF orientation is ignored, since labels are drawn on the pixels as stored.
"""

import io
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from distuda.data.labels import IGNORE
from distuda.data.order import fold
from distuda.errors import UserError

MAX_PIXELS = 80_000_000
"""Largest image that is decoded; a few kilobytes of PNG can claim far more and fill the memory."""

Bytes = bytes | memoryview
"""An encoded file; views into a table of a stream save copies."""

Size = tuple[int, int]
"""(height, width) in pixels."""

_PNG = b"\x89PNG\r\n\x1a\n"

Pictures = dict[str, Any]
"""One decoded sample by column: ``image``, ``pair`` uint8 RGB (H, W, 3); ``label``, ``mined`` uint8 (H, W); ``tags``
int64 train ids; ``stored``, the image's pixels before resizing; of a clip's frame also ``flow`` float32 (H, W, 2),
``valid`` bool (H, W), and the frame ``before``."""

Ids = TypeVar("Ids", np.uint8, np.uint16)
Value = TypeVar("Value", bound=np.generic)

cv2.setNumThreads(0)  # one thread a decode; parallelism comes from decoding several samples at once


class SampleError(UserError):
    """A sample that cannot be used; the message names it and says why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"sample {key!r}: {reason}")
        self.key, self.reason = key, reason

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        return SampleError, (self.key, self.reason)  # survives the way back from a Ray worker


def image_size(content: Bytes, key: str) -> Size:
    """(height, width) without decoding; refuses what is no image, a damaged PNG, and more than `MAX_PIXELS`."""
    try:
        if content[:2] == b"\xff\xd8":
            height, width = simplejpeg.decode_jpeg_header(content)[:2]
        elif content[:8] == _PNG and content[12:16] == b"IHDR":  # much faster than asking PIL
            width, height = (int.from_bytes(content[place : place + 4], "big") for place in (16, 20))
        else:
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError(key, f"not a readable image ({error}). Replace the file.") from error
    if height * width > MAX_PIXELS:
        raise SampleError(key, f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}. Resize the image.")
    if content[:8] == _PNG and not _is_whole_png(content):
        raise SampleError(key, "damaged PNG: cut off, or a checksum is wrong. Replace the file.")
    return int(height), int(width)


def _is_whole_png(content: Bytes) -> bool:
    """Whether every chunk up to the last fits its checksum. PIL reads on over damage, and a label is then another."""
    place = len(_PNG)
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        body = content[place + 4 : end - 4]
        if end > len(content) or zlib.crc32(body) != int.from_bytes(content[end - 4 : end], "big"):
            return False
        if body[:4] == b"IEND":
            return True
        place = end
    return False


def decode_image(content: Bytes, key: str) -> NDArray[np.uint8]:
    """Encoded image -> uint8 RGB (H, W, 3); grey images are repeated, alpha is dropped."""
    size = image_size(content, key)
    if content[:2] == b"\xff\xd8":
        try:
            return np.asarray(simplejpeg.decode_jpeg(content, colorspace="RGB", fastdct=False), np.uint8)
        except ValueError as error:
            raise SampleError(key, f"damaged JPEG ({error}). Replace the file.") from error
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.shape[:2] != size:
        raise SampleError(key, "damaged image. Replace the file.")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def decode_label(content: Bytes, key: str) -> NDArray[Any]:
    """Encoded single-channel label (grey or palette) -> unsigned ids (H, W), as stored."""
    image_size(content, key)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("L", "P", "I;16", "I", "1"):
                raise SampleError(key, f"label has mode {image.mode}, expected one channel of ids. Convert it first.")
            label = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise SampleError(key, f"damaged label ({error}). Replace the file.") from error
    return label.astype(np.uint8) if label.dtype == bool else label


def _decode_train_ids(content: Bytes, key: str) -> NDArray[np.uint8]:
    """A label as shards hold it (8-bit grey PNG); OpenCV reads these faster than PIL."""
    image_size(content, key)
    label = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if label is None or label.ndim != 2 or label.dtype != np.uint8:
        raise SampleError(key, "label is not an 8-bit single-channel PNG. Run `distuda prepare` again.")
    return np.asarray(label, np.uint8)


def resize_image(image_HWC: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Area average when shrinking, bilinear when growing."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    shrinks = size[0] < image_HWC.shape[0] and size[1] < image_HWC.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image_HWC, size[::-1], interpolation=how), np.uint8)


def resize_label(label_HW: NDArray[Ids], size: Size) -> NDArray[Ids]:
    """Nearest neighbour at pixel centres, so no new ids appear; uint8 or uint16 stays what it is."""
    if label_HW.shape == size:
        return label_HW
    small = cv2.resize(label_HW, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(small, label_HW.dtype)


def window(array: NDArray[Value], region: Size, seed: int, fill: int) -> NDArray[Value]:
    """The window of ``region`` whose place is a pure function of the seed; pads right and below with ``fill``."""
    missing = [max(0, want - have) for want, have in zip(region, array.shape[:2], strict=True)]
    if any(missing):
        array = np.pad(array, [(0, missing[0]), (0, missing[1])] + [(0, 0)] * (array.ndim - 2), constant_values=fill)
    bits = int(fold(np.array([seed]), "window")[0])
    top = (bits & 0x7FFFFFFF) % (array.shape[0] - region[0] + 1)
    left = (bits >> 31 & 0x7FFFFFFF) % (array.shape[1] - region[1] + 1)
    return array[top : top + region[0], left : left + region[1]]


def shown_part(size: tuple[int, ...], region: Size) -> NDArray[np.bool_] | None:
    """Where a window of ``region`` cut from an image of that size holds it and not padding; None = everywhere."""
    if size[0] >= region[0] and size[1] >= region[1]:
        return None
    shown = np.zeros(region, np.bool_)
    shown[: size[0], : size[1]] = True
    return shown


def decode_row(
    row: Mapping[str, Any], columns: Sequence[str], *, size: Size | None, region: Size | None, seed: int
) -> Pictures:
    """One row of a shard as far as it is asked for; the same size and place in all pictures.

    Args:
        row: at least ``key``, ``image`` and the columns.
        columns: of ``label``, ``pair``, ``mined`` and ``tags``; a sample that lacks one cannot be used.
        size, region, seed: as for `decode_sample`.
    """
    key = str(row["key"])
    native = decode_image(row["image"], key)
    found: Pictures = {"image": _placed_image(native, size, region, seed), "stored": native.shape[0] * native.shape[1]}
    for name in ("label", "mined"):
        if name in columns and row[name] is not None:
            found[name] = _placed_ids(row[name], key, native.shape[:2], size, region, seed)
    if "pair" in columns:
        found["pair"] = decode_pair(row, size=size, region=region, seed=seed)
    if "tags" in columns:
        if row["tags"] is None:
            raise SampleError(key, "it has no tags (image-level labels). Add them and prepare the data set again.")
        found["tags"] = np.asarray(row["tags"], np.int64)
    if region is not None and (shown := shown_part(size or native.shape[:2], region)) is not None:
        found["shown"] = shown
    return found


def decode_sample(
    row: Mapping[str, Any], *, size: Size | None, region: Size | None, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """One row of a shard to arrays: decode, resize to ``size``, cut a seeded window of ``region``.

    Args:
        row: at least ``key``, ``image`` and ``label`` (encoded bytes; label may be None).
        size: (height, width) after resizing, None = native.
        region: (height, width) of the window, None = the whole image; smaller images are padded.
        seed: of the sample; decides where the window lies.

    Returns:
        image uint8 RGB (H, W, 3) and label uint8 (H, W) with 255 = ignore, or None without a label.
    """
    key = str(row["key"])
    image = decode_image(row["image"], key)
    label = row.get("label")
    ids = None if label is None else _placed_ids(label, key, image.shape[:2], size, region, seed)
    return _placed_image(image, size, region, seed), ids


def _placed_image(image_HWC: NDArray[np.uint8], size: Size | None, region: Size | None, seed: int) -> NDArray[np.uint8]:
    image = image_HWC if size is None else resize_image(image_HWC, size)
    return image if region is None else window(image, region, seed, 0)


def _placed_ids(
    content: Bytes, key: str, native: tuple[int, ...], size: Size | None, region: Size | None, seed: int
) -> NDArray[np.uint8]:
    """Train ids that lie over an image of that native shape, resized and cut as it."""
    label = _decode_train_ids(content, key)
    if label.shape != native:
        raise SampleError(key, f"label {label.shape[::-1]} and image {native[::-1]} differ in size (width, height).")
    label = label if size is None else resize_label(label, size)
    return label if region is None else window(label, region, seed, IGNORE)


def decode_pair(row: Mapping[str, Any], *, size: Size | None, region: Size | None, seed: int) -> NDArray[np.uint8]:
    """The pair of one row as `decode_sample` gives its image: the same size, and the same place of the window.

    Args:
        row: at least ``key``, ``image`` and ``pair`` (encoded bytes).
        size, region, seed: as for `decode_sample`; a pair of another size is brought to the image's.

    Returns:
        uint8 RGB (H, W, 3).
    """
    key = str(row["key"])
    if row.get("pair") is None:
        raise SampleError(key, "it has no pair. Prepare the data set with --pairs.")
    pair = resize_image(decode_image(row["pair"], f"{key} (pair)"), size or image_size(row["image"], key))
    return pair if region is None else window(pair, region, seed, 0)
