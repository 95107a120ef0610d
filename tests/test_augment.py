"""Image and label move together, draws belong to samples, colours stay in range."""

import pytest
import torch

from distuda.data import augment
from distuda.data.augment import GeometryConfig, PhotometryConfig, RareClassFocus, geometry
from distuda.data.batch import Batch
from distuda.draws import uniform

SEEDS = torch.arange(100, 116)
OFF = PhotometryConfig(probability=1, brightness=0, contrast=0, saturation=0, hue=0, blur=0)


def coded_batch(count: int = 16, size: tuple[int, int] = (40, 56), ignored: bool = False) -> Batch:
    """Label ids in blocks of 8, and images whose red is 20 times the id and whose green and blue count pixels."""
    blocks = torch.randint(0, 12, (count, size[0] // 8, size[1] // 8), generator=torch.Generator().manual_seed(0))
    label = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    rows, columns = (torch.arange(n) for n in size)
    image = torch.stack([20 * label, rows[:, None].expand(label.shape), columns.expand(label.shape)], dim=1)
    if ignored:
        label = torch.where(label == 0, 255, label)
    return Batch(image.to(torch.uint8), label, SEEDS[:count].clone())


def test_without_zoom_a_fitting_window_is_only_flipped() -> None:
    batch = coded_batch()
    out = augment.geometry(batch, GeometryConfig(crop=(40, 56)))
    flipped = uniform(batch.seed_B, "flip") < 0.5
    assert 0 < flipped.sum() < 16
    for i in range(16):
        axes = [-1] if flipped[i] else []
        assert torch.equal((out.image_BCHW[i] * 255).round().to(torch.uint8), batch.image_BCHW[i].flip(axes))
        assert torch.equal(out.label_BHW[i], batch.label_BHW[i].flip(axes))
    assert out.image_BCHW.dtype == torch.float32 and out.image_BCHW.max() <= 1


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.5, 2.0), (0.5, 2.0)])
def test_image_and_label_move_together(scale: tuple[float, float]) -> None:
    out = augment.geometry(coded_batch(), GeometryConfig(crop=(32, 32), scale=scale))
    red = out.image_BCHW[:, 0] * 255
    inside = out.label_BHW != 255
    agree = ((red - 20 * out.label_BHW).abs() < 1)[inside].float().mean()
    assert agree > 0.75  # bilinear colours differ at the edges of blocks
    shifted = ((red - 20 * out.label_BHW.roll(3, -1)).abs() < 1)[inside].float().mean()
    assert shifted < agree - 0.1
    assert set(out.label_BHW.unique().tolist()) <= {*range(12), 255}


def test_integer_crop_copies_pixels() -> None:
    """Without zoom a crop is a shift; labels there are those of the nearest source pixel."""
    out = augment.geometry(coded_batch(), GeometryConfig(crop=(32, 32), flip=0))
    rows, columns = out.image_BCHW[:, 1] * 255, out.image_BCHW[:, 2] * 255
    torch.testing.assert_close(rows.diff(dim=1), torch.ones(16, 31, 32), atol=2e-3, rtol=0)
    torch.testing.assert_close(columns.diff(dim=2), torch.ones(16, 32, 31), atol=2e-3, rtol=0)
    at = coded_batch().label_BHW[torch.arange(16)[:, None, None], rows.round().long(), columns.round().long()]
    assert (at == out.label_BHW).float().mean() > 0.99
    assert rows[:, 0, 0].min() < 2 and rows[:, -1, 0].max() > 37  # every place of the window is used


@pytest.mark.parametrize("scale", [(0.5, 1.0), (1.0, 2.0)])
def test_zoom_stays_in_its_range(scale: tuple[float, float]) -> None:
    batch = coded_batch(16, (80, 80))
    batch.seed_B = torch.arange(16) + 5
    out = augment.geometry(batch, GeometryConfig(crop=(40, 40), scale=scale, flip=0))
    step = (out.image_BCHW[:, 1, 20, 20] - out.image_BCHW[:, 1, 19, 20]) * 255  # source pixels a pixel
    assert step.min() > 1 / scale[1] - 0.01 and step.max() < 1 / scale[0] + 0.01
    assert step.max() - step.min() > 0.25


