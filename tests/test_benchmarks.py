"""The tables of accuracy: every row is a recipe that can still be read."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from distuda.errors import UserError
from distuda.plan import load_phases

ROOT = Path(__file__).parent.parent


def error_of(recipe: str, words: list[str]) -> str:
    """Why a row cannot be trained, empty where it can."""
    meant = [word.replace("HALF", "200").replace("START", "runs/start") for word in words]
    try:
        load_phases(str(ROOT / recipe), [*meant, "out=runs/row", "steps=400"])
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["accuracy_camvid", "accuracy_synthetic_to_real", "accuracy_video"])
def test_every_row_of_an_accuracy_table_can_be_trained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module: Any = importlib.import_module(name)
    for study in getattr(module, "STUDIES", {"": getattr(module, "STUDY", None)}).values():
        errors = {row: error_of(own[0], [*study.common, *own[1:]]) for row, own in study.rows.items()}
        assert {row: error for row, error in errors.items() if error} == {}
