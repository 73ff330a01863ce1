"""Weights from elsewhere: the state dict in a file that others wrote, for a network by name.

Such files differ in how they wrap one and the same thing: a training checkpoint holds the state
dict under some key, an average of it under another, and wrappers put their names before each
tensor's. All that is undone here; what is left must be the network's tensors by name and shape.
A classifier of other classes may be left out, on request: it stays as the network has it.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from netslim._support import first_line, listed, nearest, opened, reason
from netslim.errors import CheckpointError
from netslim.models.other_files import EXPORTS, no_checkpoint

# Where training scripts keep the network's state, averages first: they are what is evaluated.
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model")
_STATES = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights"),
    *("params", "model_weights", "net_state_dict"),
)
# Names that wrappers put in, anywhere in a tensor's name.
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LONGEST_NAME = 100  # of a class that a message tells
_COUNTERS = ("n_averaged",)  # what an average of weights holds besides
_COUNTED = ".num_batches_tracked"  # which state dicts of before PyTorch 0.4.1 lack
_MOST = 4  # names that a message lists of a kind


@dataclass(frozen=True)
class Filled:
    """What became of a network's tensors.

    Attributes:
        head: names of those that stayed as they were, for the file has other classes.
        classes: how many the file has, if it has others.
        unused: names in the file of what is no part of the network.
        key: where in the file the weights were, or none.
    """

    head: tuple[str, ...] = ()
    classes: int | None = None
    unused: tuple[str, ...] = ()
    key: str = ""

    def told(self, path: Any) -> Iterator[str]:
        """Sentences on what is not as one may think."""
        if self.head:
            yield (
                f"{path} has a classifier of {self.classes} classes: {listed(self.head)} "
                "start anew, for the classes at hand"
            )
        if self.key in _AVERAGES:
            yield f"the weights are those that {path} holds as {self.key!r}, the averaged ones"
        if self.unused:
            yield f"{path} also holds {listed(self.unused, most=_MOST)}, which is left out"


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors of a network in a file, by the names in it, and the key they were under.

    Args:
        path: of a safetensors file, or of one that `torch.save` wrote: a state dict, or a mapping
            that holds one. It is read as tensors and plain values; no code in it runs.

    Raises:
        CheckpointError: the file is missing or damaged, holds code or no state dict.
    """
    path = Path(path)
    check_file(path)
    size = path.stat().st_size
    try:
        if path.suffix == ".safetensors":
            return load_file(path), ""
        content = _loaded(path, size)
    except pickle.UnpicklingError as error:
        raise _with_code(path, error) from None
    except Exception as error:  # what stands in a pickle is called, and may fail in any way
        raise CheckpointError(
            f"{path} is no whole file of weights ({type(error).__name__}: {first_line(error)}); it "
            "may be truncated, or of another kind: take another copy, or write the state dict "
            "again with torch.save(model.state_dict(), 'weights.pth')"
        ) from None
    state, key = _state_in(content, path)
    for name, tensor in state.items():
        if tensor.numel() * tensor.element_size() > size:  # one number may stand for many
            raise CheckpointError(
                f"{path} has {tuple(tensor.shape)} numbers as {name}, which are more than it holds"
            )
    return state, key


def _loaded(path: Path, size: int) -> Any:
    """What `torch.save` wrote, where that is no more than the file holds."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            held = sum(part.file_size for part in archive.infolist())
        if held > size:
            raise ValueError(f"its parts come to {held:,} bytes, and the file has {size:,}")
    # The command line's arguments, which training scripts put in; they do nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is no file of weights, as far as its name and its first byte tell.

    Raises:
        CheckpointError: it cannot be read, or is an export.
    """
    if os.fspath(path).endswith(tuple(EXPORTS)):
        raise CheckpointError(no_checkpoint(os.fspath(path)))
    try:
        with opened(path) as (file, _):
            file.read(1)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from None


def _with_code(path: Path, error: Exception) -> CheckpointError:
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    held = "something else than tensors"
    if wanted is not None:
        held = f"{wanted[1][:_LONGEST_NAME]} besides tensors"
    return CheckpointError(
        f"{path} holds {held}, or is damaged: opening it would run what its author wrote, so it is "
        "not opened; if you trust it, write its weights alone, once: state = torch.load(path, "
        "weights_only=False), then torch.save(state['state_dict'], 'weights.pth') with the key "
        "that it has, or state.state_dict() where it is a whole network"
    )


