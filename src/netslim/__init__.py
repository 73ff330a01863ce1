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
from .graph import ChannelGraph, trace
from .latency import Latency, latency
from .plan import PruningPlan
from .rules import register_rule
from .scores import score
from .slim import slim
from .sparsity import NetworkSlimming
from .surgery import prune, prune_
from .verify import Verification, verify

__version__ = "0.1.0"
_ROOMS = ("data", "models", "plots", "report", "training", "zoo")

__all__ = [
    "Budget",
    "ChannelGraph",
    "CheckpointError",
    "Cost",
    "DataError",
    "Latency",
    "NetslimError",
    "NetworkSlimming",
    "PlanError",
    "PruningPlan",
    "RecipeError",
    "StaleGraphError",
    "SurgeryError",
    "TraceError",
    "TrainingError",
    "Verification",
    "VerificationError",
    "cost",
    "latency",
    "load",
    "prune",
    "prune_",
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
