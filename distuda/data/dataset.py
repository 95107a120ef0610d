"""Open a data set by its URI: a folder of shards, or streets that are rendered on first use."""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from distuda import storage
from distuda.data.class_tables import CLASS_TABLES
from distuda.data.clips import FLOW, earlier, previous_frames, with_previous
from distuda.data.columns import COLUMNS, Columns, class_pixels, open_columns
from distuda.data.labels import ClassTable
from distuda.data.manifest import INDEX, Manifest, RowGroup, read_manifest
from distuda.data.order import Window
from distuda.data.sample import SCHEMA
from distuda.data.shards import is_complete, read_row_group, write_shards
from distuda.errors import UserError

STREETS = "streets://"


@dataclass(frozen=True)
class Dataset:
    """A complete shard folder.

    Attributes:
        uri: where it lies.
        manifest: what it holds.
        columns: what relabel phases wrote beside it; of two that hold the same column, the later one counts.
    """

    uri: str
    manifest: Manifest
    columns: tuple[Columns, ...] = ()

    @property
    def table(self) -> ClassTable:
        """Names and colours of the train ids."""
        return self.manifest.table

    @property
    def num_labelled(self) -> int:
        """Samples with a label, in the shards or beside them."""
        beside = self._beside("label")
        return self.manifest.num_labelled if beside is None else beside.num_labelled

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label."""
        return self.num_labelled == len(self)

    @property
    def paired(self) -> bool:
        """Whether some sample has a pair."""
        return self.manifest.num_pairs > 0

    @property
    def moving(self) -> bool:
        """Whether there are clips: frames of which the one before is there."""
        return bool((self.previous >= 0).any())

    @property
    def has_flow(self) -> bool:
        """Whether optical flow lies in the shards or beside them; else it has to be computed."""
        return self.manifest.num_flows > 0 or self._beside(FLOW) is not None

    @cached_property
    def previous(self) -> NDArray[np.int64]:
        """Number of the sample that shows the frame before each, (N,), -1 where there is none."""
        return previous_frames(self.index)

    def clip_weights(self, num_frames: int, *, labelled: bool) -> NDArray[np.float64]:
        """How often to draw each sample so that only ends of so many frames in a row come, (N,), equally often.

        Args:
            num_frames: frames a sample is read with, itself included; 1 = single images.
            labelled: whether the sample itself must have a label.

        Raises:
            UserError: there is no such sample.
        """
        sparse = labelled and not self.labelled

        def ends(length: int) -> NDArray[np.bool_]:
            usable = with_previous(self.previous, length)
            return usable & self.index["class_pixels"].is_valid().to_numpy() if sparse else usable

        usable = ends(num_frames)
        if not usable.any():
            longest = next(length for length in range(num_frames) if not ends(length + 1).any())
            raise UserError(
                f"{self.uri!r} has no {'labelled ' * sparse}frame with {num_frames - 1} before it: {num_frames} frames "
                f"in a row are needed, and its longest run{' up to a label' * sparse} has {longest}. Prepare clips or "
                "videos with longer runs, or use a method that looks at fewer frames."
            )
        return usable / usable.sum()

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        """The units of reading, in order."""
        return self.manifest.row_groups

    @property
    def rows_per_group(self) -> list[int]:
        """Samples in each row group."""
        return [group.rows for group in self.groups]

    def require(self, column: str, *, drawn: bool = False) -> None:
        """Refuse a data set in which a column is missing that training looks at.

        Args:
            column: of the shards, or of those that may stand beside them (`data.columns`); every sample must have
                it, but for ``pair``, which some may lack.
            drawn: whether samples are drawn by `clip_weights`, which leave out those without a label, so that only
                some need one.
        """
        if column == FLOW:
            if not self.moving:
                raise UserError(f"{self.uri!r} holds no clips, but this domain needs them. Prepare frames of video.")
            return
        if column == "label" and not self.labelled and not (drawn and self.num_labelled):
            raise UserError(f"{self._without_labels()}, but this domain needs them. Prepare it with labels.")
        if column == "pair" and not self.paired:
            raise UserError(f"{self.uri!r} has no pairs, but this domain needs them. Prepare it with --pairs.")
        if column == "tags" and (missing := self.index["tags"].null_count):
            raise UserError(
                f"{missing} of {len(self)} samples of {self.uri!r} have no tags (image-level labels), the first is "
                f"{self._first_without('tags')!r}. Add them to the source and prepare it again with --tags auto."
            )
        if column not in SCHEMA.names and self._beside(column) is None:
            raise UserError(
                f"{self.uri!r} has no column {column!r} beside it. Name the phase that wrote it in columns."
            )

    def holds(self, column: str) -> bool:
        """Whether every sample has a column, so that `require` lets it pass."""
        try:
            self.require(column)
        except UserError:
            return False
        return True

    def _without_labels(self) -> str:
        if not self.num_labelled:
            return f"{self.uri!r} has no labels"
        missing, first = len(self) - self.num_labelled, self._first_without("class_pixels")
        return f"{missing} of {len(self)} samples of {self.uri!r} have no label (the first is {first!r})"

    def _first_without(self, column: str) -> str:
        return str(self.index["key"][int(np.argmax(self.index[column].is_null().to_numpy()))])

    def _beside(self, column: str) -> Columns | None:
        """The last folder beside the shards that holds a column."""
        return next((found for found in reversed(self.columns) if column in found.names), None)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Number of the first sample of each row group, and last the count of all."""
        return np.concatenate([[0], np.cumsum(self.rows_per_group)]).astype(np.int64)

    def absolute(self) -> "Dataset":
        """The same with local paths made absolute, for processes that do not live where the user is."""

        def whole(uri: str) -> str:
            return storage.filesystem(uri)[1] if storage.is_local(uri) else uri

        columns = tuple(replace(found, uri=whole(found.uri)) for found in self.columns)
        return replace(self, uri=whole(self.uri), columns=columns)

    def window_of(self, ids: NDArray[np.int64]) -> Window:
        """The samples of these numbers, in their order; seeds are the numbers."""
        groups = np.searchsorted(self.starts, ids, side="right") - 1
        return Window(ids, groups, ids - self.starts[groups], ids)

    def group_window(self, number: int) -> Window:
        """All samples of one row group, in stored order."""
        return self.window_of(np.arange(self.starts[number], self.starts[number + 1]))

    def class_pixels(self) -> NDArray[np.int64]:
        """Labelled pixels per train id over the whole set, (C,); zeros without labels."""
        beside = self._beside("label")
        counts = [group.class_pixels for group in self.groups] if beside is None else beside.class_pixels
        return np.asarray(np.sum(counts, axis=0), np.int64)

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of each class among the labelled pixels, (C,), sums to 1; zeros without labels."""
        pixels = self.class_pixels()
        return pixels / max(1, int(pixels.sum()))

    @cached_property
    def index(self) -> pa.Table:
        """One line a sample (`manifest.INDEX_SCHEMA`), in the order of the row groups."""
        return pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(self.uri, INDEX))))

    def labelled_ids(self) -> NDArray[np.int64]:
        """Numbers of the samples that have a label, ascending."""
        return np.flatnonzero(self.index["class_pixels"].is_valid().to_numpy())

    def read_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The row group of that number (position in `groups`), bytes still encoded."""
        if not self.columns:
            return read_row_group(self.uri, self.groups[number], columns)
        names = list(SCHEMA.names if columns is None else columns)
        beside = {name: found for name in names if (found := self._beside(name)) is not None}
        own = [name for name in names if name not in beside]
        table = read_row_group(self.uri, self.groups[number], list(dict.fromkeys(["key", *own])))
        for found in set(beside.values()):
            chosen = [name for name in names if beside.get(name) == found]
            written = found.read_group(number, ["key", *chosen])
            _require_same_rows(self.uri, table["key"], found.uri, written["key"])
            for name in chosen:
                table = table.append_column(name, written[name])
        return table.select(names)

    def read_window(self, window: Window, columns: Sequence[str] = ("label",), num_frames: int = 1) -> pa.Table:
        """The samples of a window, bytes still encoded; each row group is read once and its bytes are not copied.

        Args:
            window: which samples.
            columns: what to read beside the image; ``flow`` is left out where it has to be computed.
            num_frames: with more than one, the frames before each sample are read too, each once.

        Returns:
            Columns ``key``, ``image``, those asked for, ``seed``, and ``place``, the row's number in the window's
            order: rows lie as they are stored, `rows_of` turns them. With frames before, they have place -1, and all
            rows say ``id`` and ``before``, numbers of their sample and of the frame before it.
        """
        columns = ["key", "image", *(name for name in columns if name != FLOW or self.has_flow)]
        ids, places = self.starts[window.groups] + window.rows, np.arange(len(window))
        seeds = window.seeds
        if num_frames > 1:
            others = earlier(self.previous, ids, num_frames)
            ids = np.concatenate([ids, others])
            places = np.concatenate([places, np.full_like(others, -1)])
            seeds = np.concatenate([seeds, np.zeros_like(others)])
        pieces = []
        groups = np.searchsorted(self.starts, ids, side="right") - 1
        for number in np.unique(groups):
            (here,) = np.nonzero(groups == number)
            group, rows = self.read_group(int(number), columns), ids[here] - self.starts[number]
            whole = len(rows) == group.num_rows and len(np.unique(rows)) == len(rows)
            here = here[np.argsort(rows)] if whole else here
            piece = group if whole else group.take(rows)
            added = {"seed": seeds[here], "place": places[here]}
            if num_frames > 1:
                added |= {"id": ids[here], "before": self.previous[ids[here]]}
            for name, values in added.items():
                piece = piece.append_column(name, pa.array(values))
            pieces.append(piece)
        return pa.concat_tables(pieces)

    def pair_weights(self) -> NDArray[np.float64]:
        """How often to draw each sample so that those with a pair come equally often and others never, (N,)."""
        has_pair = self.index["has_pair"].to_numpy().astype(np.float64)
        return np.asarray(has_pair / has_pair.sum(), np.float64)

    def _class_pixels_of_samples(self) -> NDArray[np.int64]:
        """Labelled pixels per train id of each sample, (N, C); zeros without a label."""
        beside = self._beside("label")
        if beside is not None:
            return class_pixels(beside, len(self.groups), self.table.num_classes)
        none = [0] * self.table.num_classes
        return np.array([counts or none for counts in self.index["class_pixels"].to_pylist()], np.int64)

    def rare_class_weights(
        self, temperature: float = 0.01, min_pixels: int = 3000
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How often to draw each sample so that rare classes are seen as often as common ones, (N,), sums to 1; and
        how much of that each class brings to a sample that holds it, (C,).

        Rare class sampling of DAFormer (Hoyer et al., CVPR 2022, section 3.3): draw a class c with
        P(c) = softmax((1 - f_c) / T), f_c its pixel frequency, then uniformly one of the N_c samples with more than
        ``min_pixels`` of c. Classes that no sample shows that much are left out. A sample's probability is the sum of
        P(c) / N_c over the classes it holds, so these parts say, given a sample, which class it was drawn for. Samples
        without a label are never drawn.
        """
        if not self.num_labelled:
            raise UserError(f"rare class sampling needs labels, and {self.uri!r} has none. Switch it off.")
        shown = self._class_pixels_of_samples() > min_pixels  # (N, C)
        holders = shown.sum(axis=0)
        if not holders.any():
            raise UserError(
                f"no sample of {self.uri!r} has more than {min_pixels} pixels of any class. Lower the limit."
            )
        logits = np.where(holders > 0, (1 - self.class_frequencies()) / temperature, -np.inf)
        chance = np.exp(logits - logits.max())
        parts_C = chance / chance.sum() / np.maximum(holders, 1)
        return np.asarray(shown @ parts_C, np.float64), np.asarray(parts_C, np.float64)


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows that `Dataset.read_window` gave, in the window's order; bytes are views into the table.

    Read with frames before, a row has the earlier one as ``before``, which has its own, as far as they were read.
    """
    names = [name for name in table.column_names if name not in ("place", "id", "before")]
    place = table["place"].to_numpy()
    turn = np.argsort(place, kind="stable")
    made = ({name: _value(table[name][int(row)]) for name in names} for row in turn)
    if "before" not in table.column_names:
        yield from made
        return
    rows = list(made)
    by_id = dict(zip(table["id"].to_numpy()[turn].tolist(), rows, strict=True))
    for row, before in zip(rows, table["before"].to_numpy()[turn].tolist(), strict=True):
        row["before"] = by_id.get(before)
    yield from rows[int((place < 0).sum()) :]


def _value(scalar: pa.Scalar) -> Any:
    if isinstance(scalar, pa.BinaryScalar) and not isinstance(scalar, pa.StringScalar) and scalar.is_valid:
        return memoryview(scalar.as_buffer()).cast("B")
    return scalar.as_py()


def read_windows(
    positions: Mapping[str, NDArray[np.int64]],
    dataset: Dataset,
    windows: Sequence[Window],
    columns: Sequence[str],
    num_frames: int = 1,
) -> Iterator[pa.Table]:
    """What a Ray Data task does: the windows at ``positions["id"]``, one table each."""
    for position in positions["id"]:
        yield dataset.read_window(windows[int(position)], columns, num_frames)


def open_dataset(uri: str, columns: Sequence[str] = ()) -> Dataset:
    """The data set at a URI; ``streets://...`` is rendered once into the cache folder.

    Args:
        uri: shard folder, or ``streets://STYLE``.
        columns: folders that relabel phases wrote beside it; the last one that holds a column counts. Optical flow
            that `distuda prepare --flow` wrote inside the shard folder is there before all of them.

    Raises:
        UserError: a folder is missing, incomplete, no shard folder or of other data; the message says what to run.
    """
    where = _rendered(uri) if uri.startswith(STREETS) else uri
    manifest = read_manifest(where)
    flow = storage.join(where, FLOW)
    folders = [flow, *columns] if storage.exists(storage.join(flow, COLUMNS)) else columns
    return Dataset(where, manifest, tuple(open_columns(folder, manifest.content_hash) for folder in folders))


def cache_folder() -> Path:
    """Where rendered data sets are kept: ``$DISTUDA_CACHE``, else ``~/.cache/distuda``."""
    return Path(os.environ.get("DISTUDA_CACHE") or "~/.cache/distuda").expanduser()


def _rendered(uri: str) -> str:
    """Render streets into the cache unless they are there; a second process waits for the first."""
    from distuda.data import streets

    spec = streets.parse_uri(uri)
    name = hashlib.sha256(f"{_renderer_version()}|{spec}".encode()).hexdigest()[:20]
    folder = cache_folder() / f"streets-{spec.style}-{spec.split}-{name}"
    if is_complete(str(folder)):
        return str(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system when the process ends, however it ends
        if not is_complete(str(folder)):
            storage.remove(str(folder))  # the remains of a process that was killed while rendering
            total, console = spec.num * spec.frames, Console(stderr=True)
            samples = track(streets.samples(spec), f"rendering {uri}", total, console=console, transient=True)
            write_shards(samples, str(folder), CLASS_TABLES["streets11"])
    return str(folder)


def _renderer_version() -> str:
    """Hash of the renderer's own source, so that a change to it never meets pictures of an older one."""
    package = files("distuda.data.streets")
    sources = sorted((entry for entry in package.iterdir() if entry.name.endswith(".py")), key=lambda entry: entry.name)
    return hashlib.sha256(b"".join(entry.read_bytes() for entry in sources)).hexdigest()


def _require_same_rows(uri: str, keys: pa.ChunkedArray, beside: str, theirs: pa.ChunkedArray) -> None:
    """Refuse columns in another order than the samples: they may have been written by hand."""
    if keys.equals(theirs):
        return
    here, there = keys.to_pylist(), theirs.to_pylist()
    row = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there)))
    names = [repr(rows[row]) if row < len(rows) else "no more" for rows in (here, there)]
    raise UserError(
        f"the columns at {beside!r} are not in the order of {uri!r}: row {row} of a row group is {names[1]}, the "
        f"sample there {names[0]}. Write each row group's samples in their order, all of them."
    )
