"""The report of a run: one HTML file with its numbers, curves, pictures and how they were made. Needs no network."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from distuda import storage
from distuda.data.labels import ClassTable
from distuda.engine.run import open_run
from distuda.metrics.label_free import SCORES
from distuda.recipe import to_yaml
from distuda.report import clip_scores, figures, player
from distuda.report.figures import Series
from distuda.report.gather import SEARCHED_IMAGES, ReportData, Side, gather
from distuda.report.panels import class_palette, entropy_ramp
from distuda.report.pictures import FRAME_MS
from distuda.report.tables import means_over_fewer
from distuda.report.templates import template

_TITLES = {
    "lr": ("learning rate", 1.0),
    "images_per_s": ("throughput [images/s]", 1.0),
    "data_wait_s": ("wait for data [ms a step]", 1e3),
}
"""Logged numbers that are neither losses nor a method's metrics; they come last."""

_BY = " \N{MULTIPLICATION SIGN} "
_OF_CLIPS = {"vpq": "VPQ", "temporal_consistency": "temporal consistency"}
_SCORES = {"information_maximisation": "information maximisation", "entropy": "entropy score"}


def write_report(
    run_uri: str,
    *,
    baseline_uri: str | None = None,
    which: str = "last",
    num_panels: int = 6,
    extras: Mapping[str, Any] | None = None,
) -> str:
    """Write ``report.html`` into a run folder and give its URI.

    Args:
        run_uri: run folder, any fsspec URI.
        baseline_uri: run folder of the source-only run it is measured against.
        which: the checkpoint of both runs: ``last`` or ``best``.
        num_panels: images shown besides those with the largest gain and loss; 0 = no pictures at all.
        extras: further lines of the fact table, name -> value.

    Raises:
        UserError: no run there, no such checkpoint, or a baseline with other classes.
    """
    baseline = open_run(baseline_uri, which) if baseline_uri else None
    data = gather(open_run(run_uri, which), baseline, which=which, num_panels=num_panels, extras=extras)
    uri = storage.join(run_uri, "report.html")
    storage.write_bytes(uri, render(data).encode())
    return uri


def render(data: ReportData) -> str:
    """The HTML text; everything that comes from a run is escaped."""
    ramp = entropy_ramp()
    script, policy = player.script() if data.clips else ("", "")
    return template("report.html.j2").render(
        data=data,
        run=data.run,
        baseline=data.baseline,
        recipe=data.run.run.recipe,
        method=data.run.method,
        gain=_gain(data),
        checkpoint=_checkpoint(data.run, data.which),
        evaluation_uri=data.run.data_uri,
        facts=_facts(data),
        curves=_curves(data),
        progress=_progress(data),
        classes=_class_rows(data),
        legend=list(zip(data.run.run.table.classes, _css_colours(data.run.run.table), strict=True)),
        ramp=", ".join(f"rgb({r}, {g}, {b})" for r, g, b in ramp[::51].tolist()),
        recipe_yaml=to_yaml(data.run.run.recipe),
        searched=SEARCHED_IMAGES,
        signed=_signed,
        sizes=_sizes(data.run),
        lengths=clip_scores.windows(data.run.evaluation),
        over_time=_over_time(data),
        about_windows=clip_scores.WINDOW,
        about_consistency=clip_scores.CONSISTENCY,
        frame_ms=FRAME_MS,
        script=Markup(script),
        script_policy=policy,
    )


def _css_colours(table: ClassTable) -> list[str]:
    return [f"rgb({r}, {g}, {b})" for r, g, b in class_palette(table)[: table.num_classes].tolist()]


def _signed(points: float) -> str:
    """A difference with one decimal, a sign and a true minus."""
    text = f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")
    return "0.0" if text[1:] == "0.0" else text


def _gain(data: ReportData) -> float | None:
    """Difference of mIoU in points."""
    if data.baseline is None or data.baseline.miou is None or data.run.miou is None:
        return None
    return 100 * (data.run.miou - data.baseline.miou)


def _sizes(side: Side) -> str:
    """The label sizes scored at, as the end of a sentence."""
    sizes = [size.replace("x", _BY) for size in side.evaluation.get("label_sizes", [])]
    if len(sizes) > 1:
        return f" at {len(sizes)} label sizes, {sizes[0]} to {sizes[-1]} px"
    return f" at label size {sizes[0]} px" if sizes else ""


def _checkpoint(side: Side, which: str) -> str:
    by = side.run.recipe.checkpoint.best_by.replace("_", " ")
    return f"{which}{f' by {by}' if which == 'best' else ''}, step {side.run.step:,}"


