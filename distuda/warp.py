"""Maps of one frame carried to the next along optical flow, on the device that holds them.

Flow here is backward flow: what is at (x, y) now was at (x + u, y + v) in the frame before, in pixels of the map.

Shape legend: B samples, C channels, H and W pixels; flow (B, 2, H, W) holds u, then v.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distuda.losses import IGNORE


def warp(map_BCHW: Tensor, flow_B2HW: Tensor, mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """What the earlier map shows at each pixel of the later frame, float32; 0 outside the earlier frame.

    Args:
        map_BCHW: of the earlier frame, any float type; gradients pass.
        flow_B2HW: float32 backward flow of the later frame, the same height and width.
        mode: how values between pixels are taken.
    """
    grid = _grid(flow_B2HW)
    with torch.autocast(map_BCHW.device.type, enabled=False):  # bfloat16 cannot tell neighbouring pixels apart
        return F.grid_sample(map_BCHW.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)


def warp_label(label_BHW: Tensor, flow_B2HW: Tensor) -> Tensor:
    """Train ids of the earlier frame at each pixel of the later one, int64; 255 outside the earlier frame."""
    shifted = (label_BHW + 1).float()[:, None]  # so that the zero outside becomes "ignore"
    warped = warp(shifted, flow_B2HW, "nearest")[:, 0].long() - 1
    return torch.where(warped < 0, IGNORE, warped)


def inside(flow_B2HW: Tensor) -> Tensor:
    """Where flow points into the earlier frame, (B, H, W) bool: at most half a pixel off the outer centres."""
    return (_grid(flow_B2HW).abs() <= 1).all(dim=-1)


def compose(flow_B2HW: Tensor, before_B2HW: Tensor) -> Tensor:
    """Flow over two steps: of now to the frame before, and of that to the one before it."""
    return flow_B2HW + warp(before_B2HW, flow_B2HW)


def resize_flow(flow_B2HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow of the same motion on maps of another (height, width): resampled, and in that map's pixels."""
    height, width = flow_B2HW.shape[-2:]
    if (height, width) == size:
        return flow_B2HW
    factor = flow_B2HW.new_tensor([size[1] / width, size[0] / height])[:, None, None]
    return F.interpolate(flow_B2HW.float(), size=size, mode="bilinear", align_corners=False) * factor


def _grid(flow_B2HW: Tensor) -> Tensor:
    """Where `grid_sample` looks for each pixel, (B, H, W, 2) float32 in [-1, 1]."""
    height, width = flow_B2HW.shape[-2:]
    flow = flow_B2HW.float()
    x = torch.arange(width, device=flow.device, dtype=torch.float32) + 0.5
    y = torch.arange(height, device=flow.device, dtype=torch.float32) + 0.5
    return torch.stack(
        [(x + flow[:, 0]) * (2 / width) - 1, (y[:, None] + flow[:, 1]) * (2 / height) - 1],
        dim=-1,
    )
