"""What was cut of a model, kept on the modules that were cut.

Parts leave the model they were cut in: a backbone goes into a detector, a head is replaced, two
trunks become one `nn.Sequential`. So each module holds the cuts of its own tensors, under their own
names, and takes them along wherever it goes, as `copy.deepcopy` and pickles do. From those that
are there, `history` puts together the plan of the whole, under the names of today. The module that
was cut as a whole holds its plan besides: what the groups were called, and what was said of them.

It is text, so that a model which netslim has cut stays a plain PyTorch model: it pickles without a
class of netslim, and loads where netslim is not installed.

Modules are changed after a cut, too. What a record says of a tensor counts as long as the tensor is
as long as the record has it. A layer that was put in since has no record, and counts as it is.
Where it is narrower than the layer before the cut, that counts as a cut, so that fresh networks
with this layer and with that one can be brought to it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain

from torch import Tensor, nn

from netslim.graph.modules.configurations import holding
from netslim.graph.modules.padded_norms import NormWidth
from netslim.graph.modules.padding import keeps_width
from netslim.graph.modules.scaled_norms import with_own_eps
from netslim.graph.modules.unwrapping import inside
from netslim.graph.modules.walk import Walked, digest_of, joined, named_tensors
from netslim.surgery.dropped import Dropped, put_back
from netslim.surgery.plan import PruningPlan, compose, counted, with_known_sizes, without_slices
from netslim.surgery.rows import GroupCut, OrderCut, PortCut, SizePatch, TensorCut, bias_of

Notes = tuple[str, ...]

_NOTHING = PruningPlan("", {}, ())

_WHOLE = "_netslim_plan"  # the plan of all that was cut below a module; until 0.2 an object
_OWN = "_netslim_cuts"  # the cuts of a module's own tensors: a plan, or where they are in a whole
_BEFORE = "_netslim_shapes"  # of all lasting tensors below a module, before anything was cut


@dataclass
class _Found:
    """What the records in a model say, under the names of today."""

    cuts: dict[tuple[str, int], TensorCut] = field(default_factory=dict)
    patches: dict[tuple[str, str], SizePatch] = field(default_factory=dict)
    biases: dict[str, None] = field(default_factory=dict)
    norms: dict[tuple[str, str], NormWidth] = field(default_factory=dict)
    stale: list[TensorCut] = field(default_factory=list)
    ports: tuple[PortCut, ...] = ()  # of the model as a whole, when it was cut
    orders: tuple[OrderCut, ...] = ()  # likewise
    dropped: list[Dropped] = field(default_factory=list)
    wholes: dict[str, PruningPlan] = field(default_factory=dict)


def history(model: nn.Module) -> PruningPlan | None:
    """The composed plan of all cuts of netslim, on the original architecture; None without any."""
    return history_of(Walked.of(inside(model)))


def history_of(walked: Walked) -> PruningPlan | None:
    """The `history` of a bare model that was walked through."""
    if not any(_tells(module) for module in walked.modules):
        return None
    found = _read(walked)
    if not (found.cuts or found.patches or found.biases or found.norms or found.wholes):
        return None
    sizes = _before(walked, found.cuts.values())
    added = {bias_of(path) for path in found.biases}
    shapes = ((name, tuple(shape)) for name, shape in sizes.items() if name not in added)
    dropped = _present(walked, found.dropped)
    plan = PruningPlan(
        digest_of(put_back(shapes, dropped.tensors)),
        with_known_sizes(_groups(found), found.patches.values()),
        tuple(_in_order(found)),
        tuple(found.patches.values()),
        tuple(dict.fromkeys(chain.from_iterable(plan.notes for plan in found.wholes.values()))),
        tuple(found.biases),
        tuple(found.norms.values()),
        found.ports,
        found.orders,
        dropped,
    )
    return counted(plan)


def _tells(module: nn.Module) -> bool:
    """Whether a module holds a record of any kind."""
    held = vars(module)
    return _WHOLE in held or _OWN in held or _BEFORE in held


def _present(walked: Walked, dropped: Iterable[Dropped]) -> Dropped:
    """What of the blocks that went is not in the model again."""
    there, names = walked.by_path, walked.tensors
    found = Dropped()
    for one in dropped:
        rows = [row for row in one.replaced if not _holds_tensors(there.get(row.module))]
        gone = [tensor for tensor in one.tensors if tensor.tensor not in names]
        found = Dropped(
            (*found.blocks, *one.blocks), (*found.replaced, *rows), (*found.tensors, *gone)
        )
    return found


def _holds_tensors(module: nn.Module | None) -> bool:
    return module is not None and any(True for _ in named_tensors(module))


def _before(walked: Walked, cuts: Iterable[TensorCut]) -> dict[str, list[int]]:
    """Lasting tensor -> its shape before these cuts."""
    sizes = {name: [*tensor.shape] for name, tensor in walked.lasting.items()}
    for cut in cuts:
        if cut.tensor in sizes:
            sizes[cut.tensor][cut.axis] = cut.size
    return sizes


def _groups(found: _Found) -> dict[str, GroupCut]:
    """For people to read: those of the plans whose parts were not cut any further by themselves."""
    groups: dict[str, GroupCut] = {}
    for path, plan in found.wholes.items():
        rows = [(found.cuts.get((joined(path, c.tensor), c.axis), c), c) for c in plan.tensors]
        if all(now.kept == then.kept for now, then in rows):
            groups |= {joined(path, name): _below(path, cut) for name, cut in plan.groups.items()}
    return groups


def _below(path: str, cut: GroupCut) -> GroupCut:
    sizes = tuple(replace(size, module=joined(path, size.module)) for size in cut.sizes)
    return replace(cut, sizes=sizes)


def _in_order(found: _Found) -> list[TensorCut]:
    """The cuts in the order of the plans that they come from."""
    place: dict[tuple[str, int], int] = {}
    for path, plan in found.wholes.items():
        for cut in plan.tensors:
            place.setdefault((joined(path, cut.tensor), cut.axis), len(place))
    order = sorted(found.cuts, key=lambda key: place.get(key, len(place)))
    return [found.cuts[key] for key in order]


def unexplained(model: nn.Module) -> list[TensorCut]:
    """The cuts of tensors that have another size by now than the cut left, which nothing tells."""
    return _read(Walked.of(inside(model))).stale


def remember(walked: Walked, past: PruningPlan | None, plan: PruningPlan) -> None:
    """Add a cut to the history of a bare model.

    Args:
        walked: of the model, after the cut.
        past: its `history` before.
        plan: what was cut.
    """
    whole = without_slices(plan)
    if past is not None:
        whole = compose(past, plan)
    modules = walked.by_path
    cut_there = [(_tensor(modules, cut.tensor), cut) for cut in whole.tensors]
    holders = _holders(walked, {id(tensor) for tensor, _ in cut_there if tensor is not None})
    own: dict[str, list[tuple[str, TensorCut]]] = {}
    for tensor, cut in cut_there:
        for path, name in holders.get(id(tensor), ()):
            own.setdefault(path, []).append((name, cut))
    text, others = whole.to_json(), _told_of(whole)
    for path, module in modules.items():
        vars(module).pop(_WHOLE, None)
        vars(module).pop(_BEFORE, None)
        mine = own.get(path, [])
        if not mine and path not in others and _OWN not in vars(module):
            continue
        # `whole` is composed with the past, and so holds what the module's own record says already.
        # What that says of tensors that are not in `whole` stays.
        cuts = {(name, cut.axis) for name, cut in mine}
        stays = [cut for cut in _own(module).tensors if (cut.tensor, cut.axis) not in cuts]
        if not stays and all(joined(path, name) == cut.tensor for name, cut in mine):
            if cuts or path in others:
                vars(module)[_OWN] = (text, path)
        else:
            rows = (replace(cut, tensor=name) for name, cut in mine)
            record = replace(_read_by_module(text).get(path, _NOTHING), tensors=(*stays, *rows))
            vars(module)[_OWN] = record.to_json()
    held = vars(walked.model)
    held[_WHOLE], held[_BEFORE] = text, json.dumps(_before(walked, whole.tensors))


def _told_of(plan: PruningPlan) -> set[str]:
    """Paths of the modules of which a plan says more than that their tensors are cut."""
    return {*plan.biases, *(p.module for p in plan.patches), *(n.module for n in plan.norms)}


def _by_module(whole: PruningPlan) -> dict[str, PruningPlan]:
    """Path -> what a plan says of this module's own tensors and attributes, under their names."""
    tensors: dict[str, list[TensorCut]] = defaultdict(list)
    patches: dict[str, list[SizePatch]] = defaultdict(list)
    norms: dict[str, list[NormWidth]] = defaultdict(list)
    for cut in whole.tensors:
        path, _, name = cut.tensor.rpartition(".")
        tensors[path].append(replace(cut, tensor=name))
    for patch in whole.patches:
        patches[patch.module].append(replace(patch, module=""))
    for norm in whole.norms:
        norms[norm.module].append(replace(norm, module=""))
    paths = {*tensors, *_told_of(whole)}
    return {
        path: PruningPlan(
            "",
            {},
            tuple(tensors[path]),
            tuple(patches[path]),
            biases=("",) * (path in whole.biases),
            norms=tuple(norms[path]),
        )
        for path in paths
    }


