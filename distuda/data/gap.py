"""How far two data sets are apart in what can be counted: class shares and image statistics."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distuda.data.image_stats import STATISTICS
from distuda.data.inspect import Facts, Inspection


@dataclass(frozen=True)
class Gap:
    """What differs between a first and a second data set, and what cannot be said.

    Attributes:
        classes: names of the classes of both, the first's order and then what only the second has.
        class_distance: share of pixels that would have to change class to turn one into the other, [0, 1] (total
            variation); None unless both have labels and the same classes.
        shifts: per name of `STATISTICS` the difference of the means, second minus first, in standard deviations
            pooled over both (Cohen's d); None where nothing varies or fewer than two images were measured.
        shared: samples that lie in both, equal in image and label.
        notes: what cannot be compared and why, and other things to know; sentences.
    """

    classes: list[str]
    class_distance: float | None
    shifts: dict[str, float | None]
    shared: int
    notes: list[str]


def compare(first: Inspection, second: Inspection) -> Gap:
    """The gap between two inspected data sets."""
    a, b = first.facts, second.facts
    classes = [*a.table.classes, *(name for name in b.table.classes if name not in a.table.classes)]
    shared = _shared(a, b)
    return Gap(classes, _class_distance(a, b), _shifts(first.values, second.values), shared, _notes(a, b, shared))


def by_name(facts: Facts, shares: NDArray[np.float64] | None, name: str) -> float | None:
    """The share of a class called so; None where the table has no such class or nothing is known."""
    if shares is None or name not in facts.table.classes:
        return None
    return float(shares[facts.table.index(name)])


def ratio(first: float | None, second: float | None) -> float | None:
    """Second over first; None where one is unknown or the first is 0."""
    return second / first if first and second is not None else None


def _class_distance(a: Facts, b: Facts) -> float | None:
    if a.shares.pixels is None or b.shares.pixels is None or set(a.table.classes) != set(b.table.classes):
        return None
    there = [by_name(b, b.shares.pixels, name) or 0.0 for name in a.table.classes]
    return float(np.abs(a.shares.pixels - np.array(there)).sum() / 2)


def _shifts(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, float | None]:
    if min(len(first), len(second)) < 2:
        return dict.fromkeys(STATISTICS)
    pooled = np.sqrt((first.var(axis=0, ddof=1) + second.var(axis=0, ddof=1)) / 2)
    means = second.mean(axis=0) - first.mean(axis=0)
    shifts = [float(m / s) if s > 1e-6 else math.nan for m, s in zip(means, pooled, strict=True)]
    return {name: d if math.isfinite(d) else None for name, d in zip(STATISTICS, shifts, strict=True)}


def _shared(a: Facts, b: Facts) -> int:
    digests = [set(facts.dataset.index["digest"].to_pylist()) for facts in (a, b)]
    return len(digests[0] & digests[1])


def _notes(a: Facts, b: Facts, shared: int) -> list[str]:
    notes = [
        f"{facts.name} has no labels: its class shares are unknown"
        + (", its tags say which classes its images show." if facts.num_tagged else " and cannot be compared.")
        for facts in (a, b)
        if not facts.num_labelled
    ]
    notes += _table_notes(a, b)
    if shared:
        lie = "sample lies" if shared == 1 else "samples lie"
        notes.append(f"{shared} {lie} in both sets, equal in image and label: do not train on one and score the other.")
    return notes


def _table_notes(a: Facts, b: Facts) -> list[str]:
    ours, theirs = a.table.classes, b.table.classes
    if ours == theirs:
        return []
    common = [name for name in ours if name in theirs]
    if set(ours) == set(theirs):
        return ["The class tables hold the same classes in another order; they are matched by name."]
    only = [
        f"only in {facts.name}: {', '.join(name for name in facts.table.classes if name not in common)}"
        for facts in (a, b)
        if set(facts.table.classes) - set(common)
    ]
    have = "class has" if len(common) == 1 else "classes have"
    matched = f"{len(common) or 'no'} {have} the same name in both"
    return [
        f"The class tables differ ({a.table.name}, {b.table.name}): {matched}; {'; '.join(only)}. "
        "Only those are compared; shares are of each set's own pixels, and a name may cover other things in each."
    ]
