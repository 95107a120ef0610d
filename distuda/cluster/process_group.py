"""A torch process group for Ray Train that only loopback can reach.

The one file that leans on private names of ``ray.train.torch.config`` (written against Ray 2.60).
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from distuda.engine.distributed import join_on_loopback, listen_on_loopback


def process_group(workers: int) -> TorchConfig:
    """How the workers meet: nobody to meet with one, loopback on this machine alone, Ray's stock group on a cluster."""
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    if workers == 1 or all(address.startswith("127.") for address in addresses):
        return LoopbackTorchConfig()
    return TorchConfig()


@dataclass
class LoopbackTorchConfig(TorchConfig):
    """As `TorchConfig`, but nothing listens on the network, and a single worker gets no process group at all.

    Without a group `engine.step.Step` leaves the method unwrapped, so one worker costs what plain torch costs.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train calls when the workers are up."""
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        world = len(worker_group)
        if world == 1:
            return
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
        port = worker_group.execute_single(0, listen_on_loopback)
        meeting = (world, port, backend)
        ray.get([worker_group.execute_single_async(r, join_on_loopback, r, *meeting) for r in range(world)])
