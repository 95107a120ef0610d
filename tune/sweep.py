"""`distuda sweep`: search the fields of a recipe by scores that need no target labels.

Ray Tune decides which trial runs where and which ends early. The truth about a sweep lies in its own folder
(`records`), so a killed driver, worker or cluster costs the steps since the trials' checkpoints and nothing else:
a resumed sweep lets every trial that is over report its evaluations again, which costs nothing and tells scheduler and
search all they knew.
"""

import json
import logging
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from distuda import storage
from distuda.cluster.local import num_cores, start_ray
from distuda.cluster.train import require_lasting
from distuda.errors import RunFailed, UserError, nearest
from distuda.metrics.label_free import SCORES
from distuda.plan import Phase, load_phases
from distuda.plan import to_yaml as phases_to_yaml
from distuda.recipe import Recipe
from tune.records import ENDED, Record, Records
from tune.report import write_report
from tune.results import is_oracle, label_of, ranking, write_results
from tune.run import Task, total_steps
from tune.space import Configuration, Space
from tune.trial import TARGET_MIOU

Search = Literal["random", "grid", "tpe", "pbt"]
Scheduler = Literal["none", "asha", "median"]

AGGREGATE = "aggregate"
"""The final choice by the mean place over every label-free score of the evaluations."""

LOST = 3
"""Times a trial's process may be lost before the trial counts as failed."""

_OF_CLIPS = "temporal_consistency"


@dataclass(frozen=True)
class Plan:
    """A sweep as the user asks for it.

    Attributes:
        recipe: path of the YAML file that is searched from, or None for the defaults.
        words: overrides that hold for every trial.
        space: what is searched.
        out: the sweep's folder, any URI that all nodes reach.
        search: how configurations are chosen.
        num: how many configurations, with ``pbt`` the population; a grid has as many as it has.
        points: of a grid, numbers a range.
        scheduler: what ends trials early.
        objective: score that is searched by.
        choose: scores whose mean place decides in the end; empty = the objective.
        seeds: trials a configuration.
        concurrent: trials at once; 0 = as many as fit.
        cpus, gpus: logical CPUs and GPUs of a trial that runs in one process; None = by the machine.
        grace: steps before the scheduler may end a trial, and between decisions of ``pbt``; 0 = a ninth of the steps.
        keep: ended trials whose checkpoints stay.
        seed: of the search.
        resume: go on with the sweep in ``out``.
    """

    recipe: str | None
    words: tuple[str, ...]
    space: Space
    out: str
    search: Search = "random"
    num: int = 16
    points: int = 3
    scheduler: Scheduler = "none"
    objective: str = "information_maximisation"
    choose: tuple[str, ...] = ()
    seeds: int = 1
    concurrent: int = 0
    cpus: float | None = None
    gpus: float | None = None
    grace: int = 0
    keep: int = 3
    seed: int = 0
    resume: bool = False


def sweep(plan: Plan) -> dict[str, str]:
    """Search as planned and give the URIs of ``best.yaml``, ``results.parquet`` and ``sweep.html``.

    Raises:
        UserError: a mistake in recipe, space or options, before anything starts; a folder that holds another sweep.
        RunFailed: no trial came to an end.
    """
    plan, phases = settle(plan)
    records = Records(plan.out)
    _agree(plan, phases)
    run = _Run(plan, phases, records)
    run.search()
    return finish(plan, records, _last(phases).seed)


def settle(plan: Plan) -> tuple[Plan, list[Phase]]:
    """The plan with everything decided that can be decided without Ray, and the phases that are searched from."""
    _require_options(plan)
    if storage.is_local(plan.out):
        plan = replace(plan, out=str(Path(storage.filesystem(plan.out)[1]).absolute()))
    require_lasting(plan.out)
    for word in plan.words:
        if word.split("=")[0] in ("out", "resume"):
            raise UserError(f"{word!r}: a sweep names its trials' folders itself. Use --out and --resume.")
    base = load_phases(plan.recipe, [*plan.words, f"out={plan.out}/trials/base"])
    plan = replace(plan, words=(*plan.words, *_words_for_all(plan, base)))
    phases = plan.space.check(plan.recipe, [*plan.words, f"out={plan.out}/trials/base"])
    _require_fit(plan, phases)
    return plan, phases


def _require_options(plan: Plan) -> None:
    for name, given, kind in (("search", plan.search, Search), ("scheduler", plan.scheduler, Scheduler)):
        if given not in get_args(kind):
            raise UserError(
                f"--{name} {given!r} is unknown{nearest(given, get_args(kind))}: {', '.join(get_args(kind))}."
            )
    for name in (plan.objective, *plan.choose):
        known = [*SCORES, _OF_CLIPS, TARGET_MIOU]
        if name not in known and not (name == AGGREGATE and name != plan.objective):
            raise UserError(f"{name!r} is no score{nearest(name, known)}. There are: {', '.join(known)}.")
    if plan.search == "pbt" and (plan.scheduler != "none" or plan.seeds > 1):
        raise UserError(
            "--search pbt is a scheduler itself, whose trials learn from each other: no --scheduler, no --seeds."
        )
    if plan.search == "pbt" and plan.num < 2:
        raise UserError(f"--search pbt needs a population: --num {plan.num} is too few. Give 4 or more.")
    for name in ("num", "points", "seeds", "keep"):
        if getattr(plan, name) < 1:
            raise UserError(f"--{name} {getattr(plan, name)} is too few. Give at least 1.")


