"""Silence channels, and see whether the outputs feel it.

To remove a channel is to no longer read it. So the original computes what the cut network computes
once every weight that reads the channel is zero there: at the *reading* end. Zeros where the
channel is made would not do: its bias, the normalisation behind it or a sigmoid make it emit
something else again.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netslim._support import own_random_numbers
from netslim.errors import VerificationError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import NormRule, Slice, reading
from netslim.graph.modules.ambient import eagerly
from netslim.graph.modules.calls import as_call, evaluating, named_outputs
from netslim.graph.modules.padded_norms import SCALED
from netslim.graph.modules.padding import pad
from netslim.graph.modules.spectral_norms import spectral_norms
from netslim.graph.modules.walk import named_tensors
from netslim.graph.modules.weight_norms import WeightNorm, weight_norms
from netslim.surgery.norm_inputs import CallsGivenZeros, GivenZeros, normed_weights
from netslim.surgery.plan import PruningPlan
from netslim.surgery.proof.branches import branches_silenced
from netslim.surgery.rows import DROPPED, GroupCut, destinations, partners

ONE_BY_ONE = 256  # channels that are silenced one after the other where autograd cannot tell


@functools.cache
def _accelerated() -> bool:
    """Whether there is a GPU or the like; to find none takes as long as a small network runs."""
    return torch.accelerator.is_available()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, random numbers follow from ``seed``; afterwards they go on as before."""
    with own_random_numbers():
        if _accelerated():
            torch.manual_seed(seed)
        else:  # `torch.manual_seed` would keep a traceback for each device that is not there
            torch.default_generator.manual_seed(seed)
        yield


def run(model: nn.Module, example_inputs: Any, what: str) -> list[tuple[str, Tensor]]:
    """The named output tensors in evaluation mode; random numbers are the same in every run.

    Raises:
        VerificationError: the model, called ``what``, does not run.
    """
    args, kwargs = as_call(example_inputs)
    with eagerly(), evaluating(model), seeded(0):
        try:
            return named_outputs(model(*args, **kwargs))
        except Exception as error:
            raise VerificationError(
                f"the {what} does not run on example_inputs: {type(error).__name__}: {error}"
            ) from error


@contextmanager
def silenced(
    model: nn.Module, plan: PruningPlan, graph: ChannelGraph | None = None
) -> Iterator[None]:
    """Inside, every weight that reads a dropped channel is zero, and a merged channel is the same
    as its survivor; weight norm leaves all other weights as they were.

    Args:
        model: the original.
        plan: what goes.
        graph: of ``model``; where the plan merges channels it tells what makes them, and where
            normalisations over channels go on over their width, which of these they read.
    """
    tensors = dict(named_tensors(model))
    norms = weight_norms(model)
    with ExitStack() as changes:
        # Three changes, in this order, for each builds on those before it: zero what reads dropped
        # channels, make merged channels equal to their survivors, and let the gains of weight norm
        # follow their directions. The stack takes them back in the reverse order, which matters
        # where two of them change the same entry.
        before = {norm: tensors[norm.direction].detach().clone() for norm in norms}
        spectral = [
            (norm, [tensors[name] for name in norm.names]) for norm in spectral_norms(model)
        ]
        sigmas = [norm.sigma(parts) for norm, parts in spectral]
        normed = normed_weights(model, plan)
        for c in plan.tensors:
            if c.silences and (id(tensors[c.tensor]), c.axis) not in normed:
                gone = _on(tensors[c.tensor], np.flatnonzero(destinations(c) == DROPPED))
                changes.enter_context(replaced(tensors[c.tensor], c.axis, gone, 0))
        for name, axis, merged, survivors in _entries_to_equal(graph, plan, norms):
            places, source = _on(tensors[name], merged), _on(tensors[name], survivors)
            values = tensors[name].detach().index_select(axis, source)
            changes.enter_context(replaced(tensors[name], axis, places, values))
            for norm in norms:
                if (norm.direction, norm.dim) == (name, axis):  # their gains become equal, too
                    before[norm].index_copy_(axis, places, before[norm].index_select(axis, source))
        for norm, old in before.items():
            changes.enter_context(_followed(norm, tensors, old))
        for (one, parts), sigma in zip(spectral, sigmas, strict=True):
            for tensor, values in zip(parts[1:], one.follow(sigma, parts), strict=True):
                changes.enter_context(_all_replaced(tensor, values))
        within: dict[tuple[nn.Module, str], GivenZeros] = {}
        for module, rule, places in _reading_norms(model, plan, graph):
            if rule.row.call:
                zeros = GivenZeros(rule.row.dim, len(rule.groups), places)
                within[module, rule.row.call] = zeros
            else:
                changes.enter_context(_reading_zeros(module, rule, places))
        if within:
            changes.enter_context(CallsGivenZeros(within))
        sums = [one for block in plan.dropped.blocks for one in block.sums]
        changes.enter_context(branches_silenced(model, sums))
        yield


