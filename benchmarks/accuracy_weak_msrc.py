"""AE-PSL on MSRC with `lite`: segmentation from image-level tags alone, stage by stage.

    python benchmarks/accuracy_weak_msrc.py --msrc MSRC --work runs/msrc

MSRC holds images/, labels/ and tags.json: 400 photographs of 23 classes without a background; every fifth by sorted
key is val. Training sees the 320 other images and their tags; masks score, and train the row "full supervision" alone.

    CAM, round k        on train: each pixel's strongest tag, or the one that was mined there (all pixels)
    masks, round k      on train: composed of the regions mined until then (mIoU of pixels that are not ignored)
    the others          on val, without its tags: segmentation networks after `--steps` steps

Interrupted, it goes on where it stopped: finished results are kept in --results, half-done runs resume.
"""

import json
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from accuracy import HERE, Results, command_line, distuda, mean_sd
from omegaconf import OmegaConf

from distuda.data.dataset import open_dataset
from distuda.data.reader import iterate_once
from distuda.engine.evaluate import evaluate
from distuda.engine.run import open_run

ROUNDS, MASKS = 4, 3
RARE = ("horse", "mountain")  # hardly any images
STUFF = ("building", "grass", "tree", "sky", "mountain", "water", "road")
NETWORKS = {
    **{f"plain_{k}": f"masks of round {k} alone, no PSL" for k in range(1, ROUNDS + 1)},
    "segment": "PSL",
    "again": "PSL++",
    "again_filled": "PSL++, own masks fill the composed ones",
    "true_tags": "PSL, true tags for v in training",
    "full": "full supervision",
}
OPEN = "PSL, nothing prohibited at test time"
BOUND = "PSL, true tags for v, at test time too"
ROWS = [
    *(f"CAM, round {k}" for k in range(1, ROUNDS + 1)),
    *(f"masks, round {k}" for k in range(1, ROUNDS + 1)),
    *NETWORKS.values(),
    BOUND,
    OPEN,
]


def main() -> None:
    """Run every seed's phases, print the table."""
    parser = command_line(__doc__.splitlines()[0], "runs/msrc", "accuracy_weak_msrc.json", ROWS, ROWS, "msrc")
    parser.add_argument("--steps", type=int, default=400, help="of a segmentation network")
    parser.add_argument("--classify-steps", type=int, default=300, help="of a round's classifier")
    arguments = parser.parse_args()
    if not (Path(arguments.msrc) / "tags.json").is_file():
        sys.exit(f"skipped: no MSRC at {arguments.msrc} (images/, labels/ and tags.json)")
    work, results = Path(arguments.work), Results(Path(arguments.results))
    prepare(Path(arguments.msrc), work)
    with ThreadPoolExecutor(arguments.processes) as pool:
        for job in [pool.submit(study, arguments, work, results, seed) for seed in arguments.seeds]:
            job.result()
    print(markdown(results, {"classify_steps": arguments.classify_steps, "steps": arguments.steps}))


def prepare(msrc: Path, work: Path) -> None:
    """Tagged train images, the same with masks, and val with masks."""
    work.mkdir(parents=True, exist_ok=True)
    classes = json.loads((msrc / "tags.json").read_text())["classes"]
    table = {"classes": classes, "things": [name for name in classes if name not in STUFF]}
    (work / "classes.json").write_text(json.dumps(table))
    val = sorted(path.stem for path in (msrc / "images").glob("*.jpg"))[4::5]
    chosen = {
        "train": ("--exclude", "--no-labels"),
        "train_labels": ("--exclude", "--labels"),
        "val": ("--include", "--labels"),
    }
    for name, (option, labels) in chosen.items():
        if not (work / "data" / name / "manifest.json").exists():
            keys = [word for key in val for word in (option, key)]
            words = ("--classes", str(work / "classes.json"), labels, *keys)
            distuda("prepare", "folder", str(msrc), str(work / "data" / name), *words)


def study(arguments: Namespace, work: Path, results: Results, seed: int) -> None:
    """All phases of one seed, and their scores."""
    facts = {"seed": seed, "classify_steps": arguments.classify_steps, "steps": arguments.steps}
    if all(results.has(row=row, **facts) for row in arguments.rows):
        return
    out = work / "runs" / f"{arguments.classify_steps}-{arguments.steps}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    log, data = out / "console.log", work / "data"
    OmegaConf.save(recipe(arguments, work), out / "recipe.yaml")
    distuda("train", str(out / "recipe.yaml"), f"out={out}", f"seed={seed}", "resume=true", log=log)
    labels = [(f"CAM, round {k}", f"erase_{k}", "train_labels") for k in range(1, ROUNDS + 1)]
    labels += [(f"masks, round {k}", f"masks_{k}", "train_labels") for k in range(1, ROUNDS + 1)]
    for row, phase, truth in [*labels, (BOUND, "bound", "val")]:
        distuda("evaluate", str(out / phase), "--data", str(data / truth), log=log)
        add(results, {"row": row, **facts, **json.loads((out / phase / "evaluation-labels.json").read_text())})
    for phase, row in NETWORKS.items():
        lines = [json.loads(line) for line in (out / phase / "metrics.jsonl").read_text().splitlines()]
        add(results, {"row": row, **facts, **[line for line in lines if line["kind"] == "evaluation"][-1]})
    add(results, {"row": OPEN, **facts, **unprohibited(out / "segment", data / "val")})


