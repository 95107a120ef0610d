"""One picture of what adaptation changes: image, what the floor sees, what the adapted model sees, the truth.

    make demo
    python benchmarks/picture.py runs/demo/source_only runs/demo/adapted docs/demo.png

Frames are spread evenly over the evaluation set, not chosen.
"""

import argparse
from itertools import islice

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.dataset import open_dataset
from distuda.data.reader import iterate_once
from distuda.engine.evaluate import logits_at
from distuda.engine.run import open_run
from distuda.metrics.confusion import class_map
from distuda.report.panels import class_palette, spread

BORDER = 4
"""White pixels around each picture."""
TITLES = ("image", "source-only", "adapted", "truth")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("floor")
    parser.add_argument("adapted")
    parser.add_argument("out")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--width", type=int, default=240, help="of one picture, pixels")
    arguments = parser.parse_args()
    runs = [open_run(arguments.floor), open_run(arguments.adapted)]
    evaluation = runs[1].recipe.evaluation
    dataset = open_dataset(evaluation.uri)
    palette = class_palette(runs[1].table)
    wanted = spread(len(dataset), arguments.frames)
    rows = []
    for position, batch in enumerate(islice(iterate_once(dataset, size=evaluation.size), max(wanted) + 1)):
        if position not in wanted:
            continue
        label_HW = batch.label_BHW[0].numpy()
        maps = [class_map(logits_at(run.predictor, batch.image_BCHW, label_HW.shape))[0].numpy() for run in runs]
        pictures = [batch.image_BCHW[0].permute(1, 2, 0).numpy(), *(palette[ids] for ids in (*maps, label_HW))]
        rows.append(np.concatenate([framed(picture, arguments.width) for picture in pictures], axis=1))
    sheet = np.concatenate([titles(rows[0].shape[1]), *rows])
    cv2.imwrite(arguments.out, sheet[..., ::-1])


def framed(picture_HWC: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The picture at a width, with a white border; class colours stay as they are."""
    height = round(picture_HWC.shape[0] * width / picture_HWC.shape[1])
    sized = cv2.resize(picture_HWC, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.pad(sized, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), constant_values=255)


def titles(width: int) -> NDArray[np.uint8]:
    """A white line with the columns' headings."""
    line = np.full((26, width, 3), 255, np.uint8)
    for number, title in enumerate(TITLES):
        place = (number * width // len(TITLES) + BORDER, 18)
        cv2.putText(line, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return line


if __name__ == "__main__":
    main()
