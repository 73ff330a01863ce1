"""Words and figures that the table and the explanations share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.counts import Count
from netslim.graph.tracing.atoms import Vector

TEACH = "netslim.register_rule teaches netslim an operator"


def amount(number: int, what: str) -> str:
    """``1 channel``, ``1,024 channels``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int, last: str = "and") -> str:
    """``a, b and c``; beyond ``most`` names ``a, b and 7 more``."""
    shown = (
        list(names) if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    )
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {last} {shown[-1]}"


def shape(sizes: tuple[int, ...]) -> str:
    """``64 x 3 x 7 x 7``."""
    return " x ".join(map(str, sizes)) or "a single number"


def entries(positions: Vector) -> str:
    """``entries 0 to 3, 8 and 10 to 11``."""
    runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"{'entry' if len(positions) == 1 else 'entries'} {listed(spans, 6)}"


def shares(graph: ChannelGraph) -> dict[str, tuple[float, float, float]]:
    """Group name -> shares of the parameters, MACs and activations that would go with all of its
    units.
    """
    gone = np.zeros((len(graph.groups), 3))
    layers = [output for output in graph.outputs if output.layer]
    products = [
        [p.factors for p in part] for part in (graph.parameters.values(), graph.costs, layers)
    ]
    for column, part in enumerate(products):
        for factors in part:
            for group, left in _without(factors).items():
                gone[group, column] += left
    gone /= np.maximum([graph.params(), graph.macs(), graph.activations()], 1)
    return {g.name: (p, m, a) for g, (p, m, a) in zip(graph.groups, gone.tolist(), strict=True)}


def _without(factors: tuple[Count, ...]) -> dict[int, int]:
    """Group number -> how much of a product goes with all units of the group."""
    sizes = [(factor.kept({}), {g: int(n.sum()) for g, n in factor.shares}) for factor in factors]
    gone = {}
    for group in {g for _, held in sizes for g in held}:
        whole = left = 1
        for size, held in sizes:
            whole, left = whole * size, left * (size - held.get(group, 0))
        gone[group] = whole - left
    return gone
