"""Fixtures that several test files share; append only."""

from pathlib import Path

import pytest
import torch
from settings import TABLE, tiny_samples

from distuda.data.shards import write_shards

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def domains(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Recipe words that name tiny data sets: labelled source, unlabelled target, labelled evaluation images."""
    root: Path = tmp_path_factory.mktemp("domains")
    small = 12_000  # bytes a row group: a few samples each
    write_shards(tiny_samples(10, 1), str(root / "source"), TABLE, row_group_bytes=small)
    write_shards(tiny_samples(7, 2, labelled=False), str(root / "target"), TABLE, row_group_bytes=small)
    write_shards(tiny_samples(3, 3), str(root / "val"), TABLE)
    names = {"source": "source", "target": "target", "evaluation": "val"}
    return [f"{name}.uri={root / folder}" for name, folder in names.items()]


@pytest.fixture(scope="session")
def local_ray() -> None:
    """One Ray on loopback for the whole session; it ends with the process."""
    from distuda.cluster.local import start_ray

    start_ray()
