"""`PruningPlan`: what a cut keeps, as plain data.

A plan stands between deciding and cutting. It names the kept units of every touched group and,
resolved from these, the kept indices of every (parameter or buffer, axis) and the Python sizes that
must follow, so applying a plan needs no trace. It is immutable, printable, and JSON that people can
diff.

Plans of cuts that follow each other compose, see `compose`. A model keeps the composed plan of all
its cuts, counted on its original architecture: that is how a checkpoint of a model that was cut
several times is loaded into a fresh uncut one, with one cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from netslim._support import checks_calls
from netslim.errors import PlanError
from netslim.graph.modules.walk import fingerprint
from netslim.surgery.rows import DROPPED, GroupCut, SizePatch, TensorCut, destinations, merging_rows

FORMAT = 1
LONGEST = 2**24  # entries of an axis that is cut
MERGING_FORMAT = 2  # where channels are merged or biases added, which older versions cannot do


@checks_calls
@dataclass(frozen=True)
class PruningPlan:
    """An immutable description of a cut; see the module docstring.

    Attributes:
        fingerprint: of the architecture it applies to (`fingerprint`).
        groups: group name -> `GroupCut`, for every group that loses something.
        tensors: `TensorCut` rows, one for each (tensor, axis) that shrinks.
        patches: `SizePatch` rows.
        notes: sentences for people: what stayed and why.
        biases: paths of modules that are given a bias of zeros before the cut, see
            `netslim.surgery.compensate`.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> half = netslim.Budget(cut_channels=0.5)
        >>> plan = netslim.select(graph, netslim.score(graph, model), half)
        >>> netslim.PruningPlan.from_json(plan.to_json()) == plan
        True
        >>> print(plan.explain())  # doctest: +ELLIPSIS
        Plan for the architecture ...
    """

    fingerprint: str
    groups: Mapping[str, GroupCut]
    tensors: tuple[TensorCut, ...]
    patches: tuple[SizePatch, ...] = ()
    notes: tuple[str, ...] = field(default=())
    biases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.explain()

    @property
    def removed(self) -> int:
        """Number of units that go."""
        return sum(g.size - len(g.kept) for g in self.groups.values())

    def explain(self) -> str:
        """Tell in words what goes, what stays and why."""
        lines = [f"Plan for the architecture {self.fingerprint}: {self.removed} channels go."]
        width = max((len(n) for n in self.groups), default=0)
        for name, cut in self.groups.items():
            lines.append(f"  {name:<{width}}  keeps {len(cut.kept)} of {cut.size}{_remarks(cut)}")
        lines += [f"  {path}: is given a bias" for path in self.biases]
        lines += [f"  {p.module}.{p.attribute}: {p.old} -> {p.new}" for p in self.patches]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_json(self) -> str:
        """Write the plan as JSON; kept indices are runs ``[start, stop)``."""
        newer = bool(self.biases) or any(g.into for g in self.groups.values())
        data = {
            "format": MERGING_FORMAT if newer else FORMAT,
            "fingerprint": self.fingerprint,
            "groups": {name: _group_data(g) for name, g in self.groups.items()},
            "tensors": [_tensor_data(t) for t in self.tensors],
            "patches": [vars(p) for p in self.patches],
            "notes": list(self.notes),
        }
        if self.biases:
            data["biases"] = list(self.biases)
        return json.dumps(data, separators=(",", ":"))

    @staticmethod
    def from_json(text: str, *, most: int = 2**25) -> PruningPlan:
        """Read what `to_json` wrote.

        Args:
            text: the JSON.
            most: kept indices that it may list; a run of many is a short text.

        Raises:
            PlanError: the text is not a plan, is damaged, or was written by a newer format.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(
                f"this is not a plan: no valid JSON ({error}); write one with plan.to_json()"
            ) from None
        found = data.get("format") if isinstance(data, dict) else None
        if found not in (FORMAT, MERGING_FORMAT):
            raise PlanError(
                f"this is not a plan of format {FORMAT} or {MERGING_FORMAT} (found {found!r}); "
                "make it again with this version"
            )
        try:
            _check_length(data, most)
            return _plan(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                f"the plan is damaged ({type(error).__name__}: {error}); make it again"
            ) from None

    def check(self, model: nn.Module) -> None:
        """Refuse a model this plan does not belong to.

        Raises:
            PlanError: names both fingerprints.
        """
        found = fingerprint(model)
        if found != self.fingerprint:
            raise PlanError(
                f"the plan was made for the architecture {self.fingerprint}, this model is "
                f"{found}: apply it to the model it was made for, or trace and select again"
            )


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """The one plan that does ``first`` and then ``second``, on the architecture of ``first``.

    ``second`` counts the entries that ``first`` left, so its entry i is entry ``first.kept[i]`` of
    the original: the numbers of ``second`` are looked up in those of ``first``. Kept (0, 2, 3, 5)
    of 6 and then (1, 3) of 4 is (2, 5) of 6.

    Merges chain: what ``first`` merged into a channel goes where ``second`` sends that channel, so
    it is merged into the last survivor, or dropped with it. On the original's values the composed
    plan therefore gives what the two give one after the other, apart from the rounding of sums of
    three and more. A bias that ``second`` adds is added to the original, and cut as ``first`` cut
    the outputs of its module.

    Raises:
        PlanError: ``second`` is not for what ``first`` leaves.
    """
    cuts = {(t.tensor, t.axis): t for t in (*first.tensors, *bias_cuts(first, second.biases))}
    for t in second.tensors:
        key = t.tensor, t.axis
        cuts[key] = _tensor_after(cuts[key], t) if key in cuts else t
    patches = {(p.module, p.attribute): p for p in first.patches}
    for p in second.patches:
        original = patches.get((p.module, p.attribute), p)
        patches[p.module, p.attribute] = replace(p, old=original.old)
    return PruningPlan(
        first.fingerprint,
        _compose_groups(first.groups, second.groups),
        tuple(cuts.values()),
        tuple(patches.values()),
        notes=tuple(dict.fromkeys(first.notes + second.notes)),
        biases=tuple(dict.fromkeys(first.biases + second.biases)),
    )


