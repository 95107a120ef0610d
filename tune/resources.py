"""How many trials run at once, and what one of them takes of the cluster as it is now."""

import math
import os
import sys
from typing import Any

from distuda.cluster.local import num_cores, start_ray
from distuda.cluster.train import scaling_for
from distuda.errors import UserError
from distuda.recipe import Recipe

Resources = dict[str, float]

HEAD = "node:__internal_head__"
"""Ray's name for a resource of which a cluster has one, on its head. Shares of it bound how many trials with workers
run at once. Tune starts the members of a population as far as resources reach: if they took none, the workers of all
would take every CPU and wait for ever for data. CPUs will not do: with a hundredth of one taken none whole is left to
read data by."""


def share_of_cluster(
    recipe: Recipe, num: int, *, concurrent: int, cpus: float | None, gpus: float | None
) -> tuple[int, Resources]:
    """Start Ray; trials at once, and the logical resources of one.

    A trial with ``workers`` takes a place on the head: its workers take what they need. One that trains in its own
    process takes a fair share of the CPUs, never more than a node has, and the GPU it trains on.

    Args:
        recipe: its workers and its device.
        num: trials in all.
        concurrent: trials at once as the user wants it; 0 = as many as fit.
        cpus, gpus: of a trial as the user wants it; None = by the cluster.

    Raises:
        UserError: more than this machine has. A cluster that may grow is waited for, which is said, by all trials that
            may run at once.
    """
    start_ray(num_cpus=_own_cpus(recipe, concurrent, cpus))
    import ray

    have = ray.cluster_resources()
    if recipe.workers:
        at_once = min(num, concurrent or _fitting_workers(recipe, have))
        return at_once, {HEAD: _place_on_head(at_once)}
    spare = max(1.0, have.get("CPU", 1.0) - 1)  # one is left to Ray Data
    if gpus is None:
        gpus = 1.0 if recipe.device == "cuda" or (recipe.device == "auto" and have.get("GPU", 0)) else 0.0
    largest = _largest_node()
    waits = not _has_node(largest, {"CPU": cpus or 0, "GPU": gpus})
    if waits:  # trials that wait make the cluster grow, by nodes of which nothing is known yet
        return min(num, concurrent or num), {"CPU": cpus or 1.0, **({"GPU": gpus} if gpus else {})}
    fits = int(have.get("GPU", 0) / gpus) if gpus else int(spare / (cpus or 1))
    at_once = max(1, min(num, concurrent or fits))
    share = cpus or max(0.01, math.floor(100 * _fair_share(at_once, gpus)) / 100)
    return at_once, {"CPU": share, **({"GPU": gpus} if gpus else {})}


def _place_on_head(at_once: int) -> float:
    """A share of `HEAD` of which so many fit beside what Ray Train wants there itself; Ray counts in ten-thousandths.

    Ray Train wants ten of them for each training and ten for itself, without which none would begin.
    """
    return min(10_000 // (at_once + 1) + 1, max(1, (9_990 - 10 * at_once) // at_once)) / 10_000


def _fair_share(at_once: int, gpus: float) -> float:
    """The most CPUs of which so many trials may take as much each, beside their GPUs, with one CPU left over.

    All that a trial takes lies on one node. Just as many fit, or few more: a population is held back by nothing else.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [node.get("CPU", 0.0) for node in nodes]
    largest = cpus.index(max(cpus))
    cpus[largest] = max(1.0, cpus[largest] - 1)  # one is left to Ray Data
    places = [int(node.get("GPU", 0) / gpus) if gpus else at_once for node in nodes]

    def fits(share: float) -> int:
        return sum(min(int(have / share + 1e-9), most) for have, most in zip(cpus, places, strict=True))

    shares = sorted({have / parts for have in cpus if have for parts in range(1, at_once + 1)})
    return max(share for share in shares if fits(share) >= min(at_once, fits(shares[0])))


def threads_of(recipe: Recipe, at_once: int, resources: Resources) -> int:
    """That a process of a trial computes with, wherever it runs.

    In one process the whole CPUs that a trial takes; of workers an even share of all there are for those that run at
    once.
    """
    if asked := os.environ.get("OMP_NUM_THREADS"):
        return int(asked)
    if not recipe.workers:
        return max(1, int(resources["CPU"]))
    if "RAY_ADDRESS" not in os.environ:  # the logical CPUs of a Ray of our own say nothing of cores
        return max(1, num_cores() // (at_once * recipe.workers))
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1) - at_once) // (at_once * recipe.workers))


def _own_cpus(recipe: Recipe, concurrent: int, cpus: float | None) -> int:
    """Logical CPUs of a Ray that is started for this sweep: a core a worker, and one for each that reads data."""
    if recipe.workers:
        return (concurrent or max(1, num_cores() // recipe.workers)) * (recipe.workers + 1)
    return math.ceil(max(num_cores(), max(1, concurrent) * (cpus or 1))) + 1


def _fitting_workers(recipe: Recipe, have: Resources) -> int:
    """Trials whose workers have room beside each other, and a CPU to read by, at least one."""
    gpus, fits = have.get("GPU", 0.0), have.get("CPU", 1.0) // (recipe.workers + 1)
    if scaling_for(recipe).use_gpu:
        fits = min(fits, gpus // recipe.workers)
        if not fits and "RAY_ADDRESS" in os.environ:  # how many processes may wait on the head is not ours to say
            _say(
                f"{recipe.workers} GPUs a trial, but the cluster has {gpus:g}; waiting until it has grown, one trial "
                "at a time (with --concurrent N so many)"
            )
    return max(1, int(fits))


def _largest_node() -> Resources:
    """The most that one node has, of each resource."""
    import ray

    most: Resources = {}
    for node in ray.nodes():
        if node["Alive"]:
            for name, amount in node["Resources"].items():
                most[name] = max(most.get(name, 0.0), amount)
    return most


def _has_node(largest: Resources, wanted: Resources) -> bool:
    """Whether some node holds a whole trial; one that is still to come may."""
    missing: dict[str, Any] = {name: value for name, value in wanted.items() if value > largest.get(name, 0)}
    for name, value in missing.items():
        have = f"{value:g} {name}s a trial, but the largest node has {largest.get(name, 0):g}"
        if "RAY_ADDRESS" not in os.environ:
            raise UserError(f"{have}. Lower --{name.lower()}s{' or set device=cpu' if name == 'GPU' else ''}.")
        _say(f"{have}; waiting until the cluster has grown")
    return not missing


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
