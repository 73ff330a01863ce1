"""Blocks that go: which sums lose their branch, what stands in the place of modules, and which
tensors there are no more.

A fresh network has those tensors, and the fingerprint of its architecture counts them. So each is
kept with its shape and the name of the last tensor before it that stays: of T1 T2 T3 T4, of which
T2 and T3 go, both stand after T1, and the original order is had by putting them back from the last
to the first. Those of a later cut are put back before those of an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from netslim.graph.blocks import Addition
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.placeholders import Replacement, is_answer, places_of, within
from netslim.graph.modules.walk import Walked, joined, named_tensors
from netslim.surgery.rows import TensorCut

Shape = tuple[int, ...]


@dataclass(frozen=True)
class BlockCut:
    """A block that goes: its name, and the sums that are without their branch."""

    name: str
    sums: tuple[Addition, ...]


@dataclass(frozen=True)
class GoneTensor:
    """A parameter or lasting buffer of the original that the cut model does not have.

    ``after`` is the last one before it that stays; ``""`` where none does.
    """

    tensor: str
    shape: Shape
    after: str


@dataclass(frozen=True)
class Dropped:
    """What a plan does with blocks.

    Attributes:
        blocks: those that go.
        replaced: what stands in the place of modules, in order.
        tensors: what there is no more.
    """

    blocks: tuple[BlockCut, ...] = ()
    replaced: tuple[Replacement, ...] = ()
    tensors: tuple[GoneTensor, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.blocks or self.replaced)

    def holds(self, name: str) -> bool:
        """Whether a module or tensor of this name goes."""
        return any(name == row.module or within(name, row.module) for row in self.replaced)

    def problem(self) -> str | None:
        """What is wrong with these rows, if anything."""
        paths = [row.module for row in self.replaced]
        names = [gone.tensor for gone in self.tensors]
        sums = [one for block in self.blocks for one in block.sums]
        if not all(paths) or len(set(paths)) < len(paths):
            return "a module is replaced twice, or the model itself"
        if not all(is_answer(row.answer) for row in self.replaced):
            return "what stands in the place of a module cannot be read"
        if len(set(names)) < len(names) or any(
            min(gone.shape, default=0) < 0 for gone in self.tensors
        ):
            return "a tensor that goes is named twice, or has no shape"
        if any(one.operand not in (0, 1) or one.number < 0 for one in sums):
            return "there is no such sum"
        if bool(self.blocks) != bool(self.replaced):
            return "blocks go, and no module is replaced, or the other way round"
        return None

    def below(self, path: str) -> Dropped:
        """The same of a model that is a part of another one."""
        sums = {
            block: tuple(replace(one, module=joined(path, one.module)) for one in block.sums)
            for block in self.blocks
        }
        tensors = []
        for gone in self.tensors:
            after = gone.after and joined(path, gone.after)
            tensors.append(replace(gone, tensor=joined(path, gone.tensor), after=after))
        return Dropped(
            tuple(BlockCut(joined(path, block.name), sums[block]) for block in self.blocks),
            tuple(replace(row, module=joined(path, row.module)) for row in self.replaced),
            tuple(tensors),
        )


def dropped_from(graph: ChannelGraph, names: Iterable[str]) -> Dropped | None:
    """What is to be done for the blocks of these names to go; None where they cannot go together.

    Raises:
        ArgumentError: there is no block of this name.
    """
    chosen = {name: graph.block(name) for name in names}
    if not chosen or graph.blocks is None:
        return Dropped()
    rows = graph.blocks.replaced(chosen.values())
    if rows is None:
        return None
    held = graph.blocks.tensors_replaced(rows)
    return Dropped(
        tuple(BlockCut(name, block.additions) for name, block in chosen.items()),
        rows,
        tuple(_gone(graph.blocks.shapes, held)),
    )


def _gone(shapes: Mapping[str, Shape], held: Collection[str]) -> Iterator[GoneTensor]:
    last = ""
    for name, shape in shapes.items():
        if name in held:
            yield GoneTensor(name, shape, last)
        else:
            last = name


def put_back(
    shapes: Iterable[tuple[str, Shape]], gone: Sequence[GoneTensor]
) -> list[tuple[str, Shape]]:
    """The tensors of the original in their order, from those of the cut model."""
    found = list(shapes)
    for one in reversed(gone):
        names = [name for name, _ in found]
        place = 0
        if one.after in names:
            place = names.index(one.after) + 1
        found.insert(place, (one.tensor, one.shape))
    return found


def composed(
    first: Dropped, second: Dropped, cuts: Iterable[TensorCut], added: Collection[str]
) -> Dropped:
    """Two of them, one after the other.

    Args:
        first, second: in the order in which they are carried out.
        cuts: of the first cut, which the second one's shapes are without.
        added: tensors that the first cut has added, and the original does not have.
    """
    sizes = {(cut.tensor, cut.axis): cut.size for cut in cuts}
    tensors = [
        replace(
            gone,
            shape=tuple(sizes.get((gone.tensor, axis), n) for axis, n in enumerate(gone.shape)),
        )
        for gone in second.tensors
        if gone.tensor not in added
    ]
    replaced = {row.module: row for row in (*first.replaced, *second.replaced)}
    return Dropped(
        tuple(dict.fromkeys((*first.blocks, *second.blocks))),
        tuple(replaced.values()),
        (*first.tensors, *tensors),
    )


def drop_blocks(
    model: nn.Module, dropped: Dropped, undo: Callable[..., object] | None = None
) -> None:
    """Put what takes their place where modules are.

    Args:
        model: whose modules they are.
        dropped: what is to be done.
        undo: is given a function and its arguments, for each step, that take it back.

    Raises:
        AttributeError: a module is not there.
    """
    for row in dropped.replaced:
        module = model.get_submodule(row.module)
        new = row.made(module)
        for holder, name in [*places_of(model, module)]:
            if undo is not None:
                undo(holder._modules.__setitem__, name, module)
            holder._modules[name] = new
            if isinstance(holder, nn.TransformerEncoderLayer):
                _by_its_parts(model, holder)


def _by_its_parts(model: nn.Module, layer: nn.TransformerEncoderLayer) -> None:
    """Have PyTorch's encoder layer run its parts: without gradients it hands their weights to a
    fused operator, and the encoder around it makes nested tensors for that.
    """
    layer.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def gone_tensors(model: nn.Module, dropped: Dropped) -> dict[str, object]:
    """All parameters and buffers of a model that go, by name."""
    if not dropped:
        return {}
    return {name: tensor for name, tensor in named_tensors(model) if dropped.holds(name)}


def fits(walked: Walked, dropped: Dropped) -> str | None:
    """Why blocks cannot go from a model, if they cannot."""
    for row in dropped.replaced:
        if row.module not in walked.by_path:
            return f"the plan replaces the module {row.module!r}, which the model does not have"
    for gone in dropped.tensors:
        shape = None
        if gone.tensor in walked.lasting:
            shape = tuple(walked.lasting[gone.tensor].shape)
        if shape != gone.shape:
            return (
                f"the plan drops {gone.tensor!r} of shape {gone.shape}, in the model it is "
                f"{'not there' if shape is None else shape}"
            )
    return None


__all__ = [
    "BlockCut",
    "Dropped",
    "GoneTensor",
    "composed",
    "drop_blocks",
    "dropped_from",
    "fits",
    "gone_tensors",
    "put_back",
]
