"""The report: complete and self-contained with everything at hand, honest and unbroken with little."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from distuda.data.batch import Batch
from distuda.data.labels import ClassTable
from distuda.data.sample import Sample
from distuda.data.shards import write_shards
from distuda.engine.run import Run
from distuda.errors import UserError
from distuda.models.segmenter import Output
from distuda.recipe import parse_recipe, to_yaml
from distuda.report import figures, html
from distuda.report.gather import gather
from distuda.report.html import render, write_report
from distuda.report.panels import Panel, choose, make_panel, normalised_entropy, spread

TABLE = ClassTable("three", ("road", "sky <b>&", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
NUM_IMAGES = 6


class Threshold(nn.Module):
    """Predicts classes from red: exact for `skill` 1, ever less so below; never for images darker than `blind`."""

    align_corners = False
    gives_heat = False

    def __init__(self, skill: float, blind: float = 0.0) -> None:
        super().__init__()
        self.skill, self.blind = nn.Parameter(torch.tensor(skill)), blind

    def forward(self, image_BCHW: Tensor) -> Output:
        """Logits (B, 3, H, W) peaked at the class that red stands for."""
        red = image_BCHW[:, :1] * self.skill
        logits = -30 * (red - torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1)).abs()
        return Output(logits.flip(1) if image_BCHW[:, 2].mean() < self.blind else logits)


def truth(number: int) -> NDArray[np.uint8]:
    """Three bands that move from image to image, with a void corner."""
    label = np.repeat(np.arange(40, dtype=np.uint8)[:, None] // 14, 60, axis=1)
    label = np.roll(label, 3 * number, axis=0)
    label[:4, :4] = 255
    return label


def picture(number: int) -> NDArray[np.uint8]:
    """Red tells the class, blue the number of the image."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = np.choose(np.minimum(truth(number), 2), [51, 128, 204])
    image[..., 2] = 40 * number
    return image


def png(array: NDArray[np.uint8]) -> bytes:
    """The array as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six labelled images as shards."""
    uri = str(tmp_path_factory.mktemp("data") / "val")
    samples = [
        Sample(key=f"frame{i}", image=png(picture(i)), label=png(truth(i)), height=40, width=60)
        for i in range(NUM_IMAGES)
    ]
    write_shards(samples, uri, TABLE)
    return uri


def make_run(
    folder: Path,
    data_uri: str,
    method: str,
    predictor: nn.Module,
    miou: float | None,
    *,
    evaluations: int = 3,
    **recipe: Any,
) -> Run:
    """A run folder as training leaves it, opened."""
    values = {
        "method": {"name": method}, "steps": 300, "batch_size": 3, "source": {"uri": "s3://bucket/<script>alert(1)</script>"},
        "target": {"uri": data_uri}, "evaluation": {"uri": data_uri}, **recipe,
    }  # fmt: skip
    parsed = parse_recipe(values)
    rows: list[dict[str, Any]] = []
    for step in range(10, 301, 10):
        row = {"kind": "train", "step": step, "loss": 2 / step, "seg_src": 1.5 / step, "adv_tgt<i>": 0.5 / step}
        rows.append(row | {"lr": 1e-4, "images_per_s": 50.0, "data_wait_s": 0.002, "memory_gib": 1.5})
    scores: dict[str, Any] = {"num_images": NUM_IMAGES, "entropy": -0.2, "information_maximisation": 0.6}
    if miou is not None:
        iou = {"road": miou + 0.1, "sky <b>&": miou - 0.1, "car": None}
        scores |= {"miou": miou, "accuracy": 0.9, "iou": iou, "label_sizes": ["40x60"]}
    for i in range(evaluations):
        rows.append({"kind": "evaluation", "step": 300 * (i + 1) // evaluations, **scores})
    folder.mkdir()
    (folder / "recipe.yaml").write_text(to_yaml(parsed))
    (folder / "classes.json").write_text(json.dumps(TABLE.to_json()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "processor": "Abacus 9000", "workers": 2}))
    (folder / "evaluation-last.json").write_text(json.dumps({**rows[-1], "which": "last", "uri": data_uri}))
    return Run(str(folder), parsed, TABLE, predictor, 300)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path, data_uri: str) -> Run:
    """An adapted run that fails on the first image alone."""
    return make_run(tmp_path / "run", data_uri, "self_training", Threshold(1.0, blind=0.01), 0.612)


@pytest.fixture
def baseline(tmp_path: Path, data_uri: str) -> Run:
    """A source-only run that takes cars for sky."""
    return make_run(tmp_path / "baseline", data_uri, "source_only", Threshold(0.8), 0.5)


class Page(HTMLParser):
    """Tags, visible text and links of a page; fails on tags that do not nest."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember a tag that closes itself."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Check the nesting."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Remember text that is shown."""
        if "style" not in self.open:
            self.words.append(data)

    def count(self, tag: str, **attributes: str) -> int:
        """Number of tags with these attributes."""
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)


