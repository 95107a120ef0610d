"""Video self-training: what agrees over time is learnt, gradients come from now alone, and all its phases run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from settings import TABLE, TINY, tiny_batch, tiny_method, tiny_recipe, tiny_samples

from distuda import losses
from distuda.data.augment import geometry
from distuda.data.batch import Batch
from distuda.data.columns import COLUMNS
from distuda.data.dataset import open_dataset
from distuda.data.shards import write_shards
from distuda.engine.inputs import open_data
from distuda.engine.run import open_run, read_rows
from distuda.errors import UserError
from distuda.methods.method import View
from distuda.methods.video_self_training import VideoSelfTraining, agrees, overlap
from distuda.models.segmenter import Output, Segmenter
from distuda.phases import train_phases
from distuda.plan import load_phases


def logits(*rows: list[int]) -> torch.Tensor:
    """Sure logits (1, 4, H, W) of a class map."""
    return 20 * torch.nn.functional.one_hot(torch.tensor(rows), 4).permute(2, 0, 1)[None].float()


RIGHT = torch.tensor([-1.0, 0.0])[None, :, None, None].expand(1, 2, 2, 4)
"""Everything has moved a pixel to the right."""
NOW, BEFORE = ([0, 1, 2, 3], [0, 0, 3, 3]), ([1, 2, 2, 0], [0, 3, 0, 0])
AGREES = [[0, 1, 1, 0], [0, 1, 1, 0]]  # of the first column nothing is known


def test_agreement_is_with_the_place_that_flow_leads_to() -> None:
    for measure in (agrees, overlap):
        made = measure(logits(*NOW), logits(*BEFORE), RIGHT)
        torch.testing.assert_close(made[0, :, 1:], torch.tensor(AGREES)[:, 1:].float(), atol=1e-5, rtol=0)
    still = torch.zeros(1, 2, 1, 1)
    one, other = (torch.tensor(p).log()[None, :, None, None] for p in ([0.5, 0.3, 0.2], [0.1, 0.3, 0.6]))
    assert overlap(one, other, still).item() == pytest.approx(0.1 + 0.3 + 0.2)
    assert overlap(one, one, still).item() == pytest.approx(1)


class Says(Segmenter):
    """A network whose every prediction is that of `BEFORE`."""

    def forward(self, image_BCHW: torch.Tensor, seed_B: torch.Tensor | None = None) -> Output:
        assert not torch.is_grad_enabled() and seed_B is None
        return Output(logits(*BEFORE))


@pytest.mark.parametrize(
    ("words", "label", "weight"),
    [
        ([], [[1, 1, 2, 255], [1, 2, 2, 2]], None),
        (["unmatched=drop"], [[255, 1, 2, 255], [255, 2, 2, 255]], None),
        (["agreement=weigh"], [[1, 1, 2, 3], [1, 2, 2, 2]], [[1, 1, 1, 0], [1, 1, 1, 1]]),
        (["agreement=weigh", "unmatched=drop"], [[1, 1, 2, 3], [1, 2, 2, 2]], [[0, 1, 1, 0], [0, 1, 1, 0]]),
        (["agreement=none"], [[1, 1, 2, 3], [1, 2, 2, 2]], None),
    ],
)
def test_what_is_left_of_the_labels(words: list[str], label: list[list[int]], weight: list[list[int]] | None) -> None:
    method = tiny_method(tiny_recipe("method.name=vst", *[f"method.{word}" for word in words]))
    assert isinstance(method, VideoSelfTraining)
    method.student = Says(4)
    image, given = torch.rand(1, 3, 2, 4), torch.tensor([[[1, 1, 2, 3], [1, 2, 2, 2]]])
    valid = torch.ones(1, 2, 4, dtype=torch.bool)
    valid[0, 1, 3] = False
    seeds = torch.zeros(1, dtype=torch.int64)
    batch = Batch(image, given, seeds, before=Batch(image, None, seeds), flow_B2HW=RIGHT, valid_BHW=valid)
    view, metrics = method.trusted(View(image, seeds, given), logits(*NOW), batch)
    assert view.label_BHW is not None and view.label_BHW[0].tolist() == label
    if weight is None:
        assert view.weight_BHW is None
    else:
        torch.testing.assert_close(view.weight_BHW, torch.tensor([weight]).float(), atol=1e-4, rtol=0)
    assert metrics["labelled"] == 1
    if "agreement=none" not in words:
        assert metrics["agreement"].item() == pytest.approx(4 / 5, abs=1e-3)


@pytest.mark.parametrize("agreement", ["filter", "weigh"])
def test_only_the_frame_itself_is_learnt_from(agreement: str) -> None:
    recipe = tiny_recipe("method.name=vst", f"method.agreement={agreement}")
    target = geometry(tiny_batch(2, 2, "target"), recipe.augment)
    assert target.before is not None
    target.image_BCHW.requires_grad_(True)
    target.before.image_BCHW.requires_grad_(True)
    method = tiny_method(recipe)
    made = method(target)
    made.total().backward()
    assert target.image_BCHW.grad is not None and target.image_BCHW.grad.any()
    assert target.before.image_BCHW.grad is None
    assert list(made.objective) == ["pseudo_tgt"] and 0 < made.metrics["agreement"] < 1
    assert not any(value.requires_grad for value in made.metrics.values())

    again = tiny_method(recipe)
    logits_tgt = again.student(target.image_BCHW.detach(), target.seed_B).main
    view, _ = again.trusted(View(target.image_BCHW, target.seed_B, target.label_BHW), logits_tgt.detach(), target)
    loss = losses.cross_entropy(logits_tgt, view.label_BHW, view.weight_BHW)
    torch.testing.assert_close(made.objective["pseudo_tgt"], loss)


def test_it_reads_the_target_alone_and_still_images_without_agreement(domains: list[str]) -> None:
    config = tiny_recipe("method.name=vst").method
    assert config.reads == {"target": ("label", "flow")} and config.num_frames == {"target": 2}
    alone = tiny_recipe("method.name=vst", "method.agreement=none").method
    assert alone.reads == {"target": ("label",)} and alone.num_frames == {}
    assert config.calibrate_images > 0
    with pytest.raises(UserError, match=r"method 'vst' looks at 'label' of the target .* has no labels"):
        open_data(tiny_recipe(*domains, "method.name=vst"))


PHASES = """
steps: 2
evaluation: {uri: none}
rounds: 2
phases:
- {name: start, method: source_only, steps: 1}
- repeat:
  - {name: pseudo, relabel: {name: aggregate, offsets: 1}}
  - {name: sure, relabel: {name: confident, limit: 0.6}}
  - {name: adapt, method: {name: vst, calibrate_images: 4}}
