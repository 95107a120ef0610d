"""Feature regression across a camera change on CamVid, as the misalignment of the pairs grows.

    python benchmarks/feature_regression.py --camvid CAMVID --work runs/feature_regression

CAMVID is CamVid in the SegNet layout. Domain A: its 305 day frames of train with labels, at 320x240. Domain B: the same
frames as another camera takes them (`CAMERA`), each with a pair in A that is shifted by up to so many pixels, turned
by up to 2 degrees and zoomed by up to 2 %. All networks are `lite`; all but the first are scored on val as the other
camera takes it:

    on A, on B           the network of A (i, ii); `+ AdaBN`: with batch-norm statistics of B's images
    fine-tuned           trained on with B's own labels (iii): what annotating again would give
    pseudo-labels        trained on with what the network of A says of each pair, copied onto B's image (iv)
    feature regression   no label of either domain (v)

All but the data is recipes/feature_regression_experiment.yaml. Interrupted, it goes on where it stopped: finished
results are kept in --results, half-done runs resume.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from accuracy import HERE, Results, command_line, distuda, fit, mean_sd
from omegaconf import OmegaConf
from torch import Tensor

from distuda import storage
from distuda.data.class_tables import CLASS_TABLES
from distuda.data.dataset import open_dataset
from distuda.data.reader import iterate_once
from distuda.data.sample import Sample
from distuda.data.shards import write_shards
from distuda.data.transformations import CameraConfig, MisalignmentConfig, camera, misalign
from distuda.draws import fold

SIZE = (240, 320)
CAMERA = CameraConfig(saturation=0, contrast=0.5, gamma=2, blur=1, noise=0.02)
DEGREES, ZOOM = 2.0, 0.02
CROP = "augment.crop=[180,240]"
DAY = ("--include", "0006R0*", "--include", "0016E5*")
RECIPE = "recipes/feature_regression_experiment.yaml"
REGRESSION = "phases.regression.method"
ROW_PHASES = {
    "fine-tuned": ("fine_tuned",),
    "pseudo-labels": ("copied", "pseudo_labels"),
    "feature regression": ("regression",),
}
ABLATIONS = {
    "feature regression, l1": f"{REGRESSION}.distance=l1",
    "feature regression, cosine": f"{REGRESSION}.distance=cosine",
    "feature regression, both layers": f"{REGRESSION}.layers=[0,-1]",
    "feature regression, first layer": f"{REGRESSION}.layers=[0]",
}
ROWS = ("on A", "on B", "on B + AdaBN", *ROW_PHASES, *ABLATIONS)
ALIGNED_ONLY = ("on A", "on B", "on B + AdaBN", "fine-tuned")  # the pairs play no part in these
FROM_TEACHER = ROWS[:3]


def main() -> None:
    """Prepare both cameras' data, train what is missing, print the table."""
    arguments = parse()
    if not (Path(arguments.camvid) / "train").is_dir():
        sys.exit(f"skipped: no CamVid at {arguments.camvid} (SegNet layout, with train/ and trainannot/)")
    torch.set_num_threads(1)
    work, results = Path(arguments.work), Results(Path(arguments.results))
    with ThreadPoolExecutor(arguments.processes) as pool:
        prepare(arguments, work)
        list(pool.map(lambda seed: teacher(work, results, seed, arguments.teacher_steps), arguments.seeds))
        jobs = [
            pool.submit(student, work, results, row, shift, seed, arguments)
            for seed in arguments.seeds
            for row in arguments.rows
            for shift in (arguments.shifts if row not in ALIGNED_ONLY else [0])
            if row not in FROM_TEACHER
        ]
        for job in jobs:
            job.result()
    print(markdown(results))


def parse() -> argparse.Namespace:
    """The command line."""
    main_rows = [row for row in ROWS if row not in ABLATIONS]
    parser = command_line(
        __doc__.splitlines()[0], "runs/feature_regression", "feature_regression.json", list(ROWS), main_rows, "camvid"
    )
    parser.add_argument("--shifts", nargs="+", type=int, default=[0, 4, 8, 16], help="misalignments [pixels]")
    parser.add_argument("--teacher-steps", type=int, default=1500, help="of the network of A")
    parser.add_argument("--steps", type=int, default=500, help="of everything that goes on from it")
    return parser.parse_args()


# Data ----------------------------------------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace, work: Path) -> None:
    """A and its val, then both as the other camera takes them, with pairs for each misalignment."""
    size = ("--resize", *map(str, SIZE))
    for name, split, words in (("a", "train", DAY), ("a_val", "val", ())):
        if not complete(work, name):
            distuda("prepare", "camvid", arguments.camvid, uri(work, name), "--split", split, *size, *words)
    write(work, "b_val", other_camera(uri(work, "a_val"), None))
    for shift in {0, *arguments.shifts}:
        write(work, f"b_{shift}", other_camera(uri(work, "a"), shift))


