"""Layout: what stands where on one street, drawn from a style's statistics."""

from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np

from distuda.data.streets import furniture
from distuda.data.streets.buildings import House, backdrop, house, shade
from distuda.data.streets.mesh import Array, Id, Layer, Mesh, Point, Tile
from distuda.data.streets.people import Walker, cyclist, ellipse, person
from distuda.data.streets.styles import Style
from distuda.data.streets.vehicles import PAINTS, SHAPES, Car, car

END_M = 125.0
KERB_M = 0.12


@dataclass
class Camera:
    """A pinhole that looks along +Z; lengths in metres, the rest as shares of the picture's width or height.

    Pixel (column, row) = (centre_x * W + focal * W * (X - x) / (Z - z), centre_y * H - focal * W * (Y - y) / (Z - z)).
    An off-centre principal point stands for a turned head: it moves the vanishing point and keeps verticals vertical.
    """

    x: float
    y: float
    z: float
    focal: float
    centre_x: float
    centre_y: float


@dataclass
class Scene:
    """One street: its polygons, its lamps, its camera and how that moves."""

    mesh: Mesh
    camera: Camera
    speed: float
    """The camera's own, metres a frame."""
    sun: Array
    """Unit vector towards the sun."""
    lamps: Array
    """Positions of the street lamps' lights, (n, 3) metres."""
    ground: int
    """Surfaces 1 to ``ground`` are the road and the pavement."""
    cloud_share: float
    cloud_offset: tuple[float, float]
    exposure: float
    gain: tuple[float, float, float]

    def camera_at(self, time: float) -> Camera:
        """The camera at a time in frames."""
        c = self.camera
        return Camera(c.x, c.y, c.z + self.speed * time, c.focal, c.centre_x, c.centre_y)


@dataclass
class _Street:
    """Cross-section shared by all that is placed: metres from the road's middle."""

    style: Style
    rng: np.random.Generator
    mesh: Mesh
    sun: Array
    camera_x: float
    half: float
    parking: float
    pavement: float
    end: float
    taken: list[tuple[float, float, float]] = field(default_factory=list)
    """Where cars and people are: x, z and half-length along Z."""

    def free(self, x: float, z: float, long: float) -> bool:
        """Whether nobody stands within a body's breadth of (x, z); if so the place is taken from now on."""
        if any(abs(x - a) < 1.7 and abs(z - b) < long + c for a, b, c in self.taken):
            return False
        self.taken.append((x, z, long))
        return True

    @property
    def edge(self) -> float:
        """Where the pavement meets the plots."""
        return self.half + self.pavement

    def cast(self, base: list[tuple[float, float]], height: float, lift: float = 0.0) -> None:
        """The sun's shadow of a prism from ``lift`` to ``height`` over a footprint (x, z), for the current object."""
        if self.style.sun_shadow <= 0:
            return
        shift = -self.sun[[0, 2]] / self.sun[1]
        corners = np.array(base, np.float32)
        prism = np.concatenate([corners + shift * lift, corners + shift * height]).astype(np.float32)
        hull = cv2.convexHull(prism)[:, 0].tolist()
        self.mesh.shadow([(x, 0.06, z) for x, z in hull], int(255 * self.style.sun_shadow))

    def cast_box(self, x: float, z: float, wide: float, long: float, height: float, lift: float = 0.0) -> None:
        """`cast` for a box of half-sizes ``wide`` and ``long`` about (x, z)."""
        self.cast(
            [(x - wide, z - long), (x + wide, z - long), (x + wide, z + long), (x - wide, z + long)], height, lift
        )


def _flat(x0: float, x1: float, z0: float, z1: float, y: float = 0.0) -> list[Point]:
    return [(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)]


