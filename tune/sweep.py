"""`distuda sweep`: search the fields of a recipe by scores that need no target labels.

Ray Tune decides which trial runs where and which ends early. The truth about a sweep lies in its own folder
(`records`), so a killed driver, worker or cluster costs the steps since the trials' checkpoints and nothing else:
a resumed sweep lets every trial that is over report its evaluations again, which costs nothing and tells scheduler and
search all they knew.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from distuda import storage
from distuda.cluster.interrupts import keep_interrupts
from distuda.errors import RunFailed, UserError
from distuda.plan import Phase, load_phases
from tune.lease import Lease
from tune.plan import Plan, agree, drawn, grace_of, last_recipe, settle
from tune.records import ENDED, Record, Records
from tune.report import write_report
from tune.resources import Resources, share_of_cluster, threads_of
from tune.results import chosen_by, doubt, how_chosen, is_oracle, label_of, ranking, worth_keeping, write_results
from tune.run import Task
from tune.space import Configuration

POPULATION = "population"
"""Folder in that of a sweep by population-based training, until it has ended: Tune's notes."""


def sweep(plan: Plan) -> dict[str, str]:
    """Search as planned and give the URIs of ``best.yaml``, ``results.parquet`` and ``sweep.html``.

    Raises:
        UserError: a mistake in recipe, space or options, before anything starts; a folder that holds another sweep.
        RunFailed: no trial came to an end.
    """
    plan, phases = settle(plan)
    with Lease(plan.out) as lease:
        begun = storage.exists(storage.join(plan.out, "sweep.json"))
        plan = agree(plan, phases)
        records = Records(plan.out, lease.require_if_late)
        try:
            _Run(plan, phases, records, lease).search()
        except UserError:  # this machine has not what the trials ask for; corrected words must find no sweep
            if not begun and all(record.status == "waiting" for record in records):
                for record in records:
                    storage.remove(records.folder(record.id))
                storage.remove(storage.join(plan.out, "sweep.json"))
            raise
        return finish(plan, records, last_recipe(phases).seed)


class _Run:
    """One sitting of a sweep: Ray, the trials, their ends."""

    def __init__(self, plan: Plan, phases: Sequence[Phase], records: Records, lease: Lease) -> None:
        self.plan, self.records, self.lease = plan, records, lease
        self.recipe, self.grace = last_recipe(phases), grace_of(plan, phases)
        self.first_seeds = 1 if plan.scheduler != "none" else plan.seeds

    def search(self) -> None:
        """Run what is left; returns when all trials have ended.

        With a scheduler the first seed decides which configurations come to their end, and the others repeat those.

        Raises:
            KeyboardInterrupt: it was interrupted; the trials stay as they are.
        """
        plan = self.plan
        listed = self._listed()
        self._sit(listed, plan.size * plan.seeds if listed is None else len(listed), plan.scheduler)
        if self.first_seeds < plan.seeds:
            survivors = [record for record in self.records if record.status == "finished" and not record.repeat]
            again = [r for one in survivors for r in self.records.add(one.number, one.configuration, plan.seeds)[1:]]
            self._sit(again, len(again), "none")
            self._end_repeats_of_stopped()
        if plan.search == "pbt":  # not after an interruption: a trial may be about to go on from such a copy
            storage.remove(storage.join(plan.out, POPULATION))
            self.records.free_donations()

    def _end_repeats_of_stopped(self) -> None:
        """Other seeds of a configuration that ended early, begun while the sweep had no scheduler yet, are over too."""
        stopped = {record.number for record in self.records if record.status == "stopped" and not record.repeat}
        for record in self.records:
            if record.repeat and record.number in stopped and record.status in ("waiting", "running"):
                record.status = "stopped"
                self.records.save(record)

    def _sit(self, listed: list[Record] | None, num: int, scheduler: str) -> None:
        """Run these trials, or those that a search offers, to their ends."""
        if listed is not None and all(record.status in ENDED for record in listed):
            return
        plan = self.plan
        concurrent, resources = share_of_cluster(
            self.recipe, num, concurrent=plan.concurrent, cpus=plan.cpus, gpus=plan.gpus
        )
        from tune.live import Observer

        with tempfile.TemporaryDirectory(prefix="distuda-sweep-") as scratch:
            observer = Observer(
                self.records, plan.objective, plan.choose, plan.seeds, plan.keep, max(num, len(self.records))
            )
            self.lease.require()
            with observer, keep_interrupts():
                self._tuner(listed, concurrent, resources, scheduler, observer, scratch).fit()
            self.lease.require()
            observer.free()  # nobody writes any more
        mine = [r for r in self.records if r.repeat < self.first_seeds and r.number < plan.size]
        mine = mine if listed is None else listed
        if any(record.status in ("waiting", "running") for record in mine):
            print(f"interrupted; go on with --resume --out {plan.out}", file=sys.stderr, flush=True)
            raise KeyboardInterrupt

    def _listed(self) -> list[Record] | None:
        """All trials of a search that knows them from the start; of a population those that have not ended.

        Those that have ended come first: what they tell again is what a scheduler compares the others with. A member
        of a population that has ended teaches the others nothing any more, and told again it would be given another
        configuration.
        """
        plan = self.plan
        if plan.search == "tpe":
            return None
        listed = [r for number, one in enumerate(drawn(plan)) for r in self._offer(number, one)]
        left = [r for r in listed if r.status not in ENDED]
        return left if plan.search == "pbt" else [*(r for r in listed if r.status in ENDED), *left]

    def _offer(self, number: int, configuration: Configuration) -> list[Record]:
        return self.records.add(number, configuration, self.first_seeds)

    def _config(self, record: Record) -> dict[str, Any]:
        """What a trial's actor is told."""
        name, step = record.donor or ("", 0)
        return {"trial": {
            "id": record.id, "configuration": record.configuration,
            "words": record.words(self.recipe.seed), "ended": record.step if record.status in ENDED else 0,
            "replay": self.plan.search != "pbt",
            "donor": {"folder": self.records.folder(name), "step": step} if name else None,
        }}  # fmt: skip

    def _tuner(
        self, listed: list[Record] | None, concurrent: int, resources: Resources, scheduler_name: str, observer: Any,
        scratch: str,
    ) -> Any:  # fmt: skip
        # ours say what matters; and Tune's own state is never gone back to
        os.environ.update(
            TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_GLOBAL_CHECKPOINT_S="3600", RAY_AIR_NEW_OUTPUT="0"
        )
        from ray import tune

        logging.getLogger("ray.tune").setLevel(logging.ERROR)

        from tune.live import LOST
        from tune.search import Tpe, population, scheduler_for
        from tune.trial import TrialActor

        plan = self.plan
        task = Task(plan.recipe, plan.words, os.getcwd(), threads_of(self.recipe, concurrent, resources))
        actor = tune.with_parameters(TrialActor, task=task, out=plan.out, objective=plan.objective)
        if plan.search == "pbt":
            scheduler = population(plan.space, every=self.grace, seed=plan.seed)
        else:
            judged = {record.id: record.step for record in self.records}
            scheduler = scheduler_for(scheduler_name, steps=self.recipe.steps, grace=self.grace, judged=judged)
        begun = {record.number: record.configuration for record in self.records}
        searcher = None
        if listed is None:
            known = [begun[number] for number in sorted(begun)]
            searcher = Tpe(plan.space, plan.size, plan.seed, known, self._offer, self._config)
        storage_of_tune = _shared(plan.out) if plan.search == "pbt" else {"storage_path": scratch}
        unsteered = plan.search != "pbt" and searcher is None and scheduler_name == "none"
        space = {"trial": tune.grid_search([self._config(r)["trial"] for r in listed])} if listed is not None else None
        return tune.Tuner(
            tune.with_resources(actor, resources),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="objective" if unsteered else None, mode="max" if unsteered else None,
                search_alg=searcher, scheduler=scheduler, reuse_actors=True,
                num_samples=plan.size * self.first_seeds if searcher else 1,
                max_concurrent_trials=None if plan.search == "pbt" else concurrent,
                trial_name_creator=_name, trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="sweep", verbose=0, callbacks=[observer], **storage_of_tune,
                failure_config=tune.FailureConfig(max_failures=LOST),
                # a trial's run folder is its checkpoint; Tune's own lie where other nodes may not reach
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )  # fmt: skip


