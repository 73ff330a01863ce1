"""What a data loader gives: inputs of a model, targets, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from netslim._support import check_batches
from netslim.errors import ArgumentError
from netslim.graph.modules.calls import as_call, describe, tensor_leaves
from netslim.graph.modules.unwrapping import without_values
from netslim.graph.modules.walk import named_tensors

_LABELS = ("labels", "label", "targets", "target")
_PARTS = 4  # what is held out is the last of so many parts


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
    if not isinstance(batch, (list, tuple)):
        return (batch,), {}
    if not batch:
        raise ArgumentError("a batch is an empty list: it must hold the input first")
    if isinstance(batch[0], (tuple, Mapping)):
        return as_call(batch[0])
    return (batch[0],), {}


def targets_of(batch: Any) -> Any:
    """What outputs are compared with: the second of a list or tuple, the labels of a dict.

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
        examples = batch
        if isinstance(batch, Mapping):  # of whatever class: it is taken apart as a dict
            examples = dict(batch)
        held = [tensor for tensor in tensor_leaves(inputs_of(examples)) if tensor.dim()]
        if not held:
            raise ArgumentError("a batch holds no tensor of examples, so it cannot be taken apart")
        size = len(held[0])
        for number in range(size):
            yield _examples(examples, slice(number, number + 1), size)


def held_out(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """(the batches to work with, those to judge by): the last quarter, at least one, is held out.

    A single batch is taken apart along the first dimension of its tensors. Nothing is held out of
    fewer than four examples, nor where the inputs do not agree on how many there are.
    """
    if len(batches) != 1:
        last = len(batches) - max(1, len(batches) // _PARTS)
        return list(batches[:last]), list(batches[last:])
    batch = batches[0]
    if isinstance(batch, Mapping):
        batch = dict(batch)
    sizes = {len(tensor) for tensor in tensor_leaves(inputs_of(batch)) if tensor.dim()}
    size = max(sizes, default=0)
    last = size - size // _PARTS
    if len(sizes) != 1 or last == size:
        return list(batches), []
    return [_examples(batch, slice(0, last), size)], [_examples(batch, slice(last, size), size)]


def _examples(batch: Any, which: slice, size: int) -> Any:
    """These examples of a batch; what has another size than the batch comes whole."""

    def part(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != size:
            return tensor
        return tensor[which]

    return tree_map_only(Tensor, part, batch)


def joined(batches: Sequence[Any]) -> Any | None:
    """One batch of the inputs of all of these, put together along the first dimension of tensors.

    None where they do not agree on how many examples a batch has, or are otherwise not alike.
    """
    rows = [tree_flatten(inputs_of(batch)) for batch in batches]
    first, structure = rows[0]
    for leaves, own in rows:
        sizes = {len(leaf) for leaf in tensor_leaves(leaves) if leaf.dim()}
        if len(sizes) != 1 or own != structure or not all(map(_alike, leaves, first)):
            return None
    columns = zip(*(leaves for leaves, _ in rows), strict=True)
    together = [torch.cat(column) if _of_examples(column[0]) else column[0] for column in columns]
    args, kwargs = tree_unflatten(together, structure)
    return (kwargs or args,)


def _of_examples(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _alike(one: Any, other: Any) -> bool:
    """Whether examples can be put together, and anything else is the same."""
    if not (_of_examples(one) and _of_examples(other)):
        return one is other or (isinstance(one, int | float | str) and bool(one == other))
    facts = [(leaf.shape[1:], leaf.dtype, leaf.device) for leaf in (one, other)]
    return facts[0] == facts[1]


def outputs(
    model: nn.Module, batches: Iterable[Any], what: str = "batch"
) -> Iterator[tuple[Any, Any]]:
    """(batch, what the model puts out for it), batch by batch.

    Inputs are brought to the device of the model; modes and gradients are the caller's business.
    ``what`` is what messages call a batch.

    Raises:
        ArgumentError: there is no batch, ``batches`` is a single one, a batch is empty or has no
            values, or the model does not run on one.
    """
    device = next((tensor.device for _, tensor in named_tensors(model)), torch.device("cpu"))
    number = 0
    for number, batch in enumerate(check_batches(batches), 1):
        place = f"{what} {number} of batches="
        if any(map(without_values, tensor_leaves(batch))):
            raise ArgumentError(
                f"{place} has no values: it was made on the meta device or in a FakeTensorMode; "
                "make it on a real device"
            )
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs_of(batch))
        if not all(tensor.numel() for tensor in tensor_leaves((args, kwargs))):
            raise ArgumentError(
                f"{place} has no examples ({describe(kwargs or args)}): leave it out"
            )
        try:
            output = model(*args, **kwargs)
        except Exception as error:
            raise ArgumentError(
                f"the model does not run on {place} ({describe(kwargs or args)}): {error}"
            ) from error
        yield batch, output
    if not number:
        raise ArgumentError(
            "batches= gives no batch: pass a data loader or a list (a generator can be read "
            "only once)"
        )


__all__ = ["held_out", "inputs_of", "joined", "outputs", "singly", "targets_of"]