def other_camera(source: str, shift: int | None) -> Iterator[Sample]:
    """Samples as the other camera takes them, labels and all; with a shift, their A images misaligned as pairs."""
    config = MisalignmentConfig(pixels=shift or 0, degrees=DEGREES, zoom=ZOOM)
    for number, batch in enumerate(iterate_once(open_dataset(source))):
        seed_B = fold(torch.tensor([number]), "camera change")
        image = batch.image_BCHW.float() / 255
        pair = None if shift is None else jpeg(misalign(image, seed_B, config))
        yield sample(batch.keys[0], jpeg(camera(image, seed_B, CAMERA)), batch.label_BHW[0], pair)


def sample(key: str, image: bytes, label_HW: Tensor, pair: bytes | None) -> Sample:
    """A prepared sample: encoded image, (H, W) train ids, the encoded image of the other camera."""
    label = cv2.imencode(".png", label_HW.numpy().astype(np.uint8))[1].tobytes()
    return Sample(key=key, image=image, height=SIZE[0], width=SIZE[1], label=label, pair=pair)


def jpeg(image_BCHW: Tensor) -> bytes:
    """One float image as a file of quality 95, as `prepare --resize` stores A."""
    pixels = (image_BCHW[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def write(work: Path, name: str, samples: Iterator[Sample]) -> None:
    """Shards of these samples, unless they are there."""
    if not complete(work, name):
        storage.remove(uri(work, name))
        write_shards(samples, uri(work, name), CLASS_TABLES["camvid11"], row_group_bytes=2**20)


def complete(work: Path, name: str) -> bool:
    """Whether a data set is written."""
    return (work / "data" / name / "manifest.json").exists()


def uri(work: Path, name: str) -> str:
    """Where a data set lies."""
    return str(work / "data" / name)


# Runs ----------------------------------------------------------------------------------------------------------------


def part(work: Path, *names: str) -> str:
    """A file with these phases of the experiment's recipe alone: rows share one network of A."""
    recipe = OmegaConf.load(HERE.parent / RECIPE)
    recipe.phases = [phase for phase in recipe.phases if phase.name in names]
    path = work / f"{'-'.join(names)}.yaml"
    OmegaConf.save(recipe, path)
    return str(path.absolute())


def teacher_folder(work: Path, seed: int, steps: int) -> Path:
    """What holds the run of the network of A."""
    return work / "runs" / f"teachers-{steps}-{seed}"


def teacher(work: Path, results: Results, seed: int, steps: int) -> None:
    """The network of A and what it is worth on A, on B, and on B with B's batch-norm statistics."""
    out = teacher_folder(work, seed, steps)
    facts = {"shift": 0, "seed": seed, "teacher_steps": steps, "steps": 0}
    if not (out / "teacher" / "checkpoints").exists() or not results.has(row="on B", **facts):
        scores = fit(work, out, seed, steps, ("a", "b_0", "b_val"), part(work, "teacher"), CROP)
        results.add({**scores, "row": "on B", **facts})
    for row, file, words in (
        ("on A", "evaluation-last.json", ("--data", uri(work, "a_val"))),
        ("on B + AdaBN", "evaluation-calibrated.json", ("--calibrate", "64")),
    ):
        if not results.has(row=row, **facts):
            distuda("evaluate", str(out / "teacher"), *words, log=out / "console.log")
            results.add({**json.loads((out / "teacher" / file).read_text()), "row": row, **facts})


def student(work: Path, results: Results, row: str, shift: int, seed: int, arguments: argparse.Namespace) -> None:
    """One network for B that starts as the network of A."""
    steps, teacher_steps = arguments.steps, arguments.teacher_steps
    facts = {"row": row, "shift": shift, "seed": seed, "teacher_steps": teacher_steps, "steps": steps}
    if results.has(**facts):
        return
    phases = ROW_PHASES.get(row, ("regression",))
    start = teacher_folder(work, seed, teacher_steps) / "teacher"
    words = [f"phases.{phase}.init_from={start.absolute()}" for phase in phases]
    words += [ABLATIONS[row]] if row in ABLATIONS else []
    out = work / "runs" / f"{row.replace(', ', '-').replace(' ', '_')}-{shift}-{teacher_steps}-{steps}-{seed}"
    data = ("a", f"b_{shift}", "b_val")
    results.add({**fit(work, out, seed, steps, data, part(work, *phases), CROP, *words), **facts})


# The table -----------------------------------------------------------------------------------------------------------


def markdown(results: Results) -> str:
    """A table for each length of the network of A and of what follows: rows by misalignment."""
    shifts = sorted({row["shift"] for row in results.rows})
    lines = []
    for teacher_steps, steps in sorted({(r["teacher_steps"], r["steps"]) for r in results.rows if r["steps"]}):
        lines += [f"\n### {teacher_steps} steps on A, then {steps}\n"]
        lines += [f"| mIoU on B's val | {' | '.join(f'{shift} px' for shift in shifts)} |"]
        lines += ["| --- " * (len(shifts) + 1) + "|"]
        for name in ROWS:
            facts = {"row": name, "teacher_steps": teacher_steps, "steps": 0 if name in FROM_TEACHER else steps}
            runs = [results.of(shift=shift, **facts) for shift in shifts]
            if any(runs):
                cells = [mean_sd([100 * run["miou"] for run in found]) for found in runs]
                lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
