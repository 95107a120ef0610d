import warnings

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from distuda.data.saliency import _reconstructed, barrier_distance, border_contrast, saliency

Map = NDArray[np.float32]


def scene(height: int = 90, width: int = 120, noise: int = 12) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A red disc before a green meadow that darkens to one side, with noise; the disc's mask."""
    y, x = np.indices((height, width))
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 4) ** 2
    image = np.zeros((height, width, 3), np.float64)
    image[..., 1] = 90 + 80 * x / width
    image[disc] = (200, 40, 40)
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    return image.clip(0, 255).astype(np.uint8), disc


def by_pixel(value: Map, sweeps: int = 3) -> Map:
    """The paper's algorithm 1, pixel by pixel, for one channel."""
    height, width = value.shape
    distance, top, bottom = np.full((height, width), np.inf, np.float32), value.copy(), value.copy()
    distance[[0, -1]], distance[:, [0, -1]] = 0, 0
    for sweep in range(sweeps):
        step = 1 if sweep % 2 == 0 else -1
        for y in range(1, height - 1)[::step]:
            for x in range(1, width - 1)[::step]:
                for v, u in ((y - step, x), (y, x - step)):
                    high, low = max(top[v, u], value[y, x]), min(bottom[v, u], value[y, x])
                    if high - low < distance[y, x]:
                        distance[y, x], top[y, x], bottom[y, x] = high - low, high, low
    return distance


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (11, 11), (3, 3), (3, 8)])
def test_diagonals_at_once_give_the_loop_over_pixels(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(shape[0]).random((2, *shape), np.float32)
    order = (lambda m: m.T) if shape[0] > shape[1] else (lambda m: m)  # tall images are computed lying
    wanted = np.stack([order(by_pixel(np.ascontiguousarray(order(channel)))) for channel in image])
    assert np.array_equal(barrier_distance(image), wanted)


def test_barrier_is_the_step_that_no_path_avoids() -> None:
    ring = np.zeros((1, 21, 25), np.float32)
    ring[:, 5:16, 5:20] = 7  # a wall ...
    ring[:, 7:14, 7:18] = 0  # ... around a court of the outside's colour
    assert (barrier_distance(ring)[0, 7:14, 7:18] == 7).all()
    ring[:, 5:7, 12] = 0  # a gate
    assert (barrier_distance(ring)[0, 7:14, 7:18] == 0).all()


def test_border_contrast_forgives_one_border_that_the_object_touches() -> None:
    image = np.zeros((3, 40, 60), np.float32)
    image[0, 8:, 20:40] = 50  # stands on the lower border
    contrast = border_contrast(image)
    assert contrast[20, 30] > 10 * contrast[20, 5]


def test_object_is_salient_and_meadow_is_not() -> None:
    image, disc = scene()
    found = saliency(image)
    assert found.dtype == np.float32 and found.shape == disc.shape and found.min() >= 0 and found.max() <= 1
    assert (found[disc] > 0.5).mean() > 0.95
    assert (found[~disc] < 0.06).mean() > 0.95


def test_larger_images_are_shrunk_and_give_the_same_picture() -> None:
    image, disc = scene(360, 480)
    found, small = saliency(image, side=120), saliency(cv2.resize(image, (120, 90), interpolation=cv2.INTER_AREA), 120)
    assert found.shape == disc.shape
    assert np.array_equal(found, np.clip(cv2.resize(small, (480, 360), interpolation=cv2.INTER_LINEAR), 0, 1))
    assert ((found > 0.5) == disc).mean() > 0.97


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (1, 7), (2, 2), (3, 3), (4, 300), (700, 2)])
@pytest.mark.parametrize("fill", ["black", "white", "noise", "grey noise", "step"])
def test_every_image_has_a_defined_result(shape: tuple[int, int], fill: str) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    if fill == "white":
        image[:] = 255
    elif "noise" in fill:
        draws = np.random.default_rng(1).integers(0, 256, (*shape, 1 if "grey" in fill else 3))
        image[:] = draws
    elif fill == "step":
        image[shape[0] // 2 :] = 255
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        found = saliency(image)
    assert found.shape == shape and found.dtype == np.float32
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
    if fill in ("black", "white"):
        assert not found.any()


def test_reconstruction_fills_what_the_marker_touches() -> None:
    under = np.zeros((9, 20), np.float32)
    under[2:7, 1:8], under[2:7, 11:18] = 0.8, 0.6
    marker = np.zeros_like(under)
    marker[4, 3] = 0.5
    grown = _reconstructed(marker, under)
    assert (grown[2:7, 1:8] == 0.5).all() and not grown[:, 8:].any()