def _facts(data: ReportData) -> list[tuple[str, list[str], bool]]:
    """Rows of the fact table: name, one value a run, and whether the runs were set up differently there."""
    none = "\N{EN DASH}"
    rows = []
    for part, is_setting in ((_settings, True), (_measured, False)):
        columns = [part(side, data.which) for side in data.sides]
        for name in columns[-1]:
            values = [column.get(name, none) for column in columns]
            rows.append((name, values, is_setting and name != "method" and len(set(values)) > 1))
    blank = [none] * (len(data.sides) - 1)
    return rows + [(str(name), [*blank, str(value)], False) for name, value in data.extras.items()]


def _settings(side: Side, which: str) -> dict[str, str]:
    """The essentials of the recipe in words."""
    recipe, optimizer, crop = side.run.recipe, side.run.recipe.optimizer, side.run.recipe.augment.crop
    workers = max(1, int(side.environment.get("workers", recipe.workers)))
    decay = {"constant": "constant", "poly": f"poly, power {optimizer.poly_power:g}"}.get(
        optimizer.schedule, f"times {optimizer.step_factor:g} after {optimizer.step_at} of the steps"
    )
    start = "random weights" if recipe.model.weights == "none" else recipe.model.weights
    each = recipe.batch_size * workers
    split = f" ({recipe.batch_size} a worker, {workers} workers)" if workers > 1 else ""
    return {
        "method": side.method,
        "network": f"{recipe.model.name}, starting from {recipe.init_from or start}",
        "checkpoint": _checkpoint(side, which),
        "steps": f"{recipe.steps:,}",
        "batch": f"{' and '.join(f'{each} {name}' for name in sorted(recipe.reads))} images a step{split}",
        "crop": f"{crop[0]}{_BY}{crop[1]} px" if crop else "whole images",
        "optimiser": f"{optimizer.name}, lr {optimizer.lr:g} (head{_BY}{optimizer.head_lr_factor:g}), {decay}",
        "precision": recipe.precision,
        "seed": str(recipe.seed),
    }


def _measured(side: Side, which: str) -> dict[str, str]:
    """What came out besides mIoU, and where it ran; only what is known."""
    env, scores = side.environment, side.evaluation
    speed = [row["images_per_s"] for row in side.rows if "images_per_s" in row]
    memory = [row["memory_gib"] for row in side.rows if "memory_gib" in row]
    facts = {
        "pixel accuracy": _share_text(scores.get("accuracy")),
        "temporal consistency": _share_text(scores.get("temporal_consistency")),
        "label-free": ", ".join(
            f"{_SCORES.get(key, key.replace('_', ' '))} {figures.number(scores[key])}"
            for key in SCORES
            if key in scores
        ),
        "speed": f"{statistics.median(speed):.1f} images/s, both domains together (median)" if speed else "",
        "peak memory": f"{max(memory):.1f} GiB" if memory else "",
        "versions": ", ".join(f"{name} {env[name]}" for name in ("distuda", "torch", "python") if env.get(name)),
        "code": str(env.get("git") or ""),
        "hardware": ", ".join(str(env[name]) for name in ("processor", "machine") if env.get(name)),
    }
    return {name: value for name, value in facts.items() if value}


