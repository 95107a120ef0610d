import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data_trees import encode
from layout_trees import (
    HEIGHT,
    VIPER_COLOURS,
    WIDTH,
    columns,
    palette_png,
    synthia_png,
    viper_colours,
    wrap,
    write_cityscapes,
    write_clips,
    write_foggy,
    write_ground_truth,
    write_gta5,
    write_listed_synthia_seq,
    write_synthia,
    write_synthia_seq,
    write_viper,
)
from numpy.typing import NDArray

from distuda.data.dataset import open_dataset
from distuda.data.decode import decode_label
from distuda.data.layouts import LAYOUTS
from distuda.data.layouts.viper import PALETTE
from distuda.data.prepare import prepare
from distuda.errors import UserError

# Published id -> train id, written out on purpose: cityscapesScripts and the code of AdvEnt, DADA and DA-VSN.
CITYSCAPES_19 = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
CITYSCAPES_16 = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 23: 9, 24: 10, 25: 11, 26: 12, 28: 13,
                 32: 14, 33: 15}  # fmt: skip
CITYSCAPES_13 = {7: 0, 8: 1, 11: 2, 19: 3, 20: 4, 21: 5, 23: 6, 24: 7, 25: 8, 26: 9, 28: 10, 32: 11, 33: 12}
CITYSCAPES_15 = {7: 0, 8: 1, 11: 2, 13: 3, 19: 4, 20: 5, 21: 6, 22: 7, 23: 8, 24: 9, 25: 9, 26: 10, 27: 11, 28: 12,
                 32: 13, 33: 14}  # fmt: skip
CITYSCAPES_12 = {7: 0, 8: 1, 11: 2, 13: 3, 17: 4, 19: 5, 20: 6, 21: 7, 23: 8, 24: 9, 25: 10, 26: 11}
CITYSCAPES_11 = {7: 0, 8: 1, 11: 2, 17: 3, 19: 4, 20: 5, 21: 6, 23: 7, 24: 8, 25: 9, 26: 10}
SYNTHIA_19 = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14,
              19: 15, 20: 16, 12: 17, 11: 18}  # fmt: skip
SYNTHIA_16 = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 9, 10: 10, 17: 11, 8: 12, 19: 13, 12: 14,
              11: 15}  # fmt: skip
SYNTHIA_13 = {3: 0, 4: 1, 2: 2, 15: 3, 9: 4, 6: 5, 1: 6, 10: 7, 17: 8, 8: 9, 19: 10, 12: 11, 11: 12}
SYNTHIA_SEQ_12 = {3: 0, 4: 1, 2: 2, 5: 3, 7: 4, 15: 5, 9: 6, 6: 7, 1: 8, 10: 9, 11: 10, 8: 11}
SYNTHIA_SEQ_11 = {3: 0, 4: 1, 2: 2, 7: 3, 15: 4, 9: 5, 6: 6, 1: 7, 10: 8, 11: 9, 8: 10}
VIPER_15 = {3: 0, 4: 1, 9: 2, 11: 3, 13: 4, 14: 5, 7: 6, 8: 6, 6: 7, 2: 8, 20: 9, 24: 10, 27: 11, 26: 12, 23: 13,
            22: 14}  # fmt: skip

FRAME = "aachen_000000_000019"

Write = Callable[[Path, NDArray[np.uint8]], None]


def _cityscapes(root: Path, label: NDArray[np.uint8]) -> None:
    write_cityscapes(root, "val", [FRAME], label)


def _clips(root: Path, label: NDArray[np.uint8]) -> None:
    write_clips(root, "val", [FRAME])
    write_ground_truth(root / f"gtFine/val/aachen/{FRAME}_gtFine", label)


def _foggy(root: Path, label: NDArray[np.uint8]) -> None:
    write_foggy(root, "val", FRAME)
    write_ground_truth(root / f"gtFine/val/aachen/{FRAME}_gtFine", label)


def _viper(root: Path, label: NDArray[np.uint8]) -> None:
    write_viper(root, "train", "001_00010", label)


def _viper_colours(root: Path, label: NDArray[np.uint8]) -> None:
    write_viper(root, "train", "001_00010", label, colours=True)


def _synthia_seq(root: Path, label: NDArray[np.uint8]) -> None:
    write_synthia_seq(root / "SYNTHIA-SEQS-04-DAWN", label)


