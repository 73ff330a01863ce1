"""Rules from outside: teach netslim an operator of your own, or override one of its rules."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from netslim.errors import TraceError
from netslim.graph.rules.elementwise import pointwise
from netslim.graph.rules.registry import RULES, Rule, derived, tensors
from netslim.graph.tracing.recorder import Recorder

_FORMS = (
    "'namespace::name', torch.ops.namespace.name, one of its overloads, or what "
    "torch.library.custom_op returned"
)


def register_rule(op: Any, rule: Rule | None = None) -> Any:
    """Teach netslim what an operator does to channels, from then on and for all its overloads.

    Args:
        op: ``"namespace::name"``, ``torch.ops.namespace.name`` (a packet or one overload), or what
            ``torch.library.custom_op`` returned. An in-place twin (``name_``) is an operator of its
            own.
        rule: ``rule(recorder, func, out, *args, **kwargs)``, called after each call of the operator
            with its own arguments and its result; or a ready-made one of
            ``netslim.graph.rules.public``. Without it, `register_rule` is a decorator. A rule that
            netslim has already is replaced.

    Returns:
        The rule.

    Raises:
        TraceError: ``op`` names no operator, or one that PyTorch takes apart before a rule could
            see it; or ``rule`` is not callable.
    """
    name = operator_name(op)
    _seen(name)

    def register(function: Rule) -> Rule:
        if not callable(function):
            raise TraceError(
                f"the rule for {name} must be a function rule(recorder, func, out, *args, "
                f"**kwargs), got {type(function).__name__}; netslim.graph.rules.public holds "
                "ready-made ones"
            )
        RULES[name.removeprefix("aten::")] = _checked(name, function)
        return function

    return register if rule is None else register(rule)


def operator_name(op: Any) -> str:
    """``"namespace::name"`` of whatever stands for an operator."""
    op = getattr(op, "_opoverload", op)
    if isinstance(op, OpOverload):
        return str(op._schema.name)
    if isinstance(op, OpOverloadPacket):
        return str(op._qualified_op_name)
    if isinstance(op, str) and re.fullmatch(r"\w+::\w+", op):
        return op
    given = (
        repr(op)
        if isinstance(op, str)
        else f"{type(op).__name__} {getattr(op, '__name__', '')}".strip()
    )
    hint = (
        "; leave out the overload: a rule is for all of them"
        if isinstance(op, str) and "." in op
        else ""
    )
    raise TraceError(f"register_rule needs an operator ({_FORMS}), got {given}{hint}")


def find_rule(name: str) -> Rule | None:
    """The rule of an operator by its full name, pointwise ones by their tag; None where there is
    none.
    """
    known = RULES.get(name.removeprefix("aten::"))
    overloads = _overloads(name)
    if known is None and any(torch.Tag.pointwise in f.tags for f in overloads):
        return pointwise
    return known


def _overloads(name: str) -> list[OpOverload]:
    namespace, _, short = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), short, None)
    if packet is None:
        return []
    dispatched = set(torch._C._dispatch_get_all_op_names())
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return [f for f in overloads if f.name() in dispatched]


def _seen(name: str) -> None:
    """Refuse ATen operators that do not exist, and operators that are run as their parts."""
    overloads = [f for f in _overloads(name) if not f._overloadname.endswith("out")]
    if not overloads and name.startswith("aten::"):
        raise TraceError(f"there is no operator {name}; dir(torch.ops.aten) lists them")
    composite = "CompositeImplicitAutograd"
    if overloads and all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f.name(), composite) for f in overloads
    ):
        raise TraceError(
            f"PyTorch takes {name} apart before a rule could see it ({composite}); "
            "netslim follows its parts: register rules for those that it lists as unsupported"
        )


def _checked(name: str, rule: Rule) -> Rule:
    """The rule, with a clear error for labels that are none: followed further, they would cut
    wrongly.
    """

    def apply(rec: Recorder, func: Any, out: Any, *args: Any, **kwargs: Any) -> None:
        rule(rec, func, out, *args, **kwargs)
        for tensor in tensors(out):
            _check_labels(name, rec, tensor, derived(rec, args, kwargs))

    return apply


def _check_labels(name: str, rec: Recorder, tensor: torch.Tensor, derived: bool) -> None:
    labels = rec.get(tensor)
    if labels.weight and not derived:
        raise TraceError(
            f"the rule registered for {name} left its output without labels, though its inputs "
            "depend on the network's input; end it with recorder.set(out, dims, weight=False), "
            "where dims may be empty"
        )
    for d, vector in labels.dims.items():
        if not 0 <= d < tensor.dim() or len(vector) != tensor.shape[d]:
            raise TraceError(
                f"the rule registered for {name} gave dimension {d} of its output, of shape "
                f"{tuple(tensor.shape)}, {len(vector)} labels; recorder.set takes one label "
                "for each entry, dimensions counted from 0"
            )
