"""Whatever stands at a parameter of whatever users call: it is refused in words that name the
parameter, before anything is written, or it will do. Never a raw error.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import netslim
from netslim import Budget, Limits, NetslimError
from netslim.errors import ArgumentError
from netslim.graph.rules.registry import RULES
from netslim.selection.criteria.registry import CRITERIA

THING = object()  # which is wrong everywhere
VALUES = [-1, "a", "", None, [], THING, math.nan, 10**400]
# Calls that take long where a value will do.
SLOW = {"CentripetalSGD", "data.load", "export", "latency_table", "training.run"}
# How a message names some parameters.
NAMES = {
    "companions": "companion",
    "example_inputs": "example inputs",
    "optimizer": "ptimizer|not attached to",
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()


@functools.cache
def made() -> dict[str, Any]:
    """What a call needs; nothing here may be changed by one."""
    torch.manual_seed(0)
    model, x = network(), torch.randn(2, 1, 6, 6)
    graph = netslim.trace(model, x)
    scores = netslim.score(graph, model, "l1")
    plan = netslim.select(graph, scores, Budget(cut_channels=0.5))
    table = netslim.latency_table(model, graph, x, cache=False, threads=1)
    curve = netslim.sensitivity(model, x, evaluate, ratios=[0.5])
    images = netslim.data.ImageTensors(
        torch.zeros(8, 1, 6, 6, dtype=torch.uint8), torch.zeros(8, dtype=torch.long)
    )
    return {
        "x": x,
        "graph": graph,
        "scores": scores,
        "plan": plan,
        "table": table,
        "curve": curve,
        "images": images,
        "small": netslim.prune(model, plan),
        "cost": netslim.cost(model, x),
        "saved": model.state_dict(),
    }


def evaluate(model: nn.Module) -> float:
    return 0.5


def halved(share: float) -> nn.Module:
    return network()


class Given:
    """A network and an optimizer of a case's own, and what is shared."""

    def __init__(self) -> None:
        self.model = network()
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def __getattr__(self, name: str) -> Any:
        return made()[name]


Case = tuple[Callable[..., Any], dict[str, Any]]
N = netslim
M, S, D, T = netslim.methods, netslim.selection, netslim.data, netslim.training


