"""VAT, DA-VSN, TPS and video consistency: what is carried along flow, what is judged, and what is learnt through."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from settings import DEEPLAB, SETTINGS, SURE, tiny_batch, tiny_method, tiny_recipe
from torch import Tensor

from distuda import losses
from distuda.data.augment import classmix_mask, geometry
from distuda.data.batch import Batch
from distuda.data.flow import consistent
from distuda.errors import UserError
from distuda.methods import tps
from distuda.methods.adversary import Judges, divergence
from distuda.methods.davsn import DaVsn, propagated, two_frames
from distuda.methods.method import View
from distuda.methods.self_training import SelfTraining
from distuda.methods.tps import Tps
from distuda.methods.video import VideoAdversarial, sequence_maps
from distuda.models.fusion import Fused
from distuda.warp import compose, inside, resize_flow, warp, warp_label


def batches(count: int = 2) -> tuple[Batch, Batch]:
    augment = tiny_recipe().augment
    return geometry(tiny_batch(count, 1), augment), geometry(tiny_batch(count, 2, "target"), augment)


def shifted(size: tuple[int, int], x: float, y: float) -> Tensor:
    return torch.tensor([x, y])[None, :, None, None].expand(1, 2, *size).clone()


# Warping -------------------------------------------------------------------------------------------------------------


def test_a_translation_moves_every_pixel_and_leaves_0_outside() -> None:
    image = torch.rand(1, 3, 6, 8)
    moved = warp(image, shifted((6, 8), 2, -1))
    assert torch.allclose(moved[..., 1:, :6], image[..., :-1, 2:], atol=1e-6)
    assert moved[..., 0, :].abs().max() < 1e-5 and moved[..., 6:].abs().max() < 1e-5
    half = warp(image, shifted((6, 8), 0.5, 0))
    assert torch.allclose(half[..., :7], (image[..., :-1] + image[..., 1:]) / 2, atol=1e-6)
    label = torch.randint(0, 4, (1, 6, 8))
    carried = warp_label(label, shifted((6, 8), 2, -1))
    assert torch.equal(carried[:, 1:, :6], label[:, :-1, 2:])
    assert (carried[:, 0] == 255).all() and (carried[:, :, 6:] == 255).all()
    where = inside(shifted((6, 8), 2, -1))
    assert torch.equal(where, carried != 255)
    part = shifted((6, 8), 1.4, -0.4)
    back = part[0].permute(1, 2, 0).numpy()
    assert np.array_equal(consistent(back, -back), inside(part)[0].numpy()), "up to the borders"


def test_a_rotation_is_undone_by_its_inverse() -> None:
    size, angle = 33, 0.3
    y, x = torch.meshgrid(torch.arange(size) - 16.0, torch.arange(size) - 16.0, indexing="ij")

    def turn(angle: float) -> Tensor:
        cos, sin = np.cos(angle), np.sin(angle)
        return torch.stack([cos * x - sin * y - x, sin * x + cos * y - y])[None]

    smooth = (torch.sin(x / 4) + torch.cos(y / 5))[None, None]
    there = warp(warp(smooth, turn(angle)), turn(-angle))
    round_ = (x**2 + y**2).sqrt() < 13
    assert (there - smooth)[0, 0][round_].abs().max() < 0.05
    back, forth = (turn(a)[0].permute(1, 2, 0).numpy() for a in (angle, -angle))
    assert consistent(back, forth)[round_].all()
    assert not consistent(back, back)[round_ & (x.abs() + y.abs() > 9)].any()
    both = compose(turn(angle), turn(angle))
    assert (both - turn(2 * angle))[0][:, round_].abs().max() < 0.02


def test_resized_flow_is_in_the_new_pixels() -> None:
    flow = resize_flow(shifted((6, 8), 2, -1), (12, 24))
    assert flow.shape == (1, 2, 12, 24)
    assert torch.allclose(flow[0, :, 0, 0], torch.tensor([6.0, -2.0]))


# VAT -----------------------------------------------------------------------------------------------------------------


def test_the_tube_loss_equals_its_definition_pixel_by_pixel() -> None:
    logits = torch.randn(2, 2, 4, 5, 6, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 2, 5, 6))  # class 3 never occurs
    label[0, :, 2:] = 255
    label[1, 0][label[1, 0] == 0] = 1
    label[1, 1][label[1, 1] == 0] = 1
    total = 0.0
    for clip in range(2):
        dice = []
        for c in range(4):
            shared = predicted = true = 0.0
            for t, y, x in np.ndindex(2, 5, 6):
                if label[clip, t, y, x] == 255:
                    continue
                p = float(logits[clip, t, :, y, x].softmax(0)[c])
                predicted += p
                true += float(label[clip, t, y, x] == c)
                shared += p * float(label[clip, t, y, x] == c)
            if true:
                dice.append(2 * shared / (predicted + true))
        total += 1 - sum(dice) / len(dice)
    assert float(losses.tube(logits, label)) == pytest.approx(total / 2, rel=1e-5)
    assert float(losses.tube(logits, torch.full_like(label, 255))) == 0


@pytest.mark.parametrize("joint", [False, True])
def test_sequences_are_both_frames_probabilities_the_earlier_one_carried(joint: bool) -> None:
    now, before = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    flow = shifted((6, 8), 1, 0).expand(2, -1, -1, -1)
    maps = sequence_maps(now, before, flow, joint=joint)
    assert maps.shape == (2, 6, 6, 8)
    one = torch.cat([now[0, :, 2, 3], before[0, :, 2, 4]])
    expected = one.softmax(0) if joint else torch.cat([one[:3].softmax(0), one[3:].softmax(0)])
    assert torch.allclose(maps[0, :, 2, 3], expected, atol=1e-6)
    still = sequence_maps(now, before, None, joint=joint)[0, :, 2, 3]
    other = torch.cat([now[0, :, 2, 3], before[0, :, 2, 3]])
    assert torch.allclose(still, other.softmax(0) if joint else torch.cat([other[:3].softmax(0), other[3:].softmax(0)]))


def vat(*words: str) -> VideoAdversarial:
    method = tiny_method(tiny_recipe("method.name=vat", *words))
    assert isinstance(method, VideoAdversarial)
    return method


def test_vat_judges_frames_and_pairs_and_learns_from_both_frames() -> None:
    source, target = batches()
    made = vat(*DEEPLAB)(source, target)
    expected = {"seg_src", "seg_src_aux", "seg_before", "seg_before_aux", "tube_src", "adv_tgt", "adv_tgt_aux"}
    expected |= {"discriminator", "discriminator_aux", "adv_sequence_tgt", "adv_sequence_tgt_aux"}
    assert set(made.objective) == expected | {"discriminator_sequence", "discriminator_sequence_aux"}
    method = vat()
    plain = method(source, target).objective
    assert source.before is not None
    unlabelled = replace(source.before, label_BHW=torch.full_like(source.before.label_BHW, 255))
    without = method(replace(source, before=unlabelled), target).objective
    assert plain["seg_before"].item() > 0 and without["seg_before"].item() == 0
    assert without["seg_src"].item() == pytest.approx(plain["seg_src"].item(), rel=1e-4)


def test_fooling_a_sequence_moves_the_network_and_not_the_judge() -> None:
    method = vat("method.lambda_tube=0")
    source, target = batches()
    made = method(source, target).objective
    made["adv_sequence_tgt"].backward(retain_graph=True)
    assert all(p.grad is None for p in method.sequence_judges.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.student.parameters())
    method.zero_grad(set_to_none=True)
    made["discriminator_sequence"].backward()
    assert all(p.grad is not None for p in method.sequence_judges.parameters())
    assert all(p.grad is None for p in method.student.parameters())


def test_flow_decides_what_a_sequence_judge_sees() -> None:
    source, target = batches()
    assert target.flow_B2HW is not None
    other = replace(target, flow_B2HW=target.flow_B2HW + 3)
    for words, same in ((("method.warp=true",), False), (("method.warp=false",), True)):
        method = vat(*words).eval()
        a, b = (method(source, batch).objective["discriminator_sequence"] for batch in (target, other))
        assert (float(a) == float(b)) == same


# DA-VSN and TPS ------------------------------------------------------------------------------------------------------


def test_a_fused_network_starts_as_its_own_and_uses_the_frame_before() -> None:
    method = tiny_method(tiny_recipe("method.name=davsn", *DEEPLAB))
    student = method.student.eval()
    assert isinstance(student, Fused)
    now, before = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48)
    flow = shifted((32, 48), 2, 1).expand(2, -1, -1, -1)
    alone = student.core()(now)
    assert torch.allclose(student(now).main, alone.main, atol=1e-5)
    plain, fused, earlier = two_frames(student, now, before, flow)
    assert torch.allclose(fused.main, alone.main, atol=1e-5) and torch.allclose(fused.aux, alone.aux, atol=1e-5)
    assert plain.main.requires_grad and not earlier.main.requires_grad
    with torch.no_grad():
        student.fusions[0].weight.copy_(torch.eye(4, 8).roll(4, 1)[:, :, None, None])
    _, fused, _ = two_frames(student, now, before, flow)
    assert torch.allclose(fused.main, warp(student.core()(before).main, flow), atol=1e-5)


def test_only_surer_predictions_of_the_frame_before_are_propagated() -> None:
    batch = replace(batches(1)[1], flow_B2HW=shifted((4, 5), 0, 0), valid_BHW=torch.ones(1, 4, 5, dtype=torch.bool))
    batch.valid_BHW[:, 0] = False
    now = torch.zeros(1, 3, 4, 5, requires_grad=True)
    before = torch.zeros(1, 3, 4, 5)
    before[:, 1, :, 2:] = 4  # sure from the third column on
    loss, used = propagated(now, before, batch)
    sure = before[0, :, 1, 2].softmax(0)
    expected = (sure - 1 / 3).abs().mean() * 9 / 20
    assert float(used) == pytest.approx(9 / 20) and float(loss) == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    assert now.grad is not None and now.grad[0, :, 1:, 2:].any() and not now.grad[0, :, :, :2].any()
    assert propagated(before, torch.zeros(1, 3, 4, 5), batch)[1] == 0


def test_two_judges_of_one_kind_are_kept_different() -> None:
    one, other = Judges(8, 1), Judges(8, 1)
    other.load_state_dict(one.state_dict())
    assert float(divergence(one, other)) == pytest.approx(2, abs=1e-5)
    with torch.no_grad():
        for p in other.parameters():
            p.neg_()
    assert float(divergence(one, other)) == pytest.approx(0, abs=1e-5)


def test_da_vsn_learns_through_the_later_frame_alone() -> None:
    method = tiny_method(tiny_recipe("method.name=davsn"))
    assert isinstance(method, DaVsn)
    source, target = batches()
    for frame in (source.before, target.before):
        assert frame is not None
        frame.image_BCHW.requires_grad_(True)
    made = method(source, target)
    made.total().backward()
    assert source.before.image_BCHW.grad is None and target.before.image_BCHW.grad is None
    names = {"adv_temporal_tgt", "discriminator_temporal", "adv_spatial_tgt", "discriminator_spatial", "divergence"}
    assert set(made.objective) == names | {"intra_tgt", "seg_src"}


@pytest.mark.parametrize("interval", [1, 2])
def test_tps_without_fusion_looks_at_no_frame_that_it_does_not_use(interval: int) -> None:
    fused, recipe = (
        tiny_recipe("method.name=tps", f"method.interval={interval}", f"method.fusion={fusion}")
        for fusion in (True, False)
    )
    assert fused.method.num_frames == {"source": 2, "target": interval + 2}
    assert recipe.method.num_frames == {"target": interval + 1}
    assert recipe.method.reads == {"source": ("label",), "target": ("flow",)}
    source, target = batches()
    source.before = source.flow_B2HW = None
    last = target.before if interval == 1 else target.before.before
    last.before = last.flow_B2HW = None
    method, passes = tiny_method(recipe), []
    method.student.register_forward_hook(lambda *_: passes.append(1))
    assert method(source, target).total().isfinite()
    assert len(passes) == 3, "the source, the frame that labels the target, and the strong view"


@pytest.mark.parametrize("interval", [1, 2])
def test_tps_labels_come_from_an_earlier_pair_carried_along_the_flow(interval: int) -> None:
    recipe = tiny_recipe("method.name=tps", "method.fusion=false", f"method.interval={interval}")
    method = tiny_method(recipe).eval()
    assert isinstance(method, Tps)
    target = batches()[1]
    early, flow = target.before, target.flow_B2HW
    if interval == 2:
        early, flow = early.before, compose(flow, early.flow_B2HW)
    label, weight = method.pseudo_label(target)
    expected = warp(method.student(early.image_BCHW).main.softmax(1), flow)
    assert torch.equal(label, expected.argmax(1))
    assert torch.equal(weight.bool(), inside(flow)) and 0 < weight.mean() < 1
    sure = tiny_method(tiny_recipe("method.name=tps", "method.confidence=1")).eval()
    assert not sure.pseudo_label(batches()[1])[1].any()


def test_tps_learns_nothing_of_what_lies_beside_an_image() -> None:
    """The last columns are beside the image, and so is what two more now show: the scene moves to the left there."""
    method = tiny_method(tiny_recipe("method.name=tps")).eval()
    assert isinstance(method, Tps)
    target = batches()[1]
    target.flow_B2HW = torch.full_like(target.flow_B2HW, 0.0)
    target.flow_B2HW[:, 0] = 2.0
    assert target.before is not None
    everywhere = method.pseudo_label(target)[1]
    assert everywhere[:, :, :-2].all() and not everywhere[:, :, -2:].any()
    shown = torch.ones_like(everywhere, dtype=torch.bool)
    shown[:, :, -10:] = False
    shown[:, :4] = False
    now = method.pseudo_label(replace(target, shown_BHW=shown))[1]
    assert torch.equal(now.bool(), shown)
    early = method.pseudo_label(replace(target, before=replace(target.before, shown_BHW=shown)))[1]
    assert early[:, 4:, :-12].all() and not early[:, :4].any() and not early[:, :, -12:].any()


# Self-training -------------------------------------------------------------------------------------------------------


def test_labels_that_the_frame_before_contradicts_do_not_count() -> None:
    words = [*SURE, "method.weighting=pixel", "method.flow_agreement=true", "method.confidence=0"]
    method = tiny_method(tiny_recipe(*words)).eval()
    assert isinstance(method, SelfTraining)
    source, target = batches()
    views, metrics = method.teaching.views(source, target)
    teacher = method.teaching.teacher
    now, before = (teacher(frame.image_BCHW).main.argmax(1) for frame in (target, target.before))
    agree = (warp_label(before, target.flow_B2HW) == now) & target.valid_BHW
    assert 0 < agree.float().mean() < 1
    assert float(metrics["flow_agreement"]) == pytest.approx(float(agree.float().mean()))
    pasted = classmix_mask(source.label_BHW, source.seed_B, 4)
    assert not pasted.all() and torch.equal(views["mix"].weight_BHW[~pasted] > 0, agree[~pasted])
    assert float(metrics["pseudo_weight"]) == 1, "the share of sure pixels is told before the filter"


def test_video_consistency_teaches_what_the_frame_before_showed() -> None:
    method = tiny_method(tiny_recipe(*SURE, "method.weighting=pixel", "method.lambda_video=0.5")).eval()
    assert isinstance(method, SelfTraining)
    source, target = batches()
    views, _ = method.teaching.views(source, target)
    before = method.teaching.teacher(target.before.image_BCHW).main.softmax(1)
    carried = warp_label(before.argmax(1), target.flow_B2HW).where(target.valid_BHW, 255)
    assert torch.equal(views["video"].label_BHW, carried)
    sure = warp((before.max(1).values >= 0.3).float()[:, None], target.flow_B2HW, "nearest")[:, 0]
    assert torch.equal(views["video"].weight_BHW, sure * (carried != 255))
    assert "self_video" in method(source, target).objective
    assert tiny_recipe(*SURE).method.num_frames == {} and tiny_recipe(*SURE).method.reads["target"] == ()


@pytest.mark.parametrize("words", [["model.name=mit_b0"], ["model.detail=[16,24]"]], ids=["dropout", "windows"])
def test_what_teaches_is_drawn_from_no_seed(words: list[str]) -> None:
    source, target = batches()
    other = reseeded(target)
    method = tiny_method(tiny_recipe("method.name=tps", *words))
    assert isinstance(method, Tps) and method.training
    assert all(map(torch.equal, method.pseudo_label(target), method.pseudo_label(other)))
    student, images = method.student, (source.image_BCHW, target.image_BCHW)
    (now, _, before), (now_other, _, before_other) = (
        two_frames(student, *images, source.flow_B2HW, batch.seed_B) for batch in (target, other)
    )
    assert not torch.equal(now.main, now_other.main), "what is learnt from is drawn from the seeds"
    assert torch.equal(before.main, before_other.main)


def reseeded(batch: Batch) -> Batch:
    """The same frames with other seeds."""
    return replace(batch, seed_B=batch.seed_B + 1, before=None if batch.before is None else reseeded(batch.before))


def test_tps_resizes_the_strong_view_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(*SETTINGS["tps_rescaled"])
    method: Any = tiny_method(recipe)
    seen: list[tuple[int, ...]] = []
    whole = tps.two_frames

    def watched(student: Any, now: Tensor, before: Tensor, flow: Any, seed_B: Any = None) -> Any:
        assert now.shape == before.shape and flow.shape[2:] == now.shape[2:]
        seen.append(tuple(now.shape[2:]))
        return whole(student, now, before, flow, seed_B)

    monkeypatch.setattr(tps, "two_frames", watched)
    sizes = set()
    for seed in range(6):
        source, target = (geometry(tiny_batch(2, seed + i), recipe.augment) for i in (1, 2))
        assert method(source, target).total().isfinite()
        assert seen[-3:-1] == [(32, 48)] * 2  # the source, and who labels the target
        sizes.add(seen[-1])
        method.after_step()
    assert len(sizes) > 2 and all(side % 8 == 0 for size in sizes for side in size)


def test_a_range_of_factors_begins_with_the_smaller_one() -> None:
    with pytest.raises(UserError, match="the smaller factor must come first"):
        tiny_recipe("method.name=tps", "method.rescale=[1.2,0.8]")


def test_a_resized_view_keeps_its_labels_apart() -> None:
    label = torch.tensor([[[0, 3], [255, 1]]])
    view = tps.resized(View(torch.rand(1, 3, 2, 2), torch.zeros(1), label, torch.rand(1, 2, 2)), (4, 6))
    assert view.label_BHW is not None
    assert torch.equal(view.label_BHW, label.repeat_interleave(2, 1).repeat_interleave(3, 2))