def test_full_report_says_what_was_measured(run: Run, baseline: Run) -> None:
    """Headline, difference, facts, classes and pictures of two runs."""
    page = Page(render(gather(run, baseline, num_panels=2, extras={"cost": "3 coins"})))
    for words in (
        "61.2 %",
        "50.0 %",
        "+11.2 points",
        "6 images",
        "40 \N{MULTIPLICATION SIGN} 60 px",
        "checkpoint: last, step 300",
        "1 seed",
    ):
        assert words in page.text, words
    assert "6 source and 6 target images a step (3 a worker, 2 workers)" in page.text
    for words in (
        "Abacus 9000",
        "torch 2.13.0",
        "3 coins",
        "adv_tgt<i>",
        "wait for data [ms a step]",
        "peak memory 1.5 GiB",
    ):
        assert words in page.text, words
    assert "road 60.0 71.2 +11.2" in page.text
    assert "car" + 3 * " \N{EN DASH}" in page.text
    assert "most gain" in page.text and "most loss" in page.text
    assert page.count("img") == 5 * (2 + 2)  # image, truth, source-only, adapted, entropy; two spread and two extremes


def test_report_is_one_safe_file(run: Run, baseline: Run) -> None:
    """No script, no address to load from, every picture described, everything from the run escaped."""
    text = render(gather(run, baseline, extras={"<u>name</u>": "<u>value</u>"}))
    page = Page(text)
    assert not {"script", "link", "iframe", "u", "i", "b>&"} & {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.text
    loaded = [str(attributes.get(key)) for _, attributes in page.tags for key in ("src", "href") if key in attributes]
    assert loaded and all(source.startswith("data:image/") for source in loaded)
    assert not re.search(r"url\(|@import", text)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert len(text) < 400_000


def test_extremes_are_found(run: Run, baseline: Run) -> None:
    """The one image on which the adapted network fails is shown as the loss."""
    panels = gather(run, baseline, num_panels=2).panels
    assert [panel.reason for panel in panels] == ["most gain", "most loss", "", ""]
    assert panels[1].key == "frame0" and (panels[1].gain or 0) < 0 < (panels[0].gain or 0)
    assert len({panel.key for panel in panels}) == 4


def test_without_baseline(run: Run) -> None:
    """One column, no difference, and the reader is told."""
    page = Page(render(gather(run, None, num_panels=1)))
    assert "No source-only run was given" in page.text and "points" not in page.text.split("How the numbers")[0]
    assert "highest mIoU" in page.text and "lowest mIoU" in page.text
    assert page.count("img") == 4 * 3


def test_without_labels_truth_is_never_shown(tmp_path: Path, data_uri: str, baseline: Run) -> None:
    """A run scored without labels shows neither mIoU nor truth, though the target data has labels."""
    evaluation = {"uri": None}
    run = make_run(
        tmp_path / "run", data_uri, "self_training", Threshold(1.0), None, evaluation=evaluation, evaluations=1
    )
    data = gather(run, None, num_panels=2)
    page = Page(render(data))
    assert "mIoU is unknown" in page.text and "0.600" in page.text
    assert [tile.title for tile in data.panels[0].tiles] == ["image", "adapted", "entropy, adapted"]
    assert page.count("table") == 1


def test_missing_data_costs_only_the_pictures(tmp_path: Path, run: Run) -> None:
    """Numbers stand when the evaluation images have moved."""
    evaluation = json.loads((Path(run.uri) / "evaluation-last.json").read_text())
    (Path(run.uri) / "evaluation-last.json").write_text(json.dumps({**evaluation, "uri": str(tmp_path / "gone")}))
    page = Page(render(gather(run, None)))
    assert "No pictures:" in page.text and "61.2 %" in page.text and page.count("img") == 0


def test_unfair_comparison_is_named(run: Run, baseline: Run) -> None:
    """Different evaluation data, or selection by target labels, is said in the report."""
    path = Path(baseline.uri) / "evaluation-last.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_images": 5}))
    assert (
        "different number of images, 5 and 6: not comparable" in Page(render(gather(run, baseline, num_panels=0))).text
    )
    run.recipe.checkpoint.best_by = "target_miou"
    assert "chosen by target labels" in " ".join(gather(run, None, which="best", num_panels=0).notes)


