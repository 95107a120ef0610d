"""`distuda demo`: the whole way from rendered streets to an ONNX file, on one machine, in minutes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from distuda import storage
from distuda.cluster.train import train
from distuda.data.dataset import Dataset, open_dataset
from distuda.engine.scoring import score_run
from distuda.plan import word
from distuda.recipe import Recipe, load_recipe
from distuda.report.html import write_report
from distuda.report.tables import scores
from export.runtime import Predictor, predict_files
from export.verify import export_run

NUM_OVERLAYS = 12


def run_demo(out: str) -> RenderableType:
    """Train source-only and adapted, score both, write report, model and overlays; gives the closing summary.

    Finished parts are kept: started again with the same folder it goes on where it stopped.

    Args:
        out: folder of everything the demo makes.
    """
    say = Console(stderr=True)
    recipe_path = str(files("distuda") / "demo.yaml")
    baseline = load_recipe(recipe_path, ["method=source_only", word("out", f"{out}/source_only"), "resume=true"])
    adapted = load_recipe(recipe_path, [word("out", f"{out}/adapted"), "resume=true"])
    seconds: dict[str, float] = {}
    with _timed(say, seconds, "render streets", "day with labels, dusk without; kept for the next time"):
        evaluation = [
            open_dataset(str(uri)) for uri in (baseline.source.uri, baseline.target.uri, baseline.evaluation.uri)
        ][-1]
    with _timed(say, seconds, "train source-only", "labels of the day only"):
        train(baseline)
    with _timed(say, seconds, "train adapted", "the default method: also looks at dusk, without labels"):
        train(adapted)
    with _timed(say, seconds, "evaluate", "on dusk labels that no training saw"):
        rows = [score_run(_folder(recipe)) for recipe in (baseline, adapted)]
    with _timed(say, seconds, "report", "curves, classes, pictures"):
        report = write_report(_folder(adapted), baseline_uri=_folder(baseline))
    with _timed(say, seconds, "export", "one ONNX file, checked against torch at three sizes"):
        model, checks = export_run(_folder(adapted))
    with _timed(say, seconds, "predict", "with onnxruntime alone"):
        images = _write_images(evaluation, storage.join(out, "images"))
        predict_files(Predictor(model), images, storage.join(out, "overlays"), overlay=True)
    return Group(scores(rows[1], rows[0]), checks.table(), _paths(out, report, model), _durations(seconds))


def _folder(recipe: Recipe) -> str:
    assert recipe.out is not None
    return recipe.out


@contextmanager
def _timed(say: Console, seconds: dict[str, float], name: str, why: str) -> Iterator[None]:
    say.print(f"[bold]{name}[/]: {why}")
    started_s = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started_s


def _write_images(dataset: Dataset, folder: str) -> list[str]:
    """The first images of a data set as files, as a user's camera would have left them."""
    rows: list[dict[str, Any]] = dataset.read_group(0, ["key", "image"]).slice(0, NUM_OVERLAYS).to_pylist()
    paths = [storage.join(folder, f"frame-{number:03d}.jpg") for number in range(len(rows))]
    for path, row in zip(paths, rows, strict=True):
        storage.write_bytes(path, row["image"])
    return paths


def _paths(out: str, report: str, model: str) -> Table:
    table = Table(title="Open these", title_justify="left", show_header=False)
    for name, path in (("report", report), ("model", model), ("overlays", storage.join(out, "overlays"))):
        table.add_row(name, path)
    return table


def _durations(seconds: dict[str, float]) -> Table:
    table = Table(title=f"Took {sum(seconds.values()) / 60:.1f} minutes", title_justify="left", show_header=False)
    for name, value in seconds.items():
        table.add_row(name, f"{value:.0f} s")
    return table
