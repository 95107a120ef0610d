"""People on foot and on bicycles, built of limbs that swing in the plane facing the camera."""

import math
from dataclasses import dataclass

import numpy as np

from distuda.data.streets.buildings import shade
from distuda.data.streets.mesh import Colour, Id, Layer, Mesh, Point, Tile

SKIN: tuple[Colour, ...] = ((236, 196, 164), (214, 164, 128), (160, 110, 80), (104, 70, 52))
HAIR: tuple[Colour, ...] = ((40, 30, 26), (90, 60, 36), (150, 112, 64), (130, 128, 126), (22, 20, 22))
TOPS: tuple[Colour, ...] = (
    (170, 40, 44), (40, 70, 130), (56, 58, 64), (214, 208, 196), (66, 110, 74), (214, 170, 60),
    (120, 74, 120), (30, 32, 38), (190, 110, 60), (90, 140, 170),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = ((36, 40, 54), (58, 66, 92), (92, 84, 70), (28, 28, 32), (120, 112, 100))


@dataclass
class Walker:
    """Someone at (x, z). ``across`` = seen from the side, facing the sign of ``facing``."""

    x: float
    z: float
    height: float
    across: bool
    facing: int
    velocity: Point
    base: float = 0.12
    """Height of the ground under the feet, metres."""


class _Figure:
    """Draws parts in a figure's own plane: u to the right, v up, in units of ``scale`` metres."""

    def __init__(self, mesh: Mesh, x: float, y: float, z: float, scale: float, label: Id) -> None:
        self.mesh, self.x, self.y, self.z, self.scale, self.label = mesh, x, y, z, scale, label
        self.instance = mesh.new_instance()

    def points(self, uv: list[tuple[float, float]]) -> list[Point]:
        return [(self.x + u * self.scale, self.y + v * self.scale, self.z) for u, v in uv]

    def part(self, uv: list[tuple[float, float]], colour: Colour) -> None:
        self.mesh.face(self.points(uv), colour, self.label, instance=self.instance, tile=Tile.CLOTH, round_lit=True)

    def mark(self, uv: list[tuple[float, float]], colour: Colour) -> None:
        self.mesh.decal(self.points(uv), colour)

    def limb(self, a: tuple[float, float], b: tuple[float, float], wide: float, thin: float, colour: Colour) -> None:
        """A tapering bar from a to b."""
        du, dv = b[0] - a[0], b[1] - a[1]
        length = math.hypot(du, dv)
        nu, nv = -dv / length / 2, du / length / 2
        self.part(
            [
                (a[0] + nu * wide, a[1] + nv * wide), (a[0] - nu * wide, a[1] - nv * wide),
                (b[0] - nu * thin, b[1] - nv * thin), (b[0] + nu * thin, b[1] + nv * thin),
            ],
            colour,
        )  # fmt: skip

    def disc(self, u: float, v: float, ru: float, rv: float, colour: Colour, *, corners: int = 10) -> None:
        self.part(ellipse(u, v, ru, rv, corners), colour)

    def ring(self, u: float, v: float, radius: float, thick: float, colour: Colour) -> None:
        outer, inner = ellipse(u, v, radius, radius, 18), ellipse(u, v, radius - thick, radius - thick, 18)
        self.part([*outer, outer[0], inner[0], *inner[::-1]], colour)

    def swing(self, u: float, v: float, amplitude: float, phase: float, rate: float) -> None:
        self.mesh.swing((self.x + u * self.scale, self.y + v * self.scale), amplitude, phase, rate)


def ellipse(u: float, v: float, ru: float, rv: float, corners: int) -> list[tuple[float, float]]:
    """Corners of an ellipse about (u, v)."""
    step = 2 * math.pi / corners
    return [(u + ru * math.cos(i * step), v + rv * math.sin(i * step)) for i in range(corners)]


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return shade(colours[rng.integers(len(colours))], rng.uniform(0.85, 1.15))


def _shadow(mesh: Mesh, x: float, z: float, wide: float, long: float) -> None:
    mesh.shadow([(x + u, 0.06, z + v) for u, v in ellipse(0, 0, wide, long, 10)], 95)


def _head(figure: _Figure, u: float, v: float, rng: np.random.Generator, helmet: bool = False) -> None:
    skin = _pick(rng, SKIN)
    figure.disc(u, v, 0.052, 0.068, skin)
    cap = _pick(rng, TOPS) if helmet else _pick(rng, HAIR)
    figure.mark([(u - 0.058, v), (u - 0.05, v + 0.055), (u, v + 0.082), (u + 0.05, v + 0.055), (u + 0.058, v)], cap)


def person(mesh: Mesh, walker: Walker, rng: np.random.Generator) -> None:
    """Add someone on foot whose arms and legs swing as they move; height in metres."""
    mesh.group(Layer.OBJECT, walker.x, walker.z, walker.velocity)
    _shadow(mesh, walker.x, walker.z, 0.32, 0.22)
    figure = _Figure(mesh, walker.x, walker.base, walker.z, walker.height, Id.PERSON)
    top, trousers, face = _pick(rng, TOPS), _pick(rng, TROUSERS), walker.facing
    stride = 0.42 if walker.across else 0.09
    rate, phase = (0.9 if any(walker.velocity) else 0.0), rng.uniform(0, 6.28)
    half, hip = (0.088, 0.07) if walker.across else (0.13, 0.095)
    coat = rng.random() < 0.35
    for sign in (-1, 1):
        u = 0.012 * sign if walker.across else 0.05 * sign
        figure.limb((u, 0.5), (u, 0.02), 0.1, 0.055, shade(trousers, 0.8 if sign < 0 else 1.0))
        toe = face * 0.09 if walker.across else 0.0
        figure.mark(
            [(u - 0.035, 0.0), (u + 0.035 + toe, 0.0), (u + 0.035 + toe, 0.022), (u - 0.035, 0.045)], (36, 30, 28)
        )
        figure.swing(u, 0.5, sign * stride, phase, rate)
        if sign < 0 and walker.across:
            figure.limb((0.0, 0.8), (0.0, 0.46), 0.06, 0.045, shade(top, 0.7))
            figure.swing(0.0, 0.8, 0.8 * stride, phase, rate)
    low = 0.36 if coat else 0.47
    torso = [(-hip, low), (-half, 0.76), (-half * 0.75, 0.82), (half * 0.75, 0.82), (half, 0.76), (hip, low)]
    figure.part(torso, top)
    figure.mark([(0.25 * hip, low), (0.3 * half, 0.8), (half * 0.75, 0.82), (half, 0.76), (hip, low)], shade(top, 0.8))
    if walker.across:
        figure.limb((0.0, 0.8), (0.0, 0.46), 0.065, 0.05, shade(top, 0.9))
        figure.swing(0.0, 0.8, -0.8 * stride, phase, rate)
    else:
        for sign in (-1, 1):
            figure.limb((sign * half, 0.79), (sign * (half + 0.035), 0.45), 0.06, 0.045, shade(top, 0.88))
    figure.limb((0, 0.86), (0, 0.8), 0.05, 0.06, (170, 124, 96))
    _head(figure, face * 0.012 if walker.across else 0.0, 0.925, rng)
    if rng.random() < 0.3:
        bag = _pick(rng, TOPS)
        if walker.across:
            figure.part([(-face * 0.07, 0.56), (-face * 0.16, 0.58), (-face * 0.15, 0.77), (-face * 0.07, 0.79)], bag)
        else:
            figure.part([(half, 0.36), (half + 0.09, 0.36), (half + 0.08, 0.48), (half + 0.01, 0.48)], bag)


def cyclist(mesh: Mesh, walker: Walker, rng: np.random.Generator) -> None:
    """Add a rider with the bicycle, from the side or from the front; the whole is one instance."""
    mesh.group(Layer.OBJECT, walker.x, walker.z, walker.velocity)
    _shadow(mesh, walker.x, walker.z, 0.9 if walker.across else 0.3, 0.2)
    figure = _Figure(mesh, walker.x, walker.base, walker.z, 1.0, Id.CYCLIST)
    top, trousers, frame = _pick(rng, TOPS), _pick(rng, TROUSERS), _pick(rng, TOPS)
    rate, phase = (0.7 if any(walker.velocity) else 0.0), rng.uniform(0, 6.28)
    if walker.across:
        _bicycle_across(figure, walker.facing, frame)
        f = walker.facing
        figure.limb((-0.12 * f, 0.95), (0.02 * f, 0.32), 0.15, 0.08, trousers)
        figure.swing(-0.12 * f, 0.95, 0.3, phase, rate)
        figure.limb((-0.17 * f, 0.92), (0.22 * f, 1.42), 0.24, 0.27, top)
        figure.limb((0.2 * f, 1.36), (0.44 * f, 1.0), 0.1, 0.07, shade(top, 0.85))
        head = (0.3 * f, 1.6)
    else:
        figure.disc(0, 0.34, 0.035, 0.34, (26, 26, 28), corners=12)
        figure.limb((0, 0.6), (0, 1.0), 0.05, 0.05, frame)
        figure.limb((-0.27, 1.0), (0.27, 1.0), 0.045, 0.045, (44, 44, 48))
        for sign in (-1, 1):
            figure.limb(
                (sign * 0.09, 0.92), (sign * 0.12, 0.3 + 0.07 * sign), 0.15, 0.09, shade(trousers, 1 - 0.1 * sign)
            )
            figure.limb((sign * 0.2, 1.38), (sign * 0.26, 1.02), 0.1, 0.08, shade(top, 0.85))
        figure.part([(-0.15, 0.86), (-0.22, 1.34), (-0.15, 1.46), (0.15, 1.46), (0.22, 1.34), (0.15, 0.86)], top)
        figure.mark([(0.05, 0.86), (0.07, 1.45), (0.15, 1.46), (0.22, 1.34), (0.15, 0.86)], shade(top, 0.8))
        head = (0.0, 1.6)
    figure.scale = 1.75  # `_head` is given in shares of a body height
    _head(figure, head[0] / 1.75, head[1] / 1.75, rng, helmet=rng.random() < 0.6)


def _bicycle_across(figure: _Figure, f: int, frame: Colour) -> None:
    for u in (-0.52, 0.52):
        figure.ring(u, 0.34, 0.34, 0.055, (30, 30, 32))
    joints = {"rear": (-0.52 * f, 0.34), "crank": (-0.08 * f, 0.32), "seat": (-0.2 * f, 0.86), "head": (0.38 * f, 0.84)}
    for a, b in (("rear", "crank"), ("rear", "seat"), ("crank", "seat"), ("crank", "head"), ("seat", "head")):
        figure.limb(joints[a], joints[b], 0.05, 0.05, frame)
    figure.limb(joints["head"], (0.52 * f, 0.34), 0.05, 0.04, frame)
    figure.limb(joints["head"], (0.4 * f, 1.02), 0.045, 0.045, (50, 50, 54))
    figure.limb((-0.3 * f, 0.92), (-0.08 * f, 0.92), 0.07, 0.05, (24, 24, 26))
