"""What a run is made of: one typed recipe, read from YAML and dotted overrides, checked before anything starts.

Precedence, lowest first: the defaults here, the YAML file, `name=value` words. Unknown fields and bad values become
one `UserError` that gives the field's path, what was given, what is allowed and the nearest valid name.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator
from yaml import YAMLError

from distuda import storage
from distuda.data.augment import GeometryConfig, PhotometryConfig
from distuda.data.style import StyleConfig
from distuda.errors import UserError, nearest, plainly
from distuda.methods import METHODS, MethodConfig
from distuda.metrics.label_free import DEFAULT_SCORES, SCORES, ScoreName
from distuda.relabel import RELABELS, RelabelConfig

DEFAULT_METHOD = "self_training"

Size = tuple[PositiveInt, PositiveInt]


class Section(BaseModel):
    """A part of a recipe: unknown names are refused, values are checked again when set."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Domain(Section):
    """Where one domain's samples come from and how they are ordered."""

    uri: str | None = Field(description="prepared shards: a folder, an fsspec URI, or streets://STYLE")
    columns: list[str] = Field(
        [],
        description="relabel phases, or their folders, whose columns stand beside the shards; the later counts",
    )
    size: Size | None = Field(None, description="height and width every image is resized to, none = native [pixels]")
    window: int = Field(4, ge=1, description="row groups shuffled together; memory grows with it [row groups]")
    max_bad_share: float = Field(
        0.0, ge=0, le=1, description="samples that may be damaged and are passed over, 0 = stop at the first [share]"
    )


class Source(Domain):
    """The labelled domain."""

    uri: str = Field(
        "streets://day", description="labelled prepared shards: a folder, an fsspec URI, or streets://STYLE"
    )
    rare_class_temperature: float | None = Field(
        None, gt=0, description="rare-class sampling; lower favours rare classes more, none = off (DAFormer: 0.01)"
    )
    rare_class_min_pixels: int = Field(
        3000, ge=1, description="an image holds a class if it has more pixels of it than this, at native size [pixels]"
    )
    rare_class_crop_pixels: int = Field(
        1500, ge=0, description="with rare-class sampling, a crop is redrawn until it shows more of the class [pixels]"
    )


class Target(Domain):
    """The domain the model must work in; its labels, if any, are not used for training."""

    uri: str | None = Field(
        "streets://dusk",
        description="unlabelled prepared shards: a folder, an fsspec URI, or streets://STYLE; none = no target",
    )


class Evaluation(Section):
    """How a run is scored while it trains."""

    uri: str | None = Field(
        "streets://dusk/val",
        description="labelled target samples, for scoring only; none = label-free scores on the target",
    )
    size: Size | None = Field(
        None, description="size images are fed at, none = native; scores are at label size [pixels]"
    )
    every_steps: int = Field(
        500, ge=1, description="steps between evaluations; the last step is always evaluated [steps]"
    )
    limit: int | None = Field(None, ge=1, description="evaluate only the first images, none = all [images]")
    scores: list[Literal["all", ScoreName]] = Field(
        list(DEFAULT_SCORES), description="label-free scores to compute; of clips temporal_consistency always is"
    )
    source_uri: str | None = Field(
        None, description="held-out labelled source samples for source_miou; none = the first it is trained on"
    )
    source_limit: int = Field(100, ge=1, description="source_miou looks at the first so many [images]")

    @field_validator("scores", mode="before")
    @classmethod
    def _split(cls, scores: Any) -> Any:
        """``evaluation.scores=entropy,source_miou`` is short for a list."""
        return scores.split(",") if isinstance(scores, str) else scores

    @field_validator("scores")
    @classmethod
    def _all(cls, scores: list[Any]) -> list[Any]:
        return [name for name in SCORES if name in scores or "all" in scores]


