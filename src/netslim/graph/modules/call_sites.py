"""A call within the code of a module, found while it runs and replaced by another.

``x.mean(1)`` in the middle of a ``forward`` has no module that could go on over its old width. So
it is told by its place in the code: ``forward/3`` is the third call in the text of ``forward``, and
``forward/2/1`` the first one in the function that the second one calls. A digest of these texts is
part of the place, ``forward/3#0f3a...``: of other code the third call would be another. While the
code runs, the interpreter knows of each instruction which columns of which line it was made from,
and so of each frame on the way from a module to PyTorch which call it is in.

A module whose calls are replaced becomes one of a class of its own, below its own class, that has
the changed ``forward``: compiled from the same text, in which the calls are calls of something
else, with the same globals, defaults and closure. Only where the text, unchanged, compiles to the
very instructions that run is it taken for theirs. Such a class cannot be found by its name, so a
pickle names the class below and the calls.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import os
import symtable
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, islice
from pathlib import Path
from types import CellType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any, cast

import torch
from torch import nn

from netslim.errors import SurgeryError
from netslim.graph.modules.computed_convolutions import NotScripted

_MODULE_CALLS = nn.Module.__call__.__code__.co_filename  # whose frames call a forward
_TORCH = str(Path(torch.__file__).parent) + os.sep
_GRAPH = Path(__file__).parents[1]
# Files of those who watch, and what leads to them.
_WATCHING = (
    str(_GRAPH) + os.sep,
    str(_GRAPH.with_name("surgery")) + os.sep,
    torch.overrides.__file__,
)
_DEEPEST = 4  # functions on the way from a module to a call
_FUTURE = 0x1FF0000  # the flags of `from __future__ import ...` in those of code
_BASE, _CALLS = "_netslim_base", "_netslim_calls"  # of a class whose calls are replaced
Replacements = Mapping[str, Callable[..., Any]]  # place -> what is called there


@dataclass(frozen=True)
class Site:
    """A call in the code of a module.

    Attributes:
        place: names of the function and numbers of the calls on the way to it.
        text: as it is written.
    """

    place: str
    text: str


def caller(function: Any) -> FrameType | None:
    """The frame of the code that calls a function of PyTorch's, for whoever watches that.

    None where it is PyTorch's own, as that of `nn.LayerNorm`.
    """
    own = getattr(function, "__code__", None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is not own and not code.co_filename.startswith(_WATCHING):
            break
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename.startswith(_TORCH):
        return None
    return frame


def way_to(frame: FrameType | None) -> tuple[tuple[CodeType, Any], ...]:
    """The code that leads from a module's ``forward`` to what runs in a frame, and where each is.

    Of what is further away, where no call is found, the last of it. A function that two lines of a
    forward call is on two ways: its calls are replaced for either alone. By their place in the
    text: the condition of a loop is one call there, and compiled twice.
    """
    return tuple((each.f_code, _spot(each.f_code, each.f_lasti)) for each in _way(frame)[0])


def _spot(code: CodeType, instruction: int) -> Any:
    """(first line, last line, first column, last column) of what an instruction was made from; its
    number where the interpreter does not know that.
    """
    found = next(islice(code.co_positions(), instruction // 2, None))
    return instruction if None in found else found


def _way(frame: FrameType | None) -> tuple[list[FrameType], bool]:
    """The frames from one to that of a module's forward, and whether this is among them."""
    frames: list[FrameType] = []
    while frame is not None and len(frames) < _DEEPEST:
        frames.append(frame)
        frame = frame.f_back
        if frame is not None and frame.f_code.co_filename == _MODULE_CALLS:
            return frames, True
    return frames, False


