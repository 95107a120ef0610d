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

# of all rows: cars, poles and fences are one pixel in seventy of the renders
RARE = ["source.rare_class_temperature=0.05", "source.rare_class_min_pixels=300", "source.rare_class_crop_pixels=100"]
ZOOM = ["augment.scale=[1.0,3.0]"]  # the drone is far from its houses
STYLE = ["augment.style=fourier"]
AS_TRAINED = ["method.calibrate_images=0"]
# a suburb's shortcuts are learnt less where features stay near ImageNet's: DAFormer's distance, here of stuff
NEAR = [
    "method.lambda_distance=0.3", "method.distance_classes=[sky,building,road,tree]", "method.distance_min_share=0.5",
]  # fmt: skip
LATE = [*AS_TRAINED, "method.start_step=HALF", "method.weighting=share"]

STUDY = Study(
    rows={
        "source_only": [SOURCE_ONLY],
        "feature_distance": [SOURCE_ONLY, *NEAR],
        "minent": ["recipes/minent.yaml", *AS_TRAINED, *NEAR],
        "advent": ["recipes/advent.yaml", *AS_TRAINED, *NEAR],
        "apoda": ["recipes/apoda.yaml", *AS_TRAINED, *NEAR],
        "self_training": [SELF_TRAINING, *LATE, *NEAR, "method.statistics=source"],
        "oracle": [SOURCE_ONLY, "method.use_target_labels=true"],
        "~ source-only, no zoom": [SOURCE_ONLY, "augment.scale=[1.0,1.0]"],
        "~ source-only, no rare classes": [SOURCE_ONLY, "source.rare_class_temperature=null"],
        "~ source-only, in the target's style": [SOURCE_ONLY, *STYLE],
        "~ feature distance 0.02": [SOURCE_ONLY, *NEAR, "method.lambda_distance=0.02"],
        "~ feature distance 0.1": [SOURCE_ONLY, *NEAR, "method.lambda_distance=0.1"],
        # a suburb is half trees and a street is not: whose batch statistics, and of which passes
        "~ source-only, frozen statistics": [SOURCE_ONLY, "model.batch_norm=frozen"],
        "~ minent, AdaBN": ["recipes/minent.yaml"],
        "~ advent, AdaBN": ["recipes/advent.yaml"],
        "~ advent, no distance": ["recipes/advent.yaml", *AS_TRAINED],
        "~ advent, in the target's style": ["recipes/advent.yaml", *AS_TRAINED, *STYLE],
        "~ self-training, AdaBN": [SELF_TRAINING],
        "~ self-training, from the first step": [SELF_TRAINING, *AS_TRAINED],
        "~ self-training, late": [SELF_TRAINING, *LATE],
        "~ self-training, late, distance": [SELF_TRAINING, *LATE, *NEAR],
        "~ self-training, late, source's statistics": [SELF_TRAINING, *LATE, "method.statistics=source"],
    },
    common=[
        "source.size=[240,426]", "target.size=[240,320]", "evaluation.size=[240,320]", "augment.crop=[180,240]",
        *RARE, *ZOOM,
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
