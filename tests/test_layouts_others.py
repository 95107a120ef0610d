"""VOC, COCO panoptic, Cityscapes-VPS and video, from published trees to shards and back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
from data_trees import encode
from layout_trees_others import (
    COCO_CATEGORIES,
    COCO_SEGMENTS,
    VOC_MASK,
    VOC_SPLITS,
    VPS_CLIPS,
    pack,
    vps_category,
    vps_keys,
    vps_segments,
    write_coco,
    write_video,
    write_voc,
    write_vps,
)
from numpy.typing import NDArray

from distuda.data.class_tables import CLASS_TABLES
from distuda.data.dataset import open_dataset
from distuda.data.decode import decode_image, decode_label
from distuda.data.layouts import LAYOUTS
from distuda.data.prepare import prepare
from distuda.data.source import File, Tree
from distuda.data.video import VideoFrame, count_frames
from distuda.errors import UserError


def rows(uri: Path) -> dict[str, dict[str, Any]]:
    """Every sample of a prepared set by its key."""
    data = open_dataset(str(uri))
    found = [row for number in range(len(data.groups)) for row in data.read_group(number).to_pylist()]
    return {row["key"]: row for row in found}


def ids(content: bytes) -> NDArray[Any]:
    return decode_label(content, "test")


# --- PASCAL VOC


def test_voc_keeps_ids_tags_and_objects(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    prepare("voc", str(tmp_path / "voc"), str(tmp_path / "out"), split="train")
    found, table = rows(tmp_path / "out"), CLASS_TABLES["voc21"]
    assert list(found) == VOC_SPLITS["train"]
    row = found["2007_000032"]
    assert np.array_equal(ids(row["label"]), VOC_MASK)
    assert row["tags"] == [table.index("diningtable"), table.index("person")], "difficult counts, parts do not"
    assert found["2007_000039"]["tags"] is None, "no XML, so unknown"
    objects = ids(row["instance"])
    assert objects.dtype == np.uint16 and set(np.unique(objects)) == {0, 1, 2}
    assert (objects[VOC_MASK == 255] == 0).all() and (objects[VOC_MASK == 5] == 2).all()


def test_voc_tags_from_masks_leave_background_out(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    prepare("voc", str(tmp_path / "voc"), str(tmp_path / "out"), split="val", tags="masks")
    assert rows(tmp_path / "out")["2007_000033"]["tags"] == list(range(1, 21))
    prepare("voc", str(tmp_path / "voc"), str(tmp_path / "tags"), split="trainaug", labels=False)
    found = rows(tmp_path / "tags")
    assert found["2008_000002"]["tags"] == [11, 15] and found["2008_000002"]["label"] is None


def test_voc_splits(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    for split in (None, *LAYOUTS["voc"].splits):
        out = tmp_path / str(split)
        prepare("voc", str(tmp_path / "voc"), str(out), split=split)
        assert list(rows(out)) == VOC_SPLITS[split or "trainval"]
    assert not open_dataset(str(tmp_path / "test")).labelled
    added = rows(tmp_path / "trainaug")["2008_000002"]
    assert np.array_equal(ids(added["label"]), VOC_MASK[:, ::-1]) and added["instance"] is None


def test_voc_is_the_same_packed_and_from_any_folder(tmp_path: Path) -> None:
    base = write_voc(tmp_path / "voc")
    whole = prepare("voc", str(tmp_path / "voc"), str(tmp_path / "a"), split="trainaug").manifest.content_hash
    for number, folder in enumerate((base.parent, base)):
        manifest = prepare("voc", str(folder), str(tmp_path / f"b{number}"), split="trainaug").manifest
        assert manifest.content_hash == whole
    (tmp_path / "aug").mkdir()
    shutil.move(base / "SegmentationClassAug", tmp_path / "aug" / "SegmentationClassAug")
    shutil.move(base / "ImageSets/Segmentation/trainaug.txt", tmp_path / "aug" / "trainaug.txt")
    tar = pack(tmp_path / "voc", tmp_path / "packed" / "VOCtrainval_11-May-2012.tar")
    pack(tmp_path / "aug", tmp_path / "packed" / "SegmentationClassAug.zip")
    assert prepare("voc", str(tar.parent), str(tmp_path / "c"), split="trainaug").manifest.content_hash == whole
    assert list(rows_of_tar(tar, tmp_path / "d")) == VOC_SPLITS["train"]


def rows_of_tar(tar: Path, out: Path) -> dict[str, dict[str, Any]]:
    """The train split out of the tar alone."""
    prepare("voc", str(tar), str(out), split="train")
    return rows(out)


def test_voc_says_what_is_missing(tmp_path: Path) -> None:
    base = write_voc(tmp_path / "voc", augmented=False)

    def refused(split: str, *messages: str) -> None:
        with pytest.raises(UserError) as caught:
            prepare("voc", str(tmp_path / "voc"), str(tmp_path / "out"), split=split)
        for message in messages:
            assert message in str(caught.value)

    refused("trainaug", "ImageSets/Segmentation/trainaug.txt", "10,582", "SegmentationClassAug.zip")
    (base / "ImageSets/Segmentation/trainaug.txt").write_text("2008_000002\n")
    refused("trainaug", "SegmentationClassAug/2008_000002.png", "SegmentationClassAug.zip", ".mat", "--no-labels")
    (base / "Annotations" / "2007_000033.xml").write_text("<annotation>")
    refused("val", "1 of 1 samples", "2007_000033.xml", "no readable XML")
    (base / "JPEGImages" / "2007_000033.jpg").unlink()
    refused("val", "JPEGImages/2007_000033.jpg")
    shutil.rmtree(base / "SegmentationClass")
    refused("train", "SegmentationClass/2007_000032.png", "VOCtrainval_11-May-2012.tar")
    shutil.rmtree(base / "JPEGImages")
    refused("train", "VOC2012/JPEGImages", "VOCtrainval_11-May-2012.tar", "no registration")
    refused("trian", "did you mean 'train'?")


# --- COCO panoptic


def test_coco_has_its_own_table_and_numbers_things(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "out"))
    data, found = open_dataset(str(tmp_path / "out")), rows(tmp_path / "out")
    assert data.table.classes == ("Traffic_Light", "person", "banner") and data.table.name == "panoptic_val2017"
    assert data.table.things == {0, 1} and data.table.palette[:2] == ((250, 170, 30), (220, 20, 60))
    assert list(found) == ["000000000139", "000000000285"]
    row = found["000000000139"]
    expected = {0: (255, 0), 17: (2, 0), 300: (1, 2), 70000: (1, 3), 16777215: (1, 0), 5: (0, 1)}
    for segment, (train_id, number) in expected.items():
        here = segment == COCO_SEGMENTS
        assert (ids(row["label"])[here] == train_id).all() and (ids(row["instance"])[here] == number).all()


def test_coco_with_another_class_table(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    options = {"layout": "coco_panoptic", "source_uri": str(tmp_path / "coco"), "classes": "cityscapes19"}
    summary = prepare(destination_uri=str(tmp_path / "out"), **options)  # type: ignore[arg-type]
    assert summary.unmapped == ("banner",) and "banner" in str(summary.render().caption)
    label = ids(rows(tmp_path / "out")["000000000139"]["label"])
    assert (label[COCO_SEGMENTS == 5] == 6).all() and (label[COCO_SEGMENTS == 300] == 11).all()
    assert (label[COCO_SEGMENTS == 17] == 255).all()
    assert prepare(destination_uri=str(tmp_path / "out"), **options).unmapped == ("banner",)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none of the classes"):
        prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "x"), classes="camvid11")
    with pytest.raises(UserError, match="'voc_ids' out"):
        prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "x"), id_map="voc_ids")


def test_coco_is_the_same_packed_and_flat(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    write_coco(root)
    whole = prepare("coco_panoptic", str(root), str(tmp_path / "a")).manifest.content_hash

    def hash_of(source: Path, name: str) -> str:
        return prepare("coco_panoptic", str(source), str(tmp_path / name)).manifest.content_hash

    assert hash_of(pack(root, tmp_path / "coco.zip"), "b") == whole
    shutil.copytree(root, tmp_path / "flat")
    for path in list((tmp_path / "flat" / "annotations").iterdir()):
        shutil.move(path, tmp_path / "flat" / path.name)
    (tmp_path / "flat" / "annotations").rmdir()
    (tmp_path / "flat" / "val2017").rename(tmp_path / "flat" / "images")
    assert hash_of(tmp_path / "flat", "c") == whole
    (tmp_path / "png").mkdir()  # the owner packs the PNGs into a zip beside the JSON
    shutil.move(root / "annotations/panoptic_val2017", tmp_path / "png/panoptic_val2017")
    pack(tmp_path / "png", root / "annotations/panoptic_val2017.zip")
    assert hash_of(root, "d") == whole
    with pytest.raises(UserError, match=r"archive in an archive. Unpack .*nested.zip"):
        hash_of(pack(root, tmp_path / "nested.zip"), "e")


def test_coco_split_picks_the_json(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    write_coco(tmp_path / "coco", "train2017", count=3)
    (tmp_path / "coco/annotations/captions_val2017.json").write_text("{}")
    assert prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "a"), split="train").num_samples == 3
    assert prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "b"), split="val2017").num_samples == 2
    for split in (None, "2017", "test"):
        with pytest.raises(UserError, match=r"panoptic_train2017.json, .*panoptic_val2017.json\. .*one of them"):
            prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "c"), split=split)


def test_coco_says_what_is_missing_or_wrong(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "coco")
    kept = json.loads(path.read_text())

    def refused(message: str, **changes: Any) -> None:
        path.write_text(json.dumps({**kept, **changes}))
        with pytest.raises(UserError, match=message):
            prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    refused("no panoptic JSON: it has not a list 'categories'", categories=[{"id": 1}])
    refused("has category 92, which", categories=COCO_CATEGORIES[:1])
    refused(r"256 classes; 1 to 255", categories=[{"id": i, "name": f"c{i}", "isthing": 0} for i in range(256)])
    few = [{**kept["annotations"][0], "segments_info": kept["annotations"][0]["segments_info"][:2]}]
    refused(r"(?s)2 of 2 .*segment 5, 70000, 16777215 of the PNG.*annotates no image with id 285", annotations=few)
    refused("annotates no image", annotations=[])
    refused("lists the image 'x.jpg'", images=[*kept["images"], {"id": 3, "file_name": "x.jpg"}])
    (path.with_suffix("") / "000000000139.png").write_bytes(encode(np.zeros((12, 24), np.uint8)))
    refused("mode L, expected colours")
    shutil.rmtree(path.with_suffix(""))
    refused(r"no label for any image .*annotations/panoptic_val2017/")
    shutil.rmtree(tmp_path / "coco/val2017")
    refused(r"'val2017', 'images/val2017', 'images'.*val2017.zip")
    path.write_text("{")
    with pytest.raises(UserError, match="no readable JSON"):
        prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "out"))
    path.unlink()
    with pytest.raises(UserError, match=r"no JSON in .*panoptic_annotations_trainval2017.zip"):
        prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "out"))


def test_a_table_of_255_categories(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "coco")
    data = json.loads(path.read_text())
    more = [{"id": 1000 + i, "name": f"extra {i}", "isthing": 0} for i in range(252)]
    path.write_text(json.dumps({**data, "categories": more + COCO_CATEGORIES}))
    prepare("coco_panoptic", str(tmp_path / "coco"), str(tmp_path / "out"), limit=1)
    label = ids(rows(tmp_path / "out")["000000000139"]["label"])
    assert (label[COCO_SEGMENTS == 17] == 254).all() and (label[COCO_SEGMENTS == 0] == 255).all()
    assert len(set(open_dataset(str(tmp_path / "out")).table.palette[:252])) == 252


# --- Cityscapes-VPS


@pytest.fixture
def vps(tmp_path: Path) -> Path:
    write_vps(tmp_path / "vps")
    return tmp_path / "vps"


def test_vps_instances_are_the_same_over_a_clip(vps: Path, tmp_path: Path) -> None:
    prepare("cityscapes_vps", str(vps), str(tmp_path / "out"), split="val")
    found = rows(tmp_path / "out")
    assert list(found) == [key for clip in VPS_CLIPS["val"] for key in vps_keys(clip)]
    for clip in VPS_CLIPS["val"]:
        car = 100_000 + int(clip)
        numbers = {400: 1, car: 2, car + 65536: 3}
        for position, key in enumerate(vps_keys(clip)):
            segments, row = vps_segments(clip, position), found[key]
            assert (row["clip"], row["frame"]) == (clip, int(key[-6:]))
            label, instance = ids(row["label"]), ids(row["instance"])
            for segment in np.unique(segments):
                here = segments == segment
                assert (label[here] == (vps_category(int(segment)) if segment else 255)).all()
                assert (instance[here] == numbers.get(int(segment), 0)).all()


def test_vps_labelmap_needs_no_json(vps: Path, tmp_path: Path) -> None:
    for path in vps.glob("*.json"):
        path.unlink()
    prepare("cityscapes_vps", str(vps), str(tmp_path / "out"), split="train", variant="labelmap")
    row = rows(tmp_path / "out")[vps_keys("0001")[0]]
    label = ids(row["label"])
    assert set(np.unique(label)) == {0, 13, 18, 255}
    assert np.array_equal(ids(row["instance"]), np.choose(label == 13, [0, 13002]) + np.choose(label == 18, [0, 18002]))
    shutil.rmtree(vps / "train/panoptic_inst")
    prepare("cityscapes_vps", str(vps), str(tmp_path / "plain"), split="train", variant="labelmap")
    assert not open_dataset(str(tmp_path / "plain")).index["has_instances"].to_pylist()[0]


def test_vps_all_frames_of_a_clip(vps: Path, tmp_path: Path) -> None:
    summary = prepare("cityscapes_vps", str(vps), str(tmp_path / "out"), split="val", variant="img_all")
    assert (summary.num_samples, summary.manifest.num_labelled) == (60, 12), "a frame of another split is left out"
    clip = [row for row in rows(tmp_path / "out").values() if row["clip"] == "0005"]
    assert [row["frame"] for row in clip] == list(range(1732, 1762))
    assert [row["frame"] for row in clip if row["label"]] == [int(key[-6:]) for key in vps_keys("0005")]
    assert clip[0]["key"] == "0005_frankfurt_000000_001732"
    labelled = prepare("cityscapes_vps", str(vps), str(tmp_path / "six"), split="val").class_frequencies()
    assert np.allclose(summary.class_frequencies(), labelled)
    assert clip[4]["image"] == (vps / "val/img_all/frankfurt_000000_001736_leftImg8bit.png").read_bytes()


def test_vps_all_frames_in_the_classes_of_viper(vps: Path, tmp_path: Path) -> None:
    options: Any = {"split": "val", "variant": "img_all", "classes": "viper15"}
    assert prepare("cityscapes_vps", str(vps), str(tmp_path / "out"), **options).manifest.num_labelled == 12
    assert open_dataset(str(tmp_path / "out")).table == CLASS_TABLES["viper15"]


def test_vps_test_has_no_labels_and_packing_makes_no_difference(vps: Path, tmp_path: Path) -> None:
    assert prepare("cityscapes_vps", str(vps), str(tmp_path / "t"), split="test").manifest.num_labelled == 0
    whole = prepare("cityscapes_vps", str(vps), str(tmp_path / "a"))
    assert (whole.num_samples, whole.manifest.num_labelled) == (24, 18)
    (tmp_path / "top").mkdir()
    shutil.move(vps, tmp_path / "top/cityscapes_vps")
    archive = pack(tmp_path / "top", tmp_path / "cityscapes_vps.zip")
    assert prepare("cityscapes_vps", str(archive), str(tmp_path / "b")).manifest.content_hash == (
        whole.manifest.content_hash
    )


def test_vps_says_what_is_missing(vps: Path, tmp_path: Path) -> None:
    def refused(split: str, *messages: str, variant: str | None = None) -> None:
        with pytest.raises(UserError) as caught:
            prepare("cityscapes_vps", str(vps), str(tmp_path / "out"), split=split, variant=variant)
        for message in messages:
            assert message in str(caught.value)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    (vps / "val/panoptic_video" / f"{vps_keys('0005')[0]}_final_mask.png").unlink()
    refused("val", "1 of 12 samples", "val/panoptic_video/", "create_panoptic_video_labels.py --mode val")
    (vps / "panoptic_gt_val_city_vps.json").unlink()
    refused("val", "panoptic_gt_val_city_vps.json", "'labelmap'", "--no-labels")
    assert prepare("cityscapes_vps", str(vps), str(tmp_path / "u"), split="val", labels=False).num_samples == 12
    shutil.rmtree(vps / "val/labelmap")
    refused("val", "val/labelmap/", "create_panoptic_labels.py --mode val", variant="labelmap")
    refused("train", "no sample found", "leftImg8bit_sequence_trainvaltest.zip", variant="img_all")
    shutil.rmtree(vps / "val/img")
    refused("val", "cityscapes-vps-dataset-1.0.zip", "leftImg8bit_sequence_trainvaltest.zip", "registration")


# --- video


def error_of(row: dict[str, Any], frame: NDArray[np.uint8]) -> float:
    """Mean absolute difference between a stored frame and a decoded one (BGR)."""
    image = decode_image(row["image"], row["key"])[:, :, ::-1]
    return float(np.abs(image.astype(int) - frame).mean())


@pytest.mark.parametrize(("name", "codec"), [("drive one.avi", "MJPG"), ("drive.mp4", "mp4v")])
def test_video_frames_are_opencvs_in_order(name: str, codec: str, tmp_path: Path) -> None:
    frames = write_video(tmp_path / name, 12, codec)
    for every in (1, 2):
        out = tmp_path / f"out{every}"
        summary = prepare("video", str(tmp_path / name), str(out), classes="cityscapes19", every=every, shard_samples=5)
        found, clip = list(rows(out).values()), name.split(".")[0].replace(" ", "_")
        assert summary.manifest.num_labelled == 0 and len(frames) == 12
        assert [(row["key"], row["clip"], row["frame"]) for row in found] == [
            (f"{clip}/{number:06d}", clip, number) for number in range(0, 12, every)
        ]
        assert all(error_of(row, frames[row["frame"]]) < 4 for row in found)
        assert all(error_of(row, frames[row["frame"] - 1]) > 8 for row in found[1:]), "the test tells neighbours apart"


def test_a_shard_of_frames_decodes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.avi")
    file = File(str(tmp_path / "a.avi"))
    count, version = count_frames(file)
    grabs: list[int] = []
    real = cv2.VideoCapture

    class Counted:
        def __init__(self, path: str) -> None:
            self.inner = real(path)

        def grab(self) -> bool:
            grabs.append(1)
            return bool(self.inner.grab())

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    monkeypatch.setattr(cv2, "VideoCapture", Counted)
    for number in range(count):
        VideoFrame(file, number, version + "new").read()
    assert len(grabs) == count == 12


def test_a_second_process_reads_the_same_frame(tmp_path: Path) -> None:
    frames = write_video(tmp_path / "a.avi")
    script = (
        "import sys; from distuda.data.source import File; from distuda.data.video import VideoFrame\n"
        "f = File(sys.argv[1]); [sys.stdout.buffer.write(VideoFrame(f, n, 'v').read()) for n in (9, 4)]"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.avi")], capture_output=True, check=True)
    version = count_frames(File(str(tmp_path / "a.avi")))[1]
    here = [VideoFrame(File(str(tmp_path / "a.avi")), number, version).read() for number in (9, 4)]
    assert done.stdout == b"".join(here)
    assert all(error_of({"image": c, "key": ""}, frames[n]) < 4 for n, c in zip((9, 4), here, strict=True))


def test_videos_of_folders_archives_and_remote_storage(tmp_path: Path) -> None:
    write_video(tmp_path / "v/b.avi", 4)
    write_video(tmp_path / "v/night/a.avi", 3)
    whole = prepare("video", str(tmp_path / "v"), str(tmp_path / "o"), classes="camvid11")
    assert open_dataset(whole.uri).index["clip"].to_pylist() == ["b"] * 4 + ["night/a"] * 3
    hashes = {whole.manifest.content_hash}
    for archive in ("v.tar", "v.zip"):
        pack(tmp_path / "v", tmp_path / archive)
        done = prepare("video", str(tmp_path / archive), str(tmp_path / f"o-{archive}"), classes="camvid11")
        hashes.add(done.manifest.content_hash)
    fsspec.filesystem("memory").put(str(tmp_path / "v"), "/videos", recursive=True)
    hashes.add(prepare("video", "memory://videos", str(tmp_path / "m"), classes="camvid11").manifest.content_hash)
    assert len(hashes) == 1
    one = prepare("video", str(tmp_path / "v"), str(tmp_path / "s"), classes="camvid11", split="night")
    assert one.num_samples == 3


def test_a_replaced_video_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 4)
    first = next(iter(LAYOUTS["video"].entries(Tree(str(tmp_path)), None, None))).image
    assert error_of({"image": first.read(), "key": ""}, np.zeros((48, 64, 3), np.uint8)) < 60
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(4):
        writer.write(np.full((48, 64, 3), 200, np.uint8))
    writer.release()
    again = next(iter(LAYOUTS["video"].entries(Tree(str(tmp_path)), None, None))).image
    assert again != first and error_of({"image": again.read(), "key": ""}, np.full((48, 64, 3), 200, np.uint8)) < 4


def test_unusable_videos_are_named(tmp_path: Path) -> None:
    def refused(source: Path, message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            prepare("video", str(source), str(tmp_path / "out"), **{"classes": "camvid11", **options})
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    write_video(tmp_path / "a/empty.avi", 0)
    refused(tmp_path / "a", r"empty.avi' has only 0 readable frames")
    (tmp_path / "text.mp4").write_text("no video")
    refused(tmp_path / "text.mp4", r"text.mp4' has only 0 readable frames")
    refused(tmp_path / "missing.mp4", r"no video at .*missing.mp4")
    write_video(tmp_path / "b/x.mkv", 12)
    content = (tmp_path / "b/x.mkv").read_bytes()
    (tmp_path / "b/x.mkv").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "b", r"(?s)of 12 samples cannot be used.*x.mkv' has only \d readable frames")
    write_video(tmp_path / "c/x y.avi", 2)
    write_video(tmp_path / "c/x_y.mkv", 2)
    refused(tmp_path / "c", "both be clip 'x_y'")
    refused(tmp_path / "c", "class table", classes=None)
    (tmp_path / "d").mkdir()
    refused(tmp_path / "d", "no sample found")


# --- all


def test_every_layout_says_what_it_is_and_where_it_comes_from() -> None:
    for name in ("voc", "coco_panoptic", "cityscapes_vps", "video"):
        layout = LAYOUTS[name]
        assert layout.summary and layout.obtain
        assert layout.classes is None or layout.classes in CLASS_TABLES