def site_of(frame: FrameType | None, called: Any = None) -> tuple[nn.Module, Site] | None:
    """The module whose ``forward`` is running in a frame, or calls it, and the call it is in.

    None where the code on the way is no plain function, or is not found as text; and where the call
    names another function than ``called``, which then calls that (a `functools.partial`, ``map``).
    """
    frames, whole = _way(frame)
    if not whole:
        return None
    outermost = frames[-1]
    names = outermost.f_code.co_varnames
    module = outermost.f_locals.get(names[0]) if names else None
    if not isinstance(module, nn.Module):
        return None
    found = _site(module, [(each.f_code, each.f_lasti) for each in reversed(frames)], called)
    return (module, found) if found else None


def _site(module: nn.Module, calls: list[tuple[CodeType, int]], called: Any) -> Site | None:
    """The site of the last of some nested calls, of which the forward makes the first."""
    function = _method(module, "forward")
    place, call, names_it, texts = "forward", None, True, list[_Text]()
    for code, instruction in calls:
        if function is None or not _is_of(code, function):
            return None
        written = _text_of(function)
        number = written.number(code, instruction) if written else None
        if written is None or number is None:
            return None
        texts.append(written)
        call = written.calls[number]
        place = f"{place}/{number}"
        names_it = called is None or _names(module, function, call.func, called)
        function = _called(module, function, call)
    if call is None or not names_it:
        return None
    return Site(f"{place}#{_digest(texts)}", ast.unparse(call))


def _names(module: nn.Module, function: FunctionType, target: ast.expr, called: Any) -> bool:
    """Whether what is called by its text is this function: by a name that it goes by in the file,
    as what the module holds, or as a method of a tensor.
    """
    name = getattr(called, "__name__", None)
    found = _named(target, function)
    if found is None and isinstance(target, ast.Attribute):
        if _names_self(target.value, function):
            found = getattr(module, target.attr, None)
        else:
            return target.attr == name
    return found is not None and getattr(found, "__name__", None) == name


def _is_of(code: CodeType, function: FunctionType) -> bool:
    """Whether code is a function's, or what `rewritten` made of it."""
    own = function.__code__
    return code is own or (code.co_filename, code.co_firstlineno, code.co_name) == (
        own.co_filename,
        own.co_firstlineno,
        own.co_name,
    )


def _method(module: nn.Module, name: str) -> FunctionType | None:
    """A method of a module's own class; None for what is no plain function."""
    if name in vars(module):
        return None
    kind: Any = base_class(type(module))
    found = inspect.getattr_static(kind, name, None)
    return found if _is_plain(found) else None


def _is_plain(found: Any) -> bool:
    return isinstance(found, FunctionType) and not hasattr(found, "__wrapped__")


def _called(module: nn.Module, function: FunctionType, call: ast.Call) -> FunctionType | None:
    """The function that a call names, where that can be told without running it."""
    target = call.func
    if isinstance(target, ast.Attribute) and _names_self(target.value, function):
        return _method(module, target.attr)
    found = _named(target, function)
    return found if _is_plain(found) else None


def _names_self(node: ast.expr, function: FunctionType) -> bool:
    first = function.__code__.co_varnames[:1]
    return isinstance(node, ast.Name) and (node.id,) == first


def _named(node: ast.expr, function: FunctionType) -> Any:
    """What an expression names among the globals of a function, or in modules among these."""
    if isinstance(node, ast.Attribute):
        holder = _named(node.value, function)
        known = isinstance(holder, (ModuleType, type))
        return inspect.getattr_static(holder, node.attr, None) if known else None
    code = function.__code__
    if not isinstance(node, ast.Name) or node.id in (*code.co_varnames, *code.co_cellvars):
        return None
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name == node.id:
            return cell.cell_contents
    return function.__globals__.get(node.id)


