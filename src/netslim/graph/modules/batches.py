"""What a data loader gives: the inputs of a model, the targets beside them, and what the model
makes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from netslim._support import check_batches
from netslim.errors import ArgumentError
from netslim.graph.modules.calls import as_call, describe
from netslim.graph.modules.walk import named_tensors

_LABELS = ("labels", "label", "targets", "target")


def inputs_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) to call a model with.

    Args:
        batch: a tensor; a list or tuple, whose first element is the input (a tuple of positional
            inputs or a dict of keyword inputs, where the model takes several); a dict of keyword
            inputs, from which labels are left out.

    Raises:
        ArgumentError: an empty list or tuple.
    """
    if isinstance(batch, Mapping):
        return (), {name: value for name, value in batch.items() if name not in _LABELS}
    if isinstance(batch, (list, tuple)):
        if not batch:
            raise ArgumentError("a batch is an empty list: it must hold the input first")
        return as_call(batch[0]) if isinstance(batch[0], (tuple, Mapping)) else ((batch[0],), {})
    return (batch,), {}


def targets_of(batch: Any) -> Any:
    """What the outputs are compared with: the second element of a list or tuple, the labels of a
    dict.

    Raises:
        ArgumentError: the batch holds none.
    """
    if isinstance(batch, Mapping):
        for name in _LABELS:
            if name in batch:
                return batch[name]
        raise ArgumentError(
            f"a batch has no targets: none of {', '.join(_LABELS)} is among its keys"
        )
    if isinstance(batch, (list, tuple)) and len(batch) > 1:
        return batch[1]
    raise ArgumentError("a batch has no targets: give batches of (inputs, targets)")


def singly(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches of one example each: the tensors of a batch taken apart along their first dimension.

    What has no such dimension, or another size than the batch, comes whole with each example.

    Raises:
        ArgumentError: ``batches`` is a single one, or a batch holds no tensor to take apart.
    """
    for batch in check_batches(batches):
        examples = dict(batch) if isinstance(batch, Mapping) else batch
        held = [
            leaf
            for leaf in tree_leaves(inputs_of(examples))
            if isinstance(leaf, Tensor) and leaf.dim()
        ]
        if not held:
            raise ArgumentError("a batch holds no tensor of examples, so it cannot be taken apart")
        for number in range(len(held[0])):
            yield tree_map_only(
                Tensor, partial(_example, number=number, size=len(held[0])), examples
            )


def _example(tensor: Tensor, number: int, size: int) -> Tensor:
    return tensor[number : number + 1] if tensor.dim() and len(tensor) == size else tensor


def outputs(
    model: nn.Module, batches: Iterable[Any], what: str = "batch"
) -> Iterator[tuple[Any, Any]]:
    """(batch, what the model puts out for it), batch by batch; inputs are brought to the device of
    the model.

    Modes and gradients are the caller's business; ``what`` is what messages call a batch.

    Raises:
        ArgumentError: there is no batch, ``batches`` is a single one, a batch is empty, or the
            model does not run on one.
    """
    device = next((tensor.device for _, tensor in named_tensors(model)), torch.device("cpu"))
    number = 0
    for number, batch in enumerate(check_batches(batches), 1):
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs_of(batch))
        if any(
            isinstance(leaf, Tensor) and not leaf.numel() for leaf in tree_leaves((args, kwargs))
        ):
            raise ArgumentError(
                f"{what} {number} of batches= has no examples ({describe(kwargs or args)}): "
                "leave it out"
            )
        try:
            output = model(*args, **kwargs)
        except Exception as error:
            shapes = describe(kwargs or args)
            raise ArgumentError(
                f"the model does not run on {what} {number} of batches= ({shapes}): {error}"
            ) from error
        yield batch, output
    if not number:
        raise ArgumentError(
            "batches= gives no batch: pass a data loader or a list (a generator can be read "
            "only once)"
        )


__all__ = ["inputs_of", "outputs", "singly", "targets_of"]
