"""The options of a cut, each declared once: name, type, range, unit, meaning and default.

Python functions take these dataclasses as they are, recipes have their fields flat in YAML, and the
command line makes its flags of them. A field made by `option` carries what the three need to know
in its metadata; `Checked` refuses what does not fit, so nobody checks a range a second time.

Adding an option of the cut: a field here, and the line that obeys it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from netslim._support import (
    Thing,
    brief,
    call_checked,
    checks_calls,
    described,
    is_number,
    is_whole,
    nearest,
)
from netslim.errors import ArgumentError
from netslim.surgery.compensation.ways import FoldWay

AUTO: Literal["auto"] = "auto"  # what is taken then says `netslim.selection.defaults`
Shortcuts = Literal["include", "avoid"]
Lead = Literal["mean", "pacesetter"]
Reduction = Literal["mean", "sum", "max", "product", "first"]
Over = Literal["producers", "all"]
Normalisation = Literal["mean", "sum", "max", "l2", "standardization", "gaussian", "rank"]


def option(
    default: Any,
    help: str,
    *,
    metavar: str = "",
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of an options class.

    Args:
        default: its value where nothing is said.
        help: what it means, for documentation and for the command line's help.
        metavar: what stands for a value in help texts, such as ``SHARE`` or ``N``.
        least: the smallest number that is allowed.
        above: numbers must be larger than this one.
        below: numbers must be smaller than this one.
    """
    known = {"help": help, "metavar": metavar, "least": least, "above": above, "below": below}
    return field(default=default, metadata=known)


