"""A network as one ONNX file that takes images as cameras and files give them.

    image       uint8 (N, H, W, 3), RGB; N, H and W are free
    class_map   uint8 (N, H, W), train ids, at input size
    confidence  float32 (N, H, W), the largest softmax probability, in (0, 1]
    logits      float32 (N, C, H, W), only on request

Everything between lies in the graph: division by 255, the resize to the evaluation size, normalisation, the network,
the resize of the logits back to input size, softmax and arg-max.

Both resizes are bilinear at pixel centres without antialiasing (``align_corners=False``), which every ONNX execution
provider computes alike. Training and `distuda evaluate` shrink images by area average instead
(`distuda.data.decode.resize_image`); at a factor of exactly two these are the same up to rounding, at others class maps
differ near edges. `export.verify` measures by how much. Without a size nothing is resized and nothing differs.

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

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 (B, H, W, 3) to class map uint8 (B, H, W), confidence (B, H, W) and logits (B, C, H, W), float32."""
        x_BCHW = image.permute(0, 3, 1, 2).float() / 255
        if self.size is not None:
            x_BCHW = _bilinear(x_BCHW, self.size)
        logits_BCHW = self.model(x_BCHW).main
        if self.size is not None:
            logits_BCHW = _bilinear(logits_BCHW, (image.shape[1], image.shape[2]))
        # The largest softmax probability, written out: onnxruntime's Softmax over channels costs as much as the network.
        top_B1HW = logits_BCHW.amax(1, keepdim=True)
        confidence_BHW = (logits_BCHW - top_B1HW).exp().sum(1).reciprocal()
        return logits_BCHW.argmax(1).to(torch.uint8), confidence_BHW, logits_BCHW


def _bilinear(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False, antialias=False)


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
            output_names=["class_map", "confidence", "logits"],
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
    _describe(proto, table, size, metadata)
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
