"""The command line: one function a verb, no logic. Exit code 2 for the user's mistake, 1 for ours."""

import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from distuda import storage
from distuda.errors import RunFailed, UserError

app = typer.Typer(
    help="Adapt semantic segmentation models to places without labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
console = Console()

Run = Annotated[str, typer.Argument(help="run folder, as `distuda train` printed it", show_default=False)]
Which = Annotated[
    Literal["last", "best"], typer.Option("--checkpoint", help="which checkpoint; best = by the recipe's score")
]


def _train_help(context: typer.Context, asked: bool) -> None:
    if asked:
        from distuda.report.tables import recipe_fields

        typer.echo(context.get_help())
        console.print(recipe_fields())
        raise typer.Exit()


@app.command()
def prepare(
    layout: Annotated[str, typer.Argument(help="the kind of data set; `distuda layouts` lists them")],
    source: Annotated[str, typer.Argument(help="the data set's folder or archive, any fsspec URI")],
    destination: Annotated[str, typer.Argument(help="where the shards go, any fsspec URI")],
    split: Annotated[str | None, typer.Option(help="part of the source, for example train")] = None,
    variant: Annotated[str | None, typer.Option(help="kind of the data set, for example sequence")] = None,
    classes: Annotated[
        str | None, typer.Option(help="class table, or a .json file with your own; default: the layout's")
    ] = None,
    id_map: Annotated[
        str | None, typer.Option(help="what the label files' ids are: cityscapes_ids, ..., or a .json file")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="glob on keys; may be given several times")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="glob on keys to leave out; may be given several times")
    ] = None,
    every: Annotated[int, typer.Option(help="one frame in so many, for video")] = 1,
    labels: Annotated[bool, typer.Option(help="write labels, or make an unlabelled target set")] = True,
    tags: Annotated[
        Literal["auto", "masks", "none"],
        typer.Option(help="image-level labels: what the data set gives, the classes in the masks, or none"),
    ] = "auto",
    resize: Annotated[tuple[int, int] | None, typer.Option(help="height and width to store [pixels]")] = None,
    cut_bottom: Annotated[int, typer.Option(help="rows to leave out below, before resizing [pixels]")] = 0,
    pairs: Annotated[
        str | None, typer.Option(help="prepared set of the other domain; its images of the same keys become pairs")
    ] = None,
    pair_list: Annotated[
        str | None, typer.Option(help="CSV of key,other_key for --pairs; default: partners have the same key")
    ] = None,
    flow: Annotated[
        bool, typer.Option("--flow", help="compute optical flow between the frames of clips, into flow/ beside them")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="only the first samples")] = None,
    max_bad_share: Annotated[
        float | None, typer.Option(help="share of unusable samples that is tolerated, 0 to 1; default: the layout's")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray workers; 0 = in this process; default: all CPUs for large sets")
    ] = None,
) -> None:
    """Convert a data set into shards that training streams."""
    from distuda.data.prepare import prepare as run

    console.print(
        run(
            layout, source, destination, split=split, variant=variant, classes=classes, id_map=id_map,
            include=include or (), exclude=exclude or (), every=every, labels=labels, tags=tags, resize=resize,
            cut_bottom=cut_bottom, pairs=pairs, pair_list=pair_list, flow=flow, limit=limit,
            max_bad_share=max_bad_share, workers=workers,
        ).render()
    )  # fmt: skip


@app.command()
def layouts() -> None:
    """List the kinds of data sets that `prepare` reads, what they look like and where they come from."""
    from distuda.report.tables import known_layouts

    console.print(known_layouts())


@app.command()
def inspect(
    uri: Annotated[
        str,
        typer.Argument(help="prepared shards, streets://STYLE, or the folder of a recipe's phases or of one of them"),
    ],
    other: Annotated[
        str | None, typer.Argument(help="a second data set to compare with, for example the target", show_default=False)
    ] = None,
    out: Annotated[str, typer.Option(help="HTML file of the page, any fsspec URI")] = "inspect.html",
    sheet: Annotated[str | None, typer.Option(help="PNG file of the contact sheet alone; default: none")] = None,
    num: Annotated[int, typer.Option(min=1, help="samples shown as pictures")] = 12,
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", "--keys", help="of phases: samples to show instead, KEY or KEY,KEY; repeatable"),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="of phases: the same samples prepared with their true labels; default: their own")
    ] = None,
    num_stats: Annotated[int, typer.Option(min=1, help="images measured, evenly spaced")] = 200,
    num_clips: Annotated[int, typer.Option(min=0, help="clips shown as animated preview")] = 2,
) -> None:
    """Look at a data set, at the gap between two, or at what the phases of a recipe found in chosen images."""
    from distuda.report.dataset_report import inspect_datasets
    from distuda.report.phases_gather import holds_phases
    from distuda.report.phases_report import inspect_phases

    if keys or labels or holds_phases(uri):
        if other or sheet:
            raise UserError("a folder of phases is shown alone, as a page: leave out the second data set and --sheet.")
        console.print(inspect_phases(uri, out=out, num=num, num_stats=num_stats, keys=keys or (), labels=labels))
        return
    uris = [uri] if other is None else [uri, other]
    console.print(inspect_datasets(uris, out=out, sheet=sheet, num=num, num_stats=num_stats, num_clips=num_clips))