def _parsed(root: Path, label: NDArray[np.uint8]) -> None:
    write_synthia(root, label, "parsed_LABELS")


def _mapped(root: Path, label: NDArray[np.uint8]) -> None:
    write_synthia(root, label, "synthia_mapped_to_cityscapes")


GOLDEN: list[tuple[str, Write, dict[str, Any], int, dict[int, int]]] = [
    ("cityscapes", _cityscapes, {"classes": None}, 34, CITYSCAPES_19),
    ("cityscapes", _cityscapes, {"classes": "cityscapes16"}, 34, CITYSCAPES_16),
    ("cityscapes", _cityscapes, {"classes": "cityscapes13"}, 34, CITYSCAPES_13),
    ("cityscapes", _cityscapes, {"classes": "viper15"}, 34, CITYSCAPES_15),
    ("cityscapes", _cityscapes, {"classes": "synthia_seq12"}, 34, CITYSCAPES_12),
    ("cityscapes", _cityscapes, {"classes": "synthia_seq11"}, 34, CITYSCAPES_11),
    ("cityscapes", _clips, {"variant": "sequence", "classes": "viper15"}, 34, CITYSCAPES_15),
    ("foggy_cityscapes", _foggy, {"classes": None}, 34, CITYSCAPES_19),
    ("gta5", write_gta5, {"classes": None}, 35, CITYSCAPES_19),
    ("gta5", write_gta5, {"classes": "cityscapes16"}, 35, CITYSCAPES_16),
    ("synthia", write_synthia, {"classes": "cityscapes19"}, 23, SYNTHIA_19),
    ("synthia", write_synthia, {"classes": None}, 23, SYNTHIA_16),
    ("synthia", write_synthia, {"classes": "cityscapes13"}, 23, SYNTHIA_13),
    ("synthia", _parsed, {"classes": None}, 23, SYNTHIA_16),
    ("synthia", _mapped, {"classes": None}, 23, SYNTHIA_16),
    ("synthia_seq", _synthia_seq, {"classes": None}, 16, SYNTHIA_SEQ_12),
    ("synthia_seq", _synthia_seq, {"classes": "synthia_seq11"}, 16, SYNTHIA_SEQ_11),
    ("synthia_seq", write_listed_synthia_seq, {"classes": None}, 16, SYNTHIA_SEQ_12),
    ("viper", _viper, {"classes": None}, 32, VIPER_15),
    ("viper", _viper_colours, {"classes": None}, 32, VIPER_15),
]


def _rows(layout: str, source: Path | str, out: Path, **options: Any) -> list[dict[str, Any]]:
    prepare(layout, str(source), str(out), workers=0, **options)
    data = open_dataset(str(out))
    return [row for group in range(len(data.manifest.row_groups)) for row in data.read_group(group).to_pylist()]


@pytest.mark.parametrize(("layout", "write", "options", "count", "golden"), GOLDEN)
def test_every_published_id_gives_its_train_id(
    layout: str, write: Write, options: dict[str, Any], count: int, golden: dict[int, int], tmp_path: Path
) -> None:
    write(tmp_path / "source", columns(range(count), 0))
    for row in _rows(layout, tmp_path / "source", tmp_path / "out", **options):
        train = decode_label(row["label"], row["key"])
        given = {i: int(train[0, i]) for i in range(count)}
        assert given == {i: golden.get(i, 255) for i in range(count)}
        assert (train[:-1, :count] == train[0, :count]).all() and (train[:, count:] == 255).all()


@pytest.mark.parametrize(
    ("layout", "write", "options", "top"),
    [
        ("cityscapes", _cityscapes, {}, "cityscapes"),
        ("cityscapes", _clips, {"variant": "sequence"}, "Cityscapes"),
        ("foggy_cityscapes", _foggy, {"variant": "all"}, "cityscapes"),
        ("gta5", write_gta5, {}, "GTA5"),
        ("synthia", write_synthia, {}, "RAND_CITYSCAPES"),
        ("synthia", _mapped, {}, "synthia"),
        ("synthia_seq", _synthia_seq, {}, ""),
        ("viper", _viper, {}, "VIPER"),
    ],
)
def test_archives_and_a_folder_on_top_make_no_difference(
    layout: str, write: Write, options: dict[str, Any], top: str, tmp_path: Path
) -> None:
    write(tmp_path / "source", columns(range(16), 0))
    expected = _rows(layout, tmp_path / "source", tmp_path / "out", **options)
    assert expected and all(row["label"] for row in expected)
    for kind in ("zip", "zips", "tar", *filter(None, [top])):  # the last one moves the folder
        uri = wrap(tmp_path / "source", kind, tmp_path)
        assert _rows(layout, uri, tmp_path / f"out-{kind}", **options) == expected, kind


