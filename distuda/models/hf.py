"""Any backbone of the transformers library as an encoder (extra ``hf``).

Hierarchical backbones (Swin, ConvNeXt, ResNet, ...) give their last four stages. Plain ViTs (DINOv2, ...) give their
last four layers, resampled to a pyramid. Shape legend: B images, D channels, h and w cells.
"""

import json
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distuda.errors import UserError, nearest
from distuda.models.segmenter import Features
from distuda.models.weights import IMAGENET_RGB, Statistics

NUM_STAGES = 4
_PYRAMID = (4.0, 2.0, 1.0, 0.5)  # size of a ViT's maps over that of its patches, finest first
_STAGE_NORMS = "hidden_states_norms"  # transformers adds them to a backbone; no file has them
_STATISTICS = ("image_mean", "image_std")

log = logging.getLogger(__name__)


class HfEncoder(nn.Module):
    """A transformers backbone that takes images of several sizes.

    Args:
        backbone: an ``AutoBackbone``; its ``out_features`` are the maps.

    Attributes:
        channels: of each map, finest first.
        multiple: image sides must be multiples of this [pixels].

    Raises:
        UserError: it cannot take images of another size than it was trained with.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels: tuple[int, ...] = tuple(backbone.channels)
        strides = self._probe()
        self.multiple = math.lcm(*strides)
        self.is_plain = len(strides) > 1 and len(set(strides)) == 1

    def train(self, mode: bool = True) -> "HfEncoder":
        """The backbone's own dropout stays off: it would not be drawn from the samples' seeds (`models.dropout`)."""
        super().train(mode)
        for module in self.backbone.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        return self

    def forward(self, x_BCHW: Tensor) -> Features:
        """Normalised image, sides a multiple of ``multiple``, to maps (B, D_i, h_i, w_i), finest first."""
        maps = tuple(self.backbone(x_BCHW).feature_maps)
        if not self.is_plain:
            return maps
        # A plain ViT's layers tell about the same scale; the earlier ones are finer in what they see
        return tuple(
            x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            for x, scale in zip(maps, _PYRAMID, strict=False)
        )

    def _probe(self) -> list[int]:
        """Strides of the maps, from one small image; parameters that it does not reach stop learning (DDP asks it)."""
        patch = self.backbone.config.to_dict().get("patch_size")
        side = 4 * patch if isinstance(patch, int) and patch > 8 else 64
        was_training = self.backbone.training
        with torch.enable_grad():
            try:
                maps = self.backbone.eval()(torch.zeros(1, 3, side, side)).feature_maps
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"the backbone takes no images of {side}x{side} pixels: {error}. Choose one that takes every size."
                ) from error
            torch.stack([x.mean() for x in maps]).sum().backward()
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
            parameter.grad = None
        self.backbone.train(was_training)
        return [side // x.shape[-1] for x in maps]


def load_backbone(name: str, weights: str) -> HfEncoder:
    """A backbone from a folder or the hub, with its published weights or a random start.

    Args:
        name: folder with a ``config.json``, or an id on the Hugging Face hub.
        weights: ``imagenet`` for the weights that lie there, ``none`` for the architecture alone.

    Raises:
        UserError: the extra ``hf`` is not installed, no such backbone, weights that do not fill it.
    """
    if weights not in ("imagenet", "none"):
        raise UserError(
            f"model.weights={weights!r} is not known to hf{nearest(weights, ['imagenet', 'none'])}. "
            "Use imagenet for the weights of model.backbone, or none; for other weights name another backbone."
        )
    try:
        from transformers import AutoBackbone, AutoConfig
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise UserError(
            f"model.name=hf needs the transformers library ({error}). Install it: pip install 'distuda[hf]'."
        ) from error
    if name.startswith(("/", ".")) and not os.path.isdir(name):
        raise UserError(f"model.backbone={name!r} is no folder. Give one that holds config.json and weights.")
    told = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # which stages' norms are new is no news: we check what is missing
    try:
        config = AutoConfig.from_pretrained(name)
        config.out_features = _stages(config, name)
        backbone: Any = AutoBackbone.from_config(config)
        if weights == "none":
            return HfEncoder(backbone)
        # By its class: AutoBackbone.from_pretrained of transformers 5 asks the hub even for a folder
        backbone, found = type(backbone).from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(
            f"model.backbone={name!r} cannot be loaded: {error}. Give a folder that holds config.json and weights, or "
            "the id of a model on the Hugging Face hub that works as a backbone (Swin, ConvNeXt, DINOv2, ...)."
        ) from error
    finally:
        transformers_logging.set_verbosity(told)
    if missing := sorted(key for key in found["missing_keys"] if _STAGE_NORMS not in key):
        raise UserError(
            f"the weights of model.backbone={name!r} do not fill it. Tensors missing: {', '.join(missing)}."
        )
    log.warning("%s", licence_note(name))
    return HfEncoder(backbone)


def pixel_statistics(name: str) -> Statistics:
    """Mean and standard deviation of RGB by ``preprocessor_config.json`` beside the model, ImageNet's without that.

    Args:
        name: as for `load_backbone`.

    Raises:
        UserError: a file that cannot be read, or gives something else than three means and three positive deviations.
    """
    from transformers.utils import cached_file

    try:
        path = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        given = json.loads(Path(path).read_text()) if path else {}
        if not given.get("do_normalize", True):
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        mean, std = (given.get(key, usual) for key, usual in zip(_STATISTICS, IMAGENET_RGB, strict=True))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"image_mean is {mean}, image_std {std}")
        return tuple(map(float, mean)), tuple(map(float, std))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"preprocessor_config.json of model.backbone={name!r} cannot be used: {error}. It must hold image_mean and "
            "image_std, three numbers each, for RGB in 0..1."
        ) from error


def licence_note(name: str) -> str:
    """One sentence on the weights' licence: what the folder's README.md or LICENSE says, or that it is unknown."""
    folder = Path(name)
    readme, licence = folder / "README.md", folder / "LICENSE"
    if readme.is_file():
        front = re.match(r"---\s*\n(.*?)\n---", readme.read_text(errors="replace"), re.DOTALL)
        fields = dict(re.findall(r"^(license|license_name):\s*(\S.*?)\s*$", front[1] if front else "", re.MULTILINE))
        if word := fields.get("license_name") or fields.get("license"):
            return f"licence of the weights of {name}: {word} (its README.md)"
    if licence.is_file():
        first = next((line.strip() for line in licence.read_text(errors="replace").splitlines() if line.strip()), "")
        return f"licence of the weights of {name}: {first} (its LICENSE file)"
    return f"licence of the weights of {name} is unknown: check the model's page before you use or pass on the result"


def _stages(config: Any, name: str) -> list[str]:
    """The stages that the config itself names if several, else all; the last four of them."""
    stages = getattr(config, "stage_names", None)
    if not stages:
        raise UserError(f"model.backbone={name!r} is a {config.model_type}, which is no backbone with stages.")
    chosen = list(config.out_features or [])
    return (chosen if len(chosen) > 1 else [stage for stage in stages if stage != "stem"])[-NUM_STAGES:]
