"""Damaged files of every kind: refused by name, never a crash, and never a label that is silently another one."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_trees import encode, label, picture
from PIL import Image

from distuda.data.decode import MAX_PIXELS, SampleError, decode_image, decode_label, decode_sample, image_size

ROUNDS = 150
IMAGE = picture(0, 48, 64)
LABEL = np.kron(label(0, 12, 16), np.ones((4, 4), np.uint8))
LABEL_PNG = encode(LABEL)
KINDS = {kind: encode(IMAGE, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")}


def _flipped(content: bytes, seed: int, bits: int = 1) -> bytes:
    damaged, draw = bytearray(content), random.Random(seed)
    for _ in range(bits):
        place = draw.randrange(len(content) * 8)
        damaged[place // 8] ^= 1 << (place % 8)
    return bytes(damaged)


def _damaged(content: bytes) -> Iterator[bytes]:
    yield from (content[: len(content) * part // 40] for part in range(40))
    yield from (_flipped(content, seed) for seed in range(ROUNDS))
    yield from (_flipped(content, seed, 40) for seed in range(ROUNDS // 3))
    yield content[:20] + content[40:]
    yield content + b"junk after the end"
    yield b""


def _survives(decode: Callable[[bytes], np.ndarray], content: bytes) -> np.ndarray | None:
    """The decoded array, or None when the file was refused with the sample's name; anything else fails the test."""
    try:
        return decode(content)
    except SampleError as error:
        assert error.key == "k" and error.reason
        return None


@pytest.mark.filterwarnings("ignore:::PIL.*")  # Pillow says what it makes of damaged headers
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_is_refused_or_keeps_its_size(kind: str) -> None:
    refused = 0
    for content in _damaged(KINDS[kind]):
        image = _survives(lambda c: decode_image(c, "k"), content)
        refused += image is None
        if image is not None:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert image.size <= 3 * MAX_PIXELS
    assert refused >= 20, "at least the truncated ones"


@pytest.mark.parametrize("decode", [decode_label, None], ids=["published file", "shard"])
def test_a_damaged_label_is_never_silently_another_one(decode: Callable[[bytes, str], np.ndarray] | None) -> None:
    def from_shard(content: bytes) -> np.ndarray:
        row = {"key": "k", "image": KINDS["JPEG"], "label": content}
        found = decode_sample(row, size=None, region=None, seed=0)[1]
        assert found is not None
        return found

    results = [_survives(from_shard if decode is None else lambda c: decode(c, "k"), c) for c in _damaged(LABEL_PNG)]
    read = [found for found in results if found is not None]
    assert all(np.array_equal(found, LABEL) for found in read), "what is read is what was written"
    assert len(read) < 5 < len(results)


def test_labels_of_a_wrong_mode_are_refused() -> None:
    rgb = Image.fromarray(np.dstack([LABEL] * 3))
    for mode in ("RGB", "RGBA", "LA", "CMYK", "F"):
        content = io.BytesIO()
        rgb.convert(mode).save(content, "TIFF" if mode in ("CMYK", "F") else "PNG")
        with pytest.raises(SampleError, match=f"mode {mode}"):
            decode_label(content.getvalue(), "k")


def test_images_of_other_modes_become_rgb() -> None:
    for mode in ("L", "P", "RGBA", "LA", "1", "I;16"):
        content = io.BytesIO()
        Image.fromarray(IMAGE[:, :, 0].astype(np.uint16) * 256 if mode == "I;16" else IMAGE).convert(mode).save(
            content, "PNG"
        )
        assert decode_image(content.getvalue(), "k").shape == IMAGE.shape


def _png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims any size, with right checksums."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_image_that_claims_a_huge_size_is_refused_before_memory_is_taken() -> None:
    bomb = _png_claiming(60_000, 60_000)
    for decode in (decode_image, decode_label, image_size):
        with pytest.raises(SampleError, match="limit of"):
            decode(bomb, "k")
    short = _png_claiming(4000, 4000)  # fewer pixels inside than it claims
    for decode in (decode_image, decode_label):
        with pytest.raises(SampleError):
            decode(short, "k")
    jpeg = bytearray(KINDS["JPEG"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(SampleError, match="limit"):
        decode_image(bytes(jpeg), "k")


def test_a_label_of_an_empty_or_foreign_file(tmp_path: Path) -> None:
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"%PDF-1.7", b"\xff\xd8", b"\xff\xd8\xff\xe0" + bytes(50)):
        for decode in (decode_image, decode_label):
            assert _survives(lambda c, d=decode: d(c, "k"), content) is None  # type: ignore[misc]


def test_opencv_and_pillow_read_the_same_label() -> None:
    ids = cv2.imdecode(np.frombuffer(LABEL_PNG, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(ids, decode_label(LABEL_PNG, "k"))
