"""What a recipe of phases has left in its folders so far: networks, columns, scores, and maps of a few images."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from distuda import storage
from distuda.data.clips import FLOW
from distuda.data.columns import COLUMNS, CONTESTED, groups_done, open_columns, read_group
from distuda.data.dataset import STREETS, Dataset, open_dataset, rows_of
from distuda.data.decode import SampleError, decode_image, decode_label, resize_image, resize_label
from distuda.data.labels import IGNORE
from distuda.data.survey import accessible, spread
from distuda.engine.checkpoint import Checkpoints
from distuda.engine.run import final_loss, open_run, read_rows
from distuda.errors import UserError, nearest
from distuda.plan import PHASES, load_phases, word
from distuda.recipe import Domain, Recipe, RelabelRecipe, parse_relabel
from distuda.relabel.job import RELABEL, read_relabel
from distuda.relabel.predict import Predict
from distuda.relabel.relabeller import Task

PICTURE_WIDTH = 200
"""Width of a picture, pixels; smaller images keep their size."""

_RECIPE = "recipe.yaml"
BEFORE = "before"
"""Name under which `Seen.maps` holds what was mined before an erase phase."""

Map = NDArray[np.uint8]


@dataclass(frozen=True)
class Stage:
    """One phase as it lies in its folder.

    Attributes:
        name: of the phase.
        recipe: what it does; ``out`` is its folder.
        done, total: optimiser steps, or row groups; nothing was begun where ``done`` is 0.
        usable: whether there is a network, or columns of all images.
        loss: mean training loss of the last quarter of its log; None unless it has finished training.
        scores: of its network or labels, as `engine.evaluate` or `relabel.score` wrote them; empty without.
    """

    name: str
    recipe: Recipe | RelabelRecipe
    done: int
    total: int
    usable: bool
    loss: float | None = None
    scores: dict[str, Any] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """Its folder."""
        return str(self.recipe.out)

    @property
    def kind(self) -> str:
        """Name of its method, or of what it relabels by."""
        return str(self.recipe.relabel.name if isinstance(self.recipe, RelabelRecipe) else self.recipe.method.name)

    @property
    def relabels(self) -> bool:
        """Whether it writes columns; else it trains."""
        return isinstance(self.recipe, RelabelRecipe)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= self.total

    @property
    def domain(self) -> Domain:
        """The samples it is about: those it relabels, those it adapts to, or else the labelled ones."""
        if isinstance(self.recipe, RelabelRecipe):
            domain: Domain = getattr(self.recipe, self.recipe.relabel.domain)
            return domain
        return self.recipe.target if self.recipe.target.uri else self.recipe.source


@dataclass(frozen=True)
class Shares:
    """Of the pixels of the data, in [0, 1]; None where a phase says nothing of it.

    Attributes:
        labelled: over the whole set.
        mined, contested: claimed by one class, by several; over the measured images.
    """

    labelled: float | None = None
    mined: float | None = None
    contested: float | None = None


@dataclass
class Seen:
    """One image and what the phases made of it, all of `PICTURE_WIDTH`.

    Attributes:
        key: of the sample.
        image: uint8 RGB (H, W, 3).
        tags: train ids, None without.
        truth: the true label (H, W), None without.
        maps: phase -> column -> (H, W), with ``before`` for what was mined before an erase phase.
    """

    key: str
    image: Map
    tags: list[int] | None
    truth: Map | None = None
    maps: dict[str, dict[str, Map]] = field(default_factory=dict)

    def shrunk(self, label_HW: Map) -> Map:
        """A map of the whole image at the picture's size, no new values."""
        return resize_label(label_HW, (self.image.shape[0], self.image.shape[1]))


def holds_phases(uri: str) -> bool:
    """Whether a folder is one of phases, of one relabel phase, or of a single run; data sets are not."""
    if uri.startswith(STREETS):
        return False
    return any(storage.exists(storage.join(uri, name)) for name in (PHASES, RELABEL, _RECIPE))


def open_stages(uri: str) -> list[Stage]:
    """The phases in a folder in their order, those to come included; one for a relabel phase's own folder.

    Raises:
        UserError: a folder that holds neither.
    """
    uri = uri.rstrip("/") or uri
    if storage.exists(storage.join(uri, PHASES)):
        # where it lies now: folders may have been moved since
        return [
            _stage(phase.name, phase.recipe) for phase in load_phases(storage.join(uri, PHASES), [word("out", uri)])
        ]
    if storage.exists(storage.join(uri, RELABEL)):
        return [_stage(uri.rsplit("/", 1)[-1], parse_relabel({**read_relabel(uri), "out": uri}))]
    if storage.exists(storage.join(uri, _RECIPE)):
        raise UserError(f"{uri!r} is a single run: `distuda report {uri}` shows it. Give the folder of its phases.")
    raise UserError(
        f"{uri!r} holds no phases: neither {PHASES} nor {RELABEL}. Give the `out` of a recipe of phases, or the folder "
        "of one relabel phase."
    )


