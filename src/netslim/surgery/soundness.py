"""Whether the rows of a plan agree with each other, and with the model, before anything is cut.

A plan is data: it is written, sent, edited and read again, and nothing of it may be believed. Two
things are looked at. Each row by itself: its numbers are whole, in range, in order and once. And
all of them together: what a group loses, each axis that it has entries in must lose, and nothing
else, and so must each attribute that counts its units. A plan whose groups know their slices says
the same thing twice, so its rows are made anew from the groups and compared. (Composed plans, which
know the attributes alone, and those of version 0.1 say it once. What they have lost shows in how
many rows they were made with; where nobody says that, what is within one layer can be compared. All
groups of a plan know their slices or none does.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from netslim._support import brief
from netslim.errors import PlanError
from netslim.graph.groups import Slice
from netslim.graph.modules.computed_convolutions import CONVOLUTIONS
from netslim.graph.modules.padded_calls import REDUCTIONS
from netslim.graph.modules.padded_norms import DIMS, KINDS, SCALED, ZEROS, NormWidth
from netslim.surgery.axes import rows_of
from netslim.surgery.dropped import Dropped
from netslim.surgery.layer_rows import torn_layers
from netslim.surgery.rows import (
    DROPPED,
    GroupCut,
    OrderCut,
    PortCut,
    SizePatch,
    TensorCut,
    bias_of,
    losses,
    weight_of,
)

_AGAIN = "the plan is damaged, or was edited: make it again with netslim.select"
_ROLES = {"producer", "consumer", "scale", "channel", "silenced"}
_Sound = set[tuple[int, int]]  # size and id of the kept entries that were looked at; many are one


def check_rows(
    groups: Mapping[str, GroupCut],
    tensors: Iterable[TensorCut],
    patches: Iterable[SizePatch],
    biases: Iterable[str],
    norms: Sequence[NormWidth],
    ports: Sequence[PortCut],
    orders: Sequence[OrderCut],
    counts: tuple[int, ...] | None,
    dropped: Dropped,
) -> None:
    """Refuse a plan that is at odds with itself.

    Raises:
        PlanError: says which row, and what is wrong with it.
    """
    sound: _Sound = set()
    for name, group in groups.items():
        if group.kept or not dropped:  # of a layer that goes as a block nothing is kept
            _check_numbers(f"the group {name!r}", group, sound)
    rows: dict[tuple[str, int], TensorCut] = {}
    for cut in tensors:
        what = f"axis {cut.axis} of {cut.tensor!r}"
        if not _whole(cut.axis) or cut.axis < 0:
            raise _problem(what, "an axis is a whole number of 0 or more")
        if (cut.tensor, cut.axis) in rows:
            raise _problem(what, "it has two rows")
        if not set(cut.role.split("+")) <= _ROLES:
            raise _problem(what, f"there is no role {cut.role!r}")
        _check_numbers(what, cut, sound)
        rows[cut.tensor, cut.axis] = cut
    patches = tuple(patches)
    _check_patches(patches)
    _check_sizes(groups, patches)
    _check_groups(groups, rows)
    _check_biases(biases, rows)
    _check_norms(norms)
    _check_ports(ports, sound)
    for order in orders:
        _check_numbers(f"the numbers in {order.tensor!r}", order, sound)
    problem = dropped.problem()
    if problem is not None:
        raise _problem("what the plan does with blocks", problem)
    check_counts(counts, rows, patches, norms, ports, orders, dropped)


def _check_ports(ports: Iterable[PortCut], sound: _Sound) -> None:
    """Refuse inputs and outputs that there cannot be."""
    seen = set()
    for port in ports:
        what = f"dimension {port.dim!r} of the {port.kind} {port.name!r}"
        if port.kind not in ("input", "output") or not _whole(port.dim) or port.dim < 0:
            raise _problem(what, "there is none such")
        if (port.kind, port.name, port.dim) in seen:
            raise _problem(what, "it has two rows")
        seen.add((port.kind, port.name, port.dim))
        _check_numbers(what, port, sound)


def _check_norms(norms: Iterable[NormWidth]) -> None:
    """Refuse normalisations that there cannot be."""
    seen = set()
    for norm in norms:
        what = f"the normalisation {norm.where!r}"
        if norm.place in seen:
            raise _problem(what, "it is named twice")
        if not _known_kind(norm):
            raise _problem(what, f"there is no kind {norm.kind!r} along dimension {norm.dim!r}")
        if not _whole(norm.width) or norm.width < 1:
            raise _problem(what, f"a width of {norm.width!r} is none")
        if norm.kind == SCALED and not (norm.weight and _is_eps(norm.eps)):
            raise _problem(what, f"nothing can be scaled: its eps is {norm.eps!r}")
        seen.add(norm.place)


def _known_kind(norm: NormWidth) -> bool:
    """Whether there is such a normalisation, along such a dimension."""
    if norm.call:
        return norm.kind in (*REDUCTIONS, ZEROS) and _whole(norm.dim) and norm.dim >= 0
    return norm.kind in (*KINDS, *CONVOLUTIONS, ZEROS, SCALED) and norm.dim in DIMS


def _is_eps(value: object) -> bool:
    return isinstance(value, float) and 0 <= value < float("inf")


def check_counts(
    counts: tuple[int, ...] | None,
    tensors: Collection[object],
    patches: Collection[object],
    norms: Collection[object],
    ports: Collection[object],
    orders: Collection[object],
    dropped: Dropped,
) -> None:
    """Refuse a plan that has lost a row: where groups are silent, nothing else would tell.

    Args:
        counts: how many of each it was made with, if it says so.
        tensors: its rows.
        patches: its patches.
        norms: its normalisations.
        ports: its inputs and outputs.
        orders: its buffers of numbers.
        dropped: its blocks.

    Raises:
        PlanError: says how many are left.
    """
    rows = {"tensors": tensors, "patches": patches, "norms": norms, "ports": ports}
    rows |= {"orders": orders, "replaced modules": dropped.replaced, "gone": dropped.tensors}
    found = [(what, len(there)) for what, there in rows.items()]
    for count, (what, number) in zip(counts or (), found, strict=False):
        if number < count:
            raise _problem(f"{number} of {count} {what}", "the others are missing")


def check_fits(
    tensors: Iterable[TensorCut], biases: Iterable[str], named: Mapping[str, Tensor]
) -> None:
    """Refuse a plan whose rows are not of the tensors of the model.

    Args:
        tensors: of the plan.
        biases: paths of layers that the plan gives one, which the model does not have yet.
        named: of the model.

    Raises:
        PlanError: says which tensor, and what the plan expects of it.
    """
    added = {bias_of(path) for path in biases}
    for cut in tensors:
        if cut.tensor in added:
            continue
        if cut.tensor not in named:
            raise PlanError(
                f"the plan cuts {cut.tensor!r}, which the model does not have; {_AGAIN}"
            )
        shape = tuple(named[cut.tensor].shape)
        if cut.axis >= len(shape) or shape[cut.axis] != cut.size:
            raise PlanError(
                f"the plan expects {cut.size} entries on axis {cut.axis} of {cut.tensor!r}, its "
                f"shape is {shape}; {_AGAIN}"
            )


def check_layers(
    tensors: Iterable[TensorCut], patches: Iterable[SizePatch], model: nn.Module
) -> None:
    """Refuse a plan after which the tensors of one layer do not fit each other.

    For plans of which nobody says that they are as they were made. Of others it would be too much:
    code may use half of a layer's weight, and then it is right that its bias stays.

    Raises:
        PlanError: names the layer.
    """
    rows = {(cut.tensor, cut.axis): cut for cut in tensors}
    sizes = {(patch.module, patch.attribute): patch.new for patch in patches}
    for path in torn_layers(model, rows, sizes):
        raise _problem(f"the layer {path!r}", "its tensors do not lose the same channels")


def linked(groups: Mapping[str, GroupCut]) -> bool:
    """Whether groups say which entries go with their units."""
    return any(group.slices for group in groups.values())


def _problem(what: str, problem: str) -> PlanError:
    return PlanError(f"{what}: {problem}; {_AGAIN}")


def _whole(*numbers: object) -> bool:
    """Whether all are whole numbers; of thousands, each kind is looked at once."""
    kinds = set(map(type, numbers))
    return all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds)


def _check_numbers(
    what: str, cut: GroupCut | TensorCut | PortCut | OrderCut, sound: _Sound
) -> None:
    """Refuse a row whose numbers are not of entries that there can be.

    Args:
        what: for messages.
        cut: the row.
        sound: what need not be looked at again; grows.
    """
    plain = type(cut.size) is int and isinstance(cut.into, tuple) and not cut.into
    if plain and (cut.size, id(cut.kept)) in sound:
        return
    if not _whole(cut.size) or cut.size < 1:
        raise _problem(what, f"a size of {cut.size!r} is none")
    if not isinstance(cut.kept, tuple) or not isinstance(cut.into, tuple):
        raise _problem(what, "kept and merged entries are tuples of whole numbers")
    if not cut.kept:
        raise _problem(what, "nothing of it is kept, and no layer may die")
    if not _whole(*cut.kept, *cut.into):
        raise _problem(what, "kept and merged entries are whole numbers")
    kept = np.array(cut.kept)
    if (np.diff(kept) <= 0).any():
        raise _problem(what, "kept entries must be in order, each once")
    if kept[0] < 0 or kept[-1] >= cut.size:
        raise _problem(what, f"kept entries must lie within 0 and {cut.size - 1}")
    if plain:
        sound.add((cut.size, id(cut.kept)))
    if not cut.into:
        return
    if len(cut.into) != cut.size - len(kept) or not np.isin(cut.into, [*kept, DROPPED]).all():
        raise _problem(what, "each entry that goes must be merged into one that is kept, or none")


def _check_patches(patches: Iterable[SizePatch]) -> None:
    seen = set()
    for patch in patches:
        what = f"the attribute {patch.attribute!r} of the module {patch.module!r}"
        if not _whole(patch.old, patch.new):
            raise _problem(
                what, f"sizes are whole numbers, not {brief(patch.old)} and {brief(patch.new)}"
            )
        if patch.new < min(0, patch.old):
            raise _problem(what, f"its new size is {patch.new}")
        if (patch.module, patch.attribute) in seen:
            raise _problem(what, "it is set twice")
        seen.add((patch.module, patch.attribute))


def explained(groups: Mapping[str, GroupCut], patches: Iterable[SizePatch]) -> bool:
    """Whether the attributes lose what the groups say that they do."""
    return losses(groups) == {(p.module, p.attribute): p.old - p.new for p in patches}


def _check_sizes(groups: Mapping[str, GroupCut], patches: Iterable[SizePatch]) -> None:
    lost = losses(groups)
    if not lost and not linked(groups):
        return
    found = {(patch.module, patch.attribute): patch.old - patch.new for patch in patches}
    for module, attribute in sorted(lost.keys() | found.keys()):
        if lost.get((module, attribute)) != found.get((module, attribute)):
            raise _problem(
                f"the attribute {attribute!r} of the module {module!r}",
                "it does not lose what the groups of the plan lose",
            )


class _Owning:
    """Looks at the entries that the units of one group own; in most tensors they are the same.

    Args:
        size: units of the group.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: dict[tuple[bytes, bytes], tuple[int, bool, bool]] = {}

    def problem(self, s: Slice, size: int) -> str | None:
        """What is wrong with a slice of an axis of this size, if anything."""
        last, within, even = self._entries(s)
        if last >= size or not within:
            return f"there are more of them than its size of {size}"
        if not even:
            return "some units have more of them than others"
        return None

    def _entries(self, s: Slice) -> tuple[int, bool, bool]:
        """The last entry, whether there are such units, and whether each has as many."""
        key = s.positions.tobytes(), s.units.tobytes()
        found = self._known.get(key)
        if found is None:
            within = bool(s.units.max() < self._size)
            even = within and not np.ptp(np.bincount(s.units, minlength=self._size))
            found = self._known[key] = (int(s.positions.max()), within, even)
        return found