def test_other_classes_are_refused(run: Run, baseline: Run) -> None:
    """A baseline of another class table is the user's mistake."""
    baseline.table = ClassTable("two", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    with pytest.raises(UserError, match="same classes"):
        gather(run, baseline)


def test_fresh_run_without_any_row(run: Run) -> None:
    """No logs, no evaluation, no environment: still a page that says so."""
    for name in ("metrics.jsonl", "evaluation-last.json", "environment.json"):
        (Path(run.uri) / name).unlink()
    assert "has not been evaluated yet" in Page(render(gather(run, None, num_panels=1))).text


def test_write_report(run: Run, baseline: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file lies in the run folder and is the same each time."""
    runs = {run.uri: run, baseline.uri: baseline}
    monkeypatch.setattr(html, "open_run", lambda uri, which: runs[uri])
    uri = write_report(run.uri, baseline_uri=baseline.uri, num_panels=1)
    first = Path(uri).read_bytes()
    assert uri == f"{run.uri}/report.html"
    write_report(run.uri, baseline_uri=baseline.uri, num_panels=1)
    assert Path(uri).read_bytes() == first


def test_panel_pictures_show_the_classes() -> None:
    """Class maps carry the palette, void is white, and the exact predictor scores 1."""
    image = torch.from_numpy(picture(2)).permute(2, 0, 1)[None]
    batch = Batch(image, torch.from_numpy(truth(2)).long()[None], torch.zeros(1, dtype=torch.int64), ["k"])
    panel = make_panel(batch, {"adapted": Threshold(1.0)}, TABLE)  # type: ignore[dict-item]
    assert panel.scores == {"adapted": 1.0}
    content = base64.b64decode(panel.tiles[1].source.split(",")[1])
    decoded = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    expected = np.array([*TABLE.palette, (255, 255, 255)])[np.minimum(truth(2), 3)]
    assert np.array_equal(decoded, expected)


def test_wide_pictures_are_shrunk() -> None:
    """A large image is inlined at panel width with its aspect kept."""
    image = torch.from_numpy(cv2.resize(picture(1), (800, 400))).permute(2, 0, 1)[None]
    panel = make_panel(Batch(image, None, torch.zeros(1), ["k"]), {"adapted": Threshold(1.0)}, TABLE)  # type: ignore[dict-item]
    for tile in panel.tiles:
        assert Image.open(io.BytesIO(base64.b64decode(tile.source.split(",")[1]))).size == (320, 160)


def test_entropy_is_normalised() -> None:
    """Equal logits give 1, one sure class gives 0."""
    assert torch.allclose(normalised_entropy(torch.zeros(1, 5, 2, 2)), torch.ones(1, 2, 2))
    sure = torch.zeros(1, 5, 1, 1)
    sure[:, 0] = 100
    assert normalised_entropy(sure).item() == pytest.approx(0, abs=1e-6)


def test_choose_labels_no_gain_where_there_is_none() -> None:
    """If every image got worse, none is called a gain."""
    panels = [Panel(str(i), (), {"source-only": 0.5, "adapted": 0.4 - i / 10}) for i in range(3)]
    assert [(panel.key, panel.reason) for panel in choose(panels, 1)] == [("2", "most loss"), ("1", "")]


@pytest.mark.parametrize(("total", "count"), [(0, 3), (1, 3), (7, 3), (100, 40)])
def test_spread_is_even_and_unique(total: int, count: int) -> None:
    """Positions are inside, distinct, and no gap is much larger than another."""
    positions = spread(total, count)
    assert len(set(positions)) == len(positions) == min(total, count)
    assert all(0 <= position < total for position in positions)
    gaps = np.diff(positions)
    assert not gaps.size or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 0.31), (-5, 12_000), (2, 2), (0, 0), (1e-7, 3e-7)])
def test_ticks_span_the_data(low: float, high: float) -> None:
    """Ticks enclose the data and stay few."""
    marks = figures.ticks(low, high, 5)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 9
    assert marks == sorted(set(marks))


def test_line_chart_is_well_formed_and_leaves_gaps() -> None:
    """Valid XML, escaped names, and a missing value breaks the line."""
    line = figures.Series("<a>", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, 3.0)], "#000")
    chart = ElementTree.fromstring(str(figures.line_chart([line], label="x & y", x_label="step")))
    assert len(chart.findall("polyline")) == 2
    assert any(element.text == "<a>" for element in chart.iter("text"))


def test_thin_keeps_peaks_and_smooth_ignores_nan() -> None:
    """A single peak in a long log survives; the mean of a constant is the constant."""
    points = [(float(i), 1.0) for i in range(10_000)]
    points[777] = (777.0, 9.0)
    assert (777.0, 9.0) in figures.thin(points) and len(figures.thin(points)) <= 400
    points[777] = (777.0, math.nan)
    assert {y for _, y in figures.smooth(points)} == {1.0}


def test_bars_point_the_right_way() -> None:
    """Gains lie right of the middle, losses left, the largest reaches the edge."""
    gain, loss = (
        ElementTree.fromstring(str(figures.difference_bar(value, 10, "t"))).find("rect") for value in (5.0, -10.0)
    )
    assert gain is not None and loss is not None
    assert float(gain.attrib["x"]) == 240 and float(loss.attrib["x"]) == pytest.approx(2)
