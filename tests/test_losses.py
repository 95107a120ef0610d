"""Losses against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from distuda import losses

LOG2 = math.log(2)


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """(1, C, 1, N) logits whose softmax is the given rows, one row a pixel."""
    return torch.tensor(probabilities).log().T[None, :, None, :]


TWO_PIXELS = logits_of([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])


def test_cross_entropy_is_the_mean_over_valid_pixels() -> None:
    label = torch.tensor([[[0, 255]]])
    assert losses.cross_entropy(TWO_PIXELS, label).item() == pytest.approx(LOG2)


def test_weighted_cross_entropy_divides_by_all_pixels() -> None:
    label = torch.tensor([[[0, 255]]])
    ones = torch.ones(1, 1, 2)
    assert losses.cross_entropy(TWO_PIXELS, label, ones).item() == pytest.approx(LOG2 / 2)
    label = torch.tensor([[[0, 0]]])  # -log 1/2 with weight 0.5 and -log 1/4 with weight 0.25
    loss = losses.cross_entropy(TWO_PIXELS, label, torch.tensor([[[0.5, 0.25]]]))
    assert loss.item() == pytest.approx((0.5 * LOG2 + 0.25 * 2 * LOG2) / 2)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_of_ignored_pixels_is_zero_and_has_zero_gradient(weighted: bool) -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    label = torch.full((2, 4, 5), 255)
    loss = losses.cross_entropy(logits, label, torch.ones(2, 4, 5) if weighted else None)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_cross_entropy_counts_pixels_not_images() -> None:
    logits, label = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    label[0, :, 1:] = 255
    each = F.cross_entropy(logits, label, ignore_index=255, reduction="none")
    assert losses.cross_entropy(logits, label).item() == pytest.approx((each.sum() / 24).item(), rel=1e-6)


def test_low_precision_logits_are_computed_in_float32() -> None:
    logits, label = torch.randn(1, 3, 4, 5).bfloat16(), torch.randint(0, 3, (1, 4, 5))
    assert losses.cross_entropy(logits, label).dtype == torch.float32
    torch.testing.assert_close(losses.entropy(logits), losses.entropy(logits.float()))


@pytest.mark.parametrize("classes", [2, 11, 19])
def test_entropy_of_uniform_is_one_and_of_certainty_zero(classes: int) -> None:
    assert losses.entropy(torch.zeros(2, classes, 3, 4)).item() == pytest.approx(1, abs=1e-6)
    certain = torch.zeros(2, classes, 3, 4)
    certain[:, 0] = 1000
    assert losses.entropy(certain).item() == pytest.approx(0, abs=1e-6)


def test_entropy_by_hand() -> None:
    assert losses.entropy(TWO_PIXELS).item() == pytest.approx(1.5 * LOG2 / math.log(3))


def test_self_information_range_and_sum() -> None:
    logits = 10 * torch.randn(2, 5, 8, 9)
    maps = losses.self_information(logits)
    assert maps.shape == logits.shape and maps.min() >= 0
    assert maps.max() <= 1 / (math.e * math.log(5)) + 1e-6  # -p log p is largest at p = 1 / e
    torch.testing.assert_close(maps.sum(1), losses.entropy_map(logits))
    extreme = torch.tensor([1e4, -1e4, 0.0, 3e4]).view(1, 4, 1, 1)
    assert torch.isfinite(losses.self_information(extreme)).all()


def test_entropy_range_takes_the_top_share_of_each_image() -> None:
    flat, sharp = torch.zeros(4), torch.tensor([9.0, 0.0, 0.0, 0.0])
    medium = torch.tensor([1.0, 0.0, 0.0, 0.0])

    def image(*pixels: torch.Tensor) -> torch.Tensor:
        return torch.stack(pixels, dim=1)[:, None]

    logits = torch.stack([image(flat, flat, *[sharp] * 8), image(medium, *[sharp] * 9)])  # 10 pixels an image
    of_medium = losses.entropy(medium.view(1, 4, 1, 1)).item()
    # each image gives its own top pixel, though both of the batch's top pixels are in the first
    assert losses.entropy(logits, 0.1).item() == pytest.approx((1 + of_medium) / 2)
    assert losses.entropy(logits, 0.1, divide_by_all=True).item() == pytest.approx((1 + of_medium) / 20)
    of_sharp = losses.entropy(sharp.view(1, 4, 1, 1)).item()
    assert losses.entropy(logits, 0.3).item() == pytest.approx((2 + of_medium + 3 * of_sharp) / 6)
    assert losses.entropy(logits, 1.0).item() == pytest.approx((2 + of_medium + 17 * of_sharp) / 20)


def test_entropy_range_sends_gradient_to_the_selected_pixels_only() -> None:
    logits = torch.randn(1, 4, 1, 10, requires_grad=True)
    losses.entropy(logits, 0.3).backward()
    touched = logits.grad.abs().sum(1).flatten() > 0
    chosen = losses.entropy_map(logits.detach()).flatten().topk(3).indices
    assert set(touched.nonzero().flatten().tolist()) == set(chosen.tolist())


def test_class_prior_is_a_hinge_on_each_images_share() -> None:
    prior = torch.tensor([0.6, 0.3, 0.1])
    # shares 0.375, 0.375, 0.25; with mu 1 only the first class is short, by 0.225
    assert losses.class_prior(TWO_PIXELS, prior, 1.0).item() == pytest.approx(0.225)
    assert losses.class_prior(TWO_PIXELS, prior, 0.5).item() == 0
    both = torch.cat([TWO_PIXELS, logits_of([[0.6, 0.3, 0.1]] * 2)])
    assert losses.class_prior(both, prior, 1.0).item() == pytest.approx(0.1125)


def test_domain_bce_by_hand() -> None:
    logit = torch.full((1, 1, 2, 2), math.log(3))  # probability 3/4 of "target"
    assert losses.domain_bce(logit, 1).item() == pytest.approx(math.log(4 / 3), rel=1e-5)
    assert losses.domain_bce(logit, 0).item() == pytest.approx(math.log(4), rel=1e-5)


def test_global_share() -> None:
    assert losses.global_share(torch.tensor([[True, False], [False, False]])).item() == 0.25
