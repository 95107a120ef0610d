"""Which images a user named, under which safe name their results go, and their pixels. No torch, no Distuda."""

import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

import cv2
import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from export.errors import PredictError

MAX_PIXELS = 150_000_000
"""Largest image that is decoded; a few kilobytes of PNG can claim far more and fill the memory."""

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
_COUNTED = {".mp4", ".avi", ".mov", ".m4v"}  # containers that list their frames
_MAX_FPS = 1000  # more is a time base that was taken for a rate
_MAX_NAME_BYTES = 200  # file systems allow 255 for a name, and suffixes follow


@dataclass(frozen=True)
class Input:
    """One image or video.

    Attributes:
        source: where it lies, for messages.
        name: relative path of its results without suffix; letters, digits and ``._-/`` only, unique in its listing.
        fs, path: its fsspec filesystem and the path inside.
    """

    source: str
    name: str
    fs: Any
    path: str

    @property
    def is_video(self) -> bool:
        """Whether its suffix is a video's."""
        return _suffix(self.path) in _VIDEOS


def find_inputs(words: Sequence[str], *, exclude: str) -> list[Input]:
    """Every image and video that files, folders, globs and URIs name, in order, each once.

    Args:
        words: as the user typed them. Folders are searched through; in folders and globs only files with the suffix of
            an image or a video count, while a file named outright is always taken.
        exclude: results folder; nothing inside it is listed, so a second run does not read the first one's results.

    Raises:
        PredictError: a word that names nothing, or nothing found at all.
    """
    own_fs, own_path = _filesystem(exclude)
    found: list[Input] = []
    seen: set[tuple[Any, str]] = set()
    names: set[str] = set()
    for word in words:
        fs, files, base = _list(word)
        inside = own_path.rstrip("/") + "/" if type(fs) is type(own_fs) else None
        for path in files:
            if (type(fs), path) in seen or (inside and path.startswith(inside)):
                continue
            seen.add((type(fs), path))
            local = "file" in fs.protocol
            source = path if local else fs.unstrip_protocol(path)
            found.append(Input(source, _unique(_safe_name(path, base), names), fs, path))
    if not found:
        raise PredictError(
            f"no image or video in {', '.join(map(repr, words)) or 'an empty list'}. Give image files "
            f"({' '.join(sorted(_IMAGES))}), videos, folders, globs in quotes, or URIs."
        )
    return found


def _list(word: str) -> tuple[Any, list[str], str]:
    """Filesystem, paths and the folder that names are relative to, of one word."""
    fs, path = _filesystem(word)
    try:
        if fs.isfile(path):
            return fs, [path], str(PurePosixPath(path).parent)
        if fs.isdir(path):
            files, base = fs.find(path), path
        else:
            files, base = fs.glob(path), re.split(r"[^/]*[*?\[]", path, maxsplit=1)[0]
    except OSError as error:
        raise PredictError(f"cannot read {word!r}: {error}. Check the address and your access to it.") from error
    if not files:
        raise PredictError(f"nothing at {word!r}: no such file or folder, or it is empty. Check the path.")
    return fs, sorted(file for file in files if _suffix(file) in _IMAGES | _VIDEOS), base


