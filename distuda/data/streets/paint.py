"""From a scene to pixels: polygons are painted far to near into colour and surface buffers, then lit, then sensed.

The surface buffer says which plane each pixel shows; class, instance, depth, texture coordinates, light and flow all
follow from it, so they are exact and agree with each other to the pixel.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.streets import textures
from distuda.data.streets.mesh import Array, Kind
from distuda.data.streets.scene import Camera, Scene

NEAR_M = 0.4
_SHIFT = 4  # cv2 takes fixed-point corners; 4 bits are sixteenths of a pixel

_TINY_PX = 0.8  # decals below this are not worth painting


@dataclass
class Painting:
    """The buffers of one frame, before light.

    Attributes:
        colour: uint8 (H, W, 4), RGB albedo and how much of it is emitted.
        shadow: uint8 (H, W), darkening of the ground.
        surface: uint16 (H, W), the surface each pixel shows, 0 = sky.
        inverse: float32 (S, 3, 3), maps a pixel's ray to weights of the surface's three anchors over depth.
        anchors: float32 (S, 3, 3), camera coordinates of each surface's anchors, one a column.
    """

    colour: NDArray[np.uint8]
    shadow: NDArray[np.uint8]
    surface: NDArray[np.uint16]
    inverse: Array
    anchors: Array


def project(points: Array, camera: Camera, size: tuple[int, int]) -> Array:
    """Pixels (x, y) of points in camera coordinates, (..., 2); integer coordinates are pixel centres."""
    height, width = size
    scale = camera.focal * width / np.maximum(points[..., 2], 1e-3)
    x, y = camera.centre_x * width + scale * points[..., 0], camera.centre_y * height - scale * points[..., 1]
    return np.stack([x, y], axis=-1)


def rays(camera: Camera, size: tuple[int, int]) -> Array:
    """Directions of all pixels with unit depth, float32 (H, W, 3)."""
    height, width = size
    x = (np.arange(width, dtype=np.float32) - camera.centre_x * width) / (camera.focal * width)
    y = (camera.centre_y * height - np.arange(height, dtype=np.float32)) / (camera.focal * width)
    out = np.ones((height, width, 3), np.float32)
    out[..., 0], out[..., 1] = x[None], y[:, None]
    return out


def _clip_near(polygon: Array) -> Array:
    """The part of a convex polygon in camera coordinates that lies beyond `NEAR_M` (Sutherland and Hodgman, 1974)."""
    kept, corners = [], polygon.tolist()
    for (ax, ay, az), (bx, by, bz) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if az >= NEAR_M:
            kept.append((ax, ay, az))
        if (az >= NEAR_M) != (bz >= NEAR_M):
            t = (NEAR_M - az) / (bz - az)
            kept.append((ax + (bx - ax) * t, ay + (by - ay) * t, NEAR_M))
    return np.array(kept, np.float32).reshape(-1, 3)


class _Painter:
    def __init__(self, scene: Scene, camera: Camera, points: Array, time: float, size: tuple[int, int]) -> None:
        self.mesh, self.camera, self.points, self.time, self.size = scene.mesh, camera, points, time, size
        self.starts = np.array([*self.mesh.starts, len(points)])
        pixels = project(points, camera, size)
        first = self.starts[:-1]
        depth = points[:, 2]
        low, high = np.minimum.reduceat(pixels, first), np.maximum.reduceat(pixels, first)
        self.whole = np.minimum.reduceat(depth, first) >= NEAR_M
        outside = (high < -1).any(1) | (low[:, 0] > size[1]) | (low[:, 1] > size[0])
        self.skip = (np.maximum.reduceat(depth, first) < NEAR_M) | (self.whole & outside)
        decal = np.array(self.mesh.kinds) == Kind.DECAL
        self.skip |= decal & self.whole & ((high - low).max(axis=1) < _TINY_PX)
        self.fixed = self.fix(pixels)
        self.box = np.concatenate([low, high], axis=1)
        self.colour = np.zeros((*size, 4), np.uint8)
        self.shadow = np.zeros(size, np.uint8)
        self.surface = np.zeros(size, np.uint16)

    @staticmethod
    def fix(pixels: Array) -> NDArray[np.int32]:
        """Pixels as cv2's fixed-point numbers, far outliers brought within its range."""
        return np.asarray(np.clip(np.rint(pixels * 2**_SHIFT), -(2**24), 2**24), np.int32)

    def corners(self, i: int) -> list[NDArray[np.int32]]:
        """Fixed-point outlines of polygon i, clipped at the near plane."""
        a, b, count = self.starts[i], self.starts[i + 1], self.mesh.counts[i]
        if self.whole[i]:
            return list(self.fixed[a:b].reshape(-1, count, 2))
        depth = self.points[a:b, 2].reshape(-1, count)
        whole, seen = depth.min(axis=1) >= NEAR_M, depth.max(axis=1) >= NEAR_M
        outlines = list(self.fixed[a:b].reshape(-1, count, 2)[whole])
        for polygon in self.points[a:b].reshape(-1, count, 3)[seen & ~whole]:
            outlines.append(self.fix(project(_clip_near(polygon), self.camera, self.size)))
        return outlines

    def order(self) -> list[int]:
        """Groups in painting order: by layer, then far before near; beside each other, outer before inner."""

        def key(i: int) -> tuple[int, float]:
            group = self.mesh.groups[i]
            x, z = group.x + group.velocity[0] * self.time, group.z + group.velocity[2] * self.time
            return int(group.layer), -(z + 0.3 * abs(x - self.camera.x))

        return sorted(range(len(self.mesh.groups)), key=key)

    def paint(self) -> None:
        """Shadows weak to strong, so that overlaps keep the stronger; then all groups, far to near."""
        mesh, groups = self.mesh, self.mesh.groups
        shadows = [i for i, kind in enumerate(mesh.kinds) if kind == Kind.SHADOW and not self.skip[i]]
        for i in sorted(shadows, key=lambda i: mesh.colours[i][0]):
            if outlines := self.corners(i):
                cv2.fillPoly(self.shadow, outlines, mesh.colours[i][0], cv2.LINE_AA, _SHIFT)
        firsts = [*(group.first for group in groups), len(mesh.starts)]
        for g in self.order():
            for i in range(firsts[g], firsts[g + 1]):
                if not self.skip[i]:
                    self.polygon(i)

    def polygon(self, i: int) -> None:
        """Paint one face, decal or sprite; only faces and sprites open a surface."""
        kind = self.mesh.kinds[i]
        if kind == Kind.SPRITE:
            self.sprite(i)
        elif kind != Kind.SHADOW and (outlines := self.corners(i)):
            cv2.fillPoly(self.colour, outlines, self.mesh.colours[i], cv2.LINE_AA, _SHIFT)
            if kind == Kind.FACE:
                cv2.fillPoly(self.surface, outlines, self.mesh.surfaces[i], cv2.LINE_8, _SHIFT)

    def sprite(self, i: int) -> None:
        """Paste a cut-out, from the pyramid level nearest to its size in the picture."""
        template, mirror = self.mesh.templates[i]
        x0, y0, x1, y1 = (float(v) for v in self.box[i])
        left, top = max(0, int(np.ceil(x0))), max(0, int(np.ceil(y0)))
        right, bottom = min(self.size[1], int(x1) + 1), min(self.size[0], int(y1) + 1)
        if not self.whole[i] or right <= left or bottom <= top or x1 - x0 < 1 or y1 - y0 < 1:
            return
        pyramid = textures.canopies()[template]
        level = int(np.clip(np.log2(len(pyramid[0]) / max(x1 - x0, 1.0)), 0, len(pyramid) - 1))
        picture = pyramid[level]
        side = len(picture)
        sx, sy = side / (x1 - x0), side / (y1 - y0)
        ox, oy = (left - x0) * sx - 0.5, (top - y0) * sy - 0.5
        if mirror:
            sx, ox = -sx, side - 1 - ox
        matrix = np.array([[sx, 0, ox], [0, sy, oy]], np.float64)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        patch = cv2.warpAffine(
            picture, matrix, (right - left, bottom - top), flags=flags, borderMode=cv2.BORDER_CONSTANT
        )
        mask = patch[..., 3] > 127
        tint = np.array(self.mesh.colours[i][:3], np.float32) / 128.0
        rgb = cv2.multiply(patch[..., :3], (*(float(t) for t in tint), 0.0))
        self.colour[top:bottom, left:right, :3][mask] = rgb[mask]
        self.colour[top:bottom, left:right, 3][mask] = 0
        self.surface[top:bottom, left:right][mask] = self.mesh.surfaces[i]


