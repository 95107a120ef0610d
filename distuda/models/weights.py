"""Published DeepLab-v2 and ResNet weights to ours and back.

Understood here: state dicts of ADVENT and AdaptSegNet (multi-level: ``layer5`` auxiliary, ``layer6`` main; AdaptSegNet
single-level: ``layer5`` main), their ImageNet file (``Scale.`` prefix, old classifier ``layer5``), ResNet classifiers
under torchvision's names (``fc``), and our own names. Other networks read theirs with the tools at the end of this
file. Files are never unpickled.
"""

import io
import logging
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from distuda.errors import UserError, nearest
from distuda.models.deeplab import BLOCKS, CAFFE_MEAN_BGR, DILATIONS, DeepLabV2
from distuda.models.segmenter import Segmenter
from distuda.storage import read_bytes

_SHOWN = 8  # tensors that a message lists of each kind

State = dict[str, Tensor]

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|Scale\.)+")
TWO_LEVELS = {"layer5.conv2d_list.": "aux_head.branches.", "layer6.conv2d_list.": "main_head.branches."}
ONE_LEVEL = {"layer5.conv2d_list.": "main_head.branches."}
HEADS = ("main_head", "aux_head")

IMAGENET_ADVICE = (
    "weights 'imagenet': DeepLab-v2's ImageNet weights are not shipped with Distuda and nothing is downloaded. "
    "Fetch DeepLab_resnet_pretrained_imagenet.pth from the releases of github.com/valeoai/ADVENT (ResNet-101) "
    "and pass its path as weights, or choose weights 'none'."
)

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of RGB, three values each, on the [0, 1] scale."""

IMAGENET_RGB: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

log = logging.getLogger(__name__)


def initialise(model: DeepLabV2, weights: str) -> list[str]:
    """Give a fresh DeepLab-v2 its starting weights; returns what was left out or changed, one sentence each.

    Args:
        weights: ``none`` to keep the random start, or the path or URI of a file for `load_published`. A classifier in
            the file is taken where it fits and left out where it does not.

    Raises:
        UserError: for ``imagenet`` (no such weights are shipped), a path of another type, or a file that does not fit.
    """
    path = weights_file(weights, IMAGENET_ADVICE)
    return load_published(model, path, strict_heads=False) if path else []


def load_published(model: DeepLabV2, path: str, *, strict_heads: bool = True) -> list[str]:
    """Load a weights file whole or not at all; returns, and logs, what was left out or changed.

    ImageNet classifiers (``fc``, ``Scale.layer5``) are always left out. A file without a classifier is a trunk: the
    heads keep their values. If the trunk was trained on mean-and-std normalised RGB, as torchvision's are, the first
    convolution is rewritten for this network's BGR in 0..255.

    Args:
        path: ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``, local or a URI.
        strict_heads: refuse a file whose classifiers are not exactly the model's; else leave out those that differ.

    Raises:
        UserError: the file cannot be read safely, or lists every missing, unexpected or wrongly shaped tensor.
    """
    theirs = read_tensors(path)
    state, renames, notes = _translate(theirs)
    if model.head_branches == "reduced":
        notes += leave_out(state, r"_head\.branches\.[23]\.", "the branches of dilation 18 and 24 (a reduced head)")
    if not strict_heads:
        for head in HEADS:
            notes += leave_out_misfit_head(model, state, head)
    given, own = _heads_in(state), _heads_in(model.state_dict())
    _check(model, state, renames, path, heads=own if strict_heads and given else given)
    if fresh := [head for head in own if head not in given]:
        notes.append(f"{' and '.join(fresh)}: present values kept, {path!r} brings nothing that fits")
    if _is_image_classifier(theirs) and _trained_on_unit_input(state):
        notes += _to_caffe_input(state, model.depth)
    model.load_state_dict({**model.state_dict(), **state})
    for note in notes:
        log.warning("%s", note)
    return notes


def to_published(model: DeepLabV2) -> State:
    """Our weights under ADVENT's names, on the CPU, for other code bases and for `load_published`.

    A reduced head gains branches of zeros, so code that sums all four dilations and code that sums two agree on it.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    for head in _heads_in(state):
        for i in range(len(DILATIONS[model.head_branches]), len(DILATIONS["all"])):
            for kind in ("weight", "bias"):
                state[f"{head}.branches.{i}.{kind}"] = torch.zeros_like(state[f"{head}.branches.0.{kind}"])
    to_theirs = {ours: theirs for theirs, ours in TWO_LEVELS.items()}
    return {rename(name, to_theirs): tensor for name, tensor in state.items()}


