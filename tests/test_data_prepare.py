import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import encode, label, picture, write_camvid

from distuda import storage
from distuda.data.conversion import Conversion
from distuda.data.dataset import open_dataset
from distuda.data.decode import decode_image, decode_label
from distuda.data.manifest import PROGRESS
from distuda.data.prepare import BAD_SAMPLES, prepare
from distuda.data.reader import iterate_once
from distuda.errors import UserError


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    write_camvid(tmp_path / "camvid", "train", ["0006R0_f00930", "0016E5_00390", "0001TP_006690", "0001TP_006720"])
    write_camvid(tmp_path / "camvid", "val", ["0016E5_07959"])
    return tmp_path / "camvid"


def test_camvid_becomes_shards(camvid: Path, tmp_path: Path) -> None:
    summary = prepare("camvid", str(camvid), str(tmp_path / "out"))
    data = open_dataset(summary.uri)
    assert summary.num_samples == len(data) == 5 and summary.num_bad == 0
    row = data.read_group(0).to_pylist()[0]
    assert (row["key"], row["clip"], row["frame"]) == ("0001TP_006690", "0001TP", 6690)
    assert row["image"] == (camvid / "train" / "0001TP_006690.jpg").read_bytes(), "images are never re-encoded"
    source = label(2, classes=12) % 12
    assert np.array_equal(decode_label(row["label"], "k"), np.where(source == 11, 255, source))
    assert summary.class_frequencies().sum() == pytest.approx(1)
    assert not storage.exists(str(tmp_path / "out" / PROGRESS))


def test_split_globs_limit_and_labels(camvid: Path, tmp_path: Path) -> None:
    def keys(name: str, **options: object) -> list[str]:
        prepare("camvid", str(camvid), str(tmp_path / name), **options)  # type: ignore[arg-type]
        return list(open_dataset(str(tmp_path / name)).index["key"].to_pylist())

    assert keys("a", split="val") == ["0016E5_07959"]
    assert keys("b", split="train", include=["0006R0*", "0016E5*"]) == ["0006R0_f00930", "0016E5_00390"]
    assert keys("c", exclude=["*_00*"], limit=2) == ["0006R0_f00930", "0016E5_07959"]
    assert keys("d", include=["0001TP*"], labels=False) == ["0001TP_006690", "0001TP_006720"]
    assert not open_dataset(str(tmp_path / "d")).labelled


def test_resize_stores_smaller_pictures(camvid: Path, tmp_path: Path) -> None:
    prepare("camvid", str(camvid), str(tmp_path / "out"), resize=(6, 8), limit=2)
    data = open_dataset(str(tmp_path / "out"))
    assert data.index["height"].to_pylist() == [6, 6]
    assert decode_label(data.read_group(0)["label"][0].as_py(), "k").shape == (6, 8)


def test_cut_bottom_leaves_rows_out_of_all_pictures(camvid: Path, tmp_path: Path) -> None:
    prepare("camvid", str(camvid), str(tmp_path / "whole"), limit=2)
    prepare("camvid", str(camvid), str(tmp_path / "out"), cut_bottom=5, limit=2)
    whole, cut = (open_dataset(str(tmp_path / name)).read_group(0).to_pylist() for name in ("whole", "out"))
    for a, b in zip(whole, cut, strict=True):
        assert b["height"] == a["height"] - 5 and b["width"] == a["width"]
        assert np.array_equal(decode_label(b["label"], "k"), decode_label(a["label"], "k")[:-5])
        images = [decode_image(row["image"], "k").astype(int) for row in (a, b)]
        assert np.abs(images[1] - images[0][:-5]).mean() < 12  # encoded once more, of the same rows
    prepare("camvid", str(camvid), str(tmp_path / "small"), cut_bottom=4, resize=(4, 8), limit=1)
    assert open_dataset(str(tmp_path / "small")).index["height"].to_pylist() == [4]
    with pytest.raises(UserError, match="nothing is left of 12 rows without the last 12"):
        prepare("camvid", str(camvid), str(tmp_path / "none"), cut_bottom=12, max_bad_share=0)
    with pytest.raises(UserError, match="--cut-bottom -1 is below 0"):
        prepare("camvid", str(camvid), str(tmp_path / "less"), cut_bottom=-1)


