"""What the ranks of a distributed run must decide alike, and how they come to it.

Ranks that train one model see other data, draw other random numbers and measure other times. What
is decided from these would differ, and ranks that keep other channels train apart without a word.
So everything that is decided from data, chance or a clock goes one of these ways:

* `summed`, `mean`: statistics are put together, so that every rank decides from all data;
* `shared`: rank 0 decides, the others take it over;
* `gathered`: every rank sees what each of them has;
* `agree`: what every rank was given, or worked out by itself, must be the same; a digest of it is
  compared, and where they differ, all ranks stop.

The first law of it is that no rank may be left waiting. Every exchange begins in the same way, each
rank telling all others what it is about and whether it failed (`_exchange`). So ranks that have
come to different places stop, instead of waiting for each other, and an error on one rank is an
error on all of them (`everywhere`). Outside a distributed run all of this does nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from netslim.errors import DisagreementError, NetslimError

P = ParamSpec("P")
T = TypeVar("T")
_ALL, _ALONE = "all", "alone"
_MARK = "_every_rank_raises_it"
# A process group, or one of the two words.
_together: ContextVar[Any] = ContextVar("together", default=_ALL)


@contextmanager
def among(group: Any) -> Iterator[None]:
    """Inside, the ranks of this process group decide together, and no others.

    Where some ranks train another model than others (pipelines, several runs in one job), they must
    not wait for those. What wraps a model in `DistributedDataParallel` needs none of this: its own
    group is taken.

    Args:
        group: of `torch.distributed.new_group`, of which this rank is a member.

    Example:
        >>> def train_half(half):  # two models in one job, each trained by half of the ranks
        ...     with netslim.ranks.among(half):  # of torch.distributed.new_group
        ...         graph = netslim.trace(model, images)
        ...         return netslim.score(graph, model, "taylor", batches=loader)
    """
    token = _together.set(group)
    try:
        yield
    finally:
        _together.reset(token)


def alone() -> Any:
    """Inside, this rank decides for itself: for what one rank alone does, such as a report.

    Returns:
        A context manager.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> with netslim.ranks.alone():
        ...     scores = netslim.score(graph, model, "taylor", batches=loader)
    """
    return among(_ALONE)


def count() -> int:
    """How many ranks decide together; 1 outside a distributed run.

    Example:
        >>> netslim.ranks.count()  # outside of a distributed run
        1
    """
    if _together.get() == _ALONE or not (dist.is_available() and dist.is_initialized()):
        return 1
    return max(1, dist.get_world_size(_group()))


def first() -> bool:
    """Whether this is the rank that decides for the others, and writes files.

    Example:
        >>> if netslim.ranks.first():
        ...     path = netslim.save(model, "model.safetensors")
    """
    return count() == 1 or dist.get_rank(_group()) == 0


def place() -> tuple[int, int]:
    """This rank's number among those that decide together, and how many they are.

    Example:
        >>> netslim.ranks.place()
        (0, 1)
    """
    if count() == 1:
        return 0, 1
    return dist.get_rank(_group()), count()


def agree(what: str, fact: str, remedy: str) -> None:
    """See to it that a fact is the same on every rank.

    Args:
        what: it is, for messages.
        fact: whose digests are compared.
        remedy: what to do where they differ.

    Raises:
        DisagreementError: on every rank: names the digests.

    Example:
        >>> names = [name for name, _ in model.named_parameters()]
        >>> netslim.ranks.agree("the network", " ".join(names), "build the same one on every rank")
    """
    if count() == 1:
        return
    digests = _exchange(what, hashlib.sha256(fact.encode()).hexdigest()[:16])
    if len(set(digests)) > 1:
        text = f"the ranks disagree on {what}: {_listed(digests)}; {remedy}"
        raise _known(DisagreementError(text))


def shared(what: str, decide: Callable[[], T]) -> T:
    """What rank 0 decides, on every rank; the others do not decide anything.

    Args:
        what: is decided, for messages.
        decide: to what can be pickled.

    Raises:
        Exception: that of rank 0, on every rank.

    Example:
        >>> netslim.ranks.shared("the seed", lambda: 7)
        7
    """
    if count() == 1:
        return decide()
    decided: list[T | None] = [None]

    def on_first() -> None:
        if first():
            decided[0] = decide()

    everywhere(what, on_first)
    dist.broadcast_object_list(decided, dist.get_global_rank(_member(), 0), _group())
    found: Any = decided[0]
    return found  # type: ignore[no-any-return]


def gathered(what: str, value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank.

    Args:
        what: they are, for messages.
        value: of this rank; it can be pickled.

    Example:
        >>> netslim.ranks.gathered("the files that were skipped", ["a.jpg"])
        [['a.jpg']]
    """
    if count() == 1:
        return [value]
    return _exchange(what, value)


