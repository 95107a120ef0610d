"""What the tests of sweeps share: a small plan, and its trials."""

from pathlib import Path
from typing import Any

from settings import TINY

from tune.plan import Plan
from tune.records import Record, Records
from tune.space_file import load_space

ROOT = Path(__file__).parent.parent

SPACE = "optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}\n"

WORDS = [*TINY, "augment.crop=[32,32]", "evaluation.every_steps=2"]


def plan_for(folder: Path, domains: list[str], text: str = SPACE, *words: str, **options: Any) -> Plan:
    """Three trials, or all of a grid, two at once, of ``text`` in ``folder/sweep``; ``options``: fields of `Plan`."""
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(text)
    given = {"num": None if options.get("search") == "grid" else 3, "concurrent": 2, **options}
    return Plan(
        None, (*WORDS, *domains, *words), load_space(str(folder / "space.yaml")), str(folder / "sweep"), **given
    )


def trials(folder: Path) -> list[Record]:
    """The records of `plan_for`'s sweep."""
    return list(Records(str(folder / "sweep")))