def test_a_single_archive_and_folders_named_like_archives(tmp_path: Path) -> None:
    write_cityscapes(tmp_path / "source", "val", [FRAME], columns(range(34), 0))
    expected = _rows("cityscapes", tmp_path / "source", tmp_path / "out")
    whole = Path(wrap(tmp_path / "source", "zip", tmp_path)) / "set.zip"
    assert _rows("cityscapes", whole, tmp_path / "out-zip") == expected
    for part in ("leftImg8bit", "gtFine"):
        (tmp_path / "unpacked" / f"{part}_trainvaltest").mkdir(parents=True)
        (tmp_path / "source" / part).rename(tmp_path / "unpacked" / f"{part}_trainvaltest" / part)
    assert _rows("cityscapes", tmp_path / "unpacked", tmp_path / "out-unpacked") == expected


def test_cityscapes_splits_and_instances(tmp_path: Path) -> None:
    label = columns(range(34), 0)
    write_cityscapes(tmp_path / "src", "train", ["aachen_000000_000019", "ulm_000002_000019"], label)
    write_cityscapes(tmp_path / "src", "val", ["frankfurt_000001_000538"], label)
    write_cityscapes(tmp_path / "src", "test", ["berlin_000000_000019"], np.zeros_like(label))
    write_cityscapes(tmp_path / "src", "train_extra", ["troisdorf_000000_000073"], label, truth=None)
    rows = _rows("cityscapes", tmp_path / "src", tmp_path / "out")
    assert {row["key"]: row["label"] is not None for row in rows} == {
        "train/aachen/aachen_000000_000019": True,
        "train/ulm/ulm_000002_000019": True,
        "val/frankfurt/frankfurt_000001_000538": True,
        "test/berlin/berlin_000000_000019": False,
        "train_extra/troisdorf/troisdorf_000000_000073": False,
    }
    assert {(row["clip"], row["frame"]) for row in rows} == {(None, None)}
    instance = decode_label(rows[0]["instance"], "k")
    assert instance.dtype == np.uint16 and (instance[0] == 0).all(), "a group is no instance"
    assert instance[1, :34].tolist() == [1000 * i + 1 if 24 <= i <= 33 else 0 for i in range(34)]
    for split, count in (("train", 2), ("test", 1), ("train_extra", 1)):
        assert len(_rows("cityscapes", tmp_path / "src", tmp_path / split, split=split)) == count
    with pytest.raises(UserError, match=r"no split 'training'.*'train'"):
        prepare("cityscapes", str(tmp_path / "src"), str(tmp_path / "x"), split="training")
    write_ground_truth(tmp_path / "src/gtCoarse/train_extra/troisdorf/troisdorf_000000_000073_gtCoarse", label)
    (row,) = _rows("cityscapes", tmp_path / "src", tmp_path / "coarse", split="train_extra")
    assert decode_label(row["label"], "k")[0, 7] == 0


def test_cityscapes_clips_have_one_label_each(tmp_path: Path) -> None:
    drive = [f"frankfurt_000000_{i:06d}" for i in (*range(275, 305), *range(557, 587))]
    write_clips(tmp_path / "src", "val", [*drive, *(f"lindau_000003_{i:06d}" for i in range(30))])
    write_clips(tmp_path / "src", "test", [f"berlin_000000_{i:06d}" for i in range(3)])
    for frame in ("frankfurt_000000_000294", "frankfurt_000000_000576", "lindau_000003_000019"):
        stem = tmp_path / f"src/gtFine/val/{frame.split('_')[0]}/{frame}_gtFine"
        write_ground_truth(stem, columns(range(34), 0))
    rows = _rows("cityscapes", tmp_path / "src", tmp_path / "out", variant="sequence", split="val")
    assert len(rows) == 90
    assert [row["key"].rsplit("/", 1)[1] for row in rows if row["label"]] == [
        "frankfurt_000000_000294", "frankfurt_000000_000576", "lindau_000003_000019",
    ]  # fmt: skip
    clips = dict.fromkeys(row["clip"] for row in rows)
    assert list(clips) == [
        "val/frankfurt/frankfurt_000000_000275", "val/frankfurt/frankfurt_000000_000557",
        "val/lindau/lindau_000003_000000",
    ]  # fmt: skip
    assert [row["frame"] for row in rows[28:32]] == [303, 304, 557, 558]
    assert len(_rows("cityscapes", tmp_path / "src", tmp_path / "all", variant="sequence")) == 93
    assert len(_rows("cityscapes", tmp_path / "src", tmp_path / "few", variant="sequence", every=30)) == 4


