"""Criteria, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nets import Chain, Residual, conv
from netslim import PlanError, scores, select, trace, zoo
from netslim.scores import CRITERIA, criterion, score
from netslim.silence import randomise

X = torch.zeros(1, 3, 8, 8)
DATA = ("taylor", "mean_mean", "mean_std", "mean_l1", "mean_l2", "var_l2")
MAPS = [torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]]), torch.tensor([[[[0.0, 4.0]]]])]  # three examples of 1x2


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
    assert score(graph, model, "geometric_median")["0"].tolist() == pytest.approx([5 + 1, 5 + far, 1 + far])
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
    torch.testing.assert_close(score(graph, model, "geometric_median")[group.name], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("mean_mean", 5 / 3, -7 / 3),
        ("mean_std", 4 / 3, 8 / 3),
        ("mean_l1", 10 / 3, 6),
        ("mean_l2", (math.sqrt(10) + 2 + 4) / 3, (math.sqrt(26) + math.sqrt(10) + math.sqrt(50)) / 3),
        ("var_l2", (10 + 4 + 16) / 3, (26 + 10 + 50) / 3),  # minus the square of the mean
    ],
)
def test_the_papers_activation_criteria_by_hand(name, first, second):
    model = two_channels()
    expected = torch.tensor([first, second], dtype=torch.float64)
    graph = trace(model, MAPS[0])
    if name == "var_l2":
        expected -= score(graph, model, "mean_l2", batches=MAPS)["0"] ** 2
    torch.testing.assert_close(score(graph, model, name, batches=MAPS)["0"], expected, rtol=1e-6, atol=1e-6)


def test_how_the_examples_are_batched_does_not_matter():
    model = two_channels()
    graph = trace(model, MAPS[0])
    singly = [x[None] for batch in MAPS for x in batch]
    for name in DATA[1:]:
        together = score(graph, model, name, batches=[torch.cat(MAPS)])["0"]
        torch.testing.assert_close(score(graph, model, name, batches=iter(singly))["0"], together)


def test_taylor_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, -1.0]).reshape(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1))
    batches = [(torch.full((1, 1, 1, 1), 3.0), 0), (torch.ones(1, 1, 1, 1), 0)]
    found = score(trace(model, batches[0][0]), model, "taylor", batches=batches, loss=lambda out, target: out.sum())
    assert found["0"].tolist() == [(18**2 + 6**2) / 2, (12**2 + 4**2) / 2]  # gradient * weight = reader * weight * x


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
    for name in ("mean_l1", "taylor"):
        with pytest.raises(PlanError, match=r"does not run on batch 2 of batches= \(\(2, 4, 8, 8\)\)"):
            score(trace(model, X), model, name, batches=[(good, torch.tensor([0, 1])), (bad, torch.tensor([0, 1]))])
        assert all(m.training and not m._forward_hooks for m in model.modules())


class Functional(nn.Module):
    """Calls its layers as functions of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(5, 4))
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, weight=self.kernel).relu().mean((2, 3))
        return self.head(F.linear(x, self.matrix).relu())


def test_layers_called_as_functions_and_parametrised_layers_are_seen():
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(2, 3, 8, 8)
    found = score(trace(model, x), model, "mean_l2", batches=[x])
    maps = F.conv2d(x, model.kernel)
    torch.testing.assert_close(found["kernel"].float(), maps.flatten(2).norm(dim=2).mean(0).detach())
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
    one, other = (score(graph, alone, "mean_std", batches=[p])["0"] for p in (picture, picture[None]))
    torch.testing.assert_close(one, other)


def test_lead_scores_a_stage_by_its_pacesetter():
    model = Residual()
    with torch.no_grad():
        model.stem[0].weight.fill_(0.1)
        model.outer.weight.fill_(-1.0)
    graph = trace(model, X)
    mean, led = (score(graph, model, "l1", lead=lead)["stem.0"] for lead in ("mean", "pacesetter"))
    torch.testing.assert_close(mean, torch.full((6,), (2.7 + 5) / 2, dtype=torch.float64))
    torch.testing.assert_close(led, torch.full((6,), 2.7, dtype=torch.float64), rtol=1e-6, atol=0)
    randomise(model, seed=2)
    batches = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))]
    for name in ("geometric_median", "mean_l1", "taylor"):
        one, other = (score(graph, model, name, batches=batches, lead=w)["stem.0"] for w in ("mean", "pacesetter"))
        assert not torch.equal(one, other), name


def test_a_criterion_of_ones_own_is_one_function():
    @criterion
    def smallest_weight(group, tensors, factor=1.0):
        s = group.tensors("producer")[0]
        return factor * tensors[s.tensor].flatten(1).abs().amin(1)

    try:
        model = Chain()
        graph = trace(model, X)
        found = score(graph, model, "smallest_weight", factor=2.0)
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
        del CRITERIA["given"], scores._MEASURES[given]


@pytest.mark.parametrize("name", DATA)
def test_criteria_of_data_ask_for_batches(name):
    model = Chain()
    graph = trace(model, X)
    with pytest.raises(PlanError, match=f"{name} looks at data: give batches="):
        score(graph, model, name)
    with pytest.raises(PlanError, match="batches= gives no batch"):
        score(graph, model, name, batches=[])
    with pytest.raises(PlanError, match="a data loader or a list of batches, got one Tensor"):
        score(graph, model, name, batches=torch.zeros(2, 3, 8, 8))


def test_a_loss_that_cannot_be_used():
    model = Chain()
    graph = trace(model, X)
    batches = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]
    with pytest.raises(PlanError, match=r"the loss cannot be computed .* no targets.*pass loss="):
        score(graph, model, "taylor", batches=[batches[0][0]])
    with pytest.raises(PlanError, match=r"one number that depends on the weights, got 1\.0; pass loss="):
        score(graph, model, "taylor", batches=batches, loss=lambda output, targets: 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "l3"}, "unknown criterion 'l3'; did you mean"),
        ({"criterion": "geometric"}, "did you mean geometric_median"),
        ({"criterion": "l1", "lead": "first"}, "lead must be 'mean' or 'pacesetter', got 'first'"),
        ({"criterion": "bn_scale", "lead": "pacesetter"}, "does nothing with bn_scale"),
        ({"criterion": "l1", "seed": 1}, "the criterion l1 cannot take these options: .*'seed'"),
    ],
)
def test_options_that_mean_nothing(options, message):
    model = Chain()
    with pytest.raises(PlanError, match=message):
        score(trace(model, X), model, **options)


def test_wide_and_low_precision_weights():
    model = nn.Sequential(conv(3, 32), nn.Conv2d(32, 2, 1)).to(torch.bfloat16)
    graph = trace(model, X.bfloat16())
    for name in ("l1", "l2", "geometric_median", "mean_l2"):
        found = score(graph, model, name, batches=[torch.randn(2, 3, 8, 8).bfloat16()])["0.0"]
        assert found.dtype == torch.float64
        assert bool((found > 0).all())
