"""AE-PSL's losses, masks and networks against numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch
from settings import tiny_batch, tiny_method, tiny_recipe
from torch import Tensor, nn

from distuda import losses
from distuda.data.augment import geometry
from distuda.methods.erasing import (
    Classify,
    Prohibitive,
    auxiliary_mask,
    binary_label_loss,
    erase,
    only,
    squared_label_loss,
    tags_found,
)
from distuda.models.segmenter import Features, Normalise, Segmenter
from distuda.models.tags import NEVER, Localiser, Prohibiting, TagHead, last_channels

ALL = torch.ones(3, dtype=torch.bool)


class Plain(Segmenter):
    """A network whose last feature map is its input at half size, and whose logits are that."""

    def __init__(self) -> None:
        super().__init__(3)
        self.normalise = Normalise([0.0] * 3, [1.0] * 3)
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, x_BCHW: Tensor) -> Features:
        return (nn.functional.avg_pool2d(x_BCHW, 2),)

    def heads(self, features: Features) -> tuple[Tensor, None]:
        return features[0] * self.scale, None


def head(background: int | None = None) -> TagHead:
    """Each class is one channel, scores are 10 times its mean."""
    made = TagHead(3, 3, background)
    with torch.no_grad():
        made.weights.weight.copy_(10 * torch.eye(3)[:, :, None, None])
        made.weights.bias.zero_()  # type: ignore[union-attr]
    return made


def test_an_untrained_branch_expects_few_classes() -> None:
    scores = TagHead(16, 20, 0)((torch.rand(2, 16, 4, 4),)).sigmoid()
    assert scores[:, 0].max() == 0
    assert 0.08 < scores[:, 1:].mean() < 0.12


def test_squared_label_loss_is_the_distance_of_shares() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]))
    tags = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
    first = 0 + 0.25**2 + 0.25**2
    second = 0.1**2 + 0.1**2 + 0.2**2
    assert squared_label_loss(logits, tags).item() == pytest.approx((first + second) / 2)
    assert squared_label_loss(logits, torch.ones(3, 3, dtype=torch.bool)).item() > 0  # every class at once is defined
    assert squared_label_loss(logits[2:], tags[2:]).item() == 0  # without any tag there is nothing to be wrong about


def test_binary_label_loss_leaves_the_background_out() -> None:
    possible = torch.tensor([False, True, True])
    loss = binary_label_loss(torch.tensor([[NEVER, 0.0, 2.0]]), torch.tensor([[False, True, False]]), possible)
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(2))) / 2, rel=1e-6)


def test_tags_found_counts_best_guesses() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert tags_found(logits, torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.bool)).item() == 0.75


def test_erased_pixels_have_the_fill_and_no_other() -> None:
    image, mined = torch.rand(1, 3, 2, 2), torch.tensor([[[255, 1], [254, 255]]])
    done = erase(image, mined != 255, torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
    assert torch.equal(done[0, :, 0, 0], image[0, :, 0, 0]) and torch.equal(done[0, :, 1, 1], image[0, :, 1, 1])
    for place in ((0, 1), (1, 0)):
        torch.testing.assert_close(done[0, :, *place], torch.tensor([0.1, 0.2, 0.3]))


def test_auxiliary_mask_weighs_by_scores_and_leaves_the_background_alone() -> None:
    logits = torch.log(torch.tensor([0.3, 0.5, 0.2])).view(1, 3, 1, 1)
    possible = torch.tensor([False, True, True])  # class 0 is the background
    scores = torch.tensor([[0.0, 0.5, 1.0]])
    assert auxiliary_mask(logits, scores, possible).item() == 0  # 0.3 against 0.25 and 0.2
    assert auxiliary_mask(logits, torch.tensor([[0.0, 0.7, 1.0]]), possible).item() == 1
    assert auxiliary_mask(logits, torch.tensor([[0.0, 0.5, 1.0]]), ALL).item() == 1  # 0, 0.25, 0.2 without background


def test_classes_that_are_no_tag_are_ignored() -> None:
    label = torch.tensor([[[0, 1], [2, 255]], [[0, 1], [2, 255]]])
    allowed = torch.tensor([[True, False, True], [False, False, False]])
    assert only(label, allowed).tolist() == [[[0, 255], [2, 255]], [[255, 255], [255, 255]]]


def test_a_localiser_shows_where_each_class_is() -> None:
    network = Localiser(Plain(), head(), squared=False, background=None, background_heat=0.2).eval()
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, :2, :2], image[0, 1, 2:, 2:] = 1.0, 0.5
    output = network(image)
    assert output.main.argmax(dim=1)[0, 0, 0] == 0 and output.main.argmax(dim=1)[0, 3, 3] == 1
    means = torch.tensor([[2.5, 1.25, 0.0]])
    torch.testing.assert_close(output.tags_BC, means.sigmoid())
    heat = network.heat(image)
    assert heat.amax(dim=(2, 3))[0].tolist() == pytest.approx([10, 5, 0])
    torch.testing.assert_close(network.heat(image.flip(-1)), heat.flip(-1))
    torch.testing.assert_close(network.heat(image, tags=[2, 0]), heat[:, [2, 0]])


def test_the_background_of_a_localiser_is_what_no_tag_reaches() -> None:
    network = Localiser(Plain(), head(0), squared=True, background=0, background_heat=0.4).eval()
    image = torch.zeros(1, 3, 8, 8)
    image[0, 1, :4, :4] = 1.0
    output = network(image)
    assert output.tags_BC[0, 0] == 0 and output.tags_BC.sum().item() == pytest.approx(1)
    assert output.main.argmax(dim=1)[0, 0, 0] == 1 and output.main.argmax(dim=1)[0, 7, 7] == 0


@pytest.mark.parametrize(("threshold", "winner"), [(0.1, 0), (0.7, 1), (0.99, 1)])
def test_prohibited_classes_do_not_win(threshold: float, winner: int) -> None:
    """Class 0 has the largest logits everywhere; its score is sigmoid(10 x 0.06) = 0.65."""
    made = head(1)
    network = Prohibiting(Plain(), made, threshold).eval()
    image = torch.tensor([0.06, 0.05, 0.04]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert network(image).main.argmax(dim=1).unique().tolist() == [winner]


def test_a_guided_filter_fits_predictions_to_edges() -> None:
    """A class that spills a pixel over an edge of the image is drawn back to it; prohibited ones stay out."""
    image = torch.full((1, 3, 8, 32), 0.2)
    image[..., 16:] = 0.9
    spilt = torch.zeros(1, 3, 8, 32)
    spilt[:, 0, :, :17] = spilt[:, 1, :, 17:] = 4.0

    class Spilling(Plain):
        def heads(self, features: Features) -> tuple[Tensor, None]:
            return spilt * self.scale, None

    def predicted(radius: int) -> Tensor:
        return Prohibiting(Spilling(), head(2), 0.0, radius).eval()(image).main.argmax(dim=1)

    right = (torch.arange(32) >= 16).long().expand(1, 8, 32)
    assert (predicted(0) != right).sum() == 8 and torch.equal(predicted(6), right)
    assert (Prohibiting(Spilling(), head(2), 1.0, 6).eval()(image).main[:, :2] == NEVER).all()


def test_what_was_mined_is_not_seen() -> None:
    """The classifier's loss does not change with the colour of mined pixels."""
    recipe = tiny_recipe("method.name=classify", "model.weights=imagenet")
    method = tiny_method(recipe).eval()
    assert isinstance(method, Classify)
    losses = []
    for shift in (0, 90):
        batch = tiny_batch(2, 1)
        assert batch.mined_BHW is not None
        batch.image_BCHW = torch.where(batch.mined_BHW[:, None] != 255, batch.image_BCHW - shift, batch.image_BCHW)
        losses.append(method(geometry(batch, recipe.augment.model_copy(update={"crop": None}))).total())
    assert losses[0] == losses[1]
    unmined = tiny_batch(2, 1)
    unmined.mined_BHW = None
    assert method(geometry(unmined, recipe.augment.model_copy(update={"crop": None}))).total() != losses[0]


