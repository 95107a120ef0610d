"""A sweep as the user asks for it, and everything that is refused before Ray starts."""

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from omegaconf import OmegaConf

from distuda import storage
from distuda.cluster.train import require_lasting
from distuda.errors import UserError, nearest
from distuda.metrics.label_free import SCORES, ScoreName
from distuda.phases import check
from distuda.plan import Phase, load_phases
from distuda.plan import to_yaml as phases_to_yaml
from distuda.recipe import Recipe
from distuda.resume import differences
from tune.results import AGGREGATE, AGGREGATED, OF_CLIPS
from tune.space import Configuration, Space, words_of
from tune.trial import TARGET_MIOU

Search = Literal["random", "grid", "tpe", "pbt"]
Scheduler = Literal["none", "asha", "median"]

NUM = 16
"""Configurations, unless the user says how many."""

OBJECTIVE = "information_maximisation"
"""Score that is searched by unless the user names one."""

POINTS = 3
"""Numbers a range of a grid, unless the user says how many."""

MISSES = 1000
"""Repeats in a row after which a space is taken to have no other configuration [draws]."""


@dataclass(frozen=True)
class Plan:
    """A sweep as the user asks for it.

    Attributes:
        recipe: path of the YAML file that is searched from, or None for the defaults; read once, when a sweep begins.
        words: overrides that hold for every trial.
        space: what is searched.
        out: the sweep's folder, any URI that all nodes reach.
        search: how configurations are chosen.
        num: how many configurations, with ``pbt`` the population; None = `NUM`, and a grid has as many as it has.
        points: of a grid, numbers a range; None = `POINTS`.
        scheduler: what ends trials early.
        objective: score that is searched by.
        choose: scores whose mean place decides in the end, or `AGGREGATE` alone; empty = that, and with an objective
            that is not `OBJECTIVE` the objective.
        seeds: trials a configuration; with a scheduler only of those that the first seed brought to their end.
        concurrent: trials at once; 0 = as many as fit.
        cpus, gpus: logical CPUs and GPUs of a trial that runs in one process; None = by the machine.
        grace: steps of the last phase before the scheduler may end a trial, and between decisions of ``pbt``; None = a
            ninth of them.
        keep: ended trials whose checkpoints stay.
        seed: of the search.
        resume: go on with the sweep in ``out``.
    """

    recipe: str | None
    words: tuple[str, ...]
    space: Space
    out: str
    search: Search = "random"
    num: int | None = None
    points: int | None = None
    scheduler: Scheduler = "none"
    objective: str = OBJECTIVE
    choose: tuple[str, ...] = ()
    seeds: int = 1
    concurrent: int = 0
    cpus: float | None = None
    gpus: float | None = None
    grace: int | None = None
    keep: int = 3
    seed: int = 0
    resume: bool = False

    @property
    def size(self) -> int:
        """Configurations of a search that is told how many."""
        return NUM if self.num is None else self.num


