"""A size is an integer to the code that handles it: what comes of it is right, and is accounted for.

Whatever is done to a size gives what an integer gives, and either follows (a `Size` whose expression
works out to the result, or a `Value`), or is a plain number of which the watchers are told.
"""

from __future__ import annotations

import copy
import json
import math
import operator
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netslim import prune, trace, verify
from netslim.errors import TraceError, VerificationError
from netslim.graph.tracing.sizes import Size, Value, evaluate, watchers
from netslim.surgery.plan_of_units import plan_keeping

NUMBER = 12
ATTRIBUTE = ("attribute", "", "width")

# A result that follows: a size, or a tuple with sizes.
FOLLOWED = {
    "__abs__": (), "__add__": (5,), "__and__": (5,), "__ceil__": (), "__divmod__": (5,),
    "__floor__": (), "__floordiv__": (5,), "__invert__": (), "__lshift__": (2,), "__mod__": (5,),
    "__mul__": (5,), "__neg__": (), "__or__": (5,), "__pos__": (), "__pow__": (2,),
    "__radd__": (5,), "__rand__": (5,), "__rdivmod__": (50,), "__rfloordiv__": (50,),
    "__rlshift__": (1,), "__rmod__": (50,), "__rmul__": (5,), "__ror__": (5,), "__round__": (),
    "__rpow__": (2,), "__rrshift__": (5000,), "__rshift__": (1,), "__rsub__": (5,),
    "__rxor__": (5,), "__sub__": (5,), "__trunc__": (), "__xor__": (5,),
    "as_integer_ratio": (), "conjugate": (),
}  # fmt: skip
FRACTIONS = {"__truediv__": (5,), "__rtruediv__": (5,)}
TOLD = {
    "__bool__": (), "__eq__": (5,), "__float__": (), "__format__": ("03d",), "__ge__": (5,),
    "__getnewargs__": (), "__gt__": (5,), "__index__": (), "__int__": (), "__le__": (5,),
    "__lt__": (5,), "__ne__": (5,), "__repr__": (), "__str__": (),
    "bit_count": (), "bit_length": (), "to_bytes": (2, "big"),
}  # fmt: skip
ATTRIBUTES = {"real", "numerator"}
# What is the same for every integer, belongs to the class, or leads to the entries above.
CONSTANT = {
    "__class__", "__delattr__", "__dir__", "__doc__", "__getattribute__", "__init__",
    "__init_subclass__", "__new__", "__reduce__", "__reduce_ex__", "__setattr__", "__sizeof__",
    "__subclasshook__", "__getstate__", "__hash__", "denominator", "imag", "from_bytes",
    "is_integer",
}  # fmt: skip


@contextmanager
def told() -> Iterator[list[str]]:
    found: list[str] = []
    watcher = get_ident(), lambda what, left, right: found.append(what)
    watchers.append(watcher)
    try:
        yield found
    finally:
        watchers.remove(watcher)


def width() -> Size:
    return Size(NUMBER, ATTRIBUTE)


def check_followed(result: Any, wanted: Any) -> None:
    """Equal, and each size among it works out to the same for this width and would for others."""
    parts = [*result] if isinstance(result, tuple) else [result]
    assert any(isinstance(part, Size) for part in parts)
    for part, plain in zip(parts, wanted if isinstance(wanted, tuple) else [wanted], strict=True):
        assert int.__int__(part) == plain
        if isinstance(part, Size):
            assert evaluate(part.expression, lambda symbol: NUMBER) == plain


def test_every_method_of_integers_is_considered() -> None:
    considered = {*FOLLOWED, *FRACTIONS, *TOLD, *ATTRIBUTES, *CONSTANT}
    assert not set(dir(int)) - considered


@pytest.mark.parametrize("name", FOLLOWED)
def test_methods_that_follow(name: str) -> None:
    args = FOLLOWED[name]
    check_followed(getattr(width(), name)(*args), getattr(NUMBER, name)(*args))