def test_the_region_holds_every_crop() -> None:
    config = GeometryConfig(crop=(33, 47), scale=(0.7, 1.3))
    height, width = augment.region_size(config)
    assert (height, width) == (48, 68)
    assert augment.region_size(GeometryConfig(crop=None)) is None
    image = torch.full((16, 3, height, width), 255, dtype=torch.uint8)
    out = augment.geometry(Batch(image, torch.zeros(16, height, width, dtype=torch.long), SEEDS), config)
    assert (out.label_BHW == 0).all()


def test_what_lies_outside_is_black_and_ignored() -> None:
    image = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    batch = Batch(image, torch.full((1, 16, 16), 3), torch.tensor([1]))
    out = augment.geometry(batch, GeometryConfig(crop=(32, 32), flip=0))
    outside = out.label_BHW == 255
    assert outside.sum() == 32 * 32 - 16 * 16
    assert (out.image_BCHW[:, :, ~outside[0]] > 0.99).all() and (out.label_BHW[~outside] == 3).all()
    corner = out.image_BCHW[0, :, :6, :6]
    assert not corner.any()
    assert torch.equal(out.shown_BHW, ~outside)


def test_what_is_shown_moves_with_the_image_and_is_known_only_where_something_is_not() -> None:
    for crop, scale in (((64, 64), (1.0, 1.0)), (None, (0.5, 1.0)), ((48, 48), (0.7, 1.3)), ((40, 64), (1.0, 1.0))):
        out = augment.geometry(coded_batch(), GeometryConfig(crop=crop, scale=scale))
        assert torch.equal(out.shown_BHW, out.label_BHW != 255) and not out.shown_BHW.all()
    padded = coded_batch()
    padded.shown_BHW = torch.ones_like(padded.label_BHW, dtype=torch.bool)
    padded.shown_BHW[:, :, 50:] = False
    padded.label_BHW[:, :, 50:] = 255
    for crop, scale in (((40, 56), (1.0, 1.0)), ((32, 32), (1.0, 1.0)), ((32, 32), (1.0, 1.5))):
        out = augment.geometry(padded, GeometryConfig(crop=crop, scale=scale))
        assert torch.equal(out.shown_BHW, out.label_BHW != 255) and not out.shown_BHW.all()
    assert augment.geometry(coded_batch(), GeometryConfig(crop=(40, 56))).shown_BHW is None
    assert augment.geometry(coded_batch(), GeometryConfig(crop=(32, 32), scale=(0.8, 1.5))).shown_BHW is None


def test_ignored_stays_ignored() -> None:
    out = augment.geometry(coded_batch(ignored=True), GeometryConfig(crop=(32, 32), scale=(0.9, 1.4)))
    ids = set(out.label_BHW.unique().tolist())
    assert 255 in ids and 0 not in ids and ids <= {*range(1, 12), 255}


def test_unlabelled_batches_have_the_same_crops() -> None:
    labelled = coded_batch()
    bare = Batch(labelled.image_BCHW, None, labelled.seed_B)
    for config in (GeometryConfig(crop=(40, 56)), GeometryConfig(crop=(32, 32), scale=(0.7, 2.0))):
        out = augment.geometry(bare, config)
        assert out.label_BHW is None
        assert torch.equal(out.image_BCHW, augment.geometry(labelled, config).image_BCHW)


def test_draws_do_not_depend_on_the_rest_of_the_batch() -> None:
    config = GeometryConfig(crop=(32, 32), scale=(0.7, 2.0))
    whole = coded_batch()
    parts = whole.split(4)
    assert [len(part.seed_B) for part in parts] == [4] * 4
    crops = augment.geometry(whole, config)
    pieces = [augment.geometry(part, config) for part in parts]
    assert torch.equal(crops.image_BCHW, torch.cat([piece.image_BCHW for piece in pieces]))
    assert torch.equal(crops.label_BHW, torch.cat([piece.label_BHW for piece in pieces]))
    views = augment.photometry(crops.image_BCHW, whole.seed_B, PhotometryConfig())
    alone = augment.photometry(crops.image_BCHW[5:6], whole.seed_B[5:6], PhotometryConfig())
    torch.testing.assert_close(views[5:6], alone, atol=1e-6, rtol=0)