def declared(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    """Name -> field of what a class declares by `option`: what recipes and commands offer."""
    return {item.name: item for item in fields(kind) if "help" in item.metadata}


def said(options: Any) -> dict[str, Any]:
    """What is set in an options class, and not as by default, as plain data."""
    usual = {item.name: item.default for item in fields(options)}
    given = {name: getattr(options, name) for name in usual}
    return {name: plain(v) for name, v in given.items() if v and v != usual[name]}


def plain(value: Any) -> Any:
    """A value of an option as JSON has it; what JSON does not have, by its name or in words."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, Iterable):
        return [plain(part) for part in value]
    return str(getattr(value, "__name__", value))


@dataclass(frozen=True)
class Checked:
    """Options whose numbers, choices and flags are checked by what their fields say."""

    knows_kinds = True  # with their ranges, and numbers written as a power of ten

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints = _hints(kind)
        for item in fields(self):
            self._check(item.name, getattr(self, item.name), hints[item.name], item.metadata)

    def _check(self, name: str, value: Any, hint: Any, known: Mapping[str, Any]) -> None:
        kinds = _alternatives(hint)
        if value is None and type(None) in kinds:
            return
        if isinstance(value, Mapping) and any(get_origin(kind) is Mapping for kind in kinds):
            return  # by name: checked where the names are
        literals = (kind for kind in kinds if get_origin(kind) is Literal)
        choices = list(chain.from_iterable(map(get_args, literals)))
        if isinstance(value, str) and value in choices:
            return
        if int in kinds or float in kinds:
            _check_number(name, value, kinds, choices, known)
        elif choices:
            raise ArgumentError(f"{name} must be {_or(choices)}, got {brief(value)}")
        elif bool in kinds and not isinstance(value, bool):
            raise ArgumentError(f"{name} must be True or False, got {brief(value)}")


def _or(choices: Iterable[Any]) -> str:
    return " or ".join(map(repr, choices))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; anything else alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_number(
    name: str, value: Any, kinds: Iterable[Any], choices: Iterable[Any], known: Mapping[str, Any]
) -> None:
    if bool in kinds and isinstance(value, bool):
        return
    whole = float not in kinds
    fits = is_number(value)
    if whole:
        fits = is_whole(value)
    least, above, below = (known.get(key) for key in ("least", "above", "below"))
    fits = fits and math.isfinite(value)
    fits = fits and (least is None or value >= least) and (above is None or value > above)
    if fits and (below is None or value < below):
        return
    wanted = " or ".join([_range(whole, least, above, below), *map(repr, choices)])
    raise ArgumentError(f"{name} must be {wanted}, got {brief(value)}")


def _range(whole: bool, least: float | None, above: float | None, below: float | None) -> str:
    bounds = {"at least": least, "above": above, "below": below}
    given = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
    number = "a whole number" if whole else "a number"
    return f"{number} {' and '.join(given)}".strip()


def _share(text: str) -> Any:
    return option(None, text, metavar="SHARE", least=0, below=1)


def _most(text: str) -> Any:
    return option(None, text, metavar="N", above=0)


@checks_calls
@dataclass(frozen=True)
class Budget(Checked):
    """What must go, relative to the traced model, or how much may stay; all that is given is met.

    Each field names a resource of `netslim.selection.budget.resources`: ``cut_NAME`` is the least
    share of it that goes (0 <= share < 1), ``max_NAME`` the most that may stay, for the traced
    input.

    Attributes:
        cut_channels: share of the scored channels to remove; exactly ``floor(N * share)`` go (the
            percentage of the Network Slimming paper), or what ``round_to`` and other budgets ask
            for beyond it.
        cut_params: least share of the parameters to remove.
        cut_macs: least share of the multiply-accumulates to remove.
        cut_activations: least share to remove of the elements that convolutions, linear layers and
            matrix products put out (the activations of Radosavovic et al. 2020, section 3.3).
        cut_peak_memory: least share to remove of the bytes that are alive at once in a forward
            pass, parameters aside.
        cut_latency: least share to remove of the milliseconds: by a `LatencyTable`, and where it is
            of this machine by the clock.
        max_params: most parameters that may stay.
        max_macs: most multiply-accumulates that may stay.
        max_activation_bytes: most bytes of activations, as counted by ``cut_activations``.
        max_peak_bytes: most bytes alive at once.
        max_latency_ms: most milliseconds that may stay, in the same way.

    Raises:
        ArgumentError: a share is below 0 or at 1 and above, or a maximum is not positive.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l2")
        >>> plan = netslim.select(graph, scores, netslim.Budget(cut_macs=0.5, max_params=1_000))
    """

    cut_channels: float | None = _share("share of all channels")
    cut_macs: float | None = _share("share of the multiply-accumulates")
    cut_params: float | None = _share("share of the parameters")
    cut_activations: float | None = _share("share of what layers put out")
    cut_peak_memory: float | None = _share(
        "share of the memory that a forward pass needs at once, parameters aside"
    )
    cut_latency: float | None = _share(
        "share of the milliseconds, by a table that is measured here or read from a file"
    )
    max_macs: int | None = _most("most multiply-accumulates for one example")
    max_params: int | None = _most("most parameters")
    max_activation_bytes: int | None = _most("most bytes that layers put out for one example")
    max_peak_bytes: int | None = _most(
        "most bytes that one example needs at once, parameters aside"
    )
    max_latency_ms: float | None = _most("most milliseconds")

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if name.startswith("max_") and isinstance(value, float) and value.is_integer():
                object.__setattr__(self, name, int(value))  # max_macs=1e6 is a whole number, too
        super().__post_init__()

    def given(self) -> dict[str, float]:
        """The amounts that were set."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}

    def timed(self) -> tuple[str, ...]:
        """The names of the amounts that were set and are of latency."""
        return tuple(name for name in self.given() if "latency" in name)


@checks_calls
@dataclass(frozen=True)
class Limits(Checked):
    """What a cut must respect, whatever it is to reach.

    Attributes:
        min_channels: units that stay in every group at least; no layer can die.
        max_cut: largest share of a group that may go (the papers' 50 % cap is 0.5); or by name or
            pattern, a share (float below 1) or a count (int), as
            `netslim.methods.Sensitivity.limits` gives them.
        round_to: what stays in a touched group is a multiple of this; groups that have no more stay
            whole. None is any number; but for a budget of latency alone it is what the table says
            its runtime likes (`netslim.measure.LatencyTable.steps`), if the budget can be met so.
        protect: names, or patterns of group names, that are left alone (``"layer1.*"``).
        shortcuts: ``avoid`` leaves alone the groups in which the outputs of several layers are
            added.
        allow_inexact: also cut groups whose removal changes values (normalisation over channels,
            attention).
        blocks: also drop residual branches as a whole; ``min_channels``, ``round_to`` and a
            ``max_cut`` for all are of channels, and do not hold them back. `netslim.select` takes
            them from a graph that was asked for them, ``netslim.trace(..., blocks=True)``.

    Raises:
        ArgumentError: a limit is out of range.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> limits = netslim.Limits(min_channels=4, max_cut=0.5, round_to=2, protect=["features.0"])
        >>> scores = netslim.score(graph, model, "l2")
        >>> plan = netslim.select(graph, scores, netslim.Budget(cut_channels=0.2), limits=limits)
        >>> list(plan.groups)
        ['features.4']
    """

    min_channels: int = option(1, "fewest channels that stay in a layer", metavar="N", least=1)
    max_cut: float | Mapping[str, int | float] | None = option(
        None, "most that goes of one layer", metavar="SHARE", least=0, below=1
    )
    round_to: int | None = option(
        None,
        "what stays of a layer is a multiple of N (default: any number, or for a budget of latency "
        "what the runtime likes)",
        metavar="N",
        least=1,
    )
    protect: Iterable[str] = option(
        (), "layers that are left alone, by name or pattern", metavar="NAME"
    )
    shortcuts: Shortcuts = option(
        "include", "avoid: leave channels alone that several layers add up"
    )
    allow_inexact: bool = option(
        False, "also cut where removing a channel is not equal to silencing it"
    )
    blocks: bool = option(False, "also drop residual branches as a whole")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.max_cut, Mapping):
            for name, value in self.max_cut.items():
                _check_cap(name, value)
        single = isinstance(self.protect, str) or not isinstance(self.protect, Iterable)
        names = (self.protect,) if single else tuple(self.protect)
        if not all(isinstance(name, str) for name in names):
            raise ArgumentError(
                "protect takes names or patterns of groups, such as ['layer1.*'], got "
                f"{brief(self.protect)}"
            )
        object.__setattr__(self, "protect", names)


