"""Polygons of a street in world coordinates, with what is known about each: class, instance, colour, motion.

World axes: X right, Y up, Z forward along the street, metres; the road lies at Y = 0. The camera looks along +Z and
never turns, so its image axes stay parallel to X and Y and a plane of constant Z keeps its shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of floats, float32 unless said otherwise."""
Point = tuple[float, float, float]
Colour = tuple[int, int, int]
Points = Sequence[Point] | Array


class Id(IntEnum):
    """Train ids of the classes; `VOID` is the ignore index."""

    ROAD = 0
    PAVEMENT = 1
    BUILDING = 2
    SKY = 3
    TREE = 4
    POLE = 5
    SIGN = 6
    FENCE = 7
    CAR = 8
    PERSON = 9
    CYCLIST = 10
    VOID = 255


class Tile(IntEnum):
    """Columns of the texture atlas (`textures.atlas`)."""

    FLAT = 0
    ASPHALT = 1
    SLABS = 2
    PLASTER = 3
    BRICK = 4
    PLANKS = 5
    ROOF = 6
    CLOTH = 7


class Kind(IntEnum):
    """What painting a polygon does: open a new surface, colour the last one, darken the ground, or paste a cut-out."""

    FACE = 0
    DECAL = 1
    SHADOW = 2
    SPRITE = 3


class Layer(IntEnum):
    """Painting order of whole objects; within a layer, far before near."""

    GROUND = 0
    BACKDROP = 1
    BUILDING = 2
    OBJECT = 3


@dataclass
class Group:
    """One object: its polygons are painted together. ``x`` and ``z`` place it in the painting order at time 0."""

    layer: Layer
    first: int
    x: float
    z: float
    velocity: Point


@dataclass
class Mesh:
    """All polygons of a scene, built once; `at` moves them in time.

    A *surface* is one opaque plane (a face or a sprite); decals lie on the surface opened before them. Surface 0 is
    the sky. Because every surface is a plane that moves affinely, depth and flow follow exactly from three of its
    vertices, the anchors.
    """

    buffer: Array = field(default_factory=lambda: np.empty((4096, 3), np.float32))
    num_points: int = 0
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    colours: list[tuple[int, int, int, int]] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    surfaces: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    group_of: list[int] = field(default_factory=list)
    swings: list[tuple[int, int, float, float, float, float, float]] = field(default_factory=list)
    templates: dict[int, tuple[int, bool]] = field(default_factory=dict)
    labels: list[int] = field(default_factory=lambda: [int(Id.SKY)])
    instances: list[int] = field(default_factory=lambda: [0])
    tiles: list[int] = field(default_factory=lambda: [0])
    round_lit: list[bool] = field(default_factory=lambda: [True])
    anchors: list[tuple[int, int, int]] = field(default_factory=lambda: [(0, 0, 0)])
    num_instances: int = 0

    def new_instance(self) -> int:
        """The next instance id, from 1."""
        self.num_instances += 1
        return self.num_instances

    def group(self, layer: Layer, x: float, z: float, velocity: Point = (0.0, 0.0, 0.0)) -> None:
        """Start a new object at (x, z); velocity in metres a frame."""
        self.groups.append(Group(layer, len(self.starts), x, z, velocity))

    def _add(self, points: Points, count: int, colour: Colour, kind: Kind, glow: int) -> None:
        first, last = self.num_points, self.num_points + len(points)
        if last > len(self.buffer):
            self.buffer = np.concatenate([self.buffer, np.empty((max(last, len(self.buffer)), 3), np.float32)])
        self.buffer[first:last] = points
        self.num_points = last
        self.starts.append(first)
        self.counts.append(count)
        self.colours.append((*colour, glow))
        self.kinds.append(kind)
        self.surfaces.append(len(self.labels) - 1)
        self.group_of.append(len(self.groups) - 1)

    def face(
        self,
        points: Points,
        colour: Colour,
        label: Id,
        *,
        instance: int = 0,
        tile: Tile = Tile.FLAT,
        glow: int = 0,
        round_lit: bool = False,
        kind: Kind = Kind.FACE,
    ) -> None:
        """An opaque planar polygon, a new surface.

        Args:
            points: its corners in order, (n, 3) metres; corners 0, n // 3 and 2n // 3 must not lie on one line.
            colour: RGB albedo in [0, 255].
            label: its class.
            instance: its instance id, 0 = none.
            tile: its texture.
            glow: share of its colour that it emits, in [0, 255].
            round_lit: lit as a rounded body (people, poles) instead of by the normal of its plane.
            kind: FACE, or SPRITE for a rectangle that carries a cut-out.
        """
        n, first = len(points), self.num_points
        self.labels.append(int(label))
        self.instances.append(instance)
        self.tiles.append(int(tile))
        self.round_lit.append(round_lit)
        self.anchors.append((first, first + n // 3, first + 2 * n // 3))
        self._add(points, n, colour, kind, glow)

    def decal(self, points: Points, colour: Colour, *, count: int = 0, glow: int = 0) -> None:
        """Paint on the last surface: one polygon, or several of ``count`` corners each."""
        if len(points):
            self._add(points, count or len(points), colour, Kind.DECAL, glow)

    def shadow(self, points: Points, strength: int) -> None:
        """Darken the ground inside a polygon on it; strength in [0, 255]."""
        self._add(points, len(points), (strength, 0, 0), Kind.SHADOW, 0)

    def sprite(
        self, low: Point, high: Point, colour: Colour, label: Id, template: int, *, mirror: bool = False
    ) -> None:
        """A cut-out (`textures.canopies`) that stands in the plane Z = low[2], from corner low to corner high."""
        self.templates[len(self.starts)] = (template, mirror)
        (x0, y0, z), (x1, y1, _) = low, high
        corners = [(x0, y1, z), (x1, y1, z), (x1, y0, z), (x0, y0, z)]
        self.face(corners, colour, label, round_lit=True, kind=Kind.SPRITE)

    def swing(self, pivot: tuple[float, float], amplitude: float, phase: float, rate: float) -> None:
        """Let the last surface with its decals swing about a pivot (x, y) in its plane of constant Z.

        The angle at time t is ``amplitude * sin(phase + rate * t)`` radians; the points were given for angle zero.
        """
        self.swings.append((self.anchors[-1][0], self.num_points, *pivot, amplitude, phase, rate))

    @property
    def rest(self) -> Array:
        """All vertices at time 0 before swinging, (V, 3)."""
        return self.buffer[: self.num_points]

    @cached_property
    def _velocity(self) -> Array:
        """Velocities of all vertices, (V, 3) metres a frame."""
        lengths = np.diff([*self.starts, self.num_points])
        velocity = np.array([self.groups[i].velocity for i in self.group_of], np.float32)
        return np.repeat(velocity, lengths, axis=0)

    def at(self, time: float) -> Array:
        """All vertices at a time in frames, float32 (V, 3)."""
        rest = self.rest
        points = rest + self._velocity * np.float32(time)
        for first, last, x, y, amplitude, phase, rate in self.swings:
            angle = amplitude * np.sin(phase + rate * time)
            c, s = np.cos(angle), np.sin(angle)
            dx, dy = rest[first:last, 0] - x, rest[first:last, 1] - y
            points[first:last, 0] += (c - 1) * dx - s * dy
            points[first:last, 1] += s * dx + (c - 1) * dy
        return points
