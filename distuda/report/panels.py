"""Pictures of what a model sees: image, truth, class maps and entropy of chosen samples, small enough to inline."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distuda.data.batch import Batch
from distuda.data.labels import IGNORE, ClassTable
from distuda.engine.evaluate import logits_at
from distuda.metrics.confusion import Confusion, class_map
from distuda.models.segmenter import Segmenter

PANEL_WIDTH = 320
"""Width of an inlined picture, pixels; smaller images keep their size."""

VOID_COLOUR = (255, 255, 255)
"""Colour of pixels without a class; no palette uses it."""


@dataclass(frozen=True)
class Tile:
    """One picture: heading, line below it, alternative text and the picture itself as a data URI."""

    title: str
    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class Panel:
    """The pictures of one sample.

    Attributes:
        key: of the sample.
        tiles: in reading order.
        scores: mIoU of this image alone, in [0, 1], by predictor; empty without labels.
        reason: why it is shown; empty for samples that are merely spread over the set.
    """

    key: str
    tiles: tuple[Tile, ...]
    scores: Mapping[str, float]
    reason: str = ""

    @property
    def gain(self) -> float | None:
        """Last predictor's mIoU minus the first's; None unless two were scored."""
        values = list(self.scores.values())
        return values[-1] - values[0] if len(values) == 2 and all(map(math.isfinite, values)) else None


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` positions in 0..total-1, evenly spaced, the same for every call."""
    count = min(count, total)
    return [int((i + 0.5) * total / count) for i in range(count)]


@torch.no_grad()
def make_panel(batch: Batch, predictors: Mapping[str, Segmenter], table: ClassTable) -> Panel:
    """Panel of the one sample in a batch (uint8 image, label at native size or None).

    Args:
        batch: of size 1.
        predictors: networks by the name to print, the adapted one last; its entropy is shown.
        table: names and colours of the classes.
    """
    key = batch.keys[0]
    label = None if batch.label_BHW is None else batch.label_BHW[0]
    picture = batch.image_BCHW[0].permute(1, 2, 0).cpu().numpy()
    tiles = [Tile("image", "", f"Image {key}", _jpeg(picture))]
    if label is not None:
        truth = label.cpu().numpy().astype(np.uint8)
        tiles.append(Tile("truth", "", f"True classes of {key}: {describe(truth, table)}", _class_png(truth, table)))
    scores: dict[str, float] = {}
    height, width = batch.image_BCHW.shape[-2:] if label is None else label.shape
    for name, predictor in predictors.items():
        device = next(predictor.parameters()).device
        logits_BCHW = logits_at(predictor, batch.image_BCHW.to(device), (height, width))
        prediction = class_map(logits_BCHW)[0]
        if label is not None:
            scores[name] = image_miou(prediction, label, table.num_classes)
        caption = f"mIoU {100 * scores[name]:.1f}" if math.isfinite(scores.get(name, math.nan)) else ""
        classes = prediction.cpu().numpy().astype(np.uint8)
        alt = f"Classes {name} predicts in {key}: {describe(classes, table)}"
        tiles.append(Tile(name, caption, alt, _class_png(classes, table)))
    entropy = normalised_entropy(logits_BCHW)[0].cpu().numpy()
    alt = f"Entropy of {name} in {key}, brighter is less sure; mean {entropy.mean():.2f} of 1"
    tiles.append(Tile(f"entropy, {name}", f"mean {entropy.mean():.2f}", alt, _entropy_png(entropy)))
    return Panel(key, tuple(tiles), scores)


def make_panels(
    batches: Iterable[Batch], wanted: set[int], predictors: Mapping[str, Segmenter], table: ClassTable
) -> list[Panel]:
    """Panels of the batches at the wanted positions; reading stops after the last of them."""
    panels: list[Panel] = []
    last = max(wanted, default=-1)
    for position, batch in zip(range(last + 1), batches, strict=False):
        if position in wanted:
            panels.append(make_panel(batch, predictors, table))
    return panels


def normalised_entropy(logits_BCHW: Tensor) -> Tensor:
    """Entropy of every pixel's prediction over ln C: (B, H, W) in [0, 1], 1 = all classes equally likely."""
    log_p = logits_BCHW.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1) / math.log(logits_BCHW.shape[1])