# Name -> what is called, and with what, given a network.
CALLS: dict[str, Callable[[Given], Case]] = {
    "Budget": lambda g: (Budget, {"cut_channels": 0.5}),
    "Limits": lambda g: (Limits, {}),
    "Scoring": lambda g: (S.Scoring, {}),
    "Compensation": lambda g: (S.Compensation, {}),
    "trace": lambda g: (N.trace, {"model": g.model, "example_inputs": g.x}),
    "score": lambda g: (N.score, {"graph": g.graph, "model": g.model, "criterion": "l1"}),
    "score taylor": lambda g: (
        N.score,
        {"graph": g.graph, "model": g.model, "criterion": "taylor", "batches": batches(g)},
    ),
    "select": lambda g: (
        N.select,
        {"graph": g.graph, "scores": g.scores, "budget": Budget(cut_channels=0.5)},
    ),
    "prune": lambda g: (N.prune, {"model": g.model, "plan": g.plan}),
    "prune_": lambda g: (N.prune_, {"model": g.model, "plan": g.plan, "optimizer": g.sgd}),
    "verify": lambda g: (
        N.verify,
        {"model": g.model, "small": g.small, "plan": g.plan, "example_inputs": g.x},
    ),
    "slim": lambda g: (
        N.slim,
        {"model": g.model, "example_inputs": g.x, "budget": Budget(cut_channels=0.5)},
    ),
    "save": lambda g: (N.save, {"model": g.model, "path": "saved.safetensors"}),
    "load": lambda g: (N.load, {"model": g.model, "path": "saved.safetensors"}),
    "cost": lambda g: (N.cost, {"model": g.model, "example_inputs": g.x}),
    "latency": lambda g: (
        N.latency,
        {"models": g.model, "example_inputs": g.x, "repeats": 5, "budget_seconds": 0.001},
    ),
    "latency_table": lambda g: (
        N.latency_table,
        {"model": g.model, "graph": g.graph, "example_inputs": g.x, "cache": False},
    ),
    "search": lambda g: (
        N.search,
        {"make": halved, "evaluate": evaluate, "max_drop": 0.1, "baseline": 0.5, "max_tries": 2},
    ),
    "sensitivity": lambda g: (
        N.sensitivity,
        {"model": g.model, "example_inputs": g.x, "evaluate": evaluate, "ratios": [0.5]},
    ),
    "export": lambda g: (
        N.export,
        {"model": g.model, "example_inputs": g.x, "path": "model.pt2"},
    ),
    "criterion": lambda g: (N.criterion, {"function": lambda group, tensors: 0}),
    "register_rule": lambda g: (N.register_rule, {"op": "aten::relu", "rule": lambda *_: None}),
    "like": lambda g: (N.graph.rules.like, {"op": "aten::relu"}),
    "spatial": lambda g: (N.graph.rules.spatial, {"dims": 2}),
    "compensate": lambda g: (
        N.surgery.compensate,
        {"model": g.model, "plan": g.plan, "batches": batches(g)},
    ),
    "recalibrate": lambda g: (N.surgery.recalibrate, {"model": g.model, "batches": batches(g)}),
    "greedy": lambda g: (
        S.greedy,
        {"graph": g.graph, "model": g.model, "per_group": {"0": 0.5}},
    ),
    "merge": lambda g: (S.merge, {"graph": g.graph, "clusters": {"0": [0, 0, 1, 1]}}),
    "normalized": lambda g: (S.normalized, {"scores": g.scores, "how": "mean"}),
    "ChannelSelect": lambda g: (N.models.ChannelSelect, {"channels": 4}),
    "add_bn": lambda g: (N.models.add_bn, {"model": g.model, "example_inputs": g.x}),
    "add_selection": lambda g: (
        N.models.add_selection,
        {"model": g.model, "example_inputs": g.x},
    ),
    "build": lambda g: (N.models.build, {"name": "zoo:mlp"}),
    "build_uncut": lambda g: (N.models.build_uncut, {"path": "saved.safetensors"}),
    "constructor": lambda g: (N.models.constructor, {"name": "zoo:mlp", "kwargs": {}}),
    "drop_idle_selections": lambda g: (N.models.drop_idle_selections, {"model": g.model}),
    "names": lambda g: (N.models.names, {"prefix": "zoo:"}),
    "plain": lambda g: (N.models.plain, {"model": g.model}),
    "vgg": lambda g: (N.zoo.vgg, {"layers": [4, "M", 4]}),
    "resnet": lambda g: (N.zoo.resnet, {"depth": 20}),
    "preresnet": lambda g: (N.zoo.preresnet, {"depth": 11}),
    "densenet": lambda g: (N.zoo.densenet, {"depth": 10}),
    "mlp": lambda g: (N.zoo.mlp, {}),
    "size_on_disk": lambda g: (N.measure.size_on_disk, {"model": g.model}),
    "Cost.within": lambda g: (g.cost.within, {"name": "0"}),
    "LatencyTable.ms": lambda g: (g.table.ms, {"graph": g.graph, "masks": {}}),
    "LatencyTable.from_json": lambda g: (N.measure.LatencyTable.from_json, {"text": "{}"}),
    "LatencyTable.save": lambda g: (g.table.save, {"path": "table.json"}),
    "LatencyTable.load": lambda g: (N.measure.LatencyTable.load, {"path": "table.json"}),
    "NetworkSlimming": lambda g: (N.NetworkSlimming, {"model": g.model}),
    "NetworkSlimming.attach": lambda g: (N.NetworkSlimming(g.model).attach, {"optimizer": g.sgd}),
    "NetworkSlimming.detach": lambda g: (N.NetworkSlimming(g.model).detach, {}),
    "NetworkSlimming.share": lambda g: (N.NetworkSlimming(g.model).share_near_zero, {}),
    "NetworkSlimming.histogram": lambda g: (N.NetworkSlimming(g.model).histogram, {}),
    "SoftFilterPruning": lambda g: (
        N.SoftFilterPruning,
        {"graph": g.graph, "model": g.model, "rate": 0.5},
    ),
    "SoftFilterPruning.attach": lambda g: (soft(g).attach, {"optimizer": g.sgd}),
    "SoftFilterPruning.detach": lambda g: (soft(g).detach, {}),
    "SoftFilterPruning.end_epoch": lambda g: (soft(g).end_epoch, {}),
    "SoftFilterPruning.finish": lambda g: (soft(g).finish, {}),
    "SoftFilterPruning.plan": lambda g: (soft(g).plan, {}),
    "SoftFilterPruning.load": lambda g: (
        soft(g).load_state_dict,
        {"state": soft(g).state_dict()},
    ),
    "CentripetalSGD": lambda g: (
        N.CentripetalSGD,
        {"graph": g.graph, "model": g.model, "target": 0.5},
    ),
    "CentripetalSGD.attach": lambda g: (csgd(g).attach, {"optimizer": g.sgd}),
    "CentripetalSGD.detach": lambda g: (csgd(g).detach, {}),
    "CentripetalSGD.load": lambda g: (csgd(g).load_state_dict, {"state": csgd(g).state_dict()}),
    "GradualPruning": lambda g: (
        N.GradualPruning,
        {"model": g.model, "example_inputs": g.x, "budget": Budget(cut_channels=0.5)},
    ),
    "GradualPruning.attach": lambda g: (gradual(g).attach, {"optimizer": g.sgd, "every": 2}),
    "GradualPruning.load": lambda g: (
        gradual(g).load_state_dict,
        {"state": gradual(g).state_dict()},
    ),
    "Mask": lambda g: (N.Mask, {"model": g.model, "plan": g.plan}),
    "Mask.attach": lambda g: (N.Mask(g.model, g.plan).attach, {"optimizer": g.sgd}),
    "Mask.detach": lambda g: (N.Mask(g.model, g.plan).detach, {}),
    "Sensitivity.limits": lambda g: (g.curve.limits, {"max_drop": 0.1}),
    "Sensitivity.table": lambda g: (g.curve.table, {}),
    "Sensitivity.shown": lambda g: (g.curve.shown, {"drop": 0.1}),
    "Sensitivity.from_json": lambda g: (M.Sensitivity.from_json, {"text": "{}"}),
    "Sensitivity.save": lambda g: (g.curve.save, {"path": "curve.json"}),
    "Sensitivity.load": lambda g: (M.Sensitivity.load, {"path": "curve.json"}),
    "Sensitivity.check": lambda g: (g.curve.check, {"model": g.model}),
    "add_slimming_gradient": lambda g: (
        M.add_slimming_gradient,
        {
            "gradients": [torch.ones(4)],
            "scales": [torch.ones(4)],
            "strength": 0.1,
        },
    ),
    "cifar_resnet_cut": lambda g: (M.cifar_resnet_cut, {"depth": 56, "rate": 0.4}),
    "parameter_groups": lambda g: (
        M.parameter_groups,
        {"model": g.model, "weight_decay": 0.1},
    ),
    "plan_of_zeros": lambda g: (M.plan_of_zeros, {"graph": g.graph, "model": g.model}),
    "slimming_penalty": lambda g: (
        M.slimming_penalty,
        {"scales": [torch.ones(4)], "strength": 0.1},
    ),
    "soft_threshold_": lambda g: (
        M.soft_threshold_,
        {"scales": [torch.ones(4)], "threshold": 0.1},
    ),
    "zeroed": lambda g: (M.zeroed, {"graph": g.graph, "model": g.model}),
    "graph.macs": lambda g: (g.graph.macs, {}),
    "graph.params": lambda g: (g.graph.params, {}),
    "graph.explain": lambda g: (g.graph.explain, {"name": "0"}),
    "as_call": lambda g: (N.graph.as_call, {"example_inputs": g.x}),
    "pacesetter": lambda g: (
        N.graph.pacesetter,
        {"graph": g.graph, "group": g.graph.groups[0]},
    ),
    "projections": lambda g: (
        N.graph.projections,
        {"graph": g.graph, "group": g.graph.groups[0]},
    ),
    "group.tensors": lambda g: (g.graph.groups[0].tensors, {"role": "producer"}),
    "PruningPlan.from_json": lambda g: (N.PruningPlan.from_json, {"text": g.plan.to_json()}),
    "PruningPlan.check": lambda g: (g.plan.check, {"model": g.model}),
    "data.load": lambda g: (D.load, {"name": "digits"}),
    "Augment": lambda g: (D.Augment, {}),
    "Augment.draw": lambda g: (
        D.Augment().draw,
        {"count": 2, "generator": torch.Generator()},
    ),
    "Loader": lambda g: (
        D.Loader,
        {"split": g.images, "batch_size": 2, "mean": [0.5], "std": [0.5], "workers": 0},
    ),
    "Loader.set_epoch": lambda g: (
        D.Loader(g.images, 2, mean=[0.5], std=[0.5]).set_epoch,
        {"epoch": 1},
    ),
    "ImageTensors": lambda g: (
        D.ImageTensors,
        {"images": g.images.images, "labels": g.images.labels},
    ),
    "ImageTensors.take": lambda g: (g.images.take, {"index": torch.tensor([0])}),
    "load_recipe": lambda g: (T.load_recipe, {"source": "digits"}),
    "parse_recipe": lambda g: (
        T.parse_recipe,
        {"tree": T.load_recipe("digits").to_dict()},
    ),
    "recipe_text": lambda g: (T.recipe_text, {"source": "digits"}),
    "training.run": lambda g: (T.run, {"recipe": T.load_recipe("digits")}),
}


