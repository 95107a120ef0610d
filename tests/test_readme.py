"""The README's own commands, run as they stand on tiny folders in place of the reader's data."""

import json
import re
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_trees import encode
from settings import tiny_pictures

from distuda.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# Said to every training on top of the README's words: smaller and shorter, nothing else.
SMALL = ["steps=2", "augment.crop=[32,48]", "model.weights=none", "batch_size=2", "log_every_steps=1"]


def commands() -> list[list[str]]:
    """The `distuda` lines of the section on the reader's own data."""
    section = README.split("## Your own data")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("distuda ")]
    return [shlex.split(line, comments=True) for line in lines]


def write_folder(root: Path, seed: int, *, labels: bool) -> None:
    """images/ and labels/ of 40x56 pixels; labels hold Cityscapes ids: road, building, sky, pole, void."""
    images, ids = tiny_pictures(4, seed)
    for name in ("images", "labels") if labels else ("images",):
        (root / name).mkdir(parents=True)
    city = np.zeros(256, np.uint8)
    city[[0, 1, 2, 3]] = [7, 11, 23, 17]
    for i, (image, label) in enumerate(zip(images, ids, strict=True)):
        (root / "images" / f"{i}.png").write_bytes(encode(image))
        if labels:
            (root / "labels" / f"{i}.png").write_bytes(encode(city[label]))


def write_clips(root: Path) -> None:
    """A labelled drive as single frames, and one as a video file."""
    write_folder(root / "plain", 4, labels=True)
    for name in ("images", "labels"):
        (root / "sim_drives" / name).mkdir(parents=True)
        (root / "plain" / name).rename(root / "sim_drives" / name / "drive_1")
    (root / "drives").mkdir()
    video = cv2.VideoWriter(str(root / "drives" / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (56, 40))
    for image in tiny_pictures(4, 5)[0]:
        video.write(image)
    video.release()


def test_the_readme_works_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("simulator", "our_city", "our_city_val")):
        write_folder(tmp_path / "data-in" / name, seed, labels=name != "our_city")
    write_folder(tmp_path / "data-in" / "tagged", 3, labels=False)
    write_clips(tmp_path / "data-in")
    tags = {"tags": {str(i): ["cat", "dog"][: 1 + i % 2] for i in range(4)}}
    (tmp_path / "data-in" / "tagged" / "tags.json").write_text(json.dumps(tags))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    done = []
    for words in commands():
        words = [re.sub(r"^/data/", f"{tmp_path}/data-in/", word) for word in words]
        rounds = ["rounds=1"] if "recipes/erasing.yaml" in words else []
        monkeypatch.setattr(sys, "argv", words + ([*SMALL, *rounds] if words[1] == "train" else []))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, f"{shlex.join(words)} ended with {stopped.value.code}"
        done.append(words[1])
    assert set(done) == {"prepare", "inspect", "train", "evaluate", "report", "export", "predict"}
    assert (tmp_path / "runs/adapted/report.html").exists() and (tmp_path / "runs/adapted/model.onnx").exists()
    assert len(list((tmp_path / "predictions/overlay").glob("*.png"))) == 4


@pytest.mark.parametrize("name", re.findall(r"\]\(([\w/.-]+)\)", README))
def test_links_lead_somewhere(name: str) -> None:
    assert (ROOT / name).exists()


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
