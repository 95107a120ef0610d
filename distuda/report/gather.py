"""What a report prints, read from run folders: recipes, logs, scores, environment and pictures."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.progress import track

from distuda import storage
from distuda.data.batch import Batch
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.reader import iterate_once
from distuda.engine.run import Run
from distuda.errors import UserError
from distuda.models.segmenter import Segmenter
from distuda.report.panels import Panel, choose, make_panels, spread
from distuda.report.player import Clip, choose_runs, make_clip

SOURCE_ONLY = "source-only"
SEARCHED_IMAGES = 40
"""Images compared to find the largest gain and the largest loss; evenly spread over the evaluation set."""


@dataclass
class Side:
    """What the report knows of one run.

    Attributes:
        name: how it is called in tables and figures.
        run: the opened run.
        rows: of metrics.jsonl.
        evaluation: scores of the checkpoint that is reported; empty when there is none.
        environment: versions and hardware.
    """

    name: str
    run: Run
    rows: list[dict[str, Any]]
    evaluation: dict[str, Any]
    environment: dict[str, Any]

    @property
    def method(self) -> str:
        """The method's name for readers."""
        return str(self.run.recipe.method.name).replace("_", "-")

    @property
    def data_uri(self) -> str:
        """Where the evaluated images lie."""
        recipe = self.run.recipe
        return str(self.evaluation.get("uri") or recipe.evaluation.uri or recipe.target.uri or recipe.source.uri)

    @property
    def miou(self) -> float | None:
        """The mIoU in [0, 1]; None without labels."""
        value = self.evaluation.get("miou")
        return value if value is not None and math.isfinite(value) else None


@dataclass
class ReportData:
    """Everything `render` prints.

    Attributes:
        run, baseline: the reported run, and the one it is measured against, if any.
        which: ``last`` or ``best``.
        panels: pictures in reading order.
        clips: to play; empty for still images.
        notes: what a reader must know before comparing the numbers.
        extras: further facts, name -> text.
    """

    run: Side
    baseline: Side | None = None
    which: str = "last"
    panels: list[Panel] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sides(self) -> list[Side]:
        """Baseline first, as in every table."""
        return [side for side in (self.baseline, self.run) if side]


def gather(
    run: Run, baseline: Run | None, *, which: str = "last", num_panels: int = 6, extras: Mapping[str, Any] | None = None
) -> ReportData:
    """Read logs and scores of opened runs and make the pictures; arguments as in `write_report`."""
    if baseline and baseline.table.classes != run.table.classes:
        raise UserError(
            f"{baseline.uri!r} has class table {baseline.table.name!r} {list(baseline.table.classes)}, {run.uri!r} has "
            f"{run.table.name!r} {list(run.table.classes)}. Choose a baseline that was trained with the same classes."
        )
    data = ReportData(_side(run, which), _side(baseline, which) if baseline else None, which, extras=extras or {})
    _name(data)
    data.notes = list(_warnings(data))
    if num_panels:
        try:
            dataset = open_dataset(data.run.data_uri)
            # without a score the target's own labels are not looked at
            scored = data.run.miou is not None and dataset.manifest.num_labelled > 0
            predictors = _predictors(data)
            data.panels = _panels(data, dataset, predictors, num_panels, scored=scored)
            data.clips = _clips(data, dataset, predictors, scored=scored) if dataset.moving else []
        except UserError as error:  # the numbers stand without pictures; data may have moved since the run
            data.notes.append(f"No pictures: {error}")
    return data


def _side(run: Run, which: str) -> Side:
    rows = run.rows()
    evaluation = _read_json(storage.join(run.uri, f"evaluation-{which}.json"))
    if not evaluation:
        evaluation = next((row for row in rows if row["kind"] == "evaluation" and row["step"] == run.step), {})
    return Side("adapted", run, rows, evaluation, _read_json(storage.join(run.uri, "environment.json")))


def _name(data: ReportData) -> None:
    """Call both runs by what they are, and never alike."""
    if data.run.method == SOURCE_ONLY:
        data.run.name = SOURCE_ONLY
    if data.baseline:
        plain = data.baseline.method == SOURCE_ONLY != data.run.name
        data.baseline.name = SOURCE_ONLY if plain else f"baseline ({data.baseline.method})"


def _read_json(uri: str) -> dict[str, Any]:
    return dict(json.loads(storage.read_bytes(uri))) if storage.exists(uri) else {}


def _warnings(data: ReportData) -> Iterator[str]:
    """What makes the numbers weaker or not comparable."""
    if not data.run.evaluation:
        yield "This checkpoint has not been evaluated yet; `distuda evaluate` does it."
    for side in data.sides:
        if data.which == "best" and side.run.recipe.checkpoint.best_by == "target_miou":
            yield f"The {side.name} checkpoint was chosen by target labels, so its mIoU is an optimistic one."
    if data.baseline and data.baseline.evaluation and data.run.evaluation:
        for key, what in (("uri", "data"), ("num_images", "number of images"), ("label_sizes", "label size")):
            given = [side.evaluation.get(key) for side in data.sides]
            if given[0] != given[1] and None not in given:
                yield f"The runs were evaluated with a different {what}, {given[0]} and {given[1]}: not comparable."


def _predictors(data: ReportData) -> dict[str, Segmenter]:
    wants_cuda = data.run.run.recipe.device != "cpu" and torch.cuda.is_available()  # the run may be from elsewhere
    device = torch.device("cuda" if wants_cuda else "cpu")
    return {side.name: side.run.predictor.to(device).eval() for side in data.sides}


def _panels(
    data: ReportData, dataset: Dataset, predictors: Mapping[str, Segmenter], count: int, *, scored: bool
) -> list[Panel]:
    total = min(len(dataset), data.run.evaluation.get("num_images", len(dataset)))
    wanted = spread(total, max(count, SEARCHED_IMAGES) if scored else count)
    # each picture alone: of clips, no frame before is read and no flow computed
    samples: Iterable[Batch] = iterate_once(dataset, size=data.run.run.recipe.evaluation.size, moving=False)
    samples = track(samples, description="report pictures", total=max(wanted, default=0) + 1, transient=True)
    if not scored:
        samples = (replace(batch, label_BHW=None) for batch in samples)
    return choose(make_panels(samples, set(wanted), predictors, data.run.run.table), count)


def _clips(data: ReportData, dataset: Dataset, predictors: Mapping[str, Segmenter], *, scored: bool) -> list[Clip]:
    runs, run = choose_runs(dataset, scored=scored), data.run.run
    size = run.recipe.evaluation.size
    made = (make_clip(dataset, ids, predictors, run.table, size=size, scored=scored) for ids in runs)
    return list(track(made, description="report clips", total=len(runs), transient=True))
