"""Images a second of the erase job in this process, with one and with two actors, and what a kill costs.

    python benchmarks/erase_job.py --msrc MSRC --work runs/erase_job

MSRC holds images/, labels/ and tags.json. The classifier is `lite` after two steps: its quality makes no difference
here. Variants take turns in one run; each count starts when the first row group is written, so neither Ray's start nor
loading the network is in it. Then a job with two actors is killed (SIGKILL to all its processes) once a third of the
row groups is written, and resumed: none of those may be written again.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distuda.data.columns import GROUPS
from distuda.data.dataset import open_dataset
from distuda.data.prepare import prepare

VARIANTS = {"in process": 0, "1 actor": 1, "2 actors": 2}
LIMIT_S = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--msrc", required=True)
    parser.add_argument("--work", default="runs/erase_job")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not (Path(arguments.msrc) / "tags.json").is_file():
        sys.exit(f"skipped: no MSRC at {arguments.msrc} (images/, labels/ and tags.json)")
    work = Path(arguments.work).absolute()
    images = ready(Path(arguments.msrc), work)
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name, workers in VARIANTS.items():
            rates[name].append(measure(work, workers))
    print(
        "| variant | images/s, median | min - max | against in process, median of rounds |\n| --- | --- | --- | --- |"
    )
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["in process"], strict=True))
        print(f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} - {max(values):.1f} | {ratio:.2f}x |")
    kept, again, total = killed(work)
    print(
        f"\n{images} images in {total} row groups; killed after {kept}, of which the resumed job wrote {again} again."
    )


def ready(msrc: Path, work: Path) -> int:
    """The tagged images in many small row groups, and a classifier; gives the count of images."""
    work.mkdir(parents=True, exist_ok=True)
    classes = json.loads((msrc / "tags.json").read_text())["classes"]
    (work / "classes.json").write_text(json.dumps({"classes": classes, "things": []}))
    table = str(work / "classes.json")
    prepare("folder", str(msrc), str(work / "data"), classes=table, labels=False, workers=0, row_group_bytes=2**19)
    if not (work / "classify").exists():
        distuda(
            "method=classify", "steps=2", "target.uri=none", "evaluation.uri=none", f"out={work / 'classify'}"
        ).wait()
    return len(open_dataset(str(work / "data")))


def distuda(*words: str) -> subprocess.Popen[bytes]:
    """A training command on the tagged images, one thread a process, in a process group of its own."""
    command = [
        sys.executable,
        "-m",
        "distuda",
        "train",
        *words,
        f"source.uri={Path(words[-1].partition('=')[2]).parent / 'data'}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)


@contextmanager
def erase(work: Path, workers: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """One erase phase into work/erase; whatever of it still runs at the end is killed."""
    recipe = work / "erase.yaml"
    recipe.write_text("phases:\n- {name: erase, relabel: erase}\n")
    run = work / "classify"
    job = distuda(
        str(recipe), f"init_from={run}", f"workers={workers}", "target.uri=none", *words, f"out={work / 'job'}"
    )
    try:
        yield job
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def written(work: Path) -> dict[str, int]:
    """Row groups that are there, with the time at which they were written [ns]."""
    folder = work / "job" / "erase" / GROUPS
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")} if folder.exists() else {}


def measure(work: Path, workers: int) -> float:
    """Images a second between the first written row group and the last."""
    shutil.rmtree(work / "job", ignore_errors=True)
    with erase(work, workers) as job:
        if job.wait(LIMIT_S):
            raise SystemExit("the erase job failed")
    stamps = sorted((stamp, int(name[:5])) for name, stamp in written(work).items())
    rows = open_dataset(str(work / "data")).rows_per_group
    return sum(rows[number] for _, number in stamps[1:]) / ((stamps[-1][0] - stamps[0][0]) / 1e9)


def killed(work: Path) -> tuple[int, int, int]:
    """Row groups there when the job was killed, how many of them were written again, and all."""
    shutil.rmtree(work / "job", ignore_errors=True)
    total = len(open_dataset(str(work / "data")).groups)
    deadline_s = time.monotonic() + LIMIT_S
    with erase(work, 2) as job:
        while len(written(work)) < total / 3 and job.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
    time.sleep(5)  # Ray's own processes end when they miss their driver
    before = written(work)
    with erase(work, 2, "resume=true") as job:
        if job.wait(LIMIT_S):
            raise SystemExit("the resumed erase job failed")
    after = written(work)
    return len(before), sum(after[name] != stamp for name, stamp in before.items()), len(after)


if __name__ == "__main__":
    main()
