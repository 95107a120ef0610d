"""Cars: bodies of a few planes each with windows, wheels and lights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from distuda.data.streets.buildings import shade
from distuda.data.streets.mesh import Colour, Id, Layer, Mesh, Point

PAINTS: tuple[Colour, ...] = (
    (206, 208, 212), (150, 154, 160), (46, 48, 54), (236, 236, 234), (160, 30, 34), (34, 62, 120),
    (92, 112, 128), (60, 84, 66), (196, 170, 120), (110, 24, 40), (24, 26, 30), (200, 110, 40),
)  # fmt: skip
Face = Callable[[list[Point], Colour], None]
"""`Mesh.face` for one car: corners and colour."""
TYRE: Colour = (24, 24, 26)
DETAIL_M = 30.0
"""Beyond this, details smaller than a pixel are left out."""
GLASS: Colour = (34, 44, 54)


@dataclass(frozen=True)
class Shape:
    """Measures of a car in metres; a deck is the flat part before the front or rear window."""

    length: float
    width: float
    roof: float
    belt: float
    rear_deck: float
    front_deck: float
    rear_rake: float
    front_rake: float


SHAPES = (
    Shape(3.9, 1.72, 1.48, 0.88, 0.06, 0.95, 0.35, 0.75),  # hatchback
    Shape(4.5, 1.80, 1.44, 0.86, 0.75, 1.15, 0.75, 0.85),  # saloon
    Shape(4.5, 1.86, 1.70, 0.98, 0.05, 1.05, 0.30, 0.65),  # off-roader
    Shape(4.6, 1.80, 1.47, 0.88, 0.05, 1.10, 0.55, 0.85),  # estate
    Shape(5.2, 1.95, 2.15, 1.10, 0.03, 0.55, 0.08, 0.60),  # van
)


_CIRCLE = tuple((math.cos(i * math.pi / 6), math.sin(i * math.pi / 6)) for i in range(12))


def _disc(x: float, z: float, radius: float, y: float = 0.32) -> list[Point]:
    """A disc in the flank's plane about a wheel's hub."""
    return [(x, y + radius * s, z + radius * c) for c, s in _CIRCLE]


@dataclass
class Car:
    """A car at (x, z) of its middle; ``away`` = seen from behind; velocity along Z in metres a frame."""

    x: float
    z: float
    away: bool
    shape: Shape
    colour: Colour
    velocity: float
    lights: float
    """How strongly its lamps shine, 0 to 1."""


def _shadow(mesh: Mesh, car: Car) -> None:
    for grow, strength in ((0.25, 60), (0.05, 120)):
        wide, long = car.shape.width / 2 + grow, car.shape.length / 2 + grow
        corners = [(-wide, -long), (wide, -long), (wide, long), (-wide, long)]
        mesh.shadow([(car.x + dx, 0.0, car.z + dz) for dx, dz in corners], strength)


def _side(mesh: Mesh, car: Car, xs: float, inset: float, decks: tuple[float, float, float, float], face: Face) -> None:
    """The flank that the camera sees: silhouette, wheels, cabin and its windows."""
    shape, z0, z1 = car.shape, car.z - car.shape.length / 2, car.z + car.shape.length / 2
    near_deck, near_rake, far_deck, far_rake = decks
    belt, roof = shape.belt, shape.roof
    flank = [(0.0, 0.3), (0.0, belt - 0.2), (0.1, belt), (shape.length - 0.1, belt - 0.02)]
    flank += [(shape.length, belt - 0.2), (shape.length, 0.3)]
    face([(xs, y, z0 + s) for s, y in flank], shade(car.colour, 0.94))
    near = z0 < DETAIL_M
    if near:
        sill = ((0, 0.3), (0, 0.42), (shape.length, 0.42), (shape.length, 0.3))
        mesh.decal([(xs, y, z0 + s) for s, y in sill], (40, 40, 42))
        for s in (0.26 * shape.length, 0.5 * shape.length):
            seam = ((0.45, 0), (0.45, 0.03), (belt, 0.03), (belt, 0))
            mesh.decal([(xs, y, z0 + s + d) for y, d in seam], shade(car.colour, 0.5))
    for z in (z0 + 0.78, z1 - 0.82):
        if near:
            mesh.decal(_disc(xs, z, 0.38), (14, 14, 16))
        face(_disc(xs, z, 0.32), TYRE)
        mesh.decal(_disc(xs, z, 0.19), (150, 152, 156))
        if near:
            mesh.decal(_disc(xs, z, 0.06), (70, 70, 74))
    xr = xs - inset
    z_near, z_far = z0 + near_deck, z1 - far_deck
    cabin = [
        (xs, belt - 0.02, z_near),
        (xr, roof, z_near + near_rake),
        (xr, roof, z_far - far_rake),
        (xs, belt - 0.02, z_far),
    ]
    face(cabin, shade(car.colour, 0.98))
    low, high = belt + 0.05, roof - 0.09

    def pane(t0: float, t1: float) -> list[Point]:
        points = []
        for y, ends in ((low, (t0, t1)), (high, (t1, t0))):
            share = (y - belt) / (roof - belt)
            a, b = z_near + share * near_rake + 0.1, z_far - share * far_rake - 0.1
            points += [(xs - inset * share, y, a + t * (b - a)) for t in ends]
        return points

    panes = [(0.0, 0.46), (0.51, 1.0)] if shape.roof < 2 else [(0.62, 1.0)]
    for t0, t1 in panes:
        mesh.decal(pane(t0, t1), GLASS)
        mesh.decal(pane(t0 + 0.02, (t0 + t1) / 2), shade(GLASS, 1.5))


def _end(mesh: Mesh, car: Car, inset: float, decks: tuple[float, float, float, float], face: Face) -> None:
    """The end that faces the camera: deck, window, bumper, plate and lamps."""
    shape, z = car.shape, car.z - car.shape.length / 2
    x0, x1, belt, roof = car.x - shape.width / 2, car.x + shape.width / 2, shape.belt, shape.roof
    near_deck, near_rake = decks[:2]
    zc, zr = z + near_deck, z + near_deck + near_rake
    back = car.z + shape.length / 2 - decks[2] - decks[3]
    top = [(x0 + inset, roof, zr), (x1 - inset, roof, zr), (x1 - inset, roof, back), (x0 + inset, roof, back)]
    face(top, shade(car.colour, 1.1))
    face([(x0, belt, zc), (x1, belt, zc), (x1 - inset, roof, zr), (x0 + inset, roof, zr)], car.colour)

    def glass(t0: float, t1: float, low: float, high: float) -> list[Point]:
        points = []
        for share, ends in ((low, (t0, t1)), (high, (t1, t0))):
            a, b = x0 + inset * share + 0.1, x1 - inset * share - 0.1
            points += [(a + t * (b - a), belt + share * (roof - belt), zc + share * near_rake) for t in ends]
        return points

    mesh.decal(glass(0, 1, 0.1, 0.86), GLASS)
    mesh.decal(glass(0.08, 0.4, 0.35, 0.86), shade(GLASS, 1.7))
    deck = [(x0 + 0.04, belt - 0.04, z), (x1 - 0.04, belt - 0.04, z), (x1, belt, zc), (x0, belt, zc)]
    face(deck, shade(car.colour, 1.12))
    for a, b in ((x0 + 0.04, x0 + 0.27), (x1 - 0.27, x1 - 0.04)):
        face([(a, 0.0, z + 0.3), (b, 0.0, z + 0.3), (b, 0.4, z + 0.3), (a, 0.4, z + 0.3)], TYRE)
    outline = [
        (x0, 0.3),
        (x0, belt - 0.18),
        (x0 + 0.08, belt - 0.03),
        (x1 - 0.08, belt - 0.03),
        (x1, belt - 0.18),
        (x1, 0.3),
    ]
    face([(x, y, z) for x, y in outline], car.colour)

    def plate(a: float, b: float, low: float, high: float, colour: Colour, glow: int = 0) -> None:
        mesh.decal([(a, low, z), (b, low, z), (b, high, z), (a, high, z)], colour, glow=glow)

    plate(x0, x1, 0.3, 0.46, (44, 44, 48))
    plate(car.x - 0.28, car.x + 0.28, 0.5, 0.62, (228, 226, 210))
    glow = int(255 * car.lights)
    if car.away:
        tall = 0.3 if roof > 1.6 else 0.17
        for a, b in ((x0 + 0.03, x0 + 0.3), (x1 - 0.3, x1 - 0.03)):
            plate(a, b, belt - 0.2 - tall / 2, belt - 0.06, (176, 18, 20), glow)
    else:
        plate(car.x - 0.5, car.x + 0.5, belt - 0.26, belt - 0.12, (30, 30, 34))
        for a, b in ((x0 + 0.06, x0 + 0.4), (x1 - 0.4, x1 - 0.06)):
            plate(a, b, belt - 0.28, belt - 0.1, (255, 250, 228), glow)


def car(mesh: Mesh, car: Car, camera_x: float) -> None:
    """Add a car as the camera at X = ``camera_x`` sees it: one flank and the nearer end."""
    shape = car.shape
    mesh.group(Layer.OBJECT, car.x, car.z, (0.0, 0.0, car.velocity))
    face = partial(mesh.face, label=Id.CAR, instance=mesh.new_instance())
    decks = (shape.rear_deck, shape.rear_rake, shape.front_deck, shape.front_rake)
    decks = decks if car.away else (*decks[2:], *decks[:2])
    _shadow(mesh, car)
    side = -1.0 if car.x > camera_x else 1.0
    x0, x1, z = car.x - shape.width / 2, car.x + shape.width / 2, car.z - shape.length / 2 + 0.4
    face([(x0, 0.1, z), (x1, 0.1, z), (x1, 0.5, z), (x0, 0.5, z)], (18, 18, 20))
    inset = 0.06 if shape.roof > 2 else 0.2
    _side(mesh, car, car.x + side * shape.width / 2, side * inset, decks, face)
    _end(mesh, car, inset, decks, face)
