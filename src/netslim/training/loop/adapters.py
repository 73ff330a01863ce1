"""From a stage's options to the sparsity method that acts while it trains.

Methods know nothing of Lightning, and a stage nothing of methods; a `Method` stands between. They
act through hooks of the optimizer (`netslim.methods.hooks`), not by a term of the loss. So what
they add to a gradient is neither clipped nor scaled with the loss, and a proximal step or a mask
comes after momentum has moved the weights. What the loss should show of it, `penalty` tells.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from netslim.graph import trace
from netslim.methods.centripetal import CentripetalSGD
from netslim.methods.gradual import GradualPruning
from netslim.methods.masking import Mask
from netslim.methods.slimming import NetworkSlimming
from netslim.methods.soft_filter import SoftFilterPruning
from netslim.surgery.plan import PruningPlan
from netslim.training.recipe.schema import (
    CentripetalOptions,
    SlimmingOptions,
    SoftFilterOptions,
    SparsityOptions,
    Train,
)

LOGGED = ("zero", "returned", "deviation", "macs_left")  # what methods add to metrics.csv


class Method:
    """What a training stage asks of a method; this one needs nothing but its hook.

    Args:
        method: what hooks the optimizer, for instance `NetworkSlimming`.

    Attributes:
        steady: whether its hook does the same with the same tensors in every step, and what changes
            between steps lies in tensors: then a CUDA graph can hold it.
    """

    steady = False

    def __init__(self, method: Any) -> None:
        self.method = method

    @property
    def has_final_size(self) -> bool:
        """Whether the network has the size it is to keep: only then can weights be the best."""
        return True

    def attach(self, optimizer: Optimizer) -> None:
        """Act on every step of `optimizer` from now on."""
        self.method.attach(optimizer)

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss at this step; a detached scalar."""
        return None

    def end_epoch(self, last: bool) -> None:
        """All steps of an epoch are done, `last` of the stage's; it has not been validated yet."""

    def log(self) -> dict[str, float]:
        """Figures of the epoch, of those in `LOGGED`."""
        return {}

    def finish(self) -> None:
        """The stage is over, and its weights are those that it leaves."""

    def left(self) -> dict[str, Any]:
        """What later stages need, as plain JSON."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed stage needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class _Resumable(Method):
    """A method with a state of its own."""

    method: SoftFilterPruning | CentripetalSGD
    steady = True

    def state_dict(self) -> dict[str, Any]:
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state)


class _Slimming(Method):
    """Network Slimming, with `pace` times the learning rate for the scales."""

    method: NetworkSlimming
    steady = True

    def __init__(self, method: NetworkSlimming, pace: float) -> None:
        super().__init__(method)
        self.pace = pace

    def attach(self, optimizer: Optimizer) -> None:
        if self.pace != 1:
            separate_scales(optimizer, self.method.model, self.pace)
        with warnings.catch_warnings():  # the stage says it, once and not for every short run
            warnings.simplefilter("ignore", UserWarning)
            super().attach(optimizer)

    def penalty(self) -> Tensor | None:
        return self.method.penalty()


class _SoftFilter(_Resumable):
    method: SoftFilterPruning

    def __init__(self, method: SoftFilterPruning, at_start: bool) -> None:
        super().__init__(method)
        self.at_start = at_start

    def attach(self, optimizer: Optimizer) -> None:
        self.method.attach(optimizer, at_start=self.at_start)

    def end_epoch(self, last: bool) -> None:
        self.method.end_epoch(last=last)

    def finish(self) -> None:
        # The best weights may be of an epoch without a zeroing; zero filters stay as they are.
        self.method.zero()

    def log(self) -> dict[str, float]:
        return {"zero": self.method.share_zero(), "returned": self.method.returned}


class _Centripetal(_Resumable):
    method: CentripetalSGD

    def log(self) -> dict[str, float]:
        return {"deviation": self.method.deviation().largest}

    def finish(self) -> None:
        self.method.collapse()  # what still differs within a cluster, running statistics above all

    def left(self) -> dict[str, Any]:
        clusters = self.method.clusters
        return {"clusters": {name: list(map(int, labels)) for name, labels in clusters.items()}}


class Gradual(Method):
    """Cut the network at the ends of some epochs, beside another method or none.

    Args:
        pruning: of the network as the stage found it; a resumed one is cut when its state is
            loaded, which Lightning does before it loads the weights.
        epochs: after which the steps fall, counted from 1.
        other: acts on the network too, whatever its size.
    """

    method: GradualPruning

    def __init__(
        self, pruning: GradualPruning, epochs: Collection[int], other: Method | None
    ) -> None:
        super().__init__(pruning)
        self.epochs, self.other, self.epoch = epochs, other or _Nothing(None), 0

    @property
    def steady(self) -> bool:  # type: ignore[override]
        return self.other.steady

    @property
    def has_final_size(self) -> bool:
        return self.method.done

    def attach(self, optimizer: Optimizer) -> None:
        self.method.optimizers = [optimizer]
        self.other.attach(optimizer)

    def penalty(self) -> Tensor | None:
        return self.other.penalty()

    def end_epoch(self, last: bool) -> None:
        self.other.end_epoch(last)
        self.epoch += 1
        if self.epoch in self.epochs:
            self.method.step()

    def log(self) -> dict[str, float]:
        return {**self.other.log(), "macs_left": round(self.method.macs_left, 7)}

    def finish(self) -> None:
        self.other.finish()

    def left(self) -> dict[str, Any]:
        return self.other.left()

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "pruning": self.method.state_dict(),
            "other": self.other.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.method.load_state_dict(state["pruning"])
        self.other.load_state_dict(state["other"])


class _Nothing(Method):
    """Beside gradual pruning, where nothing else acts."""

    steady = True

    def attach(self, optimizer: Optimizer) -> None:
        pass


Adapter = Callable[[Any, nn.Module, Tensor, int], Method]
ADAPTERS: dict[type[SparsityOptions], Adapter] = {}


def adapter(kind: type[SparsityOptions]) -> Callable[[Adapter], Adapter]:
    """Register the function that carries out a method whose options are of class `kind`.

    The function takes the options; the network, on the CPU (wherever it is moved, the method
    follows); images (B, C, H, W) to trace with; and the seed of what the method draws at random. It
    returns the `Method`, not attached yet.
    """

    def register(function: Adapter) -> Adapter:
        ADAPTERS[kind] = function
        return function

    return register


def method_of(stage: Train, network: nn.Module, example: Tensor, seed: int) -> Method | None:
    """The stage's sparsity method, not attached yet; None for ordinary training.

    Arguments are as for `adapter`.
    """
    options = stage.sparsity
    if options is None:
        return None
    return ADAPTERS[type(options)](options, network, example, seed)


@adapter(SlimmingOptions)
def _slimming(options: SlimmingOptions, network: nn.Module, example: Tensor, seed: int) -> Method:
    assert not isinstance(options.strength, str)  # the runner has found it
    method = NetworkSlimming(
        network, options.strength, penalty=options.penalty, delta=options.delta
    )
    return _Slimming(method, options.pace)


def separate_scales(optimizer: Optimizer, network: nn.Module, pace: float) -> None:
    """Move batch-norm scales to parameter groups of their own, with `pace` times the rate."""
    scales = {id(m.weight) for m in network.modules() if isinstance(m, _BatchNorm) and m.affine}
    for group in list(optimizer.param_groups):
        fast = [p for p in group["params"] if id(p) in scales]
        if fast:
            group["params"] = [p for p in group["params"] if id(p) not in scales]
            optimizer.add_param_group({**group, "params": fast, "lr": group["lr"] * pace})


@adapter(SoftFilterOptions)
def _soft_filter(
    options: SoftFilterOptions, network: nn.Module, example: Tensor, seed: int
) -> Method:
    method = SoftFilterPruning(
        trace(network, example),
        network,
        options.rate,
        criterion=options.criterion,
        shortcuts=options.shortcuts,
        projections=options.projections,
        every=options.every,
    )
    return _SoftFilter(method, options.at_start)


@adapter(CentripetalOptions)
def _centripetal(
    options: CentripetalOptions, network: nn.Module, example: Tensor, seed: int
) -> Method:
    method = CentripetalSGD(
        trace(network, example),
        network,
        options.target,
        clusters=options.clusters,
        strength=options.strength,
        vector_strength=options.vector_strength,
        seed=seed,
        protect=tuple(options.protect),
        shortcuts=options.shortcuts,
    )
    return _Centripetal(method)


def held_by(plan: PruningPlan, network: nn.Module) -> Method:
    """Hold the channels that `plan` removes at zero: mask mode."""
    return _Masked(Mask(network, plan))


class _Masked(Method):
    steady = True
