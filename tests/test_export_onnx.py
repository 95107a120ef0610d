"""The exported graph against torch at every size and batch, and that a file which differs is refused."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from parity import assert_parity, images
from torch import Tensor, nn

from distuda.data.class_tables import CLASS_TABLES
from distuda.data.decode import resize_image
from distuda.engine.run import Run
from distuda.models.daformer import DaformerDecoder, EncoderDecoder
from distuda.models.deeplab import DeepLabV2
from distuda.models.lite import Lite
from distuda.models.mit import MixTransformer
from distuda.models.segmenter import Features, Normalise, Segmenter
from distuda.models.vgg import DeepLabLargeFovVgg16, DeepLabV2Vgg16
from distuda.recipe import parse_recipe
from export import verify as verification
from export.errors import PredictError
from export.onnx import Deployed, build_onnx, export_onnx, resize_as_trained
from export.runtime import Predictor
from export.verify import ExportMismatch, Limits, Report, Row, export_run, verify

TABLE = CLASS_TABLES["camvid11"]


class Tiny(Segmenter):
    """Two convolutions at stride 2, so that export takes a moment."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(TABLE.num_classes)
        self.normalise = Normalise([0.5] * 3, [0.2] * 3)
        generator = torch.Generator().manual_seed(seed)
        self.features = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.classify = nn.Conv2d(8, TABLE.num_classes, 1)
        self.drop = nn.Dropout(0.5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def encode(self, x_BCHW: Tensor) -> Features:
        return (self.drop(torch.relu(self.features(x_BCHW))),)

    def heads(self, features: Features) -> tuple[Tensor, None]:
        return self.classify(features[0]), None


def shallow_mit() -> EncoderDecoder:
    """MiT with one block a stage: tracing a block takes a second, and all are alike."""
    encoder = MixTransformer("b0")
    for stage in encoder.stages:
        del stage.blocks[1:]  # type: ignore[union-attr]
    return EncoderDecoder(11, encoder, DaformerDecoder(encoder.channels, 11, width=32))


def balanced_large_fov() -> DeepLabLargeFovVgg16:
    """Random features are smooth, so one class would have the whole image; each has the same mean logit here."""
    model = DeepLabLargeFovVgg16(11).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(images(1, 75, 101)).permute(0, 3, 1, 2) / 255).main
        model.main_head.bias -= logits.mean(dim=(0, 2, 3))  # type: ignore[operator]
    return model


NETWORKS: dict[str, Callable[[], Segmenter]] = {
    "lite": lambda: Lite(11),
    "deeplabv2_resnet18": lambda: DeepLabV2(11, 18),
    "deeplabv2_vgg16": lambda: DeepLabV2Vgg16(11),
    "deeplab_largefov_vgg16": balanced_large_fov,
    "mit": shallow_mit,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_dynamic_batch_height_width(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    if isinstance(model, Lite | EncoderDecoder):  # random features are faint; louder ones vary over the image
        nn.init.normal_(model.decoder.classify.weight, std=20.0)
    assert_parity(model, build_onnx(model, table=TABLE, size=None, metadata={}, with_logits=True), None)


@pytest.fixture(scope="module")
def sized_file() -> bytes:
    return build_onnx(Tiny(), table=TABLE, size=(40, 56), metadata={}, with_logits=True)


@pytest.mark.parametrize("size", [(40, 56), (31, 17), (130, 150), (64, 150), (90, 120)])
def test_resize_is_that_of_training(size: tuple[int, int]) -> None:
    image = images(1, 90, 120)
    ours = resize_as_trained(torch.from_numpy(image).permute(0, 3, 1, 2).float(), size)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - resize_image(image[0], size)).max() < 1.01  # grey levels; rounding alone would be 0.5


def test_resize_inside_the_graph(sized_file: bytes) -> None:
    assert Predictor(sized_file, "cpu").size == (40, 56)
    assert_parity(Tiny(), sized_file, (40, 56))  # shrinks and grows images


@pytest.fixture(scope="module")
def tiny_file() -> bytes:
    return build_onnx(Tiny(), table=TABLE, size=None, metadata={"licence": "CC0", "format": "forged"})


def test_confidence_is_the_largest_softmax_probability() -> None:
    image = torch.from_numpy(images(2, 40, 40))
    _, confidence, logits = Deployed(Tiny().eval(), None)(image)
    torch.testing.assert_close(confidence, logits.softmax(1).amax(1))


def test_file_describes_itself_and_forgets_where_it_was_made(tiny_file: bytes) -> None:
    predictor = Predictor(tiny_file, "cpu")
    assert predictor.classes == TABLE.classes
    assert [tuple(colour) for colour in predictor.palette.tolist()] == list(TABLE.palette)
    assert predictor.size is None
    assert predictor.metadata["licence"] == "CC0"
    assert predictor.metadata["ignore_index"] == "255"
    assert predictor.metadata["format"] != "forged"
    proto = onnx.load_from_string(tiny_file)
    assert [output.name for output in proto.graph.output] == ["class_map", "confidence"]
    assert [d.dim_param for d in proto.graph.input[0].type.tensor_type.shape.dim] == ["batch", "height", "width", ""]
    assert os.getcwd().encode() not in tiny_file and b"segmenter.py" not in tiny_file


def test_export_writes_the_file_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = Tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, str(tmp_path / "deep" / "model.onnx"), table=TABLE, size=None, metadata={})
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.onnx"]
    with pytest.raises(ValueError, match="11 classes"):
        export_onnx(model, str(tmp_path / "x.onnx"), table=CLASS_TABLES["voc21"], size=None, metadata={})
    assert not (tmp_path / "x.onnx").exists()


