"""Batch-norm statistics of the place where the model must work.

Li, Wang, Shi, Hou, Liu: Adaptive batch normalization for practical domain adaptation, Pattern Recognition 2018. The
statistics a network normalises by at evaluation are averaged anew over target images; no weight changes and no label
is used. In training every batch is normalised by itself, so this never disturbs it.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from distuda.data.dataset import Dataset, rows_of
from distuda.data.decode import Size, decode_sample
from distuda.data.tolerance import STRICT, Tolerance
from distuda.models.segmenter import Segmenter

BATCH = 8
_MAX_GROUPS = 8  # row groups opened: bounds what is read of a large data set


@torch.no_grad()
def calibrate(model: Segmenter, images: Iterable[Tensor], *, bf16: bool = False) -> None:
    """Replace a network's running statistics by the average over batches of uint8 RGB images (B, 3, H, W).

    Nothing happens to a network without batch norm or with frozen statistics.
    """
    was_training = model.training
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.training]  # frozen ones, also of a wrapped network, stay as they are
    if not norms:
        model.train(was_training)
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average: every batch weighs the same
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for image in images:
            model(image.to(device).float() / 255)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)


def calibration_images(dataset: Dataset, num: int, size: Size | None, tolerance: Tolerance = STRICT) -> list[Tensor]:
    """At most ``num`` usable images spread over a data set, as uint8 batches (B, 3, H, W) of one size each."""
    groups = np.unique(np.linspace(0, len(dataset.groups) - 1, _MAX_GROUPS).round().astype(np.int64))
    ids = np.concatenate([np.arange(dataset.starts[group], dataset.starts[group + 1]) for group in groups])
    ids = ids[np.unique(np.linspace(0, len(ids) - 1, num).round().astype(np.int64))]
    batches: dict[Size, list[list[Tensor]]] = {}
    for row in rows_of(dataset.read_window(dataset.window_of(ids), ())):
        decoded = tolerance.attempt(partial(decode_sample, row, size=size, region=None, seed=0))
        if decoded is None:
            continue
        pixels = torch.from_numpy(decoded[0]).permute(2, 0, 1)
        rows = batches.setdefault((pixels.shape[1], pixels.shape[2]), [[]])
        if len(rows[-1]) == BATCH:
            rows.append([])
        rows[-1].append(pixels)
    return [torch.stack(batch) for rows in batches.values() for batch in rows]
