"""What every method must keep: finite losses, no idle parameter, ranks that add up, and the papers' own orders."""

import copy
import dataclasses
import os
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from settings import SETTINGS, TABLE, tiny_batch, tiny_method, tiny_recipe
from torch import Tensor, nn

from distuda.data.augment import geometry
from distuda.data.batch import Batch
from distuda.engine.calibrate import calibrate
from distuda.engine.ema import update_ema
from distuda.engine.step import Step
from distuda.errors import UserError
from distuda.losses import self_information
from distuda.methods import METHODS
from distuda.methods.advent import AdvEnt, Ensemble
from distuda.methods.method import Losses, Method
from distuda.methods.self_training import SelfTraining
from distuda.models import build_model
from distuda.recipe import Recipe

CPU = torch.device("cpu")
STEPS = 2
VARIANTS = [name for name in SETTINGS if name != "self_training_rare"]  # that one differs in its stream alone


def step_of(name: str, *overrides: str) -> tuple[Method, Step]:
    recipe = tiny_recipe(*SETTINGS[name], *overrides)
    method = tiny_method(recipe)
    return method, Step(method, recipe, CPU)


def cropped(batch: Batch, recipe: Recipe) -> Batch:
    return geometry(batch, recipe.augment)


def test_every_method_is_in_the_settings() -> None:
    assert {tiny_recipe(*words).method.name for words in SETTINGS.values()} == set(METHODS)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_step_is_finite_and_uses_every_parameter(name: str) -> None:
    method, step = step_of(name)
    before = {key: value.clone() for key, value in method.named_parameters()}
    made: list[Losses] = []
    step.wrapped = lambda **batches: made.append(method(**batches)) or made[-1]
    scalars = step(tiny_batch(2, 1), tiny_batch(2, 2, "target"))
    assert all(torch.isfinite(value) and value.ndim == 0 for value in scalars.values())
    assert all(value.item() > 0 for value in made[0].objective.values()), made[0].objective
    assert scalars["loss"].item() == pytest.approx(sum(value.item() for value in made[0].objective.values()), rel=1e-6)
    assert not any(value.requires_grad for value in made[0].metrics.values())
    trainable = {key: value for key, value in method.named_parameters() if value.requires_grad}
    idle = [key for key, value in trainable.items() if value.grad is None or not value.grad.isfinite().all()]
    assert not idle
    still = [key for key, value in trainable.items() if not value.grad.any() and torch.equal(value, before[key])]
    assert not still
    stepped = [p for optimizer in step.optimizers for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in stepped} == {id(p) for p in trainable.values()} and len(stepped) == len(trainable)
    assert int(method.step) == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_unlabelled_targets_and_ignored_sources_do_no_harm(name: str) -> None:
    method, step = step_of(name)
    source, target = tiny_batch(2, 1), tiny_batch(2, 2, "target")
    source.label_BHW = torch.full_like(source.label_BHW, 255)
    if "label" not in step.recipe.method.reads.get("target", ()):
        target.label_BHW = None
    assert all(torch.isfinite(value) for value in step(source, target).values())
    assert all(value.isfinite().all() for value in method.parameters())


@pytest.mark.parametrize("name", ["minent", "advent", "self_training"])
def test_bfloat16_and_accumulation_work(name: str) -> None:
    method, step = step_of(name, "precision=bf16", "accumulate=2", "optimizer.clip_norm=1")
    scalars = step(tiny_batch(2, 1), tiny_batch(2, 2, "target"))
    assert all(torch.isfinite(value) for value in scalars.values())
    assert all(value.dtype == torch.float32 for value in method.parameters())


def test_accumulation_equals_one_pass_where_the_counts_agree() -> None:
    """With frozen normalisation and fully labelled images the micro-batches' mean is the batch's."""
    grads = []
    for parts in (1, 2):
        method, step = step_of("minent", f"accumulate={parts}", "model.batch_norm=frozen", "model.weights=imagenet")
        source = tiny_batch(2, 1)
        source.label_BHW = source.label_BHW.clamp(max=3)
        step(source, tiny_batch(2, 2, "target"))
        grads.append({key: value.grad for key, value in method.named_parameters()})
    for key, value in grads[0].items():
        torch.testing.assert_close(grads[1][key], value, rtol=1e-3, atol=1e-5 * float(value.abs().max()))


# Two ranks -----------------------------------------------------------------------------------------------------------


def frozen_words(name: str) -> list[str]:
    """Plain SGD without batch statistics: what is left must add up over ranks."""
    weights = [] if "model.name" in " ".join(SETTINGS[name]) else ["model.weights=imagenet"]
    lr = "1e-6" if not weights else "1e-2"  # DeepLab without its statistics has huge activations
    return ["model.batch_norm=frozen", "optimizer.name=sgd", f"optimizer.lr={lr}", "optimizer.clip_norm=10", *weights]


