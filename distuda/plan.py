"""Recipes of several phases: one file, one folder a phase, each going on from what the one before has learnt.

    steps: 1500                                       # what all phases share
    rounds: 3
    phases:
    - repeat:                                         # unrolled: classify_1, erase_1, classify_2, ...
      - {name: classify, method: {name: classify}, init_from: none}
      - {name: erase, relabel: {name: erase}}         # writes columns beside the data
    - {name: masks, relabel: {name: compose}}
    - {name: segment, method: {name: psl}, init_from: none, steps: 500}

Trained in ``out``, this gives a folder a phase and, in ``out/phases.yaml``, all of it as resolved. Words on the command
line hold for every phase, ``phases.erase.relabel.share=0.3`` for one (``phases.erase_2...`` for one round) over them.
"""

import copy
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from distuda import storage
from distuda.errors import UserError, nearest
from distuda.recipe import Recipe, RelabelRecipe, build_recipe, parse_relabel, plain_values, read_config

PHASES = "phases.yaml"
"""The resolved recipe of all phases, in the folder that holds theirs."""

_OUTER = ("out", "resume", "phases", "rounds", "stop_ratio")
"""Fields that a phase cannot have of its own."""


@dataclass(frozen=True)
class Phase:
    """One stage of a recipe.

    Attributes:
        name: a plain word, with its round where it is repeated; empty for the only phase of a recipe without phases.
        recipe: what it does; ``out`` is its own folder, ``init_from`` the run it goes on from.
        base: of a repeated phase the word without the round; else the name.
        round: which time a repeated phase is run, from 1; 0 for the others.
        stop_ratio: rounds end before the one whose training loss is more than this times the first round's.
    """

    name: str
    recipe: Recipe | RelabelRecipe
    base: str = ""
    round: int = 0
    stop_ratio: float | None = None


@dataclass(frozen=True)
class _Stage:
    """A phase as the file and the command line have it, not yet checked."""

    name: str
    base: str
    round: int
    fields: dict[str, Any]
    words: tuple[str, ...] = ()

    def sets(self, *path: str) -> bool:
        """Whether it says itself what a field is."""
        inner: Any = self.fields
        for part in path:
            inner = inner[part] if isinstance(inner, dict) and part in inner else ...
        return inner is not ... or any(word.startswith(f"{'.'.join(path)}=") for word in self.words)


def load_phases(path: str | None = None, overrides: Sequence[str] = ()) -> list[Phase]:
    """Checked phases from an optional YAML file or URI and dotted overrides; one nameless phase where it has none.

    Lowest first: the file's shared fields, a phase's own, words for all, words for one. A phase that names a method
    takes no field of a shared one. Unless its ``init_from`` says otherwise, a phase starts from the last one that
    trained; unless its ``columns`` do, a domain is seen with those of the last phase that relabelled it beside the
    shared ones. Both may name an earlier phase (of a repeated one, its last round) or a folder, or be none.

    Raises:
        UserError: what `load_recipe` refuses, with the phase's name; phases or words that cannot be understood.
    """
    if late := [word for word in overrides if "=" not in word and word.endswith((".yaml", ".yml"))]:
        raise UserError(f"the recipe {late[0]!r} is not the first word. Write it before all fields.")
    config = read_config(path)
    if "phases" not in config:
        if odd := [word for word in overrides if word.startswith("phases.")]:
            raise UserError(f"override {odd[0]!r}: this recipe has no phases. Leave out 'phases.NAME.'.")
        return [Phase("", build_recipe(config, overrides))]
    overrides, rounds, stop_ratio = _take_rounds(config, overrides)
    shared, stages = _with_words(overrides, _stages(config.pop("phases"), rounds))
    phases: list[Phase] = []
    for stage in stages:
        try:
            recipe = _recipe(config, stage, shared)
        except UserError as error:
            odd = [word for word in shared if f"unknown field '{word.partition('=')[0]}'" in str(error)]
            hint = f" Words hold for every phase; for one, write phases.NAME.{odd[0]}." if odd else ""
            raise UserError(f"phase {stage.name!r}: {error}{hint}") from None
        phases.append(Phase(stage.name, recipe, stage.base, stage.round, stop_ratio))
        shared = [word for word in shared if not word.startswith("init_from=")]
    return _placed(phases, stages)


def word(path: str, value: Any) -> str:
    """A field as a word of the command line; text that YAML would read as anything else, as ``a #2``, in quotes."""
    plain = isinstance(value, str) and _reads_as_itself(value)
    return f"{path}={value if plain else json.dumps(value, ensure_ascii=False)}"


def _reads_as_itself(text: str) -> bool:
    try:
        read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"text={text}"]))
    except YAMLError:
        return False
    return bool(read["text"] == text)


