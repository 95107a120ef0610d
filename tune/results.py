"""What a sweep found: which configuration is chosen and by what, as a table, as a recipe, as columns."""

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from distuda import storage
from distuda.metrics.label_free import ScoreName
from distuda.plan import Phase
from distuda.plan import to_yaml as phases_to_yaml
from distuda.recipe import Recipe
from distuda.recipe import to_yaml as recipe_to_yaml
from tune.records import Record, Records
from tune.trial import TARGET_MIOU, key_of

AGGREGATE = "aggregate"
"""The final choice by the mean place over `AGGREGATED`."""

AGGREGATED: tuple[ScoreName, ...] = ("information_maximisation", "augmentation_consistency")
"""What the aggregate is made of: whether predictions are sure and diverse, and whether they survive a change that means
nothing, class by class. Entropy beside them would count sureness twice; the other scores, in a mean place, mislead more
than they warn. How far each of them can be trusted: benchmarks/label_free_selection.md."""

DOUBT = 0.7
"""`agreement` below which a choice without labels is in doubt: of the sweeps in benchmarks/label_free_selection.md
those from 0.71 on chose well and the one at 0.57 did not."""

APART = 0.5
"""Lowest information maximisation as a share of the highest, from which on trials are too alike for `DOUBT`: all scores
order those that learnt little behind the others, and such as have learnt the same in any order."""

OF_CLIPS = "temporal_consistency"
"""The label-free score that clips have without being asked."""

ORACLES = ("miou", "accuracy", "vpq")
"""Scores of a row that look at target labels: nobody who adapts without labels could choose by them."""


def is_oracle(name: str) -> bool:
    """Whether a score looks at target labels."""
    return name == TARGET_MIOU or name in ORACLES or name.startswith(("vpq_", "miou_"))


def label_of(name: str) -> str:
    """A score's name as every output shows it: those that look at target labels are called so."""
    name = "target_miou" if name == "miou" else name
    return f"{name} (oracle)" if is_oracle(name) else name


@dataclass
class Found:
    """One configuration that can be chosen.

    Attributes:
        number: of the configuration.
        records: its trials that count.
        scores: means over seeds.
        rank: its place by what the sweep chooses by, from 1; of several scores the mean of its places.
    """

    number: int
    records: list[Record]
    scores: dict[str, float]
    rank: float = 0.0

    def score(self, name: str) -> float:
        """A score by the name that the user gave it."""
        return self.scores[key_of(name)]


def ranking(records: Records, choose: Sequence[str], objective: str, seeds: int) -> list[Found]:
    """Configurations by their mean place over the chosen scores, the best first; all scores are higher-is-better.

    Equal mean places, which two scores often give, are decided by the objective.

    Those whose every seed was trained to its end; where there are none, by the seeds that were; where none was, the
    trials that the scheduler ended last: scores of different steps do not compare.
    """
    whole, parts = _finished(records, seeds)
    names = [key_of(name) for name in choose]
    for groups in (whole, parts, _stopped_last(records)):
        if found := _with_all(groups, names):
            return by_mean_place(found, names, key_of(objective))
    return []


def chosen_by(choose: Sequence[str], objective: str, records: Records) -> list[str]:
    """The scores that decide: those named, or of the aggregate's those that all candidates have, if any."""
    if AGGREGATE not in choose:
        return list(choose)
    finished = [record for record in records if record.status == "finished"]
    candidates = finished or [record for group in _stopped_last(records) for record in group]
    common: list[str] = [name for name in AGGREGATED if all(name in record.scores for record in candidates)]
    return common if candidates and common else [objective]


def worth_keeping(records: Records, choose: Sequence[str], objective: str, seeds: int, keep: int) -> list[str]:
    """Trials whose checkpoints stay: all seeds of the configuration that leads now, then the next best trials."""
    names = [key_of(name) for name in choose]
    stopped = _by_number([record for record in records if record.status == "stopped"])
    best: list[list[Record]] = []
    for groups in (*_finished(records, seeds), stopped):  # in the order in which `ranking` looks at them
        best += [one.records for one in by_mean_place(_with_all(groups, names), names, key_of(objective))]
    trials = [record.id for group in best for record in group]
    return trials[: max(keep, len(best[0]))] if best else []


