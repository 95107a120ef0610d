"""`relabel: predict`: tags that bar classes, unsure pixels, and labels for a target, its own or its pairs'."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from settings import TABLE, tiny_recipe, tiny_samples

from distuda.data.dataset import open_dataset
from distuda.data.decode import SampleError
from distuda.data.labels import ClassTable
from distuda.data.shards import write_shards
from distuda.engine.loop import fit, settle
from distuda.engine.run import read_rows
from distuda.errors import UserError
from distuda.models.segmenter import Normalise, Segmenter
from distuda.models.tags import Prohibiting, TagHead
from distuda.recipe import RelabelRecipe, parse_relabel
from distuda.relabel import job
from distuda.relabel.predict import Predict
from distuda.relabel.relabeller import Task

WITH_BACKGROUND = ClassTable("bg3", ("background", "cat", "dog"), ((0, 0, 0), (9, 9, 9), (7, 7, 7)))
OF = 255
"""No label."""


def test_predictions_keep_to_the_tags() -> None:
    predict = Predict(Predict.Config(), Task(WITH_BACKGROUND))
    assert predict.barred(predict.tags({"tags": [0, 2]})).tolist() == [False, True, False]
    assert predict.barred([]).tolist() == [False, True, True]
    assert Predict(Predict.Config(), Task(TABLE)).barred([]).tolist() == [False] * 4


class Sees(Segmenter):
    """Logits of three classes that are the image's channels, times ten."""

    def __init__(self) -> None:
        super().__init__(3)
        self.normalise = Normalise([0.0] * 3, [1.0] * 3)
        self.scale = torch.nn.Parameter(torch.tensor(10.0))

    def encode(self, x_BCHW: torch.Tensor) -> tuple[torch.Tensor]:
        return (x_BCHW * self.scale,)

    def heads(self, features: Any) -> tuple[torch.Tensor, None]:
        return features[0], None

    def head_parameters(self) -> list[torch.nn.Parameter]:
        return [self.scale]


ANIMALS = ClassTable("animals", ("cow", "cat", "dog"), ((1, 1, 1), (9, 9, 9), (7, 7, 7)), frozenset({0, 1, 2}))


def predicted(network: Segmenter, tags: list[int], confidence: float) -> np.ndarray:
    """Labels of a picture whose left half looks like a cat and whose right half like a cow."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32, 1] = image[:, 32:, 0] = 255
    task = Task(ANIMALS, network.eval())
    row = {"key": "a", "image": cv2.imencode(".png", image[..., ::-1])[1].tobytes(), "tags": tags}
    return Predict(Predict.Config(confidence=confidence), task)(row)["label"]


def test_a_pixel_that_looks_like_no_tag_is_unsure() -> None:
    """Among the one tag of a picture every pixel would be sure of it."""
    assert (predicted(Sees(), [1], 0.0) == 1).all()
    label = predicted(Sees(), [1], 0.9)
    assert (label[:, :31] == 1).all() and (label[:, 33:] == OF).all()


def test_known_tags_take_the_place_of_a_branch_that_does_not_believe_them() -> None:
    head = TagHead(3, 3, None)
    torch.nn.init.constant_(head.weights.weight, 0)
    with torch.no_grad():
        head.weights.bias.copy_(torch.tensor([5.0, -5.0, -4.0]))  # sure of a cow
    network = Prohibiting(Sees(), head, 0.1)
    assert (predicted(network, [1, 2], 0.9)[:, :31] == 1).all()
    assert network.threshold == 0.1
    with torch.no_grad():
        head.weights.bias.fill_(-5.0)
        head.weights.bias[2] = -4.0
    image = torch.zeros(1, 3, 32, 32)
    assert (network(image).main.argmax(dim=1) == 2).all()  # all are prohibited: the likeliest is left


# Copies of what the pair shows ---------------------------------------------------------------------------------------


def picture(*, mirrored: bool = False, size: tuple[int, int] = (64, 32)) -> bytes:
    """Left half like a cat, right half like a cow, or the other way round."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32, 1] = image[:, 32:, 0] = 255
    image = image[:, ::-1] if mirrored else image
    return cv2.imencode(".png", cv2.resize(image[..., ::-1], size, interpolation=cv2.INTER_NEAREST))[1].tobytes()


