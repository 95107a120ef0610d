"""Search spaces: what is drawn from them, and what is refused before anything starts."""

import random
from pathlib import Path

import optuna
import pytest

from distuda.errors import UserError
from distuda.methods import METHODS
from distuda.plan import load_phases
from distuda.recipe import Recipe
from tune.space import Range, words_of
from tune.space_file import load_space, presets

RECIPES = Path(__file__).parent.parent / "recipes"
CONDITIONAL = """
optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}
method.name:
  choice:
    source_only: {}
    minent: {method.lambda_ent: {loguniform: [1.0e-3, 1.0e-1]}}
    apoda: {method.attack.num_steps: {int: [1, 3]}, method.attack.layers: {choice: [[-1], [0, 1]]}}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "space.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_for_the_recipe_of_its_name(name: str) -> None:
    space, recipe = load_space(name), str(RECIPES / f"{name}.yaml")
    space.check(recipe)
    rng = random.Random(0)
    for _ in range(3):
        drawn = space.sample(rng)
        assert load_phases(recipe, words_of(drawn))
        assert load_phases(recipe, words_of(space.perturb(drawn, rng)))


def test_each_method_is_trained_by_the_recipe_of_a_preset() -> None:
    recipes = [phase.recipe for name in presets() for phase in load_phases(str(RECIPES / f"{name}.yaml"), [])]
    assert {recipe.method.name for recipe in recipes if isinstance(recipe, Recipe)} == set(METHODS)


def test_a_preset_is_a_file_like_any_other() -> None:
    assert load_space("advent").fields == load_space(str(RECIPES.parent / "tune" / "spaces" / "advent.yaml")).fields


def test_fields_under_an_option_are_drawn_only_with_it(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, CONDITIONAL))
    rng = random.Random(1)
    drawn = [space.sample(rng) for _ in range(60)]
    assert {one["method.name"] for one in drawn} == {"source_only", "minent", "apoda"}
    for one in drawn:
        assert ("method.lambda_ent" in one) == (one["method.name"] == "minent")
        assert ("method.attack.layers" in one) == (one["method.name"] == "apoda")
        assert 1e-4 <= one["optimizer.lr"] <= 1e-2
        recipe = load_phases(None, words_of(one))[0].recipe
        assert recipe.method.name == one["method.name"]  # type: ignore[union-attr]
    rates = sorted(one["optimizer.lr"] for one in drawn)
    assert rates[30] < 3e-3  # spread over orders of magnitude: the median lies near 1e-3
    assert [space.sample(random.Random(7)) for _ in range(2)] == [space.sample(random.Random(7))] * 2


def test_a_chosen_method_replaces_the_files_with_its_fields(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, CONDITIONAL))
    space.check(str(RECIPES / "self_training.yaml"))  # whose method has fields that the others lack
    with pytest.raises(UserError, match=r"method.name=source_only: .*unknown field 'method.confidence'"):
        space.check(str(RECIPES / "self_training.yaml"), ["method.confidence=0.5"])


@pytest.mark.parametrize("text", ["/data/run #2", "weights: new", "yes", "1e-3", "", "[1", "~", "'x'", "é😀"])
def test_text_reaches_the_recipe_as_it_is(text: str) -> None:
    recipe = load_phases(None, words_of({"model.weights": text}))[0].recipe
    assert recipe.model.weights == text  # type: ignore[union-attr]


def test_a_grid_holds_every_combination_once(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, CONDITIONAL))
    grid = space.grid(3)
    assert len(grid) == 3 * (1 + 3 + 3 * 2)
    assert len({str(sorted(one.items())) for one in grid}) == len(grid)
    assert sorted({one["optimizer.lr"] for one in grid}) == [1e-4, 1e-3, 1e-2]
    many = write(
        tmp_path, "\n".join(f"augment.photometry.{n}: {{uniform: [0, 0.5]}}" for n in ("hue", "blur", "contrast"))
    )
    with pytest.raises(UserError, match=r"with 30 points a range has 27,000 configurations"):
        load_space(many).grid(30)


def test_a_neighbour_keeps_options_and_moves_numbers_inside_their_range(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, CONDITIONAL))
    rng = random.Random(0)
    start = {"optimizer.lr": 1e-2, "method.name": "apoda", "method.attack.num_steps": 2, "method.attack.layers": [0, 1]}
    for _ in range(20):
        near = space.perturb(start, rng)
        assert near["optimizer.lr"] in (8e-3, 1e-2)
        assert near["method.attack.num_steps"] in (1, 3)
        assert near["method.attack.layers"] == [0, 1] and list(near) == list(start)


def test_a_number_at_the_end_of_its_range_moves_inwards() -> None:
    rng = random.Random(0)
    spans = (Range(1e-5, 1e-3, log=True), Range(0, 1), Range(1, 3, whole=True), Range(0, 2, whole=True))
    for span, end in [(one, end) for one in spans for end in (one.low, one.high)]:
        for _ in range(8):
            moved = span.perturb(end, rng)
            assert moved != end and span.low <= moved <= span.high


def test_optuna_meets_the_same_fields_and_can_be_told_a_configuration(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, CONDITIONAL))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    wanted = space.sample(random.Random(3))
    study.enqueue_trial(space.parameters(wanted))
    assert space.suggest(study.ask()) == wanted
    assert {space.suggest(study.ask())["method.name"] for _ in range(20)} == {"source_only", "minent", "apoda"}


def test_whole_numbers_and_spans(tmp_path: Path) -> None:
    assert Range(1, 4, whole=True).grid(9) == [1, 2, 3, 4]
    assert {type(number) for number in Range(0, 1).grid(3)} == {float}  # one column of one type
    space = load_space(write(tmp_path, "rounds: {int: [1, 3]}\nphases.erase.relabel.share: {uniform: [0.1, 0.4]}"))
    space.check(str(RECIPES / "erasing.yaml"))
    assert {space.sample(random.Random(i))["rounds"] for i in range(20)} == {1, 2, 3}
    assert set(space.ranges()) == {"rounds", "phases.erase.relabel.share"}


MISTAKES = {
    "optimizer.lrr: {uniform: [0, 1]}": r"space .*: optimizer.lrr=0: unknown field 'optimizer.lrr' \(did you mean",
    "optimizer.lr: {uniform: [0, 1]}": r"optimizer.lr=0: optimizer.lr=0 is not valid: should be greater than 0",
    "method.confidence: {uniform: [0.5, 2]}": r"method.confidence=2: .*less than or equal to 1",
    "steps: {uniform: [1.5, 3.5]}": r"steps=1.5: .*integer",
    "model.name: {choice: [lite, heavy]}": r"model.name=heavy: .*not valid",
    "optimizer: {lr: {uniform: [0, 1]}}": r"unknown kind 'lr'.*written as one dotted path: optimizer.lr",
    "optimizer.lr: {loguniform: [1, 0.1]}": r"loguniform: \[1, 0.1\] is empty",
    "optimizer.lr: {uniform: [0.1, 0.1]}": r"is empty",
    "optimizer.lr: {loguniform: [0, 0.1]}": r"has no logarithm",
    "optimizer.lr: {uniform: [a, 1]}": r"not a pair of numbers",
    "optimizer.lr: {uniform: [0.1]}": r"not a pair of numbers",
    "steps: {int: [1, 2.5]}": r"must be whole numbers",
    "optimizer.lr: {normal: [0, 1]}": r"unknown kind 'normal'",
    "optimizer.lr: 0.1": r"0.1 is no range or choice",
    "model.name: {choice: []}": r"has no options",
    "model.name: {choice: [lite, lite]}": r'the option "lite" is there twice',
    "method.name: {choice: {minent: {optimizer.lr: {uniform: [0.1, 1]}}}}\noptimizer.lr: {uniform: [0.1, 1]}":
        r"'optimizer.lr' is given twice",
    "method.name: {choice: {minent: {method.mask_ratio: {uniform: [0.1, 1]}}}}": r"unknown field 'method.mask_ratio'",
    "optimizer.lr: {uniform: [0.1, 1]}\noptimizer.lr: {uniform: [0.2, 1]}": r"(?s)cannot read space .*duplicate",
    "seed: {int: [0, 9]}": r"'seed' cannot be searched",
    "phases.erase.relabel.share: {uniform: [0.1, 0.4]}": r"this recipe has no phases",
    "{}": r"is empty",
    "optimizer.lr: ???": r"space .*: optimizer.lr: Missing mandatory value: optimizer.lr. Write a range or choice",
    "optimizer.lr: ${steps}": r"space .*: optimizer.lr: Interpolation key 'steps' not found. Write a range or choice",
    "source.rare_class_temperature: {choice: {null: {}, 0.05: {}}}": r"has null as a key. Write none",
    "model.name: {choice: {lite: {optimizer.lr: {uniform: [0.1, 1]}}}}\n"
    "method.name: {choice: {minent: {}, advent: {optimizer.lr: {uniform: [0.2, 1]}}}}":
        r"'optimizer.lr' is searched under options of both 'model.name' and 'method.name'",
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_told_with_the_path_before_anything_starts(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=MISTAKES[text]):
        load_space(write(tmp_path, text)).check(None)


def test_fields_beside_a_choice_are_read_under_each_option(tmp_path: Path) -> None:
    beside = "method.name: {choice: [advent, self_training]}\nmethod.lambda_adv: {loguniform: [1.0e-4, 1.0e-2]}\n"
    with pytest.raises(UserError, match=r"method.name=self_training method.lambda_adv=0.0001: .*unknown field"):
        load_space(write(tmp_path, beside)).check(str(RECIPES / "advent.yaml"))
    with pytest.raises(UserError, match=r"unknown field .*some options have is written under these\.$"):
        load_space(write(tmp_path, beside)).check(None)
    shared = "method.lambda_ent: {loguniform: [1.0e-4, 1.0e-2]}\nmethod.name: {choice: [minent, apoda]}\n"
    load_space(write(tmp_path, shared)).check(str(RECIPES / "source_only.yaml"))  # which lacks the field itself
    others = f"{shared}batch_size: {{choice: [1, 2]}}\n"
    either = "lite: {method.name: {choice: [minent, apoda]}}, mit_b0: {method.name: {choice: [minent]}}"
    deeper = f"model.name: {{choice: {{{either}}}}}\nbatch_size: {{choice: [1, 2]}}\n{shared.splitlines()[0]}\n"
    for text in (others, deeper):  # beside choices that have nothing to do with it
        load_space(write(tmp_path, text)).check(None)
    above = """
