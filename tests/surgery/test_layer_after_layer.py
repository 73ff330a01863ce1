"""Whole kernels, fitted layer after layer to what the original computes."""

from __future__ import annotations

import contextvars
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from netslim import Budget, prune, slim, trace
from netslim.errors import ArgumentError
from netslim.graph.modules.batches import inputs_of, joined
from netslim.selection import Compensation
from netslim.surgery import compensate
from netslim.surgery.history import history
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise

TINY = 1e-13  # a ridge that leaves what is exact exact
KERNELS = sys.modules["netslim.surgery.compensation.kernels"]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = drawn(32, 3, 8, 8)


def random(network):
    torch.manual_seed(0)
    return randomise(network(), 0).double().eval()


def only(model, name, kept, inputs=X):
    """A plan that cuts one group alone."""
    graph = trace(model, inputs)
    return plan_keeping(graph, {graph.number(name): np.isin(np.arange(graph[name].size), kept)})


def sequential(model, plan, batches, ridge=None):
    folding = compensate(model, plan, batches, "sequential", ridge=ridge)
    return prune(folding.model, folding.plan)


@torch.no_grad()
def error(small, model, x=X):
    found, right = (y[0] if isinstance(y, tuple) else y for y in (small(x), model(x)))
    return float((found - right).square().mean())


class Shifted(nn.Module):
    """The second channel is the first one, a step later: k[t] = x[t], r[t] = x[t + 1]. What reads
    them is y[t] = 2 k[t] + 3 k[t + 1] + 5 r[t] + 1, which is 2 x[t] + 8 x[t + 1] + 1.
    """

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 2, 2, bias=False), nn.Conv1d(2, 1, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[[1.0, 0]], [[0, 1]]]))
            self.second.weight.copy_(torch.tensor([[[2.0, 3], [5, 0]]]))
            self.second.bias.fill_(1)

    def forward(self, x):
        return self.second(self.first(x))


def test_a_shift_by_hand():
    """Taps are fitted together: one by one, the first tap knows nothing of the next place."""
    model, x = Shifted().double(), drawn(8, 1, 12)
    plan = only(model, "first", [0], x)
    small = sequential(model, plan, [x[:5], x[5:]], ridge=TINY)
    assert small.second.weight.flatten().tolist() == pytest.approx([2, 8])
    assert small.second.bias.item() == pytest.approx(1)
    taps = compensate(model, plan, [x], "linear", ridge=TINY)
    assert error(prune(taps.model, taps.plan), model, x) > 1


@pytest.mark.parametrize("images", [1, 4, 16])
def test_the_ridge_by_hand(images):
    """Two entries, alike in variance and uncorrelated, fit what is missing of each other: by a
    slope of 5 / (1 + ridge), ridge = 0.02 x 1 / images.
    """
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[1].weight.copy_(torch.tensor([[2.0, 5.0]]))
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    x = x.repeat(images, 1) if images > 1 else x[None]  # (2, 1) places of one example
    seen = len(x)
    plan = only(model, "0", [0], x)
    small = sequential(model, plan, [x])
    assert small[1].weight.item() == pytest.approx(2 + 5 / (1 + 0.02 / seen))


@pytest.mark.parametrize(
    "reads",
    [
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False),
        nn.Conv2d(6, 4, 3, padding=2, stride=2, dilation=2, groups=2),
        nn.Conv2d(6, 4, (3, 2), padding=1, padding_mode="reflect", bias=False),
    ],
)
def test_against_lstsq(reads):
    """All outputs at once, with their own patches, found by one image of each entry."""
    model = random(lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Tanh(), reads))
    plan = only(model, "0", [0, 1, 3, 4])
    small = sequential(model, plan, [X[:7], X[7:]], ridge=TINY)
    layer, read = small[2], small[1](small[0](X)).detach()
    wanted = model(X).detach()

    def made(parameters):
        own = {"weight": parameters[: layer.weight.numel()].view_as(layer.weight)}
        if layer.bias is not None:
            own["bias"] = parameters[layer.weight.numel() :]
        return torch.func.functional_call(layer, own, read)

    count = sum(parameter.numel() for parameter in layer.parameters())
    basis = torch.stack([made(row) - made(0 * row) for row in torch.eye(count).double()], -1)
    right = (wanted - made(torch.zeros(count).double())).flatten()
    best = torch.linalg.lstsq(basis.flatten(0, -2), right[:, None]).solution
    found = torch.cat([parameter.detach().flatten() for parameter in layer.parameters()])
    assert torch.allclose(found, best[:, 0], atol=1e-8)