@pytest.mark.parametrize("name", FRACTIONS)
def test_methods_that_leave_the_integers(name: str) -> None:
    with told() as found:
        result = getattr(width(), name)(*FRACTIONS[name])
    assert isinstance(result, Value)
    assert float.__float__(result) == getattr(NUMBER, name)(*FRACTIONS[name])
    assert found == ["float"]


@pytest.mark.parametrize("name", TOLD)
def test_methods_whose_result_is_plain_are_told(name: str) -> None:
    with told() as found:
        result = getattr(width(), name)(*TOLD[name])
    assert result == getattr(NUMBER, name)(*TOLD[name])
    assert type(result) is type(getattr(NUMBER, name)(*TOLD[name]))
    assert found


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_attributes_follow(name: str) -> None:
    check_followed(getattr(width(), name), NUMBER)


OPERATORS: dict[str, tuple[Any, ...]] = {
    "abs": (), "add": (5,), "and_": (5,), "floordiv": (5,), "inv": (), "invert": (),
    "lshift": (1,), "mod": (5,), "mul": (5,), "neg": (), "or_": (5,), "pos": (), "pow": (2,),
    "rshift": (1,), "sub": (5,), "xor": (5,), "iadd": (5,), "iand": (5,), "ifloordiv": (5,),
    "ilshift": (1,), "imod": (5,), "imul": (5,), "ior": (5,), "ipow": (2,), "irshift": (1,),
    "isub": (5,), "ixor": (5,),
}  # fmt: skip
OPERATORS_TOLD = {
    "eq": (5,), "ne": (5,), "lt": (5,), "le": (5,), "gt": (5,), "ge": (5,), "truth": (),
    "not_": (), "truediv": (5,), "itruediv": (5,),
}  # fmt: skip
_OTHER_OPERATORS = {  # not of numbers, or of what a thing is
    "attrgetter", "call", "concat", "contains", "countOf", "delitem", "getitem", "iconcat",
    "imatmul", "index", "indexOf", "is_", "is_not", "itemgetter", "length_hint", "matmul",
    "methodcaller", "setitem", "is_none", "is_not_none",
}  # fmt: skip


def test_every_operator_is_considered() -> None:
    assert not set(operator.__all__) - {*OPERATORS, *OPERATORS_TOLD, *_OTHER_OPERATORS}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_follow(name: str) -> None:
    function = getattr(operator, name)
    check_followed(function(width(), *OPERATORS[name]), function(NUMBER, *OPERATORS[name]))


@pytest.mark.parametrize("name", OPERATORS_TOLD)
def test_operators_are_told(name: str) -> None:
    function = getattr(operator, name)
    with told() as found:
        assert function(width(), *OPERATORS_TOLD[name]) == function(NUMBER, *OPERATORS_TOLD[name])
    assert found


# Of `math`: what works with whole numbers, by C code that does not ask; what asks for a float.
WHOLE = {
    "comb": (2,), "factorial": (), "gcd": (8,), "isqrt": (), "lcm": (8,), "perm": (2,),
    "log": (), "log2": (), "log10": (),
}  # fmt: skip
TWO = {
    "atan2", "copysign", "dist", "fmod", "hypot", "isclose", "nextafter", "pow", "remainder",
    "fmax", "fmin", "cbrt",
}  # fmt: skip
_UNFIT = {"acos", "asin", "atanh", "ldexp", "fsum", "prod", "dist", "sumprod", "fma", "integer"}


def _functions_of_floats() -> list[str]:
    known = {*WHOLE, *_UNFIT, "ceil", "floor", "trunc"}
    return [n for n in dir(math) if callable(getattr(math, n)) and n not in known and n[0] != "_"]


@pytest.mark.parametrize("name", WHOLE)
def test_functions_of_whole_numbers_give_ordinary_ones(name: str) -> None:
    function = getattr(math, name)
    result = function(width(), *WHOLE[name])
    assert type(result) in (int, float)
    assert result == function(NUMBER, *WHOLE[name])


