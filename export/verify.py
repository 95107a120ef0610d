"""Does the exported file compute what torch computes? Measured on real images, odd sizes and a batch included.

The reference is `export.onnx.Deployed` in float32 on the CPU; the file runs in `export.runtime.Predictor`, as it
will in use. Shape legend: B images, H and W pixels, C classes or colour channels.
"""

import copy
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray

from distuda import storage
from distuda.data.dataset import open_dataset
from distuda.data.decode import resize_image
from distuda.data.reader import iterate_once
from distuda.engine.evaluate import logits_at
from distuda.engine.run import Run, open_run
from distuda.errors import UserError
from distuda.metrics.confusion import Confusion
from distuda.models.segmenter import Segmenter
from distuda.models.tags import Prohibiting
from export.errors import PredictError
from export.onnx import Deployed, build_onnx
from export.runtime import Predictor

if TYPE_CHECKING:
    from rich.table import Table

Result = TypeVar("Result")
Images = Sequence[NDArray[np.uint8]]
Labels = Sequence[NDArray[np.uint8] | None]

_REPEATS = 3  # timed runs at each size, after the first
_VARIED = 2  # images that are also tried at other sizes
_SMALLEST = 33  # pixels; networks need 32


class ExportMismatch(RuntimeError):
    """The file does not compute what torch computes: our failure, exit code 1. The message says by how much."""


@dataclass(frozen=True)
class Limits:
    """What a file may differ by.

    Attributes:
        agreement: least share of pixels with the same class, at every size.
        confidence: largest difference of any confidence.
        miou: largest difference of mIoU, over the classes that the labels show.
        tags: largest difference of any tag's score.
    """

    agreement: float = 0.999
    confidence: float = 0.01
    miou: float = 0.001
    tags: float = 0.001


class Case(NamedTuple):
    """Images of one size; label is uint8 train ids, 255 = ignore, or None."""

    name: str
    image_BHWC: NDArray[np.uint8]
    label_BHW: NDArray[np.uint8] | None


@dataclass
class Row:
    """What was measured at one kind of size.

    Attributes:
        name: which sizes.
        sizes: (height, width) that occurred.
        num_images, num_pixels: compared.
        num_agreeing: pixels with the same class.
        num_undecided: images of which only the tags are compared (`_decided`).
        confidence_error, logit_error, tag_error: largest absolute differences; the latter two None when the file has
            no logits, or no tags.
        torch_s, onnx_s: seconds of the first (cold) call and of each later one at the first size, one batch each.
    """

    name: str
    sizes: set[tuple[int, int]] = field(default_factory=set)
    num_images: int = 0
    num_pixels: int = 0
    num_agreeing: int = 0
    num_undecided: int = 0
    confidence_error: float = 0.0
    logit_error: float | None = None
    tag_error: float | None = None
    torch_s: list[float] = field(default_factory=list)
    onnx_s: list[float] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        """Share of pixels with the same class, in [0, 1]; NaN where no image is left to compare."""
        return self.num_agreeing / self.num_pixels if self.num_pixels else float("nan")


