"""Results of a video: an overlay video and a label stream, written as the frames come. No torch, no Distuda.

A label stream is a ZIP file without compression of its own: ``000000.png``, ``000001.png`` ... are 8-bit grey PNGs of
train ids, one a frame, and ``meta.json`` says what they mean. Anything that reads ZIP and PNG reads it:

    with zipfile.ZipFile("drive.labels.zip") as stream:
        train_ids = cv2.imdecode(np.frombuffer(stream.read("000000.png"), np.uint8), cv2.IMREAD_UNCHANGED)
"""

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.drawing import blend, draw_legend, encode_image
from export.errors import PredictError
from export.inputs import Frame, new_files, open_file

FORMAT = "distuda-labels-1"

Add: TypeAlias = Callable[[Frame, NDArray[np.uint8]], None]
"""Takes the next frame and its class map, uint8 (H, W)."""

_META = "meta.json"
_UNKNOWN_FPS = 25.0  # at which an overlay plays when its video does not say
_ENCODERS = ((".mp4", "mp4v"), (".avi", "MJPG"))
"""What is tried in turn; OpenCV's packages bring the first, and the second is in every build that writes video."""


@contextmanager
def video_results(
    folder: str,
    name: str,
    classes: Sequence[str],
    palette: NDArray[np.uint8],
    metadata: Mapping[str, str],
    *,
    overlay: bool,
) -> Iterator[Add]:
    """Gives what takes the frames; the files appear, whole, when the block ends without an error.

    ``NAME.labels.zip`` is the label stream; its ``meta.json`` has ``format``, ``fps`` (null where the video does not
    say), ``height`` and ``width`` in pixels, ``num_frames``, ``classes``, ``palette`` (RGB) and ``model``, all
    properties of the exported file. ``NAME.overlay.mp4`` has the frame rate and size of the video (``.avi`` where
    OpenCV has no MPEG-4 encoder; odd sides a pixel more, since encoders take even ones), ``NAME.legend.png`` its
    colours. Nothing is written of a video without a frame. Memory does not grow with the length.

    Args:
        folder: of the results, a path or an fsspec URI.
        name: relative path of the results without suffix, safe.
        classes, palette, metadata: of the `Predictor`.
        overlay: whether to write the overlay video.

    Raises:
        PredictError: the folder cannot be written to, or OpenCV has no encoder.
    """
    below, _, stem = name.rpartition("/")
    with new_files(folder, below) as own, ExitStack() as stack:
        path = os.path.join(own, stem)
        meta: dict[str, Any] = {"format": FORMAT, "num_frames": 0}
        described = {"classes": list(classes), "palette": palette.tolist(), "model": dict(metadata)}
        labels: list[zipfile.ZipFile] = []
        videos: list[cv2.VideoWriter] = []

        def begin(frame: Frame) -> None:
            height, width = frame.image.shape[:2]
            meta.update(fps=frame.fps, height=height, width=width, **described)
            labels.append(stack.enter_context(zipfile.ZipFile(f"{path}.labels.zip", "w", zipfile.ZIP_STORED)))
            if overlay:
                videos.append(
                    _open_writer(f"{path}.overlay", frame.fps or _UNKNOWN_FPS, (width + width % 2, height + height % 2))
                )
                stack.callback(videos[0].release)
                legend = draw_legend(width, height, classes, palette, np.ones(len(classes), np.bool_))
                legend.save(f"{path}.legend.png")

        def add(frame: Frame, class_map: NDArray[np.uint8]) -> None:
            if not labels:
                begin(frame)
            _store(labels[0], f"{meta['num_frames']:06d}.png", encode_image(Image.fromarray(class_map)))
            for video in videos:
                video.write(_even(cv2.cvtColor(blend(frame.image, class_map, palette), cv2.COLOR_RGB2BGR)))
            meta["num_frames"] += 1

        yield add
        if labels:
            _store(labels[0], _META, json.dumps(meta, indent=1).encode())
        stack.close()  # before the files are put in place


def read_label_meta(path: str) -> dict[str, Any]:
    """``meta.json`` of a label stream at a path or URI: `video_results` says what it holds.

    Raises:
        PredictError: no such file, or no label stream of ours.
    """
    with _open_stream(path) as (_, meta):
        return meta


def read_label_stream(path: str) -> Iterator[NDArray[np.uint8]]:
    """Class maps of a label stream at a path or URI, uint8 (H, W) train ids, in the order of the frames; one at a time.

    Raises:
        PredictError: no such file, no label stream of ours, or a damaged one.
    """
    with _open_stream(path) as (stream, meta):
        for number in range(meta["num_frames"]):
            try:
                with Image.open(io.BytesIO(stream.read(f"{number:06d}.png"))) as picture:
                    yield np.asarray(picture, np.uint8)
            except (KeyError, OSError, zipfile.BadZipFile) as error:
                raise PredictError(
                    f"frame {number} of {path!r} is damaged: {error}. Predict the video again."
                ) from None


@contextmanager
def _open_stream(path: str) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    with open_file(path) as file:
        try:
            stream = zipfile.ZipFile(file)
            meta = json.loads(stream.read(_META))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise PredictError(f"{path!r} is no label stream: {error}. Give a file NAME.labels.zip.") from None
        if meta.get("format") != FORMAT:
            raise PredictError(f"{path!r} has format {meta.get('format')!r}, expected {FORMAT!r}. Predict again.")
        yield stream, meta


def _store(stream: zipfile.ZipFile, name: str, content: bytes) -> None:
    stream.writestr(zipfile.ZipInfo(name), content)  # without the time, so that the same video gives the same file


def _even(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The last row or column once more where their number is odd."""
    below, right = (side % 2 for side in picture.shape[:2])
    return np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8)


def _open_writer(path: str, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """A writer of the first kind that works; ``size`` is (width, height)."""
    for suffix, codec in _ENCODERS:
        writer = cv2.VideoWriter(path + suffix, cv2.VideoWriter.fourcc(*codec), fps, size)
        if writer.isOpened():
            return writer
        writer.release()
        if os.path.exists(path + suffix):
            os.remove(path + suffix)
    raise PredictError("OpenCV has no video encoder on this machine. Use --no-overlay, or --frames for single images.")
