"""What a network loses when one group of channels is cut alone, so how far each may be cut."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import netslim.ranks as ranks
from netslim._support import (
    LARGEST_TEXT,
    brief,
    check_batches,
    described,
    is_format,
    is_number,
    is_whole,
    listed,
    named_file,
    parse_json,
    read_bytes,
    refusing,
    typed,
    write_atomic,
)
from netslim.errors import ArgumentError, NetslimError, PlanError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.ambient import undisturbed
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.ports import PortName
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import named_tensors
from netslim.graph.words.naming import meant
from netslim.graph.words.table import never_ran
from netslim.methods.cutting import cut, left_alone
from netslim.methods.sensitivity_result import EQUAL, FORMAT, Row, Sensitivity, Unit
from netslim.selection.budget.limits import caps, staying
from netslim.selection.criteria.registry import Criterion
from netslim.selection.criteria.scoring import as_scoring, score
from netslim.selection.defaults import PLAIN
from netslim.selection.options import Limits, Scoring, takes_options
from netslim.selection.select import select
from netslim.surgery.compensation.batch_norm import recalibrate as fresh_statistics
from netslim.surgery.plan import PruningPlan

ROUNDING = 1e-9  # of shares of a group
_KIND = "sensitivity journal"
Progress = Callable[[Row, int, int], None]


@takes_options
@ranks.in_step("sensitivity")
def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Callable[[nn.Module], Any],
    *,
    criterion: str | Criterion | Scoring = PLAIN,
    ratios: float | Sequence[float] = (0.25, 0.5, 0.75),
    groups: Iterable[str] | None = None,
    batches: Iterable[Any] | None = None,
    recalibrate: bool | int = False,
    limits: Limits = Limits(),
    free_outputs: Sequence[PortName] = (),
    free_inputs: Sequence[PortName] | Mapping[PortName, PortName | None] = (),
    unit: Unit = "share",
    journal: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Cut each group alone, at several ratios, and measure what is lost.

    As Li et al. (2017, section 3.2, Fig. 2b). The model is traced and scored once; then for every
    group and ratio its least important channels are really cut out of a copy, the cut is proved,
    and ``evaluate`` looks at the result. Nothing is trained, ``model`` stays as it is.

    Args:
        model: any trained PyTorch module.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        evaluate: takes a network in evaluation mode, a copy that it may do anything with, and gives
            a number, larger is better: accuracy on held-out data (never on the test set, for the
            result decides what is cut). In a distributed run every rank calls this, and the mean of
            their numbers counts.
        criterion: which channels go first: a name, a function or a `netslim.selection.Scoring`, see
            `netslim.score`.
        ratios: shares of a group, above 0 and below 1; ``floor(size * ratio)`` channels go.
        groups: names or patterns, as for ``protect`` of `netslim.select`; by default all that can
            be cut.
        batches: a data loader or list, for criteria that look at data and for ``recalibrate``.
        recalibrate: take the statistics of batch norms anew after each cut: True from all of
            ``batches``, a number from the first so many. For the baseline, too, so that a drop is
            what the cut alone does.
        limits: what every cut must respect; where they do not allow a ratio, the largest cut that
            they do is made.
        free_outputs, free_inputs: what may shrink of these, see `netslim.trace`.
        unit: ``share`` if the values are shares from 0 to 1 such as accuracy, ``number`` for
            anything else, such as minus a loss.
        journal: a file that keeps each value as soon as it is measured: a run that was killed goes
            on from it, and nothing is measured twice, also when more ratios or groups are asked
            for.
        settings: plain data on what ``evaluate`` looks at, kept with the result; a journal with
            other ones is refused.
        progress: called as ``progress(row, done, total)`` after each cut that was not in the
            journal yet.

    Raises:
        TraceError: as `netslim.trace`.
        ArgumentError: an option is out of range, a name means no group, or ``evaluate`` gives no
            finite number (or no share).
        PlanError: a group cannot be cut, no group's cut can be proved, or the journal is not of
            this work.

    Example:
        >>> found = netslim.sensitivity(model, images, accuracy, ratios=(0.25, 0.5))
        >>> limits = netslim.Limits(max_cut=found.limits(max_drop=0.25))
    """
    call = "sensitivity(model, example_inputs, evaluate)"
    model, shares = bare(model, ArgumentError, call=call), _checked_ratios(ratios)
    if unit not in ("share", "number"):
        raise ArgumentError(f"unit must be 'share' or 'number', got {brief(unit)}")
    seen: list[Any] | None = None
    if batches is not None:
        seen = list(check_batches(batches))
    if limits.blocks:
        raise ArgumentError(
            "sensitivity cuts shares of groups of channels, and drops no block: leave blocks=True "
            "out"
        )
    renewing = _renewing(seen, recalibrate)
    graph = trace(model, example_inputs, free_outputs=free_outputs, free_inputs=free_inputs)
    scores = score(graph, model, criterion, batches=seen)
    names, notes = _groups_to_cut(graph, scores, groups, limits)
    about = {**_described(as_scoring(criterion)), "recalibrate": len(renewing or ())}
    about = _plain(about | dict(settings or {}))
    with undisturbed(model):
        weights = ranks.digest(dict(named_tensors(model)))
    work = {"architecture": graph.fingerprint, "weights": weights, "unit": unit, **about}
    known = _Journal(journal, work)
    study = _Study(model, graph, scores, example_inputs, evaluate, renewing, limits, unit)
    baseline = known.value("", 0, lambda: study.value(duplicate(model), "the whole network"))
    rows, unproved = _all_rows(study, names, shares, baseline, known, progress)
    notes += unproved
    if not rows:
        raise PlanError(f"no group of this model can be cut alone: {listed(notes, '; ')}")
    about |= {"shortcuts": limits.shortcuts, "allow_inexact": limits.allow_inexact}
    size = graph.params(), graph.macs(), graph.fingerprint
    return Sensitivity(baseline, tuple(rows), *size, unit, about, tuple(notes))


