"""netslim: train with channel sparsity, cut channels out of any PyTorch model, prove the cut, fine-tune, measure."""

from __future__ import annotations

import importlib
from typing import Any

from .budget import Budget, select
from .checkpoint import load, save
from .cost import Cost, cost
from .errors import (
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
from .export import Exported, export
from .fold import Folding, fold_constants
from .gradual import GradualPruning
from .graph import ChannelGraph, trace
from .greedy import greedy
from .insertion import ChannelSelect, add_bn, add_selection, drop_idle_selections
from .latency import Latency, latency
from .merging import merge
from .plan import PruningPlan
from .recalibrate import recalibrate
from .reconstruct import reconstruct
from .rules import register_rule
from .scores import criterion, normalized, score
from .search import SearchResult, search
from .sensitivity import Sensitivity, sensitivity
from .slim import slim
from .sparsity import CentripetalSGD, Mask, NetworkSlimming, SoftFilterPruning, parameter_groups
from .surgery import prune, prune_
from .tables import LatencyTable, latency_table
from .verify import Verification, verify

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
