"""Mix Transformer (MiT), SegFormer's encoder, B0 to B5.

Xie, Wang, Yu, Anandkumar, Alvarez, Luo: SegFormer, NeurIPS 2021, section 3.1 and table 6 of the appendix. Published
weights are taken from the authors' files and from those of the transformers library, see `load_mit`.
Shape legend: B images, h and w cells of a stage, D channels of a stage, N tokens.
"""

import logging
import math
import re
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distuda.errors import UserError
from distuda.models.depthwise import DepthwiseConv2d
from distuda.models.dropout import SampleDropout
from distuda.models.segmenter import Features
from distuda.models.weights import PREFIXES, State, differences, leave_out, read_tensors, weights_file

MitSize = Literal["b0", "b1", "b2", "b3", "b4", "b5"]

_SMALL, _LARGE = (32, 64, 160, 256), (64, 128, 320, 512)
WIDTHS: dict[str, tuple[int, int, int, int]] = {
    "b0": _SMALL, "b1": _LARGE, "b2": _LARGE, "b3": _LARGE, "b4": _LARGE, "b5": _LARGE,
}  # fmt: skip
DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "b0": (2, 2, 2, 2), "b1": (2, 2, 2, 2), "b2": (3, 4, 6, 3), "b3": (3, 4, 18, 3), "b4": (3, 8, 27, 3),
    "b5": (3, 6, 40, 3),
}  # fmt: skip
HEADS, REDUCTIONS = (1, 2, 5, 8), (8, 4, 2, 1)
_EXPANSION = 4  # of the feed-forward part

IMAGENET_ADVICE = (
    "weights 'imagenet': MiT's ImageNet weights are not shipped with Distuda and nothing is downloaded. Their owner, "
    "NVIDIA, offers mit_b0.pth to mit_b5.pth at github.com/NVlabs/SegFormer under the NVIDIA Source Code License "
    "(non-commercial research use). Pass the file's path as weights, or choose weights 'none'."
)

log = logging.getLogger(__name__)


class Attention(nn.Module):
    """Self-attention whose keys and values come from a map ``reduction`` times smaller in both directions."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        # The authors leave the norms outside the blocks at torch's eps of 1e-5
        self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction) if reduction > 1 else None
        self.reduce_norm = nn.LayerNorm(dim) if reduction > 1 else None

    def forward(self, x_BhwD: Tensor) -> Tensor:
        """(B, h, w, D), same shape."""
        q, small_BhwD = self._split(self.q(x_BhwD)), x_BhwD
        if self.reduce is not None and self.reduce_norm is not None:
            small_BhwD = self.reduce_norm(_on_map(self.reduce, x_BhwD))
        k, v = (self._split(half) for half in self.kv(small_BhwD).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(attended.reshape(x_BhwD.shape))

    def _split(self, x_BhwD: Tensor) -> Tensor:
        """To tokens a head: (B, heads, N, D / heads)."""
        return x_BhwD.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MixFfn(nn.Module):
    """Feed-forward part with a depthwise 3x3 convolution inside, which also tells positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand, self.project = nn.Linear(dim, _EXPANSION * dim), nn.Linear(_EXPANSION * dim, dim)
        self.depthwise = DepthwiseConv2d(_EXPANSION * dim, bias=True)

    def forward(self, x_BhwD: Tensor) -> Tensor:
        """(B, h, w, D), same shape."""
        return self.project(F.gelu(_on_map(self.depthwise, self.expand(x_BhwD))))


