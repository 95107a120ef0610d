"""Textures made once a process from fixed seeds: surface tiles, tree crowns, clouds and sensor noise."""

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.streets.mesh import Array, Tile

TILE_PX = 256
TILE_M = 4.0
NUM_LEVELS = 6
NUM_BROADLEAF = 8
NUM_CONIFER = 3
NUM_HEDGE = 2
_CROWN_PX = 160


def _noise(rng: np.random.Generator, size: int, scale_px: float, slope: float = 2.0) -> Array:
    """Periodic noise of zero mean and unit deviation whose features are about ``scale_px`` wide, (size, size)."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    spectrum = 1.0 / (1.0 + (frequency * scale_px) ** slope)
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * spectrum, s=(size, size))
    return np.asarray(field / field.std(), np.float32)


def _courses(rows: int, columns: int, joint_px: int, shift: float) -> tuple[Array, Array]:
    """Bricks or slabs: a mask of the joints, and a random shade for each stone, both (TILE_PX, TILE_PX)."""
    y, x = np.mgrid[0:TILE_PX, 0:TILE_PX]
    high, wide = TILE_PX // rows, TILE_PX // columns
    row = y // high
    x = (x + (row % 2) * int(shift * wide)) % TILE_PX
    joints = (y % high < joint_px) | (x % wide < joint_px)
    shades = np.random.default_rng(rows).standard_normal((rows + 1, columns + 1))
    return joints.astype(np.float32), shades[row, x // wide].astype(np.float32)


def _tile(tile: Tile) -> Array:
    """One tile as a factor on albedo minus one; rows follow Z or Y, columns X or Z."""
    rng = np.random.default_rng(int(tile))
    fine, broad = _noise(rng, TILE_PX, 3.0), _noise(rng, TILE_PX, 60.0)
    if tile == Tile.ASPHALT:
        cracks = np.abs(_noise(rng, TILE_PX, 50.0, 3.0)) < 0.02
        return 0.06 * fine + 0.06 * broad - 0.2 * cracks
    if tile in (Tile.SLABS, Tile.BRICK, Tile.ROOF):
        shape = {Tile.SLABS: (8, 8, 3, 0.5), Tile.BRICK: (32, 16, 2, 0.5), Tile.ROOF: (16, 16, 4, 0.5)}[tile]
        joints, shades = _courses(*shape)
        grout = {Tile.SLABS: -0.18, Tile.BRICK: 0.16, Tile.ROOF: -0.3}[tile]
        return 0.04 * fine + 0.06 * broad + np.where(joints > 0, grout, 0.06 * shades)
    if tile == Tile.PLANKS:
        joints, shades = _courses(1, 32, 2, 0.0)
        vertical = cv2.blur(fine, (1, 25))
        return np.asarray(0.25 * vertical - 0.4 * joints + 0.10 * shades)
    if tile == Tile.PLASTER:
        streaks = cv2.blur(_noise(rng, TILE_PX, 12.0), (3, 61))
        return np.asarray(0.03 * fine + 0.06 * broad + 0.10 * streaks)
    if tile == Tile.CLOTH:
        return 0.09 * _noise(rng, TILE_PX, 6.0) + 0.05 * fine
    return np.zeros((TILE_PX, TILE_PX), np.float32)


@cache
def atlas() -> NDArray[np.int8]:
    """All tiles beside each other, coarser levels below: int8, 1/127 of a factor, (levels, tiles) cells of TILE_PX."""
    rows: list[Array] = []
    tiles = [_tile(tile) for tile in Tile]
    for level in range(NUM_LEVELS):
        width = 2**level
        cells = [tile if level == 0 else _wrap_blur(tile, width) for tile in tiles]
        rows.append(np.concatenate(cells, axis=1))
    return np.asarray(np.clip(np.concatenate(rows) * 127, -127, 127), np.int8)


def _wrap_blur(tile: Array, width: int) -> Array:
    padded = cv2.copyMakeBorder(tile, width, width, width, width, cv2.BORDER_WRAP)
    return np.asarray(cv2.blur(padded, (width, width))[width:-width, width:-width], np.float32)


def _crown(rng: np.random.Generator, balls: Array, leaf: float) -> NDArray[np.uint8]:
    """A cut-out of leaf balls (x, y, radius in [0, 1]) lit from the upper left; RGBA, alpha 0 or 255."""
    y, x = np.mgrid[0:_CROWN_PX, 0:_CROWN_PX].astype(np.float32) / _CROWN_PX
    height = np.full_like(x, -1.0)
    light = np.zeros_like(x)
    for bx, by, radius in balls:
        square = 1 - ((x - bx) ** 2 + (y - by) ** 2) / radius**2
        rise = np.sqrt(np.maximum(square, 0)) * radius
        shade = 0.62 - 0.38 * (y - by) / radius - 0.16 * (x - bx) / radius
        front = np.where(square > 0, rise + 0.3 * by, -1)
        light = np.where(front > height, shade, light)
        height = np.maximum(height, front)
    rough = _noise(rng, 256, 5.0)[:_CROWN_PX, :_CROWN_PX]
    inside = cv2.GaussianBlur((height > -1).astype(np.float32), (0, 0), 3.5)
    mask = (inside + leaf * rough > 0.48) & (inside > 0.22)
    value = np.clip((0.45 + 0.62 * light) * (1 + 0.26 * rough) * (1.12 - 0.35 * y), 0.12, 1.6)
    warm = np.clip(0.9 + 0.25 * light, 0, 1.3)
    rgb = np.stack([value * warm, value, value * (1.55 - 0.6 * warm)], axis=-1) * 128
    return np.dstack([np.clip(rgb, 0, 255), mask * 255.0]).astype(np.uint8)


def _balls(rng: np.random.Generator, shape: str) -> Array:
    if shape == "hedge":
        x = np.linspace(0.06, 0.94, 14)
        tops = [(v, 0.42 + rng.uniform(-0.05, 0.05), 0.2) for v in x]
        return np.array([*tops, *[(v, 0.74, 0.22) for v in x], *[(v, 0.9, 0.1) for v in x]], np.float32)
    if shape == "conifer":
        y = np.linspace(0.06, 0.9, 26)
        return np.array([(0.5 + rng.uniform(-1, 1) * 0.3 * v, v, 0.04 + 0.12 * v) for v in y], np.float32)
    angle, reach = rng.uniform(0, 2 * np.pi, 34), np.sqrt(rng.uniform(0, 1, 34))
    wide, high = rng.uniform(0.30, 0.36), rng.uniform(0.28, 0.36)
    x, y = 0.5 + wide * reach * np.cos(angle), 0.48 + high * reach * np.sin(angle)
    return np.stack([x, y, rng.uniform(0.07, 0.15, 34)], axis=1).astype(np.float32)


@cache
def canopies() -> list[list[NDArray[np.uint8]]]:
    """Tree cut-outs, each a pyramid of RGBA pictures from `_CROWN_PX` down: broadleaf, then conifers, then hedges."""
    rng = np.random.default_rng(7)
    shapes = ["broadleaf"] * NUM_BROADLEAF + ["conifer"] * NUM_CONIFER + ["hedge"] * NUM_HEDGE
    pyramids = []
    for shape in shapes:
        levels = [_crown(rng, _balls(rng, shape), 0.06 if shape == "hedge" else 0.17)]
        for _ in range(4):
            levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
        pyramids.append(levels)
    return pyramids


@cache
def clouds() -> Array:
    """Periodic cloud cover of unit deviation, (512, 512)."""
    rng = np.random.default_rng(11)
    return 0.85 * _noise(rng, 512, 150.0, 2.6) + 0.3 * _noise(rng, 512, 30.0, 2.2)


@cache
def grain() -> Array:
    """Sensor noise of unit deviation, part luminance and part colour, slightly correlated, (512, 512, 3)."""
    rng = np.random.default_rng(13)
    luminance, colour = rng.standard_normal((512, 512, 1)), rng.standard_normal((512, 512, 3))
    field = cv2.GaussianBlur((0.8 * luminance + 0.6 * colour).astype(np.float32), (0, 0), 0.5)
    return np.asarray(field / field.std(), np.float32)
