"""Cut a model as a plan says: slice every tensor, then the Python sizes that repeat their shapes.

Both ways are transactions: either the whole cut is made, or nothing has changed.

`prune` makes a copy, so it has nothing to undo. It does not copy and then cut: the smaller tensors
are made first and handed to `copy.deepcopy` as its memo, "the copy of this tensor is that one". So
what goes is never copied, and whatever points to one tensor from several places (tied weights, a
list of parameters kept as an attribute) points to one tensor in the copy, too. Only where the plan
adds biases, these are added to a whole copy first.

`prune_` first works out everything that will change, in `_prepare`: new values, gradients,
optimizer states, attributes. Here mistakes show, while the model is as it was. Only then
`_Change.carry_out` puts it in place, and notes for each step how to take it back, since a module's
own ``__setattr__`` may still refuse. Parameters keep their identity and get other data, for that is
how optimizers know them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, TypeGuard, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import netslim.ranks as ranks
from netslim._support import checks_calls
from netslim.errors import SurgeryError
from netslim.graph.modules.ambient import by_itself
from netslim.graph.modules.computed_convolutions import CONVOLUTIONS, computed_weight, may_compute
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.padded_norms import SCALED, NormWidth
from netslim.graph.modules.padding import pad
from netslim.graph.modules.scaled_norms import scaled_weight, with_own_eps
from netslim.graph.modules.separate_heads import SeparateHeads, head_scale
from netslim.graph.modules.spectral_norms import spectral_norms
from netslim.graph.modules.unwrapping import bare_walked, reducing
from netslim.graph.modules.walk import Walked, joined, layer_of, named_modules
from netslim.graph.modules.weight_norms import WeightNorm, weight_norms
from netslim.surgery.dropped import drop_blocks, gone_tensors
from netslim.surgery.history import history_of, remember
from netslim.surgery.module_sizes import patched, put, submodule, update_sizes
from netslim.surgery.norm_inputs import drop
from netslim.surgery.optimizers import all_optimizers, cut_state, without_parameters
from netslim.surgery.plan import PruningPlan, check_walked
from netslim.surgery.pretrained import keep_config
from netslim.surgery.rewrapping import Rewrapping
from netslim.surgery.rows import TensorCut, bias_of, reduced
from netslim.surgery.sharding import in_one_piece, is_sharded
from netslim.surgery.weight_averages import cut_alike, shadows_of, without_names

Model = TypeVar("Model", bound=nn.Module)
Cuts = dict[str, list[TensorCut]]  # tensor -> its cuts
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
_COMPUTED_FROM = ("_orig", "_v")  # spectral norm and `torch.nn.utils.prune`; weight norm


@checks_calls
@by_itself
def prune(model: Model, plan: PruningPlan) -> Model:
    """A new, physically smaller copy of ``model``.

    Train/eval mode, ``requires_grad``, dtype, device, memory format, hooks and tied weights are as
    in ``model``, which is not changed. The copy is bare: where ``model`` is a
    `DistributedDataParallel`, a `DataParallel`, a compiled module or a weight average, it is cut
    from the module inside; wrap or compile it again.

    Raises:
        PlanError: the plan was made for another architecture, or its rows do not agree with each
            other or with the tensors of the model.
        SurgeryError: an attribute the plan names is not as the plan says, or the model is scripted,
            exported, quantised, sharded or lazy, or cannot be copied.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> half = netslim.Budget(cut_channels=0.5)
        >>> plan = netslim.select(graph, netslim.score(graph, model), half)
        >>> small = netslim.prune(model, plan)
        >>> model.features[0].out_channels > small.features[0].out_channels
        True
    """
    walked = bare_walked(model, SurgeryError, allow=("meta",), call="prune(model, plan)")
    check_walked(plan, walked)
    inner, past = cast(Model, walked.model), history_of(walked)
    if plan.biases:
        inner = duplicate(inner)
        for layer, bias in new_biases(inner, plan.biases):
            layer.bias = bias
        walked = Walked.of(inner)
    cuts = _cuts(plan)
    smaller = _smaller({tensor: name for name, tensor in walked.tensors.items()}, cuts)
    smaller |= _follow_suit(walked, plan, cuts, walked.tensors, smaller)
    memo: dict[int, Any] = {id(old): value for _, _, old, value in _derived(inner, cuts)}
    memo |= {id(tensor): _of_its_class(tensor, value) for tensor, value in smaller.items()}
    small = duplicate(inner, memo)
    drop_blocks(small, plan.dropped)
    for _, norm in _norms(inner, plan):
        pad(submodule(small, norm.module), norm)
    for module, name, value in (*patched(small, plan.patches), *_by_calls(small, plan)):
        put(module, name, value)
    _finish(small, plan, past)
    for module, _ in _norms(small, plan):
        drop(module)
    return small


@checks_calls
@by_itself
def prune_(
    model: Model,
    plan: PruningPlan,
    optimizer: Optimizer | Iterable[Optimizer] = (),
    companions: Any = (),
) -> Model:
    """Cut ``model`` in place and return it; parameters stay the same objects for optimizers.

    Everything is checked and computed before anything is changed: on an error the model, its
    companions and the optimizers are as they were. A compiled model compiles anew at its next call.

    Args:
        model: the model the plan was made for; within `DataParallel` or `torch.compile` it is cut
            where it is. So it is within `DistributedDataParallel`, which then begins anew around
            it, the same object with the same settings: call this on every rank, with the same
            plan. What `fully_shard` (FSDP2) has sharded is gathered, cut, and sharded again with
            the same settings.
        plan: what to keep. Biases it adds are new parameters, which no optimizer or shadow tensor
            holds yet.
        optimizer: one or several optimizers whose state (momentum and the like) is cut with the
            parameters.
        companions: one or several copies of the model that are kept beside it and cut alike: weight
            averages (`torch.optim.swa_utils.AveragedModel`, timm's ``ModelEma``), deep copies, or
            mappings from the names of the model's parameters and buffers to shadow tensors, such as
            state dicts.

    Raises:
        PlanError: the plan was made for another architecture, or its rows do not agree with each
            other or with the tensors of the model.
        SurgeryError: an attribute, companion or optimizer state does not fit the plan, or the model
            is scripted, exported, quantised, sharded or lazy, or `DistributedDataParallel` is set
            in a way that cannot be kept.
        DisagreementError: ranks were given different plans.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> graph = netslim.trace(model, images)
        >>> half = netslim.Budget(cut_channels=0.5)
        >>> plan = netslim.select(graph, netslim.score(graph, model), half)
        >>> netslim.prune_(model, plan, optimizer=optimizer) is model
        True
    """

    def prepared() -> _Change:
        walked = bare_walked(model, SurgeryError, allow=("meta",), call="prune_(model, plan)")
        check_walked(plan, walked)
        return _prepare(walked, plan, optimizer, companions)

    if is_sharded(model):
        return _prune_sharded(model, plan, optimizer, companions)
    wrapper = reducing(model)
    if wrapper is None:
        prepared().carry_out()
        return model
    with ranks.among(wrapper.process_group):
        again, change = ranks.everywhere("prune_", lambda: (Rewrapping(wrapper), prepared()))
        same_plan(plan, "the plan of prune_")
        again.compare()
        ranks.everywhere("the cut", change.carry_out)
        again.carry_out()
    return model


def _prune_sharded(
    model: Model, plan: PruningPlan, optimizer: Optimizer | Iterable[Optimizer], companions: Any
) -> Model:
    """`prune_` of what FSDP2 has sharded: whole on every rank while it is cut."""
    if companions != ():
        raise SurgeryError(
            "companions of a sharded model are not cut with it: cut them by themselves, within "
            "netslim.surgery.unsharded(companion)"
        )
    if plan.dropped:
        raise SurgeryError(
            "blocks are not dropped from a sharded model: drop them before it is sharded"
        )
    with in_one_piece(model, optimizer):
        same_plan(plan, "the plan of prune_")
        ranks.everywhere("prune_", lambda: prune_(model, plan, optimizer))
    return model


def same_plan(plan: PruningPlan, what: str) -> None:
    """See to it that every rank of a distributed run has the same plan; notes do not count.

    Raises:
        DisagreementError: on every rank: names the digests.
    """
    ranks.agree(
        what,
        replace(plan, notes=()).to_json(),
        "each has decided for itself: score with batches= on all of them, or send one plan round "
        "as plan.to_json()",
    )


@dataclass(frozen=True)
class _Change:
    """All that a cut in place does, computed before any of it is done."""

    plan: PruningPlan
    models: list[nn.Module]
    tensors: dict[Tensor, tuple[Tensor, Tensor | None]]  # -> its new value and gradient
    states: list[tuple[dict[str, Any], dict[str, Tensor]]]  # of a parameter, its new entries
    attributes: list[tuple[nn.Module, str, Any]]
    biases: list[tuple[Layer, nn.Parameter]]
    norms: list[tuple[nn.Module, NormWidth]]
    pasts: list[PruningPlan | None]  # of the models
    forgotten: list[Callable[[], Callable[[], object]]]  # what leaves optimizers and shadows

    def carry_out(self) -> None:
        with ExitStack() as undo:  # runs backwards, unless `pop_all` is reached
            # Each by itself: where one cannot be put back, all others are.
            for tensor, (value, gradient) in self.tensors.items():
                undo.callback(_put, tensor, tensor.data, tensor.grad if tensor.is_leaf else None)
                _put(tensor, value, gradient)
            for state, values in self.states:
                undo.callback(state.update, {key: state[key] for key in values})
                state.update(values)
            for module in chain.from_iterable(map(named_modules, self.models)):
                undo.callback(_restore, module, type(module), dict(vars(module)))
            for module, norm in self.norms:
                pad(module, norm)
            for module, name, value in self.attributes:
                put(module, name, value)
            for module, bias in self.biases:
                undo.callback(module._parameters.update, bias=None)
                module.bias = bias
            for model in self.models:
                drop_blocks(model, self.plan.dropped, undo.callback)
            for forget in self.forgotten:
                undo.callback(forget())
            for model, past in zip(self.models, self.pasts, strict=True):
                _finish(model, self.plan, past)
            undo.pop_all()
        for module, _ in self.norms:
            drop(module)


def _prepare(walked: Walked, plan: PruningPlan, optimizer: Any, companions: Any) -> _Change:
    models, shadows = cut_alike(walked.model, companions)
    walks = [walked, *map(Walked.of, models[1:])]  # the model comes first
    tensors_of = [walk.tensors for walk in walks]
    named = {t: name for name, t in chain(*(by_name.items() for by_name in tensors_of), *shadows)}
    biases: list[tuple[Layer, nn.Parameter]] = []
    for one in models:
        added = new_biases(one, plan.biases)
        named |= {bias: bias_of(path) for path, (_, bias) in zip(plan.biases, added, strict=True)}
        biases += added
    cuts = _cuts(plan)
    smaller = _smaller(named, cuts)
    for by_name in (*tensors_of, *map(dict, shadows)):
        smaller |= _follow_suit(walked, plan, cuts, by_name, smaller)
    _check_changeable(named, smaller)
    states = []
    if stepping := all_optimizers(optimizer):
        held = set(chain.from_iterable(one.parameters() for one in models))
        followed = {}
        for tensor, name in ((t, named[t]) for t in smaller if t in held):
            followed[tensor] = name, partial(_keep, cuts.get(name, []), sums=False)
        for each in stepping:
            states += cut_state(each, followed, held)
    attributes: list[tuple[nn.Module, str, Any]] = []
    for one in models:
        attributes += [*patched(one, plan.patches), *_by_calls(one, plan)]
        attributes += [(module, name, value) for module, name, _, value in _derived(one, cuts)]
    # No sums for gradients and momentum: where channels are merged they are equal, so what reads
    # them has equal gradients, and the weight that is their sum has that same gradient, once.
    tensors: dict[Tensor, tuple[Tensor, Tensor | None]] = {}
    for tensor, value in smaller.items():
        gradient = tensor.grad if tensor.is_leaf else None
        if gradient is not None:
            gradient = _keep(cuts.get(named[tensor], []), gradient, sums=False)
        tensors[tensor] = value, gradient
    pasts = list(map(history_of, walks))
    norms = [found for one in models for found in _norms(one, plan)]
    forgotten = _forgetting(models, plan, optimizer, companions)
    return _Change(plan, models, tensors, states, attributes, biases, norms, pasts, forgotten)


def _forgetting(
    models: Iterable[nn.Module], plan: PruningPlan, optimizer: Any, companions: Any
) -> list[Callable[[], Callable[[], object]]]:
    """What takes the tensors of blocks that go out of optimizers and shadow tensors."""
    if not plan.dropped:
        return []
    gone = [gone_tensors(one, plan.dropped) for one in models]
    parameters = {id(tensor) for own in gone for tensor in own.values()}
    return [
        *(partial(without_parameters, one, parameters) for one in all_optimizers(optimizer)),
        *(partial(without_names, one, plan.dropped.holds) for one in shadows_of(companions)),
    ]


def _norms(model: nn.Module, plan: PruningPlan) -> list[tuple[nn.Module, NormWidth]]:
    """The normalisations that the plan lets keep their width, and what becomes of them.

    Args:
        model: as it is before the cut.
        plan: it may have been made for a network whose normalisations add another eps.

    Raises:
        SurgeryError: the model lacks one.
    """
    modules = ((submodule(model, norm.module), norm) for norm in plan.norms)
    return [(module, with_own_eps(module, norm)) for module, norm in modules]


def _by_calls(model: nn.Module, plan: PruningPlan) -> Iterator[tuple[nn.Module, str, Any]]:
    """(module, attribute, new value) with which attention and encoder layers go on as they did.

    Attention divides by the root of the width of heads, at first.

    Without gradients PyTorch's own layer hands the weights of its normalisations to one fused
    operator, which would take statistics over the channels that are left. It does so for ReLU and
    GELU, and reads from an attribute which it has: 0 for neither. The encoder around it makes
    nested tensors for that operator, and would make them for layers that cannot take any: these,
    and those whose attention has become `SeparateHeads`.
    """
    norms = {id(module) for module, _ in _norms(model, plan)}
    cut = {layer_of(row.tensor) for row in plan.tensors}
    narrower = {patch.module for patch in plan.patches if patch.attribute == "head_dim"}
    modules: dict[Any, str] = named_modules(model)
    for module, path in modules.items():
        if path in narrower and type(module) in (nn.MultiheadAttention, SeparateHeads):
            yield module, "head_scale", head_scale(module)
        if isinstance(module, nn.TransformerEncoderLayer) and _has_part(module, norms):
            yield module, "activation_relu_or_gelu", 0
        if isinstance(module, nn.TransformerEncoder):
            inner = {joined(path, at) for part, at in named_modules(module).items() if _heads(part)}
            if _has_part(module, norms) or not cut.isdisjoint(inner):
                yield module, "use_nested_tensor", False


def _heads(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention)


def _has_part(module: nn.Module, ids: set[int]) -> bool:
    return not ids.isdisjoint(map(id, module.modules()))


def new_biases(model: nn.Module, paths: Iterable[str]) -> list[tuple[Layer, nn.Parameter]]:
    """(layer, its bias of zeros) for convolutions and linear layers without; nothing is changed.

    Raises:
        SurgeryError: a path is not that of such a layer.
    """
    found = []
    modules = {path: module for module, path in named_modules(model).items()}
    for path in paths:
        module = modules.get(path)
        if not takes_bias(module):
            raise SurgeryError(
                f"the plan gives {path!r} a bias; it is no convolution or linear layer that "
                "lacks one"
            )
        zeros = module.weight.detach().new_zeros(module.weight.shape[0])
        found.append((module, nn.Parameter(zeros, module.weight.requires_grad)))
    return found


def takes_bias(module: object) -> TypeGuard[Layer]:
    """Whether this is PyTorch's own linear layer or convolution (not transposed) without a bias."""
    if not isinstance(module, Layer) or type(module) not in get_args(Layer):
        return False
    return module._parameters.get("weight") is not None and module.bias is None


def _of_its_class(tensor: Tensor, value: Tensor) -> Tensor:
    """The value as a parameter (of the same class, as trainable) where the tensor is one."""
    if isinstance(tensor, nn.Parameter):
        return Tensor._make_subclass(type(tensor), value, tensor.requires_grad)
    return value


def _check_changeable(named: Mapping[Tensor, str], tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        if tensor.is_inference():
            raise SurgeryError(
                f"{named[tensor]!r} was made in torch.inference_mode, which forbids to change "
                "it: netslim.prune makes a smaller copy that can be trained"
            )


def _cuts(plan: PruningPlan) -> Cuts:
    by_tensor: Cuts = {}
    for cut in plan.tensors:
        by_tensor.setdefault(cut.tensor, []).append(cut)
    return by_tensor


def _smaller(named: Mapping[Tensor, str], cuts: Cuts) -> dict[Tensor, Tensor]:
    """The new value of every tensor that is cut; what shares its memory goes on to share it.

    One tensor that several modules hold is one key here, so it is cut once. But two tensor objects
    may also be the same memory (a state dict beside its model, `torch.nn.Parameter` around another
    one's data): each must get the same new memory, and so must be cut the same way.

    Args:
        named: tensor -> its name in the plan.
        cuts: as the plan says.
    """
    result: dict[Tensor, Tensor] = {}
    first: dict[Hashable, Tensor] = {}
    for tensor, name in named.items():
        same = first.setdefault(_memory(tensor), tensor)
        if same is not tensor and _kept(cuts, name) != _kept(cuts, named[same]):
            raise SurgeryError(
                f"{named[same]!r} and {name!r} share their memory, and the plan cuts them "
                "differently: make them one parameter (a.weight = b.weight) and trace again"
            )
        if name not in cuts:
            continue
        # The first to come has new memory made; a second name of the same memory gets a view of it.
        if same is tensor:
            result[tensor] = _keep(cuts[name], tensor.detach())
        else:
            result[tensor] = result[same].detach()
    return result


def _follow_suit(
    walked: Walked,
    plan: PruningPlan,
    cuts: Cuts,
    named: Mapping[str, Tensor],
    smaller: Mapping[Tensor, Tensor],
) -> dict[Tensor, Tensor]:
    """What else is new than what is cut: all that keeps weights which are computed as they were,
    and numbers of channels; see the five below.
    """
    _scale(walked, plan, cuts, named, smaller)
    result = _gains(walked.model, cuts, named, smaller)
    result |= _sigmas(walked.model, cuts, named, smaller)
    return result | _computed(walked, plan, cuts, named) | _renumbered(named, plan, smaller)


def _scale(
    walked: Walked,
    plan: PruningPlan,
    cuts: Cuts,
    named: Mapping[str, Tensor],
    smaller: Mapping[Tensor, Tensor],
) -> None:
    """Scale the weights of normalisations whose numbers remember how many channels there were.

    Args:
        walked: of the model; it says what their tensors are called.
        plan: it says which.
        cuts: as the plan says.
        named: name -> tensor, of the model or of a copy of it.
        smaller: the new values of the tensors that are cut; these weights among them are changed.
    """
    scaled = [norm for norm in plan.norms if norm.kind == SCALED]
    if not scaled:
        return
    for norm in scaled:
        held = getattr(submodule(walked.model, norm.module), norm.weight, None)
        name = walked.names.get(id(held), "")
        if name in named and name in cuts:
            weight = named[name].detach()
            left = scaled_weight(_keep(cuts[name], weight), weight.numel(), norm.plus_one)
            smaller[named[name]].copy_(left)  # it may share its memory


def _gains(
    model: nn.Module, cuts: Cuts, named: Mapping[str, Tensor], smaller: Mapping[Tensor, Tensor]
) -> dict[Tensor, Tensor]:
    """The gains of weight norm with which what is left of each weight stays as it is.

    Without a part of its directions a weight would grow: ``gain * v / |v|``.

    Args:
        model: it says what is a gain.
        cuts: as the plan says.
        named: name -> tensor, of the model or of a copy of it.
        smaller: the new values of the tensors that are cut; directions among them are changed where
            gains alone cannot do it.
    """
    result = {}
    for norm in weight_norms(model):
        direction, gain = named.get(norm.direction), named.get(norm.gain)
        if direction is None or gain is None or norm.direction not in cuts:
            continue
        value, result[gain] = _normed(norm, direction.detach(), gain.detach(), cuts)
        smaller[direction].copy_(value)  # it may share its memory
    return result


def _sigmas(
    model: nn.Module, cuts: Cuts, named: Mapping[str, Tensor], smaller: Mapping[Tensor, Tensor]
) -> dict[Tensor, Tensor]:
    """The vectors of spectral norm with which what is left of each weight stays as it is.

    Args:
        model: it says what is normed.
        cuts: as the plan says.
        named: name -> tensor, of the model or of a copy of it.
        smaller: the new values of the tensors that are cut.
    """
    result = {}
    for norm in spectral_norms(model):
        if norm.weight in cuts and all(name in named for name in norm.names):
            weight, left, right = (named[name] for name in norm.names)
            after = tuple(smaller.get(t, t) for t in (weight, left, right))
            result[left], result[right] = norm.follow(norm.sigma((weight, left, right)), after)
    return result


def _computed(
    walked: Walked, plan: PruningPlan, cuts: Cuts, named: Mapping[str, Tensor]
) -> dict[Tensor, Tensor]:
    """What is left of the weights that convolutions compute, which is kept as it is by now.

    Args:
        walked: of the model, whose modules compute them.
        plan: it says which.
        cuts: as the plan says.
        named: name -> tensor, of the model or of a copy of it.
    """
    result = {}
    for norm in plan.norms:
        module: Any = submodule(walked.model, norm.module)
        if norm.kind not in CONVOLUTIONS or not may_compute(module):
            continue
        own = {local: p for local, p in module._parameters.items() if p is not None}
        held = {local: walked.names[id(p)] for local, p in own.items()}
        name = held["weight"]
        if name in named:
            values = {local: named[n].detach() for local, n in held.items() if n in named}
            made = computed_weight(module, values)
            if made is None:
                raise SurgeryError(f"{norm.module} computes its weight otherwise than it did")
            result[named[name]] = _keep(cuts.get(name, []), made)
    return result


def _normed(norm: WeightNorm, direction: Tensor, gain: Tensor, cuts: Cuts) -> tuple[Tensor, Tensor]:
    """New direction and gain of a weight whose direction is cut."""
    rows, own = cuts[norm.direction], cuts.get(norm.gain, [])
    if any(cut.into for cut in own):
        # What is summed has a gain each, so the weights are summed and not the directions.
        rows = [*own, *(cut for cut in rows if cut.axis != norm.dim)]
        weight = _keep(rows, norm.weight(direction, gain))
        return norm.follow(norm.lengths(weight), weight, weight)
    along = [replace(cut, into=()) for cut in rows if cut.axis == norm.dim]
    return norm.follow(_keep(own, gain), _keep(along, direction), _keep(rows, direction))


def kept_values(model: nn.Module, plan: PruningPlan) -> dict[str, Tensor]:
    """What the plan makes of every parameter and buffer of a model, by name."""
    walked, cuts = Walked.of(model), _cuts(plan)
    named = walked.tensors
    smaller = _smaller({tensor: name for name, tensor in named.items()}, cuts)
    smaller |= _follow_suit(walked, plan, cuts, named, smaller)
    kept = {name: tensor for name, tensor in named.items() if not plan.dropped.holds(name)}
    return {name: smaller.get(tensor, tensor).detach() for name, tensor in kept.items()}


def _renumbered(
    named: Mapping[str, Tensor], plan: PruningPlan, smaller: Mapping[Tensor, Tensor]
) -> dict[Tensor, Tensor]:
    """The numbers of channels that buffers hold, once some channels are gone."""
    result = {}
    for order in plan.orders:
        tensor = named.get(order.tensor)
        if tensor is not None:
            result[tensor] = order.renumbered(smaller.get(tensor, tensor.detach()))
    return result


def _memory(tensor: Tensor) -> Hashable:
    """Equal for two tensors that are the same memory read the same way."""
    if tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def _kept(cuts: Cuts, name: str) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Axis -> what stays of it and what is merged."""
    return {cut.axis: (cut.kept, cut.into) for cut in cuts.get(name, ())}


def _keep(
    cuts: Sequence[TensorCut],
    tensor: Tensor,
    axes: Collection[int] | None = None,
    sums: bool = True,
) -> Tensor:
    """Keep the planned entries of each axis (of ``axes``), in the memory format of the original.

    ``sums`` adds to them what the plan merges into them.
    """
    result = tensor
    for cut in _in_rows(cuts):
        if axes is None or cut.axis in axes:
            result = reduced(result, cut, sums=sums)
    # The axes from the outermost in memory to the innermost: (0, 2, 3, 1) for channels_last. The
    # entries are laid out in this order, and looked at in the old one.
    if tensor.dim() < 2 or result.layout is not torch.strided:
        return result
    order = sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True)
    if order == list(range(tensor.dim())):
        return result
    dense = result.permute(order).clone(memory_format=torch.contiguous_format)
    return dense.permute(sorted(range(tensor.dim()), key=order.__getitem__))


def _in_rows(cuts: Sequence[TensorCut]) -> Sequence[TensorCut]:
    """The cuts of one tensor, the outermost axis first: what goes there is copied in long rows.

    Where entries are summed the order stays, for it may show in the last bits.
    """
    if len(cuts) < 2 or any(cut.into for cut in cuts):
        return cuts
    return sorted(cuts, key=lambda cut: cut.axis)


def _derived(model: nn.Module, cuts: Cuts) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    """(module, attribute, value, cut value) of weights that a hook computes before each call.

    Such a weight is a plain attribute: what is trained is ``weight_v`` (weight norm) or
    ``weight_orig`` (spectral norm, the masks of `torch.nn.utils.prune`). The next call computes it
    anew, but until then it is looked at, and would have the old shape.
    """
    result = []
    for name, rows in cuts.items():
        path, _, source = name.rpartition(".")
        suffix = next((suffix for suffix in _COMPUTED_FROM if source.endswith(suffix)), None)
        if suffix is None:
            continue
        attribute, module = source.removesuffix(suffix), model.get_submodule(path)
        value = vars(module).get(attribute)
        if isinstance(value, Tensor) and value.shape == getattr(module, source).shape:
            result.append((module, attribute, value, _keep(rows, value.detach())))
    return result


def _put(tensor: Tensor, value: Tensor, gradient: Tensor | None) -> None:
    if tensor.is_leaf:
        tensor.grad = None
    if tensor.requires_grad:
        # A loss that is still referred to holds a gradient accumulator of the old shape; another
        # dtype resets it.
        other = torch.float32
        if value.dtype is other:
            other = torch.float16
        tensor.data = value.new_empty(0, dtype=other)
    tensor.data = value
    if gradient is not None:
        tensor.grad = gradient


def _restore(module: nn.Module, kind: type[nn.Module], attributes: dict[str, Any]) -> None:
    object.__setattr__(module, "__class__", kind)  # its own way to set anything may refuse
    vars(module).clear()
    vars(module).update(attributes)


def _finish(model: nn.Module, plan: PruningPlan, past: PruningPlan | None) -> None:
    """Bring Python's sizes up to date and remember the cut."""
    walked = Walked.of(model)
    update_sizes(walked, {cut.tensor for cut in plan.tensors})
    keep_config(walked.modules)
    remember(walked, past, plan)