def _all_rows(
    study: _Study,
    names: Sequence[str],
    ratios: Sequence[float],
    baseline: float,
    known: _Journal,
    progress: Progress | None,
) -> tuple[list[Row], list[str]]:
    """The rows of all groups that can be cut and proved, and sentences on the others."""
    rows: list[Row] = []
    notes = []
    for name in names:
        try:
            for row, fresh in study.rows(name, ratios, baseline, known):
                rows.append(row)
                if fresh and progress is not None:
                    progress(row, len(rows), len(names) * len(ratios))
        except _UnprovedError as error:
            rows = [row for row in rows if row.group != name]
            notes.append(f"{left_alone([name])} ({error})")
    return rows, notes


def _described(scoring: Scoring) -> dict[str, Any]:
    """The criterion by name, and what is not as by default."""
    named = scoring.criterion
    if not isinstance(named, str):
        named = getattr(named, "__name__", "a function")
    usual, changed = Scoring(), {}
    for name in (item.name for item in fields(scoring) if item.name != "criterion"):
        if getattr(scoring, name) != getattr(usual, name):
            changed[name] = getattr(scoring, name)
    return {"criterion": named, "scoring": changed}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file; what JSON does not know by its name."""

    def name(value: Any) -> str:
        return str(getattr(value, "__name__", type(value).__name__))

    found: dict[str, Any] = json.loads(json.dumps(settings, default=name))
    return found


class _UnprovedError(Exception):
    """A cut of a single group failed, or did not verify."""


@dataclass(frozen=True)
class _Study:
    """A traced and scored model, ready to be cut group by group."""

    model: nn.Module
    graph: ChannelGraph
    scores: Mapping[str, Tensor]
    example_inputs: Any
    evaluate: Callable[[nn.Module], Any]
    renewing: list[Any] | None  # batches from which batch norms take their statistics anew
    limits: Limits
    unit: Unit

    def rows(
        self, name: str, ratios: Sequence[float], baseline: float, known: _Journal
    ) -> Iterator[tuple[Row, bool]]:
        """The rows of one group, and whether they were measured just now, not known before."""
        number = self.graph.number(name)
        size, most = self.graph.groups[number].size, caps(self.limits, self.graph)[number]
        for ratio in ratios:
            plan = self._plan(name, min(math.floor(size * ratio + ROUNDING), most))
            removed, value = plan.removed, baseline
            mask: dict[int, np.ndarray] = {}
            fresh = removed > 0 and not known.knows(name, removed)
            if removed:
                value = known.value(name, removed, partial(self._value_without, plan, name))
                mask[number] = np.isin(np.arange(size), plan.groups[name].kept)
            params = self.graph.params() - self.graph.params(mask)
            macs = self.graph.macs() - self.graph.macs(mask)
            yield Row(name, size, ratio, removed, value, baseline - value, params, macs), fresh

    def value(self, network: nn.Module, what: str) -> float:
        """What ``evaluate`` gives for a network, after fresh statistics where that is asked."""
        value = ranks.everywhere("evaluate", partial(self._own_value, network, what))
        return ranks.mean_number("a value", value)

    def _own_value(self, network: nn.Module, what: str) -> float:
        if self.renewing is not None:
            fresh_statistics(network, self.renewing)
        for module in network.modules():
            module.training = False
        given = self.evaluate(network)
        try:
            value = float(given)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ArgumentError(
                f"evaluate must return a number, it gave {described(given)} for {what}"
            ) from None
        if not math.isfinite(value):
            raise ArgumentError(
                f"evaluate gave {value} for {what}: it must return a finite number, larger is "
                "better"
            )
        if self.unit == "share" and not -EQUAL <= value <= 1 + EQUAL:
            raise ArgumentError(
                f"evaluate gave {value:g} for {what}, which is no share from 0 to 1: give "
                "unit='number'"
            )
        return value

    def _plan(self, name: str, removed: int) -> PruningPlan:
        return select(self.graph, self.scores, per_group={name: removed}, limits=self.limits)

    def _value_without(self, plan: PruningPlan, name: str) -> float:
        """Of the network that a plan for one group leaves."""
        try:
            done = cut(self.model, self.graph, lambda _: plan, self.example_inputs, strict=True)
        except (NetslimError, RuntimeError) as error:
            raise _UnprovedError(" ".join(str(error).split())) from error
        return self.value(done.network, f"{name} without {plan.removed} of its channels")


class _Journal:
    """Measured values in a file of JSON lines, the first of which says whose they are.

    A line is written, and brought to the disk, as soon as its value is there; the file is only ever
    added to. So a kill can cost no more than the last line, which is torn then: it lacks its end,
    and is cut off when the work goes on. A damaged line anywhere else is somebody's doing, and is
    refused. In a distributed run rank 0 keeps the file, and all know what is in it.

    Raises:
        PlanError: the file holds something else, is damaged, or belongs to other work.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: dict[str, Any]) -> None:
        self.path: Path | None = None
        if path is not None and ranks.first():
            self.path = named_file(path, "journal")
        self.values = ranks.shared("the journal", partial(self._begun, identity))

    def _begun(self, identity: dict[str, Any]) -> dict[tuple[str, int], float]:
        """What the file holds already; it is there afterwards."""
        if self.path is None:
            return {}
        if self.path.exists() and self.path.stat().st_size:
            return _resumed(self.path, identity)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = {"format": FORMAT, "kind": _KIND, "of": identity}
        write_atomic(self.path, json.dumps(header) + "\n")
        return {}

    def knows(self, group: str, removed: int) -> bool:
        """Whether this cut was measured already."""
        return (group, removed) in self.values

    def value(self, group: str, removed: int, measure: Callable[[], float]) -> float:
        """The value of a cut, measured only if it is not known, and written down at once."""
        if not self.knows(group, removed):
            value = measure()
            if self.path is not None:
                _append(self.path, {"group": group, "removed": removed, "value": value})
            self.values[group, removed] = value
        return self.values[group, removed]


