"""Source images in the style of the target's: what differs between two cameras is taken away in the pixels, by images
of the same step, and no statistics of a network are touched.

It did not gain where it was measured (`benchmarks/accuracy_synthetic_to_real.md`); tps has it as its authors do.

Shape legend: B samples, C channels, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distuda.data.batch import Batch

EPSILON = 1e-4  # of a standard deviation: channels of one value stay finite


class StyleConfig(BaseModel):
    """Whether and how source images are given the target's style."""

    model_config = ConfigDict(extra="forbid")

    style: Literal["none", "fourier", "moments", "histogram"] = Field(
        "none",
        description="what source images take over of the target images of the step: amplitudes of low frequencies "
        "(FDA), mean and standard deviation of each channel, or all its values (TPS)",
    )
    style_beta: float = Field(
        0.03,
        gt=0,
        lt=0.5,
        description="with style=fourier, low are frequencies up to this times the shorter side's pixels [cycles an "
        "image] (FDA: 0.01 to 0.09 of 512 pixels; 0.03 of 180 are 5 cycles, as its 0.01)",
    )


def restyled(source: Batch, target: Batch, config: StyleConfig) -> Batch:
    """The source batch with images like the target's: sample i takes over of sample i. Frames before, if any, are
    changed as the newest one is.

    Args:
        source, target: float RGB in [0, 1], of any two sizes.
        config: how; not ``none``.
    """
    frames = _frames(source)
    reference = target.image_BCHW
    if config.style == "fourier":
        made = match_low_frequencies(frames, reference, config.style_beta)
    else:
        made = {"moments": match_moments, "histogram": match_histogram}[config.style](frames, reference)
    return _with_frames(source, made)


def match_low_frequencies(frames: Sequence[Tensor], reference_BCHW: Tensor, beta: float) -> list[Tensor]:
    """Images with the amplitudes of others at low frequencies and their own phases.

    Yang and Soatto: FDA, CVPR 2020, equation 3, clipped to what pixels can be.

    Args:
        frames: float images (B, C, H, W) in [0, 1], of one size.
        reference_BCHW: any size; sample i gives its amplitudes to sample i.
        beta: half the side of the square of low frequencies, as a share of the shorter side; frequency 0 is always low.
    """
    height, width = frames[0].shape[-2:]
    if reference_BCHW.shape[-2:] != (height, width):
        reference_BCHW = F.interpolate(reference_BCHW, size=(height, width), mode="bilinear", align_corners=False)
    cycles = int(min(height, width) * beta)
    rows = torch.fft.fftfreq(height, 1 / height, device=reference_BCHW.device).abs()[:, None] <= cycles
    columns = torch.fft.rfftfreq(width, 1 / width, device=reference_BCHW.device)[None] <= cycles
    wanted = torch.fft.rfft2(reference_BCHW.float()).abs()
    made = []
    for frame in frames:
        own = torch.fft.rfft2(frame.float())
        amplitude = torch.where(rows & columns, wanted, own.abs())
        made.append(torch.fft.irfft2(torch.polar(amplitude, own.angle()), s=(height, width)).clamp(0, 1))
    return made


def match_moments(frames: Sequence[Tensor], reference_BCHW: Tensor) -> list[Tensor]:
    """Images with each channel's mean and standard deviation those of others, clipped to what pixels can be.

    Reinhard, Ashikhmin, Gooch, Shirley: Color transfer between images, IEEE CG&A 2001; theirs in
    l-alpha-beta, here in RGB.

    Args:
        frames: float images (B, C, H, W) in [0, 1]; those of one sample are changed alike, by the first one's moments.
        reference_BCHW: any size; sample i gives its moments to sample i.
    """
    wanted_std, wanted_mean = torch.std_mean(reference_BCHW, dim=(2, 3), keepdim=True)
    std, mean = torch.std_mean(frames[0], dim=(2, 3), keepdim=True)
    return [((frame - mean) / (std + EPSILON) * wanted_std + wanted_mean).clamp(0, 1) for frame in frames]


def match_histogram(frames: Sequence[Tensor], reference_BCHW: Tensor) -> list[Tensor]:
    """Images with the values of others: in each channel the k-th smallest becomes the reference's k-th smallest.

    Args:
        frames: float images (B, C, H, W) of one size; those of one sample are changed alike, by the first one's ranks.
        reference_BCHW: any size; sample i gives its values to sample i.
    """
    values = frames[0].flatten(2).sort(dim=2).values.contiguous()
    wanted, _ = reference_BCHW.flatten(2).sort(dim=2)
    count = values.shape[2]
    pick = torch.linspace(0, wanted.shape[2] - 1, count, device=wanted.device).round().long()
    wanted = wanted[:, :, pick]
    made = []
    for frame in frames:
        place = torch.searchsorted(values, frame.flatten(2).contiguous()).clamp(max=count - 1)
        made.append(wanted.gather(2, place).view(frame.shape))
    return made


def _frames(batch: Batch | None) -> list[Tensor]:
    return [] if batch is None else [batch.image_BCHW, *_frames(batch.before)]


def _with_frames(batch: Batch, images: Sequence[Tensor]) -> Batch:
    before = None if batch.before is None else _with_frames(batch.before, images[1:])
    return replace(batch, image_BCHW=images[0], before=before)