@pytest.mark.parametrize("name", _functions_of_floats())
def test_functions_of_floats_are_told(name: str) -> None:
    function = getattr(math, name)
    others = (5.0,) if name in TWO - {"cbrt"} else ()
    with told() as found:
        result = function(width(), *others)
    assert result == function(NUMBER, *others)
    assert "float" in found


@pytest.mark.parametrize("name", ["ceil", "floor", "trunc"])
def test_rounding_follows(name: str) -> None:
    check_followed(getattr(math, name)(width()), NUMBER)


@pytest.mark.parametrize(
    "follow",
    [
        lambda k: sum([k, k]), lambda k: math.prod([k, 2]), lambda k: k**2, lambda k: 2**k,
        lambda k: divmod(k, 5), lambda k: round(k), lambda k: k * True, lambda k: max(k, 5),
        lambda k: [1, k][1], lambda k: {k: k}[k],
    ],
)  # fmt: skip
def test_built_in_functions_follow(follow: Callable[[int], Any]) -> None:
    check_followed(follow(width()), follow(NUMBER))


@pytest.mark.parametrize(
    "use",
    [
        lambda k: f"{k}", lambda k: f"{k:>5}", lambda k: str(k), lambda k: f"{k!r}",
        lambda k: {12: "a"}[k], lambda k: k in {12}, lambda k: k in (1, 2),
        lambda k: round(k, -1), lambda k: pow(k, 2, 7), lambda k: k * 2j, lambda k: [0] * k,
        lambda k: "ab" * k, lambda k: k * np.float32(2), lambda k: k < np.int64(3),
        lambda k: k == np.int64(3), lambda k: k ** -1, lambda k: k**0.5, lambda k: k * 0.5,
        lambda k: copy.copy(k), lambda k: copy.deepcopy(k), lambda k: pickle.loads(pickle.dumps(k)),
        lambda k: bool(k), lambda k: 1 if k % 5 else 2, lambda k: int(k), lambda k: float(k),
        lambda k: complex(k), lambda k: int(k / 5), lambda k: math.sqrt(k / 5), lambda k: k // 0.7,
        lambda k: (k / 5).is_integer(), lambda k: divmod(k / 5, 2), lambda k: abs(-k / 5),
    ],
)  # fmt: skip
def test_what_does_not_follow_is_told(use: Callable[[int], Any]) -> None:
    with told() as found:
        result = use(width())
    assert result == use(NUMBER)
    assert not isinstance(result, Size)
    assert found


@pytest.mark.parametrize(
    "use",
    [
        lambda k: [*range(k)], lambda k: [*range(100)][k], lambda k: "abcdefghijklmnopq"[:k],
        lambda k: json.dumps({"k": k}), lambda k: hash(k), lambda k: isinstance(k, int),
        lambda k: np.zeros(k).shape, lambda k: int(np.array(k)), lambda k: operator.index(k),
        lambda k: torch.zeros(k).shape, lambda k: torch.tensor(k).item(), lambda k: hex(k),
        lambda k: torch.zeros(k**2, 3).shape, lambda k: [*range(k**2)], lambda k: k.denominator,
        lambda k: isinstance(k**2, int), lambda k: int(torch.IntTensor([k**2])),
    ],
)  # fmt: skip
def test_it_is_an_integer_to_all_that_takes_one(use: Callable[[int], Any]) -> None:
    assert use(width()) == use(NUMBER)


# --- within networks ------------------------------------------------------------------------------


class Powers(nn.Module):
    """Nine rows a channel, told as a power; also read by what takes whole numbers alone."""

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.k = k
        self.a, self.b = nn.Conv2d(4, 72, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).view(len(x), -1, self.k**2, *x.shape[2:])
        weights = torch.zeros(self.k**2)
        for i in range(self.k**2):
            weights[i] = [*range(10)][: self.k**2][i]
        return self.b((h * weights[:, None, None]).sum(2)).mean((2, 3))


