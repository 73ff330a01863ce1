"""Network Slimming: an L1 penalty on every BN scale (Liu et al. 2017, arXiv 1708.06519).

Where it acts in a training step::

    for batch in loader:
        optimizer.zero_grad()
        loss = criterion(model(batch.x), batch.y)
        loss.backward()                  # once or, when accumulating, several times
        clip_grad_norm_(...)             # sees the gradient of the loss alone
        optimizer.step()                 # <- here, first of all: gradient += strength * sign(gamma)
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import is_
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from netslim.errors import PlanError
from netslim.optimizers import innermost
from netslim.wrapping import bare, gathered

Closure = Callable[[], Any]


def slimming_penalty(scales: Iterable[Tensor], strength: float) -> Tensor:
    """`strength` times the sum of |gamma|, the second term of Eq. 1; differentiable. A scalar tensor."""
    return strength * torch.cat([scale.flatten() for scale in scales]).abs().sum()


def add_slimming_gradient(
    gradients: list[Tensor], scales: list[Tensor], strength: float, grad_scale: Tensor | None = None
) -> None:
    """Add the sub-gradient of `slimming_penalty`, `strength * sign(gamma)` with sign(0) = 0, in place.

    Args:
        gradients: changed in place, one for each of `scales` and of its shape.
        scales: the gammas, one 1-D tensor a BN layer.
        grad_scale: a loss scale that `gradients` still carry (0-D).
    """
    signs = torch._foreach_sign(scales)
    if grad_scale is not None:
        torch._foreach_mul_(signs, grad_scale)
    torch._foreach_add_(gradients, signs, alpha=strength)


class NetworkSlimming:
    """Sparsity on every BN scale: `NetworkSlimming(model, 1e-4).attach(optimizer)`, then train as ever.

    Just before each step of the optimizer, `strength * sign(gamma)` is added to the gradient of every scale
    that the optimizer holds: once a step, on the accumulated gradient, at its true size under
    `torch.amp.GradScaler`, and after any clipping done before the step, so the penalty is never clipped. A
    scale without a gradient is left alone, as the optimizer leaves it. Where parameters are replaced, it
    follows as soon as the optimizer holds the new ones.

    The BN layers are those of `nn.BatchNorm1d/2d/3d` and `nn.SyncBatchNorm` with affine parameters.

    Args:
        model: the network; nothing about it changes, except for `gamma_init`.
        strength: lambda of Eq. 1, 0 or more. Assign to `.strength` for a schedule; the next step uses it.
        gamma_init: sets every scale at once, for a network that starts from scratch (the paper: 0.5).

    Raises:
        PlanError: a negative strength, a `gamma_init` that is not above 0, or a model without BN scales.
    """

    def __init__(self, model: nn.Module, strength: float = 1e-4, *, gamma_init: float | None = None) -> None:
        self.model = model
        self._strength = 0.0
        self.strength = strength
        self._attached: dict[Optimizer, _Attachment] = {}
        scales = _bn_scales(bare(model, PlanError, allow=("meta", "sharded")))
        if gamma_init is not None:
            _initialise(scales, gamma_init)

    @property
    def strength(self) -> float:
        """Lambda of Eq. 1."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not (isinstance(value, Real) and math.isfinite(value) and value >= 0):
            raise PlanError(f"the strength of Network Slimming must be 0 or more, not {value!r} (the paper: 1e-4)")
        self._strength = float(value)

    def attach(self, optimizer: Optimizer) -> Self:
        """Act on every step of `optimizer` from now on; more than one optimizer may be attached.

        Raises:
            PlanError: attached to it already, or it holds none of the model's BN scales.
        """
        optimizer = innermost(optimizer)
        if optimizer in self._attached:
            raise PlanError(
                f"this NetworkSlimming is attached to this {type(optimizer).__name__} already; twice "
                "would double the penalty: change .strength, or call .detach() first"
            )
        attachment = _Attachment(_parameters(optimizer), self._groups(optimizer))
        attachment.handle = optimizer.register_step_pre_hook(self._before_step)
        self._attached[optimizer] = attachment
        return self

    def detach(self, optimizer: Optimizer | None = None) -> None:
        """Act on `optimizer` (by default: on any) no longer.

        Raises:
            PlanError: it is not attached to `optimizer`.
        """
        leaving = list(self._attached) if optimizer is None else [innermost(optimizer)]
        for one in leaving:
            attachment = self._attached.pop(one, None)
            if attachment is None:
                raise PlanError(f"this NetworkSlimming is not attached to this {type(one).__name__}")
            if attachment.handle is not None:
                attachment.handle.remove()

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """`strength` times the sum of |gamma|, to add to a logged loss; a detached scalar tensor.

        Of the scales that the attached optimizers hold, for only there it acts; of all, before any is attached.
        """
        groups: list[Iterable[Tensor]] = [group for one in self._attached.values() for group in one.groups]
        terms = [slimming_penalty(group, self.strength) for group in groups or [[self.scales()]]]
        return gathered(torch.stack([term.to(terms[0]) for term in terms]).sum())

    @torch.no_grad()
    def scales(self) -> Tensor:
        """|gamma| of every BN layer, in the order of `model.modules()`; a detached 1-D tensor."""
        scales = [gathered(scale) for scale in _bn_scales(self.model)]
        return torch.cat([scale.to(scales[0].device) for scale in scales]).abs()

    def share_near_zero(self, threshold: float = 1e-2) -> float:
        """The share, 0 to 1, of scales with |gamma| below `threshold`."""
        return (self.scales() < threshold).double().mean().item()

    def histogram(self, bins: int | Sequence[float] = 50) -> tuple[list[int], list[float]]:
        """Counts of |gamma| in each bin, and the bins' edges (one more).

        Args:
            bins: how many equal bins from 0 to the largest scale, or the ascending edges themselves, so that
                two histograms can be compared; scales outside of given edges count in the outermost bins.
        """
        scales = self.scales().double().cpu()
        if isinstance(bins, int):
            edges = torch.linspace(0, max(scales.max().item(), 1e-12), bins + 1, dtype=torch.float64)
        else:
            edges = torch.tensor(bins, dtype=torch.float64)
        counts = torch.histogram(scales.clamp(edges[0], edges[-1]), edges).hist
        return [int(count) for count in counts], edges.tolist()

    def __repr__(self) -> str:
        return f"NetworkSlimming(strength={self.strength:g}, optimizers={len(self._attached)})"

    def _groups(self, optimizer: Optimizer) -> list[list[nn.Parameter]]:
        """The scales that `optimizer` holds, together where one multi-tensor call can serve them."""
        held = {id(parameter) for parameter in _parameters(optimizer)}
        groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
        for scale in _bn_scales(self.model):
            if id(scale) in held:
                groups.setdefault((scale.device, scale.dtype), []).append(scale)
        if not groups:
            raise PlanError(
                f"this {type(optimizer).__name__} holds none of the BN scales of this "
                f"{type(self.model).__name__}: attach to an optimizer of this very model "
                "(a pruned copy needs a NetworkSlimming of its own)"
            )
        return list(groups.values())

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The optimizer's step pre-hook. `args[0]` is the optimizer itself."""
        if self.strength == 0:
            return None
        # A closure computes the gradients inside the step, after this hook: the penalty follows it there.
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._followed(kwargs["closure"], optimizer)}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._followed(args[1], optimizer), *args[2:]), kwargs
        self._add(optimizer)
        return None

    def _followed(self, closure: Closure, optimizer: Optimizer) -> Closure:
        def penalised() -> Any:
            loss = closure()
            self._add(optimizer)
            # A line search compares losses, so here the loss has to belong to the gradient.
            searches = isinstance(optimizer, LBFGS) and loss is not None
            return loss + self.penalty() if searches else loss

        return penalised

    @torch.no_grad()
    def _add(self, optimizer: Optimizer) -> None:
        attachment = self._attached.get(optimizer)
        if attachment is None:  # detached while its closure ran
            return
        parameters = _parameters(optimizer)
        if not _same(parameters, attachment.parameters):
            attachment.parameters, attachment.groups = parameters, self._groups(optimizer)
        # Fused optimizers unscale inside the step; GradScaler tells them so by this attribute.
        grad_scale = getattr(optimizer, "grad_scale", None)
        for group in attachment.groups:
            scales: list[Tensor] = [scale for scale in group if scale.grad is not None]
            if scales:
                here = grad_scale.to(scales[0].device) if isinstance(grad_scale, Tensor) else None
                gradients: list[Any] = [scale.grad for scale in scales]
                add_slimming_gradient(gradients, scales, self.strength, here)


@dataclass(slots=True)
class _Attachment:
    """What the hook remembers of one optimizer between steps."""

    parameters: list[nn.Parameter]
    groups: list[list[nn.Parameter]]
    handle: RemovableHandle | None = None


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _same(first: list[nn.Parameter], second: list[nn.Parameter]) -> bool:
    return len(first) == len(second) and all(map(is_, first, second))


def _bn_scales(model: nn.Module) -> list[nn.Parameter]:
    """The scale of every affine BN layer, each once."""
    layers = (module for module in model.modules() if isinstance(module, _BatchNorm))
    scales = {id(layer.weight): layer.weight for layer in layers if layer.weight is not None}
    if not scales:
        raise PlanError(
            f"{type(model).__name__} has no BN layer with scales, and Network Slimming acts on nothing "
            "else: use affine BatchNorm after the layers to be cut (zoo:mlp shows it for linear "
            "layers), or prune by a criterion of the weights, such as 'l1'"
        )
    return list(scales.values())


@torch.no_grad()
def _initialise(scales: Iterable[nn.Parameter], value: float) -> None:
    if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
        raise PlanError(f"gamma_init must be above 0, not {value!r} (the paper: 0.5)")
    for scale in scales:
        scale.fill_(value)