class Block(nn.Module):
    """Attention, then feed-forward, each normalised before and added to what came in."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention, self.ffn = Attention(dim, heads, reduction), MixFfn(dim)
        # two modules, so that a sample's branches are dropped one by one (stochastic depth, ECCV 2016)
        self.drop_attention, self.drop_ffn = SampleDropout(drop_path, "sample"), SampleDropout(drop_path, "sample")

    def forward(self, x_BhwD: Tensor) -> Tensor:
        """(B, h, w, D), same shape."""
        x_BhwD = x_BhwD + self.drop_attention(self.attention(self.norm1(x_BhwD)))
        return x_BhwD + self.drop_ffn(self.ffn(self.norm2(x_BhwD)))


class Stage(nn.Module):
    """Overlapping patches, blocks, norm.

    Args:
        kernel, stride: of the patches.
        drop_paths: one rate a block.
    """

    def __init__(
        self, channels: int, dim: int, kernel: int, stride: int, heads: int, reduction: int, drop_paths: list[float]
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, dim, kernel, stride, kernel // 2)
        self.embed_norm = nn.LayerNorm(dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, reduction, rate) for rate in drop_paths))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """Map of the stage before to this one's, smaller by the stride (rounded up)."""
        x_BhwD = self.blocks(self.embed_norm(self.embed(x_BDhw).permute(0, 2, 3, 1)))
        return self.norm(x_BhwD).permute(0, 3, 1, 2)


class MixTransformer(nn.Module):
    """The encoder: four stages at strides 4, 8, 16 and 32.

    Args:
        size: ``b0`` to ``b5``.
        drop_path: share of dropped branches in the last block, rising linearly from 0 in the first (0.1 in the paper).

    Attributes:
        channels: of the four maps.
    """

    def __init__(self, size: MitSize, *, drop_path: float = 0.1) -> None:
        super().__init__()
        self.size, self.channels = size, WIDTHS[size]
        last = sum(DEPTHS[size]) - 1
        rates = iter([drop_path * block / last for block in range(last + 1)])
        inputs = (3, *self.channels[:-1])
        self.stages = nn.ModuleList(
            Stage(inputs[i], self.channels[i], 7 if i == 0 else 3, 4 if i == 0 else 2, HEADS[i], REDUCTIONS[i],
                  list(islice(rates, DEPTHS[size][i])))
            for i in range(4)
        )  # fmt: skip
        self.apply(_initialise)

    def forward(self, x_BCHW: Tensor) -> Features:
        """Normalised image (B, 3, H, W), H and W of at least 32, odd ones too, to (B, D_i, h_i, w_i) of four stages."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            maps.append(x_BCHW)
        return tuple(maps)


def _on_map(convolution: nn.Module, x_BhwD: Tensor) -> Tensor:
    """A convolution on channels-last features; the permutations move no memory."""
    return convolution(x_BhwD.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _initialise(module: nn.Module) -> None:
    """The authors' random start; norms stay at 1 and 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class _Layout:
    """How a code base names our tensors: ours without stage and block -> theirs, s the stage, b the block.

    Several names are parts of one tensor of ours, one below the other.
    """

    first_stage: int
    names: dict[str, tuple[str, ...]]


_AUTHORS = _Layout(1, {
    "embed": ("patch_embed{s}.proj",), "embed_norm": ("patch_embed{s}.norm",), "norm": ("norm{s}",),
    "norm1": ("block{s}.{b}.norm1",), "norm2": ("block{s}.{b}.norm2",),
    "attention.q": ("block{s}.{b}.attn.q",), "attention.kv": ("block{s}.{b}.attn.kv",),
    "attention.out": ("block{s}.{b}.attn.proj",),
    "attention.reduce": ("block{s}.{b}.attn.sr",), "attention.reduce_norm": ("block{s}.{b}.attn.norm",),
    "ffn.expand": ("block{s}.{b}.mlp.fc1",), "ffn.project": ("block{s}.{b}.mlp.fc2",),
    "ffn.depthwise": ("block{s}.{b}.mlp.dwconv.dwconv",),
})  # fmt: skip
_TRANSFORMERS = _Layout(0, {
    "embed": ("encoder.patch_embeddings.{s}.proj",), "embed_norm": ("encoder.patch_embeddings.{s}.layer_norm",),
    "norm": ("encoder.layer_norm.{s}",),
    "norm1": ("encoder.block.{s}.{b}.layer_norm_1",), "norm2": ("encoder.block.{s}.{b}.layer_norm_2",),
    "attention.q": ("encoder.block.{s}.{b}.attention.self.query",),
    "attention.kv": ("encoder.block.{s}.{b}.attention.self.key", "encoder.block.{s}.{b}.attention.self.value"),
    "attention.out": ("encoder.block.{s}.{b}.attention.output.dense",),
    "attention.reduce": ("encoder.block.{s}.{b}.attention.self.sr",),
    "attention.reduce_norm": ("encoder.block.{s}.{b}.attention.self.layer_norm",),
    "ffn.expand": ("encoder.block.{s}.{b}.mlp.dense1",), "ffn.project": ("encoder.block.{s}.{b}.mlp.dense2",),
    "ffn.depthwise": ("encoder.block.{s}.{b}.mlp.dwconv.dwconv",),
})  # fmt: skip


