"""From painted buffers to a photograph: texture, sun, lamps, air, sky, glow, and the marks of the sensor."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.streets import textures
from distuda.data.streets.mesh import Array
from distuda.data.streets.paint import Painting, rays
from distuda.data.streets.scene import Camera, Scene
from distuda.data.streets.styles import Light, Sensor, Style

_LAMP_CELL_M = 0.75
_LAMP_HALF_M = 24.0
_HEADLIGHT: Light = (1.0, 0.96, 0.86)
_KNEE = np.float32(0.75)


@dataclass
class _Pixels:
    """Geometry of each pixel, all (H, W): depth in metres, texture and world coordinates in metres, ray slopes."""

    depth: Array
    u: Array
    v: Array
    x: Array
    y: Array
    slope_x: Array
    slope_y: Array


def _texture_axes(scene: Scene) -> tuple[Array, Array]:
    """Texture coordinates of each surface's anchors, (S, 2, 3) metres, and unit normals, (S, 3).

    Coordinates are the two world axes most nearly in the plane, measured from the object, so textures move with it.
    """
    mesh = scene.mesh
    rest = mesh.rest[np.array(mesh.anchors)]
    normal = np.cross(rest[:, 1] - rest[:, 0], rest[:, 2] - rest[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    axis = np.argmax(np.abs(normal), axis=1)
    first, second = np.array([2, 0, 0])[axis], np.array([1, 2, 1])[axis]
    s = np.arange(len(axis))
    return np.stack([rest[s, :, first], rest[s, :, second]], axis=1), normal


def _pixels(painting: Painting, camera: Camera, texture: Array) -> _Pixels:
    height, width = painting.surface.shape
    ray = rays(camera, (height, width))
    # One over depth, and texture coordinates over depth, are linear in the picture: three numbers a surface each.
    rows = np.concatenate([np.ones((len(texture), 1, 3)), texture], axis=1) @ painting.inverse
    rows[0] = 0.0
    table = rows.astype(np.float32).reshape(-1, 9).T.copy()
    x, y = ray[..., 0], ray[..., 1]

    def linear(row: int) -> Array:
        a, b, c = (np.take(table[3 * row + i], painting.surface) for i in range(3))
        a *= x
        b *= y
        a += b
        a += c
        return np.asarray(a)

    depth = 1.0 / np.maximum(linear(0), 1e-4)
    return _Pixels(depth, linear(1) * depth, linear(2) * depth, camera.x + x * depth, camera.y + y * depth, x, y)


def _texture(scene: Scene, painting: Painting, pixels: _Pixels, camera: Camera, strength: float) -> Array:
    """The texture's factor on albedo at each pixel, about 1."""
    atlas = textures.atlas()
    tile = np.array(scene.mesh.tiles, np.int32).take(painting.surface)
    per_metre = textures.TILE_PX / textures.TILE_M
    footprint = pixels.depth * (per_metre / (camera.focal * painting.surface.shape[1]))
    # The ground recedes, so a pixel covers more of it along Z than across.
    slant = np.where(painting.surface <= scene.ground, np.sqrt(np.maximum(pixels.depth / 2.5, 1.0)), 1.0)
    level = np.clip(np.log2(footprint * slant) + 0.6, 0, textures.NUM_LEVELS - 1).astype(np.int32)
    column = ((pixels.u * per_metre).astype(np.int32) & (textures.TILE_PX - 1)) + tile * textures.TILE_PX
    row = ((pixels.v * -per_metre).astype(np.int32) & (textures.TILE_PX - 1)) + level * textures.TILE_PX
    return np.asarray(1.0 + atlas.ravel().take(row * atlas.shape[1] + column) * np.float32(strength / 127))


def _tinted(light: Array, colour: Light) -> Array:
    """A light's strength as RGB: (3, ...) from (...)."""
    light = light.astype(np.float32, copy=False)
    return np.stack([light * np.float32(c) for c in colour])