def bias_of(path: str) -> str:
    """The name of the bias of a module."""
    return f"{path}.bias".removeprefix(".")


def bias_cuts(plan: PruningPlan, paths: Iterable[str]) -> list[TensorCut]:
    """The cuts that biases need when they are added to modules whose outputs the plan cuts."""
    outputs = {t.tensor: t for t in plan.tensors if t.axis == 0}
    found = []
    for path in paths:
        made = outputs.get(f"{path}.weight".removeprefix("."))
        if made is not None:
            found.append(TensorCut(bias_of(path), 0, made.size, made.kept, "channel"))
    return found


def _tensor_after(first: TensorCut, second: TensorCut) -> TensorCut:
    """Two cuts of one axis, one after the other, as one."""
    if len(first.kept) != second.size:
        raise PlanError(
            f"the plans do not follow each other: {second.tensor} axis {second.axis} has "
            f"{len(first.kept)} entries after the first and {second.size} before the second"
        )
    kept = tuple(first.kept[i] for i in second.kept)
    return replace(first, kept=kept, into=_chained(first, second))


def _compose_groups(
    first: Mapping[str, GroupCut], second: Mapping[str, GroupCut]
) -> dict[str, GroupCut]:
    """For people to read; where a name stands for another group than before, the later one."""
    groups = dict(first)
    for name, cut in second.items():
        before = groups.get(name)
        if before is None or len(before.kept) != cut.size:
            groups[name] = cut
            continue
        kept = tuple(before.kept[i] for i in cut.kept)
        exact = before.exact and cut.exact
        groups[name] = GroupCut(before.size, kept, exact, _chained(before, cut))
    return groups