def smooth(method: Method) -> Method:
    """Rectifiers without their kink: a unit within rounding of 0 would have its whole slope on one side only."""
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(module, name, nn.SiLU())
    return method


def trained_state(name: str, pick: slice) -> dict[str, Tensor]:
    """Parameters after a few steps on a part of the same four samples a domain."""
    recipe = tiny_recipe(*SETTINGS[name], *frozen_words(name))
    method = smooth(tiny_method(recipe))
    step = Step(method, recipe, CPU)
    for number in range(STEPS):
        batches = [tiny_batch(4, 10 * number + i, domain) for i, domain in enumerate(("source", "target"))]
        batches[0].label_BHW[0, :, 20:] = 255  # ranks hold different numbers of labelled pixels
        step(*(batch[pick] for batch in batches))
    return {key: value.detach() for key, value in method.named_parameters()}


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        states: dict[str, Any] = {name: trained_state(name, slice(2 * rank, 2 * rank + 2)) for name in VARIANTS}
        torch.save(states, f"{folder}/rank{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """Every variant trained by two processes that split the batch; one start of processes for all."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.timeout(900)  # the first of them trains every variant on two ranks
@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_equal_one_with_the_double_batch(name: str, two_ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    start = {
        key: value.detach()
        for key, value in tiny_method(tiny_recipe(*SETTINGS[name], *frozen_words(name))).named_parameters()
    }
    alone = trained_state(name, slice(0, 4))
    for key, value in alone.items():
        mine, other = (state[name][key] for state in two_ranks)
        assert torch.equal(mine, other), key
        moved = (value - start[key]).norm()
        assert (mine - value).norm() <= 1e-5 * value.norm() + 1e-7, key
        assert (mine - value).norm() <= 0.01 * moved + 1e-7 * (1 + value.norm()), key


# ADVENT --------------------------------------------------------------------------------------------------------------


def three_passes(method: AdvEnt, source: Batch, target: Batch) -> None:
    """The released code's order: source loss, fooling loss with frozen discriminators, then the discriminators."""
    config = method.config

    def toggle(on: bool) -> None:
        for parameter in method.discriminators.parameters():
            parameter.requires_grad_(on)

    def maps(output: Any) -> list[Tensor]:
        return [self_information(logits) for logits in (output.main, output.aux) if logits is not None]

    def bce(logits: Tensor, code: float) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, code))

    toggle(False)
    output_src = method.student(source.image_BCHW)
    loss = F.cross_entropy(output_src.main, source.label_BHW, ignore_index=255)
    if output_src.aux is not None:
        loss = loss + config.lambda_seg_aux * F.cross_entropy(output_src.aux, source.label_BHW, ignore_index=255)
    loss.backward()
    output_tgt = method.student(target.image_BCHW)
    weights = (config.lambda_adv, config.lambda_adv_aux)
    pairs = list(zip(method.discriminators, maps(output_src), maps(output_tgt), weights, strict=False))
    sum(weight * bce(judge(tgt), 0.0) for judge, _, tgt, weight in pairs).backward()
    toggle(True)
    for judge, src, tgt, _ in pairs:
        (bce(judge(src.detach()), 0.0) / 2).backward()
        (bce(judge(tgt.detach()), 1.0) / 2).backward()


@pytest.mark.parametrize("name", ["advent", "advent_multi_level"])
def test_one_backward_equals_the_papers_three(name: str) -> None:
    words = ["augment.photometry_labelled=false", "method.lambda_adv=0.5", "method.lambda_adv_aux=0.3"]
    recipe = tiny_recipe(*SETTINGS[name], *words)
    source, target = (cropped(tiny_batch(2, i), recipe) for i in (1, 2))
    grads = []
    for passes in (lambda m: m(source, target).total().backward(), lambda m: three_passes(m, source, target)):
        method = tiny_method(recipe)
        passes(method)
        grads.append({key: value.grad for key, value in method.named_parameters() if value.requires_grad})
    for key, value in grads[1].items():
        assert (grads[0][key] - value).norm() <= 1e-5 * value.norm() + 1e-9, key


def test_discriminators_train_before_fooling_starts() -> None:
    _method, step = step_of("advent", "method.start_step=1")
    first, second = (step(tiny_batch(2, 1), tiny_batch(2, 2)) for _ in range(2))
    assert first["adv_tgt"] == 0 and first["discriminator"] > 0 and second["adv_tgt"] > 0


