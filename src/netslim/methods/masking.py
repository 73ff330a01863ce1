"""Mask mode of Network Slimming (arXiv 1708.06519): channels are held silent, and cut later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

import netslim.ranks as ranks
from netslim._support import checks_calls
from netslim.errors import ArgumentError, PlanError
from netslim.graph.modules.unwrapping import bare, inside
from netslim.graph.modules.walk import named_tensors
from netslim.graph.modules.weight_norms import weight_norms
from netslim.methods.hooks import Attachments, after_step, before_step, parameters_of
from netslim.surgery.norm_inputs import hang, normed_weights, silent_inputs
from netslim.surgery.plan import PruningPlan
from netslim.surgery.prune import prune, same_plan
from netslim.surgery.rows import TensorCut
from netslim.surgery.sharding import in_one_piece, part_like

Model = TypeVar("Model", bound=nn.Module)


@checks_calls
class Mask(Generic[Model]):
    """Train a network as if it were cut by `plan`, with all its tensors whole.

        mask = Mask(model, plan).attach(optimizer)     # zeroes at once; train as ever
        small = mask.convert()                         # any time: the same function, smaller

    The entries of the removed units are zero in every parameter the plan would cut, and stay so:
    each step their gradients are zeroed before the optimizer uses them, and the entries themselves
    after it has moved them, which covers momentum from before, Nesterov, weight decay, Adam and
    gradient noise.

    Zero weights in the *consumers* alone make the outputs equal to the cut network's: whatever a
    silent channel still emits (act(beta), or sigmoid(0) = 0.5), nobody reads it. The *producers*,
    gamma, beta and other per-channel values are zeroed too, because the consumers' gradients at
    zero are what the channel emits, and those of the producers what the consumers pass back: with
    both at zero, gradients and weights hold no trace of the removed units where act(0) = 0, so
    norms over whole tensors (clipping before the step, LARS, LAMB) are the small network's; scores
    and `NetworkSlimming.share_zero` see the units as gone; and unread weights do not drift under
    weight decay. So training masked and converting is training the converted network, to rounding,
    for optimizers that treat each entry alone. Statistics of BN layers are left to run. The
    direction of a weight-normalised producer keeps its values, as its length (`weight_g`) is zero
    and that of a zero vector is undefined. A normalisation over channels (LayerNorm) has no weights
    that read: until `detach` a hook of its module hands it zeros in their place, as `verify` does,
    whatever a silent channel emits. One without weights of its own is refused. Compile such a
    network afterwards (`torch.compile`): code that was compiled before calls no new hooks.

    But for these hooks, which copies of the model keep and saved tensors do not, the model holds
    nothing of the mask: copies of it are trained freely. Entries are found by name at every step,
    so the model may move to another device or get new parameters in between.

    Args:
        model: the network the plan was made for, wrapped or not; unchanged until `apply` or
            `attach`.
        plan: what to silence. Where it is inexact (normalisation over channels), so is the
            conversion.

    Raises:
        PlanError: the plan belongs to another architecture, merges units (the others would need
            their values), removes nothing, or cuts what a normalisation without weights reads.
        DisagreementError: ranks of a distributed run were given different plans.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model)
        >>> plan = netslim.select(graph, scores, netslim.Budget(cut_channels=0.5))
        >>> mask = netslim.Mask(model, plan)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> mask = mask.attach(optimizer)
        >>> small = netslim.prune(model, plan)
    """

    @ranks.in_step("a Mask")
    def __init__(self, model: Model, plan: PruningPlan) -> None:
        self.model, self.plan = model, plan
        inner = bare(model, ArgumentError, allow=("sharded",), call="Mask(model, plan)")
        with in_one_piece(model):
            plan.check(inner)
        merged = [name for name, cut in plan.groups.items() if cut.into]
        if merged:
            raise PlanError(
                f"the plan merges units of {merged[0]!r}, and a mask can only silence them: "
                "cut it with netslim.prune"
            )
        if plan.dropped:
            raise PlanError(
                "the plan drops blocks, and a mask silences channels: cut it with netslim.prune"
            )
        self._rows = _silenced(inner, plan)
        if not self._rows:
            raise PlanError(
                "the plan removes nothing, so there is nothing to mask: select with a larger budget"
            )
        list(silent_inputs(inner, plan))  # raises what there is to raise
        same_plan(plan, "the plan of a Mask")
        self._hooks: list[RemovableHandle] = []  # of normalisations over channels
        self._indices: dict[tuple[str, int, torch.device], Tensor] = {}
        self._parts: dict[tuple[str, int, torch.device], Tensor] = {}  # of sharded tensors
        self._attached = Attachments("Mask", "once is enough: its entries are held at zero")

    @torch.no_grad()
    def apply(self) -> Self:
        """Zero the removed units' entries now; they stay zero until something trains them.

        Raises:
            PlanError: the model has been cut or changed since.
        """
        for tensor, row in self._entries():
            self._fill(tensor, row)
        if self.plan.norms and not self._hooks:
            for found in silent_inputs(inside(self.model), self.plan):
                self._hooks += hang(*found)
        return self

    def attach(self, optimizer: Optimizer) -> Self:
        """`apply`, and hold the entries at zero through every step of `optimizer`.

        Several may be attached, which hold the model between them.

        Raises:
            ArgumentError: attached to it already, or it holds none of the masked parameters.
        """
        optimizer = self._attached.new(optimizer)
        held = set(map(id, parameters_of(optimizer)))
        if not any(id(tensor) in held for tensor, _ in self._entries()):
            raise ArgumentError(
                f"this {type(optimizer).__name__} holds none of the masked parameters of this "
                f"{type(self.model).__name__}: attach to an optimizer of this very model"
            )
        self.apply()
        # Both are needed: without a gradient momentum gathers nothing, and after the step goes what
        # weight decay or momentum of the time before moved.
        before, after = before_step(optimizer, self._hold), after_step(optimizer, self._zero)
        self._attached.add(optimizer, before, after)
        return self

    def detach(self, optimizer: Optimizer | None = None) -> None:
        """Let `optimizer` (by default: any) train the silenced units again, from zero.

        Raises:
            ArgumentError: it is not attached to `optimizer`.
        """
        self._attached.remove(optimizer)
        if not len(self._attached):
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def convert(self) -> Model:
        """A smaller copy with the outputs of the masked model, which stays as it is.

        Raises:
            PlanError, SurgeryError: as `netslim.prune`.
        """
        with in_one_piece(self.model):
            return prune(bare(self.model, ArgumentError), self.plan)

    def __repr__(self) -> str:
        return (
            f"Mask(removed={self.plan.removed}, tensors={len(self._rows)}, "
            f"optimizers={len(self._attached)})"
        )

    def _hold(self, optimizer: Optimizer) -> None:
        """Zero the gradients of the masked entries."""
        for tensor, row in self._entries():
            if tensor.grad is not None:
                self._fill(tensor.grad, row)

    def _fill(self, tensor: Any, row: TensorCut) -> None:
        """Zero the masked entries, of a sharded tensor in the part that is here."""
        if not hasattr(tensor, "to_local"):
            tensor.index_fill_(row.axis, self._index(row, tensor), 0)
            return
        key = (row.tensor, row.axis, tensor.device)
        # An index into the whole tensor means nothing in a part of it, and where a part begins is
        # the affair of the sharding. So a mask of the whole is cut up as the tensor was; once, for
        # it is as large as the tensor.
        if key not in self._parts:
            gone = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
            gone.index_fill_(row.axis, self._index(row, tensor), value=True)
            self._parts[key] = cast(Any, part_like(gone, tensor)).to_local()
        tensor.to_local().masked_fill_(self._parts[key], 0)

    def _zero(self, optimizer: Optimizer) -> None:
        self.apply()

    def _entries(self) -> Iterator[tuple[Tensor, TensorCut]]:
        """The masked tensors as they are now."""
        # Looked up by name in each step: loading with ``assign=True``, moving to another device, or
        # sharding puts other tensor objects in the place of those that were masked.
        tensors = dict(named_tensors(inside(self.model)))
        for row in self._rows:
            tensor = tensors.get(row.tensor)
            if tensor is None or tensor.shape[row.axis] != row.size:
                raise PlanError(
                    f"{row.tensor!r} is not as it was when the model was masked: .detach() a "
                    "mask before its model is cut or rebuilt"
                )
            yield tensor, row

    def _index(self, row: TensorCut, tensor: Tensor) -> Tensor:
        key = (row.tensor, row.axis, tensor.device)
        # Made once a device: a copy to the GPU in each step would wait for all that runs there.
        if key not in self._indices:
            self._indices[key] = torch.tensor(row.removed, device=tensor.device)
        return self._indices[key]


def _silenced(model: nn.Module, plan: PruningPlan) -> list[TensorCut]:
    """The rows of the plan whose removed entries are zeroed.

    All parameters; of buffers only those that read the removed units: the others are statistics,
    which are left to run.
    """
    tensors = dict(named_tensors(model))
    rows = [row for row in plan.tensors if len(row.kept) < row.size]
    planned = {(row.tensor, row.axis) for row in plan.tensors}
    gains = {norm.direction: norm.gain for norm in weight_norms(model, shared=True)}
    normed = normed_weights(model, plan)
    found = []
    for row in rows:
        tensor = tensors[row.tensor]
        if (id(tensor), row.axis) in normed:
            continue
        reads = row.silences and tensor.is_floating_point()
        is_direction = (gains.get(row.tensor), row.axis) in planned
        # Directions of weight norm stay: with all of them zero the weight would be 0 / 0. Their
        # lengths are cut along the same axis, and a length of zero silences as well.
        if (isinstance(tensor, nn.Parameter) or reads) and not is_direction:
            found.append(row)
    return found
