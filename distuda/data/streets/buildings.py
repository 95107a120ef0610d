"""Houses beside the street and the silhouette at its end."""

import math
from dataclasses import dataclass

import numpy as np

from distuda.data.streets.mesh import Array, Colour, Id, Layer, Mesh, Point, Tile
from distuda.data.streets.styles import Style

GLASS: tuple[Colour, ...] = ((38, 46, 58), (52, 62, 78), (84, 104, 128), (150, 172, 192))
LIT: tuple[Colour, ...] = ((255, 214, 140), (255, 190, 104), (236, 228, 200), (255, 170, 84))
ROOFS: tuple[Colour, ...] = ((150, 74, 54), (120, 64, 52), (88, 84, 88), (104, 92, 84), (70, 72, 80))
SHOPS: tuple[Colour, ...] = ((150, 36, 36), (30, 84, 66), (34, 56, 112), (196, 160, 60), (60, 52, 56), (206, 206, 200))

DETAIL_M = 60.0
"""Beyond this, details smaller than a pixel are left out."""


def shade(colour: Colour, factor: float) -> Colour:
    """A colour made darker or lighter."""
    r, g, b = colour
    return min(255, int(r * factor)), min(255, int(g * factor)), min(255, int(b * factor))


@dataclass
class House:
    """A box beside the street: its street front lies at X = ``x`` and it reaches away from the road for ``depth``."""

    x: float
    side: int
    near: float
    far: float
    height: float
    depth: float
    colour: Colour
    tile: Tile


class _Wall:
    """A rectangle of wall in its own coordinates: s along it, y up; turns both into world points."""

    def __init__(self, x0: float, z0: float, x1: float, z1: float) -> None:
        self.x0, self.z0 = x0, z0
        self.length = math.hypot(x1 - x0, z1 - z0)
        self.dx, self.dz = (x1 - x0) / self.length, (z1 - z0) / self.length

    def quads(self, s0: Array, s1: Array | float, y0: Array | float, y1: Array | float) -> Array:
        """Corners of many rectangles, (n, 4, 3)."""
        out = np.empty((len(s0), 4, 3), np.float32)
        out[:, 0, 1] = out[:, 1, 1] = y0
        out[:, 2, 1] = out[:, 3, 1] = y1
        for corner, s in ((0, s0), (1, s1), (2, s1), (3, s0)):
            out[:, corner, 0] = self.x0 + s * self.dx
            out[:, corner, 2] = self.z0 + s * self.dz
        return out

    def quad(self, s0: float, s1: float, y0: float, y1: float) -> list[Point]:
        """Corners of one rectangle."""
        ends = [(self.x0 + s * self.dx, self.z0 + s * self.dz) for s in (s0, s1)]
        (xa, za), (xb, zb) = ends
        return [(xa, y0, za), (xb, y0, zb), (xb, y1, zb), (xa, y1, za)]


def _paint_quads(mesh: Mesh, quads: Array, colour: Colour, glow: int = 0) -> None:
    mesh.decal(quads.reshape(-1, 3), colour, count=4, glow=glow)


def _windows(mesh: Mesh, wall: _Wall, height: float, first: float, style: Style, rng: np.random.Generator) -> None:
    """A grid of windows with frames and sills, some of them lit; far walls get the panes only."""
    storey, bay = rng.uniform(2.8, 3.3), rng.uniform(2.0, 3.4)
    rows, columns = int((height - first - 0.4) / storey), int((wall.length - 0.6) / bay)
    if rows < 1 or columns < 1:
        return
    wide, high = bay * rng.uniform(0.4, 0.6), storey * rng.uniform(0.48, 0.62)
    margin = (wall.length - columns * bay) / 2
    cell = np.arange(rows * columns)
    s0 = margin + (cell % columns + 0.5) * bay - wide / 2
    y0 = first + cell // columns * storey + 0.85
    frame = shade((236, 232, 224), rng.uniform(0.7, 1.0)) if rng.random() < 0.7 else (74, 60, 50)
    pick = rng.integers(0, len(GLASS), len(s0))
    pick[rng.random(len(s0)) < style.lit_windows] += len(GLASS)
    courses, bars, near = rng.random() < 0.4, rng.random() < 0.6, wall.z0 < DETAIL_M
    if near and courses:  # string courses between the floors
        levels = first + np.arange(rows) * storey + 0.25
        _paint_quads(mesh, wall.quads(0 * levels, wall.length, levels, levels + 0.14), shade(frame, 0.9))
    if near:
        _paint_quads(mesh, wall.quads(s0 - 0.1, s0 + wide + 0.1, y0 - 0.14, y0 + high + 0.1), frame)
    panes = wall.quads(s0, s0 + wide, y0, y0 + high)
    if not near:  # one kind of glass and one of light
        pick = np.where(pick < len(GLASS), 1, len(GLASS))
    for i in np.unique(pick):
        _paint_quads(mesh, panes[pick == i], (*GLASS, *LIT)[i], 0 if i < len(GLASS) else 170)
    if near and bars:
        middle = s0 + wide / 2
        _paint_quads(mesh, wall.quads(middle - 0.04, middle + 0.04, y0, y0 + high), frame)


def _display(mesh: Mesh, wall: _Wall, s0: Array, s1: Array, glow: int, rng: np.random.Generator) -> None:
    """Goods behind the panes of a shop, and bars between the panes."""
    at = s0 + (s1 - s0) * rng.uniform(0.1, 0.6, len(s0))
    _paint_quads(mesh, wall.quads(at, at + rng.uniform(0.4, 1.0), 0.5, rng.uniform(1.0, 1.7)), (92, 78, 66), glow)
    at = s0 + (s1 - s0) * rng.uniform(0.1, 0.7, len(s0))
    _paint_quads(mesh, wall.quads(at, at + rng.uniform(0.2, 0.5), 0.7, rng.uniform(1.2, 1.6)), (120, 52, 48), glow)
    _paint_quads(mesh, wall.quads((s0 + s1) / 2, (s0 + s1) / 2 + 0.07, 0.5, 2.6), (60, 56, 54))