def test_a_power_is_a_size() -> None:
    graph = trace(Powers(), torch.randn(2, 4, 5, 5))
    assert (graph["a"].size, len(graph["a"].slices[0].positions)) == (8, 72)
    assert graph["a"].prunable


class ThroughTensor(nn.Module):
    """Its width goes through a tensor of integers, besides the way that netslim sees."""

    def __init__(self, h: int = 8) -> None:
        super().__init__()
        self.hidden = h
        self.pre, self.gate = nn.Conv1d(3, h, 1), nn.Conv1d(h, 2 * h, 3, padding=1)
        self.res, self.post = nn.Conv1d(h, 2 * h, 1), nn.Conv1d(h, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, x = torch.IntTensor([self.hidden]), self.pre(x)
        h = self.gate(x)
        r = self.res(torch.tanh(h[:, : n[0]]) * torch.sigmoid(h[:, n[0] :]))
        return self.post(x + r[:, : self.hidden] + r[:, self.hidden :])


def test_an_attribute_that_goes_through_a_tensor_stays() -> None:
    graph = trace(ThroughTensor(), torch.randn(1, 3, 16))
    assert "a tensor of integers takes hidden" in str(graph["pre"].reason)


class Remainder(nn.Module):
    """Pads to a multiple of five; a cut to ten channels would need no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.shape[1] % 5:
            h = h * 2
        return self.b(h)


def test_the_truth_of_a_size_is_a_decision() -> None:
    graph = trace(Remainder(), torch.randn(1, 3, 4, 4))
    assert "a decision in the code depends on it" in str(graph["a"].reason)


class AsksForTheType(nn.Module):
    """Takes a width or a pair of them, and tells them apart by a question of its own."""

    def __init__(self, single: Callable[[Any], bool]) -> None:
        super().__init__()
        self.single, self.width = single, 12
        self.a, self.b = nn.Linear(3, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        width: Any = self.width
        if not self.single(width):
            width = width[0]
        return self.b(self.a(x).relu().view(-1, width))


@pytest.mark.parametrize("single", [lambda k: type(k) is int, lambda k: type(k) == int])  # noqa: E721
def test_code_that_asks_for_the_type_itself_is_told_what_to_ask(
    single: Callable[[Any], bool],
) -> None:
    with pytest.raises(TraceError, match=r"let it ask isinstance\(size, int\)"):
        trace(AsksForTheType(single), torch.randn(2, 3))
    graph = trace(AsksForTheType(lambda k: isinstance(k, int)), torch.randn(2, 3))
    assert graph["a"].prunable


def test_attention_that_is_given_functions_is_told_what_to_call(monkeypatch: Any) -> None:
    attention = pytest.importorskip("torch.nn.attention.flex_attention")
    flag = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"  # else it is compiled, which warns
    if not hasattr(attention, flag):
        pytest.skip("this PyTorch compiles it in any case")
    monkeypatch.setattr(attention, flag, True)

    class Flexible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)[:, None]
            return self.b(attention.flex_attention(y, y, y))

    with pytest.raises(TraceError, match=r"flex_attention does with .* F.scaled_dot_product"):
        trace(Flexible(), torch.randn(2, 5, 3))


class GoesAnotherWay(nn.Module):
    """Goes another way, without an error, where a size is not exactly an `int`."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.a, self.b = nn.Linear(3, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if type(self.width) is int:
            y = y.softmax(1)
        return self.b(y)


def test_a_way_that_no_trace_went_is_found_by_the_proof() -> None:
    model, x = GoesAnotherWay(), torch.randn(2, 3)
    graph = trace(model, x)
    assert graph["a"].prunable  # which is wrong: the softmax was not run
    plan = plan_keeping(graph, {graph.number("a"): np.arange(12) < 6})
    with pytest.raises(VerificationError):
        verify(model, prune(model, plan), plan, x)


def test_a_model_that_never_runs_is_told_nothing_of_sizes() -> None:
    with pytest.raises(TraceError) as caught:
        trace(nn.Linear(3, 4), torch.randn(2, 5))
    assert "isinstance" not in str(caught.value)