def _filesystem(uri: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(os.path.expanduser(uri))
    except (ValueError, ImportError) as error:
        raise PredictError(
            f"cannot open {uri!r}: {error}. Use a path or a URI whose fsspec package is installed."
        ) from error
    return fs, str(path)


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _safe_name(path: str, base: str) -> str:
    """The path below ``base`` without suffix, reduced to characters that cannot lead out of the results folder."""
    below = path.removeprefix(base.rstrip("/")) if base else path
    parts = [part for part in PurePosixPath(below).with_suffix("").parts if part.strip("./")]
    safe = [re.sub(r"[^\w.-]", "_", part).lstrip(".") or "_" for part in parts]
    return "/".join(part.encode()[:_MAX_NAME_BYTES].decode(errors="ignore") for part in safe) or "image"


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number where another input has it already."""
    candidate, count = name, 1
    while candidate.lower() in taken:  # some file systems do not tell cases apart
        count += 1
        candidate = f"{name}-{count}"
    taken.add(candidate.lower())
    return candidate


class Frame(NamedTuple):
    """One picture to predict.

    Attributes:
        name: relative path of its results without suffix.
        image: uint8 RGB (H, W, 3).
        fps: frames a second of the video it is from; None for images and where the video does not say.
    """

    name: str
    image: NDArray[np.uint8]
    fps: float | None = None


def frames_of(item: Input) -> Iterator[Frame]:
    """An image, or every frame of a video in order.

    Raises:
        OSError, ValueError: unreadable, or a video cut off after the frames that came; the message says why.
    """
    if not item.is_video:
        yield Frame(item.name, decode(item.fs.cat_file(item.path)))
        return
    with _open_video(item) as capture:
        rate = capture.get(cv2.CAP_PROP_FPS)
        fps = rate if 0 < rate <= _MAX_FPS else None
        shape, number = None, 0
        for number, image in enumerate(_decoded(capture), start=1):
            if number > 1 and image.shape != shape:
                raise ValueError(f"frame {number - 1} has another size than those before. Convert the video to one.")
            shape = image.shape
            yield Frame(f"{item.name}/{number - 1:06d}", image, fps)
        if number == 0:
            raise ValueError("no frame can be decoded: not a video, damaged, or its codec is missing in OpenCV")
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        # where the container gives a duration in place of a count, sound may go on after the last picture
        spare = 1 if _suffix(item.path) in _COUNTED else round(fps or 1)
        if number + spare < promised:
            raise ValueError(
                f"only {number} of {promised} frames can be decoded, it is damaged or cut off there. The results of "
                "these are kept; copy the video again for the rest"
            )


def _decoded(capture: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)


@contextmanager
def _open_video(item: Input) -> Iterator[cv2.VideoCapture]:
    """OpenCV opens local files only, so of a remote one there is a copy as long as it is open."""
    with tempfile.TemporaryDirectory() as folder:
        local = item.path
        if "file" not in item.fs.protocol:
            local = os.path.join(folder, "video" + _suffix(item.path))
            with item.fs.open(item.path, "rb") as remote, open(local, "wb") as copy:
                shutil.copyfileobj(remote, copy)
        capture = cv2.VideoCapture(local)
        try:
            yield capture
        finally:
            capture.release()


def decode(content: bytes) -> NDArray[np.uint8]:
    """Encoded image -> uint8 RGB (H, W, 3) as stored (EXIF orientation ignored, as in training); alpha is dropped.

    Raises:
        OSError, ValueError: no image, cut off, or more than `MAX_PIXELS`; the message says which.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}")
            if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scaling
                grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"), np.uint8)
    except UnidentifiedImageError:
        raise ValueError("not an image, or of an unknown kind") from None
    except (Image.DecompressionBombError, SyntaxError) as error:  # Pillow's PNG reader reports damage as SyntaxError
        raise ValueError(str(error)) from error


def read_file(uri: str) -> bytes:
    """The whole file at a path or URI. Raises `PredictError` when there is none."""
    fs, path = _filesystem(uri)
    try:
        return bytes(fs.cat_file(path))
    except OSError as error:
        raise PredictError(f"cannot read {uri!r}: {error}. Check the path and your access to it.") from error


@contextmanager
def open_file(uri: str) -> Iterator[IO[bytes]]:
    """The file at a path or URI, opened for reading here and there. Raises `PredictError` when there is none."""
    fs, path = _filesystem(uri)
    try:
        file = fs.open(path, "rb")
    except OSError as error:
        raise PredictError(f"cannot read {uri!r}: {error}. Check the path and your access to it.") from error
    with file:
        yield file


def write_file(folder: str, name: str, content: bytes) -> None:
    """Write one result below a folder, whole or not at all. Raises `PredictError` when the folder cannot be written."""
    fs, root = _filesystem(folder)
    path = f"{root.rstrip('/')}/{name}"
    try:
        if "file" not in fs.protocol:  # object stores show an object only once its upload is complete
            fs.pipe_file(path, content)
            return
        parent = os.path.dirname(path)
        os.makedirs(parent, exist_ok=True)
        part = os.path.join(parent, f".{uuid.uuid4().hex}.part")
        with open(part, "wb") as file:
            file.write(content)
        os.replace(part, path)
    except OSError as error:
        raise PredictError(f"cannot write {path!r}: {error}. Choose a folder this user may write to.") from error


@contextmanager
def new_files(folder: str, below: str = "") -> Iterator[str]:
    """A local folder to write results into that grow; they go to ``folder/below`` when the block ends without an error.

    Of a block that failed nothing appears and nothing is left.

    Raises:
        PredictError: the folder cannot be written to.
    """
    fs, root = _filesystem(folder)
    root = "/".join(part for part in (root.rstrip("/"), below) if part)
    local = "file" in fs.protocol
    try:
        if local:
            os.makedirs(root, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=root if local else None) as own:
            yield own
            for name in sorted(os.listdir(own)):
                part, path = os.path.join(own, name), f"{root}/{name}"
                if local:
                    os.replace(part, path)
                else:  # object stores show an object only once its upload is complete
                    fs.put_file(part, path)
    except OSError as error:
        raise PredictError(f"cannot write to {root!r}: {error}. Choose a folder this user may write to.") from error
