"""How well saliency tells objects from background on MSRC, and what its low values are worth as a background cue.

    python benchmarks/saliency.py --msrc MSRC

MSRC holds images/, labels/ and tags.json. Objects are the 16 classes of things, background the 7 of stuff; void pixels
do not count. The area under the ROC curve is a photograph's, averaged over photographs that show both; the cue is
that of all photographs.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from accuracy_weak_msrc import STUFF
from numpy.typing import NDArray

from distuda.data.saliency import saliency

THRESHOLDS = (0.03, 0.06, 0.12, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--msrc", required=True)
    msrc = Path(parser.parse_args().msrc)
    if not (msrc / "tags.json").is_file():
        sys.exit(f"skipped: no MSRC at {msrc} (images/, labels/ and tags.json)")
    classes = json.loads((msrc / "tags.json").read_text())["classes"]
    areas, seconds, pixels = [], [], 0
    low, right = np.zeros((2, len(THRESHOLDS)))
    for path in sorted((msrc / "images").glob("*.jpg")):
        label = cv2.imread(str(msrc / "labels" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        known, object_HW = label < len(classes), np.isin(label, [classes.index(name) for name in STUFF], invert=True)
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        started_s = time.perf_counter()
        map_HW = saliency(image)
        seconds.append(time.perf_counter() - started_s)
        if len(np.unique(object_HW[known])) == 2:
            areas.append(area_under_curve(map_HW[known], object_HW[known]))
        below = map_HW[known] < np.array(THRESHOLDS)[:, None]
        pixels += int(known.sum())
        low += below.sum(1)
        right += (below & ~object_HW[known]).sum(1)
    print(f"{len(areas)} photographs with both, area under the curve {statistics.mean(areas):.3f}")
    print(f"{1000 * statistics.median(seconds):.0f} ms an image")
    for threshold, chosen, background in zip(THRESHOLDS, low, right, strict=True):
        print(
            f"below {threshold}: {100 * chosen / pixels:.0f} % of pixels, {100 * background / chosen:.0f} % background"
        )


def area_under_curve(score_N: NDArray[np.float32], positive_N: NDArray[np.bool_]) -> float:
    """Share of pairs (object, background) of which the object's score is the larger one; ties count half."""
    _, place_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(count) - (count - 1) / 2)[place_N]
    positives = int(positive_N.sum())
    above = rank_N[positive_N].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(positive_N) - positives)))


if __name__ == "__main__":
    main()