def fewer_rounds(left: Sequence[Phase], rounds: int, done: Sequence[Phase] = ()) -> list[Phase]:
    """The phases that are left after so many rounds; what followed a later round, ``done`` or not, follows the last."""
    folder = outer([*done, *left])
    last = {str(p.recipe.out): storage.join(folder, f"{p.base}_{rounds}") for p in (*done, *left) if p.round > rounds}
    kept = []
    for phase in left:
        if phase.round > rounds:
            continue
        recipe, update = phase.recipe, {}
        for name in ("source", "target"):
            domain = getattr(recipe, name)
            update[name] = domain.model_copy(update={"columns": [last.get(uri, uri) for uri in domain.columns]})
        if recipe.init_from is not None:
            update["init_from"] = last.get(recipe.init_from, recipe.init_from)
        kept.append(replace(phase, recipe=recipe.model_copy(update=update)))
    return kept


def to_yaml(phases: Sequence[Phase]) -> str:
    """All phases as resolved, rounds unrolled and each with its `round`, as YAML that `load_phases` reads back."""
    names = {str(phase.recipe.out): phase.name for phase in phases}
    stages = []
    for phase in phases:
        values = phase.recipe.model_dump(mode="json", exclude={"out", "resume"})
        values["init_from"] = names.get(values["init_from"], values["init_from"])
        for domain in ("source", "target"):
            values[domain]["columns"] = [names.get(uri, uri) for uri in values[domain]["columns"]]
        once = {"name": phase.base or phase.name}
        stages.append({**once, "round": phase.round, **values} if phase.round else {**once, **values})
    shared = {"out": outer(phases), "stop_ratio": phases[0].stop_ratio}
    return OmegaConf.to_yaml(OmegaConf.create({**shared, "phases": stages}))


def phase_folders(uri: str) -> list[str]:
    """Folders of the phases that were run in a folder, in their order; none where it holds no phases."""
    where = storage.join(uri, PHASES)
    if not storage.exists(where):
        return []
    return [storage.join(uri, stage.name) for stage in _stages(read_config(where)["phases"], 1)]


def outer(phases: Sequence[Phase]) -> str:
    """The folder that holds the phases' folders."""
    return str(phases[0].recipe.out).removesuffix(f"/{phases[0].name}")


def _take_rounds(config: DictConfig, overrides: Sequence[str]) -> tuple[list[str], int, float | None]:
    """Take ``rounds`` and ``stop_ratio`` out of the mapping and the words."""
    words = [word for word in overrides if word.partition("=")[0] in ("rounds", "stop_ratio")]
    given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    own = {name: config.pop(name, None) for name in ("rounds", "stop_ratio")}
    rounds, ratio = (given.get(name, own[name]) for name in own)
    rounds, ratio = 1 if rounds is None else rounds, None if ratio == "none" else ratio
    if not isinstance(rounds, int) or rounds < 1:
        raise UserError(f"rounds={rounds!r} is not valid: should be a whole number of at least 1.")
    if ratio is not None and (not isinstance(ratio, int | float) or ratio <= 0):
        raise UserError(f"stop_ratio={ratio!r} is not valid: should be a number greater than 0, or none.")
    return [word for word in overrides if word not in words], rounds, ratio


