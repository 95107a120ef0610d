"""Search spaces: which fields of a recipe are varied and how, in YAML over the recipe's own dotted paths.

    optimizer.lr: {loguniform: [5.0e-5, 1.0e-3]}
    augment.flip: {uniform: [0, 0.5]}
    rounds: {int: [1, 3]}
    phases.erase.relabel.share: {uniform: [0.1, 0.4]}
    method.name:
      choice:                                             # or a list, where nothing depends on the option
        minent: {method.lambda_ent: {loguniform: [1.0e-4, 1.0e-2]}}
        advent: {method.lambda_adv: {loguniform: [1.0e-4, 1.0e-2]}}

A configuration is a mapping path -> value, the paths in the order in which they were chosen, and as such a list of
words for `plan.load_phases`. What a space may hold is decided by the recipe: `Space.check` reads ends and inside of
every range and every option through it before anything starts.
"""

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from distuda.errors import UserError
from distuda.plan import Phase, load_phases, word

Configuration = dict[str, Any]
"""Path -> value; plain values that JSON keeps."""

MOST_GRID = 10_000
"""Points beyond which a grid is taken for a mistake [configurations]."""

_PERTURBATION = (0.8, 1.25)
"""Factors of population-based training (Jaderberg et al. 2017 use 0.8 and 1.2); ours undo each other."""


class Suggests(Protocol):
    """The part of an Optuna trial that a space asks."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number of a range."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number of a range."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of several."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``log`` = evenly over orders of magnitude."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        kind = "int" if self.whole else "loguniform" if self.log else "uniform"
        return f"{kind} [{self.low:g}, {self.high:g}]"

    def sample(self, rng: random.Random) -> float:
        """A number of the range."""
        if self.whole:
            return rng.randint(int(self.low), int(self.high))
        return self._at(rng.random())

    def grid(self, points: int) -> list[float]:
        """At most ``points`` numbers, evenly spaced, both ends among them."""
        shares = [i / (points - 1) for i in range(points)] if points > 1 else [0.5]
        numbers = [self._at(share) for share in shares]
        return sorted({round(number) for number in numbers}) if self.whole else numbers

    def _at(self, share: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + share * (high - low)
        return self.clip(math.exp(value) if self.log else value)

    def clip(self, value: float) -> float:
        """The nearest number inside, six digits of it: a word in a recipe is for people too."""
        inside = min(self.high, max(self.low, float(f"{value:.6g}")))
        return round(inside) if self.whole else float(inside)

    def perturb(self, value: float, rng: random.Random) -> float:
        """Another number nearby; a whole one moves by at least one, and one at an end of the range inwards."""
        moved = [value * factor for factor in _PERTURBATION]
        if self.whole:
            moved = [value + (1 if one > value else -1) if round(one) == value else one for one in moved]
        inside = [one for one in map(self.clip, moved) if one != value]
        away = self.low + max(int(self.whole), (self.high - self.low) / 5)
        return rng.choice(inside or [self.clip(away)])  # no factor leads away from 0

    def suggest(self, trial: Suggests, name: str) -> float:
        """The number that Optuna wants tried."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high))
        return self.clip(trial.suggest_float(name, self.low, self.high, log=self.log))

    def ends(self) -> list[float]:
        """What must be valid for all between to be: both ends and, unless whole, a number that is not."""
        return [self.low, self.high, *([] if self.whole else [self._at(0.381966)])]


@dataclass(frozen=True)
class Choice:
    """One of several values, each with the fields that are searched only under it."""

    options: tuple[Any, ...]
    inner: Mapping[str, "Space"] = field(default_factory=dict)

    def __str__(self) -> str:
        under = [f"{option}{f' with {space}' if (space := self.under(option)) else ''}" for option in self.options]
        return f"choice [{', '.join(under)}]"

    def ends(self) -> list[Any]:
        """What must be valid: every option."""
        return list(self.options)

    def under(self, option: Any) -> "Space | None":
        """The fields that depend on an option."""
        return self.inner.get(str(option))