def test_an_ensemble_averages_main_logits() -> None:
    members = [build_model(tiny_recipe(*SETTINGS["advent_multi_level"]).model, 4, seed).eval() for seed in (0, 1)]
    image = torch.rand(1, 3, 33, 47)
    output = Ensemble(members)(image)
    torch.testing.assert_close(output.main, (members[0](image).main + members[1](image).main) / 2)
    assert output.aux is None and Ensemble(members).align_corners == members[0].align_corners


# Self-training -------------------------------------------------------------------------------------------------------


def test_the_teacher_starts_as_the_student_and_follows_the_papers_decay() -> None:
    method, step = step_of("self_training", "method.ema_decay=0.6")
    assert isinstance(method, SelfTraining)
    decays = []
    for number in range(4):
        teacher = [p.clone() for p in method.teaching.teacher.parameters()]
        step(tiny_batch(2, number), tiny_batch(2, number + 50, "target"))
        pairs = zip(teacher, method.teaching.teacher.parameters(), method.student.parameters(), strict=True)
        old, new, student = (torch.cat([p.detach().flatten() for p in part]) for part in zip(*pairs, strict=True))
        decays.append(float(((new - student) * (old - student)).sum() / ((old - student) ** 2).sum()))
    assert decays == pytest.approx([0, 1 / 2, 0.6, 0.6], abs=1e-3)  # min(1 - 1 / (t + 1), 0.6)


def test_the_moving_average_never_waits_for_the_device() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # reading a value on the host raises here
        update_ema(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3), torch.rand(()))


def test_the_average_moves_parameters_only() -> None:
    average, network = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        network.weight.fill_(5)
        network.running_mean.fill_(5)
    update_ema(average, network, 0.75)
    assert average.weight.tolist() == [2, 2] and average.running_mean.tolist() == [0, 0]
    assert network.weight.tolist() == [5, 5]


def test_pseudo_labels_and_their_weight() -> None:
    method, step = step_of("self_training")
    target = cropped(tiny_batch(2, 2), step.recipe)
    teaching = method.teaching
    label, weight, max_prob = teaching.pseudo_label(target)
    probability = teaching.teacher(target.image_BCHW).main.softmax(1)
    assert torch.equal(label, probability.argmax(1))
    share = (probability.amax(1) >= method.config.confidence).float().mean()
    assert weight.unique().tolist() == pytest.approx([share.item()]) and not weight.requires_grad
    assert max_prob.min() >= 1 / TABLE.num_classes
    teaching.config = teaching.config.model_copy(update={"weighting": "pixel"})
    _, weight, max_prob = teaching.pseudo_label(target)
    assert torch.equal(weight, (max_prob >= method.config.confidence).float()) and 0 < weight.mean() < 1


def test_mixed_images_labels_and_weights_come_from_the_same_side() -> None:
    method, step = step_of("self_training", "augment.photometry.probability=0", "augment.photometry.blur=0")
    source, target = (cropped(tiny_batch(2, i), step.recipe) for i in (1, 2))
    image, _, label, weight = method.teaching.views(source, target)[0]["mix"]
    pasted = (image - source.image_BCHW).abs().amax(1) < 1e-5
    kept = (image - target.image_BCHW).abs().amax(1) < 1e-5
    assert (pasted | kept).all() and pasted.any() and kept.any()
    pseudo, q, _ = method.teaching.pseudo_label(target)
    assert torch.equal(label[~pasted], pseudo[~pasted]) and torch.equal(label[~kept], source.label_BHW[~kept])
    assert (weight[~kept] == 1).all() and torch.equal(weight[~pasted], q[~pasted])


def test_the_sure_share_is_of_what_is_shown() -> None:
    method, step = step_of("self_training", "augment.crop=[64,64]")
    source, target = (cropped(tiny_batch(2, i), step.recipe) for i in (1, 2))
    _, weight, max_prob = method.teaching.pseudo_label(target)
    shown = target.shown_BHW
    share = (max_prob >= method.config.confidence)[shown].float().mean()
    assert weight[shown].unique().tolist() == pytest.approx([share.item()]) and not weight[~shown].any()
    everything = dataclasses.replace(target, shown_BHW=None)
    mixed = [method.teaching.views(source, one)[0]["mix"].label_BHW for one in (target, everything)]
    for label in mixed:  # a small source image covers nothing of the target with its black
        assert (label[~source.shown_BHW] != 255).all()


def test_beside_a_small_target_there_are_no_pseudo_labels() -> None:
    method, step = step_of("self_training_masked", "augment.crop=[64,64]")
    source, target = (cropped(tiny_batch(2, i), step.recipe) for i in (1, 2))
    view = method.teaching.views(source, target)[0]["mask"]
    assert torch.equal(view.weight_BHW > 0, target.shown_BHW) and not target.shown_BHW.all()