def _stages(listed: Any, rounds: int) -> list[_Stage]:
    """Each phase, in order, repeated ones once a round."""
    found: list[_Stage] = []
    for stage in _mappings(listed):
        if "repeat" not in stage:
            found.append(_stage(stage, 0, len(found)))
            continue
        if set(stage) != {"repeat"}:
            raise UserError("a phase with 'repeat' holds nothing else. The count is the recipe's own field 'rounds'.")
        for number in range(1, rounds + 1):
            found += [_stage(inner, number, len(found)) for inner in _mappings(stage["repeat"])]
    if rounds > 1 and not any("repeat" in stage for stage in _mappings(listed)):
        raise UserError(
            f"rounds={rounds}: no phase is under 'repeat' in this recipe. Leave rounds out, or put some there."
        )
    names = [stage.name for stage in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two phases have the name {twice!r}. Rename one of them.")
    return found


def _mappings(listed: Any) -> list[dict[str, Any]]:
    stages = OmegaConf.to_container(listed) if OmegaConf.is_list(listed) else listed
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise UserError("phases must be a list of mappings, such as - {name: teacher, steps: 500}.")
    return stages


def _stage(fields: dict[str, Any], number: int, place: int) -> _Stage:
    fields = copy.deepcopy(fields)
    name, number = fields.pop("name", None), fields.pop("round", number)
    if type(number) is not int or number < 0:  # true is an int, too
        raise UserError(f"phase {place + 1} has round {number!r}: should be a whole number, as phases.yaml writes it.")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise UserError(f"phase {place + 1} has the name {name!r}. Give it a plain word: it becomes a folder's name.")
    _refuse_outer(name, fields)
    return _Stage(f"{name}_{number}" if number else name, name, number, fields)


def _with_words(overrides: Sequence[str], stages: Sequence[_Stage]) -> tuple[list[str], list[_Stage]]:
    """Words for all phases; the stages with their own words, those for all rounds of one first."""
    shared: list[str] = []
    own: dict[str, list[str]] = {}
    names = list(dict.fromkeys(name for stage in stages for name in (stage.base, stage.name)))
    for word in overrides:
        if not word.startswith("phases."):
            shared.append(word)
            continue
        name, _, field = word.removeprefix("phases.").partition(".")
        if name not in names:
            raise UserError(f"override {word!r}: no phase {name!r}{nearest(name, names)}. Phases: {', '.join(names)}.")
        _refuse_outer(name, [field.partition("=")[0]])
        own.setdefault(name, []).append(field)

    def words(stage: _Stage) -> tuple[str, ...]:
        return tuple(word for name in dict.fromkeys((stage.base, stage.name)) for word in own.get(name, ()))

    return shared, [replace(stage, words=words(stage)) for stage in stages]


def _refuse_outer(name: str, fields: Iterable[str]) -> None:
    if odd := [field for field in fields if field in _OUTER]:
        raise UserError(f"phase {name!r} has no {odd[0]!r} of its own. Set it for all phases together.")


def _recipe(config: DictConfig, stage: _Stage, shared: Sequence[str]) -> Recipe | RelabelRecipe:
    """A phase's checked recipe. One that relabels does not look at shared fields that only training has."""
    words = [*shared, *stage.words]
    if not stage.sets("relabel"):
        return build_recipe(_over(config, stage.fields), words)
    own = {*stage.fields, *(re.split(r"[.=]", word)[0] for word in stage.words)}
    foreign = set(Recipe.model_fields) - set(RelabelRecipe.model_fields) - own
    values = plain_values(_over(config, stage.fields), words)
    return parse_relabel({name: value for name, value in values.items() if name not in foreign})


def _over(config: DictConfig, fields: dict[str, Any]) -> DictConfig:
    """A phase's fields over the shared ones, as a new mapping; a named method replaces the shared one."""
    base: Any = OmegaConf.merge(config)
    own = dict(fields)
    for values in (base, own):
        for choice in ("method", "relabel"):
            if isinstance(values.get(choice), str):  # `method: advent` is short for its name
                values[choice] = {"name": values[choice]}
    if "name" in own.get("method", {}):
        base.pop("method", None)
    merged = OmegaConf.merge(base, own)
    assert isinstance(merged, DictConfig)
    return merged


def _placed(phases: Sequence[Phase], stages: Sequence[_Stage]) -> list[Phase]:
    """The phases with folders of their own inside the common ``out``, and what each goes on from as folders."""
    out = _common_out(phases)
    folders: dict[str | None, str] = {}  # of the phases so far by name, of repeated ones the last by its base
    trained: str | None = None
    relabelled: dict[str, str] = {}
    placed = []
    for phase, stage in zip(phases, stages, strict=True):
        recipe, folder = phase.recipe, storage.join(out, phase.name)
        start = folders.get(recipe.init_from, recipe.init_from)
        update: dict[str, Any] = {"out": folder, "init_from": start if stage.sets("init_from") else trained or start}
        for name in ("source", "target"):
            domain = getattr(recipe, name)
            columns = [folders.get(uri, uri) for uri in domain.columns]
            if name in relabelled and not stage.sets(name, "columns"):
                columns.append(relabelled[name])
            update[name] = domain.model_copy(update={"columns": columns})
        placed.append(replace(phase, recipe=recipe.model_copy(update=update)))
        folders[phase.name] = folders[phase.base] = folder
        if isinstance(recipe, RelabelRecipe):
            relabelled[recipe.relabel.domain] = folder
        else:
            trained = folder
    return placed


def _common_out(phases: Sequence[Phase]) -> str:
    """The recipe's ``out``, or a new folder named by what is trained and the time."""
    if (out := phases[0].recipe.out) is not None:
        return out
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("ranks cannot agree on a folder for phases by their own clocks. Give out=FOLDER.")
    trained = [phase.recipe.method.name for phase in phases if isinstance(phase.recipe, Recipe)]
    return f"runs/{trained[-1] if trained else 'relabel'}-{datetime.now():%Y%m%d-%H%M%S}"
