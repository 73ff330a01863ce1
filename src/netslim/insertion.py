"""Layers that a method needs and a network lacks: put in place, without a change of its outputs or of a name.

`add_selection` lets channels go where a network normalises first (pre-activation ResNets, DenseNets); `add_bn` gives
scales to networks without batch normalisation. Both hang the new layer under the one it serves, with a forward hook
that is a plain function: names, deep copies and pickles stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .batches import inputs_of
from .errors import PlanError, TraceError
from .graph import ChannelGraph, as_call, trace
from .graph.calls import describe, evaluating, refusing
from .plan import named_modules
from .wrapping import bare, inside

Model = TypeVar("Model", bound=nn.Module)
_LAYERS = {"convolution", "_convolution", "mm", "addmm", "bmm", "baddbmm", "linear"}
_NORMS: dict[type[nn.Module], type[_BatchNorm]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}


class ChannelSelect(nn.Module):
    """Picks channels by number: ``(N, C, ...)`` -> ``(N, len(indices), ...)``; at first all of them.

    In the graph its output is a group of its own, named after it, so what reads it can be cut while what it picks
    from stays whole. It is a plain `torch.index_select`: no value is read on the host, and it can be exported.

    Attributes:
        channels: C, the number of channels it picks from.
        indices: 1-D int64 buffer, the numbers of those it hands on; never a parameter.
    """

    indices: Tensor

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("indices", torch.arange(channels, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.indices)

    def extra_repr(self) -> str:
        return f"{len(self.indices)} of {self.channels}"


# --- selection ----------------------------------------------------------------------------------------------------


def add_selection(model: Model, example_inputs: Any = None) -> Model:
    """Put a `ChannelSelect` before every batch normalisation whose channels cannot go alone, in place.

    Where a network normalises first, a BN reads a sum or a concatenation that others read too, so none of its
    channels could be cut without cutting them everywhere. Behind a selection they can: the BN with its four vectors
    and what reads it shrink, and the channels that are picked from stay. (Liu et al. 2017, section 3.4, select behind
    the BN, which then stays whole; as a BN works channel by channel, both compute the same.) A group is named after
    its selection, ``layer1.0.bn1.select``, and scored by the BN's scales.

    While a selection reads them, the channels it picks from are frozen: a network either shrinks within its blocks,
    as in the paper, or along its trunk. A selection of all channels costs a copy in every forward pass: insert it
    for the cut and, for deployment, take out those that lost nothing with `drop_idle_selections`. Convert to
    `SyncBatchNorm` before, as the conversion drops hooks.

    Args:
        model: not wrapped; it is run in evaluation mode.
        example_inputs: as for `netslim.trace`; where it is None, a picture (or vector) of zeros is guessed.

    Returns:
        ``model``, whose outputs are the same bit by bit. Where all selections are there already, nothing changes.

    Raises:
        PlanError: there is nothing to do, no guess runs, or the model is wrapped.
        TraceError: the model does not run on ``example_inputs``.
    """
    _check(model)
    inputs = _examples(model, example_inputs)
    before = [m for m in model.modules() if isinstance(m, ChannelSelect)]
    added = _bn_first(model, inputs)
    _check_free(added, "select")
    try:
        for bn in added.values():
            _hang(bn, "select", ChannelSelect(bn.num_features, _device(bn)))
            bn.register_forward_pre_hook(_selected)
        while useless := _useless(trace(model, inputs), added):
            for path in useless:
                _take_out(added.pop(path))
    except BaseException:
        for bn in added.values():
            _take_out(bn)
        raise
    if not added and not before:
        raise PlanError(
            "there is nothing to do: the model has no batch normalisation whose channels only a selection would free; "
            "selections are for networks that normalise first, such as DenseNet and pre-activation ResNets"
        )
    return model


def drop_idle_selections(model: Model) -> Model:
    """Take out, in place, every `ChannelSelect` of `add_selection` that hands on all channels in order.

    Outputs stay the same and a copy of the activations is saved for each. Do it last: a checkpoint of a network that
    was built with selections expects all of them.

    Raises:
        PlanError: the model is wrapped.
    """
    _check(model)
    for module in named_modules(model):
        select = module._modules.get("select")
        if isinstance(module, _BatchNorm) and isinstance(select, ChannelSelect) and _idle(select):
            _take_out(module)
    return model


def _idle(select: ChannelSelect) -> bool:
    return torch.equal(select.indices.cpu(), torch.arange(select.channels))


def _selected(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.select(args[0]), *args[1:])  # type: ignore[operator]


def _take_out(bn: nn.Module) -> None:
    bn._modules.pop("select", None)
    for key in [key for key, hook in bn._forward_pre_hooks.items() if hook is _selected]:
        del bn._forward_pre_hooks[key]


def _useless(graph: ChannelGraph, selecting: Iterable[str]) -> list[str]:
    """The BNs whose selection hands out nothing that can go, or only together with what other layers compute."""
    useless = []
    for path in selecting:
        mine = [g for g in graph if any(s.tensor == f"{path}.select.indices" for s in g.tensors("producer"))]
        foreign = any(not s.tensor.endswith(".select.indices") for g in mine for s in g.tensors("producer"))
        if foreign or all(g.frozen for g in mine):
            useless.append(path)
    return useless


@dataclass(eq=False)
class _Value:
    """Where an activation comes from: the activations it was computed from, and how many operators read it."""

    sources: list[_Value] = field(default_factory=list)
    layer: bool = False
    readers: int = 0

    def alone(self) -> bool:
        """Whether its channels are one or more layers' own, which nothing else reads."""
        if self.readers != 1:
            return False
        return self.layer or (bool(self.sources) and all(source.alone() for source in self.sources))


