"""What APODA's perturbation must keep: no weight's gradient, one length everywhere, and the objective rises."""

from functools import partial

import pytest
import torch
from settings import DEEPLAB, SETTINGS, tiny_batch, tiny_method, tiny_recipe
from torch import Tensor

from distuda.data.augment import geometry
from distuda.draws import sample_seed
from distuda.errors import UserError
from distuda.methods.adversary import SOURCE, TARGET
from distuda.methods.apoda import Apoda, _distance
from distuda.methods.method import View
from distuda.methods.perturbation import AttackConfig, perturb
from distuda.models.segmenter import Features, Output

SEEDS = torch.tensor([sample_seed(0, "source", i) for i in range(2)])


def scene(*words: str) -> tuple[Apoda, dict[str, View], dict[str, Output]]:
    """A method, both domains' views and the student's outputs on them."""
    recipe = tiny_recipe(*SETTINGS["apoda"], *words)
    method = tiny_method(recipe)
    assert isinstance(method, Apoda)
    source, target = (geometry(tiny_batch(2, i), recipe.augment) for i in (1, 2))
    views = {"src": method.labelled_view(source), "tgt": View(target.image_BCHW, target.seed_B)}
    return method, views, method.run_student(views)


def moves_of(
    method: Apoda, views: dict[str, View], outputs: dict[str, Output], name: str, **changes: object
) -> Features:
    config = method.config.attack.model_copy(update=changes)
    method.config = method.config.model_copy(update={"attack": config})
    objectives = partial(method.attacked, {"src": SOURCE, "tgt": TARGET}[name], views[name], outputs[name])
    return perturb(outputs[name].features, objectives, (config.epsilon_adv, config.epsilon_cls), config, SEEDS)


def lengths(move_BDhw: Tensor) -> Tensor:
    return move_BDhw.norm(dim=1)


@pytest.mark.parametrize("name", ["src", "tgt"])
def test_the_attack_touches_no_weights_gradient(name: str) -> None:
    method, views, outputs = scene()
    moves_of(method, views, outputs, name)
    method.defend(name, views[name], outputs[name])
    assert all(parameter.grad is None for parameter in method.parameters())


def test_perturbed_passes_leave_the_running_statistics_alone() -> None:
    running = []
    for defended in (True, False):
        method: torch.nn.Module = scene()[0]
        if defended:
            recipe = tiny_recipe(*SETTINGS["apoda"])
            method = tiny_method(recipe)
            method(*(geometry(tiny_batch(2, i), recipe.augment) for i in (1, 2)))
        running.append({key: value for key, value in method.named_buffers() if "running" in key})
    assert running[0] and all(torch.equal(value, running[1][key]) for key, value in running[0].items())


@pytest.mark.parametrize("name", ["src", "tgt"])
@pytest.mark.parametrize("normalise", ["location", "sign"])
def test_every_location_moves_by_the_same_length(name: str, normalise: str) -> None:
    method, views, outputs = scene()
    for only in ("epsilon_adv", "epsilon_cls"):
        other = {"epsilon_adv": "epsilon_cls", "epsilon_cls": "epsilon_adv"}[only]
        if name == "src" and only == "epsilon_cls":
            views["src"] = views["src"]._replace(
                label_BHW=views["src"].label_BHW.clamp(max=3)
            )  # ignored ones have no slope
        move = moves_of(method, views, outputs, name, num_steps=1, normalise=normalise, **{only: 0.02, other: 0.0})
        expected = 0.02 * outputs[name].features[-1].detach().norm(dim=1).mean(dim=(1, 2))
        torch.testing.assert_close(
            lengths(move[-1]), expected[:, None, None].expand_as(lengths(move[-1])), rtol=1e-3, atol=0
        )
        assert not move[0].any()


def test_one_norm_an_image_lets_locations_differ() -> None:
    method, views, outputs = scene()
    move = moves_of(method, views, outputs, "tgt", num_steps=1, normalise="global", epsilon_adv=0.0, epsilon_cls=0.02)[
        -1
    ]
    expected = 0.02 * outputs["tgt"].features[-1].detach().norm(dim=1).mean(dim=(1, 2))
    torch.testing.assert_close(lengths(move).square().mean(dim=(1, 2)).sqrt(), expected)
    assert lengths(move).std() > 0.1 * expected.mean()


@pytest.mark.parametrize(("name", "domain"), [("src", SOURCE), ("tgt", TARGET)])
@pytest.mark.parametrize("attack", ["norm", "prediction"])
def test_the_attack_raises_both_objectives_and_a_random_one_less(name: str, domain: int, attack: str) -> None:
    method, views, outputs = scene(f"method.attack.target_attack={attack}")
    gains = {}
    for direction in ("gradient", "random"):
        move = moves_of(method, views, outputs, name, direction=direction, num_steps=3)
        clean = tuple(feature.detach() for feature in outputs[name].features)
        ends = tuple(a + b for a, b in zip(clean, move, strict=True))
        before, after = (method.attacked(domain, views[name], outputs[name], each) for each in (clean, ends))
        gains[direction] = [float((b - a).detach() / a.detach().abs()) for a, b in zip(before, after, strict=True)]
    assert min(gains["gradient"]) > 0
    assert all(a > 3 * abs(b) for a, b in zip(gains["gradient"], gains["random"], strict=True)), gains


