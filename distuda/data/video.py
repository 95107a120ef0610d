"""Frames of video files, decoded one after the other when they are read."""

import tempfile
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda import storage
from distuda.data.source import File
from distuda.errors import UserError

JPEG_QUALITY = 95


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video.

    Attributes:
        file: the video.
        number: of the frame, from 0.
        version: changes when the file does, so that no other video is taken for this one.
    """

    file: File
    number: int
    version: str

    def __str__(self) -> str:
        return f"{self.file}#{self.number}"

    def read(self) -> bytes:
        """The frame as JPEG; when frames are asked for in ascending order, each is decoded once.

        Raises:
            UserError: the video cannot be decoded, or not as far as this frame.
        """
        with _LOCK:
            frame = _open(self.file, self.version).frame(self.number)
        done, content = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert done
        return content.tobytes()


def count_frames(file: File) -> tuple[int, str]:
    """Frames of a video as its container says, counted where that is silent, and the version for `VideoFrame`.

    Raises:
        UserError: no such file, or not even its first frame can be decoded.
    """
    if not storage.is_file(file.uri):
        raise UserError(f"no video at {file.uri!r}. Check the path.")
    fs, path = storage.filesystem(file.uri)
    version = str(fs.ukey(path))
    with _LOCK:
        return _open(file, version).count(), version


class _Video:
    """An open video that is read forwards; seeking in a file is not exact with every codec."""

    def __init__(self, file: File) -> None:
        self.file, self._next = file, 0
        self._folder, self._path = _on_disk(file)
        self._capture = cv2.VideoCapture(self._path)

    def frame(self, number: int) -> NDArray[np.uint8]:
        """The frame of that number, BGR (H, W, 3)."""
        if number < self._next:
            self._rewind()
        while self._next <= number:
            if not self._capture.grab():
                raise UserError(
                    f"{str(self.file)!r} has only {self._next} readable frames: it is damaged or cut off there, no "
                    "video, or its codec is missing in OpenCV. Copy it again or convert it."
                )
            self._next += 1
        there, frame = self._capture.retrieve()
        if not there:
            raise UserError(f"frame {number} of {str(self.file)!r} is damaged. Copy the video again.")
        return np.asarray(frame, np.uint8)

    def count(self) -> int:
        """Frames as the container says, once the first was decoded; counted where it does not say."""
        self.frame(0)
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if count > 0:
            return count
        while self._capture.grab():
            self._next += 1
        return self._next

    def _rewind(self) -> None:
        self._capture.release()
        self._capture, self._next = cv2.VideoCapture(self._path), 0


def _on_disk(file: File) -> tuple["tempfile.TemporaryDirectory[str] | None", str]:
    """A path that OpenCV can open; a copy goes with the folder that comes first."""
    fs, path = storage.filesystem(file.uri)
    if not file.member and storage.is_local(file.uri):
        return None, path
    folder = tempfile.TemporaryDirectory(prefix="distuda-video-")
    copy = Path(folder.name) / Path(file.member or path).name
    if file.member:
        copy.write_bytes(file.read())
    else:
        fs.get_file(path, str(copy))
    return folder, str(copy)


_LOCK = threading.Lock()


@lru_cache(maxsize=2)  # a remote video is copied once a process, and no more than two copies take room
def _open(file: File, version: str) -> _Video:
    return _Video(file)
