"""Label-free scores: against slow direct sums, over ranks, which way they point, and how recipes ask for them."""

import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from rich.console import Console
from settings import TABLE, tiny_method, tiny_recipe, tiny_samples
from torch import Tensor, nn

from distuda.data.augment import photometry
from distuda.data.batch import Batch
from distuda.data.dataset import open_dataset
from distuda.data.reader import iterate_once
from distuda.data.shards import write_shards
from distuda.draws import fold, uniform
from distuda.engine.evaluate import SourceSide, evaluate
from distuda.engine.inputs import open_data
from distuda.engine.loop import fit, settle
from distuda.engine.run import read_rows
from distuda.engine.scoring import score_run
from distuda.errors import UserError
from distuda.metrics import neighbourhood
from distuda.metrics.consistency import JITTER
from distuda.metrics.label_free import NEED_SOURCE, SCORES, ScoreName, make_scores, score_names
from distuda.metrics.score import Score, Setting
from distuda.models.segmenter import Output
from distuda.report.tables import scores as printed_scores

PRIOR = torch.tensor([0.5, 0.3, 0.15, 0.05])
ALONE = [name for name in SCORES if name != "source_miou"]  # fed with target images


class Colours(nn.Module):
    """Classes by distance to the palette: a network that is right on `tiny_pictures` and minds colour and side."""

    align_corners = False
    gives_heat = False

    def __init__(self, sharpness: float = 20.0) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, image_BCHW: Tensor) -> Output:
        palette = torch.tensor(TABLE.palette) / 255
        distance = (image_BCHW[:, None] - palette[None, :, :, None, None]).square().sum(2)
        tilt = torch.linspace(0, 0.1, image_BCHW.shape[-1])
        return Output(-self.sharpness * torch.cat([distance[:, :1] + tilt, distance[:, 1:]], dim=1))


