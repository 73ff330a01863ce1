"""The zoo benchmark: its list of networks is complete, its judge can say no, and its processes end
in time.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from places import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
DEFEAT_THE_PEER = {
    "cs3darknet_s",
    "cspdarknet53",
    "cspresnet50",
    "dm_nfnet_f0",
    "dpn68",
    "ecaresnet26t",
    "gcresnext26ts",
    "inception_next_tiny",
    "mixnet_s",
    "nfnet_f0",
    "res2net50_26w_4s",
    "rexnet_100",
    "skresnet18",
    "tresnet_m",
}
TRANSFORMERS = {  # timm's modules of plain transformers: the zoo is about convolution, alone or beside attention
    "beit",
    "deepseek_vit",
    "eva",
    "gemma4_vit",
    "hieradet_sam2",
    "naflexvit",
    "qwen3_vit",
    "vision_transformer",
    "vision_transformer_relpos",
    "vision_transformer_sam",
}


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def load(name: str) -> ModuleType:
    pytest.importorskip("timm")
    return __import__(name)


def test_all_torchvision_networks_are_listed() -> None:
    from torchvision import models

    zoo = load("zoo_models")
    listed = set(zoo.names())
    known = [
        n
        for part in (models, models.segmentation, models.detection, models.video)
        for n in models.list_models(part)
    ]
    assert {f"torchvision:{n}" for n in known} - listed == {
        f"torchvision:{n}" for n in zoo.TOO_LARGE
    }
    assert len(listed) == len(zoo.names())


def test_timm_networks_exist_and_cover_every_family() -> None:
    zoo = load("zoo_models")
    import timm
    from timm.models import list_modules

    families = {**zoo.CONVOLUTIONAL}
    for module, names in zoo.HYBRID.items():
        families[module] = families.get(module, ()) + names
    for module, names in families.items():
        assert set(names) <= set(timm.list_models(module=module)), module
    assert len(set(zoo.timm_names())) == len(zoo.timm_names()) >= 150
    assert set(zoo.timm_names()) >= DEFEAT_THE_PEER
    if timm.__version__ == "1.0.31":
        assert set(list_modules()) - set(families) == TRANSFORMERS


def test_builds_the_same_network_twice() -> None:
    zoo = load("zoo_models")
    (a, x), (b, y) = zoo.build("timm:resnet10t"), zoo.build("timm:resnet10t")
    assert not a.training
    torch.testing.assert_close(x, y, rtol=0, atol=0)
    torch.testing.assert_close(
        list(a.state_dict().values()), list(b.state_dict().values()), rtol=0, atol=0
    )
    assert zoo.convolutional("timm:resnet10t")
    assert not zoo.convolutional("torchvision:swin_t")


class Branches(nn.Module):
    """Two convolutions that one head reads; the second's channels stand behind the first's."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 1), nn.Conv2d(3, width, 1)
        self.head = nn.Conv2d(2 * width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1).tanh())


@pytest.fixture
def subject() -> Any:
    tools = load("zoo_tools")
    torch.manual_seed(0)
    model = Branches()
    return tools.Subject("branches", model, copy.deepcopy(model), torch.randn(1, 3, 4, 4), ["head"])


@pytest.mark.parametrize(
    ("read", "verdict"), [([0, 5, 6, 7], "exact"), ([0, 4, 5, 6], "wrong"), ([0, 5, 6], "broken")]
)
def test_the_judge(subject: Any, read: list[int], verdict: str) -> None:
    small = (
        subject.model
    )  # channels 1, 2, 3 of `a` and channel 0 of `b` go: the head must read 0, 5, 6 and 7
    small.a.weight = nn.Parameter(small.a.weight.detach()[:1])
    small.a.bias = nn.Parameter(small.a.bias.detach()[:1])
    small.b.weight = nn.Parameter(small.b.weight.detach()[1:])
    small.b.bias = nn.Parameter(small.b.bias.detach()[1:])
    small.head.weight = nn.Parameter(small.head.weight.detach()[:, read])
    removed = {("head.weight", 1): [1, 2, 3, 4]}
    found = load("zoo_tools").judge(subject, removed, mixes=False)
    assert found["verdict"] == verdict
    if verdict != "broken":
        assert (found["deviation"] < 1e-14) == (verdict == "exact")


def test_nothing_cut_is_no_success(subject: Any) -> None:
    assert load("zoo_tools").judge(subject, {}, mixes=False) == {"verdict": "uncut"}