def _check_groups(
    groups: Mapping[str, GroupCut], rows: Mapping[tuple[str, int], TensorCut]
) -> None:
    if not linked(groups):
        return
    for name, group in groups.items():
        if not group.slices:
            raise _problem(
                f"the group {name!r}", "it does not say which entries it has, as the others do"
            )
        owning = _Owning(group.size)
        for s in group.slices:
            row = rows.get((s.tensor, s.axis))
            problem = "it has no row" if row is None else owning.problem(s, row.size)
            if problem is not None:
                what = f"axis {s.axis} of {s.tensor!r}, where the group {name!r} has entries"
                raise _problem(what, problem)
    # The same function makes the rows of a new plan, so there is one idea of what they must be.
    wanted = rows_of(groups, {key: row.size for key, row in rows.items()})
    found = {(row.tensor, row.axis): row for row in wanted}
    for (tensor, axis), row in rows.items():
        if found.get((tensor, axis)) != row:
            raise _problem(
                f"axis {axis} of {tensor!r}", "it does not lose what the groups of the plan lose"
            )


def _check_biases(biases: Iterable[str], rows: Mapping[tuple[str, int], TensorCut]) -> None:
    """A bias that is added is cut as the outputs of its layer are."""
    biases = list(biases)
    if len(set(biases)) != len(biases):
        raise _problem("the biases that are added", "one is named twice")
    for path in biases:
        bias, weight = rows.get((bias_of(path), 0)), rows.get((weight_of(path), 0))
        if (bias and (bias.size, bias.kept)) != (weight and (weight.size, weight.kept)):
            raise _problem(f"the bias of {path!r}", "it is not cut as the outputs of its layer")
