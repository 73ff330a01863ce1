"""How much must go, of which resource, and how that is spread over the groups.

- ``resources.py``: what a budget limits, as a function of the widths; `resource` registers more;
- ``limits.py``: what a cut must respect, whatever it is to reach;
- ``choice.py``: the groups that may be cut, and which of their units go first;
- ``ladder.py``: the steps in which units may go, and how much of each resource is left after them;
- ``allocation.py``, ``knapsack.py``: how the budget is spread; `allocation` registers more ways.

`netslim.select`, one floor up, puts them together and refuses what cannot be met.
"""

from netslim.selection.budget.allocation import ALLOCATIONS
from netslim.selection.budget.choice import Chooser, Masks
from netslim.selection.budget.ladder import Goal, Ladder
from netslim.selection.budget.limits import caps, staying
from netslim.selection.budget.resources import RESOURCES, Asked, Products, resource

__all__ = [
    "ALLOCATIONS",
    "RESOURCES",
    "Asked",
    "Chooser",
    "Goal",
    "Ladder",
    "Masks",
    "Products",
    "caps",
    "resource",
    "staying",
]
