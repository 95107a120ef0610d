"""AirSim -> CamVid over seven classes with `lite`: from renders of another place to real street images.

    python benchmarks/accuracy_synthetic_to_real.py --airsim AIRSIM --camvid CAMVID --work runs/synthetic

AIRSIM holds images/ and labels/ with CamVid's ids: 1533 renders of one suburb from a low drone, 256x144. Only sky,
building, pole, road, tree, fence and car are trusted there; all else is ignored in both. Target: all CamVid train
images without labels. Scored on CamVid val at native size. Interrupted, it goes on where it stopped.
"""

import json
import sys
from functools import partial
from pathlib import Path

from accuracy import Study, distuda, parse, run

# CamVid's ids in the SegNet layout
IDS = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist", "void")
SHARED = ("sky", "building", "pole", "road", "tree", "fence", "car")
SOURCE_ONLY, SELF_TRAINING = "recipes/source_only.yaml", "recipes/self_training.yaml"

# of all rows: cars, poles and fences are one pixel in seventy of the renders, and source-only gains eight points by it
RARE = ["source.rare_class_temperature=0.05", "source.rare_class_min_pixels=300", "source.rare_class_crop_pixels=100"]
ZOOM = ["augment.scale=[1.0,3.0]"]  # the drone is far from its houses
STYLE = ["augment.style=fourier"]
FROZEN = ["model.batch_norm=frozen"]  # ImageNet's in the encoder, none of either domain
ONE_PASS = ["method.forward=joint", "method.calibrate_images=0"]

STUDY = Study(
    rows={
        "source_only": [SOURCE_ONLY],
        "style": [SOURCE_ONLY, *STYLE],
        "minent": ["recipes/minent.yaml"],
        "advent": ["recipes/advent.yaml"],
        "apoda": ["recipes/apoda.yaml"],
        "self_training": [SELF_TRAINING],
        "oracle": [SOURCE_ONLY, "method.use_target_labels=true"],
        # a suburb is half trees and a street is not: whose batch statistics, and of which passes
        "~ source-only, no rare classes": [SOURCE_ONLY, "source.rare_class_temperature=null"],
        "~ source-only, frozen statistics": [SOURCE_ONLY, *FROZEN],
        "~ advent, frozen statistics": ["recipes/advent.yaml", *FROZEN],
        "~ self-training, frozen statistics": [SELF_TRAINING, *FROZEN],
        "~ minent, one pass": ["recipes/minent.yaml", *ONE_PASS],
        "~ advent, no calibration": ["recipes/advent.yaml", "method.calibrate_images=0"],
        "~ advent, one pass": ["recipes/advent.yaml", *ONE_PASS],
        "~ self-training, no calibration": [SELF_TRAINING, "method.calibrate_images=0"],
        "~ self-training, one pass": [SELF_TRAINING, *ONE_PASS],
    },
    common=[
        "source.size=[240,426]", "target.size=[240,320]", "evaluation.size=[240,320]", "augment.crop=[180,240]", *RARE, *ZOOM,
    ],
    data=("airsim", "camvid", "camvid_val"),
    other_data={"oracle": ("camvid_labels", "camvid_val")},
    tail=("pole", "fence", "car"),
)  # fmt: skip


def main() -> None:
    results = "accuracy_synthetic_to_real.json"
    arguments = parse(STUDY, __doc__.splitlines()[0], "runs/synthetic", results, "airsim", "camvid")
    if not (Path(arguments.camvid) / "train").is_dir() or not (Path(arguments.airsim) / "images").is_dir():
        sys.exit(f"skipped: no AirSim at {arguments.airsim} (images/, labels/), or no CamVid at {arguments.camvid}")
    run(STUDY, arguments, partial(prepare, arguments.airsim, arguments.camvid))


def prepare(airsim: str, camvid: str, work: Path) -> None:
    """Both domains with the seven classes alone."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "seven.json").write_text(json.dumps({"classes": SHARED, "things": ["car"]}))
    ids = {i: name if name in SHARED else "ignore" for i, name in enumerate(IDS)}
    (work / "ids.json").write_text(json.dumps(ids))
    table = ["--classes", str(work / "seven.json")]
    labelled = [*table, "--id-map", str(work / "ids.json")]
    for name, layout, uri, words in (
        ("airsim", "folder", airsim, labelled),
        ("camvid", "camvid", camvid, ["--split", "train", "--no-labels", *table]),
        ("camvid_labels", "camvid", camvid, ["--split", "train", *labelled]),
        ("camvid_val", "camvid", camvid, ["--split", "val", *labelled]),
    ):
        if not (work / "data" / name / "manifest.json").exists():
            distuda("prepare", layout, uri, str(work / "data" / name), *words)


if __name__ == "__main__":
    main()
