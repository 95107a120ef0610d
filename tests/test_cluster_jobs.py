"""`ray job submit -- distuda train ...` on a head of its own, and the cluster file for real machines."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from settings import TINY

from distuda.cluster.local import num_cores
from distuda.engine.run import open_run

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parent.parent


@dataclass
class Head:
    """A running head and the environment in which commands talk to it."""

    url: str
    environment: dict[str, str]
    process: psutil.Process


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` on loopback with a token; ended by its own and its descendants' process ids."""
    folder = tempfile.mkdtemp(prefix="dh", dir="/tmp")  # short: sockets lie below it
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    names += ["metrics-export-port", "runtime-env-agent-port", "ray-client-server-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    unset = ("RAY_ADDRESS", "OMP_NUM_THREADS")  # as users have it
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
    }  # fmt: skip
    command = [ray_command(), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=3",
               "--dashboard-host=127.0.0.1", f"--temp-dir={folder}", "--disable-usage-stats",
               *(f"--{name}={port}" for name, port in ports.items())]  # fmt: skip
    with (Path(folder) / "head.log").open("w") as log:
        process = psutil.Process(subprocess.Popen(command, env=environment, stdout=log, stderr=log).pid)
    try:
        running = Head(environment["RAY_API_SERVER_ADDRESS"], environment, process)
        wait_for(running, Path(folder) / "head.log")
        yield running
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def ray_command() -> str:
    return str(Path(sys.executable).with_name("ray"))


def wait_for(head: Head, log: Path, patience_s: float = 120) -> None:
    give_up_s = time.monotonic() + patience_s
    while time.monotonic() < give_up_s:
        with suppress(OSError):
            if status(f"{head.url}/api/version", head.environment["RAY_AUTH_TOKEN"]) == 200:
                return
        time.sleep(0.5)
    pytest.fail(f"the head did not answer: {log.read_text()}")


def status(url: str, token: str | None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def end(process: psutil.Process) -> None:
    family = [process, *process.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


def submit(head: Head, *command: str) -> subprocess.CompletedProcess[str]:
    words = [
        ray_command(),
        "job",
        "submit",
        "--working-dir",
        str(ROOT),
        "--",
        sys.executable,
        "-m",
        "distuda",
        *command,
    ]
    return subprocess.run(words, env=head.environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_submitted_job_trains_on_the_cluster_it_was_sent_to(head: Head, domains: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = submit(head, "train", *TINY, *domains, "steps=2", "augment.crop=[32,32]", "workers=1", f"out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    run = open_run(str(out))
    assert run.step == 2
    environment = json.loads((out / "environment.json").read_text())
    assert environment["threads"] == num_cores()  # not the one that Ray gives the process of a job
    assert [row["kind"] for row in run.rows()] == ["train", "train", "evaluation"]
    assert "step 2/2" in done.stdout + done.stderr


def test_a_submitted_sweep_uses_the_cluster_it_was_sent_to(head: Head, domains: list[str], tmp_path: Path) -> None:
    out, space = tmp_path / "sweep", tmp_path / "space.yaml"
    space.write_text("optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}\n")
    words = [*TINY, *domains, "steps=2", "augment.crop=[32,32]", "--space", str(space), "--num", "2", "--out", str(out)]
    done = submit(head, "sweep", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 0001  finished after step 2" in done.stdout + done.stderr
    assert (out / "best.yaml").exists() and (out / "sweep.html").exists()


def test_a_job_may_not_leave_its_run_where_ray_removes_it(head: Head, domains: list[str]) -> None:
    done = submit(head, "train", *TINY, *domains, "workers=1", "out=runs/one")
    assert done.returncode == 1  # Ray's own code for any failed job; ours is in its message
    assert "Ray removes after the job" in done.stdout + done.stderr
    assert re.search(r"exit code:? 2", done.stdout + done.stderr), done.stdout + done.stderr


def test_the_head_answers_only_on_loopback_and_only_with_the_token(head: Head) -> None:
    assert status(f"{head.url}/api/jobs/", head.environment["RAY_AUTH_TOKEN"]) == 200
    assert status(f"{head.url}/api/jobs/", None) == 401
    assert status(f"{head.url}/api/jobs/", uuid.uuid4().hex) == 403
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in (head.process, *head.process.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


@pytest.fixture
def cluster() -> dict[str, Any]:
    """ray_cluster.yaml as `ray up` completes it."""
    from ray.autoscaler._private.util import prepare_config

    config: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))
    return config


def test_the_cluster_file_is_one_that_ray_accepts(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(cluster)
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["max_workers"] == 0
    assert cluster["max_workers"] == sum(node["max_workers"] for node in types.values())


def test_the_cluster_file_opens_nothing_and_asks_for_a_token(cluster: dict[str, Any]) -> None:
    starts = [
        line for role in ("head", "worker") for line in cluster[f"{role}_start_ray_commands"] if "ray start" in line
    ]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in (ROOT / "ray_cluster.yaml").read_text()
    assert any(mount.endswith("/.ray/auth_token") for mount in cluster["file_mounts"])


def test_the_cluster_file_installs_the_pinned_project(cluster: dict[str, Any]) -> None:
    assert any("-c constraints.txt" in line for line in cluster["head_setup_commands"])
    assert any("-c constraints.txt" in line for line in cluster["worker_setup_commands"])
