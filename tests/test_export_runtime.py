"""The runtime alone: a graph made by hand, whose answers are known, in place of a trained network."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import fsspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from export.inputs import decode, find_inputs
from export.runtime import FORMAT, PredictError, Predictor, predict_files

ROOT = Path(__file__).parent.parent
COLOURS = [[10, 20, 30], [250, 0, 0]]


def threshold_model(metadata: dict[str, str] | None = None) -> bytes:
    """Class 1 where red exceeds 127; confidence is green / 255."""
    dims = ["batch", "height", "width"]
    channel = [
        helper.make_node("Gather", ["image", "zero"], ["red"], axis=3),
        helper.make_node("Gather", ["image", "one"], ["green"], axis=3),
        helper.make_node("Greater", ["red", "half"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["class_map"], to=TensorProto.UINT8),
        helper.make_node("Cast", ["green"], ["green_f"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["green_f", "full"], ["confidence"]),
    ]
    constants = [
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("one", TensorProto.INT64, [], [1]),
        helper.make_tensor("half", TensorProto.UINT8, [], [127]),
        helper.make_tensor("full", TensorProto.FLOAT, [], [255.0]),
    ]
    outputs = [
        helper.make_tensor_value_info("class_map", TensorProto.UINT8, dims),
        helper.make_tensor_value_info("confidence", TensorProto.FLOAT, dims),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [*dims, 3])
    graph = helper.make_graph(channel, "threshold", [image], outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    described = {"format": FORMAT, "classes": '["dark", "bright"]', "palette": json.dumps(COLOURS), "size": "null"}
    onnx.helper.set_model_props(proto, described if metadata is None else metadata)
    return bytes(proto.SerializeToString())


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(threshold_model())
    return str(path)


def picture(height: int = 40, width: int = 50) -> NDArray[np.uint8]:
    """Left half dark, right half bright."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, width // 2 :] = (200, 51, 0)
    return image


def save(path: Path, image: NDArray[np.uint8] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if image is None else image).save(path)
    return path


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_runs_without_torch_ray_and_distuda(model: str, tmp_path: Path) -> None:
    save(tmp_path / "frames" / "a.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'distuda'): sys.modules[name] = None\n"
        "from export.runtime import predict_files\n"
        f"model, frames, out = {model!r}, {str(tmp_path / 'frames')!r}, {str(tmp_path / 'out')!r}\n"
        "summary = predict_files(model, [frames], out, provider='cpu')\n"
        "assert summary.num_images == 1, summary\n"
        "heavy = {'torch', 'ray', 'distuda', 'onnx', 'pyarrow', 'pydantic'}\n"
        "print(sorted(name for name, module in sys.modules.items() if module and name.split('.')[0] in heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert written(tmp_path / "out") == ["class_map/a.png", "overlay/a.png"]


def test_predicts_images_and_batches(model: str) -> None:
    predictor = Predictor(model, "cpu")
    assert predictor.provider == "cpu" and predictor.classes == ("dark", "bright")
    one = predictor.predict(picture())
    assert one.class_map.shape == (40, 50) and one.class_map[0].tolist() == [0] * 25 + [1] * 25
    assert one.confidence[0, -1] == pytest.approx(0.2)
    many = predictor.predict(np.stack([picture(), picture()[:, ::-1]]))
    assert many.class_map.shape == (2, 40, 50) and many.class_map[1, 0].tolist() == [1] * 25 + [0] * 25


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((3, 8, 8), np.uint8),
              np.zeros((0, 4, 3), np.uint8)]
)  # fmt: skip
def test_refuses_what_is_no_image(model: str, image: NDArray[np.uint8]) -> None:
    with pytest.raises(PredictError, match="expected uint8"):
        Predictor(model, "cpu").predict(image)


def test_auto_takes_a_provider_that_works_and_names_are_checked(model: str) -> None:
    predictor = Predictor(model)
    assert predictor.provider in ("cpu", "cuda")
    with pytest.raises(PredictError, match=r"'gpu'.*auto, cpu, cuda"):
        Predictor(model, "gpu")  # type: ignore[arg-type]
    if predictor.provider == "cpu":
        for name in ("cuda", "tensorrt"):
            with pytest.raises(PredictError, match=rf"{name!r} does not work.*choose provider 'cpu'"):
                Predictor(model, name)  # type: ignore[arg-type]


def test_bad_model_files(tmp_path: Path) -> None:
    with pytest.raises(PredictError, match="nowhere"):
        Predictor(str(tmp_path / "nowhere.onnx"))
    (tmp_path / "cut.onnx").write_bytes(threshold_model()[:100])
    with pytest.raises(PredictError, match=r"cannot load .*cut.onnx"):
        Predictor(str(tmp_path / "cut.onnx"))
    with pytest.raises(PredictError, match=r"format None.*distuda export"):
        Predictor(threshold_model(metadata={}), "cpu")


