"""What the accuracy tables share: train rows of recipes over seeds and budgets, keep the results, print the table.

`feature_regression.py` is no such table and takes the pieces: `command_line`, `distuda`, `fit`, `Results`, `mean_sd`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from distuda.plan import phase_folders

HERE = Path(__file__).parent
HELD_OUT = "oracle, held out"
START_ROW, START_STEPS = "~ source_only, start", 1500
_STARTING = Lock()
Rows = dict[str, list[str]]
Row = dict[str, Any]


@dataclass
class Study:
    """One table.

    Attributes:
        rows: recipe and overrides of each row by name; an ablation's name begins with ``~`` and runs only if asked for.
        common: overrides of every row, over its recipe and under its own.
        data: (source, target, evaluation) names below ``work/data``.
        other_data: (target, evaluation) of rows that differ.
        tail: classes whose mean IoU is reported apart.
        also: further scores in [0, 1] that are reported, by what their column is called.
        halves: rows whose mean is the held-out oracle, if there are such.
    """

    rows: Rows
    common: Sequence[str]
    data: tuple[str, str, str]
    other_data: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tail: Sequence[str] = ()
    also: Mapping[str, str] = field(default_factory=dict)
    halves: tuple[str, str] | None = None

    def shown(self) -> list[str]:
        """Rows of the table in order; source-only rows are followed by themselves with AdaBN."""
        names: list[str] = []
        for name in self.rows:
            if self.halves is None or name not in self.halves:
                names += [name, f"{name} + AdaBN"] if is_source_only(name) else [name]
        return [*names, HELD_OUT]


def run(study: Study, arguments: argparse.Namespace, prepare: Callable[[Path], None]) -> None:
    """Prepare the data, train what is missing, print the table."""
    work, results = Path(arguments.work), Results(Path(arguments.results))
    prepare(work)
    jobs = [
        (row, seed, steps)
        for steps in arguments.budgets
        for seed in arguments.seeds
        for row in arguments.rows
        if not results.has(row=row, seed=seed, steps=steps)
    ]
    with ThreadPoolExecutor(arguments.processes) as pool:
        running = {pool.submit(train, study, work, results, *job): job for job in jobs}
        failed = [running[job] for job in as_completed(running) if _failure(job, running[job])]
    print(markdown(study, results.rows))
    if failed:
        sys.exit(
            f"{len(failed)} of {len(jobs)} runs failed; console.log in their folders under {work / 'runs'} says why"
        )


def _failure(job: Future[None], facts: tuple[str, int, int]) -> bool:
    """Whether a run failed, which is said at once: the others go on for hours."""
    if error := job.exception():
        print("row {}, seed {}, steps {} failed: {}".format(*facts, error), file=sys.stderr, flush=True)
    return error is not None


def parse(study: Study, description: str, work: str, results: str, *data: str) -> argparse.Namespace:
    """The command line of a table; ``data`` are the options that name its data sets."""
    main_rows = [row for row in study.rows if not row.startswith("~")]
    parser = command_line(description, work, results, list(study.rows), main_rows, *data)
    parser.add_argument("--budgets", nargs="+", type=int, default=[400, 1500], help="steps")
    return parser.parse_args()


def command_line(
    description: str, work: str, results: str, rows: list[str], main_rows: list[str], *data: str
) -> argparse.ArgumentParser:
    """The options that all studies have; only ``main_rows`` run unless others are asked for."""
    parser = argparse.ArgumentParser(description=description)
    for name in data:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--work", default=work, help="prepared data and runs")
    parser.add_argument("--results", default=str(HERE / results))
    parser.add_argument("--rows", nargs="+", default=main_rows, choices=rows)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at once, one thread each")
    return parser


def distuda(*words: str, log: Path | None = None) -> None:
    """One command of the project, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distuda", *words]
    output = log.open("a") if log else None
    subprocess.run(command, check=True, env=environment, stdout=output, stderr=output, cwd=HERE.parent)


def train(study: Study, work: Path, results: "Results", row: str, seed: int, steps: int) -> None:
    """One run, resumed if it was interrupted; its last evaluation goes into the results."""
    out = run_folder(work, row, steps, seed)
    source, *others = study.data
    target, evaluation = study.other_data.get(row, others)
    recipe, *own = study.rows[row]
    if "init_from=START" in own:
        with _STARTING:  # several rows may need it; a finished one is passed over
            first, *words = study.rows[START_ROW]
            words = [first, *study.common, *words]
            fit(work, start_folder(work, seed), seed, START_STEPS, (source, target, evaluation), *words)
    started_s = time.time()
    last = fit(work, out, seed, steps, (source, target, evaluation), recipe, *study.common, *own)
    seconds = round(time.time() - started_s)
    if is_source_only(row):  # the same weights with the target's batch-norm statistics: AdaBN alone
        distuda("evaluate", str(out), "--calibrate", "64", log=out / "console.log")
        scores = json.loads((out / "evaluation-calibrated.json").read_text())
        results.add({"row": f"{row} + AdaBN", "seed": seed, "steps": steps, **scores})
    results.add({"row": row, "seed": seed, "steps": steps, "seconds": seconds, **last})


def is_source_only(row: str) -> bool:
    """Whether a row trains on the source alone, ``~`` before its name or not."""
    return row.strip("~ ").startswith("source_only")


def start_folder(work: Path, seed: int) -> Path:
    """The run of the row `START_ROW` at `START_STEPS`, from which rows with ``init_from=START`` go on."""
    return run_folder(work, START_ROW, START_STEPS, seed)


def run_folder(work: Path, row: str, steps: int, seed: int) -> Path:
    """Where a row's run lies."""
    return work / "runs" / f"{row.strip('~ ').replace(' ', '_')}-{steps}-{seed}"


