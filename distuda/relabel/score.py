"""Score the labels that a relabel phase wrote against true ones, which no phase has seen."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from distuda import storage
from distuda.data.dataset import Dataset, open_dataset, rows_of
from distuda.data.decode import decode_label
from distuda.data.labels import IGNORE
from distuda.errors import UserError
from distuda.metrics.confusion import Confusion
from distuda.relabel.job import open_labels


def score_labels(uri: str, data: str) -> dict[str, Any]:
    """The mIoU of a finished phase's labels where they say something, and how much of the truth that is.

    Args:
        uri: the phase's folder; the scores are also written there.
        data: the same samples prepared with their true labels; partners have the same key.

    Returns:
        ``num_images``, ``miou``, ``iou`` by class name, ``accuracy``, ``num_pixels`` and ``coverage``, the share of
        truly labelled pixels that the phase did not ignore; shares in [0, 1].
    """
    made, truth = open_labels(uri), open_dataset(data)
    truth.require("label")
    made.require("label")
    if made.table.classes != truth.table.classes:
        raise UserError(f"{uri!r} has class table {made.table.name!r}, {data!r} has {truth.table.name!r}.")
    confusion, num_images, num_true = Confusion(made.table.num_classes), 0, 0
    for guess, label in _pairs(made, truth):
        said = guess != IGNORE
        num_true += int((label != IGNORE).sum())
        confusion.update(torch.from_numpy(guess[said]), torch.from_numpy(label[said]))
        num_images += 1
    if not num_images:
        raise UserError(f"{data!r} has no sample of {made.uri!r}: keys differ. Prepare the same images with labels.")
    num_pixels = int(confusion.counts_CC.sum())
    iou = confusion.iou().tolist()
    row = {
        "uri": data,
        "num_images": num_images,
        "miou": confusion.miou(),
        "accuracy": confusion.accuracy(),
        "coverage": num_pixels / max(1, num_true),
        "num_pixels": num_pixels,
        "iou": {name: None if np.isnan(v) else v for name, v in zip(made.table.classes, iou, strict=True)},
    }
    storage.write_bytes(storage.join(uri, "evaluation-labels.json"), json.dumps(row, indent=1).encode())
    return row


def _pairs(made: Dataset, truth: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The phase's label and the true one of every sample that both have."""
    number_of = {key: number for number, key in enumerate(truth.index["key"].to_pylist())}
    for group in range(len(made.groups)):
        rows = [row for row in rows_of(made.read_window(made.group_window(group))) if row["key"] in number_of]
        if not rows:
            continue
        ids = np.asarray([number_of[row["key"]] for row in rows], np.int64)
        for row, other in zip(rows, rows_of(truth.read_window(truth.window_of(ids))), strict=True):
            guess, label = (decode_label(one["label"], str(one["key"])) for one in (row, other))
            if guess.shape != label.shape:
                raise UserError(f"sample {row['key']!r}: labels differ in size, {guess.shape} and {label.shape}.")
            yield guess, label
