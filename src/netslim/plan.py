"""`PruningPlan`: what a cut keeps, as plain data.

A plan stands between deciding and cutting. It names the kept units of every touched group and, resolved from
these, the kept indices of every (parameter or buffer, axis) and the Python sizes that must follow, so applying
a plan needs no trace. It is immutable, printable, and JSON that people can diff.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from .errors import PlanError

FORMAT = 1


def fingerprint(model: nn.Module) -> str:
    """Identify an architecture: a short digest of the names and shapes of all parameters and lasting buffers.

    Values, dtype, device and train/eval mode do not enter, so a trained copy has the fingerprint of a fresh one; nor
    do buffers that are not saved, which a model may make anew for the size of its input.
    """
    modules = named_modules(model)
    passing = {f"{path}.{name}".lstrip(".") for m, path in modules.items() for name in m._non_persistent_buffers_set}
    digest = hashlib.sha256()
    for name, tensor in named_tensors(model):
        if name not in passing:
            digest.update(f"{name}{tuple(tensor.shape)};".encode())
    return digest.hexdigest()[:16]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """All parameters, then all buffers (non-persistent ones too), shared ones once, by their first name.

    As ``named_parameters`` and ``named_buffers`` in one walk over the modules, which is many times faster.
    """
    modules = named_modules(model)
    for kind in ("_parameters", "_buffers"):
        seen: set[int] = set()
        for module, prefix in modules.items():
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{prefix}.{name}" if prefix else name, tensor


def named_modules(model: nn.Module) -> dict[nn.Module, str]:
    """Every module once -> its path, in the order of ``model.named_modules()``, many times faster."""
    found: dict[nn.Module, str] = {}
    _walk(model, "", found)
    return found


def _walk(module: nn.Module, path: str, found: dict[nn.Module, str]) -> None:
    found[module] = path
    for name, child in module._modules.items():
        if child is not None and child not in found:
            _walk(child, f"{path}.{name}" if path else name, found)


@dataclass(frozen=True)
class GroupCut:
    """What happens to one group: ``kept`` unit numbers, in order, out of ``size``."""

    size: int
    kept: tuple[int, ...]
    exact: bool = True

    @property
    def removed(self) -> tuple[int, ...]:
        return complement(self.kept, self.size)


@dataclass(frozen=True)
class TensorCut:
    """The kept indices of one axis of one parameter or buffer.

    ``role`` says what the axis does for the removed channels: ``producer`` (computes them), ``consumer``
    (reads them), ``scale`` (multiplies them after a normalisation) or ``channel`` (any other per-channel value).
    """

    tensor: str
    axis: int
    size: int
    kept: tuple[int, ...]
    role: str

    @property
    def removed(self) -> tuple[int, ...]:
        return complement(self.kept, self.size)


@dataclass(frozen=True)
class SizePatch:
    """An integer that the module's Python code remembers and that must follow the cut."""

    module: str
    attribute: str
    old: int
    new: int


