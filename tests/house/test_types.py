"""What a type checker says of a user's code: it knows what comes back, and sees what is misspelt.

mypy --strict reads netslim's own sources, and of torch only the few names below: to read torch
itself would take it a minute.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import netslim

pytest.importorskip("mypy", reason="needs mypy: pip install mypy")

TORCH = {
    "__init__": """
from typing import Any
from torch import nn as nn, optim as optim
class Tensor: ...
class device: ...
def zeros(*size: int) -> Tensor: ...
def __getattr__(name: str) -> Any: ...
""",
    "nn": """
from collections.abc import Iterator
from typing import Any
from torch import Tensor
class Parameter(Tensor): ...
class Module:
    def parameters(self) -> Iterator[Parameter]: ...
def __getattr__(name: str) -> Any: ...
""",
    "optim": """
from typing import Any
class Optimizer: ...
class SGD(Optimizer):
    def __init__(self, params: Any, lr: float = ...) -> None: ...
def __getattr__(name: str) -> Any: ...
""",
}

RIGHT = """
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor, nn

import netslim
from netslim.graph.groups import ChannelGroup


class Net(nn.Module): ...


@netslim.criterion
def last(group: ChannelGroup, tensors: Mapping[str, Tensor], seed: int = 0) -> Tensor:
    return torch.zeros(group.size)


@netslim.register_rule("examples::squash")
def squash(recorder: Any, func: Any, out: Tensor, *args: Any, **kwargs: Any) -> None: ...


def accuracy(network: nn.Module) -> float:
    return 0.9


