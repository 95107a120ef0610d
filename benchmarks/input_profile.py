"""Where the processor's time goes while the Ray Data stream is read: CPU seconds a process, and a thread of this one.

    python benchmarks/input_profile.py --shards runs/input/shards [--pause 0]

The shards are those that input_throughput.py wrote. `--pause 0` takes out the pause in Ray Data's scheduling loop.
"""

import argparse
import threading
import time

import psutil
from input_throughput import BATCH, ours

from distuda.cluster.local import start_ray
from distuda.data import stream

Seconds = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", default="runs/input/shards")
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument(
        "--pause", type=float, default=stream._Breathing.PAUSE_S, help="seconds in each turn of the loop"
    )
    arguments = parser.parse_args()
    stream._Breathing.PAUSE_S = arguments.pause
    start_ray()
    batches = ours(arguments.shards, stream.stream_batches)
    started_s = time.perf_counter()
    next(batches)
    print(f"first batch after {time.perf_counter() - started_s:.1f} s")
    before, started_s = (processes(), threads()), time.perf_counter()
    for _ in range(arguments.batches):
        next(batches)
    wall_s = time.perf_counter() - started_s
    print(f"{arguments.batches * BATCH / wall_s:.0f} images/s over {wall_s:.1f} s; CPU seconds:")
    for title, old, new in zip(("processes", "threads of this process"), before, (processes(), threads()), strict=True):
        print(title)
        spent = {name: seconds - old.get(name, 0.0) for name, seconds in new.items()}
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1])[:8]:
            print(f"  {seconds:7.2f}  {name}")
    batches.close()


def processes() -> Seconds:
    """CPU seconds of this process and of all below it, by command."""
    found: Seconds = {}
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            used = process.cpu_times()
            found[f"{process.pid} {' '.join(process.cmdline())[:60]}"] = used.user + used.system
        except psutil.NoSuchProcess:
            continue
    return found


def threads() -> Seconds:
    """CPU seconds of this process's threads; threads of one name are added up."""
    names = {thread.native_id: thread.name.rstrip("0123456789_-") for thread in threading.enumerate()}
    found: Seconds = {}
    for thread in psutil.Process().threads():
        name = names.get(thread.id, "(not Python's)")
        found[name] = found.get(name, 0.0) + thread.user_time + thread.system_time
    return found


if __name__ == "__main__":
    main()
