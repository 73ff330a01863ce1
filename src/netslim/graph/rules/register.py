"""Rules from outside: teach netslim an operator of your own, or override one of its rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch._ops import OpOverload, OpOverloadPacket

from netslim._support import brief, checks_calls
from netslim.errors import ArgumentError, TraceError
from netslim.graph.rules.elementwise import pointwise
from netslim.graph.rules.registry import RULES, Known, Op, Rule, tensors_in
from netslim.graph.tracing.atoms import ATOM
from netslim.graph.tracing.labels import Labels
from netslim.graph.tracing.recorder import Recorder

Own = TypeVar("Own", bound=Rule)  # a decorated function stays what it is
_FORMS = (
    "'namespace::name', torch.ops.namespace.name, one of its overloads, or what "
    "torch.library.custom_op returned"
)


@overload
def register_rule(op: Any, rule: Own) -> Own: ...
@overload
def register_rule(op: Any) -> Callable[[Own], Own]: ...
@checks_calls
def register_rule(op: Any, rule: Rule | None = None) -> Any:
    """Teach netslim what an operator does to channels, from then on and for all its overloads.

    Args:
        op: ``"namespace::name"``, ``torch.ops.namespace.name`` (a packet or one overload), or what
            ``torch.library.custom_op`` returned. An in-place twin (``name_``) is an operator of its
            own.
        rule: ``rule(recorder, func, out, *args, **kwargs)``, called after each call of the operator
            with its own arguments and its result; or a ready-made one of `netslim.graph.rules`,
            which also says what a rule may use. Without it, `register_rule` is a decorator. A rule
            that netslim has already is replaced.

    Returns:
        The rule.

    Raises:
        ArgumentError: ``op`` does not name an operator, or ``rule`` is not callable.
        TraceError: there is no such operator, or PyTorch takes it apart before a rule could see it.

    Example:
        >>> @torch.library.custom_op("examples::squash", mutates_args=())
        ... def squash(x: torch.Tensor) -> torch.Tensor:
        ...     return x / (1 + x.abs())
        >>> rule = netslim.register_rule("examples::squash", netslim.graph.rules.pointwise)
    """
    name = operator_name(op)
    _refuse_unseen(name)

    def register(function: Rule) -> Rule:
        if not callable(function):
            raise ArgumentError(
                f"the rule for {name} must be a function rule(recorder, func, out, *args, "
                f"**kwargs), got {type(function).__name__}; netslim.graph.rules holds "
                "ready-made ones"
            )
        RULES[name.removeprefix("aten::")] = _checked(name, function)
        return function

    if rule is None:
        return register
    return register(rule)


def operator_name(op: Any) -> str:
    """``"namespace::name"`` of whatever stands for an operator."""
    op = getattr(op, "_opoverload", op)
    if isinstance(op, OpOverload):
        return str(op._schema.name)
    if isinstance(op, OpOverloadPacket):
        return str(op._qualified_op_name)
    if isinstance(op, str) and re.fullmatch(r"\w+::\w+", op):
        return op
    if isinstance(op, str):
        given = repr(op)
        if "." in op:
            given += "; leave out the overload: a rule is for all of them"
    else:
        given = f"{type(op).__name__} {getattr(op, '__name__', '')}".strip()
    raise ArgumentError(f"register_rule needs an operator ({_FORMS}), got {given}")


def find_rule(name: str) -> Rule | None:
    """The rule of an operator by its full name; pointwise ones are known by their tag."""
    known = RULES.get(name.removeprefix("aten::"))
    if isinstance(known, Known):  # what arguments it has thought of is of its own operators
        return known.rule
    if known is None and any(torch.Tag.pointwise in f.tags for f in _overloads(name)):
        return pointwise
    return known


@checks_calls
def like(op: Any) -> Rule:
    """The rule of another operator that takes the same arguments: ``like("aten::max_pool2d")``.

    Raises:
        TraceError: ``op`` names no operator, or netslim has no rule for it.

    Example:
        >>> rule = netslim.graph.rules.like("aten::constant_pad_nd")
        >>> rule is netslim.register_rule("mylib::my_pad", rule)
        True
    """
    name = operator_name(op)
    rule = find_rule(name)
    if rule is None:
        raise TraceError(f"netslim has no rule for {name} that another operator could take over")
    return rule


@checks_calls
def spatial(dims: int) -> Rule:
    """A rule for pooling, resizing and padding over the last dimensions: the others keep channels.

    Args:
        dims: how many dimensions are space: 1, 2 or 3.

    Raises:
        ArgumentError: another number of dimensions.

    Example:
        >>> rule = netslim.register_rule("mylib::my_pool2d", netslim.graph.rules.spatial(2))
    """
    if dims not in (1, 2, 3):
        raise ArgumentError(f"spatial takes 1, 2 or 3 dimensions, got {brief(dims)}")
    return like(f"aten::upsample_nearest{dims}d")


def _overloads(name: str) -> list[Op]:
    """The overloads of an operator that PyTorch dispatches; none where there is no operator."""
    namespace, _, short = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), short, None)
    if packet is None:
        return []
    dispatched = set(torch._C._dispatch_get_all_op_names())
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return [f for f in overloads if _full_name(f) in dispatched]


def _full_name(op: Op) -> str:
    """``aten::add.Tensor``."""
    return str(op.name())  # type: ignore[no-untyped-call, unused-ignore]  # has no types


def _refuse_unseen(name: str) -> None:
    """Refuse ATen operators that do not exist, and operators that are run as their parts."""
    overloads = [f for f in _overloads(name) if not f._overloadname.endswith("out")]
    if not overloads and name.startswith("aten::"):
        raise TraceError(f"there is no operator {name}; dir(torch.ops.aten) lists them")
    composite, runs_by = "CompositeImplicitAutograd", torch._C._dispatch_has_kernel_for_dispatch_key
    if overloads and all(runs_by(_full_name(f), composite) for f in overloads):
        raise TraceError(
            f"PyTorch takes {name} apart before a rule could see it ({composite}); "
            "netslim follows its parts: register rules for those that it lists as unsupported"
        )


def _checked(name: str, rule: Rule) -> Rule:
    """The rule, with an error for what `Recorder.set` cannot see: it would lead to wrong cuts."""

    def apply(rec: Recorder, func: Op, out: Any, *args: Any, **kwargs: Any) -> None:
        inputs = [rec.get(t) for t in tensors_in(args, kwargs)]
        made = len(rec.atoms.parent)
        with _unwritten(name, inputs):
            rule(rec, func, out, *args, **kwargs)
        for tensor in tensors_in(out):
            _check_labels(name, inputs, rec.get(tensor), made)

    return apply


@contextmanager
def _unwritten(name: str, inputs: Sequence[Labels]) -> Iterator[None]:
    """Refuse a rule that writes into the labels of an input, which other tensors share."""
    vectors = list(chain.from_iterable(labels.dims.values() for labels in inputs))
    before = [vector.copy() for vector in vectors]
    try:
        yield
    finally:
        written = [pair for pair in zip(vectors, before, strict=True) if (pair[0] != pair[1]).any()]
        for vector, numbers in written:
            vector.setflags(write=True)
            vector[:] = numbers
            vector.setflags(write=False)
    if written:
        raise ValueError(
            f"the rule registered for {name} wrote into the labels of its input, which other "
            "tensors share; let it write into a copy"
        )


def _check_labels(name: str, inputs: Sequence[Labels], made: Labels, first_new: int) -> None:
    """Refuse an output without a word about it, and labels that no input of the operator has.

    Labels that were made meanwhile, from ``first_new`` on, are nobody else's.
    """
    if made.weight and not all(labels.weight for labels in inputs):
        raise ValueError(
            f"the rule registered for {name} left its output without labels, though its inputs "
            "depend on the network's input; end it with recorder.set(out, dims, weight=False), "
            "where dims may be empty"
        )
    known = [np.zeros(1, ATOM), *chain.from_iterable(i.dims.values() for i in inputs)]
    for d, vector in made.dims.items():
        if not np.isin(vector[vector < first_new], np.concatenate(known)).all():
            raise ValueError(
                f"the rule registered for {name} gave dimension {d} of its output labels that "
                "none of its inputs has"
            )
