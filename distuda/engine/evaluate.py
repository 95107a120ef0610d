"""One evaluation function for training, `distuda evaluate` and the report: whole set, native label size, all ranks."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distuda.data.batch import Batch
from distuda.data.labels import ClassTable
from distuda.engine.video import Video
from distuda.losses import world_size
from distuda.metrics.confusion import Confusion
from distuda.metrics.label_free import LabelFree
from distuda.models.segmenter import Segmenter


def logits_at(model: Segmenter, image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Main logits of uint8 RGB images, (B, C, *size) float32: the network sees the images as they are."""
    logits = model(image_BCHW.float() / 255).main.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=model.align_corners)


@torch.no_grad()
def evaluate(model: Segmenter, samples: Iterable[Batch], table: ClassTable, *, bf16: bool = False) -> dict[str, Any]:
    """Score a network on samples of batch size 1; sums over ranks, so every rank returns the same.

    Args:
        model: put into evaluation mode and back.
        samples: uint8 images; labels at native size, or None for label-free scores alone.
        table: of the labels.
        bf16: compute in bfloat16 autocast.

    Returns:
        ``num_images``, ``entropy``, ``information_maximisation`` and, where there are labels, ``miou``, ``iou`` (class
        name -> IoU or None where the class never occurs), ``accuracy``, ``num_pixels`` and ``label_sizes``. Of clips
        also what `Video.row` gives.
    """
    device = next(model.parameters()).device
    confusion, label_free = Confusion(table.num_classes), LabelFree(table.num_classes)
    confusion.counts_CC, label_free.sums = confusion.counts_CC.to(device), label_free.sums.to(device)
    video = Video(table, partial(_class_map, model, bf16=bf16))
    sizes: set[tuple[int, int]] = set()
    was_training = model.training
    model.eval()
    for batch in (sample.to(device) for sample in samples):
        label = batch.label_BHW
        height, width = (batch.image_BCHW if label is None else label).shape[-2:]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = logits_at(model, batch.image_BCHW, (height, width))
        label_free.update(logits)
        prediction = logits.argmax(dim=1)
        if label is not None:
            confusion.update(prediction, label)
            sizes.add((height, width))
        video.update(batch, prediction)
    model.train(was_training)
    confusion.all_reduce()
    label_free.all_reduce()
    return _row(confusion, label_free, table, sorted(_over_ranks(sizes))) | video.row()


def _class_map(model: Segmenter, image_BCHW: Tensor, size: tuple[int, int], *, bf16: bool) -> Tensor:
    with torch.autocast(image_BCHW.device.type, torch.bfloat16, enabled=bf16):
        return logits_at(model, image_BCHW, size).argmax(dim=1)


def _over_ranks(sizes: set[tuple[int, int]]) -> set[tuple[int, int]]:
    if world_size() == 1:
        return sizes
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, sizes)
    return set().union(*parts)


def _row(
    confusion: Confusion, label_free: LabelFree, table: ClassTable, sizes: list[tuple[int, int]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"num_images": int(label_free.sums[-1]), **label_free.scores()}
    num_pixels = int(confusion.counts_CC.sum())
    if num_pixels:
        iou = confusion.iou().tolist()
        row |= {
            "miou": confusion.miou(),
            "accuracy": confusion.accuracy(),
            "num_pixels": num_pixels,
            "label_sizes": [f"{height}x{width}" for height, width in sizes],
            "iou": {name: None if value != value else value for name, value in zip(table.classes, iou, strict=True)},
        }
    return row
