"""Normalisations over channels go on over their old width: exact, module by module."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netslim
from netslim.errors import PlanError, SurgeryError
from netslim.graph.modules.padded_norms import (
    NormWidth,
    PaddedNorm,
)
from netslim.graph.modules.padding import pad
from netslim.surgery.history import history
from netslim.surgery.plan_of_units import plan_keeping

WIDE = 8


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ByHand(nn.Module):
    """As in ConvNeXt's own code, with a width that it remembers."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.width, self.dim, self.eps = width, width, 1e-6

    def forward(self, x):
        mean = x.sum(1, keepdim=True) / self.width
        variance = ((x - mean) ** 2).sum(1, keepdim=True) / self.dim
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Rms(nn.Module):
    """As in Llama: it casts to float32 whatever it is given."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x):
        y = x.to(torch.float32).movedim(1, -1)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight * y.to(x.dtype)).movedim(-1, 1)


class Response(nn.Module):
    """As in ConvNeXt V2."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x):
        length = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share = length / (length.mean(dim=-1, keepdim=True) + 1e-6)
        return self.weight * (x * share) + self.bias + x


class Gemma(nn.Module):
    """1 is added to the weight."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), 1e-6

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return (self._norm(x.float()) * (1.0 + self.weight.float())).type_as(x)


class Greek(nn.Module):
    """As in many codes of diffusion: a buffer is what others train, eps stands in the code."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("beta", torch.zeros(width))
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class Places(nn.Module):
    """Channels first, with weights in the shape that broadcasts, and another name for eps."""

    def __init__(self, width):
        super().__init__()
        self.b = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))
        self.least = 1e-3

    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        return (x - mean) * (variance + self.least).rsqrt() * self.g + self.b


