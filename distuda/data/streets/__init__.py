"""Street scenes rendered by our own code, the data set that needs no download: ``streets://day``, ``dusk``, ...

Each picture comes with exact labels, instance ids and, in clips, optical flow, because all of them are read from the
same buffer of planes (`paint`). A scene is a pure function of (style, split, seed, index).
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.flow import encode_flow
from distuda.data.sample import Sample
from distuda.data.streets.light import photograph
from distuda.data.streets.mesh import Id
from distuda.data.streets.paint import Painting, flow, paint_scene
from distuda.data.streets.scene import lay_out
from distuda.data.streets.styles import STYLES, Style
from distuda.errors import UserError, nearest

__all__ = ["STYLES", "Frame", "Id", "Spec", "Style", "parse_uri", "render", "render_clip", "samples"]

SCHEME = "streets://"
SPLITS = {"train": 400, "val": 100}
"""Splits and how many stills or clips each has by default."""

_SPLIT_STRIDE = 10_000_000  # scene numbers of a split start here, so that splits never share a scene
_LIMITS = {"num": (1, _SPLIT_STRIDE), "seed": (0, 2**31 - 1), "frames": (1, 1000)}
_SIZE_LIMITS = (32, 4096)


@dataclass
class Frame:
    """One picture with all that is known about it.

    Attributes:
        image: uint8 RGB (H, W, 3).
        label: uint8 (H, W), train ids of `Id`.
        instance: uint16 (H, W), 0 = none; ids are constant over a clip.
        flow: float32 (H, W, 2), backward flow in pixels: the point at (x, y) was at (x + flow[..., 0],
            y + flow[..., 1]) in the clip's previous frame; zeros for stills and first frames.
        flow_valid: bool (H, W), the point was visible in the previous frame; False for stills and first frames.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    instance: NDArray[np.uint16]
    flow: NDArray[np.float32]
    flow_valid: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a ``streets://`` URI asks for.

    Attributes:
        style: a key of `STYLES`.
        split: ``train`` or ``val``.
        num: how many stills, or clips when ``frames`` > 1.
        seed: two seeds give two independent data sets.
        size: (height, width) in pixels.
        frames: frames a clip; 1 = stills.
    """

    style: str
    split: str = "train"
    num: int = SPLITS["train"]
    seed: int = 0
    size: tuple[int, int] = (192, 320)
    frames: int = 1


def _style(name: str) -> Style:
    if name not in STYLES:
        raise UserError(f"unknown street style {name!r}{nearest(name, STYLES)}. Choose one of {', '.join(STYLES)}.")
    return STYLES[name]


def render(style: str, *, seed: int, index: int, size: tuple[int, int] = (192, 320)) -> Frame:
    """One still of a style: scene ``index`` of data set ``seed`` at (height, width) pixels.

    Raises:
        UserError: the style is unknown.
    """
    return render_clip(style, seed=seed, index=index, num_frames=1, size=size)[0]


def render_clip(
    style: str, *, seed: int, index: int, num_frames: int, size: tuple[int, int] = (192, 320)
) -> list[Frame]:
    """A drive along one street: the camera moves forward, cars and people move, flow is exact.

    Raises:
        UserError: the style is unknown.
    """
    look = _style(style)
    rng = np.random.default_rng([zlib.crc32(style.encode()), seed, index])
    scene = lay_out(look, rng, num_frames)
    labels = np.array(scene.mesh.labels, np.uint8)
    instances = np.array(scene.mesh.instances, np.uint16)
    frames: list[Frame] = []
    before: Painting | None = None
    for time in range(num_frames):
        now = paint_scene(scene, time, size)
        moved, valid = np.zeros((*size, 2), np.float32), np.zeros(size, bool)
        if before is not None:
            moved, valid = flow(now, before, scene, size)
        image = photograph(scene, now, look, time, rng)
        frames.append(Frame(image, labels[now.surface], instances[now.surface], moved, valid))
        before = now
    return frames


def _whole_number(uri: str, name: str, text: str) -> int:
    low, high = _LIMITS[name]
    if not text.isdecimal() or not low <= int(text) <= high:
        raise UserError(f"{uri!r}: {name}={text!r} must be a whole number from {low} to {high}.")
    return int(text)


def _size(uri: str, text: str) -> tuple[int, int]:
    parts, (low, high) = text.split("x"), _SIZE_LIMITS
    if len(parts) != 2 or not all(p.isdecimal() and low <= int(p) <= high for p in parts):
        raise UserError(f"{uri!r}: size={text!r} must be HEIGHTxWIDTH, each from {low} to {high}, such as 192x320.")
    return int(parts[0]), int(parts[1])


def parse_uri(uri: str) -> Spec:
    """Read ``streets://STYLE[/SPLIT][?num=400&seed=0&size=192x320&frames=1]``.

    Raises:
        UserError: an unknown style, split or option, or a value out of range; names what is allowed.
    """
    if not uri.startswith(SCHEME):
        raise UserError(f"{uri!r} is not a street URI. Write {SCHEME}STYLE, STYLE one of {', '.join(STYLES)}.")
    parts = urlsplit(uri)
    _style(parts.netloc)
    split = parts.path.strip("/") or "train"
    if split not in SPLITS:
        raise UserError(f"{uri!r}: unknown split {split!r}{nearest(split, SPLITS)}. Choose one of {', '.join(SPLITS)}.")
    values: dict[str, int] = {"num": SPLITS[split], "seed": 0, "frames": 1}
    size = (192, 320)
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name == "size":
            size = _size(uri, text)
        elif name in _LIMITS:
            values[name] = _whole_number(uri, name, text)
        else:
            allowed = [*_LIMITS, "size"]
            raise UserError(f"{uri!r}: unknown option {name!r}{nearest(name, allowed)}. Allowed: {', '.join(allowed)}.")
    return Spec(style=parts.netloc, split=split, size=size, **values)


def _encode(extension: str, picture: NDArray[np.uint8] | NDArray[np.uint16], *options: int) -> bytes:
    done, data = cv2.imencode(extension, picture, options)
    assert done
    return data.tobytes()


def _sample(frame: Frame, key: str, clip: str | None, number: int | None) -> Sample:
    jpeg = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    height, width = frame.label.shape
    return Sample(
        key=key,
        image=_encode(".jpg", cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR), *jpeg),
        label=_encode(".png", frame.label),
        instance=_encode(".png", frame.instance),
        clip=clip,
        frame=number,
        flow=encode_flow(frame.flow, frame.flow_valid) if number else None,
        height=height,
        width=width,
    )


def samples(spec: Spec) -> Iterator[Sample]:
    """All samples of a spec in order, rendered as they are asked for: JPEG of quality 95 and PNG labels."""
    start = list(SPLITS).index(spec.split) * _SPLIT_STRIDE
    for i in range(spec.num):
        name = f"{spec.style}-{spec.split}-s{spec.seed}-{i:06d}"
        frames = render_clip(spec.style, seed=spec.seed, index=start + i, num_frames=spec.frames, size=spec.size)
        if spec.frames == 1:
            yield _sample(frames[0], name, None, None)
            continue
        for number, frame in enumerate(frames):
            yield _sample(frame, f"{name}-{number:03d}", name, number)
