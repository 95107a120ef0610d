"""Where configurations come from and which trials are ended early: Ray Tune's parts, set up for runs in folders."""

import json
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from tune.records import Record
from tune.space import Configuration, Space, words_of

REDUCTION = 3
"""Of ASHA: one trial in so many goes on at each rung (Li et al., MLSys 2020, use 4; ours has few trials)."""

REPEATS = 100
"""Suggestions in a row, all known, after which a space is taken to have no other configuration worth a trial."""

Offer = Callable[[int, Configuration], Sequence[Record]]
"""Number and values of a new configuration -> its trials, one a seed."""


class Tpe(Searcher):
    """Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011) by Optuna, which meets the space as it runs.

    In place of Tune's OptunaSearch, which cannot be told earlier results of a space that is defined by running it and
    keeps its state as a pickle. Here a resumed search first offers what it had offered, in the same order.

    Args:
        space: what is searched.
        num: configurations in all.
        seed: of the sampler.
        begun: configurations of a sweep that goes on.
        offer: gives a configuration's trials.
        config_of: gives a trial's Tune config.
    """

    def __init__(
        self,
        space: Space,
        num: int,
        seed: int,
        begun: Sequence[Configuration],
        offer: Offer,
        config_of: Callable[[Record], dict[str, Any]],
    ) -> None:
        super().__init__(metric="objective", mode="max")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # what was begun takes nothing from the sampler, which would then draw its first configurations once more
        sampler = optuna.samplers.TPESampler(
            seed=seed + len(begun), n_startup_trials=max(4, num // 4), multivariate=False
        )
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        for configuration in begun:
            self.study.enqueue_trial(space.parameters(configuration))
        self.space, self.num, self.offer, self.config_of = space, num, offer, config_of
        self.begun = len(begun)
        self.number_of: dict[str, int] = {}
        self.waiting: list[Record] = []
        self.asked: dict[int, optuna.Trial] = {}
        self.record_of: dict[str, Record] = {}
        self.values: dict[int, list[float]] = {}
        self.open: dict[int, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The config of the next trial; all seeds of a configuration follow each other."""
        if not self.waiting:
            number = len(self.asked)
            if number == self.num:
                return str(Searcher.FINISHED)
            if (found := self._ask(number)) is None:
                print(
                    f"{REPEATS} suggestions in a row from {self.space.name} were not new: {number} configurations "
                    f"differ enough, and these are trained instead of {self.num}", file=sys.stderr, flush=True,
                )  # fmt: skip
                self.num = number
                return str(Searcher.FINISHED)
            self.asked[number], configuration = found
            self.waiting = list(self.offer(number, configuration))
            self.open[number], self.values[number] = len(self.waiting), []
        record = self.record_of[trial_id] = self.waiting.pop(0)
        return self.config_of(record)

    def _ask(self, number: int) -> tuple[optuna.Trial, Configuration] | None:
        """A suggestion that differs from all before, or one of those that the search began with; None if none comes."""
        for _ in range(REPEATS):
            trial = self.study.ask()
            configuration = self.space.suggest(trial)
            before = self.number_of.setdefault(json.dumps(configuration), number)
            if before == number or number < self.begun:
                return trial, configuration
            values = self.values[before]  # a repeat is worth what it was, if that is known yet
            told = {"values": sum(values) / len(values)} if values else {"state": optuna.trial.TrialState.FAIL}
            self.study.tell(trial, **told)
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna a configuration's mean once all its seeds are done."""
        number = self.record_of[trial_id].number
        value = float("nan") if error or not result else float(result.get("objective", "nan"))
        self.open[number] -= 1
        if value == value:
            self.values[number].append(value)
        if self.open[number]:
            return
        values = self.values[number]
        if values:
            self.study.tell(self.asked[number], sum(values) / len(values))
        else:
            self.study.tell(self.asked[number], state=optuna.trial.TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' own files say all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


def scheduler_for(name: str, *, steps: int, grace: int, judged: Mapping[str, int]) -> TrialScheduler:
    """Tune's scheduler of a name, with steps counted by ourselves: Tune's own count starts anew after a restart.

    Trials are compared in their last phase alone: on what comes before the fields of later phases have no bearing yet,
    and it may have nothing to score.

    Args:
        name: ``none``, ``asha`` (Li et al., MLSys 2020) or ``median`` (Golovin et al., KDD 2017).
        steps: of a trial's last phase.
        grace: of these, those that every trial gets.
        judged: trials with evaluations in earlier sittings and the step, over all phases, of the last: up to there
            everything has been decided.
    """
    if name == "asha":
        return _Asha(
            judged, time_attr="last_step", metric="objective", mode="max", max_t=steps, grace_period=min(grace, steps),
            reduction_factor=REDUCTION,
        )  # fmt: skip
    if name == "median":
        return _Median(
            judged, time_attr="last_step", metric="objective", mode="max", grace_period=grace, min_samples_required=3
        )
    return FIFOScheduler()


class _Asha(ASHAScheduler):
    """Tune's, which would decide once more on what a resumed trial only tells again, in whatever order that comes."""

    def __init__(self, judged: Mapping[str, int], *, max_t: int, **options: Any) -> None:
        super().__init__(max_t=max_t, **options)
        self._judged, self._steps = judged, max_t

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's decision on what is new. A rung takes each trial once, so what a lost process repeats changes none."""
        decision = super().on_trial_result(tune_controller, trial, result)
        # of one told again that is the last it may have more to do than to evaluate, as phases that do not train
        to_its_end = result["replayed"] and result["last_step"] >= self._steps
        known = to_its_end or _is_judged(trial, result, self._judged)
        return str(TrialScheduler.CONTINUE if known else decision)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The last result; that of a trial that failed is nothing to compare others with."""
        if math.isfinite(result.get("objective", math.nan)):
            super().on_trial_complete(tune_controller, trial, result)


def _is_judged(trial: Any, result: Mapping[str, Any], judged: Mapping[str, int]) -> bool:
    return bool(result["step"] <= judged.get(str(trial), 0))


class _Median(MedianStoppingRule):
    """Tune's rule, which would pause a trial, and so save it, while there are too few others to compare it with.

    It would also end each trial that once had no objective, as in a phase that has nothing to score: the best of values
    with a NaN among them is NaN, and no median is that. And it would decide on, or count twice, what is told again.
    """

    def __init__(self, judged: Mapping[str, int], **options: Any) -> None:
        super().__init__(**options)
        self._judged = judged
        self._heard: set[tuple[str, int]] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's decision, by the results that have an objective, on those that are new."""
        if trial in self._stopped_trials:  # which could not be noted the first time
            return str(TrialScheduler.STOP)
        if _is_judged(trial, result, self._judged):
            self.on_trial_complete(tune_controller, trial, result)  # which takes it and decides nothing
        elif self._is_new(trial, result):
            return str(super().on_trial_result(tune_controller, trial, result))
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The last result, which decides nothing; a trial that failed has none to compare others with."""
        if self._is_new(trial, result):
            super().on_trial_complete(tune_controller, trial, result)

    def _is_new(self, trial: Any, result: Mapping[str, Any]) -> bool:
        """Whether it has an objective, of its last phase, and its step is heard of for the first time, now noted."""
        step = int(result.get("last_step", 0))
        key = (str(trial), step)
        if step <= 0 or not math.isfinite(result.get("objective", math.nan)) or key in self._heard:
            return False
        self._heard.add(key)
        return True

    def _on_insufficient_samples(self, *_: Any) -> str:
        return str(TrialScheduler.CONTINUE)


def population(space: Space, *, every: int, seed: int) -> PopulationBasedTraining:
    """Population-based training (Jaderberg et al. 2017): the last quarter goes on from copies of the first quarter.

    Args:
        space: what is perturbed.
        every: steps between decisions.
        seed: of the perturbations.
    """
    rng = random.Random(seed)

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        trial = config["trial"]
        configuration = space.perturb(trial["configuration"], rng)
        # its donor is the checkpoint that Tune hands over, not the one its copied configuration once began with
        return {"trial": {**trial, "configuration": configuration, "words": words_of(configuration), "donor": None}}

    return PopulationBasedTraining(
        time_attr="step", metric="objective", mode="max", perturbation_interval=every, custom_explore_fn=explore,
        log_config=False,
    )  # fmt: skip
