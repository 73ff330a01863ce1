"""The table of rules: a dict from ATen operator to function, and what rules share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from netslim.graph.modules.operators import operator, tensors_in
from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.recorder import Recorder, Rule

Op = OpOverload  # an operator as it runs: ``aten::add.Tensor``
_Others = tuple[tuple[int, str, Any], ...]
RULES: dict[str, Rule] = {}

# Arguments that change nothing for channels, whatever operator has them, and why.
IRRELEVANT = {
    "how and where numbers are kept, not which": (
        "dtype out_dtype half_to_float layout device pin_memory memory_format non_blocking implicit"
    ),
    "how it is computed, not what": (
        "benchmark deterministic cudnn_enabled cudnn_enable allow_tf32 compute_mode unroll_dim "
        "compute_log_sumexp return_debug_mask stable sorted"
    ),
    "the same number for every channel": (
        "eps epsilon momentum exponential_average_factor beta alpha p ord scale_grad_by_freq value "
        "fill_value correction unbiased"
    ),
    "for gradients alone": "sparse sparse_grad padding_idx",
    "whoever draws numbers is told to": "generator dropout_p train",
}
_IRRELEVANT = frozenset(" ".join(IRRELEVANT.values()).split())


@dataclass(frozen=True)
class Known:
    """A rule, and which arguments of its operators were thought of when it was written.

    PyTorch gives operators new arguments, with a default that leaves all as it was. Where another
    value of one that nobody has thought of is passed, the channels stay: it might mean anything,
    as ``enable_gqa`` of attention did.
    """

    rule: Rule
    arguments: frozenset[str]
    # Of each operator by its id, with itself, which so lives on: what others of its arguments are.
    others: dict[int, tuple[Op, _Others]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __call__(self, rec: Recorder, func: Op, out: Any, *args: Any, **kwargs: Any) -> None:
        self.rule(rec, func, out, *args, **kwargs)
        for name in self.unknown(func, args, kwargs):
            touched = [rec.get(t) for t in tensors_in(args, kwargs, out)]
            rec.unknown(name_of(func), touched, f"netslim does not know the argument {name} of")

    def unknown(self, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        """The names of passed arguments that nobody has thought of, and that are no defaults."""
        found = []
        for position, name, default in self._unthought(func):
            given = kwargs.get(name, default)
            if position < len(args):
                given = args[position]
            if given is not default and not _equal(given, default):
                found.append(name)
        return found

    def _unthought(self, func: Op) -> _Others:
        found = self.others.get(id(func))
        if found is None:
            found = self.others[id(func)] = func, _others(func, self.arguments)
        return found[1]


def _others(func: Op, known: frozenset[str]) -> _Others:
    """(position, name, default) of the arguments of an operator that are not among the known."""
    arguments = enumerate(func._schema.arguments)
    inputs = [(i, a) for i, a in arguments if not a.is_out and a.name not in known]
    return tuple((i, a.name, a.default_value) for i, a in inputs)


def _equal(given: Any, default: Any) -> bool:
    plain = not tensors_in(given, default)
    return plain and bool(given == default)


def rule(*names: str, reads: str, ignores: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators and of their in-place twins.

    ATen's are named without namespace. Every argument in their schemas is named: among those that
    the rule ``reads``, or that it ignores since they change nothing for channels (here those of
    these operators, in `IRRELEVANT` those of all). tests/graph/test_arguments.py compares the two.
    """
    arguments = _IRRELEVANT.union(reads.split(), ignores.split())

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = RULES[name + "_"] = Known(function, arguments)
        return function

    return register


def derived(rec: Recorder, *values: Any) -> bool:
    """Whether everything among the arguments was computed from parameters alone."""
    return all(rec.get(t).weight for t in tensors_in(values))


def labelled(rec: Recorder, *values: Any) -> bool:
    """Whether any argument carries labels."""
    return any(rec.get(t).dims for t in tensors_in(values))


def without(dims: dict[int, Vector], gone: set[int]) -> dict[int, Vector]:
    """The labels when dimensions ``gone`` are taken away; those behind them move up."""
    return {d - sum(g < d for g in gone): v for d, v in dims.items() if d not in gone}


def extent(labels: Vector | None, size: int) -> int | Vector:
    """What a dimension contributes to a cost: its labels, or its size where it carries none."""
    if labels is None:
        return size
    return labels


def name_of(func: Op) -> str:
    """``aten::add`` -> ``add``; operators from elsewhere keep their namespace."""
    return operator(func).name


def named_arguments(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments after the first that were passed, by their names in the operator's schema."""
    return {**dict(zip(operator(func).arguments[1:], args, strict=False)), **kwargs}


def asked_sizes(rec: Recorder, functions: tuple[str, ...], first: int) -> list[Any] | None:
    """The sizes that the user's code passed to one of ``functions``; None: PyTorch computed them.

    ``first`` is the position of the first size among the arguments.
    """
    if rec.calling not in functions:
        return None
    _, args, kwargs = rec.call
    names = ("shape", "size", "sizes", "dims")
    given = list(args[first:]) or [v for k, v in kwargs.items() if k in names]
    if given and isinstance(given[0], (tuple, list)):
        given = list(given[0])
    if not all(isinstance(g, int) for g in given):
        return None
    return given or None


def for_each(rec: Recorder, asked: list[Any] | None, out: Tensor) -> list[Any] | None:
    """Sizes that the user's code passed, for each dimension of a result; None: they are of another.

    Within `torch.vmap` it has dimensions in front that the code does not see.
    """
    if asked is None or len(asked) == out.dim():
        return asked
    hidden = out.dim() - len(asked)
    mapped = [t for t in tensors_in(rec.call[1]) if torch._C._functorch.is_batchedtensor(t)]
    if hidden < 0 or not mapped:
        return None
    return [None] * hidden + asked


__all__ = [
    "IRRELEVANT", "RULES", "Known", "Op", "Rule", "asked_sizes", "derived", "extent",
    "for_each", "labelled", "name_of", "named_arguments", "rule", "tensors_in", "without",
]  # fmt: skip
