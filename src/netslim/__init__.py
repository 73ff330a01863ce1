"""netslim: train with channel sparsity, cut channels out of any PyTorch model, prove the cut,
fine-tune, measure.
"""

from __future__ import annotations

import importlib
from typing import Any

from netslim.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    ExportError,
    NetslimError,
    PlanError,
    RecipeError,
    StaleGraphError,
    SurgeryError,
    TraceError,
    TrainingError,
    VerificationError,
)
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.rules.register import register_rule
from netslim.measure.count import Cost, cost
from netslim.measure.latency import Latency, latency
from netslim.measure.table.latency_table import LatencyTable
from netslim.measure.table.measuring import latency_table
from netslim.methods.centripetal import CentripetalSGD
from netslim.methods.decay import parameter_groups
from netslim.methods.gradual import GradualPruning
from netslim.methods.masking import Mask
from netslim.methods.search import SearchResult, search
from netslim.methods.sensitivity import sensitivity
from netslim.methods.sensitivity_result import Sensitivity
from netslim.methods.slim import slim
from netslim.methods.slimming import NetworkSlimming
from netslim.methods.soft_filter import SoftFilterPruning
from netslim.models.add_bn import add_bn
from netslim.models.checkpoint import load, save
from netslim.models.export import Exported, export
from netslim.models.selection import ChannelSelect, add_selection, drop_idle_selections
from netslim.selection.criteria.normalisation import normalized
from netslim.selection.criteria.registry import criterion
from netslim.selection.criteria.scoring import score
from netslim.selection.greedy import greedy
from netslim.selection.merge import merge
from netslim.selection.select import Budget, select
from netslim.surgery.compensate.batch_norm import recalibrate
from netslim.surgery.compensate.constants import Folding, fold_constants
from netslim.surgery.compensate.linear import reconstruct
from netslim.surgery.plan import PruningPlan
from netslim.surgery.proof.verify import Verification, verify
from netslim.surgery.prune import prune, prune_

__version__ = "0.1.0"
_ROOMS = ("data", "models", "plots", "report", "training", "zoo")

__all__ = [
    "ArgumentError",
    "Budget",
    "CentripetalSGD",
    "ChannelGraph",
    "ChannelSelect",
    "CheckpointError",
    "Cost",
    "DataError",
    "ExportError",
    "Exported",
    "Folding",
    "GradualPruning",
    "Latency",
    "LatencyTable",
    "Mask",
    "NetslimError",
    "NetworkSlimming",
    "PlanError",
    "PruningPlan",
    "RecipeError",
    "SearchResult",
    "Sensitivity",
    "SoftFilterPruning",
    "StaleGraphError",
    "SurgeryError",
    "TraceError",
    "TrainingError",
    "Verification",
    "VerificationError",
    "add_bn",
    "add_selection",
    "cost",
    "criterion",
    "drop_idle_selections",
    "export",
    "fold_constants",
    "greedy",
    "latency",
    "latency_table",
    "load",
    "merge",
    "normalized",
    "parameter_groups",
    "prune",
    "prune_",
    "recalibrate",
    "reconstruct",
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


def __getattr__(name: str) -> Any:
    """Rooms that need more than torch are imported when they are first asked for."""
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'netslim' has no attribute {name!r}")
