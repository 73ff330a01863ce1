"""`DistributedDataParallel` around a module that was cut in place.

What reduces the gradients was laid out for the old sizes: its buckets, and its hooks on the
parameters. So the wrapper is begun anew around the same module, with the settings it had. It stays
the same object, because training loops, compiled modules and trainers hold it.

Parameters and buffers are not sent round again: every rank has cut its own in the same way, which
the caller has made sure of, and buffers that ranks keep for themselves stay theirs.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import netslim.ranks as ranks
from netslim.errors import SurgeryError

_REMEDY = (
    "cut the module inside, netslim.prune_(model.module, plan, ...) on every rank, and wrap that "
    "again as it was"
)
_NOT_TAKEN = {"module", "init_sync", "check_reduction", "device_mesh", "broadcast_buffers"}
_KEPT = ("training", "require_backward_grad_sync", "require_forward_param_sync")


class Rewrapping:
    """How a wrapper is set, looked at before the cut, to begin it anew afterwards.

    Raises:
        SurgeryError: it is set in a way that cannot be kept.
    """

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        _check(wrapper)
        self._wrapper: Any = wrapper
        self._settings = _settings(wrapper)
        self._hooks = list(wrapper._comm_hooks)
        names = (name for name in vars(nn.Module()) if name.endswith("_hooks") or "hooks_" in name)
        self._kept = {name: vars(wrapper)[name] for name in (*names, *_KEPT)}

    def compare(self) -> None:
        """See to it that every rank has the same parameters, as the wrapper takes it.

        Raises:
            DisagreementError: on every rank: names the digests.
        """
        ignored = self._wrapper.parameters_to_ignore
        named = self._wrapper.module.named_parameters()
        ranks.agree(
            "the parameters of the model",
            ranks.digest({name: value for name, value in named if name not in ignored}),
            "they have trained apart, so that one of them has changed its weights by itself: load "
            "the weights of one on all of them",
        )

    def carry_out(self) -> None:
        """Begin the wrapper anew; a collective call."""
        wrapper, module = self._wrapper, self._wrapper.module
        for handle in getattr(wrapper, "_accum_grad_hooks", ()):
            handle.remove()
        # The old reducer hangs on the parameters, and would reduce beside the new one.
        wrapper.logger = wrapper.reducer = None
        DistributedDataParallel.__init__(wrapper, module, **self._settings)
        vars(wrapper).update(self._kept)
        for hook, state in self._hooks:
            wrapper.register_comm_hook(state, hook)


def _settings(wrapper: DistributedDataParallel) -> dict[str, Any]:
    """What to make another one like it with; each is kept as an attribute under its name."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    found = {
        name: getattr(wrapper, name)
        for name in known
        if hasattr(wrapper, name) and name not in _NOT_TAKEN
    }
    if "forward_sync_buffers" not in known:  # its name before PyTorch 2.13
        found["broadcast_buffers"] = wrapper.broadcast_buffers
    if not wrapper.bucket_bytes_cap_default:
        found["bucket_cap_mb"] = wrapper.bucket_bytes_cap / 2**20
    if "init_sync" in known:  # PyTorch 2.6 synchronises always
        found["init_sync"] = False
    return found


def _check(wrapper: DistributedDataParallel) -> None:
    for hook, state in wrapper._comm_hooks:
        if not (state is None or isinstance(state, dist.ProcessGroup)):
            raise SurgeryError(
                f"the communication hook {getattr(hook, '__name__', hook)} keeps a "
                f"{type(state).__name__}, which is laid out for the old sizes: {_REMEDY}, with a "
                "new one"
            )
    reasons = {
        "a built-in communication hook": not wrapper._comm_hooks and _hooked(wrapper),
        "delayed reductions": bool(wrapper._delay_all_reduce_params),
        "mixed precision of its own": wrapper.mixed_precision is not None,
        "uneven inputs, within model.join()": wrapper._join_config.enable,
    }
    for reason, holds in reasons.items():
        if holds:
            raise SurgeryError(f"DistributedDataParallel with {reason}: {_REMEDY}")


def _hooked(wrapper: DistributedDataParallel) -> bool:
    """Whether it was given a communication hook."""
    with suppress(RuntimeError):
        told = wrapper._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        return bool(told.get("comm_hook"))
    return False


__all__ = ["Rewrapping"]