def test_the_auxiliary_mask_is_a_constant() -> None:
    """No gradient reaches the branch through the mask: with the tags' own loss off it learns nothing."""
    recipe = tiny_recipe("method.name=psl", "method.lambda_tags=0")
    method = tiny_method(recipe)
    assert isinstance(method, Prohibitive)
    method(geometry(tiny_batch(2, 1), recipe.augment)).total().backward()
    grads = [parameter.grad for parameter in method.head.parameters()]
    assert all(grad is None or not grad.any() for grad in grads)


def test_the_auxiliary_mask_begins_late() -> None:
    recipe = tiny_recipe("method.name=psl", "method.start_step=2")
    method, seen = tiny_method(recipe), []
    for _ in range(4):
        seen.append(float(method(geometry(tiny_batch(2, 1), recipe.augment)).objective["auxiliary"].detach()))
        method.after_step()
    assert seen[:2] == [0, 0] and min(seen[2:]) > 0


def test_beside_a_small_image_there_is_nothing_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe("method.name=psl", "augment.crop=[64,64]")
    batch, labels = geometry(tiny_batch(2, 1), recipe.augment), []
    assert batch.shown_BHW is not None and not batch.shown_BHW.all()
    learn = losses.cross_entropy

    def noted(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
        labels.append(label)
        return learn(logits, label, weight)

    monkeypatch.setattr(losses, "cross_entropy", noted)
    tiny_method(recipe)(batch)
    assert len(labels) == 2 and (labels[1] != 255).any()  # the given mask's and the auxiliary one's
    assert all((label[~batch.shown_BHW] == 255).all() for label in labels)
    classify: Any = tiny_method(tiny_recipe("method.name=classify", "model.weights=imagenet"))
    left = classify.what_is_left(batch).movedim(1, -1)[~batch.shown_BHW]
    assert (left == classify.student.normalise.mean.flatten()).all()


def test_the_last_map_is_measured_without_moving_statistics() -> None:
    network = nn.BatchNorm2d(3)
    plain = Plain()
    plain.add_module("norm", network)
    assert last_channels(plain.train()) == 3 and plain.training and network.num_batches_tracked == 0
