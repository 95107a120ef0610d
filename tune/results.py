"""What a sweep found: which configuration is chosen and by what, as a table, as a recipe, as columns."""

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from distuda import storage
from distuda.plan import Phase
from distuda.plan import to_yaml as phases_to_yaml
from distuda.recipe import Recipe
from distuda.recipe import to_yaml as recipe_to_yaml
from tune.records import Record, Records
from tune.trial import TARGET_MIOU

ORACLES = ("miou", "accuracy", "vpq")
"""Scores of a row that look at target labels: nobody who adapts without labels could choose by them."""


def is_oracle(name: str) -> bool:
    """Whether a score looks at target labels."""
    return name == TARGET_MIOU or name in ORACLES or name.startswith("vpq_")


def label_of(name: str) -> str:
    """A score's name as every output shows it: those that look at target labels are called so."""
    name = "target_miou" if name == "miou" else name
    return f"{name} (oracle)" if is_oracle(name) else name


@dataclass
class Found:
    """One configuration with all its seeds done.

    Attributes:
        number: of the configuration.
        records: its trials.
        scores: means over seeds.
        rank: its place by what the sweep chooses by, from 1; of several scores the mean of its places.
    """

    number: int
    records: list[Record]
    scores: dict[str, float]
    rank: float = 0.0

    def score(self, name: str) -> float:
        """A score by the name that the user gave it."""
        return self.scores["miou" if name == TARGET_MIOU else name]


def ranking(records: Records, choose: Sequence[str], seeds: int) -> list[Found]:
    """Configurations by their mean place over the chosen scores, the best first; all scores are higher-is-better.

    Those that the scheduler ended early count only where none was trained to its end: scores of different steps do
    not compare.
    """
    for status in ("finished", "stopped"):
        groups: dict[int, list[Record]] = {}
        for record in records:
            if record.status == status:
                groups.setdefault(record.number, []).append(record)
        found = [_mean(number, group) for number, group in groups.items() if len(group) == seeds]
        names = ["miou" if name == TARGET_MIOU else name for name in choose]
        found = [one for one in found if all(name in one.scores for name in names)]
        if found:
            return by_mean_place(found, names)
    return []


def _mean(number: int, group: list[Record]) -> Found:
    names = [name for name in group[0].scores if all(name in record.scores for record in group)]
    return Found(number, group, {name: statistics.fmean(record.scores[name] for record in group) for name in names})


def by_mean_place(found: Sequence[Found], names: Sequence[str]) -> list[Found]:
    """Give each its mean place over the scores of these names, equal values sharing the better one; the best first."""
    for one in found:
        places = [1 + sum(other.scores[name] > one.scores[name] for other in found) for name in names]
        one.rank = statistics.fmean(places)
    return sorted(found, key=lambda one: (one.rank, -one.scores[names[0]], one.number))


def best_yaml(phases: Sequence[Phase], by: Sequence[str], sweep: str) -> str:
    """The chosen configuration as a recipe that `distuda train` takes as it is; its run folder is left to the user."""
    first = phases[0].recipe
    if isinstance(first, Recipe) and not phases[0].name:
        text = recipe_to_yaml(first.model_copy(update={"out": None, "resume": False}))
    else:
        values: Any = OmegaConf.to_container(OmegaConf.create(phases_to_yaml(phases)))
        values.pop("out")
        text = OmegaConf.to_yaml(OmegaConf.create(values))
    names = ", ".join(map(label_of, by))
    return f"# The best configuration of {sweep} by {names}{', mean rank' if len(by) > 1 else ''}.\n{text}"


def to_parquet(records: Records, ranked: Sequence[Found]) -> bytes:
    """One row a trial: its place, status, configuration (a column a path), scores (a column each), cost and folder."""
    place = {record.id: i for i, one in enumerate(ranked, 1) for record in one.records}
    rows = list(records)
    paths = list(dict.fromkeys(path for record in rows for path in record.configuration))
    names = list(dict.fromkeys(name for record in rows for name in record.scores))
    columns: dict[str, list[Any]] = {
        "trial": [record.id for record in rows],
        "configuration": [record.number for record in rows],
        "repeat": [record.repeat for record in rows],
        "status": [record.status for record in rows],
        "reason": [record.reason or None for record in rows],
        "place": [place.get(record.id) for record in rows],
        "step": [record.step for record in rows],
        "seconds": [record.seconds for record in rows],
        "folder": [records.folder(record.id) for record in rows],
    }
    columns |= {path: _alike([record.configuration.get(path) for record in rows]) for path in paths}
    columns |= {label_of(name): [record.scores.get(name) for record in rows] for name in names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _alike(values: list[Any]) -> list[Any]:
    """Values of one type: numbers, or words."""
    given = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in given) or all(isinstance(value, str) for value in given):
        return values
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        return [None if value is None else float(value) for value in values]
    return [None if value is None else json.dumps(value) for value in values]


def write_results(
    records: Records, ranked: Sequence[Found], phases: Sequence[Phase] | None, by: Sequence[str]
) -> dict[str, str]:
    """Write the files of a sweep's results; gives their URIs by name.

    Args:
        records: all trials.
        ranked: `ranking`.
        phases: of the best configuration; None where there is none.
        by: what it was chosen by.
    """
    files: Mapping[str, bytes] = {"results.parquet": to_parquet(records, ranked)}
    if phases:
        files = {**files, "best.yaml": best_yaml(phases, by, records.out).encode()}
    for name, content in files.items():
        storage.write_bytes(storage.join(records.out, name), content)
    return {name: storage.join(records.out, name) for name in files}
