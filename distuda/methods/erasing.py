"""AE-PSL, segmentation learnt from image-level tags: the two things that it trains.

Wei, Feng, Liang, Cheng, Zhao, Yan: Object Region Mining with Adversarial Erasing: A Simple Classification to Semantic
Segmentation Approach, CVPR 2017. `Classify` is the network whose maps are mined and erased round by round (section
3.1), `Prohibitive` the segmentation network that corrects its own training (3.3); mining and composing are relabel
phases (`distuda.relabel`). The card docs/methods/erasing.md says what is certain and what is our reading.

Shape legend: B images, C classes, H and W pixels.
"""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distuda import losses
from distuda.data.batch import Batch
from distuda.losses import IGNORE
from distuda.methods.method import Context, Group, Losses, Method, MethodConfig, View
from distuda.models.dropout import drawn_from
from distuda.models.segmenter import Segmenter, require_one_scale
from distuda.models.tags import Localiser, Prohibiting, TagHead, last_channels


class TagConfig(MethodConfig):
    """Fields of both: there is one domain, and it is the source."""

    calibrate_images: int = Field(
        0, ge=0, description="target images by which batch-norm statistics are set before evaluation [images]"
    )


class Classify(Method):
    """A classifier of the image's tags on what earlier rounds have left of the image.

    Regions that were mined (column ``mined``) are filled with the mean pixel, so the classifier has to find others.
    Only the encoder learns; the network's heads are left alone.
    """

    class Config(TagConfig):
        """Fields of `Classify`."""

        name: Literal["classify"] = "classify"
        loss: Literal["squared", "bce"] = Field(
            "squared",
            description="squared distance of softmax shares to the tags' (AE-PSL), or binary cross-entropy a class",
        )
        background_heat: float = Field(
            0.2, ge=0, le=1, description="share of a map's maximum below which its evaluation calls a pixel background"
        )

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """Tags alone."""
            return {"source": ("tags",)}

        @property
        def reads_if_there(self) -> tuple[str, ...]:
            """What earlier rounds have mined."""
            return ("mined",)

    config: Config

    def __init__(self, config: Config, student: Segmenter, context: Context) -> None:
        require_one_scale(student, config.name)
        super().__init__(config, student, context)
        self.background = _background(context)
        self.head = TagHead(last_channels(student), context.num_classes, self.background)
        for parameter in student.head_parameters():
            parameter.requires_grad_(False)

    def forward(self, source: Batch) -> Losses:
        """The loss on tags, and the share of tags among an image's best guesses."""
        image = self.what_is_left(source)
        with drawn_from(self.student, source.seed_B):
            features = self.student.encode(self.student.normalise(image))
        logits_BC = self.head(features)
        tags_BC = tags_of(source, self.head.possible_C)
        if self.config.loss == "squared":
            loss = squared_label_loss(logits_BC, tags_BC)
        else:
            loss = binary_label_loss(logits_BC, tags_BC, self.head.possible_C)
        return Losses({"tags": loss}, {"tags_found": tags_found(logits_BC, tags_BC)})

    def what_is_left(self, source: Batch) -> Tensor:
        """The jittered images with mined pixels filled: before, so that nothing of them spreads, and again after.

        What a crop shows beside a small image is filled alike.
        """
        gone_BHW = None if source.mined_BHW is None else source.mined_BHW != IGNORE
        if source.shown_BHW is not None:
            gone_BHW = ~source.shown_BHW if gone_BHW is None else gone_BHW | ~source.shown_BHW
        if gone_BHW is None:
            return self.labelled_view(source).image_BCHW
        fill = self.student.normalise.mean
        left = replace(source, image_BCHW=erase(source.image_BCHW, gone_BHW, fill))
        return erase(self.labelled_view(left).image_BCHW, gone_BHW, fill)

    def parameter_groups(self) -> list[Group]:
        """Encoder and the linear layer."""
        return [Group("encoder", self.student.encoder_parameters()), Group("head", list(self.head.parameters()))]

    def predictor(self) -> Segmenter:
        """Encoder and classifier as heat maps."""
        return Localiser(
            self.student,
            self.head,
            squared=self.config.loss == "squared",
            background=self.background,
            background_heat=self.config.background_heat,
        )