@dataclass(frozen=True)
class Space:
    """Fields by their dotted path, in the file's order.

    Attributes:
        name: where it was read, for messages; spaces are the same by their fields.
        fields: what each path may become.
    """

    name: str = field(compare=False, repr=False)
    fields: Mapping[str, Range | Choice]

    def __str__(self) -> str:
        return f"{{{', '.join(f'{path}: {kind}' for path, kind in self.fields.items())}}}"

    def sample(self, rng: random.Random) -> Configuration:
        """A configuration by chance, every field on its own."""

        def pick(_: str, kind: Range | Choice) -> Any:
            return kind.sample(rng) if isinstance(kind, Range) else rng.choice(kind.options)

        return self._walk(pick)

    def grid(self, points: int) -> list[Configuration]:
        """All combinations of every option and of ``points`` numbers of every range.

        Raises:
            UserError: so many that it must be a mistake.
        """
        size = self._grid_size(points)
        if size > MOST_GRID:
            raise UserError(
                f"the grid over {self.name} with {points} points a range has {size:,} configurations. Search at "
                "random, or fix fields on the command line and leave them out of the space."
            )
        return list(self._grid(points))

    def _grid_size(self, points: int) -> int:
        sizes = []
        for kind in self.fields.values():
            if isinstance(kind, Range):
                sizes.append(len(kind.grid(points)))
            else:
                under = [kind.under(option) for option in kind.options]
                sizes.append(sum(space._grid_size(points) if space else 1 for space in under))
        return math.prod(sizes)

    def _grid(self, points: int) -> Iterator[Configuration]:
        columns: list[list[Configuration]] = []
        for path, kind in self.fields.items():
            if isinstance(kind, Range):
                columns.append([{path: number} for number in kind.grid(points)])
                continue
            column: list[Configuration] = []
            for option in kind.options:
                space = kind.under(option)
                column += [{path: option, **rest} for rest in (space._grid(points) if space else [{}])]
            columns.append(column)
        for parts in itertools.product(*columns):
            yield {path: value for part in parts for path, value in part.items()}

    def suggest(self, trial: Suggests) -> Configuration:
        """The configuration that Optuna wants tried: it meets the fields as they are asked for (define by run)."""

        def pick(name: str, kind: Range | Choice) -> Any:
            if isinstance(kind, Range):
                return kind.suggest(trial, name)
            words = [json.dumps(option) for option in kind.options]  # Optuna keeps plain values only
            return kind.options[words.index(trial.suggest_categorical(name, words))]

        return self._walk(pick)

    def parameters(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """The answers that would make `suggest` give this configuration."""
        answers: dict[str, Any] = {}

        def pick(name: str, kind: Range | Choice) -> Any:
            value = configuration[name.rpartition("/")[2]]
            answers[name] = value if isinstance(kind, Range) else json.dumps(value)
            return value

        self._walk(pick)
        return answers

    def perturb(self, configuration: Mapping[str, Any], rng: random.Random) -> Configuration:
        """A configuration nearby: every number moves; options stay, or a copied checkpoint might not fit."""

        def pick(name: str, kind: Range | Choice) -> Any:
            value = configuration[name.rpartition("/")[2]]
            return kind.perturb(value, rng) if isinstance(kind, Range) else value

        return self._walk(pick)

    def _walk(self, pick: Any, prefix: str = "") -> Configuration:
        """Ask for every field that applies, by its path and the options that lead there."""
        chosen: Configuration = {}
        for path, kind in self.fields.items():
            chosen[path] = pick(prefix + path, kind)
            if isinstance(kind, Choice) and (space := kind.under(chosen[path])):
                chosen |= space._walk(pick, f"{prefix}{path}={chosen[path]}/")
        return chosen

    def paths(self) -> list[str]:
        """Every path, those under options too, each once."""
        return list(dict.fromkeys(path for path, _ in self._everywhere()))

    def _everywhere(self) -> Iterator[tuple[str, Range | Choice]]:
        """Every field, those of its own first and then those under options, however deep."""
        yield from self.fields.items()
        for kind in self.fields.values():
            if isinstance(kind, Choice):
                for space in kind.inner.values():
                    yield from space._everywhere()

    def ranges(self) -> dict[str, Range]:
        """Every path that is a range somewhere, with the range that spans all of them."""
        spans: dict[str, Range] = {}
        for path, kind in self._everywhere():
            if isinstance(kind, Range):
                old = spans.get(path, kind)
                spans[path] = Range(min(old.low, kind.low), max(old.high, kind.high), old.log and kind.log, kind.whole)
        return spans

    def check(self, recipe: str | None, words: Sequence[str] = ()) -> list[Phase]:
        """Read ends and inside of every range and every option through the recipe; gives the recipe's own phases.

        The fields beside a choice are read under each of its options too: a method lacks other methods' fields.

        Args:
            recipe: path of the YAML file that is searched from, or None.
            words: those of the command line, which hold for every trial.

        Raises:
            UserError: what the recipe refuses, with the space's name, the path and the value.
        """
        phases = load_phases(recipe, words)
        given = {word.partition("=")[0] for word in words}
        fixed = [path for path in self.paths() if path in given or (_is_kind(path) and path[: -len(".name")] in given)]
        if twice := next(iter(fixed), None):
            raise UserError(f"{self.name}: {twice!r} is searched and also fixed on the command line. Leave one out.")
        self._check(recipe, words, {}, {})
        return phases

    def check_drawn(self, drawn: Iterable[Configuration], recipe: str | None, words: Sequence[str] = ()) -> None:
        """Read whole configurations through the recipe; arguments and errors as in `check`."""
        for configuration in drawn:
            self._read(recipe, words, configuration, list(configuration))

    def _check(
        self, recipe: str | None, words: Sequence[str], above: Configuration, beside: Mapping[str, Range | Choice]
    ) -> None:
        """Each field alone, then under each option of a choice the others: those here and those ``beside`` it above.

        A field of a method that is itself chosen is read under that choice alone: without it there is another method.
        """
        around = [*self.paths(), *beside]
        for path, kind in self.fields.items():
            for value in kind.ends() if not _hangs_on(path, around) else ():
                self._read(recipe, words, {**above, path: value}, [path])
            for other, choice in beside.items():
                for option in choice.ends() if _hangs_on(path, [other]) else ():
                    for value in kind.ends():
                        self._read(recipe, words, {**above, other: option, path: value}, [other, path])
        choices = [(path, kind) for path, kind in self.fields.items() if isinstance(kind, Choice)]
        for path, choice in choices:
            others = {**beside, **{other: kind for other, kind in self.fields.items() if other != path}}
            for option in choice.options:
                here, space = {**above, path: option}, choice.under(option)
                chosen = [*Space(self.name, others).paths(), *(space.paths() if space else [])]
                for other, kind in others.items():
                    for value in kind.ends() if not _hangs_on(other, chosen) else ():
                        self._read(recipe, words, {**here, other: value}, [path, other])
                if space:
                    space._check(recipe, words, here, others)

    def _read(self, recipe: str | None, words: Sequence[str], chosen: Configuration, named: Sequence[str]) -> None:
        """Read a configuration through the recipe; an error names these of its fields."""
        try:
            load_phases(recipe, [*words, *words_of(chosen)])
        except UserError as error:
            said = " ".join(word(path, chosen[path]) for path in named)
            where = " A field that only some options have is written under these." if len(named) == 2 else ""
            raise UserError(f"{self.name}: {said}: {error}{where if 'unknown field' in str(error) else ''}") from None


def words_of(configuration: Mapping[str, Any]) -> list[str]:
    """A configuration, or other fields, as overrides; a chosen method replaces the file's with all its fields."""
    named = ((path.removesuffix(".name") if _is_kind(path) else path, value) for path, value in configuration.items())
    return [word(path, value) for path, value in named]


def _hangs_on(path: str, chosen: Iterable[str]) -> bool:
    """Whether it is a field of a method or relabelling that is among these, chosen too."""
    return not _is_kind(path) and path.startswith(tuple(one.removesuffix("name") for one in chosen if _is_kind(one)))


def _is_kind(path: str) -> bool:
    return path in ("method.name", "relabel.name") or path.endswith((".method.name", ".relabel.name"))