def test_folder_keeps_its_structure_and_names_stay_apart(model: str, tmp_path: Path) -> None:
    frames, out = tmp_path / "frames", tmp_path / "out"
    for name in ("b/one.jpg", "b/two.png", "b/two.bmp", "a c;d.png"):
        save(frames / name)
    (frames / "notes.txt").write_text("not listed")
    steps: list[tuple[int, int | None, str]] = []
    summary = predict_files(model, [str(frames)], str(out), progress=lambda *step: steps.append(step))
    assert summary.num_images == 4 and summary.exit_code == 0
    assert written(out / "class_map") == ["a_c_d.png", "b/one.png", "b/two-2.png", "b/two.png"]
    assert written(out / "overlay") == written(out / "class_map")
    assert [step[:2] for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_class_map_keeps_ids_and_overlay_blends(model: str, tmp_path: Path) -> None:
    predict_files(model, [str(save(tmp_path / "x.png"))], str(tmp_path / "out"))
    class_map = Image.open(tmp_path / "out/class_map/x.png")
    assert class_map.mode == "P"
    assert np.asarray(class_map)[0].tolist() == [0] * 25 + [1] * 25
    assert class_map.convert("RGB").getpixel((49, 0)) == (250, 0, 0)
    overlay = np.asarray(Image.open(tmp_path / "out/overlay/x.png"))
    assert overlay.shape[1] == 50 and overlay.shape[0] > 40  # the legend is below
    assert overlay[0, 0].tolist() == [5, 10, 15]  # half black, half the colour of `dark`
    assert overlay[0, 24].tolist() == [10, 20, 30]  # the border to `bright`
    assert (overlay[40:] != 255).any()


def test_unreadable_images_are_skipped_and_counted(model: str, tmp_path: Path) -> None:
    good = save(tmp_path / "in" / "good.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    (tmp_path / "in" / "cut.jpg").write_bytes(good.read_bytes()[:1500])
    (tmp_path / "in" / "words.png").write_text("hello")
    (tmp_path / "in" / "noise.mp4").write_bytes(b"\0" * 300)
    summary = predict_files(model, [str(tmp_path / "in")], str(tmp_path / "out"))
    assert summary.num_images == 1 and summary.exit_code == 2
    reasons = {Path(source).name: reason for source, reason in summary.skipped}
    assert set(reasons) == {"cut.jpg", "words.png", "noise.mp4"}
    assert "truncated" in reasons["cut.jpg"] and "not an image" in reasons["words.png"]
    assert "no frame" in reasons["noise.mp4"]
    assert "1 images" in str(summary) and "3 skipped" in str(summary)


def test_a_folder_that_cannot_be_written_is_no_skipped_image(model: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(PredictError, match="cannot write"):
        predict_files(model, [str(save(tmp_path / "x.png"))], str(tmp_path / "out"))


def test_globs_uris_and_a_second_run(model: str, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/set/a.png", save(tmp_path / "a.png").read_bytes())
    memory.pipe_file("/bucket/set/b.png", (tmp_path / "a.png").read_bytes())
    for _ in range(2):  # results lie inside the inputs and are not read as such
        assert predict_files(model, ["memory://bucket/set"], "memory://bucket/set/out").num_images == 2
    assert sorted(memory.find("/bucket/set/out/class_map")) == [
        "/bucket/set/out/class_map/a.png",
        "/bucket/set/out/class_map/b.png",
    ]
    assert [item.name for item in find_inputs(["memory://bucket/s*/*.png"], exclude="/nowhere")] == ["set/a", "set/b"]
    twice = find_inputs([str(tmp_path / "a.png"), str(tmp_path / "*.png")], exclude=str(tmp_path / "out"))
    assert [item.name for item in twice] == ["a"]


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "in" / "..hidden" / "...png.png")
    save(tmp_path / "in" / f"{'ä' * 120}.png")
    names = [item.name for item in find_inputs([str(tmp_path / "in")], exclude=str(tmp_path / "out"))]
    for name in names:
        assert all(part and not part.startswith(".") and len(part.encode()) <= 200 for part in name.split("/")), name
    assert len(names) == 2


def test_nothing_to_predict(model: str, tmp_path: Path) -> None:
    with pytest.raises(PredictError, match=r"nothing at .*missing"):
        predict_files(model, [str(tmp_path / "missing")], str(tmp_path / "out"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(PredictError, match="no image or video"):
        predict_files(model, [str(tmp_path / "texts")], str(tmp_path / "out"))


def test_video_frames_in_order(model: str, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for frame in (np.full((48, 64, 3), (0, 0, 255), np.uint8), np.full((48, 64, 3), (255, 0, 0), np.uint8)):
        writer.write(frame)  # OpenCV writes BGR: first red, then blue
    writer.release()
    totals: list[int | None] = []
    summary = predict_files(
        model, [str(tmp_path / "drive.avi")], str(tmp_path / "out"), overlay=False, frames=True,
        progress=lambda done, total, name: totals.append(total),
    )  # fmt: skip
    assert summary.num_images == 2 and totals == [None, None]
    assert written(tmp_path / "out") == ["class_map/drive/000000.png", "class_map/drive/000001.png"]
    ids = [np.unique(Image.open(tmp_path / f"out/class_map/drive/{i:06d}.png")).tolist() for i in (0, 1)]
    assert ids == [[1], [0]]


def test_decode_of_unusual_images(tmp_path: Path) -> None:
    deep = np.array([[0, 256 * 100], [256 * 200, 65535]], np.uint16)
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert decode((tmp_path / "deep.png").read_bytes())[..., 0].tolist() == [[0, 100], [200, 255]]
    Image.fromarray(np.full((2, 2, 4), (9, 8, 7, 0), np.uint8)).save(tmp_path / "alpha.png")
    assert decode((tmp_path / "alpha.png").read_bytes())[0, 0].tolist() == [9, 8, 7]
