"""A plan as JSON, and back: runs of indices, for people to compare, and a digest of it all.

What is read may be damaged, edited, or written to do harm. So every field has its type looked at,
runs are looked at before they are spread out, and the digest shows whether anything is not as it
was written (plans of version 0.1 have none). Whether the rows agree is asked in `soundness`.

The slices of a group are blocks of entries, the same in most of its tensors::

    {"blocks": [[0, 0, 64, 1]], "producer": [0], "scale": [2], "consumer": [7]}

Each block is (entry, unit, units, each): from that entry and that unit on, so many units with so
many entries each. The numbers behind a role are those of rows. Beside them stand the attributes
that count the units, and by how much each becomes less: ``"sizes": [["stage1", "width", 16]]``.

Why channels stay is in a part of its own, for people; a plan without it is as good::

    {"criterion": "l1", "allocation": "global", "budget": {"cut_macs": 0.5}, ...,
     "scores": {"conv1": {"largest removed": 0.12, "smallest kept": 0.15, "units": [0.3, 0.12]}}}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from netslim._support import is_format, parse_json
from netslim.errors import PlanError
from netslim.graph.groups import Slice
from netslim.surgery.rows import GroupCut, SizeLoss, SizePatch, TensorCut
from netslim.surgery.why import Scores, Why

FORMAT = 1
MERGING_FORMAT = 2  # where channels are merged or biases added, which older versions cannot do
LONGEST = 2**24  # entries of an axis that is cut
LARGEST = 2**25  # indices in all that differ from row to row; more is no plan but an attack
Blocks = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Fields:
    """What a plan consists of."""

    fingerprint: str
    groups: Mapping[str, GroupCut]
    tensors: tuple[TensorCut, ...]
    patches: tuple[SizePatch, ...]
    notes: tuple[str, ...]
    biases: tuple[str, ...]
    why: Why | None = None


def write(plan: Fields) -> str:
    """The text of a plan."""
    newer = bool(plan.biases) or any(group.into for group in plan.groups.values())
    numbers = {(t.tensor, t.axis): number for number, t in enumerate(plan.tensors)}
    data = {
        "format": MERGING_FORMAT if newer else FORMAT,
        "fingerprint": plan.fingerprint,
        "groups": {name: _group_data(g, numbers) for name, g in plan.groups.items()},
        "tensors": [_tensor_data(t) for t in plan.tensors],
        "patches": [vars(p) for p in plan.patches],
        "notes": list(plan.notes),
    }
    if plan.biases:
        data["biases"] = list(plan.biases)
    if plan.why is not None:
        data["why"] = _why_data(plan.why, plan.groups)
    return json.dumps(data | {"digest": _digest(data)}, separators=(",", ":"))


def read(text: str, most: int = LARGEST) -> Fields:
    """What `write` wrote.

    Args:
        text: the JSON.
        most: indices that it may list.

    Raises:
        PlanError: the text is not a plan, is damaged, was edited, or was written by a newer format.
    """
    try:
        data = parse_json(text, "a plan", _once)
    except (ValueError, TypeError) as error:
        raise PlanError(
            f"this is not a plan: no valid JSON ({error}); write one with plan.to_json()"
        ) from None
    found = isinstance(data, dict) and data.get("format")
    if not is_format(found, FORMAT, MERGING_FORMAT):
        raise PlanError(
            f"this is not a plan of format {FORMAT} or {MERGING_FORMAT} (found {found!r}); "
            "make it again with this version"
        )
    try:
        plan = _Reader(most).plan(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PlanError(
            f"the plan is damaged ({type(error).__name__}: {error}); make it again"
        ) from None
    digest = data.pop("digest", None)
    if digest is not None and digest != _digest(data):
        raise PlanError(
            "the plan was edited or damaged since it was written (its digest does not match): "
            "make it again with netslim.select"
        )
    return plan


def _digest(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- to plain data


def _group_data(cut: GroupCut, rows: Mapping[tuple[str, int], int]) -> dict[str, Any]:
    data = {"size": cut.size, "kept": _runs(cut.kept), "exact": cut.exact} | _merging(cut)
    if cut.slices and all((s.tensor, s.axis) in rows for s in cut.slices):
        data["slices"] = _slices_data(cut.slices, rows)
    if cut.sizes:
        data["sizes"] = [[size.module, size.attribute, size.lost] for size in cut.sizes]
    return data


def _tensor_data(cut: TensorCut) -> dict[str, Any]:
    where = {"tensor": cut.tensor, "axis": cut.axis, "size": cut.size}
    return where | {"kept": _runs(cut.kept), "role": cut.role} | _merging(cut)


def _why_data(why: Why, groups: Mapping[str, GroupCut]) -> dict[str, Any]:
    why = replace(why, scores={name: _rounded(values) for name, values in why.scores.items()})
    scores = {name: _scores_data(why, name, groups.get(name)) for name in why.scores}
    return {**vars(why), "scores": scores}


def _scores_data(why: Why, name: str, cut: GroupCut | None) -> dict[str, Any]:
    if cut is None:
        return {"units": why.scores[name]}
    gone, left = why.threshold(name, cut.kept)
    return {"largest removed": gone, "smallest kept": left, "units": why.scores[name]}


def _rounded(values: Scores) -> Scores:
    """Four digits: a plan is to be read, and compared; what is cut does not hang on them."""
    return tuple(map(_short, values))


def _short(value: float) -> float:
    short = float(f"{value:.4g}")
    if math.isfinite(short):  # the largest floats are rounded beyond all
        return short
    return value


def _merging(cut: GroupCut | TensorCut) -> dict[str, list[int]]:
    if not cut.into:
        return {}
    return {"into": list(cut.into)}


def _runs(kept: tuple[int, ...]) -> list[list[int]]:
    if not kept:
        return []
    array = np.asarray(kept)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(array, breaks)]


def _slices_data(
    slices: Iterable[Slice], rows: Mapping[tuple[str, int], int]
) -> list[dict[str, Any]]:
    """The slices of one group, those with the same blocks together."""
    alike: dict[Blocks, dict[str, list[int]]] = {}
    for s in slices:
        roles = alike.setdefault(_blocks(s), {})
        roles.setdefault(s.role, []).append(rows[s.tensor, s.axis])
    return [{"blocks": list(map(list, blocks)), **roles} for blocks, roles in alike.items()]


def _blocks(s: Slice) -> Blocks:
    """Which entries go with which units, in as few numbers as it takes.

    Entries that lie next to each other and go with one unit are a run; runs as long as each other,
    next to each other and of units that follow each other, are a block.
    """
    order = np.argsort(s.positions, kind="stable")
    entries, units = s.positions[order], s.units[order]
    first = np.flatnonzero(np.r_[True, (np.diff(entries) != 1) | (np.diff(units) != 0)])
    entry, unit, each = entries[first], units[first], np.diff(np.r_[first, len(entries)])
    follows = (np.diff(entry) == each[:-1]) & (np.diff(unit) == 1) & (np.diff(each) == 0)
    start = np.flatnonzero(np.r_[True, ~follows])
    count = np.diff(np.r_[start, len(first)])
    columns = (entry[start], unit[start], count, each[start])
    return tuple(zip(*(column.tolist() for column in columns), strict=True))


# ---------------------------------------------------------------- and back


class _Reader:
    """Reads plain data into rows, and counts what it spreads out."""

    def __init__(self, most: int) -> None:
        self.most, self.spread = most, 0
        self.known: dict[tuple[Any, ...], tuple[int, ...]] = {}  # many rows keep the same

    def plan(self, data: Mapping[str, Any]) -> Fields:
        tensors = tuple(map(self.tensor, _listed(data["tensors"])))
        groups = {_text(name): self.group(g, tensors) for name, g in data["groups"].items()}
        patches = tuple(map(_patch, _listed(data["patches"])))
        notes, biases = (
            tuple(map(_text, _listed(data.get(key, [])))) for key in ("notes", "biases")
        )
        plan = Fields(_text(data["fingerprint"]), groups, tensors, patches, notes, biases)
        if "why" not in data:
            return plan
        return replace(plan, why=self.why(data["why"], groups))

    def group(self, data: Mapping[str, Any], tensors: tuple[TensorCut, ...]) -> GroupCut:
        size, kept, into = self.numbers(data)
        if type(data["exact"]) is not bool:
            raise ValueError(f"exact must be true or false, not {data['exact']!r}")
        slices = tuple(self.slices(data.get("slices", []), tensors))
        sizes = tuple(map(_loss, _listed(data.get("sizes", []))))
        return GroupCut(size, kept, data["exact"], into, slices, sizes)

    def why(self, data: Mapping[str, Any], groups: Mapping[str, GroupCut]) -> Why:
        criterion, allocation, compensation = (
            _text(data[key]) for key in ("criterion", "allocation", "compensation")
        )
        budget, limits = _by_name(data["budget"]), _by_name(data["limits"])
        named = {_text(name): _integer(count) for name, count in data["per_group"].items()}
        scores = {_text(name): self.scores(row["units"]) for name, row in data["scores"].items()}
        for name in groups.keys() & scores.keys():
            if len(scores[name]) != groups[name].size:
                raise ValueError(f"there are {len(scores[name])} scores of {name}")
        return Why(criterion, allocation, compensation, budget, named, limits, scores)

    def scores(self, data: Any) -> Scores:
        self.count(len(_listed(data)))
        return tuple(map(_number, data))

    def tensor(self, data: Mapping[str, Any]) -> TensorCut:
        size, kept, into = self.numbers(data)
        axis, role = _integer(data["axis"]), _text(data["role"])
        return TensorCut(_text(data["tensor"]), axis, size, kept, role, into)

    def numbers(self, data: Mapping[str, Any]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Size, kept and into of one row."""
        size = _integer(data["size"], least=1)
        if size > LONGEST:
            raise ValueError(f"a size of {size} is more than any layer has")
        into = tuple(_integer(number, least=-1) for number in _listed(data.get("into", [])))
        return size, self.kept(data["kept"], size), into

    def kept(self, runs: Any, size: int) -> tuple[int, ...]:
        pairs = tuple(tuple(map(_integer, _listed(run))) for run in _listed(runs))
        key = (size, *pairs)
        if key not in self.known:
            before = 0
            for start, stop in pairs:
                if not before <= start < stop <= size:
                    raise ValueError(
                        f"kept runs must be in order, each once, within a size of {size}"
                    )
                before = stop
            self.count(sum(stop - start for start, stop in pairs))
            self.known[key] = tuple(chain.from_iterable(range(*pair) for pair in pairs))
        return self.known[key]

    def slices(self, data: Any, tensors: tuple[TensorCut, ...]) -> Iterator[Slice]:
        for alike in _listed(data):
            positions, units = self.entries(alike["blocks"])
            for role, numbers in alike.items():
                if role != "blocks":
                    for number in map(_integer, numbers):
                        if number >= len(tensors):
                            raise ValueError(f"there is no row {number}")
                        cut = tensors[number]
                        yield Slice(cut.tensor, cut.axis, role, positions, units)

    def entries(self, blocks: Any) -> tuple[np.ndarray, np.ndarray]:
        """The positions of blocks, and the unit of each."""
        positions, units = [], []
        for entry, unit, count, each in _listed(blocks):
            _integer(entry), _integer(unit)
            length = _integer(count, least=1) * _integer(each, least=1)
            self.count(length)
            positions.append(np.arange(entry, entry + length))
            units.append(np.repeat(np.arange(unit, unit + count), each))
        return np.concatenate(positions), np.concatenate(units)

    def count(self, numbers: int) -> None:
        self.spread += numbers
        if self.spread > self.most:
            raise ValueError(f"it lists {self.spread:,} indices, and there can be {self.most:,}")


def _patch(data: Mapping[str, Any]) -> SizePatch:
    old, new = (_integer(data[key], least=None) for key in ("old", "new"))
    return SizePatch(_text(data["module"]), _text(data["attribute"]), old, new)


def _loss(data: Any) -> SizeLoss:
    module, attribute, lost = _listed(data)
    return SizeLoss(_text(module), _text(attribute), _integer(lost, least=None))


def _integer(value: Any, least: int | None = 0) -> int:
    if type(value) is not int or (least is not None and value < least):
        raise ValueError(f"{value!r} stands where a whole number of at least {least} should")
    return value


def _number(value: Any) -> float | int:
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r} stands where a number should")


def _by_name(data: Mapping[str, Any]) -> dict[str, Any]:
    return {_text(name): _plain(value) for name, value in data.items()}


def _plain(value: Any) -> Any:
    """A value of an option: a flag, a word, a number, several of these, or some by name."""
    if type(value) in (bool, str):
        return value
    if type(value) is list:
        return list(map(_plain, value))
    if type(value) is dict:
        return _by_name(value)
    return _number(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r} stands where a text should")
    return value


def _listed(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError(f"{value!r:.60} stands where a list should")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found
