"""Exported networks that know which classes an image holds: tags, heat maps and prohibited classes against torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distuda.data.class_tables import CLASS_TABLES
from distuda.models.fusion import Fused
from distuda.models.segmenter import Features, Normalise, Segmenter
from distuda.models.tags import Localiser, Prohibiting, TagHead
from export.onnx import Deployed, build_onnx
from export.runtime import Predictor
from export.verify import ExportMismatch, Limits, verify

TABLE = CLASS_TABLES["voc21"]
THRESHOLD = 0.4


class Tiny(Segmenter):
    """One convolution at stride 2, whose features classify at once."""

    def __init__(self) -> None:
        super().__init__(TABLE.num_classes)
        self.normalise = Normalise([0.5] * 3, [0.2] * 3)
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.classify = nn.Conv2d(8, TABLE.num_classes, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def encode(self, x_BCHW: Tensor) -> Features:
        return (torch.relu(self.features(x_BCHW)),)

    def heads(self, features: Features) -> tuple[Tensor, None]:
        return self.classify(features[0]), None


def tag_head() -> TagHead:
    made = TagHead(8, TABLE.num_classes, TABLE.background)
    made.weights.weight.data = torch.randn(21, 8, 1, 1, generator=torch.Generator().manual_seed(1)) * 0.05
    nn.init.zeros_(made.weights.bias)  # type: ignore[arg-type]  # scores on both sides of the threshold
    return made


def localiser(squared: bool = False) -> Localiser:
    return Localiser(Tiny(), tag_head(), squared=squared, background=TABLE.background, background_heat=0.2).eval()


def prohibiting(threshold: float = THRESHOLD, radius: int = 0) -> Prohibiting:
    return Prohibiting(Tiny(), tag_head(), threshold, radius).eval()


def build(model: Segmenter, size: tuple[int, int] | None = None, with_logits: bool = True) -> bytes:
    return build_onnx(model, table=TABLE, size=size, metadata={"confidence": "forged"}, with_logits=with_logits)


def pictures(batch: int, height: int, width: int) -> NDArray[np.uint8]:
    coarse = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255)
    return np.ascontiguousarray(smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy())


def compared(model: Segmenter, content: bytes, size: tuple[int, int] | None) -> list[dict[str, NDArray[np.float32]]]:
    """The file's outputs at several sizes, after each was compared with torch's."""
    predictor, deployed, seen = Predictor(content, "cpu", threads=1), Deployed(model, size), []
    for height, width in ((64, 96), (75, 101)):
        for batch in (1, 3):
            image = pictures(batch, height, width)
            given = predictor.run(image)
            with torch.inference_mode():
                class_map, confidence, logits, tags = (t.numpy() for t in deployed(torch.from_numpy(image)))
            assert given["tags"].dtype == np.float32 and given["tags"].shape == (batch, 21)
            np.testing.assert_allclose(given["tags"], tags, atol=1e-5)
            np.testing.assert_allclose(given["confidence"], confidence, atol=1e-4)
            np.testing.assert_allclose(given["logits"], logits, rtol=1e-3, atol=1e-3)
            assert (given["class_map"] == class_map).mean() > 0.999
            assert len(np.unique(class_map)) > 1, "a constant class map shows nothing"
            seen.append(given)
    return seen


@pytest.fixture(scope="module", params=["bce", "squared"])
def heat_maps(request: pytest.FixtureRequest) -> tuple[Localiser, bytes]:
    model = localiser(squared=request.param == "squared")
    return model, build(model)


def test_localiser_gives_heat_and_tags(heat_maps: tuple[Localiser, bytes]) -> None:
    model, content = heat_maps
    assert Predictor(content, "cpu").metadata["confidence"] == "heat"
    for given in compared(model, content, None):
        heat = given["logits"]
        assert heat.min() >= 0 and heat.max() <= 1 + 1e-6
        np.testing.assert_array_equal(given["confidence"], heat.max(axis=1))
        np.testing.assert_array_equal(given["class_map"], heat.argmax(axis=1))
        assert (given["tags"][:, TABLE.background] < 1e-6).all() and given["tags"].max() > 0.05
        if model.squared:
            np.testing.assert_allclose(given["tags"].sum(axis=1), 1, atol=1e-5)


def test_limit_of_tags(heat_maps: tuple[Localiser, bytes]) -> None:
    model, content = heat_maps
    report = verify(content, model, list(pictures(1, 70, 70)))
    report.require()
    assert report.rows[0].tag_error is not None and report.table().columns[-1].header == "tags"
    for error in (0.002, float("nan")):
        report.rows = [replace(report.rows[0], tag_error=error)]
        assert report.failures(Limits()) and "tags" in report.failures(Limits())[0]


def test_prohibiting_file_never_shows_what_it_thinks_absent() -> None:
    model, size = prohibiting(radius=3), (40, 56)  # the guided filter lies in the graph as well
    content = build(model, size)
    assert Predictor(content, "cpu").metadata["confidence"] == "probability"
    barred = 0
    for given in compared(model, content, size):
        for tags, class_map, confidence in zip(given["tags"], given["class_map"], given["confidence"], strict=True):
            absent = set(np.flatnonzero(tags < THRESHOLD)) - {TABLE.background}
            assert not absent & set(np.unique(class_map))
            assert confidence.min() > 0 and confidence.max() <= 1 + 1e-6
            barred += len(absent)
    assert barred, "nothing was prohibited"


@pytest.fixture(scope="module")
def on_the_threshold() -> tuple[float, bytes]:
    """The score, in the first image, of the class that takes most of it; and a file that has it for a threshold."""
    with torch.inference_mode():
        class_map, _, _, tags = Deployed(prohibiting(0.0), None)(torch.from_numpy(pictures(3, 90, 110)))
    shown = torch.bincount(class_map[0].flatten().long(), minlength=21)
    shown[TABLE.background] = 0
    threshold = float(tags[0, shown.argmax()]) - 1e-6
    return threshold, build(prohibiting(threshold), with_logits=False)


def lower(threshold: float, by: float) -> Prohibiting:
    """The file's network, but with scores that are a little lower."""
    model = prohibiting(threshold)
    model.head.weights.bias.data -= by  # type: ignore[operator,union-attr]
    return model