def _ground(street: _Street) -> None:
    """Road with markings and patches, kerbs, pavements; everything on the ground plane."""
    mesh, rng, layout, half = street.mesh, street.rng, street.style.layout, street.half
    near, far = -12.0, street.end * 3
    mesh.group(Layer.GROUND, 0.0, 0.0)
    asphalt = shade(layout.asphalt[rng.integers(len(layout.asphalt))], rng.uniform(0.92, 1.08))
    paving = shade(layout.paving[rng.integers(len(layout.paving))], rng.uniform(0.92, 1.08))
    mesh.face(_flat(-half, half, near, far), asphalt, Id.ROAD, tile=Tile.ASPHALT)
    for lane in (-1.75, 1.75):  # tyres polish the asphalt
        for track in (-0.75, 0.75):
            mesh.decal(_flat(lane + track - 0.22, lane + track + 0.22, near, far), shade(asphalt, 0.93))
    for _ in range(int(rng.integers(2, 7))):
        x, z = rng.uniform(-half, half - 1.5), rng.uniform(4, 60)
        mesh.decal(
            _flat(x, x + rng.uniform(0.8, 2.5), z, z + rng.uniform(1, 8)), shade(asphalt, rng.uniform(0.72, 1.12))
        )
    _markings(street)
    for _ in range(int(rng.integers(0, 4))):
        x, z = rng.uniform(-half + 0.6, half - 0.6), rng.uniform(5, 30)
        mesh.decal([(x + u, 0.0, z + v) for u, v in ellipse(0, 0, 0.33, 0.33, 14)], (58, 56, 54))
        mesh.decal([(x + u, 0.0, z + v) for u, v in ellipse(0, 0, 0.26, 0.26, 14)], (84, 80, 76))
    for side in (-1, 1):
        outer = side * 90.0
        x0, x1 = sorted((side * half, outer))
        mesh.face(_flat(x0, x1, near, far, KERB_M), paving, Id.PAVEMENT, tile=Tile.SLABS)
        x0, x1 = sorted((side * half, side * (half + 0.18)))
        mesh.decal(_flat(x0, x1, near, far, KERB_M), shade(paving, 1.14))
        x0, x1 = sorted((side * street.edge, outer))
        mesh.decal(_flat(x0, x1, near, far, KERB_M), shade(paving, 0.84))
        kerb = [
            (side * half, 0.0, near),
            (side * half, 0.0, far),
            (side * half, KERB_M, far),
            (side * half, KERB_M, near),
        ]
        mesh.face(kerb, shade(paving, 0.8), Id.PAVEMENT)
        x0, x1 = sorted((side * (half - 0.4), side * half))
        mesh.shadow(_flat(x0, x1, near, far), 40)


def _markings(street: _Street) -> None:
    mesh, rng, half = street.mesh, street.rng, street.half
    white = shade((236, 234, 226), rng.uniform(0.82, 1.0))
    dash, gap = ((3.0, 4.5), (1.5, 3.0), (400.0, 1.0))[rng.integers(3)]
    starts = np.arange(-10 + rng.uniform(0, dash), street.end * 0.8, dash + gap)
    quads = [p for z in starts for p in _flat(-0.07, 0.07, float(z), float(z) + dash)]
    mesh.decal(quads, white, count=4)
    lane = half - street.parking
    if street.parking:
        bays = np.arange(-10, street.end * 0.6, 5.6)
        for side in (-1, 1):
            a, b = sorted((side * lane, side * half))
            mesh.decal([p for z in bays for p in _flat(a, b, float(z), float(z) + 0.1)], shade(white, 0.92), count=4)
            mesh.decal(_flat(side * lane - 0.05, side * lane + 0.05, -10, street.end), shade(white, 0.92))
    elif rng.random() < 0.6:
        for side in (-1, 1):
            mesh.decal(_flat(side * (lane - 0.3) - 0.06, side * (lane - 0.3) + 0.06, -10, street.end), white)
    if rng.random() < 0.4:  # zebra crossing
        z, long = rng.uniform(9, 34), 3.2
        bars = np.arange(-half + 0.3, half - 0.5, 1.0)
        mesh.decal([p for x in bars for p in _flat(float(x), float(x) + 0.5, z, z + long)], white, count=4)
    if rng.random() < 0.35:  # straight-on arrow in our lane
        z = rng.uniform(8, 22)
        mesh.decal(_flat(1.68, 1.82, z, z + 2.4), white)
        mesh.decal([(1.45, 0.0, z + 2.3), (2.05, 0.0, z + 2.3), (1.75, 0.0, z + 4.0)], white)


def _plots(street: _Street, side: int) -> None:
    """Houses along one side, and gardens with fences, hedges and trees between them."""
    mesh, rng, layout = street.mesh, street.rng, street.style.layout
    setback = rng.uniform(*layout.setback_m)
    z = -rng.uniform(0, 14)
    while z < street.end:
        wide = rng.uniform(8, 19)
        x = side * (street.edge + setback + (rng.uniform(0, 0.8) if rng.random() < 0.5 else 0.0))
        if rng.random() < layout.gap_share:
            if z + wide > 3:
                _garden(street, side, z, z + wide * 0.8)
            z += wide * 0.8
            continue
        height = rng.integers(layout.floors[0], layout.floors[1] + 1) * rng.uniform(3.0, 3.4) + rng.uniform(0.6, 1.4)
        colour = shade(layout.facades[rng.integers(len(layout.facades))], rng.uniform(0.88, 1.08))
        tile = Tile.BRICK if rng.random() < layout.brick_share else Tile.PLASTER
        depth = rng.uniform(8, 13)
        house(mesh, House(x, side, z, z + wide, height, depth, colour, tile), street.style, rng)
        street.cast([(x, z), (x, z + wide), (x + side * depth, z + wide), (x + side * depth, z)], min(height, 14.0))
        if setback > 1.4 and rng.random() < layout.fence_share:
            _front_fence(street, side * (street.edge + 0.1), z, z + wide)
        z += wide + (rng.uniform(0.5, 4) if rng.random() < layout.gap_share else 0.0)