# --- the text of a function -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """A function as it is written.

    Attributes:
        tree: a module that holds its definition alone.
        calls: number -> call, in the order of the text.
        owner: the class that it is written in; ``""`` for none.
    """

    tree: ast.Module
    calls: dict[int, ast.Call]
    owner: str

    @cached_property
    def spelt(self) -> bytes:
        """Its arguments and its code, without what is said of it."""
        definition: Any = self.tree.body[0]
        body = definition.body
        if ast.get_docstring(definition, clean=False) is not None:
            body = body[1:]
        parts = [_Spelt().visit(copy.deepcopy(part)) for part in (definition.args, *body)]
        return b"".join(ast.unparse(part).encode() + b"\n" for part in parts)

    def number(self, code: CodeType, instruction: int) -> int | None:
        """Which call an instruction of the function's code belongs to."""
        spot = _spot(code, instruction)
        for number, call in self.calls.items():
            if spot == (call.lineno, call.end_lineno, call.col_offset, call.end_col_offset):
                return number
        return None


def _digest(texts: Iterable[_Text]) -> str:
    """A short digest of what functions do, whatever is said of it."""
    return hashlib.sha256(b"".join(text.spelt for text in texts)).hexdigest()[:12]


class _Spelt(ast.NodeTransformer):
    """f-strings as calls with their parts: from Python 3.12 on they are written with other quotes
    than before, and a digest of the text would tell the versions apart.
    """

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        # Python 3.12 ends some with an empty string.
        parts = [p for p in node.values if not isinstance(p, ast.Constant) or p.value]
        return ast.Call(ast.Name("f"), parts, [])

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        parts = [node.value, ast.Constant(node.conversion)]
        if node.format_spec is not None:
            parts.append(node.format_spec)
        return ast.Tuple(parts, ast.Load())


def check_call(module: nn.Module, place: str) -> None:
    """Refuse a place in the code of a module of which the code is another than when it was found.

    Raises:
        SurgeryError: it is, or there is no such place.
    """
    way, _, digest = place.partition("#")
    function, texts = _method(module, "forward"), list[_Text]()
    for number in way.split("/")[1:]:
        text = function and _text_of(function)
        if text is None or not number.isdecimal() or int(number) not in text.calls:
            break
        texts.append(text)
        function = _called(module, cast(FunctionType, function), text.calls[int(number)])
    if len(texts) != way.count("/") or _digest(texts) != digest:
        kind = base_class(type(module)).__name__
        raise SurgeryError(
            f"the code of {kind} is not what it was when the cut was planned, so that one of its "
            "calls cannot be told from the others: take that code, or trace and cut anew"
        )


_TEXTS: weakref.WeakKeyDictionary[FunctionType, _Text | None] = weakref.WeakKeyDictionary()


def _text_of(function: FunctionType) -> _Text | None:
    """The text of a function; None where it is not at hand, or makes other instructions."""
    if function not in _TEXTS:
        _TEXTS[function] = _read(function)
    return _TEXTS[function]


def _read(function: FunctionType) -> _Text | None:
    try:
        lines, first = inspect.getsourcelines(function)
        indented = lines[0][:1].isspace()
        tree = ast.parse("if 1:\n" * indented + "".join(lines))
    except (OSError, TypeError, SyntaxError):
        return None
    ast.increment_lineno(tree, first - 1 - indented)
    body: Any = tree.body[0]
    if indented:
        body = body.body[0]
    if not isinstance(body, ast.FunctionDef) or body.decorator_list:
        return None
    calls = [node for node in ast.walk(body) if isinstance(node, ast.Call)]
    calls.sort(key=lambda c: (c.lineno, c.col_offset, c.end_lineno or 0, c.end_col_offset or 0))
    for number, call in enumerate(calls, 1):
        call.number = number  # type: ignore[attr-defined]  # in copies of the tree, too
    owner = function.__qualname__.rpartition(".")[0].rpartition(".")[2]
    if not owner.isidentifier():  # none, or a function
        owner = ""
    text = _Text(ast.Module([body], []), dict(enumerate(calls, 1)), owner)
    if _alike(_compiled(function, text.tree, owner, ()), function.__code__):
        return text
    return None


