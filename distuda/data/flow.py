"""Optical flow of decoded frames: computed by DIS, and as it lies in a shard.

Flow is backward: what is at (x, y) now was at (x + u, y + v) in the frame before [pixels]. A map comes with where it
holds: false at what was hidden or out of sight before.

DIS: Kroeger, Timofte, Dai, Van Gool: Fast Optical Flow using Dense Inverse Search, ECCV 2016, as OpenCV has it.
"""

import threading
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.decode import Bytes, SampleError, Size, image_size

Flow = NDArray[np.float32]
"""(H, W, 2): u, then v."""
Valid = NDArray[np.bool_]

MIN_SIDE = 16
"""Shortest side DIS can work on [pixels]; nothing is known of smaller pictures."""

_UNIT = 64  # of KITTI's files: steps a pixel
_ZERO = 2**15
_LOCAL = threading.local()  # a DIS object keeps its buffers, so threads must not share one


def compute_flow(now_HWC: NDArray[np.uint8], before_HWC: NDArray[np.uint8]) -> tuple[Flow, Valid]:
    """Backward flow of a frame and where it holds, from two uint8 RGB images of one size.

    It holds where going back and then forth ends near the start (`consistent`).
    """
    if min(now_HWC.shape[:2]) < MIN_SIDE:
        return np.zeros((*now_HWC.shape[:2], 2), np.float32), np.zeros(now_HWC.shape[:2], np.bool_)
    back, forth = _there_and_back(now_HWC, before_HWC)
    return back, consistent(back, forth)


def compute_flows(
    one_HWC: NDArray[np.uint8], other_HWC: NDArray[np.uint8]
) -> tuple[tuple[Flow, Valid], tuple[Flow, Valid]]:
    """Flow of one image to the other and of the other to the one: two calls of `compute_flow` for the price of one."""
    if min(one_HWC.shape[:2]) < MIN_SIDE:
        return compute_flow(one_HWC, other_HWC), compute_flow(other_HWC, one_HWC)
    there, back = _there_and_back(one_HWC, other_HWC)
    return (there, consistent(there, back)), (back, consistent(back, there))


def _there_and_back(one_HWC: NDArray[np.uint8], other_HWC: NDArray[np.uint8]) -> tuple[Flow, Flow]:
    one, other = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (one_HWC, other_HWC))
    dis = _dis()
    return np.asarray(dis.calc(one, other, None)), np.asarray(dis.calc(other, one, None))


def consistent(back_HW2: Flow, forth_HW2: Flow) -> Valid:
    """Where going back and then forth ends near the start; false where a pixel was hidden or out of sight before.

    The bound is that of Sundaram, Brox, Keutzer (ECCV 2010): |w + w'|^2 < 0.01 (|w|^2 + |w'|^2) + 0.5, with w' the
    earlier frame's forward flow at the place that w points to.
    """
    height, width = back_HW2.shape[:2]
    x = back_HW2[..., 0] + np.arange(width, dtype=np.float32)
    y = back_HW2[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    there = cv2.remap(forth_HW2, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    lengths = (back_HW2**2).sum(-1) + (there**2).sum(-1)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    return np.asarray((((back_HW2 + there) ** 2).sum(-1) < 0.01 * lengths + 0.5) & inside, np.bool_)


def _dis() -> Any:
    if not hasattr(_LOCAL, "dis"):
        _LOCAL.dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return _LOCAL.dis


def encode_flow(flow_HW2: Flow, valid_HW: Valid) -> bytes:
    """As KITTI's flow files: 16-bit RGB PNG of 64 u + 2^15, 64 v + 2^15, valid; beyond 512 pixels it does not hold.

    Unlike there, flow that does not hold is stored too, so that stored flow does all that computed flow does.
    """
    steps = np.rint(flow_HW2 * _UNIT) + _ZERO
    storable = np.asarray(((steps >= 0) & (steps < 2**16)).all(-1))
    stored = np.where(storable[..., None], steps, _ZERO).astype(np.uint16)
    bgr = np.dstack([(valid_HW & storable).astype(np.uint16), stored[..., 1], stored[..., 0]])
    done, content = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return bytes(content)


def decode_flow(content: Bytes, key: str, native: Size, size: Size) -> tuple[Flow, Valid]:
    """The inverse of `encode_flow`, for an image of ``native`` (height, width) that is shown at ``size``.

    A file of another size than the image's covers the same picture; its values are pixels of the native image.
    """
    image_size(content, key)
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if bgr is None or bgr.ndim != 3 or bgr.shape[2] != 3 or bgr.dtype != np.uint16:
        raise SampleError(key, "flow is no 16-bit PNG of three channels. Prepare the data set with --flow again.")
    flow = (bgr[..., :0:-1].astype(np.float32) - _ZERO) / _UNIT
    return resize_flow(flow, bgr[..., 0] > 0, size, native)


def resize_flow(flow_HW2: Flow, valid_HW: Valid, size: Size, native: Size) -> tuple[Flow, Valid]:
    """Flow in pixels of ``native`` (height, width) as a map of ``size``, in that map's pixels; the nearest is taken."""
    factor = np.array([size[1] / native[1], size[0] / native[0]], np.float32)
    if flow_HW2.shape[:2] != size:  # a mean over an edge is the motion of neither side
        flow_HW2 = cv2.resize(flow_HW2, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        valid_HW = cv2.resize(valid_HW.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0
    return np.asarray(flow_HW2 * factor, np.float32), np.asarray(valid_HW, np.bool_)
