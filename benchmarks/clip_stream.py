"""Frames a second of clips with flow against single frames, and memory as clips grow.

    python benchmarks/clip_stream.py

Rendered streets, 320x192 (and 640x384), read in this process: single frames with labels; frames with the one before,
flow taken from its column, computed by DIS, and without flow. Variants take turns. A clip sample has two frames, so
frames a second count both. Then the resident memory of a process that reads 600 pairs of short and of long clips.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import psutil

from distuda.data.batch import Batch
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.order import Order
from distuda.data.reader import read_batches

VARIANTS = {  # name: (frames a sample, columns, whether stored flow is used)
    "single frames": (1, ("label",), False),
    "two frames": (2, ("label",), False),
    "two frames, flow from its column": (2, ("label", "flow"), True),
    "two frames, flow computed": (2, ("label", "flow"), False),
}
SIZES = ("192x320", "384x640")
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40, help="batches a turn")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(resident(arguments.memory[0], int(arguments.memory[1])))
        return
    print("| size | variant | frames/s, median | of single frames |\n| --- | --- | --- | --- |")
    for size in SIZES:
        data = open_dataset(f"streets://day?frames=6&num=20&size={size}")
        rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(arguments.rounds):
            for name, variant in VARIANTS.items():
                rates[name].append(rate(data, *variant, arguments.batches))
        for name, values in rates.items():
            ratios = [a / b for a, b in zip(values, rates["single frames"], strict=True)]
            print(f"| {size} | {name} | {statistics.median(values):.0f} | {statistics.median(ratios):.2f}x |")
    print("\n| clips | largest resident memory of 600 pairs [MiB] |\n| --- | --- |")
    for frames, num in ((6, 160), (60, 16), (960, 1)):
        uri = f"streets://day?frames={frames}&num={num}"
        open_dataset(uri)  # rendered here, not in the process that is measured
        found = subprocess.run(
            [sys.executable, __file__, "--memory", uri, "150"], check=True, stdout=subprocess.PIPE, text=True
        )
        print(f"| {num} of {frames} frames | {float(found.stdout.split()[-1]):.0f} |")


def rate(data: Dataset, num_frames: int, columns: tuple[str, ...], stored: bool, batches: int) -> float:
    """Frames a second, after one batch that fills the queues."""
    stream = batches_of(data, num_frames, columns, stored)
    next(stream)
    started_s = time.perf_counter()
    for _ in islice(stream, batches):
        pass
    spent_s = time.perf_counter() - started_s
    stream.close()  # type: ignore[attr-defined]
    return num_frames * BATCH * batches / spent_s


def batches_of(data: Dataset, num_frames: int, columns: tuple[str, ...], stored: bool) -> Iterator[Batch]:
    """Endless batches of crops; without ``stored`` the flow that lies in the data set is not looked at."""
    if not stored:
        data = replace(data, manifest=replace(data.manifest, num_flows=0))
    weights = data.clip_weights(num_frames, labelled=True)
    order = Order(data.rows_per_group, seed=0, domain="source", weights=weights)
    return read_batches(
        data, order, batch_size=BATCH, size=None, region=(144, 192), columns=columns, num_frames=num_frames
    )


def resident(uri: str, batches: int) -> float:
    """Largest resident memory while so many batches of pairs with flow are read [MiB]."""
    stream, process, most = batches_of(open_dataset(uri), 2, ("label", "flow"), True), psutil.Process(), 0.0
    for _ in islice(stream, batches):
        most = max(most, process.memory_info().rss / 2**20)
    return most


if __name__ == "__main__":
    main()