def _compiled(
    function: FunctionType, tree: ast.Module, owner: str, more: tuple[str, ...]
) -> CodeType:
    """The code of a definition, with the free names of a function and ``more`` of them."""
    definition: Any = tree.body[0]
    bare = ast.FunctionDef(
        definition.name, _without_defaults(definition.args), definition.body, [], None
    )
    ast.copy_location(bare, definition)
    bare.type_params = []  # type: ignore[attr-defined, unused-ignore]  # of Python 3.12
    around: ast.stmt = bare
    if owner:  # in whose body names with two underscores are others
        around = ast.ClassDef(owner, [], [], [bare], [])
        around.type_params = []  # type: ignore[attr-defined, unused-ignore]
    free = [name for name in function.__code__.co_freevars if name != "__class__"]
    outer = ast.parse(f"def outer({', '.join([*free, *more])}): pass")
    outer.body[0].body = [around]  # type: ignore[attr-defined]
    # Calls of what a file imports make instructions of their own.
    outer.body[:0] = [ast.Import([ast.alias(name)]) for name in _imported(function)]
    ast.fix_missing_locations(outer)
    flags = function.__code__.co_flags & _FUTURE
    filename = function.__code__.co_filename
    made = compile(outer, filename, "exec", flags, dont_inherit=True)
    return next(code for code in _within(made) if code.co_name == definition.name)


@cache
def _symbols(filename: str, source: str) -> symtable.SymbolTable:
    return symtable.symtable(source, filename, "exec")


def _imported(function: FunctionType) -> list[str]:
    """The names that a function's code reads which the file around it imports."""
    code = function.__code__
    table = _symbols(code.co_filename, "".join(inspect.findsource(function)[0]))
    known = set(table.get_identifiers())
    return [n for n in code.co_names if n in known and table.lookup(n).is_imported()]


def _without_defaults(arguments: ast.arguments) -> ast.arguments:
    """Without default values and annotations, which were worked out when the function was made."""

    def bare(argument: ast.arg | None) -> Any:
        return argument and ast.copy_location(ast.arg(argument.arg), argument)

    return ast.arguments(
        [bare(a) for a in arguments.posonlyargs],
        [bare(a) for a in arguments.args],
        bare(arguments.vararg),
        [bare(a) for a in arguments.kwonlyargs],
        [None] * len(arguments.kwonlyargs),
        bare(arguments.kwarg),
        [],
    )


def _within(code: CodeType) -> Iterator[CodeType]:
    """The code that is made within other code, the outermost first."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    yield from chain(inner, *map(_within, inner))


def _alike(one: CodeType, other: CodeType) -> bool:
    """Whether two pieces of code do the same, wherever they stand."""
    if one.co_code != other.co_code or len(one.co_consts) != len(other.co_consts):
        return False
    names = "co_names", "co_varnames", "co_freevars", "co_cellvars"
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    same &= not (one.co_flags ^ other.co_flags) & ~inspect.CO_NESTED
    return same and all(map(_same_constant, one.co_consts, other.co_consts))


def _same_constant(one: Any, other: Any) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return _alike(one, other)
    return type(one) is type(other) and repr(one) == repr(other)


# --- other calls ----------------------------------------------------------------------------------


class _Other(ast.NodeTransformer):
    """Puts other calls in the places of some."""

    def __init__(self, names: Mapping[int, str], function: FunctionType) -> None:
        self.names, self.function = names, function

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name, target = self.names.get(node.number), node.func  # type: ignore[attr-defined]
        known = _named(target, self.function) is not None
        self.generic_visit(node)
        if name is None:
            return node
        arguments = node.args
        if isinstance(node.func, ast.Attribute) and not known:
            arguments = [node.func.value, *arguments]  # a method's own object
        called = ast.copy_location(ast.Name(name, ast.Load()), target)
        return ast.copy_location(ast.Call(called, arguments, node.keywords), node)


def rewritten(module: nn.Module, function: FunctionType, instead: Replacements) -> FunctionType:
    """A function whose calls at some places are calls of something else.

    Args:
        module: whose code calls it, or whose method it is.
        function: as it is written.
        instead: by place, such as ``"2"``, or ``"2/1"`` in a function that it calls.

    Raises:
        SurgeryError: there is no such call.
    """
    text = _text_of(function)
    within: dict[int, dict[str, Callable[..., Any]]] = {}
    for place, other in instead.items():
        first, _, rest = place.partition("/")
        within.setdefault(int(first), {})[rest] = other
    if text is None or not within.keys() <= text.calls.keys():
        raise SurgeryError(f"there is no call {', '.join(instead)} in {function.__qualname__}")
    names = {number: f"_other_{number}" for number in within}
    others = {
        names[number]: inner.get("") or _deeper(module, function, text.calls[number], inner)
        for number, inner in within.items()
    }
    tree = _Other(names, function).visit(copy.deepcopy(text.tree))
    code = _compiled(function, tree, text.owner, tuple(others))
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: CellType(other) for name, other in others.items()}
    closure = tuple(cells[name] for name in code.co_freevars)
    made = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, closure
    )
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    made.__module__, made.__doc__ = function.__module__, function.__doc__
    made.__annotations__ = function.__annotations__
    return made


def _deeper(
    module: nn.Module, function: FunctionType, call: ast.Call, others: Replacements
) -> FunctionType:
    called = _called(module, function, call)
    if called is None:
        raise SurgeryError(f"{ast.unparse(call)} in {function.__qualname__} calls no function")
    return rewritten(module, called, others)


def base_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class whose calls a class replaces; itself for any other."""
    found: type[nn.Module] = vars(kind).get(_BASE, kind)
    return found