def step_by_step(model: Net, images: Tensor, loader: list[tuple[Tensor, Tensor]]) -> None:
    graph = netslim.trace(model, images)
    assert_type(graph, netslim.ChannelGraph)
    scores = netslim.score(graph, model, netslim.selection.Scoring("taylor"), batches=loader)
    assert_type(scores, dict[str, Tensor])
    scores = netslim.score(graph, model, last)
    budget = netslim.Budget(cut_macs=0.5, max_params=1_000_000)
    limits = netslim.Limits(min_channels=2, max_cut={"layer1.*": 0.5}, round_to=8, protect=["fc"])
    try:
        plan = netslim.select(graph, scores, budget, limits=limits, allocation="cost")
    except netslim.NetslimError as error:
        raise SystemExit(error)
    assert_type(plan, netslim.PruningPlan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    small = netslim.prune(model, plan)
    reveal_type(small)  # prune
    assert_type(netslim.prune_(model, plan, optimizer=optimizer), Net)
    assert_type(netslim.verify(model, small, plan, images).deviation, float | None)
    assert_type(netslim.save(small, "small.safetensors"), Path)
    done = netslim.quantize(small, loader, "small.onnx", netslim.methods.Quantization(scales="tensor"))
    assert_type(done.noise, float)
    reveal_type(netslim.load(Net(), "small.safetensors"))  # load
    reveal_type(netslim.models.build("small.safetensors"))  # build
    assert_type(netslim.export(small, images, "small.onnx").size_bytes, int)
    assert_type(netslim.cost(model, images).macs, int)
    assert_type(netslim.latency(model, images).median_ms, float)
    assert_type(netslim.latency({"a": model}, images)["a"].median_ms, float)
    table = netslim.latency_table(model, graph, images)
    netslim.select(graph, scores, netslim.Budget(cut_latency=0.3), latency=table)


def at_once(model: Net, images: Tensor, loader: list[tuple[Tensor, Tensor]]) -> None:
    half = netslim.Budget(cut_macs=0.5)

    def make(share: float) -> Net:
        return netslim.slim(model, images, budget=netslim.Budget(cut_macs=share))

    reveal_type(netslim.slim(model, images, budget=half, batches=loader))  # slim
    found = netslim.search(make, accuracy, max_drop=0.01, baseline=0.9)
    assert_type(found.network, Net | None)
    caps = netslim.sensitivity(model, images, accuracy, ratios=(0.25, 0.5)).limits(0.01)
    netslim.slim(model, images, budget=half, limits=netslim.Limits(max_cut=caps))


def in_training(model: Net, images: Tensor, plan: netslim.PruningPlan) -> None:
    graph = netslim.trace(model, images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    netslim.NetworkSlimming(model, strength=1e-4, penalty="proximal").attach(optimizer).detach()
    netslim.SoftFilterPruning(graph, model, {"layer1.*": 0.3}).attach(optimizer).end_epoch()
    assert_type(netslim.CentripetalSGD(graph, model, 0.5).plan(), netslim.PruningPlan)
    assert_type(netslim.Mask(model, plan).attach(optimizer).convert(), Net)
    gradual = netslim.GradualPruning(model, images, netslim.Budget(cut_params=0.5), steps=3)
    assert_type(gradual.step(), netslim.PruningPlan | None)
"""

WRONG = """
import torch
from torch import Tensor, nn

import netslim
from netslim import selection


def misspelt(model: nn.Module, images: Tensor, accuracy: float) -> None:
    graph = netslim.trase(model, images)  # attr-defined
    graph = netslim.trace(model, images)
    scores = netslim.score(graph, model, normalize="mean")  # call-arg
    half = netslim.Budget(cut_mac=0.5)  # call-arg
    half = netslim.Budget(cut_macs="half")  # arg-type
    netslim.Limits(min_chanels=3)  # call-arg
    netslim.Limits(shortcuts="skip")  # arg-type
    selection.Scoring("l1", normalise="mean")  # call-arg
    selection.Scoring("l1", normalize="average")  # arg-type
    selection.Compensation("lineal")  # arg-type
    netslim.select(graph, scores, half, round_to=8)  # call-arg
    netslim.slim(model, images, min_chanels=3)  # call-arg
    netslim.slim(model, images, budget=0.5)  # arg-type
    netslim.GradualPruning(model, images, half, round_to=8)  # call-arg
    netslim.sensitivity(model, images, accuracy)  # arg-type
    netslim.NetworkSlimming(model, penalty="l2")  # arg-type
    netslim.prune(model, graph)  # arg-type
    netslim.load(None, "small.safetensors")  # type-var
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, dict[int, str]]:
    """File -> line -> what mypy says of it, from one run over both files."""
    folder = tmp_path_factory.mktemp("types")
    for name, text in TORCH.items():
        path = folder / "stubs" / "torch" / f"{name}.pyi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(WRONG)
    sources = Path(netslim.__file__).parents[1]
    (folder / "mypy.ini").write_text(
        "[mypy]\nstrict = True\nfollow_imports = skip\n"
        f"mypy_path = {folder / 'stubs'}:{sources}\n"
        "[mypy-netslim.*]\nfollow_imports = silent\n"
    )
    words = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache"]
    done = subprocess.run(
        [*words, "right.py", "wrong.py"], cwd=folder, capture_output=True, text=True
    )
    found: dict[str, dict[int, str]] = {"right.py": {}, "wrong.py": {}}
    for name, line, text in re.findall(r"^(\w+\.py):(\d+): (.*)$", done.stdout, re.MULTILINE):
        if "defined in" not in text:  # where the function is that was called wrongly
            found[name][int(line)] = text
    assert found["right.py"], done.stdout + done.stderr
    return found


def test_every_public_name_is_used():
    unused = [name for name in netslim.__all__ if not re.search(rf"netslim\.{name}\b", RIGHT)]
    assert not unused


def test_right_code_is_clean_and_models_keep_their_type(said):
    assert [text for text in said["right.py"].values() if "error" in text] == []
    lines = RIGHT.splitlines()
    revealed = {
        lines[number - 1].rpartition("# ")[2]: text.partition("type is ")[2]
        for number, text in said["right.py"].items()
    }
    net, module = '"right.Net"', '"torch.nn.Module"'
    assert revealed == {"prune": net, "load": net, "slim": net, "build": module}


def test_each_mistake_is_an_error_where_it_is_made(said):
    for number, line in enumerate(WRONG.splitlines(), 1):
        _, _, code = line.partition("  # ")
        told = said["wrong.py"].get(number, "nothing")
        assert (f"[{code}]" in told) if code else told == "nothing", f"{line.strip()}: {told}"
