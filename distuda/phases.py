"""Run a recipe's phases in order: train or relabel, pass over what is finished, end rounds that gain nothing."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distuda import storage
from distuda.data.columns import COLUMNS
from distuda.data.dataset import Dataset
from distuda.data.labels import ClassTable
from distuda.engine.loop import OnEvaluation
from distuda.engine.run import final_loss, read_rows
from distuda.errors import UserError, nearest
from distuda.methods.method import Method
from distuda.plan import PHASES, Phase, fewer_rounds, outer, to_yaml
from distuda.recipe import Recipe, RelabelRecipe
from distuda.relabel import RELABELS

RUN_FILES = ("recipe.yaml", PHASES)
"""What the folder of a run, or of a run of several phases, holds one of."""


def train_phases(phases: Sequence[Phase], on_evaluation: OnEvaluation | None = None) -> str:
    """Run each phase in turn and give the last one's folder; with ``resume`` finished ones are passed over.

    All are checked, their data included, before the first one starts. ``on_evaluation`` is told of the evaluations of
    those that train in this process.
    """
    from distuda.cluster.train import train

    first = phases[0].recipe
    if isinstance(first, Recipe) and not phases[0].name:
        return train(first, on_evaluation)
    phases = _as_ended(phases)
    check(phases)
    _describe(phases)
    done: list[Phase] = []
    left = list(phases)
    while left:
        phase = left.pop(0)
        _run(phase, on_evaluation)
        done.append(phase)
        rounds = phase.round - 1
        if _was_in_vain(done) and len(shorter := fewer_rounds(left, rounds, done)) < len(left):
            print(f"{phase.name}: its loss ends the rounds; going on with {rounds}", file=sys.stderr, flush=True)
            left = shorter
            _describe([*done, *left])
    return str(done[-1].recipe.out)


def _as_ended(phases: Sequence[Phase]) -> list[Phase]:
    """The phases that are left where an earlier start has ended the rounds: what follows was begun after fewer."""
    done: list[Phase] = []
    left = list(phases)
    while left and left[0].recipe.resume and _is_done(left[0]):
        done.append(left.pop(0))
        if _was_in_vain(done):
            left = fewer_rounds(left, done[-1].round - 1, done)
    return [*done, *left]


def _is_done(phase: Phase) -> bool:
    from distuda.cluster.train import newest_step
    from distuda.relabel.job import is_finished

    recipe = phase.recipe
    return is_finished(recipe) if isinstance(recipe, RelabelRecipe) else newest_step(recipe) >= recipe.steps


def _run(phase: Phase, on_evaluation: OnEvaluation | None) -> None:
    """Train or relabel, unless that is done."""
    from distuda.cluster.train import train
    from distuda.relabel.job import relabel

    recipe = phase.recipe
    if isinstance(recipe, RelabelRecipe):
        if not (recipe.resume and _is_done(phase)):
            relabel(recipe)
    elif not _is_done(phase):
        train(recipe, on_evaluation)


def check(phases: Sequence[Phase]) -> None:
    """Refuse what can be seen to be wrong before anything is spent; columns of phases to come count as there."""
    from distuda.cluster.train import require_start
    from distuda.engine.inputs import open_data
    from distuda.engine.loop import settle
    from distuda.relabel.job import open_domain, require_fresh

    coming: dict[str, set[str]] = {"source": set(), "target": set()}
    trained: dict[str, Recipe] = {}
    relabels = [phase.name for phase in phases if isinstance(phase.recipe, RelabelRecipe)]
    if relabels and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"phase {relabels[0]!r} relabels, and every rank of torchrun would do it. Start one process and let Ray "
            "bring the others: workers=N."
        )
    for phase in phases:
        there = _with_written_columns(phase.recipe)
        try:
            if isinstance(phase.recipe, RelabelRecipe):
                require_fresh(phase.recipe)
                domain = coming[phase.recipe.relabel.domain]
                _try_relabeller(phase.recipe, trained, open_domain(there, domain))
                domain |= set(RELABELS[phase.recipe.relabel.name].writes)
            else:
                require_start(phase.recipe)
                _require_start_exists(phase.recipe, trained)
                settle(phase.recipe)
                table = open_data(there, coming).source.table
                _try_network(phase.recipe, trained, table)
                trained[str(phase.recipe.out)] = phase.recipe
        except UserError as error:
            raise UserError(f"phase {phase.name!r}: {error}") from error


def _require_start_exists(recipe: Recipe | RelabelRecipe, trained: Mapping[str, Recipe]) -> None:
    """Refuse to go on from what is neither a phase before nor a run."""
    start = recipe.init_from
    if not start or start in trained or any(storage.exists(storage.join(start, name)) for name in RUN_FILES):
        return
    names = [uri.rpartition("/")[2] for uri in trained]
    hint = nearest(start, names) or (f" (phases before: {', '.join(names)})" if names else "")
    raise UserError(f"init_from={start!r} is neither a phase before this one nor a run folder{hint}.")


def _try_network(recipe: Recipe, trained: Mapping[str, Recipe], table: ClassTable) -> None:
    """Build a phase's method on random weights: some mistakes only the network itself can tell."""
    from distuda.models import build_model

    _untrained(recipe, table)
    if recipe.init_from is None or recipe.init_from not in trained:
        return
    model = recipe.model.model_copy(update={"weights": "none"})
    before = trained[recipe.init_from].model.model_copy(update={"weights": "none"})
    if before == model:
        return
    ours, theirs = (
        {name: tensor.shape for name, tensor in build_model(one, table.num_classes, 0).state_dict().items()}
        for one in (model, before)
    )
    if different := sorted(ours.items() ^ theirs.items()):
        raise UserError(
            f"it goes on from {recipe.init_from!r}, whose network is another: model.name={before.name!r} there and "
            f"{model.name!r} here, and {different[0][0]!r} is not in both alike. Give both the same model."
        )