def _chained(first: GroupCut | TensorCut, second: GroupCut | TensorCut) -> tuple[int, ...]:
    """``into`` of the two cuts one after the other, in the numbers of the first.

    For instance first: 1 into 2, keeping (0, 2, 3); second: its 1 (the original's 2) into its 2
    (the original's 3). Then 1 and 2 both end in 3.
    """
    if not first.into and not second.into:
        return ()
    kept = np.asarray(first.kept)
    one, two = destinations(first), destinations(second)
    # DROPPED is -1, which as an index means the last entry: `where` puts it back.
    ends = np.full(first.size, DROPPED)  # of what the first cut keeps
    ends[kept] = np.where(two == DROPPED, DROPPED, kept[two])
    total = np.where(one == DROPPED, DROPPED, ends[one])
    return merging_rows(total, kept[list(second.kept)].tolist())


def _remarks(cut: GroupCut) -> str:
    merged = f", merges {cut.merged} of {cut.size} into them" if cut.merged else ""
    return merged if cut.exact else f"{merged}  (values change: not equal to silencing)"


# ---------------------------------------------------------------- plain data and back


def _group_data(cut: GroupCut) -> dict[str, Any]:
    return {"size": cut.size, "kept": _runs(cut.kept), "exact": cut.exact} | _merging(cut)


def _tensor_data(cut: TensorCut) -> dict[str, Any]:
    where = {"tensor": cut.tensor, "axis": cut.axis, "size": cut.size}
    return where | {"kept": _runs(cut.kept), "role": cut.role} | _merging(cut)


def _group(data: Mapping[str, Any]) -> GroupCut:
    size, kept = int(data["size"]), _indices(data["kept"], data["size"])
    return GroupCut(size, kept, bool(data["exact"]), _into(data))


def _tensor(data: Mapping[str, Any]) -> TensorCut:
    axis, size, kept = int(data["axis"]), int(data["size"]), _indices(data["kept"], data["size"])
    return TensorCut(str(data["tensor"]), axis, size, kept, str(data["role"]), _into(data))


def _plan(data: Mapping[str, Any]) -> PruningPlan:
    groups = {str(name): _group(group) for name, group in data["groups"].items()}
    tensors = tuple(map(_tensor, data["tensors"]))
    patches = tuple(
        SizePatch(str(p["module"]), str(p["attribute"]), int(p["old"]), int(p["new"]))
        for p in data["patches"]
    )
    notes, biases = (tuple(map(str, data.get(key, ()))) for key in ("notes", "biases"))
    return PruningPlan(str(data["fingerprint"]), groups, tensors, patches, notes, biases)


def _check_length(data: Mapping[str, Any], most: int) -> None:
    """Refuse, before they are written out, runs of more indices than a network has."""
    rows = [*data["groups"].values(), *data["tensors"]]
    listed = sum(max(0, stop - start) for row in rows for start, stop in row["kept"])
    if listed > most or any(row["size"] > LONGEST for row in rows):
        raise ValueError(f"it lists {listed:,} indices, and there can be {most:,}")


def _merging(cut: GroupCut | TensorCut) -> dict[str, list[int]]:
    return {"into": list(cut.into)} if cut.into else {}


def _into(data: Mapping[str, Any]) -> tuple[int, ...]:
    into = tuple(map(int, data.get("into", ())))
    kept = _indices(data["kept"], data["size"])
    if into and (len(into) != data["size"] - len(kept) or not set(into) <= {*kept, DROPPED}):
        raise ValueError("what is merged must go into what is kept")
    return into


def _runs(kept: tuple[int, ...]) -> list[list[int]]:
    if not kept:
        return []
    array = np.asarray(kept)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(array, breaks)]


def _indices(runs: Any, size: int) -> tuple[int, ...]:
    kept: list[int] = []
    for start, stop in runs:
        kept.extend(range(start, stop))
    if len(set(kept)) != len(kept) or any(not 0 <= i < size for i in kept):
        raise ValueError(f"kept indices do not fit a size of {size}")
    return tuple(kept)
