"""What each method costs: images a second and peak memory on the same network, relative to source-only.

    python benchmarks/method_cost.py [--rounds 5] [--steps 6] [--size 180 240] [--device cpu] [model.name=...]

Every variant lives in a process of its own with random batches in memory, and all take turns in one run, so what else
happens on the machine meets all of them alike; ratios are taken within a round. Further words are recipe overrides.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date

import torch

from distuda.data.batch import Batch
from distuda.data.class_tables import CLASS_TABLES
from distuda.engine.log import memory_gib
from distuda.engine.loop import choose_device
from distuda.engine.run import build_method
from distuda.engine.step import Step
from distuda.recipe import load_recipe

TABLE = CLASS_TABLES["camvid11"]
VARIANTS: dict[str, list[str]] = {
    "source_only": ["method=source_only"],
    "minent": ["method=minent"],
    "advent": ["method=advent"],
    "apoda, K = 1": ["method=apoda", "method.attack.num_steps=1"],
    "apoda, K = 3": ["method=apoda"],
    "apoda, K = 3, random": ["method=apoda", "method.attack.direction=random"],
    "apoda + self-training": ["method=apoda", "method.self_training.weighting=pixel"],
    "self_training": ["method=self_training"],
    "self_training + feature distance": ["method=self_training", "method.lambda_distance=0.005"],
    "self_training + masked": ["method=self_training", "method.lambda_mask=1"],
    "self_training + detail": ["method=self_training", "model.detail=DETAIL", "model.multi_level=false"],
}


def main() -> None:
    options = parse()
    if options.variant:
        serve(options)
        return
    workers = {name: start(name) for name in VARIANTS}
    try:
        rounds = [{name: ask(worker) for name, worker in workers.items()} for _ in range(options.rounds + 1)][1:]
    finally:
        for worker in workers.values():
            worker.kill()
    print(table(rounds, options))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps a turn")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), help="height and width of the crops")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", default=[], help="recipe overrides, for example model.name=mit_b0")
    return parser.parse_args()


def start(name: str) -> "subprocess.Popen[str]":
    """A process that holds one method and waits to be asked for a turn."""
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: "subprocess.Popen[str]") -> dict[str, float]:
    """One turn of a variant: seconds a step and its peak memory so far."""
    assert worker.stdin and worker.stdout
    worker.stdin.write("go\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit(f"{worker.args} ended early")
    return dict(json.loads(line))


def serve(options: argparse.Namespace) -> None:
    """A variant's process: as many steps as asked for at every line, on one thread on a CPU."""
    torch.set_num_threads(1)
    height, width = options.size
    detail = f"[{height // 2},{width // 2}]"
    words = [word.replace("DETAIL", detail) for word in VARIANTS[options.variant]]
    recipe = load_recipe(
        None, [*words, f"augment.crop=[{height},{width}]", f"batch_size={options.batch}", f"device={options.device}",
               "model.weights=none", *options.words],
    )  # fmt: skip
    device = choose_device(recipe)
    share = torch.full((TABLE.num_classes,), 1 / TABLE.num_classes)
    method = build_method(recipe, TABLE, share).to(device).train()
    step = Step(method, recipe, device)
    batches = [batch(options, seed) for seed in (0, 1)]
    for _ in sys.stdin:
        started_s = time.perf_counter()
        for _ in range(options.steps):
            float(step(*batches)["loss"])
        seconds = (time.perf_counter() - started_s) / options.steps
        print(json.dumps({"seconds": seconds, "gib": memory_gib(device)}), flush=True)


def batch(options: argparse.Namespace, seed: int) -> Batch:
    """A raw labelled batch of random pixels, somewhat larger than the crop."""
    random = torch.Generator().manual_seed(seed)
    size = [side + side // 3 for side in options.size]
    image = torch.randint(0, 256, (options.batch, 3, *size), dtype=torch.uint8, generator=random)
    label = torch.randint(0, TABLE.num_classes, (options.batch, *size), generator=random)
    return Batch(image, label, torch.arange(options.batch) + 10 * seed)


def table(rounds: list[dict[str, dict[str, float]]], options: argparse.Namespace) -> str:
    """Medians over rounds, and ratios to source-only within each round."""
    base = [turn["source_only"] for turn in rounds]
    height, width = options.size
    lines = [
        f"{date.today()} · {platform.processor() or platform.machine()}, torch {torch.__version__}, {options.device}",
        f"batch {options.batch} + {options.batch}, crops {width}x{height}, {' '.join(options.words) or 'lite'}",
        "",
        "| method | images/s | step, of source-only | peak memory [GiB] | of source-only |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in VARIANTS:
        turns = [turn[name] for turn in rounds]
        rate = statistics.median(2 * options.batch / turn["seconds"] for turn in turns)
        cost = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(turns, base, strict=True))
        memory = turns[-1]["gib"], turns[-1]["gib"] / base[-1]["gib"]
        lines.append(f"| {name} | {rate:.1f} | {cost:.2f} | {memory[0]:.2f} | {memory[1]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