def test_foggy_variants(tmp_path: Path) -> None:
    _foggy(tmp_path / "src", columns(range(34), 0))
    write_foggy(tmp_path / "src", "test", "berlin_000000_000019")
    key = f"val/aachen/{FRAME}_beta_"
    images = {}
    for variant, densities in (
        (None, ["0.02"]), ("beta_0.01", ["0.01"]), ("beta_0.005", ["0.005"]), ("all", ["0.005", "0.01", "0.02"]),
    ):  # fmt: skip
        rows = _rows("foggy_cityscapes", tmp_path / "src", tmp_path / f"{variant}", variant=variant, split="val")
        assert [row["key"] for row in rows] == [key + density for density in densities]
        assert all(row["label"] and row["instance"] for row in rows)
        images |= {row["key"]: row["image"] for row in rows}
    assert len(set(images.values())) == 3
    (row,) = _rows("foggy_cityscapes", tmp_path / "src", tmp_path / "test", split="test")
    assert row["label"] is None
    (tmp_path / "src/leftImg8bit_foggy").rename(tmp_path / "src/leftImg8bit_foggyDBF")
    assert len(_rows("foggy_cityscapes", tmp_path / "src", tmp_path / "dbf", split="val")) == 1


def test_gta5_tolerates_the_few_published_sizes_that_differ(tmp_path: Path) -> None:
    write_gta5(tmp_path / "src", columns(range(35), 0), count=4)
    (tmp_path / "src/labels/00003.png").write_bytes(palette_png(np.zeros((HEIGHT, WIDTH - 2), np.uint8)))
    with pytest.raises(UserError, match=r"1 of 4 samples cannot be used, 0.1%[^\0]*00003: label is 46x6"):
        prepare("gta5", str(tmp_path / "src"), str(tmp_path / "out"))
    assert LAYOUTS["gta5"].bad_share == 0.001
    keys = [row["key"] for row in _rows("gta5", tmp_path / "src", tmp_path / "out", max_bad_share=0.3, split="train")]
    assert keys == ["00001", "00002", "00004"]


def test_synthia_variants_and_instances(tmp_path: Path) -> None:
    root = tmp_path / "src"
    write_synthia(root, columns(range(23), 0))
    write_synthia(root, columns([3], 3), "parsed_LABELS")
    write_synthia(root, columns([4], 4), "synthia_mapped_to_cityscapes")
    original = _rows("synthia", root, tmp_path / "original")
    assert [row["key"] for row in original] == ["0000000", "0000001"]
    instance = decode_label(original[0]["instance"], "k")
    assert [i for i in range(23) if instance[0, i] == 976] == [8, 10, 17] and instance[0].max() == 976
    for variant, train in (("parsed", 0), ("mapped", 1)):
        rows = _rows("synthia", root, tmp_path / variant, variant=variant)
        assert (decode_label(rows[0]["label"], "k") == train).all() and rows[0]["instance"] is None
    shutil.rmtree(root / "GT")
    assert (decode_label(_rows("synthia", root, tmp_path / "auto")[0]["label"], "k") == 0).all()
    with pytest.raises(UserError, match=r"no label for any image.*GT/LABELS/"):
        prepare("synthia", str(root), str(tmp_path / "x"), variant="original")
    rows = _rows("synthia", root, tmp_path / "train", variant="mapped", id_map="cityscapes_train_ids")
    assert (decode_label(rows[0]["label"], "k") == 4).all(), "one's own copy of train ids"


