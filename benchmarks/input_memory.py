"""Memory of the streams at 1x, 10x and 100x the rows: it must not grow with the data.

    python benchmarks/input_memory.py --shards runs/input/shards

The shards are those of input_throughput.py. Rows are repeated in the manifest, not on disk. Every case is a process
of its own, which streams --images images; resident memory is the sum over the process and its children of their
proportional set size (shared pages counted once), sampled twice a second, the largest sample counts.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import psutil

from distuda.data.dataset import Dataset, open_dataset
from distuda.data.order import Order
from distuda.data.reader import read_batches

FACTORS = (1, 10, 100)
READERS = ("in process", "Ray Data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--case", nargs=2, help="for the script itself: one reader, one factor")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(case(arguments.shards, *arguments.case, arguments.images)))
        return
    print("| reader | rows | resident [MiB] | of 1x | object store [MiB] |\n| --- | --- | --- | --- | --- |")
    for reader in READERS:
        first: dict[str, Any] = {}
        for factor in FACTORS:
            command = [sys.executable, __file__, *sys.argv[1:], "--case", reader, str(factor)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
            first = first or found
            ratio = found["resident_mib"] / first["resident_mib"]
            print(
                f"| {reader} | {found['rows']} | {found['resident_mib']:.0f} | {ratio:.3f} | {found['store_mib']:.0f} |"
            )


def repeated(data: Dataset, factor: int) -> Dataset:
    """The same shards as if the data set were ``factor`` times as long."""
    groups, labelled = data.manifest.row_groups * factor, data.manifest.num_labelled * factor
    return replace(data, manifest=replace(data.manifest, row_groups=groups, num_labelled=labelled))


def case(uri: str, reader: str, factor: str, images: int) -> dict[str, Any]:
    """Highest resident memory [MiB] while one process reads, and what Ray's store holds at the end."""
    data = repeated(open_dataset(uri), int(factor))
    open_stream: Callable[..., Any] = read_batches
    if reader == "Ray Data":
        from distuda.data.stream import stream_batches as open_stream
    order = Order(data.rows_per_group, seed=0, domain="source")
    batches = open_stream(data, order, batch_size=8, size=None, region=(240, 320), columns=("label",))
    done, samples = threading.Event(), []
    watcher = threading.Thread(target=watch, args=(done, samples), daemon=True)
    watcher.start()
    for _ in islice(batches, images // 8):
        pass
    store = store_mib() if reader == "Ray Data" else 0.0
    done.set()
    watcher.join()
    batches.close()
    return {"rows": len(data), "resident_mib": max(samples), "store_mib": store}


def watch(done: threading.Event, samples: list[float]) -> None:
    """Proportional set size of this process and all its children [MiB], twice a second until ``done``."""
    while not done.is_set():
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        total = 0
        for process in processes:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue  # it ended meanwhile
        samples.append(total / 2**20)
        time.sleep(0.5)


def store_mib() -> float:
    """What Ray's object store holds now."""
    from ray._private.internal_api import memory_summary

    found = re.search(r"Plasma memory usage ([\d.]+) MiB", memory_summary(stats_only=True))
    return float(found[1]) if found else float("nan")


if __name__ == "__main__":
    main()
