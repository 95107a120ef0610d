"""Ray on this machine and nothing else: everything listens on loopback."""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from distuda.errors import UserError

_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray keeps the loopback address it is given; otherwise it swaps it for the outward one."""


def start_ray(num_cpus: int | None = None) -> None:
    """Start Ray here, or connect to the cluster that ``RAY_ADDRESS`` names (as inside a Ray job); idempotent.

    Args:
        num_cpus: logical CPUs; None = the cores and one more, so that data never waits for training to give one up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray starts its workers at niceness 15: on a busy laptop the data stream then starves beside the training it feeds
    os.environ.setdefault("RAY_worker_niceness", "0")
    # trials that read beside each other are jobs of their own: after a second without work Ray would end a job's
    # process to start the other's, some seconds for every window that is read
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        os.environ[_LOOPBACK_ONLY] = "0"
    import ray

    if ray.is_initialized():
        return
    if address is not None:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        return
    _keep_loopback()
    ray.init(
        "local",
        num_cpus=num_cpus or num_cores() + 1,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(_short_folder()),
    )


def require_gpus(wanted: float, what: str, say: Callable[[str], object]) -> None:
    """Say that GPUs are missing: a cluster that grows will bring them, this machine will not.

    Raises:
        UserError: this machine has fewer.
    """
    import ray

    have = ray.cluster_resources().get("GPU", 0)
    if wanted <= have:
        return
    if "RAY_ADDRESS" not in os.environ:
        raise UserError(
            f"{what}={wanted:g} need a GPU each and this machine has {have:g}. Lower {what} or set device=cpu."
        )
    say(f"the cluster has {have:g} of the {wanted:g} GPUs asked for; waiting until it has grown")


def forget_threads_of_ray() -> None:
    """Forget ``OMP_NUM_THREADS`` where Ray set it: to 1, for the process of a submitted job, which takes no CPU.

    It would be taken for the user's wish by all that a job starts. What the job's runtime environment sets counts. To
    be called before torch is imported.
    """
    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if job is None or os.environ.get("OMP_NUM_THREADS") != "1":
        return
    asked = (json.loads(job).get("runtime_env") or {}).get("env_vars") or {}
    if "OMP_NUM_THREADS" not in asked:
        del os.environ["OMP_NUM_THREADS"]


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet_data() -> None:
    """Switch off Ray Data's own progress bars and chatter; ours say what matters."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _keep_loopback() -> None:
    """Ray reads the variable when it is imported, which may have been before we set it."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False
    logging.getLogger("ray._private.authentication").setLevel(
        logging.ERROR
    )  # a token is on by default; no need to say so


def _short_folder() -> Path:
    """Ray puts sockets below this folder, and a socket's path may have only about a hundred characters."""
    folder = Path(tempfile.gettempdir()) / f"ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