def test_domains_move_towards_each_other() -> None:
    """Source features come to be judged more like target, target features more like source."""
    method, views, outputs = scene()
    for name, sign in (("src", 1), ("tgt", -1)):
        move = moves_of(method, views, outputs, name, epsilon_cls=0.0)
        size = tuple(views[name].image_BCHW.shape[-2:])
        judged = []
        for features in (
            outputs[name].features,
            tuple(a + b for a, b in zip(outputs[name].features, move, strict=True)),
        ):
            maps = method.judged_maps(method.student.decode(features, size).main)  # type: ignore[arg-type]
            judged.append(float(method.discriminators.judge_frozen(maps).detach().mean()))
        assert sign * (judged[1] - judged[0]) > 0


def test_without_steps_nothing_changes() -> None:
    method, views, outputs = scene("method.attack.epsilon_adv=0", "method.attack.epsilon_cls=0")
    for name in views:
        made = method.defend(name, views[name], outputs[name])
        assert float(made.objective[f"consistency_{name}"].detach()) == pytest.approx(0, abs=1e-6)
        assert float(made.metrics[f"flipped_{name}"]) == 0


def test_the_trunk_learns_from_perturbed_features_only_where_asked() -> None:
    for into_trunk in (True, False):
        method, views, outputs = scene(f"method.into_trunk={into_trunk}")
        loss = method.defend("src", views["src"], outputs["src"]).objective["seg_perturbed_src"]
        trunk = torch.autograd.grad(loss, method.student.encoder_parameters()[0], retain_graph=True, allow_unused=True)
        head = torch.autograd.grad(loss, method.student.head_parameters()[-1])
        assert (trunk[0] is not None) == into_trunk and head[0].any()


@pytest.mark.parametrize("kind", ["symmetric_kl", "jensen_shannon", "l2"])
def test_distances_are_symmetric_and_zero_for_equals(kind: str) -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert float(_distance(a, a, kind)) == pytest.approx(0, abs=1e-6) and float(_distance(a, b, kind)) > 0.01
    torch.testing.assert_close(_distance(a, b, kind), _distance(b, a, kind))
    if kind == "symmetric_kl":
        p, q = (x.softmax(1) for x in (a, b))
        expected = ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean() / 2
        torch.testing.assert_close(_distance(a, b, kind), expected)


def test_the_random_control_goes_as_far_as_the_attack_at_every_location() -> None:
    method, views, outputs = scene()
    attack, control, again = (
        moves_of(method, views, outputs, "tgt", direction=direction)[-1]
        for direction in ("gradient", "random", "random")
    )
    torch.testing.assert_close(lengths(control), lengths(attack), rtol=1e-4, atol=1e-6)
    assert torch.equal(control, again)
    cosine = torch.nn.functional.cosine_similarity(attack, control, dim=1)
    assert float(cosine.abs().mean()) < 0.2


def test_vanishing_slopes_give_steps_of_the_same_length_and_none_gives_none() -> None:
    features, config = (torch.ones(2, 3, 1, 4),), AttackConfig(num_steps=1)
    scale = torch.tensor([1.0, 1e-15, 1e-26, 0.0]).view(1, 1, 1, 4)
    move = perturb(features, lambda f: ((f[0] * scale).sum(),), (0.1,), config, SEEDS)[0]
    expected = 0.1 * 3**0.5 * torch.tensor([1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(lengths(move)[:, 0], expected.expand(2, 4))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="set per_domain"):
        scene("method.forward=joint")
    with pytest.raises(UserError, match="one scale"):
        scene("model.detail=[16,24]")


def test_dropout_meets_clean_and_perturbed_features_alike() -> None:
    words = ["model.name=mit_b0", "augment.crop=[32,48]", "method.attack.epsilon_adv=0", "method.attack.epsilon_cls=0"]
    recipe = tiny_recipe(*SETTINGS["apoda"], *words, "model.batch_norm=frozen")
    made = tiny_method(recipe)(*(geometry(tiny_batch(2, i), recipe.augment) for i in (1, 2)))
    assert float(made.metrics["flipped_src"]) == 0 and float(made.objective["consistency_tgt"]) < 1e-6


def test_a_teacher_beside_it_adds_mixed_images() -> None:
    recipe = tiny_recipe(*SETTINGS["apoda_taught"])
    method = tiny_method(recipe)
    made = method(*(geometry(tiny_batch(2, i), recipe.augment) for i in (1, 2)))
    assert float(made.objective["self_mix"]) > 0
    before = [parameter.clone() for parameter in method.teaching.teacher.parameters()]
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter += 1
    method.after_step()
    assert any(not torch.equal(a, b) for a, b in zip(before, method.teaching.teacher.parameters(), strict=True))


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"attack.layers=\[2\]: the network gives 2 feature maps"):
        scene("method.attack.layers=[2]")[0](*(geometry(tiny_batch(2, i), tiny_recipe().augment) for i in (1, 2)))


def test_a_layer_that_the_head_does_not_look_at_is_named() -> None:
    with pytest.raises(UserError, match=r"attack.layers=\[0\]: the main head .* does not look at feature map 0"):
        scene("method.attack.layers=[0]", *DEEPLAB)[0](
            *(geometry(tiny_batch(2, i), tiny_recipe().augment) for i in (1, 2))
        )