def _share_text(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _curves(data: ReportData) -> list[tuple[str, str, Markup]]:
    """Small charts of what was logged while training: title, last smoothed value, picture."""
    lines = _train_lines(data.run)
    others = _train_lines(data.baseline) if data.baseline else {}
    order = sorted(
        lines, key=lambda name: (name in _TITLES, name != "loss")
    )  # sorting is stable: losses stay as logged
    charts = []
    for name in order:
        raw, smoothed = lines[name], figures.smooth(lines[name])
        if not smoothed:
            continue
        series = [Series("as logged", figures.thin(raw), figures.RUN, faint=True)]
        if data.baseline and name in others:
            points = figures.thin(figures.smooth(others[name]))
            series.append(Series(data.baseline.name, points, figures.BASELINE, dashed=True))
        series.append(Series(data.run.name, figures.thin(smoothed), figures.RUN, markers=len(smoothed) == 1))
        title = _TITLES.get(name, (name, 1.0))[0]
        label = f"{title} over steps, from {smoothed[0][1]:.3g} to {smoothed[-1][1]:.3g}"
        picture = figures.line_chart(series, label=label, x_label="step", legend=False, from_zero=True, size=(280, 164))
        charts.append((title, figures.number(smoothed[-1][1]), picture))
    return charts


def _train_lines(side: Side) -> dict[str, list[figures.Point]]:
    lines: dict[str, list[figures.Point]] = {}
    for row in side.rows:
        if row["kind"] == "train":
            for name, value in row.items():
                if isinstance(value, float | int) and name not in ("step", "memory_gib"):
                    lines.setdefault(name, []).append((float(row["step"]), _TITLES.get(name, ("", 1.0))[1] * value))
    return lines


def _progress(data: ReportData) -> list[tuple[str, Markup]]:
    """Charts of the evaluations during training: mIoU where there are labels, label-free scores."""
    charts = []
    looks = {True: (figures.RUN, figures.SECOND), False: (figures.BASELINE, "#c79a6b")}
    miou = [
        Series(
            side.name,
            _evaluations(side, "miou", 100),
            looks[side is data.run][0],
            dashed=side is not data.run,
            markers=True,
        )
        for side in data.sides
    ]
    scores = [
        Series(f"{side.name}: {text}", _evaluations(side, key), colour, dashed=side is not data.run, markers=True)
        for side in data.sides
        for (key, text), colour in zip(_SCORES.items(), looks[side is data.run], strict=True)
    ]
    clips = [
        Series(f"{side.name}: {text}", _evaluations(side, key, 100), colour, dashed=side is not data.run, markers=True)
        for side in data.sides
        for (key, text), colour in zip(_OF_CLIPS.items(), looks[side is data.run], strict=True)
    ]
    for title, series, unit in (
        ("mIoU over steps", miou, "mIoU [%]"),
        ("Clips over steps", clips, "[%]"),
        ("Label-free scores over steps", scores, "score, higher is better"),
    ):
        drawn = [line for line in series if line.points]
        if drawn:
            charts.append((title, figures.line_chart(drawn, label=title, x_label="step", y_label=unit)))
    return charts


def _evaluations(side: Side, key: str, factor: float = 1.0) -> list[figures.Point]:
    rows = [row for row in side.rows if row["kind"] == "evaluation"]
    if not rows and side.evaluation:
        rows = [side.evaluation | {"step": side.run.step}]
    return [(float(row["step"]), factor * row[key]) for row in rows if row.get(key) is not None]


@dataclass
class ClassRow:
    """One line of the class table: IoU and VPQ in per cent, one a run (no VPQ of stills); no colour for the mean."""

    name: str
    colour: str | None
    values: list[float | None]
    quality: list[float | None] = field(default_factory=list)
    bar: str = ""

    @property
    def change(self) -> float | None:
        """Difference of IoU to the baseline in points."""
        return _difference(self.values)

    @property
    def quality_change(self) -> float | None:
        """Difference of VPQ to the baseline in points."""
        return _difference(self.quality)


def _difference(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return known[1] - known[0] if len(known) == 2 else None


def _class_rows(data: ReportData) -> list[ClassRow]:
    """Per-class IoU, the mean over fewer classes if papers have one, and last the mean; empty without labels."""
    if "iou" not in data.run.evaluation:
        return []
    table = data.run.run.table
    rows = [
        ClassRow(name, colour, [_percent(side.evaluation.get("iou", {}).get(name)) for side in data.sides])
        for name, colour in zip(table.classes, _css_colours(table), strict=True)
    ]
    for key in means_over_fewer(data.run.evaluation):
        means = [_percent(side.evaluation.get(key)) for side in data.sides]
        rows.append(ClassRow(f"mean over {key.removeprefix('miou_')}", None, means))
    rows.append(ClassRow("mean", None, [_percent(side.miou) for side in data.sides]))
    if "vpq_per_class" in data.run.evaluation:
        for row in rows[:-1]:
            row.quality = [_percent(side.evaluation.get("vpq_per_class", {}).get(row.name)) for side in data.sides]
        rows[-1].quality = [_percent(side.evaluation.get("vpq")) for side in data.sides]
    limit = max([1.0, *(abs(row.change) for row in rows if row.change is not None)])
    for row in rows:
        row.bar = _change_bar(row, limit) if data.baseline else _level_bar(row)
    return rows


def _over_time(data: ReportData) -> list[tuple[str, list[tuple[str, list[float | None]]]]]:
    """Video panoptic quality: group of classes -> run -> by window and last the mean, in per cent.

    The last group is temporal consistency, one value a run. Empty for still images and where there are no labels.
    """
    lengths = clip_scores.windows(data.run.evaluation)
    groups = []
    for name, key in clip_scores.GROUPS.items() if lengths else ():
        found = [(side.name, clip_scores.quality(side.evaluation, key, lengths)) for side in data.sides]
        groups.append((name, [(side, [_percent(value) for value in values]) for side, values in found]))
    consistency = [(side.name, [_percent(side.evaluation.get("temporal_consistency"))]) for side in data.sides]
    return [*groups, ("temporal consistency", consistency)] if groups else []


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _change_bar(row: ClassRow, limit: float) -> Markup:
    text = "no difference known" if row.change is None else f"{_signed(row.change)} points"
    return figures.difference_bar(row.change, limit, f"{row.name}: {text}")


def _level_bar(row: ClassRow) -> Markup:
    value = row.values[-1]
    text = "no pixel" if value is None else f"{value:.1f} %"
    return figures.share_bar(None if value is None else value / 100, f"{row.name}: {text}")