def image_miou(prediction_HW: Tensor, label_HW: Tensor, num_classes: int) -> float:
    """The mIoU of one image alone, over the classes it shows or is said to show; NaN if all is ignored."""
    confusion = Confusion(num_classes)
    confusion.update(prediction_HW.cpu(), label_HW.cpu())
    return confusion.miou()


def choose(panels: Sequence[Panel], count: int) -> list[Panel]:
    """The most telling panels first (largest gain, largest loss), then ``count`` spread over the rest.

    With one scored predictor the extremes are the highest and the lowest mIoU; without scores there are none.
    """
    extremes: list[Panel] = []
    gains = [panel for panel in panels if panel.gain is not None]
    if gains:
        best, worst = max(gains, key=lambda p: p.gain or 0), min(gains, key=lambda p: p.gain or 0)
        extremes += [replace(best, reason="most gain")] if (best.gain or 0) > 0 else []
        extremes += [replace(worst, reason="most loss")] if (worst.gain or 0) < 0 else []
    else:
        scored = [panel for panel in panels if any(map(math.isfinite, panel.scores.values()))]
        if len(scored) > 1:
            ranked = sorted(scored, key=lambda panel: max(panel.scores.values()))
            extremes = [replace(ranked[-1], reason="highest mIoU"), replace(ranked[0], reason="lowest mIoU")]
    shown = {panel.key for panel in extremes}
    rest = [panel for panel in panels if panel.key not in shown]
    return extremes + [rest[i] for i in spread(len(rest), count)]


def describe(label_HW: NDArray[np.uint8], table: ClassTable) -> str:
    """The largest classes of a class map in words, for those who cannot see it."""
    counts = np.bincount(label_HW[label_HW != IGNORE].ravel(), minlength=table.num_classes)
    order = [int(i) for i in np.argsort(-counts)[:3] if counts[i]]
    total = max(1, int(counts.sum()))
    return ", ".join(f"{table.classes[i]} {100 * counts[i] / total:.0f} %" for i in order) or "no labelled pixel"


def entropy_ramp() -> NDArray[np.uint8]:
    """uint8 RGB (256, 3): viridis, even steps in value look like even steps in brightness."""
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(ramp[0, :, ::-1])


def class_palette(table: ClassTable) -> NDArray[np.uint8]:
    """uint8 RGB (256, 3): colours of the train ids, `VOID_COLOUR` for all else."""
    palette = np.full((256, 3), VOID_COLOUR, np.uint8)
    palette[: table.num_classes] = table.palette
    return palette


def _class_png(label_HW: NDArray[np.uint8], table: ClassTable) -> str:
    return _palette_png(_shrink(label_HW, cv2.INTER_NEAREST).astype(np.uint8), class_palette(table))


def _entropy_png(entropy_HW: NDArray[np.float32]) -> str:
    levels = np.rint(_shrink(entropy_HW, cv2.INTER_AREA).clip(0, 1) * 42).astype(np.uint8) * 6  # few levels pack well
    return _palette_png(levels, entropy_ramp())


def _palette_png(index_HW: NDArray[np.uint8], palette: NDArray[np.uint8]) -> str:
    image = Image.fromarray(index_HW, "L")
    image.putpalette(palette.tobytes())  # turns it into a palette image without touching the indices
    return data_uri(image, "png", optimize=True)


def _jpeg(picture_HW3: NDArray[np.uint8]) -> str:
    return data_uri(Image.fromarray(_shrink(picture_HW3, cv2.INTER_AREA)), "jpeg", quality=82, optimize=True)


def _shrink(array: NDArray[np.generic], interpolation: int) -> NDArray[np.generic]:
    height, width = array.shape[:2]
    if width <= PANEL_WIDTH:
        return array
    size = (PANEL_WIDTH, max(1, round(height * PANEL_WIDTH / width)))
    return np.asarray(cv2.resize(array, size, interpolation=interpolation))


def data_uri(image: Image.Image, kind: str, **options: bool | int | bytes) -> str:
    """A picture as the address of itself: ``kind`` is ``png`` or ``jpeg``, the options are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
