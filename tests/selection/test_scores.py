"""Criteria, by hand."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import netslim
from nets import Chain, Residual, conv
from netslim import Budget, select, slim, trace
from netslim.errors import ArgumentError
from netslim.models import zoo
from netslim.selection import Scoring, greedy, normalized
from netslim.selection.criteria.registry import CRITERIA, MEASURES, criterion, reads_data
from netslim.selection.criteria.scoring import score
from netslim.surgery.proof.silencing import randomise

X = torch.zeros(1, 3, 8, 8)
MAP = ("activation", "mean_mean", "mean_std", "mean_l1", "mean_l2", "var_l2")
DATA = ("taylor", "taylor_bn", "obd", *MAP)
MAPS = [
    torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]]),
    torch.tensor([[[[0.0, 4.0]]]]),
]  # three examples of 1x2


def two_channels() -> nn.Sequential:
    """Makes the maps x and 1 - 2x, normalises, and reads them with weights 3 and 4."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 1.0]))
        model[3].weight.copy_(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1))
    return model


def test_largest_and_geometric_median_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0], [3, 4], [0, 1]]).reshape(3, 2, 1, 1))
    graph = trace(model, torch.zeros(1, 2, 2, 2))
    assert score(graph, model, "l1")["0"].tolist() == [0, 7, 1]
    assert score(graph, model, "largest")["0"].tolist() == [0, -7, -1]
    far = 3 * math.sqrt(2)
    assert score(graph, model, "geometric_median")["0"].tolist() == pytest.approx(
        [5 + 1, 5 + far, 1 + far]
    )
    plan = select(graph, score(graph, model, "largest"), per_group={"0": 1})
    assert plan.groups["0"].kept == (0, 2)


def test_the_geometric_median_of_a_layer_counts_all_its_filters():
    """In option A two groups share the filters of one layer."""
    model = zoo.resnet(8, width=0.5)
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    filters = model.layer3[0].conv2.weight.detach().flatten(1).double()
    group = graph["layer3.0.conv2"]
    assert (group.size, len(filters)) == (16, 32)
    (part,) = group.tensors("producer")
    expected = torch.cdist(filters, filters).sum(1)[torch.from_numpy(part.positions)]
    torch.testing.assert_close(
        score(graph, model, "geometric_median")[group.name], expected, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("mean_mean", 5 / 3, -7 / 3),
        ("mean_std", 4 / 3, 8 / 3),
        ("mean_l1", 10 / 3, 6),
        (
            "mean_l2",
            (math.sqrt(10) + 2 + 4) / 3,
            (math.sqrt(26) + math.sqrt(10) + math.sqrt(50)) / 3,
        ),
        ("var_l2", (10 + 4 + 16) / 3, (26 + 10 + 50) / 3),  # minus the square of the mean
    ],
)
def test_the_papers_activation_criteria_by_hand(name, first, second):
    model = two_channels()
    expected = torch.tensor([first, second], dtype=torch.float64)
    graph = trace(model, MAPS[0])
    if name == "var_l2":
        expected -= score(graph, model, "mean_l2", batches=MAPS)["0"] ** 2
    torch.testing.assert_close(
        score(graph, model, name, batches=MAPS)["0"], expected, rtol=1e-6, atol=1e-6
    )


def test_how_the_examples_are_batched_does_not_matter():
    model = two_channels()
    graph = trace(model, MAPS[0])
    singly = [x[None] for batch in MAPS for x in batch]
    for name in MAP:
        together = score(graph, model, name, batches=[torch.cat(MAPS)])["0"]
        torch.testing.assert_close(score(graph, model, name, batches=iter(singly))["0"], together)


def test_taylor_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, -1.0]).reshape(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1))
    batches = [(torch.full((1, 1, 1, 1), 3.0), 0), (torch.ones(1, 1, 1, 1), 0)]
    found = score(
        trace(model, batches[0][0]),
        model,
        "taylor",
        batches=batches,
        loss=lambda out, target: out.sum(),
    )
    assert found["0"].tolist() == [
        (18**2 + 6**2) / 2,
        (12**2 + 4**2) / 2,
    ]  # gradient * weight = reader * weight * x


