"""What every test module shares: the data folder, and one thread for each process."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drawing import not_drawing
from places import REPOSITORY


def pytest_configure(config: pytest.Config) -> None:
    """Networks this small only lose by sharing their work: a second thread waits, and burns its
    core meanwhile.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what ends in &
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # for the processes that tests start
    if config.getvalue("numprocesses") and not hasattr(config, "workerinput"):
        return  # this one only hands out tests to others, and needs no PyTorch
    import torch

    # Which packages are installed stays as it is. Each of Lightning's trainers would look.
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)
    torch.set_num_threads(1)
    if not torch.accelerator.is_available():
        # For each device that is not there, `torch.manual_seed` notes from where it was called,
        # which takes milliseconds below all of pytest.
        torch.manual_seed = torch.default_generator.manual_seed
    # To find no driver takes a millisecond, and is asked for at each step of an export.
    if hasattr(torch.cuda, "_raw_device_count_nvml"):
        torch.cuda._raw_device_count_nvml = functools.cache(torch.cuda._raw_device_count_nvml)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files go to a worker, where what the tests of a file share is made once.

    Those that start processes of their own go to one: what these are forked off (see `fresh`) takes
    seconds to import everything.
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "processes" if _starts_processes(config.rootpath / file) else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@functools.cache
def _starts_processes(file: Path) -> bool:
    helpers = r"^(?:from|import) (?:fresh|killed_runs|two_ranks)\b"
    return re.search(helpers, file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several workers none is to be left alone at the end with what takes longest."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.parent.name != "training")


def pytest_collection_finish() -> None:
    """What imports made stays till the end: the garbage collector need not look at it again.

    Of what tests make, it sees through more at a time.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is not looked at when Python ends counts as leaked with some libraries


REHEARSED = "NETSLIM_REHEARSE_CUDA"  # set, tests with the fixture `gpu` run on the CPU


ONNX_OPERATORS = "torch.onnx._internal.exporter._registration"


def pytest_runtest_setup(item: pytest.Item) -> None:
    import torch

    if ONNX_OPERATORS in sys.modules:
        _look_up_onnx_operators_once(sys.modules[ONNX_OPERATORS])
    if item.get_closest_marker("cuda") is None or torch.cuda.is_available():
        return
    if REHEARSED not in os.environ or "gpu" not in item.fixturenames:  # type: ignore[attr-defined]
        pytest.skip(f"needs a CUDA GPU; {REHEARSED}=1 tries it out on the CPU")


def _look_up_onnx_operators_once(module: Any) -> None:
    """PyTorch reads the source of all that it can write as ONNX again for each file: half a second."""
    made = module.ONNXRegistry.from_torchlib
    if not hasattr(made, "cache_info"):
        module.ONNXRegistry.from_torchlib = staticmethod(functools.cache(made))


@pytest.fixture
def gpu() -> Any:
    """The device of tests that are marked with `cuda`."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Figures are not drawn."""
    with not_drawing():
        yield


@pytest.fixture(autouse=True, scope="module")
def _drawn_where_someone_looks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of runs and of commands draw no figures, except where a module says ``LOOKS_AT_FIGURES``."""
    if request.path.parent.name not in ("training", "cli") or hasattr(
        request.module, "LOOKS_AT_FIGURES"
    ):
        yield
        return
    with not_drawing():
        yield


@pytest.fixture(scope="session")
def netslim_data() -> Path:
    """The folder with MNIST and cifar10: NETSLIM_DATA, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("NETSLIM_DATA", REPOSITORY / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no data at {folder}: set NETSLIM_DATA to the folder that holds MNIST and cifar10"
        )
    return folder.resolve()
