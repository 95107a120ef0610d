"""The pieces the methods share. Each loss is a sum over valid pixels divided by their count over all ranks.

Shape legend: B images, C classes, H and W pixels. Logits are raw; labels are train ids with 255 = ignore.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def world_size() -> int:
    """Ranks that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_sum(value: Tensor) -> Tensor:
    """The sum over all ranks, detached, float32."""
    value = value.detach().to(torch.float32)
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """``total / count`` over all ranks, so that masks and uneven ranks do not bias a loss.

    DDP averages gradients over ranks; scaling by the world size turns that average into the sum this needs. Zero
    count gives zero.
    """
    return total * world_size() / global_sum(count).clamp(min=1)


def global_share(mask: Tensor, among: Tensor | None = None) -> Tensor:
    """Share of true entries over all ranks, a scalar in [0, 1]; ``among`` only those that are true there."""
    if among is None:
        return global_sum(mask.sum()) / global_sum(torch.full((), float(mask.numel()), device=mask.device))
    return global_sum((mask & among).sum()) / global_sum(among.sum()).clamp(min=1)


def cross_entropy(logits_BCHW: Tensor, label_BHW: Tensor, weight_BHW: Tensor | None = None) -> Tensor:
    """Pixel cross-entropy.

    Without weights the mean over valid pixels (ADVENT, AdaptSegNet); with weights, the weighted sum divided by the
    count of *all* pixels, ignored ones included, as DACS and DAFormer do for mixed images.

    Args:
        logits_BCHW: any float dtype; computed in float32.
        label_BHW: int64 train ids, 255 ignored.
        weight_BHW: float in [0, 1], or None.
    """
    loss_BHW = F.cross_entropy(logits_BCHW.float(), label_BHW, ignore_index=IGNORE, reduction="none")
    if weight_BHW is None:
        return global_mean(loss_BHW.sum(), (label_BHW != IGNORE).sum())
    return global_mean((loss_BHW * weight_BHW).sum(), torch.full((), float(label_BHW.numel()), device=label_BHW.device))


def self_information(logits_BCHW: Tensor) -> Tensor:
    """Weighted self-information maps -p log p / log C, (B, C, H, W) float32 in [0, 1] (ADVENT, section 3.2)."""
    log_p = logits_BCHW.float().log_softmax(dim=1)
    return log_p.exp() * log_p / -math.log(logits_BCHW.shape[1])


def entropy_map(logits_BCHW: Tensor) -> Tensor:
    """Normalised pixel entropy, (B, H, W) float32 in [0, 1] (ADVENT, equation 2)."""
    return self_information(logits_BCHW).sum(dim=1)


def entropy(logits_BCHW: Tensor, top_share: float = 1.0, *, divide_by_all: bool = False) -> Tensor:
    """Mean pixel entropy; with ``top_share`` < 1 only over each image's highest-entropy pixels (ADVENT's ER).

    Args:
        logits_BCHW: of target images.
        top_share: share of an image's pixels in (0, 1], ranked by their detached entropy.
        divide_by_all: divide the selected pixels' sum by all pixels instead of the selected ones.
    """
    entropy_BN = entropy_map(logits_BCHW).flatten(1)
    if top_share >= 1:
        return entropy_BN.mean()
    kept = max(1, round(top_share * entropy_BN.shape[1]))
    selected = entropy_BN.topk(kept, dim=1).values
    return selected.sum() / entropy_BN.numel() if divide_by_all else selected.mean()


def class_prior(logits_BCHW: Tensor, prior_C: Tensor, mu: float) -> Tensor:
    """Hinge on each class's predicted share of an image: at least ``mu`` times its source share (ADVENT's CP).

    Args:
        logits_BCHW: of target images.
        prior_C: source shares, sum 1.
        mu: relaxation in [0, 1]; the paper uses 0.5.
    """
    share_BC = logits_BCHW.float().softmax(dim=1).mean(dim=(2, 3))
    return F.relu(mu * prior_C - share_BC).sum(dim=1).mean()


def domain_bce(logits: Tensor, domain: int) -> Tensor:
    """Binary cross-entropy of a discriminator's logit map against one domain code: source 0, target 1."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, float(domain), dtype=torch.float))


def tube(logits_BTCHW: Tensor, label_BTHW: Tensor) -> Tensor:
    """One minus the soft overlap (Dice) of predicted and true class tubes of each clip, mean over classes and clips.

    A tube is all pixels of a class in the T frames together, as in video panoptic quality; only classes that a clip's
    labels show count, and ignored pixels do not. Our reading of the tube loss of Shin et al., arXiv 2107.11052.

    Args:
        logits_BTCHW: any float dtype; computed in float32.
        label_BTHW: int64 train ids, 255 ignored.
    """
    probability = logits_BTCHW.float().softmax(dim=2)
    known = label_BTHW != IGNORE
    truth = F.one_hot(label_BTHW.where(known, 0), probability.shape[2]).movedim(-1, 2) * known[:, :, None]
    over = (1, 3, 4)
    shared_BC = (probability * truth).sum(over)
    true_BC = truth.sum(over)
    total_BC = (probability * known[:, :, None]).sum(over) + true_BC
    shown_BC = true_BC > 0
    dice_B = (2 * shared_BC / total_BC.clamp(min=1e-6) * shown_BC).sum(1) / shown_BC.sum(1).clamp(min=1)
    return (shown_BC.any(1) * (1 - dice_B)).mean()
