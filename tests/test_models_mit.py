"""SegFormer's encoder: its sizes, its published weights, its two decoders, and a step of training."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from settings import TABLE, tiny_batch, tiny_method, tiny_recipe
from torch import Tensor, nn

from distuda.engine.step import Step
from distuda.errors import UserError
from distuda.models import build_model
from distuda.models.daformer import DaformerDecoder, EncoderDecoder, MlpDecoder
from distuda.models.dropout import SampleDropout
from distuda.models.mit import MixTransformer, initialise_mit, load_mit

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def b0() -> MixTransformer:
    torch.manual_seed(0)
    return MixTransformer("b0").eval()


def authors_file(size: Any) -> dict[str, Tensor]:
    """State dict as NVlabs/SegFormer saves it, written out by rule."""
    widths = (32, 64, 160, 256) if size == "b0" else (64, 128, 320, 512)
    depths = {"b0": (2, 2, 2, 2), "b1": (2, 2, 2, 2), "b2": (3, 4, 6, 3)}[size]
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(shape) * 0.05, torch.randn(shape[0]) * 0.05

    for i, (dim, depth, reduction) in enumerate(zip(widths, depths, (8, 4, 2, 1), strict=True), start=1):
        before, kernel = (3, 7) if i == 1 else (widths[i - 2], 3)
        add(f"patch_embed{i}.proj", dim, before, kernel, kernel)
        add(f"patch_embed{i}.norm", dim)
        add(f"norm{i}", dim)
        for b in range(depth):
            block = f"block{i}.{b}"
            add(f"{block}.norm1", dim)
            add(f"{block}.norm2", dim)
            add(f"{block}.attn.q", dim, dim)
            add(f"{block}.attn.kv", 2 * dim, dim)
            add(f"{block}.attn.proj", dim, dim)
            if reduction > 1:
                add(f"{block}.attn.sr", dim, dim, reduction, reduction)
                add(f"{block}.attn.norm", dim)
            add(f"{block}.mlp.fc1", 4 * dim, dim)
            add(f"{block}.mlp.dwconv.dwconv", 4 * dim, 1, 3, 3)
            add(f"{block}.mlp.fc2", dim, 4 * dim)
    add("head", 1000, widths[-1])
    return state


def save(folder: Path, state: Any) -> str:
    torch.save(state, folder / "mit.pth")
    return str(folder / "mit.pth")


# SegFormer, table 1: encoders of 3.4, 13.1, 24.2, 44.0, 60.8 and 81.4 million parameters
@pytest.mark.parametrize(
    ("size", "millions"), [("b0", 3.3), ("b1", 13.2), ("b2", 24.2), ("b3", 44.1), ("b4", 60.8), ("b5", 81.4)]
)
def test_parameter_counts(size: Any, millions: float) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MixTransformer(size).parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    ("pixels", "cells"), [(32, (8, 4, 2, 1)), (33, (9, 5, 3, 2)), (47, (12, 6, 3, 2)), (64, (16, 8, 4, 2))]
)
def test_stage_maps_at_every_size(b0: MixTransformer, pixels: int, cells: tuple[int, ...]) -> None:
    with torch.no_grad():
        maps = b0(torch.randn(2, 3, pixels, 65))
    assert [x.shape for x in maps] == [
        (2, dim, height, width)
        for dim, height, width in zip((32, 64, 160, 256), cells, (17, 9, 5, 3), strict=True)
    ]  # fmt: skip


def test_drop_path_rises_linearly_twice_a_block() -> None:
    with torch.device("meta"):
        network = MixTransformer("b2", drop_path=0.3)
    drops = [module for module in network.modules() if isinstance(module, SampleDropout)]
    rates = [module.probability for module in drops]
    assert {module.part for module in drops} == {"sample"} and rates[::2] == rates[1::2]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.3)
    assert all(after - before == pytest.approx(0.3 / 15) for before, after in pairwise(rates[::2]))


@pytest.mark.parametrize("shape", [(64, 96), (75, 101)])
def test_equal_to_transformers_through_its_file(tmp_path: Path, shape: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 2, 2])  # its defaults, B0
    theirs = transformers.SegformerForImageClassification(config).eval()
    for parameter in theirs.parameters():  # norms and biases too must differ from their plain start
        parameter.data += 0.05 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    ours = MixTransformer("b0").eval()
    load_mit(ours, str(tmp_path / "model.safetensors"))
    image = torch.randn(2, 3, *shape)
    with torch.no_grad():
        expected = theirs.segformer(image, output_hidden_states=True).hidden_states
        for got, wanted in zip(ours(image), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_authors_file_loads_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, model = authors_file("b0"), MixTransformer("b0")
    load_mit(model, save(tmp_path, {"state_dict": theirs}))
    ours = model.state_dict()
    assert len(ours) == len(theirs) - 2
    assert torch.equal(ours["stages.2.blocks.1.attention.kv.weight"], theirs["block3.1.attn.kv.weight"])
    assert torch.equal(ours["stages.0.blocks.0.attention.reduce_norm.bias"], theirs["block1.0.attn.norm.bias"])
    assert torch.equal(ours["stages.3.norm.weight"], theirs["norm4.weight"])
    assert "NVIDIA Source Code License" in caplog.text and "1000 classes" in caplog.text


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    theirs, model = authors_file("b0"), MixTransformer("b0")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del theirs["block2.0.attn.q.weight"]
    theirs["extra.weight"], theirs["norm1.bias"] = torch.zeros(1), torch.zeros(3)
    with pytest.raises(UserError) as caught:
        load_mit(model, save(tmp_path, theirs))
    for part in (
        "missing: block2.0.attn.q.weight",
        "unexpected: extra.weight",
        "of another shape: norm1.bias (3,), the model's is (32,)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match="The file is a MiT-B1"):
        load_mit(model, save(tmp_path, authors_file("b1")))


def test_words_for_weights(b0: MixTransformer) -> None:
    with pytest.raises(UserError, match=r"github.com/NVlabs/SegFormer.*non-commercial"):
        initialise_mit(b0, "imagenet")
    with pytest.raises(UserError, match="did you mean 'none'"):
        initialise_mit(b0, "nonee")
    initialise_mit(b0, "none")


@pytest.mark.parametrize(("decoder", "kind"), [("daformer", DaformerDecoder), ("segformer", MlpDecoder)])
def test_network_by_recipe(decoder: str, kind: type[nn.Module]) -> None:
    model = build_model(tiny_recipe("model.name=mit_b0", f"model.decoder={decoder}").model, 5).eval()
    assert isinstance(model, EncoderDecoder) and isinstance(model.decoder, kind)
    with torch.no_grad():
        features = model.encode(model.normalise(torch.rand(1, 3, 49, 66)))
        assert model.heads(features)[0].shape == (1, 5, 13, 17)
        assert model.decode(features, (49, 66)).main.shape == (1, 5, 49, 66)
    heads, encoder = model.head_parameters(), model.encoder_parameters()
    assert len(heads) + len(encoder) == len(list(model.parameters())) and len(encoder) == len(authors_file("b0")) - 2


def test_daformer_decoder_layout() -> None:
    decoder = DaformerDecoder((8, 16, 24, 32), 3, width=10)
    dilations = [branch[0].dilation[0] for branch in decoder.fuse.branches]  # type: ignore[union-attr,index]
    assert dilations == [1, 6, 12, 18]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in decoder.modules()) == 1 + 3 * 2 + 1
    assert sum(p.numel() for p in decoder.parameters()) == (
        (8 + 16 + 24 + 32 + 4) * 10  # projections with bias
        + 4 * (40 * 10 + 20)  # pointwise convolutions and their norms
        + 3 * (40 * 9 + 80)  # depthwise ones
        + (40 * 10 * 9 + 20)  # bottleneck
        + (10 * 3 + 3)  # classifier
    )


def test_same_start_from_the_same_seed() -> None:
    config = tiny_recipe("model.name=mit_b0").model
    first, second, other = (build_model(config, 4, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.stages.0.embed.weight"], other["encoder.stages.0.embed.weight"])


def test_step_of_self_training_is_finite_and_reaches_every_parameter() -> None:
    recipe = tiny_recipe("method.name=self_training", "method.confidence=0.3", "model.name=mit_b0")
    method = tiny_method(recipe)
    before = {name: p.detach().clone() for name, p in method.student.named_parameters()}
    scalars = Step(method, recipe, torch.device("cpu"))(tiny_batch(2, 1), tiny_batch(2, 2, "target"))
    assert all(torch.isfinite(value) for value in scalars.values()), scalars
    after = dict(method.student.named_parameters())
    assert all(torch.isfinite(p).all() for p in after.values())
    assert [name for name, p in after.items() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_batch_norm_statistics(batch_norm: str) -> None:
    model = build_model(tiny_recipe("model.name=mit_b0", f"model.batch_norm={batch_norm}").model, TABLE.num_classes)
    norms = [m for m in model.train().modules() if isinstance(m, nn.BatchNorm2d)]
    model(torch.rand(2, 3, 32, 32))
    moved = {bool((norm.running_mean != 0).any()) for norm in norms}  # type: ignore[union-attr]
    assert len(norms) == 8 and moved == {batch_norm == "train"}


def test_bfloat16_agrees_with_float32(b0: MixTransformer) -> None:
    image = torch.randn(1, 3, 64, 64)
    exact = b0(image)[3]
    with torch.autocast("cpu", torch.bfloat16):
        rough = b0(image)[3]
    rough.float().sum().backward()
    assert float((rough.float() - exact).detach().abs().max()) < 0.2
