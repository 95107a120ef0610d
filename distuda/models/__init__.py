"""The networks by name, and how a run builds one."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from distuda.errors import UserError
from distuda.models.deeplab import DeepLabV2
from distuda.models.lite import Lite, load_imagenet
from distuda.models.segmenter import Segmenter
from distuda.models.weights import initialise

if TYPE_CHECKING:
    from distuda.recipe import ModelConfig

MODELS: dict[str, Callable[..., Segmenter]] = {
    "lite": Lite,
    "deeplabv2_resnet101": partial(DeepLabV2, depth=101),
    "deeplabv2_resnet50": partial(DeepLabV2, depth=50),
    "deeplabv2_resnet18": partial(DeepLabV2, depth=18),
}


def build_model(config: "ModelConfig", num_classes: int, seed: int = 0) -> Segmenter:
    """A network with its starting weights; fresh layers are drawn from ``seed``.

    Raises:
        UserError: weights that do not exist or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.name == "lite":
            model: Segmenter = Lite(num_classes)
        else:
            model = MODELS[config.name](num_classes, multi_level=config.multi_level)
    _start(model, config.weights)
    model.freeze_statistics = config.batch_norm == "frozen"
    return model


def _start(model: Segmenter, weights: str) -> None:
    if isinstance(model, DeepLabV2):
        initialise(model, weights)
    elif isinstance(model, Lite) and weights == "imagenet":
        load_imagenet(model.encoder)
    elif weights != "none":
        raise UserError(
            f"model.weights={weights!r} is not known to lite. Use imagenet or none; to start from a run, set init_from."
        )