def everywhere(what: str, work: Callable[[], T]) -> T:
    """Do work on every rank; where it fails on one, it fails on all.

    Args:
        what: is done, for messages.
        work: that may exchange something itself.

    Raises:
        Exception: that of the first rank that failed, on every rank; with the number of that rank
            where it is another one.

    Example:
        >>> netslim.ranks.everywhere("the accuracy", lambda: accuracy(model)) == accuracy(model)
        True
    """
    if count() == 1:
        return work()
    done: list[T] = []
    failure: Exception | None = None
    try:
        done.append(work())
    except Exception as error:
        if raised_by_all(error):
            raise
        failure = error
    failures = _exchange(what, failure and _Failure.of(failure))
    rank = next((number for number, one in enumerate(failures) if one is not None), None)
    if rank is None:
        return done[0]
    if failure is not None and rank == dist.get_rank(_group()):
        raise _known(failure)
    told: Any = failures[rank]
    raise _known(told.kind(f"rank {rank}: {told.text}")) from failure


def in_step(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator for functions that exchange something, see `everywhere`.

    What goes wrong on one rank before the exchange would leave the others waiting there.

    Example:
        >>> @netslim.ranks.in_step("a round of pruning")
        ... def prune_half(network):
        ...     return netslim.slim(network, images, budget=netslim.Budget(cut_channels=0.5))
        >>> small = prune_half(model)
    """

    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return everywhere(what, partial(function, *args, **kwargs))

        return call

    return decorated


def summed(what: str, values: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """The sums over the ranks, float64 on the CPU, the same on every rank bit for bit.

    Args:
        what: is summed, for messages.
        values: keys that can be pickled -> tensors. A rank may lack some.

    Raises:
        DisagreementError: shapes differ; on every rank.

    Example:
        >>> netslim.ranks.summed("the counts", {"features.0": torch.tensor([1, 2])})
        {'features.0': tensor([1., 2.], dtype=torch.float64)}
    """
    values = {key: value.detach().cpu().double() for key, value in values.items()}
    if count() == 1:
        return values
    shapes: dict[Any, torch.Size] = {}
    for own in _exchange(what, {key: value.shape for key, value in values.items()}):
        for key, shape in own.items():
            if shapes.setdefault(key, shape) != shape:
                text = f"{key} is of shape {tuple(shape)} on one, {tuple(shapes[key])} on another"
                raise _known(DisagreementError(f"the ranks disagree on {what}: {text}"))
    if not shapes:
        return {}
    parts = [values.get(key, torch.zeros(())).expand(shape) for key, shape in shapes.items()]
    flat = torch.cat([part.double().flatten() for part in parts]).to(_device())
    dist.all_reduce(flat, group=_group())
    # Nothing promises that a sum comes out alike on every rank, to the last bit.
    dist.broadcast(flat, dist.get_global_rank(_member(), 0), _group())
    sums = torch.split(flat.cpu(), [shape.numel() for shape in shapes.values()])
    return {key: part.view(shapes[key]) for key, part in zip(shapes, sums, strict=True)}


def mean(what: str, values: Mapping[Any, Tensor]) -> Mapping[Any, Tensor]:
    """The means over the ranks that have a value; what is the same on all of them stays as it is.

    Args:
        what: is averaged, for messages.
        values: as for `summed`.

    Raises:
        DisagreementError: as `summed`.

    Example:
        >>> netslim.ranks.mean("the means", {"features.0": torch.tensor([1.0, 2.0])})
        {'features.0': tensor([1., 2.])}
    """
    if count() == 1 or len(set(_exchange(what, digest(values)))) == 1:
        return values
    sums = summed(what, values)
    numbers = summed(what, {key: torch.ones(()) for key in values})
    return {key: total / numbers[key] for key, total in sums.items()}


def mean_number(what: str, value: float) -> float:
    """The mean of a number over the ranks; it stays as it is where all have the same.

    Example:
        >>> netslim.ranks.mean_number("the accuracy", 0.75)
        0.75
    """
    if count() == 1:
        return value
    return float(mean(what, {what: torch.tensor(value, dtype=torch.float64)})[what])


def raised_by_all(error: Exception) -> bool:
    """Whether all ranks raise this error, so that it need not be told to the others.

    Example:
        >>> netslim.ranks.raised_by_all(ValueError("of one rank alone"))
        False
    """
    return _MARK in vars(error)


def digest(tensors: Mapping[Any, Tensor]) -> str:
    """A short digest of the names and values of tensors.

    Example:
        >>> weights = dict(model.named_parameters())
        >>> netslim.ranks.digest(weights) == netslim.ranks.digest(weights)
        True
    """
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(str(name).encode())
        found.update(values.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class _Failure(NamedTuple):
    """An exception on its way to other ranks: one of ours, or built into Python."""

    kind: type[Exception]
    text: str

    @staticmethod
    def of(error: Exception) -> _Failure:
        known = [kind for kind in type(error).__mro__ if kind.__module__ == "builtins"]
        if isinstance(error, NetslimError):
            known = [kind for kind in type(error).__mro__ if kind.__module__ == "netslim.errors"]
        try:
            known[0]("")
        except TypeError:  # it wants more than a text, as a UnicodeError does
            return _Failure(RuntimeError, f"{type(error).__name__}: {error}")
        return _Failure(known[0], str(error))


def _exchange(what: str, value: T) -> list[T]:
    """The values of all ranks, in their order.

    Raises:
        DisagreementError: not all ranks are about the same thing.
    """
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, (what, value), _group())
    places = [place for place, _ in found]
    if len(set(places)) > 1:
        failed = [one for _, one in found if isinstance(one, _Failure)]
        why = "".join(f" ({one.kind.__name__}: {one.text})" for one in failed[:1])
        raise _known(
            DisagreementError(
                f"the ranks are not in step: {_listed(places)}{why}; every rank must call netslim "
                "in the same way and order (what is one rank's own matter: with "
                "netslim.ranks.alone())"
            )
        )
    return [one for _, one in found]


def _known(error: Exception) -> Exception:
    """The error, marked as one that every rank raises now: it is not to be told to the others."""
    vars(error)[_MARK] = True
    return error


def _listed(values: list[str]) -> str:
    """Each different value, with the first rank that has it."""
    parts = [f"rank {values.index(value)} has {value}" for value in dict.fromkeys(values)]
    return ", ".join(parts[:4])


def _group() -> Any:
    """The group for `torch.distributed`; None for all ranks."""
    group = _together.get()
    return None if group == _ALL else group


def _member() -> Any:
    return _group() or dist.group.WORLD


def _device() -> torch.device:
    """Where the group can reduce."""
    if "cpu:" in dist.get_backend_config(_group()):
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


__all__ = [
    "agree",
    "alone",
    "among",
    "count",
    "digest",
    "everywhere",
    "first",
    "in_step",
    "mean",
    "mean_number",
    "place",
    "raised_by_all",
    "shared",
    "summed",
]