def batches(g: Given) -> list[Any]:
    return [(g.x, torch.tensor([0, 1]))]


def soft(g: Given) -> netslim.SoftFilterPruning:
    return netslim.SoftFilterPruning(g.graph, g.model, 0.5)


def csgd(g: Given) -> netslim.CentripetalSGD:
    return netslim.CentripetalSGD(g.graph, g.model, 0.5)


def gradual(g: Given) -> netslim.GradualPruning:
    return netslim.GradualPruning(g.model, g.x, Budget(cut_channels=0.5))


@pytest.fixture(autouse=True)
def _as_before(tmp_path, monkeypatch):
    before = [(register, dict(register)) for register in (RULES, CRITERIA)]
    monkeypatch.chdir(tmp_path)
    yield
    for register, content in before:
        register.clear()
        register.update(content)


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_value_is_refused_by_name_or_will_do(name, tmp_path):
    signature = inspect.signature(CALLS[name](Given())[0])
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        for value in VALUES:
            if value is THING or name not in SLOW:
                _refused_or_done(name, parameter.name, value, tmp_path)


def _refused_or_done(name, parameter, value, folder):
    call, arguments = CALLS[name](Given())
    before = set(os.listdir(folder))
    said = ""
    try:
        call(**{**arguments, parameter: value})
    except NetslimError as error:
        said = str(error)
    except Exception as error:
        pytest.fail(f"{name}({parameter}={value!r}): {type(error).__name__}: {error}")
    if said:
        assert set(os.listdir(folder)) == before
    if said and value is THING:
        assert re.search(f"{parameter}|{NAMES.get(parameter, parameter)}", said)