def _stage(name: str, recipe: Recipe | RelabelRecipe) -> Stage:
    uri = str(recipe.out)
    if isinstance(recipe, RelabelRecipe):
        total = len(open_dataset(_uri(getattr(recipe, recipe.relabel.domain))).groups)
        whole = storage.exists(storage.join(uri, COLUMNS))
        done = total if whole else min(total - 1, len(groups_done(uri)))
        return Stage(name, recipe, done, total, whole, scores=_read_json(storage.join(uri, "evaluation-labels.json")))
    rows = read_rows(uri)
    newest = Checkpoints(uri, recipe.checkpoint).latest()
    saved = int(newest.rsplit("-", 1)[1]) if newest else 0
    logged = max((int(row["step"]) for row in rows), default=0)  # the last of them are finished with their checkpoint
    done = saved if saved >= recipe.steps else min(recipe.steps - 1, max(saved, logged))
    loss = final_loss(rows) if done >= recipe.steps else None
    return Stage(name, recipe, done, recipe.steps, newest is not None, loss, _network_scores(recipe, rows))


def _uri(domain: Domain) -> str:
    if domain.uri is None:
        raise UserError("these phases name no samples that could be shown: source.uri and target.uri are none.")
    return domain.uri


def _network_scores(recipe: Recipe, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `distuda evaluate` wrote, else the last evaluation while training."""
    for which in ("last", "calibrated", "best", "ensemble"):
        if found := _read_json(storage.join(str(recipe.out), f"evaluation-{which}.json")):
            return found
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    return {"uri": recipe.evaluation.uri, **evaluations[-1]} if evaluations else {}


def _read_json(uri: str) -> dict[str, Any]:
    return dict(json.loads(storage.read_bytes(uri))) if storage.exists(uri) else {}


def home(stages: Sequence[Stage]) -> Dataset:
    """The data set that the phases are shown on: the first that is relabelled, else the last phase's."""
    return open_dataset(_uri(next((stage for stage in stages if stage.relabels), stages[-1]).domain))


def measure(stage: Stage, count: int) -> Shares:
    """Shares of the pixels in a finished relabel phase's columns; mined ones from ``count`` evenly spaced images."""
    data = open_dataset(_uri(stage.domain))
    columns = open_columns(stage.uri, data.manifest.content_hash)
    labelled = mined = contested = None
    if "label" in columns.names:
        total = pc.sum(pc.multiply(data.index["height"].cast("int64"), data.index["width"])).as_py()
        labelled = float(np.sum(columns.class_pixels)) / max(1, total)
    if "mined" in columns.names:
        counts = sum(
            (np.bincount(one.ravel(), minlength=256) for one in _mined(stage.uri, data, count)), np.zeros(256, np.int64)
        )
        mined, contested = (float(n) / max(1, counts.sum()) for n in (counts[:CONTESTED].sum(), counts[CONTESTED]))
    return Shares(labelled, mined, contested)


def _mined(uri: str, data: Dataset, count: int) -> Iterator[Map]:
    """Column ``mined`` of evenly spaced images."""
    reachable = accessible(data)
    ids = reachable[spread(len(reachable), count)]
    groups = data.window_of(ids).groups
    for number in np.unique(groups).tolist():
        table = read_group(uri, number, ["key", "mined"]).take(ids[groups == number] - data.starts[number])
        for row in table.to_pylist():
            yield decode_label(row["mined"], row["key"])


def choose(data: Dataset, keys: Sequence[str], count: int) -> NDArray[np.int64]:
    """Numbers of the samples of these keys; without any, ``count`` evenly spaced ones.

    Raises:
        UserError: a key that the data set lacks.
    """
    if not keys:
        reachable = accessible(data)
        return reachable[spread(len(reachable), count)]
    number_of = {key: number for number, key in enumerate(data.index["key"].to_pylist())}
    for key in keys:
        if key not in number_of:
            near = nearest(key, number_of)
            raise UserError(f"no sample {key!r} in {data.uri!r}{near}. Without --key, evenly spaced ones are shown.")
    return np.asarray([number_of[key] for key in dict.fromkeys(keys)], np.int64)


def look(data: Dataset, ids: NDArray[np.int64], stages: Sequence[Stage]) -> list[Seen]:
    """The chosen images with the maps of every phase that has some and looked at this data set.

    Those that cannot be decoded, which the phases may have passed over, are named and left out.
    """
    seen: list[Seen] = []
    rows, usable = [], []
    for number, row in zip(ids, rows_of(data.read_window(data.window_of(ids), ["tags", "label"])), strict=True):
        try:
            seen.append(_seen(row))
        except SampleError as error:
            print(f"not shown: {error}", file=sys.stderr)
            continue
        rows.append(row)
        usable.append(number)
    ids = np.asarray(usable, np.int64)
    for stage in stages:
        if stage.relabels:
            _add_columns(stage, data, ids, seen)
        else:
            _add_predictions(stage, data, rows, seen)
    return seen


def _seen(row: dict[str, Any]) -> Seen:
    one = Seen(str(row["key"]), _small(decode_image(row["image"], str(row["key"]))), row["tags"])
    one.truth = None if row["label"] is None else one.shrunk(decode_label(row["label"], one.key))
    return one


def _small(image_HWC: Map) -> Map:
    height, width = image_HWC.shape[:2]
    if width <= PICTURE_WIDTH:
        return image_HWC
    return resize_image(image_HWC, (max(1, round(height * PICTURE_WIDTH / width)), PICTURE_WIDTH))


def shown(stage: Stage, data: Dataset) -> bool:
    """Whether a phase has something to show of this data set."""
    if not stage.relabels:
        return stage.usable
    return stage.usable and open_dataset(_uri(stage.domain)).manifest.content_hash == data.manifest.content_hash


def _add_columns(stage: Stage, data: Dataset, ids: NDArray[np.int64], seen: Sequence[Seen]) -> None:
    """What a relabel phase wrote about these images; for erasing also what was mined before."""
    given = [uri for uri in stage.domain.columns if storage.exists(storage.join(uri, COLUMNS))]
    written = open_columns(stage.uri, data.manifest.content_hash).names
    names = [name for name in written if name != FLOW]  # vectors are no map to look at
    if not names:
        return
    after, before = open_dataset(data.uri, [*given, stage.uri]), open_dataset(data.uri, given)
    for one, row in zip(seen, rows_of(after.read_window(data.window_of(ids), names)), strict=True):
        there = [name for name in names if row[name] is not None]  # of a sample that was passed over not all are
        one.maps[stage.name] = {name: one.shrunk(decode_label(row[name], one.key)) for name in there}
    if "mined" not in names:
        return
    earlier = before.holds("mined")
    rows = rows_of(before.read_window(data.window_of(ids), ["mined"])) if earlier else iter([{}] * len(seen))
    for one, row in zip(seen, rows, strict=True):
        nothing = np.full(one.image.shape[:2], IGNORE, np.uint8)
        one.maps[stage.name][BEFORE] = one.shrunk(decode_label(row["mined"], one.key)) if earlier else nothing


def _add_predictions(stage: Stage, data: Dataset, rows: Sequence[dict[str, Any]], seen: Sequence[Seen]) -> None:
    """What a trained network says of these images, tags or not; nothing for one that shows heat alone."""
    run = open_run(stage.uri)
    if run.predictor.gives_heat or run.table.classes != data.table.classes:
        return
    predict = Predict(Predict.Config(only_tags=False), Task(data.table, run.predictor, stage.domain.size))
    for one, row in zip(seen, rows, strict=True):
        one.maps[stage.name] = {"label": one.shrunk(predict(row)["label"])}


def add_truth(seen: Sequence[Seen], data: Dataset, labels: str) -> None:
    """True labels of the same keys from another data set.

    Raises:
        UserError: no labels there, other classes, or none of these keys.
    """
    truth = open_dataset(labels)
    truth.require("label")
    if truth.table.classes != data.table.classes:
        raise UserError(f"{labels!r} has class table {truth.table.name!r}, {data.uri!r} has {data.table.name!r}.")
    number_of = {key: number for number, key in enumerate(truth.index["key"].to_pylist())}
    known = [one for one in seen if one.key in number_of]
    if not known:
        raise UserError(f"{labels!r} has none of the shown samples of {data.uri!r}. Prepare the same images.")
    ids = np.asarray([number_of[one.key] for one in known], np.int64)
    for one, row in zip(known, rows_of(truth.read_window(truth.window_of(ids))), strict=True):
        one.truth = one.shrunk(decode_label(row["label"], one.key))
