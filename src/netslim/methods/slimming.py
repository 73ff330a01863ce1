"""Network Slimming: an L1 penalty on every BN scale (Liu et al. 2017, arXiv 1708.06519).

Where it acts in a training step::

    for batch in loader:
        optimizer.zero_grad()
        loss = criterion(model(batch.x), batch.y)
        loss.backward()                  # once or, when accumulating, several times
        clip_grad_norm_(...)             # sees the gradient of the loss alone
        optimizer.step()                 # <- here, first of all: gradient += strength * sign(gamma)
                                         #    or, proximal, last of all: gamma is shrunk towards 0

The penalty is added to the gradient and not to the loss: the gradient is then added to once a step,
however many batches were accumulated, clipping sees the gradient of the loss alone, and no training
loop has to know of it. When exactly that is inside of ``step``, with closures, loss scales and
fused optimizers, is told in `netslim.methods.hooks`.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from operator import is_
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import ASGD, LBFGS, SGD, Optimizer

from netslim._support import brief, checks_calls, is_number, nearest
from netslim.errors import ArgumentError
from netslim.graph.modules.unwrapping import bare, gathered
from netslim.methods.adjustable import Adjustable
from netslim.methods.hooks import Attachments, after_step, before_step, loss_scale

Penalty = Literal["l1", "smooth_l1", "proximal"]


@checks_calls
def slimming_penalty(
    scales: Iterable[Tensor], strength: float | Tensor, delta: float | None = None
) -> Tensor:
    """`strength` times the sum of |gamma|, the second term of Eq. 1, a differentiable scalar.

    With a `delta`, |gamma| is smoothed: gamma^2 / (2 delta) up to |gamma| = delta, |gamma| - delta
    / 2 beyond.

    Raises:
        ArgumentError: `scales` are no tensors, or `delta` is not above 0.

    Example:
        >>> scales = [torch.tensor([0.5, -2.0])]
        >>> netslim.methods.slimming_penalty(scales, strength=0.1)
        tensor(0.2500)
    """
    scales = _tensors(scales)
    _check_delta(delta)
    joined = torch.cat([scale.flatten() for scale in scales])
    if delta is None:
        return strength * joined.abs().sum()
    return strength * smooth_l1_loss(joined, torch.zeros_like(joined), reduction="sum", beta=delta)


@checks_calls
def add_slimming_gradient(
    gradients: list[Tensor],
    scales: list[Tensor],
    strength: float | Tensor,
    grad_scale: Tensor | None = None,
    delta: float | None = None,
) -> None:
    """Add the (sub-)gradient of `slimming_penalty` in place.

    It is `strength * sign(gamma)` with sign(0) = 0; with a `delta`, `strength * clip(gamma / delta,
    -1, 1)`.

    Args:
        gradients: changed in place, one for each of `scales` and of its shape.
        scales: the gammas, one 1-D tensor a BN layer.
        strength: lambda of Eq. 1; a tensor (0-D) where a CUDA graph is to follow its changes.
        grad_scale: a loss scale that `gradients` still carry (0-D).
        delta: width of the smooth part, above 0.

    Raises:
        ArgumentError: there is not one gradient for each scale, or as for `slimming_penalty`.

    Example:
        >>> gradients, scales = [torch.zeros(3)], [torch.tensor([0.5, 0.0, -2.0])]
        >>> netslim.methods.add_slimming_gradient(gradients, scales, strength=0.1)
        >>> gradients
        [tensor([ 0.1000,  0.0000, -0.1000])]
    """
    scales = _tensors(scales)
    if len(gradients) != len(scales):
        raise ArgumentError(
            f"gradients and scales go together, one each: got {len(gradients)} and {len(scales)}"
        )
    _check_delta(delta)
    if delta is None:
        slopes = torch._foreach_sign(scales)
    else:
        slopes = _clipped(torch._foreach_mul(scales, 1 / delta), 1.0)
    if grad_scale is not None:  # so that the penalty has its true size once it is divided out
        torch._foreach_mul_(slopes, grad_scale)
    if isinstance(strength, Tensor):
        torch._foreach_mul_(slopes, strength)
        torch._foreach_add_(gradients, slopes)
    else:
        torch._foreach_add_(gradients, slopes, alpha=strength)


@checks_calls
@torch.no_grad()
def soft_threshold_(scales: Sequence[Tensor], threshold: float | Tensor) -> None:
    """gamma <- sign(gamma) * max(|gamma| - threshold, 0) in place.

    The proximal map of ``threshold * |gamma|``: the point that trades the distance to gamma against
    the penalty best. Made as ``gamma - clip(gamma, -threshold, threshold)``, which is 0 exactly and
    not nearly where gamma is within the threshold.

    Args:
        scales: changed in place.
        threshold: 0 or more; a tensor (0-D) where a CUDA graph is to follow its changes.

    Raises:
        ArgumentError: `scales` are no tensors.

    Example:
        >>> scales = [torch.tensor([0.5, 0.1, -2.0])]
        >>> netslim.methods.soft_threshold_(scales, threshold=0.25)
        >>> scales
        [tensor([ 0.2500,  0.0000, -1.7500])]
    """
    changed = _tensors(scales)
    if isinstance(threshold, Tensor):  # which no operator over a list takes as a limit
        joined = torch.cat([scale.flatten() for scale in changed])
        sizes = [scale.numel() for scale in changed]
        parts = torch.split(joined.clamp(-threshold, threshold), sizes)
        clipped: Any = [part.view_as(scale) for part, scale in zip(parts, changed, strict=True)]
    else:
        clipped = _clipped(torch._foreach_mul(changed, 1.0), threshold)
    torch._foreach_sub_(changed, clipped)


def _tensors(scales: Iterable[Tensor]) -> list[Tensor]:
    found = list(scales)
    if not found or not all(isinstance(scale, Tensor) for scale in found):
        raise ArgumentError(f"scales must be tensors, at least one, got {brief(scales)}")
    return found


def _check_delta(delta: float | None) -> None:
    if delta is not None and not 0 < delta < math.inf:
        raise ArgumentError(
            f"delta, the width of the smooth part, must be above 0, not {brief(delta)}"
        )


def _clipped(tensors: Any, limit: float) -> Any:
    """The tensors, clipped in place to [-limit, limit]."""
    torch._foreach_clamp_max_(tensors, limit)
    torch._foreach_clamp_min_(tensors, -limit)
    return tensors


@checks_calls
class NetworkSlimming:
    """Sparsity on every BN scale: `NetworkSlimming(model, 1e-4).attach(optimizer)`, then train.

    Three forms of the penalty, which all pull with `strength` on scales that are not small:

    * ``"l1"``: just before each step of the optimizer, `strength * sign(gamma)` is added to the
      gradient, as in the authors' code. Scales hover around zero in steps of lr * strength; hardly
      any is ever exactly zero.
    * ``"smooth_l1"``: the same with `strength * clip(gamma / delta, -1, 1)`, which the paper offers
      as an alternative (Section 3): the pull fades within `delta` of zero, so scales settle.
      `threshold_` then gives exact zeros. This is also the relaxed proximal form of Bui et al.
      (arXiv 2307.00684): they train gamma beside a copy xi with the terms strength * |xi| + beta /
      2 * (gamma - xi)^2 and, every step, minimise over xi. That minimum is xi = soft(gamma,
      strength / beta), a function of gamma alone; put in, the gradient beta * (gamma - xi) is the
      one above with delta = strength / beta. So no copy is kept, and `threshold_` makes gamma the
      final xi.
    * ``"proximal"``: after each step, gamma <- soft(gamma, lr * strength), with the learning rate
      of the parameter group that holds gamma, read at the step (ISTA). Scales become and stay
      exactly zero unless the loss pulls harder than `strength`. For adaptive optimizers the
      shrinkage is decoupled, as weight decay is in AdamW.

    AdamW, Lamb, Muon and all that divide a gradient by its running size also divide the pull in it:
    what counts is its part of the gradient, and a scale moves by no more than lr a step however
    large `strength` is. So what suits SGD hardly moves the scales; `attach` says so. Take the
    proximal step there, with a strength of 0.1 to 1: about so much of the optimizer's longest step,
    which is lr, the loss has to outweigh. And let the sum of the scales' learning rates be several
    times the way that they have to go, by a parameter group of their own with 5 to 10 times the
    rate (`pace` in recipes). There ``strength: auto`` finds the strength, for ``adamw`` of a
    proximal step whatever the recipe names.

    The penalty acts on the scales that the optimizer holds: once a step, on the accumulated
    gradient, at its true size under `torch.amp.GradScaler` (not at all in a step that it skips),
    and after any clipping done before the step, so the penalty is never clipped. A scale without a
    gradient is left alone, as the optimizer leaves it. Where parameters are replaced, it follows as
    soon as the optimizer holds the new ones.

    The BN layers are those of `nn.BatchNorm1d/2d/3d` and `nn.SyncBatchNorm` with affine parameters.

    Args:
        model: the network; nothing about it changes, except for `gamma_init`.
        strength: lambda of Eq. 1, 0 or more. Assign to `.strength` for a schedule; the next step
            uses it.
        gamma_init: sets every scale at once, for a network that starts from scratch (the paper:
            0.5).
        penalty: one of the forms above.
        delta: width of ``"smooth_l1"``, above 0, by default 1e-2. A step of plain gradient descent
            is stable near zero while lr * strength / delta is below 2.

    Raises:
        ArgumentError: a negative strength, a `gamma_init` or `delta` that is not above 0, a `delta`
            for another penalty, an unknown penalty, or a model without BN scales.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> slimming = netslim.NetworkSlimming(model, strength=1e-3).attach(optimizer)
        >>> for inputs, labels in loader:
        ...     optimizer.zero_grad()
        ...     F.cross_entropy(model(inputs), labels).backward()
        ...     optimizer.step()
        >>> slimming.detach()
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float = 1e-4,
        *,
        gamma_init: float | None = None,
        penalty: Penalty = "l1",
        delta: float | None = None,
    ) -> None:
        self.model = model
        self._strength = Adjustable(0.0)
        self.strength = strength
        self._penalty, self._delta = _checked_penalty(penalty, delta)
        self._attached = Attachments(
            "NetworkSlimming", "twice would double the penalty: change .strength"
        )
        self._held: dict[Optimizer, _Held] = {}
        scales = _bn_scales(
            bare(model, ArgumentError, allow=("meta", "sharded"), call="NetworkSlimming(model)")
        )
        if gamma_init is not None:
            _initialise(scales, gamma_init)

    @property
    def strength(self) -> float:
        """Lambda of Eq. 1."""
        return self._strength.value

    @strength.setter
    def strength(self, value: float) -> None:
        if not (is_number(value) and math.isfinite(value) and value >= 0):
            raise ArgumentError(
                f"the strength of Network Slimming must be 0 or more, not {brief(value)} (the "
                "paper: 1e-4)"
            )
        self._strength.value = float(value)

    def attach(self, optimizer: Optimizer) -> Self:
        """Act on every step of `optimizer` from now on; more than one optimizer may be attached.

        Warns (`UserWarning`) where it divides gradients by their size, so that a pull within them
        hardly moves the scales.

        Raises:
            ArgumentError: attached to it already, it holds none of the model's BN scales, or the
                penalty is proximal and the optimizer has no plain gradient step to go with it
                (LBFGS, or one without a learning rate).
        """
        optimizer = self._attached.new(optimizer)
        held = self._find(optimizer)
        if self._penalty == "proximal":
            _check_proximal(optimizer)
            handle = after_step(optimizer, self._shrink)
        else:
            handle = before_step(optimizer, self._pull, loss_term=self.penalty)
            if self.strength and (doubt := hardly_moved_by(type(optimizer), self._penalty)):
                warnings.warn(doubt, stacklevel=3)
        self._held[optimizer] = held
        self._attached.add(optimizer, handle)
        return self

    def detach(self, optimizer: Optimizer | None = None) -> None:
        """Act on `optimizer` (by default: on any) no longer.

        Raises:
            ArgumentError: it is not attached to `optimizer`.
        """
        for one in self._attached.remove(optimizer):
            del self._held[one]

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """`strength` times the sum of |gamma|, or of its smooth form, to add to a logged loss.

        A detached scalar tensor. Of the scales that the attached optimizers hold, for only there it
        acts; of all, before any is attached.
        """
        terms = [
            slimming_penalty(alike, self._strength.beside(alike[0]), self._delta)
            for alike in self._acted_on()
        ]
        return gathered(torch.stack([term.to(terms[0]) for term in terms]).sum())

    def threshold_(self) -> float:
        """End ``"smooth_l1"`` training with exact zeros: gamma <- soft(gamma, delta), once.

        Acts on the scales that `penalty` counts. Scales within `delta` of zero become zero, all
        others move towards it by `delta`; recalibrate the BN statistics or fine-tune afterwards.

        Returns:
            The share of all scales that are now exactly zero, 0 to 1.

        Raises:
            ArgumentError: the penalty is another.
        """
        if self._delta is None:
            makes = {"proximal": "zeros as it goes", "l1": "no threshold of its own: cut by score"}
            raise ArgumentError(
                f"threshold_() ends the penalty 'smooth_l1'; {self._penalty!r} makes "
                f"{makes[self._penalty]}"
            )
        for alike in self._acted_on():
            soft_threshold_(alike, self._delta)
        return self.share_zero()

    @torch.no_grad()
    def scales(self) -> Tensor:
        """|gamma| of every BN layer, in the order of `model.modules()`; a detached 1-D tensor."""
        scales = [gathered(scale) for scale in _bn_scales(self.model)]
        return torch.cat([scale.to(scales[0].device) for scale in scales]).abs()

    def share_near_zero(self, threshold: float = 1e-2) -> float:
        """The share, 0 to 1, of scales with |gamma| below `threshold`."""
        return (self.scales() < threshold).double().mean().item()

    def share_zero(self) -> float:
        """The share, 0 to 1, of scales that are exactly zero: cut them without a threshold."""
        return (self.scales() == 0).double().mean().item()

    def histogram(self, bins: int | Sequence[float] = 50) -> tuple[list[int], list[float]]:
        """Counts of |gamma| in each bin, and the bins' edges (one more).

        Args:
            bins: how many equal bins from 0 to the largest scale, or the ascending edges
                themselves, so that two histograms can be compared; scales outside of given edges
                count in the outermost bins.

        Raises:
            ArgumentError: there is not one bin.
        """
        scales = self.scales().double().cpu()
        if isinstance(bins, Integral):
            largest = max(scales.max().item(), 1e-12)
            edges = torch.linspace(0, largest, max(int(bins), 0) + 1, dtype=torch.float64)
        else:
            edges = torch.as_tensor(bins, dtype=torch.float64)
        if edges.dim() != 1 or len(edges) < 2:
            raise ArgumentError(
                f"bins must be their number, or two edges or more, got {brief(bins)}"
            )
        counts = torch.histogram(scales.clamp(edges[0], edges[-1]), edges).hist
        return [int(count) for count in counts], edges.tolist()

    def __repr__(self) -> str:
        form = "" if self._penalty == "l1" else f", penalty={self._penalty!r}"
        return (
            f"NetworkSlimming(strength={self.strength:g}{form}, optimizers={len(self._attached)})"
        )

    def _find(self, optimizer: Optimizer) -> "_Held":
        """The scales that `optimizer` holds, put together so that few calls serve them."""
        groups = [list(group["params"]) for group in optimizer.param_groups]
        place: dict[int, int] = {}  # id of a parameter -> its parameter group
        for number, group in enumerate(groups):
            place |= dict.fromkeys(map(id, group), number)
        alike: dict[tuple[int, torch.device, torch.dtype], list[nn.Parameter]] = {}
        for scale in _bn_scales(self.model):
            if id(scale) in place:
                alike.setdefault((place[id(scale)], scale.device, scale.dtype), []).append(scale)
        if not alike:
            raise ArgumentError(
                f"this {type(optimizer).__name__} holds none of the BN scales of this "
                f"{type(self.model).__name__}: attach to an optimizer of this very model "
                "(a pruned copy needs a NetworkSlimming of its own)"
            )
        return _Held(groups, [(number, scales) for (number, _, _), scales in alike.items()])

    def _acted_on(self) -> list[list[nn.Parameter]]:
        """The scales the penalty acts on, each list on one device and of one type."""
        if self._held:
            lists = chain.from_iterable(one.scales for one in self._held.values())
            return [scales for _, scales in lists]
        alike: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
        for scale in _bn_scales(self.model):
            alike.setdefault((scale.device, scale.dtype), []).append(scale)
        return list(alike.values())

    def _moving(self, optimizer: Optimizer) -> list[tuple[int, list[nn.Parameter]]]:
        """(parameter group, its scales that have a gradient), as the optimizer holds them now."""
        held = self._held[optimizer]
        # By now the optimizer holds other parameters, or in other groups: look again.
        if not held.current(optimizer):
            held = self._held[optimizer] = self._find(optimizer)
        moving = [
            (number, [scale for scale in scales if scale.grad is not None])
            for number, scales in held.scales
        ]
        return [(number, scales) for number, scales in moving if scales]

    def _pull(self, optimizer: Optimizer) -> None:
        """Add the penalty's gradient."""
        # Under a fused optimizer gradients are still multiplied by the loss scale, often 65536, and
        # the optimizer divides it out: a pull of true size would vanish in that.
        grad_scale = loss_scale(optimizer)
        for _, scales, strength in self._pulled(optimizer):
            here = None if grad_scale is None else grad_scale.to(scales[0].device)
            gradients: list[Any] = [scale.grad for scale in scales]
            add_slimming_gradient(gradients, list(scales), strength, here, self._delta)

    def _shrink(self, optimizer: Optimizer) -> None:
        """Take the proximal step."""
        for number, scales, strength in self._pulled(optimizer):
            rate = optimizer.param_groups[number]["lr"]
            if not isinstance(strength, Tensor):
                rate = float(rate)
            soft_threshold_(scales, rate * strength)

    def _pulled(
        self, optimizer: Optimizer
    ) -> Iterator[tuple[int, list[nn.Parameter], float | Tensor]]:
        """(parameter group, its scales that have a gradient, what pulls at them, if anything)."""
        for number, scales in self._moving(optimizer):
            strength = self._strength.beside(scales[0])
            if isinstance(strength, Tensor) or strength:
                yield number, scales, strength