def test_taylor_takes_cross_entropy_by_default():
    torch.manual_seed(0)
    model = Chain().eval()
    graph = trace(model, X)
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])) for _ in range(2)]
    found = score(graph, model, "taylor", batches=batches)["second.0"]
    expected = torch.zeros(5)
    for x, y in batches:
        weight = model.second[0].weight
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), weight)
        expected += (gradient * weight).sum((1, 2, 3)) ** 2 / 2
    torch.testing.assert_close(found.float(), expected.detach())
    assert found.min() > 0


@pytest.mark.parametrize("name", DATA)
def test_the_model_is_left_as_it_was(name):
    model = randomise(Chain(), seed=1).train()
    model.first[1].eval()
    model.second[0].weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    flags = [(m.training, len(m._forward_hooks)) for m in model.modules()]
    frozen = [p.requires_grad for p in model.parameters()]
    batch = {"x": torch.randn(4, 3, 8, 8), "labels": torch.tensor([0, 1, 2, 3])}
    with torch.no_grad():
        found = score(trace(model, X), model, name, batches=[batch])
    assert set(found) == {"first.0", "second.0"}
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert flags == [(m.training, len(m._forward_hooks)) for m in model.modules()]
    assert frozen == [p.requires_grad for p in model.parameters()]
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert list(grads) == ["head.weight"]
    assert torch.equal(grads["head.weight"], torch.ones(4, 80))


def test_a_failing_batch_leaves_the_model_as_it_was():
    model = Chain().train()
    good, bad = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
    for name in ("mean_l1", "activation", "taylor", "taylor_bn", "obd"):
        where = r"example 3 of batches= \(\(1" if name == "obd" else r"batch 2 of batches= \(\(2"
        with pytest.raises(ArgumentError, match=rf"does not run on {where}, 4, 8, 8\)\)"):
            score(
                trace(model, X),
                model,
                name,
                batches=[(good, torch.tensor([0, 1])), (bad, torch.tensor([0, 1]))],
            )
        assert all(m.training and not m._forward_hooks for m in model.modules())


