"""The house rules that a reader relies on: who imports whom, and what works without Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from distuda.methods import METHODS, MethodConfig
from distuda.relabel import RELABELS, RelabelConfig

ROOT = Path(__file__).parent.parent
MAY_USE_EXPORT = {"distuda/cli.py", "distuda/demo.py"}


def test_engine_methods_models_and_metrics_import_without_ray() -> None:
    modules = "distuda.engine.loop, distuda.engine.scoring, distuda.methods, distuda.models, distuda.losses"
    code = f"import sys; sys.modules['ray'] = None; import {modules}, distuda.relabel.job, distuda.metrics.confusion"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "distuda").rglob("*.py")), ids=lambda path: path.stem)
def test_the_library_does_not_import_tune_or_export(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert name in MAY_USE_EXPORT or not imported & {"tune", "export"}


def test_every_method_has_its_name_and_a_card() -> None:
    cards = "".join(path.read_text() for path in (ROOT / "docs" / "methods").glob("*.md"))
    kinds = [(name, kind, MethodConfig) for name, kind in METHODS.items()]
    kinds += [(name, kind, RelabelConfig) for name, kind in RELABELS.items()]
    for name, kind, base in kinds:
        assert kind.Config().name == name
        own = set(kind.Config.model_fields) - set(base.model_fields)
        assert not [field for field in own if f"`{field}`" not in cards and f"`{field}." not in cards]