def _reading_norms(
    model: nn.Module, plan: PruningPlan, graph: ChannelGraph | None
) -> Iterator[tuple[nn.Module, NormRule, Tensor]]:
    """(module, what it normalises over, the entries that go) of normalisations over channels.

    They have no weight that could be zero where they read a channel, so they are given zeros.
    """
    rows = {norm.place for norm in plan.norms}
    if graph is None or not rows:
        return
    masks = {}
    for name, cut in plan.groups.items():
        masks[graph.number(name)] = np.isin(np.arange(cut.size), cut.kept)
    for rule in graph.norms:
        gone = rule.gone(masks)
        if rule.row.place in rows and len(gone):
            yield model.get_submodule(rule.module), rule, torch.from_numpy(gone)


@contextmanager
def _reading_zeros(module: nn.Module, rule: NormRule, gone: Tensor) -> Iterator[None]:
    """Inside, a module finds zeros in some entries of its input.

    One that casts to float32 does not do so inside: what the cut one computes is told from rounding
    no better than the casts allow. That the two compute the same is looked at on what it is given,
    as far as that can be told. Its class stays, for others may ask for it. (Where the cut one is of
    that class, too, neither casts: verify.py.)
    """
    attributes = dict(vars(module))
    zeros = GivenZeros(rule.row.dim, len(rule.groups), gone)
    handle = module.register_forward_pre_hook(zeros)
    try:
        if rule.casts and rule.row.kind != SCALED:
            vars(module)["forward"] = _without_casts(module, rule)
        yield
    finally:
        vars(module).clear()
        vars(module).update(attributes)
        handle.remove()


def _without_casts(module: nn.Module, rule: NormRule) -> Callable[..., Any]:
    """A forward as of what a module becomes, which raises where its own computes something else."""
    own, full = type(module).forward, copy.copy(module)
    pad(full, rule.row)

    def forward(*args: Any, **kwargs: Any) -> Any:
        made, wanted = full.forward(*args, **kwargs), own(module, *args, **kwargs)
        allowed = max(1e-3, 8 * torch.finfo(wanted.dtype).eps)
        scale = float(wanted.abs().max())
        if made.shape != wanted.shape or float((made - wanted).abs().max()) > allowed * scale:
            raise VerificationError(
                f"{rule.module} is taken for a normalisation over channels, and computes something "
                "else of what it is given here: protect the groups that it reads"
            )
        return made

    return forward


@contextmanager
def _followed(norm: WeightNorm, tensors: Mapping[str, Tensor], before: Tensor) -> Iterator[None]:
    """Inside, what is left of a weight is as it was with these directions."""
    direction, gain = tensors[norm.direction], tensors[norm.gain]
    if torch.equal(direction, before):
        yield
        return
    directions, gains = norm.follow(gain, before, direction)
    with _all_replaced(direction, directions), _all_replaced(gain, gains):
        yield


