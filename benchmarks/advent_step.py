"""One AdvEnt step, DeepLab-v2 ResNet-101 multi-level, 1 + 1 images: our single backward against the published order.

    python benchmarks/advent_step.py --rounds 5

The published order (methods of ADVENT's training script): source forward and backward, target forward and backward of
the fooling terms with frozen discriminators, then both discriminators on detached predictions, source and target, each
with its own backward. Times are interleaved, a step of each in turn, in one process; peak memory is measured in a
process of its own each. Both variants must give the same gradients.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from distuda import losses
from distuda.data.batch import Batch
from distuda.methods import Context
from distuda.methods.advent import SOURCE, TARGET, AdvEnt
from distuda.models.deeplab import DeepLabV2


def build() -> AdvEnt:
    """AdvEnt on DeepLab-v2 ResNet-101 with both heads, Cityscapes' 19 classes."""
    torch.manual_seed(0)
    student = DeepLabV2(19, depth=101, multi_level=True)
    context = Context(19, torch.full((19,), 1 / 19), photometry_labelled=False)
    return AdvEnt(AdvEnt.Config(), student, context).train()


def batches(size_src: tuple[int, int], size_tgt: tuple[int, int]) -> tuple[Batch, Batch]:
    """One random source and one random target image of the given (height, width)."""
    seed = torch.zeros(1, dtype=torch.int64)
    label = torch.randint(0, 19, (1, *size_src))
    return Batch(torch.rand(1, 3, *size_src), label, seed), Batch(torch.rand(1, 3, *size_tgt), None, seed)


def ours(method: AdvEnt, source: Batch, target: Batch) -> None:
    """One forward of both domains, one backward."""
    method(source, target).total().backward()


def published(method: AdvEnt, source: Batch, target: Batch) -> None:
    """The published order: source and target forward apart, three backwards (see above)."""
    student, discriminators, config = method.student, list(method.discriminators), method.config
    weights = (config.lambda_adv, config.lambda_adv_aux)
    _trainable(discriminators, False)
    output_src = student(source.image_BCHW)
    sum(method.supervise(output_src, method.labelled_view(source)).values()).backward()
    output_tgt = student(target.image_BCHW)
    fooling = [
        weight * losses.domain_bce(discriminator(losses.self_information(logits)), SOURCE)
        for weight, discriminator, logits in zip(weights, discriminators, output_tgt[:2], strict=True)
    ]
    sum(fooling).backward()
    _trainable(discriminators, True)
    for output, domain in ((output_src, SOURCE), (output_tgt, TARGET)):
        for discriminator, logits in zip(discriminators, output[:2], strict=True):  # main and auxiliary
            judged = discriminator(losses.self_information(logits.detach()))
            (0.5 * losses.domain_bce(judged, domain)).backward()


def _trainable(modules: list[nn.Module], value: bool) -> None:
    for module in modules:
        module.requires_grad_(value)


VARIANTS = {"published": published, "ours": ours}


def gradient_difference(size_src: tuple[int, int], size_tgt: tuple[int, int]) -> float:
    """Largest relative difference over all parameter tensors: |a - b| / |b| in the L2 norm."""
    data = batches(size_src, size_tgt)
    first, second = build(), build()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    ours(first, *data)
    published(second, *data)
    pairs = zip(first.named_parameters(), second.named_parameters(), strict=True)
    rows = [(a.grad - b.grad).norm() / b.grad.norm().clamp(min=1e-12) for (_, a), (_, b) in pairs if b.grad is not None]
    return float(torch.stack(rows).max())


def seconds(rounds: int, size_src: tuple[int, int], size_tgt: tuple[int, int]) -> dict[str, list[float]]:
    """Times of each variant [s], in turns; the first turn is thrown away."""
    data, method = batches(size_src, size_tgt), build()
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for i in range(rounds + 1):
        for name, step in VARIANTS.items():
            method.zero_grad(set_to_none=True)
            started_s = time.perf_counter()
            step(method, *data)
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - started_s)
    return times


def peak_gib(name: str, size_src: tuple[int, int], size_tgt: tuple[int, int]) -> float:
    """Peak resident memory of a process that runs two steps of one variant."""
    words = [
        sys.executable,
        __file__,
        "--memory-of",
        name,
        "--source",
        *map(str, size_src),
        "--target",
        *map(str, size_tgt),
    ]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", type=int, nargs=2, default=(360, 640), metavar=("H", "W"))
    parser.add_argument("--target", type=int, nargs=2, default=(256, 512), metavar=("H", "W"))
    parser.add_argument("--memory-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (tuple(arguments.source), tuple(arguments.target))
    if arguments.memory_of:
        method, data = build(), batches(*sizes)
        for _ in range(2):
            method.zero_grad(set_to_none=True)
            VARIANTS[arguments.memory_of](method, *data)
        status = Path("/proc/self/status").read_text()  # unlike ru_maxrss, this does not start at the parent's peak
        print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)
        return
    times = seconds(arguments.rounds, *sizes)
    ratios = [a / b for a, b in zip(times["ours"], times["published"], strict=True)]
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}, source {sizes[0]}, target {sizes[1]}\n")
    print("| variant | median step s | min - max s | peak memory GiB |\n| --- | --- | --- | --- |")
    for name, values in times.items():
        spread = f"{min(values):.2f} - {max(values):.2f}"
        print(f"| {name} | {statistics.median(values):.2f} | {spread} | {peak_gib(name, *sizes):.2f} |")
    print(f"\ntime ratio ours / published, median of pairs: {statistics.median(ratios):.3f}")
    print(f"largest relative gradient difference: {gradient_difference(*sizes):.1e}")


if __name__ == "__main__":
    main()
