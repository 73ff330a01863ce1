"""Integers that modules remember and ``forward`` does not read: other methods may.

What ``forward`` reads is followed while the model runs. But ``deploy``, ``reparameterize`` and
exporters read sizes, too, which no run shows. So they are noted here by name and value, with
what the code tells of them: whether any forward reads such a name (then it is the trace's affair,
and may mean something else), and whether another method does. Beside them stand the widths of all
layers: a remembered size follows a cut where only one of these can be meant.
"""

from __future__ import annotations

import re
import sysconfig
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from netslim.graph.modules.configurations import holding, name_read
from netslim.graph.modules.padded_norms import PaddedNorm
from netslim.graph.modules.separate_heads import SeparateHeads
from netslim.graph.modules.walk import named_modules

_FOREIGN = ("torch.", "builtins", "collections.", "typing", "enum")
_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_INWARD = re.compile(r"(in|inp|input|c1)(_.*|dims?|planes|channels|chs|features)?")
_OUTWARD = re.compile(r"(out|oup|output|c2)(_.*|dims?|planes|channels|chs|features)?")
# Words of names that are widths, and of those that are not, though they may happen to equal one.
_WIDTH = re.compile(
    r"width|chan|chs?(_|$)|planes|dim|feat|filter|hidden|embed|units|group|size|d_model|"
    r"^(in|inp|out|oup|c_?\d?|nf|ch)$"
)
_NO_WIDTH = re.compile(
    r"kernel|stride|pad|dilat|heads|n_?head|num_head|head_dim|dim_head|depth|layer|block|class|"
    r"label|patch|window|resol|img|image|scale|factor|ratio|reduc|step|epoch|iter|seed|batch|len|"
    r"token|vocab|max|per_"
)
# What nearly all attributes of modules are, none of which is a configuration.
_COMMON = frozenset({bool, int, float, str, tuple, list, dict, set, type(None), OrderedDict})
_LEAVES = frozenset({bool, int, float, str, type(None)})  # what leads nowhere
_DEEPEST, _LONGEST = 3, 256  # what leads to functions: how deep, and of how many entries
_WRAPPED = ("__func__", "__wrapped__")
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_SHOWING = {"extra_repr", "__repr__", "__str__"}  # what only prints a size does not need it


@dataclass(frozen=True)
class Integer:
    """An integer above 1 that a module, or an object it holds, remembers.

    Attributes:
        module: path of the module.
        attribute: name, or a path into containers and objects.
        value: the integer.
        follows: whether it may be set to another width: it is an attribute that the class sets
            itself, no forward reads the name, and the name is not that of something else.
        told: whether it is worth a word where it is not set: another method of some class in the
            model reads the name, or it belongs to a configuration.
    """

    module: str
    attribute: str
    value: int
    follows: bool
    told: bool

    @property
    def side(self) -> str:
        """``in``, ``out`` or ``groups`` where the name says what it is the width of, or empty."""
        name = _word(self.attribute)
        if "group" in name:
            return "groups"
        if _INWARD.fullmatch(name):
            return "in"
        if _OUTWARD.fullmatch(name):
            return "out"
        return ""

    @property
    def path(self) -> str:
        """Where it stands, from the model on."""
        return f"{self.module}.{self.attribute}".removeprefix(".")

    def holds(self, layer: str) -> bool:
        """Whether the layer of this path lies within the module."""
        return not self.module or layer == self.module or layer.startswith(f"{self.module}.")


@dataclass(frozen=True)
class Width:
    """How wide a layer is on one side: ``times`` the entries of an axis, of which ``each`` go
    together.
    """

    layer: str
    sides: str  # of "in", "out" and "groups"
    size: int
    tensor: str
    axis: int
    times: int = 1
    each: int = 1