def _translate(theirs: State) -> tuple[State, dict[str, str], list[str]]:
    """Their tensors under our names, the head names that were exchanged, and notes on ImageNet classifiers left out."""
    state = {PREFIXES.sub("", name): tensor for name, tensor in theirs.items()}
    notes = leave_out(state, r"^fc\.", "an image classifier (fc)")
    if any("Scale." in name for name in theirs):
        notes += leave_out(state, r"^layer[56]\.", "the old classifier of an ImageNet file in DeepLab layout")
    renames = TWO_LEVELS if any(name.startswith("layer6.") for name in state) else ONE_LEVEL
    return {rename(name, renames): tensor for name, tensor in state.items()}, renames, notes


def _heads_in(state: Mapping[str, Tensor]) -> list[str]:
    return [head for head in HEADS if any(name.startswith(head) for name in state)]


def _is_image_classifier(theirs: State) -> bool:
    """Whether a file is a plain ResNet and not in DeepLab layout, whose trunks all take Caffe-style input."""
    return not any(re.search(r"Scale\.|layer[56]\.|_head\.", name) for name in theirs)


def _check(model: DeepLabV2, state: State, renames: dict[str, str], path: str, *, heads: list[str]) -> None:
    """Compare names and shapes with the model's; a user error lists every difference under the file's names."""
    expected = {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if name.startswith(tuple(heads)) or not name.startswith(HEADS)
    }
    to_theirs = {ours: theirs for theirs, ours in renames.items()}
    if listing := differences(expected, state, lambda name: rename(name, to_theirs)):
        levels = "multi-level" if model.has_aux else "single-level"
        network = f"a {levels} DeepLab-v2 on ResNet-{model.depth} with {model.num_classes} classes"
        raise UserError(f"{path!r} does not fit {network}. {_advice(model, state)} Tensors {listing}.")


def _advice(model: DeepLabV2, state: State) -> str:
    """What to do about a file that does not fit, from what the file seems to be."""
    given = _heads_in(state)
    depth = _depth(state)
    if depth is None:
        return "Pass the state dict of a DeepLab-v2 or of a ResNet-18, 50 or 101."
    if depth != model.depth:
        return f"The file is a ResNet-{depth}: set the model's depth to {depth}."
    if given and ("aux_head" in given) != model.has_aux:
        level = "a multi-level" if "aux_head" in given else "a single-level"
        return f"The file is {level} network: set the model's multi_level to {str('aux_head' in given).lower()}."
    bias = state.get("main_head.branches.0.bias")
    if bias is not None and len(bias) != model.num_classes:
        return (
            f"The file's classifier has {len(bias)} classes, the model {model.num_classes}: use a class table of "
            f"{len(bias)} classes, or pass the file as a run's starting weights, where only its trunk is then taken."
        )
    return "Pass the state dict as the authors saved it."


def _depth(state: State) -> int | None:
    """ResNet depth of a state dict, by the kind of block and the number of them in layer3."""
    num_blocks = len({name.split(".")[1] for name in state if name.startswith("layer3.")})
    is_basic = "layer1.0.conv3.weight" not in state
    return next((d for d, blocks in BLOCKS.items() if blocks[2] == num_blocks and (d == 18) == is_basic), None)


def _trained_on_unit_input(state: State) -> bool:
    """Whether the trunk saw inputs of about unit variance (torchvision) rather than Caffe's 0..255, variance ~ 57^2.

    The stem's running variance is w^T Cov w for 7x7x3 patches, so divided by |w|^2 it is at most their total variance:
    147 for unit-variance inputs, and two or three orders of magnitude above that for 0..255.
    """
    seen_variance = state["bn1.running_var"].double().sum() / state["conv1.weight"].double().square().sum()
    return bool(seen_variance < 3 * 7 * 7 * 2)


def _to_caffe_input(state: State, depth: int) -> list[str]:
    """Rewrite conv1 and bn1 for BGR in 0..255 minus the Caffe mean; the offset goes into the running mean."""
    state["conv1.weight"], offset = to_caffe_kernel(state["conv1.weight"])
    state["bn1.running_mean"] = state["bn1.running_mean"].float() - offset
    notes = ["the trunk was trained on mean-and-std normalised RGB: rewrote its first convolution for BGR in 0..255"]
    if depth != 18:
        notes.append(
            "torchvision puts layer2's stride in a 3x3 convolution, this network in the 1x1 before it: "
            "the trunk fits, but starts a little worse than Caffe-style weights"
        )
    return notes


