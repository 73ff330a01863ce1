"""From scores to a plan that meets a budget.

- ``limits.py``: what a cut must respect, whatever it is to reach;
- ``choice.py``: the groups that may be cut, and which of their units go first;
- ``ladder.py``: the steps in which units may go, and how much of each resource is left after them;
- ``allocation.py``, ``knapsack.py``: how the budget is spread over the groups;
- ``select.py``: `Budget` and `select`, which refuses what cannot be met.
"""

from netslim.selection.budget.allocation import ALLOCATIONS, Allocation
from netslim.selection.budget.choice import Chooser, Masks
from netslim.selection.budget.limits import Limits, Shortcuts
from netslim.selection.select import Budget, select

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Budget",
    "Chooser",
    "Limits",
    "Masks",
    "Shortcuts",
    "select",
]
