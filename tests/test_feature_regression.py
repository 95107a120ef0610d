"""Feature regression: what is compared with what, what learns, and what must not move."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from settings import SETTINGS, TABLE, TINY, tiny_batch, tiny_method, tiny_recipe, tiny_samples
from torch import Tensor

from distuda.cluster.train import train
from distuda.data.augment import geometry
from distuda.data.batch import Batch
from distuda.data.shards import write_shards
from distuda.data.transformations import camera, misalign
from distuda.engine.inputs import open_data
from distuda.engine.loop import fit, settle
from distuda.engine.run import open_run, read_rows
from distuda.engine.step import Step
from distuda.errors import UserError
from distuda.methods.feature_regression import FeatureRegression

WORDS = SETTINGS["feature_regression"]
GIVEN = [*WORDS, "method.pairs=given"]
STILL = ["model.batch_norm=frozen", "model.weights=imagenet"]  # features without the batch's own statistics


def made(*words: str) -> FeatureRegression:
    method = tiny_method(tiny_recipe(*words))
    assert isinstance(method, FeatureRegression)
    return method


def batches(*, pairs: bool = False, count: int = 2) -> tuple[Batch, Batch]:
    """Both domains' batches as a method gets them; the target's pairs are its negatives."""
    source, target = tiny_batch(count, 1), tiny_batch(count, 2, "target")
    if pairs:
        target = replace(target, pair_BCHW=255 - target.image_BCHW)
    recipe = tiny_recipe(*WORDS)
    return geometry(source, recipe.augment), geometry(target, recipe.augment)


def features(method: FeatureRegression, name: str, image: Tensor) -> tuple[Tensor, ...]:
    network = getattr(method, name)
    return network.encode(network.normalise(image))


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_the_loss_is_the_weighted_distance_of_each_layer(distance: str) -> None:
    method = made(*GIVEN, *STILL, "method.layers=[0,-1]", "method.layer_weights=[0.5,2]", f"method.distance={distance}")
    source, target = batches(pairs=True)
    losses = method(source, target).objective
    wanted, got = features(method, "teacher", target.pair_BCHW), features(method, "student", target.image_BCHW)
    for name, layer, weight in (("features_0", 0, 0.5), ("features_-1", -1, 2.0)):
        a, b = wanted[layer], got[layer]
        per_image = {
            "l2": lambda a, b: (b - a).square().flatten(1).sum(1) / a[0].numel(),
            "l1": lambda a, b: (b - a).abs().flatten(1).sum(1) / a[0].numel(),
            "cosine": lambda a, b: 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).flatten(1).mean(1),
        }[distance](a, b)
        torch.testing.assert_close(losses[name], weight * per_image.mean(), rtol=1e-4, atol=1e-6)
    assert list(losses) == ["features_0", "features_-1"]


def test_given_pairs_the_teacher_sees_the_pair_and_no_source_or_label_is_needed() -> None:
    method = made(*GIVEN)
    source, target = batches(pairs=True)
    old, new = method.views(source, target)
    assert old is target.pair_BCHW and new is target.image_BCHW
    blank = replace(source, image_BCHW=torch.zeros_like(source.image_BCHW), label_BHW=None)
    unlabelled = replace(target, label_BHW=None)
    assert torch.equal(method(blank, unlabelled).total(), method(source, target).total())


def test_synthetic_pairs_are_source_crops_and_another_cameras_view_of_them() -> None:
    method = made(*WORDS, "method.camera.hue=0.1", "method.misalignment.pixels=8")
    source, target = batches()
    old, new = method.views(replace(source, label_BHW=None), replace(target, label_BHW=None))
    assert old is source.image_BCHW
    changed = camera(source.image_BCHW, source.seed_B, method.config.camera)
    assert torch.equal(new, misalign(changed, source.seed_B, method.config.misalignment))
    assert not torch.equal(new, changed) and method.config.camera.hue == 0.1


def test_equal_views_have_no_distance() -> None:
    off = {"blur": 0, "saturation": 1, "contrast": 1, "gamma": 1, "noise": 0}
    same = [f"method.camera.{name}={value}" for name, value in off.items()]
    method = made(*WORDS, *STILL, *same, "method.misalignment.pixels=0")
    assert method(*batches()).total() < 1e-9


def test_only_the_trunk_learns_and_the_teacher_keeps_its_statistics() -> None:
    recipe = tiny_recipe(*WORDS, "optimizer.lr=1e-2")
    method = tiny_method(recipe)
    step = Step(method, recipe, torch.device("cpu"))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    for number in range(3):
        method.train()
        step(tiny_batch(2, number), tiny_batch(2, number, "target"))
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])} - {"step"}
    assert moved and all(name.startswith("student.encoder") for name in moved)
    assert any("running_mean" in name for name in moved) and "student.encoder.stem.0.weight" in moved
    assert not any(module.training for module in method.teacher.modules()) and method.student.training
    assert method.predictor() is method.student


def test_only_what_a_layer_depends_on_learns() -> None:
    first, last = (made(*WORDS, f"method.layers=[{layer}]") for layer in (0, -1))
    counts = [sum(p.requires_grad for p in method.student.parameters()) for method in (first, last)]
    assert 0 < counts[0] < counts[1] == len(last.student.encoder_parameters())
    assert len(first.parameter_groups()[0].parameters) == counts[0]


def test_the_gradient_of_a_batch_is_the_mean_of_its_halves() -> None:
    """What DDP does with ranks; normalisation is frozen, as in the tests of ranks."""

    def grads(pick: slice) -> dict[str, Tensor]:
        method = made(*GIVEN, *STILL)
        parts = [
            Batch(b.image_BCHW[pick], None, b.seed_B[pick], [], None if b.pair_BCHW is None else b.pair_BCHW[pick])
            for b in batches(pairs=True, count=4)
        ]
        method(*parts).total().backward()
        return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}

    whole, low, high = grads(slice(0, 4)), grads(slice(0, 2)), grads(slice(2, 4))
    for name, value in whole.items():
        assert (value - (low[name] + high[name]) / 2).norm() <= 1e-4 * value.norm() + 1e-8, name


def test_the_student_comes_to_see_what_the_teacher_saw() -> None:
    recipe = tiny_recipe(
        *WORDS, *STILL, "optimizer.lr=1e-3", "optimizer.schedule=constant", "method.misalignment.pixels=0"
    )
    method = tiny_method(recipe)
    assert isinstance(method, FeatureRegression)
    step = Step(method, recipe, torch.device("cpu"))
    unseen = geometry(tiny_batch(4, 99), recipe.augment)

    def distance() -> float:
        with torch.no_grad():
            old, new = method.views(unseen, unseen)
            return float(F.mse_loss(features(method, "student", new)[-1], features(method, "teacher", old)[-1]))

    before = distance()
    for number in range(12):
        step(tiny_batch(2, number), tiny_batch(2, number, "target"))
    assert distance() < 0.7 * before


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("method.layer_weights=[1,1]", r"method.layer_weights=\[1, 1\].*2 weights for 1 layers"),
        ("method.layer_weights=[-1]", "greater than or equal to 0"),
        ("method.layers=[]", "method.layers"),
        ("method.camera.channels=rgx", "method.camera.channels='rgx'.*0 = a dark one"),
        ("method.camera.contrst=1", "did you mean 'contrast'"),
    ],
)
def test_a_mistake_is_named(word: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny_recipe(*WORDS, word)


def test_a_layer_that_the_network_lacks_is_named() -> None:
    with pytest.raises(UserError, match=r"layers=\[2\].*gives 2 feature maps. Choose from -2 to 1"):
        made(*WORDS, "method.layers=[2]")


def test_a_run_on_a_data_set_with_pairs(tmp_path: Path, domains: list[str]) -> None:
    new, old = tiny_samples(6, 7, labelled=False), tiny_samples(6, 8, labelled=False, size=(48, 64))
    paired = [replace(a, pair=b.image if i else None) for i, (a, b) in enumerate(zip(new, old, strict=True))]
    write_shards(paired, str(tmp_path / "pairs"), TABLE, row_group_bytes=12_000)
    start = fit(settle(tiny_recipe(*domains, f"out={tmp_path / 'start'}", "steps=1")))
    words = [*TINY, *domains, *GIVEN, f"init_from={start}", f"target.uri={tmp_path / 'pairs'}"]
    folder = train(tiny_recipe(*words, f"out={tmp_path / 'run'}", "steps=4", "evaluation.limit=1"))
    assert [row["step"] for row in read_rows(folder) if row["kind"] == "train"] == [1, 2, 3, 4]
    teacher, student = open_run(start).predictor.state_dict(), open_run(folder).predictor.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in teacher.items() if name.startswith("decoder"))
    assert not torch.equal(teacher["encoder.stem.0.weight"], student["encoder.stem.0.weight"])


def test_what_is_missing_is_said_at_once(domains: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target.uri.* has no pairs.* Prepare it with --pairs"):
        open_data(tiny_recipe(*domains, *GIVEN))
    with pytest.raises(UserError, match="Name its run folder with init_from=RUN"):
        train(tiny_recipe(*domains, *WORDS, f"out={tmp_path / 'run'}"))