def _resumed(path: Path, identity: dict[str, Any]) -> dict[tuple[str, int], float]:
    values: dict[tuple[str, int], float] = {}
    with refusing(PlanError, f"{path} cannot be read", "choose another file"):
        *lines, torn = read_bytes(path, LARGEST_TEXT).split(b"\n")
    _check_header(path, _parsed(b"".join(lines[:1])), identity)
    for number, line in enumerate(lines[1:], 2):
        damage = f"{path} is damaged in line {number}"
        with refusing(PlanError, damage, "delete that line to measure it again"):
            entry: _Entry = typed(_Entry, parse_json(line))
        values[entry.group, entry.removed] = entry.value
    if torn:  # by a kill in the middle of writing
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - len(torn))
    return values


@dataclass(frozen=True)
class _Entry:
    """A line of a journal."""

    group: str
    removed: int
    value: float


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with open(path, "ab", opener=_no_link) as file:
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _no_link(path: str, flags: int) -> int:
    """What a link leads to is not the journal's to write to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _check_header(path: Path, header: dict[str, Any] | None, identity: Mapping[str, Any]) -> None:
    """Refuse a file that is no journal, or the journal of other work."""
    if header is None or header.get("kind") != _KIND or not is_format(header.get("format"), FORMAT):
        raise PlanError(
            f"{path} is not a journal of netslim.sensitivity (format {FORMAT}); choose another file"
        )
    theirs = header.get("of")
    if not isinstance(theirs, dict):
        raise PlanError(f"{path} is damaged in line 1; choose another file")
    if unknown := [key for key in identity if key not in theirs]:
        raise PlanError(
            f"{path} was begun by another version of netslim, which had no {unknown[0]!r}: finish "
            "it with that version, or choose another file"
        )
    wrong = [
        f"{key} {theirs.get(key)!r} there, {identity.get(key)!r} here"
        for key in dict.fromkeys([*theirs, *identity])
        if theirs.get(key) != identity.get(key)
    ]
    if wrong:
        raise PlanError(
            f"{path} was begun for another model or with other settings "
            f"({'; '.join(wrong)}); choose another file, or delete it to measure anew"
        )


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = parse_json(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _checked_ratios(ratios: Iterable[float] | float) -> tuple[float, ...]:
    """Rising and distinct."""
    if isinstance(ratios, (int, float)):
        ratios = [ratios]
    found = list(ratios)
    for ratio in found:
        if not (is_number(ratio) and 0 < ratio < 1):
            raise ArgumentError(
                f"ratios must be above 0 and below 1, got {brief(ratio)}: shares of a group that go"
            )
    if not found:
        raise ArgumentError(
            "ratios is empty: give some shares of a group that go, such as (0.25, 0.5, 0.75)"
        )
    return tuple(sorted({float(ratio) for ratio in found}))


def _renewing(batches: list[Any] | None, recalibrate: bool | int) -> list[Any] | None:
    """The batches from which statistics are taken anew; None where they are not."""
    if not recalibrate:
        return None
    if recalibrate is not True and not (is_whole(recalibrate) and recalibrate >= 0):
        raise ArgumentError(
            f"recalibrate must be True, False or a number of batches, got {brief(recalibrate)}"
        )
    if not batches:
        raise ArgumentError(
            "recalibrate needs batches=, a data loader or a list of training batches"
        )
    if recalibrate is True:
        return batches
    return batches[:recalibrate]


def _groups_to_cut(
    graph: ChannelGraph, scores: Mapping[str, Tensor], groups: Iterable[str] | None, limits: Limits
) -> tuple[list[str], list[str]]:
    """The names of the groups to cut, in order of execution, and sentences on those left out."""
    whole = {group.name: "it has no score" for group in graph.groups if group.name not in scores}
    whole |= staying(limits, graph)
    if groups is None:
        chosen = [group.name for group in graph.groups]
    else:
        chosen = []
        for name in [groups] if isinstance(groups, str) else groups:
            members = [g.name for g in meant(graph, name, "groups names no group")]
            if all(member in whole for member in members):
                raise PlanError(f"groups: {name!r} cannot be cut: {whole[members[0]]}")
            chosen += members
    names = [g.name for g in graph.groups if g.name in chosen and g.name not in whole]
    left_out = [name for name in dict.fromkeys(chosen) if name in whole]
    notes = [f"{name} is left out: {whole[name]}" for name in left_out]
    if not chosen:
        raise PlanError("nothing can be cut: groups is empty")
    if not names:
        raise PlanError(f"nothing can be cut: {listed([*never_ran(graph), *notes], '; ')}")
    return names, notes


__all__ = ["sensitivity"]