@app.command(add_help_option=False)
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE.yaml] [FIELD=VALUE ...]",
            help="a recipe and dotted overrides; in a recipe of phases, phases.NAME.FIELD=VALUE holds for one phase",
        ),
    ] = None,
    help_: Annotated[
        bool, typer.Option("--help", is_eager=True, callback=_train_help, help="show this and every field of a recipe")
    ] = False,
) -> None:
    """Train as a recipe says; without one, self-training from streets by day to streets at dusk."""
    from distuda.phases import train_phases
    from distuda.plan import load_phases

    path, overrides = _split(words or [])
    folder = train_phases(load_phases(path, overrides))
    console.print(f"run folder: {folder}\nnext: distuda report {folder}   or   distuda export {folder}", soft_wrap=True)


@app.command()
def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE.yaml] [FIELD=VALUE ...]", help="what is searched from, as for `distuda train`"),
    ] = None,
    space: Annotated[
        str, typer.Option(help="YAML file of fields and ranges, or the name of a preset (docs/sweep.md)")
    ] = ...,  # type: ignore[assignment]
    out: Annotated[str, typer.Option(help="folder of the sweep, any fsspec URI")] = "runs/sweep",
    search: Annotated[
        Literal["random", "grid", "tpe", "pbt"], typer.Option(help="how configurations are chosen")
    ] = "random",
    num: Annotated[
        int | None, typer.Option(help="configurations; with pbt the population; not for grid; default: 16")
    ] = None,
    points: Annotated[int | None, typer.Option(help="of a grid: numbers a range; default: 3")] = None,
    scheduler: Annotated[Literal["none", "asha", "median"], typer.Option(help="what ends bad trials early")] = "none",
    objective: Annotated[
        str, typer.Option(help="label-free score that is searched by; target_miou looks at labels: the oracle")
    ] = "information_maximisation",
    choose: Annotated[
        str | None,
        typer.Option(
            help="what decides in the end: scores with commas between them, by mean place, or aggregate = "
            "information_maximisation,augmentation_consistency; default: aggregate, and with another --objective that"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="trials a configuration, each with another seed")] = 1,
    concurrent: Annotated[int, typer.Option(help="trials at once, 0 = as many as fit")] = 0,
    cpus: Annotated[float | None, typer.Option(help="logical CPUs of a trial; default: a fair share")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of a trial, parts too; default: one if there is any")] = None,
    grace: Annotated[
        int | None,
        typer.Option(
            help="steps of the last phase before a trial may end early, and between decisions of pbt; default: a ninth"
        ),
    ] = None,
    keep: Annotated[int, typer.Option(help="ended trials, the best, whose checkpoints stay")] = 3,
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the sweep in --out")] = False,
) -> None:
    """Search fields of a recipe by scores that need no target labels."""
    from tune.plan import Plan
    from tune.space_file import load_space
    from tune.sweep import sweep

    path, overrides = _split(words or [])
    chosen = tuple(name.strip() for name in choose.split(",")) if choose else ()
    plan = Plan(
        path, tuple(overrides), load_space(space), out, search=search, num=num, points=points, scheduler=scheduler,
        objective=objective, choose=chosen, seeds=seeds, concurrent=concurrent, cpus=cpus, gpus=gpus, grace=grace,
        keep=keep, seed=seed, resume=resume,
    )  # fmt: skip
    written = sweep(plan)
    for name, uri in written.items():
        console.print(f"{name}: {uri}", soft_wrap=True)
    console.print(f"next: distuda train {written['best.yaml']} out=RUN", soft_wrap=True)