def _ground_floor(mesh: Mesh, wall: _Wall, house: House, style: Style, rng: np.random.Generator) -> float:
    """A shop or a door on the street front; returns the height where the upper floors start."""
    mesh.decal(wall.quad(0, wall.length, 0.1, rng.uniform(0.5, 0.9)), shade(house.colour, 0.62))
    if rng.random() < 0.45 and house.height > 5.5:
        sign, margin = SHOPS[rng.integers(len(SHOPS))], 0.5
        lit = rng.random() < 2 * style.lit_windows
        bays = max(1, int(wall.length / 3.2))
        s0 = margin + np.arange(bays) * (wall.length - 2 * margin) / bays
        s1 = s0 + (wall.length - 2 * margin) / bays - 0.25
        glass = LIT[rng.integers(len(LIT))] if lit else GLASS[rng.integers(3)]
        _paint_quads(mesh, wall.quads(s0, s1, 0.5, 2.6), glass, 150 if lit else 0)
        _paint_quads(mesh, wall.quads(s0, s1, 1.9, 2.6), shade(glass, 1.25), 150 if lit else 0)
        _display(mesh, wall, s0, s1, 110 if lit else 0, rng)
        mesh.decal(wall.quad(margin, wall.length - margin, 2.7, 3.25), sign, glow=90 if lit else 0)
        letters = np.arange(margin + 0.8, max(margin + 0.9, wall.length * 0.6), 0.42)
        _paint_quads(mesh, wall.quads(letters, letters + 0.26, 2.82, 3.12), (235, 230, 215))
        return 3.4
    at = rng.uniform(0.15, 0.7) * wall.length
    mesh.decal(wall.quad(at - 0.15, at + 1.25, 0.1, 2.45), shade(house.colour, 1.25))
    mesh.decal(wall.quad(at, at + 1.1, 0.1, 2.3), shade(SHOPS[rng.integers(len(SHOPS))], 0.7))
    return 2.6 if rng.random() < 0.5 else 0.4


def _roof(mesh: Mesh, house: House, rng: np.random.Generator) -> None:
    """A pitched roof whose ridge runs along the street, with a chimney and the gable towards the camera."""
    ridge_x, rise = house.x + house.side * house.depth / 2, house.depth / 2 * rng.uniform(0.75, 1.1)
    eave, top = house.height, house.height + rise
    eave_x, back_x = house.x - house.side * 0.3, house.x + house.side * house.depth
    if rng.random() < 0.6:
        at, wide = rng.uniform(house.near + 1, house.far - 1), 0.45
        low, high, x = top - rise * 0.6, top + 0.7, ridge_x - house.side * 0.8
        chimney = [(x - wide, low, at), (x + wide, low, at), (x + wide, high, at), (x - wide, high, at)]
        mesh.face(chimney, shade(house.colour, 0.75), Id.BUILDING, tile=Tile.BRICK)
    gable = [(house.x, eave, house.near), (ridge_x, top, house.near), (back_x, eave, house.near)]
    mesh.face(gable, house.colour, Id.BUILDING, tile=house.tile)
    colour = ROOFS[rng.integers(len(ROOFS))]
    slope = [(eave_x, eave - 0.2, house.near), (eave_x, eave - 0.2, house.far)]
    mesh.face([*slope, (ridge_x, top, house.far), (ridge_x, top, house.near)], colour, Id.BUILDING, tile=Tile.ROOF)


def house(mesh: Mesh, house: House, style: Style, rng: np.random.Generator) -> None:
    """Add a house: the gable end that faces the camera, the street front with windows, the roof."""
    mesh.group(Layer.BUILDING, house.x, (house.near + house.far) / 2)
    back = house.x + house.side * house.depth
    end = _Wall(house.x, house.near, back, house.near)
    mesh.face(end.quad(0, end.length, 0, house.height), house.colour, Id.BUILDING, tile=house.tile)
    if rng.random() < 0.6 and house.near < DETAIL_M:
        _windows(mesh, end, house.height, 0.4, style, rng)
    if rng.random() < style.layout.pitched_share and house.height < 14:
        _roof(mesh, house, rng)
    front = _Wall(house.x, house.near, house.x, house.far)
    mesh.face(front.quad(0, front.length, 0, house.height), house.colour, Id.BUILDING, tile=house.tile)
    first = _ground_floor(mesh, front, house, style, rng)
    _windows(mesh, front, house.height, first, style, rng)
    mesh.decal(front.quad(0, front.length, house.height - 0.35, house.height), shade(house.colour, 0.8))
    mesh.decal(front.quad(0, front.length, house.height - 0.12, house.height), shade(house.colour, 1.2))


def backdrop(mesh: Mesh, distance: float, style: Style, rng: np.random.Generator) -> None:
    """A row of far houses across the end of the street, so that the horizon is never bare."""
    mesh.group(Layer.BACKDROP, 0.0, distance)
    x = -distance * 1.1
    while x < distance * 1.1:
        wide = rng.uniform(10, 26)
        low, high = style.layout.floors
        height = rng.uniform(low + 0.5, high + 1.5) * 3.2
        colour = style.layout.facades[rng.integers(len(style.layout.facades))]
        wall = _Wall(x, distance, x + wide, distance)
        mesh.face(wall.quad(0, wide, -1.0, height), colour, Id.BUILDING, tile=Tile.PLASTER)
        _windows(mesh, wall, height, 0.4, style, rng)
        x += wide
