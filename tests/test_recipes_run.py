"""Every recipe of the repository trains: two steps on tiny data, everything else as it is written."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from settings import RECIPES, TABLE, tiny_samples

from distuda.data.shards import write_shards
from distuda.engine.loop import fit, settle
from distuda.engine.run import open_run, read_rows
from distuda.phases import train_phases
from distuda.plan import load_phases
from distuda.recipe import Recipe, RelabelRecipe
from distuda.relabel.job import open_labels, relabel

# Size, weights and length are cut down; model, method, optimiser, views and normalisation stay the recipe's own.
CUT_DOWN = [
    "steps=2", "batch_size=2", "source.size=[64,96]", "target.size=[64,64]", "evaluation.size=[48,64]",
    "model.weights=none", "device=cpu", "log_every_steps=1", "evaluation.limit=1",
    "source.rare_class_min_pixels=50", "source.rare_class_crop_pixels=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe word of a source with tags and no labels; the first class of the table is the background."""
    table = replace(TABLE, classes=("background", *TABLE.classes[1:]))
    samples = [replace(sample, label=None, tags=[1, 3]) for sample in tiny_samples(4, 1)]
    folder = str(tmp_path_factory.mktemp("tagged") / "source")
    write_shards(samples, folder, table)
    return f"source.uri={folder}"


WEAK = [path for path in RECIPES if path.stem.startswith("erasing")]


@pytest.mark.parametrize("path", WEAK, ids=lambda path: path.stem)
def test_a_recipe_from_tags_runs_all_its_phases(path: Path, tagged: str, tmp_path: Path) -> None:
    words = [*CUT_DOWN, tagged, "evaluation.uri=none", "augment.crop=[48,64]", f"out={tmp_path / 'run'}"]
    assert len(load_phases(str(path))) == 2 * 3 + 4  # three rounds
    phases = load_phases(str(path), [*words, "rounds=1"])
    for phase in phases:
        recipe = phase.recipe
        if isinstance(recipe, Recipe):
            rows = read_rows(fit(settle(recipe)))
            assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
            assert all(map(math.isfinite, (row["loss"] for row in rows if row["kind"] == "train")))
        else:
            assert len(open_labels(relabel(recipe))) == 4
    assert open_run(str(phases[-1].recipe.out)).predictor.gives_tags


PAIRED = "feature_regression_experiment"


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe word of a labelled target with pairs."""
    folder = str(tmp_path_factory.mktemp("paired") / "target")
    write_shards([replace(sample, pair=sample.image) for sample in tiny_samples(4, 2)], folder, TABLE)
    return f"target.uri={folder}"


def test_the_experiment_of_feature_regression_scores_each_way(domains: list[str], paired: str, tmp_path: Path) -> None:
    path = next(path for path in RECIPES if path.stem == PAIRED)
    words = [*CUT_DOWN, *domains, paired, "augment.crop=[48,64]", f"out={tmp_path / 'run'}"]
    phases = load_phases(str(path), words)
    assert train_phases(phases) == f"{tmp_path}/run/regression"
    trained = [phase for phase in phases if isinstance(phase.recipe, Recipe)]
    assert [phase.name for phase in trained] == ["teacher", "fine_tuned", "pseudo_labels", "regression"]
    for phase in trained:
        assert read_rows(str(phase.recipe.out))[-1]["step"] == 2 and "miou" in read_rows(str(phase.recipe.out))[-1]
        assert phase.recipe.init_from == (None if phase.name == "teacher" else f"{tmp_path}/run/teacher")
    columns = {phase.name: phase.recipe.target.columns for phase in trained}
    assert columns["fine_tuned"] == [] and columns["pseudo_labels"] == [f"{tmp_path}/run/copied"]


TRAINED = [path for path in RECIPES if path not in WEAK and path.stem != PAIRED]


@pytest.fixture(scope="module")
def siblings(domains: list[str]) -> set[Path]:
    """Recipes whose method another one trains on the same large network: a small one will do."""
    first: dict[tuple[str, str], Path] = {}
    later = set()
    for path in TRAINED:
        recipe = load_phases(str(path), [*domains, "out=unused"])[0].recipe
        large = recipe.model.name in ("deeplabv2_resnet101", "deeplabv2_vgg16")
        if large and first.setdefault((recipe.model.name, recipe.method.name), path) != path:
            later.add(path)
    return later


@pytest.mark.parametrize("path", [*TRAINED, Path("distuda/demo.yaml")], ids=lambda path: path.stem)
def test_a_recipe_trains_two_steps(path: Path, siblings: set[Path], domains: list[str], tmp_path: Path) -> None:
    words = [*CUT_DOWN, *domains, f"out={tmp_path / 'run'}"]
    whole = load_phases(str(path), words)[0].recipe
    if whole.augment.crop is not None:
        words.append("augment.crop=[48,64]")
    if path in siblings:
        words.append("model.name=deeplabv2_resnet18")
    if whole.model.name == "mit_b5":  # the smallest of its family: three copies of the largest take gigabytes
        words.append("model.name=mit_b0")
    if getattr(whole.method, "lambda_distance", 0):  # DAFormer and its heirs, made for Cityscapes' classes and size
        words += ["method.distance_classes=null", "method.margins=[2,6,0,0]"]
    if whole.model.detail is not None:
        words += ["model.detail=[32,32]", "augment.crop=[64,64]", "evaluation.size=[64,64]"]
    for phase in load_phases(str(path), words):
        if isinstance(phase.recipe, RelabelRecipe):
            relabel(phase.recipe)
            continue
        rows = read_rows(fit(settle(phase.recipe)))
        assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
        assert 0 <= rows[-1]["miou"] <= 1