def retell(model: nn.Module, change: Callable[[Notes], Notes]) -> None:
    """Change the sentences of the plan of all cuts of a model; nothing where none was cut."""
    inner = inside(model)
    whole = _whole(inner)
    if whole is not None:
        vars(inner)[_WHOLE] = replace(whole, notes=change(whole.notes)).to_json()


# A record is read again whenever a network is saved, loaded or cut, and is the same text in all of
# its copies. Those of one module's tensors are many and short, those of a whole few and long.
_read_own = lru_cache(maxsize=1024)(PruningPlan.from_json)
_read_whole = lru_cache(maxsize=4)(PruningPlan.from_json)


@lru_cache(maxsize=4)
def _read_by_module(text: str) -> dict[str, PruningPlan]:
    return _by_module(_read_whole(text))


def _own(module: nn.Module) -> PruningPlan:
    held: str | tuple[str, str] | None = vars(module).get(_OWN)
    if held is None:
        return _NOTHING
    if isinstance(held, str):
        own = _read_own(held)
    else:
        text, path = held
        own = _read_by_module(text)[path]
    if not own.norms:
        return own
    return replace(own, norms=tuple(with_own_eps(module, norm) for norm in own.norms))


def _whole(module: nn.Module) -> PruningPlan | None:
    held: PruningPlan | str | None = vars(module).get(_WHOLE)
    if isinstance(held, str):
        return _read_whole(held)
    return held