@dataclass
class Report:
    """Everything `verify` measured.

    Attributes:
        provider: what ran the file.
        load_s: seconds to load the file, first tiny image included.
        rows: one a kind of size.
        miou_torch, miou_onnx: of the images at their own size, over the classes that the labels show, in [0, 1]; None
            without labels.
        miou_evaluated: torch with images resized as training and evaluation do; None without labels or size.
        agreement_evaluated: share of pixels where that gives the file's class; None without a size.
    """

    provider: str
    load_s: float
    rows: list[Row] = field(default_factory=list)
    miou_torch: float | None = None
    miou_onnx: float | None = None
    miou_evaluated: float | None = None
    agreement_evaluated: float | None = None

    def failures(self, limits: Limits) -> list[str]:
        """What lies beyond the limits, in words; empty when the file is right."""
        failed = []
        for row in self.rows:
            if not row.num_pixels:
                failed.append(f"{row.name}: each image has a tag on the threshold, so no class map can be compared")
            elif row.agreement < limits.agreement:
                failed.append(f"{row.name}: {row.agreement:.4%} of pixels agree, {limits.agreement:.4%} are needed")
            if not row.confidence_error <= limits.confidence:  # NaN fails too
                failed.append(
                    f"{row.name}: confidence differs by {row.confidence_error:.3g}, limit {limits.confidence:g}"
                )
            if row.tag_error is not None and not row.tag_error <= limits.tags:
                failed.append(f"{row.name}: scores of tags differ by {row.tag_error:.3g}, limit {limits.tags:g}")
        if self.miou_torch is not None and self.miou_onnx is not None:
            difference = abs(self.miou_torch - self.miou_onnx)
            if not difference <= limits.miou:
                failed.append(f"mIoU differs by {difference:.4f}, limit {limits.miou:g}")
        return failed

    def require(self, limits: Limits | None = None) -> None:
        """Raise `ExportMismatch` when anything lies beyond the limits."""
        failed = self.failures(limits or Limits())
        if failed:
            raise ExportMismatch(
                f"the exported file differs from torch, so it was not kept: {'; '.join(failed)}. Please report this "
                "with the versions of torch, onnx and onnxruntime, and the model's name."
            )

    def table(self) -> "Table":
        """For printing with rich: one line a size, mIoU below."""
        from rich.table import Table

        table = Table(
            title=f"ONNX against torch ({self.provider}, loaded in {self.load_s:.2f} s)", caption=self._caption()
        )
        headings = ["size", "images", "same class", "confidence", "logits", "torch cold / warm", "onnx cold / warm"]
        has_tags = any(row.tag_error is not None for row in self.rows)
        for heading in [*headings, *["tags"] * has_tags]:
            table.add_column(heading, justify="left" if heading == "size" else "right")
        for row in self.rows:
            first = min(row.sizes)
            more = "" if len(row.sizes) == 1 else f" and {len(row.sizes) - 1} more"
            table.add_row(
                f"{row.name} {first[1]}x{first[0]}{more}",
                str(row.num_images),
                f"{row.agreement:.4%}",
                f"{row.confidence_error:.1e}",
                "" if row.logit_error is None else f"{row.logit_error:.1e}",
                _latency(row.torch_s),
                _latency(row.onnx_s),
                *([] if row.tag_error is None else [f"{row.tag_error:.1e}"]),
            )
        return table

    def _caption(self) -> str:
        lines = []
        if self.miou_torch is not None:
            lines.append(f"mIoU over labelled classes {self.miou_torch:.2%} torch, {self.miou_onnx:.2%} onnx")
        if self.agreement_evaluated is not None:
            scored = "" if self.miou_evaluated is None else f" (mIoU {self.miou_evaluated:.2%})"
            lines.append(f"{self.agreement_evaluated:.2%} same class as evaluation{scored}")
        if undecided := sum(row.num_undecided for row in self.rows):
            lines.append(f"{undecided} images with a tag on the threshold: only their tags are compared")
        return "\n".join(lines)


def _latency(seconds: list[float]) -> str:
    return f"{seconds[0] * 1000:.0f} / {statistics.median(seconds[1:] or seconds) * 1000:.0f} ms"


def verify(onnx: str | bytes, model: Segmenter, images: Images, labels: Labels | None = None) -> Report:
    """Compare a file with the network it came from; `Report.require` then refuses what differs too much.

    Every image is compared at its own size; the first ones also at an odd smaller size and as a batch of odd crops.

    Args:
        onnx: path or fsspec URI of the file, or its content.
        model: the network that was exported, on any device; it is left as it is.
        images: uint8 RGB (H, W, 3), real ones, at least one of 66 x 66 pixels or more.
        labels: for each image uint8 train ids (H, W) with 255 = ignore, or None.
    """
    started_s = time.perf_counter()
    with _as_our_failure() if isinstance(onnx, bytes) else nullcontext():
        predictor = Predictor(onnx, "cpu")
    report = Report(predictor.provider, time.perf_counter() - started_s)
    deployed = Deployed(copy.deepcopy(model).cpu().float().eval(), predictor.size)
    scores = [Confusion(model.num_classes) for _ in range(2)]
    rows: dict[str, Row] = {}
    for case in _cases(images, labels or [None] * len(images)):
        row = rows.setdefault(case.name, Row(case.name))
        _compare(row, case, deployed, predictor, scores)
    report.rows = list(rows.values())
    if scores[0].counts_CC.any():
        report.miou_torch, report.miou_onnx = (_labelled_miou(score) for score in scores)
    if predictor.size is not None:
        _compare_with_evaluation(report, deployed, predictor, images, labels)
    return report


