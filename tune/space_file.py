"""Search spaces as they are written: presets, YAML files, and what is refused of them before a recipe is looked at."""

import json
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import KeyValidationError, OmegaConfBaseException

from distuda import storage
from distuda.errors import UserError, nearest
from distuda.recipe import read_config
from tune.space import Choice, Range, Space

SPACES = files("tune") / "spaces"
"""The folder of the spaces that come with Distuda, one a method."""

_FIXED = ("out", "resume", "evaluation", "checkpoint", "seed", "workers", "device")
"""Fields that decide how trials are run and compared; none may differ between them."""


def presets() -> list[str]:
    """Names of the spaces that come with Distuda."""
    return sorted(entry.name.removesuffix(".yaml") for entry in SPACES.iterdir() if entry.name.endswith(".yaml"))


def load_space(given: str) -> Space:
    """A space by the name of a preset, or from a YAML file or URI.

    Raises:
        UserError: no such preset or file, an unknown kind, an empty or reversed range, a path given twice.
    """
    is_name = "/" not in given and not given.endswith((".yaml", ".yml"))
    if is_name and given not in presets():
        names = presets()
        raise UserError(f"no space {given!r}{nearest(given, names)}. Give a YAML file, or one of: {', '.join(names)}.")
    text = str(SPACES / f"{given}.yaml") if is_name else given
    if given in [f"tune/spaces/{preset}.yaml" for preset in presets()] and not storage.exists(given):
        text = str(SPACES / given.rpartition("/")[2])  # as a checkout has it, from wherever the user is
    try:
        config = read_config(text)
    except UserError as error:
        if isinstance(error.__cause__, KeyValidationError):
            raise UserError(f"space {given} has null as a key. Write none, which says the same in a recipe.") from error
        raise UserError(str(error).replace("recipe", "space", 1)) from error
    values = {str(path): _plain(f"space {given}: {path!s}", config, path) for path in config}
    return _space(f"space {given}", values)


def _plain(where: str, config: Any, path: Any) -> Any:
    """A field's value in plain types."""
    try:
        value = config[path]
    except OmegaConfBaseException as error:
        raise UserError(
            f"{where}: {str(error).splitlines()[0]}. Write a range or choice, as {{uniform: [0, 1]}}."
        ) from error
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _space(name: str, values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Space:
    fields: dict[str, Range | Choice] = {}
    if not values and not above:
        raise UserError(f"{name} is empty. Write at least one line such as optimizer.lr: {{loguniform: [1e-5, 1e-3]}}.")
    for path, value in values.items():
        if path in above:
            raise UserError(f"{name}: {path!r} is given twice, once for an option and once above it. Keep one.")
        head = path.split(".")[2] if path.startswith("phases.") and path.count(".") >= 2 else path.split(".")[0]
        if head in _FIXED:
            raise UserError(
                f"{name}: {path!r} cannot be searched: trials must not differ in how they run and are scored."
            )
        fields[path] = _field(name, path, value, (*above, *values))
    _require_apart(name, fields)
    return Space(name, fields)


def _require_apart(name: str, fields: Mapping[str, Range | Choice]) -> None:
    """Two choices beside each other are made together, so no field may hang on both."""
    owner: dict[str, str] = {}
    for path, kind in fields.items():
        for inner in Space(name, {path: kind}).paths()[1:]:
            if inner in owner:
                raise UserError(
                    f"{name}: {inner!r} is searched under options of both {owner[inner]!r} and {path!r}, which are "
                    "chosen together. Keep one, or put it beside them."
                )
        owner |= dict.fromkeys(Space(name, {path: kind}).paths()[1:], path)


def _field(name: str, path: str, value: Any, above: tuple[str, ...]) -> Range | Choice:
    kinds = ("uniform", "loguniform", "int", "choice")
    where = f"{name}: {path}"
    if not isinstance(value, dict) or len(value) != 1:
        raise UserError(
            f"{where}: {value!r} is no range or choice. Write one of {', '.join(kinds)}, as {{uniform: [0, 1]}}."
        )
    [(kind, body)] = value.items()
    if kind not in kinds:
        raise UserError(
            f"{where}: unknown kind {kind!r}{nearest(str(kind), kinds)}. Allowed: {', '.join(kinds)}. (A field within "
            f"{path} is written as one dotted path: {path}.{kind}.)"
        )
    return _choice(name, path, body, above) if kind == "choice" else _range(where, kind, body)


def _range(where: str, kind: str, body: Any) -> Range:
    if not (isinstance(body, list) and len(body) == 2 and all(_is_number(end) for end in body)):
        raise UserError(f"{where}: {kind}: {body!r} is not a pair of numbers. Write {{{kind}: [LOW, HIGH]}}.")
    low, high = body
    if not low < high:
        raise UserError(f"{where}: {kind}: [{low}, {high}] is empty. The first number must be below the second.")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{where}: loguniform: [{low}, {high}] has no logarithm. Start above 0, or use uniform.")
    if kind == "int" and not all(isinstance(end, int) for end in body):
        raise UserError(f"{where}: int: [{low}, {high}] must be whole numbers. Write them so, or use uniform.")
    return Range(low, high, log=kind == "loguniform", whole=kind == "int")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choice(name: str, path: str, body: Any, above: tuple[str, ...]) -> Choice:
    if not isinstance(body, list | dict) or not body:
        raise UserError(f"{name}: {path}: choice: {body!r} has no options. Give a list, or a mapping option -> fields.")
    options = tuple(body)
    words = [json.dumps(option) for option in options]
    if twice := next((word for word in words if words.count(word) > 1), None):
        raise UserError(f"{name}: {path}: choice: the option {twice} is there twice. Leave one out.")
    if isinstance(body, list):
        return Choice(options)
    inner = {}
    for option, fields in body.items():
        if not isinstance(fields, dict | None):
            raise UserError(
                f"{name}: {path}: choice: {option}: {fields!r} is no mapping of fields. Write {{}} for none."
            )
        if fields:
            inner[str(option)] = _space(name, fields, above)
    return Choice(options, inner)
