"""CamVid day -> dusk with `lite`: what each method gains over source-only, at equal steps, over seeds.

    python benchmarks/accuracy_camvid.py --camvid CAMVID --work runs/camvid

CAMVID is CamVid in the SegNet layout (train/ trainannot/). Source: the 305 day frames of train with labels. Target: the
62 dusk frames without labels; their labels score and do nothing else, except for the oracles: `oracle` trains on the
frames it is scored on; `oracle, held out` trains on one half of them (in time) and is scored on the other, both ways.
Interrupted, it goes on where it stopped: finished results are kept in --results, half-done runs resume. Rows that begin
with ~ are ablations; name those you want with --rows.
"""

import sys
from functools import partial
from pathlib import Path

from accuracy import Study, distuda, parse, run

DAY, DUSK = ("0006R0*", "0016E5*"), ("0001TP*",)
FIRST = ("0001TP_006*", "0001TP_007[0-5]*")
# the sampling that self-training's recipe has, alone
RARE = ["source.rare_class_temperature=0.05", "source.rare_class_min_pixels=1000", "source.rare_class_crop_pixels=300"]
SOURCE_ONLY, SELF_TRAINING, APODA = (f"recipes/{name}.yaml" for name in ("source_only", "self_training", "apoda"))
NATIVE = ["source.size=[360,480]", "target.size=[360,480]", "evaluation.size=[360,480]", "augment.crop=[272,368]"]
FROZEN = ["model.batch_norm=frozen", "method.calibrate_images=0"]
ORACLE = [SOURCE_ONLY, "method.use_target_labels=true"]

STUDY = Study(
    rows={
        "source_only": [SOURCE_ONLY],
        "source_only_rare": [SOURCE_ONLY, *RARE],
        "minent": ["recipes/minent.yaml"],
        "adaptsegnet": ["recipes/advent.yaml", "method.discriminator_input=softmax"],
        "advent": ["recipes/advent.yaml"],
        "apoda": [APODA],
        "self_training": [SELF_TRAINING],
        "self_training_masked": [SELF_TRAINING, "method.lambda_mask=1"],
        "oracle": ORACLE,
        "oracle_first": ORACLE,
        "oracle_second": ORACLE,
        # APODA: which attack, how many steps, how normalised, against random directions
        "~ apoda, discriminator attack alone": [APODA, "method.attack.epsilon_cls=0"],
        "~ apoda, classifier attack alone": [APODA, "method.attack.epsilon_adv=0"],
        "~ apoda, no attack": [APODA, "method.attack.epsilon_cls=0", "method.attack.epsilon_adv=0"],
        "~ apoda, K 1": [APODA, "method.attack.num_steps=1"],
        "~ apoda, K 2": [APODA, "method.attack.num_steps=2"],
        "~ apoda, K 5": [APODA, "method.attack.num_steps=5"],
        "~ apoda, global norm": [APODA, "method.attack.normalise=global"],
        "~ apoda, sign": [APODA, "method.attack.normalise=sign"],
        "~ apoda, no consistency": [APODA, "method.lambda_consistency=0"],
        "~ apoda, random directions": [APODA, "method.attack.direction=random"],
        "~ apoda, heads only": [APODA, "method.into_trunk=false"],
        "~ apoda and self-training": [
            APODA, "method.self_training={confidence: 0.9, weighting: pixel}", *RARE,
        ],
        # the defence where small things are learnt already: on from the first of these, trained where it is missing
        "~ source_only, start": [SOURCE_ONLY],
        "~ trained, source_only": [SOURCE_ONLY, "init_from=START"],
        "~ trained, adaptsegnet": ["recipes/advent.yaml", "method.discriminator_input=softmax", "init_from=START"],
        "~ trained, apoda": [APODA, "init_from=START"],
        "~ trained, apoda, random directions": [APODA, "method.attack.direction=random", "init_from=START"],
        "~ trained, apoda, no attack": [
            APODA, "method.attack.epsilon_cls=0", "method.attack.epsilon_adv=0", "init_from=START",
        ],
        # what DAFormer, HRDA and MIC add to ClassMix
        "~ self-training, no rare classes": [SELF_TRAINING, "source.rare_class_temperature=null"],
        "~ self-training, share": [SELF_TRAINING, "method.weighting=share"],
        "~ self-training, feature distance": [SELF_TRAINING, "method.lambda_distance=0.005"],
        "~ self-training, warm-up": [SELF_TRAINING, "optimizer.warmup_steps=50"],
        # DAFormer leaves out 15 and 120 of 512 rows; here of crops that are as high as the image
        "~ self-training, high crops": [SELF_TRAINING, "augment.crop=[240,180]"],
        "~ self-training, high crops, margins": [
            SELF_TRAINING, "augment.crop=[240,180]", "method.margins=[7,56,0,0]",
        ],
        "~ self-training, teacher 0.999": [SELF_TRAINING, "method.ema_decay=0.999"],
        "~ self-training, detail": [SELF_TRAINING, "model.detail=[96,128]"],
        # HRDA halves images that are large to begin with: native ones, and the same without windows
        "~ self-training, native": [SELF_TRAINING, *NATIVE],
        "~ self-training, native, detail": [SELF_TRAINING, *NATIVE, "model.detail=[136,184]"],
        # blocks as large beside the image as the authors' (32 of 512 rows at half resolution are 15 of these 240)
        "~ self-training, masked, block 16": [SELF_TRAINING, "method.lambda_mask=1", "method.mask_block=16"],
        "~ self-training, masked, block 16, half": [
            SELF_TRAINING, "method.lambda_mask=1", "method.mask_block=16", "method.mask_ratio=0.5",
        ],
        "~ self-training, masked, block 16, weight 0.3": [
            SELF_TRAINING, "method.lambda_mask=0.3", "method.mask_block=16",
        ],
        # all views under the same batch statistics, those of a masked image among them
        "~ self-training, one pass": [SELF_TRAINING, "method.forward=joint"],
        "~ self-training, masked, one pass": [SELF_TRAINING, "method.lambda_mask=1", "method.forward=joint"],
        # and under none of theirs: ImageNet's statistics throughout
        "~ self-training, frozen": [SELF_TRAINING, *FROZEN],
        "~ self-training, masked, frozen": [SELF_TRAINING, "method.lambda_mask=1", *FROZEN],
        "~ self-training, masked alone": [SELF_TRAINING, "method.lambda_mask=1", "method.lambda_mix=0"],
    },
    common=["source.size=[240,320]", "target.size=[240,320]", "evaluation.size=[240,320]", "augment.crop=[180,240]"],
    data=("day", "dusk", "dusk_labels"),
    other_data={
        "oracle": ("dusk_labels", "dusk_labels"),
        "oracle_first": ("dusk_first", "dusk_second"),
        "oracle_second": ("dusk_second", "dusk_first"),
    },
    tail=("pole", "sign", "fence", "pedestrian", "bicyclist"),
    halves=("oracle_first", "oracle_second"),
)  # fmt: skip


def main() -> None:
    arguments = parse(STUDY, __doc__.splitlines()[0], "runs/camvid", "accuracy_camvid.json", "camvid")
    if not (Path(arguments.camvid) / "train").is_dir():
        sys.exit(f"skipped: no CamVid at {arguments.camvid} (SegNet layout, with train/ and trainannot/)")
    run(STUDY, arguments, partial(prepare, arguments.camvid))


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


if __name__ == "__main__":
    main()
