"""Video adaptation with `lite`: mIoU, VPQ of semantic tubes and temporal consistency of each method, at equal frames.

    python benchmarks/accuracy_video.py streets --work runs/video
    python benchmarks/accuracy_video.py camvid --camvid CAMVID --work runs/video

streets: rendered clips of 6 frames, day with labels -> dusk without, scored on 20 other dusk clips. camvid: the real
15 Hz clip (val, 101 labelled frames) as target, scored on itself; source are the other sequences, one frame a second,
without the frames of 0016E5 around the clip. Methods that look at single frames take 4 + 4 a step, VAT, DA-VSN and TPS
2 + 2 pairs, so all see as many frames, but these half as many scenes: `source_only_two` is their floor. Self-training
that looks at the frame before takes 4 frames and 4 pairs. VAT + VST shares the steps between its two phases.
Interrupted, it goes on where it stopped: finished results are kept in --results, half-done runs resume.
"""

import sys
from functools import partial
from pathlib import Path

from accuracy import Rows, Study, command_line, distuda, run

SOURCE_ONLY, SELF_TRAINING = "recipes/source_only.yaml", "recipes/self_training.yaml"
VIDEO = ["recipes/self_training_video.yaml"]
ROWS: Rows = {
    "source_only": [SOURCE_ONLY],
    "source_only_two": [SOURCE_ONLY, "batch_size=2"],  # as many source scenes as davsn and tps see
    "advent": ["recipes/advent.yaml"],
    "self_training": [SELF_TRAINING],
    "vat": ["recipes/advent.yaml", "method=vat", "batch_size=2"],
    "vat_vst": ["recipes/vat_vst.yaml", "phases.adapt.steps=HALF", "phases.refine.steps=HALF"],
    "davsn": ["recipes/davsn.yaml"],
    "tps": ["recipes/tps.yaml", "method.start_step=HALF"],
    "self_training_video": [*VIDEO],
    "oracle": [SOURCE_ONLY, "method.use_target_labels=true"],
    "~ vat, no discriminators": [
        "recipes/advent.yaml",
        "method=vat",
        "batch_size=2",
        "method.lambda_adv=0",
        "method.lambda_sequence=0",
    ],
    "~ vat, no warp": ["recipes/advent.yaml", "method=vat", "batch_size=2", "method.warp=false"],
    "~ vat, no tube loss": ["recipes/advent.yaml", "method=vat", "batch_size=2", "method.lambda_tube=0"],
    "~ davsn, no fusion": ["recipes/davsn.yaml", "method.fusion=false"],
    "~ tps, no histogram": ["recipes/tps.yaml", "method.start_step=HALF", "augment.style=none"],
    "~ tps, from the first step": ["recipes/tps.yaml", "method.start_step=0"],
    "~ tps, sure": ["recipes/tps.yaml", "method.start_step=HALF", "method.confidence=0.9"],
    "~ self-training, carried labels": [*VIDEO, "method.flow_agreement=false", "method.lambda_video=1"],
    "~ self-training, carried labels too": [*VIDEO, "method.lambda_video=1"],
}
ALSO = {
    "vpq": "VPQ", "vpq_1": "VPQ, 1 frame", "vpq_4": "VPQ, 4 frames", "vpq_things": "VPQ things",
    "temporal_consistency": "temporal consistency",
}  # fmt: skip
DOMAINS = ("source", "target", "evaluation")
CLIPS = "?frames=6&num="
STUDIES = {
    "streets": Study(
        rows=ROWS,
        common=["augment.crop=[144,192]"],
        data=(f"streets://day{CLIPS}60", f"streets://dusk{CLIPS}60", f"streets://dusk/val{CLIPS}20"),
        tail=("pole", "sign", "fence", "person", "cyclist"),
        also=ALSO,
    ),
    "camvid": Study(
        rows=ROWS,
        common=["augment.crop=[180,240]"],
        data=("others", "clip", "clip_labels"),
        other_data={"oracle": ("clip_labels", "clip_labels")},
        tail=("pole", "sign", "fence", "pedestrian", "bicyclist"),
        also=ALSO,
    ),
}


def main() -> None:
    """Prepare the clips, train what is missing, print the table."""
    which = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] in STUDIES else ""
    if not which:
        sys.exit(f"say which: {', '.join(STUDIES)}")
    study = STUDIES[which]
    main_rows = [row for row in ROWS if not row.startswith("~")]
    data = ["camvid"] if which == "camvid" else []
    results = f"accuracy_video_{which}.json"
    parser = command_line(__doc__.splitlines()[0], f"runs/video_{which}", results, list(ROWS), main_rows, *data)
    parser.add_argument("--budgets", nargs="+", type=int, default=[400], help="steps")
    arguments = parser.parse_args(sys.argv[2:])
    if data and not (Path(arguments.camvid) / "val").is_dir():
        sys.exit(f"skipped: no CamVid at {arguments.camvid} (SegNet layout, with train/ and val/)")
    run(study, arguments, partial(prepare, arguments.camvid) if data else lambda _: None)


def prepare(camvid: str, work: Path) -> None:
    """The clip with and without labels, and the other sequences with labels, at 240x320 with their flow."""
    near = [word for hundred in range(75, 86) for word in ("--exclude", f"0016E5_0{hundred}*")]
    small = ("--resize", "240", "320", "--flow")
    for name, words in (
        ("others", ("--split", "train", "--labels", *near)),
        ("clip", ("--split", "val", "--no-labels")),
        ("clip_labels", ("--split", "val", "--labels")),
    ):
        if not (work / "data" / name / "manifest.json").exists():
            distuda("prepare", "camvid", camvid, str(work / "data" / name), *words, *small)


if __name__ == "__main__":
    main()