def _state_in(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict in what a file holds, and its key; averages first."""
    for key in ("", *_AVERAGES, *_STATES):
        state = content
        if key and isinstance(content, Mapping):
            state = content.get(key)
        if _is_state(state):
            return {name: value for name, value in state.items() if _is_named(name, value)}, key
    held = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        held = listed([repr(key) for key in content], most=_MOST) or "nothing"
    raise CheckpointError(
        f"{path} holds no state dict that is known as one (it holds {held}): write it by itself, "
        "with torch.save(model.state_dict(), 'weights.pth')"
    )


def _is_state(value: Any) -> bool:
    """Whether tensors by name are all that it holds, save what layers add for themselves."""
    if not isinstance(value, Mapping):
        return False
    extra = [name for name, item in value.items() if not _is_named(name, item)]
    return len(extra) < len(value) and all(str(name).endswith("_extra_state") for name in extra)


def _is_named(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


# ---------------------------------------------------------------- into a network


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    path: Any,
    *,
    new_head: bool = False,
    key: str = "",
) -> Filled:
    """Give a network the weights of a state dict, in place; all of them, by name and shape.

    Args:
        model: a fresh network.
        state: tensors by name; what wrappers have put before all names does not count.
        path: of the file, for messages.
        new_head: leave a classifier that has other classes as the network has it.
        key: where in the file the weights were.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = model.state_dict()
    found, unused = _inside(state, own, path)
    other = {
        name: (tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in found.items()
        if name in own and tensor.shape != own[name].shape
    }
    try:
        # Layers may know older names of their tensors, and take these, too.
        result = model.load_state_dict(
            {name: tensor for name, tensor in found.items() if name not in other}, strict=False
        )
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be put into the network: {first_line(error)}"
        ) from None
    missing = [
        name for name in result.missing_keys if name not in other and not name.endswith(_COUNTED)
    ]
    pairs = _classes(other)
    if missing or result.unexpected_keys or (other and not pairs):
        raise CheckpointError(_misfit(path, missing, result.unexpected_keys, other))
    if not pairs:
        return Filled(unused=unused, key=key)
    (theirs, ours), head = pairs, tuple(other)
    if not new_head:
        raise CheckpointError(
            f"{path} has a classifier of {theirs} classes ({head[0]}), and the network one of "
            f"{ours}: build the network with num_classes={theirs}, or let it have a new one, "
            "which must be trained (netslim train, or new_head=True)"
        )
    return Filled(head, theirs, unused, key)


def _inside(
    state: Mapping[str, Tensor], own: Mapping[str, Any], path: Any
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors by the names that the network has for them, and the names of what is beside it.

    Their prefix is that behind which most of the network's names are found.
    """
    named = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    counts: dict[str, int] = {"": 0}
    for name in named:
        for prefix in _prefixes(name):
            if name.removeprefix(prefix) in own:
                counts[prefix] = counts.get(prefix, 0) + 1
    best = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    if len(best) > 1 and "" not in best:
        raise CheckpointError(
            f"{path} holds several networks, under {listed(best)}: write the one you mean by "
            "itself, with torch.save(model.state_dict(), 'weights.pth')"
        )
    beside = [name for name in named if not name.startswith(best[0]) and name not in _COUNTERS]
    found = {
        name.removeprefix(best[0]): tensor
        for name, tensor in named.items()
        if name.startswith(best[0]) and name not in _COUNTERS
    }
    return found, tuple(beside)


def _prefixes(name: str) -> Iterator[str]:
    """Of `a.b.c` nothing, `a.` and `a.b.`."""
    parts = name.split(".")
    return ("".join(f"{part}." for part in parts[:depth]) for depth in range(len(parts)))


Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # in the file, and in the network


def _classes(other: Shapes) -> tuple[int, int] | None:
    """How many classes file and network have, if all that differs is a row for each of them.

    Only what no further layer reads may have other rows and be alike otherwise.
    """
    pairs = set()
    for theirs, ours in other.values():
        if not theirs or not ours or theirs[1:] != ours[1:]:
            return None
        pairs.add((theirs[0], ours[0]))
    if len(pairs) != 1:
        return None
    return pairs.pop()


def _misfit(path: Any, missing: Sequence[str], unexpected: Sequence[str], other: Shapes) -> str:
    parts = []
    if missing:
        near = nearest(missing[0], unexpected, otherwise="")
        parts.append(f"it lacks {listed(missing, most=_MOST)}{near.rstrip('?')}")
    if unexpected:
        parts.append(f"it has an unexpected {listed(unexpected, most=_MOST)}")
    shapes = [f"{name} is {theirs}, not {ours}" for name, (theirs, ours) in other.items()]
    if shapes:
        parts.append(f"of other shapes in it: {listed(shapes, most=_MOST)}")
    return (
        f"{path} holds the weights of another network than this one: {'; '.join(parts)}. Name the "
        "network and the options that it was built with (num_classes, width, ...)"
    )


__all__ = ["Filled", "check_file", "fill", "read_state"]
