"""netslim: train with channel sparsity, cut channels out of any PyTorch model, prove the cut, fine-tune, measure."""

from __future__ import annotations

import importlib
from typing import Any

from .budget import Budget, select
from .checkpoint import load, save
from .cost import Cost, cost
from .errors import (
    CheckpointError,
    DataError,
    NetslimError,
    PlanError,
    RecipeError,
    StaleGraphError,
    SurgeryError,
    TraceError,
    TrainingError,
    VerificationError,
)
from .fold import Folding, fold_constants
from .graph import ChannelGraph, trace
from .greedy import greedy
from .insertion import ChannelSelect, add_bn, add_selection, drop_idle_selections
from .latency import Latency, latency
from .merging import merge
from .plan import PruningPlan
from .recalibrate import recalibrate
from .rules import register_rule
from .scores import score
from .slim import slim
from .sparsity import CentripetalSGD, Mask, NetworkSlimming, SoftFilterPruning, parameter_groups
from .surgery import prune, prune_
from .verify import Verification, verify

__version__ = "0.1.0"
_ROOMS = ("data", "models", "plots", "report", "training", "zoo")

__all__ = [
    "Budget",
    "CentripetalSGD",
    "ChannelGraph",
    "ChannelSelect",
    "CheckpointError",
    "Cost",
    "DataError",
    "Folding",
    "Latency",
    "Mask",
    "NetslimError",
    "NetworkSlimming",
    "PlanError",
    "PruningPlan",
    "RecipeError",
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
    "drop_idle_selections",
    "fold_constants",
    "greedy",
    "latency",
    "load",
    "merge",
    "parameter_groups",
    "prune",
    "prune_",
    "recalibrate",
    "register_rule",
    "save",
    "score",
    "select",
    "slim",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Rooms that need more than torch are imported when they are first asked for."""
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'netslim' has no attribute {name!r}")
