import base64
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_trees import TABLE, encode, label, picture, samples
from PIL import Image
from rich.console import Console

from distuda.data.dataset import Dataset
from distuda.data.gap import compare
from distuda.data.image_stats import STATISTICS, image_statistics
from distuda.data.inspect import MAX_FRAMES, inspect
from distuda.data.labels import ClassTable
from distuda.data.sample import Sample
from distuda.data.shards import finish, write_shard, write_shards
from distuda.data.survey import MAX_GROUPS, Picture, accessible, spread
from distuda.errors import UserError
from distuda.report.dataset_charts import log_marks, lowest, percent
from distuda.report.dataset_report import inspect_datasets, render
from distuda.report.pictures import contact_sheet, overlay

BY = "\N{MULTIPLICATION SIGN}"
OTHER = ClassTable("two", ("sky", "sea"), ((1, 2, 3), (4, 5, 6)))


def _set(folder: Path, name: str, table: ClassTable = TABLE, **options: bool) -> str:
    write_shards(samples(9, **options), str(folder / name), table, row_group_bytes=2000)
    return str(folder / name)


def _flat(key: str, grey: int, train_id: int, **more: object) -> Sample:
    image = encode(np.full((40, 80, 3), grey, np.uint8))
    ids = encode(np.full((40, 80), train_id, np.uint8))
    return Sample(**{"key": key, "image": image, "label": ids, "height": 40, "width": 80, **more})


def _clip(frames: int, name: str = "clip") -> Iterator[Sample]:
    for i in range(frames):
        yield Sample(
            key=f"{name.strip('<b>/')}/{i}",
            image=encode(picture(i, 24, 32)),
            label=encode(label(i, 24, 32)),
            height=24,
            width=32,
            clip=name,
            frame=i,
        )


def _text(printed: object) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(printed)
    return console.export_text()


def _pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'(?:src|srcset)="data:image/(\w+);base64,([^"]+)"', html)
    images = [Image.open(io.BytesIO(base64.b64decode(content))) for _, content in found]
    assert [image.format for image in images] == [kind.upper() for kind, _ in found]
    for image in images:
        image.load()
    return images


@pytest.mark.parametrize("labelled", [True, False])
def test_page_sheet_and_printed_summary(tmp_path: Path, labelled: bool) -> None:
    where = _set(tmp_path, "set", labelled=labelled)
    page, sheet = tmp_path / "deep" / "page.html", tmp_path / "sheet.png"
    text = _text(inspect_datasets([where], out=str(page), sheet=str(sheet), num=4))
    assert f"9, {'labelled' if labelled else 'unlabelled'}" in text and f"16 {BY} 12 (9)" in text and str(page) in text
    assert ("ground" in text and "thing" in text) == labelled
    html = page.read_text()
    assert len(_pictures(html)) == (8 if labelled else 4)
    assert ("<h2>Classes</h2>" in html) == labelled and "://" not in html and "<script" not in html
    with Image.open(sheet) as image:
        assert image.width > 600 and image.height > 200


def test_numbers_on_the_page_are_those_of_the_data(tmp_path: Path) -> None:
    flat = [_flat("a", 51, 0), _flat("b", 102, 0), _flat("c", 153, 0), _flat("d", 204, 2)]
    write_shards(flat, str(tmp_path / "set"), TABLE)
    seen = inspect(str(tmp_path / "set"), progress=False)
    assert seen.values[:, 0] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=1e-3)
    html = render([seen], None)
    row = re.search(r'</span>thing</th>.*?<td class="n">([^<]*)</td><td class="n">([^<]*)</td>', html, re.S)
    assert row is not None and row.groups() == ("25.0 %", "25.0 %")
    assert re.search(r"<h3>brightness</h3><span>0.500 ± 0.22\d</span>", html)
    assert 'aria-label="sky: 0 % of the labelled pixels; sky: 0 % of the labelled images"' in html


def test_statistics_measure_what_they_say() -> None:
    flat = np.full((30, 64, 3), (255, 0, 0), np.uint8)
    board = np.kron(np.indices((8, 16)).sum(axis=0) % 2, np.ones((40, 40)))[..., None].repeat(3, axis=2)
    blurred = np.asarray(Image.fromarray((board * 255).astype(np.uint8)).resize((40, 20)).resize((640, 320)))
    values = [
        dict(zip(STATISTICS, image_statistics(i), strict=True)) for i in (flat, (board * 255).astype(np.uint8), blurred)
    ]
    assert values[0]["red"] == values[0]["saturation"] == 1 and values[0]["blue"] == values[0]["contrast"] == 0
    assert values[0]["brightness"] == pytest.approx(0.299, abs=0.003)
    assert values[1]["contrast"] == pytest.approx(0.5) and values[1]["saturation"] == 0
    assert values[1]["sharpness"] > 2 * values[2]["sharpness"] > 0
    double = np.kron((board * 255).astype(np.uint8), np.ones((2, 2, 1), np.uint8))
    assert image_statistics(double) == pytest.approx(image_statistics((board * 255).astype(np.uint8)))


