"""Score a finished run, alone or averaged with others, on labelled or unlabelled samples."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.progress import track

from distuda import storage
from distuda.data.dataset import open_dataset
from distuda.data.reader import iterate_once
from distuda.data.tolerance import Tolerance
from distuda.engine.calibrate import calibrate as calibrate_statistics
from distuda.engine.calibrate import calibration_images
from distuda.engine.evaluate import SourceSide, evaluate
from distuda.engine.loop import choose_device
from distuda.engine.run import Run, open_run
from distuda.engine.source_scores import open_source_scores
from distuda.errors import UserError
from distuda.methods.advent import Ensemble
from distuda.metrics.label_free import NEED_SOURCE, score_names
from distuda.models.segmenter import Segmenter
from distuda.recipe import Recipe


def score_run(
    uri: str,
    *,
    data: str | None = None,
    which: str = "last",
    ensemble: Sequence[str] = (),
    calibrate: int = 0,
    scores: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluate a run's predictor over a whole data set; the row is also written into the run folder.

    Args:
        uri: run folder.
        data: prepared samples; default: the run's evaluation set, or the images of its target where it has none.
        which: checkpoint, ``last`` or ``best``.
        ensemble: other run folders whose up-sampled logits are averaged in (ADVENT's AdvEnt + MinEnt).
        calibrate: target images by which batch-norm statistics are set first (AdaBN), 0 = as the checkpoint has them.
        scores: label-free scores, or ``all``; None = those of the run's recipe.

    Returns:
        What `engine.evaluate.evaluate` returns, with ``which``, ``uri``, ``step`` and ``members``.
    """
    run = open_run(uri, which)
    labels_count = bool(data or run.recipe.evaluation.uri)
    data = data or run.recipe.evaluation.uri or run.recipe.target.uri
    if data is None:
        raise UserError(f"the run {uri!r} names no evaluation samples and no target. Give samples with --data URI.")
    dataset = open_dataset(data)
    if dataset.table.classes != run.table.classes:
        raise UserError(
            f"{data!r} has class table {dataset.table.name!r}, the run was trained with {run.table.name!r}. "
            "Prepare the data with the run's classes."
        )
    names = run.recipe.evaluation.scores if scores is None else score_names(scores)
    source = _source_side(run.recipe, names)
    model = _joined(run, ensemble, which).to(choose_device(run.recipe))
    bf16 = run.recipe.precision == "bf16"
    if calibrate:
        if run.recipe.target.uri is None:
            raise UserError(f"--calibrate {calibrate} takes target images, and the run {uri!r} has no target.")
        images = calibration_images(open_dataset(run.recipe.target.uri), calibrate, run.recipe.evaluation.size)
        calibrate_statistics(model, images, bf16=bf16)
    batches = iterate_once(dataset, size=run.recipe.evaluation.size)
    if not labels_count:  # as in training, the target's own are not looked at
        batches = (replace(batch, label_BHW=None) for batch in batches)
    samples = track(batches, description="evaluating", total=len(dataset), transient=True)
    found = evaluate(model, samples, run.table, scores=names, source=source, bf16=bf16)
    row = {"which": which, "uri": data, "step": run.step, "members": [uri, *ensemble], "calibrate": calibrate, **found}
    name = f"evaluation-{'ensemble' if ensemble else 'calibrated' if calibrate else which}.json"
    storage.write_bytes(storage.join(uri, name), json.dumps(row, indent=1).encode())
    return row


def _source_side(recipe: Recipe, names: Sequence[str]) -> SourceSide | None:
    """What scores need of the run's source; it is opened only where they need something."""
    if not set(names) & set(NEED_SOURCE):
        return None
    source = open_dataset(recipe.source.uri, recipe.source.columns)
    opened = open_source_scores(recipe, names, source)
    return opened.side(Tolerance(len(source), recipe.source.max_bad_share)) if opened else None


def _joined(run: Run, others: Sequence[str], which: str) -> Segmenter:
    if not others:
        return run.predictor
    runs = [run, *(open_run(other, which) for other in others)]
    for other in runs[1:]:
        if other.table.classes != run.table.classes:
            raise UserError(
                f"{other.uri!r} was trained with classes {other.table.name!r}, {run.uri!r} with {run.table.name!r}."
            )
    return Ensemble([member.predictor for member in runs]).eval()
