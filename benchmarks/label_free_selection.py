"""Do scores without target labels choose well? A sweep of 40 configurations, and what each score would have chosen.

    python benchmarks/label_free_selection.py camvid --camvid CAMVID --work runs/selection
    python benchmarks/label_free_selection.py renders --airsim AIRSIM --camvid CAMVID --work runs/selection
    python benchmarks/label_free_selection.py streets --work runs/selection
    python benchmarks/label_free_selection.py fog --work runs/selection
    python benchmarks/label_free_selection.py clips --num 24 --work runs/selection

Configurations are drawn from benchmarks/label_free_space.yaml: four methods, their weights, learning rates and jitter,
all trained equally long by `distuda sweep`. `renders` goes from AirSim's renders to CamVid over their seven classes,
`fog` from streets by day to streets in fog; `clips` are streets in clips of 6 frames, which have temporal consistency
as a score; networks still learn single frames. Spearman is the rank correlation of a score with target mIoU, regret the
mIoU of the best configuration minus that of the one chosen, in points. `--asha` sweeps the same configurations again
with ASHA and compares with random search at equal compute (`--looks 9`: it first looks after a ninth of the steps,
not a third); `--seed 1` draws others, and trains from another seed.
Interrupted, a sweep goes on where it stopped; what came out is kept in --results, and `table` prints it again.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from accuracy import HERE, distuda
from accuracy_camvid import prepare as prepare_camvid
from accuracy_synthetic_to_real import ZOOM
from accuracy_synthetic_to_real import prepare as prepare_renders

from distuda.metrics.label_free import DEFAULT_SCORES, SCORES
from tune.plan import NUM, OBJECTIVE
from tune.results import AGGREGATED, OF_CLIPS, Found, agreement, by_mean_place, doubt

STEPS, LOOKS = 120, (3, 9)
ORACLE = "target_miou (oracle)"
OF_SMALL, DRAWS = NUM, 300
"""Configurations of a sweep that is not told how many, and how many such sweeps are drawn from each that was made."""
SIZES = ["target.size=[240,320]", "evaluation.size=[240,320]"]
STREETS = {
    "streets": ("day?num=240", "dusk?num=240", "dusk/val?num=40"),
    "fog": ("day?num=240", "fog?num=240", "fog/val?num=40"),
    "clips": ("day?frames=6&num=40", "dusk?frames=6&num=40", "dusk/val?frames=6&num=8"),
}
"""Source, target and evaluation; as many frames in clips as single ones."""
FOLDERS = {"camvid": ("day", "dusk", "dusk_labels"), "renders": ("airsim", "camvid", "camvid_val")}
"""The same of prepared data, by their folders' names."""
Trial = dict[str, Any]


def main() -> None:
    """Train one more sweep if asked to, keep its trials, and print what each score would have chosen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=[*FOLDERS, *STREETS, "table"])
    parser.add_argument("--camvid")
    parser.add_argument("--airsim")
    parser.add_argument("--work", default="runs/selection")
    parser.add_argument("--results", default=str(HERE / "label_free_selection.json"))
    parser.add_argument("--num", type=int, default=40)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a trial")
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--asha", action="store_true")
    parser.add_argument(
        "--looks", type=int, default=LOOKS[0], choices=LOOKS, help="of --asha: evaluations of a trial trained whole"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the configurations that are drawn, and of training")
    parser.add_argument(
        "--keep", type=int, default=3, help="trials whose checkpoints stay, to score them otherwise later"
    )
    parser.add_argument("--min-lr", type=float, default=0, help="compare scores on configurations from this rate on")
    parser.add_argument("--pairs", action="store_true", help="show what every pair of scores would have chosen too")
    arguments = parser.parse_args()
    results = Path(arguments.results)
    kept: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    if arguments.which != "table":
        name = arguments.which + (f"_seed{arguments.seed}" if arguments.seed else "")
        name += f"_{arguments.steps}steps" if arguments.steps != STEPS else ""
        name += _asha_suffix(arguments.looks) if arguments.asha else ""
        kept[name] = run(arguments, name)
        results.write_text(json.dumps(kept, indent=1) + "\n")
    print(markdown(kept, arguments.min_lr, arguments.pairs))


def run(arguments: argparse.Namespace, name: str) -> Trial:
    """Sweep, and give every trial's configuration and scores, and what the sitting cost."""
    work = Path(arguments.work).absolute()
    out = work / f"{name}-{arguments.steps}"
    words = ["--num", str(arguments.num), "--concurrent", str(arguments.concurrent), "--choose", "aggregate"]
    words += ["--seed", str(arguments.seed), "--keep", str(arguments.keep)]
    words += ["--scheduler", "asha"] if arguments.asha else []
    every, left = divmod(arguments.steps, arguments.looks if arguments.asha else 1)
    if left:
        raise SystemExit(f"--looks {arguments.looks} does not divide {arguments.steps} steps. Choose one that does.")
    fresh = not (out / "sweep.json").exists()
    began_s = time.time()
    distuda(
        "sweep", "recipes/source_only.yaml", *data(arguments, work), f"steps={arguments.steps}",
        f"seed={arguments.seed}", f"evaluation.every_steps={every}", "evaluation.scores=all",
        "evaluation.source_limit=48", "augment.crop=[144,192]", "log_every_steps=24", "checkpoint.keep_last=1",
        "source.rare_class_min_pixels=500", "--space", "benchmarks/label_free_space.yaml",
        "--out", str(out), "--resume", *words,
    )  # fmt: skip
    trials = pq.read_table(out / "results.parquet").to_pylist()
    wall_s = time.time() - began_s
    spent = sum(trial["seconds"] for trial in trials) / (arguments.concurrent * wall_s)
    waits = waits_s(out, arguments.concurrent)
    sitting = {"wall_s": round(wall_s), "share_training": round(spent, 3), "waits_s": waits}
    return {
        "trials": [
            {key: value for key, value in trial.items() if value is not None and key != "folder"} for trial in trials
        ],
        **(sitting if fresh else {}),
        "concurrent": arguments.concurrent,
    }


