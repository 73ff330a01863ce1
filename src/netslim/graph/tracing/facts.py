"""What all recordings of a trace ask of a model, and which is the same whatever they find.

A trace records a model once or a few times: as heads and as their width (head_widths.py), at other
sizes, or again where a number was taken for one of heads. Its code is read once for all of them,
and one run tells who else reads a weight, and which other sizes it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from netslim.graph.integers import names_read


@dataclass
class Facts:
    """What is known of a model, found out by the first recording that asks.

    Attributes:
        model: the traced one.
        elsewhere: of the path of a module whether other code than its own reads its weight
            (read_by_others.py).
        takes: of the number of another size whether it runs at that (other_sizes.py).
    """

    model: nn.Module
    elsewhere: dict[str, bool] = field(default_factory=dict)
    takes: dict[int, bool] = field(default_factory=dict)

    @cached_property
    def names_read(self) -> frozenset[str]:
        """Names that the code may read."""
        return names_read(self.model)


__all__ = ["Facts"]
