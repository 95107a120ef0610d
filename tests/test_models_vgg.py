"""DeepLab-v2 on VGG-16 and the weights that fit it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from settings import tiny_recipe
from torch import Tensor, nn

from distuda.errors import UserError
from distuda.models import build_model, vgg
from distuda.models.vgg import DeepLabLargeFovVgg16, DeepLabV2Vgg16, initialise_vgg, load_vgg

torch.set_num_threads(1)

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # with all five pools counted
ADAPTSEGNET = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 23, 25, 27)  # without the last two


def trunk(indices: tuple[int, ...]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    before = 3
    for index, width in zip(indices, WIDTHS, strict=True):
        state[f"features.{index}.weight"] = torch.randn(width, before, 3, 3) * (2 / (9 * before)) ** 0.5
        state[f"features.{index}.bias"] = torch.randn(width) * 0.1
        before = width
    return state


def adaptsegnet(classes: int) -> dict[str, Tensor]:
    """State dict of AdaptSegNet's DeeplabVGG, written out by rule."""
    state = trunk(ADAPTSEGNET)
    for index, before in ((29, 512), (31, 1024)):
        state[f"features.{index}.weight"] = torch.randn(1024, before, 3, 3) * 0.01
        state[f"features.{index}.bias"] = torch.randn(1024)
    for i in range(4):
        state[f"classifier.conv2d_list.{i}.weight"] = torch.randn(classes, 1024, 3, 3)
        state[f"classifier.conv2d_list.{i}.bias"] = torch.randn(classes)
    return state


def image_classifier() -> dict[str, Tensor]:
    """State dict of torchvision's vgg16; fc6 and fc7 cut short, for they are left out anyhow."""
    heads = {
        f"classifier.{i}.{kind}": torch.zeros(n) for i, n in ((0, 7), (3, 7), (6, 1000)) for kind in ("weight", "bias")
    }
    return trunk(TORCHVISION) | heads


def save(folder: Path, state: Any) -> str:
    torch.save(state, folder / "w.pth")
    return str(folder / "w.pth")


@pytest.fixture(scope="module")
def model() -> DeepLabV2Vgg16:
    torch.manual_seed(0)
    return DeepLabV2Vgg16(5)


def test_layers(model: DeepLabV2Vgg16) -> None:
    convolutions = [m for m in model.features if isinstance(m, nn.Conv2d)]
    assert [c.dilation[0] for c in convolutions] == [1] * 10 + [2] * 3 + [4] * 2
    assert all(c.padding == c.dilation for c in convolutions)
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.features) == 3
    trunk_count = 14_714_688 + (512 * 9 * 1024 + 1024) + (1024 * 9 * 1024 + 1024)  # torchvision's features, fc6, fc7
    assert sum(p.numel() for p in model.parameters()) == trunk_count + 4 * (1024 * 9 * 5 + 5)
    assert model.align_corners and sum(p.numel() for p in model.head_parameters()) == 4 * (1024 * 9 * 5 + 5)


def test_shapes_normalisation_and_start(model: DeepLabV2Vgg16) -> None:
    image = torch.rand(1, 3, 67, 81)
    with torch.no_grad():
        features = model.encode(model.normalise(image))
        assert features[0].shape == (1, 1024, 8, 10)
        assert model.heads(features)[0].shape == (1, 5, 8, 10)
        output = model(image)
    assert output.main.shape == (1, 5, 67, 81) and output.aux is None
    assert float(output.main.abs().max()) < 20  # a random start must not shout
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    expected = torch.tensor([-104.00698793, -116.66876762, 255 - 122.67891434])
    torch.testing.assert_close(model.normalise(red).flatten(), expected)


