"""Scores of a network on a data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from settings import TABLE, run_words, tiny_batch, tiny_method, tiny_recipe, tiny_samples

from distuda.data.class_tables import class_table
from distuda.data.dataset import open_dataset
from distuda.data.reader import iterate_once
from distuda.data.shards import write_shards
from distuda.engine.evaluate import evaluate
from distuda.engine.loop import fit, settle
from distuda.engine.run import read_rows
from distuda.engine.scoring import score_run
from distuda.metrics.label_free import SCORES
from distuda.models.segmenter import Output
from distuda.recipe import Recipe
from distuda.report.tables import scores


def brute_force(recipe: Recipe, uri: str, size: tuple[int, int] | None) -> tuple[list[float], float]:
    """IoU a class and accuracy from all pixels of all images in one list."""
    model = tiny_method(recipe).student.eval()
    guesses, truths = [], []
    for sample in iterate_once(open_dataset(uri), size=size):
        with torch.no_grad():
            logits = model(sample.image_BCHW / 255).main
        logits = torch.nn.functional.interpolate(logits, sample.label_BHW.shape[-2:], mode="bilinear")
        guesses.append(logits.argmax(1).flatten().numpy())
        truths.append(sample.label_BHW.flatten().numpy())
    guess, truth = np.concatenate(guesses), np.concatenate(truths)
    guess, truth = guess[truth != 255], truth[truth != 255]
    pairs = [(guess == c, truth == c) for c in range(TABLE.num_classes)]
    return [(p & g).sum() / (p | g).sum() if (p | g).any() else np.nan for p, g in pairs], (guess == truth).mean()


@pytest.mark.parametrize("size", [None, (48, 64)])
def test_evaluate_equals_brute_force_at_label_size(size: tuple[int, int] | None, tmp_path: Path) -> None:
    uri = str(tmp_path / "mixed")  # images of several sizes in one set
    samples = [
        sample
        for seed, shape in ((1, (40, 56)), (2, (48, 40)), (3, (33, 47)))
        for sample in tiny_samples(1, seed, size=shape)
    ]
    write_shards(samples, uri, TABLE)
    recipe = tiny_recipe()
    model = tiny_method(recipe).student.train()
    scores = evaluate(model, iterate_once(open_dataset(uri), size=size), TABLE)
    iou, accuracy = brute_force(recipe, uri, size)
    assert list(scores["iou"]) == list(TABLE.classes)
    np.testing.assert_allclose([np.nan if v is None else v for v in scores["iou"].values()], iou)
    assert scores["miou"] == pytest.approx(np.nanmean(iou)) and scores["accuracy"] == pytest.approx(accuracy)
    assert scores["label_sizes"] == ["33x47", "40x56", "48x40"] and scores["num_images"] == 3
    assert model.training


class Road(torch.nn.Linear):
    """Sees the first of twelve classes everywhere."""

    align_corners = False
    gives_heat = False

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, image_BCHW: torch.Tensor) -> Output:
        logits = torch.zeros(len(image_BCHW), 12, *image_BCHW.shape[2:])
        logits[:, 0] = 1
        return Output(logits)


def test_the_mean_over_the_classes_that_papers_average_is_there_too() -> None:
    table = class_table("synthia_seq12")
    network: Any = Road()
    one = tiny_batch(1, 1)
    one.label_BHW = torch.zeros(1, 40, 56, dtype=torch.int64)
    one.label_BHW[:, :20] = table.index("fence")
    row = evaluate(network, [one], table)
    assert row["miou"] == 0.25 and row["miou_synthia_seq11"] == row["iou"]["road"] == 0.5
    console = Console(width=100, record=True)
    console.print(scores(row))
    assert "mIoU over synthia_seq11 │ 50.0" in " ".join(console.export_text().split())
    network.gives_heat = True  # no probabilities, so no scores of them
    assert set(SCORES) & set(row) and not set(SCORES) & set(evaluate(network, [one], table))
    one.label_BHW[:] = 0
    assert not [name for name in evaluate(tiny_method(tiny_recipe()).student, [one], TABLE) if name.startswith("miou_")]


def test_unlabelled_images_have_label_free_scores_only(domains: list[str]) -> None:
    target = open_dataset(domains[1].split("=")[1])
    scores = evaluate(tiny_method(tiny_recipe()).student, iterate_once(target), TABLE)
    names = {"entropy", "information_maximisation", "temporal_consistency"}  # the images are frames of a clip
    assert set(scores) == {"num_images", *names} and scores["num_images"] == 7


def test_without_evaluation_data_the_targets_labels_are_not_looked_at(domains: list[str], tmp_path: Path) -> None:
    labelled = domains[0].split("=")[1]
    words = ["evaluation.uri=none", f"target.uri={labelled}", "steps=1"]
    fit(settle(tiny_recipe(*run_words(domains, tmp_path / "run", *words))))
    row = read_rows(str(tmp_path / "run"))[-1]
    assert row["kind"] == "evaluation" and "miou" not in row and row["num_images"] == 2
    scored = score_run(str(tmp_path / "run"), scores=["all"])  # `distuda evaluate` does as training did
    assert scored["uri"] == labelled and set(SCORES) & set(scored) and "miou" not in scored
