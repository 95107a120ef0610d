"""Run an exported file with numpy and onnxruntime alone: no torch, no Ray, nothing else of Distuda.

    predictor = Predictor("model.onnx")
    class_map, confidence = predictor.predict(image)          # uint8 RGB (H, W, 3)
    tags = predictor.run(image[None]).get("tags")             # (1, C), of files that know what is in an image
    summary = predict_files("model.onnx", ["frames/", "drive.mp4", "s3://bucket/val/*.jpg"], "out")
    for class_map in read_label_stream("out/drive.labels.zip"): ...          # uint8 (H, W), a frame of drive.mp4 each

Shape legend: N images, H and W pixels, C colour channels.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.drawing import draw_overlay, encode_class_map, encode_image
from export.errors import PredictError
from export.inputs import Frame, Input, find_inputs, frames_of, read_file, write_file
from export.video import Add, read_label_meta, read_label_stream, video_results

__all__ = [
    "PredictError", "Prediction", "Predictor", "Summary", "predict_files", "read_label_meta", "read_label_stream",
]  # fmt: skip

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Progress = Callable[[int, int | None, str], None]

FORMAT = "distuda-segmenter-1"

# cuDNN's default exhaustive search costs hundreds of milliseconds at every new image size (onnxruntime#19838).
_EXECUTION: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}),
    "tensorrt": ("TensorrtExecutionProvider", {}),
}
# TensorRT builds an engine for minutes at new sizes, so it is used when asked for, never by itself.
_AUTO = ("cuda", "cpu")
_NEEDS = {
    "cuda": "an NVIDIA GPU, its CUDA and cuDNN libraries and the package onnxruntime-gpu",
    "tensorrt": "an NVIDIA GPU, the TensorRT libraries and the package onnxruntime-gpu",
    "cpu": "the package onnxruntime",
}


class Prediction(NamedTuple):
    """What the network says of one image or of a batch.

    Attributes:
        class_map: uint8 train ids, (H, W) or (N, H, W), at the image's size.
        confidence: float32 in [0, 1], the probability of the chosen class, or its heat (property ``confidence`` of the
            file), same shape.
    """

    class_map: NDArray[np.uint8]
    confidence: NDArray[np.float32]


class Predictor:
    """An exported file, loaded.

    Args:
        model: path or fsspec URI of the file, or its content.
        provider: what computes. ``auto`` takes CUDA where a trial run succeeds and the CPU otherwise; a provider asked
            for by name must work.
        threads: of one CPU operator, 0 = one a core.

    Attributes:
        provider: the one in use: ``cpu``, ``cuda`` or ``tensorrt``.
        classes: one name a train id.
        palette: uint8 (number of classes, 3), RGB.
        size: (height, width) that the graph resizes to before the network, or None.
        metadata: all properties of the file.

    Raises:
        PredictError: no such file, not a file of ours, or a provider that does not work here.
    """

    def __init__(self, model: str | bytes, provider: Provider = "auto", *, threads: int = 0) -> None:
        name = "the given model" if isinstance(model, bytes) else repr(model)
        content = model if isinstance(model, bytes) else read_file(model)
        self.provider, self.session = _open_session(content, name, provider, threads)
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        if self.metadata.get("format") != FORMAT:
            raise PredictError(
                f"{name} has format {self.metadata.get('format')!r}, expected {FORMAT!r}: class names, colours or size "
                "are missing. Use a file that `distuda export` wrote with this version."
            )
        self.classes: tuple[str, ...] = tuple(json.loads(self.metadata["classes"]))
        self.palette: NDArray[np.uint8] = np.asarray(json.loads(self.metadata["palette"]), np.uint8)
        size = json.loads(self.metadata["size"])
        self.size: tuple[int, int] | None = None if size is None else (size[0], size[1])

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Class map and confidence of a uint8 RGB image (H, W, 3) or of a batch (N, H, W, 3)."""
        if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3 or 0 in image.shape:
            raise PredictError(
                f"image is {image.dtype} {image.shape}, expected uint8 (height, width, 3) or (batch, height, width, 3) "
                "in RGB order. Convert it first."
            )
        outputs = self.run(image if image.ndim == 4 else image[None])
        class_map, confidence = outputs["class_map"], outputs["confidence"]
        return Prediction(class_map, confidence) if image.ndim == 4 else Prediction(class_map[0], confidence[0])

    def run(self, image_NHWC: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Every output of the graph by its name.

        ``logits`` is there if it was exported, ``tags`` (float32 (N, C), how likely each class is somewhere in the
        image) if the network knows them.
        """
        names = [output.name for output in self.session.get_outputs()]
        try:
            values = self.session.run(names, {"image": np.ascontiguousarray(image_NHWC)})
        except Exception as error:  # onnxruntime's own errors share no other base
            batch, height, width, _ = image_NHWC.shape
            raise PredictError(
                f"cannot compute {batch} image(s) of {width}x{height} on {self.provider}: {_first_line(error)}. "
                "Use larger images if they are tiny, smaller images or batches if memory ran out."
            ) from error
        return dict(zip(names, values, strict=True))


def _open_session(
    content: bytes, name: str, provider: Provider, threads: int
) -> tuple[str, onnxruntime.InferenceSession]:
    """The first provider of those wanted that computes an image, and its session."""
    if provider != "auto" and provider not in _EXECUTION:
        raise PredictError(f"no provider {provider!r}. Choose auto, {', '.join(_EXECUTION)}.")
    for candidate in _AUTO if provider == "auto" else (provider,):
        session = _try_session(content, name, candidate, threads)
        if session is not None:
            return candidate, session
    raise PredictError(
        f"provider {provider!r} does not work on this machine; it needs {_NEEDS[provider]}. "
        "Install them, or choose provider 'cpu'."
    )


def _try_session(content: bytes, name: str, provider: str, threads: int) -> onnxruntime.InferenceSession | None:
    """A session that has computed a small image on that provider, or None.

    The list of available providers names what a wheel was built for, and a session that cannot have the asked-for one
    goes on with the CPU, so both are tried and looked at, not trusted.
    """
    execution, options = _EXECUTION[provider]
    if execution not in onnxruntime.get_available_providers():
        return None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3  # errors; the optimiser's remarks are for us, not for users
    chain = [(execution, options)] if provider == "cpu" else [(execution, options), ("CPUExecutionProvider", {})]
    onnxruntime.set_default_logger_severity(4)  # a missing provider is answered here, not printed
    try:
        session = onnxruntime.InferenceSession(content, settings, providers=chain, enable_fallback=0)
        if session.get_providers()[0] != execution:
            return None
        if [i.name for i in session.get_inputs()] == ["image"]:
            session.run(None, {"image": np.zeros((1, 64, 64, 3), np.uint8)})
    except Exception as error:  # onnxruntime's own errors share no other base
        if provider != "cpu":
            return None
        raise PredictError(
            f"cannot load {name}: {_first_line(error)}. Export it again, or copy it again if it is cut off."
        ) from error
    finally:
        onnxruntime.set_default_logger_severity(2)
    return session


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass
class Summary:
    """What `predict_files` did.

    Attributes:
        provider: what computed.
        num_images: images and video frames written.
        skipped: (input, reason) of everything that could not be used.
        elapsed_s: from the first input read to the last file written, seconds.
    """

    provider: str
    num_images: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 when everything was predicted, 2 when an input had to be skipped."""
        return 2 if self.skipped else 0

    def __str__(self) -> str:
        rate = self.num_images / self.elapsed_s if self.elapsed_s else 0.0
        return (
            f"{self.num_images} images in {self.elapsed_s:.1f} s on {self.provider} ({rate:.1f} images/s), "
            f"{len(self.skipped)} skipped"
        )


def predict_files(
    model: str | Predictor,
    inputs: Sequence[str],
    out_dir: str,
    *,
    overlay: bool = True,
    frames: bool = False,
    provider: Provider = "auto",
    threads: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Predict everything the inputs name and write one class map, and one overlay, an image or video.

    Names in the output repeat those of the inputs below the folder or glob that found them, reduced to letters,
    digits and ``._-``: ``out/class_map/NAME.png`` is an 8-bit palette PNG of train ids, ``out/overlay/NAME.png`` the
    image under the classes' colours with a legend. EXIF orientation is ignored, as in training. A video gives
    ``out/NAME.labels.zip`` and ``out/NAME.overlay.mp4`` (`export.video.video_results`), written as its frames come and
    put in place whole; of one that is damaged or cut off they hold the frames up to there, and it is listed as skipped.

    Args:
        model: an exported file, or one that is loaded already (then ``provider`` and ``threads`` do nothing).
        inputs: images, videos, folders (searched through) and globs, each a path or an fsspec URI.
        out_dir: folder of the results, a path or an fsspec URI; what lies in it is never taken as input.
        overlay: whether to write the overlays.
        frames: whether frames of videos become single files like images, named ``VIDEO/000000`` and so on.
        provider, threads: as in `Predictor`.
        progress: called after each image with how many are done, how many there are (None with videos) and the name.

    Raises:
        PredictError: an input that does not exist, or nothing to predict. Unreadable images are skipped and listed.
    """
    found = find_inputs(inputs, exclude=out_dir)
    predictor = model if isinstance(model, Predictor) else Predictor(model, provider, threads=threads)
    summary, started_s = Summary(predictor.provider), time.perf_counter()
    total = None if any(item.is_video for item in found) else len(found)
    for item in found:
        if item.is_video and not frames:
            described = (predictor.classes, predictor.palette, predictor.metadata)
            results = video_results(out_dir, item.name, *described, overlay=overlay)
        else:
            results = _single_files(predictor, out_dir, overlay)
        with results as add:
            for frame, class_map in _predictions(predictor, item, summary.skipped):
                add(frame, class_map)
                summary.num_images += 1
                if progress:
                    progress(summary.num_images + len(summary.skipped), total, frame.name)
    summary.elapsed_s = time.perf_counter() - started_s
    return summary


@contextmanager
def _single_files(predictor: Predictor, out_dir: str, overlay: bool) -> Iterator[Add]:
    def add(frame: Frame, class_map: NDArray[np.uint8]) -> None:
        write_file(out_dir, f"class_map/{frame.name}.png", encode_class_map(class_map, predictor.palette))
        if overlay:
            drawn = draw_overlay(frame.image, class_map, predictor.classes, predictor.palette)
            write_file(out_dir, f"overlay/{frame.name}.png", encode_image(drawn))

    yield add


def _predictions(
    predictor: Predictor, item: Input, skipped: list[tuple[str, str]]
) -> Iterator[tuple[Frame, NDArray[np.uint8]]]:
    """The image or frames of an input with their class maps; why one cannot be read is added to ``skipped``."""
    try:
        for frame in frames_of(item):
            yield frame, predictor.predict(frame.image).class_map
    except (OSError, ValueError, PredictError) as error:
        skipped.append((item.source, str(error)))
