"""The report of a sweep: one HTML file that needs no network."""

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from distuda import storage
from distuda.engine.run import read_rows
from distuda.plan import phase_folders
from distuda.report import figures
from distuda.report.figures import BASELINE, RUN, Point, Series
from distuda.report.templates import template
from tune.charts import Axis, Line, axis_of, parallel, scatter, score_axis
from tune.records import Record, Records
from tune.results import Found, doubt, is_oracle, label_of
from tune.space import Space, words_of
from tune.trial import key_of

CURVES = 40
"""Learning curves beyond which a picture says nothing."""


def write_report(records: Records, ranked: Sequence[Found], space: Space, objective: str, by: Sequence[str]) -> str:
    """Write ``sweep.html`` into a sweep's folder and give its URI.

    Args:
        records: all trials.
        ranked: configurations, the best first.
        space: what was searched.
        objective: the score that was searched by.
        by: what was chosen by.
    """
    uri = storage.join(records.out, "sweep.html")
    storage.write_bytes(uri, render(records, ranked, space, objective, by).encode())
    return uri


def render(records: Records, ranked: Sequence[Found], space: Space, objective: str, by: Sequence[str]) -> str:
    """The HTML text; everything that comes from a sweep is escaped."""
    key = key_of(objective)
    place = {record.id: i for i, one in enumerate(ranked, 1) for record in one.records}
    ordered = sorted(records, key=lambda r: (place.get(r.id, len(place) + 1), -r.scores.get(key, float("-inf")), r.id))
    names = list(dict.fromkeys(name for record in ordered for name in record.scores))
    lines = _lines(ordered, place, len(ranked))
    axes = _axes(ordered, space)
    searched, *others = [_score_axis(ordered, name) for name in dict.fromkeys(map(key_of, (objective, *by)))]
    return template("sweep.html.j2").render(
        out=records.out,
        objective=label_of(objective),
        by=[label_of(name) for name in by],
        doubt=doubt(ranked) if not any(map(is_oracle, by)) else "",
        oracle=any(is_oracle(name) for name in (objective, *by)),
        best=ranked[0] if ranked else None,
        best_words=words_of(ranked[0].records[0].configuration) if ranked else [],
        counts=_counts(ordered),
        seconds=sum(record.seconds for record in ordered),
        parallel=parallel([*axes, *others, searched], lines),
        scatters=[(axis.name, scatter(axis, searched, lines)) for axis in axes],
        curves=_curves(records, ordered, key, place),
        columns=[axis.name for axis in axes],
        score_columns=[(name, label_of(name)) for name in names],
        rows=[(record, place.get(record.id), _cells(record, [axis.name for axis in axes])) for record in ordered],
        number=figures.number,
    )


def _counts(records: Sequence[Record]) -> list[tuple[str, int]]:
    statuses = ("finished", "stopped", "failed", "running", "waiting")
    counts = [(status, sum(record.status == status for record in records)) for status in statuses]
    return [(status, count) for status, count in counts if count]


def _axes(records: Sequence[Record], space: Space) -> list[Axis]:
    spans = space.ranges()
    axes = []
    for path in space.paths():
        if values := [_shown(record)[path] for record in records if path in record.configuration]:
            axes.append(axis_of(path, values, spans.get(path)))
    return axes


def _score_axis(records: Sequence[Record], key: str) -> Axis:
    return score_axis(label_of(key), [record.scores[key] for record in records if key in record.scores])


def _shown(record: Record) -> dict[str, Any]:
    """A configuration in which null is an option like others, not a field that the configuration lacks."""
    return {path: "null" if value is None else value for path, value in record.configuration.items()}


def _lines(records: Sequence[Record], place: dict[str, int], count: int) -> list[Line]:
    lines = []
    for record in records:
        at = place.get(record.id)
        share = None if at is None else 1 - (at - 1) / max(1, count - 1)
        scores = {label_of(name): value for name, value in record.scores.items()}
        text = f"trial {record.id}, {record.status}: {' '.join(words_of(record.configuration))}"
        lines.append(Line(text, {**_shown(record), **scores}, share))
    return lines


def _curves(records: Records, ordered: Sequence[Record], key: str, place: dict[str, int]) -> Markup:
    series = []
    for record in reversed(ordered[:CURVES]):  # the best on top
        points = _points(records.folder(record.id), key)
        if points:
            best = place.get(record.id) == 1
            series.append(Series(f"trial {record.id}", points, RUN if best else BASELINE, faint=not best, markers=best))
    return figures.line_chart(
        series,
        label=f"{label_of(key)} over steps",
        x_label="step",
        y_label=label_of(key),
        legend=False,
        size=(1000, 320),
    )


def _points(folder: str, key: str) -> list[Point]:
    """A trial's score over its steps, those of its last phase that trained where it has phases."""
    for run in [*reversed(phase_folders(folder)), folder]:
        points = [
            (float(row["step"]), float(row[key]))
            for row in read_rows(run)
            if row["kind"] == "evaluation" and key in row
        ]
        if points:
            return points
    return []


def _cells(record: Record, paths: Sequence[str]) -> list[Any]:
    shown = _shown(record)
    values = [shown.get(path) for path in paths]
    return ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
