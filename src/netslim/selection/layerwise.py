"""Greedy filter pruning: each layer is judged without the kernels that read what went before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.ambient import by_itself
from netslim.graph.modules.unwrapping import bare
from netslim.selection.budget.choice import Chooser, Masks
from netslim.selection.criteria.registry import Criterion
from netslim.selection.criteria.scoring import Scorer
from netslim.selection.options import Limits, Scoring, takes_options
from netslim.surgery.plan import PruningPlan
from netslim.surgery.plan_of_units import plan_keeping


@takes_options
@by_itself
def greedy(
    graph: ChannelGraph,
    model: nn.Module,
    per_group: Mapping[str, float | int],
    criterion: str | Criterion | Scoring = "l1",
    *,
    limits: Limits = Limits(),
) -> PruningPlan:
    """Choose filters layer by layer, in order of execution ("greedy", Li et al. 2017, section 3.2).

    Kernels that read channels already removed upstream are left out of the score. `netslim.select`
    is the paper's "independent pruning", which counts them.

    Args:
        graph: from `netslim.trace`.
        model: whose weights are scored; it is not changed.
        per_group: name or pattern -> what goes, a share or a count, as in `netslim.select`.
        criterion: of the weights, a name, a function or a `netslim.selection.Scoring`, see
            `netslim.score`. One that does not look at kernels, such as ``bn_scale``, makes greedy
            and independent pruning the same.
        limits: what the cut must respect whatever it is to reach.

    Raises:
        StaleGraphError: the model is not the traced one.
        ArgumentError: the criterion looks at data, an option is wrong, or a name means no group.
        PlanError: a group cannot be cut, or not as far as it says.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> plan = netslim.selection.greedy(graph, model, {"features.*": 0.5})
        >>> {name: len(group.kept) for name, group in plan.groups.items()}
        {'features.0': 4, 'features.4': 8}
    """
    model = bare(model, ArgumentError, call="greedy(graph, model, per_group)")
    graph.check(model)
    scorer = Scorer.of(graph, criterion)
    if scorer.reads_data:
        raise ArgumentError(
            f"{scorer.name} looks at data, which does not change as layers are cut: use "
            "netslim.select"
        )
    if not per_group:
        raise ArgumentError(
            "nothing to do: per_group is empty, give a share or a count for some group"
        )
    tensors = dict(scorer.tensors(model, None, None))
    found = {group.name: scorer(group, tensors) for group in graph.groups if not group.frozen}
    scores = {name: values for name, values in found.items() if values is not None}
    chooser = Chooser(graph, scores, limits)
    masks: Masks = {}
    named = chooser.named_counts(per_group)
    for number, count in named.items():
        group = graph.groups[number]
        # In order of execution, so that all that read removed channels before is zero by now.
        chooser.rescore(number, scorer(group, tensors))
        masks[number] = chooser.lowest(number, count)
        _forget(group, masks[number], tensors)
    why = chooser.why("greedy", named)
    return replace(plan_keeping(graph, masks, chooser.notes), why=why)


def _forget(group: ChannelGroup, mask: np.ndarray, tensors: dict[str, Tensor]) -> None:
    """Set to zero, in a copy, the kernels that read the units that go."""
    for s in group.readers:
        gone = torch.from_numpy(s.positions[~mask[s.units]])
        weight = tensors[s.tensor]
        tensors[s.tensor] = weight.index_fill(s.axis, gone.to(weight.device), 0)
