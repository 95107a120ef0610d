"""One evaluation function for training, `distuda evaluate` and the report: whole set, native label size, all ranks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distuda.data.batch import Batch
from distuda.data.class_tables import AVERAGED
from distuda.data.labels import ClassTable
from distuda.engine.video import Video
from distuda.losses import world_size
from distuda.metrics.confusion import Confusion, class_map
from distuda.metrics.label_free import DEFAULT_SCORES, make_scores
from distuda.metrics.score import Predict, Score, Setting
from distuda.models.segmenter import Segmenter


def logits_at(model: Segmenter, image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Main logits of uint8 RGB images, (B, C, *size) float32: the network sees the images as they are."""
    logits = model(image_BCHW.float() / 255).main.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=model.align_corners)


@dataclass(frozen=True)
class SourceSide:
    """What an evaluation is told of the source, for the label-free scores that look there.

    Attributes:
        frequency_C: share of each class among the labelled pixels.
        samples: labelled images, this rank's share, as for `evaluate`; empty where no score looks at them.
        images: what they are, for the row.
    """

    frequency_C: Tensor
    samples: Iterable[Batch] = ()
    images: str = ""


@torch.no_grad()
def evaluate(
    model: Segmenter,
    samples: Iterable[Batch],
    table: ClassTable,
    *,
    scores: Sequence[str] = DEFAULT_SCORES,
    source: SourceSide | None = None,
    bf16: bool = False,
) -> dict[str, Any]:
    """Score a network on samples of batch size 1; sums over ranks, so every rank returns the same.

    Args:
        model: put into evaluation mode and back.
        samples: uint8 images; labels at native size, or None for label-free scores alone.
        table: of the labels.
        scores: names of label-free scores (`metrics.label_free.SCORES`); heat maps (`Segmenter.gives_heat`) have none,
            as those are of probabilities.
        source: for those in `metrics.label_free.NEED_SOURCE`.
        bf16: compute in bfloat16 autocast.

    Returns:
        ``num_images``, the label-free scores that could be computed (with ``source_miou`` also ``source_miou_on``, what
        it was taken on) and, where there are labels, ``miou``, ``iou`` (class name -> IoU or None where the class never
        occurs), ``accuracy``, ``num_pixels`` and ``label_sizes``; with a table that papers average over fewer classes
        (`class_tables.AVERAGED`) also that mean, as ``miou_synthia_seq11``. Of clips also what `Video.row` gives.
    """
    device = next(model.parameters()).device
    predict = partial(_logits, model, bf16=bf16)
    frequency_src_C = None if source is None else source.frequency_C
    made = [] if model.gives_heat else make_scores(scores, Setting(table.num_classes, device, predict, frequency_src_C))
    confusion = Confusion(table.num_classes)
    confusion.counts_CC = confusion.counts_CC.to(device)
    video = Video(table, partial(_class_map, predict))
    seen: list[tuple[int, int] | None] = []
    was_training = model.training
    model.eval()
    for batch, logits, prediction in _predicted(samples, predict, device):
        label = batch.label_BHW
        if label is not None:
            confusion.update(prediction, label)
        seen.append(None if label is None else (label.shape[-2], label.shape[-1]))
        video.update(batch, prediction)
        _feed(made, "target", batch, logits, prediction)
    for batch, logits, prediction in _predicted(source.samples if source else (), predict, device):
        _feed(made, "source", batch, logits, prediction)
    model.train(was_training)
    confusion.all_reduce()
    seen = _over_ranks(seen)
    sizes = sorted({size for size in seen if size})
    row = {"num_images": len(seen), **_label_free(made, scores, source)}
    return row | _labelled(confusion, table, sizes) | video.row()


def _logits(model: Segmenter, image_BCHW: Tensor, size: tuple[int, int], *, bf16: bool) -> Tensor:
    with torch.autocast(image_BCHW.device.type, torch.bfloat16, enabled=bf16):
        return logits_at(model, image_BCHW, size)


def _class_map(predict: Predict, image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    return class_map(predict(image_BCHW, size))


def _predicted(
    samples: Iterable[Batch], predict: Predict, device: torch.device
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Each sample on the device, with its logits and class map at label size, or image size without a label."""
    for batch in (sample.to(device) for sample in samples):
        height, width = (batch.image_BCHW if batch.label_BHW is None else batch.label_BHW).shape[-2:]
        logits = predict(batch.image_BCHW, (height, width))
        yield batch, logits, class_map(logits)


def _feed(made: Sequence[Score], domain: str, batch: Batch, logits: Tensor, prediction: Tensor) -> None:
    for score in made:
        if score.domain == domain:
            score.update(batch, logits, prediction)


def _label_free(made: Sequence[Score], names: Sequence[str], source: SourceSide | None) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for score in made:
        score.all_reduce()
        row |= {name: value for name, value in score.scores().items() if name in names and value == value}
    if source is not None and "source_miou" in row:
        row["source_miou_on"] = source.images
    return row


def _over_ranks(seen: list[Any]) -> list[Any]:
    if world_size() == 1:
        return seen
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, seen)
    return [item for part in parts for item in part]


def _labelled(confusion: Confusion, table: ClassTable, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    num_pixels = int(confusion.counts_CC.sum())
    if not num_pixels:
        return {}
    iou = confusion.iou().tolist()
    fewer = AVERAGED.get(table.classes)
    part = {} if fewer is None else {f"miou_{fewer.name}": confusion.miou([table.index(c) for c in fewer.classes])}
    return {
        "miou": confusion.miou(),
        **part,
        "accuracy": confusion.accuracy(),
        "num_pixels": num_pixels,
        "label_sizes": [f"{height}x{width}" for height, width in sizes],
        "iou": {name: None if value != value else value for name, value in zip(table.classes, iou, strict=True)},
    }
