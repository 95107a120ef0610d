"""CamVid day -> dusk with `lite`: what each method gains over source-only, at equal steps, over seeds.

    python benchmarks/accuracy_camvid.py --camvid CAMVID --work runs/camvid

CAMVID is CamVid in the SegNet layout (train/ trainannot/). Source: the 305 day frames of train with labels. Target: the
62 dusk frames without labels; their labels score and do nothing else, except for the oracles: `oracle` trains on the
frames it is scored on; `oracle, held out` trains on one half of them (in time) and is scored on the other, both ways.
Interrupted, it goes on where it stopped: finished results are kept in --results, half-done runs resume.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

HERE = Path(__file__).parent
DAY, DUSK = ("0006R0*", "0016E5*"), ("0001TP*",)
FIRST = ("0001TP_006*", "0001TP_007[0-5]*")
TAIL = ("pole", "sign", "fence", "pedestrian", "bicyclist")
COMMON = ["source.size=[240,320]", "target.size=[240,320]", "evaluation.size=[240,320]", "augment.crop=[180,240]"]

# Every row is a recipe of the repository plus what is said here; all share COMMON and batch 4 + 4.
RARE = ["source.rare_class_temperature=0.05", "source.rare_class_min_pixels=1000", "source.rare_class_crop_pixels=300"]
ROWS: dict[str, list[str]] = {
    "source_only": ["recipes/source_only.yaml"],
    "source_only_rare": ["recipes/source_only.yaml", *RARE],  # the sampling that self-training's recipe has, alone
    "minent": ["recipes/minent.yaml"],
    "advent": ["recipes/advent.yaml"],
    "self_training": ["recipes/self_training.yaml"],
    "self_training_masked": ["recipes/self_training.yaml", "method.lambda_mask=1"],
    "oracle": ["recipes/source_only.yaml", "method.use_target_labels=true"],
    "oracle_first": ["recipes/source_only.yaml", "method.use_target_labels=true"],
    "oracle_second": ["recipes/source_only.yaml", "method.use_target_labels=true"],
}
# (target, evaluation) of the rows that do not adapt from unlabelled dusk to all dusk labels
DATA = {
    "oracle": ("dusk_labels", "dusk_labels"),
    "oracle_first": ("dusk_first", "dusk_second"),
    "oracle_second": ("dusk_second", "dusk_first"),
}
HELD_OUT = "oracle, held out"
SHOWN = (
    "source_only", "source_only + AdaBN", "source_only_rare", "source_only_rare + AdaBN", "minent", "advent",
    "self_training", "self_training_masked", "oracle", HELD_OUT,
)  # fmt: skip


def main() -> None:
    arguments = parse()
    if not (Path(arguments.camvid) / "train").is_dir():
        sys.exit(f"skipped: no CamVid at {arguments.camvid} (SegNet layout, with train/ and trainannot/)")
    work = Path(arguments.work)
    prepare(arguments.camvid, work)
    results = Results(Path(arguments.results))
    jobs = [
        (row, seed, steps)
        for steps in arguments.budgets
        for seed in arguments.seeds
        for row in arguments.rows
        if not results.has(row, seed, steps)
    ]
    with ThreadPoolExecutor(arguments.processes) as pool:
        for job in [pool.submit(train, work, results, *job) for job in jobs]:
            job.result()
    print(results.markdown())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--camvid", required=True)
    parser.add_argument("--work", default="runs/camvid", help="prepared data and runs")
    parser.add_argument("--results", default=str(HERE / "accuracy_camvid.json"))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", type=int, default=[400, 1500], help="steps")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at once, one thread each")
    return parser.parse_args()


def distuda(*words: str, log: Path | None = None) -> None:
    """One command of the project, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distuda", *words]
    output = log.open("a") if log else None
    subprocess.run(command, check=True, env=environment, stdout=output, stderr=output, cwd=HERE.parent)


def prepare(camvid: str, work: Path) -> None:
    """Day with labels, dusk without, and the dusk labels apart."""
    for name, frames, but, labels in (
        ("day", DAY, (), "--labels"),
        ("dusk", DUSK, (), "--no-labels"),
        ("dusk_labels", DUSK, (), "--labels"),
        ("dusk_first", FIRST, (), "--labels"),
        ("dusk_second", DUSK, FIRST, "--labels"),
    ):
        if not (work / "data" / name / "manifest.json").exists():
            words = [word for glob in frames for word in ("--include", glob)]
            words += [word for glob in but for word in ("--exclude", glob)]
            distuda("prepare", "camvid", camvid, str(work / "data" / name), "--split", "train", labels, *words)


