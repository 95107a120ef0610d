"""The report's player of clips: for clips alone, every frame in its strips, nothing from outside, no other script."""

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import NUM_IMAGES, TABLE, Page, Threshold, make_run, picture, png, truth
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass

from distuda.data.dataset import open_dataset
from distuda.data.sample import Sample
from distuda.data.shards import finish, write_shard
from distuda.metrics.confusion import class_map
from distuda.report.gather import gather
from distuda.report.html import render
from distuda.report.player import NUM_FRAMES, choose_runs, make_clip

ON_CLIPS = {
    "vpq": 0.4, "vpq_things": 0.3, "vpq_stuff": 0.5, "temporal_consistency": 0.912,
    "vpq_per_class": {"road": 0.44, "sky <b>&": 0.2, "car": None},
    **{f"{key}_{n}": 0.7 - n / 10 for key in ("vpq", "vpq_things", "vpq_stuff") for n in (1, 2, 3, 4)},
}  # fmt: skip


def write(folder: Path, clips: dict[str, int], *, labelled: Any = lambda place: True, still: bool = False) -> str:
    samples = []
    for clip, length in clips.items():
        for number in range(length):
            label = png(truth(number % NUM_IMAGES)) if labelled(number) else None
            image = png(picture(number % NUM_IMAGES))
            where = {} if still else {"clip": clip, "frame": number}
            samples.append(Sample(key=f"{clip[0]}-{number}", image=image, label=label, height=40, width=60, **where))  # type: ignore[arg-type]
    sparse = any(sample.label is None for sample in samples) and any(sample.label is not None for sample in samples)
    finish(str(folder), TABLE, [write_shard(iter(samples), str(folder), 0, TABLE.num_classes, 100_000)], sparse=sparse)
    return str(folder)


def report(tmp_path: Path, uri: str, miou: float | None = 0.612) -> tuple[Page, str]:
    recipe = {} if miou is not None else {"evaluation": {"uri": None}}
    run = make_run(tmp_path / "run", uri, "self_training", Threshold(1.0), miou, **recipe)
    base = make_run(tmp_path / "base", uri, "source_only", Threshold(0.8), miou, **recipe)
    data = gather(run, base, num_panels=1)
    if data.clips and miou is not None:
        for side in data.sides:
            side.evaluation |= ON_CLIPS
    text = render(data)
    return Page(text), text


def strips(style: str) -> list[Image.Image]:
    found = re.findall(r"url\(data:image/\w+;base64,([^)]+)\)", style)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


def test_clips_are_played_side_by_side(tmp_path: Path) -> None:
    page, text = report(tmp_path, write(tmp_path / "data", {"a": 4, "b <i>": 30, "c": 1}))
    players = [found for tag, found in page.tags if tag == "article" and "player" in str(found["class"])]
    films = [found for tag, found in page.tags if tag == "div" and found.get("class") == "film"]
    sliders = [found for tag, found in page.tags if tag == "input"]
    assert len(players) == 2 and [slider["max"] for slider in sliders] == ["3", str(NUM_FRAMES - 1)]
    assert len(films) == 2 * 4, "image, source-only, adapted, truth"
    for player, frames in zip(players, (4, NUM_FRAMES), strict=True):
        assert [strip.size for strip in strips(str(player["style"]))] == [(60, 40 * frames)]
        assert str(player["data-keys"]).count('"') == 2 * frames
    for film in films:
        assert film["role"] == "img" and "frames" in str(film["aria-label"])
    for word in ("source-only predicts", "adapted predicts", "True classes", "Images of clip b <i>"):
        assert any(word in str(film["aria-label"]) for film in films), word
    ids = np.asarray(strips(str(films[2]["style"]))[0])  # adapted, of the first clip: exact
    expected = np.concatenate([truth(number) for number in range(4)])
    assert np.array_equal(ids[expected != 255], expected[expected != 255])
    assert re.search(r"adapted VPQ [\d.]+, consistency [\d.]+", page.text)
    assert not re.search(r"(?:src|href|url\()=?[\"']?(?!data:)\w+:", text), "nothing is loaded"