def test_statistics_of_the_source_are_those_of_its_passes_alone() -> None:
    method, step = step_of("self_training_statistics")
    source, target = (tiny_batch(2, i) for i in (1, 2))
    alone = copy.deepcopy(method.student)
    step(source, target)
    view = method.labelled_view(cropped(source, step.recipe))
    alone(view.image_BCHW, view.seed_B)
    state = method.student.state_dict()
    running = {name: value for name, value in alone.state_dict().items() if "running_" in name}
    assert running and all(torch.equal(value, state[name]) for name, value in running.items())
    for mine, theirs in zip(method.teaching.teacher.buffers(), method.student.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    crops = cropped(target, step.recipe)
    one, both = (method.teaching.pseudo_label(batch)[2][0] for batch in (crops[:1], crops))
    torch.testing.assert_close(one, both)  # normalised by the batch, it would depend on the rest of it
    assert step_of("self_training")[0].teaching.teacher.training and not method.teaching.teacher.training


def test_a_taught_apoda_keeps_statistics_of_the_source() -> None:
    words = ["method.self_training.statistics=source", "method.calibrate_images=0"]
    method, step = step_of("apoda_taught", *words)
    source = tiny_batch(2, 1)
    alone = copy.deepcopy(method.student)
    step(source, tiny_batch(2, 2))
    view = method.labelled_view(cropped(source, step.recipe))
    alone(view.image_BCHW, view.seed_B)
    state = method.student.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in alone.state_dict().items() if "running_" in name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("self_training", ["method.statistics=source"]),  # calibrates by default
        ("self_training", ["method.statistics=source", "method.calibrate_images=0", "method.forward=joint"]),
        ("apoda", ["method.self_training.statistics=source", "method.calibrate_images=8"]),
    ],
)
def test_statistics_of_the_source_are_not_mixed_or_replaced(name: str, words: list[str]) -> None:
    with pytest.raises(UserError, match=r"statistics=source .*Set calibrate_images=0 and forward=per_domain"):
        tiny_method(tiny_recipe(f"method.name={name}", *words))


def test_hidden_blocks_are_zero_once_normalised() -> None:
    words = ["method.mask_ratio=0.5", "augment.photometry.probability=0", "augment.photometry.blur=0"]
    method, step = step_of("self_training_masked", *words)
    source, target = (cropped(tiny_batch(2, i), step.recipe) for i in (1, 2))
    views, _ = method.teaching.views(source, target)
    view = method.student.normalise(views["mask"].image_BCHW)
    shown = (view - method.student.normalise(target.image_BCHW)).abs().amax(1) < 1e-4
    assert 0.2 < shown.float().mean() < 0.8
    assert view.abs().amax(1)[~shown].max() < 1e-6
    pseudo, weight, _ = method.teaching.pseudo_label(target)
    assert torch.equal(views["mask"].label_BHW, pseudo) and torch.equal(views["mask"].weight_BHW, weight)


@pytest.mark.parametrize(("which", "same"), [("student", "student"), ("teacher", "teacher")])
def test_what_is_evaluated(which: str, same: str) -> None:
    method, _ = step_of("self_training", f"method.predict_with={which}")
    assert method.predictor() is {"student": method.student, "teacher": method.teaching.teacher}[same]


@pytest.mark.parametrize("name", ["tps", "davsn", "psl", "minent"])
def test_frozen_statistics_are_never_measured_anew(name: str) -> None:
    method, _ = step_of(name, "model.batch_norm=frozen")
    predictor = method.predictor()
    before = {key: value.clone() for key, value in predictor.state_dict().items()}
    calibrate(predictor, [tiny_batch(2, 2).image_BCHW])
    assert all(torch.equal(value, before[key]) for key, value in predictor.state_dict().items())


# Frozen normalisation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["advent", "self_training"])
def test_frozen_statistics_stay_and_trained_ones_move(name: str) -> None:
    for mode, moves in (("frozen", False), ("train", True)):
        method, step = step_of(name, f"model.batch_norm={mode}")
        before = {key: value.clone() for key, value in method.named_buffers() if "running" in key}
        step(tiny_batch(2, 1), tiny_batch(2, 2))
        moved = [not torch.equal(value, before[key]) for key, value in method.named_buffers() if key in before]
        assert all(moved) if moves else not any(moved)


def test_each_level_has_its_discriminator() -> None:
    multi, _ = step_of("advent_multi_level")
    single, _ = step_of("advent")
    assert len(multi.discriminators) == 2 and len(single.discriminators) == 1
