"""What a training step costs beyond plain torch: under our engine, under Ray Train, and with two processes.

    python benchmarks/step_overhead.py --rounds 7 --steps 20 --out benchmarks/step_overhead_HARDWARE_DATE.md

All variants live at once, each in processes of its own with the same batch in memory, and take turns: in a round every
variant does its steps while the others sleep. So what else happens on the machine meets all of them alike, and each
round gives one ratio. Plain torch is a loop written out below with nothing of `distuda.engine` in it.
"""

import argparse
import json
import os
import platform
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from distuda.cluster.local import start_ray
from distuda.data.augment import geometry
from distuda.data.batch import Batch
from distuda.data.class_tables import CLASS_TABLES
from distuda.engine.distributed import worker_from_environment
from distuda.engine.run import build_method
from distuda.engine.schedule import build_optimizers
from distuda.engine.step import Step
from distuda.recipe import Recipe, load_recipe

CLASSES = CLASS_TABLES["camvid11"].num_classes
PAUSE_S = 0.002
SINGLE = ["plain torch", "engine", "Ray Train, 1 worker"]
PAIR = ["2 processes without Ray", "Ray Train, 2 workers"]
VARIANTS = SINGLE + PAIR


def main() -> None:
    """Start all variants, let them take turns, print the table."""
    options = arguments()
    if options.variant:
        serve_alone(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_ray(num_cpus=5)
        stop = [start(variant, folder, options) for variant in VARIANTS]
        try:
            rounds = [{v: turn(v, folder, number) for v in VARIANTS} for number in range(options.rounds + 1)]
        finally:
            (folder / "over").touch()
            for end in stop:
                end()
    text = report(rounds[1:], options)  # the first round warms up
    print(text)
    if options.out:
        Path(options.out).write_text(text)


def arguments() -> argparse.Namespace:
    """The command line; unknown words are recipe overrides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each variant that count")
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each process")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), help="height and width of the crops")
    parser.add_argument("--out", help="also write the table here")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", default=[], help="recipe overrides, for example method=self_training")
    return parser.parse_args()


def recipe_for(options: argparse.Namespace) -> Recipe:
    """A recipe with nothing random about its cost."""
    height, width = options.size
    words = ["method=source_only", "model.weights=none", f"augment.crop=[{height},{width}]", "augment.scale=[1,1]"]
    return load_recipe(None, [*words, *options.words])


def batch_for(recipe: Recipe, device: torch.device) -> Batch:
    """A raw labelled batch of random pixels."""
    random = torch.Generator().manual_seed(0)
    height, width = recipe.augment.crop or (240, 320)
    image = torch.randint(0, 256, (recipe.batch_size, 3, height, width), dtype=torch.uint8, generator=random)
    label = torch.randint(0, CLASSES, (recipe.batch_size, height, width), generator=random)
    seeds = torch.arange(recipe.batch_size)
    return Batch(image, label, seeds, [str(i) for i in range(recipe.batch_size)]).to(device)


def method_for(recipe: Recipe, device: torch.device) -> Any:
    """The recipe's method, in training mode."""
    return build_method(recipe, CLASS_TABLES["camvid11"], torch.full((CLASSES,), 1 / CLASSES)).to(device).train()


def plain_step(recipe: Recipe, device: torch.device) -> Callable[[], Any]:
    """The loop one would write by hand: crop, forward, backward, optimiser."""
    method, batch = method_for(recipe, device), batch_for(recipe, device)
    if recipe.channels_last:
        method.to(memory_format=torch.channels_last)
    optimizers = build_optimizers(method, recipe.optimizer)

    def step() -> None:
        pair = [geometry(batch, recipe.augment) for _ in range(2)]
        for cropped in pair:
            cropped.image_BCHW = cropped.image_BCHW.contiguous(memory_format=torch.channels_last)
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = method(*pair).total()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        method.after_step()

    return step


def engine_step(recipe: Recipe, device: torch.device) -> Callable[[], Any]:
    """`Step` on the same batch; under DDP where a process group is up."""
    step, batch = Step(method_for(recipe, device), recipe, device), batch_for(recipe, device)
    return lambda: step(batch, batch)


def serve(variant: str, folder: Path, steps: int, step: Callable[[], Any], rank: int = 0) -> None:
    """Wait for each turn of this variant, take it, and (rank 0) leave the seconds a step beside it."""
    number, place, cuda = 0, VARIANTS.index(variant), torch.cuda.is_available()
    while not (folder / "over").exists():
        if not (folder / f"go-{place}-{number}").exists():
            time.sleep(PAUSE_S)
            continue
        start_s = time.perf_counter()
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
        if rank == 0:
            part = folder / f"part-{place}"
            part.write_text(str((time.perf_counter() - start_s) / steps))
            part.rename(folder / f"done-{place}-{number}")
        number += 1


def serve_alone(options: argparse.Namespace) -> None:
    """A process without Ray: plain torch, the engine, or one of two ranks."""
    torch.set_num_threads(options.threads)
    recipe = recipe_for(options)
    with worker_from_environment(recipe) as worker:
        make = plain_step if options.variant == SINGLE[0] else engine_step
        step = make(recipe, worker.device)
        serve(options.variant, Path(options.folder), options.steps, step, worker.rank)


def serve_on_ray(config: dict[str, Any]) -> None:
    """The same inside a Ray Train worker."""
    from ray.train import get_context

    from distuda.engine.loop import choose_device

    torch.set_num_threads(config["threads"])
    context = get_context()
    device = choose_device(config["recipe"], context.get_local_rank())
    step = engine_step(config["recipe"], device)
    serve(config["variant"], Path(config["folder"]), config["steps"], step, context.get_world_rank())


def start(variant: str, folder: Path, options: argparse.Namespace) -> Callable[[], None]:
    """Start a variant's processes; gives what ends them."""
    if variant.startswith("Ray"):
        return start_on_ray(variant, folder, options)
    command = [sys.executable, __file__, "--variant", variant, "--folder", str(folder), *common(options)]
    world = 2 if variant in PAIR else 1
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]

    def end() -> None:
        for rank in ranks:
            try:
                rank.wait(timeout=30)
            except subprocess.TimeoutExpired:
                rank.kill()

    return end


