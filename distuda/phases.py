"""Recipes of several phases: one file, one run folder a phase, each going on from what the one before has learnt.

    steps: 1500                                       # what all phases share
    phases:
    - {name: teacher, method: {name: source_only}}    # what differs
    - {name: regression, method: {name: feature_regression}, steps: 500}

Trained in ``out``, this gives the runs ``out/teacher`` and ``out/regression`` and, in ``out/phases.yaml``, all of it as
resolved. Words on the command line hold for every phase, ``phases.regression.steps=50`` for one, over the others.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distuda import storage
from distuda.errors import UserError, nearest
from distuda.recipe import Recipe, build_recipe, read_config

PHASES = "phases.yaml"
"""The resolved recipe of all phases, in the folder that holds their run folders."""

_OUTER = ("out", "resume", "phases")
"""Fields that a phase cannot have of its own."""


@dataclass(frozen=True)
class Phase:
    """One stage of a recipe.

    Attributes:
        name: a plain word; empty for the only phase of a recipe without phases.
        recipe: what it does; ``out`` is its own run folder, ``init_from`` the run it goes on from.
    """

    name: str
    recipe: Recipe


def load_phases(path: str | None = None, overrides: Sequence[str] = ()) -> list[Phase]:
    """Checked phases from an optional YAML file or URI and dotted overrides; one nameless phase where it has none.

    Lowest first: the file's shared fields, a phase's own, words for all, words for one. A phase that names a method
    takes no field of a shared one. ``init_from`` outside the phases is where the first one starts; each other starts
    from the one before, or from what its own ``init_from`` names: an earlier phase, a run folder, or none.

    Raises:
        UserError: what `load_recipe` refuses, with the phase's name; phases or words that cannot be understood.
    """
    config = read_config(path)
    if "phases" not in config:
        if odd := [word for word in overrides if word.startswith("phases.")]:
            raise UserError(f"override {odd[0]!r}: this recipe has no phases. Leave out 'phases.NAME.'.")
        return [Phase("", build_recipe(config, overrides))]
    stages = _stages(config.pop("phases"))
    shared, own = _sorted_words(overrides, list(stages))
    phases: list[Phase] = []
    for name, stage in stages.items():
        try:
            recipe = build_recipe(_over(config, stage), [*shared, *own[name]])
        except UserError as error:
            raise UserError(f"phase {name!r}: {error}") from None
        if phases and "init_from" not in stage and not any(word.startswith("init_from=") for word in own[name]):
            recipe = recipe.model_copy(update={"init_from": phases[-1].name})
        phases.append(Phase(name, recipe))
        shared = [word for word in shared if not word.startswith("init_from=")]
    return _placed(phases)


def train_phases(phases: Sequence[Phase]) -> str:
    """Train each phase in turn and give the last one's run folder; with ``resume`` finished ones are passed over.

    All are checked, their data included, before the first one trains.
    """
    from distuda.cluster.train import newest_step, require_start, train
    from distuda.engine.loop import open_data, settle

    if not phases[0].name:
        return train(phases[0].recipe)
    for phase in phases:
        try:
            require_start(phase.recipe)
            open_data(settle(phase.recipe))
        except UserError as error:
            raise UserError(f"phase {phase.name!r}: {error}") from error
    left = [phase for phase in phases if newest_step(phase.recipe) < phase.recipe.steps]
    if os.environ.get("RANK", "0") == "0":
        storage.write_bytes(storage.join(_outer(phases), PHASES), to_yaml(phases).encode())
    for phase in left:
        train(phase.recipe)
    return str(phases[-1].recipe.out)


def to_yaml(phases: Sequence[Phase]) -> str:
    """All phases as resolved, as YAML that `load_phases` reads back."""
    names = {phase.recipe.out: phase.name for phase in phases}
    stages = []
    for phase in phases:
        start = names.get(phase.recipe.init_from, phase.recipe.init_from)
        values = phase.recipe.model_dump(mode="json", exclude={"out", "resume"})
        stages.append({"name": phase.name, **values, "init_from": start})
    return OmegaConf.to_yaml(OmegaConf.create({"out": _outer(phases), "phases": stages}))


def phase_folders(uri: str) -> list[str]:
    """Run folders of the phases that were trained in a folder, in their order; none where it holds no phases."""
    where = storage.join(uri, PHASES)
    if not storage.exists(where):
        return []
    return [storage.join(uri, name) for name in _stages(read_config(where)["phases"])]


def _stages(listed: Any) -> dict[str, dict[str, Any]]:
    """Fields of each phase by its name, in order."""
    stages = OmegaConf.to_container(listed) if OmegaConf.is_list(listed) else None
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise UserError("phases must be a list of mappings, such as - {name: teacher, steps: 500}.")
    found: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(stages, start=1):
        name = stage.pop("name", None)
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
            raise UserError(f"phase {number} has the name {name!r}. Give it a plain word: it becomes a folder's name.")
        if name in found:
            raise UserError(f"two phases have the name {name!r}. Rename one of them.")
        _refuse_outer(name, stage)
        found[name] = stage
    return found


def _sorted_words(overrides: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Words for all phases, and those of each phase without ``phases.NAME.``."""
    shared: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    for word in overrides:
        if not word.startswith("phases."):
            shared.append(word)
            continue
        name, _, field = word.removeprefix("phases.").partition(".")
        if name not in own:
            raise UserError(f"override {word!r}: no phase {name!r}{nearest(name, names)}. Phases: {', '.join(names)}.")
        _refuse_outer(name, [field.partition("=")[0]])
        own[name].append(field)
    return shared, own


def _refuse_outer(name: str, fields: Iterable[str]) -> None:
    if odd := [field for field in fields if field in _OUTER]:
        raise UserError(f"phase {name!r} has no {odd[0]!r} of its own. Set it for all phases together.")


def _over(config: DictConfig, stage: dict[str, Any]) -> DictConfig:
    """A phase's fields over the shared ones, as a new mapping; a named method replaces the shared one."""
    base: Any = OmegaConf.merge(config)
    stage = dict(stage)
    for fields in (base, stage):
        if isinstance(fields.get("method"), str):  # `method: advent` is short for its name
            fields["method"] = {"name": fields["method"]}
    if "name" in stage.get("method", {}):
        base.pop("method", None)
    merged = OmegaConf.merge(base, stage)
    assert isinstance(merged, DictConfig)
    return merged


def _placed(phases: Sequence[Phase]) -> list[Phase]:
    """The phases with run folders of their own inside the common ``out``, and earlier phases' names made folders."""
    out = phases[0].recipe.out
    if out is None:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError("ranks cannot agree on a folder for phases by their own clocks. Give out=FOLDER.")
        out = f"runs/{phases[-1].recipe.method.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folders: dict[str | None, str] = {}
    placed = []
    for phase in phases:
        start, folder = phase.recipe.init_from, storage.join(out, phase.name)
        where = {"out": folder, "init_from": folders.get(start, start)}
        placed.append(Phase(phase.name, phase.recipe.model_copy(update=where)))
        folders[phase.name] = folder
    return placed


def _outer(phases: Sequence[Phase]) -> str:
    """The folder that holds the phases' run folders."""
    return str(phases[0].recipe.out).removesuffix(f"/{phases[0].name}")