def may_lead(records: Records, choose: Sequence[str], seeds: int) -> list[str]:
    """Trials of finished configurations that no other, with its seeds done as well, beats by every score.

    Places depend on who else there is, so trials to come can put any of these first, and none but these.
    """
    names = [key_of(name) for name in choose]
    trials = []
    for found in (_with_all(groups, names) for groups in _finished(records, seeds)):
        unbeaten = [one for one in found if not any(_beats(other, one, names) for other in found)]
        trials += [record.id for one in unbeaten for record in one.records]
    return trials


def _beats(one: Found, other: Found, names: Sequence[str]) -> bool:
    pairs = [(one.scores[name], other.scores[name]) for name in names]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _finished(records: Records, seeds: int) -> tuple[list[list[Record]], list[list[Record]]]:
    """Finished trials of each configuration: of those with as many as there are seeds, and of the others."""
    groups = _by_number([record for record in records if record.status == "finished"])
    return [g for g in groups if len(g) == seeds], [g for g in groups if len(g) != seeds]


def _with_all(groups: Sequence[list[Record]], names: Sequence[str]) -> list[Found]:
    """Means of those that have all of these scores."""
    return [one for one in map(_mean, groups) if all(name in one.scores for name in names)]


def _by_number(records: Sequence[Record]) -> list[list[Record]]:
    """Trials of each configuration."""
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record.number, []).append(record)
    return list(groups.values())


def _stopped_last(records: Records) -> list[list[Record]]:
    """Of the trials that the scheduler ended those that were trained longest, each configuration's together."""
    stopped = [record for record in records if record.status == "stopped"]
    last = max((record.step for record in stopped), default=0)
    return _by_number([record for record in stopped if record.step == last])


def _mean(group: list[Record]) -> Found:
    names = [name for name in group[0].scores if all(name in record.scores for record in group)]
    means = {name: statistics.fmean(record.scores[name] for record in group) for name in names}
    return Found(group[0].number, group, means)


def by_mean_place(found: Sequence[Found], names: Sequence[str], decider: str) -> list[Found]:
    """Give each its mean place over the scores of these names, equal values sharing the better one; the best first.

    Between equal mean places the score ``decider`` decides.
    """
    places = [_places(found, name) for name in names]
    for number, one in enumerate(found):
        one.rank = statistics.fmean(by_one[number] for by_one in places)
    return sorted(found, key=lambda one: (one.rank, -one.scores.get(decider, -math.inf), one.number))


def agreement(found: Sequence[Found]) -> float | None:
    """Least rank correlation between entropy and the scores of `AGGREGATED` over configurations, in [-1, 1].

    Sure, diverse and stable predictions are signs of right ones only as long as they come together. Where trials that
    are surer are not more diverse and stable, some of these signs mislead, and nobody knows which. None for fewer than
    eight configurations, or where one of the scores is missing or the same for all.
    """
    names = ("entropy", *AGGREGATED)
    if len(found) < 8 or not all(name in one.scores for one in found for name in names):
        return None
    places = np.array([_places(found, name) for name in names], dtype=float)
    return float(np.corrcoef(places).min()) if places.std(axis=1).all() else None


def doubt(found: Sequence[Found]) -> str:
    """What speaks against a choice without labels, in a sentence; nothing where the scores agree."""
    value = agreement(found)
    sure_and_diverse = [one.scores.get(AGGREGATED[0], 0.0) for one in found]
    if value is None or value >= DOUBT or min(sure_and_diverse) > APART * max(sure_and_diverse):
        return ""
    return (
        f"entropy, {' and '.join(AGGREGATED)} order the trials differently (least rank correlation {value:.2f}; over "
        f"{DOUBT} where such choices were measured to be good), so the best configuration may be another. Look at "
        "pictures of several by `distuda report`, or label a few target images."
    )


