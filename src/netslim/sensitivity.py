"""What a network loses when one group of channels is cut alone, and from it how far each group may be cut."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .budget import select
from .budget.limits import Limits, Shortcuts
from .errors import NetslimError, PlanError
from .files import write_atomic
from .graph import ChannelGraph, trace
from .graph.naming import listed, meant
from .plan import PruningPlan, fingerprint, named_tensors
from .recalibrate import recalibrate as fresh_statistics
from .scores import Criterion, score
from .surgery import prune
from .verify import verify
from .wrapping import bare, duplicate

FORMAT = 1
ROUNDING = 1e-9  # of shares of a group
EQUAL = 1e-6  # relative to the values: drops closer than this are equal, for accuracies are often float32
Unit = Literal["share", "number"]
Progress = Callable[["Row", int, int], None]


@dataclass(frozen=True)
class Row:
    """One measured cut of one group.

    Attributes:
        group, size: its name and channels.
        ratio: the share that was asked for.
        removed: channels that went, ``floor(size * ratio)``.
        value: what ``evaluate`` gave.
        drop: baseline minus value; below 0 where the cut network did better.
        params: parameters that this cut saves.
        macs: multiply-accumulates of the traced call that it saves.
    """

    group: str
    size: int
    ratio: float
    removed: int
    value: float
    drop: float
    params: int
    macs: int


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` measured; `str()` is a table.

    Attributes:
        baseline: what ``evaluate`` gave for the whole network.
        rows: a row for each group and ratio, groups in order of execution, ratios rising.
        params, macs: of the whole network; multiply-accumulates of the traced call.
        fingerprint: of its architecture.
        unit: ``share`` where values are shares from 0 to 1, which are shown in percent and their drops in points.
        settings: how it was measured.
        notes: sentences: which groups were left out, and why.
    """

    baseline: float
    rows: tuple[Row, ...]
    params: int
    macs: int
    fingerprint: str
    unit: Unit = "share"
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, tuple[Row, ...]]:
        """Group name -> its rows, ratios rising."""
        names = dict.fromkeys(row.group for row in self.rows)
        return {name: tuple(row for row in self.rows if row.group == name) for name in names}

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratios that were tried, rising."""
        return tuple(sorted({row.ratio for row in self.rows}))

    def limits(self, max_drop: float, *, interpolate: bool = False, stages: Iterable[str] = ()) -> dict[str, float]:
        """How much of each group may go: what `netslim.select` takes as ``max_cut`` (or as ``per_group``).

        A limit is the largest share that was tried and cost no more than ``max_drop``, where no smaller share cost
        more either; 0 where none did. It is never larger than the largest ratio that was tried. Groups that were
        not measured have none. Each group was cut alone: cut all at once they lose more, so take ``max_drop``
        smaller than what may be lost in the end, or let fine-tuning make up for it.

        Args:
            max_drop: in the unit of the values: 0.01 is a point of accuracy.
            interpolate: go on to where the straight line to the next measured share crosses ``max_drop``.
            stages: patterns of group names. The groups that one matches share the smallest of their limits, those
                that must be left alone (limit 0) not counted (Li et al. 2017, section 3.2).

        Returns:
            Group name -> share, at least 0 and below 1.

        Raises:
            PlanError: ``max_drop`` is negative or not finite, or a pattern matches no group.
        """
        if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)) or not 0 <= max_drop < math.inf:
            raise PlanError(f"max_drop must be 0 or more, in the unit of the values, got {max_drop!r}")
        found = {name: _limit(rows, max_drop, interpolate) for name, rows in self.groups.items()}
        alone = dict(found)
        for pattern in stages:
            members = [name for name in found if fnmatchcase(name, pattern)]
            if not members:
                raise PlanError(f"stages: {pattern!r} matches no measured group; these are {listed(list(found))}")
            smallest = min((alone[name] for name in members if alone[name]), default=0.0)
            found |= {name: min(found[name], smallest) for name in members}
        return found

    def ranking(self) -> dict[str, float]:
        """Group name -> mean drop over its ratios, each no smaller than at the ratio before; the largest first."""
        means = {name: sum(d for _, d in _rising(rows)) / len(rows) for name, rows in self.groups.items()}
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    def table(self, max_drop: float | None = None) -> str:
        """The drops as text, a line a group; with ``max_drop`` its limit, too."""
        head = ["group", "channels", *(f"{100 * ratio:g} %" for ratio in self.ratios)]
        limits = {} if max_drop is None else self.limits(max_drop)
        lines = [[*head, "may go"] if limits else head]
        for name, rows in self.groups.items():
            drops = {row.ratio: self.shown(row.drop) for row in rows}
            line = [name, str(rows[0].size), *(drops.get(ratio, "") for ratio in self.ratios)]
            lines.append([*line, f"{100 * limits[name]:.3g} %"] if limits else line)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
        share = self.unit == "share"
        baseline = f"{self.baseline:.2%}" if share else f"{self.baseline:g}"
        title = f"baseline {baseline}; drop{' in points' if share else ''} when a share of one group goes"
        return "\n".join([title, *text, *self.notes])

    def shown(self, drop: float) -> str:
        """A drop for people: points with two decimals, or four digits of a number."""
        text = f"{100 * drop:.2f}" if self.unit == "share" else f"{drop:.4g}"
        return "0.00" if text == "-0.00" else text

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, as in the file."""
        plain = {**asdict(self), "rows": [asdict(row) for row in self.rows], "settings": dict(self.settings)}
        return {"format": FORMAT, "kind": "sensitivity", **plain, "notes": list(self.notes)}

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """The rows as comma-separated values."""
        head = "group,size,ratio,removed,value,drop,params_saved,macs_saved"
        lines = [
            f'"{r.group}",{r.size},{r.ratio},{r.removed},{r.value!r},{r.drop!r},{r.params},{r.macs}' for r in self.rows
        ]
        return "\n".join([head, *lines]) + "\n"

    @staticmethod
    def from_json(text: str) -> Sensitivity:
        """Read what `to_json` wrote.

        Raises:
            PlanError: the text is something else, damaged, or of a newer format.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"this is not a sensitivity: no valid JSON ({error})") from None
        if not isinstance(data, dict) or (data.get("kind"), data.get("format")) != ("sensitivity", FORMAT):
            raise PlanError(f"this is not a sensitivity of format {FORMAT}; measure it again with netslim.sensitivity")
        try:
            found = Sensitivity(
                **{key: value for key, value in data.items() if key not in ("format", "kind", "rows", "notes")},
                rows=tuple(Row(**row) for row in data["rows"]),
                notes=tuple(data["notes"]),
            )
            found.table()
            return found
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"the sensitivity is damaged ({type(error).__name__}: {error}); measure it again") from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_json` to a file, which is complete or not there."""
        write_atomic(Path(path), self.to_json())
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Sensitivity:
        """Read a file that `save` wrote.

        Raises:
            PlanError: it cannot be read, or is no such file; the message names it.
        """
        try:
            return Sensitivity.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    def check(self, model: nn.Module) -> None:
        """Refuse a model of another architecture than the measured one.

        Raises:
            PlanError: names both fingerprints.
        """
        found = fingerprint(bare(model, PlanError))
        if found != self.fingerprint:
            raise PlanError(
                f"the sensitivity was measured on the architecture {self.fingerprint}, this model is {found}: measure "
                "it on this one (netslim.sensitivity)"
            )


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Callable[[nn.Module], Any],
    *,
    criterion: str | Criterion = "l2",
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    groups: Iterable[str] | None = None,
    batches: Iterable[Any] | None = None,
    recalibrate: bool | int = False,
    scoring: Mapping[str, Any] | None = None,
    shortcuts: Shortcuts = "include",
    allow_inexact: bool = False,
    unit: Unit = "share",
    journal: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Cut each group alone, at several ratios, and measure what is lost (Li et al. 2017, section 3.2, Fig. 2b).

    The model is traced and scored once; then for every group and ratio its least important channels are really cut
    out of a copy, the cut is proved, and ``evaluate`` looks at the result. Nothing is trained, ``model`` stays as it
    is.

    Args:
        model: any trained PyTorch module.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        evaluate: takes a network in evaluation mode, a copy that it may do anything with, and gives a number, larger
            is better: accuracy on held-out data (never on the test set, for the result decides what is cut).
        criterion: which channels go first, see `netslim.score`.
        ratios: shares of a group, above 0 and below 1; ``floor(size * ratio)`` channels go.
        groups: names or patterns, as for ``protect`` of `netslim.select`; by default all that can be cut.
        batches: a data loader or list, for criteria that look at data and for ``recalibrate``.
        recalibrate: take the statistics of batch norms anew after each cut: True from all of ``batches``, a number from
            the first so many. For the baseline, too, so that a drop is what the cut alone does.
        scoring: options of the criterion.
        shortcuts: ``avoid`` leaves out the groups in which the outputs of several layers are added.
        allow_inexact: also cut groups whose removal changes values, as where channels are normalised together.
        unit: ``share`` if the values are shares from 0 to 1 such as accuracy, ``number`` for anything else, such as
            minus a loss.
        journal: a file that keeps each value as soon as it is measured: a run that was killed goes on from it, and
            nothing is measured twice, also when more ratios or groups are asked for.
        settings: plain data on what ``evaluate`` looks at, kept with the result; a journal with other ones is refused.
        progress: called as ``progress(row, done, total)`` after each cut that was not in the journal yet.

    Raises:
        TraceError: as `netslim.trace`.
        PlanError: an option is out of range, a name means no group that can be cut, ``evaluate`` gives no finite
            number (or no share), no group's cut can be proved, or the journal is not of this work.
    """
    model, shares = bare(model, PlanError), _checked(ratios)
    if unit not in ("share", "number"):
        raise PlanError(f"unit must be 'share' or 'number', got {unit!r}")
    if batches is not None and (isinstance(batches, (Tensor, Mapping)) or not isinstance(batches, Iterable)):
        raise PlanError(f"batches must be a data loader or a list of batches, not a {type(batches).__name__}")
    seen = None if batches is None else list(batches)
    again = _again(seen, recalibrate)
    limits = Limits(shortcuts=shortcuts, allow_inexact=allow_inexact)
    graph = trace(model, example_inputs)
    scores = score(graph, model, criterion, batches=seen, **(scoring or {}))
    names, notes = _subjects(graph, scores, groups, limits)
    named = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "a function")
    about = {"criterion": named, "scoring": dict(scoring or {}), "recalibrate": len(again or ()), **(settings or {})}
    about = json.loads(json.dumps(about, default=lambda value: getattr(value, "__name__", type(value).__name__)))
    book = _Journal(journal, {"architecture": graph.fingerprint, "weights": _digest(model), "unit": unit, **about})
    bench = _Bench(model, graph, scores, example_inputs, evaluate, again, limits, unit)
    baseline = book.value("", 0, lambda: bench.look(duplicate(model), "the whole network"))
    rows: list[Row] = []
    for name in names:
        try:
            for row, fresh in bench.rows(name, shares, baseline, book):
                rows.append(row)
                if fresh and progress is not None:
                    progress(row, len(rows), len(names) * len(shares))
        except _UnprovedError as error:
            rows = [row for row in rows if row.group != name]
            notes.append(f"{name} is left out: its cut cannot be proved ({error})")
    if not rows:
        raise PlanError(f"no group of this model can be cut alone: {listed(notes, '; ')}")
    about |= {"shortcuts": shortcuts, "allow_inexact": allow_inexact}
    return Sensitivity(
        baseline, tuple(rows), graph.params(), graph.macs(), graph.fingerprint, unit, about, tuple(notes)
    )


class _UnprovedError(Exception):
    """A cut of a single group failed, or did not verify."""


@dataclass(frozen=True)
class _Bench:
    """A traced and scored model, ready to be cut group by group."""

    model: nn.Module
    graph: ChannelGraph
    scores: Mapping[str, Tensor]
    example_inputs: Any
    evaluate: Callable[[nn.Module], Any]
    again: list[Any] | None  # batches from which batch norms take their statistics anew
    limits: Limits
    unit: Unit

    def rows(self, name: str, ratios: Sequence[float], baseline: float, book: _Journal) -> Iterator[tuple[Row, bool]]:
        """The rows of one group, and whether they were measured just now; what the journal holds is not again."""
        number = self.graph.number(name)
        size = self.graph.groups[number].size
        for ratio in ratios:
            removed = math.floor(size * ratio + ROUNDING)
            plan = self._plan(name, removed)
            fresh = removed > 0 and not book.knows(name, removed)
            value = book.value(name, removed, partial(self._cut, plan, name, removed)) if removed else baseline
            mask = {number: np.isin(np.arange(size), plan.groups[name].kept)} if removed else {}
            params = self.graph.params() - self.graph.params(mask)
            macs = self.graph.macs() - self.graph.macs(mask)
            yield Row(name, size, ratio, removed, value, baseline - value, params, macs), fresh

    def look(self, network: nn.Module, what: str) -> float:
        """What ``evaluate`` gives for a network, after fresh statistics where they are asked for."""
        if self.again is not None:
            fresh_statistics(network, self.again)
        for module in network.modules():
            module.training = False
        given = self.evaluate(network)
        try:
            value = float(given)
        except (TypeError, ValueError, RuntimeError):
            raise PlanError(f"evaluate must return a number, it gave a {type(given).__name__} for {what}") from None
        if not math.isfinite(value):
            raise PlanError(f"evaluate gave {value} for {what}: it must return a finite number, larger is better")
        if self.unit == "share" and not -EQUAL <= value <= 1 + EQUAL:
            raise PlanError(f"evaluate gave {value:g} for {what}, which is no share from 0 to 1: give unit='number'")
        return value

    def _plan(self, name: str, removed: int) -> PruningPlan:
        options: dict[str, Any] = {"shortcuts": self.limits.shortcuts, "allow_inexact": self.limits.allow_inexact}
        return select(self.graph, self.scores, per_group={name: removed}, **options)

    def _cut(self, plan: PruningPlan, name: str, removed: int) -> float:
        try:
            small = prune(self.model, plan)
            verify(self.model, small, plan, self.example_inputs, graph=self.graph)
        except (NetslimError, RuntimeError) as error:
            raise _UnprovedError(" ".join(str(error).split())) from error
        return self.look(small, f"{name} without {removed} of its channels")


class _Journal:
    """Measured values in a file of JSON lines, the first of which says whose they are.

    Raises:
        PlanError: the file holds something else, is damaged, or belongs to other work.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.values: dict[tuple[str, int], float] = {}
        if self.path is None:
            return
        if self.path.exists() and self.path.stat().st_size:
            self._resume(self.path, identity)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(
                self.path, json.dumps({"format": FORMAT, "kind": "sensitivity journal", "of": identity}) + "\n"
            )

    def knows(self, group: str, removed: int) -> bool:
        """Whether this cut was measured already."""
        return (group, removed) in self.values

    def value(self, group: str, removed: int, measure: Callable[[], float]) -> float:
        """The value of a cut, measured only if it is not known, and written down at once."""
        if not self.knows(group, removed):
            value = measure()
            if self.path is not None:
                with open(self.path, "ab") as file:
                    file.write(json.dumps({"group": group, "removed": removed, "value": value}).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
            self.values[group, removed] = value
        return self.values[group, removed]

    def _resume(self, path: Path, identity: dict[str, Any]) -> None:
        *lines, torn = path.read_bytes().split(b"\n")
        header = _parsed(lines[0]) if lines else None
        if header is None or (header.get("kind"), header.get("format")) != ("sensitivity journal", FORMAT):
            raise PlanError(f"{path} is not a journal of netslim.sensitivity (format {FORMAT}); choose another file")
        theirs = header.get("of") or {}
        keys = dict.fromkeys([*theirs, *identity])
        wrong = [
            f"{k} {theirs.get(k)!r} there, {identity.get(k)!r} here" for k in keys if theirs.get(k) != identity.get(k)
        ]
        if wrong:
            raise PlanError(
                f"{path} was begun for another model or with other settings ({'; '.join(wrong)}); choose another file, "
                "or delete it to measure anew"
            )
        for number, line in enumerate(lines[1:], 2):
            entry = _parsed(line)
            if entry is None or not {"group", "removed", "value"} <= entry.keys():
                raise PlanError(f"{path} is damaged in line {number}; delete that line to measure it again")
            self.values[entry["group"], entry["removed"]] = float(entry["value"])
        if torn:  # by a kill in the middle of writing
            with open(path, "r+b") as file:
                file.truncate(path.stat().st_size - len(torn))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _checked(ratios: Iterable[float]) -> tuple[float, ...]:
    """Rising and distinct."""
    found = [ratios] if isinstance(ratios, (int, float)) else list(ratios)
    for ratio in found:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
            raise PlanError(f"ratios must be above 0 and below 1, got {ratio!r}: shares of a group that go")
    if not found:
        raise PlanError("ratios is empty: give some shares of a group that go, such as (0.25, 0.5, 0.75)")
    return tuple(sorted({float(ratio) for ratio in found}))


def _again(batches: list[Any] | None, recalibrate: bool | int) -> list[Any] | None:
    if not recalibrate:
        return None
    if not isinstance(recalibrate, int) or recalibrate < 0:
        raise PlanError(f"recalibrate must be True, False or a number of batches, got {recalibrate!r}")
    if not batches:
        raise PlanError("recalibrate needs batches=, a data loader or a list of training batches")
    return batches if recalibrate is True else list(islice(batches, recalibrate))


def _subjects(
    graph: ChannelGraph, scores: Mapping[str, Tensor], groups: Iterable[str] | None, limits: Limits
) -> tuple[list[str], list[str]]:
    """The names of the groups to cut, in order of execution, and sentences on those left out."""
    staying = {group.name: "it has no score" for group in graph.groups if group.name not in scores}
    staying |= limits.staying(graph)
    if groups is None:
        chosen = [group.name for group in graph.groups]
    else:
        wanted, chosen = [groups] if isinstance(groups, str) else list(groups), []
        for name in wanted:
            members = [g.name for g in meant(graph, name, "groups names no group")]
            if all(member in staying for member in members):
                raise PlanError(f"groups: {name!r} cannot be cut: {staying[members[0]]}")
            chosen += members
    names = [g.name for g in graph.groups if g.name in chosen and g.name not in staying]
    notes = [f"{name} is left out: {staying[name]}" for name in dict.fromkeys(chosen) if name in staying]
    if not names:
        raise PlanError(f"nothing can be cut: {listed(notes, '; ') or 'groups is empty'}")
    return names, notes


def _rising(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(share that went, drop) by rising share, where no drop is smaller than one before it, nor below 0."""
    found, worst = [], 0.0
    for row in sorted(rows, key=lambda row: row.removed):
        worst = max(worst, row.drop)
        found.append((row.removed / row.size, worst))
    return found


def _limit(rows: Sequence[Row], max_drop: float, interpolate: bool) -> float:
    share, before = 0.0, 0.0
    slack = EQUAL * max(abs(number) for row in rows for number in (row.value, row.value + row.drop))
    for tried, drop in _rising(rows):
        if drop > max_drop + slack:
            return share + (max_drop - before) / (drop - before) * (tried - share) if interpolate else share
        share, before = tried, drop
    return share


def _digest(model: nn.Module) -> str:
    """Of the values of all parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in named_tensors(model):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


__all__ = ["Row", "Sensitivity", "sensitivity"]