def waits_s(out: Path, slots: int) -> list[float]:
    """How long a slot was free before the next trial began in it [s], for every trial but those that begin the sweep.

    A trial's record is written last when it ends, so its file's time less the seconds spent is when it began.
    """
    records = [(path.stat().st_mtime, json.loads(path.read_text())) for path in (out / "trials").glob("*/trial.json")]
    ends = sorted(end for end, _ in records)
    begins = sorted(end - record["seconds"] for end, record in records)
    return [round(begin - end, 1) for begin, end in zip(begins[slots:], ends, strict=False)]


def data(arguments: argparse.Namespace, work: Path) -> list[str]:
    """Words that name the domains; target labels only score."""
    which, words = arguments.which, []
    if which in STREETS:
        uris = [f"streets://{name}&size=144x240" for name in STREETS[which]]
    else:
        work = work / which
        if not arguments.camvid or not (Path(arguments.camvid) / "train").is_dir():
            sys.exit(f"skipped: no CamVid at {arguments.camvid} (SegNet layout, with train/ and trainannot/)")
        if which == "camvid":
            prepare_camvid(arguments.camvid, work)
            words = ["source.size=[240,320]", *SIZES]
        elif arguments.airsim and (Path(arguments.airsim) / "images").is_dir():
            prepare_renders(arguments.airsim, arguments.camvid, work)
            words = ["source.size=[240,426]", *SIZES, *ZOOM]
        else:
            sys.exit(f"skipped: no AirSim at {arguments.airsim} (images/ and labels/)")
        uris = [str(work / "data" / name) for name in FOLDERS[which]]
    return [f"{domain}.uri={uri}" for domain, uri in zip(("source", "target", "evaluation"), uris, strict=True)] + words


# What came out -------------------------------------------------------------------------------------------------------


def markdown(kept: dict[str, Any], min_lr: float, pairs: bool) -> str:
    """The sweeps, then what each choice would have cost in each and how far it agrees with target mIoU, then ASHA."""
    sets = {name: finished(sweep, min_lr) for name, sweep in kept.items() if "_asha" not in name}
    judged = {
        name: {label: judge(trials, by) for label, by in choices(trials, pairs).items()}
        for name, trials in sets.items()
    }
    lines = [*sittings(kept, sets), "", "Regret in points:", "", *table(judged, 1, max)]
    lines += ["", f"Mean regret of a sweep of {OF_SMALL} of them, over {DRAWS} draws:", "", *table(judged, 2, max)]
    lines += ["", "Spearman:", "", *table(judged, 0, min)]
    for name in sets:
        for looks in LOOKS:
            if swept := kept.get(name + _asha_suffix(looks)):
                lines.append("\n" + against_random(name, looks, finished(kept[name], 0), swept["trials"]))
    return "\n".join(lines)