def test_logits_only_on_request_and_predict_gives_two(on_the_threshold: tuple[float, bytes]) -> None:
    predictor = Predictor(on_the_threshold[1], "cpu")
    assert set(predictor.run(pictures(1, 40, 40))) == {"class_map", "confidence", "tags"}
    class_map, confidence = predictor.predict(pictures(1, 40, 40)[0])
    assert class_map.shape == confidence.shape == (40, 40)


def test_a_score_on_the_threshold_is_no_mismatch(on_the_threshold: tuple[float, bytes]) -> None:
    threshold, content = on_the_threshold
    model, images = lower(threshold, 2e-5), list(pictures(3, 90, 110))
    report = verify(content, model, images, [np.zeros((90, 110), np.uint8)] * 3)
    report.require()
    assert report.rows[0].num_undecided == 1 and report.rows[0].num_pixels == 2 * 90 * 110
    assert all(0 < (row.tag_error or 0) < 1e-4 for row in report.rows)
    assert "on the threshold" in str(report.table().caption)
    with torch.inference_mode():
        expected = Deployed(model, None)(torch.from_numpy(images[0][None]))[0].numpy()
    given = Predictor(content, "cpu").predict(images[0]).class_map
    assert (given != expected[0]).mean() > 0.01, "the flip must change what is compared, or this shows nothing"
    with pytest.raises(ExportMismatch, match="each image has a tag on the threshold"):
        verify(content, model, images[:1]).require()


def test_scores_that_differ_are_a_mismatch(on_the_threshold: tuple[float, bytes]) -> None:
    threshold, content = on_the_threshold
    with pytest.raises(ExportMismatch, match=r"scores of tags differ by 0\.0"):
        verify(content, lower(threshold, 0.05), list(pictures(3, 90, 110))).require()


def test_a_network_fused_with_the_frame_before_is_exported_as_it_is_evaluated() -> None:
    model = Fused(Tiny()).eval()
    torch.nn.init.normal_(model.fusions[0].weight, generator=torch.Generator().manual_seed(2))
    image = pictures(2, 37, 50)
    with torch.no_grad():
        expected = model(torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255).main.argmax(1).numpy()
        alone = model.core()(torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255).main.argmax(1).numpy()
    assert (expected != alone).mean() > 0.1
    assert (Predictor(build(model)).predict(image).class_map == expected).mean() > 0.999