def start_on_ray(variant: str, folder: Path, options: argparse.Namespace) -> Callable[[], None]:
    """Start Ray Train workers, the way `cluster.train` does."""
    from ray.train import LoggingConfig, RunConfig
    from ray.train.torch import TorchTrainer

    from distuda.cluster.process_group import process_group
    from distuda.cluster.train import scaling_for

    workers = 2 if variant in PAIR else 1
    recipe = recipe_for(options).model_copy(update={"workers": workers})
    config = {"variant": variant, "folder": str(folder), "recipe": recipe}
    trainer = TorchTrainer(
        serve_on_ray,
        train_loop_config=config | {"steps": options.steps, "threads": options.threads},
        scaling_config=scaling_for(recipe),
        torch_config=process_group(workers),
        run_config=RunConfig(storage_path=str(folder / "ray"), logging_config=LoggingConfig(log_level="ERROR")),
    )
    thread = threading.Thread(target=trainer.fit, daemon=True)
    thread.start()
    return lambda: thread.join(timeout=60)


def turn(variant: str, folder: Path, number: int, patience_s: float = 900) -> float:
    """One turn of a variant; gives its seconds a step."""
    place = VARIANTS.index(variant)
    (folder / f"go-{place}-{number}").touch()
    done = folder / f"done-{place}-{number}"
    give_up_s = time.monotonic() + patience_s
    while not done.exists():
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"{variant!r} did not finish its turn within {patience_s} s")
        time.sleep(PAUSE_S)
    return float(done.read_text())


def report(rounds: list[dict[str, float]], options: argparse.Namespace) -> str:
    """The result as Markdown."""
    words = shlex.join(["python", "benchmarks/step_overhead.py", *common(options), "--rounds", str(options.rounds)])
    lines = [
        "# Cost of a training step beyond plain torch",
        "",
        f"{date.today()} · {hardware()}",
        f"torch {version('torch')}, Ray {version('ray')}, Python {platform.python_version()}",
        "",
        f"    {words}",
        "",
        f"Medians of {len(rounds)} interleaved rounds of {options.steps} steps; a ratio is the median of the rounds'.",
        "",
        "| variant | ms a step | lowest to highest round | ratio |",
        "|---|---|---|---|",
    ]
    for group in (SINGLE, PAIR):
        for variant in group:
            times = [1e3 * each[variant] for each in rounds]
            ratio = statistics.median(each[variant] / each[group[0]] for each in rounds)
            spread = f"{min(times):.1f} to {max(times):.1f}"
            lines.append(f"| {variant} | {statistics.median(times):.1f} | {spread} | {ratio:.3f} |")
    return "\n".join(
        [*lines, "", json.dumps({"rounds_s": [{v: round(t, 5) for v, t in each.items()} for each in rounds]}), ""]
    )


def common(options: argparse.Namespace) -> list[str]:
    """The options that every process of a benchmark shares."""
    height, width = options.size
    numbers = ["--steps", str(options.steps), "--threads", str(options.threads), "--size", str(height), str(width)]
    return [*options.words, *numbers]


def hardware() -> str:
    """Processor, cores and GPU."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if cpuinfo.exists()
        else []
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores{gpu}"


if __name__ == "__main__":
    main()
