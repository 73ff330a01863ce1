"""The proof: a pruned network equals the original with the removed channels silenced.

The cut relies on the trace: on which entries belong to a channel, and on every size that
``forward`` remembers. The silenced original keeps the shapes the user wrote, and only no longer
reads the channels (see `silencing`). Had the trace missed an entry or a size, the cut network would
read another channel than the original does; where the two agree, nothing that these inputs reach
was missed. Channels that are merged are made the same as their survivors there.

* In float64, because in float32 the two sum in another order and differ by 1e-6 anyway, as much as
  a small mistake would. Here what is right agrees to 1e-15, and 1e-10 leaves no doubt.
* With random weights as well, because at first a network may not depend on a channel at all.
* Where a network's own weights leave it to rounding what comes out (rounding.py), with weights
  close by in their place.
* Where an output is fed back into an input, over `STEPS` steps: the second and third see what the
  one before has put out.
* With a count of the removed channels that the outputs do depend on: for others agreement says
  nothing, and the reader should see how many these are.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from netslim._support import brief, checks_calls
from netslim.errors import ArgumentError, PlanError, VerificationError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.ambient import undisturbed
from netslim.graph.modules.computed_convolutions import CONVOLUTIONS
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.padded_norms import SCALED
from netslim.graph.modules.ports import with_inputs
from netslim.graph.modules.spectral_norms import spectral_norms
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import named_tensors
from netslim.graph.modules.weight_norms import weight_norms
from netslim.surgery.plan import PruningPlan
from netslim.surgery.ports import cut_inputs, equal_inputs, free_names, kept_outputs
from netslim.surgery.proof.caches import forget, keeps_something
from netslim.surgery.proof.rounding import APART, move, moved
from netslim.surgery.proof.silencing import channels_felt, randomise, run, seeded, silenced
from netslim.surgery.prune import kept_values

logger = logging.getLogger("netslim")
_DRAWS = 3  # of weights that are others in their last places
STEPS = 3  # of a network whose state is fed back
_UNSEEN = (
    "a size or index in the model's forward is not seen by the trace; protect the groups concerned"
)
OWN_PRECISION = 5e-3  # tolerance where a model's own casts rule out float64


@checks_calls
@dataclass(frozen=True)
class Verification:
    """What `verify` measured.

    Attributes:
        deviation: largest difference of any output, relative to the largest output, in float64;
            None when the plan cuts groups whose removal is not equal to silencing, so only shapes
            were tried.
        cut: number of removed channels and branches.
        changed: how many of them the outputs depend on, with randomised weights: silencing them is
            felt.
        double: whether it ran in float64; a model that casts inside runs in its own precision.
        tried: how many of the removed channels ``changed`` looked at; fewer than ``cut`` only for
            large cuts of a model that autograd cannot see through.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l1")
        >>> plan = netslim.select(graph, scores, netslim.Budget(cut_channels=0.5))
        >>> small = netslim.prune(model, plan)
        >>> proof: netslim.surgery.Verification = netslim.verify(model, small, plan, images)
        >>> proof.deviation < 1e-10, proof.cut
        (True, 12)
    """

    deviation: float | None
    cut: int
    changed: int
    double: bool = True
    tried: int = 0


@checks_calls
def verify(
    model: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    tolerance: float = 1e-10,
    seed: int = 0,
    graph: ChannelGraph | None = None,
) -> Verification:
    """Prove that ``small`` is ``model`` cut by ``plan``.

    Three things are shown: every tensor of ``small`` is, bit for bit, the planned slice of
    ``model``, with what the plan merges summed; in float64 its outputs equal those of ``model``
    with the removed channels and the branches of dropped blocks silenced, and the merged channels
    made the same as their survivors; and so they do when all parameters and normalisation
    statistics are randomised, so that no zero-initialised branch hides a mistake. Neither model is
    changed. Of an output that shrinks what stays is compared, and a state that is fed back is
    followed over several steps.

    Args:
        model: the original.
        small: the pruned copy, before any training.
        plan: the cut.
        example_inputs: as for `netslim.trace`.
        tolerance: largest accepted relative deviation in float64; `OWN_PRECISION` where the model
            casts inside.
        seed: of the random weights.
        graph: of ``model``, where it is at hand; else ``model`` is traced where the plan does not
            say by itself what is read: of merged channels, normalisations, inputs and outputs,
            blocks, and as it was put together of several.

    Raises:
        PlanError: the plan or the graph belongs to another architecture, or the plan names no
            groups.
        VerificationError: says which tensor or output differs, and by how much.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> half = netslim.Budget(cut_channels=0.5)
        >>> plan = netslim.select(graph, netslim.score(graph, model), half)
        >>> small = netslim.prune(model, plan)
        >>> netslim.verify(model, small, plan, images).deviation < 1e-5
        True
    """
    call = "verify(model, small, plan, example_inputs)"
    model = bare(model, VerificationError, call=call)
    small = bare(small, VerificationError, call=call)
    if not tolerance >= 0:
        raise ArgumentError(f"tolerance must be a number of at least 0, got {brief(tolerance)}")
    plan.check(model)
    if plan.tensors and not plan.groups:
        raise PlanError(
            "the plan cuts tensors and names no group that they belong to, so there is no channel "
            "of which anything could be proved: make it again with netslim.select"
        )
    if graph is not None:
        graph.check(model)
    with undisturbed(model):
        return _compared(model, small, plan, example_inputs, tolerance, seed, graph)


def _compared(
    model: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    tolerance: float,
    seed: int,
    graph: ChannelGraph | None,
) -> Verification:
    """Compare copies of both models, once more without what earlier runs have left in them."""
    _check_slices(model, small, plan)
    with seeded(seed):
        if graph is None and not _says_what_reads(plan):
            outputs, inputs = free_names(plan)
            graph = trace(model, example_inputs, free_outputs=outputs, free_inputs=inputs)
        pair = _Pair(model, small, plan, graph, example_inputs)
        try:
            return pair.proved(tolerance, seed)
        except VerificationError:
            if not (keeps_something(model) or keeps_something(small)):
                raise
            pair = _Pair(model, small, plan, graph, example_inputs, forgetting=True)
            if not pair.forgotten:
                raise
        return pair.proved(tolerance, seed)


def _says_what_reads(plan: PruningPlan) -> bool:
    """Whether a plan alone tells how its channels are silenced: by zeros in the rows it has."""
    if plan.norms or plan.ports or plan.dropped:
        return False
    return all(cut.slices and not cut.merged for cut in plan.groups.values())


def _allowed(tolerance: float, double: bool) -> float:
    if double:
        return tolerance
    return max(tolerance, OWN_PRECISION)


def _refuse_deviation(deviation: float, tolerance: float, double: bool) -> None:
    allowed, where = _allowed(tolerance, double), "float64"
    if not double:
        where = "in its own precision"
    if not deviation <= allowed:  # so that NaN is refused, too
        raise VerificationError(
            f"the pruned model differs from the silenced original by {deviation:.3g} "
            f"(relative, {where}; allowed {allowed:g}): {_UNSEEN}"
        )


class NoCasts(TorchFunctionMode):
    """Inside, what is in float64 stays so where code asks for float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        wide = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if wide and func is Tensor.float:
            return args[0]
        if wide and kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        if wide and func is Tensor.to:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **kwargs)


