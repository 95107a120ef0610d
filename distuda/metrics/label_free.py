"""Scores of a model without target labels: how a checkpoint, or a trial of a sweep, is chosen.

All are higher-is-better. None is right alone: each says below what fools it. `SCORES` is the only place that lists
them; temporal consistency (`metrics.vpq`), agreement along optical flow, comes with every evaluation of clips.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from distuda.data.batch import Batch
from distuda.errors import UserError, nearest
from distuda.losses import world_size
from distuda.metrics.confusion import Confusion
from distuda.metrics.consistency import AugmentationConsistency
from distuda.metrics.neighbourhood import NeighbourhoodDensity
from distuda.metrics.score import Score, Setting

ScoreName = Literal[
    "entropy", "information_maximisation", "class_prior_divergence", "soft_neighbourhood_density",
    "augmentation_consistency", "source_miou",
]  # fmt: skip
"""What `evaluation.scores` may name."""


class MeanPrediction:
    """Three scores from two sums over images: the mean prediction q of a pixel and the mean entropy.

    p is a pixel's softmax output, C the number of classes, pi the source's class frequencies; a mean is one over the
    pixels of an image, then over images, so that every image weighs the same whatever its size.

    ``entropy``: -mean H(p) / log C, in [-1, 0]. Sure predictions score high (Morerio, Cavazza and Murino, ICLR 2018);
    so does a network that is sure of one class everywhere.

    ``information_maximisation``: H(q) / log C - mean H(p) / log C, in [0, 1] since H is concave. The mutual information
    of image and prediction (Shi and Sha, ICML 2012): sure of each pixel and diverse over all. It is 0 after a collapse
    on one class, but prefers classes equally frequent, which they never are on a street.

    ``class_prior_divergence``: minus the Jensen-Shannon divergence of q and pi to the base 2 (Lin, IEEE Trans. Inf.
    Theory 1991), in [-1, 0]; the idea of ADVENT's class prior (Vu et al., CVPR 2019). 0 says that classes are predicted
    as often as the source shows them. It sees a collapse, but neither a wrong place nor a target whose classes are
    otherwise distributed; unlike the Kullback-Leibler divergence it stays finite where a class is never predicted.
    NaN without ``frequency_src_C``.

    Costs a softmax an image, all three together.
    """

    domain: ClassVar[Literal["source", "target"]] = "target"

    def __init__(self, setting: Setting) -> None:
        self.frequency_src_C = setting.frequency_src_C
        self.sums = torch.zeros(setting.num_classes + 2, dtype=torch.float64, device=setting.device)

    def update(self, batch: Batch, logits_BCHW: Tensor, prediction_BHW: Tensor) -> None:
        """Add images; the logits alone are looked at."""
        log_p = logits_BCHW.float().log_softmax(dim=1)
        p = log_p.exp()
        share_C = p.mean(dim=(2, 3)).sum(dim=0)
        entropy = -(p * log_p).sum(dim=1).mean(dim=(1, 2)).sum()
        self.sums += torch.cat([share_C, entropy[None], torch.full_like(entropy, len(p))[None]])

    def all_reduce(self) -> None:
        """Sum over ranks; nothing with one rank."""
        if world_size() > 1:
            torch.distributed.all_reduce(self.sums)

    def scores(self) -> dict[str, float]:
        """``entropy``, ``information_maximisation`` and ``class_prior_divergence``; NaN without an image."""
        *share, entropy, count = self.sums.tolist()
        if not count:
            return dict.fromkeys(("entropy", "information_maximisation", "class_prior_divergence"), math.nan)
        share, sureness = [s / count for s in share], -entropy / count / math.log(len(share))
        diversity = _entropy(share) / math.log(len(share))
        return {
            "entropy": sureness,
            "information_maximisation": diversity + sureness,
            "class_prior_divergence": self._closeness(share),
        }

    def _closeness(self, share: list[float]) -> float:
        prior = [] if self.frequency_src_C is None else self.frequency_src_C.tolist()
        if not sum(prior):
            return math.nan
        prior, share = [f / sum(prior) for f in prior], [s / sum(share) for s in share]
        middle = [(f + s) / 2 for f, s in zip(prior, share, strict=True)]
        return ((_entropy(prior) + _entropy(share)) / 2 - _entropy(middle)) / math.log(2)


class SourceMiou:
    """mIoU in [0, 1] on labelled images of the *source*: source validation, the oldest way.

    The whole set's confusion matrix, counted as for the target (`metrics.confusion`). It sees a network that has broken
    down or forgotten, not how well it works in the target. Held-out images are ``evaluation.source_uri``; without them
    the first training images are taken, which also rewards learning these by heart, and the row says so
    (``source_miou_on``). Batch-norm statistics are those of the network that is scored, so where
    ``method.calibrate_images`` sets them from target images, the source is seen through the target's.

    Costs a forward pass a source image (``evaluation.source_limit`` of them).
    """

    domain: ClassVar[Literal["source", "target"]] = "source"

    def __init__(self, setting: Setting) -> None:
        self.confusion = Confusion(setting.num_classes)
        self.confusion.counts_CC = self.confusion.counts_CC.to(setting.device)

    def update(self, batch: Batch, logits_BCHW: Tensor, prediction_BHW: Tensor) -> None:
        """Add source images; those without a label are passed over."""
        if batch.label_BHW is not None:
            self.confusion.update(prediction_BHW, batch.label_BHW)

    def all_reduce(self) -> None:
        """Sum over ranks; nothing with one rank."""
        self.confusion.all_reduce()

    def scores(self) -> dict[str, float]:
        """``source_miou``; NaN without a labelled pixel."""
        return {"source_miou": self.confusion.miou() if self.confusion.counts_CC.any() else math.nan}


SCORES: dict[ScoreName, Callable[[Setting], Score]] = {
    "entropy": MeanPrediction,
    "information_maximisation": MeanPrediction,
    "class_prior_divergence": MeanPrediction,
    "soft_neighbourhood_density": NeighbourhoodDensity,
    "augmentation_consistency": AugmentationConsistency,
    "source_miou": SourceMiou,
}
"""Who computes a score; names that share a class are computed once."""

DEFAULT_SCORES: tuple[ScoreName, ...] = ("entropy", "information_maximisation")
"""Those that cost next to nothing."""

NEED_SOURCE: tuple[ScoreName, ...] = ("class_prior_divergence", "source_miou")
"""Those that look at labels of the source."""


def make_scores(names: Sequence[str], setting: Setting) -> list[Score]:
    """What computes the scores of these names; it may compute further ones by the way."""
    return [make(setting) for make in dict.fromkeys(SCORES[name] for name in SCORES if name in names)]


def score_names(words: Sequence[str]) -> list[ScoreName]:
    """Names of scores from words such as ``all`` or ``entropy,source_miou``, each once, in the order of `SCORES`.

    Raises:
        UserError: a word that names no score.
    """
    given = [name.strip() for word in words for name in word.split(",")]
    for name in given:
        if name != "all" and name not in SCORES:
            raise UserError(
                f"{name!r} is no label-free score{nearest(name, SCORES)}. There are: all, {', '.join(SCORES)}."
            )
    return [name for name in SCORES if name in given or "all" in given]


def _entropy(share: Sequence[float]) -> float:
    return -sum(s * math.log(s) for s in share if s > 0)