class Functional(nn.Module):
    """Calls its layers as functions of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.matrix = (
            nn.Parameter(torch.randn(4, 3, 3, 3)),
            nn.Parameter(torch.randn(5, 4)),
        )
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, weight=self.kernel).relu().mean((2, 3))
        return self.head(F.linear(x, self.matrix).relu())


def test_layers_called_as_functions_and_parametrised_layers_are_seen():
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(2, 3, 8, 8)
    found = score(trace(model, x), model, "mean_l2", batches=[x])
    maps = F.conv2d(x, model.kernel)
    torch.testing.assert_close(
        found["kernel"].float(), maps.flatten(2).norm(dim=2).mean(0).detach()
    )
    vectors = F.linear(maps.relu().mean((2, 3)), model.matrix)
    torch.testing.assert_close(found["matrix"].float(), vectors.abs().mean(0).detach())
    layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    normed = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(4, 2, 3))
    found = score(trace(normed, x), normed, "mean_l1", batches=[x])
    torch.testing.assert_close(found["0"].float(), layer(x).abs().sum((2, 3)).mean(0).detach())


def test_linear_layers_over_tokens_and_unbatched_inputs():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 7, 3)
    found = score(trace(model, x), model, "mean_std", batches=[x])["0"]
    torch.testing.assert_close(found.float(), model[0](x).std(1, correction=0).mean(0).detach())
    alone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    picture = torch.randn(3, 8, 8)
    graph = trace(alone, picture[None])
    one, other = (
        score(graph, alone, "mean_std", batches=[p])["0"] for p in (picture, picture[None])
    )
    torch.testing.assert_close(one, other)


def test_lead_scores_a_stage_by_its_pacesetter():
    model = Residual()
    with torch.no_grad():
        model.stem[0].weight.fill_(0.1)
        model.outer.weight.fill_(-1.0)
    graph = trace(model, X)
    mean, led = (
        score(graph, model, Scoring("l1", lead=lead))["stem.0"] for lead in ("mean", "pacesetter")
    )
    torch.testing.assert_close(mean, torch.full((6,), (2.7 + 5) / 2, dtype=torch.float64))
    torch.testing.assert_close(led, torch.full((6,), 2.7, dtype=torch.float64), rtol=1e-6, atol=0)
    randomise(model, seed=2)
    batches = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))]
    for name in ("geometric_median", "mean_l1", "taylor"):
        one, other = (
            score(graph, model, Scoring(name, lead=w), batches=batches)["stem.0"]
            for w in ("mean", "pacesetter")
        )
        assert not torch.equal(one, other), name


def test_a_criterion_of_ones_own_is_one_function():
    @criterion
    def smallest_weight(group, tensors, factor=1.0):
        s = group.tensors("producer")[0]
        return factor * tensors[s.tensor].flatten(1).abs().amin(1)

    try:
        model = Chain()
        graph = trace(model, X)
        found = score(graph, model, Scoring("smallest_weight", arguments={"factor": 2.0}))
        torch.testing.assert_close(
            found["first.0"], 2 * model.first[0].weight.detach().flatten(1).abs().amin(1).double()
        )
        assert torch.equal(score(graph, model, smallest_weight)["first.0"] * 2, found["first.0"])
    finally:
        del CRITERIA["smallest_weight"]


def test_a_measure_of_ones_own():
    @criterion(measure=lambda graph, model, batches, loss: {"first.0.weight": sum(batches)})
    def given(group, measured):
        return measured.get(group.tensors("producer")[0].tensor)

    try:
        model = Chain()
        found = score(trace(model, X), model, "given", batches=[torch.ones(6), torch.ones(6)])
        assert found.keys() == {"first.0"}
        assert found["first.0"].tolist() == [2] * 6
    finally:
        del CRITERIA["given"], MEASURES[given]


@pytest.mark.parametrize("name", DATA)
def test_criteria_of_data_ask_for_batches(name):
    model = Chain()
    graph = trace(model, X)
    with pytest.raises(ArgumentError, match=f"{name} looks at data: give batches="):
        score(graph, model, name)
    with pytest.raises(ArgumentError, match="batches= gives no batch"):
        score(graph, model, name, batches=[])
    with pytest.raises(ArgumentError, match="a data loader or a list of batches, got a Tensor"):
        score(graph, model, name, batches=torch.zeros(2, 3, 8, 8))


def test_a_loss_that_cannot_be_used():
    model = Chain()
    graph = trace(model, X)
    batches = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]
    with pytest.raises(
        ArgumentError, match=r"the loss cannot be computed .* no targets.*pass loss="
    ):
        score(graph, model, "taylor", batches=[batches[0][0]])
    with pytest.raises(
        ArgumentError, match=r"one number that depends on the weights, got 1\.0; pass loss="
    ):
        score(graph, model, "taylor", batches=batches, loss=lambda output, targets: 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "l3"}, "unknown criterion 'l3'; did you mean"),
        ({"criterion": "geometric"}, "did you mean 'geometric_median'"),
        ({"criterion": "l1", "lead": "first"}, "lead must be 'mean' or 'pacesetter', got 'first'"),
        ({"criterion": "bn_scale", "lead": "pacesetter"}, "does nothing with bn_scale"),
        (
            {"criterion": "l1", "arguments": {"seed": 1}},
            "the criterion l1 cannot take these arguments: .*'seed'",
        ),
        (
            {"criterion": "l1", "reduction": "min"},
            "reduction must be 'mean' or 'sum' or .* got 'min'",
        ),
        (
            {"criterion": "l1", "over": "consumers"},
            "over must be 'producers' or 'all', got 'consumers'",
        ),
        (
            {"criterion": "l1", "normalize": "l1"},
            "normalize must be 'mean' or 'sum' or .* got 'l1'",
        ),
        (
            {"criterion": "random", "reduction": "sum"},
            "reduction='sum' does nothing with random, which looks at no layer",
        ),
        ({"criterion": "bn_scale", "over": "all"}, "over='all' does nothing with bn_scale"),
        (
            {"criterion": "l1", "lead": "pacesetter", "reduction": "max"},
            "nothing with lead='pacesetter', which leaves one",
        ),
        (
            {"criterion": lambda group, tensors: torch.ones(group.size), "reduction": "max"},
            "scores a group as a whole",
        ),
        ({"criterion": "no_such_module_here:score"}, "there is no module 'no_such_module_here'"),
        (
            {"criterion": "math:sinn"},
            r"the module math \(.*\) has no function 'sinn'; did you mean 'sin",
        ),
    ],
)
def test_options_that_mean_nothing(options, message):
    model = Chain()
    with pytest.raises(ArgumentError, match=message):
        score(trace(model, X), model, Scoring(**options))


def test_wide_and_low_precision_weights():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 32), nn.Conv2d(32, 2, 1)).to(torch.bfloat16)
    graph = trace(model, X.bfloat16())
    batches = [(torch.randn(2, 3, 8, 8).bfloat16(), torch.zeros(2, 8, 8, dtype=torch.long))]
    for name in (
        "l1",
        "l2",
        "geometric_median",
        "group_l2",
        "lamp",
        "mean_l2",
        "activation",
        "taylor",
        "taylor_bn",
        "obd",
    ):
        found = score(graph, model, name, batches=batches)["0.0"]
        assert found.dtype == torch.float64
        assert bool((found > 0).all())


# --- what is put together: layers, slices, groups -------------------------------------------------


def in_a_row(*channels: list[float]) -> nn.Sequential:
    """1x1 convolutions without biases from one channel to several and back, one row of weights for
    each layer.
    """
    making, reading = channels
    model = nn.Sequential(
        nn.Conv2d(1, len(making), 1, bias=False), nn.Conv2d(len(making), 1, 1, bias=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(making).reshape(-1, 1, 1, 1))
        model[1].weight.copy_(torch.tensor(reading).reshape(1, -1, 1, 1))
    return model


def test_the_whole_group_by_hand():
    model = two_channels()  # makes with 1 and -2, reads with 3 and 4
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, 2.0]))
    graph = trace(model, MAPS[0])
    assert score(graph, model, "group_l2")["0"].tolist() == [(1 + 0.25 + 9) / 3, (4 + 4 + 16) / 3]
    assert score(graph, model, Scoring("group_l2", reduction="sum"))["0"].tolist() == [10.25, 24]
    assert score(graph, model, Scoring("group_l2", reduction="max"))["0"].tolist() == [9, 16]
    assert score(graph, model, Scoring("l1", over="all"))["0"].tolist() == [
        (1 + 0.5 + 3) / 3,
        (2 + 2 + 4) / 3,
    ]
    assert score(graph, model, Scoring("l2", over="all", reduction="sum"))["0"].tolist() == [4.5, 8]
    assert score(graph, model, Scoring("largest", over="all", reduction="sum"))["0"].tolist() == [
        -4.5,
        -8,
    ]
    assert (
        score(graph, model, Scoring("geometric_median", over="all"))["0"].tolist()
        == [(3 + 1.5 + 1) / 3] * 2
    )


def test_lamp_by_hand():
    model = in_a_row([1.0, 3.0, -2.0, 0.0, 2.0], [1.0, 1.0, 1.0, 5.0, 2.0])
    graph = trace(model, torch.zeros(1, 1, 2, 2))
    assert score(graph, model, "lamp")["0"].tolist() == [1 / 18, 9 / 9, 4 / 17, 0, 4 / 17]
    squares = [2, 10, 5, 25, 8]  # of the makers and readers of each channel
    expected = [s / sum(other for other in squares if other >= s) for s in squares]
    assert score(graph, model, Scoring("lamp", over="all", reduction="sum"))[
        "0"
    ].tolist() == pytest.approx(expected)
    with torch.no_grad():
        model[0].weight.zero_()
    assert score(graph, model, "lamp")["0"].tolist() == [0] * 5


def test_a_layer_behind_a_flatten_counts_once_in_the_whole_group():
    model = randomise(Chain(), seed=4)
    found = score(trace(model, X), model, "group_l2")["second.0"]
    made = model.second[0].weight.detach().double().square().sum((1, 2, 3))
    read = model.head.weight.detach().double().reshape(4, 5, 16).square().sum((0, 2))
    scale = model.second[1].weight.detach().double().square()
    torch.testing.assert_close(found, (made + read + scale) / 3, rtol=1e-6, atol=0)


def test_a_grouped_layer_reads_a_channel_in_each_of_its_groups():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 6, 1, groups=2, bias=False), nn.Conv2d(6, 1, 1)
    )
    graph, x = trace(model, torch.zeros(1, 1, 2, 2)), torch.randn(2, 1, 2, 2)
    assert graph["0"].size == 2  # one of either half goes with the other
    made = model[0].weight.detach().double().square().reshape(2, 2).sum(0)
    read = model[1].weight.detach().double().square().sum((0, 2, 3))
    torch.testing.assert_close(
        score(graph, model, "group_l2")["0"], (made + read) / 2, rtol=1e-6, atol=0
    )
    halves = model[0](x).abs().mean((0, 2, 3)).reshape(2, 2)
    torch.testing.assert_close(
        score(graph, model, "activation", batches=[x])["0"].float(), halves.mean(0).detach()
    )


class Backwards(nn.Module):
    """Two layers are added up; the one that runs first is the second among the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.later, self.sooner = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(1, 2, 1, bias=False)
        self.head = nn.Conv2d(2, 1, 1, bias=False)
        with torch.no_grad():
            self.later.weight.copy_(torch.tensor([4.0, 9.0]).reshape(2, 1, 1, 1))
            self.sooner.weight.copy_(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.sooner(x)
        return self.head(y + self.later(x))


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("mean", [2.5, 5]), ("sum", [5, 10]), ("max", [4, 9]), ("product", [2, 3]), ("first", [1, 1])],
)
def test_reductions_by_hand(reduction, expected):
    model = Backwards()
    found = score(trace(model, torch.zeros(1, 1, 2, 2)), model, Scoring("l1", reduction=reduction))
    assert found["sooner"].tolist() == pytest.approx(expected)