def _surface_light(scene: Scene, style: Style, normal: Array) -> Array:
    """Sun and sky on each surface, (3, S)."""
    mesh = scene.mesh
    centre = mesh.rest[np.array(mesh.anchors)].mean(axis=1)
    towards = np.array([scene.camera.x, scene.camera.y, 0.0], np.float32) - centre
    towards[:, 2] = np.minimum(towards[:, 2], -0.1)
    normal = normal * np.where((normal * towards).sum(1, keepdims=True) < 0, -1, 1)
    facing = np.maximum(normal @ scene.sun, 0)
    rounded = np.array(mesh.round_lit)
    facing = np.where(rounded, 0.62, facing)
    sky = np.where(rounded, 0.95, 0.88 + 0.12 * normal[:, 1])
    # A low sun grazes the ground, but a hazy sky near it still lights the road.
    facing[1 : scene.ground + 1] = np.maximum(facing[1 : scene.ground + 1], 0.45)
    return _tinted(sky, style.ambient) + _tinted(facing, style.sun)


def _lamp_light(scene: Scene, pixels: _Pixels, camera: Camera, style: Style) -> Array:
    """Light of the street lamps and of our own headlights, (3, H, W)."""
    cells_x = int(2 * _LAMP_HALF_M / _LAMP_CELL_M)
    length = float(scene.lamps[:, 2].max()) + 20 if len(scene.lamps) else 20.0
    z = (np.arange(int(length / _LAMP_CELL_M), dtype=np.float32) * _LAMP_CELL_M)[:, None]
    x = (np.arange(cells_x, dtype=np.float32) * _LAMP_CELL_M - _LAMP_HALF_M)[None]
    pools = np.zeros((len(z), cells_x), np.float32)
    for lx, ly, lz in scene.lamps:
        a, b = (int(np.clip((lz + d) / _LAMP_CELL_M, 0, len(z))) for d in (-22, 22))
        pools[a:b] += (1 + ((x - lx) ** 2 + (z[a:b] - lz) ** 2) / (0.75 * ly) ** 2) ** -1.5
    map_x, map_z = (pixels.x + _LAMP_HALF_M) / _LAMP_CELL_M, (pixels.depth + camera.z) / _LAMP_CELL_M
    pool = cv2.remap(pools, map_x, map_z, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    pool *= 1.05 * style.lamps / (1.0 + np.maximum(pixels.y - 5.0, 0) ** 2 * 0.12)  # lamps shine down
    high = np.maximum(pixels.slope_y + 0.03, 0)
    beam = np.exp(-pixels.depth / 16 - (pixels.slope_x / 0.42) ** 2 - high * 9)
    beam *= np.minimum(pixels.depth / 6, 1) * (0.75 * style.lamps)
    return _tinted(pool, style.lamp_colour) + _tinted(beam, _HEADLIGHT)


def _looked_up(texture: Array, x_N: Array, y_N: Array) -> Array:
    """Values of a texture at places, (N,); OpenCV takes at most 2^15 of them in a column."""
    parts = range(0, len(x_N), 2**14)
    return np.concatenate(
        [cv2.remap(texture, x_N[i : i + 2**14], y_N[i : i + 2**14], cv2.INTER_LINEAR).ravel() for i in parts]
    )


def _sky(scene: Scene, style: Style, slope_x: Array, slope_y: Array) -> Array:
    """The sky's colour along N rays, (3, N)."""
    sky, height = style.sky, np.maximum(slope_y, 0.0)
    up = np.clip(height / 0.55, 0, 1) ** np.float32(0.7)
    colour = _tinted(1 - up, sky.horizon) + _tinted(up, sky.zenith)
    if scene.sun[2] > 0 and style.sun_shadow > 0:  # the sun is ahead: its glow
        at_x, at_y = scene.sun[:2] / scene.sun[2]
        colour += _tinted(np.exp(-((slope_x - at_x) ** 2 + (slope_y - at_y) ** 2) * 3.5) * 0.6, style.sun)
    stretch = 60.0 / (height + 0.18)
    map_x = ((slope_x * stretch + scene.cloud_offset[0]) % 511).astype(np.float32)
    map_y = ((stretch * 1.6 + scene.cloud_offset[1]) % 511).astype(np.float32)
    cover = _looked_up(textures.clouds(), map_x, map_y)
    share = np.clip((cover + (scene.cloud_share - 0.5) * 2.4) * 0.9, 0, 1) * np.clip(height / 0.1, 0.25, 1)
    colour *= 1 - share
    return colour + _tinted(share * (1 - 0.18 * np.clip(cover - 0.5, 0, 1)), sky.cloud)


def _glow(image: Array, emitted: Array, road: NDArray[np.bool_], style: Style) -> None:
    """Add to a picture (3, H, W), in place, the halo around lights and their reflection on wet road."""
    height, width = road.shape
    for channel, light in zip(image, emitted, strict=True):
        small = cv2.resize(light, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
        halo = cv2.GaussianBlur(small, (0, 0), 1.6) * 0.7 + cv2.GaussianBlur(small, (0, 0), 6.0) * 0.9
        channel += cv2.resize(halo, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(style.bloom)
        if style.wet:
            streak = cv2.GaussianBlur(cv2.blur(small, (1, height // 12)), (3, 1), 0)
            streak = np.roll(streak, height // 24, axis=0)
            reflected = cv2.resize(streak, (width, height), interpolation=cv2.INTER_LINEAR)
            channel += reflected * (road * np.float32(2.2 * style.wet))


def _sense(image: Array, scene: Scene, sensor: Sensor, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, white balance, tone, lens and noise: uint8 (H, W, 3) from (3, H, W)."""
    height, width = image.shape[1:]
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)[None]
    image *= _tinted((1 - sensor.vignette * (x**2 + y**2) / 2) * scene.exposure, scene.gain)
    over = np.maximum(image - _KNEE, 0) * np.float32(1 / (1 - _KNEE))  # highlights roll off instead of clipping hard
    image = np.minimum(image, _KNEE) + over / (1 + over) * np.float32(1 - _KNEE)
    if sensor.saturation != 1.0:
        grey = image.mean(axis=0)
        image = grey + (image - grey) * np.float32(sensor.saturation)
    if sensor.contrast != 1.0:
        image = 0.5 + (image - 0.5) * np.float32(sensor.contrast)
    photo = cv2.GaussianBlur(cv2.merge(list(image)), (0, 0), sensor.blur_px * max(1.0, width / 320))
    field = textures.grain()
    top, left = rng.integers(0, len(field), 2)
    rows, columns = (top + np.arange(height)) % len(field), (left + np.arange(width)) % len(field)
    brightness = cv2.cvtColor(np.maximum(photo, 0), cv2.COLOR_RGB2GRAY)
    deviation = np.sqrt(0.35 + 1.3 * np.minimum(brightness, 1)) * np.float32(sensor.noise * 255)
    photo *= 255
    photo += field[rows][:, columns] * cv2.merge([deviation] * 3)
    return np.asarray(np.clip(photo, 0, 255, out=photo), np.uint8)


def photograph(
    scene: Scene, painting: Painting, style: Style, time: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The picture of a painted scene, uint8 RGB (H, W, 3); ``rng`` draws the sensor noise only."""
    camera = scene.camera_at(time)
    texture, normal = _texture_axes(scene)
    pixels = _pixels(painting, camera, texture)
    *rgb, glow = (channel * np.float32(1 / 255) for channel in cv2.split(painting.colour))
    colour = np.stack(rgb)
    albedo = colour * _texture(scene, painting, pixels, camera, style.texture)
    light = _surface_light(scene, style, normal).take(painting.surface, axis=1)
    softened = cv2.GaussianBlur(painting.shadow, (0, 0), 0.8) * np.float32(1 / 255)
    light *= 1 - softened * (painting.surface <= scene.ground)
    if style.lamps:
        light += _lamp_light(scene, pixels, camera, style)
    clear = np.exp(pixels.depth * np.float32(-style.haze))
    emitted = colour * (glow * clear * np.float32(1.25))  # lit glass shows none of the wall's texture
    image = albedo * light
    image *= (1 - glow) * clear
    image += emitted
    image += _tinted(1 - clear, style.air)
    sky = np.flatnonzero(painting.surface == 0)
    if len(sky):
        flat = image.reshape(3, -1)
        flat[:, sky] = _sky(scene, style, pixels.slope_x.ravel()[sky], pixels.slope_y.ravel()[sky])
    if style.bloom:
        _glow(image, emitted * glow**2 * np.float32(1.3), painting.surface == 1, style)
    return _sense(image, scene, style.sensor, rng)