@pytest.mark.parametrize("wrong", [int, nn.L1Loss(), nn.Linear(2, 2), nn.Conv2d, max, 3])
def test_what_is_called_otherwise_is_no_criterion(wrong):
    graph = made()["graph"]
    with pytest.raises(ArgumentError, match="criterion"):
        netslim.score(graph, network(), wrong)


def test_what_is_large_is_not_printed_whole():
    for value in (torch.zeros(3000), [1.0] * 3000, "a" * 3000, 10**5000, {"a": [1] * 3000}):
        for call in (
            lambda value=value: Budget(cut_macs=value),
            lambda value=value: Limits(min_channels=value),
            lambda value=value: Limits(shortcuts=value),
            lambda value=value: netslim.selection.Scoring(lead=value),
            lambda value=value: netslim.select(
                made()["graph"], made()["scores"], per_group={"0": value}
            ),
            lambda value=value: netslim.slim(network(), made()["x"], budget=value),
        ):
            with pytest.raises(ArgumentError) as refused:
                call()
            assert len(str(refused.value)) < 400


def test_a_folder_is_no_journal(tmp_path):
    for journal in ("", ".", tmp_path):
        with pytest.raises(ArgumentError, match="journal must name a file"):
            netslim.sensitivity(network(), made()["x"], evaluate, journal=journal)
        with pytest.raises(ArgumentError, match="journal must name a file"):
            netslim.search(
                lambda share: network(), evaluate, max_drop=0.1, baseline=0.5, journal=journal
            )


@pytest.mark.parametrize("found", [True, 1.0, "1", None])
def test_a_format_is_a_whole_number(found, tmp_path):
    table = json.loads(made()["table"].to_json()) | {"format": found}
    with pytest.raises(NetslimError, match="format"):
        type(made()["table"]).from_json(json.dumps(table))
    curve = netslim.sensitivity(network(), made()["x"], evaluate, ratios=[0.5])
    damaged = json.loads(curve.to_json()) | {"format": found}
    with pytest.raises(NetslimError, match="format"):
        type(curve).from_json(json.dumps(damaged))
