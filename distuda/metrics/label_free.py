"""Scores of a model on unlabelled images: how a checkpoint is chosen without looking at target labels.

Both follow the classification literature, a pixel in place of a sample: entropy (Morerio et al., ICLR 2018) and
information maximisation (Shi and Sha, ICML 2012). Higher is better for both.
"""

import math

import torch
from torch import Tensor


class LabelFree:
    """Sums over images of the mean prediction and the mean entropy.

    Args:
        num_classes: C of the logits.
    """

    def __init__(self, num_classes: int) -> None:
        self.sums = torch.zeros(num_classes + 2, dtype=torch.float64)

    def update(self, logits_BCHW: Tensor) -> None:
        """Add images; every image weighs the same whatever its size."""
        log_p = logits_BCHW.float().log_softmax(dim=1)
        p = log_p.exp()
        share_C = p.mean(dim=(2, 3)).sum(dim=0)
        entropy = -(p * log_p).sum(dim=1).mean(dim=(1, 2)).sum()
        count = torch.tensor(float(len(p)), device=p.device)
        self.sums = self.sums.to(p.device) + torch.cat([share_C, entropy[None], count[None]])

    def all_reduce(self) -> None:
        """Sum over ranks; nothing with one rank."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.sums)

    def scores(self) -> dict[str, float]:
        """``entropy``: minus the mean normalised pixel entropy, in [-1, 0]. ``information_maximisation``: that plus
        the normalised entropy of the mean prediction, in [-1, 1]; it falls when predictions collapse on few classes.
        """
        *share, entropy, _ = (self.sums / self.sums[-1].clamp(min=1)).tolist()
        scale = math.log(len(share))
        diversity = -sum(s * math.log(s) for s in share if s > 0) / scale
        return {"entropy": -entropy / scale, "information_maximisation": diversity - entropy / scale}
