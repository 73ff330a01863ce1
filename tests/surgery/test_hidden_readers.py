"""A width that code reads out of the class's sight is a number of that code, and stays as it is."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netslim
from nets import cut_half
from netslim.graph.integers import names_read
from netslim.surgery.proof.silencing import randomise

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Read = Callable[[Any, Tensor], Tensor]


class Block(nn.Module):
    """Its forward reads no width; what the hidden code makes of one is `tail`'s to read."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def tail(self, y: Tensor) -> Tensor:
        out: Tensor = self.fc(self.b(y).relu().mean((2, 3)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.a(x).relu())


def multiplied(m: Any, y: Tensor) -> Tensor:
    return y * m.width


def logarithm(m: Any, y: Tensor) -> Tensor:
    return y / math.log2(m.width)


READINGS: dict[str, Read] = {"multiplied": multiplied, "logarithm": logarithm}
CHOSEN: dict[str, Read] = {}


class Registered(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(CHOSEN["read"](self, self.a(x).relu()))


def registered(read: Read) -> nn.Module:
    CHOSEN["read"] = read
    return Registered()


def enclosed(read: Read) -> nn.Module:
    class Enclosed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.tail(read(self, self.a(x).relu()))

    return Enclosed()


def partial(read: Read) -> nn.Module:
    class Partial(Block):
        def __init__(self) -> None:
            super().__init__()
            self.scale = functools.partial(read, self)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.scale(self.a(x).relu()))

    return Partial()


def patched(read: Read) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        return self.tail(read(self, self.a(x).relu()))

    model = Block()
    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]
    return model


def hooked(read: Read) -> nn.Module:
    model = Block()
    model.register_forward_hook(lambda m, args, out: read(m, out))
    return model


def hooked_before(read: Read) -> nn.Module:
    model = Block()
    model.b.holder = [model]  # type: ignore[assignment]
    model.b.register_forward_pre_hook(lambda m, args: read(m.holder[0], args[0]))
    return model


def decorated(read: Read) -> nn.Module:
    def scaled(method: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            return read(self, method(self, *args))

        return call

    class Decorated(Block):
        @scaled
        def features(self, x: Tensor) -> Any:
            return self.a(x).relu()

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.features(x))

    return Decorated()


class Reader:
    """An object that can be called, and knows the model."""

    def __init__(self, model: nn.Module, read: Read) -> None:
        self.model, self.read = [model], read

    def __call__(self, y: Tensor) -> Tensor:
        return self.read(self.model[0], y)


def called(read: Read) -> nn.Module:
    class Called(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.tail(Reader(self, read)(self.a(x).relu()))

    return Called()


FORMS = [registered, enclosed, partial, patched, hooked, hooked_before, decorated, called]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("form", FORMS)
def test_a_width_that_hidden_code_reads_stays(form: Any, reading: str) -> None:
    torch.manual_seed(0)
    model = randomise(form(READINGS[reading]).double().eval())
    _, plan = cut_half(model, X)
    assert "a" in plan.groups
    assert [patch.attribute for patch in plan.patches] == []
    small = netslim.prune(model, plan)
    assert vars(small)["width"] == 8
    assert netslim.verify(model, small, plan, X).deviation < 1e-10


def test_a_width_that_nobody_reads_while_it_runs_follows() -> None:
    torch.manual_seed(0)
    model = Block().double().eval()
    _, plan = cut_half(model, X)
    assert [(patch.attribute, patch.new) for patch in plan.patches] == [("width", 4)]


def wrapped(method: Any) -> Any:
    """Decorated methods share its code, and differ in what it encloses."""
    return lambda self, *args: method(self, *args)


def test_each_of_several_methods_in_one_decorator_is_looked_through() -> None:
    class Wrapped(Block):
        @wrapped
        def features(self, x: Tensor) -> Any:
            return self.a(x) * self.unheard_of

        @wrapped
        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.features(x))

    assert "unheard_of" in names_read(Wrapped())


def helpers(count: int) -> dict[str, Any]:
    """A module of functions each of which calls the next one."""
    space: dict[str, Any] = {"__name__": "helpers"}
    lines = [f"def f{i}(m):\n    return f{(i + 1) % count}(m)\n" for i in range(count)]
    exec("".join(lines), space)
    return space


def calls_to_look_through(count: int) -> int:
    """How many calls it takes where as many methods lead to the same functions."""
    space = helpers(count)
    lines = [f"def m{i}(self):\n    f{i}(self)\n    self.only{i}\n" for i in range(count)]
    exec("".join(lines), space)
    model = type("Methods", (Block,), {f"m{i}": space[f"m{i}"] for i in range(count)})()
    calls = 0

    def count_calls(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count_calls)
    try:
        names_read(model)
    finally:
        sys.setprofile(before)
    return calls


def test_code_is_looked_through_once_and_not_once_for_each_method() -> None:
    few, many = calls_to_look_through(20), calls_to_look_through(80)
    assert many < 5 * few


def test_code_without_a_module_is_looked_through() -> None:
    space: dict[str, Any] = {}
    exec("def forward(x):\n    return x.unheard_of", space)
    model = Block()
    model.forward = space["forward"]  # type: ignore[method-assign]
    assert "unheard_of" in names_read(model)


class Elsewhere:
    """As `torch.classes`: what its attributes are, another library decides."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no class {name} is registered")


ELSEWHERE = Elsewhere()


def test_objects_that_raise_when_asked_are_passed_by() -> None:
    space: dict[str, Any] = {"ELSEWHERE": ELSEWHERE}
    exec("def forward(x):\n    return ELSEWHERE and x.unheard_of", space)
    model = Block()
    model.forward = space["forward"]  # type: ignore[method-assign]
    assert "unheard_of" in names_read(model)