class Bare(nn.Module):
    """PyTorch's function without an eps."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.scale)


class GreekResponse(nn.Module):
    """As in ConvNeXt V2's own code."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x):
        length = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return (
            self.gamma * (x * (length / (length.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x
        )


class WithActivation(nn.GroupNorm):
    def __init__(self, groups, width):
        super().__init__(groups, width)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class Last(nn.Module):
    """A norm over the last dimension."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


NORMS = {
    "layer": lambda: Last(nn.LayerNorm(WIDE)),
    "layer without weights": lambda: Last(nn.LayerNorm(WIDE, elementwise_affine=False)),
    "layer without a bias": lambda: Last(nn.LayerNorm(WIDE, bias=False)),
    "channels first": lambda: ChannelsFirst(WIDE),
    "by hand": lambda: ByHand(WIDE),
    "rms": lambda: Last(nn.RMSNorm(WIDE)),
    "rms that casts": lambda: Rms(WIDE),
    "one group": lambda: nn.GroupNorm(1, WIDE),
    "two groups": lambda: nn.GroupNorm(2, WIDE),
    "group and activation": lambda: WithActivation(2, WIDE),
    "groups without weights": lambda: nn.GroupNorm(4, WIDE, affine=False),
    "response": lambda: Last(Response(WIDE)),
    "one added to the weight": lambda: Last(Gemma(WIDE)),
    "a buffer": lambda: Last(Greek(WIDE)),
    "weights of four dimensions": lambda: Places(WIDE),
    "rms by a function": lambda: Last(Bare(WIDE)),
    "response of other names": lambda: Last(GreekResponse(WIDE)),
}
PICTURES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def network(norm):
    """Sigmoid makes something of channels that are silent, and the norm reads it."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, WIDE, 1), nn.Sigmoid())
    tail = nn.Sequential(nn.Conv2d(WIDE, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return nn.Sequential(stem, NORMS[norm](), tail).eval()


def cut(graph, keep, seed=0):
    rng = np.random.default_rng(seed)
    masks = {}
    for number, group in enumerate(graph.groups):
        if group.prunable:
            masks[number] = rng.permutation(group.size) < keep(group.size)
    return plan_keeping(graph, masks)


def of_width(norm, width, kind="layer", dim=-1):
    pad(norm, NormWidth("norm", kind, dim, width, eps={"response": 1e-6}.get(kind)))
    return norm


def outputs(model, x=PICTURES):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("norm", NORMS)
def test_cuts_are_exact_at_any_size_down_to_one_channel(norm):
    model = network(norm)
    graph = netslim.trace(model, PICTURES)
    assert graph["0.0"].prunable, graph["0.0"]
    half = cut(graph, lambda size: (size + 1) // 2)
    for plan in (half, cut(graph, lambda size: 1)):
        small = netslim.prune(model, plan)
        for inputs in (PICTURES, torch.randn(3, 3, 5, 7)):
            assert netslim.verify(model, small, plan, inputs, graph=graph).deviation < 1e-13
    assert netslim.PruningPlan.from_json(half.to_json()) == half
    assert "normalises over 8 channels as before" in half.explain()
    assert type(model[1]) is type(network(norm)[1])  # the original is as it was


@pytest.mark.parametrize("norm", NORMS)
def test_cuts_follow_each_other_and_are_saved(norm, tmp_path):
    model = network(norm)
    plan = cut(netslim.trace(model, PICTURES), lambda size: -(-size * 3 // 4))
    first = netslim.prune(model, plan)
    graph = netslim.trace(first, PICTURES)
    again = cut(graph, lambda size: (size + 1) // 2, seed=1)
    small = netslim.prune(first, again)
    assert netslim.verify(first, small, again, PICTURES).deviation < 1e-13
    whole = history(small)
    rows = {row.place: row.lasting for row in again.norms + plan.norms}
    assert whole.norms == tuple(rows.values())
    at_once = outputs(netslim.prune(model, whole))
    assert torch.allclose(at_once, outputs(small), rtol=1e-6, atol=1e-6)  # two factors, or one
    path = netslim.save(small, tmp_path / "small.safetensors")
    assert torch.equal(outputs(netslim.load(network(norm), path)), outputs(small))
    assert torch.equal(outputs(copy.deepcopy(small)), outputs(small))


@pytest.mark.parametrize("norm", ["channels first", "two groups", "response"])
def test_a_cut_in_place_takes_companions_and_the_optimizer_along(norm):
    model = network(norm).train()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(PICTURES).sum().backward()
    optimizer.step()
    plan = cut(netslim.trace(model, PICTURES), lambda size: (size + 1) // 2)
    small = netslim.prune(model, plan)
    netslim.prune_(model, plan, optimizer, average)
    assert torch.equal(outputs(model), outputs(small))
    (norm,) = [m for m in model.modules() if isinstance(m, PaddedNorm)]
    assert norm.padded_width == WIDE
    assert {type(m) for m in average.module.modules()} == {type(m) for m in small.modules()}
    before = [p.detach().clone() for p in model.parameters()]
    model(PICTURES).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_cut_in_place_that_fails_leaves_the_class(monkeypatch):
    model = network("channels first")
    plan = cut(netslim.trace(model, PICTURES), lambda size: 4)
    monkeypatch.setattr("netslim.surgery.prune.update_sizes", lambda *args: 1 / 0)
    before = outputs(model)
    with pytest.raises(ZeroDivisionError):
        netslim.prune_(model, plan)
    assert type(model[1]) is ChannelsFirst
    assert "padded_width" not in vars(model[1])
    assert torch.equal(outputs(model), before)


KINDS = [
    ("layer", lambda n: nn.LayerNorm(n), -1, (5, 3)),
    ("rms", lambda n: nn.RMSNorm(n, eps=0.1), -1, (5, 3)),
    ("group", lambda n: nn.GroupNorm(1, n), 1, (5, 3, 7)),
    ("response", Response, -1, (5, 2, 2, 3)),
]


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # PyTorch's own
@pytest.mark.parametrize(("kind", "make", "dim", "shape"), KINDS, ids=lambda value: "")
def test_missing_channels_count_as_zeros_and_gradients_are_right(kind, make, dim, shape):
    """Against the norm of full width, on an input with zeros; values and gradients."""
    whole, part = make(8).double(), make(3).double()
    drawn = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for p, q, values in zip(whole.parameters(), part.parameters(), drawn, strict=False):
        p.data.copy_(values.view_as(p))
        q.data.copy_(values[:3].view_as(q))
    padded = of_width(part, 8, kind, dim)
    x = (3 + torch.randn(shape, dtype=torch.float64)).requires_grad_()
    zeros = list(shape)
    zeros[dim] = 5
    wide = torch.cat([x, x.new_zeros(zeros)], dim)
    weigh = torch.randn(shape, dtype=torch.float64)
    wanted = whole(wide).narrow(dim, 0, 3)
    found = padded(x)
    with torch.no_grad():  # another way to the same, where nobody takes a derivative
        inferred = padded(x)
    for out in (found, inferred):
        assert torch.allclose(out, wanted, rtol=1e-12, atol=1e-12)
    a, b = (torch.autograd.grad((out * weigh).sum(), x)[0] for out in (found, wanted))
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(padded.requires_grad_(False), x, check_forward_ad=True)
    along = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        tangent = torch.func.jvp(padded, (x.detach(),), (along,))[1]
    expected = (padded(x + 1e-6 * along) - padded(x - 1e-6 * along)) / 2e-6
    assert torch.allclose(tangent, expected, rtol=1e-6, atol=1e-7)


def test_far_from_zero_the_variance_is_not_lost():
    padded = of_width(nn.LayerNorm(4), 8)
    x = 1e4 + torch.randn(3, 4)
    wide = torch.cat([x, torch.zeros(3, 4)], 1).double()
    wanted = F.layer_norm(wide, (8,))[:, :4]
    with torch.no_grad():
        inferred = padded(x)
    for out in (padded(x), inferred):
        assert torch.allclose(out.double(), wanted, atol=1e-5)


def test_data_types_are_those_of_pytorchs_own():
    own, padded = nn.LayerNorm(4), of_width(nn.LayerNorm(4), 8)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x = torch.randn(3, 4).to(dtype)
        assert copy.deepcopy(padded).to(dtype)(x).dtype == own.to(dtype)(x).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.randn(3, 4).bfloat16()
        assert padded(x).dtype == own.float()(x).dtype
    x = torch.randn(64, 4)
    half = copy.deepcopy(padded).bfloat16()(x.bfloat16()).float()
    assert (half - padded(x)).abs().max() < 0.05


def test_a_mask_is_what_it_converts_to():
    torch.manual_seed(0)
    parts = nn.Conv2d(3, WIDE, 1), nn.GELU(), ChannelsFirst(WIDE), nn.Conv2d(WIDE, 2, 1)
    model = nn.Sequential(*parts)
    plan = cut(netslim.trace(model, PICTURES), lambda size: 3)
    mask = netslim.Mask(model, plan).apply()
    assert torch.allclose(outputs(model), outputs(mask.convert()), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
@pytest.mark.parametrize("norm", ["layer", "two groups", "rms by a function", "response"])
def test_it_is_exported_and_written_without_netslim(norm):
    model = network(norm)
    small = netslim.prune(model, cut(netslim.trace(model, PICTURES), lambda size: (size + 1) // 2))
    exported = torch.export.export(small, (PICTURES,)).module()
    assert torch.allclose(outputs(exported), outputs(small), atol=1e-6)
    plain = netslim.models.plain(small)
    kinds = {type(m).__module__.partition(".")[0] for m in plain.modules()}
    assert "netslim" not in kinds
    with pytest.raises(SurgeryError, match=r"script netslim\.models\.plain\(model\), the same"):
        torch.jit.script(small)
    assert torch.equal(torch.jit.script(plain)(PICTURES), outputs(plain))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = PICTURES.to(dtype)
        wanted = small.to(dtype)(x)
        assert torch.allclose(plain.to(dtype)(x), wanted, atol=10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("places", [(WIDE, 4), (3, WIDE)])
def test_a_norm_over_channels_and_places(places, affine, tmp_path):
    """Channels first, or last; one of the places is as many as there are channels."""

    def fresh():
        torch.manual_seed(0)
        norm = nn.LayerNorm((WIDE, *places), elementwise_affine=affine)
        parts = nn.Conv2d(3, WIDE, 1), nn.Sigmoid(), norm, nn.Conv2d(WIDE, 2, 1)
        if places[-1] == WIDE:
            norm = nn.LayerNorm((5, WIDE), elementwise_affine=affine)
            parts = nn.Linear(3, WIDE), nn.Sigmoid(), norm, nn.Linear(WIDE, 2)
        return nn.Sequential(*parts).eval()

    model, x = fresh(), torch.randn(2, 3, *places)
    if places[-1] == WIDE:
        x = torch.randn(2, 5, 3)
    graph = netslim.trace(model, x)
    plan = cut(graph, lambda size: 5)
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, x, graph=graph).deviation < 1e-13
    again = cut(netslim.trace(small, x), lambda size: 2)
    smaller = netslim.prune(small, again)
    assert netslim.verify(small, smaller, again, x).deviation < 1e-13
    assert smaller[2].normalized_shape.count(2) == 1
    loaded = netslim.load(fresh(), netslim.save(smaller, tmp_path / "small.safetensors"))
    for other in (loaded, netslim.models.plain(smaller)):
        assert torch.equal(outputs(other, x), outputs(smaller, x))


class Doubled(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


def changed(x):
    return 2 * F.layer_norm(x, x.shape[-1:])


def test_what_computes_something_else_stays_inexact():
    patched = nn.LayerNorm(WIDE)
    patched.forward = changed
    for norm in (Doubled(WIDE), patched, nn.Softmax(-1)):
        model = nn.Sequential(nn.Linear(3, WIDE), norm, nn.Linear(WIDE, 2))
        graph = netslim.trace(model, torch.randn(2, 3))
        assert graph["0"].verdict == "inexact", graph["0"].reasons
        assert graph.norms == ()


def test_a_class_is_looked_at_anew_where_its_code_is_another():
    class Own(nn.LayerNorm):
        pass

    def exact():
        model = nn.Sequential(nn.Linear(3, WIDE), Own(WIDE), nn.Linear(WIDE, 2))
        return netslim.trace(model, torch.randn(2, 3))["0"].prunable

    assert exact()
    Own.forward = lambda self, x: changed(x)
    assert not exact()
    del Own.forward
    assert exact()


def test_channels_that_are_normalised_over_are_not_merged():
    graph = netslim.trace(network("layer"), PICTURES)
    assert graph.normalising("0.0") == ("1.norm",)
    assert "Normalised by 1.norm over as many as before, without them, too." in graph.explain("0.0")
    with pytest.raises(PlanError, match=r"1\.norm normalises over its channels, and counts each"):
        netslim.selection.merge(graph, {"0.0": [0, 0, 1, 1, 2, 2, 3, 3]})
    method = netslim.methods.CentripetalSGD(graph, network("layer"), target=0.5)
    assert set(method.clusters) == {"2.0"}


def test_rows_of_plans_that_cannot_be_are_refused():
    model = network("layer")
    plan = cut(netslim.trace(model, PICTURES), lambda size: (size + 1) // 2)

    def edited(**changes):
        data = json.loads(plan.to_json())
        del data["digest"]
        data["norms"] = [{**data["norms"][0], **changes}]
        return netslim.PruningPlan.from_json(json.dumps(data))

    for changes, why in (
        ({"kind": "none"}, "no kind 'none'"),
        ({"dim": 2}, "along dimension 2"),
        ({"width": 0}, "a width of 0"),
    ):
        with pytest.raises(PlanError, match=why):
            edited(**changes)
    data = json.loads(plan.to_json())
    del data["digest"], data["norms"]
    with pytest.raises(PlanError, match="0 of 1 norms"):
        netslim.PruningPlan.from_json(json.dumps(data))
    with pytest.raises(SurgeryError, match="which the model does not have"):
        netslim.prune(model, edited(module="nowhere"))
    with pytest.raises(SurgeryError, match="a ReLU cannot go on as a layer normalisation"):
        netslim.prune(model, edited(module="2.1"))
    with pytest.raises(SurgeryError, match="a LayerNorm cannot go on as a group normalisation"):
        of_width(nn.LayerNorm(4), 8, "group")
    assert plan.norms == (NormWidth("1.norm", "layer", -1, 8),)


class Odd(nn.LayerNorm):
    """Layer normalisations that are more, or less, each in its own way."""

    def __init__(self, way):
        super().__init__(WIDE)
        self.way = way

    def forward(self, x):
        if self.way == "noise":
            return F.dropout(super().forward(x), 0.5, self.training)
        if self.way == "no gradient":
            return super().forward(x.detach())
        if self.way == "clamp":
            return super().forward(x.clamp(-30, 30))
        if self.way == "in place":
            return super().forward(x.add_(1))
        self.mean = x.mean(-1, keepdim=True)
        return super().forward(x)


class Named(nn.LayerNorm):
    def scaled(self, x):
        return 2 * x


class Scaled(nn.LayerNorm):
    def forward(self, x, scale=1.0):
        return scale * super().forward(x)


class Between(nn.Module):
    """Reads a norm by name, or twice."""

    def __init__(self, norm, second=WIDE, **kwargs):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, WIDE), norm, nn.Linear(WIDE, second)
        self.c, self.kwargs = nn.Linear(second, 2), kwargs

    def forward(self, x):
        x = F.gelu(self.a(x))
        x = self.b(self.norm(x, **self.kwargs))
        if not self.kwargs:
            x = self.norm(x)
        return self.c(x)


class BareNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.eps = 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDE)

    def forward(self, x):
        return self.norm(input=x)


class Hooked(nn.LayerNorm):
    def __init__(self):
        super().__init__(WIDE)
        self.register_forward_pre_hook(lambda module, inputs: (inputs[0].softmax(-1),))


class Everywhere(nn.Module):
    """Normalises over channels and places; where there is one place, over channels."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDE)), 1e-5

    def forward(self, x):
        x = x - x.mean((1, 2), keepdim=True)
        return self.weight[:, None] * x * (x.square().mean((1, 2), keepdim=True) + self.eps).rsqrt()


ODD = {
    **{way: Odd(way) for way in ("noise", "no gradient", "clamp", "in place", "side result")},
    "method": Named(WIDE),
    "hook": Hooked(),
}


@pytest.mark.parametrize("way", ODD)
def test_a_norm_that_does_more_stays_whole(way):
    model = nn.Sequential(nn.Linear(4, WIDE), nn.GELU(), ODD[way], nn.Linear(WIDE, 2))
    graph = netslim.trace(model, torch.randn(2, 5, 4))
    assert not graph["0"].prunable


@pytest.mark.parametrize(
    "model",
    [
        Between(Scaled(WIDE), scale=2.0),
        Between(BareNorm()),
        Between(BareNorm(), WIDE + 4),
        nn.Sequential(nn.Linear(4, WIDE), nn.GELU(), ByKeyword(), nn.Linear(WIDE, 2)),
    ],
    ids=["keyword", "two of a width", "two widths", "input by keyword"],
)
def test_a_norm_that_is_called_in_other_ways_stays_whole(model):
    graph = netslim.trace(model, torch.randn(2, 5, 4))
    assert not graph.groups[0].prunable


@pytest.mark.parametrize("norm", [Everywhere(), nn.GroupNorm(1, WIDE)], ids=["own", "group"])
def test_one_place_is_not_taken_for_all(norm):
    """Traced with one place, checked with five."""
    model = nn.Sequential(nn.Conv1d(3, WIDE, 1), nn.GELU(), norm, nn.Conv1d(WIDE, 2, 1))
    graph = netslim.trace(model, torch.randn(2, 3, 1))
    if not graph["0"].prunable:
        return
    plan = cut(graph, lambda size: size // 2)
    netslim.verify(model, netslim.prune(model, plan), plan, torch.randn(2, 3, 5))


def test_norms_that_are_made_alike_but_for_a_function_are_looked_at_each():
    class Given(nn.LayerNorm):
        def __init__(self, function):
            super().__init__(WIDE)
            self.function = function

        def forward(self, x):
            return self.function(super().forward(x))

    parts = (
        nn.Linear(4, WIDE),
        Given(lambda x: 1 * x),
        nn.Linear(WIDE, WIDE),
        Given(lambda x: 2 * x),
    )
    graph = netslim.trace(nn.Sequential(*parts, nn.Linear(WIDE, 2)), torch.randn(2, 4))
    assert graph["0"].prunable
    assert not graph["2"].prunable


def test_data_types_layouts_and_empty_batches_are_as_pytorchs():
    own, padded = nn.RMSNorm(4), of_width(nn.RMSNorm(4), 4, "rms")
    for dtype in (torch.bfloat16, torch.float32):  # no eps: PyTorch takes one for the type
        x = (0.01 * torch.randn(3, 4)).to(dtype)
        expected = copy.deepcopy(own).to(dtype)(x)
        assert torch.allclose(copy.deepcopy(padded).to(dtype)(x), expected, rtol=0.02)
    turned = torch.randn(2, 4, 3).mT
    layer = of_width(nn.LayerNorm(4), 8)
    assert layer(turned).is_contiguous()
    assert of_width(nn.GroupNorm(2, 4), 8, "group", 1)(torch.randn(0, 4, 3)).shape == (0, 4, 3)
