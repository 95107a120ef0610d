"""Backbones of the transformers library as encoders; everything is built here, nothing is downloaded."""

import builtins
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import assert_parity
from settings import tiny_batch, tiny_method, tiny_recipe
from torch import Tensor

from distuda.data.class_tables import CLASS_TABLES
from distuda.engine.step import Step
from distuda.errors import UserError
from distuda.models import build_model
from distuda.models.daformer import EncoderDecoder
from distuda.models.hf import licence_note, load_backbone
from export.onnx import build_onnx

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

CONFIGS: dict[str, Any] = {
    "swin": lambda: transformers.SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=3),
    "convnext": lambda: transformers.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1]),
    "resnet": lambda: transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "dinov2": lambda: transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=5, num_attention_heads=2, patch_size=14, image_size=70
    ),
}
CHANNELS = {"swin": (8, 16, 32, 64), "convnext": (8, 12, 16, 24), "resnet": (8, 12, 16, 24), "dinov2": (24,) * 4}
MODELS = {"swin": "SwinModel", "convnext": "ConvNextModel", "resnet": "ResNetModel", "dinov2": "Dinov2Model"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder of each tiny model, as `save_pretrained` and the hub lay it out."""
    root: Path = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        getattr(transformers, MODELS[name])(config()).save_pretrained(root / name)
    return {name: str(root / name) for name in CONFIGS}


def built(folder: str, weights: str = "imagenet", *words: str) -> EncoderDecoder:
    recipe = tiny_recipe("model.name=hf", f"model.backbone={folder}", f"model.weights={weights}", *words)
    model = build_model(recipe.model, 5).eval()
    assert isinstance(model, EncoderDecoder)
    return model


@pytest.mark.parametrize("decoder", ["daformer", "segformer"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_size_works(folders: dict[str, str], name: str, decoder: str) -> None:
    model = built(folders[name], "imagenet", f"model.decoder={decoder}")
    assert model.encoder.channels == CHANNELS[name] and model.multiple == (14 if name == "dinov2" else 32)
    with torch.no_grad():
        for height, width in ((64, 96), (75, 101), (33, 47)):
            assert model(torch.rand(2, 3, height, width)).main.shape == (2, 5, height, width)
        features = model.encode(model.normalise(torch.rand(1, 3, 112, 224)))
    expected = [(32, 64), (16, 32), (8, 16), (4, 8)] if name == "dinov2" else [(28, 56), (14, 28), (7, 14), (3, 7)]
    if name != "dinov2":  # 112 is padded to 128
        expected = [(32, 56), (16, 28), (8, 14), (4, 7)]
    assert [tuple(x.shape[-2:]) for x in features] == expected


@pytest.mark.parametrize("name", ["convnext", "dinov2"])  # Swin's export takes ten times as long
def test_the_exported_graph_takes_any_size(folders: dict[str, str], name: str) -> None:
    model = build_model(tiny_recipe("model.name=hf", f"model.backbone={folders[name]}").model, 11).eval()
    assert isinstance(model, EncoderDecoder)
    torch.nn.init.normal_(model.decoder.classify.weight, std=20.0)
    assert_parity(
        model, build_onnx(model, table=CLASS_TABLES["camvid11"], size=None, metadata={}, with_logits=True), None
    )


def test_padding_is_cut_back_in_place(folders: dict[str, str]) -> None:
    """Cutting the padded image beforehand or letting the network pad gives the same pixels."""
    model = built(folders["convnext"])
    image = torch.rand(1, 3, 64, 64)
    image[..., 50:, :] = image[..., :, 40:] = model.normalise.mean
    with torch.no_grad():
        torch.testing.assert_close(model(image[..., :50, :40]).main, model(image).main[..., :50, :40])


def test_weights_are_those_of_the_folder(folders: dict[str, str]) -> None:
    published = transformers.Dinov2Model.from_pretrained(folders["dinov2"]).eval()
    model, bare = built(folders["dinov2"]), built(folders["dinov2"], "none")
    image = torch.randn(1, 3, 56, 70)
    with torch.no_grad():
        tokens = published(image).last_hidden_state[:, 1:]
        expected = tokens.transpose(1, 2).reshape(1, 24, 4, 5)
        torch.testing.assert_close(model.encoder(image)[2], last_but_one(published, image), rtol=1e-4, atol=1e-4)
        deepest = torch.nn.functional.interpolate(expected, scale_factor=0.5, mode="bilinear")
        torch.testing.assert_close(model.encoder(image)[3], deepest, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(bare.encoder(image)[3], deepest, atol=1e-2)
    bare.load_state_dict(model.state_dict())  # a run opened again is built without weights


PREPROCESSORS = {
    '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.1, 0.3]}': ([0.5, 0.4, 0.3], [0.2, 0.1, 0.3]),
    '{"do_normalize": false, "image_mean": [0.5, 0.4, 0.3]}': ([0.0] * 3, [1.0] * 3),
    '{"size": 224}': ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


@pytest.mark.parametrize("text", PREPROCESSORS)
@pytest.mark.parametrize("weights", ["none", "imagenet"])
def test_normalised_as_the_backbone_was_trained(
    folders: dict[str, str], tmp_path: Path, text: str, weights: str
) -> None:
    folder = shutil.copytree(folders["convnext"], tmp_path / "model")
    image = torch.rand(1, 3, 64, 64)
    usual = built(str(folder), weights)
    (folder / "preprocessor_config.json").write_text(text)
    model = built(str(folder), weights)
    model.load_state_dict(usual.state_dict())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in PREPROCESSORS[text])
    normalised = (image - mean) / std
    torch.testing.assert_close(model.normalise(image), normalised)
    as_usual = usual.normalise.mean + usual.normalise.std * normalised  # the same for the usual network
    torch.testing.assert_close(model(image).main, usual(as_usual).main, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"image_mean": 0.5}', '{"image_std": [1, 1]}', '{"image_std": [1, 0, 1]}']
)
def test_unusable_preprocessors_are_refused(folders: dict[str, str], tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(folders["convnext"], tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=r"preprocessor_config\.json of model\.backbone=.* cannot be used"):
        built(str(folder))


def last_but_one(published: Any, image: Tensor) -> Tensor:
    hidden = published.layernorm(published(image, output_hidden_states=True).hidden_states[-2])
    return hidden[:, 1:].transpose(1, 2).reshape(1, 24, 4, 5)


def test_fewer_stages_and_those_named_in_the_config(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
    )  # fmt: skip
    config.save_pretrained(tmp_path / "two")
    assert built(str(tmp_path / "two"), "none").encoder.channels == (8, 12)
    config = CONFIGS["convnext"]()
    config.out_features = ["stage1", "stage3"]
    config.save_pretrained(tmp_path / "chosen")
    assert built(str(tmp_path / "chosen"), "none").encoder.channels == (8, 16)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"README.md": "---\ntags:\n- vision\nlicense: apache-2.0\n---\n# Card"}, "apache-2.0 (its README.md)"),
        ({"README.md": "---\nlicense: other\nlicense_name: nvidia\n---\n"}, "nvidia (its README.md)"),
        (
            {"README.md": "# No front matter\nlicense: x", "LICENSE": "\nMIT License\n\nText"},
            "MIT License (its LICENSE",
        ),
        ({"README.md": "# Card"}, "unknown: check the model's page"),
        ({}, "unknown: check the model's page"),
    ],
)
def test_licence(tmp_path: Path, files: dict[str, str], says: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert says in licence_note(str(tmp_path))


def test_licence_is_logged_with_weights_only(folders: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    load_backbone(folders["resnet"], "none")
    assert "licence" not in caplog.text
    load_backbone(folders["resnet"], "imagenet")
    assert f"licence of the weights of {folders['resnet']} is unknown" in caplog.text


def test_what_the_user_can_mend(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs model.backbone"):
        build_model(tiny_recipe("model.name=hf").model, 5)
    with pytest.raises(UserError, match="did you mean 'imagenet'"):
        load_backbone(folders["swin"], "imagenett")
    with pytest.raises(UserError, match=r"nothing.* is no folder. Give one that holds config.json"):
        load_backbone(str(tmp_path / "nothing"), "imagenet")
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert, which is no backbone"):
        load_backbone(str(tmp_path / "bert"), "none")


def test_weights_that_do_not_fill_the_backbone(folders: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(Path(folders["resnet"]) / "model.safetensors")
    dropped = next(name for name in state if "stages.2" in name)
    save_file({k: v for k, v in state.items() if k != dropped}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((Path(folders["resnet"]) / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"Tensors missing: .*stages\.2"):
        load_backbone(str(tmp_path), "imagenet")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install 'distuda\[hf\]'"):
        load_backbone("facebook/dinov2-base", "none")


@pytest.mark.parametrize("name", ["resnet", "dinov2"])
def test_a_step_of_training_moves_every_learning_parameter(folders: dict[str, str], name: str) -> None:
    words = ("model.name=hf", f"model.backbone={folders[name]}", "augment.crop=[33,47]")
    recipe = tiny_recipe(*words)
    method = tiny_method(recipe)
    before = {key: p.detach().clone() for key, p in method.student.named_parameters() if p.requires_grad}
    scalars = Step(method, recipe, torch.device("cpu"))(tiny_batch(2, 1), tiny_batch(2, 2, "target"))
    assert all(torch.isfinite(value) for value in scalars.values())
    after = dict(method.student.named_parameters())
    assert [key for key, old in before.items() if torch.equal(after[key], old)] == []
    still = {key.rsplit(".", 1)[-1] for key, p in after.items() if not p.requires_grad}
    assert still == ({"mask_token"} if name == "dinov2" else set())


def test_batch_norm_freezes_inside_the_backbone(folders: dict[str, str]) -> None:
    model = built(folders["resnet"], "imagenet", "model.batch_norm=frozen").train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]  # type: ignore[union-attr]
    model(torch.rand(2, 3, 64, 64))
    assert len(norms) > 8
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))  # type: ignore[arg-type]
