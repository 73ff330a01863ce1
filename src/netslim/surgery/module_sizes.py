"""Python's sizes: attributes that a plan patches, and those in which modules repeat their shapes.

Two kinds, kept apart because they are known in different ways:

* What the user's own ``forward`` reads, such as ``self.width`` in ``x.view(-1, self.width)``. The
  trace saw it used, so the plan says what it must become, and it is set exactly so (`patched`).
* What PyTorch's modules write down about their own tensors, such as ``Linear.in_features``. Most of
  it is never read in a call, so no trace can see it; printing, exporting and other tools do read
  it. It follows from the tensors once these are cut (`update_sizes`), so no plan needs to hold it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netslim._support import described
from netslim.errors import SurgeryError
from netslim.graph.modules.calls import in_mode
from netslim.graph.modules.configurations import is_configuration, with_entries
from netslim.graph.modules.repeated_sizes import REPEATED
from netslim.graph.modules.separate_heads import SeparateHeads, head_scale, usual_scale
from netslim.graph.modules.walk import Walked, parametrized
from netslim.surgery.rows import SizePatch

_PATH = re.compile(r"(\w+)(?:\.(\w+))?((?:\[[^\[\]]*\])*)")
_LONGEST = 80  # characters of a value that a message shows
_CHANGED = "the model has changed since the plan was made: trace and select again"


def patched(model: nn.Module, patches: Iterable[SizePatch]) -> list[tuple[nn.Module, str, Any]]:
    """(module, attribute, new value) for what the patches say; nothing is changed.

    ``SizePatch.attribute`` is a name, or a path into nested lists, tuples and dicts such as
    ``splits[1]`` or ``sizes[stem][0]``, which may be those of a configuration,
    ``config.widths[0]``. Containers and configurations are made anew, so one that other modules
    share stays as it is for them.

    Raises:
        SurgeryError: an attribute is not there, cannot be set, or is not what the plan expects.
    """
    values: dict[tuple[str, str], Any] = {}
    modules: dict[str, nn.Module] = {}
    for patch in patches:
        if patch.module not in modules:
            modules[patch.module] = submodule(model, patch.module)
        module, (name, entry, keys) = modules[patch.module], _path(patch.attribute)
        if (patch.module, name) not in values:
            values[patch.module, name] = _readable(module, name, patch)
        held = values[patch.module, name]
        if entry:
            inner = _replaced(_entry(held, entry, patch), keys, patch)
            values[patch.module, name] = with_entries(held, {entry: inner})
        else:
            values[patch.module, name] = _replaced(held, keys, patch)
    return [(modules[path], name, value) for (path, name), value in values.items()]


def put(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute.

    Raises:
        SurgeryError: the module's own code refuses the value.
    """
    try:
        setattr(module, name, value)
    except Exception as error:
        raise SurgeryError(
            f"{type(module).__name__}.{name} cannot be set to {_short(value)} "
            f"({type(error).__name__}: {error}): let it be set, or protect the groups concerned"
        ) from error


def update_sizes(walked: Walked, changed: set[str]) -> None:
    """Bring what PyTorch's modules write down about the shapes of their tensors up to date.

    Only modules that hold a changed tensor: an attribute that someone set to something else stays.

    Args:
        walked: of a model whose tensors have been cut.
        changed: names of the tensors that were.
    """
    cut = {id(walked.tensors[name]) for name in changed if name in walked.tensors}
    updates = {kind: _Updates.of(kind) for kind in set(map(type, walked.modules))}
    for module in walked.modules:
        known = updates[type(module)]
        if known is not None and not cut.isdisjoint(map(id, _own_tensors(module))):
            known.carry_out(module)


@dataclass(frozen=True)
class _Updates:
    """What is done for the modules of one class: functions, and attributes that repeat a shape."""

    computed: list[Callable[[Any], None]]
    repeated: list[tuple[str, tuple[str, ...]]]

    @classmethod
    def of(cls, kind: type[nn.Module]) -> _Updates | None:
        """None where nothing is."""
        computed = [update for known, update in _COMPUTED if issubclass(kind, known)]
        repeated = [(tensor, names) for known, tensor, names in REPEATED if issubclass(kind, known)]
        if not computed and not repeated:
            return None
        return cls(computed, repeated)

    def carry_out(self, module: nn.Module) -> None:
        for update in self.computed:
            update(module)
        for tensor, attributes in self.repeated:
            if len(shape := _shape(module, tensor)) == len(attributes):
                for attribute, size in zip(attributes, shape, strict=True):
                    if attribute:
                        setattr(module, attribute, size)


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a path that a plan names.

    Raises:
        SurgeryError: there is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise SurgeryError(
            f"the plan names the module {_short(path)}, which the model does not have"
        ) from None


def _entry(held: Any, name: str, patch: SizePatch) -> Any:
    """The entry of this name in a configuration."""
    if not is_configuration(held) or name not in vars(held):
        raise SurgeryError(f"{_place(patch)} is not there; {_CHANGED}")
    return vars(held)[name]


def _path(attribute: str) -> tuple[str, str, list[str]]:
    match = _PATH.fullmatch(attribute)
    if match is None:
        raise SurgeryError(
            f"the plan patches {_short(attribute)}, which is no attribute such as 'width' or "
            "'splits[1]'"
        )
    keys = [key.strip("'\"") for key in re.findall(r"\[([^\[\]]*)\]", match[3])]
    return match[1], match[2] or "", keys


