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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np

from netslim._support import brief, is_format, parse_json, refusing, typed
from netslim.errors import PlanError
from netslim.graph.blocks import Addition
from netslim.graph.groups import Slice
from netslim.graph.modules.padded_norms import NormWidth
from netslim.graph.modules.placeholders import Replacement
from netslim.surgery.dropped import BlockCut, Dropped, GoneTensor
from netslim.surgery.rows import GroupCut, OrderCut, PortCut, SizeLoss, SizePatch, TensorCut
from netslim.surgery.soundness import check_counts
from netslim.surgery.why import Scores, Why

FORMAT = 1
# Where channels are merged, biases added, normalisations keep their width, or inputs and outputs
# shrink: older versions cannot.
MERGING_FORMAT = 2
BLOCKS_FORMAT = 3  # where blocks go
LONGEST = 2**24  # entries of an axis that is cut
LARGEST = 2**25  # indices in all that differ from row to row; more is no plan but an attack
Blocks = tuple[tuple[int, int, int, int], ...]
_encoded = json.JSONEncoder(separators=(",", ":")).encode
_sorted = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode
_HOLE = '"kept":null'
_Option = bool | str | int | float | list[Any] | dict[str, Any]


@dataclass(frozen=True)
class Fields:
    """What a plan consists of."""

    fingerprint: str
    groups: Mapping[str, GroupCut]
    tensors: tuple[TensorCut, ...]
    patches: tuple[SizePatch, ...]
    notes: tuple[str, ...]
    biases: tuple[str, ...]
    norms: tuple[NormWidth, ...] = ()
    ports: tuple[PortCut, ...] = ()
    orders: tuple[OrderCut, ...] = ()
    dropped: Dropped = Dropped()
    why: Why | None = None
    counts: tuple[int, ...] | None = None


def write(plan: Fields) -> str:
    """The text of a plan."""
    newer = bool(plan.biases or plan.norms or plan.ports or plan.orders)
    newer = newer or any(group.into for group in plan.groups.values())
    format = MERGING_FORMAT if newer else FORMAT
    if plan.dropped:
        format = BLOCKS_FORMAT
    numbers = {(t.tensor, t.axis): number for number, t in enumerate(plan.tensors)}
    data: dict[str, Any] = {
        "format": format,
        "fingerprint": plan.fingerprint,
        "groups": {name: _group_data(g, numbers) for name, g in plan.groups.items()},
        "tensors": [_tensor_data(t) for t in plan.tensors],
        "patches": [vars(p) for p in plan.patches],
        "notes": list(plan.notes),
    }
    if plan.biases:
        data["biases"] = list(plan.biases)
    if plan.norms:
        data["norms"] = [_norm_data(norm) for norm in plan.norms]
    if plan.ports:
        data["ports"] = [_port_data(port) for port in plan.ports]
    if plan.orders:
        data["orders"] = [vars(order) | {"kept": _runs(order.kept)} for order in plan.orders]
    if plan.dropped:
        data["dropped"] = _dropped_data(plan.dropped)
    if plan.why is not None:
        data["why"] = _why_data(plan.why, plan.groups)
    if plan.counts is not None:
        data["counts"] = list(plan.counts)
    kept = _Kepts(plan)
    text, in_order = kept.text(data, _encoded), kept.text(data, _sorted, sort=True)
    return f'{text[:-1]},"digest":"{_digest_of(in_order)}"}}'


