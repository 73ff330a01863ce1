"""What each ATen operator does to labels.

A rule is ``rule(recorder, func, out, *args, **kwargs)`` with the operator's own arguments. It ties
the dimensions that must be cut together, gives the output its labels, and notes what must stay.
`RULES` maps the operator's name (without overload) to its rule; pointwise operators are known by
their tag; `fallback` freezes the rest.
"""

from netslim.graph.rules import contracting, creating, rearranging, recurring, reducing
from netslim.graph.rules.elementwise import fallback
from netslim.graph.rules.register import find_rule, operator_name, register_rule
from netslim.graph.rules.registry import RULES

__all__ = [
    "RULES",
    "contracting",
    "creating",
    "fallback",
    "find_rule",
    "operator_name",
    "rearranging",
    "recurring",
    "reducing",
    "register_rule",
]
