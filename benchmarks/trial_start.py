"""How long a free slot of a sweep waits until the next trial with workers trains.

    python benchmarks/trial_start.py --work runs/trial_start

A sweep of four trials of one Ray Train worker each, one at a time, on small streets. Counted from the end of a trial's
record to the moment its follower's worker begins its run (`environment.json` is written then): a process that is told
what to train, Ray Train's controller and a worker that imports torch. Reading has begun some seconds later.
"""

import argparse
import shutil
from itertools import pairwise
from pathlib import Path

from accuracy import distuda


def main() -> None:
    """Sweep, and print the waits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="runs/trial_start")
    work = Path(parser.parse_args().work).absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "space.yaml").write_text("optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}\n")
    streets = {"source": "day?num=16", "target": "dusk?num=16", "evaluation": "dusk/val?num=4"}
    distuda(
        "sweep", "recipes/source_only.yaml", *(f"{d}.uri=streets://{s}&size=72x120" for d, s in streets.items()),
        "augment.crop=[64,96]", "batch_size=2", "workers=1", "steps=200", "evaluation.every_steps=200",
        "--space", str(work / "space.yaml"), "--num", "4", "--concurrent", "1", "--out", str(work / "sweep"),
    )  # fmt: skip
    trials = [work / "sweep" / "trials" / f"{number:04d}" for number in range(4)]
    for before, after in pairwise(trials):
        waited = (after / "environment.json").stat().st_mtime - (before / "trial.json").stat().st_mtime
        print(f"{after.name} began {waited:.1f} s after {before.name} had ended")


if __name__ == "__main__":
    main()
