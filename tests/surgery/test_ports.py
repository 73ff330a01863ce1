"""Inputs and outputs that are free to shrink: states that are handed back, features handed on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim.errors import ArgumentError
from netslim.surgery.plan_of_units import plan_keeping

HALF = netslim.Budget(cut_channels=0.5)
X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
H = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
STATE = (torch.randn(1, 2, 16), torch.randn(1, 2, 16))


class Streaming(nn.Module):
    """Reads some steps, and hands its state back for the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(16, 2)
        self.rnn = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x, state=None):
        y, state = self.rnn(self.a(x).tanh(), state)
        return self.b(y), state


class Cell(nn.Module):
    """By hand: nothing in it ties what comes in to what goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.out = nn.Linear(3, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x, h):
        h = torch.tanh(self.x(x[:, 0]) + self.h(h))
        return {"y": self.out(h), "h": h}


@pytest.fixture
def seed():
    torch.manual_seed(0)


def halved(model, inputs, **free):
    """(small, plan, the proof): every other unit of what can go is gone."""
    graph = netslim.trace(model, inputs, **free)
    masks = {n: np.arange(g.size) % 2 > 0 for n, g in enumerate(graph) if g.prunable}
    plan = plan_keeping(graph, masks)
    small = netslim.prune(model, plan)
    return small, plan, netslim.verify(model, small, plan, inputs)


def exactly(check):
    return check.deviation < 1e-10 and check.changed == check.cut


@pytest.mark.usefixtures("seed")
def test_a_state_that_is_handed_back_holds_its_layer_unless_it_is_free():
    model, given = Streaming().eval(), (X, STATE)
    assert "rnn" in netslim.trace(model, given).frozen
    free = {"free_outputs": [1], "free_inputs": ["state"]}
    graph = netslim.trace(model, given, **free)
    assert [g.name for g in graph.prunable] == ["a", "rnn"]
    assert [str(port) for port in graph.ports] == [
        "input state[0] (output[1][0], fed back)",
        "input state[1] (output[1][1], fed back)",
        "output[1][0]",
        "output[1][1]",
    ]
    assert "Free to shrink with them: input state[0]" in graph.explain("rnn")
    assert graph.to_dict()["ports"][0] == {
        "kind": "input",
        "name": "state[0]",
        "dim": 2,
        "size": 16,
        "fed_by": "output[1][0]",
        "groups": ["rnn"],
    }
    _, plan, check = halved(model, given, **free)
    assert exactly(check)
    assert "input state[0] (output[1][0], fed back): 16 -> 8 along dimension 2" in plan.explain()
    assert {p.kept for p in plan.ports} == {tuple(range(1, 16, 2))}
    assert netslim.PruningPlan.from_json(plan.to_json()) == plan


@pytest.mark.usefixtures("seed")
def test_steps_after_the_cut_are_those_of_the_silenced_original():
    model = Streaming().eval().double()
    steps, state = [X.double() + i for i in range(4)], tuple(s.double() for s in STATE)
    small, plan, _ = halved(model, (X.double(), state), free_outputs=[1], free_inputs=["state"])
    gone = [i for i in range(16) if i % 2 == 0]
    with torch.no_grad():
        model.rnn.weight_hh_l0[:, gone] = 0
        model.b.weight[:, gone] = 0
        model.rnn.weight_ih_l0[:, [0, 2, 4, 6]] = 0
        _, less = netslim.surgery.cut_inputs(model, (steps[0], state), plan)
        for x in steps:
            (wanted, state), (found, less) = model(x, state), small(x, less)
            torch.testing.assert_close(found, wanted)
            torch.testing.assert_close(less[0], state[0][..., 1::2])


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("inputs", [["h"], [1], {"h": "output['h']"}, {1: "h"}], ids=str)
def test_what_is_fed_back_loses_the_same_though_nothing_else_ties_it(inputs):
    model = Cell().eval()
    small, plan, check = halved(model, (X, H), free_outputs=["h"], free_inputs=inputs)
    assert exactly(check)
    assert small.h.weight.shape == (6, 6)
    less = netslim.surgery.cut_inputs(small, (X, H))
    assert torch.equal(less[1], H[:, 1::2])
    assert netslim.surgery.cut_inputs(small, less)[1] is less[1]  # small already
    by_name = netslim.surgery.cut_inputs(small, {"x": X, "h": H})
    assert torch.equal(by_name["h"], less[1])
    kept = {p.kind: p.kept for p in plan.ports}
    assert kept["input"] == kept["output"]


@pytest.mark.usefixtures("seed")
def test_without_the_output_an_input_is_cut_alone_and_holds_nothing():
    model = Cell().eval()
    graph = netslim.trace(model, (X, H), free_outputs=["h"], free_inputs={"h": None})
    assert [(g.name, g.size) for g in graph.prunable] == [("x", 12)]
    (out,) = graph.ports  # no layer makes what comes in
    assert (out.kind, out.name, out.fed_by) == ("output", "output['h']", "")


class Causal(nn.Module):
    """Keeps the last steps of what a convolution reads, in place of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 6, 3), nn.Conv1d(6, 2, 1)

    def forward(self, x, caches):
        h = torch.cat([caches["b"], self.a(x).tanh()], 2)
        return self.c(self.b(h).tanh()), {"b": h[:, :, -2:]}


