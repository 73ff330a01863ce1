"""netslim: train with channel sparsity, cut channels out of any PyTorch model, prove the cut,
fine-tune, measure.

The verbs and what they take are here; everything else is in its room: `netslim.errors`,
`netslim.graph`, `netslim.surgery`, `netslim.selection`, `netslim.models`, `netslim.measure`,
`netslim.methods`, `netslim.data`, `netslim.report`, `netslim.training`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from netslim import errors as errors
from netslim.errors import NetslimError

__version__ = "0.2.0"
# Where each name is from. All but the errors is imported when it is asked for: torch takes seconds,
# and `netslim --version` needs none of it.
_HOMES = {
    "Budget": "netslim.selection.options",
    "CentripetalSGD": "netslim.methods.centripetal",
    "ChannelGraph": "netslim.graph.channel_graph",
    "GradualPruning": "netslim.methods.gradual",
    "Limits": "netslim.selection.options",
    "Mask": "netslim.methods.masking",
    "NetworkSlimming": "netslim.methods.slimming",
    "PruningPlan": "netslim.surgery.plan",
    "SoftFilterPruning": "netslim.methods.soft_filter",
    "cost": "netslim.measure.count",
    "criterion": "netslim.selection.criteria.registry",
    "export": "netslim.models.export",
    "latency": "netslim.measure.latency",
    "latency_table": "netslim.measure.table.measuring",
    "load": "netslim.models.checkpoint",
    "prune": "netslim.surgery.prune",
    "prune_": "netslim.surgery.prune",
    "quantize": "netslim.methods.quantizing",
    "register_rule": "netslim.graph.rules.register",
    "save": "netslim.models.checkpoint",
    "score": "netslim.selection.criteria.scoring",
    "search": "netslim.methods.search",
    "select": "netslim.selection.select",
    "sensitivity": "netslim.methods.sensitivity",
    "slim": "netslim.methods.slim",
    "trace": "netslim.graph",
    "verify": "netslim.surgery.proof.verify",
}
_ROOMS = (
    *("data", "graph", "measure", "methods", "models", "report", "selection", "surgery"),
    "training",
)
# What lives in a room, and is looked for here: whoever asks is told where. No room is imported for
# that, as `from netslim import cli` comes by here, too.
_ELSEWHERE = {
    "measure": ("Cost", "Latency", "LatencyTable", "size_on_disk"),
    "methods": (
        *("Distillation", "Quantization", "Quantized", "SearchResult", "Sensitivity"),
        *("add_slimming_gradient", "cifar_resnet_cut", "parameter_groups", "plan_of_zeros"),
        *("slimming_penalty", "soft_threshold_", "softened", "zeroed"),
    ),
    "models": (
        *("ChannelSelect", "Exported", "PaddedNorm", "SeparateHeads", "add_bn", "add_selection"),
        *("build", "build_uncut", "constructor", "drop_idle_selections", "names", "plain"),
    ),
    "selection": ("Compensation", "Scoring", "greedy", "merge", "normalized"),
    "surgery": ("Folding", "Verification", "compensate", "cut_inputs", "recalibrate", "unsharded"),
    "errors": tuple(errors.__all__),
}

__all__ = [
    "Budget",
    "CentripetalSGD",
    "ChannelGraph",
    "GradualPruning",
    "Limits",
    "Mask",
    "NetslimError",
    "NetworkSlimming",
    "PruningPlan",
    "SoftFilterPruning",
    "cost",
    "criterion",
    "export",
    "latency",
    "latency_table",
    "load",
    "prune",
    "prune_",
    "quantize",
    "register_rule",
    "save",
    "score",
    "search",
    "select",
    "sensitivity",
    "slim",
    "trace",
    "verify",
]


if TYPE_CHECKING:  # for type checkers; a `__getattr__` would allow any name to them
    from netslim import data as data
    from netslim import graph as graph
    from netslim import measure as measure
    from netslim import methods as methods
    from netslim import models as models
    from netslim import report as report
    from netslim import selection as selection
    from netslim import surgery as surgery
    from netslim import training as training
    from netslim.graph import trace as trace
    from netslim.graph.channel_graph import ChannelGraph as ChannelGraph
    from netslim.graph.rules.register import register_rule as register_rule
    from netslim.measure.count import cost as cost
    from netslim.measure.latency import latency as latency
    from netslim.measure.table.measuring import latency_table as latency_table
    from netslim.methods.centripetal import CentripetalSGD as CentripetalSGD
    from netslim.methods.gradual import GradualPruning as GradualPruning
    from netslim.methods.masking import Mask as Mask
    from netslim.methods.quantizing import quantize as quantize
    from netslim.methods.search import search as search
    from netslim.methods.sensitivity import sensitivity as sensitivity
    from netslim.methods.slim import slim as slim
    from netslim.methods.slimming import NetworkSlimming as NetworkSlimming
    from netslim.methods.soft_filter import SoftFilterPruning as SoftFilterPruning
    from netslim.models import zoo as zoo
    from netslim.models.checkpoint import load as load
    from netslim.models.checkpoint import save as save
    from netslim.models.export import export as export
    from netslim.selection.criteria.registry import criterion as criterion
    from netslim.selection.criteria.scoring import score as score
    from netslim.selection.options import Budget as Budget
    from netslim.selection.options import Limits as Limits
    from netslim.selection.select import select as select
    from netslim.surgery.plan import PruningPlan as PruningPlan
    from netslim.surgery.proof.verify import verify as verify
    from netslim.surgery.prune import prune as prune
    from netslim.surgery.prune import prune_ as prune_
else:

    def __getattr__(name: str) -> object:
        """A verb, a class or a room, imported now."""
        if name in _HOMES:
            globals()[name] = found = getattr(importlib.import_module(_HOMES[name]), name)
            return found
        if name in _ROOMS:
            return importlib.import_module(f"netslim.{name}")
        if name == "zoo":
            return importlib.import_module("netslim.models.zoo")
        homes = [f"netslim.{room}.{name}" for room, names in _ELSEWHERE.items() if name in names]
        hint = f"; it is {homes[0]}" if homes else ""
        raise AttributeError(f"module 'netslim' has no attribute {name!r}{hint}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_ROOMS})
