"""Camera changes and misalignment: the right arithmetic, and draws that are the samples' own."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distuda.data import transformations
from distuda.data.transformations import CameraConfig, MisalignmentConfig, camera, misalign

OFF = {"blur": 0, "saturation": 1, "contrast": 1, "gamma": 1, "noise": 0}


def images(count: int = 3, height: int = 40, width: int = 52) -> Tensor:
    """Smooth colour gradients with a few edges."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    base = torch.stack([x, y, (x * 3 + y * 2).sin() / 2 + 0.5])
    edges = ((x * 4).floor() % 2)[None] * 0.2
    return torch.stack([(base * (1 - 0.1 * i) + edges).clamp(0, 1) for i in range(count)])


def seeds(count: int = 3) -> Tensor:
    return torch.arange(count) * 977 + 5


CHANGES = {
    "low_resolution": {"low_resolution": 3}, "blur": {"blur": 2}, "channels": {"channels": "bgr"}, "hue": {"hue": 0.2},
    "saturation": {"saturation": 0.3}, "contrast": {"contrast": 0.4}, "gamma": {"gamma": 3}, "invert": {"invert": True},
    "noise": {"noise": 0.1}, "salt_and_pepper": {"salt_and_pepper": 0.1}, "jpeg": {"jpeg": 10},
    "defaults": CameraConfig().model_dump(),
}  # fmt: skip


def test_with_everything_off_the_image_stays() -> None:
    torch.testing.assert_close(camera(images(), seeds(), CameraConfig(**OFF)), images(), atol=1e-6, rtol=0)
    assert set(CHANGES) - {"defaults"} == set(CameraConfig.model_fields), "a change without a test"


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_changes_keeps_the_range_and_treats_samples_alone(name: str) -> None:
    config = CameraConfig(**{**OFF, **CHANGES[name]})
    changed = camera(images(), seeds(), config)
    assert changed.shape == images().shape and changed.dtype == torch.float32
    assert changed.min() >= 0 and changed.max() <= 1
    assert all((changed[i] - images()[i]).abs().mean() > 0.003 for i in range(3))
    torch.testing.assert_close(camera(images()[1:2], seeds()[1:2], config)[0], changed[1])
    other = camera(images(), seeds() + 1, config)
    assert torch.equal(other, changed) == (name not in ("noise", "salt_and_pepper", "defaults")), (
        "one camera is always the same"
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(camera(images(), seeds(), config), changed)


def test_colours_are_what_they_are_called() -> None:
    image = images()
    grey = transformations.colours(image, 0, 0)
    luma = torch.einsum("j,bjhw->bhw", torch.tensor([0.299, 0.587, 0.114]), image)
    torch.testing.assert_close(grey, luma[:, None].expand_as(image), atol=1e-3, rtol=0)
    torch.testing.assert_close(transformations.colours(image * 0.5, 1.0, 1), image * 0.5, atol=1e-4, rtol=0)
    assert torch.equal(transformations.choose_channels(image, "bgr"), image.flip(1))
    dark_red = transformations.choose_channels(image, "0gb")
    assert not dark_red[:, 0].any() and torch.equal(dark_red[:, 1:], image[:, 1:])
    toned = transformations.tones(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3), 0.5, 2)
    assert toned.flatten().tolist() == pytest.approx([0.0625, 0.25, 0.5625])


def test_noise_has_the_moments_asked_for() -> None:
    flat = torch.full((2, 3, 200, 200), 0.5)
    noisy = transformations.gaussian_noise(flat, seeds(2), 0.1) - 0.5
    assert noisy.mean().abs() < 1e-3 and noisy.std().item() == pytest.approx(0.1, rel=0.01)
    assert (noisy[0] - noisy[1]).std() > 0.13 and (noisy[:, 0] - noisy[:, 1]).std() > 0.13
    salted = transformations.salt_and_pepper(flat, seeds(2), 0.2)
    assert torch.equal((salted == 1).all(1), (salted == 1).any(1)), "a pixel is white in all channels"
    assert (salted == 1).float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert (salted == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_jpeg_is_close_to_a_real_one(quality: int) -> None:
    image = images(1, 41, 54)
    real = io.BytesIO()
    pixels = (image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(real, "JPEG", quality=quality, subsampling=0)
    decoded = torch.from_numpy(np.array(Image.open(real))).permute(2, 0, 1) / 255
    ours = transformations.jpeg(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, quality)[0]
    lost = (decoded - image[0]).abs().mean()
    assert (ours - decoded).abs().mean() < 0.15 * lost + 0.002, "within rounding of libjpeg"


# Misalignment --------------------------------------------------------------------------------------------------------


def test_no_pixels_is_exact_alignment() -> None:
    assert torch.equal(misalign(images(), seeds(), MisalignmentConfig(pixels=0, degrees=2, zoom=0.1)), images())


def moved(config: MisalignmentConfig, count: int = 64, size: tuple[int, int] = (60, 100)) -> tuple[Tensor, Tensor]:
    """Pixel offsets (B, H, W) in x and y of a misaligned coordinate grid, far from the mirrored edges."""
    y, x = torch.meshgrid(torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij")
    grid = torch.stack([x, y, 0 * x]).expand(count, 3, *size)
    offset = (misalign(grid, seeds(count), config) - grid)[:, :, 16:-16, 16:-16]
    return offset[:, 0], offset[:, 1]


def test_shifts_are_pixels_up_to_the_limit_either_way() -> None:
    for offset in moved(MisalignmentConfig(pixels=4, degrees=0, zoom=0)):
        assert (offset.amax((1, 2)) - offset.amin((1, 2))).max() < 1e-3, "a shift is the same everywhere"
        shift = offset.mean((1, 2))
        assert shift.min() < -3.5 and shift.max() > 3.5 and shift.abs().max() <= 4.001


def test_a_turn_is_rigid_in_pixels_whatever_the_aspect_ratio() -> None:
    dx, dy = moved(MisalignmentConfig(pixels=1e-6, degrees=10, zoom=0))
    across = (dy[:, :, -1] - dy[:, :, 0]).mean(1) / (dy.shape[2] - 1)  # rise of y along x
    down = (dx[:, -1] - dx[:, 0]).mean(1) / (dx.shape[1] - 1)
    torch.testing.assert_close(across, -down, atol=1e-3, rtol=0)
    angles = across.asin() * 180 / math.pi
    assert angles.min() < -8 and angles.max() > 8 and angles.abs().max() < 10.01


def test_a_zoom_is_about_the_centre() -> None:
    dx, _ = moved(MisalignmentConfig(pixels=1e-6, degrees=0, zoom=0.1))
    slope = (dx[:, :, -1] - dx[:, :, 0]).mean(1) / (dx.shape[2] - 1)
    factor = 1 / (1 + slope)
    assert 0.9 <= factor.min() < 0.93 and 1.07 < factor.max() <= 1.1001
    assert dx.mean().abs() < 0.2


def test_draws_belong_to_the_sample() -> None:
    config = MisalignmentConfig(pixels=4)
    made = misalign(images(), seeds(), config)
    assert torch.equal(made, misalign(images(), seeds(), config))
    torch.testing.assert_close(misalign(images()[2:], seeds()[2:], config)[0], made[2])
    assert not torch.equal(made, misalign(images(), seeds() + 1, config))
    assert made.min() >= 0 and made[:, :, 0].mean() > 0.05, "edges are mirrored, not black"