def _front_fence(street: _Street, x: float, near: float, far: float) -> None:
    rng = street.rng
    colour, high = furniture.FENCES[rng.integers(len(furniture.FENCES))], rng.uniform(0.9, 1.5)
    cuts = np.linspace(near, far - 1.4, max(2, int((far - near) / 4)))
    for a, b in pairwise(cuts):
        furniture.fence(street.mesh, x, float(a), float(b), high, colour)


def _garden(street: _Street, side: int, near: float, far: float) -> None:
    rng, mesh, layout = street.rng, street.mesh, street.style.layout
    for _ in range(int(rng.integers(1, 4))):
        x, z = side * (street.edge + rng.uniform(3, 12)), rng.uniform(near + 1, far)
        furniture.tree(mesh, x, z, rng.uniform(5, 10), layout, rng)
    colour, high = furniture.FENCES[rng.integers(len(furniture.FENCES))], rng.uniform(1.3, 2.1)
    if rng.random() < max(0.5, layout.fence_share):
        x0, x1 = sorted((side * (street.edge + 0.1), side * (street.edge + 14)))
        furniture.fence_across(mesh, x0, x1, far - 0.2, high, colour)
        _front_fence(street, side * (street.edge + 0.1), near, far)
    else:
        for z in np.arange(near + 0.5, far, 1.6):
            furniture.hedge(mesh, side * (street.edge + 1.2), float(z), 2.6, rng.uniform(1.1, 1.8), layout, rng)


def _furniture(street: _Street, side: int) -> list[Point]:
    """Trees, lamps, signs, bollards and rails on one pavement; returns where the lamps shine."""
    mesh, rng, layout, half = street.mesh, street.rng, street.style.layout, street.half
    lamps, spacing = [], rng.uniform(*layout.lamp_spacing_m)
    height = rng.uniform(5.5, 7.5)
    lamp_z = np.arange(rng.uniform(2, spacing), street.end, spacing)
    for z in lamp_z:
        furniture.lamp(mesh, side * (half + 0.55), float(z), height, street.style.lamps, rng)
        street.cast_box(side * (half + 0.55), float(z), 0.08, 0.08, height)
        lamps.append((side * (half - 1.0), height, float(z)))
    spacing = rng.uniform(*layout.tree_spacing_m)
    for z in np.arange(rng.uniform(5, spacing + 5), street.end * 0.9, spacing):
        z, x, tall = float(z + rng.uniform(-1.5, 1.5)), side * (half + 1.0), rng.uniform(5.0, 9.0)
        furniture.tree(mesh, x, z, tall, layout, rng)
        crown = ellipse(x, z, tall * 0.34, tall * 0.3, 10)
        street.cast(crown, tall * 0.95, tall * 0.4)
        street.cast_box(x, z, 0.15, 0.15, tall * 0.5)
    for _ in range(int(rng.integers(*layout.signs, endpoint=True))):
        z = rng.uniform(7, 45)
        furniture.sign(mesh, side * (half + 0.45), z, rng)
        street.cast_box(side * (half + 0.45), z, 0.3, 0.05, 3.0, 2.2)
    if rng.random() < 0.3:
        for z in np.arange(rng.uniform(6, 20), rng.uniform(26, 50), 2.2):
            furniture.bollard(mesh, side * (half + 0.3), float(z))
    elif rng.random() < layout.fence_share:
        start, colour = rng.uniform(5, 24), furniture.METALS[rng.integers(len(furniture.METALS))]
        for z in np.arange(start, start + rng.uniform(9, 24), 3.2):
            furniture.rail(mesh, side * (half + 0.25), float(z), float(z) + 3.2, shade(colour, 1.2))
    return lamps


def _add_car(street: _Street, x: float, z: float, away: bool, velocity: float) -> None:
    rng = street.rng
    colour = shade(PAINTS[rng.integers(len(PAINTS))], rng.uniform(0.85, 1.1))
    shape = SHAPES[rng.integers(len(SHAPES))]
    street.taken.append((x, z, shape.length / 2 + 0.3))
    lights = min(1.0, 2.5 * street.style.lamps) if velocity else 0.0
    car(street.mesh, Car(x, z, away, shape, colour, velocity, lights), street.camera_x)
    street.cast_box(x, z, shape.width / 2, shape.length / 2, shape.roof * 0.92)


