"""Clips that a reader of the report plays: frames as strips of pictures, class maps laid over them by the browser.

A strip holds the frames of a clip below each other, so one picture is inlined a clip and predictor, and a frame is
shown by moving the strip. Class maps are strips of their own with transparent colours: far smaller than mixed pictures.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distuda.data.clips import Ids
from distuda.data.dataset import Dataset
from distuda.data.decode import Size, resize_image
from distuda.data.labels import IGNORE, ClassTable
from distuda.data.reader import read_samples
from distuda.engine.evaluate import logits_at
from distuda.engine.video import Video
from distuda.metrics.confusion import class_map
from distuda.models.segmenter import Segmenter
from distuda.report.panels import PANEL_WIDTH, data_uri, describe, spread
from distuda.report.templates import template

NUM_CLIPS, NUM_FRAMES = 2, 24
"""Clips shown, evenly spread over the evaluation set, and consecutive frames of each at most."""

_NO_LABEL = 254  # of frames that were not labelled, which stay as they are
_OPACITY, _IGNORED_OPACITY = 0.6, 0.75  # as in `pictures.overlay`, where ignored pixels darken


@dataclass(frozen=True)
class Track:
    """What a predictor says of a clip, or the truth: heading, line below it, alternative text, strip as a data URI."""

    title: str
    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of a clip.

    Attributes:
        name: of the clip.
        keys: of the frames' samples.
        size: (height, width) of a shown frame, pixels.
        images: strip of the frames themselves.
        tracks: strips to lay over them, in reading order.
    """

    name: str
    keys: tuple[str, ...]
    size: Size
    images: str
    tracks: tuple[Track, ...]


def choose_runs(dataset: Dataset, *, scored: bool) -> list[Ids]:
    """Numbers of the frames to show, one array a clip: by position, and where most frames are labelled if that counts.

    Args:
        dataset: of clips.
        scored: whether labels are shown.
    """
    previous = dataset.previous
    following = np.full_like(previous, -1)
    (later,) = np.nonzero(previous >= 0)
    following[previous[later]] = later
    (starts,) = np.nonzero((previous < 0) & (following >= 0))
    labelled = dataset.index["class_pixels"].is_valid().to_numpy()
    runs = []
    for place in spread(len(starts), NUM_CLIPS):
        run = [int(starts[place])]
        while following[run[-1]] >= 0:
            run.append(int(following[run[-1]]))
        counts = np.convolve(labelled[run], np.ones(min(NUM_FRAMES, len(run)), np.int64), "valid")
        first = int(counts.argmax()) if scored else 0
        runs.append(np.array(run[first : first + NUM_FRAMES], np.int64))
    return runs


def make_clip(
    dataset: Dataset,
    ids: Ids,
    predictors: Mapping[str, Segmenter],
    table: ClassTable,
    *,
    size: Size | None,
    scored: bool,
) -> Clip:
    """Predict consecutive frames and put them into strips.

    Args:
        dataset: where the frames lie.
        ids: as `choose_runs` gives them.
        predictors: networks by the name to print, in evaluation mode.
        table: names and colours of the classes.
        size: (height, width) that images are fed at, None = their own.
        scored: whether labels are shown, and scored in the captions.
    """
    name = str(dataset.index["clip"][int(ids[0])])
    measures = {title: Video(table, partial(_class_map, network)) for title, network in predictors.items()}
    maps: dict[str, list[NDArray[np.uint8]]] = {title: [] for title in predictors}
    images, truths, keys = [], [], []
    for batch in read_samples(dataset, ids, size=size):
        batch.label_BHW = batch.label_BHW if scored else None
        image, label = batch.image_BCHW, batch.label_BHW
        shape = (image if label is None else label).shape[-2:]
        images.append(image[0].permute(1, 2, 0).numpy())
        keys.append(batch.keys[0])
        truths.append(np.full(shape, _NO_LABEL, np.uint8) if label is None else label[0].numpy().astype(np.uint8))
        for title, network in predictors.items():
            prediction = _class_map(network, image, (shape[0], shape[1]))
            measures[title].update(batch, prediction)
            maps[title].append(prediction[0].numpy().astype(np.uint8))
    height, width = images[0].shape[:2]
    shown = (max(1, round(height * min(1.0, PANEL_WIDTH / width))), min(width, PANEL_WIDTH))
    of = f"clip {name}, {len(keys)} frames"
    tracks = [
        Track(title, _caption(measures[title]), f"Classes {title} predicts in {of}; in the first: "
              f"{describe(found[0], table)}", _class_strip(found, shown, table))
        for title, found in maps.items()
    ]  # fmt: skip
    labelled = sum(bool((truth != _NO_LABEL).any()) for truth in truths)
    if labelled:
        caption = "" if labelled == len(truths) else f"{labelled} of {len(truths)} frames labelled"
        first = describe(next(truth for truth in truths if (truth != _NO_LABEL).any()), table)
        alt = f"True classes in {of}; in the first with a label: {first}"
        tracks.append(Track("truth", caption, alt, _class_strip(truths, shown, table)))
    strip = Image.fromarray(np.concatenate([resize_image(image, shown) for image in images]))
    return Clip(name, tuple(keys), shown, data_uri(strip, "jpeg", quality=78, optimize=True), tuple(tracks))


def script() -> tuple[str, str]:
    """The player's script, and what the page's policy must name for a browser to run it and no other."""
    text = template("player.js.j2").render()
    return text, f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@torch.no_grad()
def _class_map(network: Segmenter, image_BCHW: Tensor, size: Size) -> Tensor:
    """Class maps on the host, where images, flow and labels of a report stay."""
    device = next(network.parameters()).device
    return class_map(logits_at(network, image_BCHW.to(device), size)).cpu()


def _caption(measured: Video) -> str:
    row = measured.row()
    named = {"VPQ": row.get("vpq"), "consistency": row.get("temporal_consistency")}
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in named.items() if value is not None)


def _class_strip(maps: Sequence[NDArray[np.uint8]], size: Size, table: ClassTable) -> str:
    """Class maps below each other as a palette PNG whose colours let the image through."""
    small = [cv2.resize(found, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) for found in maps]
    picture = Image.fromarray(np.concatenate(small), "L")
    picture.putpalette(table.colours().tobytes())
    alpha = np.full(256, round(255 * _OPACITY), np.uint8)
    alpha[IGNORE], alpha[_NO_LABEL] = round(255 * _IGNORED_OPACITY), 0
    return data_uri(picture, "png", optimize=True, transparency=alpha.tobytes())
