"""Guided filter: smooths class probabilities and bends their outlines to the edges of a colour image.

He, Sun, Tang: Guided Image Filtering, ECCV 2010 and TPAMI 2013, section 3.5 (colour guide). It stands where other work
puts a dense CRF and is not one: every window is a linear regression, there are no labels that compete.

Shape legend: B images, C maps (classes), H and W pixels.
"""

import torch
from torch import Tensor


def guided_filter(guide_BCHW: Tensor, map_BCHW: Tensor, radius: int, eps: float) -> Tensor:
    """What local linear functions of the guide's colours say about the maps, averaged over all windows of a pixel.

    Linear in the maps and exact for constants: probabilities still sum to 1, but single values may leave [0, 1] a
    little beside strong edges. Cost grows with H x W x (H + W) and hardly with the radius. Exports to ONNX.

    Args:
        guide_BCHW: RGB in [0, 1], 3 channels.
        map_BCHW: any number of channels, size and batch of the guide.
        radius: windows are 2 x radius + 1 pixels wide, cut at the border of the image; may exceed the image.
        eps: variance of the guide, in [0, 1]², below which a window counts as flat and is averaged; > 0.

    Returns:
        Shape and dtype of the map; computed in float32 also inside autocast: variances are differences of means that
        bfloat16 cannot tell apart.
    """
    with torch.autocast(guide_BCHW.device.type, enabled=False):
        return _filtered(guide_BCHW, map_BCHW, radius, eps)


def _filtered(guide_BCHW: Tensor, map_BCHW: Tensor, radius: int, eps: float) -> Tensor:
    guide, maps = guide_BCHW.float() - 0.5, map_BCHW.float()  # centred, so that variances lose fewer digits
    rows, columns = (_box(guide, dim, radius) for dim in (2, 3))

    def mean(x_BCHW: Tensor) -> Tensor:
        return rows @ x_BCHW @ columns.T

    colours = guide.split(1, dim=1)
    mean_guide, mean_maps = mean(guide), mean(maps)
    means = mean_guide.split(1, dim=1)
    with_maps = [mean(colour * maps) - middle * mean_maps for colour, middle in zip(colours, means, strict=True)]
    among = [
        [mean(colours[i] * colours[j]) - means[i] * means[j] + (eps if i == j else 0.0) for j in range(i + 1)]
        for i in range(3)
    ]
    slopes = _solve(among, with_maps, eps)
    offset = mean_maps - sum(slope * middle for slope, middle in zip(slopes, means, strict=True))
    result = mean(offset) + sum(mean(slope) * colour for slope, colour in zip(slopes, colours, strict=True))
    return result.to(map_BCHW.dtype)


def _box(like: Tensor, dim: int, radius: int) -> Tensor:
    """The window means along one axis as a matrix (side, side).

    Matrix products because they are fast in torch and in onnxruntime alike: at 320x213 and radius 16, on one core, the
    pooling of onnxruntime takes ten times as long, running sums in torch four times.
    """
    places = torch.arange(like.shape[dim], device=like.device)
    inside = ((places[:, None] - places).abs() <= radius).float()
    return inside / inside.sum(1, keepdim=True)


def _solve(matrix: list[list[Tensor]], right: list[Tensor], least: float) -> list[Tensor]:
    """Solves a symmetric 3 x 3 system at every pixel by elimination (L D Lᵀ), without a library's solver.

    Args:
        matrix: lower triangle, row by row; no pivot is below ``least`` but by rounding.
        right: three right-hand sides.
        least: what was added to the diagonal. Grey guides have pivots this small, and rounding in the adjugate's
            products of three would drown them.
    """
    (m00,), (m10, m11), (m20, m21, m22) = matrix
    l10, l20 = m10 / m00, m20 / m00
    d1 = (m11 - l10 * m10).clamp(min=least)
    rest = m21 - l10 * m20
    l21 = rest / d1
    d2 = (m22 - l20 * m20 - l21 * rest).clamp(min=least)
    y0, y1 = right[0], right[1] - l10 * right[0]
    x2 = (right[2] - l20 * y0 - l21 * y1) / d2
    x1 = y1 / d1 - l21 * x2
    return [y0 / m00 - l10 * x1 - l20 * x2, x1, x2]
