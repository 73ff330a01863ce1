"""What a CUDA graph does to a step, on a CPU: operators are noted while a step runs, and run again
from the tape, with the very tensors and numbers that they had. No Python between them runs again,
and what would make the host wait is refused as a capture refuses it.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from netslim.training.loop.captured import Recording, Unrecorded

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
REFUSED = "operation not permitted when stream is capturing"


UNDECLARED = {"aten::native_batch_norm": ("running_mean", "running_var")}


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def places(tree):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(tree)}


def written(function, args, kwargs):
    """What a call writes in place."""
    schema, found = function._schema, []
    for index, argument in enumerate(schema.arguments):
        declared = argument.alias_info is not None and argument.alias_info.is_write
        if declared or argument.name in UNDECLARED.get(schema.name, ()):
            found.append(args[index] if index < len(args) else kwargs.get(argument.name))
    return tensors(found)


class Noting(TorchDispatchMode):
    """Notes calls; they are carried out, and undone at the end."""

    def __init__(self):
        super().__init__()
        self.calls, self.before = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function._schema.name in WAITING:
            raise RuntimeError(f"{function}: {REFUSED}")
        self.before += [(tensor, tensor.clone()) for tensor in written(function, args, kwargs)]
        result = function(*args, **kwargs)
        # Views, and what operators in place return, lie where an argument lies.
        made = [] if places(result) <= places((args, kwargs)) else tensors(result)
        self.calls.append((function, args, kwargs, made))
        return result

    @torch.no_grad()
    def undo(self):
        for tensor, value in reversed(self.before):
            tensor.copy_(value)
        self.before.clear()


class Tape(Unrecorded):
    """A recorder that replays tapes.

    Attributes:
        recorded: how many tapes there are.
        replayed: how many times one of them was run.
    """

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, run):
        drawn, tape = self.random_state(), Noting()
        try:
            with tape:
                loss = run()
        finally:
            tape.undo()
            self.set_random_state(drawn)
        self.recorded += 1

        @torch.no_grad()
        def replay():
            self.replayed += 1
            for function, args, kwargs, made in tape.calls:
                found = function(*args, **kwargs)
                for old, new in zip(made, tensors(found) if made else [], strict=True):
                    old.copy_(new)
            return loss

        return Recording(replay, tape.calls.clear)