@contextmanager
def _as_our_failure() -> Iterator[None]:
    """What the file cannot compute and torch can is no mistake of the user's."""
    try:
        yield
    except PredictError as error:
        raise ExportMismatch(
            f"the exported graph fails where torch does not, so it was not kept: {error} Some networks leave their "
            "graph fit for one image size only (of transformers' backbones Swin v2, and Swin where its windows need no "
            "padding). Choose another model, or please report this with the model's name."
        ) from error


def _cases(images: Images, labels: Labels) -> Iterator[Case]:
    """Each image as it is; the first ones also resized to odd sides, and cropped to odd sides beside their mirror.

    Labels come with the images as they are alone, as in evaluation.
    """
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield Case("native", image[None], None if label is None else label[None])
        if number >= _VARIED:
            continue
        height, width = (max(_SMALLEST, side * 3 // 4 | 1) for side in image.shape[:2])
        yield Case("three quarters, odd", resize_image(image, (height, width))[None], None)
        height, width = (min(side, max(_SMALLEST, side // 2 | 1)) for side in image.shape[:2])
        crop = image[-height:, -width:]
        yield Case("odd crop and mirror", np.stack([crop, crop[:, ::-1]]), None)


def _compare(row: Row, case: Case, deployed: Deployed, predictor: Predictor, scores: Sequence[Confusion]) -> None:
    """Add one case to its row and, where it has labels, to the scores (torch, onnx)."""
    repeats = 0 if row.num_images else _REPEATS
    image = torch.from_numpy(case.image_BHWC.copy())
    with torch.inference_mode():
        expected, seconds = _timed(lambda: deployed(image), repeats)
    row.torch_s += seconds
    with _as_our_failure():
        given, seconds = _timed(lambda: predictor.run(case.image_BHWC), repeats)
    row.onnx_s += seconds
    class_map, confidence, logits, *tags = (tensor.numpy() for tensor in expected)
    row.sizes.add((class_map.shape[1], class_map.shape[2]))
    row.num_images += len(class_map)
    decided = np.ones(len(class_map), bool)
    if tags:
        row.tag_error = _larger(row.tag_error, tags[0], given["tags"])
        decided = _decided(deployed.model, tags[0], given["tags"])
        row.num_undecided += int((~decided).sum())
    row.num_pixels += class_map[decided].size
    row.num_agreeing += int((class_map == given["class_map"])[decided].sum())
    row.confidence_error = _larger(row.confidence_error, confidence[decided], given["confidence"][decided])
    if "logits" in given:
        row.logit_error = _larger(row.logit_error, logits[decided], given["logits"][decided])
    if case.label_BHW is not None:
        label = torch.from_numpy(case.label_BHW[decided].copy())
        for score, prediction in zip(scores, (class_map, given["class_map"]), strict=True):
            score.update(torch.from_numpy(prediction[decided]), label)


def _larger(error: float | None, expected: NDArray[np.float32], given: NDArray[np.float32]) -> float:
    """The largest absolute difference so far; NaN stays NaN."""
    return float(np.maximum(error or 0.0, np.abs(expected - given).max(initial=0.0)))


def _decided(model: Segmenter, expected_NC: NDArray[np.float32], given_NC: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Images whose class maps must agree, (N,).

    Where the score of a tag lies on the threshold of a prohibiting network, rounding decides whether the class may
    appear, and with it any number of pixels: both answers are right, as long as the scores agree.
    """
    if not isinstance(model, Prohibiting):
        return np.ones(len(expected_NC), bool)
    return np.asarray(((expected_NC >= model.threshold) == (given_NC >= model.threshold)).all(axis=1))


def _timed(function: Callable[[], Result], repeats: int) -> tuple[Result, list[float]]:
    """The function's result and, when repeats are asked for, the seconds of its first and its repeated calls."""
    started_s = time.perf_counter()
    result = function()
    seconds = [time.perf_counter() - started_s]
    for _ in range(repeats):
        started_s = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started_s)
    return result, seconds if repeats else []


def _labelled_miou(score: Confusion) -> float:
    """Mean IoU over the classes that the labels show.

    The usual mean also counts a class that is only predicted; then one changed pixel could move it by a whole class.
    """
    return float(score.iou()[score.counts_CC.sum(1).numpy() > 0].mean())


def _compare_with_evaluation(
    report: Report, deployed: Deployed, predictor: Predictor, images: Images, labels: Labels | None
) -> None:
    """Whether the graph's own resize gives what evaluation gets from images that were resized beforehand."""
    assert predictor.size is not None
    score, agreeing, pixels = Confusion(deployed.model.num_classes), 0, 0
    for number, image in enumerate(images):
        small = torch.from_numpy(resize_image(image, predictor.size).copy()).permute(2, 0, 1)[None]
        with torch.inference_mode():
            evaluated = logits_at(deployed.model, small, (image.shape[0], image.shape[1])).argmax(1)[0].to(torch.uint8)
        agreeing += int((evaluated.numpy() == predictor.predict(image).class_map).sum())
        pixels += evaluated.numel()
        label = None if labels is None else labels[number]
        if label is not None:
            score.update(evaluated, torch.from_numpy(label.copy()))
    report.agreement_evaluated = agreeing / pixels
    report.miou_evaluated = _labelled_miou(score) if score.counts_CC.any() else None


def export_run(
    run_uri: str,
    *,
    which: str = "last",
    out: str | None = None,
    num_images: int = 8,
    licence: str | None = None,
    with_logits: bool = False,
) -> tuple[str, Report]:
    """Export a run's network, check it on the run's own images, and only then write the file.

    Args:
        run_uri: run folder.
        which: checkpoint, ``last`` or ``best``.
        out: path or URI of the file, None = ``model.onnx`` in the run folder; an older file there stays when the check
            fails.
        num_images: images of the run's evaluation set (of its target set without one) that it is checked on.
        licence: what the file says of its terms; None = that they follow from data and starting weights, with
            their names.
        with_logits: add the output ``logits``.

    Returns:
        where the file lies, and what was measured.

    Raises:
        UserError: no run, checkpoint or data there.
        ExportMismatch: the file differs from torch beyond `Limits`; nothing was written.
    """
    if num_images < 1:
        raise UserError(f"num_images={num_images}: a file is checked on at least one image. Give 1 or more.")
    run = open_run(run_uri, which)
    images, labels = _images_of(run, num_images)
    size = run.recipe.evaluation.size
    content = build_onnx(
        run.predictor, table=run.table, size=size, metadata=_origin(run, which, licence), with_logits=with_logits
    )
    report = verify(content, run.predictor, images, labels)
    report.require()
    path = out or storage.join(run_uri, "model.onnx")
    storage.write_bytes(path, content)
    return path, report


def _images_of(run: Run, num_images: int) -> tuple[Images, Labels | None]:
    """The first images of the run's evaluation or target set at native size; labels of the evaluation set alone."""
    uri = run.recipe.evaluation.uri
    dataset = open_dataset(uri or run.recipe.target.uri or run.recipe.source.uri)
    batches = list(islice(iterate_once(dataset), num_images))
    images = [np.ascontiguousarray(batch.image_BCHW[0].permute(1, 2, 0).numpy()) for batch in batches]
    if uri is None or not dataset.labelled:
        return images, None
    return images, [None if b.label_BHW is None else b.label_BHW[0].to(torch.uint8).numpy() for b in batches]


def _origin(run: Run, which: str, licence: str | None) -> dict[str, str]:
    """Where a file comes from, as metadata properties."""
    recipe = run.recipe
    source, target = _public(recipe.source.uri), _public(recipe.target.uri or "none")
    provenance: dict[str, Any] = {
        "run": _public(run.uri),
        "checkpoint": which,
        "step": run.step,
        "model": recipe.model.name,
        "starting_weights": _public(recipe.model.weights),
        "method": recipe.method.name,
        "source": source,
        "target": target,
        "seed": recipe.seed,
        "torch": torch.__version__,
    }
    terms = f"not stated; follows from the data ({source}, {target}) and the starting weights ({recipe.model.name})"
    return {
        "recipe_hash": hashlib.sha256(storage.read_bytes(storage.join(run.uri, "recipe.yaml"))).hexdigest(),
        "licence": licence or terms,
        "provenance": json.dumps(provenance),
    }


def _public(uri: str) -> str:
    """A URI without what should not travel with a model: folders of this machine, user names, passwords, queries."""
    if storage.is_local(uri):
        return uri.rstrip("/").rsplit("/", 1)[-1]
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rsplit('@', 1)[-1]}{parts.path}"