def paint_scene(scene: Scene, time: float, size: tuple[int, int]) -> Painting:
    """Paint a scene as its camera sees it at a time in frames."""
    camera = scene.camera_at(time)
    points = scene.mesh.at(time) - np.array([camera.x, camera.y, camera.z], np.float32)
    painter = _Painter(scene, camera, points, time, size)
    painter.paint()
    anchors = np.swapaxes(points[np.array(scene.mesh.anchors)], 1, 2).astype(np.float64)
    # The sky, and planes through the camera, which no pixel shows, have no inverse.
    flat = np.abs(np.linalg.det(anchors)) < 1e-9
    flat[0] = True
    anchors[flat] = np.eye(3)
    inverse = np.linalg.inv(anchors)
    return Painting(painter.colour, painter.shadow, painter.surface, inverse, anchors)


def flow(now: Painting, before: Painting, scene: Scene, size: tuple[int, int]) -> tuple[Array, NDArray[np.bool_]]:
    """Backward flow from a frame to the frame before it, and where the point was visible then.

    A point of a surface keeps its weights w of the surface's anchors A while these move, so the pixel's ray r gives
    w = A(t)^-1 r and the earlier ray A(t-1) w: one 3x3 matrix a surface.

    Returns:
        flow: float32 (H, W, 2), pixels (x, y) to add to a pixel's position to find its point one frame earlier.
        valid: bool (H, W), the earlier pixel lies in the picture and shows the same surface.
    """
    height, width = size
    ray = rays(scene.camera, size)
    transfer = (before.anchors @ now.inverse).astype(np.float32)
    transfer[0] = np.eye(3)
    earlier = np.einsum("hwij,hwj->hwi", transfer[now.surface], ray)
    pixels = project(earlier / earlier[..., 2:], scene.camera, size)
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    x, y = np.rint(pixels[..., 0]), np.rint(pixels[..., 1])
    inside = (earlier[..., 2] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rows, columns = np.where(inside, y, 0).astype(np.intp), np.where(inside, x, 0).astype(np.intp)
    valid = inside & (before.surface[rows, columns] == now.surface)
    moved = np.asarray(pixels - here, np.float32)
    moved[now.surface == 0] = 0.0  # exactly, not to rounding: the sky is infinitely far away
    return moved, valid
