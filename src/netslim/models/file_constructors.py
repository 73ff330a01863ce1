"""What a file may have built: the constructor that a checkpoint names, and how large it may become.

Whoever wrote a checkpoint is a stranger, so its header is data: it may say which of the networks
that everybody knows it holds, with arguments that are numbers, and no more. A name such as
``os:system`` or an argument such as ``checkpoint_path`` would act, so it takes the user's word.

The header's numbers are a stranger's, too: ``hidden=[30000, 30000]`` would take 7 GB, from a file
of 512 bytes. What the uncut network may take is known before: the file holds every tensor, and its
plan says how long each axis was. So the constructor runs under a watch which knows that figure and
asks, before each operator, how much the result would take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from netslim.errors import CheckpointError
from netslim.graph.modules.watching import OperatorMode
from netslim.models.fetched import SOURCES

Trust = bool | Collection[str]  # True, or the names that the user typed in the same call

_RATES = {"drop_rate", "dropout", "attention_dropout", "stochastic_depth_prob"}
# Arguments that say how large a network is, or how it trains; none names a file, an address, a
# class or weights. Of `zoo:` every argument is so.
_HARMLESS = {
    "torchvision": {
        *("num_classes", "width_mult", "groups", "width_per_group", "image_size"),
        *("growth_rate", "num_init_features", "bn_size", "memory_efficient", "reduced_tail"),
        *("zero_init_residual", "replace_stride_with_dilation", "init_weights", "aux_logits"),
        *("transform_input", "dilated", "layer_scale"),
        *_RATES,
    },
    "timm": {
        *("num_classes", "in_chans", "img_size", "global_pool", "output_stride", "stem_width"),
        *("drop_path_rate", "drop_block_rate", "attn_drop_rate", "proj_drop_rate"),
        *("pos_drop_rate", "patch_drop_rate", "init_values", "qkv_bias", "class_token"),
        *_RATES,
    },
}
_WORDS = {"global_pool"}  # whose value is a word, which timm looks up
INSERTIONS = ("add_bn", "add_selection")  # of `netslim.models.build`, which name functions

# What the uncut network may have for each number in the file (a cut that left a 256th of the
# weights), and in any case.
_SHARE, _SMALL = 256, 2**26
# What its constructor may allocate for each of them, and on top: some make a layer to replace it.
_TIMES, _SPARE = 4, 2**22
_STEPS, _SPARE_STEPS = 64, 4096  # operators for each tensor, and on top


def check_constructor(made: Any, path: Any, trust: Trust) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the constructor that a checkpoint holds, if it may be called.

    Args:
        made: what the header says.
        path: of the file, for messages.
        trust: True, or the names of own factories that the user typed.

    Raises:
        CheckpointError: it is no constructor, or one that only the user's word allows.
    """
    plain = isinstance(made, Mapping) and isinstance(made.get("kwargs", {}), Mapping)
    if not plain or not isinstance(made.get("name"), str):
        raise CheckpointError(
            f"{path} does not say in plain words how its network is built: build it yourself and "
            "call netslim.load(fresh_model, path)"
        )
    name, kwargs = made["name"], dict(made.get("kwargs", {}))
    if ":" not in name or name.endswith(".safetensors"):
        raise CheckpointError(f"{path} names {name!r}, which is no constructor of a network")
    if trust is not True:
        _refuse(name, kwargs, path, trust or ())
    return name, kwargs


def _refuse(name: str, kwargs: Mapping[str, Any], path: Any, typed: Collection[str]) -> None:
    source = name.partition(":")[0]
    if source not in SOURCES and name not in typed:
        raise CheckpointError(
            f"{path} would import and call {name}, and a file does not decide what runs: if you "
            "know where it comes from, say --trust (trust=True), or build the network yourself "
            "and call netslim.load(model, path)"
        )
    for key, value in kwargs.items():
        if not _harmless(source, key, value):
            raise CheckpointError(
                f"{path} would call {name} with {key}={_short(value)}, which is more than the size "
                "of a network: if you know where the file comes from, say --trust (trust=True), or "
                "build the network yourself and call netslim.load(model, path)"
            )


def _harmless(source: str, key: str, value: Any) -> bool:
    if source == "zoo" or key in INSERTIONS:
        return True
    if key in _WORDS and isinstance(value, str):
        return True
    known = source not in SOURCES or key in _HARMLESS[source]
    return known and all(isinstance(one, int | float | None) for one in tree_leaves(value))


def _short(value: Any) -> str:
    text = repr(value)
    return text[:60] + "..." * (len(text) > 60)


@contextmanager
def within(sizes: Mapping[str, tuple[int, ...]], held: int, path: Any) -> Iterator[None]:
    """Inside, a constructor may allocate what a network with these tensors takes, and no more.

    Args:
        sizes: tensor -> shape, of the uncut network.
        held: numbers that the file holds.
        path: of the file, for messages.

    Raises:
        CheckpointError: at once, where the uncut network is out of all proportion to the file;
            within, before more is allocated than it takes.
    """
    wanted = sum(map(prod, sizes.values()))
    if wanted > max(_SMALL, _SHARE * held):
        raise CheckpointError(
            f"{path} holds {held:,} numbers and would have a network of {wanted:,} built: if you "
            "know where it comes from, say --trust (trust=True)"
        )
    with _Watch(_TIMES * wanted + _SPARE, _STEPS * len(sizes) + _SPARE_STEPS, path):
        yield


class _Watch(OperatorMode):
    """Stops a constructor that allocates more numbers, or takes more steps, than its file holds."""

    def __init__(self, numbers: int, steps: int, path: Any) -> None:
        super().__init__()
        self.numbers, self.steps, self.path = numbers, steps, path

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.steps -= 1
        self.numbers -= _allocated(func, args, kwargs)
        if min(self.steps, self.numbers) < 0:
            raise CheckpointError(
                f"the constructor that {self.path} names builds a larger network than the file "
                "holds: it was not saved from that; if you know where it comes from, build the "
                "network yourself and call netslim.load(model, path), or say --trust (trust=True)"
            )
        return func(*args, **kwargs)


def _allocated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many numbers an operator's results will have, which are not its inputs' own memory."""
    if any(result.alias_info is not None for result in func._schema.returns):
        return 0
    moved = {**kwargs, **dict.fromkeys({"device"} & _parameters(func), "meta"), "pin_memory": False}
    moved = {key: value for key, value in moved.items() if key in _parameters(func)}
    # What meta tensors have no rule for, such as reading a value, allocates no more than it reads.
    with suppress(NotImplementedError, RuntimeError):
        result = func(*tree_map(_meta, args), **tree_map(_meta, moved))
        return sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
    return 0


def _parameters(func: Any) -> set[str]:
    return {argument.name for argument in func._schema.arguments}


def _meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
