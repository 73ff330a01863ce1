"""netslim: train with channel sparsity, cut channels out of any PyTorch model, prove the cut,
fine-tune, measure.

The verbs and what they take are here; everything else is in its room: `netslim.errors`,
`netslim.graph`, `netslim.surgery`, `netslim.selection`, `netslim.models`, `netslim.measure`,
`netslim.methods`, `netslim.data`, `netslim.report`, `netslim.training`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from netslim.errors import NetslimError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.rules.register import register_rule
from netslim.measure.count import cost
from netslim.measure.latency import latency
from netslim.measure.table.measuring import latency_table
from netslim.methods.centripetal import CentripetalSGD
from netslim.methods.gradual import GradualPruning
from netslim.methods.masking import Mask
from netslim.methods.search import search
from netslim.methods.sensitivity import sensitivity
from netslim.methods.slim import slim
from netslim.methods.slimming import NetworkSlimming
from netslim.methods.soft_filter import SoftFilterPruning
from netslim.models.checkpoint import load, save
from netslim.models.export import export
from netslim.selection.criteria.registry import criterion
from netslim.selection.criteria.scoring import score
from netslim.selection.options import Budget, Limits
from netslim.selection.select import select
from netslim.surgery.plan import PruningPlan
from netslim.surgery.proof.verify import verify
from netslim.surgery.prune import prune, prune_

__version__ = "0.2.0"
_LATER = {name: name for name in ("data", "report", "training")} | {"zoo": "models.zoo"}

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


if TYPE_CHECKING:  # the rooms, for type checkers; a `__getattr__` would allow any name to them
    from netslim import data as data
    from netslim import errors as errors
    from netslim import graph as graph
    from netslim import measure as measure
    from netslim import methods as methods
    from netslim import models as models
    from netslim import report as report
    from netslim import selection as selection
    from netslim import surgery as surgery
    from netslim import training as training
    from netslim.models import zoo as zoo
else:

    def __getattr__(name: str) -> object:
        """Rooms that need more than torch, and the networks, are imported when asked for."""
        if name in _LATER:
            return importlib.import_module(f"netslim.{_LATER[name]}")
        raise AttributeError(f"module 'netslim' has no attribute {name!r}")
