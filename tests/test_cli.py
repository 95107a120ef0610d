"""The command line as a user meets it: one sentence and exit code 2 for their mistakes, nothing half-written."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from data_trees import encode, label, write_camvid
from settings import TABLE, TINY, tiny_samples

from distuda import cli
from distuda.cli import main
from distuda.data.shards import write_shards


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of one command."""
    monkeypatch.setattr(sys, "argv", ["distuda", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    root = tmp_path / "camvid"
    write_camvid(root, "train", ["0001TP_000", "0001TP_001", "0006R0_000"])
    return root


def break_tree(root: Path, how: str) -> None:
    """One mistake of each kind in the second frame of a CamVid tree."""
    image, annotation = root / "train" / "0001TP_001.jpg", root / "trainannot" / "0001TP_001.png"
    if how == "missing label":
        annotation.unlink()
    elif how == "other size":
        annotation.write_bytes(encode(label(1, 6, 8)))
    elif how == "foreign id":
        annotation.write_bytes(encode(np.full((12, 16), 77, np.uint8)))
    elif how == "truncated image":
        image.write_bytes(image.read_bytes()[: len(image.read_bytes()) // 2])


@pytest.mark.parametrize(
    ("how", "said"),
    [("missing label", "label"), ("other size", "8x6"), ("foreign id", "77"), ("truncated image", "image")],
)
def test_prepare_names_the_bad_sample(
    how: str, said: str, camvid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_tree(camvid, how)
    out = camvid.parent / "shards"
    assert run(["prepare", "camvid", str(camvid), str(out)], monkeypatch) == 2
    message = capsys.readouterr().err
    assert "0001TP_001" in message and said in message
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "camvid", "{tree}", "{out}", "--classes", "camvid12"], "camvid11"),
        (["prepare", "camvit", "{tree}", "{out}"], "camvid"),
        (["prepare", "camvid", "{empty}", "{out}"], "no "),
        (["prepare", "camvid", "{tree}", "{file}/below"], "cannot write"),
        (["inspect", "{empty}"], "prepare"),
        (["train", "metod=advent"], "method"),
        (["train", "optimizer.lr=fast"], "optimizer.lr"),
        (["train", "no_such_recipe.yaml"], "no_such_recipe.yaml"),
        (["train", "source.uri={empty}", "out={out}"], "prepare"),
        (["evaluate", "{empty}"], "run folder"),
        (["export", "{empty}"], "run folder"),
        (["report", "{empty}"], "run folder"),
        (["predict", "{empty}/model.onnx", "{tree}", "{out}"], "model.onnx"),
        (["predict", "{empty}/model.onnx", "{tree}"], "output folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message_and_exit_code_2(
    words: list[str], said: str, camvid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: camvid.parent / name for name in ("out", "empty", "file")}
    places["empty"].mkdir()
    places["file"].write_bytes(b"")
    filled = [word.format(tree=camvid, **places) for word in words]
    assert run(filled, monkeypatch) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
    assert not places["out"].exists() or not list(places["out"].rglob("*.parquet"))


def test_training_mistakes(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 'run'}"
    words = ["train", *TINY, *domains, "steps=1"]
    assert run([*words, out], monkeypatch) == 0
    assert run([*words, out], monkeypatch) == 2 and "resume=true" in capsys.readouterr().err
    assert run([*words, out, "resume=true", "optimizer.lr=1e-3"], monkeypatch) == 2
    assert "optimizer.lr: 0.0002 -> 0.001" in capsys.readouterr().err
    (tmp_path / "file").write_bytes(b"")
    assert run([*words, f"out={tmp_path}/file/run"], monkeypatch) == 2
    write_shards(
        tiny_samples(2, 5), str(tmp_path / "foreign"), type(TABLE)("other", ("a", "b", "c", "d"), TABLE.palette)
    )
    assert run([*words, f"out={tmp_path}/r2", f"target.uri={tmp_path}/foreign"], monkeypatch) == 2
    assert "class table" in capsys.readouterr().err and not (tmp_path / "r2").exists()


def test_our_own_failure_is_exit_code_1_with_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the disc is full of eels")

    monkeypatch.setattr("distuda.data.inspect.inspect", broken)
    assert run(["inspect", "streets://day"], monkeypatch) == 1
    message = capsys.readouterr().err
    assert "full of eels" in message and "Traceback" not in message
    trace = Path(message.split("trace in ")[1].rstrip(")\n").replace("\n", ""))
    assert "in broken" in trace.read_text()
    trace.unlink()


def test_train_help_lists_every_field(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from distuda import cli
    from distuda.recipe import fields

    monkeypatch.setattr(cli.console, "width", 300)  # made when the module was; the environment comes too late
    assert run(["train", "--help"], monkeypatch) == 0
    text = capsys.readouterr().out
    assert all(f"{path} = {default}" in text for path, _, default, _ in fields())


def test_inspect_draws_a_sheet(
    tmp_path: Path, domains: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    page = tmp_path / "inspect.html"
    words = ["inspect", domains[0].split("=")[1], "--out", str(page), "--sheet", str(sheet)]
    assert run(words, monkeypatch) == 0 and b"<html" in page.read_bytes()
    assert "wall" in capsys.readouterr().out and sheet.read_bytes()[:4] == b"\x89PNG"
    shutil.rmtree(tmp_path)


def test_evaluate_alone_calibrated_and_as_ensemble(
    domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(tmp_path / name) for name in ("minent", "advent")]
    for folder in folders:
        words = ["train", *TINY, *domains, "steps=1", f"method={Path(folder).name}", f"out={folder}"]
        assert run(words, monkeypatch) == 0
    assert run(["evaluate", folders[0]], monkeypatch) == 0
    assert run(["evaluate", folders[0], "--calibrate", "4"], monkeypatch) == 0
    assert run(["evaluate", folders[0], "--ensemble", folders[1]], monkeypatch) == 0
    assert capsys.readouterr().out.count("mIoU") == 3
    rows = [json.loads((tmp_path / "minent" / f"evaluation-{name}.json").read_text()) for name in ("last", "ensemble")]
    assert rows[1]["members"] == folders and rows[0]["entropy"] != rows[1]["entropy"]


def test_a_recipe_is_found_in_a_folder_with_an_equals_sign(tmp_path: Path) -> None:
    """As the copy in a sweep's folder that is called by what it searches."""
    recipe = tmp_path / "lr=1" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text("")
    assert cli._split([str(recipe), "steps=1"]) == (str(recipe), ["steps=1"])
    assert cli._split(["model.weights=none.yaml", "steps=1"]) == (None, ["model.weights=none.yaml", "steps=1"])