def predict(image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    with torch.no_grad():
        assert image_BCHW.shape[-2:] == size
        return Colours()(image_BCHW / 255).main


SETTING = Setting(4, predict=predict, frequency_src_C=PRIOR)


def images(count: int = 5) -> list[tuple[Batch, Tensor]]:
    """Images of two sizes with the seeds evaluation gives them, and their logits."""
    random, made = torch.Generator().manual_seed(1), []
    for number in range(count):
        shape = (1, 3, 10, 12) if number % 2 else (1, 3, 7, 9)
        image = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        made.append((Batch(image, None, torch.tensor([number])), predict(image.float(), (shape[2], shape[3]))))
    return made


def fed(names: list[str], pairs: list[tuple[Batch, Tensor]], setting: Setting = SETTING) -> list[Score]:
    made = make_scores(names, setting)
    for batch, logits in pairs:
        for score in made:
            score.update(batch, logits, logits.argmax(1))
    return made


def read(made: list[Score]) -> dict[str, float]:
    return {name: value for score in made for name, value in score.scores().items()}


def scores_of(logits: Tensor, setting: Setting = SETTING) -> dict[str, float]:
    """Of predictions alone, one image; augmentation consistency is left out."""
    batch = Batch(torch.zeros(len(logits), 3, *logits.shape[2:], dtype=torch.uint8), None, torch.arange(len(logits)))
    return read(fed([name for name in ALONE if name != "augmentation_consistency"], [(batch, logits)], setting))


# Against direct sums -------------------------------------------------------------------------------------------------


def test_mean_predictions_equal_sums_over_pixels() -> None:
    pairs = images()
    entropies, shares = [], []
    for _, logits in pairs:
        pixels = logits[0].double().softmax(0).flatten(1).T.tolist()
        entropies.append(np.mean([-sum(p * math.log(p) for p in pixel if p > 0) for pixel in pixels]))
        shares.append(np.mean(pixels, axis=0))
    share, prior = np.mean(shares, axis=0), PRIOR.double().numpy()
    middle = (share + prior) / 2
    jensen = (np.sum(share * np.log2(share / middle)) + np.sum(prior * np.log2(prior / middle))) / 2
    found = read(fed(ALONE[:3], pairs))
    assert found["entropy"] == pytest.approx(-np.mean(entropies) / math.log(4), rel=1e-5)
    diversity = -np.sum(share * np.log(share)) / math.log(4)
    assert found["information_maximisation"] == pytest.approx(diversity + found["entropy"], rel=1e-5)
    assert found["class_prior_divergence"] == pytest.approx(-jensen, rel=1e-4)


def chosen_pixels(pairs: list[tuple[Batch, Tensor]]) -> list[list[float]]:
    """The pixels whose drawn numbers are lowest, one by one, as unit vectors."""
    drawn = []
    for batch, logits in pairs:
        pixels = logits[0].double().softmax(0).flatten(1).T
        places = uniform(batch.seed_B, "soft_neighbourhood_density/place", neighbourhood.PIXELS_PER_IMAGE)[0]
        for k, place in enumerate(places.tolist()):
            number = int(fold(fold(batch.seed_B, "soft_neighbourhood_density") + k, "order"))
            drawn.append(
                (number, (pixels[int(place * len(pixels))] / pixels[int(place * len(pixels))].norm()).tolist())
            )
    return [pixel for _, pixel in sorted(drawn)[: neighbourhood.MAX_PIXELS]]


@pytest.mark.parametrize("most", [4096, 150])
def test_neighbourhood_density_equals_a_loop_over_pixels(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbourhood, "MAX_PIXELS", most)
    monkeypatch.setattr(neighbourhood, "_ROWS", 64)
    pairs = images(3)
    pixels = chosen_pixels(pairs)
    assert len(pixels) == min(most, 300)
    total = 0.0
    for i, mine in enumerate(pixels):
        weights = [math.exp(np.dot(mine, other) / 0.05) for j, other in enumerate(pixels) if j != i]
        total += -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    expected = total / len(pixels) / math.log(len(pixels) - 1)
    assert read(fed(["soft_neighbourhood_density"], pairs))["soft_neighbourhood_density"] == pytest.approx(
        expected, rel=1e-5
    )


def test_augmentation_consistency_equals_sets_of_pixels() -> None:
    pairs = images()
    here: dict[int, set[Any]] = {c: set() for c in range(5)}
    there: dict[int, set[Any]] = {c: set() for c in range(5)}
    for number, (batch, logits) in enumerate(pairs):
        changed = photometry(batch.image_BCHW / 255, batch.seed_B, JITTER, "augmentation_consistency")
        again = predict(255 * torch.flip(changed, [3]), (changed.shape[2], changed.shape[3])).argmax(1)[0]
        for (y, x), c in np.ndenumerate(logits.argmax(1)[0].numpy()):
            here[int(c)].add((number, y, x))
            there[int(again[y, again.shape[1] - 1 - x])].add((number, y, x))
    wide = Setting(5, predict=lambda i, s: nn.functional.pad(predict(i, s), (0, 0, 0, 0, 0, 1), value=-99))
    overlap = [len(here[c] & there[c]) / len(here[c] | there[c]) if here[c] | there[c] else 0 for c in range(5)]
    padded = [(batch, nn.functional.pad(logits, (0, 0, 0, 0, 0, 1), value=-99)) for batch, logits in pairs]
    found = read(fed(["augmentation_consistency"], padded, wide))["augmentation_consistency"]
    assert found == pytest.approx(sum(overlap) / 5) and overlap[4] == 0 and 0.1 < found < 0.8


def test_images_weigh_alike_whatever_their_size_and_batch() -> None:
    pairs = [pair for pair in images(6) if pair[0].image_BCHW.shape[2] == 10]
    joined = Batch(torch.cat([b.image_BCHW for b, _ in pairs]), None, torch.cat([b.seed_B for b, _ in pairs]))
    together = read(fed(ALONE, [(joined, torch.cat([logits for _, logits in pairs]))]))
    assert read(fed(ALONE, pairs)) == pytest.approx(together, rel=1e-5)
    each = [read(fed(["entropy"], [pair]))["entropy"] for pair in images(2)]
    assert read(fed(["entropy"], images(2)))["entropy"] == pytest.approx(np.mean(each), rel=1e-6)


# Ranks ---------------------------------------------------------------------------------------------------------------


def labelled_images() -> list[Batch]:
    """Source images: what `Colours` says of them, shifted, with a hole."""
    made = []
    for batch, logits in images(3):
        batch.label_BHW = logits.argmax(1).roll(2, -1)
        batch.label_BHW[:, :2] = 255
        made.append(batch)
    return made


def whole_row(pick: slice, source_pick: slice) -> dict[str, Any]:
    source = SourceSide(PRIOR, labelled_images()[source_pick], "made up")
    batches = [batch for batch, _ in images(7)][pick]
    return evaluate(Colours(), batches, TABLE, scores=list(SCORES), source=source)  # type: ignore[arg-type]


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    neighbourhood.MAX_PIXELS = 350
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        rows = [whole_row(slice(5 * rank, 5 + 2 * rank), slice(rank, 1 + 2 * rank)),
                whole_row(slice(0, 7 * rank), slice(0, 3 - 3 * rank))]  # fmt: skip
        Path(folder, f"rank{rank}.json").write_text(json.dumps(rows))
    finally:
        torch.distributed.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five and two images, then none and all: two processes see what one sees, to the last bit where order allows."""
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)
    monkeypatch.setattr(neighbourhood, "MAX_PIXELS", 350)
    alone = whole_row(slice(None), slice(None))
    assert alone["num_images"] == 7 and alone["source_miou_on"] == "made up" and set(SCORES) <= set(alone)
    for rank in (0, 1):
        for row in json.loads((tmp_path / f"rank{rank}.json").read_text()):
            assert row.keys() == alone.keys() and row["num_images"] == 7 and row["source_miou_on"] == "made up", rank
            assert {name: row[name] for name in SCORES} == pytest.approx({name: alone[name] for name in SCORES}), rank
            assert row["soft_neighbourhood_density"] == alone["soft_neighbourhood_density"]
            assert row["augmentation_consistency"] == alone["augmentation_consistency"]


def test_kept_pixels_are_bounded_and_do_not_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbourhood, "MAX_PIXELS", 130)
    forwards, backwards = (fed(["soft_neighbourhood_density"], list(pairs))[0] for pairs in (images(), images()[::-1]))
    assert isinstance(forwards, neighbourhood.NeighbourhoodDensity)
    assert isinstance(backwards, neighbourhood.NeighbourhoodDensity)
    assert len(forwards.pixels_NC) == len(forwards.order_N) == 130
    assert torch.equal(forwards.pixels_NC, backwards.pixels_NC)


# Direction -----------------------------------------------------------------------------------------------------------


def test_bounds_and_what_collapse_does() -> None:
    undecided = scores_of(torch.zeros(2, 4, 6, 6))
    assert undecided["entropy"] == pytest.approx(-1)
    assert undecided["information_maximisation"] == pytest.approx(0, abs=1e-6)
    one = torch.zeros(2, 4, 6, 6)
    one[:, 1] = 100
    collapsed = scores_of(one)
    assert collapsed["entropy"] == pytest.approx(0, abs=1e-6), "entropy is fooled"
    assert collapsed["information_maximisation"] == pytest.approx(0, abs=1e-6)
    assert collapsed["soft_neighbourhood_density"] == pytest.approx(1), "density is fooled"
    sure_and_balanced = scores_of(100 * torch.eye(4)[torch.arange(36) % 4].T.reshape(1, 4, 6, 6))
    assert sure_and_balanced["information_maximisation"] == pytest.approx(1)
    for seed in range(5):
        found = scores_of(5 * torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(seed)))
        assert -1 <= found["entropy"] <= 0 <= found["information_maximisation"] <= 1
        assert -1 <= found["class_prior_divergence"] <= 0 <= found["soft_neighbourhood_density"] <= 1


def test_class_prior_divergence_is_best_at_the_prior_and_worst_apart() -> None:
    exact = PRIOR.log().view(1, 4, 1, 1).expand(1, 4, 5, 5)
    assert scores_of(exact)["class_prior_divergence"] == pytest.approx(0, abs=1e-6)
    shares = [0.5, 0.7, 0.9, 0.99]
    falling = [
        scores_of(torch.tensor([s, *[(1 - s) / 3] * 3]).log().view(1, 4, 1, 1))["class_prior_divergence"]
        for s in shares
    ]
    assert falling == sorted(falling, reverse=True)
    apart = Setting(4, frequency_src_C=torch.tensor([0.0, 0, 0, 1]))
    certain = torch.tensor([200.0, 0, 0, 0]).view(1, 4, 1, 1)
    assert scores_of(certain, apart)["class_prior_divergence"] == pytest.approx(-1)
    assert math.isnan(scores_of(certain, Setting(4))["class_prior_divergence"])


def test_density_prefers_clusters_to_a_cloud() -> None:
    classes = torch.arange(400).view(1, 20, 20) % 4
    clustered = nn.functional.one_hot(classes, 4).permute(0, 3, 1, 2) * 10.0
    cloud = 2 * torch.randn(1, 4, 20, 20, generator=torch.Generator().manual_seed(0))
    names = "soft_neighbourhood_density"
    assert scores_of(clustered)[names] > scores_of(cloud)[names] + 0.02
    assert scores_of(clustered)[names] < 0.9


def test_calling_everything_road_is_consistent_but_scores_low() -> None:
    def road(image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.tensor([9.0, 0, 0, 0]).view(1, 4, 1, 1).expand(len(image_BCHW), 4, *size)

    name = "augmentation_consistency"
    collapsed = fed(
        [name], [(b, road(b.image_BCHW, (x.shape[2], x.shape[3]))) for b, x in images()], Setting(4, predict=road)
    )
    assert read(collapsed)[name] == 0.25
    flat = [(batch, predict(batch.image_BCHW.float(), (40, 56))) for batch in plain_images()]
    assert read(fed([name], flat))[name] > 0.5, "blocks of colour are recognised in both views"


def plain_images() -> Iterator[Batch]:
    colours = torch.tensor(TABLE.palette, dtype=torch.uint8)
    for number in range(3):
        blocks = torch.randint(0, 4, (5, 7), generator=torch.Generator().manual_seed(number))
        picture = colours[blocks].repeat_interleave(8, 0).repeat_interleave(8, 1)
        yield Batch(picture.permute(2, 0, 1)[None], None, torch.tensor([number]))


def test_nothing_seen_is_nan_and_left_out_of_the_row() -> None:
    made = make_scores(list(SCORES), SETTING)
    assert all(math.isnan(value) for value in read(made).values()) and set(read(made)) == set(SCORES)
    row = evaluate(Colours(), [], TABLE, scores=list(SCORES), source=SourceSide(PRIOR))  # type: ignore[arg-type]
    assert row == {"num_images": 0}


def test_names_that_share_sums_are_computed_once() -> None:
    assert set(SCORES) == set(get_args(ScoreName)) and set(NEED_SOURCE) <= set(SCORES)
    assert len(make_scores(["entropy", "class_prior_divergence", "information_maximisation"], SETTING)) == 1
    row = evaluate(Colours(), [images(1)[0][0]], TABLE, scores=["entropy"])  # type: ignore[arg-type]
    assert set(row) == {"num_images", "entropy"}


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(domains: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that computes all scores and chooses by one of them."""
    words = ["steps=2", "evaluation.every_steps=1", "evaluation.scores=all", "checkpoint.every_steps=1"]
    words += ["checkpoint.best_by=augmentation_consistency", "evaluation.source_limit=4"]
    return fit(settle(tiny_recipe(*domains, *words, f"out={tmp_path_factory.mktemp('scores') / 'run'}")))


def test_a_run_logs_all_scores_and_keeps_the_best(finished: str) -> None:
    rows = [row for row in read_rows(finished) if row["kind"] == "evaluation"]
    assert len(rows) == 2 and all(set(SCORES) <= set(row) for row in rows)
    assert rows[0]["source_miou_on"].startswith("the first 4 training images of ")
    best = json.loads(Path(finished, "best.json").read_text())
    top = max(rows, key=lambda row: row["augmentation_consistency"])
    assert best["by"] == "augmentation_consistency" and best["score"] == top["augmentation_consistency"]


def test_evaluate_takes_scores_and_prints_them(finished: str, domains: list[str]) -> None:
    last = [row for row in read_rows(finished) if row["kind"] == "evaluation"][-1]
    row = score_run(finished, scores=["all"])
    assert {name: row[name] for name in SCORES} == pytest.approx({name: last[name] for name in SCORES}, abs=1e-5)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(printed_scores(row, {name: value for name, value in row.items() if name != "source_miou"}))
    text = console.export_text()
    assert all(f"{name} (label-free)" in text for name in SCORES) and "4 training images" in text
    few = score_run(finished, scores=["entropy,soft_neighbourhood_density"])
    assert set(few) & set(SCORES) == {"entropy", "soft_neighbourhood_density"}
    with pytest.raises(UserError, match=r"'sorce_miou' is no label-free score \(did you mean 'source_miou'"):
        score_run(finished, scores=["sorce_miou"])


def test_source_miou_is_what_evaluating_the_source_gives(domains: list[str], tmp_path: Path) -> None:
    write_shards(tiny_samples(5, 8), str(tmp_path / "held_out"), TABLE)
    words = [f"evaluation.source_uri={tmp_path / 'held_out'}", "evaluation.scores=source_miou", "steps=1"]
    recipe = tiny_recipe(*domains, *words, "evaluation.source_limit=3", "checkpoint.best_by=source_miou")
    opened = open_data(recipe).source_scores
    assert opened is not None
    side = opened.side()
    assert side.images == f"the first 3 held-out images of {tmp_path / 'held_out'}"
    model = tiny_method(recipe).student
    row = evaluate(model, [], TABLE, scores=["source_miou"], source=side)
    direct = evaluate(model, iterate_once(open_dataset(str(tmp_path / "held_out")), limit=3), TABLE)
    assert row == {"num_images": 0, "source_miou": direct["miou"], "source_miou_on": side.images}
    keys = [[b.keys[0] for b in opened.side(rank=rank, world=2).samples] for rank in (0, 1)]
    assert keys[0] + keys[1] == ["8-0", "8-1", "8-2"] and keys[0] and keys[1]


def test_clips_of_the_source_are_read_as_single_images(domains: list[str]) -> None:
    opened = open_data(tiny_recipe(*domains, "evaluation.scores=all")).source_scores
    assert opened is not None and opened.trained_on.moving
    assert all(batch.before is None and batch.label_BHW is not None for batch in opened.side().samples)
    assert torch.equal(opened.side().frequency_C, torch.tensor(opened.trained_on.class_frequencies()).float())


def test_an_unlabelled_target_of_clips_has_temporal_consistency(domains: list[str], tmp_path: Path) -> None:
    words = ["evaluation.uri=none", "steps=1", "evaluation.scores=[]", "checkpoint.best_by=temporal_consistency"]
    run = fit(settle(tiny_recipe(*domains, *words, f"out={tmp_path / 'run'}")))
    row = read_rows(run)[-1]
    assert set(row) == {"kind", "step", "num_images", "temporal_consistency"} and row["num_images"] == 7
    assert json.loads((tmp_path / "run" / "best.json").read_text())["by"] == "temporal_consistency"


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_the_words_of_a_recipe() -> None:
    assert tiny_recipe().evaluation.scores == ["entropy", "information_maximisation"]
    assert tiny_recipe("evaluation.scores=all").evaluation.scores == list(SCORES)
    assert tiny_recipe("evaluation.scores=[source_miou,entropy]").evaluation.scores == ["entropy", "source_miou"]
    assert tiny_recipe("evaluation.scores=source_miou,entropy").evaluation.scores == ["entropy", "source_miou"]
    assert score_names(["all"]) == list(SCORES) and score_names(["entropy", "entropy"]) == ["entropy"]
    for word, said in (
        ("evaluation.scores=[entropi]", "evaluation.scores.0='entropi' is not valid (did you mean 'entropy'"),
        ("evaluation.scores=3", "evaluation.scores=3 is not valid"),
        ("checkpoint.best_by=source_iou", "did you mean 'source_miou'"),
    ):
        with pytest.raises(UserError) as caught:
            tiny_recipe(word)
        assert said in str(caught.value)


def test_best_must_be_computed(domains: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"best_by='source_miou' is not in evaluation.scores \(entropy, information_max"
    ):
        open_data(tiny_recipe(*domains, "checkpoint.best_by=source_miou"))
    with pytest.raises(UserError, match=r"best_by='information_maximisation' is not in evaluation.scores \(entropy\)"):
        open_data(tiny_recipe(*domains, "evaluation.scores=entropy"))
    with pytest.raises(UserError, match="needs clips"):
        open_data(tiny_recipe(*domains, "checkpoint.best_by=temporal_consistency"))


def test_scores_of_the_source_need_its_labels(domains: list[str], tmp_path: Path) -> None:
    target = domains[1].split("=")[1]
    tags_alone = [*domains, f"source.uri={target}", "method.name=classify"]
    for name in NEED_SOURCE:
        with pytest.raises(UserError, match=f"'{name}' in evaluation.scores looks at the source's labels"):
            open_data(tiny_recipe(*tags_alone, f"evaluation.scores=information_maximisation,{name}"))
    open_data(tiny_recipe(*tags_alone, "evaluation.scores=all"), {"source": {"label"}})  # labels are to come
    with pytest.raises(UserError, match=r"evaluation.source_uri=.* has no labels"):
        open_data(tiny_recipe(*domains, "evaluation.scores=all", f"evaluation.source_uri={target}"))
    other = type(TABLE)("other", (*TABLE.classes[:3], "post"), TABLE.palette)
    write_shards(tiny_samples(2, 9), str(tmp_path / "other"), other)
    with pytest.raises(UserError, match=r"'tiny4'.*evaluation.source_uri has 'other'"):
        open_data(tiny_recipe(*domains, "evaluation.scores=all", f"evaluation.source_uri={tmp_path / 'other'}"))