def _traffic(street: _Street, speed: float) -> None:
    """Parked cars at both kerbs and moving ones in both lanes, never two in one place."""
    rng, layout = street.rng, street.style.layout
    for side in (-1, 1):
        if street.parking:
            for z in np.arange(rng.uniform(2.5, 7.5), 65, 5.6):
                if rng.random() < layout.parked_share:
                    x = side * (street.half - street.parking / 2 + rng.uniform(-0.1, 0.1))
                    _add_car(street, x, float(z) + 2.8, side > 0, 0.0)
    count = int(rng.integers(*layout.driving, endpoint=True))
    next_z = {True: rng.uniform(9, 22), False: rng.uniform(6, 22)}
    for _ in range(count):
        away = bool(rng.random() < 0.5)
        z = next_z[away]
        next_z[away] = z + rng.uniform(8, 20)
        lane = 1.75 if away else -1.75
        _add_car(street, lane + rng.uniform(-0.2, 0.2), z, away, speed * rng.uniform(0.95, 1.15) if away else -speed)


def _people(street: _Street) -> None:
    """Walkers on the pavements, some crossing the road, and cyclists at the road's edge."""
    mesh, rng, layout = street.mesh, street.rng, street.style.layout
    for _ in range(int(rng.integers(*layout.people, endpoint=True))):
        z = float(np.exp(rng.uniform(np.log(5.0), np.log(36))))
        side = 1 if rng.random() < 0.5 else -1
        x, across = side * rng.uniform(street.half + 0.9, street.edge - 0.3), bool(rng.random() < 0.35)
        facing, base = (1 if rng.random() < 0.5 else -1), KERB_M
        if rng.random() < 0.22 and z > 11:
            x, across, base = rng.uniform(-street.half, street.half), True, 0.0
        if not street.free(x, z, 0.3):
            continue
        pace = rng.uniform(0.06, 0.11)
        velocity = (facing * pace, 0.0, 0.0) if across and base == 0 else (0.0, 0.0, facing * pace)
        height = rng.uniform(1.1, 1.35) if rng.random() < 0.12 else rng.uniform(1.58, 1.88)
        person(mesh, Walker(x, z, height, across, facing, velocity, base), rng)
        street.cast_box(x, z, 0.22, 0.15, height)
    for _ in range(int(rng.integers(*layout.cyclists, endpoint=True))):
        away, across = bool(rng.random() < 0.6), bool(rng.random() < 0.4)
        z, facing = rng.uniform(6.5, 28), (1 if rng.random() < 0.5 else -1)
        lane = street.half - street.parking - 0.55
        x = rng.uniform(-street.half, street.half) if across else (lane if away else -lane)
        if not street.free(x, z, 0.9):
            continue
        pace = rng.uniform(0.25, 0.4)
        velocity = (facing * pace, 0.0, 0.0) if across else (0.0, 0.0, pace if away else -pace)
        cyclist(mesh, Walker(x, z, 1.75, across, facing, velocity, 0.0), rng)
        street.cast_box(x, z, 0.8 if across else 0.25, 0.2, 1.6)


def _camera(rng: np.random.Generator) -> Camera:
    return Camera(
        x=1.75 + rng.uniform(-0.5, 0.4),
        y=rng.uniform(1.35, 1.85),
        z=0.0,
        focal=rng.uniform(0.68, 0.86),
        centre_x=0.5 + float(np.clip(rng.normal(0, 0.06), -0.16, 0.16)),
        centre_y=rng.uniform(0.42, 0.54),
    )


def lay_out(style: Style, rng: np.random.Generator, travel_frames: int = 1) -> Scene:
    """Draw one street of a style; it is long enough for the camera to drive on for ``travel_frames`` frames."""
    camera, speed = _camera(rng), rng.uniform(0.35, 0.7)
    elevation, azimuth = rng.uniform(*style.sun_height), rng.uniform(0, 2 * np.pi)
    flat = np.cos(elevation)
    sun = np.array([flat * np.cos(azimuth), np.sin(elevation), flat * np.sin(azimuth)], np.float32)
    parking = 2.1 if rng.random() < 0.65 else 0.0
    street = _Street(
        style=style, rng=rng, mesh=Mesh(), sun=sun, camera_x=camera.x, half=3.4 + parking + rng.uniform(0, 0.7),
        parking=parking, pavement=rng.uniform(2.2, 4.2), end=END_M + speed * travel_frames,
    )  # fmt: skip
    _ground(street)
    ground = len(street.mesh.labels) - 1
    backdrop(street.mesh, street.end + 15, style, rng)
    lamps: list[Point] = []
    for side in (-1, 1):
        _plots(street, side)
        lamps += _furniture(street, side)
    _traffic(street, speed)
    _people(street)
    red, green, blue = (1 + rng.normal(0, 0.03, 3)) * np.array(style.sensor.gain)
    return Scene(
        street.mesh, camera, speed, sun, np.array(lamps, np.float32), ground, rng.uniform(*style.sky.cloud_share),
        (rng.uniform(0, 512), rng.uniform(0, 512)), rng.uniform(*style.sensor.exposure), (red, green, blue),
    )  # fmt: skip
