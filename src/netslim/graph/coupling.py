"""Which of several coupled layers leads: pacesetters and projections.

In C-SGD (Ding et al. 2019) the projection of a residual stage, or the stem where a stage has none,
is the *pacesetter*; the last convolutions of the blocks follow it. The papers' code holds tables of
layer numbers; here it is decided on the graph alone, by what reads and makes the groups, without a
look at names or kinds of layers. A layer is known by its weight tensor:

- The layers inside a block read channels that are made and read within the block.
- A *projection* runs beside a block: what it reads also goes another way, through at least one
  group of inner channels, to another layer whose output is added to the projection's.
- A *stem* reads no group: its input is the network's own.

For example, the first block of a stage in a ResNet: groups ``a`` (the stage before), ``b`` (inside
the block), ``c`` (this stage). conv1 reads a and makes b, conv2 reads b and makes c, the shortcut's
convolution reads a and makes c. From a, another way leads to c: by conv1, b, conv2. So the shortcut
is a projection. conv2 is none: what it reads, b, nobody else reads. Neither is a convolution of the
stage's second block, nor conv1 itself, whose channels are added to nothing. The way must lead
through an inner group, or two layers side by side that read a and are added would be projections of
each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from netslim._support import checks_calls
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup

Links = Mapping[str, set[int]]  # tensor -> numbers of groups


def picked(graph: ChannelGraph, group: ChannelGroup) -> bool:
    """Whether an index picks the channels (`netslim.models.ChannelSelect`); no layer makes them."""
    return not any(s.tensor in graph.parameters for s in group.tensors("producer"))


@checks_calls
def pacesetter(graph: ChannelGraph, group: ChannelGroup) -> str:
    """Name of the tensor that leads a group: its first projection, else stem, else producer.

    First is meant in the order of execution. In torchvision's resnet50 it is
    ``layer1.0.downsample.0.weight`` for the channels that stage 1 hands on; in its resnet18, where
    stage 1 has no projection, ``conv1.weight``.

    Example:
        >>> resnet = netslim.zoo.resnet(8, shortcut="B")
        >>> graph = netslim.trace(resnet, torch.randn(1, 3, 32, 32))
        >>> [netslim.graph.pacesetter(graph, group) for group in graph if group.shortcut]
        ['conv1.weight', 'layer2.0.shortcut.0.weight', 'layer3.0.shortcut.0.weight']
    """
    if len(group.producers) == 1:
        return group.producers[0]
    reading = _links(graph, "consumer")
    stems = [tensor for tensor in group.producers if not reading[tensor]]
    return [*projections(graph, group), *stems, *group.producers][0]


@checks_calls
def projections(graph: ChannelGraph, group: ChannelGroup) -> list[str]:
    """Names of the tensors that project a shortcut into this group; often one, or none.

    They stand in the order of execution.

    Example:
        >>> resnet = netslim.zoo.resnet(8, shortcut="B")
        >>> graph = netslim.trace(resnet, torch.randn(1, 3, 32, 32))
        >>> [netslim.graph.projections(graph, group) for group in graph if group.shortcut]
        [[], ['layer2.0.shortcut.0.weight'], ['layer3.0.shortcut.0.weight']]
    """
    if not group.shortcut or len(group.producers) == 1:
        return []
    own = graph.number(group.name)
    reading, making = _links(graph, "consumer"), _links(graph, "producer")
    readers = _turned(reading)
    return [
        tensor
        for tensor in group.producers
        if any(_around(tensor, source, own, readers, making) for source in reading[tensor] - {own})
    ]


def _around(
    tensor: str, source: int, own: int, readers: Mapping[int, set[str]], making: Links
) -> bool:
    """Whether another way leads from ``source`` through inner groups to a producer of ``own``."""
    # A walk over groups, from a reader to what it makes to who reads that. It starts from readers
    # that do not make the group themselves: the way must lead through an inner group.
    seen = {source, own}
    others = readers[source] - {tensor}
    waiting = [reader for reader in others if own not in making[reader]]
    while waiting:
        for inner in making[waiting.pop()] - seen:
            seen.add(inner)
            beyond = readers[inner] - {tensor}
            if any(own in making[reader] for reader in beyond):
                return True
            waiting += beyond
    return False


def _links(graph: ChannelGraph, role: str) -> Links:
    """Tensor -> the groups in which it has this role."""
    found: dict[str, set[int]] = defaultdict(set)
    for number, group in enumerate(graph.groups):
        for s in group.tensors(role):
            found[s.tensor].add(number)
    return found


def _turned(links: Links) -> Mapping[int, set[str]]:
    """Group -> the tensors."""
    found: dict[int, set[str]] = defaultdict(set)
    for tensor, numbers in links.items():
        for number in numbers:
            found[number].add(tensor)
    return found


__all__ = ["pacesetter", "projections"]