def _read(walked: Walked) -> _Found:
    """All that is recorded in a bare model, first by the modules themselves.

    A whole plan knows of layers that others have taken the place of since: of these what fits.
    """
    found = _Found()
    modules, first = walked.by_path, walked.names
    for path, module in modules.items():
        if _OWN in vars(module):
            found.stale += _take(found, _own(module), path, modules, first)
    for path, module in modules.items():
        whole = _whole(module)
        if whole is not None:
            found.wholes[path] = whole
            found.dropped.append(whole.dropped.below(path))
            _take(found, whole, path, modules, first)
            if not path:
                found.ports, found.orders = whole.ports, whole.orders
    for path, module in modules.items():
        for name, shape in json.loads(vars(module).get(_BEFORE, "{}")).items():
            _narrowed(found, joined(path, name), shape, modules, first)
    return found


def _narrowed(
    found: _Found,
    name: str,
    before: list[int],
    modules: dict[str, nn.Module],
    first: dict[int, str],
) -> None:
    """Take in that a tensor is of a layer which is narrower than that whose place it took.

    Which entries are left has no meaning there; that there were more in the whole has.
    """
    tensor = _tensor(modules, name)
    if tensor is None or tensor.dim() != len(before):
        return
    for axis, (size, now) in enumerate(zip(before, tensor.shape, strict=True)):
        if 0 < now < size:
            cut = TensorCut(first[id(tensor)], axis, size, tuple(range(now)), "channel")
            found.cuts.setdefault((cut.tensor, axis), cut)


def _take(
    found: _Found,
    plan: PruningPlan,
    path: str,
    modules: dict[str, nn.Module],
    first: dict[int, str],
) -> list[TensorCut]:
    """Take in what a record of the module at ``path`` says; what does not fit its tensor."""
    stale = []
    for cut in plan.tensors:
        tensor = _tensor(modules, joined(path, cut.tensor))
        if tensor is None:
            continue
        named = replace(cut, tensor=first[id(tensor)])
        if cut.axis < tensor.dim() and tensor.shape[cut.axis] == len(cut.kept):
            found.cuts.setdefault((named.tensor, cut.axis), named)
        else:
            stale.append(named)
    for patch in plan.patches:
        where = joined(path, patch.module)
        if where in modules and hasattr(modules[where], holding(patch.attribute)):
            found.patches.setdefault((where, patch.attribute), replace(patch, module=where))
    for bias in plan.biases:
        if _tensor(modules, bias_of(joined(path, bias))) is not None:
            found.biases.setdefault(joined(path, bias))
    for norm in plan.norms:
        where = joined(path, norm.module)
        if keeps_width(modules.get(where), norm):
            placed = replace(norm, module=where)
            found.norms.setdefault(placed.place, placed)
    return stale


def _tensor(modules: dict[str, nn.Module], name: str) -> Tensor | None:
    path, _, local = name.rpartition(".")
    module = modules.get(path)
    if module is None:
        return None
    return module._parameters.get(local, module._buffers.get(local))


def _holders(walked: Walked, ids: Collection[int]) -> dict[int, list[tuple[str, str]]]:
    """Tensor, of these ids -> (path, name) of all that hold it: tied weights have several."""
    found: dict[int, list[tuple[str, str]]] = {}
    for module, path in walked.modules.items():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if id(tensor) in ids:
                    found.setdefault(id(tensor), []).append((path, name))
    return found
