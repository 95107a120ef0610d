"""What a run that goes on may change of the recipe it was begun with."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from distuda.recipe import Recipe, parse_recipe

# Fields that say where and how a run computes, not what: they may differ when a run is resumed.
_FREE = {"out", "resume", "workers", "device", "log_every_steps", "tensorboard", "evaluation", "checkpoint"}
_FREE_OF_A_DOMAIN = "max_bad_share"  # a run that met too many unusable samples asks to raise it


def changes(saved_yaml: str, recipe: Recipe) -> list[str]:
    """What a resumed recipe changes of the saved one, as ``field: old -> new``; empty when it may go on."""
    # parsed, so that a field that is newer than the run counts with its default
    old = parse_recipe(OmegaConf.to_container(OmegaConf.create(saved_yaml))).model_dump(mode="json")
    return differences(old, recipe.model_dump(mode="json"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The same for the nested values of any two recipes."""
    before, now = _flat(old), _flat(new)
    paths = [path.split(".") for path in {**before, **now}]
    fixed = [".".join(path) for path in paths if path[0] not in _FREE and path[-1] != _FREE_OF_A_DOMAIN]
    return [f"{name}: {before.get(name)} -> {now.get(name)}" for name in fixed if before.get(name) != now.get(name)]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix[:-1]: values}
    return {path: leaf for name, value in values.items() for path, leaf in _flat(value, f"{prefix}{name}.").items()}
