"""Flags of a cut, made of the classes that declare its options, so that a new option there is a
flag of every command that cuts.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from netslim.cli.registered import allocations, criteria, first_paragraph
from netslim.errors import ArgumentError, RecipeError
from netslim.measure.runtimes import TableBackend
from netslim.selection.options import Compensation, Limits, Scoring, declared
from netslim.training.recipe.schema import assembled, option_types

Options = TypeVar("Options")


def flag(name: str) -> str:
    """The flag of an option: ``round_to`` is ``--round-to``."""
    return f"--{name.replace('_', '-')}"


def add_options(
    group: Any,
    kind: type[Any],
    *,
    told: Mapping[str, str] | None = None,
    more: Mapping[str, str] | None = None,
    only: Collection[str] = (),
    but: Collection[str] = (),
) -> None:
    """A flag for each option that a class declares; what is not typed is None.

    Args:
        group: a parser, or a group of one.
        kind: the class, see `netslim.selection.options`.
        told: name -> what is said about its default, where that is not the class's own.
        more: name -> what is said besides its meaning, such as the names that it understands.
        only: names of the options that are taken; none given takes all.
        but: names of options that are left out.
    """
    hints = get_type_hints(kind)
    for name, item in declared(kind).items():
        if (only and name not in only) or name in but:
            continue
        said = [item.metadata["help"]]
        if more and name in more:
            said.append(more[name])
        text = f"{': '.join(said)}{_default((told or {}).get(name, item.default))}"
        how = _value(hints[name], item.metadata["metavar"])
        group.add_argument(flag(name), dest=name, help=text.replace("%", "%%"), **how)


def _default(value: Any) -> str:
    shown = isinstance(value, str | int | float) and value not in ("", False)
    if shown:
        return f" (default: {value})"
    return ""


def _value(hint: Any, metavar: str) -> dict[str, Any]:
    """How a value of this type is typed."""
    kinds: tuple[Any, ...] = (hint,)
    if get_origin(hint) not in (None, Literal):
        kinds = get_args(hint)
    choices: list[Any] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            choices += get_args(kind)
    if choices and not {int, float} & {*kinds}:
        none = ["none"] * (NoneType in kinds)
        return {"choices": [*choices, *none], "type": _word}
    if kinds == (bool,):
        return {"action": "store_const", "const": True}
    if get_origin(hint) not in (None, Literal) and issubclass(_origin(hint), Iterable):
        inner = get_args(hint)[0]
        return {"type": inner, "nargs": "+", "metavar": metavar}
    number = next((kind for kind in (float, int) if kind in kinds), str)
    return {"type": number, "metavar": metavar}


def _word(text: str) -> str:
    """A choice; `null`, as recipes have it, is `none`."""
    return {"null": "none"}.get(text, text)


def _origin(hint: Any) -> type[Any]:
    found = get_origin(hint)
    if isinstance(found, type):
        return found
    return object


def given(options: argparse.Namespace, *kinds: type[Any]) -> dict[str, Any]:
    """The options of these classes that were typed, by name."""
    return typed(options, chain.from_iterable(map(declared, kinds)))


def typed(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of the options by these names that were typed; `none` is None."""
    found = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    return {name: None if value == "none" else value for name, value in found.items()}


def made(kind: type[Options], options: argparse.Namespace) -> Options:
    """The class's options, those of its flat fields included, as they were typed, the others at
    their defaults.

    Raises:
        RecipeError: one is out of range, by its flag.
    """
    try:
        return assembled(kind, typed(options, option_types(kind)))
    except ArgumentError as error:
        name, _, rest = str(error).partition(" ")
        raise RecipeError(f"{flag(name)} {rest}") from None


# ---------------------------------------------------------------- a cut


def add_choice(group: Any, told: Mapping[str, str]) -> None:
    """What decides which channels go; `told` as for `add_options`, and for ``allocation``."""
    add_scoring(group, told["criterion"])
    ways = "; ".join(f"{name}: {_said(text)}" for name, text in allocations().items())
    group.add_argument(
        "--allocation",
        metavar="NAME",
        help=f"how the cut is spread over layers; {ways} (default: {told['allocation']})",
    )
    group.add_argument(
        "--batches", metavar="N", type=int, help="of --data, for criteria that look (default: 10)"
    )


def add_scoring(group: Any, default: str) -> None:
    """What makes a channel important; `default` is said of the criterion."""
    known = criteria()
    plain, looking = (
        ", ".join(name for name in known if known[name] is data) for data in (False, True)
    )
    names = f"{plain}; by --data too: {looking}; or your own, package.module:function"
    add_options(group, Scoring, told={"criterion": default}, more={"criterion": names})


def _said(docstring: str) -> str:
    """The first paragraph of what a way of allocation says about itself."""
    text = first_paragraph(docstring or "your own").rstrip(".")
    return text[:1].lower() + text[1:]


def add_limits(group: Any) -> None:
    """What a cut must respect."""
    add_options(group, Limits)


def add_compensation(group: Any, auto: Mapping[str, str]) -> None:
    """What is done about that which removed channels emit; `auto` as `told` of `add_options`."""
    add_options(group, Compensation, told=auto)


def add_max_drop(group: Any, text: str) -> None:
    """--max-drop POINTS; `max_drop` reads it."""
    group.add_argument("--max-drop", metavar="POINTS", type=float, help=text)


def max_drop(options: argparse.Namespace) -> float | None:
    """Percentage points, if any were typed.

    Raises:
        RecipeError: they are below 0, or no finite number.
    """
    drop: float | None = options.max_drop
    if drop is not None and not 0 <= drop < float("inf"):
        raise RecipeError(f"--max-drop {drop:g}: give 0 or more points")
    return drop


def add_latency(group: Any, what: str) -> None:
    """How long layers take; `what` it is for."""
    group.add_argument(
        "--latency-table",
        metavar="FILE",
        help=f"for {what}: a table measured before, here or elsewhere (default: measured here)",
    )
    group.add_argument(
        "--backend",
        choices=get_args(TableBackend),
        help=f"for {what}: what the network will run with (default: eager)",
    )


def add_latency_check(group: Any, what: str) -> None:
    """Whether cuts are timed; `what` they are for."""
    group.add_argument(
        "--no-latency-check",
        action="store_const",
        const=False,
        dest="latency_check",
        help=f"for {what}: go by the table alone (default: cuts are timed until one takes what was "
        "asked for)",
    )


def latency(options: argparse.Namespace, asked: bool, what: str) -> dict[str, Any]:
    """The section `latency` of a stage; empty where nothing was typed.

    Args:
        options: as typed.
        asked: whether anything is cut by latency.
        what: the flags by which it would be.

    Raises:
        RecipeError: nothing is, and something was typed; or both were.
    """
    check = getattr(options, "latency_check", None)
    found = {"table": options.latency_table, "backend": options.backend, "check": check}
    found = {key: value for key, value in found.items() if value is not None}
    if found and not asked:
        flags = {"table": "--latency-table", "backend": "--backend", "check": "--no-latency-check"}
        raise RecipeError(f"{flags[next(iter(found))]} belongs to {what}")
    if {"table", "backend"} <= found.keys():
        raise RecipeError(
            "--latency-table says itself what the network runs with: leave --backend out"
        )
    return found