def test_clips_are_previewed_with_bounded_frames(tmp_path: Path) -> None:
    write_shards([*_clip(50, "<b>one</b>"), *_clip(3, "two")], str(tmp_path / "set"), TABLE)
    seen = inspect(str(tmp_path / "set"), progress=False)
    assert seen.facts.clips == {"<b>one</b>": 50, "two": 3}
    html = render([seen], None)
    moving = [image for image in _pictures(html) if image.format == "WEBP"]
    assert [image.n_frames for image in moving] == [25, 3]
    assert moving[0].size == (640, 240)
    assert "2 clips of 3 to 50 frames" in html and "one frame in 2" in html
    assert "<b>one</b>" not in html and "&lt;b&gt;one&lt;/b&gt;" in html


def test_previews_of_long_clips_stay_small_and_frames_come_in_order(tmp_path: Path) -> None:
    write_shards(reversed(list(_clip(200))), str(tmp_path / "set"), TABLE)
    (clip,) = inspect(str(tmp_path / "set"), num_stats=1, progress=False).clips
    assert [picture.key for picture in clip.pictures] == [f"clip/{4 * i}" for i in range(MAX_FRAMES)]


def test_each_row_group_is_read_once_from_any_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"memory://{tmp_path.name}/set"
    write_shards(_clip(60), uri, TABLE, row_group_bytes=20_000, shard_samples=20)
    reads: Counter[int] = Counter()
    original = Dataset.read_group

    def counted(self: Dataset, number: int, columns: list[str] | None = None) -> pa.Table:
        reads[number] += 1
        return original(self, number, columns)

    monkeypatch.setattr(Dataset, "read_group", counted)
    seen = inspect(uri, num=5, progress=False)
    assert len(seen.values) == 60 and len(seen.pictures) == 5
    assert len(reads) > 3 and set(reads.values()) == {1}


def test_a_sample_of_a_large_set_needs_few_row_groups(tmp_path: Path) -> None:
    write_shards(samples(3 * MAX_GROUPS), str(tmp_path / "set"), TABLE, row_group_bytes=1)
    seen = inspect(str(tmp_path / "set"), num=1, num_stats=10, progress=False)
    assert len(accessible(seen.facts.dataset)) == MAX_GROUPS and len(seen.values) == 10
    assert spread(10, 3).tolist() == [1, 5, 8] and spread(2, 5).tolist() == [0, 1] and spread(4, 0).tolist() == []


def test_gap_of_two_sets_with_one_table(tmp_path: Path) -> None:
    write_shards([_flat("a", 100, 0), _flat("b", 110, 1)], str(tmp_path / "one"), TABLE)
    write_shards(
        [_flat("c", 50, 0), _flat("d", 60, 0), _flat("b", 110, 1), _flat("e", 70, 0)], str(tmp_path / "two"), TABLE
    )
    page = tmp_path / "page.html"
    text = _text(inspect_datasets([str(tmp_path / "one"), str(tmp_path / "two")], out=str(page)))
    assert "class shares differ by 25.0 % of the pixels" in text and f"{BY}1.5" in text and f"{BY}0.5" in text
    assert "1 samples lie in both" not in text and "1 sample lies in both" in text
    html = page.read_text()
    assert len(_pictures(html)) == 12
    row = re.search(r'</span>ground</th>((?:<td class="n">[^<]*</td>)+)', html)
    assert row is not None and re.findall(r">([^<]+)<", row[1]) == ["50.0 %", "50.0 %", "75.0 %", "75.0 %", f"{BY}1.5"]
    first, second = (np.array(greys) / 255 for greys in ([100, 110], [50, 60, 110, 70]))
    expected = (second.mean() - first.mean()) / np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    seen = [inspect(str(tmp_path / name), progress=False) for name in ("one", "two")]
    gap = compare(*seen)
    assert gap.shifts["brightness"] == pytest.approx(expected) and gap.shifts["contrast"] is None


def test_different_tables_are_matched_by_name_and_said_so(tmp_path: Path) -> None:
    write_shards([_flat("a", 9, 0), _flat("b", 9, 1)], str(tmp_path / "one"), TABLE)
    write_shards([_flat("a", 9, 0), _flat("b", 9, 1)], str(tmp_path / "two"), OTHER)
    text = _text(inspect_datasets([str(tmp_path / name) for name in ("one", "two")], out=str(tmp_path / "page.html")))
    note = re.sub(r"\s+", " ", text)
    assert "class tables differ (three, two): 1 class has the same name" in note
    assert "ground, thing" in note and "sea" in note and "differ by" not in note
    html = (tmp_path / "page.html").read_text()
    sky = re.search(r'</span>sky</th>((?:<td class="n">[^<]*</td>)+)', html)
    assert sky is not None and re.findall(r">([^<]+)<", sky[1]) == ["50.0 %", "50.0 %", "50.0 %", "50.0 %", f"{BY}1"]
    assert "pixels of other class" not in html