@dataclass(slots=True)
class _Held:
    """What an optimizer held when it was last looked at.

    Attributes:
        parameters: of each of its groups.
        scales: (number of the group, scales in it that are on one device and of one type).
    """

    parameters: list[list[nn.Parameter]]
    scales: list[tuple[int, list[nn.Parameter]]]

    def current(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer still holds these very parameters, grouped alike."""
        groups = [group["params"] for group in optimizer.param_groups]
        return len(groups) == len(self.parameters) and all(
            len(now) == len(then) and all(map(is_, now, then))
            for now, then in zip(groups, self.parameters, strict=True)
        )


def _checked_penalty(penalty: str, delta: float | None) -> tuple[str, float | None]:
    """The checked penalty, and the width of its smooth part, if it has one."""
    if penalty not in (known := get_args(Penalty)):
        raise ArgumentError(f"unknown penalty {penalty!r}{nearest(penalty, known)}")
    if penalty != "smooth_l1":
        if delta is not None:
            raise ArgumentError(
                f"delta is the width of penalty='smooth_l1'; {penalty!r} has none: leave it out"
            )
        return penalty, None
    if delta is None:
        delta = 1e-2
    _check_delta(delta)
    return penalty, float(delta)


def hardly_moved_by(kind: type[Optimizer], penalty: str) -> str | None:
    """A sentence on an optimizer whose steps do not grow with the gradient, where `penalty` is a
    part of that; None for plain descent, known by its class or a name such as ``SGDW``.
    """
    # MuSGD, of ultralytics, is another method for matrices alone, and plain descent for scales.
    plain = issubclass(kind, (SGD, ASGD, LBFGS)) or kind.__name__.startswith(("SGD", "MuSGD"))
    if plain or penalty == "proximal":
        return None
    return (
        f"{kind.__name__} divides gradients by their size, and the pull of the penalty {penalty!r} "
        "with them, so that it hardly moves the scales: take the penalty 'proximal', with a "
        "strength of 0.1 to 1 and 5 to 10 times the learning rate for the scales"
    )


def _check_proximal(optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    remedy = "use penalty='smooth_l1' and .threshold_() at the end"
    if isinstance(optimizer, LBFGS):
        raise ArgumentError(
            f"penalty='proximal' goes with a gradient step, and {name} searches along a line: "
            f"{remedy}"
        )
    if any("lr" not in group for group in optimizer.param_groups):
        raise ArgumentError(
            f"penalty='proximal' shrinks by the learning rate, and this {name} has no 'lr': "
            f"{remedy}"
        )


def _bn_scales(model: nn.Module) -> list[nn.Parameter]:
    """The scale of every affine BN layer, each once."""
    layers = (module for module in model.modules() if isinstance(module, _BatchNorm))
    scales = {id(layer.weight): layer.weight for layer in layers if layer.weight is not None}
    if not scales:
        raise ArgumentError(
            f"{type(model).__name__} has no BN layer with scales, and Network Slimming acts on "
            "nothing else: use affine BatchNorm after the layers to be cut (netslim.models.add_bn "
            "puts it after convolutions and leaves the outputs as they are, zoo:mlp shows it "
            "for linear layers), or prune by a criterion of the weights, such as 'l1'"
        )
    return list(scales.values())


@torch.no_grad()
def _initialise(scales: Iterable[nn.Parameter], value: float) -> None:
    if not (is_number(value) and math.isfinite(value) and value > 0):
        raise ArgumentError(f"gamma_init must be above 0, not {brief(value)} (the paper: 0.5)")
    for scale in scales:
        scale.fill_(value)
