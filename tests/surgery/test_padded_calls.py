"""Means, norms and the like within the code of larger modules: exact by other calls in their places."""

from __future__ import annotations

import ast
import copy
import functools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netslim
from netslim.errors import CheckpointError, SurgeryError
from netslim.graph.modules.call_sites import _digest, _Text, replaced_calls
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise

WIDE = 12
PICTURES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Channels along dimension 1, which a line of this very forward mixes."""

    held: tuple[str, ...] = ()

    def __init__(self):
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, WIDE, 1), nn.Conv2d(WIDE, 2, 1)
        for name in self.held:
            self.register_parameter(name, nn.Parameter(torch.rand(WIDE) + 0.5))
        self.eps, self.__scale = 1e-3, WIDE**0.5

    def forward(self, x):
        return self.tail(self.mixed(self.stem(x)))

    def mixed(self, x):
        raise NotImplementedError

    def scaled(self, x):
        return F.normalize(x, dim=1) * self.__scale


class Cbam(Net):
    def forward(self, x):
        x = self.stem(x)
        places = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return self.tail(x) * places.sum(1, keepdim=True).tanh()


class Extremes(Net):
    def mixed(self, x):
        return (
            x * torch.amax(x, 1, True) + torch.amin(x, dim=1, keepdim=True) - x.min(1)[0][:, None]
        )


class Layer(Net):
    held = ("weight", "bias")

    def mixed(self, x):
        x = x.movedim(1, -1)
        x = F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
        return x.movedim(-1, 1) * 2


class Root(Net):
    held = ("weight",)

    def mixed(self, x):
        x = x.movedim(1, -1)
        return F.rms_norm(x, self.weight.shape, self.weight).movedim(-1, 1).relu()


class Grouped(Net):
    held = ("weight", "bias")

    def mixed(self, x):
        return F.group_norm(x, 3, self.weight, self.bias).sigmoid()


class Annotated(Net):
    """As in The Annotated Transformer: eps is added to the deviation, with n - 1 below it."""

    held = ("weight", "bias")

    def mixed(self, x):
        mean = x.mean(1, keepdim=True)
        std = x.std(1, keepdim=True)
        return self.weight[:, None, None] * (x - mean) / (std + self.eps) + self.bias[:, None, None]


class Moments(Net):
    def mixed(self, x):
        variance, mean = torch.var_mean(x, (1, 2), keepdim=True, correction=0)
        deviation, _ = torch.std_mean(x, dim=1, unbiased=False, keepdim=True)
        return (x - mean) / (variance.sqrt() + deviation) + x.var(1, unbiased=True)[:, None]


class Directions(Net):
    """As lucidrains writes RMS norm, in a method of the class below."""

    held = ("weight",)

    def mixed(self, x):
        return self.scaled(x) * self.weight[:, None, None]


class Lengths(Net):
    def mixed(self, x):
        return x / (x.norm(dim=1, keepdim=True) + x.sum(1, keepdim=True) ** 2 + 1)


def rms(x, weight, eps):
    x = x.reshape(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])
    x = x * torch.rsqrt(x.pow(2).mean((2, 3, 4), keepdim=True) + eps)
    return x.flatten(1, 2) * weight


class Function(Net):
    """Statistics of two groups, in a function that another one calls."""

    held = ("weight",)

    def mixed(self, x):
        return rms(x, weight=self.weight[:, None, None], eps=self.eps)


class Casting(Net):
    def mixed(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(1, keepdim=True) + self.eps)).type_as(x)


class Whole(Net):
    def mixed(self, x):
        return x * torch.mean(x) + x.mean(axis=(1, 2, 3), keepdims=True)


FORMS = [Cbam, Extremes, Layer, Root, Grouped, Annotated, Moments, Directions, Lengths, Function]
FORMS += [Casting, Whole]


def network(kind):
    torch.manual_seed(0)
    return randomise(kind()).eval()


def half(graph):
    """Every other unit, so that of the halves and thirds of the channels as many go."""
    return plan_keeping(graph, {0: np.arange(graph.groups[0].size) % 2 == 0})


def outputs(model, x=PICTURES):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("kind", FORMS)
def test_all_channels_go_exactly_again_and_from_a_file(kind, tmp_path):
    model = network(kind)
    graph = netslim.trace(model, PICTURES)
    assert graph.prunable_share() == pytest.approx(1 - len(model.tail.bias) / graph.params())
    plan = half(graph)
    small = netslim.prune(model, netslim.PruningPlan.from_json(plan.to_json()))
    larger = torch.randn(1, 3, 5, 2)
    assert netslim.verify(model, small, plan, larger, graph=graph).deviation < 1e-12
    assert type(small).__name__ == kind.__name__
    assert isinstance(small, kind)
    mask = netslim.Mask(network(kind), plan).apply()
    assert torch.allclose(outputs(mask.model), outputs(small), atol=1e-5)
    after = netslim.trace(small, PICTURES)
    assert after["stem"].prunable
    again = half(after)
    smaller = netslim.prune(small, again)
    assert netslim.verify(small, smaller, again, larger).deviation < 1e-12
    path = netslim.save(smaller, tmp_path / "smaller.safetensors")
    assert torch.equal(outputs(netslim.load(network(kind), path)), outputs(smaller))


class Shared(Net):
    """One line for several widths."""

    def forward(self, x):
        wide, narrow = self.stem(x), self.tail(self.stem(x))
        means = [each.mean(1, keepdim=True) for each in (wide, narrow)]
        return self.tail(wide) * sum(means)


class Alike(nn.Module):
    """How like two maps are, channel by channel: products over lengths, to which zeros add nothing."""

    def __init__(self, pair=lambda x, y: (x, y)):
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, WIDE, 1), nn.Conv2d(3, WIDE, 1)
        self.tail = nn.Conv2d(WIDE, 2, 1)
        self.pair = pair

    def forward(self, x):
        x, y = self.stem(x), self.other(x)
        return self.tail(x + y) * F.cosine_similarity(*self.pair(x, y), dim=1)[:, None]


def test_a_cosine_over_channels_is_exact(tmp_path):
    model = randomise(Alike()).double().eval()
    pictures = PICTURES.double()
    graph = netslim.trace(model, pictures)
    assert {g.name: g.size for g in graph.prunable} == {"stem": WIDE}
    plan = half(graph)
    small = netslim.prune(model, plan)
    assert small.other.out_channels == WIDE // 2
    assert netslim.verify(model, small, plan, pictures, graph=graph).deviation < 1e-12
    mask = netslim.Mask(randomise(Alike()).double().eval(), plan).apply()
    silent = netslim.prune(mask.model, plan)
    assert torch.allclose(outputs(mask.model, pictures), outputs(silent, pictures))
    path = netslim.save(small, tmp_path / "small.safetensors")
    loaded = netslim.load(Alike().double().eval(), path)
    assert torch.equal(outputs(loaded, pictures), outputs(small, pictures))


@pytest.mark.parametrize(
    "pair",
    [lambda x, y: (x, y.mean(0, keepdim=True)), lambda x, y: (x, (y * 0 + 1).amax(1, True))],
    ids=["copied along the batch", "copied along the channels"],
)
def test_a_cosine_with_copies_stays_inexact(pair):
    graph = netslim.trace(randomise(Alike(pair)).eval(), PICTURES)
    assert graph["stem"].verdict == "inexact"


class TwoWays(nn.Module):
    """A line that two others of the forward lead to, for two widths, as in monai's Swin UNETR."""

    def __init__(self):
        super().__init__()
        self.stem, self.more = nn.Conv2d(3, WIDE, 1), nn.Conv2d(WIDE, 2 * WIDE, 1)
        self.wide, self.tail = nn.Conv2d(2 * WIDE, 2, 1), nn.Conv2d(WIDE, 2, 1)

    def normed(self, x):
        return F.layer_norm(x.movedim(1, -1), [x.shape[1]]).movedim(-1, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.more(x.relu())
        return self.tail(self.normed(x)) + self.wide(self.normed(y)) * self.normed(y).amax(1, True)


def test_a_line_on_two_ways_has_a_width_on_either(tmp_path):
    model = randomise(TwoWays()).double().eval()
    pictures = PICTURES.double()
    graph = netslim.trace(model, pictures)
    assert {g.name: g.size for g in graph.prunable} == {"stem": WIDE, "more": 2 * WIDE}
    calls = {norm.row.call.partition("#")[0]: norm.row.width for norm in graph.norms}
    assert sorted(calls.values()) == [WIDE, *3 * [2 * WIDE]]  # with the largest of all
    for cut in (["stem"], ["more"], ["stem", "more"]):  # of the second alone both are as wide
        masks = {graph.number(n): np.arange(graph[n].size) % 2 == 0 for n in cut}
        plan = plan_keeping(graph, masks)
        small = netslim.prune(model, plan)
        assert netslim.verify(model, small, plan, pictures, graph=graph).deviation < 1e-12
    again = netslim.trace(small, pictures)
    assert {g.name: g.size for g in again.prunable} == {"stem": WIDE // 2, "more": WIDE}
    masks = {again.number(n): np.arange(again[n].size) > 0 for n in ("stem", "more")}
    plan = plan_keeping(again, masks)
    smaller = netslim.prune(small, plan)
    assert netslim.verify(small, smaller, plan, pictures).deviation < 1e-12
    path = netslim.save(smaller, tmp_path / "smaller.safetensors")
    loaded = netslim.load(TwoWays().double().eval(), path)
    assert torch.equal(outputs(loaded, pictures), outputs(smaller, pictures))


class InACondition(Net):
    """One call in the text, which Python compiles twice."""

    def forward(self, x):
        x, times = self.stem(x), 0
        while times < 2 and (x := self.mixed(x)) is not None:
            times += 1
        return self.tail(x)

    def mixed(self, x):
        return x * torch.mean(x, 1, keepdim=True)


def test_a_call_in_the_condition_of_a_loop_is_one():
    model = network(InACondition)
    graph = netslim.trace(model, PICTURES)
    (norm,) = graph.norms
    plan = half(graph)
    assert [cut.place for cut in plan.norms] == [norm.row.place]
    assert netslim.verify(model, netslim.prune(model, plan), plan, PICTURES).deviation < 1e-12


class Fixed(Net):
    """The line first sees what no cut touches."""

    def forward(self, x):
        for layer in (self.stem, self.tail):
            x = layer(x * x.mean(1, keepdim=True))
        return x


class Written(Net):
    def forward(self, x):
        x = self.stem(x)
        return self.tail(x) * torch.mean(x, 1, keepdim=True, out=torch.empty(0))


class Smallest(Net):
    """A zero counts: the number of others, and the smallest of all."""

    def mixed(self, x):
        return x * (x.norm(p=0, dim=1, keepdim=True) + x.norm(p=-float("inf"), dim=1, keepdim=True))


def decorated(function):
    return lambda *args: function(*args)


class Decorated(Net):
    @decorated
    def mixed(self, x):
        return x * x.mean(1, keepdim=True)


class WeightsAlone(Net):
    """What is standardised is a weight, whose channels are silent in another place."""

    def forward(self, x):
        w = self.tail.weight
        return F.conv2d(self.stem(x), w - w.mean((1, 2, 3), keepdim=True))


class Replaced(Net):
    """What is called is known when it runs: an attribute that is no method."""

    def __init__(self):
        super().__init__()
        self.mean = torch.mean

    def mixed(self, x):
        return x * self.mean(x, 1, True)


class Bound(Net):
    """What the text calls is another thing than the function: it gets other arguments."""

    def mixed(self, x):
        mean = x.mean
        return x * mean(1, keepdim=True)


class Partial(Net):
    def __init__(self):
        super().__init__()
        self.mean = functools.partial(torch.mean, dim=1, keepdim=True)

    def mixed(self, x):
        return x * self.mean(x)


class Mapped(Partial):
    def mixed(self, x):
        (mean,) = map(self.mean, [x])
        return x * mean


NOT_THE_SAME = [Shared, Fixed, Written, Smallest, Decorated, WeightsAlone, Bound, Partial, Mapped]


@pytest.mark.parametrize("kind", NOT_THE_SAME)
def test_what_is_not_known_to_be_the_same_everywhere_stays_inexact(kind):
    graph = netslim.trace(network(kind), PICTURES)
    assert graph["stem"].verdict == "inexact"
    assert not graph.norms


def test_an_attribute_may_hold_the_function():
    model = network(Replaced)
    graph = netslim.trace(model, PICTURES)
    plan = half(graph)
    assert netslim.verify(model, netslim.prune(model, plan), plan, PICTURES).deviation < 1e-12


def test_what_a_module_computes_as_a_whole_comes_first():
    """Of a layer norm in parts, whose variance is taken of what is centred, zeros are no zeros."""

    class Centred(nn.Module):
        def forward(self, x):
            x = x - x.mean(-1, keepdim=True)
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)

    model = nn.Sequential(nn.Linear(4, WIDE), Centred(), nn.Linear(WIDE, 2)).eval()
    (norm,) = netslim.trace(model, torch.randn(3, 4)).norms
    assert (norm.row.kind, norm.row.call) == ("layer", "")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_of_cut_models_compute_the_same(copied):
    model = network(Function)
    small = netslim.prune(model, half(netslim.trace(model, PICTURES)))
    other = copied(small)
    assert torch.equal(outputs(other), outputs(small))
    assert replaced_calls(other) == replaced_calls(small) != {}
    assert not replaced_calls(model)


def test_a_cut_in_place_that_fails_leaves_the_class_as_it_was():
    model = network(Cbam)
    plan = half(netslim.trace(model, PICTURES))
    norms = tuple(norm for norm in plan.norms)
    wrong = norms[0].__class__(**{**vars(norms[0]), "call": "forward/99"})
    bad = netslim.PruningPlan.from_json(plan.to_json())
    bad = bad.__class__(**{**vars(bad), "norms": (*norms, wrong), "counts": None})
    with pytest.raises(SurgeryError, match="not what it was"):
        netslim.prune_(model, bad)
    assert type(model) is Cbam


def test_a_masked_model_is_saved_with_its_zeros_and_traced_as_it_was(tmp_path):
    model = network(Cbam)
    plan = half(netslim.trace(model, PICTURES))
    mask = netslim.Mask(model, plan).apply()
    path = netslim.save(model, tmp_path / "masked.safetensors")
    assert torch.equal(outputs(netslim.load(network(Cbam), path)), outputs(model))
    assert netslim.trace(model, PICTURES)["stem"].prunable
    assert torch.allclose(outputs(mask.convert()), outputs(model), atol=1e-6)
    assert not mask.convert()._forward_pre_hooks


class Said(Net):
    def mixed(self, x):
        """What is said of a function is no part of what it does."""
        return x * x.mean(1, keepdim=True)


class Once(Said):
    def mixed(self, x):
        return x * x.mean(1, keepdim=True)


class Edited(Said):
    def mixed(self, x):
        x = torch.clone(x)
        return x * x.mean(1, keepdim=True)


def test_a_cut_knows_the_code_that_it_was_planned_with(tmp_path):
    """Of other code the call of that number may be another: nothing tells which is meant."""
    model = network(Said)
    plan = half(netslim.trace(model, PICTURES))
    small = netslim.prune(model, plan)
    file, out = netslim.save(small, tmp_path / "small.safetensors"), small(PICTURES)
    assert torch.equal(netslim.load(network(Once), file)(PICTURES), out)
    again = netslim.PruningPlan.from_json(plan.to_json())
    with pytest.raises(SurgeryError, match="the code of Edited is not what it was"):
        netslim.prune(network(Edited), again)
    with pytest.raises(CheckpointError, match="the code of Edited is not what it was"):
        netslim.load(network(Edited), file)


def test_a_place_is_the_same_with_every_version_of_python():
    """Which write f-strings with other quotes, up to 3.11 and from 3.12 on."""
    tree = ast.parse("def forward(self, x):\n    return f\"{x['a']:>{x['b']}}\\n\"\n")
    assert _digest([_Text(tree, {}, "")]) == "b1eea6e65d65"
