"""Two real processes that train together over gloo, and what each of them finds.

A test module defines functions ``rank_...(rank)``, which both processes run in the order in which
they stand there. Starting the processes costs seconds, so one start serves all of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import fresh

IN_PARTS_ON_CPU = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason="FSDP2 of this PyTorch does not train on the CPU (torch.cpu.Stream has no events)",
)
PATIENCE = 120  # seconds, for all functions together
Found = dict[str, tuple[Any, Any]]


def on_two_ranks(module: str, folder: Path) -> Found:
    """Function name without ``rank_`` -> what rank 0 and rank 1 returned, as JSON brings it back.

    Both work in ``folder``. An exception comes back as ``{"error": its class, "text": its message}``.
    """
    started = [
        fresh.start(_run, module, rank, folder, told=folder / f"{rank}.txt") for rank in range(2)
    ]
    ends = [fresh.ended(process, PATIENCE) for process in started]
    assert ends == [0, 0], "\n".join((folder / f"{rank}.txt").read_text() for rank in range(2))
    one, two = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return {name: (one[name], two[name]) for name in one}


def _run(path: str, rank: int, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("ranks_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    os.chdir(folder)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ |= {name: str(value) for name, value in told.items()}
    dist.init_process_group(
        "gloo",
        init_method=(folder / "store").as_uri(),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    found: dict[str, Any] = {}
    for name, function in list(vars(module).items()):
        if name.startswith("rank_"):
            try:
                found[name.removeprefix("rank_")] = function(rank)
            except Exception as error:
                text = {"error": type(error).__name__, "text": str(error)}
                found[name.removeprefix("rank_")] = text
            dist.barrier()  # whoever is not in step here has been left waiting
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