@pytest.mark.parametrize("layer", [{"groups": 2}, {"bias": False}])
def test_few_samples_give_what_their_covariances_give(layer, monkeypatch):
    """Twelve samples of 54 or 108 entries: solved by what is as large as the samples, or as the
    entries.
    """
    model = random(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.Tanh(), nn.Conv2d(16, 4, 3, stride=3, **layer)
        )
    )
    x = X[:3]
    plan = only(model, "0", [*range(6), *range(8, 14)], x)
    few = compensate(model, plan, [x[:1], x[1:]], "sequential", ridge=0.3)
    monkeypatch.setattr(KERNELS.KernelFit, "_take", lambda self, rows: self.moments.add(rows))
    summed = compensate(model, plan, [x[:1], x[1:]], "sequential", ridge=0.3)
    for one, other in zip(few.model.parameters(), summed.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    rows = zip(few.moved, summed.moved, strict=True)
    assert all(one.explained == pytest.approx(other.explained) for one, other in rows)
    assert not torch.allclose(few.model[2].weight, model[2].weight, atol=1e-2)


class Stages(nn.Module):
    """The second half reads nothing of what goes, but what has come of it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.c, self.head = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Linear(6, 5)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.head(self.c(x).relu().mean((2, 3)))


def test_layers_that_read_no_removed_channel_make_up_for_it_too():
    model = random(Stages)
    plan = only(model, "a", [0, 1, 2])
    folding = compensate(model, plan, [X], "sequential")
    rows = {row.consumer: row for row in folding.moved}
    assert list(rows) == ["b.weight", "c.weight", "head.weight"]
    assert [row.channels for row in rows.values()] == [5, 0, 0]
    assert "c.weight: what has come of others -> entries that stay" in str(folding)
    small = prune(folding.model, folding.plan)
    assert torch.equal(small.a.weight, model.a.weight[:3])
    assert small.c.bias is None  # what need not change is given nothing
    alone = prune(model, plan)
    alone.b.load_state_dict(small.b.state_dict())
    assert error(small, model) < error(alone, model) < error(prune(model, plan), model)


class Keeps(Stages):
    """A forward that keeps on itself what it needs later on, and counts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.runs = []

    def forward(self, x):
        self.calls += 1
        self.runs.append(len(x))
        self.skip = self.a(x).relu()
        x = self.b(self.skip).relu()
        return self.head(self.c(x + self.skip.mean(1, keepdim=True)).relu().mean((2, 3)))


def test_runs_side_by_side_do_not_meet():
    """As one batch, or as several that wait for each other."""
    model = random(Keeps)
    plan = only(model, "a", [0, 1, 2, 5])
    at_once, parts = (
        sequential(model, plan, batches) for batches in ([X], [X[:3], X[3:16], X[16:]])
    )
    for (name, one), other in zip(at_once.named_parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-9), name
    assert (model.calls, model.runs) == (0, [])


def test_each_batch_is_run_five_times_however_deep_the_network(monkeypatch):
    """To see how the layers follow each other, whether batches can be put together, twice, and then
    once whole and once cut.
    """
    runs = []
    forward = Stages.forward
    monkeypatch.setattr(Stages, "forward", lambda self, x: runs.append(len(x)) or forward(self, x))
    model = random(Stages)
    plan = only(model, "a", [0, 1, 2])
    runs.clear()
    sequential(model, plan, [X[:3], X[3:]])
    assert sorted(runs) == [3, 3, 29, 29, 32, 32, 32]


def test_as_many_batches_as_there_is_memory_for_are_run_again(monkeypatch):
    model = random(Stages)
    plan = only(model, "a", [0, 1, 2])
    monkeypatch.setattr(KERNELS, "MEMORY", 1)
    few = sequential(model, plan, [X[:16], X[16:]])
    one = sequential(model, plan, [X[:16]])
    assert torch.equal(few.c.weight, one.c.weight)


@pytest.mark.parametrize(
    ("batches", "size"),
    [
        ([torch.zeros(size, 2) for size in (3, 1, 2, 4, 5)], 15),
        ([(torch.zeros(2, 3), 7), (torch.zeros(1, 3), 8)], 3),  # 7 and 8 are labels
        ([((torch.zeros(2, 3), 7),), ((torch.zeros(1, 3), 8),)], None),  # inputs
        ([((torch.zeros(2, 3), 7),), ((torch.zeros(1, 3), 7),)], 3),
        ([{"x": torch.zeros(2, 3), "labels": 1}, {"x": torch.zeros(4, 3)}], 6),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], None),
        ([((torch.zeros(2, 3), torch.zeros(5)),)] * 2, None),  # five of something else
    ],
)
def test_batches_are_put_together_where_they_can_be(batches, size):
    found = joined(batches)
    if size is None:
        assert found is None
    else:
        args, kwargs = inputs_of(found)
        assert len(next(iter(kwargs.values()), *args[:1])) == size