def test_zeros_and_negative_values_in_a_geometric_mean():
    model = Backwards()
    graph = trace(model, torch.zeros(1, 1, 2, 2))
    with pytest.raises(
        ArgumentError, match="geometric mean, but layers of group 'sooner' have negative scores"
    ):
        score(graph, model, Scoring("largest", reduction="product"))
    with torch.no_grad():
        model.later.weight[0] = 0
    assert score(graph, model, Scoring("l1", reduction="product"))[
        "sooner"
    ].tolist() == pytest.approx([0, 3])


VALUES = {"a": torch.tensor([1.0, 3.0, 2.0, 2.0])}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (None, [1, 3, 2, 2]),
        ("mean", [0.5, 1.5, 1, 1]),
        ("sum", [1 / 8, 3 / 8, 1 / 4, 1 / 4]),
        ("max", [1 / 3, 1, 2 / 3, 2 / 3]),
        ("l2", [1 / math.sqrt(18), 3 / math.sqrt(18), 2 / math.sqrt(18), 2 / math.sqrt(18)]),
        ("standardization", [0, 1, 0.5, 0.5]),
        ("gaussian", [-math.sqrt(1.5), math.sqrt(1.5), 0, 0]),
        ("rank", [0.25, 1, 0.625, 0.625]),
    ],
)
def test_normalisations_by_hand(how, expected):
    found = normalized(VALUES, how)["a"]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected)
    alone, zeros, equal = (torch.tensor(v) for v in ([3.0], [0.0, 0.0], [2.0, 2.0]))
    edges = normalized({"alone": alone, "zeros": zeros, "equal": equal}, how)
    assert all(bool(v.isfinite().all()) and len(set(v.tolist())) == 1 for v in edges.values())
    if how in (None, "mean", "sum", "max", "l2"):
        assert edges["zeros"].tolist() == [0, 0]
    negative = normalized({"a": torch.tensor([-3.0, -1.0, -2.0, 0.5])}, how)["a"]
    assert negative.argsort().tolist() == [0, 2, 1, 3]


