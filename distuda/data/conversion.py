"""Entries of a source to shard files, restartable at any instant: each shard is finished, or it does not count."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distuda import storage
from distuda.data.decode import SampleError
from distuda.data.layouts import Entry, Reading, load_sample
from distuda.data.manifest import PROGRESS
from distuda.data.pairs import Pairs
from distuda.data.sample import Sample
from distuda.data.shards import Part, shard_name, write_shard

BadSample = dict[str, Any]
"""key, image, label, reason."""


@dataclass(frozen=True)
class Conversion:
    """Everything a worker needs to write one shard.

    Attributes:
        destination: folder of the shards, any fsspec URI.
        reading: what is taken from each entry.
        row_group_bytes: encoded bytes of a row group.
        pairs: where the other domain's images come from; None = samples get none.
    """

    destination: str
    reading: Reading
    row_group_bytes: int
    pairs: Pairs | None = None

    def write_all(self, shards: Sequence[Sequence[Entry]], workers: int) -> list[list[BadSample]]:
        """Write the shards that are missing; the bad samples of each shard, finished earlier or now."""
        done = set(storage.list_folder(storage.join(self.destination, PROGRESS)))
        missing = [number for number in range(len(shards)) if shard_name(number) not in done]
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
            task = progress.add_task("preparing", total=sum(map(len, shards)))
            progress.advance(task, sum(len(shards[n]) for n in set(range(len(shards))) - set(missing)))
            if workers:
                self._write_with_ray(shards, missing, workers, partial(progress.advance, task))
            else:
                for number in missing:
                    self.write(shards[number], number, partial(progress.advance, task))
        return [self._read_bad(number) for number in range(len(shards))]

    def write(self, entries: Sequence[Entry], number: int, advance: Callable[[int], None]) -> None:
        """Write a shard, then its bad samples, then its part: the part's presence means the shard is done."""
        bad: list[BadSample] = []

        def good() -> Iterator[Sample]:
            """Samples of the entries that can be used; the others go to ``bad``."""
            for entry in entries:
                try:
                    sample = load_sample(entry, self.reading)
                    yield sample if self.pairs is None else replace(sample, pair=self.pairs.image(entry.key))
                except SampleError as error:
                    label = None if entry.label is None else str(entry.label)
                    bad.append({"key": entry.key, "image": str(entry.image), "label": label, "reason": error.reason})
                advance(1)

        part = write_shard(good(), self.destination, number, self.reading.table.num_classes, self.row_group_bytes)
        if bad:
            lines = "".join(json.dumps(line) + "\n" for line in bad)
            storage.write_bytes(self._bad_uri(number), lines.encode())
        part.save(self._part_uri(number))

    def parts(self, count: int) -> list[Part]:
        """The parts of all shards, written already."""
        return [Part.load(self._part_uri(number)) for number in range(count)]

    def forget(self, number: int) -> None:
        """Let the next run write a shard again."""
        storage.remove(self._part_uri(number))
        storage.remove(self._bad_uri(number))

    def _write_with_ray(
        self, shards: Sequence[Sequence[Entry]], missing: Sequence[int], workers: int, advance: Callable[[int], None]
    ) -> None:
        """One Ray Data block a shard, so that shards are written at once on whatever nodes there are."""
        import ray

        from distuda.cluster.local import quiet_data, start_ray

        if not missing:
            return
        start_ray()
        quiet_data()

        def write(row: dict[str, Any]) -> dict[str, Any]:
            self.write(row["entries"], row["number"], lambda _: None)
            return {"count": len(row["entries"])}

        items = [{"number": number, "entries": list(shards[number])} for number in missing]
        blocks = ray.data.from_items(items, override_num_blocks=len(items))
        for row in blocks.map(write, concurrency=workers).iter_rows():
            advance(row["count"])

    def _part_uri(self, number: int) -> str:
        return storage.join(self.destination, PROGRESS, shard_name(number))

    def _bad_uri(self, number: int) -> str:
        return storage.join(self.destination, PROGRESS, f"bad-{number:05d}.jsonl")

    def _read_bad(self, number: int) -> list[BadSample]:
        where = self._bad_uri(number)
        lines = storage.read_bytes(where).splitlines() if storage.exists(where) else []
        return [json.loads(line) for line in lines]


class _Rate(TextColumn):
    """Samples per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        """The rate as text."""
        self.text_format = f"{task.speed or 0:.0f}/s"
        return super().render(task)