def _check_cap(name: str, value: Any) -> None:
    whole = is_whole(value)
    share = is_number(value) and not whole
    if not (whole and value >= 0) and not (share and 0 <= value < 1):
        raise ArgumentError(
            f"max_cut of {name!r}: give the share (float from 0 to below 1) or the number (int) of "
            f"channels that may go, got {brief(value)}"
        )


@checks_calls
@dataclass(frozen=True)
class Scoring(Checked):
    """What makes a channel important: a criterion, and how the layers of a group are put together.

    Attributes:
        criterion: a name that `netslim.criterion` knows, ``package.module:function``, or a
            function.
        lead: which of several layers that make the same channels count: all of them, or their
            pacesetter alone (the projection of a residual stage, or its stem).
        reduction: how the scores of a group's layers are put together: their ``"mean"``, ``"sum"``,
            ``"max"``, ``"product"`` (the geometric mean, so that groups of few and of many layers
            compare), or ``"first"``, the first layer in order of execution alone.
        over: the layers that are looked at: ``"producers"``, which make the channels, or ``"all"``:
            also the scales of normalisations and the kernels that read the channels.
        normalize: how the scores of each group are set to a common scale, before one threshold
            compares the groups; None leaves them.
        arguments: what the criterion itself takes, such as ``{"seed": 1}`` of ``random``.
        loss: for criteria that look at gradients: a function of (output, targets) that returns a
            scalar tensor; None takes cross entropy.

    Raises:
        ArgumentError: a choice is unknown. What a criterion cannot do is refused by
            `netslim.score`.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> scoring = netslim.selection.Scoring("l1", normalize="mean")
        >>> list(netslim.score(graph, model, scoring))
        ['features.0', 'features.4']
    """

    criterion: str | Callable[..., Any] = option(
        "bn_scale", "what makes a channel important", metavar="NAME"
    )
    lead: Lead = option("mean", "layers that are cut together: all of them, or the projection")
    reduction: Reduction = option("mean", "how the scores of such layers are put together")
    over: Over = option("producers", "all: look also at what scales and reads the channels")
    normalize: Normalisation | None = option(
        None, "what the scores of each layer are set against before layers are compared"
    )
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss: Callable[..., Any] | None = None