def _words_for_all(plan: Plan, base: Sequence[Phase]) -> list[str]:
    """What every trial needs: the scores that are asked for, and a checkpoint at each evaluation."""
    recipe = _last(base)
    wanted = [name for name in SCORES if name in (*recipe.evaluation.scores, plan.objective, *plan.choose)]
    words = [f"evaluation.scores=[{','.join(wanted)}]"]
    if not any(word.startswith("checkpoint.every_steps=") for word in plan.words):
        words.append(f"checkpoint.every_steps={recipe.evaluation.every_steps}")
    return words


def _last(phases: Sequence[Phase]) -> Recipe:
    """The recipe of the last phase that trains: its evaluations decide."""
    trained = [phase.recipe for phase in phases if isinstance(phase.recipe, Recipe)]
    if not trained:
        raise UserError("the recipe has no phase that trains, so there is nothing to score.")
    return trained[-1]


def _require_fit(plan: Plan, phases: Sequence[Phase]) -> None:
    """What would make every trial fail."""
    from distuda.engine.loop import open_data

    recipe = _last(phases)
    if plan.search == "pbt" and (len(phases) > 1 or phases[0].name):
        raise UserError("--search pbt copies checkpoints between trials, and a recipe of phases has several. Use tpe.")
    if len(phases) == 1:
        data = open_data(recipe)  # most mistakes in data show here
        if is_oracle(plan.objective) and not (recipe.evaluation.uri and data.evaluation.labelled):
            raise UserError("--objective target_miou looks at target labels: set evaluation.uri to labelled samples.")


def _agree(plan: Plan, phases: Sequence[Phase]) -> None:
    """Refuse a folder that holds another sweep; leave in a new one what it is."""
    path = storage.join(plan.out, "sweep.json")
    fields = {name: str(kind) for name, kind in plan.space.fields.items()}
    said = {
        "space": fields, "search": plan.search, "points": plan.points, "objective": plan.objective,
        "seeds": plan.seeds, "seed": plan.seed, "recipe": phases_to_yaml(phases),
    }  # fmt: skip
    if storage.exists(path):
        if not plan.resume:
            raise UserError(f"{plan.out!r} holds a sweep already. Go on with it by --resume, or choose another --out.")
        before = json.loads(storage.read_bytes(path))
        if odd := [name for name, value in said.items() if before.get(name) != value]:
            raise UserError(f"the sweep in {plan.out!r} was begun with another {', '.join(odd)}. Restore it, or choose "
                            "another --out.")  # fmt: skip
    storage.write_bytes(path, json.dumps(said, indent=1).encode())