def test_photometry_without_strength_is_the_identity_also_under_autocast() -> None:
    image = torch.rand(4, 3, 20, 24)
    torch.testing.assert_close(augment.photometry(image, SEEDS[:4], OFF), image, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        view = augment.photometry(image, SEEDS[:4], OFF)
    assert view.dtype == torch.float32
    torch.testing.assert_close(view, image, atol=1e-5, rtol=0)


def test_photometry_stays_in_range_and_views_differ_by_name_and_seed() -> None:
    image = torch.rand(16, 3, 20, 24)
    strong = PhotometryConfig(probability=1, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, blur=1)
    view = augment.photometry(image, SEEDS, strong)
    assert view.min() >= 0 and view.max() <= 1
    assert not torch.allclose(view, image, atol=0.05)
    assert not torch.allclose(view, augment.photometry(image, SEEDS, strong, "other"), atol=0.05)
    same = augment.photometry(image[:1].expand(16, -1, -1, -1), SEEDS, strong)
    assert same.flatten(1).std(dim=0).mean() > 0.02


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_jitter_changes_what_it_says(name: str) -> None:
    image = 0.4 + 0.2 * torch.rand(8, 3, 20, 24)  # so narrow that no turned colour is clipped at 0 or 1
    luma = torch.tensor([0.299, 0.587, 0.114])
    view = augment.photometry(image, SEEDS[:8], OFF.model_copy(update={name: 0.25}))
    grey, grey_before = (torch.einsum("c,bchw->bhw", luma, x) for x in (view, image))
    chroma, chroma_before = (x - torch.einsum("c,bchw->bhw", luma, x)[:, None] for x in (view, image))
    assert (view - image).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    if name == "brightness":
        factor = view / image
        torch.testing.assert_close(factor, factor[:, :1, :1, :1].expand_as(factor), atol=1e-4, rtol=0)
        assert (factor - 1).abs().max() <= 0.2501
    elif name == "contrast":
        torch.testing.assert_close(grey.mean((1, 2)), grey_before.mean((1, 2)), atol=1e-4, rtol=0)
        assert (grey.std((1, 2)) / grey_before.std((1, 2)) - 1).abs().max() > 0.05
    else:
        torch.testing.assert_close(grey, grey_before, atol=1e-4, rtol=0)
        if name == "saturation":
            factor = chroma.std((1, 2, 3)) / chroma_before.std((1, 2, 3))
            torch.testing.assert_close(chroma, factor[:, None, None, None] * chroma_before, atol=1e-4, rtol=0)
            assert 0.05 < (factor - 1).abs().max() <= 0.2501
        else:
            plane = torch.tensor([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # I and Q of YIQ
            now, then = (torch.einsum("kc,bchw->bkhw", plane, x) for x in (view, image))
            torch.testing.assert_close(now.norm(dim=1), then.norm(dim=1), atol=1e-4, rtol=0)
            cosine = torch.cosine_similarity(now.flatten(1), then.flatten(1))  # of the angle of all its pixels
            assert -1e-4 < cosine.min() < 0.9  # a quarter of a turn at most


def test_jitter_and_blur_come_as_often_as_asked() -> None:
    seeds = torch.arange(1000)
    image = torch.rand(1, 3, 6, 6).expand(1000, -1, -1, -1)
    jitter = PhotometryConfig(probability=0.8, blur=0)
    changed = (augment.photometry(image, seeds, jitter) - image).abs().amax((1, 2, 3)) > 1e-4
    assert changed.float().mean().item() == pytest.approx(0.8, abs=0.05)
    blurred = (augment.photometry(image, seeds, OFF.model_copy(update={"blur": 0.5})) - image).abs().amax(
        (1, 2, 3)
    ) > 1e-4
    assert 0.35 < blurred.float().mean() < 0.55  # the smallest sigmas leave no trace


def test_grey_and_wide_blur_come_when_asked() -> None:
    image = torch.rand(64, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    grey = augment.photometry(image, torch.arange(64), OFF.model_copy(update={"grey": 0.5}))
    spread = (grey.amax(1) - grey.amin(1)).flatten(1).amax(1)
    assert 0.3 < (spread < 1e-4).float().mean() < 0.7
    wide = OFF.model_copy(update={"blur": 1.0, "blur_sigma": (5.0, 9.0)})
    noise = torch.rand(8, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    inner = augment.photometry(noise, torch.arange(8), wide)[..., 32:-32, 32:-32]
    assert (
        inner.var(dim=(2, 3)).max() < 0.02 * noise.var()
    )  # a sigma of 5 leaves 1 / (4 pi 25), one of 1.15 a twentieth
    with pytest.raises(ValueError, match="smaller sigma must come first"):
        PhotometryConfig(blur_sigma=(2, 1))


def test_blur_preserves_the_mean_and_spreads_by_sigma() -> None:
    image = torch.zeros(2, 3, 21, 21)
    image[:, :, 10, 10] = 1
    blurred = augment.gaussian_blur(image, torch.tensor([0.5, 1.15]))
    torch.testing.assert_close(blurred.sum((2, 3)), torch.ones(2, 3))
    offsets = torch.arange(21.0) - 10
    variance = (blurred[:, 0].sum(1) * offsets**2).sum(1)
    assert variance[1].item() == pytest.approx(1.15**2, rel=0.01)
    flat = torch.full((2, 3, 9, 9), 0.7)
    torch.testing.assert_close(augment.gaussian_blur(flat, torch.tensor([0.5, 1.15])), flat)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.7])
def test_block_mask_hides_its_share_in_whole_blocks(ratio: float) -> None:
    kept = augment.block_mask(torch.arange(64), (36, 52), 8, ratio)
    assert kept.shape == (64, 1, 36, 52) and set(kept.unique().tolist()) <= {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(1 - ratio, abs=0.03)
    whole = kept[..., :32, :48].reshape(64, 4, 8, 6, 8)
    assert torch.equal(whole.amax((2, 4)), whole.amin((2, 4)))


def chosen_classes(label: torch.Tensor, mask: torch.Tensor) -> set[int]:
    return {c for c in label.unique().tolist() if mask[label == c].any()}


@pytest.mark.parametrize("present", [[0], [0, 1], [0, 1, 2], [2, 3, 255], [0, 1, 2, 3, 255]])
def test_classmix_takes_half_of_the_classes_whole(present: list[int]) -> None:
    label = torch.tensor(present).repeat(12)[None, None].expand(40, 5, -1)
    mask = augment.classmix_mask(label, torch.arange(40), 4)
    counts: dict[int, int] = {}
    for one, pasted in zip(label, mask, strict=True):
        taken = chosen_classes(one, pasted)
        assert len(taken) == (len(present) + len(present) % 2) // 2
        assert all(pasted[one == c].all() for c in taken)
        counts |= {c: counts.get(c, 0) + 1 for c in taken}
    assert set(counts) == set(present)  # over many draws every class has its turn, the ignore value too


def test_classmix_masks_are_the_samples_own() -> None:
    label = torch.randint(0, 4, (6, 8, 8), generator=torch.Generator().manual_seed(1))
    mask = augment.classmix_mask(label, SEEDS[:6], 4)
    assert torch.equal(mask[2:3], augment.classmix_mask(label[2:3], SEEDS[2:3], 4))


def rare_corner(*specks: int) -> Batch:
    """64 images whose corner of 24 x 32 is class 2 (a random crop in seven shows it well), and ten pixels of others."""
    label = torch.zeros(64, 60, 80, dtype=torch.int64)
    label[:, :24, :32] = 2
    for row, speck in enumerate(specks):
        label[:, 50 + row, 60:70] = speck
    return Batch(torch.zeros(64, 3, 60, 80, dtype=torch.uint8), label, torch.arange(64))


def test_rare_class_crops_show_the_class() -> None:
    batch, config = rare_corner(), GeometryConfig(crop=(24, 32))
    rare = RareClassFocus(torch.tensor([0.0, 0.0, 1.0]), min_pixels=250, crop_pixels=250)
    shown = [(geometry(batch, config, focus).label_BHW == 2).sum(dim=(1, 2)) > 250 for focus in (None, rare)]
    assert shown[0].float().mean() < 0.35 < 0.6 < shown[1].float().mean()
    again = geometry(batch, config, rare).label_BHW
    assert torch.equal(again, geometry(batch, config, rare).label_BHW)
    common = RareClassFocus(torch.tensor([1.0, 0.0, 0.0]), min_pixels=250, crop_pixels=250)
    assert geometry(batch, config, common).label_BHW.shape == (64, 24, 32)


def test_specks_of_rarer_classes_are_not_what_an_image_was_drawn_for() -> None:
    config, even = GeometryConfig(crop=(24, 32)), torch.tensor([0.0, 0.0, 0.2, 0.2, 0.2, 0.2, 0.2])
    looked_at = [
        geometry(batch, config, RareClassFocus(even, 250, 250)) for batch in (rare_corner(), rare_corner(3, 4, 5, 6))
    ]
    shown = [((crop.label_BHW == 2).sum(dim=(1, 2)) > 250).float().mean() for crop in looked_at]
    assert shown[1] == shown[0] > 0.6


@pytest.mark.parametrize("halved", [False, True])
def test_a_class_that_crops_could_show_is_not_what_an_image_was_drawn_for(halved: bool) -> None:
    """Class 3 has fewer pixels than the sampler asks of an image and more than a crop must show."""
    batch, config = rare_corner(), GeometryConfig(crop=(24, 32))
    assert batch.label_BHW is not None
    batch.label_BHW[:, 36:, 52:] = 3  # 672 pixels, class 2 has 768 in the other corner
    batch.stored_B = torch.full((64,), 4 * 60 * 80) if halved else None
    times = 4 if halved else 1  # of images that were four times as large when the sampler counted
    seen = []
    for weight in ([0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 100.0]):
        crop = geometry(batch, config, RareClassFocus(torch.tensor(weight), 700 * times, crop_pixels=250))
        seen.append(crop.label_BHW)
    assert torch.equal(*seen) and (seen[0] == 2).sum(dim=(1, 2)).gt(250).float().mean() > 0.6
    held = geometry(batch, config, RareClassFocus(torch.tensor(weight), 600 * times, crop_pixels=250)).label_BHW
    shares = [(label == 3).sum(dim=(1, 2)).gt(250).float().mean() for label in (seen[0], held)]
    assert shares[0] < 0.1 < 0.4 < shares[1]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_focused_crops_are_copied_and_not_blurred(flip: float) -> None:
    noise = torch.randint(0, 256, (16, 3, 41, 58), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    label = torch.arange(41 * 58).view(1, 41, 58).expand(16, -1, -1) % 251  # says where a pixel is from
    focus = RareClassFocus(torch.ones(251), min_pixels=10**6, crop_pixels=10**6)
    crop = geometry(Batch(noise, label, torch.arange(16)), GeometryConfig(crop=(20, 32), flip=flip), focus)
    assert (crop.image_BCHW * 255 - (crop.image_BCHW * 255).round()).abs().max() < 0.05
    places = set()
    for image, one, whole in zip(crop.image_BCHW, crop.label_BHW, noise, strict=True):
        windows = whole.unfold(1, 20, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        cut = (image * 255).round().byte()
        [place] = (
            ((windows if not flip else windows.flip(-1)) == cut).flatten(1).all(dim=1).nonzero().flatten().tolist()
        )
        row, column = divmod(place, 58 - 32 + 1)
        assert one[0, -1 if flip else 0] == (row * 58 + column) % 251
        places.add(place)
    assert len(places) > 10