def sittings(kept: dict[str, Any], sets: Mapping[str, list[Trial]]) -> list[str]:
    """One row a sweep: how far configurations differ and scores agree, how long it took, what went into trials."""
    columns = ["sweep", "trials", "target mIoU", "median", "agreement", "in doubt", "minutes"]
    columns += ["not in trials", "next trial"]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name, trials in sets.items():
        mious = [100 * trial[ORACLE] for trial in trials]
        took, waits = kept[name].get("wall_s"), kept[name].get("waits_s")
        cells = [name, str(len(trials)), f"{min(mious):.1f} to {max(mious):.1f}", f"{statistics.median(mious):.1f}"]
        found, rng = [Found(number, [], trial) for number, trial in enumerate(trials)], random.Random(0)
        agree, smaller = agreement(found), [rng.sample(found, min(OF_SMALL, len(found))) for _ in range(DRAWS)]
        doubted = sum(bool(doubt(one)) for one in smaller) / DRAWS
        cells += ["-" if agree is None else f"{agree:.2f}", f"{100 * doubted:.0f} %"]
        cells += [f"{took / 60:.0f}", f"{100 * (1 - kept[name]['share_training']):.1f} %"] if took else ["-", "-"]
        cells += [f"after {max(waits):.1f} s at most" if waits else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


Judged = Mapping[str, Mapping[str, tuple[float, float, float]]]


def table(judged: Judged, which: int, worst: Callable[..., float]) -> list[str]:
    """One row a choice, one column a sweep, then the mean over sweeps and the worst."""
    lines = [f"| chosen by | {' | '.join(judged)} | mean | worst |", "| --- " * (3 + len(judged)) + "|"]
    for label in {label: None for found in judged.values() for label in found}:
        values = [found[label][which] for found in judged.values() if label in found]
        cells = [f"{found[label][which]:.{1 if which else 2}f}" if label in found else "-" for found in judged.values()]
        cells += [f"{value:.{1 if which else 2}f}" for value in (statistics.fmean(values), worst(values))]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def choices(trials: list[Trial], pairs: bool) -> dict[str, tuple[str, ...]]:
    """What could be chosen by: the aggregate, each score there is, means of all, of the cheap ones, of all but one."""
    have = [score for score in (*SCORES, OF_CLIPS) if score in trials[0]]
    found: dict[str, tuple[str, ...]] = {"aggregate": AGGREGATED, **{score: (score,) for score in have}}
    if OF_CLIPS in have:
        found[f"aggregate and {OF_CLIPS}"] = (*AGGREGATED, OF_CLIPS)
    found |= {"mean place by all": tuple(have), " + ".join(DEFAULT_SCORES): DEFAULT_SCORES}
    found |= {f"by all but {score}": tuple(s for s in have if s != score) for score in have}
    return found | ({" + ".join(pair): pair for pair in combinations(have, 2)} if pairs else {})


def finished(sweep: dict[str, Any], min_lr: float) -> list[Trial]:
    """Trials that were trained to their end, at this learning rate or a higher one."""
    return [t for t in sweep["trials"] if t["status"] == "finished" and t["optimizer.lr"] >= min_lr]


def judge(trials: list[Trial], scores: tuple[str, ...]) -> tuple[float, float, float]:
    """Rank correlation of the mean place by these scores with target mIoU; the regret, and that of smaller sweeps."""
    found = [Found(number, [], trial) for number, trial in enumerate(trials)]
    regret_of_all = regret(found, scores)
    miou = pd.Series([one.scores[ORACLE] for one in found])
    rho = pd.Series([-one.rank for one in found]).rank().corr(miou.rank())
    rng = random.Random(0)
    smaller = [regret(rng.sample(found, OF_SMALL), scores) for _ in range(DRAWS)] if len(found) >= OF_SMALL else []
    return float(rho), regret_of_all, statistics.fmean(smaller or [math.nan])


def regret(found: list[Found], scores: tuple[str, ...]) -> float:
    """Points of target mIoU between the best of these and the one that a sweep would choose."""
    chosen = by_mean_place(found, scores, OBJECTIVE)[0]
    return 100 * (max(one.scores[ORACLE] for one in found) - chosen.scores[ORACLE])


def against_random(name: str, looks: int, everything: list[Trial], asha: list[Trial]) -> str:
    """ASHA's choice against that of random search with as many steps, both by the aggregate."""
    steps = everything[0]["step"]
    spent = sum(trial["step"] for trial in asha)
    done = [trial for trial in asha if trial["status"] == "finished"]
    chosen, best = chosen_by_aggregate(done)[ORACLE], max(trial[ORACLE] for trial in done)
    fits, rng = max(1, spent // steps), random.Random(0)
    draws = [rng.sample(everything, min(fits, len(everything))) for _ in range(2000)]
    random_chosen = statistics.fmean(chosen_by_aggregate(draw)[ORACLE] for draw in draws)
    random_best = statistics.fmean(max(trial[ORACLE] for trial in draw) for draw in draws)
    return (
        f"ASHA on {name}, {looks} looks: {len(asha)} configurations, {len(done)} to the end, {spent} steps in all, as "
        f"many as {fits} whole trials. Chosen by the aggregate: {100 * chosen:.1f} mIoU, by random search with {fits} "
        f"trials {100 * random_chosen:.1f} (mean over 2000 draws of its trials); best reached: {100 * best:.1f} "
        f"against {100 * random_best:.1f}."
    )


def _asha_suffix(looks: int) -> str:
    return "_asha" + (f"_looks{looks}" if looks != LOOKS[0] else "")


def chosen_by_aggregate(trials: list[Trial]) -> Trial:
    """The trial that a sweep of these would choose."""
    found = [Found(number, [], trial) for number, trial in enumerate(trials)]
    return trials[by_mean_place(found, AGGREGATED, OBJECTIVE)[0].number]


if __name__ == "__main__":
    main()
