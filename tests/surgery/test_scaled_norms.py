"""RMS normalisations keep their class: what they remember of the old width is in weight and eps."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim.errors import PlanError
from netslim.graph.modules.padded_norms import NormWidth, PaddedNorm
from netslim.graph.modules.scaled_norms import eps_held
from netslim.surgery.history import history

WIDE = 8
TINY = 1e-4 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))  # so eps matters


class Llama(nn.Module):
    """It casts to float32 whatever it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * y.to(x.dtype)


class Gemma(nn.Module):
    """1 is added to the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).type_as(x)


class OfItsWidth(nn.Module):
    """Divides by a width that it has written down, and a cut would not know."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().sum(-1, keepdim=True) / self.width + self.eps).rsqrt()


NORMS = {
    "of PyTorch": lambda: nn.RMSNorm(WIDE, eps=1e-6),
    "Llama": lambda: Llama(WIDE),
    "Gemma": lambda: Gemma(WIDE),
}


def network(norm: str = "of PyTorch") -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Linear(3, WIDE, bias=False), NORMS[norm](), nn.Linear(WIDE, 2)
    with torch.no_grad():
        parts[1].weight.copy_(torch.rand(WIDE))
    return nn.Sequential(*parts).eval()


def planned(model: nn.Module, keep: int, seed: int = 0) -> netslim.PruningPlan:
    graph = netslim.trace(model, TINY)
    assert graph["0"].prunable, graph["0"]
    drawn = torch.rand(graph["0"].size, generator=torch.Generator().manual_seed(seed))
    return netslim.select(graph, {"0": drawn}, per_group={"0": graph["0"].size - keep})


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TINY)


def silent(model: nn.Module, kept: tuple[int, ...]) -> Tensor:
    """What a network makes where the other channels are zeros, in float64."""
    whole = copy.deepcopy(model).double()
    mask = torch.zeros(WIDE, dtype=torch.float64)
    mask[list(kept)] = 1
    with torch.no_grad():
        whole[0].weight.mul_(mask[:, None])
        return whole(TINY.double())


@pytest.mark.parametrize("norm", NORMS)
def test_the_class_stays_and_each_cut_is_exact(norm, tmp_path) -> None:
    model = network(norm)
    plan = planned(model, 5)
    assert "1: normalises over 8 channels as before, scaled to that" in plan.explain()
    assert netslim.PruningPlan.from_json(plan.to_json()) == plan
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, TINY).deviation < 1e-14
    assert [type(part) for part in small] == [type(part) for part in model]
    again = planned(small, 2, seed=1)
    smaller = netslim.prune(small, again)
    assert netslim.verify(small, smaller, again, TINY).deviation < 1e-14
    last = planned(smaller, 1, seed=2)
    assert netslim.verify(smaller, netslim.prune(smaller, last), last, TINY).deviation < 1e-14
    whole = history(smaller)
    assert [row.width for row in whole.norms] == [WIDE]
    for other in (netslim.prune(model, whole), smaller):
        assert torch.allclose(out(other), silent(model, whole.groups["0"].kept).float(), rtol=1e-5)
    path = netslim.save(smaller, tmp_path / "small.safetensors")
    for other in (netslim.load(network(norm), path), copy.deepcopy(smaller)):
        assert torch.equal(out(other), out(smaller))
        assert history(other).norms == whole.norms


def test_in_place_it_is_scaled_once_whatever_shares_its_memory() -> None:
    model = network()
    shadow = dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(TINY).sum().backward()
    optimizer.step()
    plan = planned(model, 5)
    small = netslim.prune(model, plan)
    average = torch.optim.swa_utils.AveragedModel(model)
    netslim.prune_(model, plan, optimizer, [average, shadow])
    for other in (model, average.module):
        assert torch.equal(out(other), out(small))
    assert torch.equal(shadow["1.weight"], small[1].weight)
    assert model[1].normalized_shape == (5,)
    optimizer.step()