def read(text: str, most: int = LARGEST) -> Fields:
    """What `write` wrote.

    Args:
        text: the JSON.
        most: indices that it may list.

    Raises:
        PlanError: the text is not a plan, is damaged, was edited, or was written by a newer format.
    """
    with refusing(PlanError, "this is not a plan: no valid JSON", "write one with plan.to_json()"):
        data = parse_json(text)
    found = isinstance(data, dict) and data.get("format")
    if not is_format(found, FORMAT, MERGING_FORMAT, BLOCKS_FORMAT):
        raise PlanError(
            f"this is not a plan of format {FORMAT} to {BLOCKS_FORMAT} (found {brief(found)}); "
            "make it again with this version"
        )
    with refusing(PlanError, "the plan is damaged", "make it again"):
        plan = _Reader(most).plan(typed(_Plan, data))
    digest = data.pop("digest", None)
    if digest is None:  # of version 0.1, or edited: it is looked at more closely
        rows = (plan.tensors, plan.patches, plan.norms, plan.ports, plan.orders, plan.dropped)
        check_counts(plan.counts, *rows)
        return replace(plan, counts=None)
    if digest != _digest(data):
        raise PlanError(
            "the plan was edited or damaged since it was written (its digest does not match): "
            "make it again with netslim.select"
        )
    return plan


def _digest(data: Mapping[str, Any]) -> str:
    return _digest_of(_sorted(data))


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- to plain data


class _Kepts:
    """Writes what the groups and tensors of a plan keep: nearly all of it, and mostly the same.

    So the rest is written with holes, in which the text of each list of indices is put, made once.

    Args:
        plan: whose rows they are.
    """

    def __init__(self, plan: Fields) -> None:
        self._known: dict[int, str] = {}  # by the ids of tuples, for most rows share theirs
        self.groups = {name: self._of(group.kept) for name, group in plan.groups.items()}
        self.tensors = [self._of(row.kept) for row in plan.tensors]

    def _of(self, kept: tuple[int, ...]) -> str:
        text = self._known.get(id(kept))
        if text is None:
            text = self._known[id(kept)] = f'"kept":{_runs_text(kept)}'
        return text

    def text(
        self, data: Mapping[str, Any], encoded: Callable[[Any], str], sort: bool = False
    ) -> str:
        """What ``encoded`` would write if no row had holes; ``sort`` says that it sorts."""
        names = list(self.groups)
        if sort:
            data, names = dict(sorted(data.items())), sorted(names)
        texts = {key: encoded(value) for key, value in data.items()}
        texts["groups"] = _filled(texts["groups"], [self.groups[name] for name in names])
        texts["tensors"] = _filled(texts["tensors"], self.tensors)
        return "{" + ",".join(f'"{key}":{text}' for key, text in texts.items()) + "}"


def _filled(text: str, kept: Iterable[str]) -> str:
    """The text of rows with what each of them keeps.

    Nothing but a hole reads like one: a quotation mark within a string has a backslash before it,
    and nothing else of a group or a tensor is null, whatever it is called.
    """
    first, *others = text.split(_HOLE)
    return first + "".join(map("".join, zip(kept, others, strict=True)))


def _norm_data(norm: NormWidth) -> dict[str, Any]:
    """Without what is as it is nearly always."""
    usual = vars(NormWidth(norm.module, norm.kind, norm.dim, norm.width))
    held = {"module", "kind", "dim", "width"}
    return {k: v for k, v in vars(norm).items() if k in held or v != usual[k]}


def _group_data(cut: GroupCut, rows: Mapping[tuple[str, int], int]) -> dict[str, Any]:
    data: dict[str, Any] = {"size": cut.size, "kept": None, "exact": cut.exact} | _merging(cut)
    if cut.slices and all((s.tensor, s.axis) in rows for s in cut.slices):
        data["slices"] = _slices_data(cut.slices, rows)
    if cut.sizes:
        data["sizes"] = [[size.module, size.attribute, size.lost] for size in cut.sizes]
    return data


def _tensor_data(cut: TensorCut) -> dict[str, Any]:
    where = {"tensor": cut.tensor, "axis": cut.axis, "size": cut.size}
    return where | {"kept": None, "role": cut.role} | _merging(cut)


def _dropped_data(dropped: Dropped) -> dict[str, Any]:
    return {
        "blocks": [
            {"name": block.name, "sums": [list(vars(one).values()) for one in block.sums]}
            for block in dropped.blocks
        ],
        "replaced": [{k: v for k, v in vars(row).items() if v} for row in dropped.replaced],
        "tensors": [[gone.tensor, list(gone.shape), gone.after] for gone in dropped.tensors],
    }


