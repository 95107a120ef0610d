"""Rendered streets: determinism, splits, URIs, samples, and flow that is exact."""

import itertools

import cv2
import numpy as np
import pytest

from distuda.data.streets import STYLES, Frame, Id, Spec, parse_uri, render, render_clip, samples
from distuda.data.streets.mesh import Layer, Mesh
from distuda.data.streets.paint import flow, paint_scene, project
from distuda.data.streets.scene import Scene, lay_out
from distuda.errors import UserError

SIZE = (96, 160)
THINGS = (Id.CAR, Id.PERSON, Id.CYCLIST)


def _warp(picture: np.ndarray, frame: Frame, interpolation: int) -> np.ndarray:
    """The previous picture brought to the frame by its flow."""
    height, width = frame.label.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(picture, x + frame.flow[..., 0], y + frame.flow[..., 1], interpolation)


@pytest.fixture(scope="module")
def clip() -> list[Frame]:
    return render_clip("day", seed=3, index=5, num_frames=4, size=SIZE)


@pytest.mark.parametrize("style", STYLES)
def test_still_has_the_promised_types_and_is_a_pure_function(style: str) -> None:
    first, again, other = (render(style, seed=1, index=i, size=SIZE) for i in (4, 4, 5))
    assert first.image.shape == (*SIZE, 3) and first.image.dtype == np.uint8
    assert first.label.shape == SIZE and first.label.dtype == np.uint8 and first.label.max() <= Id.CYCLIST
    assert first.instance.dtype == np.uint16 and first.flow.shape == (*SIZE, 2)
    assert not first.flow.any() and not first.flow_valid.any()
    for name in ("image", "label", "instance"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert not np.array_equal(first.image, render(style, seed=2, index=4, size=SIZE).image)


def test_every_class_occurs_and_instances_are_the_things() -> None:
    frames = [render(style, seed=0, index=i, size=SIZE) for style in STYLES for i in range(8)]
    seen = np.unique(np.concatenate([np.unique(f.label) for f in frames]))
    assert seen.tolist() == list(range(11))
    for frame in frames:
        assert np.array_equal(frame.instance > 0, np.isin(frame.label, THINGS))
        for instance in np.unique(frame.instance[frame.instance > 0]):
            assert len(np.unique(frame.label[frame.instance == instance])) == 1


def test_the_layout_is_a_street() -> None:
    for style in STYLES:
        labels = np.stack([render(style, seed=0, index=i, size=SIZE).label for i in range(6)])
        assert (labels[:, -8:, 60:100] == Id.ROAD).mean() > 0.6
        assert (labels[:, :8] == Id.ROAD).mean() == 0
        assert (labels[:, -8:] == Id.SKY).mean() == 0
        assert 0.15 < (labels == Id.ROAD).mean() < 0.55


def test_domains_differ_in_light_and_colour() -> None:
    pictures = {s: np.stack([render(s, seed=0, index=i, size=SIZE).image for i in range(6)]) for s in STYLES}
    means = {s: p.mean() for s, p in pictures.items()}
    chroma = {s: (p.max(axis=-1).astype(float) - p.min(axis=-1)).mean() for s, p in pictures.items()}
    assert max(means["night"], means["dusk"]) < 0.85 * means["day"]
    assert chroma["fog"] < 0.75 * chroma["day"]


def test_flow_brings_the_previous_frame_here(clip: list[Frame]) -> None:
    for before, now in itertools.pairwise(clip):
        valid = now.flow_valid
        assert valid.mean() > 0.75
        assert (_warp(before.label, now, cv2.INTER_NEAREST) == now.label)[valid].mean() > 0.99
        assert (_warp(before.instance, now, cv2.INTER_NEAREST) == now.instance)[valid].mean() > 0.99
        smooth = [cv2.GaussianBlur(f.image, (0, 0), 1.2).astype(np.float32) for f in (before, now)]
        ground = valid & (now.label != Id.SKY)
        still = np.abs(smooth[0] - smooth[1])[ground].mean()
        warped = np.abs(_warp(smooth[0], now, cv2.INTER_LINEAR) - smooth[1])[ground].mean()
        assert warped < 0.5 * still


def test_road_flow_equals_the_formula_of_the_ground_plane() -> None:
    scene = lay_out(STYLES["day"], np.random.default_rng(8), 2)
    before, now = paint_scene(scene, 0, SIZE), paint_scene(scene, 1, SIZE)
    moved, _ = flow(now, before, scene, SIZE)
    camera, (height, width) = scene.camera, SIZE
    rows, columns = np.nonzero(now.surface == 1)
    focal, cx, cy = camera.focal * width, camera.centre_x * width, camera.centre_y * height
    depth = focal * camera.y / (rows - cy)
    shrink = depth / (depth + scene.speed) - 1  # the point was farther away by the distance driven
    expected = np.stack([(columns - cx) * shrink, (rows - cy) * shrink], axis=1)
    assert len(rows) > 1000
    assert np.allclose(moved[rows, columns], expected, atol=2e-2)


def test_a_moving_plate_and_a_swinging_one_have_the_known_flow() -> None:
    scene = lay_out(STYLES["day"], np.random.default_rng(0), 2)
    mesh = Mesh()
    mesh.group(Layer.OBJECT, 0, 10, velocity=(0.5, 0.25, 0.0))
    mesh.face([(-1, 1, 10), (1, 1, 10), (1, 2, 10), (-1, 2, 10)], (9, 9, 9), Id.CAR)
    mesh.group(Layer.OBJECT, 0, 9)
    mesh.face([(3, 1, 9), (4, 1, 9), (4, 2, 9), (3, 2, 9)], (9, 9, 9), Id.PERSON)
    mesh.swing((3.5, 2.0), 0.2, 0.0, np.pi / 2)
    plain = Scene(**{**vars(scene), "mesh": mesh, "speed": 0.0})
    before, now = paint_scene(plain, 0, SIZE), paint_scene(plain, 1, SIZE)
    moved, valid = flow(now, before, plain, SIZE)
    scale = scene.camera.focal * SIZE[1]
    plate, swung = now.surface == 1, now.surface == 2
    assert plate.sum() > 100 and np.allclose(moved[plate], (-0.5 * scale / 10, 0.25 * scale / 10), atol=1e-3)
    assert valid[plate].mean() > 0.8 and not moved[now.surface == 0].any()
    pivot = project(np.array([3.5 - scene.camera.x, 2.0 - scene.camera.y, 9.0]), scene.camera, SIZE)
    rows, columns = np.nonzero(swung)
    offset = np.stack([columns - pivot[0], rows - pivot[1]], axis=1)
    c, s = np.cos(0.2), np.sin(0.2)  # image rows grow downwards, so undoing the swing turns by +0.2 here
    turned = offset @ np.array([[c, s], [-s, c]])
    assert len(rows) > 20 and np.allclose(moved[rows, columns], turned - offset, atol=1e-2)


def test_instance_ids_stay_over_a_clip(clip: list[Frame]) -> None:
    common = set(np.unique(clip[0].instance)) & set(np.unique(clip[-1].instance)) - {0}
    assert common
    for i in common:
        assert len({int(f.label[f.instance == i][0]) for f in clip if (f.instance == i).any()}) == 1


def test_no_surface_is_degenerate() -> None:
    mesh = lay_out(STYLES["dusk"], np.random.default_rng(2)).mesh
    corners = mesh.rest[np.array(mesh.anchors[1:])]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    assert (area > 1e-6).all()


def test_uris() -> None:
    assert parse_uri("streets://day") == Spec(style="day", split="train", num=400, seed=0, size=(192, 320), frames=1)
    given = parse_uri("streets://fog/val?num=7&seed=3&size=64x96&frames=5")
    assert given == Spec(style="fog", split="val", num=7, seed=3, size=(64, 96), frames=5)
    assert parse_uri("streets://night/val").num == 100


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("streets://dsk", "did you mean 'dusk'"),
        ("streets://day/vla", "did you mean 'val'"),
        ("streets://day?sed=3", "did you mean 'seed'"),
        ("streets://day?num=0", "num='0'"),
        ("streets://day?num=-4", "num='-4'"),
        ("streets://day?size=192", "HEIGHTxWIDTH"),
        ("streets://day?size=8x9", "from 32"),
        ("s3://bucket/day", "not a street URI"),
    ],
)
def test_bad_uris_are_refused_with_the_remedy(uri: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_uri(uri)


def test_samples_decode_to_what_was_rendered() -> None:
    spec = Spec(style="dusk", num=2, seed=4, size=SIZE)
    rows = list(samples(spec))
    assert [r.key for r in rows] == ["dusk-train-s4-000000", "dusk-train-s4-000001"]
    frame = render("dusk", seed=4, index=0, size=SIZE)
    row = rows[0]
    assert row.label and row.instance and (row.height, row.width) == SIZE and row.clip is None
    label = cv2.imdecode(np.frombuffer(row.label, np.uint8), cv2.IMREAD_UNCHANGED)
    instance = cv2.imdecode(np.frombuffer(row.instance, np.uint8), cv2.IMREAD_UNCHANGED)
    image = cv2.imdecode(np.frombuffer(row.image, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(label, frame.label) and np.array_equal(instance, frame.instance)
    assert instance.dtype == np.uint16 and np.abs(image.astype(int) - frame.image).mean() < 3


def test_clips_and_splits() -> None:
    rows = list(samples(Spec(style="fog", num=2, size=(48, 80), frames=3)))
    assert [(r.clip, r.frame) for r in rows] == [(f"fog-train-s0-00000{i}", t) for i in range(2) for t in range(3)]
    assert len({r.key for r in rows}) == 6
    train = {r.label for r in samples(Spec(style="day", num=6, size=(48, 80)))}
    val = {r.label for r in samples(Spec(style="day", split="val", num=6, size=(48, 80)))}
    assert len(train) == len(val) == 6 and not train & val


def test_large_pictures_with_much_sky_are_rendered() -> None:
    frame = render("day", seed=0, index=0, size=(480, 800))
    assert (frame.label == Id.SKY).sum() > 2**15