@checks_calls
@dataclass(frozen=True)
class Compensation(Checked):
    """What is done about that which removed channels emit.

    The last quarter of the batches, at least one, is held out; of a single batch the last quarter
    of its examples. Neither scores nor what is done here look at it, and each step is kept only
    where it brings the outputs nearer to those before the cut on it (relative squared error; both
    are tried together and alone); what became of it is said. Of fewer than four examples none is
    held out: the fold is made unseen, and the statistics stay. `netslim.surgery.recalibrate` asks
    nobody.

    Attributes:
        fold: ``"constant"`` moves what is constant of it into the layers behind; ``"linear"`` has
            the channels that stay stand in for them, by least squares; ``"sequential"`` fits
            layer after layer to what it computed, which is nearer mostly and takes about three
            times as long; ``"nearest"`` makes both of these and keeps the one that is nearer on
            what was held out, ``"linear"`` where nothing was; None drops it. See
            `netslim.surgery.compensate`.
        recalibrate: batches from which the statistics of batch normalisation are taken anew after
            the cut; 0 (or False) leaves them, True takes all batches that are given.

    Raises:
        ArgumentError: a choice is unknown, or a negative number.

    Example:
        >>> mended = netslim.selection.Compensation("linear", recalibrate=2)
        >>> half = netslim.Budget(cut_macs=0.5)
        >>> small = netslim.slim(model, images, budget=half, batches=loader, compensation=mended)
    """

    fold: FoldWay | Literal["nearest"] | None = option(
        None,
        "constant: move into biases what removed channels still emit; linear: fit it by what those "
        "that stay emit, by least squares; sequential: fit layer after layer to what it computed; "
        "nearest: of these two the one that is nearer on images held out",
    )
    recalibrate: bool | int = option(
        0,
        "batches from which batch-norm statistics are taken anew after the cut",
        least=0,
        metavar="N",
    )


# Parameter of public functions -> the class of its options, what else may stand there, the same in
# words, an example.
_HOMES: dict[str, tuple[type[Any], tuple[Any, ...], str, str]] = {
    "budget": (Budget, (NoneType,), "", "Budget(cut_channels=0.5)"),
    "limits": (Limits, (), "", "Limits(min_channels=4)"),
    "criterion": (Scoring, (str, Callable), " or a name", "Scoring('l1', normalize='mean')"),
    "compensation": (Compensation, (str, NoneType), ", None or 'auto'", "Compensation('linear')"),
}


def takes_options(function: Thing) -> Thing:
    """Decorator of functions that take options: what is misspelt or of another kind fails at once.

    It does what `checks_calls` does, and knows which options class a keyword belongs to. Of a
    class, decorate ``__init__``.

    Raises:
        ArgumentError: by the decorated function, before it does anything: the nearest name and the
            options class that it belongs to, or what a parameter takes.
    """
    return call_checked(function, _remedy, _check_kinds)


def _check_kinds(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _HOMES:
            _check_kind(name, value)
        elif name == "example_inputs":
            _check_inputs(value)


def _check_inputs(value: Any) -> None:
    for name, (kind, *_) in _HOMES.items():
        if isinstance(value, kind):
            raise ArgumentError(
                f"example_inputs must be what the model takes, got {described(value)}: give that "
                f"by name, {name}=..."
            )


def _remedy(name: str, parameters: list[str]) -> str:
    """What was meant by a keyword that a function with these parameters does not take.

    The nearest of its own parameters; or of what the options classes declare that it takes, since
    who writes ``select(..., round_to=8)`` means ``limits=Limits(round_to=8)``.
    """
    homes: dict[str, tuple[str, type[Any]]] = {}
    for parameter in (one for one in parameters if one in _HOMES):
        kind = _HOMES[parameter][0]
        homes |= {item.name: (parameter, kind) for item in fields(kind)}
    homes = {option: home for option, home in homes.items() if option not in parameters}
    near = difflib.get_close_matches(name, [*parameters, *homes], 1)
    if near and near[0] in homes:
        parameter, kind = homes[near[0]]
        return f"; did you mean {near[0]!r} of {parameter}={_called(kind)}({near[0]}=...)?"
    if near or "criterion" not in parameters:
        return nearest(name, parameters)
    return (
        f"{nearest(name, parameters)}; what a criterion takes of its own goes into "
        "criterion=netslim.selection.Scoring(..., arguments={...})"
    )


def _called(kind: type[Any]) -> str:
    """What users write for an options class."""
    room = "netslim" if kind in (Budget, Limits) else "netslim.selection"
    return f"{room}.{kind.__name__}"


def _check_kind(name: str, value: Any) -> None:
    kind, others, more, example = _HOMES[name]
    if not isinstance(value, (kind, *others)):
        raise ArgumentError(
            f"{name} must be a {_called(kind)}{more}, such as {example}, got {brief(value)}"
        )


__all__ = [
    "AUTO",
    "Budget",
    "Checked",
    "Compensation",
    "FoldWay",
    "Lead",
    "Limits",
    "Normalisation",
    "Over",
    "Reduction",
    "Scoring",
    "Shortcuts",
    "declared",
    "option",
    "plain",
    "said",
    "takes_options",
]
