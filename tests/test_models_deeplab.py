"""DeepLab-v2, its discriminator and the adapter between published weights and ours."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from distuda.errors import UserError
from distuda.models.deeplab import DeepLabV2
from distuda.models.discriminator import Discriminator
from distuda.models.weights import initialise, load_published, to_published

torch.set_num_threads(1)

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def published(depth: int, heads: dict[str, int], *, prefix: str = "", counters: bool = False) -> dict[str, Tensor]:
    """State dict of the public code bases, written out by rule; ``heads``: classes by head name, e.g. layer5."""
    state: dict[str, Tensor] = {}

    def conv(name: str, out: int, inp: int, kernel: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, inp, kernel, kernel) / (inp * kernel * kernel) ** 0.5

    def bn(name: str, channels: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(channels) + 0.5, torch.randn(channels)
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = torch.randn(channels), torch.rand(channels) + 0.5
        if counters:
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    expansion = 1 if depth == 18 else 4
    conv("conv1", 64, 3, 7)
    bn("bn1", 64)
    inp = 64
    for level, (width, blocks) in enumerate(zip((64, 128, 256, 512), BLOCKS[depth], strict=True), start=1):
        for i in range(blocks):
            block, out = f"layer{level}.{i}", width * expansion
            shapes = [(width, inp, 3), (width, width, 3)]
            if depth != 18:
                shapes = [(width, inp, 1), (width, width, 3), (out, width, 1)]
            for j, shape in enumerate(shapes, start=1):
                conv(f"{block}.conv{j}", *shape)
                bn(f"{block}.bn{j}", shape[0])
            if i == 0 and not (depth == 18 and level == 1):
                conv(f"{block}.downsample.0", out, inp, 1)
                bn(f"{block}.downsample.1", out)
            inp = out
    for name, classes in heads.items():
        channels = (256 if name == "layer5" and "layer6" in heads else 512) * expansion
        for i in range(4):
            conv(f"{name}.conv2d_list.{i}", classes, channels, 3)
            state[f"{name}.conv2d_list.{i}.bias"] = torch.randn(classes)
    return {prefix + key: value for key, value in state.items()}


def save(folder: Path, state: Any, name: str = "w.pth", **how: Any) -> str:
    torch.save(state, folder / name, **how)
    return str(folder / name)


@pytest.fixture(scope="module")
def small() -> DeepLabV2:
    torch.manual_seed(0)
    return DeepLabV2(5, 18).eval()


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# torchvision's counts without fc, plus 4 branches of (2048 or 1024, for ResNet-18 512 or 256) * 9 * C + C
@pytest.mark.parametrize(
    ("depth", "multi_level", "count"),
    [
        (101, True, 42_500_160 + 4 * (2048 * 9 * 19 + 19) + 4 * (1024 * 9 * 19 + 19)),
        (50, False, 23_508_032 + 4 * (2048 * 9 * 19 + 19)),
        (18, True, 11_176_512 + 4 * (512 * 9 * 19 + 19) + 4 * (256 * 9 * 19 + 19)),
    ],
)
def test_parameter_counts(depth: Any, multi_level: bool, count: int) -> None:
    with torch.device("meta"):
        assert num_parameters(DeepLabV2(19, depth, multi_level=multi_level)) == count


def test_resnet101_shapes_and_gradients() -> None:
    model = DeepLabV2(19).train()
    image = torch.rand(1, 3, 65, 65)
    layer3, layer4 = features = model.encode(model.normalise(image))
    assert layer3.shape == (1, 1024, 9, 9) and layer4.shape == (1, 2048, 9, 9)
    assert model.heads(features)[0].shape == (1, 19, 9, 9)
    main, aux, *_ = model.decode(features, (65, 65))
    assert aux is not None and main.shape == aux.shape == (1, 19, 65, 65)
    (main.mean() + aux.mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without and all(".bn" in f".{name}" or "downsample.1" in name for name in without)


@pytest.mark.parametrize(("pixels", "cells"), [(321, 41), (320, 41), (64, 9), (65, 9), (66, 9), (75, 10)])
def test_output_stride_8_with_ceil_mode(small: DeepLabV2, pixels: int, cells: int) -> None:
    with torch.no_grad():
        layer3, layer4 = small.encode(torch.zeros(1, 3, pixels, 33))
    assert layer3.shape == (1, 256, cells, 5) and layer4.shape == (1, 512, cells, 5)


def test_caffe_stride_and_dilations() -> None:
    with torch.device("meta"):
        model = DeepLabV2(19, 50)
    first: Any = model.layer2[0]
    assert first.conv1.stride == (2, 2) and first.conv2.stride == (1, 1) and first.downsample[0].stride == (2, 2)
    for layer, dilation in ((model.layer1, 1), (model.layer2, 1), (model.layer3, 2), (model.layer4, 4)):
        assert all(block.conv2.dilation == block.conv2.padding == (dilation, dilation) for block in layer)
        assert all((block.downsample is not None) == (i == 0) for i, block in enumerate(layer))


def test_caffe_normalisation(small: DeepLabV2) -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    expected = torch.tensor([-104.00698793, -116.66876762, 255 - 122.67891434])
    torch.testing.assert_close(small.normalise(red).flatten(), expected)


def test_batch_norm_affine_frozen_but_statistics_run() -> None:
    model = DeepLabV2(3, 18).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    model(torch.rand(1, 3, 33, 33))
    assert all(not norm.weight.requires_grad and not norm.bias.requires_grad for norm in norms)
    assert all(not torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))


def test_align_corners_and_single_level() -> None:
    model = DeepLabV2(3, 18, multi_level=False).eval()
    with torch.no_grad():
        features = model.encode(model.normalise(torch.rand(1, 3, 65, 65)))
        logits, aux = model.heads(features)
        out = model.decode(features, (65, 65))
    assert aux is None and out.aux is None
    torch.testing.assert_close(out.main[..., ::64, ::64], logits[..., ::8, ::8])  # corner pixels meet corner cells


def test_parameter_groups_are_a_partition(small: DeepLabV2) -> None:
    heads, encoder = small.head_parameters(), small.encoder_parameters()
    assert len(heads) == 2 * 4 * 2 and not {id(p) for p in heads} & {id(p) for p in encoder}
    assert len(heads) + len(encoder) == sum(p.requires_grad for p in small.parameters())


def test_head_sums_its_branches(small: DeepLabV2) -> None:
    x = torch.randn(1, 512, 30, 30)
    branches: Any = small.main_head.branches
    by_hand = sum(
        F.conv2d(x, branch.weight, branch.bias, padding=rate, dilation=rate)
        for branch, rate in zip(branches, (6, 12, 18, 24), strict=True)
    )
    torch.testing.assert_close(small.main_head(x), by_hand)
    assert abs(float(branches[0].weight.detach().std()) - 0.01) < 1e-3


@pytest.mark.parametrize(
    ("multi_level", "heads", "prefix", "counters"),
    [
        (True, {"layer5": 5, "layer6": 5}, "", False),  # ADVENT, AdaptSegNet multi-level
        (True, {"layer5": 5, "layer6": 5}, "module.", True),
        (False, {"layer6": 5}, "", True),  # ADVENT single-level
        (False, {"layer5": 5}, "", False),  # AdaptSegNet single-level
    ],
)
@pytest.mark.parametrize("depth", [18, 50])
def test_published_dicts_load_whole(
    tmp_path: Path, depth: Any, multi_level: bool, heads: dict[str, int], prefix: str, counters: bool
) -> None:
    theirs = published(depth, heads, counters=counters)
    path = save(tmp_path, {prefix + key: value for key, value in theirs.items()})
    model = DeepLabV2(5, depth, multi_level=multi_level)
    assert load_published(model, path) == []
    ours = model.state_dict()
    main = "layer6" if "layer6" in heads else "layer5"
    assert torch.equal(ours["main_head.branches.3.bias"], theirs[f"{main}.conv2d_list.3.bias"])
    assert torch.equal(ours["layer4.1.bn2.running_var"], theirs["layer4.1.bn2.running_var"])
    assert torch.equal(ours["conv1.weight"], theirs["conv1.weight"])
    if multi_level:
        assert torch.equal(ours["aux_head.branches.0.weight"], theirs["layer5.conv2d_list.0.weight"])


def test_resnet101_takes_exactly_the_published_names() -> None:
    with torch.device("meta"):
        ours = {name: tensor.shape for name, tensor in DeepLabV2(19).state_dict().items()}
        theirs = published(101, {"layer5": 19, "layer6": 19}, counters=True)
    renamed = {
        name.replace("layer5.conv2d_list", "aux_head.branches").replace("layer6.conv2d_list", "main_head.branches"): t
        for name, t in theirs.items()
    }
    assert ours == {name: tensor.shape for name, tensor in renamed.items()}


@pytest.mark.parametrize("branches", ["all", "reduced"])
@pytest.mark.parametrize("multi_level", [True, False])
def test_round_trip(tmp_path: Path, branches: Any, multi_level: bool) -> None:
    first = DeepLabV2(4, 18, multi_level=multi_level, head_branches=branches).eval()
    second = DeepLabV2(4, 18, multi_level=multi_level, head_branches=branches).eval()
    full = DeepLabV2(4, 18, multi_level=multi_level).eval()
    path = str(tmp_path / "w.safetensors")
    save_file(to_published(first), path)
    load_published(second, path)
    load_published(full, path)  # the branches a reduced head lacks are zeros there
    image = torch.rand(1, 3, 33, 33)
    with torch.no_grad():
        assert torch.equal(first(image).main, second(image).main)
        torch.testing.assert_close(first(image).main, full(image).main)


def test_our_own_names_load_too(tmp_path: Path, small: DeepLabV2) -> None:
    path = save(tmp_path, {"model": small.state_dict()}, "own.pt")
    model = DeepLabV2(5, 18)
    assert load_published(model, path) == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small.parameters(), strict=True))


def test_reduced_head_leaves_unused_branches_out(tmp_path: Path) -> None:
    path = save(tmp_path, published(18, {"layer5": 5, "layer6": 5}))
    (note,) = load_published(DeepLabV2(5, 18, head_branches="reduced"), path)
    assert "18 and 24" in note and "8 tensors" in note


def test_imagenet_file_in_deeplab_layout(tmp_path: Path) -> None:
    """Old serialisation, ``Scale.`` prefix, 21-class layer5 left out and said so."""
    theirs = published(18, {"layer5": 21}, prefix="Scale.")
    path = save(tmp_path, theirs, _use_new_zipfile_serialization=False)
    model = DeepLabV2(5, 18)
    head = model.main_head.branches[0].weight.clone()
    notes = initialise(model, path)
    assert any("21 classes" in note for note in notes)
    assert torch.equal(model.main_head.branches[0].weight, head)
    assert torch.equal(model.conv1.weight, theirs["Scale.conv1.weight"])
    assert torch.equal(model.layer1[0].conv1.weight, theirs["Scale.layer1.0.conv1.weight"])


def test_torchvision_trunk_is_rewritten_for_caffe_input(tmp_path: Path) -> None:
    theirs = published(18, {}, counters=True) | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    model = DeepLabV2(5, 18).eval()
    notes = load_published(model, save(tmp_path, theirs))
    assert any("1000 classes" in note for note in notes) and any("rewrote" in note for note in notes)
    image = torch.rand(1, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    bn = [theirs[f"bn1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    expected = F.batch_norm(F.conv2d((image - mean) / std, theirs["conv1.weight"], stride=2, padding=3), *bn)
    with torch.no_grad():
        got = model.bn1(model.conv1(model.normalise(image)))
    torch.testing.assert_close(got[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-4)


def test_caffe_trunk_stays_as_it_is(tmp_path: Path) -> None:
    theirs = published(18, {})
    theirs["bn1.running_var"] *= 57.0**2
    model = DeepLabV2(5, 18)
    load_published(model, save(tmp_path, theirs))
    assert torch.equal(model.conv1.weight, theirs["conv1.weight"])


def test_missing_unexpected_and_reshaped_tensors_are_all_named(tmp_path: Path) -> None:
    theirs = published(18, {"layer5": 5, "layer6": 5})
    del theirs["layer2.0.conv1.weight"], theirs["layer6.conv2d_list.1.bias"]
    theirs["layer9.weight"] = torch.zeros(1)
    theirs["bn1.bias"] = torch.zeros(3)
    model = DeepLabV2(5, 18)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_published(model, save(tmp_path, theirs))
    for name in ("layer2.0.conv1.weight", "layer6.conv2d_list.1.bias", "layer9.weight", "bn1.bias (3,)"):
        assert name in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("file", "model", "says"),
    [
        ((18, {"layer5": 19, "layer6": 19}), {"num_classes": 16, "depth": 18}, "19 classes, the model 16"),
        (
            (18, {"layer5": 5, "layer6": 5}),
            {"num_classes": 5, "depth": 18, "multi_level": False},
            "multi_level to true",
        ),
        ((18, {"layer5": 5}), {"num_classes": 5, "depth": 18}, "multi_level to false"),
        ((50, {"layer5": 5, "layer6": 5}), {"num_classes": 5, "depth": 18}, "depth to 50"),
        ((18, {}), {"num_classes": 5, "depth": 50}, "depth to 18"),
    ],
)
def test_advice_for_files_that_do_not_fit(tmp_path: Path, file: Any, model: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_published(DeepLabV2(**model), save(tmp_path, published(*file)))


def test_initialise_takes_the_trunk_of_another_class_table(tmp_path: Path) -> None:
    theirs = published(18, {"layer5": 19, "layer6": 19})
    model = DeepLabV2(5, 18)
    notes = initialise(model, save(tmp_path, theirs))
    assert sum("19 classes" in note for note in notes) == 2
    assert torch.equal(model.conv1.weight, theirs["conv1.weight"])


@pytest.mark.parametrize(("multi_level", "heads"), [(True, {"layer5": 5}), (False, {"layer5": 5, "layer6": 5})])
def test_initialise_takes_the_heads_that_fit(tmp_path: Path, multi_level: bool, heads: dict[str, int]) -> None:
    theirs = published(18, heads)
    model = DeepLabV2(5, 18, multi_level=multi_level)
    (note,) = initialise(model, save(tmp_path, theirs))
    assert "aux_head" in note and "main_head" not in note
    main = "layer6" if "layer6" in heads else "layer5"
    assert torch.equal(model.main_head.branches[0].weight, theirs[f"{main}.conv2d_list.0.weight"])


class Bomb:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_files_that_cannot_be_read_safely(tmp_path: Path, small: DeepLabV2) -> None:
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"conv1.weight": Bomb()}, protocol=2))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    (tmp_path / "text.pth").write_bytes(b"not found")
    save(tmp_path, [1, 2], "list.pth")
    for name, says in (
        ("bomb.pth", "could run code"),
        ("cut.safetensors", "not a readable"),
        ("text.pth", "text.pth"),
        ("list.pth", "no state dict"),
        ("none.pth", "no file"),
        ("w.zip", "unknown type"),
    ):
        with pytest.raises(UserError, match=says):
            load_published(small, str(tmp_path / name))


def test_initialise_words(small: DeepLabV2) -> None:
    assert initialise(small, "none") == []
    with pytest.raises(UserError, match=r"DeepLab_resnet_pretrained_imagenet\.pth"):
        initialise(small, "imagenet")
    with pytest.raises(UserError, match="did you mean 'imagenet'"):
        initialise(small, "imagent")


@pytest.mark.parametrize(
    ("size", "cells"), [((321, 321), (10, 10)), ((64, 96), (2, 3)), ((32, 32), (1, 1)), ((63, 127), (1, 3))]
)
def test_discriminator_shapes(size: tuple[int, int], cells: tuple[int, int]) -> None:
    assert Discriminator(7, 4)(torch.randn(2, 7, *size)).shape == (2, 1, *cells)


def test_discriminator_layers() -> None:
    net = Discriminator(19)
    assert num_parameters(net) == 2_781_121  # 4x4 kernels, 19 -> 64 -> 128 -> 256 -> 512 -> 1, with biases
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    slopes = [m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 1] and slopes == [0.2] * 4
    assert isinstance(net.layers[-1], nn.Conv2d)  # logits, nothing after them