"""


def test_all_its_phases_run_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"row_group_bytes": 12_000}
    write_shards(tiny_samples(4, 1), str(tmp_path / "source"), TABLE, **small)
    write_shards(tiny_samples(6, 2, labelled=False, clip_frames=3), str(tmp_path / "target"), TABLE, **small)
    (tmp_path / "phases.yaml").write_text(PHASES)
    words = [word for word in TINY if not word.startswith(("steps", "method"))]
    words += [f"source.uri={tmp_path / 'source'}", f"target.uri={tmp_path / 'target'}", f"out={tmp_path / 'run'}"]
    phases = load_phases(str(tmp_path / "phases.yaml"), [*words, "resume=true"])
    columns = {phase.name: [Path(uri).name for uri in phase.recipe.target.columns] for phase in phases}
    assert columns["pseudo_1"] == [] and columns["sure_1"] == ["pseudo_1"] and columns["adapt_1"] == ["sure_1"]
    assert columns["pseudo_2"] == ["sure_1"] and columns["adapt_2"] == ["sure_2"]

    last = train_phases(phases)
    assert last.endswith("/adapt_2") and open_run(last).recipe.method.name == "vst"
    rows = [row for row in read_rows(last) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 < row["learnt"] <= row["labelled"] <= 1 and 0 <= row["agreement"] <= 1 for row in rows)
    made, sure = (
        open_dataset(str(tmp_path / "target"), [str(tmp_path / "run" / name)]) for name in ("pseudo_2", "sure_2")
    )
    assert (made.class_pixels() >= sure.class_pixels()).all() and 0 < sure.class_pixels().sum() < 6 * 40 * 56
    assert made.class_pixels().sum() == 6 * 40 * 56

    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.parquet")}
    (tmp_path / "run" / "sure_2" / COLUMNS).unlink()  # as if it had been stopped there
    gone = next((tmp_path / "run" / "sure_2" / "groups").iterdir())
    gone.unlink()
    for folder in (tmp_path / "run" / "adapt_2" / "checkpoints").iterdir():
        (folder / "meta.json").unlink()
    assert train_phases(phases) == last
    again = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.parquet")}
    assert again.keys() == files.keys() and [file for file in files if again[file] != files[file]] == [gone]
    assert [row["loss"] for row in read_rows(last) if row["kind"] == "train"] == [row["loss"] for row in rows]


def test_stills_are_refused_before_anything_runs(tmp_path: Path) -> None:
    stills = [replace(sample, clip=None, frame=None) for sample in tiny_samples(3, 2)]
    write_shards(stills, str(tmp_path / "stills"), TABLE)
    (tmp_path / "phases.yaml").write_text(PHASES)
    words = [f"source.uri={tmp_path / 'stills'}", f"target.uri={tmp_path / 'stills'}", f"out={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"'adapt_1': method 'vst' looks at 'flow' of the target .* holds no clips"):
        train_phases(load_phases(str(tmp_path / "phases.yaml"), words))
    assert not (tmp_path / "run").exists()