def test_folder_layout_with_id_map_tags_and_nesting(tmp_path: Path) -> None:
    for sub in ("images/a", "labels/a"):
        (tmp_path / "src" / sub).mkdir(parents=True)
    (tmp_path / "src/images/a/x.png").write_bytes(encode(picture(0)))
    (tmp_path / "src/labels/a/x.png").write_bytes(encode(np.full((12, 16), 26, np.uint8)))
    (tmp_path / "src/tags.json").write_text(json.dumps({"tags": {"a/x": ["car"]}}))
    prepare("folder", str(tmp_path / "src"), str(tmp_path / "out"), classes="cityscapes19", id_map="cityscapes_ids")
    row = open_dataset(str(tmp_path / "out")).read_group(0).to_pylist()[0]
    assert row["key"] == "a/x" and row["tags"] == [13]
    assert (decode_label(row["label"], "k") == 13).all()
    with pytest.raises(UserError, match="no class table"):
        prepare("folder", str(tmp_path / "src"), str(tmp_path / "other"))


def test_of_a_folder_s_clips_a_frame_in_many_may_be_labelled(tmp_path: Path) -> None:
    for sub in ("images/drive", "labels/drive"):
        (tmp_path / "src" / sub).mkdir(parents=True)
    for number in range(30):
        (tmp_path / f"src/images/drive/{number:02d}.png").write_bytes(encode(picture(number)))
    for number in (9, 21):
        (tmp_path / f"src/labels/drive/{number:02d}.png").write_bytes(encode(label(number)))
    words: Any = {"classes": "camvid11"}
    summary = prepare("folder", str(tmp_path / "src"), str(tmp_path / "out"), variant="clips", **words)
    assert (summary.num_samples, summary.manifest.num_labelled, summary.num_bad) == (30, 2, 0)
    scored = list(iterate_once(open_dataset(summary.uri)))
    assert [batch.keys for batch in scored] == [["drive/09"], ["drive/21"]]
    assert all(batch.label_BHW is not None and batch.before is not None for batch in scored)
    with pytest.raises(UserError, match="28 of 30 samples cannot be used"):
        prepare("folder", str(tmp_path / "src"), str(tmp_path / "stills"), **words)
    (tmp_path / "src/labels/drive").rename(tmp_path / "src/labels/other")
    with pytest.raises(UserError, match="no label for any image"):
        prepare("folder", str(tmp_path / "src"), str(tmp_path / "misspelt"), variant="clips", **words)


