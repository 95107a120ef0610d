"""A network as one ONNX file that takes images as cameras and files give them.

    image       uint8 (N, H, W, 3), RGB; N, H and W are free
    class_map   uint8 (N, H, W), train ids, at input size
    confidence  float32 (N, H, W), the largest softmax probability, in (0, 1]
    logits      float32 (N, C, H, W), only on request
    tags        float32 (N, C), how likely each class is somewhere in the image, in [0, 1]; of networks that know
                (``Segmenter.gives_tags``)

A classifier that shows where it looked (``Segmenter.gives_heat``) has heat maps for logits. They are no softmax's, so
its confidence is the largest heat itself, in [0, 1], bilinear between places; property ``confidence`` of the file says
which of the two it is, ``probability`` or ``heat``.

Everything between lies in the graph: division by 255, the resize to the evaluation size, normalisation, the network,
the resize of the logits back to input size, softmax and arg-max.

Both resizes are those of training and `distuda evaluate`, so the file scores what the run's report says: the image as
in `distuda.data.decode.resize_image` (area average when both sides shrink, else bilinear), the logits bilinearly by the
network's own rule (``Segmenter.align_corners``).

Shape legend: B images, C classes, H and W pixels; NHWC is what the file calls its input.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distuda import __version__, storage
from distuda.data.labels import IGNORE, ClassTable
from distuda.models.segmenter import Segmenter

OPSET = 20
FORMAT = "distuda-segmenter-1"
"""Value of the metadata property ``format``; the runtime refuses files without it."""

_TRACE_SHAPE = (2, 70, 98, 3)  # sizes that no stride divides and that differ, so no axis is taken for constant or equal
_AXES = {0: "batch", 1: "height", 2: "width"}


class Deployed(nn.Module):
    """What the exported graph computes, in torch: the reference that the file is checked against.

    Args:
        model: the network, used as it is; put it into evaluation mode first.
        size: (height, width) that images are resized to before the network, None = as they come.
    """

    def __init__(self, model: Segmenter, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, H, W, 3) to class map uint8 (B, H, W), confidence (B, H, W) and logits (B, C, H, W), float32.

        A network that ``gives_tags`` has their scores (B, C) as a fourth.
        """
        x_BCHW = image.permute(0, 3, 1, 2).float()
        if self.size is not None:
            x_BCHW = resize_as_trained(x_BCHW, self.size)
        output = self.model(x_BCHW / 255)
        logits_BCHW = output.main
        if self.size is not None:
            logits_BCHW = F.interpolate(
                logits_BCHW, size=image.shape[1:3], mode="bilinear", align_corners=self.model.align_corners
            )
        answers = logits_BCHW.argmax(1).to(torch.uint8), self.confidence(logits_BCHW), logits_BCHW
        return answers if output.tags_BC is None else (*answers, output.tags_BC)

    def confidence(self, logits_BCHW: Tensor) -> Tensor:
        """Of the chosen class, (B, H, W): its softmax probability, or its heat."""
        top_B1HW = logits_BCHW.amax(1, keepdim=True)
        if self.model.gives_heat:
            return top_B1HW[:, 0]
        # The largest softmax probability, written out: Softmax over channels costs onnxruntime as much as the network.
        return (logits_BCHW - top_B1HW).exp().sum(1).reciprocal()


def resize_as_trained(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Area average when both sides shrink, else bilinear: `distuda.data.decode.resize_image` as two matrix products.

    Grey levels in and out, 0..255, rounded to whole ones: networks notice the fractions (4 % of pixels changed class on
    dark CamVid images). One graph serves every input size, so which rule holds is decided inside it.
    """
    rows, columns = (torch.arange(side, device=x_BCHW.device).float() for side in x_BCHW.shape[-2:])
    shrinks = (rows[-1] >= size[0]) & (columns[-1] >= size[1])
    return (_weights(rows, size[0], shrinks) @ x_BCHW @ _weights(columns, size[1], shrinks).T).round()


def _weights(inputs: Tensor, num_outputs: int, shrinks: Tensor) -> Tensor:
    """(outputs, inputs) matrix of one axis; ``inputs`` counts its pixels, rows sum to 1."""
    scale = (inputs[-1] + 1) / num_outputs  # input pixels an output pixel covers
    outputs = torch.arange(num_outputs, device=inputs.device).float()[:, None]
    covered = torch.minimum(inputs + 1, (outputs + 1) * scale) - torch.maximum(inputs, outputs * scale)
    centre = ((outputs + 0.5) * scale - 0.5).clamp(min=0).minimum(inputs[-1])
    return torch.where(shrinks, covered.clamp(min=0) / scale, (1 - (inputs - centre).abs()).clamp(min=0))


def export_onnx(
    model: Segmenter,
    path: str,
    *,
    table: ClassTable,
    size: tuple[int, int] | None,
    metadata: Mapping[str, str],
    with_logits: bool = False,
) -> None:
    """Write the ONNX file of a network, whole or not at all; it is checked for form, not against torch.

    Use `export.verify.export_run` for a file that is also compared with torch before it appears.

    Args:
        model: any `Segmenter`; neither its mode nor its device is changed.
        path: of the file, a path or any fsspec URI.
        table: names and colours of the classes, stored in the file.
        size: (height, width) that the graph resizes images to before the network, None = as they come.
        metadata: further properties, such as ``recipe_hash``, ``licence`` and ``provenance``.
        with_logits: add the output ``logits``.
    """
    storage.write_bytes(path, build_onnx(model, table=table, size=size, metadata=metadata, with_logits=with_logits))


def build_onnx(
    model: Segmenter,
    *,
    table: ClassTable,
    size: tuple[int, int] | None,
    metadata: Mapping[str, str],
    with_logits: bool = False,
) -> bytes:
    """The content of the ONNX file; arguments as in `export_onnx`."""
    if table.num_classes != model.num_classes:
        raise ValueError(f"the network gives {model.num_classes} classes, table {table.name!r} has {table.num_classes}")
    deployed = Deployed(copy.deepcopy(model).cpu().float().eval(), size)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            deployed,
            (torch.zeros(_TRACE_SHAPE, dtype=torch.uint8),),
            input_names=["image"],
            output_names=["class_map", "confidence", "logits", *["tags"] * model.gives_tags],
            dynamic_shapes=(_AXES,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _forget_origin(proto)
    if not with_logits:
        del proto.graph.output[2]
    _describe(proto, table, size, {**metadata, "confidence": "heat" if model.gives_heat else "probability"})
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def _describe(
    proto: onnx.ModelProto, table: ClassTable, size: tuple[int, int] | None, metadata: Mapping[str, str]
) -> None:
    """Store what a reader of the file must know; our own properties win over given ones of the same name."""
    own = {
        "format": FORMAT,
        "table": table.name,
        "classes": json.dumps(table.classes),
        "palette": json.dumps(table.palette),
        "things": json.dumps(sorted(table.things)),
        "ignore_index": str(IGNORE),
        "size": json.dumps(size),
        "distuda_version": __version__,
    }
    onnx.helper.set_model_props(proto, {**metadata, **own})
    proto.producer_name, proto.producer_version = "distuda", __version__


def _forget_origin(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes on every node: they quote source lines with paths of the exporting machine."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