def test_synthia_labels_that_lost_their_bits_are_refused(tmp_path: Path) -> None:
    write_synthia(tmp_path / "src", columns(range(23), 0), count=3)
    labels = tmp_path / "src/GT/LABELS"
    eight = cv2.imdecode(np.frombuffer(synthia_png(columns(range(23), 0)), np.uint8), cv2.IMREAD_COLOR)
    (labels / "0000000.png").write_bytes(encode(eight))
    whole = (labels / "0000001.png").read_bytes()
    (labels / "0000001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2 of 3[^\0]*mode RGB[^\0]*damaged"):
        prepare("synthia", str(tmp_path / "src"), str(tmp_path / "out"))


def test_synthia_sequences_views_and_clips(tmp_path: Path) -> None:
    for name, view in (("SYNTHIA-SEQS-04-DAWN", "Omni_F"), ("SYNTHIA-SEQS-02-FALL", "Omni_F")):
        write_synthia_seq(tmp_path / "src" / name, columns(range(16), 0), view)
    write_synthia_seq(tmp_path / "src/SYNTHIA-SEQS-04-DAWN", columns([3], 3), "Omni_B", count=1)
    rows = _rows("synthia_seq", tmp_path / "src", tmp_path / "out")
    assert [(row["key"], row["clip"], row["frame"]) for row in rows] == [
        (f"SYNTHIA-SEQS-{name}/{i:06d}", f"SYNTHIA-SEQS-{name}", i) for name in ("02-FALL", "04-DAWN") for i in (0, 1)
    ]
    assert decode_label(rows[0]["instance"], "k")[0, 8] == 976
    (back,) = _rows("synthia_seq", tmp_path / "src", tmp_path / "back", variant="back")
    assert (decode_label(back["label"], "k") == 0).all()
    one = _rows("synthia_seq", tmp_path / "src/SYNTHIA-SEQS-04-DAWN", tmp_path / "one")
    assert [(row["key"], row["clip"]) for row in one] == [(f"sequence/{i:06d}", "sequence") for i in (0, 1)]


def test_viper_frames_and_splits(tmp_path: Path) -> None:
    label = columns(range(32), 3)
    for place in ("001_00009", "001_00010", "002_00010"):
        write_viper(tmp_path / "src", "train", place, label if place.endswith("0") else None)
    write_viper(tmp_path / "src", "val", "001_00010", label)
    write_viper(tmp_path / "src", "test", "005_00025", None)
    rows = _rows("viper", tmp_path / "src", tmp_path / "out")
    assert [(row["key"], row["clip"], row["frame"], row["label"] is not None) for row in rows] == [
        ("train/001_00009", "train/001", 9, False),
        ("train/001_00010", "train/001", 10, True),
        ("train/002_00010", "train/002", 10, True),
        ("val/001_00010", "val/001", 10, True),
        ("test/005_00025", "test/005", 25, False),
    ]
    instance = decode_label(rows[1]["instance"], "k")
    assert instance[0, :32].tolist() == [300 if i >= 20 else 0 for i in range(32)]
    listed = _rows("viper", tmp_path / "src", tmp_path / "listed", split="train", include=["*0"])
    assert all(row["label"] for row in listed) and len(listed) == 2


@pytest.mark.parametrize("colours", [False, True])
def test_the_car_that_carries_the_camera_is_ignored(colours: bool, tmp_path: Path) -> None:
    label = np.full((HEIGHT, WIDTH), 3, np.uint8)
    label[-1, 10:40] = label[-2, 20:30] = 24
    label[-3, 30] = 24  # joined at a corner
    label[:2, 5:9] = 24  # another car
    label[-1, :4] = 24  # one that touches the bottom, off the centre
    write_viper(tmp_path / "src", "train", "001_00010", label, colours=colours)
    (row,) = _rows("viper", tmp_path / "src", tmp_path / "out")
    train, instance = decode_label(row["label"], "k"), decode_label(row["instance"], "k")
    ego = np.zeros_like(label, bool)
    ego[-1, 10:40] = ego[-2, 20:30] = ego[-3, 30] = True
    assert (train == np.where(ego, 255, np.where(label == 24, 10, 0))).all()
    assert ((instance == 300) == ((label == 24) & ~ego)).all()


