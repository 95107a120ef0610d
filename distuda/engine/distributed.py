"""Process groups without Ray: what torchrun starts, and groups that nobody outside this machine can reach."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from distuda.engine.loop import Worker, choose_device, settle
from distuda.errors import UserError
from distuda.recipe import Recipe

TIMEOUT = timedelta(minutes=30)
"""Longest wait for a peer: an evaluation or a slow shard on one rank must fit in."""

_listeners: dict[int, socket.socket] = {}


@contextmanager
def worker_from_environment(recipe: Recipe) -> Iterator[Worker]:
    """The worker that this process is, alone or as the rank that ``RANK`` and ``WORLD_SIZE`` say (torchrun sets them).

    With more than one rank the process group is up inside the block: nccl on CUDA, gloo else, by the usual
    ``MASTER_ADDR`` and ``MASTER_PORT``. Where these name loopback and no torchrun agent serves them, nothing listens on
    the network.

    Raises:
        UserError: some of the variables are missing or not numbers.
    """
    world = _number("WORLD_SIZE", 1)
    rank, local_rank = _number("RANK", 0), _number("LOCAL_RANK", 0)
    device = choose_device(recipe, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Worker(device=device)
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={world} is set, but {', '.join(missing)} is not. Start with torchrun, or unset WORLD_SIZE."
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost") and not served:
        port = _number("MASTER_PORT", 0)
        join_on_loopback(rank, world, listen_on_loopback(port) if rank == 0 else port, backend)
    else:
        dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Worker(rank, world, device)
    finally:
        dist.destroy_process_group()


def listen_on_loopback(port: int = 0) -> int:
    """Reserve a port (0 = any free one) for the group that rank 0 of this process will lead; gives the port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    port = int(listener.getsockname()[1])
    _listeners[port] = listener
    return port


def join_on_loopback(rank: int, world: int, port: int, backend: str) -> None:
    """Join the process group led from ``port``; rank 0 has called `listen_on_loopback` in this process.

    torch's own store listens on every interface of the machine; handed a socket that is bound already, it does not.
    """
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    listener = _listeners.pop(port).detach() if rank == 0 else None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1",
        port,
        world,
        is_master=rank == 0,
        timeout=TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener,
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)


def settle_together(recipe: Recipe, worker: Worker) -> Recipe:
    """`settle` on rank 0, its outcome on all: ranks must not each name a run folder by their own clock.

    Raises:
        UserError: what `settle` refuses, on every rank.
    """
    if worker.world == 1:
        return settle(recipe)
    outcome: list[str | None] = [None, None]  # run folder, refusal
    if worker.leads:
        try:
            outcome[0] = settle(recipe).out
        except UserError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return recipe.model_copy(update={"out": outcome[0]})


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"environment variable {name}={text!r} is not a number. Start with torchrun, or unset it.")
    return int(text)