class Prohibitive(Method):
    """Prohibitive segmentation learning: the masks it is given, and those it would draw itself, heeding the tags.

    Equations of section 3.3: a branch gives scores v of the tags; the auxiliary mask is the arg-max of [1, v] times the
    softmax of the logits, recomputed at every step; both masks are learnt, classes that are no tag of the image never.
    Where the class table has no background, a pixel that looks like no tag is in no auxiliary mask (our reading).
    """

    class Config(TagConfig):
        """Fields of `Prohibitive`."""

        name: Literal["psl"] = "psl"
        prohibit: bool = Field(True, description="learn the auxiliary mask too; false = the given masks alone")
        confidence: Literal["branch", "tags"] = Field(
            "branch", description="v: scores of the branch, or the image's tags themselves (the paper's upper bound)"
        )
        lambda_auxiliary: float = Field(1.0, ge=0, description="weight of the auxiliary mask's loss")
        start_step: int = Field(
            0, ge=0, description="steps with the given masks alone before the auxiliary mask counts [steps]"
        )
        lambda_tags: float = Field(1.0, ge=0, description="weight of the branch's binary cross-entropy (our reading)")
        threshold: float = Field(
            0.1, ge=0, le=1, description="p: at test time classes that the branch scores below this are not predicted"
        )
        guided_radius: int = Field(
            0,
            ge=0,
            description="at test time, a guided filter fits probabilities to the image's edges, 0 = off [pixels]",
        )

        @property
        def reads(self) -> dict[str, tuple[str, ...]]:
            """Masks, usually a relabel phase's, and tags."""
            return {"source": ("label", "tags")}

    config: Config

    def __init__(self, config: Config, student: Segmenter, context: Context) -> None:
        require_one_scale(student, config.name)
        super().__init__(config, student, context)
        self.background = _background(context)
        self.head = TagHead(last_channels(student), context.num_classes, self.background)

    def forward(self, source: Batch) -> Losses:
        """Cross-entropy with the given and the auxiliary mask, and the branch's loss."""
        view = self.labelled_view(source)
        assert view.label_BHW is not None
        tags_BC = tags_of(source, self.head.possible_C)
        allowed_BC = tags_BC | ~self.head.possible_C
        given = View(view.image_BCHW, view.seed_B, only(view.label_BHW, allowed_BC))
        output = self.run_student({"src": given})["src"]
        logits_BC = self.head(output.features)
        terms = self.supervise(output, given)
        terms["tags"] = self.config.lambda_tags * binary_label_loss(logits_BC, tags_BC, self.head.possible_C)
        if self.config.prohibit:
            scores_BC = tags_BC.float() if self.config.confidence == "tags" else logits_BC.detach().sigmoid()
            mask_BHW = only(auxiliary_mask(output.main, scores_BC, self.head.possible_C), allowed_BC)
            if self.background is None:  # nothing stands for what no tag names: pixels that look like it are left out
                seen_BHW = only(output.main.detach().argmax(dim=1), allowed_BC)
                mask_BHW = torch.where(seen_BHW == IGNORE, IGNORE, mask_BHW)
            if source.shown_BHW is not None:  # beside a small image there is nothing to be right about
                mask_BHW = torch.where(source.shown_BHW, mask_BHW, IGNORE)
            weight = self.ramp(self.config.start_step) * self.config.lambda_auxiliary
            terms["auxiliary"] = weight * losses.cross_entropy(output.main, mask_BHW)
        return Losses(terms, {"tags_found": tags_found(logits_BC, tags_BC)})

    def parameter_groups(self) -> list[Group]:
        """The network's, with the branch among the heads."""
        encoder, head = super().parameter_groups()
        return [encoder, Group("head", [*head.parameters, *self.head.parameters()])]

    def predictor(self) -> Segmenter:
        """The network, with what the branch thinks absent prohibited."""
        return Prohibiting(self.student, self.head, self.config.threshold, self.config.guided_radius)


def erase(image_BCHW: Tensor, gone_BHW: Tensor, fill: Tensor) -> Tensor:
    """Images in which every pixel that is ``gone_BHW`` (bool) has the colour ``fill`` (1, 3, 1, 1), RGB in [0, 1]."""
    return torch.where(gone_BHW[:, None], fill.to(image_BCHW.dtype), image_BCHW)


def tags_of(batch: Batch, possible_C: Tensor) -> Tensor:
    """The images' tags without the background, (B, C) bool."""
    assert batch.tags_BC is not None
    return batch.tags_BC & possible_C


def squared_label_loss(logits_BC: Tensor, tags_BC: Tensor) -> Tensor:
    """Squared distance of the softmax to equal shares for the tags, summed over classes, mean over images with a tag.

    The loss that AE-PSL cites (Wei et al.: HCP, TPAMI 2016); an image without a tag has no shares and is left out.
    """
    shares_BC = tags_BC / tags_BC.sum(dim=1, keepdim=True).clamp(min=1)
    loss_B = (logits_BC.softmax(dim=1) - shares_BC).square().sum(dim=1)
    tagged_B = tags_BC.any(dim=1)
    return losses.global_mean((loss_B * tagged_B).sum(), tagged_B.sum())


def binary_label_loss(logits_BC: Tensor, tags_BC: Tensor, possible_C: Tensor) -> Tensor:
    """Binary cross-entropy, mean over images and over the classes that can be tags."""
    loss_BC = F.binary_cross_entropy_with_logits(logits_BC, tags_BC.float(), reduction="none")
    return (loss_BC * possible_C).sum() / (len(tags_BC) * possible_C.sum())


@torch.no_grad()
def tags_found(logits_BC: Tensor, tags_BC: Tensor) -> Tensor:
    """Of an image's n tags, the share among its n best guesses; mean over the batch's tags."""
    rank_BC = logits_BC.argsort(dim=1, descending=True).argsort(dim=1)
    hit_BC = tags_BC & (rank_BC < tags_BC.sum(dim=1, keepdim=True))
    return hit_BC.sum() / tags_BC.sum().clamp(min=1)


@torch.no_grad()
def auxiliary_mask(logits_BCHW: Tensor, scores_BC: Tensor, possible_C: Tensor) -> Tensor:
    """The arg-max of class probabilities times tag scores, background times 1 (equation 3), (B, H, W) int64."""
    factor_BC = torch.where(possible_C, scores_BC, 1.0)
    return (logits_BCHW.float().softmax(dim=1) * factor_BC[:, :, None, None]).argmax(dim=1)


def only(label_BHW: Tensor, allowed_BC: Tensor) -> Tensor:
    """Labels in which classes that an image cannot hold are ignored."""
    padded_BN = F.pad(allowed_BC, (0, IGNORE + 1 - allowed_BC.shape[1]))  # one entry a label value
    kept_BHW = padded_BN.gather(1, label_BHW.flatten(1)).view_as(label_BHW)
    return torch.where(kept_BHW, label_BHW, IGNORE)


def _background(context: Context) -> int | None:
    assert context.table is not None
    return context.table.background
