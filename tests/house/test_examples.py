"""Every public name has an example in its docstring, and the example runs."""

from __future__ import annotations

import doctest
import inspect
import operator
import warnings

import pytest
import torch
from torch import nn

import netslim
from netslim.graph.rules.registry import RULES
from netslim.selection.criteria.registry import CRITERIA
from netslim.surgery.proof.silencing import randomise


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
    before = [(known, dict(known)) for known in (RULES, CRITERIA)]
    yield
    for known, entries in before:
        known.clear()
        known.update(entries)


# What users call of the rooms; the rest is handed to them, or is what methods are made of.
IN_ROOMS = [
    *("measure.LatencyTable", "measure.size_on_disk", "methods.Sensitivity"),
    *("methods.parameter_groups", "models.add_bn", "models.build", "models.names"),
    *("selection.Compensation", "selection.Scoring", "selection.greedy", "selection.merge"),
    *("selection.normalized", "surgery.compensate", "surgery.recalibrate"),
]


@pytest.mark.parametrize("name", [*netslim.__all__, *IN_ROOMS])
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    text = inspect.getdoc(operator.attrgetter(name)(netslim)) or ""
    examples = doctest.DocTestParser().get_examples(text)
    last = name.rpartition(".")[2]
    assert any(last in example.source for example in examples), f"netslim.{name} has no example"
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTest(examples, surroundings(), name, None, 0, text)
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with warnings.catch_warnings():
        runner.run(test, out=lines.append)
    assert not lines, "".join(lines)