class _Pair:
    """Copies of the original and the pruned model, in float64.

    A model with casts of its own (``x.half()``) does not run in float64. It is compared in its own
    precision, and with a tolerance to match.
    """

    def __init__(
        self,
        model: nn.Module,
        small: nn.Module,
        plan: PruningPlan,
        graph: ChannelGraph | None,
        inputs: Any,
        forgetting: bool = False,
    ) -> None:
        inputs = equal_inputs(model, inputs, plan)
        self.plan, self.graph, self.double, self.inputs = plan, graph, True, _doubled(inputs)
        self.exact = all(group.exact for group in plan.groups.values())
        self.forgetting, self.forgotten, self.compared = forgetting, False, False
        self.original = self._copy(model, self.inputs)
        try:
            self.wanted: list[Tensor] | None = self._outputs_silenced()
        except VerificationError:
            self.double, self.wanted, self.inputs = False, None, inputs
            self.original = self._copy(model, inputs)
        self.small = self._copy(small, cut_inputs(model, self.inputs, plan))
        # Sums and computed weights in this precision: in the model's own they are rounded.
        computed = bool(weight_norms(model) or spectral_norms(model))
        computed |= any(norm.kind in (*CONVOLUTIONS, SCALED) for norm in plan.norms)
        if computed or any(group.merged for group in plan.groups.values()):
            self._fill()

    def _copy(self, model: nn.Module, inputs: Any) -> nn.Module:
        if self.double:
            made = _double(model)
        else:
            made = duplicate(model)
        for module in made.modules():
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False  # of padded places it makes zeros, or nothing
        if self.forgetting:
            self.forgotten |= forget(made, inputs)
        return made

    def proved(self, tolerance: float, seed: int) -> Verification:
        """Run both, with their own weights and with random ones; as for `verify`."""
        deviation = self.deviation()
        allowed = _allowed(tolerance, self.double)
        if self.exact and not deviation <= allowed and self._hinges_on_rounding(allowed, seed):
            deviation = self._deviation_nearby(seed)
        self.randomise(seed)
        deviation = max(deviation, self.deviation())
        if not self.compared:  # a detector may find nothing once
            raise VerificationError(
                "the model gives no tensor, or empty ones alone, of example_inputs, with its own "
                "weights and with random ones: nothing can be compared"
            )
        if self.exact:
            _refuse_deviation(deviation, tolerance, self.double)
        changed, tried = channels_felt(self.original, self.graph, self.plan, self.inputs)
        shown = deviation if self.exact else None
        cut = self.plan.removed + sum(1 for block in self.plan.dropped.blocks if block.sums)
        return Verification(shown, cut, changed, self.double, tried)

    def _outputs_silenced(self) -> list[Tensor]:
        with torch.no_grad(), silenced(self.original, self.plan, self.graph):
            return self._steps(self.original, self.inputs, "silenced original")

    def _steps(self, model: nn.Module, inputs: Any, what: str, cut: bool = False) -> list[Tensor]:
        """All outputs that both networks have, step by step; one step where nothing is fed back."""
        back = {p.name: p.fed_by for p in self.plan.ports if p.kind == "input" and p.fed_by}
        found: list[Tensor] = []
        steps = 1
        if back:
            steps = STEPS
        for _ in range(steps):
            with self._casting():
                outputs = run(model, inputs, what)
            if cut:
                found += [tensor for _, tensor in outputs]
            else:
                found += kept_outputs(outputs, self.plan)
            last = dict(outputs)
            state = {name: last[source] for name, source in back.items()}
            inputs = with_inputs(model, inputs, state)
        return found

    def _hinges_on_rounding(self, allowed: float, seed: int) -> bool:
        """Whether the silenced original is as far from itself, with weights that are the same but
        for their last places.
        """
        wanted = self.wanted or self._outputs_silenced()
        for draw in range(_DRAWS):
            with moved(self.original, seed + draw):
                found = self._outputs_silenced()
            for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
                if a.shape != b.shape or (a.numel() and self._apart(a, b, i) > allowed):
                    return True
        return False

    def _deviation_nearby(self, seed: int) -> float:
        """The deviation with weights that are nearly the network's own."""
        logger.warning(
            "with its own weights the network's outputs hinge on rounding, as where a mask asks "
            "for the sign of numbers that are zero: the two are compared with weights that are up "
            "to %g off",
            APART,
        )
        move(self.original, seed, APART)
        self._fill()
        self.wanted = None
        return self.deviation()

    def _casting(self) -> AbstractContextManager[object]:
        """Where statistics are taken in code that stays, it may cast to float32 before: both
        networks do without that, or no comparison could tell a mistake from rounding.
        """
        if self.graph is None:  # then the plan has no normalisations
            return nullcontext()
        casting = {norm.row.place for norm in self.graph.norms if norm.casts}
        stays = (n.call or (n.kind == SCALED and n.place in casting) for n in self.plan.norms)
        if self.double and any(stays):
            return NoCasts()
        return nullcontext()

    def randomise(self, seed: int) -> None:
        """Random weights for the original, the planned slices of them for the pruned model."""
        randomise(self.original, seed)
        self._fill()
        self.wanted = None

    def _fill(self) -> None:
        own = dict(named_tensors(self.small))
        for name, value in kept_values(self.original, self.plan).items():
            own[name].data = value

    def deviation(self) -> float:
        """Largest relative difference of any output; 0 where only shapes can be compared.

        Raises:
            VerificationError: outputs are of other shapes, or hold other whole numbers or flags.
        """
        wanted = self.wanted
        if wanted is None:
            wanted = self._outputs_silenced()
        with torch.no_grad():
            inputs = cut_inputs(self.original, self.inputs, self.plan)
            found = self._steps(self.small, inputs, "pruned model", cut=True)
        if len(wanted) != len(found):
            raise VerificationError(
                f"the pruned model returns {len(found)} tensors, the original {len(wanted)}"
            )
        self.compared |= any(tensor.numel() for tensor in wanted)
        worst = 0.0
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            if a.shape != b.shape:
                raise VerificationError(
                    f"output {i} has shape {tuple(b.shape)}, the original's is {tuple(a.shape)}"
                )
            if self.exact and a.numel():
                worst = max(worst, self._apart(a, b, i))
        return worst

    def _apart(self, a: Tensor, b: Tensor, number: int) -> float:
        """The relative difference of two outputs; whole numbers and flags are equal or not."""
        if a.is_complex():
            a, b = torch.view_as_real(a), torch.view_as_real(b)
        if a.is_floating_point():
            return _relative(a, b, number)
        if self.double and not torch.equal(a, b):  # in low precision rounding may turn them over
            count = int((a != b).sum())
            raise VerificationError(
                f"output {number} of the pruned model has {count} of {a.numel()} numbers that are "
                f"not the silenced original's: {_UNSEEN}"
            )
        return 0.0