@dataclass(frozen=True)
class PruningPlan:
    """An immutable description of a cut; see the module docstring.

    Attributes:
        fingerprint: of the architecture it applies to (`fingerprint`).
        groups: group name -> `GroupCut`, for every group that loses something.
        tensors: `TensorCut` rows, one for each (tensor, axis) that shrinks.
        patches: `SizePatch` rows.
        notes: sentences for people: what stayed and why.
    """

    fingerprint: str
    groups: Mapping[str, GroupCut]
    tensors: tuple[TensorCut, ...]
    patches: tuple[SizePatch, ...] = ()
    notes: tuple[str, ...] = field(default=())

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
            inexact = "" if cut.exact else "  (values change: not equal to silencing)"
            lines.append(f"  {name:<{width}}  keeps {len(cut.kept)} of {cut.size}{inexact}")
        lines += [f"  {p.module}.{p.attribute}: {p.old} -> {p.new}" for p in self.patches]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_json(self) -> str:
        """Write the plan as JSON; kept indices are runs ``[start, stop)``."""
        data = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "groups": {
                name: {"size": g.size, "kept": _runs(g.kept), "exact": g.exact} for name, g in self.groups.items()
            },
            "tensors": [
                {"tensor": t.tensor, "axis": t.axis, "size": t.size, "kept": _runs(t.kept), "role": t.role}
                for t in self.tensors
            ],
            "patches": [vars(p) for p in self.patches],
            "notes": list(self.notes),
        }
        return json.dumps(data, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Read what `to_json` wrote.

        Raises:
            PlanError: the text is not a plan, is damaged, or was written by a newer format.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"this is not a plan: no valid JSON ({error}); write one with plan.to_json()") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else None
            raise PlanError(f"this is not a plan of format {FORMAT} (found {found!r}); make it again with this version")
        try:
            groups = {
                str(n): GroupCut(int(g["size"]), _indices(g["kept"], g["size"]), bool(g["exact"]))
                for n, g in data["groups"].items()
            }
            tensors = tuple(
                TensorCut(
                    str(t["tensor"]),
                    int(t["axis"]),
                    int(t["size"]),
                    _indices(t["kept"], t["size"]),
                    str(t["role"]),
                )
                for t in data["tensors"]
            )
            patches = tuple(
                SizePatch(str(p["module"]), str(p["attribute"]), int(p["old"]), int(p["new"])) for p in data["patches"]
            )
            return PruningPlan(str(data["fingerprint"]), groups, tensors, patches, tuple(map(str, data["notes"])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"the plan is damaged ({type(error).__name__}: {error}); make it again") from None

    def check(self, model: nn.Module) -> None:
        """Refuse a model this plan does not belong to.

        Raises:
            PlanError: names both fingerprints.
        """
        found = fingerprint(model)
        if found != self.fingerprint:
            raise PlanError(
                f"the plan was made for the architecture {self.fingerprint}, this model is {found}: "
                "apply it to the model it was made for, or trace and select again"
            )


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """The one plan that does ``first`` and then ``second``, on the architecture of ``first``."""
    cuts = {(t.tensor, t.axis): t for t in first.tensors}
    for t in second.tensors:
        before = cuts.get((t.tensor, t.axis))
        if before is None:
            cuts[t.tensor, t.axis] = t
            continue
        if len(before.kept) != t.size:
            raise PlanError(
                f"the plans do not follow each other: {t.tensor} axis {t.axis} has {len(before.kept)} entries "
                f"after the first and {t.size} before the second"
            )
        kept = tuple(before.kept[i] for i in t.kept)
        cuts[t.tensor, t.axis] = TensorCut(t.tensor, t.axis, before.size, kept, before.role)
    patches = {(p.module, p.attribute): p for p in first.patches}
    for p in second.patches:
        old = patches[p.module, p.attribute].old if (p.module, p.attribute) in patches else p.old
        patches[p.module, p.attribute] = SizePatch(p.module, p.attribute, old, p.new)
    notes = tuple(dict.fromkeys(first.notes + second.notes))
    groups = _compose_groups(first.groups, second.groups)
    return PruningPlan(first.fingerprint, groups, tuple(cuts.values()), tuple(patches.values()), notes)


def _compose_groups(first: Mapping[str, GroupCut], second: Mapping[str, GroupCut]) -> dict[str, GroupCut]:
    groups = dict(first)
    for name, cut in second.items():
        before = groups.get(name)
        if before is not None and len(before.kept) == cut.size:
            kept = tuple(before.kept[i] for i in cut.kept)
            groups[name] = GroupCut(before.size, kept, before.exact and cut.exact)
        else:
            groups[name] = cut
    return groups


def complement(kept: Iterable[int], size: int) -> tuple[int, ...]:
    """The numbers of ``range(size)`` that are not in ``kept``, in order."""
    gone = np.ones(size, dtype=bool)
    gone[list(kept)] = False
    return tuple(np.flatnonzero(gone).tolist())


def _runs(kept: tuple[int, ...]) -> list[list[int]]:
    if not kept:
        return []
    array = np.asarray(kept)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(array, breaks)]


def _indices(runs: Any, size: int) -> tuple[int, ...]:
    kept = tuple(i for start, stop in runs for i in range(start, stop))
    if len(set(kept)) != len(kept) or any(not 0 <= i < size for i in kept):
        raise ValueError(f"kept indices do not fit a size of {size}")
    return kept