def test_a_cut_in_place_that_fails_leaves_eps_and_weight(monkeypatch) -> None:
    model = network()
    plan, before = planned(model, 5), out(model)
    monkeypatch.setattr("netslim.surgery.prune.update_sizes", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        netslim.prune_(model, plan)
    assert torch.equal(out(model), before)


def test_what_was_written_before_opens_and_is_cut_again(tmp_path) -> None:
    """Until 0.2 a `PaddedRMSNorm` took its place."""
    model = network()
    data = json.loads(planned(model, 5).to_json())
    del data["digest"]
    data["norms"] = [{"module": "1", "kind": "rms", "dim": -1, "width": 8}]
    plan = netslim.PruningPlan.from_json(json.dumps(data))
    small = netslim.prune(model, plan)
    assert isinstance(small[1], PaddedNorm)
    assert netslim.verify(model, small, plan, TINY).deviation < 1e-14
    path = netslim.save(small, tmp_path / "small.safetensors")
    small = netslim.load(network(), path)
    again = planned(small, 2)
    smaller = netslim.prune(small, again)
    assert netslim.verify(small, smaller, again, TINY).deviation < 1e-14
    assert smaller[1].padded_width == WIDE


class Penalised(nn.Module):
    """In training it adds a penalty on the weights of its normalisation."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.parts, self.way = network(), way

    def forward(self, x: Tensor) -> Tensor:
        made = self.parts(x)
        if self.training and self.way == "of one":
            made = made + self.parts[1].weight.abs().sum()
        if self.training and self.way == "of all":
            made = made + sum(p.square().sum() for p in self.parameters())
        return made


@pytest.mark.parametrize(("way", "kept"), [("none", False), ("of one", True), ("of all", True)])
def test_a_weight_that_is_read_elsewhere_in_training_is_not_scaled(way, kept) -> None:
    model = Penalised(way).eval()
    graph = netslim.trace(model, TINY)
    drawn = torch.rand(WIDE, generator=torch.Generator().manual_seed(0))
    plan = netslim.select(graph, {"parts.0": drawn}, per_group={"parts.0": 3})
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, TINY, graph=graph).deviation < 1e-14
    assert isinstance(small.parts[1], PaddedNorm) is kept
    gone = [n for n in range(WIDE) if n not in plan.groups["parts.0"].kept]
    with torch.no_grad():
        for tensor in (model.parts[0].weight, model.parts[1].weight, model.parts[2].weight.T):
            tensor[gone] = 0
        assert torch.allclose(small.train()(TINY), model.train()(TINY), rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_plan_goes_on_from_the_eps_of_the_network_that_is_cut(norm, tmp_path) -> None:
    plan, model = planned(network(norm), 5), network(norm)
    average = torch.optim.swa_utils.AveragedModel(model)
    name = eps_held(model[1])
    setattr(model[1], name, 1e-3)
    small = netslim.prune(model, plan)
    assert getattr(small[1], name) == pytest.approx(1e-3 * WIDE / 5)
    assert netslim.verify(model, small, plan, TINY).deviation < 1e-14
    again = planned(small, 2, seed=1)
    smaller = netslim.prune(small, again)
    assert netslim.verify(small, smaller, again, TINY).deviation < 1e-14
    kept = history(smaller).groups["0"].kept
    assert torch.allclose(out(smaller), silent(model, kept).float(), rtol=1e-5)
    path = netslim.save(smaller, tmp_path / "small.safetensors")
    for fresh in (network(norm), model):
        assert torch.equal(out(netslim.load(fresh, path)), out(smaller))
    # In place each copy goes on from its own.
    netslim.prune_(model, plan, companions=average)
    assert torch.equal(out(model), out(small))
    assert getattr(average.module[1], name) == pytest.approx(1e-6 * WIDE / 5)


@pytest.mark.parametrize("kind", [nn.RMSNorm, nn.LayerNorm])
def test_an_eps_may_be_a_whole_number(kind, tmp_path) -> None:
    model = network()
    model[1] = kind(WIDE, eps=1)
    plan = planned(model, 5)
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, TINY).deviation < 1e-14
    path = netslim.save(small, tmp_path / "small.safetensors")
    assert torch.equal(out(netslim.load(model, path)), out(small))
    model[1].eps = 1.0
    assert planned(model, 5) == plan
    model[1].eps = True
    assert not netslim.trace(model, TINY)["0"].exact


def test_what_is_set_after_a_cut_stays(tmp_path) -> None:
    model = network()
    small = netslim.prune(model, planned(model, 5))
    small[1].eps = 1e-3
    path = netslim.save(small, tmp_path / "small.safetensors")
    loaded = netslim.load(network(), path)
    assert torch.equal(out(loaded), out(small))
    again = planned(loaded, 2, seed=1)
    smaller = netslim.prune(loaded, again)
    assert netslim.verify(loaded, smaller, again, TINY).deviation < 1e-14
    path = netslim.save(smaller, tmp_path / "smaller.safetensors")
    assert torch.equal(out(netslim.load(network(), path)), out(smaller))


def test_an_eps_that_is_taken_away_after_a_cut_is_not_saved_as_another(tmp_path) -> None:
    model = network()
    small = netslim.prune(model, planned(model, 5))
    small[1].eps = None
    with pytest.raises(netslim.errors.CheckpointError, match="the eps of 1, which was cut, is no"):
        netslim.save(small, tmp_path / "small.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_eps_that_is_taken_away_before_a_cut_stays_away(tmp_path) -> None:
    model = network()
    model[1].eps = None
    small = netslim.prune(model, planned(model, 5))
    path = netslim.save(small, tmp_path / "small.safetensors")
    loaded = netslim.load(network(), path)
    assert torch.equal(out(loaded), out(small))
    again = netslim.save(loaded, tmp_path / "again.safetensors")
    assert torch.equal(out(netslim.load(network(), again)), out(small))


@pytest.mark.parametrize("kind", [nn.RMSNorm, nn.LayerNorm])
def test_a_file_brings_the_eps_of_the_network_that_was_cut(kind, tmp_path) -> None:
    """A padded normalisation has it from the network, and its row of the plan says nothing."""
    made = None if kind is nn.RMSNorm else 1e-6
    model, fresh = network(), network()
    model[1], fresh[1] = kind(WIDE, eps=made), kind(WIDE, eps=1e-6)
    plan = planned(model, 5)
    model[1].eps = 0.1
    small = netslim.prune(model, plan)
    assert isinstance(small[1], PaddedNorm)
    loaded = netslim.load(fresh, netslim.save(small, tmp_path / "small.safetensors"))
    assert torch.equal(out(loaded), out(small))
    assert loaded[1].eps == 0.1
    assert history(loaded).norms == history(small).norms
    assert fresh[1].eps == 1e-6


def test_no_eps_is_that_of_the_data_type_after_a_cut_as_before() -> None:
    model, tiny = network(), 1e-4 * TINY
    model[1] = nn.RMSNorm(WIDE)
    plan = planned(model, 5)
    small = netslim.prune(model, plan)
    assert isinstance(small[1], PaddedNorm)
    assert netslim.verify(model, small, plan, TINY).deviation < 1e-14
    gone = [n for n in range(WIDE) if n not in plan.groups["0"].kept]
    with torch.no_grad():
        model[0].weight[gone] = 0
        for kind in (torch.float32, torch.float64):
            wanted = model.to(kind)(tiny.to(kind))
            assert torch.allclose(small.to(kind)(tiny.to(kind)), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("way", ["tied", "in one memory", "no weight", "a width in its code"])
def test_what_cannot_be_scaled_is_padded(way) -> None:
    model = network()
    if way == "no weight":
        model[1] = nn.RMSNorm(WIDE, elementwise_affine=False)
    if way == "a width in its code":
        model[1] = OfItsWidth(WIDE)
    if way in ("tied", "in one memory"):
        model.insert(2, nn.LayerNorm(WIDE, eps=1e-3))
        tied = way == "tied"
        model[2].weight = model[1].weight if tied else nn.Parameter(model[1].weight.data)
    plan = planned(model, 5)
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, TINY).deviation < 1e-14
    assert isinstance(small[1], PaddedNorm)
    if way in ("tied", "in one memory"):
        assert torch.equal(small[2].weight, model[2].weight[list(plan.groups["0"].kept)])


def test_a_weight_that_is_tied_between_two_cuts_is_refused() -> None:
    model = nn.Sequential(*network(), nn.RMSNorm(2), nn.Linear(2, 2))
    small = netslim.prune(model, planned(model, 5))
    small[3] = nn.Sequential(nn.Linear(2, 5), nn.RMSNorm(5), nn.Linear(5, 2))
    small[3][1].weight = small[1].weight
    with pytest.raises(PlanError, match="has scaled the weight of '1', and the other leaves it"):
        netslim.prune(small, planned(small, 2))


def test_a_norm_that_took_its_place_has_its_own_eps(tmp_path) -> None:
    model = network()
    small = netslim.prune(model, planned(model, 5))
    small[1] = nn.RMSNorm(5, eps=1e-6)
    assert history(small).norms == ()
    path = netslim.save(small, tmp_path / "small.safetensors")
    assert torch.equal(out(netslim.load(network(), path)), out(small))


def test_a_mask_is_what_it_converts_to() -> None:
    model = network()
    mask = netslim.Mask(model, planned(model, 5)).apply()
    masked = out(model)
    assert torch.allclose(masked, out(mask.convert()), rtol=1e-5)


@pytest.mark.parametrize("eps", [None, -1.0, "1e-6"])
def test_a_plan_without_an_eps_is_refused(eps) -> None:
    data = json.loads(planned(network(), 5).to_json())
    del data["digest"]
    data["norms"] = [{**data["norms"][0], "eps": eps}]
    with pytest.raises(PlanError, match="eps"):
        netslim.PruningPlan.from_json(json.dumps(data))


def test_a_plan_for_a_norm_without_an_eps_is_refused() -> None:
    model = network()
    plan = planned(model, 5)
    model[1].eps = "none"
    with pytest.raises(netslim.errors.SurgeryError, match="RMSNorm has no eps"):
        netslim.prune(model, plan)
    assert plan.norms == (NormWidth("1", "scaled", -1, 8, eps=1e-6),)
    model[1].eps = None
    wanted = (
        "RMSNorm 1 has None for its eps, and the plan was made .* number, 1e-06: give it a number"
    )
    for cut in (netslim.prune, netslim.prune_):
        with pytest.raises(netslim.errors.SurgeryError, match=wanted):
            cut(model, plan)