def _shared(out: str) -> dict[str, Any]:
    """Where Tune keeps a population's notes of who may be copied: nodes must find each other's."""
    fs, path = storage.filesystem(storage.join(out, POPULATION))
    if storage.is_local(out):
        return {"storage_path": path}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _name(trial: Any) -> str:
    return str(trial.config["trial"]["id"])


def finish(plan: Plan, records: Records, seed: int) -> dict[str, str]:
    """Choose, and write the results; ``seed`` is the recipe's, from which repeats count on.

    Raises:
        RunFailed: no trial came to an end, or none with the scores that decide.
    """
    by = chosen_by(plan.choose, plan.objective, records)
    ranked = ranking(records, by, plan.objective, plan.seeds)
    best = None
    if ranked:
        records.free_checkpoints(worth_keeping(records, by, plan.objective, plan.seeds, plan.keep))
        best = load_phases(plan.recipe, [*plan.words, *ranked[0].records[0].words(seed)])
    written = write_results(records, ranked, best, by, plan.objective)
    written["sweep.html"] = write_report(records, ranked, plan.space, plan.objective, by)
    if not ranked:
        raise RunFailed(_why_none(records, by))
    print(f"chosen {how_chosen(by, plan.objective)}: configuration {ranked[0].number}", file=sys.stderr, flush=True)
    if failed := [record for record in records if record.status == "failed"]:
        print(
            f"{len(failed)} of {len(records)} trials failed, the first with: {failed[0].reason}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    if (against := doubt(ranked)) and not any(map(is_oracle, by)):
        print(f"in doubt: {against}", file=sys.stderr, flush=True)
    return written


def _why_none(records: Records, by: Sequence[str]) -> str:
    """Why no configuration can be chosen, in one sentence."""
    if ended := records.ended():
        names = ", ".join(label_of(name) for name in dict.fromkeys(n for record in ended for n in record.scores))
        return (
            f"{len(ended)} trials came to an end, but none has {' and '.join(by)}, by which the best was to be chosen; "
            f"their checkpoints are kept. They have: {names or 'no score'}. Begin another sweep with one of these."
        )
    failures = [record.reason for record in records if record.status == "failed"]
    return f"no trial came to an end; the first failed with: {failures[0] if failures else 'nothing ran'}"