class Sometimes(Stages):
    """Layers that run in large batches only, or in another order."""

    def forward(self, x):
        if len(x) > 8:
            return super().forward(x)
        self.c(torch.zeros(1, 4, 8, 8, dtype=x.dtype))
        return self.head(self.a(x).relu().mean((2, 3))[:, :6])


def test_layers_that_do_not_run_in_every_batch_or_in_another_order():
    model = random(Sometimes)
    plan = only(model, "a", [0, 1, 2, 5, 6, 7])
    small = sequential(model, plan, [X[:16], X[16:20]])
    assert error(small, model) < error(prune(model, plan), model) / 2


class Fails(Stages):
    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        if not torch.equal(self.b.weight, self.kept):
            raise RuntimeError("of the cut one alone")
        return self.head(self.c(x).relu().mean((2, 3)))


def test_a_run_that_fails_ends_all_others():
    model = random(Fails)
    model.kept = model.b.weight.detach().clone()
    plan = only(model, "a", [0, 1, 2])
    before = threading.active_count()
    with pytest.raises(ArgumentError, match="of the cut one alone"):
        sequential(model, plan, [X[:16], X[16:]])
    assert threading.active_count() == before


def test_more_entries_than_can_be_are_fitted_by_channels(monkeypatch):
    model = random(Stages)
    plan = only(model, "a", [0, 1, 2])
    monkeypatch.setattr(KERNELS, "LARGEST", 2)
    small = sequential(model, plan, [X])
    by_channels = compensate(model, plan, [X], "linear").model
    assert torch.equal(small.b.weight, by_channels.b.weight[:, :3])
    assert torch.equal(small.c.weight, model.c.weight)


# ---------------------------------------------------------------- what a forward may do


def test_normalisations_over_channels_find_zeros_as_in_the_cut_network():
    """The network whose layers are fitted runs as what is cut from it."""
    model = random(lambda: nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 16)))
    x, fresh = drawn(512, 8), drawn(64, 8, seed=1)
    plan = only(model, "0", range(16), x)
    assert plan.norms
    linear = compensate(model, plan, [x], "linear")
    small = sequential(model, plan, [x])
    assert error(small, model, fresh) < error(prune(linear.model, linear.plan), model, fresh) / 10


class Tied(Stages):
    def __init__(self):
        super().__init__()
        self.c2 = nn.Conv2d(4, 6, 3, padding=1)
        self.c2.weight = self.c.weight


@pytest.mark.parametrize("norm", [None, weight_norm, spectral_norm])
def test_weights_that_are_computed_or_stand_twice_are_left_as_they_are(norm):
    model = random(Tied if norm is None else Stages)
    if norm is not None:
        norm(model.c)
    plan = only(model, "a", [0, 1, 2])
    assert error(sequential(model, plan, [X]), model) < error(prune(model, plan), model)


class Routed(nn.Module):
    """How many examples a layer reads depends on values."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate = nn.Linear(6, 32), nn.Linear(32, 16), nn.Linear(16, 1)
        self.c, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        y = self.b(self.a(x).relu()).relu()
        chosen = self.gate(y)[:, 0] > 0
        out = torch.zeros_like(y)
        out[chosen] = self.c(y[chosen])
        return self.head(out)


def test_layers_that_read_other_examples_after_the_cut_are_not_fitted_to_them():
    model, x = random(Routed), drawn(64, 6)
    plan = only(model, "a", [0, 1, 2], x)
    folding = compensate(model, plan, [x], "sequential")
    assert torch.equal(folding.model.c.weight, model.c.weight)
    assert not torch.equal(folding.model.b.weight, model.b.weight)


class Frames(nn.Module):
    """Time comes first."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.cell = nn.Linear(3, 16), nn.Linear(16, 8), nn.GRU(8, 8)

    def forward(self, x):
        return self.cell(self.b(self.a(x).relu()))[0][-1]


