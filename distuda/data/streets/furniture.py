"""What stands along a street: trees and hedges, lamps, poles, traffic signs, fences and rails."""

import numpy as np

from distuda.data.streets import textures
from distuda.data.streets.buildings import shade
from distuda.data.streets.mesh import Colour, Id, Layer, Mesh, Point, Tile
from distuda.data.streets.people import ellipse
from distuda.data.streets.styles import Layout

TRUNK: Colour = (84, 66, 50)
METALS: tuple[Colour, ...] = ((110, 114, 118), (70, 76, 78), (52, 60, 56), (136, 138, 138))
FENCES: tuple[Colour, ...] = ((136, 100, 66), (112, 88, 66), (96, 104, 84), (176, 170, 158))


def _bar(x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
    return [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]


def tree(mesh: Mesh, x: float, z: float, height: float, layout: Layout, rng: np.random.Generator) -> None:
    """Add a tree on its trunk; height in metres."""
    mesh.group(Layer.OBJECT, x, z)
    mesh.shadow([(x + u, 0.06, z + v) for u, v in ellipse(0, 0, 0.7, 0.5, 8)], 70)
    tint = shade(layout.tree_tints[rng.integers(len(layout.tree_tints))], rng.uniform(0.85, 1.15))
    mirror, wide = bool(rng.random() < 0.5), height * 0.026
    if rng.random() < layout.conifer_share:
        template = textures.NUM_BROADLEAF + int(rng.integers(textures.NUM_CONIFER))
        mesh.face(_bar(x - wide, x + wide, 0.05, 1.2, z), TRUNK, Id.TREE, tile=Tile.PLANKS, round_lit=True)
        half = height * 0.4
        mesh.sprite((x - half, 0.4, z), (x + half, height, z), shade(tint, 0.8), Id.TREE, template, mirror=mirror)
        return
    fork = height * 0.42
    trunk = [(x - wide * 1.2, 0.05, z), (x + wide * 1.2, 0.05, z), (x + wide, fork * 1.3, z), (x - wide, fork * 1.3, z)]
    mesh.face(trunk, TRUNK, Id.TREE, tile=Tile.PLANKS, round_lit=True)
    mesh.decal([(x + 0.3 * wide, 0.05, z), (x + wide * 1.2, 0.05, z), (x + wide, fork * 1.3, z)], shade(TRUNK, 0.7))
    for lean in (-1, 1):
        tip = x + lean * height * 0.16
        branch = [
            (x - wide * 0.6, fork * 0.9, z),
            (x + wide * 0.6, fork * 0.9, z),
            (tip + 0.05, fork * 1.55, z),
            (tip - 0.05, fork * 1.55, z),
        ]
        mesh.face(branch, TRUNK, Id.TREE, round_lit=True)
    half = height * rng.uniform(0.42, 0.5)
    template = int(rng.integers(textures.NUM_BROADLEAF))
    low, high = (x - half, height * 0.24, z), (x + half, height * 1.04, z)
    mesh.sprite(low, high, tint, Id.TREE, template, mirror=mirror)


def hedge(mesh: Mesh, x: float, z: float, wide: float, high: float, layout: Layout, rng: np.random.Generator) -> None:
    """Add a hedge or bush that faces the camera."""
    mesh.group(Layer.OBJECT, x, z)
    tint = shade(layout.tree_tints[rng.integers(len(layout.tree_tints))], rng.uniform(0.7, 0.95))
    template = textures.NUM_BROADLEAF + textures.NUM_CONIFER + int(rng.integers(textures.NUM_HEDGE))
    low, top = (x - wide / 2, -0.05, z), (x + wide / 2, high * 1.25, z)
    mesh.sprite(low, top, tint, Id.TREE, template, mirror=bool(rng.random() < 0.5))


def lamp(mesh: Mesh, x: float, z: float, height: float, strength: float, rng: np.random.Generator) -> None:
    """Add a street lamp whose arm reaches over the road."""
    mesh.group(Layer.OBJECT, x, z)
    mesh.shadow([(x + u, 0.06, z + v) for u, v in ellipse(0, 0, 0.25, 0.2, 8)], 90)
    metal = METALS[rng.integers(len(METALS))]
    tip = x - np.sign(x) * rng.uniform(1.2, 2.2)
    post = [(x - 0.09, 0.05, z), (x + 0.09, 0.05, z), (x + 0.06, height, z), (x - 0.06, height, z)]
    mesh.face(post, metal, Id.POLE, round_lit=True)
    mesh.decal(
        [(x - 0.09, 0.05, z), (x - 0.02, 0.05, z), (x - 0.02, height, z), (x - 0.06, height, z)], shade(metal, 1.35)
    )
    mesh.decal(_bar(x - 0.13, x + 0.13, 0.05, 0.9, z), shade(metal, 0.9))
    arm = [(x, height - 0.1, z), (tip, height + 0.25, z), (tip, height + 0.35, z), (x, height + 0.02, z)]
    mesh.face(arm, metal, Id.POLE, round_lit=True)
    head = [
        (tip - 0.4, height + 0.2, z),
        (tip + 0.4, height + 0.2, z),
        (tip + 0.3, height + 0.4, z),
        (tip - 0.3, height + 0.4, z),
    ]
    mesh.face(head, metal, Id.POLE, round_lit=True)
    glow = 255 if strength > 0 else 0
    mesh.decal(_bar(tip - 0.36, tip + 0.36, height + 0.17, height + 0.28, z), (255, 226, 170), glow=glow)


def bollard(mesh: Mesh, x: float, z: float) -> None:
    """Add a short post at the kerb."""
    mesh.group(Layer.OBJECT, x, z)
    mesh.face(_bar(x - 0.07, x + 0.07, 0.1, 1.0, z), (64, 64, 68), Id.POLE, round_lit=True)
    mesh.decal(_bar(x - 0.07, x + 0.07, 0.8, 0.9, z), (220, 220, 214))


def _signal(mesh: Mesh, x: float, z: float, height: float, rng: np.random.Generator) -> None:
    mesh.face(_bar(x - 0.2, x + 0.2, height - 1.0, height, z), (28, 30, 30), Id.SIGN, round_lit=True)
    on = int(rng.integers(0, 3, endpoint=False))
    for i, colour in enumerate(((230, 40, 30), (250, 180, 40), (60, 220, 120))):
        lens = ellipse(x, height - 0.2 - 0.3 * i, 0.12, 0.12, 10)
        mesh.decal([(u, v, z) for u, v in lens], colour if i == on else shade(colour, 0.22), glow=255 if i == on else 0)


def _plate(mesh: Mesh, x: float, z: float, top: float, rng: np.random.Generator) -> None:
    size, shape = rng.uniform(0.28, 0.4), rng.integers(0, 5)
    middle = top - size

    def outline(share: float) -> list[Point]:
        r = size * share
        if shape == 0:  # warning triangle
            corners = [(-r, -0.7 * r), (r, -0.7 * r), (0, r)]
        elif shape in (1, 2):  # order disc
            corners = ellipse(0, 0, r, r, 16)
        elif shape == 3:  # direction board
            corners = [(-1.7 * r, -0.6 * r), (1.7 * r, -0.6 * r), (1.7 * r, 0.6 * r), (-1.7 * r, 0.6 * r)]
        else:  # information square
            corners = [(-r, -r), (r, -r), (r, r), (-r, r)]
        return [(x + u, middle + v, z) for u, v in corners]

    rim, fill, mark = (
        ((196, 24, 30), (240, 240, 236), (20, 20, 22)), ((196, 24, 30), (240, 240, 236), (20, 20, 22)),
        ((236, 236, 236), (28, 76, 164), (240, 240, 240)), ((236, 236, 236), (232, 188, 40), (24, 24, 24)),
        ((236, 236, 236), (24, 88, 170), (244, 244, 244)),
    )[int(shape)]  # fmt: skip
    mesh.face(outline(1.0), rim, Id.SIGN, round_lit=True)
    mesh.decal(outline(0.88 if shape > 1 else 0.74), fill)
    wide = size * (0.9 if shape == 3 else 0.16)
    mesh.decal(_bar(x - wide, x + wide, middle - 0.36 * size, middle + 0.3 * size if shape != 3 else middle, z), mark)


def sign(mesh: Mesh, x: float, z: float, rng: np.random.Generator) -> None:
    """Add a traffic sign or a traffic light on its pole."""
    mesh.group(Layer.OBJECT, x, z)
    mesh.shadow([(x + u, 0.06, z + v) for u, v in ellipse(0, 0, 0.25, 0.2, 8)], 70)
    height = rng.uniform(2.5, 3.3)
    mesh.face(_bar(x - 0.045, x + 0.045, 0.05, height, z), (140, 144, 146), Id.POLE, round_lit=True)
    if rng.random() < 0.3:
        _signal(mesh, x, z, height + 0.3, rng)
        return
    _plate(mesh, x, z, height + 0.1, rng)
    if rng.random() < 0.3:
        _plate(mesh, x, z, height - 0.95, rng)


def fence(mesh: Mesh, x: float, near: float, far: float, high: float, colour: Colour) -> None:
    """Add a closed plank fence along the street, at X = ``x``."""
    mesh.group(Layer.OBJECT, x, (near + far) / 2)
    corners = [(x, 0.05, near), (x, 0.05, far), (x, high, far), (x, high, near)]
    mesh.face(corners, colour, Id.FENCE, tile=Tile.PLANKS)
    mesh.decal([(x, high - 0.1, near), (x, high - 0.1, far), (x, high, far), (x, high, near)], shade(colour, 1.2))
    mesh.decal([(x, 0.05, near), (x, 0.05, near + 0.14), (x, high, near + 0.14), (x, high, near)], shade(colour, 0.75))


def fence_across(mesh: Mesh, x0: float, x1: float, z: float, high: float, colour: Colour) -> None:
    """Add a closed plank fence that faces the camera."""
    mesh.group(Layer.OBJECT, (x0 + x1) / 2, z)
    mesh.face(_bar(x0, x1, 0.05, high, z), shade(colour, 0.92), Id.FENCE, tile=Tile.PLANKS)
    mesh.decal(_bar(x0, x1, high - 0.1, high, z), shade(colour, 1.15))


def rail(mesh: Mesh, x: float, near: float, far: float, colour: Colour) -> None:
    """Add a railing of posts and two rails along the kerb."""
    mesh.group(Layer.OBJECT, x, (near + far) / 2)
    for low, high in ((0.5, 0.66), (0.92, 1.1)):
        corners = [(x, low, near), (x, low, far), (x, high, far), (x, high, near)]
        mesh.face(corners, colour, Id.FENCE)
    for z in np.linspace(far, near, max(2, int((far - near) / 1.6))):
        corners = [(x, 0.1, float(z)), (x, 0.1, float(z) + 0.12), (x, 1.12, float(z) + 0.12), (x, 1.12, float(z))]
        mesh.face(corners, shade(colour, 0.85), Id.FENCE)