class ModelConfig(Section):
    """The network."""

    name: Literal[
        "lite", "deeplabv2_resnet101", "deeplabv2_resnet50", "deeplabv2_resnet18", "deeplabv2_vgg16",
        "deeplab_largefov_vgg16",
        "mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5", "hf",
    ] = Field("lite", description="architecture")  # fmt: skip
    weights: str = Field(
        "imagenet", description="starting weights: imagenet, none, or the path of a published state dict"
    )
    decoder: Literal["daformer", "segformer"] = Field(
        "daformer", description="over the encoder's stages (mit_* and hf; the others have their own)"
    )
    backbone: str | None = Field(
        None, description="of hf: a folder or hub id of a transformers backbone; imagenet are then its own weights"
    )
    multi_level: bool = Field(True, description="auxiliary head on layer3 (ResNets only; ADVENT's multi-level variant)")
    detail: Size | None = Field(
        None,
        description="height and width of full-size windows beside the image at half size (HRDA: half the crop), "
        "none = one scale [pixels]",
    )
    batch_norm: Literal["train", "frozen"] = Field(
        "train", description="normalise training batches by their own statistics, or by the starting weights' (frozen)"
    )

    @model_validator(mode="after")
    def _no_idle_field(self) -> "ModelConfig":
        if self.decoder != "daformer" and not self.name.startswith(("mit_", "hf")):
            raise ValueError(f"decoder={self.decoder!r} is for mit_* and hf, and {self.name} has its own: leave it out")
        if self.backbone is not None and self.name != "hf":
            raise ValueError(f"backbone={self.backbone!r} is for name=hf, not {self.name}: leave it out, or set that")
        return self


class Augment(GeometryConfig, StyleConfig):
    """Training crops, the strong view, and whether the source looks like the target."""

    photometry: PhotometryConfig = Field(
        default_factory=lambda: PhotometryConfig(), description="colour jitter and blur of strong views"
    )
    photometry_labelled: bool = Field(True, description="labelled images are seen through the same jitter and blur")


class OptimizerConfig(Section):
    """The student's optimiser and every learning rate's schedule."""

    name: Literal["adamw", "sgd"] = Field("adamw", description="update rule")
    lr: float = Field(2e-4, gt=0, description="learning rate of the encoder")
    head_lr_factor: float = Field(10.0, gt=0, description="the heads learn at lr times this")
    weight_decay: float = Field(
        0.01, ge=0, description="decoupled for adamw, L2 for sgd; none on norms and biases with adamw"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adamw")
    schedule: Literal["poly", "step", "constant"] = Field("poly", description="how all learning rates decay")
    poly_power: float = Field(0.9, gt=0, description="lr * (1 - step / decay_steps) ** this")
    decay_steps: int | None = Field(None, ge=1, description="step at which poly reaches 0, none = steps [steps]")
    step_at: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.4], description="with schedule=step, shares of decay_steps at which rates are multiplied by step_factor"
    )
    step_factor: float = Field(0.1, gt=0, le=1, description="with schedule=step")
    warmup_steps: int = Field(0, ge=0, description="linear rise of the student's learning rate from near 0 [steps]")
    clip_norm: float | None = Field(
        None, gt=0, description="largest gradient norm of all parameters together, none = off"
    )


class CheckpointConfig(Section):
    """What is kept of a run."""

    every_steps: int = Field(500, ge=1, description="steps between checkpoints; the last step always has one [steps]")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    best_by: Literal["target_miou", "temporal_consistency", ScoreName] = Field(
        "information_maximisation",
        description="chooses `best` among checkpoints of evaluated steps: one of evaluation.scores, of clips "
        "temporal_consistency; target_miou looks at target labels",
    )


if TYPE_CHECKING:
    AnyMethod = MethodConfig
    AnyRelabel = RelabelConfig
else:  # built from the visible dicts, so a new method or relabel phase needs no edit here

    def _one_of(kinds: Iterable[Any]) -> Any:
        return Annotated[reduce(or_, (kind.Config for kind in kinds)), Field(discriminator="name")]

    AnyMethod, AnyRelabel = _one_of(METHODS.values()), _one_of(RELABELS.values())

_CHOICES: dict[str, tuple[Any, str]] = {"method": (METHODS, "method"), "relabel": (RELABELS, "relabel phase")}
"""Fields whose section depends on its ``name``: what there is to choose from, and what one is called."""


class Recipe(Section):
    """Everything a run needs; written into its folder as resolved."""

    out: str | None = Field(None, description="run folder, any fsspec URI; none = runs/METHOD-TIME")
    resume: bool = Field(False, description="go on from the last checkpoint in `out`")
    init_from: str | None = Field(None, description="run folder whose final student this one starts from")
    seed: int = Field(0, ge=0, lt=2**31, description="decides fresh weights, sample order and every augmentation draw")
    steps: int = Field(2000, ge=1, description="optimiser steps; each takes one source and one target batch [steps]")
    batch_size: int = Field(4, ge=1, description="samples a domain, worker and step [images]")
    accumulate: int = Field(1, ge=1, description="micro-batches a step; divides batch_size")
    workers: int = Field(0, ge=0, description="Ray Train workers; 0 = train in this process without Ray")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where a worker computes; auto = CUDA if there is one"
    )
    precision: Literal["fp32", "bf16"] = Field("bf16", description="of the networks' arithmetic; weights stay float32")
    channels_last: bool = Field(True, description="memory layout of images and weights; faster on most hardware")
    compile: bool = Field(False, description="torch.compile the method; pays off on long GPU runs")
    source: Source = Field(default_factory=lambda: Source(), description="the labelled domain")
    target: Target = Field(default_factory=lambda: Target(), description="the unlabelled domain")
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation(), description="scoring during training")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig(), description="the network")
    method: AnyMethod = Field(default_factory=lambda: METHODS[DEFAULT_METHOD].Config(), description="what is minimised")
    augment: Augment = Field(default_factory=lambda: Augment(), description="training crops and views")
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(), description="updates and schedule")
    checkpoint: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig(), description="what is kept")
    log_every_steps: int = Field(20, ge=1, description="steps between lines of metrics.jsonl [steps]")
    tensorboard: bool = Field(False, description="also write TensorBoard events (extra `tensorboard`)")

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """What training looks at beside the images, by domain: what the method does, and the images that give style."""
        return self.method.reads if self.augment.style == "none" else {"target": (), **self.method.reads}


class RelabelRecipe(Section):
    """What a relabel phase needs: whose samples it looks at, with which network, and what it writes beside them."""

    out: str | None = Field(None, description="folder of the columns, any fsspec URI")
    resume: bool = Field(False, description="go on with the row groups that are missing in `out`")
    init_from: str | None = Field(None, description="run folder whose final network is used")
    workers: int = Field(0, ge=0, description="Ray actors; 0 = in this process without Ray")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the network computes")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="of the network's arithmetic")
    source: Source = Field(default_factory=lambda: Source(), description="the labelled, or tagged, domain")
    target: Target = Field(default_factory=lambda: Target(), description="the unlabelled domain")
    relabel: AnyRelabel = Field(description="what is written")


Kind = TypeVar("Kind", Recipe, RelabelRecipe)


def load_recipe(path: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """A checked recipe from an optional YAML file or URI and dotted overrides such as ``optimizer.lr=1e-4``.

    Raises:
        UserError: an unreadable file, an unknown field, a bad value; one message names all of them.
    """
    config = read_config(path)
    if "phases" in config:
        raise UserError(f"recipe {path!r} has phases, and one recipe is asked for. `distuda train` runs all phases.")
    return build_recipe(config, overrides)


def read_config(path: str | None) -> DictConfig:
    """The mapping that a YAML file or URI holds, interpolations unresolved; empty without one.

    Raises:
        UserError: a file that is missing, unreadable or no mapping.
    """
    try:
        config = OmegaConf.create(storage.read_bytes(path).decode()) if path else OmegaConf.create({})
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read recipe {path}: {error}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"recipe {path!r} must be a mapping of fields. See `distuda train --help`.")
    return config


def build_recipe(config: DictConfig, overrides: Sequence[str] = ()) -> Recipe:
    """A checked recipe from a mapping of fields and dotted overrides; raises `UserError` as `load_recipe`."""
    return parse_recipe(plain_values(config, overrides))


def plain_values(config: DictConfig, overrides: Sequence[str] = ()) -> Any:
    """A mapping of fields with dotted overrides over it, interpolations resolved, as plain types."""
    try:
        return OmegaConf.to_container(_merge(config, overrides), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"cannot read recipe {' '.join(overrides)}: {error}") from error


def _merge(config: Any, overrides: Sequence[str]) -> Any:
    """Overrides over the file. ``method=advent`` takes the place of the file's method with all its fields."""
    words = []
    for word in overrides:
        if "=" not in word:
            raise UserError(f"override {word!r} has no '='. Write it as field=value, for example steps=500.")
        if match := re.fullmatch(r"(method|relabel)=\w+", word):
            config.pop(match[1], None)
            word = word.replace("=", ".name=")
        words.append(word)
    for choice in _CHOICES:
        if isinstance(config.get(choice), str):  # `method: advent` is short for its name
            config[choice] = {"name": config[choice]}
    return OmegaConf.merge(config, OmegaConf.from_dotlist(words))


def parse_recipe(values: Any) -> Recipe:
    """A checked recipe from plain values. Raises `UserError` listing every mistake."""
    if isinstance(values, dict) and isinstance(values.get("method"), dict):
        values = {**values, "method": {"name": DEFAULT_METHOD, **values["method"]}}
    return _parse(values, Recipe)


