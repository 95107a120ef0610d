"""Source images in the target's style: what is taken over, what stays, and who is given it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from settings import tiny_batch, tiny_method, tiny_recipe
from torch import Tensor

from distuda.data.batch import Batch
from distuda.data.style import StyleConfig, match_histogram, match_low_frequencies, match_moments, restyled
from distuda.engine.inputs import open_data
from distuda.engine.step import Step
from distuda.errors import UserError
from distuda.methods.method import Losses

CPU = torch.device("cpu")


def images(seed: int, height: int = 24, width: int = 32) -> Tensor:
    """Two images well inside [0, 1], so that nothing is clipped."""
    generator = torch.Generator().manual_seed(seed)
    return 0.45 + 0.1 * torch.rand(2, 3, height, width, generator=generator)


def amplitudes(image_BCHW: Tensor) -> Tensor:
    return torch.fft.fft2(image_BCHW).abs()


def low(height: int, width: int, cycles: int) -> Tensor:
    rows = torch.fft.fftfreq(height, 1 / height).abs()[:, None]
    return (rows <= cycles) & (torch.fft.fftfreq(width, 1 / width).abs()[None] <= cycles)


def test_low_frequencies_are_the_targets_and_the_others_stay() -> None:
    source, target = images(0), images(1)
    (made,) = match_low_frequencies([source], target, beta=0.1)
    inside = low(24, 32, 2)
    torch.testing.assert_close(amplitudes(made)[..., inside], amplitudes(target)[..., inside], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(amplitudes(made)[..., ~inside], amplitudes(source)[..., ~inside], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.fft.fft2(made).angle()[..., 1, 1], torch.fft.fft2(source).angle()[..., 1, 1])


def test_frequency_zero_is_the_mean_and_of_an_image_itself_nothing_changes() -> None:
    source, target = images(0), images(1, 40, 40) * 1.5
    (made,) = match_low_frequencies([source], target, beta=0.01)
    torch.testing.assert_close(made.mean(dim=(2, 3)), target.mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)
    (same,) = match_low_frequencies([source], source, beta=0.2)
    torch.testing.assert_close(same, source, rtol=0, atol=1e-5)


def test_moments_are_the_targets_channel_by_channel() -> None:
    source, target = images(0), images(1, 9, 7) * 0.5
    (made,) = match_moments([source], target)
    torch.testing.assert_close(made.mean(dim=(2, 3)), target.mean(dim=(2, 3)))
    torch.testing.assert_close(made.std(dim=(2, 3)), target.std(dim=(2, 3)), rtol=1e-2, atol=0)
    assert torch.equal(made[0, 0].flatten().argsort(), source[0, 0].flatten().argsort())


def test_source_images_take_the_targets_values() -> None:
    source, reference = torch.rand(2, 3, 5, 6) ** 3, torch.rand(2, 3, 5, 6)
    (made, again) = match_histogram([source, source], reference)
    assert torch.equal(made, again)
    for i in range(2):
        for c in range(3):
            assert torch.equal(made[i, c].flatten().sort().values, reference[i, c].flatten().sort().values)
            assert torch.equal(made[i, c].flatten().argsort(), source[i, c].flatten().argsort())


@pytest.mark.parametrize("style", ["fourier", "moments", "histogram"])
def test_any_image_gives_pixels(style: Any) -> None:
    """One value everywhere, black, white; other sizes."""
    for source in (torch.zeros(1, 3, 8, 12), torch.ones(1, 3, 8, 12), torch.rand(1, 3, 8, 12)):
        for target in (torch.zeros(1, 3, 9, 5), torch.rand(1, 3, 9, 5)):
            batches = (Batch(source, None, torch.zeros(1)), Batch(target, None, torch.zeros(1)))
            made = restyled(*batches, StyleConfig(style=style)).image_BCHW
            assert made.shape == source.shape and made.isfinite().all() and made.min() >= 0 and made.max() <= 1
            if source.min() == source.max() and style != "fourier":  # its phases are those of a flat image
                assert torch.equal(made, made[..., :1, :1].expand_as(made)), "equal pixels stay equal"


@pytest.mark.parametrize("style", ["moments", "histogram"])
def test_frames_of_a_clip_are_changed_alike(style: Any) -> None:
    now, before = images(0), images(2)
    before[:, :, 3] = now[:, :, 3]  # what both frames show
    source = Batch(now, torch.zeros(2, 24, 32, dtype=torch.int64), torch.zeros(2))
    source = replace(source, before=Batch(before, None, torch.zeros(2)))
    made = restyled(source, Batch(images(1), None, torch.zeros(2)), StyleConfig(style=style))
    assert made.before is not None and made.label_BHW is source.label_BHW
    assert torch.equal(made.image_BCHW[:, :, 3], made.before.image_BCHW[:, :, 3])
    assert not torch.equal(made.before.image_BCHW, before)


@pytest.mark.parametrize("name", ["source_only", "self_training"])
def test_the_method_is_given_the_source_in_the_targets_style(name: str) -> None:
    """Crops first, then the style of the crop; the target stays, and who does not read it is not given it."""
    words = [f"method.name={name}", "augment.style=moments", "augment.photometry_labelled=false"]
    recipe = tiny_recipe(*words, "accumulate=2")
    assert set(recipe.reads) == {"source", "target"}
    method = tiny_method(recipe)
    given: list[dict[str, Batch]] = []
    learn = method.forward

    def watched(**batches: Batch) -> Losses:
        given.append(batches)
        return learn(**batches)

    method.forward = watched
    dark = tiny_batch(2, 2, "target")
    dark.image_BCHW = dark.image_BCHW // 4
    Step(method, recipe, CPU)(tiny_batch(2, 1), dark)
    assert len(given) == 2
    for batches in given:
        assert set(batches) == set(recipe.method.reads)
        assert batches["source"].image_BCHW.mean() < 0.2
        if "target" in batches:
            torch.testing.assert_close(
                batches["source"].image_BCHW.mean(dim=(2, 3)), batches["target"].image_BCHW.mean(dim=(2, 3)),
                rtol=0.1, atol=0,
            )  # fmt: skip


def test_style_without_a_target_is_named() -> None:
    with pytest.raises(UserError, match=r"target\.uri=none.*augment\.style=none"):
        open_data(tiny_recipe("augment.style=fourier", "target.uri=null", "method.calibrate_images=0"))
    with pytest.raises(UserError, match=r"augment\.style.*'none', 'fourier', 'moments' or 'histogram'"):
        tiny_recipe("augment.style=blue")
    with pytest.raises(UserError, match=r"augment\.style_beta"):
        tiny_recipe("augment.style_beta=0.5")
