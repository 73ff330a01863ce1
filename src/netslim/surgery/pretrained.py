"""Networks that write themselves: what their configuration says after a cut.

Hugging Face's `save_pretrained` writes the weights beside a configuration, and `from_pretrained`
builds the network from that. A configuration of the old widths then raises, or leaves the cut
layers untrained without a word. So entries of it that can only mean a width that was cut get the
new one, in a copy that takes the old one's place; and where no entries do, `save_pretrained`
refuses and tells the way that works.

What an entry means is found by trying: a network is built from the changed configuration, without
memory for its weights, and looked at. An entry is read as a width where everything that it changes
comes out as in the cut network; so are two together, as the numbers of heads and of their keys,
that change in one proportion. The proof is that all changes together build the cut network: the
same modules with the same shapes and numbers.

The trainer of ultralytics builds a network anew, too, from the layout that it keeps as ``yaml``,
and copies the weights that fit: it would train the uncut network without a word. Such a layout
cannot say the widths of a cut, so it gets a first layer that no one can build, and whose name,
which the error tells, says what to do.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import wraps
from itertools import combinations
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netslim.errors import CheckpointError
from netslim.graph.integers import unread
from netslim.graph.modules.walk import named_modules

_CUT = "_netslim_config_is_stale"  # plain data on the module: it is copied and pickled with it
_SAVES = "save_pretrained"
_GUARDED = "_netslim_guarded"
_TRIALS = 48  # networks that are built at most, for entries alone and again for pairs
_SHARES = 6  # proportions in which widths were cut, at most, that entries are tried in
_REBUILT = (
    "this network was cut by netslim, and its YAML has the widths from before: train it by "
    "yolo.train(trainer=trainer_of(yolo), ...), see netslim.integrations.ultralytics"
)
_Facts = dict[Hashable, Any]  # what a network consists of: types, shapes and numbers, by place
_Change = tuple[tuple[Any, ...], float]  # where in a configuration, and what stands there then


def keep_config(modules: Iterable[nn.Module]) -> None:
    """Bring the configurations of a cut network up to date, or have `save_pretrained` refuse.

    Concerns every part that has such a method and lies in no other such part, and layouts that a
    network is built from.
    """
    for module in modules:
        _spoil_layout(module)
    for writer in _writers(modules):
        _guard(type(writer))
        vars(writer).pop(_CUT, None)
        if not _update(writer):
            vars(writer)[_CUT] = True


def writes_itself(model: nn.Module) -> bool:
    """Whether a network is one that writes itself beside its configuration."""
    return callable(getattr(type(model), _SAVES, None)) and hasattr(
        getattr(model, "config", None), "to_dict"
    )


def config_builds(model: nn.Module) -> bool:
    """Whether the configuration of a network that writes itself builds it as it is."""
    return _built(type(model), getattr(model, "config", None)) == _facts(model)


def _spoil_layout(module: nn.Module) -> None:
    layout = vars(module).get("yaml")
    if isinstance(layout, dict) and isinstance(layout.get("backbone"), list):
        layers = [layer for layer in layout["backbone"] if _REBUILT not in layer]
        vars(module)["yaml"] = {**layout, "backbone": [[-1, 1, _REBUILT, []], *layers]}


def _writers(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    inside: set[nn.Module] = set()
    kinds = {kind for kind in set(map(type, modules)) if callable(getattr(kind, _SAVES, None))}
    if not kinds:
        return
    for module in modules:
        if module not in inside and type(module) in kinds:
            inside.update(module.modules())
            yield module


def _guard(kind: type) -> None:
    """Have the method refuse for networks that are marked: of the class that defines it, once."""
    owner = next(one for one in kind.__mro__ if _SAVES in vars(one))
    saves = vars(owner)[_SAVES]
    if hasattr(saves, _GUARDED) or not isinstance(saves, FunctionType):
        return

    @wraps(saves)
    def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_stale(self)
        return saves(self, *args, **kwargs)

    setattr(refusing, _GUARDED, True)
    setattr(owner, _SAVES, refusing)


def _refuse_stale(model: Any) -> None:
    if not isinstance(model, nn.Module) or not any(_CUT in vars(one) for one in model.modules()):
        return
    if config_builds(model):
        return
    name = type(model).__name__
    raise CheckpointError(
        f"this {name} was cut to widths that its configuration cannot say, so from_pretrained "
        "would not build it: write it with netslim.save(model, 'small.safetensors'), and load it "
        f"with netslim.load({name}(config), 'small.safetensors'), config being that of the uncut "
        "network"
    )


# ---------------------------------------------------------------- what a configuration says


def _update(model: nn.Module) -> bool:
    """Whether the configuration builds the network, after what can be changed in it was changed."""
    config, wanted = getattr(model, "config", None), _facts(model)
    said = _built(type(model), config)
    if said is None or said == wanted:
        return said == wanted
    reader = _Reader(model, config, said, wanted)
    changes = reader.alone()
    if _built(type(model), config, changes) != wanted:
        changes += reader.in_pairs({path for path, _ in changes})
        if _built(type(model), config, changes) != wanted:
            return False
    copies = _changed(config, changes)
    if not _is_valid(copies[id(config)]):
        return False
    for module in model.modules():
        for name, value in vars(module).items():
            if id(value) in copies and name not in ("_modules", "_parameters", "_buffers"):
                setattr(module, name, copies[id(value)])
    return True


def _is_valid(config: Any) -> bool:
    """Whether a configuration can be read from what it writes of itself: there it is checked."""
    if not hasattr(config, "from_dict"):
        return True
    try:
        type(config).from_dict(config.to_dict())
    except Exception:  # by whatever the library likes
        return False
    return True


class _Reader:
    """Reads entries of a configuration as widths that were cut, by trying."""

    def __init__(self, model: nn.Module, config: Any, said: _Facts, wanted: _Facts) -> None:
        self._kind, self._config, self._said, self._wanted = type(model), config, said, wanted
        self._numbers = [*_numbers(config)]
        self._widths: dict[float, set[float]] = {}
        for place, old in said.items():
            new: Any = wanted.get(place)
            if isinstance(old, int | float) and type(new) is type(old) and old != new:
                self._widths.setdefault(old, set()).add(new)

    def alone(self) -> list[_Change]:
        """Entries that can be read as widths that were cut, each in one way only.

        Or as what went with a width: the eps of a normalisation is scaled
        (graph/modules/scaled_norms).
        """
        found, trials = [], 0
        for path, value in self._numbers:
            readings = []
            # A 64 in the configuration may stand for any width that was 64, or for none. Each
            # reading is tried by itself: the network is built, and must not differ anywhere it
            # should not.
            for width in sorted(w for w in self._widths.get(value, ()) if type(w) is type(value)):
                trials += 1
                if trials <= _TRIALS and self._reads([(path, width)]):
                    readings.append((path, width))
            if len(readings) == 1:
                found += readings
        return found

    def in_pairs(self, known: Collection[tuple[Any, ...]]) -> list[_Change]:
        """Two entries that mean a width together, and change in its proportion, if any.

        As the number of heads and that of their keys, whose ratio is what the network keeps.
        """
        trials = iter(range(_TRIALS))
        shares = {Fraction(int(n), int(o)) for o, n in self._cut()}
        if len(shares) > _SHARES:  # layers were cut apart, which no entry says
            return []
        for share in sorted(shares):
            likely = [
                (path, int(value * share))
                for path, value in self._numbers
                if path not in known and type(value) is int and value * share >= 1
                if (value * share).denominator == 1 and next(trials, None) is not None
                if self._partly([(path, int(value * share))])
            ]
            for pair in combinations(likely, 2):
                if next(trials, None) is not None and self._reads(pair):
                    return [*pair]
        return []

    def _cut(self) -> Iterator[tuple[float, float]]:
        """Widths that were cut, and what is left of them."""
        for old, news in self._widths.items():
            yield from ((old, new) for new in news if type(new) is int and 0 < new < old)

    def _reads(self, changes: Sequence[_Change]) -> bool:
        """Whether changes alter something, and nothing to other than what is wanted."""
        altered = self._altered(changes)
        return bool(altered) and all(new == self._wanted.get(p) for p, new in altered.items())

    def _partly(self, changes: Sequence[_Change]) -> bool:
        """Whether changes alter something to what is wanted."""
        return any(new == self._wanted.get(p) for p, new in self._altered(changes).items())

    def _altered(self, changes: Sequence[_Change]) -> _Facts:
        """What is other in the network that is built, and how."""
        built = _built(self._kind, self._config, changes) or {}
        # Types aside: two widths that must go together may change them, each alone.
        return {
            place: built[place]
            for place, old in self._said.items()
            if not isinstance(old, str) and place in built and built[place] != old
        }


def _numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Numbers in a configuration, within lists and further configurations too."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
        return
    for key, entry in _parts(value):
        yield from _numbers(entry, (*path, key))


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if hasattr(value, "to_dict"):
        return list(vars(value).items())
    return []


def _changed(config: Any, changes: Iterable[_Change]) -> dict[int, Any]:
    """Copies with other numbers, of a configuration and of those in it, by the original's id."""
    copies: dict[int, Any] = {}
    changed = copy.deepcopy(config, copies)
    for path, value in changes:
        _put(changed, path, value)
    within = [part for _, part in _parts(config) if hasattr(part, "to_dict")]
    return {id(one): copies[id(one)] for one in (config, *within)}