def replaced_calls(module: object) -> Mapping[str, Callable[..., Any]]:
    """What is called instead at which places of a module's code."""
    found: Mapping[str, Callable[..., Any]] = vars(type(module)).get(_CALLS, {})
    return found


def replace_calls(module: nn.Module, instead: Replacements) -> None:
    """Have other things called at some places of a module's code, beside those that are already.

    Args:
        module: becomes one of another class.
        instead: place, as of a `Site` -> what is called with the arguments; a method's object is
            the first. It must be fit to be pickled.

    Raises:
        SurgeryError: there is no such call, or the module keeps its class.
    """
    base, calls = base_class(type(module)), {**replaced_calls(module), **instead}
    forward = _method(module, "forward")
    if forward is None:
        raise SurgeryError(f"the forward of {base.__name__} is no function of its class")
    for place in calls:
        check_call(module, place)
    below = {_within_forward(place): other for place, other in calls.items()}
    body = {
        "forward": rewritten(module, forward, below),
        "__reduce_ex__": _reduced,
        "__prepare_scriptable__": NotScripted.__prepare_scriptable__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        _BASE: base,
        _CALLS: calls,
    }
    try:
        module.__class__ = type(base.__name__, (base,), body)
    except TypeError as error:
        raise SurgeryError(f"a {base.__name__} keeps its class: {error}") from error


def _within_forward(place: str) -> str:
    """``2/1`` of ``forward/2/1#0f3a...``."""
    return place.partition("#")[0].removeprefix("forward/")


@cache
def replaceable(kind: Any, place: str) -> bool:
    """Whether a call of the code of modules of a class can be replaced."""
    module = kind.__new__(kind)
    forward = _method(module, "forward")
    with suppress(SurgeryError):
        if forward is not None:
            rewritten(module, forward, {_within_forward(place): replaceable})
            return True
    return False


def _reduced(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """How a module of such a class is copied and pickled."""
    state = module.__getstate__()  # type: ignore[no-untyped-call]
    return _revived, (base_class(type(module)), dict(replaced_calls(module))), state


def _revived(base: type[nn.Module], calls: Replacements) -> nn.Module:
    module = base.__new__(base)
    vars(module).setdefault("training", False)
    replace_calls(module, calls)
    return module


__all__ = [
    "Site",
    "base_class",
    "caller",
    "check_call",
    "replace_calls",
    "replaceable",
    "replaced_calls",
    "site_of",
    "way_to",
]