def _readable(module: nn.Module, name: str, patch: SizePatch) -> Any:
    """The value of an attribute that can be set."""
    if not hasattr(module, name):
        raise SurgeryError(
            f"{_place(patch)} is not there, the plan sets it to {patch.new}; {_CHANGED}"
        )
    found = getattr(type(module), name, None)
    if isinstance(found, property) and found.fset is None:
        raise SurgeryError(
            f"{_place(patch)} is a property that cannot be set, and has to become "
            f"{patch.new}: give it a setter, or protect the groups concerned"
        )
    return getattr(module, name)


def _replaced(value: Any, keys: list[str], patch: SizePatch) -> Any:
    """``value`` with the entry under ``keys`` replaced; containers on the way are new ones."""
    if not keys:
        if isinstance(value, bool) or value != patch.old:
            raise SurgeryError(
                f"{_place(patch)} is {_short(value)}, the plan expects {patch.old}; {_CHANGED}"
            )
        return patch.new
    key = _key(value, keys[0], patch)
    entry = _replaced(value[key], keys[1:], patch)
    if not isinstance(value, tuple):
        result = copy.copy(value)
        result[key] = entry
        return result
    entries = [*value[:key], entry, *value[key + 1 :]]
    if hasattr(value, "_fields"):  # a named tuple takes its entries one by one
        return type(value)(*entries)
    return type(value)(entries)


def _place(patch: SizePatch) -> str:
    """The attribute, from the model on; as much of it as a line holds."""
    return f"{patch.module}.{patch.attribute}"[:_LONGEST]


def _short(value: Any) -> str:
    """A plain value of few characters as it is, of anything else the kind: no whole model."""
    text = ""
    if isinstance(value, (int, float, str, list, tuple, Mapping)):
        text = repr(value)
    if 0 < len(text) <= _LONGEST:
        return text
    return described(value)


def _key(container: Any, key: str, patch: SizePatch) -> Any:
    if isinstance(container, Mapping):
        found = [k for k in container if str(k) == key]
    elif isinstance(container, (list, tuple)) and key.isdecimal() and int(key) < len(container):
        found = [int(key)]
    else:
        found = []
    if not found:
        raise SurgeryError(
            f"{_place(patch)} is not there: {_short(container)} has no entry {key[:_LONGEST]}; "
            f"{_CHANGED}"
        )
    return found[0]


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """What the module holds itself, and what its parametrisations hold for it."""
    held = (*module._parameters.values(), *module._buffers.values())
    yield from (tensor for tensor in held if tensor is not None)
    if parametrized(module):
        for parametrised in module.parametrizations.children():  # type: ignore[union-attr]
            yield from (*parametrised.parameters(), *parametrised.buffers())
    if isinstance(module, nn.MultiheadAttention):  # whose child is for its weight alone
        yield from module.out_proj.parameters()


def _shape(module: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of a weight, also of one that is computed before each call; () without any."""
    sources = (name, f"{name}_orig", f"{name}_v")  # spectral norm and masks; weight norm
    for source in sources:
        parameter = module._parameters.get(source)
        if parameter is not None:
            return tuple(parameter.shape)
    if not nn.utils.parametrize.is_parametrized(module, name):
        return tuple(getattr(getattr(module, name, None), "shape", ()))
    with torch.no_grad(), in_mode(module, training=False):
        return tuple(getattr(module, name).shape)


def _convolution(module: Any) -> None:
    shape = _shape(module, "weight")
    if len(shape) > 2:
        # The weight is (out, in / groups, ...), and of a transposed one (in, out / groups, ...).
        sizes = (shape[0], shape[1] * module.groups)
        if not module.transposed:
            sizes = sizes[::-1]
        module.in_channels, module.out_channels = sizes


def _layer_norm(module: Any) -> None:
    # Another library's that has become one may have none, or keep a number, which a plan sets.
    if isinstance(vars(module).get("normalized_shape"), tuple):
        module.normalized_shape = _shape(module, "weight") or module.normalized_shape


def _attention(module: Any) -> None:
    """One stacked weight where queries, keys and values are as wide as each other, or one each."""
    packed = _shape(module, "in_proj_weight")
    if packed:
        made, module.embed_dim = packed[0] // 3, packed[1]
        module.kdim = module.vdim = packed[1]
    else:
        queries, keys, values = (_shape(module, f"{name}_proj_weight") for name in "qkv")
        made, module.embed_dim = queries
        module.kdim, module.vdim = keys[1], values[1]
    module.head_dim = made // module.num_heads
    widths = {made, module.embed_dim, *_shape(module.out_proj, "weight")}
    if type(module) in (nn.MultiheadAttention, SeparateHeads):
        fits = len(widths) == 1 and head_scale(module) == usual_scale(module)
        module.__class__ = SeparateHeads
        if fits:
            module.__class__ = nn.MultiheadAttention
            vars(module).pop("head_scale", None)
        # PyTorch's encoder layers hand the weights of an attention of which this is true to an
        # operator of their own, which takes heads to be as wide as the input says.
        module._qkv_same_embed_dim = fits and bool(packed)


def _recurrent(module: Any) -> None:
    rows, module.input_size = _shape(module, "weight_ih_l0")  # the gates stand on each other
    module.hidden_size = rows // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    if module.proj_size:
        module.proj_size = _shape(module, "weight_hr_l0")[0]
    module.flatten_parameters()


_COMPUTED: tuple[tuple[type[nn.Module], Callable[[Any], None]], ...] = (
    (nn.modules.conv._ConvNd, _convolution),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _recurrent),
)