model.name: {choice: {lite: {method.name: {choice: [advent, self_training]}}, mit_b0: {}}}
method.lambda_adv: {loguniform: [1.0e-4, 1.0e-2]}
"""
    with pytest.raises(UserError, match=r"method.name=self_training method.lambda_adv=0.0001: .*unknown field"):
        load_space(write(tmp_path, above)).check(str(RECIPES / "advent.yaml"))


def test_a_field_of_a_chosen_method_may_hang_on_another_choice(tmp_path: Path) -> None:
    space = """
model.name: {choice: {lite: {method.lambda_ent: {uniform: [0.001, 0.01]}}, mit_b0: {}}}
method.name: {choice: [minent, %s]}
"""
    load_space(write(tmp_path, space % "apoda")).check(str(RECIPES / "source_only.yaml"))
    with pytest.raises(UserError, match=r"method.name=advent method.lambda_ent=0.001: .*unknown field"):
        load_space(write(tmp_path, space % "advent")).check(str(RECIPES / "source_only.yaml"))
    elsewhere = """
model.name: {choice: {lite: {method.lambda_ent: {uniform: [0.001, 0.01]}}, mit_b0: {}}}
optimizer.name: {choice: {adamw: {method.name: {choice: [minent, apoda]}}, sgd: {}}}
"""
    with pytest.raises(UserError, match=r"method.lambda_ent=0.001: unknown field"):  # with sgd there is no such method
        load_space(write(tmp_path, elsewhere)).check(str(RECIPES / "source_only.yaml"))


def test_a_configuration_is_read_whole(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, CONDITIONAL))
    good = space.sample(random.Random(0))
    space.check_drawn([good], None)
    with pytest.raises(UserError, match=r"method.name=minent optimizer.lr=-1: optimizer.lr=-1 is not valid"):
        space.check_drawn([good, {"method.name": "minent", "optimizer.lr": -1}], None)


def test_a_space_is_its_fields_whatever_it_is_called(tmp_path: Path) -> None:
    nested = load_space("self_training")  # with fields under options
    again = load_space("tune/spaces/self_training.yaml")
    assert nested == again and str(nested.fields) == str(again.fields)


def test_ranges_are_found_however_deep(tmp_path: Path) -> None:
    text = """
model.name:
  choice:
    lite: {method.name: {choice: {minent: {method.lambda_ent: {uniform: [0.1, 0.2]}}, source_only: {}}}}
    mit_b0: {}
"""
    assert load_space(write(tmp_path, text)).ranges() == {"method.lambda_ent": Range(0.1, 0.2)}


def test_unknown_spaces_and_fixed_fields(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no space 'advant' \(did you mean 'advent'\?"):
        load_space("advant")
    for path in ("missing.yaml", "advent.yaml"):  # a preset's name elsewhere is another file
        with pytest.raises(UserError, match="no file at"):
            load_space(str(tmp_path / path))
    assert load_space("tune/spaces/advent.yaml").fields == load_space("advent").fields
    space = load_space(write(tmp_path, "optimizer.lr: {uniform: [0.1, 1]}"))
    with pytest.raises(UserError, match=r"'optimizer.lr' is searched and also fixed"):
        space.check(None, ["optimizer.lr=0.2"])
    space = load_space(write(tmp_path, "method.name: {choice: [minent, apoda]}"))
    for word in ("method=advent", "method.name=advent", "method={name: advent}"):
        with pytest.raises(UserError, match=r"'method.name' is searched and also fixed"):
            space.check(None, [word])
