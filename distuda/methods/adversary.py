"""Discriminators that say which domain maps come from, and the loss of a network that fools them.

Tsai et al.: Learning to Adapt Structured Output Space, CVPR 2018, section 3; ADVENT, CVPR 2019, section 3.2. The papers
run three backward passes a step and toggle the discriminators' gradients in between. Here one summed objective gives
the same gradients: the fooling term sees discriminators with detached parameters, the discriminators see detached maps.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distuda import losses
from distuda.methods.method import Losses
from distuda.models.discriminator import Discriminator
from distuda.models.segmenter import Output

SOURCE, TARGET = 0, 1


class Judges(nn.ModuleList):
    """One discriminator a level: of the main head's maps and, if there is one, of the auxiliary head's.

    Args:
        channels: of the maps.
        num_levels: 1 or 2.
    """

    def __init__(self, channels: int, num_levels: int) -> None:
        super().__init__(Discriminator(channels) for _ in range(num_levels))

    def oppose(
        self, maps_src: Sequence[Tensor], maps_tgt: Sequence[Tensor], weights: Sequence[Tensor], name: str = ""
    ) -> Losses:
        """Fooling and discriminator terms of every level.

        Args:
            maps_src, maps_tgt: one a level, (B, channels, H, W) float; gradients pass through the target's alone.
            weights: of the levels' fooling terms.
            name: what is judged, for the names of the terms; empty for the only judges of a method.
        """
        made = Losses({})
        infix = f"_{name}" if name else ""
        parts = zip(self, maps_src, maps_tgt, weights, suffixes(), strict=False)
        for level, (judge, map_src, map_tgt, weight, suffix) in enumerate(parts):
            fooled = losses.domain_bce(self.judge_frozen(map_tgt, level), SOURCE)
            judged_src, judged_tgt = judge(map_src.detach()), judge(map_tgt.detach())
            told = losses.domain_bce(judged_src, SOURCE) + losses.domain_bce(judged_tgt, TARGET)
            made.objective[f"adv{infix}_tgt{suffix}"] = weight * fooled
            made.objective[f"discriminator{infix}{suffix}"] = 0.5 * told
            right = ((judged_src < 0).float().mean() + (judged_tgt > 0).float().mean()) / 2
            made.metrics[f"discriminator{infix}_accuracy{suffix}"] = right.detach()
        return made

    def judge_frozen(self, maps_BCHW: Tensor, level: int = 0) -> Tensor:
        """A discriminator's logit map, with gradients for what it sees and none for its parameters."""
        judge = self[level]
        frozen = {name: value.detach() for name, value in judge.named_parameters()}
        judged: Tensor = functional_call(judge, frozen, (maps_BCHW,))
        return judged


def suffixes() -> Iterator[str]:
    """What the names of the levels' terms end with."""
    return iter(("", "_aux"))


def levels(output: Output) -> list[Tensor]:
    """Logits of the main head and, if one sees the whole image too, of the auxiliary head; each (B, C, H, W)."""
    return [output.main] if output.aux is None or output.origin_B2 is not None else [output.main, output.aux]


def divergence(one: nn.Module, other: nn.Module) -> Tensor:
    """How alike the weights of two networks of one kind are: mean over parameters of cosine + 1, in [0, 2].

    DA-VSN, ICCV 2021: minimised, it makes two discriminators look at different things.
    """
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.stack([torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) + 1 for a, b in pairs]).mean()