@pytest.mark.usefixtures("seed")
def test_of_an_input_channels_are_free_and_places_are_not():
    model, inputs = Causal().eval(), (torch.randn(2, 3, 5), {"b": torch.randn(2, 8, 2)})
    small, plan, check = halved(model, inputs, free_outputs=[1], free_inputs=["caches"])
    assert exactly(check)
    assert {(p.kind, p.name, p.dim, p.size) for p in plan.ports} == {
        ("input", "caches['b']", 1, 8),
        ("output", "output[1]['b']", 1, 8),
    }
    assert small.b.weight.shape == (3, 4, 3)


@dataclass
class Found:
    logits: Tensor
    features: list[Tensor]


class Backbone(nn.Module):
    """What it hands on is read by nobody inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.side = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        low = self.a(x).relu()
        high = self.b(low)
        return Found(high.mean((2, 3)), [low, self.side(low).flatten(1)])


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize(
    ("free", "groups"),
    [
        ([], []),
        (["features[0]"], ["a"]),
        (["features"], ["a", "side"]),
        ([1], ["a", "side"]),
        (["output.features[1]", "features[0]"], ["a", "side"]),
        ([0, "features"], ["a", "b", "side"]),
    ],
    ids=str,
)
def test_outputs_go_by_position_and_by_name(free, groups):
    model, x = Backbone().eval(), torch.randn(2, 3, 8, 8)
    graph = netslim.trace(model, x, free_outputs=free)
    assert sorted(g.name for g in graph.prunable) == groups
    if groups:
        small, _, check = halved(model, x, free_outputs=free)
        assert exactly(check)
        assert small(x).features[0].shape[1] == 4


@pytest.mark.usefixtures("seed")
def test_a_proof_looks_at_free_outputs_too():
    model, x = Backbone().eval(), torch.randn(2, 3, 8, 8)
    _, plan, _ = halved(model, x, free_outputs=["features"])
    wrong = netslim.prune(model, plan)
    wrong.side.register_forward_hook(lambda module, given, out: out.flip(1))
    with pytest.raises(netslim.errors.VerificationError, match="differs"):
        netslim.verify(model, wrong, plan, x)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"free_outputs": ["state"]}, r"no output 'state'.* output\['y'\] \(2, 2\), output\['h'\]"),
        ({"free_outputs": [2]}, r"no output 2 .* there are output\['y'\]"),
        ({"free_inputs": ["hidden"]}, r"no input 'hidden'.* there are x \(2, 5, 3\), h \(2, 12\)"),
        ({"free_inputs": {"h": "y"}}, r"output 'y' \(2, 2\) is not as large as the input 'h'"),
        ({"free_outputs": [1.5]}, "free_outputs is a list of names or positions"),
    ],
    ids=str,
)
def test_names_that_there_are_not(options, said):
    with pytest.raises(ArgumentError, match=said):
        netslim.trace(Cell().eval(), (X, H), **options)


@pytest.mark.usefixtures("seed")
def test_cuts_follow_each_other_and_a_copy_knows_of_both():
    model, free = Cell().eval(), {"free_outputs": ["h"], "free_inputs": ["h"]}
    small, _, _ = halved(model, (X, H), **free)
    smaller, _, check = halved(small, netslim.surgery.cut_inputs(small, (X, H)), **free)
    assert exactly(check)
    assert smaller.h.weight.shape == (3, 3)
    assert torch.equal(netslim.surgery.cut_inputs(smaller, (X, H))[1], H[:, 3::4])


@pytest.mark.usefixtures("seed")
def test_slim_judges_by_what_both_networks_put_out():
    class Normed(Cell):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(12)

        def forward(self, x, h):
            h = torch.tanh(self.norm(self.x(x[:, 0])) + self.h(h))
            return {"y": self.out(h), "h": h}

    model = Normed().eval()
    batches = [((torch.randn(8, 5, 3), torch.randn(8, 12)),) for _ in range(6)]
    free = {"free_outputs": ["h"], "free_inputs": ["h"]}
    small = netslim.slim(model, (X, H), budget=HALF, batches=batches, **free)
    assert small.h.weight.shape == (6, 6)


@pytest.mark.usefixtures("seed")
def test_gradual_pruning_feeds_the_smaller_state():
    model, inputs, free = Cell().eval(), (X, H), {"free_outputs": ["h"], "free_inputs": ["h"]}
    for size in (12, 6):  # and once more, from a model that was cut before
        gradual = netslim.GradualPruning(model, inputs, HALF, steps=2, criterion="l2", **free)
        while not gradual.done:
            gradual.step()
        assert model.h.weight.shape == (size // 2, size // 2)
        assert {(p.kind, p.size, len(p.kept)) for p in gradual.plan.ports} == {
            ("input", size, size // 2),
            ("output", size, size // 2),
        }
        inputs = netslim.surgery.cut_inputs(model, inputs, gradual.plan)


@pytest.mark.usefixtures("seed")
def test_counts_and_files_take_the_example_of_the_uncut_network(tmp_path):
    model = Cell().eval()
    free = {"free_outputs": ["h"], "free_inputs": ["h"]}
    small, *_ = halved(model, (X, H), **free)
    graph = netslim.trace(model, (X, H), **free)
    assert netslim.cost(small, (X, H)).macs == graph.macs({0: np.arange(12) % 2 > 0})
    whole = graph.peak_bytes()
    assert graph.peak_bytes({0: np.arange(12) % 2 > 0}) < whole  # the input counts as well
    written = netslim.export(small, (X, H), tmp_path / "small.pt2")
    assert written.deviation < 1e-4
    netslim.save(small, tmp_path / "small.safetensors")
    again = netslim.load(Cell(), tmp_path / "small.safetensors")
    assert torch.equal(netslim.surgery.cut_inputs(again, (X, H))[1], H[:, 1::2])
