"""Augmentation on the device: geometry for both domains, photometry for training views, masks and mixes.

Every draw is a pure function of the samples' seeds (`distuda.draws`), so a resumed or resized run sees the same crops.

Shape legend: B samples, C channels, H and W pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from distuda.data.batch import Batch
from distuda.draws import fold, uniform
from distuda.losses import IGNORE


def rising(ends: tuple[float, float], what: str) -> tuple[float, float]:
    """Both ends of a range, refused where the first is the larger one; ``what`` they are, for the message."""
    if ends[0] > ends[1]:
        raise ValueError(f"the smaller {what} must come first")
    return ends


class GeometryConfig(BaseModel):
    """Where a training crop is taken from."""

    model_config = ConfigDict(extra="forbid")

    crop: tuple[PositiveInt, PositiveInt] | None = Field(
        (192, 256), description="height and width of a training crop, none = the whole image [pixels]"
    )
    scale: tuple[PositiveFloat, PositiveFloat] = Field(
        (1.0, 1.0), description="range of the random zoom: 2 shows half the width of the scene, 0.5 twice"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")

    @field_validator("scale")
    @classmethod
    def _rises(cls, scale: tuple[float, float]) -> tuple[float, float]:
        return rising(scale, "zoom")


class PhotometryConfig(BaseModel):
    """Colour and blur of a training view (DACS and DAFormer use 0.25 and 0.2 for all four jitters)."""

    model_config = ConfigDict(extra="forbid")

    probability: float = Field(0.8, ge=0, le=1, description="probability that an image's colours are jittered")
    brightness: float = Field(0.25, ge=0, lt=1, description="factor drawn from 1 +- this")
    contrast: float = Field(0.25, ge=0, lt=1, description="factor drawn from 1 +- this")
    saturation: float = Field(0.25, ge=0, lt=1, description="factor drawn from 1 +- this")
    hue: float = Field(0.25, ge=0, le=0.5, description="turn drawn from +- this [full turns of the colour wheel]")
    grey: float = Field(0.0, ge=0, le=1, description="probability that an image loses its colours (TPS: 0.2)")
    blur: float = Field(0.5, ge=0, le=1, description="probability of a Gaussian blur")
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.15, 1.15), description="range of the blur's standard deviation (TPS: 5 to 9) [pixels]"
    )

    @field_validator("blur_sigma")
    @classmethod
    def _rises(cls, sigma: tuple[float, float]) -> tuple[float, float]:
        return rising(sigma, "sigma")


def region_size(config: GeometryConfig) -> tuple[int, int] | None:
    """Height and width in pixels of the window a decoder must keep so that every crop fits in it; None = all."""
    if config.crop is None:
        return None
    return math.ceil(config.crop[0] / config.scale[0]), math.ceil(config.crop[1] / config.scale[0])


@dataclass
class RareClassFocus:
    """Which crops of a rare-class sample are good enough (DAFormer, CVPR 2022, section 3.3 and its code).

    Attributes:
        weight_C: how likely a sample that holds a class was drawn for it (`Dataset.rare_class_weights`), any scale, on
            the batch's device.
        min_pixels: a sample holds a class if its stored label has more pixels of it than this, as when it was drawn.
        crop_pixels: a crop is taken if it shows more pixels of that class than this.
        tries: crops drawn at most; the last is taken in any case.
    """

    weight_C: Tensor
    min_pixels: int
    crop_pixels: int
    tries: int = 10


def geometry(batch: Batch, config: GeometryConfig, focus: RareClassFocus | None = None) -> Batch:
    """uint8 windows -> float32 RGB crops in [0, 1] with all that lies over them; same place in all, frames before too.

    One bilinear resampling does zoom, position and flip together; labels and flow take the nearest pixel, and what lies
    outside the window is black, ignored and not ``shown_BHW``. With a ``focus`` crops are drawn until they show a rare
    class.
    """
    window = (batch.image_BCHW.shape[-2], batch.image_BCHW.shape[-1])
    crop_size = config.crop or window
    if config.scale == (1.0, 1.0) and window == crop_size:
        flipped_B = uniform(batch.seed_B, "flip") < config.flip
        return _every_frame(batch, lambda frame: _flip_only(frame, flipped_B))
    if any(crop_size[i] / config.scale[0] > window[i] for i in (0, 1)):
        batch = _every_frame_shown(batch)
    if focus is not None and batch.label_BHW is not None:
        grid = _focused_grid(batch, batch.label_BHW, crop_size, config, focus)
    else:
        grid = _crop_grid(batch.seed_B, window, crop_size, config)
    return _every_frame(batch, lambda frame: _cropped(frame, grid))


def _every_frame_shown(batch: Batch) -> Batch:
    """The batch with a map of what is shown, which a crop larger than the window will go beyond."""
    before = None if batch.before is None else _every_frame_shown(batch.before)
    shown = torch.ones_like(batch.image_BCHW[:, 0], dtype=torch.bool) if batch.shown_BHW is None else batch.shown_BHW
    return replace(batch, shown_BHW=shown, before=before)


def _every_frame(batch: Batch, change: Callable[[Batch], Batch]) -> Batch:
    """The batch and, where there are, the frames before it, each changed, with images as float32 in [0, 1]."""
    image = batch.image_BCHW.float() / 255
    pair = None if batch.pair_BCHW is None else batch.pair_BCHW.float() / 255
    before = None if batch.before is None else _every_frame(batch.before, change)
    return replace(change(replace(batch, image_BCHW=image, pair_BCHW=pair)), before=before)


def _cropped(batch: Batch, grid: Tensor) -> Batch:
    flow = batch.flow_B2HW
    if flow is not None:
        flow = F.grid_sample(flow, grid, mode="nearest", align_corners=False) * _zoom(grid, flow.shape)
    return replace(
        batch,
        image_BCHW=_sample_pixels(batch.image_BCHW, grid),
        label_BHW=_sample_labels(batch.label_BHW, grid),
        pair_BCHW=None if batch.pair_BCHW is None else _sample_pixels(batch.pair_BCHW, grid),
        mined_BHW=_sample_labels(batch.mined_BHW, grid),
        flow_B2HW=flow,
        valid_BHW=_sample_mask(batch.valid_BHW, grid),
        shown_BHW=_sample_mask(batch.shown_BHW, grid),
    )


def _zoom(grid: Tensor, shape: torch.Size) -> Tensor:
    """Pixels of the crop a pixel of the window, along x (below 0 when flipped) and y: (B, 2, 1, 1)."""
    step_x, step_y = grid[:, 0, 1, 0] - grid[:, 0, 0, 0], grid[:, 1, 0, 1] - grid[:, 0, 0, 1]
    return torch.stack([2 / (shape[-1] * step_x), 2 / (shape[-2] * step_y)], dim=1)[:, :, None, None]


def _flip_only(batch: Batch, flipped_B: Tensor) -> Batch:
    def turned(picture: Tensor | None) -> Tensor | None:
        return None if picture is None else torch.where(_like(flipped_B, picture), picture.flip(-1), picture)

    names = ("image_BCHW", "label_BHW", "pair_BCHW", "mined_BHW", "flow_B2HW", "valid_BHW", "shown_BHW")
    changed: dict[str, Any] = {name: turned(getattr(batch, name)) for name in names}
    if batch.flow_B2HW is not None:
        sign_B = 1 - 2 * flipped_B.float()
        changed["flow_B2HW"] = (
            changed["flow_B2HW"] * torch.stack([sign_B, torch.ones_like(sign_B)], 1)[:, :, None, None]
        )
    return replace(batch, **changed)


def _like(mask_B: Tensor, picture: Tensor) -> Tensor:
    """One value a sample, shaped to go with pictures (B, ...)."""
    return mask_B.view(-1, *[1] * (picture.ndim - 1))


def _crop_grid(seed_B: Tensor, window: tuple[int, int], crop: tuple[int, int], config: GeometryConfig) -> Tensor:
    """Sampling grid (B, h, w, 2) of `grid_sample` for each sample's zoom, place and flip."""
    low, high = config.scale
    zoom = torch.exp(math.log(low) + uniform(seed_B, "zoom") * math.log(high / low))
    half_h, half_w = (crop[i] / (zoom * window[i]) for i in (0, 1))  # half extents in [-1, 1] coordinates
    place = _place(seed_B, window, crop) if low == high == 1 else uniform(seed_B, "place", 2) * 2 - 1
    sign = 1 - 2 * (uniform(seed_B, "flip") < config.flip).float()
    zero = torch.zeros_like(zoom)
    row_x = torch.stack([half_w * sign, zero, place[:, 0] * (1 - half_w).clamp(min=0)], dim=1)
    row_y = torch.stack([zero, half_h, place[:, 1] * (1 - half_h).clamp(min=0)], dim=1)
    theta = torch.stack([row_x, row_y], dim=1)
    return F.affine_grid(theta, [len(seed_B), 3, *crop], align_corners=False)