@pytest.mark.parametrize("tool", ["netslim", "torch-pruning"])
def test_a_tool_reports_what_it_did(subject: Any, tool: str) -> None:
    if tool == "torch-pruning":
        pytest.importorskip("torch_pruning")
    tools = load("zoo_tools")
    found: dict[str, Any] = {}
    tools.use(tool, subject, found.update)
    assert found["verdict"] == "exact"
    assert found["cut"] == 4
    assert found["seconds"] > 0
    # (3 + 1) * 4 parameters in each branch and 2 * 8 + 2 in the head; all are halved but the head's
    # two biases
    assert found["left"] == (8 + 8 + 8 + 2) / (16 + 16 + 18)
    if tool == "netslim":
        assert (found["verified"], found["felt"]) == ("yes", 4)
        assert found["share"] == pytest.approx((16 + 16 + 16) / 50)


def test_output_layers(subject: Any) -> None:
    assert load("zoo_tools").output_layers(subject.model, subject.inputs) == ["head"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_reports_fails_or_is_killed() -> None:
    zoo = load("zoo")

    def answer(report: Any) -> None:
        report({"traced": "yes"})
        report({"verdict": "exact", "seconds": 0.1})

    def fail(report: Any) -> None:
        report({"traced": "yes"})
        raise ValueError("no such thing\nmore")

    def hang(report: Any) -> None:
        time.sleep(60)

    assert zoo.forked(answer, 20) == {"traced": "yes", "verdict": "exact", "seconds": 0.1}
    assert zoo.verdict(zoo.forked(fail, 20)) == {
        "verdict": "crashed",
        "why": "ValueError: no such thing",
    }
    start = time.monotonic()
    assert zoo.verdict(zoo.forked(hang, 0.2)) == {
        "verdict": "timeout",
        "why": "no result within 0.2 s",
    }
    assert time.monotonic() - start < 20


def test_rows_come_back_and_add_up(tmp_path: Path) -> None:
    table = load("zoo_table")
    common = {"model": "timm:a", "kind": "CNN", "traced": "yes"}
    table.create(tmp_path / "zoo.csv")
    ours = {
        **common,
        "tool": "netslim",
        "verdict": "exact",
        "verified": "yes",
        "share": 0.5,
        "cut": 8,
        "felt": 7,
    }
    table.append(tmp_path / "zoo.csv", {**ours, "seconds": 1.0, "memory_mib": 30.0})
    table.append(
        tmp_path / "zoo.csv", {**ours, "model": "timm:b", "seconds": 3.0, "memory_mib": 10.0}
    )
    table.append(
        tmp_path / "zoo.csv",
        {**common, "tool": "torch-pruning", "verdict": "wrong", "seconds": 2.0, "memory_mib": 10.0},
    )
    table.append(
        tmp_path / "zoo.csv",
        {**common, "model": "timm:b", "tool": "torch-pruning", "verdict": "refused", "why": "a, b"},
    )
    rows = table.read(tmp_path / "zoo.csv")
    assert rows[3]["why"] == "a, b"
    assert rows[3]["seconds"] is None
    found = table.summary(rows)
    assert found["verdicts"] == {
        "netslim": {"exact": 2},
        "torch-pruning": {"refused": 1, "wrong": 1},
    }
    assert found["coverage"]["traced"] == {"share": 1.0, "of": 2, "missed": []}
    assert found["coverage"]["cut channels felt by the outputs"] == 14
    assert found["against_peer"]["median time ratio"] == 0.5
    assert found["against_peer"]["more memory"] == ["timm:a"]
    assert "| timm:a |" in table.markdown(rows, found)


def test_what_is_renewed_partly_says_so(tmp_path: Path) -> None:
    common = load("_common")
    path = common.record("zoo", {"networks": 1}, folder=tmp_path, partly=True)
    whole = json.loads(path.read_text())
    assert list(whole) == ["networks", "environment"]
    common.record("zoo", {"networks": 2}, folder=tmp_path, partly=True)
    found = json.loads(path.read_text())
    assert list(found["renewed"]) == ["date", "command"]
    assert found == {
        "networks": 2,
        "renewed": found["renewed"],
        "environment": whole["environment"],
    }
    common.record("zoo", {"networks": 3}, folder=tmp_path)
    assert "renewed" not in json.loads(path.read_text())


def test_without_the_peer_a_benchmark_runs_alone_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # what is None there cannot be imported
    trace, common = load("trace"), load("_common")
    recorded: list[str] = []
    monkeypatch.setattr(common, "record", lambda name, results: recorded.append(name))
    monkeypatch.setattr(trace, "NETWORKS", {"squeezenet1_1": "classifier.1"})
    monkeypatch.setattr(sys, "argv", ["trace.py", "--rounds", "2", "--threads", "1"])
    trace.main()
    told = capsys.readouterr()
    assert "squeezenet1_1" in told.out
    assert "torch-pruning s" not in told.out
    assert "torch-pruning is not installed" in told.err
    assert recorded == []
    ways = ("l1", "tp:BNScalePruner")
    assert load("_study").possible(ways) == ["l1"]
    assert load("_study").possible(ways[:1]) == ["l1"]
