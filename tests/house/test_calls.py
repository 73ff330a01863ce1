"""Whatever is public refuses a call that does not fit its signature, by the nearest name, before it
does anything.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import netslim
from netslim._support import call_checked, checks_calls
from netslim.errors import ArgumentError, NetslimError, RecipeError
from rooms import listing_rooms

# What no user calls: the inside of recording and of spending a budget, made and called in numbers,
# and what a module becomes.
INSIDE = {
    *("Asked", "Chooser", "Goal", "Ladder", "Labels", "Products", "Recorder", "Run", "Scorer"),
    *("SeparateHeads", "Slice", "Terms"),
}
# Ready-made rules take what an operator takes, in the operator's order.
OPERATORS = {
    *("attention", "batch_norm", "convolution", "group_norm", "layer_norm", "linear", "pointwise"),
    *("reduction", "same", "softmax"),
}


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Name and function of all that users call; of classes, the constructor and the methods."""
    told: set[int] = set()
    for room in listing_rooms():
        module = importlib.import_module(room)
        for name in module.__all__:
            thing = getattr(module, name)
            if id(thing) in told or name in INSIDE | OPERATORS:
                continue
            told.add(id(thing))
            if inspect.isclass(thing) and issubclass(thing, NetslimError):
                continue
            if inspect.isclass(thing):
                yield from methods(f"{room}.{name}", thing)
            elif inspect.isfunction(thing):
                yield f"{room}.{name}", thing


def methods(name: str, kind: type[Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield name, kind
    for method in dir(kind):
        function = getattr(kind, method)
        # Properties that are kept say their module, too, from Python 3.13 on.
        ours = callable(function) and str(getattr(function, "__module__", "")).startswith("netslim")
        if method.startswith("_") or method in ("forward", "extra_repr"):
            continue
        if ours and inspect.isroutine(function):
            yield f"{name}.{method}", function


PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_misspelt_keyword_is_refused_with_the_nearest(name):
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        pytest.skip("takes any keyword")
    known = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL,)]
    known = [one for one in known if one != "self"]
    wrong = f"{known[0]}z" if known else "nothing"
    with pytest.raises(ArgumentError, match=f"takes no '{wrong}'") as caught:
        PUBLIC[name](**{wrong: object()})
    if known:
        assert re.search(rf"did you mean .*'{known[0]}'", str(caught.value))


@pytest.mark.parametrize("name", PUBLIC)
def test_one_argument_too_many_is_refused(name):
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        pytest.skip("takes any number")
    with pytest.raises(ArgumentError, match=r"in order, .*, got"):
        PUBLIC[name](*[object()] * 20)


def test_the_walk_sees_the_whole_surface():
    assert {f"netslim.{name}" for name in netslim.__all__} - set(PUBLIC) == {"netslim.NetslimError"}
    assert "netslim.measure.LatencyTable.load" in PUBLIC
    assert "netslim.ChannelGraph.macs" in PUBLIC  # inherited
    assert "netslim.models.zoo.vgg19" in PUBLIC


def test_build_hands_its_keywords_on():
    with pytest.raises(RecipeError, match=r"no argument 'widht'.* did you mean 'width'"):
        netslim.models.build("zoo:vgg11", widht=0.5)
    with pytest.raises(RecipeError, match=r"no argument 'add_bm'.* did you mean 'add_bn'"):
        netslim.models.build("zoo:vgg11", add_bm=True)


@checks_calls
class Both:
    """Of its own."""

    def __init__(self, size: int, *, depth: int = 1) -> None:
        self.size, self.depth = size, depth

    @classmethod
    def of(cls, size: int) -> Both:
        return cls(size)

    @staticmethod
    def twice(size: int) -> int:
        return 2 * size

    def less(self, by: int, at_least: int = 0) -> int:
        return max(self.size - by, at_least)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Both(), "Both needs size: call it with (size)"),
        (
            lambda: Both(1, 2),
            "takes 1 argument in order, (size), got 2: the int 1, the int 2; give the others by name",
        ),
        (lambda: Both(1, 2), "such as depth=..."),
        (lambda: Both(1, dept=2), "Both takes no 'dept'; did you mean 'depth'?"),
        (lambda: Both(1, size=2), "Both got size twice, by its place and by its name"),
        (lambda: Both.of(), "Both.of needs size: call it with (size)"),
        (lambda: Both.of(siz=1), "Both.of takes no 'siz'; did you mean 'size'?"),
        (lambda: Both.twice(1, 2), "Both.twice takes 1 argument in order, (size), got 2"),
        (lambda: Both(1).less(at_leas=1), "takes no 'at_leas'; did you mean 'at_least'?"),
        (lambda: Both(1).less(), "Both.less needs by: call it with (by)"),
        (lambda: Both(1).less(1, 2, 3), "takes 2 arguments in order, (by, at_least), got 3"),
    ],
)
def test_what_does_not_fit_is_said_in_words(call, said):
    with pytest.raises(ArgumentError) as caught:
        call()
    assert said in str(caught.value)


MODEL, HALF = torch.nn.Linear(2, 2), netslim.Budget(cut_macs=0.5)


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        (
            (torch.ones(1), MODEL, HALF),
            {},
            "(model, example_inputs), got 3: a Tensor, a Linear, a Budget; give the others by "
            "name, such as budget=...",
        ),
        ((MODEL, HALF, torch.ones(1)), {}, "such as budget=..."),
        ((torch.ones(1), MODEL), {"budget": HALF}, "got Tensor; call slim(model, example_inputs"),
        ((MODEL, HALF), {}, "what the model takes, got a Budget: give that by name, budget=..."),
    ],
)
def test_a_wrong_order_names_what_was_given_and_what_is_expected(given, named, said):
    with pytest.raises(ArgumentError) as caught:
        netslim.slim(*given, **named)
    assert said in str(caught.value)


def test_what_fits_goes_through_and_errors_within_stay():
    assert (Both(3, depth=2).depth, Both.of(4).less(5), Both.twice(size=2)) == (2, 0, 4)

    def failing(size: int) -> None:
        raise TypeError("within")

    checked = checks_calls(failing)
    assert (checked.__name__, inspect.signature(checked)) == ("failing", inspect.signature(failing))
    assert call_checked(checked) is checked
    with pytest.raises(TypeError, match="within"):
        checked(1)


def test_models_can_still_be_compiled_and_exported():
    """What PyTorch follows into is not behind a look at the call."""
    model = nn.Sequential(netslim.models.ChannelSelect(4))
    x = torch.randn(1, 4, 2, 2)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), x)