def initialise_mit(encoder: MixTransformer, weights: str) -> None:
    """Give an encoder its starting weights: ``none`` or the path or URI of a file for `load_mit`.

    Raises:
        UserError: for ``imagenet`` (no such weights are shipped), a path of another type, a file that does not fit.
    """
    if path := weights_file(weights, IMAGENET_ADVICE):
        load_mit(encoder, path)


def load_mit(encoder: MixTransformer, path: str) -> None:
    """Load published weights whole or not at all, and log their licence.

    Args:
        encoder: of the file's size.
        path: the authors' ``mit_b5.pth`` and its siblings, or the weights of a transformers SegFormer such as
            ``nvidia/mit-b5``. Classifiers and decoders in the file are left out.

    Raises:
        UserError: the file cannot be read safely, or lists every missing, unexpected or wrongly shaped tensor.
    """
    theirs = {re.sub(r"^(backbone|segformer)\.", "", PREFIXES.sub("", k)): v for k, v in read_tensors(path).items()}
    layout = _TRANSFORMERS if any(name.startswith("encoder.") for name in theirs) else _AUTHORS
    notes = leave_out(theirs, r"^(head|classifier|decode_head)\.", "the classifier")
    expected = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    size = _size_of(theirs, layout)
    state: State = {}
    for ours in expected:
        names = _published(ours, layout)
        if all(name in theirs for name in names):
            state[ours] = torch.cat([theirs.pop(name) for name in names])
    if listing := differences(expected, {**state, **theirs}, lambda ours: " + ".join(_published(ours, layout))):
        advice = f"The file is a MiT-{size.upper()}." if size else "Pass the state dict as its owner saved it."
        raise UserError(f"{path!r} does not fit MiT-{encoder.size.upper()}. {advice} Tensors {listing}.")
    encoder.load_state_dict(state)
    for note in notes:
        log.warning("%s", note)
    log.warning("%s: NVIDIA's MiT weights are for non-commercial research use (NVIDIA Source Code License)", path)


def _published(ours: str, layout: _Layout) -> list[str]:
    """Their names of one of our tensors; names that are not ours stay."""
    match = re.fullmatch(r"stages\.(\d)\.(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", ours)
    if match is None:
        return [ours]
    stage, block, part, kind = match.groups()
    return [f"{name.format(s=int(stage) + layout.first_stage, b=block)}.{kind}" for name in layout.names[part]]


def _size_of(theirs: State, layout: _Layout) -> str | None:
    """``b0`` to ``b5`` by the number of blocks a stage and the channels of the first, None if none fits."""

    def count(stage: int) -> int:
        names = (_published(f"stages.{stage}.blocks.{block}.norm1.weight", layout)[0] for block in range(100))
        return sum(name in theirs for name in names)

    depths, first = tuple(count(stage) for stage in range(4)), _published("stages.0.embed.bias", layout)[0]
    width = len(theirs[first]) if first in theirs else 0
    return next((size for size in DEPTHS if DEPTHS[size] == depths and WIDTHS[size][0] == width), None)
