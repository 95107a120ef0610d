"""What a run says while it trains: metrics.jsonl always, a live bar on a terminal, plain lines elsewhere."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from distuda import storage
from distuda.engine.run import read_rows


class MetricsLog:
    """metrics.jsonl of one run; the file is rewritten whole, so readers never see half a line.

    Args:
        run_uri: the run folder.
        first_step: on resume, rows after this step are dropped: they belong to steps that will be run again.
    """

    FLUSH_EVERY_S = 5.0

    def __init__(self, run_uri: str, first_step: int) -> None:
        self.path = storage.join(run_uri, "metrics.jsonl")
        self.rows = [row for row in read_rows(run_uri) if row["step"] <= first_step] if first_step else []
        self._flushed_s = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it reaches storage within seconds."""
        self.rows.append(row)
        if time.monotonic() - self._flushed_s > self.FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write everything now."""
        storage.write_bytes(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self._flushed_s = time.monotonic()


class Means:
    """Means of what the steps since the last row gave, summed on the device, so that nothing waits for it."""

    def __init__(self) -> None:
        self.count = 0
        self._names: list[str] = []
        self._sums: Tensor | None = None

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """One step's scalars; every step has the same names."""
        values = torch.stack([value.detach().float() for value in scalars.values()])
        self._names, self.count = list(scalars), self.count + 1
        self._sums = values if self._sums is None else self._sums + values

    def take(self) -> dict[str, float]:
        """The means on the host, and a new start."""
        sums = [] if self._sums is None else self._sums.tolist()
        means = {name: value / self.count for name, value in zip(self._names, sums, strict=True)}
        self._sums, self.count, self._names = None, 0, []
        return means


class TensorBoard:
    """Scalars of every row as TensorBoard events; needs the extra ``tensorboard``."""

    def __init__(self, run_uri: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(storage.join(run_uri, "tensorboard"))

    def add(self, row: dict[str, Any]) -> None:
        """Every number of a row under its kind and name."""
        for name, value in row.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        for name, value in (row.get("iou") or {}).items():
            if value is not None:
                self.writer.add_scalar(f"iou/{name}", value, row["step"])
        self.writer.flush()


class Console:
    """Live progress of one run: step, loss, images/s, data wait, memory, ETA.

    Args:
        title: in front of the bar.
        total, done: steps of the run and those already behind it.
    """

    def __init__(self, title: str, total: int, done: int) -> None:
        self.live = sys.stderr.isatty()
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
        ]
        self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not self.live)
        self.task = self.bar.add_task(title, total=total, completed=done, facts="")
        self.title, self.total = title, total
        self._start = (time.monotonic(), done)
        self.bar.start()

    def step(self, step: int) -> None:
        """The bar moves; costs nothing measurable."""
        if self.live:
            self.bar.update(self.task, completed=step)

    def train(self, row: dict[str, Any]) -> None:
        """Facts of a logged training row."""
        facts = f"loss {row['loss']:.3f}  {row['images_per_s']:.1f} img/s  wait {row['data_wait_s'] * 1e3:.0f} ms"
        if "memory_gib" in row:
            facts += f"  {row['memory_gib']:.1f} GiB"
        if "bad_samples" in row:
            facts += f"  {row['bad_samples']} bad samples"
        self.bar.update(self.task, facts=facts)
        if not self.live:
            self._line(row["step"], facts)

    def evaluation(self, row: dict[str, Any]) -> None:
        """One line for an evaluation, in both modes."""
        text = f"mIoU {100 * row['miou']:.2f}  " if "miou" in row else ""
        text += f"IM {row['information_maximisation']:.3f}  " if "information_maximisation" in row else ""
        self._line(row["step"], f"{text}on {row['num_images']} images")

    def _line(self, step: int, text: str) -> None:
        started_s, first = self._start
        rate_s = (time.monotonic() - started_s) / max(1, step - first)
        left_s = rate_s * (self.total - step)
        line = f"{self.title}  step {step}/{self.total}  {text}  ETA {int(left_s // 60)}:{int(left_s % 60):02d}"
        (self.bar.console.print if self.live else _plain)(line)

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self.bar.stop()


def warn(sentence: str) -> None:
    """Something the user may not have meant, in one line."""
    _plain(f"warning: {sentence}")


def _plain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def memory_gib(device: torch.device) -> float:
    """Peak memory so far [GiB]: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 2**30)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
