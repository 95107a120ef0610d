"""Which sample comes when: a pure function of (sizes, seed, domain, rank, world), without I/O and without an end.

The samples of a data set repeat for ever. Epoch e is a permutation of the N samples (or, with weights, a multiset of N
drawn anew each epoch) and occupies the ids ``e * N ... (e + 1) * N - 1``: an id says once and for all which sample in
which epoch is meant, and every random draw about it follows from the id alone, not from the rank that meets it.

An epoch is dealt so: row groups are permuted, the permuted rows are cut into ``world`` chunks of equal length,
and chunk ``(rank + e) % world`` goes to a rank, which reads it in windows of a few row groups and shuffles rows inside
each window. A row group on a cut is read by two ranks, so there may be fewer row groups than ranks. Turning the chunks
by one each epoch keeps the ranks' sample counts within one of each other for ever: with F(j) = floor(j * N / world),
rank r has passed F(r + e) - F(r) samples before epoch e.

What a run has consumed is its *history*, pairs (world, samples a rank). While the world size stays there is one pair.
When it changes, what is left of the open epochs is dealt anew and served first, so each sample of an epoch is still
seen exactly once; that takes index arithmetic over the open epochs only.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distuda.errors import UserError

Ids = NDArray[np.int64]
History = tuple[tuple[int, int], ...]
"""Pairs (world size, samples each rank consumed with it), oldest first."""


@dataclass(frozen=True, eq=False)
class Window:
    """Samples that are read and shuffled together, in the order they are served; four arrays of one length.

    Attributes:
        ids: the samples' ids in the endless sequence of the domain.
        groups: row group of each.
        rows: row within the row group.
        seeds: `draws.sample_seed(seed, domain, id)` of each.
    """

    ids: Ids
    groups: Ids
    rows: Ids
    seeds: Ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Window":
        return Window(self.ids[part], self.groups[part], self.rows[part], self.seeds[part])


@dataclass(frozen=True, eq=False)
class _Start:
    """Where a stretch of constant world size begins: left-over ids first, then whole epochs."""

    rest: Ids
    epoch: int


class Order:
    """One rank's endless sequence over one data set, from where its history ends.

    Args:
        rows_per_group: samples in each row group, all at least 1.
        seed, domain: name the sequence; two domains of one run are independent.
        rank, world: this process among those that share the data set.
        window: row groups that are shuffled together; more mixes better and needs more memory.
        history: what the run has consumed so far.
        weights: (N,) how often to draw each sample (any positive sum); None = each once an epoch.
    """

    def __init__(
        self,
        rows_per_group: Sequence[int],
        *,
        seed: int,
        domain: str,
        rank: int = 0,
        world: int = 1,
        window: int = 4,
        history: Sequence[Sequence[int]] = (),
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        if not len(rows_per_group) or min(rows_per_group) < 1:
            raise UserError("an empty data set has no order. Check that its shards hold samples.")
        if not 0 <= rank < world or window < 1:
            raise UserError(f"rank {rank} of {world} with window {window}: expected 0 <= rank < world and window >= 1.")
        self.seed, self.domain, self.rank, self.world, self.window = seed, domain, rank, world, window
        self.history: History = tuple((int(w), int(n)) for w, n in history)
        self._starts = np.concatenate([[0], np.cumsum(rows_per_group)]).astype(np.int64)
        self.num_samples = int(self._starts[-1])
        self._shares = None if weights is None else _checked_weights(weights, self.num_samples)
        self._base = fold(fold(np.array([seed], np.int64), domain), "order")
        self._epoch = lru_cache(maxsize=2)(self._permuted_epoch)  # neighbours in time ask for the same epoch
        self._start, self._skip = self._replay()

    def windows(self) -> Iterator[Window]:
        """Endless windows of this rank, beginning with the first sample not yet consumed."""
        skip = self._skip
        for chunk in self._chunks(self._start, self.rank, self.world, skip):
            skip = chunk.skip
            for ids in self._cut(chunk.ids):
                if skip >= len(ids):
                    skip -= len(ids)
                    continue
                yield self._describe(ids[skip:])
                skip = 0

    def history_after(self, samples: int) -> History:
        """The history to save once this rank, like all others, has consumed so many samples of `windows`."""
        if self.history and self.history[-1][0] == self.world:
            return (*self.history[:-1], (self.world, self.history[-1][1] + samples))
        return (*self.history, (self.world, samples))

    def locate(self, ids: Ids) -> tuple[Ids, Ids]:
        """(row group, row within it) of each id."""
        sample = np.empty_like(ids)
        for epoch in np.unique(ids // self.num_samples):
            here = ids // self.num_samples == epoch
            sample[here] = self._samples_of(int(epoch))[ids[here] % self.num_samples]
        group = np.searchsorted(self._starts, sample, side="right") - 1
        return group, sample - self._starts[group]

    def _describe(self, ids: Ids) -> Window:
        groups, rows = self.locate(ids)
        return Window(ids, groups, rows, self._seeds(ids))

    def _seeds(self, ids: Ids) -> Ids:
        return fold(fold(np.array([self.seed], np.int64), self.domain), ids)

    def _samples_of(self, epoch: int) -> Ids:
        """(N,) the data set's sample numbers that an epoch draws, ascending; all of them once without weights."""
        if self._shares is None:
            return np.arange(self.num_samples)
        # systematic resampling: sample i comes floor or ceil of N * share times, and always N in total
        seeds = fold(self._base, 2 * epoch)
        mixed = np.argsort(fold(seeds, np.arange(self.num_samples)), kind="stable")
        offset = int(fold(seeds, "offset")[0] & 0xFFFFFFFF) / 2**32
        marks = (np.arange(self.num_samples) + offset) / self.num_samples
        picked = np.searchsorted(np.cumsum(self._shares[mixed]), marks, side="right")
        return np.sort(mixed[np.minimum(picked, self.num_samples - 1)])

    def _permuted_epoch(self, epoch: int) -> Ids:
        """(N,) ids of an epoch with its row groups in random order."""
        bounds = np.searchsorted(self._samples_of(epoch), self._starts)
        keys = fold(fold(self._base, 2 * epoch + 1), np.arange(len(bounds) - 1))
        groups = [np.arange(bounds[g], bounds[g + 1]) for g in np.argsort(keys, kind="stable")]
        return epoch * self.num_samples + np.concatenate(groups)

    def _cut(self, ids: Ids) -> list[Ids]:
        """A chunk as windows: every `window` row groups together, shuffled."""
        groups, _ = self.locate(ids)
        turns = np.diff(ids // self.num_samples) != 0  # left-overs may span two epochs; windows do not
        run = np.concatenate([[0], np.cumsum((np.diff(groups) != 0) | turns)])
        pieces = np.split(ids, np.flatnonzero((np.diff(run // self.window) != 0) | turns) + 1)
        return [piece[np.argsort(fold(self._seeds(piece), "shuffle"), kind="stable")] for piece in pieces]

    def _chunks(self, start: _Start, rank: int, world: int, skip: int) -> Iterator["_Chunk"]:
        """The rank's chunks from the one that holds sample number ``skip`` of the stretch, endless."""
        rest = start.rest[rank * len(start.rest) // world : (rank + 1) * len(start.rest) // world]
        if skip < len(rest):
            yield _Chunk(rest, skip, -1)
        skip = max(0, skip - len(rest))
        turn = self._turn(rank, world, skip)
        skip -= self._passed(rank, world, turn)
        while True:
            place = (rank + turn) % world
            low, high = (p * self.num_samples // world for p in (place, place + 1))
            if high > low:
                yield _Chunk(self._epoch(start.epoch + turn)[low:high], skip, turn)
                skip = 0
            turn += 1

    def _passed(self, rank: int, world: int, turn: int) -> int:
        """Samples of whole epochs that a rank has passed before its turn-th epoch."""
        return (rank + turn) * self.num_samples // world - rank * self.num_samples // world

    def _turn(self, rank: int, world: int, position: int) -> int:
        """The number of the epoch in which a rank stands after so many samples of whole epochs."""
        turn = position * world // self.num_samples
        while self._passed(rank, world, turn) > position:
            turn -= 1
        while self._passed(rank, world, turn + 1) <= position:
            turn += 1
        return turn

    def _replay(self) -> tuple[_Start, int]:
        """Fold the history: where the current stretch began and how many samples of it are consumed."""
        start = _Start(np.empty(0, np.int64), 0)
        past = self.history
        if past and past[-1][0] == self.world:
            past, skip = past[:-1], past[-1][1]
        else:
            skip = 0
        for world, samples in past:
            start = self._after(start, world, samples)
        return start, skip

    def _after(self, start: _Start, world: int, samples: int) -> _Start:
        """The start of the next stretch when each of ``world`` ranks consumed so many samples of this one."""
        lengths = [(r + 1) * len(start.rest) // world - r * len(start.rest) // world for r in range(world)]
        turns = [self._turn(r, world, samples - n - 1) + 1 if samples > n else 0 for r, n in enumerate(lengths)]
        end = max(turns)  # epochs from here on are untouched on every rank
        left = [ids for rank in range(world) for ids in self._left(start, rank, world, samples, end)]
        remaining = np.concatenate([*left, np.empty(0, np.int64)])
        epochs = [self._epoch(int(e)) for e in np.unique(remaining // self.num_samples)]
        rest = [ids[np.isin(ids, remaining)] for ids in epochs]  # keeps rows of one row group together
        return _Start(np.concatenate([*rest, np.empty(0, np.int64)]), start.epoch + end)

    def _left(self, start: _Start, rank: int, world: int, samples: int, end: int) -> Iterator[Ids]:
        """What a rank has not consumed of the left-overs and of the stretch's first ``end`` epochs."""
        for chunk in self._chunks(start, rank, world, samples):
            if chunk.turn >= end:
                return
            yield np.concatenate(self._cut(chunk.ids))[chunk.skip :]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """A rank's share of the left-overs (turn -1) or of an epoch; its first ``skip`` served samples are consumed."""

    ids: Ids
    skip: int
    turn: int


def fold(seeds: Ids, name: str | int | Ids) -> Ids:
    """`draws.fold` in NumPy, so that the order needs no torch; ``name`` may also be an array of salts."""
    salt = zlib.crc32(name.encode()) if isinstance(name, str) else name
    with np.errstate(over="ignore"):
        odd = np.asarray(salt, np.int64).astype(np.uint64) * np.uint64(2) + np.uint64(1)
        return _mix(_mix(seeds.astype(np.uint64) + odd) + np.uint64(0x9E3779B97F4A7C15)).astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _checked_weights(weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    shares = np.asarray(weights, np.float64)
    if shares.shape != (count,) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise UserError(f"weights must be {count} finite numbers of at least 0 with a positive sum, one a sample.")
    return np.asarray(shares / shares.sum(), np.float64)
