"""Recipes: precedence, round trip, and messages that say what to do."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from settings import RECIPES, SETTINGS

from distuda.data.class_tables import class_table
from distuda.data.id_maps import find_id_map
from distuda.data.layouts import find_layout
from distuda.errors import UserError
from distuda.methods import METHODS
from distuda.methods.advent import AdvEnt
from distuda.methods.self_training import TeachingConfig
from distuda.plan import load_phases
from distuda.recipe import Recipe, fields, load_recipe, parse_recipe, parse_relabel, to_yaml
from distuda.relabel import RELABELS
from distuda.resume import changes


def refused(*overrides: str, path: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def written(folder: Path, text: str) -> str:
    (folder / "recipe.yaml").write_text(text)
    return str(folder / "recipe.yaml")


def test_precedence_is_default_then_file_then_word(tmp_path: Path) -> None:
    path = written(tmp_path, "steps: 7\noptimizer: {lr: 1e-3, name: sgd}\n")
    recipe = load_recipe(path, ["optimizer.lr=0.5", "seed=1", "seed=2"])
    assert (recipe.batch_size, recipe.steps, recipe.optimizer.name) == (Recipe().batch_size, 7, "sgd")
    assert (recipe.optimizer.lr, recipe.seed) == (0.5, 2)
    assert load_recipe(path).optimizer.lr == 1e-3


def test_lists_and_interpolation(tmp_path: Path) -> None:
    path = written(tmp_path, "augment: {crop: [64, 96]}\nsteps: 40\ncheckpoint: {every_steps: '${steps}'}\n")
    recipe = load_recipe(path, ["augment.scale=[0.5,2]"])
    assert recipe.augment.crop == (64, 96) and recipe.augment.scale == (0.5, 2.0)
    assert recipe.checkpoint.every_steps == 40


def test_the_word_none_empties_a_field_that_may_be_empty() -> None:
    recipe = load_recipe(None, ["evaluation.uri=none", "model.weights=none", "augment.crop=null"])
    assert recipe.evaluation.uri is None and recipe.augment.crop is None
    assert recipe.model.weights == "none"
    assert "batch_size='none'" in refused("batch_size=none")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_short_name(name: str, tmp_path: Path) -> None:
    assert isinstance(load_recipe(None, [f"method={name}"]).method, METHODS[name].Config)
    path = written(tmp_path, f"method: {name}\n")
    recipe = load_recipe(path, ["method.lambda_seg_aux=0.25"])
    assert isinstance(recipe.method, METHODS[name].Config) and recipe.method.lambda_seg_aux == 0.25
    assert isinstance(recipe.method, METHODS[name].Config)


def test_naming_another_method_drops_the_files_fields(tmp_path: Path) -> None:
    path = written(tmp_path, "method: {name: minent, lambda_ent: 0.5}\n")
    recipe = load_recipe(path, ["method=advent", "method.lambda_adv=0.25"])
    assert isinstance(recipe.method, AdvEnt.Config) and recipe.method.lambda_adv == 0.25
    assert load_recipe(path, ["method.lambda_ent=0.25"]).method.lambda_ent == 0.25


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("stps=3", ["unknown field 'stps'", "did you mean 'steps'"]),
        ("optimizer.rl=3", ["unknown field 'optimizer.rl'", "'lr'", "momentum"]),
        ("method.lambda_mx=1", ["unknown field 'method.lambda_mx'", "did you mean 'lambda_mix'"]),
        ("source.advent=1", ["unknown field 'source.advent'"]),
        ("augment.photometry.hu=1", ["unknown field 'augment.photometry.hu'", "did you mean 'hue'"]),
        ("steps=0", ["steps=0", "greater than or equal to 1", "optimiser steps"]),
        ("steps=many", ["steps='many'", "integer"]),
        ("source=3", ["source=3", "labelled domain"]),
        ("model.name=lit", ["model.name='lit'", "did you mean 'lite'", "deeplabv2_resnet101"]),
        ("model.decoder=segformer", ["decoder='segformer' is for mit_* and hf, and lite has its own: leave it out"]),
        ("model.backbone=a/b", ["backbone='a/b' is for name=hf, not lite: leave it out, or set that"]),
        ("method=advnt", ["'advnt' is not a method", "did you mean 'advent'", "source_only"]),
        ("method.name=advnt", ["'advnt' is not a method", "did you mean 'advent'"]),
        ("method.mask_ratio=2", ["method.mask_ratio=2", "less than 1", "share of blocks hidden"]),
        ("augment.crop=[0,32]", ["augment.crop.0=0", "greater than 0"]),
        ("augment.scale=[0,1]", ["augment.scale.0=0", "greater than 0"]),
        ("augment.scale=[2,1]", ["augment.scale", "smaller zoom must come first"]),
        ("augment.flip=1.5", ["augment.flip=1.5", "less than or equal to 1"]),
        ("augment.crop=3", ["augment.crop=3 is not valid: should be a list such as [a,b]", "height and width"]),
        ("method.margins=[4,4]", ["method.margins=[4, 4] is not valid: has too few values", "top, bottom, left"]),
        ("seed=99999999999", ["seed=99999999999", "less than 2147483648"]),
        ("steps", ["override 'steps' has no '='"]),
        ("out=${nowhere}", ["nowhere"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named(word: str, says: list[str]) -> None:
    message = refused(word)
    assert all(part in message for part in says), message


def test_a_field_of_another_method_is_explained_by_this_methods_fields() -> None:
    message = refused("method=advent", "method.lambda_ent=1")
    assert "unknown field 'method.lambda_ent'" in message and "discriminator_lr" in message
    message = refused("method=advent", "method.lambda_adv=-1")
    assert "method.lambda_adv=-1" in message and "fooling loss" in message


def test_a_missing_field_is_not_too_few_values() -> None:
    with pytest.raises(UserError, match=r"relabel=.*Field required"):
        parse_relabel({"out": "x"})


def test_mistakes_are_told_once_and_in_plain_words() -> None:
    assert refused("method.margins=[4,4]").count("too few") == 1
    assert "is not valid: apoda runs" in refused("method=apoda", "method.forward=joint")
    assert "should have at least 1 item. Meaning" in refused("method=apoda", "method.attack.layers=[]")


def test_all_mistakes_come_in_one_message() -> None:
    assert refused("steps=0", "sed=1", "model.name=x").count("\n") == 2


@pytest.mark.parametrize("text", ["- a\n- b\n", "steps: [\n", "steps: ${oc.env:NOT_SET_ANYWHERE}\n"])
def test_an_unreadable_file_is_the_users_error(text: str, tmp_path: Path) -> None:
    refused(path=written(tmp_path, text))


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "no file at" in refused(path=str(tmp_path / "none.yaml"))
    assert "cannot read" in refused(path=str(tmp_path))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read recipe" in refused(path=str(tmp_path / "bytes.yaml"))


def test_nothing_is_constructed_from_yaml_tags(tmp_path: Path) -> None:
    refused(path=written(tmp_path, "out: !!python/object/apply:os.getcwd []\n"))


@pytest.mark.parametrize("name", SETTINGS)
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    words = [*SETTINGS[name], "optimizer.lr=1.5e-7", "augment.crop=[33,47]", "evaluation.uri=none"]
    recipe = load_recipe(None, words).model_copy(update={"out": "runs/a: b #c"})
    again = load_recipe(written(tmp_path, to_yaml(recipe)))
    assert again == recipe and type(again.method) is type(recipe.method)
    assert changes(to_yaml(recipe), again) == []


def test_changes_names_fields_that_matter_on_resume() -> None:
    saved = to_yaml(load_recipe(None, ["method=advent", "steps=5"]))
    other = load_recipe(None, ["method=advent", "steps=6", "method.lambda_adv=0.5", "workers=2", "out=elsewhere"])
    assert changes(saved, other) == ["steps: 5 -> 6", "method.lambda_adv: 0.001 -> 0.5"]


def leaves(values: dict, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in values.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


def test_fields_lists_every_leaf_with_a_description() -> None:
    rows = list(fields())
    paths = [path for path, *_ in rows]
    assert len(paths) == len(set(paths))
    expected = {path for path in leaves(Recipe().model_dump()) if not path.startswith("method.")} | {"method.name"}
    for name, method in METHODS.items():
        expected |= {f"method[{name}].{path}" for path in leaves(method.Config().model_dump()) if path != "name"}
    for name, kind in RELABELS.items():
        expected |= {f"relabel[{name}].{path}" for path in kind.Config.model_fields if path != "name"}
    expected |= {f"method[apoda].self_training.{name}" for name in TeachingConfig.model_fields}  # off, so no leaf
    assert set(paths) == expected
    for path, kind, default, description in rows:
        assert kind and default and len(description) > 3, path


def test_defaults_are_valid_and_plain_values_are_refused() -> None:
    assert parse_recipe({}) == Recipe()
    with pytest.raises(UserError):
        parse_recipe(["steps"])


def test_there_are_recipes() -> None:
    assert RECIPES and len(PREPARED) == 5


PREPARED = [path for path in RECIPES if "#   distuda prepare " in path.read_text()]


@pytest.mark.parametrize("path", PREPARED, ids=lambda path: path.stem)
def test_what_a_recipe_says_to_prepare_is_what_it_trains_on(path: Path) -> None:
    text = path.read_text().replace("\\\n#", "")
    tables, made = set(), set()
    for layout, destination, options in re.findall(r"#   distuda prepare (\S+) \S+ (\S+) ?(.*)", text):
        kind, words = find_layout(layout), options.split()
        said = dict(pairwise(words))
        assert said.get("--split", kind.splits[0]) in kind.splits
        assert said.get("--variant", kind.variants[0] if kind.variants else None) in (*kind.variants, None)
        table = class_table(said.get("--classes") or str(kind.classes))
        find_id_map(kind.ids, table)
        tables.add(table.classes)
        made.add(destination)
    recipe = load_phases(str(path))[0].recipe
    assert len(tables) == 1 and made == {recipe.source.uri, recipe.target.uri, recipe.evaluation.uri}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_loads(path: Path) -> None:
    for phase in load_phases(str(path)):
        parse = parse_recipe if isinstance(phase.recipe, Recipe) else parse_relabel
        assert parse(phase.recipe.model_dump(mode="json")) == phase.recipe
