import json
from pathlib import Path

import numpy as np
import pytest

from distuda.data.class_tables import CLASS_TABLES, class_table
from distuda.data.id_maps import find_id_map
from distuda.data.labels import ClassTable, IdMap
from distuda.data.streets import Id
from distuda.errors import UserError


def test_every_table_survives_json() -> None:
    for name, table in CLASS_TABLES.items():
        again = ClassTable.from_json(json.loads(json.dumps(table.to_json())))
        assert again == table and name == table.name
        assert len(set(table.palette)) == table.num_classes, "two classes of one colour cannot be told apart"


def test_tables_have_the_published_ids() -> None:
    voc, cityscapes = class_table("voc21"), class_table("cityscapes19")
    assert voc.palette[15] == (192, 128, 128) and voc.classes[15] == "person"
    assert {cityscapes.classes[i] for i in cityscapes.things} == {
        "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"
    }  # fmt: skip
    assert class_table("camvid11").classes[3] == "road" and class_table("camvid11").num_classes == 11


def test_streets_table_agrees_with_the_renderer() -> None:
    assert [name.lower() for name in Id.__members__][:11] == list(class_table("streets11").classes)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'cityscapes19'"):
        class_table("cityscape19")
    with pytest.raises(UserError, match="'cityscapes_ids'"):
        find_id_map("cityscapes_id", class_table("cityscapes19"))
    with pytest.raises(UserError, match=r"never gives .* It fits cityscapes19"):
        find_id_map("cityscapes_ids", class_table("camvid11"))


def test_cityscapes_ids_become_train_ids() -> None:
    ids = np.array([[7, 8, 33, 0], [34 - 1, 255, 9, 11]], np.uint8)
    ids_map = find_id_map("cityscapes_ids", class_table("cityscapes19"))
    assert ids_map.apply(ids).tolist() == [
        [0, 1, 18, 255],
        [18, 255, 255, 2],
    ]


def test_an_unmapped_id_is_named_with_its_count() -> None:
    with pytest.raises(UserError, match=r"34 \(3 px\).*cityscapes_ids"):
        find_id_map("cityscapes_ids", class_table("cityscapes19")).apply(np.array([[34, 34], [34, 7]], np.uint8))


def test_ids_beyond_a_byte() -> None:
    wide = IdMap("wide", {1000: 0, 40000: 1}, frozenset({0}))
    assert wide.apply(np.array([0, 1000, 40000], np.uint16)).tolist() == [255, 0, 1]
    narrow = IdMap("narrow", {0: 0})
    with pytest.raises(UserError, match="1000"):
        narrow.apply(np.array([0, 1000], np.uint16))


def test_a_file_describes_a_table_and_a_map_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "farm.json").write_text('{"classes": ["soil", "crop", "weed"], "things": ["weed"]}')
    table = class_table(str(tmp_path / "farm.json"))
    assert table.name == "farm" and table.classes == ("soil", "crop", "weed") and table.things == {2}
    assert len(set(table.palette)) == 3
    (tmp_path / "ids.json").write_text('{"7": "crop", "300": "weed", "0": "ignore"}')
    ids = find_id_map(str(tmp_path / "ids.json"), table)
    assert ids.apply(np.array([[7, 300, 0, 255]], np.uint16)).tolist() == [[1, 2, 255, 255]]
    with pytest.raises(UserError, match="label id 8"):
        ids.apply(np.array([[8]], np.uint16))


def test_many_classes_get_colours_that_differ(tmp_path: Path) -> None:
    (tmp_path / "many.json").write_text(json.dumps({"classes": [f"class {i}" for i in range(60)]}))
    assert len(set(class_table(str(tmp_path / "many.json")).palette)) == 60


@pytest.mark.parametrize("text", ["[]", "{", '{"classes": 3}', '{"classes": ["a"], "things": ["b"]}',
                                  '{"classes": ["a"], "palette": [[1, 2]]}', '{"classes": ["a", "a"]}'])  # fmt: skip
def test_a_file_that_describes_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError):
        class_table(str(tmp_path / "bad.json"))


@pytest.mark.parametrize(("text", "says"), [("[1]", "is not an id map"), ('{"x": "road"}', "is not an id map"),
                                            ('{"7": "rode"}', "road"), ('{"7": "ignore"}', "ignores every id"),
                                            ('{"70000": "road"}', "70000")])  # fmt: skip
def test_a_file_that_is_no_map_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=says):
        find_id_map(str(tmp_path / "bad.json"), class_table("cityscapes19"))
