"""Pictures that come one after the other, out of shards, and are never all at hand.

Where a set is read over a network or unpacked while it is read, to ask for picture 700,000 alone
would cost as much as to read all before it. So what is known of such a set beforehand is how many
pictures each shard holds and their labels; the pictures pass by in the order of the shards.

An epoch's order is drawn as for other splits, before anything is read, and is a function of the
generator alone: the shards in a random order, and what they hold mixed by a buffer of `BUFFER`
pictures. Of each place of the buffer a random picture leaves when the next one comes in. To deliver
that order, pictures are read and put aside until the one whose turn it is has come; by the way the
order was drawn there are never more than `BUFFER` and one shard of them. Example: of shards
{0 1 2} and {3 4 5}, the second first, a buffer of 2 may give 4 3 0 5 2 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from netslim._support import checks_calls
from netslim.data.images import Images
from netslim.errors import DataError

BUFFER = 4096  # pictures; of ImageNet half a gigabyte
_SAMPLED = 16  # shards


@dataclass(frozen=True, slots=True)
class Arrived:
    """An encoded picture (empty where its row holds none), and where it came from."""

    content: bytes
    where: str


class Shards(Protocol):
    """Encoded pictures in shards, each of which is read from its beginning."""

    @property
    def sizes(self) -> Sequence[int]:
        """Pictures in each shard."""

    def read(self, shard: int) -> Iterator[Arrived]:
        """The pictures of one shard, always in the same order."""


@checks_calls
@dataclass(frozen=True, eq=False)
class ImageSequence:
    """Images that are read in the order of their shards; `Loader` has them decoded by workers.

    Attributes:
        shards: what is read.
        positions: int64 (N,), which pictures are meant, counted over all shards.
        labels: int64 (N,).
        shape: channels, height, width of every image.
        decoded: encoded pictures by position in the split -> images by the same positions; it must
            survive pickling.
        unreadable: share of the images that `Loader` may leave out because they cannot be read.

    Example:
        >>> class Blank:  # two shards, or what `netslim.data.load("hf:ID", streaming=True)` makes
        ...     sizes = (6, 4)
        ...
        ...     def read(self, shard):
        ...         for row in range(self.sizes[shard]):
        ...             yield netslim.data.sequence.Arrived(bytes(64), f"shard {shard}, row {row}")
        >>> def decoded(arrived):
        ...     return {place: torch.tensor(list(one.content)).view(1, 8, 8)
        ...             for place, one in arrived.items()}
        >>> split = netslim.data.ImageSequence(
        ...     Blank(), torch.arange(10), torch.arange(10) % 2, (1, 8, 8), decoded)
        >>> len(split.take(torch.tensor([1, 3])))
        2
    """

    shards: Shards
    positions: Tensor
    labels: Tensor
    shape: tuple[int, int, int]
    decoded: Callable[[Mapping[int, Arrived]], Images]
    unreadable: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> ImageSequence:
        """The images at `index`, in that order."""
        return replace(self, positions=self.positions[index], labels=self.labels[index])

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """A random order of the images, int64 (N,), that needs no more than `BUFFER` at hand."""
        turn = torch.randperm(len(self.shards.sizes), generator=generator)
        order = torch.argsort(turn[self._shards()], stable=True)
        return _mixed(order.tolist(), generator)

    def arriving(self, batches: Sequence[Tensor]) -> Iterator[Images]:
        """The images of each batch of positions, once they have all arrived.

        Raises:
            DataError: a shard holds fewer pictures than it did.
        """
        # A position may be in several batches.
        turns = Counter(chain.from_iterable(batch.tolist() for batch in batches))
        aside: dict[int, Arrived] = {}
        coming = self._read(turns)
        for batch in batches:
            wanted = batch.tolist()
            for position in wanted:
                while position not in aside:
                    aside.update([next(coming, None) or self._gone(position)])
            yield self.decoded({position: aside[position] for position in wanted})
            turns.subtract(wanted)
            for position in set(wanted):
                if not turns[position]:
                    del aside[position]

    def _gone(self, position: int) -> NoReturn:
        raise DataError(
            f"picture {int(self.positions[position])} is no longer there: the shards hold fewer "
            "pictures than when they were counted; load them anew"
        )

    def _shards(self) -> Tensor:
        """Which shard each image is in."""
        ends = torch.tensor(list(accumulate(self.shards.sizes)))
        return torch.searchsorted(ends, self.positions, right=True)

    def _read(self, needed: Iterable[int]) -> Iterator[tuple[int, Arrived]]:
        """What is needed, by position, shard by shard in the order in which they are needed."""
        numbers = {int(self.positions[one]): one for one in needed}
        order = torch.tensor(list(numbers.values()))
        starts = [0, *accumulate(self.shards.sizes)]
        for shard in dict.fromkeys(self._shards()[order].tolist()):
            for position, one in enumerate(self.shards.read(shard), starts[shard]):
                if position in numbers:
                    yield numbers[position], one


def sampled(shards: Shards, count: int) -> dict[int, Arrived]:
    """The first pictures of some shards that are spread evenly, `count` if these hold as many."""
    number = len(shards.sizes)
    picked = torch.linspace(0, number - 1, min(number, _SAMPLED)).long().tolist()
    each = range(-(-count // len(picked)))
    read = [zip(each, shards.read(shard), strict=False) for shard in picked]
    return dict(enumerate(one for _, one in chain.from_iterable(read)))


def _mixed(order: list[int], generator: torch.Generator) -> Tensor:
    """An order after a buffer, of which a random entry leaves when the next one comes in."""
    buffer, coming = order[:BUFFER], order[BUFFER:]
    slots = torch.randint(0, BUFFER, (len(coming),), generator=generator).tolist()
    mixed = []
    for slot, entry in zip(slots, coming, strict=True):
        mixed.append(buffer[slot])
        buffer[slot] = entry
    rest = torch.randperm(len(buffer), generator=generator).tolist()
    return torch.tensor(mixed + [buffer[place] for place in rest], dtype=torch.long)