def _places(found: Sequence[Found], name: str) -> list[int]:
    """Of each by one score, from 1; equal values share the better one."""
    return [1 + sum(other.scores[name] > one.scores[name] for other in found) for one in found]


def best_yaml(phases: Sequence[Phase], best: Found, by: Sequence[str], objective: str, sweep: str) -> str:
    """The chosen configuration as a recipe that `distuda train` takes as it is; its run folder is left to the user."""
    first = phases[0].recipe
    if isinstance(first, Recipe) and not phases[0].name:
        text = recipe_to_yaml(first.model_copy(update={"out": None, "resume": False}))
    else:
        values: Any = OmegaConf.to_container(OmegaConf.create(phases_to_yaml(phases)))
        values.pop("out")
        text = OmegaConf.to_yaml(OmegaConf.create(values))
    said = [f"The best configuration of {sweep} {how_chosen(by, objective)}."]
    if best.records[0].history:
        said += [
            f"Its score belongs to the weights in trials/{best.records[0].id}, which other configurations trained",
            "before this one (history in results.parquet); a training by this recipe alone is another one.",
        ]
    return "".join(f"# {line}\n" for line in said) + text


def how_chosen(by: Sequence[str], objective: str) -> str:
    """By what a sweep chose and, where that differs, searched, in words; an oracle among them is called so."""
    chosen = f"by {', '.join(map(label_of, by))}{', mean place' if len(by) > 1 else ''}"
    return chosen if list(by) == [objective] else f"{chosen}, searched by {label_of(objective)}"


def to_parquet(records: Records, ranked: Sequence[Found], by: Sequence[str], objective: str) -> bytes:
    """One row a trial: its place and by what, status, configuration and scores (a column each), cost and folder."""
    place = {record.id: i for i, one in enumerate(ranked, 1) for record in one.records}
    rows = list(records)
    paths = list(dict.fromkeys(path for record in rows for path in record.configuration))
    names = list(dict.fromkeys(name for record in rows for name in record.scores))
    columns: dict[str, Any] = {
        "trial": [record.id for record in rows],
        "configuration": [record.number for record in rows],
        "repeat": [record.repeat for record in rows],
        "status": [record.status for record in rows],
        "reason": pa.array([record.reason or None for record in rows], pa.string()),
        "place": pa.array([place.get(record.id) for record in rows], pa.int64()),
        "chosen_by": [how_chosen(by, objective) for _ in rows],
        "step": [record.step for record in rows],
        "seconds": [record.seconds for record in rows],
        "folder": [records.folder(record.id) for record in rows],
        "history": pa.array([json.dumps(record.history) if record.history else None for record in rows], pa.string()),
    }
    columns |= {path: _alike([record.configuration.get(path) for record in rows]) for path in paths}
    columns |= {label_of(name): [record.scores.get(name) for record in rows] for name in names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _alike(values: list[Any]) -> Any:
    """Values of one type: truth values, whole numbers, numbers, or words."""
    given = [value for value in values if value is not None]
    if not given:
        return pa.nulls(len(values), pa.string())
    if any(all(type(value) is kind for value in given) for kind in (bool, str, int)):
        return values
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        return [None if value is None else float(value) for value in values]
    return [None if value is None else json.dumps(value) for value in values]


def write_results(
    records: Records, ranked: Sequence[Found], phases: Sequence[Phase] | None, by: Sequence[str], objective: str
) -> dict[str, str]:
    """Write the files of a sweep's results; gives their URIs by name.

    Args:
        records: all trials.
        ranked: `ranking`.
        phases: of the best configuration; None where there is none.
        by: what it was chosen by.
        objective: what was searched by.
    """
    files: Mapping[str, bytes] = {"results.parquet": to_parquet(records, ranked, by, objective)}
    if phases:
        files = {**files, "best.yaml": best_yaml(phases, ranked[0], by, objective, records.out).encode()}
    for name, content in files.items():
        storage.write_bytes(storage.join(records.out, name), content)
    return {name: storage.join(records.out, name) for name in files}