def test_verify_measures_several_sizes_and_scores(tiny_file: bytes) -> None:
    model = Tiny().eval()
    pictures = list(images(3, 90, 110))
    with torch.inference_mode():
        truth = [Deployed(model, None)(torch.from_numpy(p[None]))[0][0].numpy() for p in pictures]
    report = verify(tiny_file, model, pictures, [*truth[:2], None])
    report.require()
    assert {size for row in report.rows for size in row.sizes} == {(90, 110), (67, 83), (45, 55)}
    assert [row.num_images for row in report.rows] == [3, 2, 4]
    assert all(row.agreement > 0.9999 and len(row.onnx_s) == len(row.torch_s) == 4 for row in report.rows)
    assert report.miou_torch == 1.0  # the labels are the network's own answers
    assert report.miou_onnx == pytest.approx(1.0, abs=1e-3)
    assert report.agreement_evaluated is None
    assert report.table().row_count == 3


def test_verify_compares_with_the_resize_of_evaluation(sized_file: bytes) -> None:
    report = verify(sized_file, Tiny(), list(images(1, 90, 120)))
    assert report.agreement_evaluated is not None and report.agreement_evaluated > 0.98
    assert report.rows[0].logit_error is not None and report.miou_torch is None
    assert "evaluation" in str(report.table().caption)


def test_verify_refuses_another_networks_file(tiny_file: bytes) -> None:
    with pytest.raises(ExportMismatch, match=r"native.*of pixels agree"):
        verify(tiny_file, Tiny(seed=1), list(images(1, 70, 70))).require()


def test_a_graph_that_fits_one_size_only_is_our_failure(tiny_file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Predictor.run

    def run(predictor: Predictor, image_NHWC: Any) -> Any:
        if image_NHWC.shape[1] != 70:
            raise PredictError("cannot compute 1 image(s) of 53x53 on cpu: MatMul. Use larger images.")
        return whole(predictor, image_NHWC)

    monkeypatch.setattr(Predictor, "run", run)
    with pytest.raises(ExportMismatch, match=r"fails where torch does not.*53x53.*one image size only"):
        verify(tiny_file, Tiny(), list(images(1, 70, 70)))


def report_with(agreement: float = 1.0, confidence: float = 0.0, miou: float = 0.5) -> Report:
    row = Row("native", {(10, 10)}, 1, 10_000, round(agreement * 10_000), confidence_error=confidence)
    return Report("cpu", 0.1, [row], 0.5, miou)


@pytest.mark.parametrize(
    "report", [report_with(agreement=0.9989), report_with(confidence=0.02), report_with(confidence=float("nan")),
               report_with(miou=0.4985), report_with(miou=float("nan"))]
)  # fmt: skip
def test_limits(report: Report) -> None:
    with pytest.raises(ExportMismatch):
        report.require()


def test_within_limits() -> None:
    report = report_with(agreement=0.9991, confidence=0.009, miou=0.4995)
    report.require()
    with pytest.raises(ExportMismatch):
        report.require(Limits(agreement=0.9999))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run of the tiny network, without the training."""
    recipe = parse_recipe(
        {"source": {"uri": str(tmp_path / "home" / "shards")}, "target": {"uri": "s3://me:pw@b/t?k=1"}}
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 0\n")
    run = Run(str(tmp_path / "run"), recipe, TABLE, Tiny().eval(), 7)
    monkeypatch.setattr(verification, "open_run", lambda uri, which: run)
    monkeypatch.setattr(verification, "_images_of", lambda run, num: (list(images(num, 66, 70)), None))
    return run


def test_export_run_writes_a_checked_file(run: Run) -> None:
    path, report = export_run(run.uri, num_images=2)
    assert path == run.uri + "/model.onnx" and report.failures(Limits()) == []
    metadata = Predictor(path).metadata
    provenance = json.loads(metadata["provenance"])
    assert metadata["recipe_hash"] == hashlib.sha256(b"seed: 0\n").hexdigest()
    assert (provenance["step"], provenance["source"], provenance["target"]) == (7, "shards", "s3://b/t")
    assert "shards" in metadata["licence"]
    assert not any(str(Path(run.uri).parent) in value for value in metadata.values())


def test_export_run_leaves_no_file_that_fails(run: Run, tiny_file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    run.predictor = Tiny(seed=1).eval()
    monkeypatch.setattr(verification, "build_onnx", lambda model, **kwargs: tiny_file)
    with pytest.raises(ExportMismatch):
        export_run(run.uri, num_images=1)
    assert [path.name for path in Path(run.uri).iterdir()] == ["recipe.yaml"]
