"""Context and detail: the windows cover the image, the drawn window is the sample's own, and attention decides."""

from pathlib import Path

import pytest
import torch
from settings import tiny_recipe
from torch import Tensor

from distuda.draws import sample_seed
from distuda.errors import UserError
from distuda.losses import cross_entropy
from distuda.methods.method import View
from distuda.models import build_model
from distuda.models.daformer import EncoderDecoder, MlpDecoder
from distuda.models.hrda import Hrda, _paste
from distuda.models.segmenter import cut

SEEDS = torch.tensor([sample_seed(0, "source", i) for i in range(2)])


def network(*words: str) -> Hrda:
    model = build_model(tiny_recipe("model.detail=[32,48]", *words).model, 4, 0).eval()
    assert isinstance(model, Hrda)
    return model


def attend(model: Hrda, value: float) -> None:
    """Attention of one value everywhere (in logits)."""
    torch.nn.init.zeros_(model.attention.classify.weight)
    torch.nn.init.constant_(model.attention.classify.bias, value)


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (32, 48), (40, 200), (33, 49)])
def test_windows_cover_any_image(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A detail network that answers with what it sees must give the image back."""
    model = network()
    monkeypatch.setattr(model, "_predict", lambda x: x)
    image = torch.rand(2, 3, *size)
    torch.testing.assert_close(model._all_windows(image), image)


@pytest.mark.parametrize("size", [(49, 81), (24, 30)])
def test_images_smaller_than_twice_what_the_network_needs_are_seen(size: tuple[int, int]) -> None:
    """MiT reduces maps of stride 4 by kernels of 8: half of these images would be too small for it."""
    model = network("model.name=mit_b0")
    with torch.no_grad():
        assert model(torch.rand(1, 3, *size)).main.shape == (1, 4, *size)


def test_attention_chooses_between_context_and_detail() -> None:
    model, image = network(), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        attend(model, -50)
        features = model.encode(model.normalise(image))
        torch.testing.assert_close(model(image).main, model._lift(model.heads(features)[0], (64, 96)))
        attend(model, 50)
        torch.testing.assert_close(model(image).main, model._all_windows(model.normalise(image)))


def test_the_drawn_window_is_where_it_says_and_the_samples_own() -> None:
    model, image = network(), torch.rand(2, 3, 70, 110)
    with torch.no_grad():
        attend(model, 50)
        output = model(image, SEEDS)
        alone = model(image[1:], SEEDS[1:])
    assert output.origin_B2 is not None and output.aux is not None and output.aux.shape[-2:] == (32, 48)
    assert (output.origin_B2 >= 0).all() and (output.origin_B2 <= torch.tensor([38, 62])).all()
    torch.testing.assert_close(cut(output.main, output.origin_B2, (32, 48)), output.aux)
    torch.testing.assert_close(alone.main, output.main[1:])
    context = model._lift(model.heads(model.encode(model.normalise(image)))[0], (70, 110))
    outside = _paste(torch.ones(2, 1, 32, 48), output.origin_B2, (70, 110)) == 0
    torch.testing.assert_close(output.main.where(outside, torch.tensor(0.0)), context.where(outside, torch.tensor(0.0)))


def test_origins_spread_over_the_image() -> None:
    seeds = torch.tensor([sample_seed(0, "source", i) for i in range(500)])
    origins = network()._draw_origins(seeds, (70, 110))
    assert origins.amin(0).tolist() == [0, 0] and origins.amax(0).tolist() == [38, 62]
    assert network()._draw_origins(seeds, (32, 110))[:, 0].unique().tolist() == [0]


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"model.detail=\[32, 48\].*does not fit into the crop \[20, 110\]"):
        network()._draw_origins(SEEDS, (20, 110))
    with pytest.raises(UserError, match="sees 8 pixels across, but needs 16"):
        network("model.detail=[8,48]")
    with pytest.raises(UserError, match="sees 24 pixels across, but needs 32"):
        network()(torch.rand(2, 3, 24, 64), SEEDS)


def test_labels_are_cut_to_the_window_and_the_two_losses_share_one_weight() -> None:
    from settings import tiny_method

    method = tiny_method(tiny_recipe("model.detail=[16,24]"))
    label = torch.randint(0, 4, (2, 32, 48))
    view = View(torch.rand(2, 3, 32, 48), SEEDS, label)
    output = method.student(view.image_BCHW, view.seed_B)
    terms = method.supervise(output, view)
    torch.testing.assert_close(terms["seg_src"], 0.9 * cross_entropy(output.main, label))
    parts = [label[i, top : top + 16, left : left + 24] for i, (top, left) in enumerate(output.origin_B2.tolist())]
    torch.testing.assert_close(terms["seg_src_detail"], 0.1 * cross_entropy(output.aux, torch.stack(parts)))


def test_cut_and_paste_are_each_others_inverse() -> None:
    part, origin = torch.rand(2, 3, 4, 5), torch.tensor([[1, 2], [0, 6]])
    canvas: Tensor = _paste(part, origin, (9, 11))
    assert torch.equal(cut(canvas, origin, (4, 5)), part) and canvas.ndim == 4
    assert int((canvas != 0).sum()) == int((part != 0).sum())


def test_a_network_with_two_heads_is_refused() -> None:
    with pytest.raises(UserError, match="multi_level=false"):
        network("model.name=deeplabv2_resnet18")


def test_it_exports_for_sizes_it_was_not_traced_with(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    from torch import nn

    class Logits(nn.Module):
        def __init__(self, model: Hrda) -> None:
            super().__init__()
            self.model = model

        def forward(self, image_BCHW: Tensor) -> Tensor:
            return self.model(image_BCHW).main

    class Small(nn.Module):  # tracing `lite` on both scales takes most of a minute
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = self.first(x).relu()
            return first, self.second(first)

    torch.manual_seed(0)
    small = EncoderDecoder(4, Small(), MlpDecoder([8, 8], 4, 8))
    model = Logits(Hrda(small, (32, 48))).eval()
    sizes = {2: torch.export.Dim("height", min=32, max=512), 3: torch.export.Dim("width", min=32, max=512)}
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.rand(1, 3, 64, 96),), path, dynamic_shapes=(sizes,), dynamo=True, verbose=False)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((64, 96), (75, 121), (32, 48)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            expected = model(image)
        given = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(given), expected, rtol=1e-3, atol=1e-4)