def test_scores_are_normalised_group_by_group_and_last():
    model = randomise(Residual(), seed=5)
    graph = trace(model, X)
    found = score(graph, model, Scoring("l1", reduction="max", normalize="mean"))
    plain = score(graph, model, Scoring("l1", reduction="max"))
    assert found.keys() == plain.keys() == {"stem.0", "inner.0"}
    for name, values in plain.items():
        assert torch.equal(found[name], values / values.mean())
    assert torch.equal(normalized(plain, "mean")["stem.0"], found["stem.0"])
    with pytest.raises(ArgumentError, match="normalize must be 'mean'"):
        normalized(plain, "average")


def test_the_options_reach_slim_and_greedy():
    model = randomise(Residual(), seed=6)
    graph, ways = trace(model, X), {"reduction": "first", "over": "all", "normalize": "rank"}
    plan = select(graph, score(graph, model, Scoring("l1", **ways)), Budget(cut_channels=0.5))
    small = slim(model, X, criterion=Scoring("l1", **ways), budget=Budget(cut_channels=0.5))
    weights = model.stem[0].weight[list(plan.groups["stem.0"].kept)]
    torch.testing.assert_close(small.stem[0].weight, weights[:, : small.stem[0].in_channels])
    backwards, x = Backwards(), torch.zeros(1, 1, 2, 2)
    with torch.no_grad():
        backwards.sooner.weight[1] = 0.5
    for reduction, kept in (("first", (0,)), ("sum", (1,))):
        plan = greedy(
            trace(backwards, x), backwards, {"sooner": 1}, Scoring("l1", reduction=reduction)
        )
        assert plan.groups["sooner"].kept == kept