def settle(plan: Plan) -> tuple[Plan, list[Phase]]:
    """The plan with everything decided that can be decided without Ray, and the phases that are searched from."""
    plan = replace(plan, choose=plan.choose or ((AGGREGATE if plan.objective == OBJECTIVE else plan.objective),))
    _require_options(plan)
    if storage.is_local(plan.out):
        plan = replace(plan, out=str(Path(storage.filesystem(plan.out)[1]).absolute()))
    require_lasting(plan.out)
    for word in plan.words:
        if word.split("=")[0] in ("out", "resume"):
            raise UserError(f"{word!r}: a sweep names its trials' folders itself. Use --out and --resume.")
    out = words_of({"out": storage.join(plan.out, "trials", "base")})
    base = load_phases(plan.recipe, [*plan.words, *out])
    plan = replace(plan, words=(*plan.words, *_words_for_all(plan, base)))
    words = [*plan.words, *out]
    phases = plan.space.check(plan.recipe, words)
    plan.space.check_drawn(found := drawn(plan), plan.recipe, words)
    _require_fit(plan, phases)
    if plan.search == "random" and len(found) < plan.size:
        print(
            f"{MISSES} draws in a row from {plan.space.name} brought nothing new: {len(found)} configurations differ, "
            f"and these are trained instead of {plan.size}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return plan, phases


def drawn(plan: Plan) -> list[Configuration]:
    """All configurations of a search that knows them from the start; none of `tpe`, which meets them as it goes.

    Those of random search differ, so that a small space has fewer than are asked for; members of a population, which
    move apart, need not.

    Raises:
        UserError: a grid so large that it must be a mistake.
    """
    if plan.search == "tpe":
        return []
    if plan.search == "grid":
        return plan.space.grid(plan.points or POINTS)
    rng = random.Random(plan.seed)
    if plan.search == "pbt":
        return [plan.space.sample(rng) for _ in range(plan.size)]
    return _different(plan, rng)


def _different(plan: Plan, rng: random.Random) -> list[Configuration]:
    found: dict[str, Configuration] = {}
    misses = 0
    while len(found) < plan.size and misses < MISSES:
        one = plan.space.sample(rng)
        misses = misses + 1 if found.setdefault(json.dumps(one), one) is not one else 0
    return list(found.values())


def _require_options(plan: Plan) -> None:
    for name, given, kind in (("search", plan.search, Search), ("scheduler", plan.scheduler, Scheduler)):
        if given not in get_args(kind):
            raise UserError(
                f"--{name} {given!r} is unknown{nearest(given, get_args(kind))}: {', '.join(get_args(kind))}."
            )
    _require_known_scores(plan)
    _refuse_idle(plan)
    if plan.search == "pbt" and (plan.scheduler != "none" or plan.seeds > 1):
        raise UserError(
            "--search pbt is a scheduler itself, whose trials learn from each other: no --scheduler, no --seeds."
        )
    if plan.search == "pbt" and plan.size < 2:
        raise UserError(f"--search pbt needs a population: --num {plan.size} is too few. Give 4 or more.")
    if plan.search == "pbt" and plan.concurrent and plan.cpus is not None:
        raise UserError(
            "--search pbt runs as many trials at once as --cpus leaves room for: give --cpus or --concurrent, not both."
        )
    for name in ("num", "points", "seeds", "grace", "keep"):
        given = getattr(plan, name)
        if given is not None and given < 1:
            raise UserError(f"--{name} {given} is too few. Give at least 1.")
    if plan.concurrent < 0:
        raise UserError(f"--concurrent {plan.concurrent} is below 0. Give a number, or 0 to have it chosen.")
    if plan.cpus is not None and not 0 < plan.cpus < math.inf:
        raise UserError(f"--cpus {plan.cpus:g} is no share of a machine. Give more than 0, or leave it out.")
    if plan.gpus is not None and not 0 <= plan.gpus < math.inf:
        raise UserError(f"--gpus {plan.gpus:g} is no share of a machine. Give 0 or more, or leave it out.")


def _refuse_idle(plan: Plan) -> None:
    """Options that would do nothing in this search."""
    if plan.num is not None and plan.search == "grid":
        raise UserError(f"--num {plan.num} is not for --search grid, which tries all. Leave it out; --points thins it.")
    if plan.points is not None and plan.search != "grid":
        raise UserError(f"--points {plan.points} is for --search grid, not for {plan.search}. Leave it out.")
    if plan.grace is not None and plan.search != "pbt" and plan.scheduler == "none":
        raise UserError(
            f"--grace {plan.grace}: nothing ends trials early or copies them. Leave it out, or add --scheduler asha or "
            "median, or --search pbt."
        )


def _require_known_scores(plan: Plan) -> None:
    known = [*SCORES, OF_CLIPS, TARGET_MIOU]
    if plan.objective == AGGREGATE:
        raise UserError(
            f"--objective {AGGREGATE}: a mean place needs all trials, so it cannot steer a search. Give it to "
            f"--choose, and here one of: {', '.join(known)}."
        )
    if twice := [name for name in plan.choose if plan.choose.count(name) > 1]:
        raise UserError(f"--choose names {twice[0]} twice. Name each score once.")
    if AGGREGATE in plan.choose and len(plan.choose) > 1:
        raise UserError(
            f"--choose {','.join(plan.choose)}: {AGGREGATE} is the mean place over {' and '.join(AGGREGATED)} and "
            "takes no other beside it. Give it alone, or the scores by their names."
        )
    for names, allowed in (((plan.objective,), known), (plan.choose, [*known, AGGREGATE])):
        for name in names:
            if name not in allowed:
                raise UserError(f"{name!r} is no score{nearest(name, allowed)}. There are: {', '.join(allowed)}.")


def _words_for_all(plan: Plan, base: Sequence[Phase]) -> list[str]:
    """What every trial needs: the scores that are asked for, and a checkpoint at each evaluation."""
    recipe = last_recipe(base)
    decide = AGGREGATED if AGGREGATE in plan.choose else plan.choose
    wanted = [name for name in SCORES if name in (*recipe.evaluation.scores, plan.objective, *decide)]
    begun = _scores_of_begun(plan)
    if begun is not None and set(recipe.evaluation.scores) <= set(begun):
        wanted = begun  # it may choose by others of them than it was begun to
    words = [f"evaluation.scores=[{','.join(wanted)}]"]
    if not any(word.startswith("checkpoint.every_steps=") for word in plan.words):
        words.append(f"checkpoint.every_steps={recipe.evaluation.every_steps}")
    return words


def _scores_of_begun(plan: Plan) -> list[ScoreName] | None:
    """What the trials of a sweep that goes on compute; None of a new one."""
    path = storage.join(plan.out, "sweep.json")
    begun = json.loads(storage.read_bytes(path)).get("scores") if plan.resume and storage.exists(path) else None
    if begun is not None and (lacking := [name for name in plan.choose if name in SCORES and name not in begun]):
        raise UserError(
            f"--choose {lacking[0]}: the trials of the sweep in {plan.out!r} do not compute it. They have: "
            f"{', '.join(begun)}. Choose by these, or begin another sweep in another --out."
        )
    return begun


def last_recipe(phases: Sequence[Phase]) -> Recipe:
    """The recipe of the last phase that trains: its evaluations decide."""
    trained = [phase.recipe for phase in phases if isinstance(phase.recipe, Recipe)]
    if not trained:
        raise UserError("the recipe has no phase that trains, so there is nothing to score.")
    return trained[-1]


def _require_fit(plan: Plan, phases: Sequence[Phase]) -> None:
    """What would make every trial fail, or an option do nothing."""
    recipe = last_recipe(phases)
    if plan.search == "pbt" and (len(phases) > 1 or phases[0].name):
        raise UserError("--search pbt copies checkpoints between trials, and a recipe of phases has several. Use tpe.")
    if plan.search == "pbt" and not plan.space.ranges():
        raise UserError(
            f"--search pbt moves numbers within their ranges, and {plan.space.name} has options alone. Use grid."
        )
    if plan.search == "pbt" or plan.scheduler != "none":
        _require_comparable(plan, phases)
    if recipe.workers and (plan.cpus is not None or plan.gpus is not None):
        raise UserError(
            f"--cpus and --gpus are for trials of one process; with workers={recipe.workers} the workers take theirs."
        )
    _require_scores(plan, phases)


def _require_comparable(plan: Plan, phases: Sequence[Phase]) -> None:
    """Trials are compared on their way, at equal steps."""
    name = "--search pbt" if plan.search == "pbt" else f"--scheduler {plan.scheduler}"
    for path in plan.space.paths():
        if path.split(".")[-1] in ("steps", "rounds"):
            raise UserError(
                f"{name} compares trials at equal steps, and {plan.space.name} searches {path!r}, which changes how "
                f"many there are and what is trained in them. Fix it on the command line and leave it out of the space."
            )
    recipe, grace = last_recipe(phases), grace_of(plan, phases)
    grace = -(-grace // recipe.evaluation.every_steps) * recipe.evaluation.every_steps  # decisions fall on evaluations
    if grace >= recipe.steps:
        whose = "the last phase" if phases[0].name else "a trial"
        raise UserError(
            f"{name} would decide nothing: its first decision falls after {grace} steps, and {whose} has "
            f"{recipe.steps}. Lower {'--grace' if plan.grace else 'evaluation.every_steps'}."
        )
    if plan.search == "pbt" and recipe.evaluation.every_steps % recipe.checkpoint.every_steps:
        raise UserError(
            f"--search pbt copies checkpoints of evaluated steps, and checkpoint.every_steps="
            f"{recipe.checkpoint.every_steps} does not divide evaluation.every_steps={recipe.evaluation.every_steps}."
        )


def _require_scores(plan: Plan, phases: Sequence[Phase]) -> None:
    """Scores that no evaluation will have can neither steer nor choose; most mistakes in data show here too."""
    from distuda.data.dataset import open_dataset
    from distuda.engine.inputs import open_data

    recipe = last_recipe(phases)
    if len(phases) > 1 or phases[0].name:
        check(phases)
    else:
        open_data(recipe)
    uri = recipe.evaluation.uri or recipe.target.uri
    judged = open_dataset(uri) if uri else None
    for option, names in (("--objective", (plan.objective,)), ("--choose", plan.choose)):
        if lacking := [name for name in names if name in SCORES and name not in recipe.evaluation.scores]:
            raise UserError(  # a word for one phase is over ours for all
                f"{option} {lacking[0]}: the last phase that trains computes {', '.join(recipe.evaluation.scores)} by "
                f"an evaluation.scores of its own. Add {lacking[0]} there."
            )
        if TARGET_MIOU in names and not (recipe.evaluation.uri and judged and judged.num_labelled):
            raise UserError(f"{option} target_miou looks at target labels: set evaluation.uri to labelled samples.")
        if OF_CLIPS in names and not (judged and judged.moving):
            raise UserError(f"{option} {OF_CLIPS} needs clips, and {uri!r} holds none. Choose another score.")


def grace_of(plan: Plan, phases: Sequence[Phase]) -> int:
    """Steps of the last phase before the scheduler decides: as asked for, or its first evaluation past a ninth."""
    recipe = last_recipe(phases)
    every = recipe.evaluation.every_steps
    return plan.grace or -(-recipe.steps // (9 * every)) * every


def agree(plan: Plan, phases: Sequence[Phase]) -> Plan:
    """Refuse a folder that holds another sweep; leave in a new one what it is, the recipe's file among it.

    Gives the plan with that file as its recipe: an edit under way must not mix two recipes in one sweep.
    """
    path = storage.join(plan.out, "sweep.json")
    fields = {name: str(kind) for name, kind in plan.space.fields.items()}
    said = {
        "space": fields, "order": list(fields), "search": plan.search, "points": plan.points or POINTS,
        "objective": plan.objective, "seeds": plan.seeds, "seed": plan.seed,
        "scores": last_recipe(phases).evaluation.scores, "recipe": phases_to_yaml(phases),
    }  # fmt: skip
    if plan.resume and not storage.exists(path):
        print(f"no sweep in {plan.out!r} to go on with: a new one begins", file=sys.stderr, flush=True)
    if storage.exists(path):
        if not plan.resume:
            raise UserError(f"{plan.out!r} holds a sweep already. Go on with it by --resume, or choose another --out.")
        before = json.loads(storage.read_bytes(path))
        if odd := differences(_comparable(before), _comparable(said)):
            where = " (its recipe lies in it as recipe.yaml)" if any(one.startswith("recipe.") for one in odd) else ""
            raise UserError(
                f"the sweep in {plan.out!r} was begun otherwise: {'; '.join(odd)}. Restore these values{where}, or "
                "choose another --out."
            )
    storage.write_bytes(path, json.dumps(said, indent=1).encode())
    if plan.recipe is None:
        return plan
    copy = storage.join(plan.out, "recipe.yaml")
    storage.write_bytes(copy, storage.read_bytes(plan.recipe))
    return replace(plan, recipe=copy)


def _comparable(said: Mapping[str, Any]) -> dict[str, Any]:
    """``sweep.json`` with the recipe's phases by name and without its folder: a sweep may be moved.

    Its scores are in the recipe too.
    """
    values: Any = OmegaConf.to_container(OmegaConf.create(said["recipe"]))
    stages = values["phases"]
    recipe = {f"{stage['name']}_{stage.get('round', '')}".strip("_"): stage for stage in stages}
    said = {name: value for name, value in said.items() if name != "scores"}
    return {**said, "recipe": recipe.get("", {"phases": recipe, "stop_ratio": values["stop_ratio"]})}
