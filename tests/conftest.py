"""Fixtures that several test files share; append only."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from s3_server import KEY, SECRET, Proxy, seaweed
from settings import TABLE, tiny_samples

from distuda.data.shards import write_shards

torch.set_num_threads(1)

LONGEST_FILES = (
    "test_tune_failures", "test_tune_lost", "test_tune_sweep", "test_cluster_train", "test_cluster_jobs", "test_engine",
    "test_methods", "test_recipes_run", "test_data_stream", "test_export_onnx", "test_object_store", "test_relabel",
    "test_clips", "test_readme",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin, so that no process ends long after the others."""
    rank = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """A fixture draws the same numbers every time, whichever test asks for it first."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """A test draws the same numbers every time, alone or after others: what fails once fails again."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def domains(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Recipe words that name tiny data sets: labelled source, unlabelled target, labelled evaluation images."""
    root: Path = tmp_path_factory.mktemp("domains")
    small = 12_000  # bytes a row group: a few samples each
    write_shards(tiny_samples(10, 1, clip_frames=5), str(root / "source"), TABLE, row_group_bytes=small)
    write_shards(tiny_samples(7, 2, labelled=False, clip_frames=7), str(root / "target"), TABLE, row_group_bytes=small)
    write_shards(tiny_samples(3, 3), str(root / "val"), TABLE)
    names = {"source": "source", "target": "target", "evaluation": "val"}
    return [f"{name}.uri={root / folder}" for name, folder in names.items()]


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums come out in one order only if other processes use as many threads as the tests' own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def local_ray() -> None:
    """One Ray on loopback for the whole session; it ends with the process."""
    from distuda.cluster.local import start_ray

    start_ray()


_PROXY = Proxy()
# Set before anything is started, so that Ray's processes have it too, whichever test starts them
os.environ.update(
    AWS_ENDPOINT_URL=_PROXY.endpoint,
    AWS_ACCESS_KEY_ID=KEY,
    AWS_SECRET_ACCESS_KEY=SECRET,
    AWS_EC2_METADATA_DISABLED="true",
)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A real S3 server for the whole session, behind a proxy that can be told to fail."""
    with seaweed(tmp_path_factory.mktemp("s3")) as port:
        _PROXY.upstream = port
        yield _PROXY
        _PROXY.down()


@pytest.fixture
def s3(s3_server: Proxy) -> Proxy:
    """The server's proxy, faultless and counting from here."""
    s3_server.reset()
    return s3_server