class Labels(Stages):
    """Puts out truth values beside, and nothing at all."""

    def forward(self, x):
        y = super().forward(x)
        return y, y > 0, y[:, :0]


class Maps(Stages):
    """Of one image without a dimension for more."""

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


@pytest.mark.parametrize(
    ("network", "shape", "runs"),
    [
        (Stages, (2, 3, 8, 8), 1),
        (Labels, (2, 3, 8, 8), 1),
        (Frames, (6, 8, 3), 8),
        (Maps, (3, 8, 8), 8),
    ],
)
def test_batches_are_run_together_only_where_examples_are_computed_alike(network, shape, runs):
    model = random(network)
    batches = [drawn(*shape, seed=seed) for seed in range(20)]
    found = KERNELS._as_few(model, batches)
    assert len(found) == runs
    plan = only(model, "a", [0, 1, 2], batches[0])
    small = sequential(model, plan, batches)
    assert error(small, model, batches[0]) < error(prune(model, plan), model, batches[0])


HEARD = contextvars.ContextVar("heard", default=0.0)


class Around(Stages):
    """A forward that sets what is the process's around layers, and is told by its caller."""

    def forward(self, x):
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            y = self.b(self.a(x).relu()).relu()
            y = self.c(y * HEARD.get()).relu()
            torch.set_default_dtype(before)
        return self.head(y.mean((2, 3)))


def test_settings_are_as_they_were_and_the_callers_context_is_seen():
    HEARD.set(2.0)
    model = random(Around)
    plan = only(model, "a", [0, 1, 2])

    def settings():
        flags = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
        return *flags, torch.get_default_dtype(), len(warnings.filters), torch.get_rng_state().sum()

    before = settings()
    small = sequential(model, plan, [X[:16], X[16:]])
    assert settings() == before
    assert error(small, model) < error(prune(model, plan), model) / 10
    HEARD.set(0.0)


class Noisy(Stages):
    def forward(self, x):
        y = self.a(x).relu()
        y = self.b(y + torch.randn_like(y)).relu()
        return self.head(self.c(y).relu().mean((2, 3)))


def test_what_is_random_is_so_in_both_runs_alike():
    model = random(Noisy)
    folding = compensate(model, only(model, "a", [0, 1, 2]), [X], "sequential")
    calm = random(Stages)
    calm.load_state_dict(folding.model.state_dict())
    first, plan = random(Stages), only(calm, "a", [0, 1, 2])
    assert error(prune(calm, plan), first) < error(prune(first, plan), first)


class Catches(Stages):
    def forward(self, x):
        y = self.a(x).relu()
        try:
            return self.head(self.c(self.b(y).relu()).relu().mean((2, 3)))
        except Exception:
            return self.head(self.c(self.b(y).relu()).relu().mean((2, 3)))


def test_a_forward_that_catches_exceptions_is_ended_all_the_same():
    model = random(Catches)
    before = threading.active_count()
    sequential(model, only(model, "a", [0, 1, 2]), [X[:16], X[16:]])
    assert threading.active_count() == before


class Locks(Stages):
    lock = threading.Lock()

    def forward(self, x):
        y = self.a(x).relu()
        with Locks.lock:
            y = self.b(y).relu()
        return self.head(self.c(y).relu().mean((2, 3)))


def test_runs_that_wait_for_each_other_for_ever_are_told_and_the_other_fit_is_taken(monkeypatch):
    monkeypatch.setattr(sys.modules["netslim.surgery.compensation.halted"], "LONGEST", 0.5)
    model = random(Locks)
    plan = only(model, "a", [0, 1, 2])
    with pytest.raises(ArgumentError, match="take way='linear'"):
        sequential(model, plan, [X])
    fold = Compensation("nearest")
    small = slim(model, X, budget=Budget(cut_macs=0.3), batches=[X, X], compensation=fold)
    assert any("compensation kept: linear" in note for note in history(small).notes)