def integers(
    model: nn.Module, remembered: Mapping[tuple[str, str], int], read: frozenset[str]
) -> tuple[Integer, ...]:
    """Those that no forward is known to follow.

    Args:
        model: the traced one.
        remembered: (module, attribute) -> value, of those that the trace saw nobody read.
        read: names that running it may read (`names_read`).
    """
    modules = named_modules(model)
    ours = PaddedNorm, SeparateHeads  # whose code reads what was settled in the trace
    own = {m: path for m, path in modules.items() if not isinstance(m, ours)}
    kinds = {path: type(module) for module, path in own.items() if _own(type(module))}
    asked = {
        (path, attribute): value
        for (path, attribute), value in remembered.items()
        if value > 1 and path in kinds and not _NO_WIDTH.search(_word(attribute))
        if holding(attribute) == name_read(attribute)  # for configurations are looked at below
    }
    return (*_of_modules(asked, kinds, read), *_of_objects(modules))


def _of_modules(
    asked: Mapping[tuple[str, str], int], kinds: Mapping[str, type], read: frozenset[str]
) -> Iterator[Integer]:
    reach, left = _Reach(), []
    for (path, attribute), value in asked.items():
        # What a forward reads was a size in the trace and has been settled; what layers of
        # PyTorch's own set is rewritten with their weights.
        kind, name = kinds[path], attribute.partition("[")[0]
        if name not in _names_of_forward(kind, reach) and name not in _of_torch(kind):
            left.append((path, attribute, name, value))
    if not left:  # and no other code need be looked through
        return
    codes = {kind: _code_beside(kind, reach) for kind in set(kinds.values())}
    others = frozenset[str]().union(*[code.others for code in codes.values()])
    for path, attribute, name, value in left:
        # Nothing says what these are the width of: by its name it must be one, and the module
        # itself must have made it.
        follows = name in codes[kinds[path]].made and name not in read
        follows = follows and bool(_WIDTH.search(_word(attribute)))
        yield Integer(path, attribute, value, follows, name in others)


def names_read(model: nn.Module) -> frozenset[str]:
    """Names that any code of the user's reads, which running the model may reach."""
    modules, reach = named_modules(model), _Reach()
    kinds = {type(module) for module in modules if _own(type(module))}
    read = [_names_of_forward(kind, reach) for kind in kinds]
    return _names_held(modules, reach).union(*read)


def names_by_part(model: nn.Module) -> Iterator[tuple[str, frozenset[str]]]:
    """(path of a module, names that its own code reads, and code which that leads to)."""
    reach = _Reach()
    for module, path in named_modules(model).items():
        names = _names_held([module], reach)
        if _own(type(module)):
            names |= _names_of_forward(type(module), reach)
        yield path, names


def unread(model: nn.Module) -> frozenset[tuple[str, str]]:
    """(module, attribute) of integers that running the model does not read, as far as code tells.

    Not by the forward of the module, with all that it leads to, and not by those of the modules
    that it lies in, with their methods: these go on to code that knows of no module's attributes,
    but of configurations with the same names.
    """
    reach, modules = _Reach(), {path: type(m) for m, path in named_modules(model).items()}
    own = {path: kind for path, kind in modules.items() if _own(kind)}
    methods = {kind: reach.of_methods(kind, ["forward"], inside=True)[0] for kind in own.values()}
    found = set()
    for path, kind in own.items():
        parts = path.split(".") if path else []
        around = {".".join(parts[:n]) for n in range(len(parts))} & own.keys()
        read = _names_of_forward(kind, reach).union(*[methods[own[outer]] for outer in around])
        held = vars(model.get_submodule(path)).items()
        found |= {(path, name) for name, value in held if type(value) is int and name not in read}
    return frozenset(found)