def _bad_tree(root: Path) -> dict[str, str]:
    """A tree with one good sample and one of each way to be bad; key -> part of the reason."""
    for sub in ("images", "labels"):
        (root / sub).mkdir(parents=True)
    jpeg = encode(picture(0, 64, 64), "JPEG")
    cases: dict[str, tuple[bytes, bytes | None, str]] = {
        "good": (jpeg, encode(label(0, 64, 64)), ""),
        "missing": (jpeg, None, "no label file"),
        "size": (jpeg, encode(label(0, 5, 6)), "label is 6x5 but the image is 64x64"),
        "id": (jpeg, encode(np.full((64, 64), 77, np.uint8)), "77"),
        "short": (jpeg[: len(jpeg) // 2], encode(label(0, 64, 64)), "damaged"),
        "cut": (encode(picture(0))[:300], encode(label(0)), "damaged|readable"),
        "colour": (jpeg, encode(picture(0, 64, 64)), "mode RGB"),
        "text": (b"not an image", encode(label(0, 64, 64)), "not a readable image"),
    }
    for key, (image, ids, _) in cases.items():
        (root / "images" / f"{key}.jpg").write_bytes(image)
        if ids is not None:
            (root / "labels" / f"{key}.png").write_bytes(ids)
    return {key: reason for key, (_, _, reason) in cases.items() if reason}


def test_bad_samples_are_listed_and_the_run_fails(tmp_path: Path) -> None:
    reasons = _bad_tree(tmp_path / "src")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"7 of 8 samples cannot be used.*\n.*") as caught:
        prepare("folder", str(tmp_path / "src"), str(out), classes="voc21")
    assert str(out / BAD_SAMPLES) in str(caught.value)
    listed = {line["key"]: line["reason"] for line in map(json.loads, (out / BAD_SAMPLES).read_text().splitlines())}
    assert set(listed) == set(reasons)
    for key, reason in reasons.items():
        assert any(part in listed[key] for part in reason.split("|")), (key, listed[key])
    with pytest.raises(UserError, match="incomplete"):
        open_dataset(str(out))


def test_an_allowed_share_of_bad_samples_is_left_out(tmp_path: Path) -> None:
    reasons = _bad_tree(tmp_path / "src")
    options = {"classes": "voc21", "max_bad_share": 0.9}
    summary = prepare("folder", str(tmp_path / "src"), str(tmp_path / "out"), **options)  # type: ignore[arg-type]
    assert (summary.num_samples, summary.num_bad) == (1, len(reasons))
    again = prepare("folder", str(tmp_path / "src"), str(tmp_path / "out"), **options)  # type: ignore[arg-type]
    assert again.num_bad == len(reasons)


def test_mended_samples_are_read_again(camvid: Path, tmp_path: Path) -> None:
    annotation = camvid / "trainannot" / "0006R0_f00930.png"
    kept = annotation.read_bytes()
    annotation.write_bytes(b"broken")
    with pytest.raises(UserError, match="1 of 5"):
        prepare("camvid", str(camvid), str(tmp_path / "out"), shard_samples=2)
    annotation.write_bytes(kept)
    assert prepare("camvid", str(camvid), str(tmp_path / "out"), shard_samples=2).num_samples == 5


def test_a_second_run_keeps_finished_shards(camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real = Conversion.write

    def counted(self: Conversion, entries: object, number: int, advance: object) -> None:
        if number == 2 and len(written) == 2:
            written.append(-1)
            raise KeyboardInterrupt
        written.append(number)
        real(self, entries, number, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(Conversion, "write", counted)
    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        prepare("camvid", str(camvid), out, shard_samples=2)
    with pytest.raises(UserError, match="unfinished set made with other options"):
        prepare("camvid", str(camvid), out, shard_samples=2, labels=False)
    assert prepare("camvid", str(camvid), out, shard_samples=2).num_samples == 5
    assert written == [0, 1, -1, 2]
    whole = prepare("camvid", str(camvid), str(tmp_path / "whole"), shard_samples=2)
    assert whole.manifest == open_dataset(out).manifest
    assert prepare("camvid", str(camvid), out, shard_samples=2).manifest == whole.manifest, "finished: nothing to do"
    with pytest.raises(UserError, match="another data set"):
        prepare("camvid", str(camvid), out, limit=1)


def test_empty_and_misspelt_sources(camvid: Path, tmp_path: Path) -> None:
    for options, message in [
        ({"include": ["nothing*"]}, "no sample found"),
        ({"split": "trian"}, "'train'"),
        ({"classes": "camvid12"}, "'camvid11'"),
        ({"id_map": "camvid_segnat"}, "'camvid_segnet'"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare("camvid", str(camvid), str(tmp_path / "out"), **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'camvid'"):
        prepare("camvit", str(camvid), str(tmp_path / "out"))
    with pytest.raises(UserError, match="no sample found"):
        prepare("camvid", str(tmp_path / "nowhere"), str(tmp_path / "out"))
    shutil.rmtree(camvid / "trainannot")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty"):
        prepare("camvid", str(camvid), str(tmp_path / "used"))


def _finished(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}


def test_a_killed_process_loses_no_finished_shard(tmp_path: Path) -> None:
    write_camvid(tmp_path / "camvid", "train", [f"0006R0_f{i:05d}" for i in range(400)])
    words = ["from distuda.data.prepare import prepare", "import sys", "prepare(*sys.argv[1:], shard_samples=2)"]
    out = tmp_path / "out"
    command = [sys.executable, "-c", "; ".join(words), "camvid", str(tmp_path / "camvid"), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((out / PROGRESS).glob("shard-*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = _finished(out)
    assert len(before) >= 5 and not (out / "manifest.json").exists()
    done = {path.name for path in (out / PROGRESS).glob("shard-*")}
    summary = prepare("camvid", str(tmp_path / "camvid"), str(out), shard_samples=2)
    after = _finished(out)
    assert summary.num_samples == 400 and len(after) == 200
    assert all(after[name] == before[name] for name in done), "a finished shard is not written again"
    whole = prepare("camvid", str(tmp_path / "camvid"), str(tmp_path / "whole"), shard_samples=2)
    assert whole.manifest == summary.manifest and not list(out.glob(".*.part"))


def test_every_takes_a_frame_in_so_many_of_each_clip(camvid: Path, tmp_path: Path) -> None:
    write_camvid(camvid, "test", [f"Seq05VD_f{i:05d}" for i in range(5)])
    prepare("camvid", str(camvid), str(tmp_path / "out"), every=2)
    assert open_dataset(str(tmp_path / "out")).index["key"].to_pylist() == [
        "0001TP_006690", "0006R0_f00930", "0016E5_00390", "Seq05VD_f00000", "Seq05VD_f00002", "Seq05VD_f00004",
    ]  # fmt: skip
    for number in range(1, 13):  # by name, frame 10 comes before frame 2
        (tmp_path / "src/images/drive").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"src/images/drive/f{number}.png").write_bytes(encode(picture(number)))
    words: Any = {"variant": "clips", "classes": "camvid11", "labels": False}
    prepare("folder", str(tmp_path / "src"), str(tmp_path / "thin"), every=3, **words)
    assert open_dataset(str(tmp_path / "thin")).index["frame"].to_pylist() == [1, 4, 7, 10]
    assert open_dataset(str(tmp_path / "thin")).previous.tolist() == [-1, 0, 1, 2]
    with pytest.raises(UserError, match="every = 0"):
        prepare("camvid", str(camvid), str(tmp_path / "none"), every=0)


def test_tags_from_masks_leave_out_background_and_ignored(tmp_path: Path) -> None:
    for sub in ("images", "labels"):
        (tmp_path / "src" / sub).mkdir(parents=True)
    ids = np.full((12, 16), 255, np.uint8)
    ids[:4], ids[4:6] = 0, 15
    (tmp_path / "src/images/x.png").write_bytes(encode(picture(0)))
    (tmp_path / "src/labels/x.png").write_bytes(encode(ids))
    for name, options in (("masks", {"tags": "masks", "labels": False}), ("none", {}), ("both", {"tags": "masks"})):
        prepare("folder", str(tmp_path / "src"), str(tmp_path / name), classes="voc21", **options)  # type: ignore[arg-type]
    masks, none, both = (
        open_dataset(str(tmp_path / n)).read_group(0).to_pylist()[0] for n in ("masks", "none", "both")
    )
    assert masks["tags"] == [15] and masks["label"] is None
    assert none["tags"] is None and both["tags"] == [15] and both["label"] is not None
    assert open_dataset(str(tmp_path / "masks")).index["tags"].to_pylist() == [[15]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("no json", "is no JSON"),
        ("[1]", "has no mapping 'tags'"),
        ('{"tagz": {}}', "has no mapping 'tags'"),
        ('{"tags": {"x": "car"}}', "the tags of 'x' are 'car'"),
        ('{"tags": {"x": ["carr"]}}', "no class 'carr' (did you mean 'car'"),
    ],
)
def test_a_mistake_in_tags_is_named(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "src/images").mkdir(parents=True)
    (tmp_path / "src/images/x.png").write_bytes(encode(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "src/tags.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(says)):
        prepare("folder", str(tmp_path / "src"), str(tmp_path / "out"), classes="camvid11", labels=False)
