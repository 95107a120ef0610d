"""What another camera makes of a view, and how nearly two views agree: the synthetic pairs of feature regression.

Each function takes float RGB (B, 3, H, W) in [0, 1] and gives the same. A strength is a constant, since one camera
differs from another in one way; noise and misalignment are drawn from the samples' seeds (`distuda.draws`) and are a
pure function of them. All of it runs on the device in float32, inside autocast too.

The list is that of docs/methods/feature_regression.md; after Benbihi, Geist, Pradalier (arXiv 1805.04141).

Shape legend: B samples, C channels, H and W pixels.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distuda.data.augment import colour_matrix, gaussian_blur
from distuda.draws import normal, uniform


class CameraConfig(BaseModel):
    """A camera change. The defaults are an old monochrome one: grey, low in contrast, dark, blurred and noisy."""

    model_config = ConfigDict(extra="forbid")

    low_resolution: float = Field(1.0, ge=1, description="the image is made so many times smaller and enlarged again")
    blur: float = Field(1.0, ge=0, le=4, description="standard deviation of a Gaussian blur, 0 = off [pixels]")
    channels: str = Field(
        "rgb", pattern="^[rgb0]{3}$", description="which channel becomes red, green and blue; 0 = a dark one"
    )
    hue: float = Field(0.0, ge=-0.5, le=0.5, description="turn of all hues [full turns of the colour wheel]")
    saturation: float = Field(0.0, ge=0, description="factor of the colourfulness; 0 = grey, 1 = as it is")
    contrast: float = Field(0.5, ge=0, description="factor of the distance from middle grey")
    gamma: float = Field(2.0, gt=0, description="exponent of the values; above 1 is darker")
    invert: bool = Field(False, description="negative image")
    noise: float = Field(0.02, ge=0, description="standard deviation of Gaussian noise [share of the value range]")
    salt_and_pepper: float = Field(0.0, ge=0, le=1, description="share of pixels that are white or black")
    jpeg: int | None = Field(None, ge=1, le=100, description="quality of JPEG compression, none = off")


class MisalignmentConfig(BaseModel):
    """How nearly the two views of a pair agree."""

    model_config = ConfigDict(extra="forbid")

    pixels: float = Field(4.0, ge=0, description="largest shift each way; 0 = exactly aligned, unturned [pixels]")
    degrees: float = Field(2.0, ge=0, le=45, description="largest turn either way [degrees]")
    zoom: float = Field(0.02, ge=0, lt=1, description="zoom factor drawn from 1 +- this")


def camera(image_BCHW: Tensor, seed_B: Tensor, config: CameraConfig) -> Tensor:
    """The view as another camera takes it, in the order of a camera: optics, sensor, noise, file."""
    with torch.autocast(image_BCHW.device.type, enabled=False):
        image = low_resolution(image_BCHW.float(), config.low_resolution)
        if config.blur:
            image = gaussian_blur(image, torch.full((len(image),), config.blur, device=image.device), radius=9)
        image = colours(choose_channels(image, config.channels), config.hue, config.saturation)
        image = tones(image, config.contrast, config.gamma)
        image = 1 - image if config.invert else image
        image = gaussian_noise(image, seed_B, config.noise)
        image = salt_and_pepper(image, seed_B, config.salt_and_pepper)
        return image if config.jpeg is None else jpeg(image, config.jpeg)


def low_resolution(image_BCHW: Tensor, factor: float) -> Tensor:
    """Area average to an image ``factor`` times smaller each way, then bilinear to the size it had."""
    if factor == 1:
        return image_BCHW
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    small = [max(1, round(length / factor)) for length in size]
    return F.interpolate(F.interpolate(image_BCHW, small, mode="area"), size, mode="bilinear", align_corners=False)


def choose_channels(image_BCHW: Tensor, order: str) -> Tensor:
    """Channels permuted, repeated or removed: "bgr" swaps red and blue, "rrr" keeps red alone, "0gb" darkens red."""
    if order == "rgb":
        return image_BCHW
    with_dark = torch.cat([image_BCHW, torch.zeros_like(image_BCHW[:, :1])], dim=1)
    return with_dark[:, ["rgb0".index(name) for name in order]]


def colours(image_BCHW: Tensor, hue: float, saturation: float) -> Tensor:
    """Hues turned by so many full turns, chroma scaled; saturation 0 gives the luminance in all channels."""
    if (hue, saturation) == (0, 1):
        return image_BCHW
    one = image_BCHW.new_ones(1)
    matrix = colour_matrix(one, saturation * one, 2 * math.pi * hue * one)[0]
    return torch.einsum("ij,bjhw->bihw", matrix, image_BCHW).clamp(0, 1)


def tones(image_BCHW: Tensor, contrast: float, gamma: float) -> Tensor:
    """Contrast about middle grey, then a power law."""
    return (0.5 + contrast * (image_BCHW - 0.5)).clamp(0, 1) ** gamma


def gaussian_noise(image_BCHW: Tensor, seed_B: Tensor, deviation: float) -> Tensor:
    """Independent normal noise on every value."""
    if not deviation:
        return image_BCHW
    return (image_BCHW + deviation * normal(seed_B, "camera/noise", *image_BCHW.shape[1:])).clamp(0, 1)


def salt_and_pepper(image_BCHW: Tensor, seed_B: Tensor, share: float) -> Tensor:
    """So large a share of the pixels becomes white or black, evenly often."""
    if not share:
        return image_BCHW
    draw = uniform(seed_B, "camera/salt", 1, *image_BCHW.shape[2:])
    salted = torch.where(draw < share / 2, torch.ones_like(image_BCHW), image_BCHW)
    return torch.where(draw >= 1 - share / 2, torch.zeros_like(image_BCHW), salted)


def misalign(image_BCHW: Tensor, seed_B: Tensor, config: MisalignmentConfig) -> Tensor:
    """Each image shifted, turned about its centre and zoomed by its own draws; edges are mirrored, so none shows.

    With ``pixels`` 0 the image is given back as it is: the control of exact alignment.
    """
    if not config.pixels:
        return image_BCHW
    with torch.autocast(image_BCHW.device.type, enabled=False):
        height, width = image_BCHW.shape[-2:]
        shift_x, shift_y, turn, zoom = (uniform(seed_B, "misalign", 4) * 2 - 1).unbind(1)
        angle, scale = turn * math.radians(config.degrees), 1 + zoom * config.zoom
        cos, sin = angle.cos() / scale, angle.sin() / scale
        # grid_sample counts in half extents, so a turn of pixels needs the aspect ratio
        row_x = torch.stack([cos, -sin * height / width, 2 * shift_x * config.pixels / width], dim=1)
        row_y = torch.stack([sin * width / height, cos, 2 * shift_y * config.pixels / height], dim=1)
        grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(image_BCHW.shape), align_corners=False)
        return F.grid_sample(image_BCHW.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def jpeg(image_BCHW: Tensor, quality: int) -> Tensor:
    """What baseline JPEG loses: 8x8 cosine blocks of YCbCr, quantised by the standard's tables (T.81, annex K).

    Chroma keeps its resolution (4:4:4), and nothing is entropy coded. ``quality`` is 1..100 in libjpeg's scale.
    """
    height, width = image_BCHW.shape[-2:]
    padded = F.pad(image_BCHW, (0, -width % 8, 0, -height % 8), mode="replicate")
    ycc = (torch.einsum("ij,bjhw->bihw", image_BCHW.new_tensor(_TO_YCC), padded) * 255).round()
    ycc[:, 0] -= 128
    basis = _cosines(image_BCHW)
    blocks = ycc.unfold(2, 8, 8).unfold(3, 8, 8)  # (B, 3, rows, columns, 8, 8)
    steps = _quantisation(quality, image_BCHW)[:, None, None]
    coefficients = torch.round(basis @ blocks @ basis.T / steps) * steps
    restored = (basis.T @ coefficients @ basis).permute(0, 1, 2, 4, 3, 5).reshape(ycc.shape)
    restored[:, 0] += 128
    from_ycc = torch.linalg.inv(image_BCHW.new_tensor(_TO_YCC))
    image = torch.einsum("ij,bjhw->bihw", from_ycc, restored / 255)
    return image[..., :height, :width].clamp(0, 1)


def _cosines(like: Tensor) -> Tensor:
    """The orthonormal 8-point cosine transform, (8, 8)."""
    k = torch.arange(8, device=like.device, dtype=like.dtype)
    basis = 0.5 * torch.cos((2 * k + 1) * k[:, None] * math.pi / 16)
    return torch.cat([basis[:1] / math.sqrt(2), basis[1:]])


def _quantisation(quality: int, like: Tensor) -> Tensor:
    """Steps of the coefficients for luminance, Cb and Cr, (3, 8, 8)."""
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    tables = like.new_tensor([_LUMINANCE, _CHROMINANCE, _CHROMINANCE]).view(3, 8, 8)
    return (tables * scale).round().clamp(1, 255)


_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip
