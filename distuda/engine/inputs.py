"""What a run reads, opened and checked before anything is spent."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from distuda.data.dataset import Dataset, open_dataset
from distuda.engine.source_scores import SourceScores, open_source_scores
from distuda.errors import UserError
from distuda.recipe import Recipe


@dataclass
class Data:
    """The opened data sets of a run."""

    source: Dataset
    target: Dataset | None
    evaluation: Dataset
    source_scores: SourceScores | None = None


def open_data(recipe: Recipe, coming: Mapping[str, Collection[str]] = MappingProxyType({})) -> Data:
    """Open and check all data sets before anything is spent.

    Args:
        recipe: what is trained.
        coming: by domain, columns that a phase before this one will write; their absence is no mistake yet.

    Raises:
        UserError: missing data, a domain without what the method looks at, different class tables.
    """
    source = open_dataset(recipe.source.uri, recipe.source.columns)
    target = open_dataset(recipe.target.uri, recipe.target.columns) if recipe.target.uri else None
    evaluation = open_dataset(recipe.evaluation.uri) if recipe.evaluation.uri else target or source
    method = recipe.method
    if target is None and ("target" in recipe.reads or method.calibrate_images):
        raise UserError(
            f"method {method.name!r} looks at target images, but target.uri=none. Set it (a source-only run that does "
            "without has method.calibrate_images=0 and augment.style=none)."
        )
    for name, columns in recipe.reads.items():
        dataset = source if name == "source" else target
        assert dataset is not None
        for column in columns:
            if column in coming.get(name, ()):
                continue
            why = f"method {method.name!r} looks at {column!r} of the {name} ({name}.uri)"
            _require(why, dataset, column)
    for name, data in (("target", target), ("evaluation", evaluation)):
        if data is not None and data.table.classes != source.table.classes:
            raise UserError(
                f"source has class table {source.table.name!r} {list(source.table.classes)}, {name} has "
                f"{data.table.name!r} {list(data.table.classes)}. Prepare both with the same --classes."
            )
    _require_score(recipe, evaluation)
    _require_style(recipe)
    _require_detail(recipe)
    _require_one_size(recipe, source)
    labels_come = "label" in coming.get("source", ())
    source_scores = open_source_scores(recipe, recipe.evaluation.scores, source, labels_come=labels_come)
    if recipe.batch_size % recipe.accumulate:
        raise UserError(
            f"accumulate={recipe.accumulate} does not divide batch_size={recipe.batch_size}. Choose a divisor."
        )
    return Data(source, target, evaluation, source_scores)


def _require_score(recipe: Recipe, evaluation: Dataset) -> None:
    """Refuse to choose checkpoints by a score that no evaluation will have."""
    name, computed = recipe.checkpoint.best_by, recipe.evaluation.scores
    if name == "target_miou":
        if not (recipe.evaluation.uri and evaluation.manifest.num_labelled):  # of clips one frame in many will do
            raise UserError(
                "checkpoint.best_by='target_miou' needs labelled evaluation.uri. Set it, or choose another score."
            )
    elif name == "temporal_consistency":
        if not evaluation.moving:
            raise UserError(
                f"checkpoint.best_by={name!r} needs clips, and {evaluation.uri!r} holds none. Choose another score."
            )
    elif name not in computed:
        raise UserError(
            f"checkpoint.best_by={name!r} is not in evaluation.scores ({', '.join(computed) or 'empty'}). Add it "
            "there, or choose another score."
        )


def _require_style(recipe: Recipe) -> None:
    """Refuse to restyle source images that the method does not look at."""
    if recipe.augment.style != "none" and "source" not in recipe.method.reads:
        raise UserError(
            f"augment.style={recipe.augment.style!r} gives source images the target's style, and method "
            f"{recipe.method.name!r} looks at no source image as it is set. Set augment.style=none."
        )


def _require_detail(recipe: Recipe) -> None:
    """Refuse windows that are larger than the crops they are cut from."""
    detail, crop = recipe.model.detail, recipe.augment.crop
    if detail and crop and (detail[0] > crop[0] or detail[1] > crop[1]):
        raise UserError(
            f"model.detail={_words(detail)} (height, width) does not fit into augment.crop={_words(crop)}. Choose "
            "windows inside it; HRDA's are half as high and half as wide."
        )


def _require_one_size(recipe: Recipe, source: Dataset) -> None:
    """Refuse to look for rare classes in whole images that make no batch."""
    if recipe.source.rare_class_temperature is None or recipe.source.size is not None:
        return
    sizes = _sizes(source)
    if len(sizes) > 1:
        two = " and ".join(map(_words, sizes[:2]))
        raise UserError(
            f"source.rare_class_temperature={recipe.source.rare_class_temperature} looks for crops in whole images, "
            f"and those of {source.uri!r} have {len(sizes)} sizes, such as {two} "
            "(height, width). Give them one with source.size, or set source.rare_class_temperature=none."
        )


def _sizes(data: Dataset) -> list[tuple[int, int]]:
    """Different (height, width) of a data set's images, ascending."""
    pairs = np.stack([data.index[side].to_numpy() for side in ("height", "width")], axis=1)
    return [(int(height), int(width)) for height, width in np.unique(pairs, axis=0)]


def _words(size: tuple[int, int]) -> str:
    return f"[{size[0]},{size[1]}]"


def _require(why: str, data: Dataset, column: str) -> None:
    """What `Dataset.require` refuses, with who asks for it."""
    try:
        data.require(column, drawn=True)
    except UserError as error:
        raise UserError(f"{why}: {error}") from None


def doubts(recipe: Recipe, data: Data) -> Iterator[str]:
    """What is allowed and hardly meant."""
    if (start := getattr(recipe.method, "start_step", 0)) >= recipe.steps:
        yield (
            f"method.start_step={start} is not within steps={recipe.steps}: what begins there will not. Lower it, or "
            "train longer."
        )
    if (warmup := recipe.optimizer.warmup_steps) >= recipe.steps:
        yield (
            f"optimizer.warmup_steps={warmup} is not within steps={recipe.steps}: the learning rate never gets to "
            "optimizer.lr. Lower it, or train longer."
        )
    area = math.prod(recipe.augment.crop or (0,))
    if recipe.source.rare_class_temperature and area and (least := recipe.source.rare_class_crop_pixels) >= area:
        yield (
            f"source.rare_class_crop_pixels={least} is all of a crop or more ({area} pixels): no crop shows that much, "
            "so any will do. Lower it."
        )
    random = recipe.model.weights == "none" and not recipe.init_from
    if (weight := getattr(recipe.method, "lambda_distance", 0)) and random:
        yield (
            f"method.lambda_distance={weight} keeps features near those of random weights (model.weights=none). Start "
            "from imagenet or init_from, or set it to 0."
        )
    crop, zoom = recipe.augment.crop, recipe.augment.scale[0]
    if crop and data.target is not None and "target" in recipe.method.reads:
        smallest = recipe.target.size or tuple(min(side) for side in zip(*_sizes(data.target), strict=True))
        if any(small * zoom < side for small, side in zip(smallest, crop, strict=True)):
            yield (
                f"target images of {_words((smallest[0], smallest[1]))} (height, width) do not fill "
                f"augment.crop={_words(crop)} at augment.scale={zoom:g}. The rest is black, and entropy, "
                "discriminators and consistency look at it too. Choose a smaller crop, or a larger target.size."
            )
