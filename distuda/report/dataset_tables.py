"""What `distuda inspect` prints: one block a data set, and for two what differs."""

from collections.abc import Iterable

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from distuda.data.gap import Gap, by_name, ratio
from distuda.data.image_stats import STATISTICS
from distuda.data.inspect import Facts, Inspection
from distuda.report.dataset_charts import percent

MINUS = "\N{MINUS SIGN}"
UNKNOWN = "\N{EN DASH}"


def megabytes(count: int) -> str:
    """Bytes in the unit that keeps the number short."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def labelled_words(facts: Facts) -> str:
    """Which samples have labels, in a word or two."""
    total = len(facts.dataset)
    if facts.num_labelled in (0, total):
        return "labelled" if facts.num_labelled else "unlabelled"
    return f"{facts.num_labelled:,} of {total:,} labelled"


def fact_rows(facts: Facts) -> dict[str, str]:
    """Name -> value of what is in a data set; what it lacks is left out, except labels."""
    data = facts.dataset
    shown = [f"{w} \N{MULTIPLICATION SIGN} {h} ({n:,})" for (w, h), n in facts.sizes[:5]]
    more = [f"and {len(facts.sizes) - 5} more"] if len(facts.sizes) > 5 else []
    rows = {
        "samples": f"{len(data):,}, {labelled_words(facts)}",
        "clips": _clips(facts),
        "image tags": f"{facts.num_tagged:,} samples" if facts.num_tagged else "",
        "instances": f"{facts.num_instances:,} samples" if facts.num_instances else "",
        "sizes": ", ".join([*shown, *more]) + " px",
        "stored": f"{megabytes(facts.bytes)} in {_plural(len(data.groups), 'row group')}",
        "classes": f"{facts.table.name} ({facts.table.num_classes})",
        "content": data.manifest.content_hash[:12],
        "lies at": data.uri if data.uri != facts.name else "",
    }
    return {name: value for name, value in rows.items() if value}


def inspection(seen: Inspection) -> RenderableType:
    """Facts, classes and statistics of one data set."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    for name, value in fact_rows(seen.facts).items():
        facts.add_row(name, escape(value))
    parts: list[RenderableType] = [f"[bold]{escape(seen.facts.name)}[/]", facts]
    shares = seen.facts.shares
    if any(known is not None for known in (shares.pixels, shares.images, shares.tags)):
        parts.append(_classes(seen.facts))
    parts.append(_statistics(seen))
    parts += [f"[yellow]unreadable:[/] {escape(message)}" for message in seen.bad[:5]]
    if len(seen.bad) > 5:
        parts.append(f"[yellow]and {len(seen.bad) - 5} more unreadable samples[/]")
    return Group(*parts)


def gap_table(first: Inspection, second: Inspection, gap: Gap) -> RenderableType:
    """What differs between two data sets, and what cannot be compared."""
    parts: list[RenderableType] = ["[bold]gap, second against first[/]"]
    if gap.class_distance is not None:
        parts.append(f"class shares differ by {percent(gap.class_distance)} of the pixels")
    a, b = first.facts, second.facts
    if a.shares.pixels is not None and b.shares.pixels is not None:
        classes = _table(("class",), ("pixels, first", "second", "ratio"))
        for name in gap.classes:
            pair = by_name(a, a.shares.pixels, name), by_name(b, b.shares.pixels, name)
            classes.add_row(escape(name), *(share_text(share) for share in pair), times(ratio(*pair)))
        parts.append(classes)
    numbers = _table(("image statistic",), ("mean, first", "second", "shift, sd"))
    for i, name in enumerate(STATISTICS):
        means = [f"{seen.values[:, i].mean():.3f}" if len(seen.values) else UNKNOWN for seen in (first, second)]
        numbers.add_row(name, *means, shift_text(gap.shifts[name]))
    return Group(*parts, numbers, *(f"[yellow]note:[/] {escape(note)}" for note in gap.notes))


def share_text(share: float | None) -> str:
    """A share in per cent, or a dash."""
    return UNKNOWN if share is None else percent(share)


def times(value: float | None) -> str:
    """A ratio with two significant digits, or a dash."""
    return UNKNOWN if value is None else f"\N{MULTIPLICATION SIGN}{float(f'{value:.2g}'):,g}"


def shift_text(value: float | None) -> str:
    """A difference with sign and one decimal, or a dash."""
    return UNKNOWN if value is None else f"{value:+.1f}".replace("-", MINUS)


def _classes(facts: Facts) -> Table:
    shares, things = facts.shares, facts.table.things
    columns = {"of pixels": shares.pixels, "of labelled images": shares.images, "of tagged images": shares.tags}
    known = {name: values for name, values in columns.items() if values is not None}
    table = _table(("id", "class", "colour", "kind"), known)
    for i, name in enumerate(facts.table.classes):
        r, g, b = facts.table.palette[i]
        kind = "thing" if i in things else "stuff"
        cells = [percent(float(values[i])) for values in known.values()]
        table.add_row(str(i), escape(name), f"[on rgb({r},{g},{b})]      [/]", kind, *cells)
    return table


def _statistics(seen: Inspection) -> RenderableType:
    if not len(seen.values):
        return "no image could be measured"
    table = _table((f"statistic of {len(seen.values)} images",), ("mean", "sd", "lowest", "highest"))
    for i, name in enumerate(STATISTICS):
        column = seen.values[:, i]
        table.add_row(name, *(f"{value:.3f}" for value in (column.mean(), column.std(), column.min(), column.max())))
    return table


def _table(words: Iterable[str], numbers: Iterable[str]) -> Table:
    """A table whose columns of numbers stand to the right."""
    table = Table(*words)
    for title in numbers:
        table.add_column(title, justify="right")
    return table


def _clips(facts: Facts) -> str:
    if not facts.clips:
        return ""
    lengths = np.array(list(facts.clips.values()))
    low, high = int(lengths.min()), int(lengths.max())
    span = _plural(low, "frame") if low == high else f"{low:,} to {high:,} frames, median {np.median(lengths):,g}"
    return f"{_plural(len(lengths), 'clip')} of {span}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