def widths(model: nn.Module, names: Mapping[int, str]) -> tuple[Width, ...]:
    """Of every layer, and of all else that holds tensors, by the names of these (by their ids)."""
    found: list[Width] = []
    for module, path in named_modules(model).items():
        held = {**module._parameters, **module._buffers}
        weight = held.get("weight")
        if isinstance(module, (_CONV, nn.Linear)) and weight is not None:
            found += _of_layer(module, path, names[id(weight)], tuple(weight.shape))
            continue
        for tensor in held.values():
            if tensor is not None and tensor.is_floating_point():  # an index has no channels
                shape = tuple(tensor.shape)
                name = names[id(tensor)]
                found += [Width(path, "in out", n, name, d) for d, n in enumerate(shape) if n > 1]
    return tuple(found)


def _of_layer(module: Any, path: str, name: str, shape: tuple[int, ...]) -> Iterator[Width]:
    """Inputs, outputs and groups of a convolution or linear layer."""
    outer = int(isinstance(module, _TRANSPOSED))
    inner = 1 - outer
    groups = getattr(module, "groups", 1)
    if groups > 1 and shape[1] == 1:  # depthwise: each input has as many outputs
        yield Width(path, "out", shape[0], name, 0)
        # Of one that is not called, ``groups`` may be as before a cut.
        yield Width(path, "in groups", groups, name, 0, each=max(1, shape[0] // groups))
        return
    for side, axis in (("in", inner), ("out", outer)):
        times = 1
        if axis == 1:  # all groups share it
            times = groups
        yield Width(path, side, shape[axis] * times, name, axis, times)
    if groups > 1:  # never cut: an axis of the kernel stands for it
        yield Width(path, "groups", groups, name, 2, 1)


def _word(attribute: str) -> str:
    """What says the meaning of an entry: the last key with letters, or the name."""
    words: list[str] = re.findall(r"[A-Za-z_]\w*", attribute)
    return words[-1].lower()


def _of_torch(kind: type) -> set[str]:
    """Names that PyTorch's own layers set, of which this class is one: they are kept right."""
    bases = [base for base in kind.__mro__ if base.__module__.startswith("torch.nn.modules")]
    found: set[str] = set()
    for base in bases:
        if base is not nn.Module and "__init__" in vars(base):
            found.update(vars(base)["__init__"].__code__.co_names)
    return found


def _own(kind: type) -> bool:
    return not kind.__module__.startswith(_FOREIGN)


def _of_objects(modules: Mapping[nn.Module, str]) -> Iterator[Integer]:
    """What configurations remember: plain objects that modules hold, each once."""
    seen: set[int] = set()
    for module, path in modules.items():
        for name, value in vars(module).items():
            if type(value) in _COMMON:
                continue
            plain = hasattr(value, "__dict__") and not callable(value)
            if plain and _own(type(value)) and id(value) not in seen:
                seen.add(id(value))
                for key, entry in vars(value).items():
                    yield from _entries(path, f"{name}.{key}", entry)


def _entries(path: str, name: str, value: Any) -> Iterator[Integer]:
    if type(value) is int and value > 1 and not name.rpartition(".")[2].startswith("_"):
        yield Integer(path, name, value, follows=False, told=True)
    elif isinstance(value, (list, tuple)) and len(value) <= 64:
        for number, entry in enumerate(value):
            if type(entry) is int:
                yield from _entries(path, f"{name}[{number}]", entry)


@dataclass(frozen=True)
class _Beside:
    """Which names the code of a class reads and sets outside its forward."""

    made: frozenset[str]  # in what makes one
    others: frozenset[str]  # in its other methods


@dataclass
class _Code:
    """Which names the code of a class reads and sets, as far as its methods call each other."""

    state: tuple[int, ...]  # of the class, when it was looked through
    forward: frozenset[str] | None = None  # in what running one may read
    beside: _Beside | None = None


# Code is looked through once a class: a search traces one model many times. What is beside the
# forward may lead through a whole library, and few networks ask for it.
_CODES: weakref.WeakKeyDictionary[type, _Code] = weakref.WeakKeyDictionary()


def _code_of(kind: type) -> _Code:
    """Of a class as it is now: notebooks give classes new methods."""
    state = tuple([id(each) for base in kind.__mro__ if _own(base) for each in vars(base).values()])
    code = _CODES.get(kind)
    if code is None or code.state != state:
        code = _CODES[kind] = _Code(state)
    return code


def _names_of_forward(kind: type, reach: _Reach) -> frozenset[str]:
    """Those that running a module of this class may read."""
    code = _code_of(kind)
    if code.forward is None:
        code.forward = reach.of_methods(kind, ["forward"])[0]
    return code.forward


def _code_beside(kind: type, reach: _Reach) -> _Beside:
    """What a class has beside its forward."""
    code = _code_of(kind)
    if code.beside is None:
        code.beside = _read(kind, reach)
    return code.beside


def _read(kind: type, reach: _Reach) -> _Beside:
    made, making = reach.of_methods(kind, ["__init__"])
    running = reach.of_methods(kind, ["forward"])[1]
    # Code that making or running a module reaches is accounted for; any other method that brings
    # code of its own, as `fuse` does, reads numbers behind the trace's back.
    others = [
        name
        for name, found in reach.methods(kind).items()
        if name not in _SHOWING and not making.union(running).issuperset(found)
    ]
    return _Beside(made, reach.of_methods(kind, others)[0])


def _names_held(modules: Iterable[nn.Module], reach: _Reach) -> frozenset[str]:
    """Names in code that runs with a forward and is none of its class: hooks, a ``forward`` that
    took the place of the class's own, and functions among the attributes.
    """
    found: dict[type, set[FunctionType]] = {}
    for module in modules:
        held = [value for value in vars(module).values() if type(value) not in _COMMON]
        held += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        own = {_package(type(module))}
        for value in held:
            functions = reach.functions(value)
            if not callable(value):  # methods of a configuration: validation, serialisation
                functions = [each for each in functions if _within(each, own)]
            found.setdefault(type(module), set()).update(functions)
    names = [reach.of(kind, functions)[0] for kind, functions in found.items()]
    return frozenset[str]().union(*names)


class _Reach:
    """What code leads to. Many methods of many classes lead to the same: it is looked up once.

    It is for one look at a model: what names stand for changes.
    """

    def __init__(self) -> None:
        self._functions: dict[int, tuple[Any, list[FunctionType]]] = {}
        self._attributes: dict[type, dict[str, Any]] = {}
        self._ahead: dict[FunctionType, tuple[set[str], list[FunctionType]]] = {}

    def functions(self, value: Any) -> list[FunctionType]:
        """The functions of the user's that a value leads to."""
        found = self._functions.get(id(value))
        if found is None:
            found = self._functions[id(value)] = value, [*_functions(value)]
        return found[1]

    def attributes(self, kind: type) -> dict[str, Any]:
        """Those of a class, inherited ones too."""
        if kind not in self._attributes:
            bases = kind.__mro__[::-1]
            self._attributes[kind] = {k: v for base in bases for k, v in vars(base).items()}
        return self._attributes[kind]

    def methods(self, kind: type) -> dict[str, list[FunctionType]]:
        """What the attributes of a class lead to, where it is anything."""
        found = {name: self.functions(each) for name, each in self.attributes(kind).items()}
        return {name: functions for name, functions in found.items() if functions}

    def of_methods(
        self, kind: type, names: Iterable[str], inside: bool = False
    ) -> tuple[frozenset[str], set[FunctionType]]:
        """The same as `of`, of methods of a class."""
        held = self.attributes(kind)
        methods = [self.functions(held[name]) for name in names if name in held]
        return self.of(kind, set(chain.from_iterable(methods)), inside)

    def of(
        self, kind: type, functions: set[FunctionType], inside: bool = False
    ) -> tuple[frozenset[str], set[FunctionType]]:
        """Names that functions read, and all that they may call; and what these are: methods, what
        their modules and closures hold, and functions of the modules that they name; not those of
        other packages that are installed, which know nothing of the class's attributes. With
        ``inside`` methods alone.
        """
        names: set[str] = set()
        reached: set[FunctionType] = set()
        held = self.attributes(kind)
        for package in {*map(_package, functions)}:
            own = {_package(kind), package}
            waiting = [each for each in functions if _package(each) == package]
            seen, others = set(waiting), set[FunctionType]()
            while waiting:
                called, ahead = self._from(waiting.pop())
                if inside:
                    ahead = []
                names |= called
                for name in called & held.keys():
                    ahead = [*ahead, *self.functions(held[name])]
                for each in ahead:
                    if each in seen or each in others:
                        continue
                    if _within(each, own):
                        seen.add(each)
                        waiting.append(each)
                    else:
                        others.add(each)
            reached |= seen
        return frozenset(names), reached

    def _from(self, function: FunctionType) -> tuple[set[str], list[FunctionType]]:
        """Names that a function reads, and functions that it leads to, whatever its class is."""
        if function not in self._ahead:
            names: set[str] = set()
            found = [*_closure(function)]
            for code in _codes(function.__code__):
                called = {*code.co_names, *[c for c in code.co_consts if type(c) is str]}
                names |= called
                found += _named(function.__globals__, code.co_names, called)
            ahead = dict.fromkeys(chain.from_iterable(map(self.functions, found)))
            self._ahead[function] = names, [*ahead]
        return self._ahead[function]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Code and what is defined in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _named(around: dict[str, Any], names: Iterable[str], called: set[str]) -> list[Any]:
    """What names stand for: in the module of the code, and in the modules that it names. Strings
    are among those called, as `getattr` takes them.
    """
    found = [around[name] for name in called & around.keys()]
    for library in [around.get(name) for name in names]:
        if isinstance(library, ModuleType) and not library.__name__.startswith(_FOREIGN):
            found += [vars(library)[name] for name in called & vars(library).keys()]
    return found


def _within(function: FunctionType, own: set[str]) -> bool:
    """Whether it is of these packages, or of none that is installed."""
    return _package(function) in own or not function.__code__.co_filename.startswith(_INSTALLED)


def _functions(value: Any, depth: int = 0) -> Iterator[FunctionType]:
    """The functions of the user's that a value leads to.

    It may be a method, a property, a partial one, decorated, a registry of functions, a class, or
    an object that can be called.
    """
    if isinstance(value, FunctionType) and not str(value.__module__).startswith(_FOREIGN):
        yield value
    if depth == _DEEPEST:
        return
    for inner in _parts(value):
        if type(inner) is FunctionType and not inner.__dict__:  # as most are
            if not str(inner.__module__).startswith(_FOREIGN):
                yield inner
        elif type(inner) not in _LEAVES:
            yield from _functions(inner, depth + 1)


def _parts(value: Any) -> Iterable[Any]:
    """What a value is made of that may lead to functions."""
    if type(value) is FunctionType:  # most are, and to ask for what is not there takes long
        held = value.__dict__
        if not held:
            return ()
        return [held[name] for name in _WRAPPED if held.get(name) is not None][:1]
    if isinstance(value, property):
        return value.fget, value.fset
    if isinstance(value, partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, dict):
        return islice(value.values(), _LONGEST)
    if isinstance(value, (list, tuple)):
        return islice(value, _LONGEST)
    if type(value) in _COMMON:
        return ()
    for name in _WRAPPED:
        with suppress(Exception):  # anything may stand behind an attribute, as in torch.classes
            if (wrapped := getattr(value, name, None)) is not None:
                return (wrapped,)
    kind = value
    if not isinstance(value, type):
        kind = type(value)
    if issubclass(kind, (nn.Module, ModuleType)) or not _own(kind) or kind.__module__ == "torch":
        return ()
    return [each for each in vars(kind).values() if isinstance(each, FunctionType)]


def _package(thing: Any) -> str:
    return str(thing.__module__).partition(".")[0]


def _closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents


__all__ = ["Integer", "Width", "integers", "names_read", "unread", "widths"]