def fit(work: Path, out: Path, seed: int, steps: int, data: tuple[str, str, str], *words: str) -> Row:
    """One run, resumed if it was interrupted; its last evaluation. ``data`` as in `Study`, or URIs of streets.

    In words ``HALF`` is half the steps (phases share a budget), ``START`` the folder of `start_folder`.
    """
    out.mkdir(parents=True, exist_ok=True)
    start = start_folder(work, seed)
    words = tuple(word.replace("HALF", str(steps // 2)).replace("START", str(start)) for word in words)
    domains = zip(("source", "target", "evaluation"), data, strict=True)
    uris = [f"{domain}.uri={name if '://' in name else work / 'data' / name}" for domain, name in domains]
    distuda(
        "train", *words, *uris, f"out={out}", f"seed={seed}", f"steps={steps}", "resume=true",
        "evaluation.every_steps=1000000", "checkpoint.every_steps=250", "log_every_steps=50", log=out / "console.log",
    )  # fmt: skip
    runs = [folder for folder in [out, *map(Path, phase_folders(str(out)))] if (folder / "metrics.jsonl").exists()]
    rows = [json.loads(line) for line in (runs[-1] / "metrics.jsonl").read_text().splitlines()]
    return [line for line in rows if line["kind"] == "evaluation"][-1]


FACTS = ("row", "shift", "seed", "teacher_steps", "classify_steps", "steps")
KEPT = (
    *FACTS, "seconds", "miou", "accuracy", "coverage", "iou", "entropy", "information_maximisation", "vpq", "vpq_1",
    "vpq_2", "vpq_3", "vpq_4", "vpq_things", "vpq_stuff", "temporal_consistency",
)  # fmt: skip


class Results:
    """Finished runs in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock()
        self.rows: list[Row] = json.loads(path.read_text()) if path.exists() else []

    def has(self, **facts: Any) -> bool:
        """Whether a run with these facts is finished."""
        return bool(self.of(**facts))

    def of(self, **facts: Any) -> list[Row]:
        """The runs with these facts."""
        return [row for row in self.rows if all(row[name] == value for name, value in facts.items())]

    def add(self, row: Row) -> None:
        """Keep a finished run, on disk at once."""
        with self.lock:
            self.rows.append({name: row[name] for name in KEPT if name in row})
            self.path.write_text("[\n" + ",\n".join(json.dumps(r) for r in self.rows) + "\n]\n")
            facts = ", ".join(f"{name} {row[name]}" for name in FACTS if name in row)
            print(f"{facts}: mIoU {100 * row['miou']:.2f}", flush=True)


# The table -----------------------------------------------------------------------------------------------------------


def markdown(study: Study, rows: list[Row]) -> str:
    """A table for each budget: mean and spread over seeds, each seed, tail classes, share of the gap closed."""
    rows = [*rows, *_held_out(study, rows)]
    lines = []
    for steps in sorted({r["steps"] for r in rows}):
        by_name = {name: [r for r in rows if (r["row"], r["steps"]) == (name, steps)] for name in study.shown()}
        means = {name: statistics.mean(r["miou"] for r in found) for name, found in by_name.items() if found}
        ceilings = {kind: means[name] for kind, name in (("own", "oracle"), ("held out", HELD_OUT)) if name in means}
        tail = "| tail mIoU " * bool(study.tail) + "".join(f"| {title} " for title in study.also.values())
        lines += [f"\n### {steps} steps\n", f"| method | mIoU mean ± sd | seeds {tail}"]
        lines[-1] += "".join(f"| gap closed ({kind} oracle) " for kind in ceilings) + "| label-free IM |"
        lines += ["| --- " * (lines[-1].count("|") - 1) + "|"]
        for name in means:
            floor = means.get("source_only")
            shares = [_share(means[name], floor, ceiling) for ceiling in ceilings.values()]
            lines.append(_line(study, name, by_name[name], shares))
    return "\n".join(lines)


def _line(study: Study, name: str, runs: list[Row], shares: list[str]) -> str:
    values = [100 * r["miou"] for r in sorted(runs, key=lambda r: r["seed"])]
    cells = [name.lstrip("~ "), mean_sd(values), " / ".join(f"{v:.1f}" for v in values)]
    if study.tail:
        cells.append(f"{statistics.mean(100 * (r['iou'][c] or 0) for r in runs for c in study.tail):.1f}")
    cells += [mean_sd([100 * r[name] for r in runs if name in r]) for name in study.also]
    cells += [*shares, f"{statistics.mean(r['information_maximisation'] for r in runs):.3f}"]
    return f"| {' | '.join(cells)} |"


def mean_sd(values: Sequence[float]) -> str:
    """Mean and, of several values, standard deviation; nothing of none."""
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _share(mean: float, floor: float | None, ceiling: float) -> str:
    if floor is None or ceiling <= floor:
        return "-"
    return f"{100 * (mean - floor) / (ceiling - floor):.0f} %"


def _held_out(study: Study, rows: list[Row]) -> list[Row]:
    """Mean of both halves, for each seed that has both."""
    if study.halves is None:
        return []
    first, second = ({(r["seed"], r["steps"]): r for r in rows if r["row"] == name} for name in study.halves)
    return [{**first[key], "row": HELD_OUT, **_mean_of(first[key], second[key])} for key in first if key in second]


def _mean_of(a: Row, b: Row) -> Row:
    iou = {name: statistics.mean((a["iou"][name] or 0, b["iou"][name] or 0)) for name in a["iou"]}
    scores = ("miou", "information_maximisation")
    return {"iou": iou, **{name: statistics.mean((a[name], b[name])) for name in scores}}
