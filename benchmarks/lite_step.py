"""Forward and backward of `lite` on a CPU: float32, bfloat16 with torch's depthwise gradients, bfloat16 with ours.

    OMP_NUM_THREADS=1 python benchmarks/lite_step.py --rounds 7

Interleaved in one process: a step of each variant in turn, medians and the ratio to float32 pair by pair.
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from unittest import mock

import torch
import torch.nn.functional as F

from distuda.models import depthwise
from distuda.models.lite import Lite


def plain(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int, dilation: int) -> torch.Tensor:
    """Depthwise convolution with torch's own gradients."""
    return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])


VARIANTS = {  # name: (bfloat16, our gradients)
    "float32": (False, False),
    "bfloat16, torch's gradients": (True, False),
    "bfloat16, quick depthwise gradients": (True, True),
}


def step(model: Lite, image: torch.Tensor, label: torch.Tensor, bf16: bool, quick: bool) -> float:
    """Seconds of one forward and backward."""
    patched = nullcontext() if quick else mock.patch("distuda.models.lite.depthwise_conv2d", plain)
    started_s = time.perf_counter()
    with patched:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(image).main
        F.cross_entropy(logits.float(), label).backward()
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    assert depthwise.depthwise_conv2d is not plain
    model = Lite(11).train().to(memory_format=torch.channels_last)
    image = torch.rand(arguments.batch, 3, *arguments.size).contiguous(memory_format=torch.channels_last)
    label = torch.randint(0, 11, (arguments.batch, *arguments.size))
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for i in range(arguments.rounds + 1):
        for name, switches in VARIANTS.items():
            elapsed_s = step(model, image, label, *switches)
            if i:  # the first round warms up
                times[name].append(elapsed_s)
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}, batch {arguments.batch}, {arguments.size}\n")
    print("| variant | median ms | min - max ms | speed against float32, median of pairs |\n| --- | --- | --- | --- |")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["float32"], values, strict=True))
        ms = [1e3 * value for value in values]
        print(f"| {name} | {statistics.median(ms):.0f} | {min(ms):.0f} - {max(ms):.0f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