def test_numbers_of_clips_are_in_the_tables(tmp_path: Path) -> None:
    page, _ = report(tmp_path, write(tmp_path / "data", {"a": 4}))
    for words in ("VPQ, adapted 40.0 %", "temporal consistency 91.2 % 91.2 %", "A window is so many labelled frames"):
        assert words in page.text, words
    assert "all classes source-only 60.0 50.0 40.0 30.0 40.0 adapted 60.0 50.0 40.0 30.0 40.0" in page.text
    assert "road 71.2 71.2 0.0 road: 0.0 points 44.0 44.0 0.0" in page.text


def test_the_policy_names_the_players_script_alone(tmp_path: Path) -> None:
    page, text = report(tmp_path, write(tmp_path / "data", {"a": 4}))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(str(found["content"]) for tag, found in page.tags if tag == "meta" and "http-equiv" in found)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_stills_have_no_player_and_no_script(tmp_path: Path) -> None:
    page, text = report(tmp_path, write(tmp_path / "data", {"a": 4}, still=True))
    assert not page.count("script") and not page.count("input") and "script-src" not in text
    assert "VPQ" not in page.text and "consistency" not in page.text and page.count("img")


def test_truth_is_shown_where_it_is_and_only_if_the_run_was_scored(tmp_path: Path) -> None:
    uri = write(tmp_path / "sparse", {"a": 40}, labelled=lambda place: place in (30, 33))
    (run,) = choose_runs(open_dataset(uri), scored=True)
    assert len(run) == NUM_FRAMES and {30, 33} <= set(run.tolist())
    (tmp_path / "x").mkdir()
    page, _ = report(tmp_path / "x", uri)
    assert "2 of 24 frames labelled" in page.text
    (tmp_path / "y").mkdir()
    page, _ = report(tmp_path / "y", uri, miou=None)
    assert page.count("input") == 1 and "True classes" not in str(page.tags) and "consistency" in page.text


class Elsewhere(Tensor):
    """A tensor of another device: nothing can be done with it here before it is brought to the host."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is Tensor.cpu, f"{func} of a tensor on another device"
        with DisableTorchFunctionSubclass():
            return args[0].as_subclass(Tensor)


def test_a_clip_is_played_from_any_frame_on_whatever_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset(write(tmp_path / "data", {"a": 4}))
    networks: Any = {"adapted": Threshold(1.0)}
    options: Any = {"size": None, "scored": True}
    here = make_clip(data, np.arange(2, 4), networks, TABLE, **options)
    monkeypatch.setattr("distuda.report.player.class_map", lambda logits: class_map(logits).as_subclass(Elsewhere))
    assert make_clip(data, np.arange(2, 4), networks, TABLE, **options) == here
    assert "consistency" in here.tracks[0].caption, "the frame before the first was predicted"


def test_panels_of_clips_need_no_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: Any) -> None:
        raise AssertionError("flow was computed")

    run = make_run(tmp_path / "run", write(tmp_path / "data", {"a": 4}), "self_training", Threshold(1.0), 0.6)
    monkeypatch.setattr("distuda.data.clips.compute_flow", refuses)
    monkeypatch.setattr("distuda.report.gather.choose_runs", lambda *args, **options: [])
    assert gather(run, None, num_panels=2).panels


def test_the_mean_over_fewer_classes_stands_before_the_mean(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", write(tmp_path / "data", {"a": 4}), "self_training", Threshold(1.0), 0.612)
    data = gather(run, None, num_panels=0)
    data.run.evaluation |= {**ON_CLIPS, "miou_synthia_seq11": 0.593}
    text = Page(render(data)).text
    assert re.search(r"mean over synthia_seq11 59\.3 .*\bmean 61\.2", text) and "VPQ, adapted 40.0 %" in text


@pytest.mark.parametrize(
    ("clips", "lengths"), [({"a": 1, "b": 2}, [2]), ({"a": 50}, [24]), (dict.fromkeys("abcde", 3), [3, 3])]
)
def test_runs_are_chosen_by_position(tmp_path: Path, clips: dict[str, int], lengths: list[int]) -> None:
    data = open_dataset(write(tmp_path / "d", clips))
    runs = choose_runs(data, scored=True)
    assert [len(run) for run in runs] == lengths
    assert all((np.diff(run) == 1).all() for run in runs)