def test_adaptsegnet_file_loads_whole(tmp_path: Path) -> None:
    theirs, model = adaptsegnet(5), DeepLabV2Vgg16(5)
    path = save(tmp_path, {f"module.{name}": tensor for name, tensor in theirs.items()})
    assert load_vgg(model, path) == []
    ours = model.state_dict()
    assert len(ours) == len(theirs)
    assert torch.equal(ours["features.27.weight"], theirs["features.27.weight"])
    assert torch.equal(ours["main_head.branches.3.bias"], theirs["classifier.conv2d_list.3.bias"])
    (note,) = load_vgg(DeepLabV2Vgg16(5, head_branches="reduced"), path)
    assert "18 and 24" in note


def test_own_names_load_too(tmp_path: Path, model: DeepLabV2Vgg16) -> None:
    other = DeepLabV2Vgg16(5)
    assert load_vgg(other, save(tmp_path, model.state_dict())) == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_caffe_classifier_gives_the_trunk(tmp_path: Path) -> None:
    theirs, model = image_classifier(), DeepLabV2Vgg16(5)
    fresh = model.state_dict()["features.29.weight"].clone()
    notes = initialise_vgg(model, save(tmp_path, theirs))
    assert "1000 classes" in notes[0] and "Caffe" in notes[1]
    ours = model.state_dict()
    assert torch.equal(ours["features.0.weight"], theirs["features.0.weight"])
    assert torch.equal(ours["features.23.weight"], theirs["features.24.weight"])
    assert torch.equal(ours["features.27.bias"], theirs["features.28.bias"])
    assert torch.equal(ours["features.29.weight"], fresh)


