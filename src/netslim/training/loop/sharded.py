"""A network that is shared out over the processes while it trains: FSDP2 under Lightning.

Lightning's own (`ModelParallelStrategy`) restores a stage after it has sharded the network, keeps
optimizers' states by the order of all parameters, and reads checkpoints in its own way. Here a
stage is one like any other:

::

    weights are restored, what was cut on the way is cut     the network is plain
    `fully_shard`                                            in the place of the DDP wrapper
    optimizer, method, its state                             of the parts
    last.ckpt                                                gathered: as of any number of processes
    the end                                                  gathered, plain again

So a stage may be stopped under this strategy and go on under another one, on other processes.

Shared out are the blocks of the network, each gathered for as long as it computes, and what is left
of it as a whole. Blocks are what stands in a `Sequential` or `ModuleList` and is large enough for
an exchange of its own to be worth it; of nested ones the innermost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.optim import Optimizer

import netslim.ranks as ranks
from netslim.errors import TrainingError
from netslim.graph.modules.unwrapping import gathered
from netslim.surgery.sharding import part_like, unshard

BLOCK = 500_000  # parameters, 2 MB
_CONTAINERS = (nn.Sequential, nn.ModuleList)


def check_parts(device: torch.device) -> None:
    """Refuse a device on which FSDP2 of this PyTorch cannot compute: with 2.6 it is the CPU.

    Raises:
        TrainingError: it is one.
    """
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise TrainingError(
            f"trainer.strategy: FSDP2 of torch {torch.__version__} does not train on the CPU: take "
            "the strategy ddp, GPUs, or a newer torch"
        )


class Sharded(DDPStrategy):
    """Trains the `network` of a module in parts."""

    def configure_ddp(self) -> None:
        """Share the network out; it was moved to its device before, and has its weights."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        check_parts(self.root_device)
        put_on: Any = fully_shard
        mesh = init_device_mesh(self.root_device.type, (ranks.count(),))
        for block in blocks(self._network, BLOCK):
            put_on(block, mesh=mesh)
        put_on(self._network, mesh=mesh)

    @property
    def _network(self) -> nn.Module:
        network: Any = self.lightning_module.network  # type: ignore[union-attr]
        return network  # type: ignore[no-any-return]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole of it, on every process."""
        return whole(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole of it, on every process."""
        found: dict[str, Any] = super().optimizer_state(optimizer)
        states = {number: whole(state) for number, state in found["state"].items()}
        return {**found, "state": states}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep of each state the part that belongs to the part of the parameter."""
        super().load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        state[key] = part_like(value, parameter)

    def teardown(self) -> None:
        """Make the network plain; one whose training was broken off is left, for others may be
        gone.
        """
        module = self.lightning_module
        if module is None or module.trainer.state.status == TrainerStatus.INTERRUPTED:
            return
        unshard(self._network, self.optimizers)
        super().teardown()


def whole(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A state whose parts are put together; a collective call where there are any."""
    found = dict(state)
    for key, value in found.items():
        if isinstance(value, Tensor):
            found[key] = gathered(value.detach())
    return found


def blocks(network: nn.Module, least: int) -> Iterator[nn.Module]:
    """What is shared out by itself: each of `least` parameters or more, inner ones before outer."""
    members = [one for box in network.modules() if isinstance(box, _CONTAINERS) for one in box]
    owners = Counter(
        parameter for one in network.modules() for parameter in one._parameters.values()
    )
    chosen: set[nn.Module] = set()
    for one in reversed(dict.fromkeys(members)):
        parameters = list(one.parameters())
        large = sum(parameter.numel() for parameter in parameters) >= least
        tied = any(owners[parameter] > 1 for parameter in parameters)
        holding = isinstance(one, nn.ModuleList) or not chosen.isdisjoint(one.modules())
        if large and not tied and not holding:
            chosen.add(one)
            yield one


__all__ = ["BLOCK", "Sharded", "blocks", "whole"]
