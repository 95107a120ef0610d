"""Which checkpoints are kept, found and written whole."""

import json
from pathlib import Path

import pytest
import torch
from settings import names_in, tiny_batch, tiny_method, tiny_recipe

from distuda.engine import checkpoint as checkpoints
from distuda.engine.checkpoint import Checkpoints
from distuda.engine.step import Step
from distuda.errors import UserError


def saved(run: Path, scores: dict[int, float], *words: str) -> Checkpoints:
    """Checkpoints of a tiny stand-in method with these scores by step."""
    recipe = tiny_recipe(*words)
    method = torch.nn.Linear(2, 2)
    step = Step.__new__(Step)
    step.optimizers, step.schedules, step.device = [torch.optim.SGD(method.parameters(), 0.1)], [], torch.device("cpu")
    folder = Checkpoints(str(run), recipe.checkpoint)
    for number, score in scores.items():
        meta = {"step": number, "history": {}, "scores": {"information_maximisation": score, "miou": -score}}
        folder.save(method, step, meta)  # type: ignore[arg-type]
    folder.wait()
    return folder


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    folder = saved(tmp_path, {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.9}, "checkpoint.keep_last=2")
    assert names_in(tmp_path / "checkpoints") == ["step-00000002", "step-00000004", "step-00000005"]
    assert folder.find("best").endswith("step-00000002") and folder.find("last").endswith("step-00000005")
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"step": 2, "by": "information_maximisation", "score": 0.9}


def test_another_measure_of_best_does_not_compare_with_the_old_one(tmp_path: Path) -> None:
    saved(tmp_path, {1: 0.9})
    saved(tmp_path, {2: 0.5}, "checkpoint.best_by=target_miou")
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "by": "target_miou", "score": -0.5}


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path) -> None:
    folder = saved(tmp_path, {1: 0.1, 2: 0.2})
    (tmp_path / "checkpoints" / "step-00000003").mkdir()
    (tmp_path / "checkpoints" / "step-00000003" / "method.safetensors").write_bytes(b"half")
    assert folder.latest().endswith("step-00000002") and folder.find("last").endswith("step-00000002")


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    folder = Checkpoints(str(tmp_path), tiny_recipe().checkpoint)
    assert folder.latest() is None
    for which in ("last", "best"):
        with pytest.raises(UserError, match=f"no {which} checkpoint"):
            folder.find(which)


def test_a_failed_write_is_raised_and_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write"):
        saved(tmp_path, {1: 0.1})


def test_save_takes_a_snapshot(tmp_path: Path) -> None:
    """Training goes on while the writer writes; what is saved is the moment of the call."""
    recipe = tiny_recipe()
    method = tiny_method(recipe)
    step = Step(method, recipe, torch.device("cpu"))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    folder = Checkpoints(str(tmp_path), recipe.checkpoint)
    folder.save(method, step, {"step": 0, "history": {}, "scores": {}})
    step(tiny_batch(2, 1), tiny_batch(2, 2))
    folder.wait()
    loaded = checkpoints.load_tensors(folder.find("last"))
    assert all(torch.equal(value, before[key]) for key, value in loaded.items()) and loaded.keys() == before.keys()
