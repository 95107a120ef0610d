"""Videos through `predict_files`: label stream and overlay video, whole or not at all, and what damage leaves."""

import json
import zipfile
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from test_export_runtime import COLOURS, save, threshold_model, written
from typer.testing import CliRunner

from distuda.cli import app
from export import inputs, runtime, video
from export.runtime import PredictError, Predictor, predict_files, read_label_meta, read_label_stream

SIZE = (64, 48)
NUM_FRAMES = 12


def make_video(path: Path, codec: str = "MJPG", size: tuple[int, int] = SIZE, frames: int = NUM_FRAMES) -> Path:
    """Bright blocks at random places on dark ground."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 7, size)
    for _ in range(frames):
        writer.write(cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), size, interpolation=cv2.INTER_NEAREST))
    writer.release()
    return path


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    capture, found = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        found.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return found  # type: ignore[return-value]


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(threshold_model(), "cpu")


@pytest.mark.parametrize(("name", "codec"), [("drive.avi", "MJPG"), ("drive.mp4", "mp4v")])
def test_stream_and_overlay_of_a_video(predictor: Predictor, tmp_path: Path, name: str, codec: str) -> None:
    source, out = make_video(tmp_path / name, codec), tmp_path / "out"
    summary = predict_files(predictor, [str(source)], str(out))
    assert (summary.num_images, summary.exit_code) == (NUM_FRAMES, 0)
    assert written(out) == ["drive.labels.zip", "drive.legend.png", "drive.overlay.mp4"]
    images = frames_of(source)
    expected = [predictor.predict(image).class_map for image in images]
    found = list(read_label_stream(str(out / "drive.labels.zip")))
    assert len(found) == NUM_FRAMES and len({label.tobytes() for label in found}) > 1
    assert all(
        label.dtype == np.uint8 and np.array_equal(label, want) for label, want in zip(found, expected, strict=True)
    )
    drawn = frames_of(out / "drive.overlay.mp4")
    capture = cv2.VideoCapture(str(out / "drive.overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 7 and len(drawn) == NUM_FRAMES and drawn[0].shape == images[0].shape
    lut = np.array(COLOURS)
    for shown, image, label in zip(drawn, images, expected, strict=True):
        assert np.abs(shown - (image / 2 + lut[label] / 2)).mean() < 25  # the codec loses some


def test_the_stream_is_plain_zip_and_png(predictor: Predictor, tmp_path: Path) -> None:
    predict_files(predictor, [str(make_video(tmp_path / "a.avi"))], str(tmp_path / "out"), overlay=False)
    assert written(tmp_path / "out") == ["a.labels.zip"]
    with zipfile.ZipFile(tmp_path / "out/a.labels.zip") as stream:
        assert stream.namelist() == [*(f"{i:06d}.png" for i in range(NUM_FRAMES)), "meta.json"]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in stream.infolist())
        first = cv2.imdecode(np.frombuffer(stream.read("000000.png"), np.uint8), cv2.IMREAD_UNCHANGED)
        meta = json.loads(stream.read("meta.json"))
    assert first is not None and first.dtype == np.uint8 and first.shape == (48, 64) and set(np.unique(first)) == {0, 1}
    assert meta == read_label_meta(str(tmp_path / "out/a.labels.zip"))
    assert (meta["fps"], meta["height"], meta["width"], meta["num_frames"]) == (7, 48, 64, NUM_FRAMES)
    assert meta["classes"] == ["dark", "bright"] and meta["palette"] == COLOURS
    assert meta["model"] == predictor.metadata


def test_a_video_that_is_cut_off_keeps_what_was_decoded(predictor: Predictor, tmp_path: Path) -> None:
    whole = make_video(tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    summary = predict_files(predictor, [str(tmp_path / "cut.avi")], str(tmp_path / "out"))
    assert 0 < summary.num_images < NUM_FRAMES - 1 and summary.exit_code == 2
    assert f"only {summary.num_images} of {NUM_FRAMES} frames" in summary.skipped[0][1]
    assert len(list(read_label_stream(str(tmp_path / "out/cut.labels.zip")))) == summary.num_images
    assert len(frames_of(tmp_path / "out/cut.overlay.mp4")) == summary.num_images


def test_no_frame_no_file_and_others_go_on(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/noise.mp4").write_bytes(b"\0" * 300)
    make_video(tmp_path / "in/good.avi")
    save(tmp_path / "in/still.png")
    summary = predict_files(predictor, [str(tmp_path / "in")], str(tmp_path / "out"))
    assert summary.num_images == NUM_FRAMES + 1 and "no frame" in summary.skipped[0][1]
    names = ["class_map/still.png", "good.labels.zip", "good.legend.png", "good.overlay.mp4", "overlay/still.png"]
    assert written(tmp_path / "out") == names


def test_an_interrupted_video_leaves_nothing(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def stop(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, [str(make_video(tmp_path / "a.avi"))], str(tmp_path / "out"), progress=stop)
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr(video, "_ENCODERS", ((".mp4", "none"),))
    with pytest.raises(PredictError, match="no video encoder"):
        predict_files(predictor, [str(tmp_path / "a.avi")], str(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_another_encoder_where_mpeg4_is_missing(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "_ENCODERS", ((".mp4", "none"), (".avi", "MJPG")))
    predict_files(predictor, [str(make_video(tmp_path / "a.avi"))], str(tmp_path / "out"))
    assert written(tmp_path / "out") == ["a.labels.zip", "a.legend.png", "a.overlay.avi"]
    assert len(frames_of(tmp_path / "out/a.overlay.avi")) == NUM_FRAMES


def test_remote_videos_and_folders(predictor: Predictor, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/drives/day/a.avi", make_video(tmp_path / "a.avi").read_bytes())
    predict_files(predictor, ["memory://drives"], "memory://drives-out")
    assert sorted(memory.find("/drives-out")) == [
        f"/drives-out/day/a.{kind}" for kind in ("labels.zip", "legend.png", "overlay.mp4")
    ]
    assert len(list(read_label_stream("memory://drives-out/day/a.labels.zip"))) == NUM_FRAMES


def test_what_is_no_label_stream(tmp_path: Path) -> None:
    with pytest.raises(PredictError, match="cannot read"):
        read_label_meta(str(tmp_path / "missing.zip"))
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(PredictError, match="no label stream"):
        next(read_label_stream(str(tmp_path / "text.zip")))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as stream:
        stream.writestr("meta.json", "{}")
    with pytest.raises(PredictError, match="has format None"):
        read_label_meta(str(tmp_path / "other.zip"))


def test_memory_does_not_grow_with_the_video(predictor: Predictor, tmp_path: Path) -> None:
    """Frames are let go before the next but one is decoded."""
    import gc
    import weakref

    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    most = 0
    with video.video_results(str(tmp_path / "o"), "a", ("x",), np.zeros((1, 3), np.uint8), {}, overlay=True) as add:
        item = inputs.find_inputs([str(make_video(tmp_path / "a.avi", frames=30))], exclude=str(tmp_path / "o"))[0]
        for frame, class_map in runtime._predictions(predictor, item, []):
            alive.append(weakref.ref(frame.image))
            add(frame, class_map)
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == 30 and most <= 2


def test_the_command_says_what_was_skipped_and_frames_gives_single_files(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(threshold_model())
    whole = make_video(tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    words = ["predict", str(tmp_path / "m.onnx"), str(tmp_path / "cut.avi"), str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--no-overlay"])
    assert done.exit_code == 2 and "frames can be decoded" in done.output
    assert written(tmp_path / "out") == ["cut.labels.zip"]
    done = CliRunner().invoke(app, [*words[:3], str(tmp_path / "single"), "--frames", "--no-overlay"])
    assert done.exit_code == 2
    assert written(tmp_path / "single")[0] == "class_map/cut/000000.png"