def train(work: Path, results: "Results", row: str, seed: int, steps: int) -> None:
    """One run, resumed if it was interrupted; its last evaluation goes into the results."""
    out = work / "runs" / f"{row}-{steps}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    target, evaluation = DATA.get(row, ("dusk", "dusk_labels"))
    data = {"source": "day", "target": target, "evaluation": evaluation}
    uris = [f"{domain}.uri={work / 'data' / name}" for domain, name in data.items()]
    recipe, *words = ROWS[row]
    started_s = time.time()
    distuda(
        "train", recipe, *words, *COMMON, *uris, f"out={out}", f"seed={seed}", f"steps={steps}", "resume=true",
        "evaluation.every_steps=1000000", "checkpoint.every_steps=250", "log_every_steps=50", log=out / "console.log",
    )  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in rows if line["kind"] == "evaluation"][-1]
    results.add({"row": row, "seed": seed, "steps": steps, "seconds": round(time.time() - started_s), **last})
    if row.startswith(
        "source_only"
    ):  # the same weights with the target's batch-norm statistics: what AdaBN alone gives
        distuda("evaluate", str(out), "--calibrate", "64", log=out / "console.log")
        scores = json.loads((out / "evaluation-calibrated.json").read_text())
        results.add({"row": f"{row} + AdaBN", "seed": seed, "steps": steps, **scores})


class Results:
    """Finished runs in a JSON file, and the table made of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock()
        self.rows: list[dict] = json.loads(path.read_text()) if path.exists() else []

    def has(self, row: str, seed: int, steps: int) -> bool:
        return any((r["row"], r["seed"], r["steps"]) == (row, seed, steps) for r in self.rows)

    def add(self, row: dict) -> None:
        with self.lock:
            self.rows.append(row)
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n")
            print(f"{row['row']} seed {row['seed']} {row['steps']} steps: mIoU {100 * row['miou']:.2f}", flush=True)

    def markdown(self) -> str:
        lines = []
        for steps in sorted({r["steps"] for r in self.rows}):
            lines += [
                f"\n### {steps} steps\n",
                "| method | mIoU mean ± sd | seeds | tail mIoU | gap closed | label-free IM |",
            ]
            lines += ["| --- | --- | --- | --- | --- | --- |"]
            means = {row: self._mean(row, steps) for row in SHOWN}
            floor, ceiling = means["source_only"], means[HELD_OUT] or means["oracle"]
            for row, mean in means.items():
                if mean is not None:
                    lines.append(self._line(row, steps, mean, floor, ceiling))
        return "\n".join(lines)

    def _of(self, row: str, steps: int) -> list[dict]:
        return [r for r in [*self.rows, *self._held_out()] if r["row"] == row and r["steps"] == steps]

    def _held_out(self) -> list[dict]:
        """Mean of both halves, for each seed that has both."""
        first, second = (
            {(r["seed"], r["steps"]): r for r in self.rows if r["row"] == name}
            for name in ("oracle_first", "oracle_second")
        )
        return [{**first[key], "row": HELD_OUT, **_mean_of(first[key], second[key])} for key in first if key in second]

    def _mean(self, row: str, steps: int) -> float | None:
        values = [r["miou"] for r in self._of(row, steps)]
        return statistics.mean(values) if values else None

    def _line(self, row: str, steps: int, mean: float, floor: float | None, ceiling: float | None) -> str:
        runs = self._of(row, steps)
        spread = statistics.stdev(100 * r["miou"] for r in runs) if len(runs) > 1 else float("nan")
        tail = statistics.mean(100 * (r["iou"][name] or 0) for r in runs for name in TAIL)
        share = f"{100 * (mean - floor) / (ceiling - floor):.0f} %" if floor and ceiling and ceiling > floor else "-"
        scores = statistics.mean(r["information_maximisation"] for r in runs)
        each = " / ".join(f"{100 * r['miou']:.1f}" for r in sorted(runs, key=lambda r: r["seed"]))
        return f"| {row} | {100 * mean:.1f} ± {spread:.1f} | {each} | {tail:.1f} | {share} | {scores:.3f} |"


def _mean_of(a: dict, b: dict) -> dict:
    iou = {name: statistics.mean((a["iou"][name] or 0, b["iou"][name] or 0)) for name in a["iou"]}
    scores = ("miou", "information_maximisation")
    return {"iou": iou, **{name: statistics.mean((a[name], b[name])) for name in scores}}


if __name__ == "__main__":
    main()
