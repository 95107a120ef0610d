"""mIoU by the Cityscapes convention."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distuda.metrics.confusion import Confusion

IGNORE = 255


def random_maps(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, classes, (count, 13, 17), generator=random)
    right = torch.rand(prediction.shape, generator=random) < 0.6
    label = torch.where(right, prediction, torch.randint(0, classes, prediction.shape, generator=random))
    label[torch.rand(label.shape, generator=random) < 0.2] = IGNORE
    return prediction, label


def confusion_of(prediction: torch.Tensor, label: torch.Tensor, classes: int) -> Confusion:
    confusion = Confusion(classes)
    confusion.update(prediction, label)
    return confusion


def by_sets(prediction: torch.Tensor, label: torch.Tensor, classes: int) -> list[float]:
    """IoU from sets of pixels, class by class."""
    valid = label != IGNORE
    pairs = [((prediction == c) & valid, label == c) for c in range(classes)]
    return [int((p & g).sum()) / int((p | g).sum()) if (p | g).any() else math.nan for p, g in pairs]


def cityscapes_score(label: int, matrix: NDArray[np.int64], eval_labels: list[int], ignored: list[int]) -> float:
    """IoU of a label id as evalPixelLevelSemanticLabeling defines it, over the matrix of *all* ids.

    Rows are ground truth. A row that is ignored in evaluation makes no false positive.
    """
    if label in ignored:
        return math.nan
    hits = int(matrix[label, label])
    misses = int(matrix[label, :].sum()) - hits
    others = [row for row in eval_labels if row not in ignored and row != label]
    false_alarms = int(matrix[others, label].sum())
    union = hits + false_alarms + misses
    return math.nan if union == 0 else hits / union


@pytest.mark.parametrize("classes", [2, 4, 19])
def test_iou_equals_brute_force(classes: int) -> None:
    prediction, label = random_maps(3, classes)
    confusion = confusion_of(prediction, label, classes)
    expected = by_sets(prediction, label, classes)
    np.testing.assert_allclose(confusion.iou(), expected, rtol=1e-12)
    assert confusion.miou() == pytest.approx(np.nanmean(expected))
    valid = label != IGNORE
    assert confusion.accuracy() == pytest.approx(float((prediction == label)[valid].float().mean()))


def test_iou_equals_the_cityscapes_script() -> None:
    """Ids 0..33 with some ignored in evaluation, as that script counts them, against train ids and 255."""
    train = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    ignored = [i for i in range(34) if i not in train]
    random = np.random.default_rng(0)
    truth = random.integers(0, 34, (2, 40, 40))
    guess = np.where(random.random(truth.shape) < 0.5, truth, random.choice(train, truth.shape))
    guess = np.where(np.isin(guess, ignored), random.choice(train[:10], truth.shape), guess)  # the model knows 19 ids
    matrix = np.zeros((34, 34), np.int64)
    np.add.at(matrix, (truth.ravel(), guess.ravel()), 1)
    expected = [cityscapes_score(label, matrix, list(range(34)), ignored) for label in train]

    to_train = np.full(34, IGNORE)
    to_train[train] = np.arange(19)
    confusion = confusion_of(torch.from_numpy(to_train[guess]), torch.from_numpy(to_train[truth]), 19)
    np.testing.assert_allclose(confusion.iou(), expected, rtol=1e-12)
    assert confusion.miou() == pytest.approx(np.nanmean(expected))


def test_absent_class_leaves_the_mean_but_a_hallucinated_one_counts_zero() -> None:
    label = torch.tensor([[0, 0, 1, 1]])
    iou = confusion_of(torch.tensor([[0, 0, 1, 1]]), label, 3)
    assert math.isnan(iou.iou()[2]) and iou.miou() == 1
    iou = confusion_of(torch.tensor([[0, 0, 1, 2]]), label, 3)
    assert iou.iou().tolist() == [1, 0.5, 0] and iou.miou() == 0.5


def test_ignored_pixels_are_no_false_positives() -> None:
    label = torch.tensor([[0, 0, IGNORE, IGNORE]])
    assert confusion_of(torch.tensor([[0, 0, 0, 1]]), label, 2).iou()[0] == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_prediction_of_no_class_counts_nowhere_the_label_is_ignored(dtype: torch.dtype) -> None:
    """Masks that a phase made say 255 where they are silent; panels ignore the label there."""
    prediction = torch.tensor([[0, 1, IGNORE, IGNORE, 2]], dtype=dtype)
    label = torch.tensor([[0, 1, IGNORE, IGNORE, 1]], dtype=dtype)
    assert confusion_of(prediction, label, 3).counts_CC.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_a_prediction_of_no_class_on_a_label_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"outside .*prediction 255"):
        confusion_of(torch.tensor([[0, IGNORE, 1]]), torch.tensor([[0, 2, IGNORE]]), 3)


def test_nothing_labelled_is_nan_not_zero() -> None:
    empty = confusion_of(torch.zeros(1, 4, dtype=torch.long), torch.full((1, 4), IGNORE), 3)
    assert math.isnan(empty.miou())


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_add_up_to_the_whole(parts: int) -> None:
    prediction, label = random_maps(7, 5)
    whole = confusion_of(prediction, label, 5).counts_CC
    pieces = zip(prediction.tensor_split(parts), label.tensor_split(parts), strict=True)
    assert torch.equal(sum(confusion_of(p, g, 5).counts_CC for p, g in pieces), whole)
    assert whole.dtype == torch.int64


def test_ids_beyond_the_table_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        confusion_of(torch.tensor([[0]]), torch.tensor([[7]]), 3)
    with pytest.raises(ValueError, match="shape"):
        confusion_of(torch.zeros(1, 2, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long), 3)