def _entries_to_equal(
    graph: ChannelGraph | None, plan: PruningPlan, norms: Collection[WeightNorm]
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(tensor, axis, entries of merged channels, entries of their survivors), of all but readers.

    A merged channel made of the same weights as its survivor carries the same values, and to read
    both is to read the survivor with the sum of the weights, which is what the cut network does.
    """
    if graph is None:
        return
    for name, cut in plan.groups.items():
        if not cut.merged:
            continue
        reads = {(s.tensor, s.axis) for s in graph[name].tensors("consumer")}
        # With a gain for each channel that it reads, weight norm reads in the gains.
        reads |= {(n.direction, n.dim) for n in norms if (n.gain, n.dim) in reads}
        for s in graph[name].slices:
            if (s.tensor, s.axis) not in reads:
                yield (s.tensor, s.axis, *partners(s.positions, s.units, destinations(cut)))


def _on(tensor: Tensor, numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers).to(tensor.device)


@contextmanager
def _all_replaced(tensor: Tensor, values: Tensor) -> Iterator[None]:
    """Inside, a tensor has other values."""
    before = tensor.detach().clone()
    try:
        with torch.no_grad():
            tensor.copy_(values)
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(before)


@contextmanager
def replaced(tensor: Tensor, axis: int, where: Tensor, values: Tensor | int) -> Iterator[None]:
    """Inside, the entries ``where`` of one axis of a tensor have other values."""
    before = tensor.detach().index_select(axis, where)
    try:
        with torch.no_grad():
            if isinstance(values, Tensor):
                tensor.index_copy_(axis, where, values)
            else:
                tensor.index_fill_(axis, where, values)
        yield
    finally:
        with torch.no_grad():
            tensor.index_copy_(axis, where, before)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and normalisation statistic a random value of ordinary size, in place.

    A fresh network hides mistakes: with a zero-initialised branch, a layer scale of 1e-6 or biases
    of zero, a channel that is cut wrongly changes nothing. Weights keep the variance of the signal
    (uniform, variance 1 / inputs). Scales and biases are 0.5 to 1.5 in size, so that none vanishes,
    and one in three is negative.
    """
    devices = {t.device for _, t in named_tensors(model)}
    generators = {device: torch.Generator(device).manual_seed(seed) for device in devices}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                _randomise_parameter(parameter, generators[parameter.device])
        for module in model.modules():
            if not isinstance(module, nn.modules.batchnorm._NormBase):
                continue
            mean, variance = module.running_mean, module.running_var
            if mean is not None and variance is not None:
                mean.uniform_(-0.5, 0.5, generator=generators[mean.device])
                variance.uniform_(0.5, 2, generator=generators[mean.device])
    return model


def _randomise_parameter(parameter: nn.Parameter, generator: torch.Generator) -> None:
    if parameter.dim() < 2:
        drawn = torch.rand(parameter.shape, generator=generator, device=parameter.device)
        sign = drawn.to(parameter) - 1 / 3
        parameter.uniform_(0.5, 1.5, generator=generator).copysign_(sign)
    else:
        # Uniform in [-s, s] has the variance s^2 / 3; 1 / inputs is wanted.
        spread = (3 / (parameter.numel() / parameter.shape[0])) ** 0.5
        parameter.uniform_(-spread, spread, generator=generator)


# ---------------------------------------------------------------- do the outputs feel it?


def channels_felt(
    original: nn.Module, graph: ChannelGraph | None, plan: PruningPlan, example_inputs: Any
) -> tuple[int, int]:
    """(how many removed channels and blocks the outputs depend on, how many were tried).

    Two networks that do not depend on a channel agree whatever was done to it, so equal outputs
    prove something only for the channels counted here.

    One backward pass tells it for all of them: the outputs feel a channel where a random sum of
    them has a gradient by the weights w that read it, to first order ``gradient * w``. A model that
    cannot be differentiated has its channels silenced one by one, at most `ONE_BY_ONE` of them.

    Without a graph the plan's own groups say what reads channels.
    """
    blocks = sum(1 for block in plan.dropped.blocks if block.sums)  # of others channels tell
    felt = _branches_felt(original, plan, example_inputs)
    # In-place operations on what autograd has saved are an error, and allowed at the second try, at
    # the price of copies.
    for saving in (nullcontext, torch.autograd.graph.allow_mutation_on_saved_tensors):
        try:
            with saving():
                effects = _first_order(original, plan, example_inputs)
        except (RuntimeError, VerificationError):
            continue
        if effects is not None:
            return _count(graph, plan, effects) + felt, plan.removed + blocks
    changed, tried = _one_by_one(original, graph, plan, example_inputs)
    return changed + felt, tried + blocks


def _branches_felt(model: nn.Module, plan: PruningPlan, example_inputs: Any) -> int:
    """How many blocks change an output when they are silent, each alone."""
    if not plan.dropped:
        return 0
    felt = 0
    with torch.no_grad():
        whole = run(model, example_inputs, "original")
        for block in (one for one in plan.dropped.blocks if one.sums):
            with branches_silenced(model, block.sums):
                without = run(model, example_inputs, "original")
            pairs = zip(whole, without, strict=True)
            felt += any(not torch.equal(a, b) for (_, a), (_, b) in pairs)
    return felt


def _first_order(
    model: nn.Module, plan: PruningPlan, example_inputs: Any
) -> dict[tuple[str, int], np.ndarray] | None:
    """For each axis that reads channels, the entries felt; None if outputs have no gradient."""
    tensors = {n: t for n, t in named_tensors(model) if t.is_floating_point()}
    cuts = [c for c in plan.tensors if c.silences and c.tensor in tensors]
    wanted = list({id(tensors[c.tensor]): tensors[c.tensor] for c in cuts}.values())
    if not wanted:
        return {}
    with torch.enable_grad(), _requiring(wanted):
        outputs = [t for _, t in run(model, example_inputs, "original") if t.requires_grad]
        if not outputs:
            return None
        generator = torch.Generator().manual_seed(0)
        # Outputs are weighed by chance: in their plain sum effects may cancel, as behind a softmax,
        # whose outputs add up to 1 whatever a channel does.
        total = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs)
        found = torch.autograd.grad(total, wanted, allow_unused=True)  # type: ignore[arg-type]
    gradient = {id(t): g for t, g in zip(wanted, found, strict=True) if g is not None}
    effects = {}
    for cut in cuts:
        weight = tensors[cut.tensor]
        if id(weight) in gradient:
            effect = (gradient[id(weight)] * weight.detach()).movedim(cut.axis, 0)
            felt = effect.reshape(len(effect), -1).abs().sum(1) > 0
            effects[cut.tensor, cut.axis] = felt.cpu().numpy()
    return effects


