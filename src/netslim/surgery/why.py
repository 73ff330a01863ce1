"""Why a plan keeps what it keeps: what was asked for, by which scores, and where the threshold is.

It goes with the plan into its file. What the plan does to a model does not hang on it: two plans
that cut the same are equal, whatever led there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Scores = tuple[float, ...]


@dataclass(frozen=True)
class Why:
    """How the units of one cut were chosen.

    Attributes:
        criterion: what scored the units, with the options that were said; empty where scores were
            given without it.
        allocation: how the cut was spread over the groups.
        compensation: what was done about that which removed channels emit.
        budget: what was to be reached, as in `netslim.Budget`.
        per_group: group name -> how many of its units were to go, where names said so.
        limits: those of `netslim.Limits` that were said.
        latency: of a budget of latency that was met by the clock: the shares of the time that were
            asked for, foretold by the table and measured; empty where nothing was timed.
        scores: group name -> one score a unit, for all groups that could be cut; larger is more
            important.
    """

    criterion: str = ""
    allocation: str = ""
    compensation: str = ""
    budget: Mapping[str, Any] = field(default_factory=dict)
    per_group: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)

    def told(self) -> str:
        """What was chosen, in words."""
        return (
            f"criterion {self.criterion}, allocation {self.allocation}, "
            f"compensation {self.compensation}"
        )

    def chosen(self) -> str:
        """The same as a sentence of a plan."""
        return f"chosen: {self.told()}"

    def threshold(self, name: str, kept: Iterable[int]) -> tuple[float | None, float | None]:
        """(largest score removed, smallest score kept) of a group of which these units stay.

        None where nothing of it goes or stays, or it has no scores.
        """
        values, stays = self.scores.get(name, ()), set(kept)
        gone = [value for unit, value in enumerate(values) if unit not in stays]
        left = [value for unit, value in enumerate(values) if unit in stays]
        return max(gone, default=None), min(left, default=None)


__all__ = ["Scores", "Why"]
