import io
from pathlib import Path

import numpy as np
import pytest
from data_trees import TABLE, encode, samples
from PIL import Image

from distuda.data.dataset import open_dataset
from distuda.data.inspect import contact_sheet, inspect, overlay
from distuda.data.sample import Sample
from distuda.data.shards import write_shards


@pytest.mark.parametrize("labelled", [True, False])
def test_summary_and_sheet(tmp_path: Path, labelled: bool) -> None:
    write_shards(samples(9, labelled=labelled), str(tmp_path / "set"), TABLE, row_group_bytes=2000)
    text = str(inspect(str(tmp_path / "set"), out=str(tmp_path / "sheet.png"), num=4))
    assert "9 samples" in text and "16 x 12 (9)" in text
    assert ("ground" in text and "thing" in text) == labelled
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 600 and sheet.height > 200


def test_sheet_shows_the_class_colours_of_the_picture(tmp_path: Path) -> None:
    black = Sample(
        key="a",
        image=encode(np.zeros((40, 80, 3), np.uint8)),
        label=encode(np.full((40, 80), 2, np.uint8)),
        height=40,
        width=80,
    )
    write_shards([black], str(tmp_path / "set"), TABLE)
    content = io.BytesIO()
    contact_sheet(open_dataset(str(tmp_path / "set")), 5).save(content, "PNG")
    sheet = np.asarray(Image.open(content))
    assert sheet[80, 100].tolist() == [0, 0, 0]
    assert sheet[80, 500].tolist() == [42, 48, 54]  # 0.6 of the colour of class 2


def test_ignored_pixels_darken() -> None:
    image = np.full((2, 2, 3), 200, np.uint8)
    mixed = overlay(image, np.array([[0, 255], [0, 255]], np.uint8), TABLE)
    assert mixed[0, 1].tolist() == [50, 50, 50] and mixed[0, 0].tolist() == [86, 92, 98]