def _check_slices(model: nn.Module, small: nn.Module, plan: PruningPlan) -> None:
    wanted, found = kept_values(model, plan), dict(named_tensors(small))
    for name in sorted(set(wanted) ^ set(found)):
        raise VerificationError(f"{name!r} is in only one of the planned and the pruned model")
    for name, tensor in wanted.items():
        other = found[name]
        if tensor.shape != other.shape:
            raise VerificationError(
                f"{name!r} has shape {tuple(other.shape)}, the plan says {tuple(tensor.shape)}"
            )
        if not _same(tensor, other.detach()):
            raise VerificationError(f"{name!r} does not hold the planned slice of the original")


def _same(a: Tensor, b: Tensor) -> bool:
    b = b.to(a.device)
    if a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _double(model: nn.Module) -> nn.Module:
    """A copy in float64, made without a copy in the model's own precision between."""
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(model):
        if tensor.is_floating_point():
            value = tensor.detach().to(torch.float64, copy=True)
            if isinstance(tensor, nn.Parameter):
                value = nn.Parameter(value, tensor.requires_grad)
            memo[id(tensor)] = value
    return duplicate(model, memo).double()


def _doubled(example_inputs: Any) -> Any:
    def double(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        if not floating:
            return value
        return value.double()

    return tree_map(double, example_inputs)


def _relative(a: Tensor, b: Tensor, number: int) -> float:
    """The largest difference, relative to the largest number that differs at all.

    What both have alike is no measure: a mask of -1e38 beside the logits would hide any mistake.
    """
    if a.isnan().any():
        raise VerificationError(
            f"output {number} is not finite, so it cannot be compared; try other example inputs"
        )
    differing = a != b
    if not differing.any():
        return 0.0
    a_there, b_there = a[differing], b[differing]
    if not (a_there.isfinite().all() and b_there.isfinite().all()):
        return float("inf")
    scale = torch.maximum(a_there.abs().max(), _least(a))
    return float((a_there - b_there).abs().max() / scale.clamp_min(torch.finfo(a.dtype).tiny))


def _least(a: Tensor) -> Tensor:
    """The size that nine of ten numbers of an output have at least, by a sample of a large one.

    Where all that differs is rounding about zero, it is small beside this.
    """
    sizes = a[a.isfinite()].abs().flatten()
    sizes = sizes[:: 1 + len(sizes) // 1_000_000]
    if not len(sizes):
        return a.new_zeros(())
    return sizes.kthvalue(1 + len(sizes) // 10).values