def _put(value: Any, path: tuple[Any, ...], number: float) -> Any:
    """The value with a number at a place in it; tuples are made anew."""
    if not path:
        return number
    key, *rest = path
    entry = _put(dict(_parts(value))[key], tuple(rest), number)
    if isinstance(value, tuple):
        return (*value[:key], entry, *value[key + 1 :])
    if isinstance(value, list | dict):
        value[key] = entry
    else:
        setattr(value, key, entry)
    return value


# ---------------------------------------------------------------- what a network consists of


def _built(kind: type[nn.Module], config: Any, changes: Iterable[_Change] = ()) -> _Facts | None:
    """What a network of this configuration consists of; None where none can be built."""
    if config is None:
        return None
    try:
        rest = torch.device("meta")
        with torch.random.fork_rng(devices=()), rest, _Numbers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _facts(kind(_changed(config, changes)[id(config)]))
    # Constructors and configurations refuse a value by whatever they like.
    except Exception:
        return None


class _Numbers(TorchFunctionMode):
    """Inside, a tensor of a single number that code writes down has that number on any device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor and args and isinstance(args[0], int | float):
            given["device"] = "cpu"
        return func(*args, **given)


def _facts(model: nn.Module) -> _Facts:
    """Types of the modules, lengths of the axes of all tensors, and numbers kept as attributes or
    as constants.

    Not the integers that nobody reads when it runs: of several meanings of one none follows a cut.
    """
    facts: _Facts = {
        (*place, "value"): held.item() for place, held in _constants(model) if not held.is_meta
    }
    idle = _idle(model)
    for module, path in named_modules(model).items():
        facts[path] = type(module).__name__
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                facts |= {(path, name, axis): size for axis, size in enumerate(tensor.shape)}
        for name, value in vars(module).items():
            if not name.startswith("_") and (path, name) not in idle and _is_numeric(value):
                facts[path, name] = value
    return facts


def _constants(model: nn.Module) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """The constants of a network that no file holds, as the root of a width by which Gemma
    multiplies: they are computed anew where it is built. On the meta device they have no value.
    """
    for module, path in named_modules(model).items():
        for name in module._non_persistent_buffers_set:
            held = module._buffers[name]
            if held is not None and held.is_floating_point() and held.numel() == 1:
                yield (path, name), held


def _idle(model: nn.Module) -> frozenset[tuple[str, str]]:
    """Integers that running the network does not read; none where a constant may stand for one
    whose value is not known: nothing else might tell that it came out otherwise.
    """
    if any(held.is_meta for _, held in _constants(model)):
        return frozenset()
    return unread(model)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_numeric, value))
    return isinstance(value, int | float) and not isinstance(value, bool)