class _Run:
    """One sitting of a sweep: Ray, the trials, their ends."""

    def __init__(self, plan: Plan, phases: Sequence[Phase], records: Records) -> None:
        self.plan, self.records = plan, records
        self.workers, self.steps = _last(phases).workers, total_steps(phases)
        every = _last(phases).evaluation.every_steps
        self.grace = plan.grace or -(-self.steps // (9 * every)) * every
        self.device, self.seed = _last(phases).device, _last(phases).seed

    def search(self) -> None:
        """Run what is left; returns when all trials have ended.

        Raises:
            KeyboardInterrupt: it was interrupted; the trials stay as they are.
        """
        listed = self._listed()
        if listed is not None and all(record.status in ENDED for record in listed):
            return
        concurrent, resources = self._resources(len(listed) if listed else self.plan.num * self.plan.seeds)
        from tune.live import Observer

        num = len(listed) if listed else self.plan.num * self.plan.seeds
        with tempfile.TemporaryDirectory(prefix="distuda-sweep-") as scratch:
            observer = Observer(self.records, self.plan.objective, self.plan.keep, num)
            with observer:
                self._tuner(listed, concurrent, resources, observer, scratch).fit()
        if any(record.status in ("waiting", "running") for record in self.records):
            print(f"interrupted; go on with --resume --out {self.plan.out}", file=sys.stderr, flush=True)
            raise KeyboardInterrupt

    def _listed(self) -> list[Record] | None:
        """All trials of a search that knows them from the start."""
        plan, rng = self.plan, random.Random(self.plan.seed)
        if plan.search == "tpe":
            return None
        drawn = (
            plan.space.grid(plan.points) if plan.search == "grid" else [plan.space.sample(rng) for _ in range(plan.num)]
        )
        return [record for number, one in enumerate(drawn) for record in self.records.add(number, one, plan.seeds)]

    def _offer(self, number: int, configuration: Configuration) -> list[Record]:
        return self.records.add(number, configuration, self.plan.seeds)

    def _config(self, record: Record) -> dict[str, Any]:
        """What a trial's actor is told."""
        return {"trial": {
            "id": record.id, "configuration": record.configuration,
            "words": record.words(self.seed), "ended": record.status in ENDED,
            "replay": self.plan.search != "pbt" or record.status in ENDED,
        }}  # fmt: skip

    def _resources(self, num: int) -> tuple[int, dict[str, float]]:
        """Trials at once, and what one takes of the cluster; starts Ray."""
        plan = self.plan
        wanted = plan.concurrent * (plan.cpus or 1)
        start_ray(num_cpus=int(max(num_cores(), wanted, self.workers * max(1, plan.concurrent))) + 1)
        import ray

        have = ray.cluster_resources()
        spare = max(1.0, have.get("CPU", 1.0) - 1)
        if self.workers:
            fits = max(1, int(spare // self.workers))
            return (num if plan.search == "pbt" else min(num, plan.concurrent or fits)), {"CPU": 0.01}
        gpus = plan.gpus
        if gpus is None:
            gpus = 1.0 if self.device != "cpu" and have.get("GPU", 0) else 0.0
        fits = int(have.get("GPU", 0) / gpus) if gpus else int(spare / (plan.cpus or 1))
        concurrent = max(1, min(num, plan.concurrent or fits))
        # a fair share, so that just as many fit: a population is held back by nothing else
        cpus = plan.cpus or max(0.01, int(100 * spare / concurrent) / 100)
        return concurrent, {"CPU": cpus, **({"GPU": gpus} if gpus else {})}

    def _tuner(
        self, listed: list[Record] | None, concurrent: int, resources: dict[str, float], observer: Any, scratch: str
    ) -> Any:
        # ours say what matters; and Tune's own state is never gone back to
        os.environ.update(
            TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_GLOBAL_CHECKPOINT_S="3600", RAY_AIR_NEW_OUTPUT="0"
        )
        from ray import tune

        logging.getLogger("ray.tune").setLevel(logging.ERROR)

        from tune.search import Tpe, population, scheduler_for
        from tune.trial import TrialActor

        plan = self.plan
        threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, num_cores() // concurrent)
        task = Task(plan.recipe, plan.words, os.getcwd(), threads)
        actor = tune.with_parameters(TrialActor, task=task, out=plan.out, objective=plan.objective)
        if plan.search == "pbt":
            scheduler = population(plan.space, every=self.grace, seed=plan.seed)
        else:
            scheduler = scheduler_for(plan.scheduler, steps=self.steps, grace=self.grace)
        begun = {record.number: record.configuration for record in self.records}
        searcher = None
        if listed is None:
            known = [begun[number] for number in sorted(begun)]
            searcher = Tpe(plan.space, plan.num, plan.seed, known, self._offer, self._config)
        space = {"trial": tune.grid_search([self._config(r)["trial"] for r in listed])} if listed is not None else None
        return tune.Tuner(
            tune.with_resources(actor, resources),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=None if plan.search == "pbt" or searcher or plan.scheduler != "none" else "objective",
                mode=None if plan.search == "pbt" or searcher or plan.scheduler != "none" else "max",
                search_alg=searcher, scheduler=scheduler, reuse_actors=True,
                num_samples=plan.num * plan.seeds if searcher else 1,
                max_concurrent_trials=None if plan.search == "pbt" else concurrent,
                trial_name_creator=_name, trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="sweep", storage_path=scratch, verbose=0, callbacks=[observer],
                failure_config=tune.FailureConfig(max_failures=LOST),
            ),
        )  # fmt: skip


def _name(trial: Any) -> str:
    return str(trial.config["trial"]["id"])


def chosen_by(plan: Plan, records: Records) -> list[str]:
    """The scores that decide: those named, or for the aggregate every label-free one that all trials have."""
    if AGGREGATE not in plan.choose:
        return list(plan.choose) or [plan.objective]
    ended = records.ended()
    names = list(ended[0].scores) if ended else [plan.objective]
    return [name for name in names if not is_oracle(name) and all(name in record.scores for record in ended)
            and (name in SCORES or name == _OF_CLIPS)]  # fmt: skip


def finish(plan: Plan, records: Records, seed: int) -> dict[str, str]:
    """Choose, and write the results; ``seed`` is the recipe's, from which repeats count on.

    Raises:
        RunFailed: no trial came to an end.
    """
    by = chosen_by(plan, records)
    ranked = ranking(records, by, plan.seeds)
    best = None
    if ranked:
        best = load_phases(plan.recipe, [*plan.words, *ranked[0].records[0].words(seed)])
    written = write_results(records, ranked, best, by)
    written["sweep.html"] = write_report(records, ranked, plan.space, plan.objective, by)
    if not ranked:
        failures = [record.reason for record in records if record.status == "failed"]
        raise RunFailed(f"no trial came to an end; the first failed with: {failures[0] if failures else 'nothing ran'}")
    print(f"chosen by {', '.join(map(label_of, by))}: configuration {ranked[0].number}", file=sys.stderr, flush=True)
    return written