def _place(seed_B: Tensor, window: tuple[int, int], crop: tuple[int, int]) -> Tensor:
    """Where crops lie in the room they have, x and y from -1 to 1, (B, 2): at whole pixels, so that none is blurred."""
    room = seed_B.new_tensor([max(0, window[i] - crop[i]) for i in (1, 0)], dtype=torch.float32)
    first = torch.minimum((uniform(seed_B, "place", 2) * (room + 1)).floor(), room)
    return first * 2 / room.clamp(min=1) - 1


def _drawn_for(batch: Batch, label_BHW: Tensor, focus: RareClassFocus) -> Tensor:
    """(B,) the class each sample was drawn for, itself drawn among those that the sampler says it holds."""
    num_classes, area = len(focus.weight_C), label_BHW.shape[-2] * label_BHW.shape[-1]
    pixels_BC = _pixels_per_class(label_BHW, num_classes)
    if batch.stored_B is not None:  # the sampler counted before images were resized
        pixels_BC = pixels_BC * (batch.stored_B / area)[:, None]
    held_BC = pixels_BC > focus.min_pixels
    held_BC = torch.where(held_BC.any(dim=1, keepdim=True), held_BC, pixels_BC > 0)  # lost to resizing by a few pixels
    chance_BC = focus.weight_C * held_BC
    ladder_BC = chance_BC.cumsum(dim=1) / chance_BC.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return (ladder_BC <= uniform(batch.seed_B, "rare_class")[:, None]).sum(dim=1).clamp(max=num_classes - 1)