def _try_relabeller(recipe: RelabelRecipe, trained: Mapping[str, Recipe], dataset: Dataset) -> None:
    """Build a phase's relabeller, on random weights where its network is still to be trained."""
    from distuda.relabel.job import build

    before = trained.get(recipe.init_from or "")
    if before is None or not RELABELS[recipe.relabel.name].needs_network:
        _require_start_exists(recipe, trained)
        build(recipe, dataset)
    else:
        build(recipe, dataset, _untrained(before, dataset.table).predictor())


def _untrained(recipe: Recipe, table: ClassTable) -> Method:
    """A phase's method on random weights."""
    from distuda.engine.run import build_method

    model = recipe.model.model_copy(update={"weights": "none"})
    bare = recipe.model_copy(update={"init_from": None, "model": model})
    return build_method(bare, table, torch.full((table.num_classes,), 1 / table.num_classes))


def _with_written_columns(recipe: Recipe | RelabelRecipe) -> Any:
    """The recipe without the columns that earlier phases have still to write."""
    update = {}
    for name in ("source", "target"):
        domain = getattr(recipe, name)
        inside = str(recipe.out).rpartition("/")[0]
        columns = [
            uri
            for uri in domain.columns
            if uri.rpartition("/")[0] != inside or storage.exists(storage.join(uri, COLUMNS))
        ]
        update[name] = domain.model_copy(update={"columns": columns})
    return recipe.model_copy(update=update)


def _was_in_vain(done: Sequence[Phase]) -> bool:
    """Whether the last phase trained a later round to a loss too far above its first round's (AE-PSL, section 3.1)."""
    last = done[-1]
    if last.stop_ratio is None or last.round < 2 or isinstance(last.recipe, RelabelRecipe):
        return False
    first = next(phase for phase in done if (phase.base, phase.round) == (last.base, 1))
    now, then = (final_loss(read_rows(str(phase.recipe.out))) for phase in (last, first))
    return now is not None and then is not None and now > last.stop_ratio * then


def _describe(phases: Sequence[Phase]) -> None:
    """Leave the resolved phases in the folder that holds theirs."""
    if os.environ.get("RANK", "0") == "0":
        storage.write_bytes(storage.join(outer(phases), PHASES), to_yaml(phases).encode())
