"""The page of a recipe of phases: what it counts and draws, what it makes of unfinished ones, and what is refused."""

import base64
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from settings import TABLE, TINY, tiny_recipe, tiny_samples

from distuda.cli import main
from distuda.data.columns import COLUMNS, CONTESTED, read_group, write_group
from distuda.data.dataset import open_dataset
from distuda.data.decode import decode_label
from distuda.data.shards import write_shards
from distuda.engine.loop import fit, settle
from distuda.engine.run import read_rows
from distuda.errors import UserError
from distuda.phases import train_phases
from distuda.plan import PHASES, load_phases
from distuda.recipe import parse_relabel
from distuda.relabel.erase import Erase
from distuda.relabel.job import relabel
from distuda.report import phases_gather as gathered
from distuda.report import phases_pictures as draw
from distuda.report.phases_report import inspect_phases

RECIPE = """
rounds: 2
phases:
- repeat:
  - {name: classify, method: {name: classify}, init_from: none}
  - {name: erase, relabel: {name: erase, share: 0.1}}
- {name: masks, relabel: {name: compose}}
- {name: segment, method: {name: psl}, init_from: none}
- {name: own, relabel: {name: predict}}
"""
NAMES = ["classify_1", "erase_1", "classify_2", "erase_2", "masks", "segment", "own"]
OF = 255
SAID = "classes by heat"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tagged images, their true labels apart, and all phases of a tiny recipe."""
    root = tmp_path_factory.mktemp("phases")
    samples = tiny_samples(7, 1, labelled=False)
    for number, sample in enumerate(samples):
        sample.tags = [number % 4, 3]
    write_shards(samples, str(root / "tagged"), TABLE, row_group_bytes=12_000)
    write_shards(tiny_samples(5, 1), str(root / "true"), TABLE)
    (root / "recipe.yaml").write_text(RECIPE)
    words = [*(word for word in TINY if not word.startswith("method")), "steps=2", "evaluation.uri=none"]
    train_phases(
        load_phases(
            str(root / "recipe.yaml"), [*words, f"source.uri={root / 'tagged'}", "target.uri=none", f"out={root}/run"]
        )
    )
    return root


def page(uri: Path, tmp_path: Path, **options: object) -> str:
    inspect_phases(str(uri), out=str(tmp_path / "page.html"), **options)  # type: ignore[arg-type]
    return (tmp_path / "page.html").read_text()


def refused(uri: Path, tmp_path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        page(uri, tmp_path, **options)
    assert not (tmp_path / "page.html").exists()
    return str(caught.value)


def rows_of_pictures(html: str) -> list[list[str]]:
    """Titles of the pictures, one list an image shown; each is decoded."""
    rows = []
    for row in html.split('<div class="look">')[1:]:
        for kind, content in re.findall(r'src="data:image/(\w+);base64,([^"]+)"', row):
            picture = Image.open(io.BytesIO(base64.b64decode(content)))
            assert picture.format == kind.upper() and picture.size == (56, 40)
            picture.load()
        rows.append(re.findall(r"<figcaption><(?:b|code)>([^<]+)<", row))
    return rows


def test_every_image_is_followed_through_all_phases(root: Path, tmp_path: Path) -> None:
    html = page(root / "run", tmp_path, labels=str(root / "true"), keys=["1-4,1-0", "1-6"])
    through = ["erase_1", "heat", SAID, "erase_2", "heat", SAID, "masks", "saliency", "segment", "own"]
    assert rows_of_pictures(html) == [["1-4", *through, "truth"], ["1-0", *through, "truth"], ["1-6", *through]]
    assert html.count("mIoU ") > 3 and "repeat(7, " in html
    for name in NAMES:
        assert f'<th scope="row">{name}<' in html
    assert len(rows_of_pictures(page(root / "run", tmp_path, num=4))) == 4


def test_numbers_on_the_page_are_those_of_the_columns(root: Path, tmp_path: Path) -> None:
    data = open_dataset(str(root / "tagged"))
    rows = [row for n in range(len(data.groups)) for row in read_group(str(root / "run" / "erase_2"), n).to_pylist()]
    mined = np.concatenate([decode_label(row["mined"], row["key"]).ravel() for row in rows])
    stages = gathered.open_stages(str(root / "run"))
    assert [stage.name for stage in stages] == NAMES and all(stage.finished for stage in stages)
    shares = gathered.measure(stages[3], 100)
    assert shares.mined == pytest.approx((mined < CONTESTED).mean()) and shares.mined > 0
    assert shares.contested == pytest.approx((mined == CONTESTED).mean())
    masks = gathered.measure(stages[4], 100)
    label = [
        decode_label(row["label"], row["key"])
        for n in range(len(data.groups))
        for row in read_group(str(root / "run" / "masks"), n).to_pylist()
    ]
    assert masks.mined is None and masks.labelled == pytest.approx(np.mean([one != OF for one in label]))
    losses = [row["loss"] for row in read_rows(str(root / "run" / "classify_1")) if row["kind"] == "train"]
    assert stages[0].loss == pytest.approx(losses[-1])
    html = page(root / "run", tmp_path)
    assert f"final training loss, round 1: {losses[-1]:.3g}" in html
    assert "pixels mined [%], round 2" in html


def test_what_a_round_found_is_told_from_what_was_erased_before(root: Path) -> None:
    stages = gathered.open_stages(str(root / "run"))
    data = gathered.home(stages)
    first, second = gathered.look(data, gathered.choose(data, ["1-2"], 1), stages[:4])[0].maps.values()
    assert (first["before"] == OF).all() and (second["before"] == first["mined"]).all()

    image = np.full((9, 12, 3), 200, np.uint8)
    before, mined = np.full((2, 9, 12), OF, np.uint8)
    before[:, :4] = mined[:, :4] = 1
    mined[:, 4:8] = 2
    mined[:, 8:] = CONTESTED
    picture = draw.erased(image, before, mined, TABLE)
    assert tuple(picture[4, 1]) == draw.MEAN_PIXEL
    assert tuple(picture[4, 4]) == TABLE.palette[2]  # the outline
    assert (np.abs(picture[4, 6].astype(int) - (0.4 * 200 + 0.6 * np.array(TABLE.palette[2]))) <= 1).all()
    assert {tuple(pixel) for pixel in picture[4, 8:].tolist()} >= {(0, 0, 0), (255, 255, 255)}
    assert (draw.erased(image, before[:] * 0 + OF, before * 0 + OF, TABLE) == image).all()


def test_masks_are_hatched_where_they_say_nothing() -> None:
    label = np.array([[2] * 6, [OF] * 6], np.uint8)
    picture = draw.mask(label, TABLE)
    assert {tuple(pixel) for pixel in picture[0].tolist()} == {TABLE.palette[2]}
    assert {tuple(pixel) for pixel in picture[1].tolist()} == {draw.OPEN, draw.OPEN_LINE}
    assert (np.diff(draw.heat(np.zeros((1, 2, 3), np.uint8), np.array([[0, 255]], np.uint8)).sum(axis=2)) > 0).all()


def test_unfinished_phases_are_named_and_the_rest_is_shown(root: Path, tmp_path: Path) -> None:
    """As after a kill while round 2 was erased: a part of its groups, and nothing of what follows."""
    run = tmp_path / "moved"
    for name in ("classify_1", "erase_1", "classify_2", "erase_2"):
        copied(root / "run" / name, run / name)
    (run / PHASES).write_bytes((root / "run" / PHASES).read_bytes())
    (run / "erase_2" / COLUMNS).unlink()
    for group in list((run / "erase_2" / "groups").iterdir())[1:]:
        group.unlink()
    log = (root / "run" / "segment" / "metrics.jsonl").read_text()
    (run / "segment").mkdir()
    (run / "segment" / "metrics.jsonl").write_text(log.splitlines()[0] + "\n")  # a step, and no checkpoint yet
    html = page(run, tmp_path, keys=["1-1"])
    assert rows_of_pictures(html) == [["1-1", "erase_1", "heat", SAID]]
    total = len(open_dataset(str(root / "tagged")).groups)
    assert f"unfinished: 1 of {total} row groups" in html and "unfinished: 1 of 2 steps" in html
    assert html.count("nothing yet") == 2 and "3 of 7" in html
    for name in ("erase_1", "classify_1", "classify_2", "erase_2"):
        for path in sorted((run / name).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    assert rows_of_pictures(page(run, tmp_path, keys=["1-1"])) == [["1-1"]]


def copied(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


def test_one_phase_alone_by_the_command_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.html"
    words = ["inspect", str(root / "run" / "erase_2"), "--out", str(out), "--key", "1-3", "--keys", "1-5"]
    monkeypatch.setattr(sys, "argv", ["distuda", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and "erase_2" in capsys.readouterr().out
    assert rows_of_pictures(out.read_text()) == [[key, "erase_2", "heat", SAID] for key in ("1-3", "1-5")]


def test_samples_that_were_passed_over_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image is damaged, and a phase has left nothing of another beside its class maps."""
    samples = tiny_samples(4, 1)
    samples[2].image = samples[2].image[:60]
    write_shards(samples, str(tmp_path / "some"), TABLE)
    data = open_dataset(str(tmp_path / "some"))
    domain = {"uri": data.uri, "max_bad_share": 0.3}
    words = [f"source.uri={data.uri}", "target.uri=none", "evaluation.uri=none", "source.max_bad_share=0.3"]
    run = fit(settle(tiny_recipe("method.name=classify", *words, "steps=1", f"out={tmp_path / 'net'}")))
    values = {"out": str(tmp_path / "erase"), "init_from": run, "device": "cpu", "relabel": {"name": "erase"}}
    relabel(parse_relabel({**values, "source": domain}))
    (stage,) = gathered.open_stages(str(tmp_path / "erase"))
    seen = gathered.look(data, gathered.choose(data, [], 4), [stage])
    assert [one.key for one in seen] == ["1-0", "1-1", "1-3"] and "not shown: " in (said := capsys.readouterr().err)
    assert "1-2" in said
    rows = read_group(stage.uri, 0).to_pylist()
    write_group(stage.uri, 0, [rows[0] | {"heat": None, "heat_now": None}, *rows[1:]], Erase.writes)
    first, second, _ = gathered.look(data, gathered.choose(data, [], 4), [stage])
    assert set(first.maps["erase"]) == {"label", "mined", "before"} and "heat_now" in second.maps["erase"]
    assert rows_of_pictures(page(tmp_path / "erase", tmp_path, keys=["1-0"])) == [["1-0", "erase", SAID, "truth"]]