def _focused_grid(
    batch: Batch, label_BHW: Tensor, crop: tuple[int, int], config: GeometryConfig, focus: RareClassFocus
) -> Tensor:
    """For each sample the first of several crops that shows enough of the class it was drawn for."""
    seed_B, num_classes, wanted_B = batch.seed_B, len(focus.weight_C), _drawn_for(batch, label_BHW, focus)
    window, coarse = (label_BHW.shape[-2], label_BHW.shape[-1]), 4  # every 4th pixel each way is counted, as 16
    chosen, found_B = None, torch.zeros(len(seed_B), dtype=torch.bool, device=seed_B.device)
    for attempt in range(focus.tries):
        grid = _crop_grid(fold(seed_B, f"try {attempt}"), window, crop, config)
        chosen = grid if chosen is None else torch.where(found_B[:, None, None, None], chosen, grid)
        label = _sample_labels(label_BHW, grid[:, ::coarse, ::coarse])
        assert label is not None
        shown_B = _pixels_per_class(label, num_classes).gather(1, wanted_B[:, None])[:, 0]
        found_B = found_B | (shown_B * coarse**2 > focus.crop_pixels)
    assert chosen is not None
    return chosen


def _pixels_per_class(label_BHW: Tensor, num_classes: int) -> Tensor:
    """(B, C) float counts; ignored pixels count nowhere."""
    compact_BN = torch.where(label_BHW == IGNORE, num_classes, label_BHW).flatten(1)
    counts = torch.zeros(len(label_BHW), num_classes + 1, device=label_BHW.device)
    return counts.scatter_add_(1, compact_BN, torch.ones_like(compact_BN, dtype=counts.dtype))[:, :num_classes]