@contextmanager
def _requiring(tensors: Sequence[Tensor]) -> Iterator[None]:
    before = [t.requires_grad for t in tensors]
    try:
        for t in tensors:
            t.requires_grad_(True)
        yield
    finally:
        for t, flag in zip(tensors, before, strict=True):
            t.requires_grad_(flag)


def _count(
    graph: ChannelGraph | None, plan: PruningPlan, effects: dict[tuple[str, int], np.ndarray]
) -> int:
    total = 0
    for name, cut in plan.groups.items():
        units = np.zeros(cut.size)
        for s in _readers(graph, name, cut):
            felt = effects.get((s.tensor, s.axis))
            if felt is not None:
                units += np.bincount(s.units, felt[s.positions], minlength=cut.size)
        for own in _leaving(graph, name):  # what leaves the network is felt by all outside
            units += np.bincount(own, minlength=cut.size)
        total += int((units[list(cut.removed)] > 0).sum())
    return total


def _readers(graph: ChannelGraph | None, name: str, cut: GroupCut) -> list[Slice]:
    """Where the units of a group are silenced."""
    if graph is None:
        return reading(cut.slices)
    return graph[name].readers


def _leaving(graph: ChannelGraph | None, name: str) -> Iterator[np.ndarray]:
    """The units of a group that are in each output which may shrink."""
    if graph is not None:
        for port in graph.ports:
            if port.kind == "output":
                yield port.units[port.groups == graph.number(name)]


def _one_by_one(
    model: nn.Module, graph: ChannelGraph | None, plan: PruningPlan, example_inputs: Any
) -> tuple[int, int]:
    tensors = dict(named_tensors(model))
    removed: list[tuple[str, int]] = []
    for name, cut in plan.groups.items():
        removed += [(name, unit) for unit in cut.removed]
    removed = removed[:: -(-len(removed) // ONE_BY_ONE) or 1]  # evenly over all groups
    changed = 0
    with torch.no_grad():
        whole = run(model, example_inputs, "original")
        for name, unit in removed:
            readers = _readers(graph, name, plan.groups[name])
            with ExitStack() as silence:
                for s in (reader for reader in readers if reader.tensor in tensors):
                    tensor = tensors[s.tensor]
                    where = _on(tensor, s.positions[s.units == unit])
                    silence.enter_context(replaced(tensor, s.axis, where, 0))
                without = run(model, example_inputs, "original")
            pairs = zip(whole, without, strict=True)
            changed += any(not torch.equal(a, b) for (_, a), (_, b) in pairs)
    return changed, len(removed)