@app.command()
def evaluate(
    run: Run,
    data: Annotated[str | None, typer.Option(help="prepared samples; default: the run's evaluation set")] = None,
    checkpoint: Which = "last",
    ensemble: Annotated[
        list[str] | None, typer.Option(help="another run whose logits are averaged in; repeatable")
    ] = None,
    calibrate: Annotated[
        int, typer.Option(help="set batch-norm statistics from so many target images first (AdaBN)")
    ] = 0,
    label_free: Annotated[
        list[str] | None,
        typer.Option("--scores", help="label-free scores: NAME, NAME,NAME or all; default: the recipe's"),
    ] = None,
) -> None:
    """Score a run, or the labels of a relabel phase: mIoU over the whole set, class by class; of clips VPQ."""
    from distuda.engine.scoring import score_run
    from distuda.relabel.job import holds_labels
    from distuda.relabel.score import score_labels
    from distuda.report.tables import scores

    if holds_labels(run):
        if data is None:
            raise UserError(f"{run!r} holds labels. Name the same samples with their true labels: --data URI.")
        console.print(scores(score_labels(run, data)))
        return
    row = score_run(
        run, data=data, which=checkpoint, ensemble=ensemble or (), calibrate=calibrate, scores=label_free or None
    )
    console.print(scores(row))


@app.command()
def report(
    run: Run,
    baseline: Annotated[str | None, typer.Option(help="run to compare with, usually source-only")] = None,
    panels: Annotated[int, typer.Option(help="samples shown as pictures")] = 6,
) -> None:
    """Write report.html into a run folder: curves, class table, pictures; one file, no network."""
    from distuda.report.html import write_report

    console.print(f"report: {write_report(run, baseline_uri=baseline, num_panels=panels)}", soft_wrap=True)


@app.command()
def export(
    run: Run,
    out: Annotated[str | None, typer.Option(help="ONNX file; default: model.onnx in the run folder")] = None,
    checkpoint: Which = "last",
) -> None:
    """Write an ONNX file and check it against torch at three sizes; a file that fails is not left behind."""
    from export.verify import export_run

    path, checks = export_run(run, which=checkpoint, out=out)
    console.print(checks.table())
    console.print(f"model: {path}", soft_wrap=True)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="ONNX file written by `distuda export`")],
    inputs: Annotated[
        list[str], typer.Argument(help="images, folders, globs, a video, URIs; then the output folder last")
    ],
    overlay: Annotated[bool, typer.Option(help="also write images or videos with the classes laid over")] = True,
    frames: Annotated[
        bool, typer.Option("--frames", help="write frames of videos as single images; default: video and label stream")
    ] = False,
    provider: Annotated[
        Literal["auto", "cpu", "cuda", "tensorrt"], typer.Option(help="where onnxruntime computes")
    ] = "auto",
) -> None:
    """Run an exported model on images and videos: class maps and overlays. Needs onnxruntime only."""
    from export.runtime import Predictor, predict_files

    if len(inputs) < 2:
        raise UserError(
            "predict needs at least one input and, last, the output folder: distuda predict model.onnx frames/ out/"
        )
    *sources, folder = inputs
    summary = predict_files(Predictor(model, provider=provider), sources, folder, overlay=overlay, frames=frames)
    for source, reason in summary.skipped:
        _complain("skipped", f"{source}: {reason}")
    console.print(str(summary), soft_wrap=True)
    raise typer.Exit(summary.exit_code)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="folder for both runs, report, model and overlays")] = "runs/demo",
) -> None:
    """Watch adaptation work in minutes: streets by day to dusk, report, ONNX file, overlays. No download."""
    from distuda.demo import run_demo

    console.print(run_demo(out), soft_wrap=True)


def _split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe's path, if the first word is one, and the overrides; a sweep's folder may be called ``lr=1``."""
    if words and ("=" not in words[0] or (words[0].endswith((".yaml", ".yml")) and storage.exists(words[0]))):
        return words[0], list(words[1:])
    return None, list(words)


def _complain(kind: str, sentence: str) -> None:
    Console(stderr=True).print(f"[bold red]{kind}:[/] {escape(sentence)}", soft_wrap=True, highlight=False)


def main() -> None:
    """Entry point: runs the command and turns failures into one sentence."""
    from distuda.cluster.local import forget_threads_of_ray
    from export.errors import PredictError

    forget_threads_of_ray()
    try:
        app()
    except (UserError, PredictError) as error:
        _complain("error", str(error))
        sys.exit(2)
    except RunFailed as error:  # says itself where its trace lies
        _complain("failed", str(error))
        sys.exit(1)
    except Exception as error:
        trace = Path(tempfile.mkstemp(prefix="distuda-", suffix=".txt")[1])
        trace.write_text(traceback.format_exc())
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        _complain("failed", f"{reason} (trace in {trace})")
        sys.exit(1)