def _sample_pixels(image_BCHW: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _sample_mask(mask_BHW: Tensor | None, grid: Tensor) -> Tensor | None:
    if mask_BHW is None:
        return None
    return F.grid_sample(mask_BHW[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0] > 0


def _sample_labels(label_BHW: Tensor | None, grid: Tensor) -> Tensor | None:
    if label_BHW is None:
        return None
    shifted = (label_BHW + 1).float()[:, None]  # so that the zero outside the window becomes "ignore"
    sampled = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0].long() - 1
    return torch.where(sampled < 0, IGNORE, sampled)


def photometry(image_BCHW: Tensor, seed_B: Tensor, config: PhotometryConfig, name: str = "photometry") -> Tensor:
    """Colour jitter, then Gaussian blur, each sample by its own draws; float RGB in [0, 1] to the same.

    Brightness, saturation and hue are one linear map of RGB a sample; contrast moves values about the image's mean
    luminance. ``name`` gives an independent view of the same samples. The arithmetic is float32 also inside autocast:
    bfloat16 has fewer levels than the 8-bit image.
    """
    with torch.autocast(image_BCHW.device.type, enabled=False):
        return _photometry(image_BCHW, seed_B, config, name)


def _photometry(image_BCHW: Tensor, seed_B: Tensor, config: PhotometryConfig, name: str) -> Tensor:
    jittered_B = uniform(seed_B, f"{name}/jitter") < config.probability
    draws = uniform(seed_B, f"{name}/factors", 4) * 2 - 1
    strength = draws.new_tensor([config.brightness, config.contrast, config.saturation, config.hue])
    brightness, contrast, saturation, hue = (draws * strength * jittered_B[:, None]).unbind(1)
    coloured_B = uniform(seed_B, f"{name}/grey") >= config.grey
    matrix = colour_matrix(1 + brightness, (1 + saturation) * coloured_B, hue * 2 * math.pi)
    image = torch.einsum("bij,bjhw->bihw", matrix, image_BCHW)
    luminance = torch.einsum("j,bjhw->bhw", image.new_tensor(_LUMA), image).mean(dim=(1, 2))
    factor = (1 + contrast)[:, None, None, None]
    image = (image * factor + (1 - factor) * luminance[:, None, None, None]).clamp(0, 1)
    blurred_B = uniform(seed_B, f"{name}/blur") < config.blur
    low, high = config.blur_sigma
    sigma_B = low + uniform(seed_B, f"{name}/sigma") * (high - low)
    sigma_B = torch.where(blurred_B, sigma_B, torch.full_like(sigma_B, 1e-3))
    return gaussian_blur(image, sigma_B, math.ceil(3 * high))


_LUMA = (0.299, 0.587, 0.114)
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_FROM_YIQ = torch.linalg.inv(torch.tensor(_TO_YIQ, dtype=torch.float64)).tolist()


def colour_matrix(brightness_B: Tensor, saturation_B: Tensor, angle_B: Tensor) -> Tensor:
    """RGB -> RGB map (B, 3, 3): hue as a rotation of the chroma plane of YIQ [radians], saturation as its length."""
    to_yiq, from_yiq = brightness_B.new_tensor(_TO_YIQ), brightness_B.new_tensor(_FROM_YIQ)
    cos, sin, zero = torch.cos(angle_B) * saturation_B, torch.sin(angle_B) * saturation_B, torch.zeros_like(angle_B)
    chroma = torch.stack([torch.ones_like(zero), zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    return brightness_B[:, None, None] * (from_yiq @ chroma @ to_yiq)


def gaussian_blur(image_BCHW: Tensor, sigma_B: Tensor, radius: int = 4) -> Tensor:
    """Separable Gaussian blur with one standard deviation [pixels] a sample; edges are replicated.

    Args:
        image_BCHW: float.
        sigma_B: standard deviations.
        radius: beyond which the kernel is cut off [pixels].
    """
    count, channels, height, width = image_BCHW.shape
    offsets = torch.arange(-radius, radius + 1, device=image_BCHW.device, dtype=image_BCHW.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_B[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = image_BCHW.reshape(1, count * channels, height, width)
    flat = F.conv2d(
        F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=count * channels
    )
    flat = F.conv2d(
        F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel[:, None, :, None], groups=count * channels
    )
    return flat.reshape(image_BCHW.shape)


def block_mask(seed_B: Tensor, size: tuple[int, int], block: int, ratio: float) -> Tensor:
    """MIC's patch mask: cells of ``block`` pixels, each kept with probability 1 - ``ratio``.

    Hoyer, Dai, Wang, Van Gool: MIC, CVPR 2023, equation 4.

    Returns:
        (B, 1, H, W) float, 1 = kept.
    """
    rows, columns = math.ceil(size[0] / block), math.ceil(size[1] / block)
    kept = (uniform(seed_B, "block_mask", rows, columns) >= ratio).float()[:, None]
    return kept.repeat_interleave(block, 2).repeat_interleave(block, 3)[..., : size[0], : size[1]]


def classmix_mask(label_BHW: Tensor, seed_B: Tensor, num_classes: int) -> Tensor:
    """Pixels of half of the classes present in each image, drawn without replacement.

    For n classes present (n + n mod 2) / 2 are drawn; the ignore value counts as a class (ClassMix, WACV 2021, and
    DACS's code).

    Args:
        label_BHW: source train ids, 255 = ignore.

    Returns:
        (B, H, W) bool, True where the source is pasted.
    """
    compact_BHW = torch.where(label_BHW == IGNORE, num_classes, label_BHW)
    flat_BN = compact_BHW.flatten(1)
    present_BC = torch.zeros(len(label_BHW), num_classes + 1, device=label_BHW.device).scatter_(1, flat_BN, 1.0) > 0
    order_BC = torch.where(present_BC, uniform(seed_B, "classmix", num_classes + 1), 2.0).argsort(dim=1).argsort(dim=1)
    count_B = present_BC.sum(dim=1)
    drawn_BC = order_BC < ((count_B + count_B % 2) // 2)[:, None]
    return drawn_BC.gather(1, flat_BN).view_as(label_BHW)