class _Flow(TorchDispatchMode):
    """Notes the `_Value` of every tensor that is computed from the inputs."""

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.values = WeakTensorKeyDictionary()
        for tensor in _tensors(inputs):
            self.values[tensor] = _Value()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else PyTorch imports torch._dynamo when the first operator runs, which takes seconds."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        changed = {id(t) for t in _tensors(out)}
        read = {id(t): self.values[t] for t in _tensors((args, kwargs)) if t in self.values and id(t) not in changed}
        for value in read.values():
            value.readers += 1
        for tensor in _tensors(out) if read else ():
            if tensor in self.values:
                self.values[tensor].sources += read.values()
            else:
                self.values[tensor] = _Value([*read.values()], func._schema.name.removeprefix("aten::") in _LAYERS)
        return out


def _bn_first(model: nn.Module, inputs: Any) -> dict[str, _BatchNorm]:
    """Path -> batch normalisation without a selection whose input is a sum or concatenation, or read by others."""
    found: dict[str, list[_Value]] = {}
    flow = _Flow(inputs)

    def look(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: found.setdefault(path, []).extend(flow.values[t] for t in args if t in flow.values)

    norms = {p: m for m, p in named_modules(model).items() if isinstance(m, _BatchNorm) and "select" not in m._modules}
    with ExitStack() as hooks:
        for path, bn in norms.items():
            hooks.callback(bn.register_forward_pre_hook(look(path)).remove)
        _run(model, inputs, flow)
    return {path: norms[path] for path, values in found.items() if not all(v.alone() for v in values)}


# --- batch normalisation ------------------------------------------------------------------------------------------


def add_bn(
    model: Model, example_inputs: Any = None, *, batches: Iterable[Any] | None = None, linear: bool = False
) -> Model:
    """Put a batch normalisation behind every convolution that lacks one and whose channels can go, in place.

    A convolution lacks one when nothing scales its channels: no BN behind it, nor before what reads it. The new BN is
    the convolution's child ``norm``. It starts as the identity: without ``batches`` its mean is 0, its variance
    1 - eps, its scale 1 and its shift 0, and in training it normalises. With ``batches`` mean and variance are those
    of the convolution's outputs, scale and shift undo them, and training starts as nearly the identity too; the
    scales are then the spread of each channel. In evaluation mode outputs change by rounding alone: about 1e-7,
    relative, for each BN in float32, 1e-16 in float64, half a unit in the last place in lower precision without
    ``batches`` and several with.

    Args:
        model: not wrapped; it is run in evaluation mode.
        example_inputs: as for `netslim.trace`; where it is None, the first of ``batches``, or a picture of zeros.
        batches: batches as a data loader gives them, at least one.
        linear: also behind linear layers, but not the last (as VGG-A in Liu et al. 2019, arXiv 1810.05270).

    Returns:
        ``model``.

    Raises:
        PlanError: every layer has one already, ``batches`` is empty, no guess runs, or the model is wrapped.
        TraceError: the model does not run on ``example_inputs``.
    """
    _check(model)
    measuring = iter(()) if batches is None else _each(batches)
    if batches is not None and example_inputs is None:
        example_inputs = next(measuring)
        measuring = chain([example_inputs], measuring)
    inputs = _examples(model, example_inputs)
    lacking = _lacking(model, inputs, linear)
    _check_free({path: layer for path, (layer, _) in lacking.items()}, "norm")
    moments = {} if batches is None else _measured(model, lacking.values(), measuring)
    for layer, norm in lacking.values():
        _hang(layer, "norm", _identity(norm, layer, moments.get(layer)))
        layer.register_forward_hook(_normalised)
    return model


def _normalised(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return module.norm(output)  # type: ignore[operator]


Lacking = tuple[nn.Module, type[_BatchNorm]]


def _lacking(model: nn.Module, inputs: Any, linear: bool) -> dict[str, Lacking]:
    """Path -> layer without a scale for its channels, and the kind of BN it needs."""
    kinds = {**_NORMS, nn.Linear: nn.BatchNorm1d} if linear else _NORMS
    paths = {m: p for m, p in named_modules(model).items() if isinstance(m, tuple(kinds))}
    called: dict[nn.Module, int] = {}

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        called[module] = output.dim()

    with ExitStack() as hooks:
        for module in paths:
            hooks.callback(module.register_forward_hook(note).remove)
        _run(model, inputs)
    graph = trace(model, inputs)
    lacking = {}
    for module, dims in called.items():
        norm = next(bn for kind, bn in kinds.items() if isinstance(module, kind))
        if (isinstance(module, _ConvNd) or dims == 2) and _without_scale(graph, paths[module], module):
            lacking[paths[module]] = (module, norm)
    if not lacking:
        what = "convolution or linear layer" if linear else "convolution"
        more = "" if linear else " (linear=True looks at linear layers too)"
        raise PlanError(f"there is nothing to do: no {what} whose channels can go lacks a batch normalisation{more}")
    return lacking


def _without_scale(graph: ChannelGraph, path: str, layer: nn.Module) -> bool:
    """Whether channels of the layer can go, and no normalisation scales them."""
    transposed = getattr(layer, "transposed", False) and getattr(layer, "groups", 1) == 1
    made = [g for g in graph if any(s.tensor.startswith(f"{path}.") and s.axis == int(transposed) for s in g.slices)]
    return any(not g.frozen for g in made) and not any(g.tensors("scale") for g in made)


def _identity(kind: type[_BatchNorm], layer: Any, measured: _Moments | None) -> _BatchNorm:
    """A BN that hands on the outputs of the layer, on its device and in its dtype."""
    weight = layer.weight
    channels = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
    bn: Any = kind(channels, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        if measured is None:
            bn.running_var.sub_(bn.eps)
            return bn
        bn.running_mean.copy_(measured.mean)
        bn.running_var.copy_(measured.variance())
        bn.weight.copy_((bn.running_var.double().cpu() + bn.eps).sqrt())
        bn.bias.copy_(bn.running_mean)
    return bn


class _Moments:
    """Mean and variance of each channel over all places of all batches (Chan et al. 1979), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        """A forward hook: take in outputs ``(N, C, ...)``."""
        values = output.detach().transpose(0, 1).flatten(1)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        var, mean = (t.double().cpu() for t in torch.var_mean(values, dim=1, correction=0))
        new, total = values.shape[1], self.count + values.shape[1]
        away = mean - self.mean
        self.squares = self.squares + var * new + away**2 * (self.count * new / total)
        self.mean, self.count = self.mean + away * (new / total), total

    def variance(self) -> Tensor:
        return self.squares / max(self.count - 1, 1)


def _measured(model: nn.Module, lacking: Iterable[Lacking], examples: Iterable[Any]) -> dict[nn.Module, _Moments]:
    """The statistics of the outputs of the layers."""
    found = {layer: _Moments() for layer, _ in lacking}
    with ExitStack() as hooks:
        for layer, moments in found.items():
            hooks.callback(layer.register_forward_hook(moments.add).remove)
        for inputs in examples:
            _run(model, inputs)
    return found


def _each(batches: Iterable[Any]) -> Iterator[Any]:
    """The inputs in every batch, as `netslim.trace` takes them; at least one."""
    empty = True
    for batch in batches:
        empty = False
        args, kwargs = inputs_of(batch)
        yield kwargs or args
    if empty:
        raise PlanError("batches holds no batch to measure the statistics on: give at least one, or leave it out")


# --- what both share ----------------------------------------------------------------------------------------------


def _check(model: Any) -> None:
    inner = bare(model, PlanError)
    if inside(model) is not model:
        raise PlanError(
            f"the model is wrapped in {type(model).__name__}, which has looked at its parts already: insert into the "
            f"{type(inner).__name__} inside, and wrap or compile that again"
        )


def _hang(layer: nn.Module, name: str, child: nn.Module) -> None:
    layer.add_module(name, child.train(layer.training))


def _check_free(layers: Mapping[str, nn.Module], name: str) -> None:
    for path, layer in layers.items():
        if hasattr(layer, name):
            raise PlanError(f"{path}.{name} is there already, where the new layer would go: rename that attribute")


def _device(module: nn.Module) -> torch.device | None:
    return next((t.device for t in chain(module.parameters(), module.buffers())), None)


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def _run(model: nn.Module, inputs: Any, flow: _Flow | None = None) -> None:
    args, kwargs = as_call(inputs)
    with torch.no_grad(), evaluating(model), torch.random.fork_rng(), flow or ExitStack(), refusing(inputs):
        model(*args, **kwargs)


def _examples(model: nn.Module, given: Any) -> Any:
    """The inputs that were given, or the first guess that runs."""
    if given is not None:
        return given
    tried = []
    for guess in _guesses(model):
        try:
            _run(model, guess)
            return guess
        except TraceError:
            tried.append(describe(guess))
    failed = f"it does not run on zeros of {' or '.join(tried)}" if tried else "it has no convolution or linear layer"
    raise PlanError(f"no example inputs could be guessed for the model: {failed}; pass example_inputs")


def _guesses(model: nn.Module) -> Iterator[Tensor]:
    """Zeros as the first layer may read them: of the size timm says, else 32 (which is quick), else 224 pixels."""
    convolution = next((m for m in model.modules() if isinstance(m, _ConvNd)), None)
    layer: Any = convolution or next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
    if layer is None:
        return
    if convolution is None:
        yield layer.weight.new_zeros(1, layer.in_features)
        return
    config = next((c for n in ("pretrained_cfg", "default_cfg") if (c := getattr(model, n, None))), None)
    if isinstance(config, Mapping) and config.get("input_size"):
        yield layer.weight.new_zeros(1, layer.in_channels, *config["input_size"][1:])
    for size in (32, 224):
        yield layer.weight.new_zeros(1, layer.in_channels, *[size] * len(layer.kernel_size))