def test_torchvision_file_is_rewritten_for_caffe_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, model = image_classifier(), DeepLabV2Vgg16(5)
    path = save(tmp_path, theirs)
    monkeypatch.setattr(vgg, "TORCHVISION_SHA256", hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8])
    assert "rewrote" in load_vgg(model, path)[1]
    image = torch.rand(1, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    expected = F.conv2d((image - mean) / std, theirs["features.0.weight"], theirs["features.0.bias"])
    with torch.no_grad():
        got = model.features[0](model.normalise(image))
    torch.testing.assert_close(got[..., 1:-1, 1:-1], expected, rtol=1e-3, atol=1e-3)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    theirs, model = adaptsegnet(19), DeepLabV2Vgg16(5)
    with pytest.raises(UserError, match=r"classifier.conv2d_list.0.bias \(19,\), the model's is \(5,\)"):
        load_vgg(model, save(tmp_path, theirs))
    (note,) = initialise_vgg(model, str(tmp_path / "w.pth"))
    assert "19 classes" in note
    del theirs["features.14.bias"]
    theirs["layer5.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"missing: features.14.bias; unexpected: layer5.weight"):
        initialise_vgg(model, save(tmp_path, theirs))
    with pytest.raises(UserError, match=r"vgg16-397923af.pth"):
        initialise_vgg(model, "imagenet")


def test_by_recipe() -> None:
    for name, kind in (("deeplabv2_vgg16", DeepLabV2Vgg16), ("deeplab_largefov_vgg16", DeepLabLargeFovVgg16)):
        assert isinstance(build_model(tiny_recipe(f"model.name={name}").model, 4), kind)
    with pytest.raises(UserError, match=r"backbone='x' is for name=hf, not deeplabv2_vgg16"):
        tiny_recipe("model.name=deeplabv2_vgg16", "model.backbone=x")


# DeepLab-LargeFOV ----------------------------------------------------------------------------------------------------

CAFFE = [f"conv{block}_{i}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, count + 1)]


def deeplab_start() -> dict[str, Tensor]:
    """State dict of DeepLab's vgg16_20M, the ImageNet network with thinned fc6 and fc7, under Caffe's names."""
    state, before = {}, 3
    for name, width, side in zip([*CAFFE, "fc6", "fc7"], [*WIDTHS, 1024, 1024], [3] * 14 + [1], strict=True):
        state[f"{name}.weight"] = torch.randn(width, before, side, side) * 0.01
        state[f"{name}.bias"] = torch.randn(width)
        before = width
    return state


@pytest.fixture(scope="module")
def large_fov() -> DeepLabLargeFovVgg16:
    torch.manual_seed(0)
    return DeepLabLargeFovVgg16(5)


def test_layers_of_large_fov(large_fov: DeepLabLargeFovVgg16) -> None:
    convolutions = [m for m in large_fov.features if isinstance(m, nn.Conv2d)]
    assert [(c.kernel_size[0], c.dilation[0]) for c in convolutions[-5:]] == [(3, 2)] * 3 + [(3, 12), (1, 1)]
    assert [m.stride for m in large_fov.features if isinstance(m, nn.MaxPool2d)] == [2, 2, 2, 1, 1]
    count = 14_714_688 + (512 * 9 * 1024 + 1024) + (1024 * 1024 + 1024) + (1024 * 5 + 5)
    assert sum(p.numel() for p in large_fov.parameters()) == count
    assert sum(p.numel() for p in large_fov.head_parameters()) == 1024 * 5 + 5


def test_shapes_of_large_fov(large_fov: DeepLabLargeFovVgg16) -> None:
    for height, width, h, w in ((65, 81, 9, 11), (33, 50, 5, 7)):  # 321 pixels give 41, as in the paper
        with torch.no_grad():
            output = large_fov(torch.rand(1, 3, height, width))
        assert output.main.shape == (1, 5, height, width) and output.aux is None
        assert [feature.shape for feature in output.features] == [(1, 1024, h, w)]
        assert float(output.main.abs().max()) < 20


def test_large_fov_drops_channels_by_seed_and_only_while_it_learns(large_fov: DeepLabLargeFovVgg16) -> None:
    image, seed_B = torch.rand(2, 3, 33, 33), torch.tensor([5, 6])
    with torch.no_grad():
        plain = large_fov.train()(image).main
        learning, again, other = (large_fov(image, seed).features[0] for seed in (seed_B, seed_B, seed_B + 1))
        large_fov.eval()
        assert torch.equal(plain, large_fov(image).main) and torch.equal(plain, large_fov(image, seed_B).main)
    assert torch.equal(learning, again) and not torch.equal(learning, other)
    whole = (learning == 0).all(dim=(2, 3)).float().mean()
    assert 0.4 < float(whole) < 0.95  # half of the channels, and those that are never active


def test_image_classifier_gives_large_fov_its_trunk_under_its_own_names(tmp_path: Path) -> None:
    theirs, model = image_classifier(), DeepLabLargeFovVgg16(5)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    notes = initialise_vgg(model, save(tmp_path, theirs))
    assert "1000 classes" in notes[0] and "Caffe" in notes[1]
    ours = model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name.startswith("features."))
    left = [name for name in ours if torch.equal(ours[name], fresh[name])]
    assert left == [n for n in ours if n not in theirs] and len(left) == 6  # fc6, fc7 and the classifier


def test_deeplabs_own_start_fills_all_but_the_classifier(tmp_path: Path) -> None:
    theirs, model = deeplab_start(), DeepLabLargeFovVgg16(5)
    head = model.main_head.weight.clone()
    path = save(tmp_path, theirs)
    (note,) = load_vgg(model, path)
    assert "Caffe" in note
    convolutions = [m for m in model.features if isinstance(m, nn.Conv2d)]
    for name, convolution in zip([*CAFFE, "fc6", "fc7"], convolutions, strict=True):
        assert torch.equal(convolution.weight, theirs[f"{name}.weight"]), name
    assert torch.equal(model.main_head.weight, head)
    with pytest.raises(UserError, match=r"DeepLab-v2 on VGG-16.*fc7.weight \(1024, 1024, 1, 1\), the model's"):
        load_vgg(DeepLabV2Vgg16(5), path)
    other = DeepLabLargeFovVgg16(5)
    assert load_vgg(other, save(tmp_path, model.state_dict())) == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