# --- gradients and activations --------------------------------------------------------------------


def test_obd_by_hand_however_the_examples_are_batched():
    model = in_a_row([2.0, -1.0], [3.0, 4.0])
    examples = torch.tensor([3.0, 1.0, -2.0]).reshape(3, 1, 1, 1)
    graph, targets = trace(model, examples), torch.zeros(3)
    expected = [((6 * 3) ** 2 + 6**2 + (6 * 2) ** 2) / 6, ((4 * 3) ** 2 + 4**2 + (4 * 2) ** 2) / 6]
    for size in (1, 2, 3):
        batches = list(zip(examples.split(size), targets.split(size), strict=True))
        found = score(graph, model, "obd", batches=batches, loss=lambda out, target: out.sum())
        assert found["0"].tolist() == pytest.approx(expected)


def test_obd_and_taylor_over_all_take_cross_entropy():
    """Against gradients taken one by one: squared before they are summed (obd), or after (taylor)."""
    model = randomise(Chain(), seed=7).eval()
    graph, x, y = trace(model, X), torch.randn(3, 3, 8, 8), torch.tensor([0, 3, 1])
    weights = [model.second[0].weight, model.second[1].weight, model.head.weight]

    def terms(images: Tensor, labels: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), weights)
        parts = [(g * w).detach().double() for g, w in zip(gradients, weights, strict=True)]
        return [
            parts[0].flatten(1),
            parts[1][:, None],
            parts[2].reshape(4, 5, 16).transpose(0, 1).flatten(1),
        ]

    single = [terms(x[i : i + 1], y[i : i + 1]) for i in range(3)]
    expected = sum(part.square().sum(1) / 2 for parts in single for part in parts) / (3 * 3)
    found = score(graph, model, Scoring("obd", over="all"), batches=[(x, y)])["second.0"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    filters = sum(parts[0].square().sum(1) / 2 for parts in single) / 3
    torch.testing.assert_close(
        score(graph, model, "obd", batches=[(x, y)])["second.0"], filters, rtol=1e-4, atol=0
    )
    expected = sum(part.sum(1).square() for part in terms(x, y)) / 3
    found = score(graph, model, Scoring("taylor", over="all"), batches=[(x, y)])["second.0"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


def test_taylor_of_the_batch_norm_is_that_of_a_gate_behind_it():
    model = randomise(two_channels(), seed=8).eval()
    graph, batches = trace(model, MAPS[0]), [(x, torch.zeros(len(x))) for x in MAPS]

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return output.square().sum()

    expected = torch.zeros(2)
    for x, targets in batches:
        gate = torch.ones(1, 2, 1, 1, requires_grad=True)
        value = loss(model[3](model[2](model[1](model[0](x)) * gate)), targets)
        expected += torch.autograd.grad(value, gate)[0].flatten().square() / 2
    found = score(graph, model, "taylor_bn", batches=batches, loss=loss)["0"]
    assert expected.min() > 0
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=0)


def test_taylor_of_scales_without_shifts_and_without_norms():
    class Scale(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.register_parameter("bias", None)

    model = nn.Sequential(nn.Conv2d(1, 2, 1), Scale(2), nn.Conv2d(2, 1, 1)).eval()
    x = torch.randn(2, 1, 2, 2)
    gradient = torch.autograd.grad(model(x).sum(), model[1].weight)[0] * model[1].weight
    batches = [(x, torch.zeros(2))]
    found = score(
        trace(model, x), model, "taylor_bn", batches=batches, loss=lambda out, target: out.sum()
    )["0"]
    torch.testing.assert_close(found.float(), gradient.square().detach())
    plain = in_a_row([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(
        ArgumentError,
        match="taylor_bn can score no group of this model; no batch normalisation follows",
    ):
        score(
            trace(plain, x), plain, "taylor_bn", batches=batches, loss=lambda out, target: out.sum()
        )


def test_activation_is_what_the_next_layers_receive():
    model = two_channels()  # they read relu(x) and relu(1 - 2x)
    found = score(trace(model, MAPS[0]), model, "activation", batches=MAPS)["0"]
    torch.testing.assert_close(
        found, torch.tensor([10 / 6, 2 / 6], dtype=torch.float64), rtol=1e-5, atol=0
    )
    residual = randomise(Residual(), seed=9).eval()
    x = torch.randn(4, 3, 8, 8)
    stem = residual.stem(x)
    total = stem + residual.outer(residual.inner(stem))
    inner, head = stem.abs().mean((0, 2, 3)), total.mean((2, 3)).abs().mean(0)
    graph = trace(residual, X)
    for reduction, expected in (("mean", (inner + head) / 2), ("max", torch.maximum(inner, head))):
        found = score(graph, residual, Scoring("activation", reduction=reduction), batches=[x])[
            "stem.0"
        ]
        torch.testing.assert_close(found.float(), expected.detach())


def test_activation_behind_a_flatten_and_of_layers_called_as_functions():
    model = randomise(Chain(), seed=10).eval()
    x = torch.randn(2, 3, 8, 8)
    maps = F.max_pool2d(model.second(model.first(x)), 2)
    found = score(trace(model, X), model, "activation", batches=[x])["second.0"]
    torch.testing.assert_close(found.float(), maps.abs().mean((0, 2, 3)).detach())
    torch.manual_seed(0)
    functional = Functional()
    found = score(trace(functional, x), functional, "activation", batches=[x])
    read = F.conv2d(x, functional.kernel).relu().mean((2, 3))
    torch.testing.assert_close(found["kernel"].float(), read.abs().mean(0).detach())


# --- batches --------------------------------------------------------------------------------------


class Named(nn.Module):
    """Takes two keyword inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 6), nn.Linear(6, 4)

    def forward(self, pixels: Tensor, light: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(pixels * light.mean()).mean((2, 3)))}


@pytest.mark.parametrize("name", DATA)
def test_any_iterable_of_batches_is_read_once(name):
    torch.manual_seed(0)
    model = randomise(Chain(), seed=11)
    graph, x, y = trace(model, X), torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    listed = [(x[:2], y[:2]), (x[2:], y[2:])]
    expected = score(graph, model, name, batches=listed)
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    read = []
    once = (read.append(i) or [*batch, "a name"] for i, batch in enumerate(listed))
    named = [{"x": images, "label": labels} for images, labels in listed]
    wrapped = [((images,), labels) for images, labels in listed]
    for batches in (loader, once, iter(listed), named, wrapped, tuple(listed)):
        found = score(graph, model, name, batches=batches)
        assert all(torch.equal(found[group], values) for group, values in expected.items())
    assert read == [0, 1]
    with pytest.raises(ArgumentError, match="batches= gives no batch"):
        score(graph, model, name, batches=once)
    if name in MAP:
        found = score(graph, model, name, batches=[x[:2], x[2:]])
        assert torch.equal(found["first.0"], expected["first.0"])


@pytest.mark.parametrize("name", ["taylor", "obd", "activation"])
def test_keyword_inputs_of_which_one_is_shared_by_the_examples(name):
    torch.manual_seed(0)
    model = randomise(Named(), seed=12)
    x, y, light = torch.randn(2, 3, 8, 8), torch.tensor([1, 2]), torch.tensor([0.5, 1, 3])
    graph = trace(model, {"pixels": x, "light": light})
    together = [{"pixels": x, "light": light, "labels": y}]
    singly = [{"pixels": x[i : i + 1], "light": light, "labels": y[i : i + 1]} for i in range(2)]
    found, other = (score(graph, model, name, batches=b)["body.0"] for b in (together, singly))
    assert bool((found > 0).all())
    assert torch.allclose(found, other, rtol=1e-4) is (name != "taylor")


def test_what_cannot_be_taken_apart():
    model = Chain()
    with pytest.raises(ArgumentError, match="a batch holds no tensor of examples"):
        score(trace(model, X), model, "obd", batches=[("a name", 1)])


# --- criteria of one's own ------------------------------------------------------------------------


def test_a_criterion_of_ones_own_may_score_layer_by_layer():
    @netslim.criterion
    def largest_weight(group, tensors):
        made = group.tensors("producer")
        return [(s, tensors[s.tensor].abs().movedim(s.axis, 0).flatten(1).amax(1)) for s in made]

    try:
        model = Backwards()
        graph = trace(model, torch.zeros(1, 1, 2, 2))
        assert score(graph, model, "largest_weight")["sooner"].tolist() == [2.5, 5]
        assert score(graph, model, Scoring("largest_weight", reduction="max"))[
            "sooner"
        ].tolist() == [4, 9]
        assert (
            score(graph, model, Scoring("largest_weight", reduction="first", normalize="sum"))[
                "sooner"
            ].tolist()
            == [0.5] * 2
        )
        with pytest.raises(ArgumentError, match="over='all' does nothing with largest_weight"):
            score(graph, model, Scoring("largest_weight", over="all"))
        small = slim(
            model,
            torch.zeros(1, 1, 2, 2),
            criterion="largest_weight",
            budget=Budget(cut_channels=0.5),
        )
        assert small.head.weight.shape == (1, 1, 1, 1)
    finally:
        del CRITERIA["largest_weight"]


def test_a_criterion_of_ones_own_is_given_the_options_it_names():
    def told(group, tensors, over, reduction):
        return torch.full((group.size,), float(len(over) + len(reduction)))

    model = Chain()
    found = score(trace(model, X), model, Scoring(told, over="all", reduction="max"))
    assert found["first.0"].tolist() == [6] * 6


def test_a_criterion_in_a_module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_own_scores.py").write_text(
        "import netslim\n\n\n@netslim.criterion\ndef by_number(group, tensors):\n"
        "    import torch\n\n    return torch.arange(group.size)\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        model = Chain()
        found = score(trace(model, X), model, "my_own_scores:by_number")
        assert found["second.0"].tolist() == [0, 1, 2, 3, 4]
        assert torch.equal(score(trace(model, X), model, "by_number")["first.0"], found["first.0"])
        assert not reads_data("my_own_scores:by_number")
    finally:
        CRITERIA.pop("by_number", None)
        sys.modules.pop("my_own_scores", None)


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric_median", "lamp", "largest"])
def test_a_factor_of_one_dimension_makes_no_channels(criterion):
    """The frequencies of a rotary embedding, in an outer product with the positions."""

    class Rotary(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(16, 2, 1)
            self.register_buffer("frequencies", 1 / 10 ** (torch.arange(8) / 8))

        def forward(self, x):
            places = torch.arange(x.shape[2], dtype=x.dtype)
            angles = self.frequencies[None, :, None] @ places[None, None, :]
            x = self.conv(x)
            return self.head(torch.cat([x * angles.cos(), x * angles.sin()], 1))

    model = Rotary().eval()
    graph = trace(model, torch.randn(1, 3, 10))
    assert graph["conv"].producers == ("conv.weight",)
    assert score(graph, model, criterion)["conv"].shape == (8,)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8])
def test_weights_that_are_no_real_numbers_are_told(kind):
    model = in_a_row([1.0, 2.0], [1.0, 2.0])
    graph = trace(model, torch.randn(2, 1, 2, 2))
    for layer in model:
        layer.weight = nn.Parameter(layer.weight.to(kind), requires_grad=False)
    name = str(kind).removeprefix("torch.")
    with pytest.raises(ArgumentError, match=f"its weights are {name} numbers"):
        score(graph, model, "l2")
