"""Every public name has an example in its docstring, and the example runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import warnings

import pytest
import torch
from torch import nn

import netslim
from netslim.graph.rules.registry import RULES
from netslim.selection.budget import RESOURCES
from netslim.selection.criteria.registry import CRITERIA
from netslim.surgery.proof.silencing import randomise
from rooms import listing_rooms


def network() -> nn.Module:
    torch.manual_seed(0)
    model = netslim.zoo.vgg(layers=[8, "M", 16], in_channels=1, num_classes=3)
    return randomise(model).eval()


def surroundings() -> dict[str, object]:
    """The names that stand in examples without being made there."""
    torch.manual_seed(1)
    images = torch.randn(4, 1, 8, 8)
    labels = torch.tensor([0, 1, 2, 1])

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        return float((model(images).argmax(1) == labels).float().mean())

    return {
        "netslim": netslim,
        "torch": torch,
        "nn": nn,
        "F": nn.functional,
        "model": network(),
        "images": images,
        "loader": [(images, labels)] * 2,
        "accuracy": accuracy,
    }


@pytest.fixture(autouse=True)
def nothing_stays_taught():
    """What an example registers is known to that example alone."""
    before = [(known, dict(known)) for known in (RULES, CRITERIA, RESOURCES)]
    yield
    for known, entries in before:
        known.clear()
        known.update(entries)


NEED_ONNX = ("netslim.quantize", "netslim.methods.Quantized")
ROOMS = [*listing_rooms(), "netslim.ranks"]


def taught(room: str) -> list[str]:
    """Names of the classes and functions that a room lists.

    Exceptions are caught, not made; tables, constants, modules and aliases of types have no
    docstring of their own.
    """
    names = []
    for name in importlib.import_module(room).__all__:
        thing = inspect.unwrap(getattr(importlib.import_module(room), name))
        made = isinstance(thing, type) and not issubclass(thing, Exception)
        if made or inspect.isfunction(thing):
            names.append(name)
    return names


def known_names() -> list[str]:
    """Each name once, in the first room that lists it."""
    first = {}
    for room in ROOMS:
        for name in taught(room):
            thing = getattr(importlib.import_module(room), name)
            first.setdefault(id(thing), f"{room}.{name}")
    return list(first.values())


@pytest.mark.parametrize("name", known_names())
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    if name in NEED_ONNX:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    room, _, last = name.rpartition(".")
    text = inspect.getdoc(getattr(importlib.import_module(room), last)) or ""
    examples = doctest.DocTestParser().get_examples(text)
    assert any(last in example.source for example in examples), f"{name} has no example"
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTest(examples, surroundings(), name, None, 0, text)
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with warnings.catch_warnings():
        runner.run(test, out=lines.append)
    assert not lines, "".join(lines)