def weights_file(weights: str, imagenet_advice: str) -> str | None:
    """The path or URI that ``model.weights`` gives, None for the word ``none``.

    Raises:
        UserError: with the advice for the word ``imagenet``, which some networks cannot offer; for a path of another
            type than `SUFFIXES`.
    """
    if weights == "none":
        return None
    if weights == "imagenet":
        raise UserError(imagenet_advice)
    if not weights.endswith(SUFFIXES):
        raise UserError(
            f"weights {weights!r} is neither 'none' nor a {', '.join(SUFFIXES)} file"
            f"{nearest(weights, ['imagenet', 'none'])}. Pass the path or URI of a weights file."
        )
    return weights


def read_tensors(path: str) -> State:
    """The tensors of a weights file by name, without running any code in it; ``state_dict``/``model`` are unwrapped."""
    if not path.endswith(SUFFIXES):
        raise UserError(f"weights file {path!r} has an unknown type. Allowed: {', '.join(SUFFIXES)}.")
    content = read_bytes(path)
    try:
        if path.endswith(".safetensors"):
            return dict(load_safetensors(content))
        loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path!r} is damaged or holds more than tensors, and was not opened, because that could run code. "
            "Download it again, or have its owner save only the state dict (model.state_dict())."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path!r} is not a readable weights file ({why}). Download or save it again.") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UserError(f"{path!r} is no state dict (tensors by name). Save model.state_dict() and pass that file.")
    return dict(loaded)


def to_caffe_kernel(kernel_OIkl: Tensor) -> tuple[Tensor, Tensor]:
    """A first convolution for mean-and-std normalised RGB, rewritten for BGR in 0..255 minus the Caffe mean.

    Exact but for the zero-padded border.

    Returns:
        the float32 kernel with scale and channel order in it, and what to add to its outputs, (O,), for the difference
        of the two means.
    """
    mean_BGR, std_BGR = (torch.tensor(values[::-1]) * 255 for values in IMAGENET_RGB)
    kernel_OIkl = kernel_OIkl.float().flip(1) / std_BGR.view(1, 3, 1, 1)
    return kernel_OIkl, torch.einsum("oikl,i->o", kernel_OIkl, torch.tensor(CAFFE_MEAN_BGR) - mean_BGR)


def leave_out(state: State, pattern: str, what: str) -> list[str]:
    """Take the tensors whose name matches out of ``state`` and say so."""
    names = [name for name in state if re.search(pattern, name)]
    classes = max((len(tensor) for name in names if (tensor := state.pop(name)).ndim), default=0)
    return [f"left out {what}: {len(names)} tensors, {classes} classes"] if names else []


def leave_out_misfit_head(model: Segmenter, state: State, head: str) -> list[str]:
    """Take the head of that name out of ``state`` unless it is exactly the model's, and say so."""
    ours = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith(head)}
    given = {name: tensor.shape for name, tensor in state.items() if name.startswith(head)}
    if ours == given or not given:
        return []
    return leave_out(state, f"^{head}", f"{head}, which differs from this {model.num_classes}-class model's")


def rename(name: str, renames: Mapping[str, str]) -> str:
    """The name with the first beginning that is listed exchanged."""
    for old, new in renames.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def differences(expected: Mapping[str, torch.Size], state: State, theirs: Callable[[str], str]) -> str:
    """What keeps a state dict from being loaded, as one listing; empty if nothing does.

    Args:
        expected: shape by name of every tensor that must be there; batch-norm counters may be absent.
        state: the file's tensors under our names where they have one.
        theirs: from our name to the file's, under which everything is listed.
    """
    wanted = {name for name in expected if not name.endswith("num_batches_tracked")}
    kinds = {
        "missing": sorted(theirs(name) for name in wanted - state.keys()),
        "unexpected": sorted(theirs(name) for name in state.keys() - expected.keys()),
        "of another shape": [
            f"{theirs(name)} {tuple(state[name].shape)}, the model's is {tuple(expected[name])}"
            for name in sorted(expected.keys() & state.keys())
            if state[name].shape != expected[name]
        ],
    }
    return "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)


def _listed(names: Sequence[str]) -> str:
    """All of a few names, of many the first ones and how many there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
