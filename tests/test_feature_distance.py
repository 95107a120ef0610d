"""DAFormer's feature distance and pseudo-label margins."""

from typing import Any

import pytest
import torch
from settings import DEEPLAB, SETTINGS, TABLE, tiny_batch, tiny_method, tiny_recipe

from distuda.data.augment import geometry
from distuda.errors import UserError
from distuda.methods.feature_distance import FeatureDistance
from distuda.methods.method import View
from distuda.models import build_model

SEEDS = torch.arange(2)


def distance(min_share: float = 0.75, things: tuple[int, ...] = (1, 3)) -> Any:
    return FeatureDistance(build_model(tiny_recipe().model, 4, 0), things, min_share)


def test_cells_hold_one_thing_in_a_large_enough_share() -> None:
    label = torch.full((1, 8, 8), 0)
    label[:, :4, :4] = 3  # a whole cell
    label[:, :4, 4:7] = 1  # three quarters of a cell
    label[:, 4:, :2], label[:, 4:, 2:4] = 1, 3  # all things, none of them by itself
    label[:, 4:, 4:] = 255
    assert distance().thing_cells(label, (2, 2)).tolist() == [[[True, True], [False, False]]]
    assert distance(0.76).thing_cells(label, (2, 2)).tolist() == [[[True, False], [False, False]]]
    assert not distance(things=(2,)).thing_cells(label, (2, 2)).any()


def test_the_mean_is_over_thing_cells_alone() -> None:
    module, image = distance(), torch.rand(2, 3, 32, 32)
    start = module.reference.encode(module.reference.normalise(image))
    label = torch.zeros(2, 32, 32, dtype=torch.int64)
    label[0, :16, :16] = 3
    moved = start[-1].clone()
    moved[0, 0, 0, 0] += 5  # in the thing
    moved[1] += 100  # not in one
    value = module((*start[:-1], moved), View(image, SEEDS, label))
    assert float(value) == pytest.approx(5, rel=1e-3)  # 2x2 cells of stride 16, one of them of the thing
    assert float(module((*start[:-1], moved), View(image, SEEDS, torch.zeros_like(label)))) == 0


def test_its_slope_is_finite_at_the_start_and_the_reference_stays() -> None:
    recipe = tiny_recipe(*SETTINGS["self_training_distance"])
    method: Any = tiny_method(recipe)
    assert method.training and not method.distance.reference.training
    image = torch.rand(2, 3, 32, 32)
    features = tuple(
        f.detach().requires_grad_() for f in method.distance.reference.encode(method.student.normalise(image))
    )
    label = torch.full((2, 32, 32), 3)
    method.distance(features, View(image, SEEDS, label)).backward()
    assert features[-1].grad.isfinite().all()
    before = [p.clone() for p in method.distance.reference.parameters()]
    method(*(geometry(tiny_batch(2, i), recipe.augment) for i in (1, 2))).total().backward()
    assert all(p.grad is None for p in method.distance.reference.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, method.distance.reference.parameters(), strict=True))


@pytest.mark.parametrize("words", [[], DEEPLAB, ["model.name=deeplabv2_vgg16"], ["model.name=mit_b0"]])
def test_the_reference_is_the_trunk_alone(words: list[str]) -> None:
    student = build_model(tiny_recipe(*words, "model.weights=none").model, 4, 0).eval()
    reference, image = FeatureDistance(student, (1,), 0.75).eval().reference, torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for kept, whole in zip(reference.encode(image), student.encode(image), strict=True):
            torch.testing.assert_close(kept, whole)
    heads = {id(p) for p in student.head_parameters()}
    assert heads and [n for n, _ in reference.named_parameters()] == [
        name for name, p in student.named_parameters() if id(p) not in heads
    ]
    assert not any("head" in name or "decoder" in name for name in reference.state_dict())


def test_a_table_without_things_is_refused() -> None:
    with pytest.raises(UserError, match="has none"):
        FeatureDistance(build_model(tiny_recipe().model, TABLE.num_classes, 0), (), 0.75)


def test_margins_have_no_pseudo_labels() -> None:
    recipe = tiny_recipe(*SETTINGS["self_training_margins"])
    method: Any = tiny_method(recipe)
    _, weight, _ = method.teaching.pseudo_label(geometry(tiny_batch(2, 2), recipe.augment))
    inner = torch.zeros_like(weight)
    inner[:, 3:-2, 1:-4] = 1
    assert torch.equal(weight > 0, inner > 0)


def test_margins_that_leave_nothing_and_unknown_classes_are_refused() -> None:
    recipe = tiny_recipe(*SETTINGS["self_training_margins"], "method.margins=[20,12,0,0]")
    method: Any = tiny_method(recipe)
    with pytest.raises(UserError, match="48x32"):
        method.teaching.pseudo_label(geometry(tiny_batch(2, 2), recipe.augment))
    flipped = [*SETTINGS["self_training_margins"], "method.margins=[0,0,8,0]", "augment.flip=0.5"]
    with pytest.raises(UserError, match=r"margins=\[0, 0, 8, 0\] leave out more on one side.*augment.flip=0"):
        tiny_method(tiny_recipe(*flipped))
    with pytest.raises(UserError, match=r"distance_classes: .*'lamp'"):
        tiny_method(tiny_recipe(*SETTINGS["self_training_distance"], "method.distance_classes=[lamb]"))


def test_without_weight_nothing_is_mixed() -> None:
    recipe = tiny_recipe(*SETTINGS["self_training_masked"], "method.lambda_mix=0")
    made = tiny_method(recipe)(*(geometry(tiny_batch(2, i), recipe.augment) for i in (1, 2)))
    assert "self_mix" not in made.objective and float(made.objective["self_mask"].detach()) > 0


@pytest.mark.parametrize("name", ["source_only", "minent", "advent", "apoda", "vat", "self_training"])
def test_who_has_the_field_learns_by_it(name: str) -> None:
    words = [f"method.name={name}", "method.distance_min_share=0.2", "method.distance_classes=[ground,wall]"]
    made = []
    for weight in (0.1, 0.2):
        recipe = tiny_recipe(*words, f"method.lambda_distance={weight}")
        batches = {
            domain: geometry(tiny_batch(2, i, domain), recipe.augment)
            for i, domain in enumerate(("source", "target"))
            if domain in recipe.method.reads
        }
        made.append(tiny_method(recipe)(**batches).objective["distance_src"])
    assert made[0] > 0 and made[1].item() == pytest.approx(2 * made[0].item(), rel=1e-5) and made[0].requires_grad
