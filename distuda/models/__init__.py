"""The networks by name, and how a run builds one."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from distuda.errors import UserError
from distuda.models.daformer import DaformerDecoder, EncoderDecoder, MlpDecoder, StageDecoder
from distuda.models.deeplab import DeepLabV2, Depth
from distuda.models.hf import load_backbone, pixel_statistics
from distuda.models.hrda import Hrda
from distuda.models.lite import Lite, load_imagenet
from distuda.models.mit import MitSize, MixTransformer, initialise_mit
from distuda.models.segmenter import Segmenter
from distuda.models.vgg import DeepLabLargeFovVgg16, DeepLabV2Vgg16, Vgg16, initialise_vgg
from distuda.models.weights import initialise

if TYPE_CHECKING:
    from distuda.recipe import ModelConfig


def _lite(config: "ModelConfig", num_classes: int) -> Segmenter:
    model = Lite(num_classes)
    if config.weights == "imagenet":
        load_imagenet(model.encoder)
    elif config.weights != "none":
        raise UserError(
            f"model.weights={config.weights!r} is not known to lite. Use imagenet or none; to start from a run, set "
            "init_from."
        )
    return model


def _deeplab(config: "ModelConfig", num_classes: int, *, depth: Depth) -> Segmenter:
    model = DeepLabV2(num_classes, depth, multi_level=config.multi_level)
    initialise(model, config.weights)
    return model


def _vgg(config: "ModelConfig", num_classes: int, *, kind: Callable[[int], Vgg16]) -> Segmenter:
    model = kind(num_classes)
    initialise_vgg(model, config.weights)
    return model


def _mit(config: "ModelConfig", num_classes: int, *, size: MitSize) -> Segmenter:
    encoder = MixTransformer(size)
    initialise_mit(encoder, config.weights)
    mlp_width = 256 if size in ("b0", "b1") else 768
    return EncoderDecoder(num_classes, encoder, _decoder(config, encoder.channels, num_classes, mlp_width))


def _hf(config: "ModelConfig", num_classes: int) -> Segmenter:
    if config.backbone is None:
        raise UserError("model.name=hf needs model.backbone: a folder or the id of a model on the Hugging Face hub.")
    encoder = load_backbone(config.backbone, config.weights)
    decoder = _decoder(config, encoder.channels, num_classes, 768)
    statistics = pixel_statistics(config.backbone)
    return EncoderDecoder(num_classes, encoder, decoder, statistics=statistics, multiple=encoder.multiple)


def _decoder(config: "ModelConfig", channels: tuple[int, ...], num_classes: int, mlp_width: int) -> StageDecoder:
    if config.decoder == "segformer":
        return MlpDecoder(channels, num_classes, mlp_width)
    return DaformerDecoder(channels, num_classes)


MODELS: dict[str, Callable[["ModelConfig", int], Segmenter]] = {
    "lite": _lite,
    "deeplabv2_resnet101": partial(_deeplab, depth=101),
    "deeplabv2_resnet50": partial(_deeplab, depth=50),
    "deeplabv2_resnet18": partial(_deeplab, depth=18),
    "deeplabv2_vgg16": partial(_vgg, kind=DeepLabV2Vgg16),
    "deeplab_largefov_vgg16": partial(_vgg, kind=DeepLabLargeFovVgg16),
    "mit_b0": partial(_mit, size="b0"),
    "mit_b1": partial(_mit, size="b1"),
    "mit_b2": partial(_mit, size="b2"),
    "mit_b3": partial(_mit, size="b3"),
    "mit_b4": partial(_mit, size="b4"),
    "mit_b5": partial(_mit, size="b5"),
    "hf": _hf,
}


def build_model(config: "ModelConfig", num_classes: int, seed: int = 0) -> Segmenter:
    """A network with its starting weights; fresh layers are drawn from ``seed``.

    Raises:
        UserError: weights that do not exist or do not fit, detail for a network with an auxiliary head.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[config.name](config, num_classes)
        if config.detail is not None:
            model = _with_detail(model, config.detail)
    model.freeze_statistics = config.batch_norm == "frozen"
    return model


def _with_detail(model: Segmenter, detail: tuple[int, int]) -> Segmenter:
    if model.has_aux:
        raise UserError("model.detail needs a network with one head. Set model.multi_level=false.")
    return Hrda(model, detail)