def _port_data(cut: PortCut) -> dict[str, Any]:
    where = {"kind": cut.kind, "name": cut.name, "dim": cut.dim, "size": cut.size}
    return where | {"kept": _runs(cut.kept), "fed_by": cut.fed_by} | _merging(cut)


def _why_data(why: Why, groups: Mapping[str, GroupCut]) -> dict[str, Any]:
    why = replace(why, scores={name: _rounded(values) for name, values in why.scores.items()})
    scores = {name: _scores_data(why, name, groups.get(name)) for name in why.scores}
    data = {**vars(why), "scores": scores}
    if not why.latency:
        del data["latency"]
    return data


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


def _merging(cut: GroupCut | TensorCut | PortCut) -> dict[str, list[int]]:
    if not cut.into:
        return {}
    return {"into": list(cut.into)}


def _runs(kept: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and end of each stretch of numbers that follow each other."""
    if not kept:
        return []
    gaps = [(n + 1, after) for n, after in pairwise(kept) if after != n + 1]
    edges = chain(kept[:1], chain.from_iterable(gaps), (kept[-1] + 1,))
    return list(zip(edges, edges, strict=True))


def _runs_text(kept: tuple[int, ...]) -> str:
    """The runs as JSON: all that is written of most plans, so it is put together by hand."""
    if set(map(type, kept)) != {int}:
        return _encoded(_runs(kept))
    gaps = [f"{n + 1}],[{after}," for n, after in pairwise(kept) if after != n + 1]
    return f"[[{kept[0]},{''.join(gaps)}{kept[-1] + 1}]]"


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


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What stays of an axis."""

    size: int
    kept: tuple[tuple[int, int], ...]
    into: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Tensor(_Kept):
    tensor: str
    axis: int
    role: str


@dataclass(frozen=True, kw_only=True)
class _Group(_Kept):
    exact: bool
    slices: tuple[Mapping[str, Any], ...] = ()
    sizes: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Port(_Kept):
    kind: str
    name: str
    dim: int
    fed_by: str = ""


@dataclass(frozen=True, kw_only=True)
class _Order(_Kept):
    tensor: str


@dataclass(frozen=True, kw_only=True)
class _Block:
    name: str
    sums: tuple[tuple[str, str, int, int], ...]


@dataclass(frozen=True)
class _Dropped:
    blocks: tuple[_Block, ...] = ()
    replaced: tuple[Replacement, ...] = ()
    tensors: tuple[tuple[str, tuple[int, ...], str], ...] = ()


@dataclass(frozen=True)
class _Why:
    criterion: str
    allocation: str
    compensation: str
    budget: Mapping[str, _Option]
    limits: Mapping[str, _Option]
    per_group: Mapping[str, int]
    scores: Mapping[str, Mapping[str, Any]]
    latency: Mapping[str, _Option] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """What the JSON of a plan holds."""

    format: int
    fingerprint: str
    groups: Mapping[str, _Group]
    tensors: tuple[_Tensor, ...]
    patches: tuple[SizePatch, ...]
    notes: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    norms: tuple[NormWidth, ...] = ()
    ports: tuple[_Port, ...] = ()
    orders: tuple[_Order, ...] = ()
    dropped: _Dropped = _Dropped()
    why: _Why | None = None
    counts: tuple[int, ...] | None = None
    digest: str | None = None


class _Reader:
    """Makes rows of what stands in a file, and counts what it spreads out."""

    def __init__(self, most: int) -> None:
        self.most, self.spread = most, 0
        self.known: dict[tuple[Any, ...], tuple[int, ...]] = {}  # many rows keep the same

    def plan(self, data: _Plan) -> Fields:
        tensors = tuple(map(self.tensor, data.tensors))
        groups = {name: self.group(found, tensors) for name, found in data.groups.items()}
        fields = (data.fingerprint, groups, tensors, data.patches, data.notes)
        why = None
        if data.why is not None:
            why = self.why(data.why, groups)
        ports = tuple(map(self.port, data.ports))
        orders = tuple(OrderCut(o.tensor, o.size, self.kept(o), o.into) for o in data.orders)
        dropped = self.dropped(data.dropped)
        return Fields(*fields, data.biases, data.norms, ports, orders, dropped, why, data.counts)

    def group(self, data: _Group, tensors: tuple[TensorCut, ...]) -> GroupCut:
        kept, slices = self.kept(data), tuple(self.slices(data.slices, tensors))
        sizes = tuple(SizeLoss(*row) for row in data.sizes)
        return GroupCut(data.size, kept, data.exact, data.into, slices, sizes)

    def why(self, data: _Why, groups: Mapping[str, GroupCut]) -> Why:
        _refuse_less(0, *data.per_group.values())
        scores = {}
        for name, row in data.scores.items():
            scores[name] = typed(Scores, row.get("units"))
            self.count(len(scores[name]))
            if name in groups and len(scores[name]) != groups[name].size:
                raise ValueError(f"there are {len(scores[name])} scores of {name}")
        return Why(**{**vars(data), "scores": scores})

    def tensor(self, data: _Tensor) -> TensorCut:
        _refuse_less(0, data.axis)
        return TensorCut(data.tensor, data.axis, data.size, self.kept(data), data.role, data.into)

    def port(self, data: _Port) -> PortCut:
        kept = self.kept(data)
        return PortCut(data.kind, data.name, data.dim, data.size, kept, data.into, data.fed_by)

    def dropped(self, data: _Dropped) -> Dropped:
        blocks = [BlockCut(b.name, tuple(Addition(*one) for one in b.sums)) for b in data.blocks]
        gone = tuple(GoneTensor(*row) for row in data.tensors)
        return Dropped(tuple(blocks), data.replaced, gone)

    def kept(self, data: _Kept) -> tuple[int, ...]:
        _refuse_less(1, data.size)
        _refuse_less(-1, *data.into)
        if data.size > LONGEST:
            raise ValueError(f"a size of {data.size} is more than any layer has")
        key = (data.size, *data.kept)
        if key not in self.known:
            before = 0
            for start, stop in data.kept:
                if not before <= start < stop <= data.size:
                    raise ValueError(
                        f"kept runs must be in order, each once, within a size of {data.size}"
                    )
                before = stop
            self.count(sum(stop - start for start, stop in data.kept))
            self.known[key] = tuple(chain.from_iterable(range(*pair) for pair in data.kept))
        return self.known[key]

    def slices(
        self, data: Iterable[Mapping[str, Any]], tensors: tuple[TensorCut, ...]
    ) -> Iterator[Slice]:
        for alike in data:
            positions, units = self.entries(typed(Blocks, alike.get("blocks")))
            for role, numbers in alike.items():
                if role == "blocks":
                    continue
                for number in typed(tuple[int, ...], numbers):
                    if not 0 <= number < len(tensors):
                        raise ValueError(f"there is no row {number}")
                    cut = tensors[number]
                    yield Slice(cut.tensor, cut.axis, role, positions, units)

    def entries(self, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
        """The positions of blocks, and the unit of each."""
        if not blocks:
            raise ValueError("a slice has no entries")
        positions, units = [], []
        for entry, unit, count, each in blocks:
            _refuse_less(0, entry, unit)
            _refuse_less(1, count, each)
            if max(entry, unit) > LONGEST:
                raise ValueError(f"an entry {max(entry, unit)} is more than any layer has")
            self.count(count * each)
            positions.append(np.arange(entry, entry + count * each))
            units.append(np.repeat(np.arange(unit, unit + count), each))
        return np.concatenate(positions), np.concatenate(units)

    def count(self, numbers: int) -> None:
        self.spread += numbers
        if self.spread > self.most:
            raise ValueError(f"it lists {self.spread:,} indices, and there can be {self.most:,}")


def _refuse_less(least: int, *numbers: int) -> None:
    if numbers and min(numbers) < least:
        raise ValueError(f"{min(numbers)} stands where a number of at least {least} should")
