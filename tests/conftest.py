"""What every test module shares: the data folder, and a thread count that fits parallel workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from places import REPOSITORY


def pytest_configure() -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


@pytest.fixture(scope="session")
def netslim_data() -> Path:
    """The folder with MNIST and cifar10: NETSLIM_DATA, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("NETSLIM_DATA", REPOSITORY / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no data at {folder}: set NETSLIM_DATA to the folder that holds MNIST and cifar10"
        )
    return folder.resolve()