def parse_relabel(values: Any) -> RelabelRecipe:
    """A checked recipe of a relabel phase from plain values. Raises `UserError` listing every mistake."""
    return _parse(values, RelabelRecipe)


def _parse(values: Any, kind: type[Kind]) -> Kind:
    if isinstance(values, dict):
        values = _with_nones(values, kind)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        mistakes = dict.fromkeys(_explain(dict(item), values, kind) for item in error.errors())
        raise UserError("\n".join(mistakes)) from None


def _with_nones(values: dict[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """The word ``none`` becomes None where a field may be empty; for others, as ``model.weights``, it is a word."""
    done = dict(values)
    for name, field in section.model_fields.items():
        inner = _section_of(section, name, values)
        if inner is not None and isinstance(values.get(name), dict):
            done[name] = _with_nones(values[name], inner)
        elif values.get(name) == "none" and type(None) in get_args(field.annotation):
            done[name] = None
    return done


def _explain(error: dict[str, Any], values: Any, kind: type[BaseModel]) -> str:
    """One mistake as: path, what was given, what is allowed, nearest name."""
    location = [str(part) for part in error["loc"]]
    if location and location[0] in _CHOICES:
        location[1:2] = []  # pydantic puts the chosen name there
    if too_few := error["type"] == "missing" and location[-1].isdigit():  # pydantic names each value that lacks
        location.pop()
    path = ".".join(location)
    if error["type"] == "extra_forbidden":
        names = _names_at(location[:-1], values, kind)
        hint = nearest(location[-1], names)
        return f"unknown field {path!r}{hint}. Fields there: {', '.join(names)}."
    if error["type"] == "union_tag_invalid":
        given, (choices, noun) = error["ctx"]["tag"], _CHOICES[path]
        return f"{path}.name={given!r} is not a {noun}{nearest(given, choices)}. Allowed: {', '.join(choices)}."
    given = error["input"]
    hint = ""
    if error["type"] == "literal_error" and isinstance(given, str):
        hint = nearest(given, [word.strip("' ") for word in error["ctx"]["expected"].replace(" or ", ",").split(",")])
    allowed = "has too few values" if too_few else plainly(error["msg"])
    return f"{path}={given!r} is not valid{hint}: {allowed}. {_description(location, values, kind)}".rstrip()


def _names_at(location: list[str], values: Any, kind: type[BaseModel]) -> list[str]:
    section: Any = kind
    for part in location:
        section = _section_of(section, part, values)
        if section is None:
            return []
    return list(section.model_fields)


def _section_of(section: type[BaseModel], name: str, values: Any = None) -> Any:
    """The model class behind a field, or None for a plain value."""
    if section in (Recipe, RelabelRecipe) and name in _CHOICES:
        given = values.get(name) if isinstance(values, dict) else None
        chosen = _CHOICES[name][0].get(given.get("name", DEFAULT_METHOD)) if isinstance(given, dict) else None
        return chosen.Config if chosen else None
    field = section.model_fields.get(name)
    kinds = [field.annotation, *get_args(field.annotation)] if field else []  # a section, or one that may be none
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _description(location: list[str], values: Any, kind: type[BaseModel]) -> str:
    section: Any = kind
    for part in location[:-1]:
        section = _section_of(section, part, values)
        if section is None:
            return ""
    field = section.model_fields.get(location[-1]) if location else None
    return f"Meaning: {field.description}." if field and field.description else ""


def fields() -> Iterator[tuple[str, str, str, str]]:
    """Every field as (path, type, default, description with unit), for `distuda train --help`."""
    yield from _walk(Recipe, "")
    for choice, (kinds, _) in _CHOICES.items():
        for name, kind in kinds.items():
            rows = _walk(kind.Config, f"{choice}[{name}].")
            yield from (row for row in rows if not row[0].endswith("].name"))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        if section is Recipe and name == "method":
            yield "method.name", " | ".join(METHODS), DEFAULT_METHOD, field.description or ""
            continue
        inner = _section_of(section, name)
        if inner is None or inner is not field.annotation:
            default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
            yield prefix + name, _type_name(field.annotation), default, field.description or ""
        if inner is not None:
            yield from _walk(inner, f"{prefix}{name}.")


def _type_name(annotation: Any) -> str:
    """A type as a user would write it: ``int, int`` for pairs, ``a | b`` for choices."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (tuple, list):
        return f"[{', '.join(_type_name(part) for part in arguments)}]"
    if arguments:
        return " | ".join(_type_name(part) for part in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "the fields below"
    return "none" if annotation is type(None) else str(getattr(annotation, "__name__", annotation))


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json")))