def unprohibited(run: Path, data: Path) -> dict[str, Any]:
    """Scores of a PSL network that believes its branch in nothing."""
    network = open_run(str(run)).predictor
    labelled = open_dataset(str(data))
    with network.knowing_tags():
        return evaluate(network, iterate_once(labelled), labelled.table, scores=(), bf16=True)


def add(results: Results, row: dict[str, Any]) -> None:
    """Keep a finished row, once."""
    if not results.has(**{name: row[name] for name in ("row", "seed", "classify_steps", "steps")}):
        results.add(row)


def recipe(arguments: Namespace, work: Path) -> Any:
    """recipes/erasing.yaml with masks after every round, and the networks that the table compares."""
    whole: Any = OmegaConf.load(HERE.parent / "recipes" / "erasing.yaml")
    shared = {name: value for name, value in whole.items() if name != "phases"}
    classify, erase = whole.phases[0].repeat
    named = {phase.name: phase for phase in whole.phases if "name" in phase}
    prohibitive = {"name": "psl", "start_step": arguments.steps // 2}
    own_masks, kept = named["own_masks"], named["own_masks"].relabel
    segment = {**named["segment"], "steps": arguments.steps, "method": prohibitive}
    seen = {"source": {"columns": [f"masks_{MASKS}"]}}
    phases = [
        {"repeat": [{**classify, "steps": arguments.classify_steps}, erase]},
        *(
            {**named["masks"], "name": f"masks_{number}", "source": {"columns": [f"erase_{number}"]}}
            for number in range(1, ROUNDS + 1)
        ),
        *(
            {
                **segment, "name": f"plain_{number}", "method": {"name": "source_only"},
                "source": {"columns": [f"masks_{number}"]},
            }
            for number in range(1, ROUNDS + 1)
        ),
        {**segment, **seen},
        {**own_masks, "relabel": {**kept, "keep_labels": False}},  # as the paper
        {**segment, "name": "again"},
        {**own_masks, **seen, "name": "filled_masks", "init_from": "segment"},  # as the recipe
        {**segment, "name": "again_filled"},
        {**segment, **seen, "name": "true_tags", "method": {**prohibitive, "confidence": "tags"}},
        {
            "name": "bound", "init_from": "true_tags", "relabel": {"name": "predict", "domain": "target"},
            "target": {"uri": str(work / "data" / "val")},
        },
        {
            **segment, "name": "full", "method": {"name": "source_only"},
            "source": {"uri": str(work / "data" / "train_labels"), "columns": []},
        },
    ]  # fmt: skip
    own = {
        "source": {"uri": str(work / "data" / "train")},
        "evaluation": {"uri": str(work / "data" / "val"), "every_steps": 1_000_000},
    }
    return OmegaConf.create({**shared, **own, "log_every_steps": 25, "rounds": ROUNDS, "phases": phases})


def markdown(results: Results, lengths: dict[str, int]) -> str:
    """One line a stage of runs of these lengths: mean and spread, each seed, without rare classes, covered, shares."""
    full = results.of(row=NETWORKS["full"], **lengths)
    lines = [
        "| stage | mIoU | seeds | without horse and mountain | covered | right of all pixels | of full supervision |",
        "| --- " * 7 + "|",
    ]
    for row in ROWS:
        runs = sorted(results.of(row=row, **lengths), key=lambda run: run["seed"])
        if not runs:
            continue
        values = [100 * run["miou"] for run in runs]
        common = [100 * without_rare(run) for run in runs]
        covered = right = share = ""
        if "coverage" in runs[0]:
            covered = f"{100 * mean(run['coverage'] for run in runs):.0f} %"
            right = f"{100 * mean(run['coverage'] * run['accuracy'] for run in runs):.1f} %"
        if full and row in (*NETWORKS.values(), BOUND, OPEN):
            share = f"{sum(values) / len(values) / sum(run['miou'] for run in full) * len(full):.0f} %"
        each = " / ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {row} | {mean_sd(values)} | {each} | {mean_sd(common)} | {covered} | {right} | {share} |")
    return "\n".join(lines)


def without_rare(run: dict[str, Any]) -> float:
    """Mean IoU of the other classes that occur or are predicted, in [0, 1]."""
    values = [value for name, value in run["iou"].items() if name not in RARE and value is not None]
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