def test_a_folder_that_yaml_reads_otherwise_is_found(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run #2: again"
    for name in ("classify_1", "erase_1"):
        copied(root / "run" / name, run / name)
    (run / PHASES).write_bytes((root / "run" / PHASES).read_bytes())
    assert rows_of_pictures(page(run, tmp_path, keys=["1-1"])) == [["1-1", "erase_1", "heat", SAID]]


def test_labels_of_the_data_itself_are_the_truth(root: Path, tmp_path: Path) -> None:
    samples = tiny_samples(3, 1)
    for sample in samples:
        sample.tags = [0, 3]
    write_shards(samples, str(tmp_path / "both"), TABLE)
    data = open_dataset(str(tmp_path / "both"))
    (one,) = gathered.look(data, gathered.choose(data, ["1-1"], 1), [])
    assert one.truth is not None and (one.truth == decode_label(samples[1].label or b"", "1-1")).all()


def test_what_is_wrong_is_said(root: Path, tmp_path: Path) -> None:
    assert "no sample '1-99'" in refused(root / "run", tmp_path, keys=["1-0,1-99"])
    assert "did you mean '1-" in refused(root / "run", tmp_path, keys=["1-9"])
    assert f"neither {PHASES} nor relabel.yaml" in refused(root / "tagged", tmp_path)
    assert "distuda report" in refused(root / "run" / "segment", tmp_path)
    assert "no labels" in refused(root / "run", tmp_path, labels=str(root / "tagged"))
    write_shards(tiny_samples(2, 8), str(tmp_path / "others"), TABLE)
    assert "none of the shown samples" in refused(root / "run", tmp_path, labels=str(tmp_path / "others"))
    assert not gathered.holds_phases(str(root / "tagged")) and not gathered.holds_phases("streets://day")


def test_what_is_printed_names_every_phase(root: Path, tmp_path: Path) -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(inspect_phases(str(root / "run"), out=str(tmp_path / "page.html"), num=1))
    text = console.export_text()
    assert all(name in text for name in NAMES) and str(tmp_path / "page.html") in text
