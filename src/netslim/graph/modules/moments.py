"""Mean and variance of what passes through a network, batch by batch, with nothing kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class RunningMoments:
    """Mean and population variance of rows that come in parts; float64 on the CPU.

    Two parts are put together by their counts, means and sums of squares about the mean (Chan et
    al. 1979): ``spread = spread_a + spread_b + (mean_b - mean_a)^2 n_a n_b / (n_a + n_b)``. Summing
    plain squares would lose the variance of channels whose mean is large.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    spread: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def variance(self) -> Tensor:
        return self.spread / self.count

    def add(self, rows: Tensor) -> None:
        """Take in rows of shape (examples, channels)."""
        rows = rows.detach().cpu().double()
        mean = rows.mean(0)
        self.join(len(rows), mean, (rows - mean).square().sum(0))

    def join(self, count: int, mean: Tensor, spread: Tensor) -> None:
        """Take in a part of which the moments are known, each of shape (channels,)."""
        step, total = mean - self.mean, self.count + count
        self.spread = self.spread + spread + step.square() * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total
