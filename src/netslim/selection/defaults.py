"""What is taken where nothing is said, for every way to ask for a cut alike.

======================================  ================  ==========  ==============================
what is given                           criterion         allocation  compensation
======================================  ================  ==========  ==============================
a criterion                             it                global      none
amounts by name alone                   l1                global      none
batches of data                         obs               cost        nearest fit, statistics anew
no data; ``cut_channels`` alone         bn_scale          global      none
the same, no batch-norm scale is there  l2                uniform     none
no data; any other budget               obs, on noise     cost        nearest fit, statistics anew
the same, no batch-norm statistics      l2                uniform     none
======================================  ================  ==========  ==============================

An allocation or compensation that is given is taken in every case. A percentage of all channels by
the batch-norm scales is Network Slimming (Liu et al. 2017), amounts by name with the sums of kernel
weights are Li et al. 2017. For costs, and with data, the criterion that judges what a layer loses
when the others make up for a channel, spread to lose least for what is saved, measured best of all
(benchmarks/accuracy_at_budget.py). Without data, noise that has the statistics of the batch
normalisation takes the place of data (`netslim.methods.noise`): of the ways without data it lost
least by far (benchmarks/without_data.py). Where a network has no such statistics, or takes no
noise, the same share of every layer is the safe choice.
Fits layer after layer lost least of the ways to make up for what went, with data and without
(benchmarks/compensation.py, without_data.py), but not in every network: what is nearer on examples
held out is kept, they or fits of channels at once; and fresh statistics where they help besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.selection.criteria.scoring import as_scoring
from netslim.selection.options import AUTO, Budget, Compensation, Scoring, plain, said
from netslim.surgery.compensation.ways import BEST
from netslim.surgery.why import Why

PLAIN = "l2"  # what scores filters where there is no data
BN_SCALE = "bn_scale"  # Network Slimming's


@dataclass(frozen=True)
class Choice:
    """How a budget is met: what makes channels important, how the cut is spread and made up for.

    Attributes:
        scoring, allocation, compensation: as everywhere.
        advice: what would be better, where nothing was said; or empty.
        noise: whether noise takes the place of data.
        blind: whether there is no data, and noise would be better where the network takes it.
    """

    scoring: Scoring
    allocation: str
    compensation: Compensation
    advice: str = field(default="", compare=False)
    noise: bool = False
    blind: bool = field(default=False, compare=False)

    @property
    def mends(self) -> bool:
        """Whether anything is done about that which removed channels emit."""
        return bool(self.compensation.fold or self.compensation.recalibrate)

    def why(self, known: Why) -> Why:
        """What is known of why a plan keeps what it keeps, with what was chosen.

        The allocation that the plan was made by counts: greedy choice has its own.
        """
        criterion = _named(self.scoring)
        if self.noise:
            criterion += " on noise"
        return replace(
            known,
            criterion=criterion,
            allocation=known.allocation or self.allocation,
            compensation=in_words(self.compensation),
        )


def _named(scoring: Scoring) -> str:
    """The name of a criterion, with the options of the scoring that were said."""
    name = str(plain(scoring.criterion))
    more = [f"{key} {value}" for key, value in said(scoring).items() if key != "criterion"]
    if more:
        name += f" ({', '.join(more)})"
    return name


def in_words(compensation: Compensation) -> str:
    """What is done about that which removed channels emit."""
    parts: list[str | None] = [compensation.fold]
    if compensation.recalibrate:
        parts.append("batch-norm statistics taken anew")
    return " and ".join(filter(None, parts)) or "none"


def chosen(
    budget: Budget | None,
    per_group: Mapping[str, float | int] | None,
    *,
    data: bool | Literal["noise"],
    criterion: str | Callable[..., Any] | Scoring = AUTO,
    allocation: str = AUTO,
    compensation: Compensation | Literal["auto"] | None = AUTO,
    graph: ChannelGraph | None = None,
) -> Choice:
    """What is taken, by the table above.

    Args:
        budget: what to reach.
        per_group: name or pattern -> what goes there.
        data: whether there are batches of training data, or noise takes their place.
        criterion: ``"auto"``, a name, a function, or a `Scoring`, whose criterion may be
            ``"auto"``, too.
        allocation: ``"auto"``, or a name.
        compensation: ``"auto"``, what to do, or None for nothing.
        graph: of the network, which tells whether it has batch-norm scales; None takes it that it
            has.

    Raises:
        ArgumentError: ``compensation`` is none of these.
    """
    if not isinstance(compensation, Compensation | None) and compensation != AUTO:
        raise ArgumentError(
            "compensation must be a netslim.selection.Compensation, None or 'auto', got "
            f"{compensation!r}"
        )
    scoring = as_scoring(criterion)
    best = Choice(scoring, "global", Compensation())
    if scoring.criterion == AUTO:
        best = _best(scoring, budget, per_group, data, graph)
    if allocation != AUTO:
        best = replace(best, allocation=allocation)
    if compensation != AUTO:
        best = replace(best, compensation=compensation or Compensation())
    return best


def _best(
    scoring: Scoring,
    budget: Budget | None,
    per_group: Mapping[str, float | int] | None,
    data: bool | Literal["noise"],
    graph: ChannelGraph | None,
) -> Choice:
    asked = set() if budget is None else set(budget.given())
    if per_group and not asked:
        return Choice(replace(scoring, criterion="l1"), "global", Compensation())
    mended = Compensation(BEST, recalibrate=True)
    looking = Choice(replace(scoring, criterion="obs"), "cost", mended)
    if data is True:
        return looking
    advice = f"; better, with training data (--data, batches=): {looking.why(Why()).told()}"
    if asked == {"cut_channels"} and (graph is None or _scaled(graph)):
        return Choice(replace(scoring, criterion=BN_SCALE), "global", Compensation(), advice)
    if data == "noise":
        advice = "; better, with training data (--data, batches=)"
        return replace(looking, advice=advice, noise=True)
    plain = replace(scoring, criterion=PLAIN)
    return Choice(plain, "uniform", Compensation(), advice, blind=True)


def _scaled(graph: ChannelGraph) -> bool:
    """Whether some channel that may go has a scale of a normalisation."""
    return any(group.tensors("scale") for group in graph.groups if not group.frozen)


__all__ = ["AUTO", "BN_SCALE", "PLAIN", "Choice", "chosen", "in_words"]