@pytest.mark.parametrize("order", [1, -1])
def test_a_set_without_labels_is_compared_as_far_as_it_goes(tmp_path: Path, order: int) -> None:
    uris = [_set(tmp_path, "one"), _set(tmp_path, "two", labelled=False)][::order]
    text = _text(inspect_datasets(uris, out=str(tmp_path / "page.html")))
    assert "has no labels: its class shares are unknown" in text and "brightness" in text
    html = (tmp_path / "page.html").read_text()
    assert "<h2>Classes</h2>" in html and html.count('scope="colgroup"') == 1


def test_tags_alone_make_the_histogram(tmp_path: Path) -> None:
    tagged = [_flat(str(i), 9, 0, label=None, tags=[0, 2] if i else [0]) for i in range(4)]
    write_shards(tagged, str(tmp_path / "set"), TABLE)
    seen = inspect(str(tmp_path / "set"), progress=False)
    assert seen.facts.num_tagged == 4 and seen.facts.shares.tags is not None
    assert seen.facts.shares.tags.tolist() == [1, 0, 0.75] and seen.facts.shares.pixels is None
    html = render([seen], None)
    assert 'aria-label="thing: 75.0 % of the tagged images"' in html and "4 samples" in html


def test_sparse_labels_are_counted_and_shown(tmp_path: Path) -> None:
    rows = [_flat(f"{i}", 9, i % 2, **({} if i % 5 == 0 else {"label": None})) for i in range(10)]
    part = write_shard(rows, str(tmp_path / "set"), 0, 3, 10_000)
    finish(str(tmp_path / "set"), TABLE, [part], sparse=True)
    seen = inspect(str(tmp_path / "set"), progress=False)
    assert [picture.key for picture in seen.pictures] == ["0", "5"] and len(seen.values) == 10
    assert seen.facts.shares.images is not None and seen.facts.shares.images.tolist() == [0.5, 0.5, 0]
    assert "2 of 10 labelled" in render([seen], None)


def test_unreadable_samples_are_listed_and_the_rest_is_shown(tmp_path: Path) -> None:
    broken = _flat("broken", 9, 0, image=encode(picture(1, 40, 80))[:200])
    write_shards([_flat("a", 9, 0), broken], str(tmp_path / "set"), TABLE)
    text = _text(inspect_datasets([str(tmp_path / "set")], out=str(tmp_path / "page.html")))
    assert "'broken'" in text and "1 of the samples looked at" in (tmp_path / "page.html").read_text()


def test_all_that_comes_from_data_is_escaped(tmp_path: Path) -> None:
    table = ClassTable("<i>t</i>", ("<u>x</u>", "[red]y"), ((1, 1, 1), (2, 2, 2)))
    write_shards([_flat("a", 9, 0)], str(tmp_path / "set"), table)
    seen = inspect(str(tmp_path / "set"), progress=False)
    shown = [replace(picture, key='"><script>') for picture in seen.pictures]
    html = render([replace(seen, pictures=shown)], None)
    assert not re.search(r"<script|<u>|<i>", html) and "&lt;u&gt;x&lt;/u&gt;" in html
    assert "[red]y" in _text(inspect_datasets([str(tmp_path / "set")], out=str(tmp_path / "page.html")))


def test_a_wrong_uri_is_the_users_mistake_and_leaves_no_page(tmp_path: Path) -> None:
    for wrong in (str(tmp_path / "nothing"), "streets://dya"):
        with pytest.raises(UserError):
            inspect_datasets([_set(tmp_path, wrong[-3:]), wrong], out=str(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_sheet_shows_the_class_colours_of_the_picture() -> None:
    black = Picture("a", np.zeros((160, 320, 3), np.uint8), np.full((160, 320), 2, np.uint8))
    sheet = np.asarray(contact_sheet([black], TABLE))
    assert sheet[80, 100].tolist() == [0, 0, 0]
    assert sheet[80, 500].tolist() == [42, 48, 54]  # 0.6 of the colour of class 2


def test_ignored_pixels_darken() -> None:
    image = np.full((2, 2, 3), 200, np.uint8)
    mixed = overlay(image, np.array([[0, 255], [0, 255]], np.uint8), TABLE)
    assert mixed[0, 1].tolist() == [50, 50, 50] and mixed[0, 0].tolist() == [86, 92, 98]


def test_rare_shares_stay_readable() -> None:
    assert [percent(share) for share in (0.0, 1.0, 0.0512, 0.000123, 3e-7)] == [
        "0 %",
        "100.0 %",
        "5.1 %",
        "0.012 %",
        "0.000030 %",
    ]
    assert lowest([0.3, 0.00002, 0]) == 1e-5 and lowest([]) == 0.1
    assert "<rect" not in log_marks([], 0.1)