def test_viper_colours_are_the_published_ones_and_no_others(tmp_path: Path) -> None:
    given = [code.to_bytes(3, "big") for code in PALETTE]
    assert [tuple(colour) for colour in given] == VIPER_COLOURS
    write_viper(tmp_path / "src", "train", "001_00010", columns(range(32), 0), colours=True)
    strange = viper_colours(columns(range(32), 0))
    strange[0, :2] = (1, 2, 3)
    (tmp_path / "src/train/cls/001/001_00010.png").write_bytes(encode(strange))
    with pytest.raises(UserError, match="2 px of a colour that is no class, such as #010203"):
        prepare("viper", str(tmp_path / "src"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("layout", "write", "options", "labels", "says"),
    [
        ("cityscapes", _cityscapes, {}, "gtFine", r"gtFine/, which gtFine_trainvaltest\.zip"),
        ("cityscapes", _clips, {"variant": "sequence"}, "gtFine", r"gtFine/, which gtFine_trainvaltest\.zip"),
        ("foggy_cityscapes", _foggy, {}, "gtFine", r"gtFine/, which gtFine_trainvaltest\.zip"),
        ("gta5", write_gta5, {}, "labels", r"labels/, which one of 01_labels\.zip to 10_labels\.zip"),
        ("synthia", write_synthia, {}, "GT", r"GT/LABELS/, which SYNTHIA_RAND_CITYSCAPES\.rar \(to be unpacked"),
        ("synthia_seq", write_listed_synthia_seq, {}, "label", r"SYNTHIA-SEQS-<number>-<weather>\.rar \(to be unpack"),
        ("viper", _viper, {}, "train/cls", r"<split>/cls/, which train_cls_00-77_"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_missing_labels(
    layout: str, write: Write, options: dict[str, Any], labels: str, says: str, packed: bool, tmp_path: Path
) -> None:
    write(tmp_path / "src", columns(range(16), 0))
    shutil.rmtree(tmp_path / "src" / labels)
    source = wrap(tmp_path / "src", "zip" if packed else "folder", tmp_path)
    with pytest.raises(UserError, match=f"no label for any image.*{says}.*register.*--no-labels"):
        prepare(layout, source, str(tmp_path / "out"), **options)
    assert all(row["label"] is None for row in _rows(layout, source, tmp_path / "bare", labels=False, **options))


@pytest.mark.parametrize(
    ("layout", "write", "images", "says"),
    [
        ("cityscapes", _cityscapes, "leftImg8bit", r"leftImg8bit_trainvaltest\.zip, which fills leftImg8bit/"),
        ("foggy_cityscapes", _foggy, "leftImg8bit_foggy", r"leftImg8bit_trainvaltest_foggy\.zip, which fills"),
        ("gta5", write_gta5, "images", r"01_images\.zip to 10_images\.zip, which fill images/"),
        ("synthia", write_synthia, "RGB", r"SYNTHIA_RAND_CITYSCAPES\.rar, which fills RGB/"),
        ("synthia_seq", write_listed_synthia_seq, "rgb", r"SYNTHIA-SEQS-<number>-<weather>\.rar, which fills RGB/"),
        ("viper", _viper, "train/img", r"train_img_00-77_<0 to 9>_jpg\.zip"),
    ],
)
def test_missing_images(layout: str, write: Write, images: str, says: str, tmp_path: Path) -> None:
    write(tmp_path / "src", columns(range(16), 0))
    shutil.rmtree(tmp_path / "src" / images)
    with pytest.raises(UserError, match=f"no sample found.*Images come in {says}.*register"):
        prepare(layout, str(tmp_path / "src"), str(tmp_path / "out"))


def test_misnamed_viper_labels_are_not_taken_for_frames_without(tmp_path: Path) -> None:
    _viper(tmp_path / "src", columns(range(16), 0))
    label = tmp_path / "src/train/cls/001/001_00010.png"
    label.rename(label.with_name("001_00010_cls.png"))
    with pytest.raises(UserError, match="no label for any image"):
        prepare("viper", str(tmp_path / "src"), str(tmp_path / "out"))


def test_one_missing_label_names_its_archive(tmp_path: Path) -> None:
    write_gta5(tmp_path / "src", columns(range(35), 0), count=3)
    (tmp_path / "src/labels/00002.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3[^\0]*00002: no label file [^\0]*10_labels\.zip"):
        prepare("gta5", str(tmp_path / "src"), str(tmp_path / "out"))