def test_the_labels_of_a_pair_are_copied_onto_the_image() -> None:
    """A pair of another size, too: its labels come at the image's."""
    predict = Predict(Predict.Config(image="pair"), Task(ANIMALS, Sees().eval()))
    own = Predict(Predict.Config(), Task(ANIMALS, Sees().eval()))
    for size in ((64, 32), (128, 64)):
        row = {"key": "a", "image": picture(), "pair": picture(mirrored=True, size=size)}
        assert np.array_equal(predict(row)["label"], own(row)["label"][:, ::-1])
    assert predict.config.reads == ("pair",) and own.config.reads == ()
    with pytest.raises(UserError, match=r"'a' has no pair.*relabel.image=own"):
        predict(row | {"pair": None})


def test_labels_that_are_there_stay_and_silent_pixels_are_predicted() -> None:
    image, label = np.zeros((4, 8, 3), np.uint8), np.full((4, 8), OF, np.uint8)
    image[..., 1] = 255
    label[1] = 2
    row: dict[str, Any] = {"key": "a", "tags": None}
    row |= {name: cv2.imencode(".png", of)[1].tobytes() for name, of in (("image", image), ("label", label))}
    keeps = Predict(Predict.Config(keep_labels=True), Task(ANIMALS, Sees().eval()))
    assert keeps.config.reads == ("label",)
    assert keeps(row)["label"].tolist() == [[1] * 8, [2] * 8, [1] * 8, [1] * 8]
    assert (keeps(row | {"label": None})["label"] == 1).all()
    small = cv2.imencode(".png", label[:2])[1].tobytes()
    with pytest.raises(SampleError, match=r"label \(8, 2\) and image \(8, 4\) differ in size"):
        keeps(row | {"label": small})


def labelling(run: str, target: str, out: Path, **fields: Any) -> RelabelRecipe:
    values = {"name": "predict", "domain": "target", **fields}
    domain = {"uri": target}
    return parse_relabel({"out": str(out), "init_from": run, "target": domain, "device": "cpu", "relabel": values})


def test_predicting_on_a_target_makes_labels_for_it(domains: list[str], tmp_path: Path) -> None:
    run = fit(settle(tiny_recipe(*domains, "steps=1", f"out={tmp_path / 'run'}")))
    target = domains[1].partition("=")[2]
    uri = job.relabel(labelling(run, target, tmp_path / "pseudo", confidence=0.2))
    assert open_dataset(target, [uri]).labelled
    words = [*domains, f"target.columns=[{uri}]", "method.use_target_labels=true"]
    assert fit(settle(tiny_recipe(*words, "steps=1", f"out={tmp_path / 'both'}")))
    fit(settle(tiny_recipe(*words, "steps=1", "method.use_source_labels=false", f"out={tmp_path / 'alone'}")))
    terms = [read_rows(str(tmp_path / name))[0].keys() for name in ("both", "alone")]
    assert {"seg_src", "seg_tgt"} <= terms[0] and "seg_tgt" in terms[1] and "seg_src" not in terms[1]


def test_copies_need_pairs(domains: list[str], tmp_path: Path) -> None:
    run, target = str(tmp_path / "run"), domains[1].partition("=")[2]
    with pytest.raises(UserError, match=r"relabel 'predict' looks at 'pair'.* has no pairs"):
        job.relabel(labelling(run, target, tmp_path / "copies", image="pair"))
    samples = [replace(sample, pair=sample.image if i else None) for i, sample in enumerate(tiny_samples(3, 4))]
    write_shards(samples, str(tmp_path / "some"), TABLE)
    fit(settle(tiny_recipe(*domains, "steps=1", f"out={run}")))
    with pytest.raises(UserError, match="has no pair"):
        job.relabel(labelling(run, str(tmp_path / "some"), tmp_path / "copies", image="pair"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("method.use_target_labels=false", "use_source_labels and use_target_labels are both false"),
        ("method.lambda_distance=0.1", "lambda_distance looks at source images, and use_source_labels is false"),
    ],
)
def test_fine_tuning_on_nothing_is_refused(word: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny_recipe("method.use_target_labels=true", "method.use_source_labels=false", word)
