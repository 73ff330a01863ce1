"""Weights under spectral norm keep what is left of them, whatever a cut does to their norm."""

import pytest
import torch
from torch import nn

import netslim
from netslim.graph.modules.spectral_norms import spectral_norms
from netslim.surgery.history import history
from netslim.surgery.plan_of_units import plan_keeping

PICTURES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
FORMS = [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]
pytestmark = pytest.mark.filterwarnings("ignore:.torch.nn.utils.spectral_norm:FutureWarning")


def network(form):
    """As a discriminator, with a transposed convolution, whose rows are along dimension 1."""
    torch.manual_seed(0)
    layers = (
        form(nn.Conv2d(3, 8, 3, padding=1)),
        nn.Sigmoid(),
        form(nn.ConvTranspose2d(8, 6, 2, stride=2)),
        nn.LeakyReLU(),
        nn.Flatten(),
        form(nn.Linear(6 * 64, 4)),
        nn.ReLU(),
        nn.Linear(4, 1),
    )
    model = nn.Sequential(*layers)
    outputs(model)  # a step of the power iteration
    return model.eval()


def cut(graph, kept, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for number, group in enumerate(graph.groups):
        if group.prunable:
            units = torch.randperm(group.size, generator=generator).numpy()
            masks[number] = units < kept(group.size)
    return plan_keeping(graph, masks)


def half(size):
    return size // 2


def outputs(model):
    with torch.no_grad():
        return model(PICTURES)


def silenced(model, plan):
    """What the network makes if nothing reads what goes: weights of zeros, under their old norms."""
    plain = network(lambda layer: layer)
    for layer, normed in zip(plain, model, strict=True):
        for name in layer._parameters:
            layer._parameters[name] = getattr(normed, name).detach().clone()
    for row in plan.tensors:
        if "consumer" in row.role and "weight" in row.tensor:
            weight = plain[int(row.tensor.partition(".")[0])].weight
            weight.index_fill_(row.axis, torch.tensor(row.removed), 0)
    return outputs(plain)


@pytest.mark.parametrize("form", FORMS)
def test_cuts_are_exact_follow_each_other_and_are_saved(form, tmp_path):
    model = network(form)
    assert [norm.dim for norm in spectral_norms(model)] == [0, 1, 0]
    graph = netslim.trace(model, PICTURES)
    assert [group.name for group in graph.prunable] == ["0", "2", "5"]
    plan = cut(graph, lambda size: size - 2)
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, PICTURES, graph=graph).deviation < 1e-13
    assert torch.allclose(outputs(small), silenced(model, plan), atol=1e-6)
    again = cut(netslim.trace(small, PICTURES), half, seed=1)
    smaller = netslim.prune(small, again)
    assert netslim.verify(small, smaller, again, PICTURES).deviation < 1e-13
    both = netslim.prune(model, history(smaller))
    assert torch.allclose(outputs(both), outputs(smaller), atol=1e-6)
    path = netslim.save(smaller, tmp_path / "smaller.safetensors")
    assert torch.equal(outputs(netslim.load(network(form), path)), outputs(smaller))


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_in_place_trains_on_with_companions(form):
    model, mapping = network(form), network(form).state_dict()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    plan = cut(netslim.trace(model, PICTURES), half)
    small = netslim.prune(model, plan)
    netslim.prune_(model, plan, optimizer, [average, mapping])
    assert torch.equal(outputs(model), outputs(small))
    assert torch.equal(outputs(average.module), outputs(small))
    assert all(torch.equal(mapping[name], value) for name, value in small.state_dict().items())
    model.train()(PICTURES).square().sum().backward()
    optimizer.step()
    left = model.get_buffer(spectral_norms(model)[0].left)
    assert torch.allclose(left.norm(), torch.ones(()))  # a unit vector again


def test_a_mask_is_what_it_converts_to():
    model = network(FORMS[0])
    mask = netslim.Mask(model, cut(netslim.trace(model, PICTURES), half)).apply()
    assert torch.allclose(outputs(model), outputs(mask.convert()), atol=1e-6)


def test_where_nothing_of_the_image_is_left_there_is_another_vector():
    model = nn.Sequential(FORMS[0](nn.Linear(3, 2, bias=False)), nn.Linear(2, 1)).eval()
    weight = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
    model[0].parametrizations.weight.original.data = weight
    model[0].parametrizations.weight[0]._u.copy_(torch.tensor([1.0, 0.0]))
    model[0].parametrizations.weight[0]._v.copy_(torch.tensor([1.0, 0.0, 0.0]))
    graph = netslim.trace(model, torch.randn(1, 3))
    plan = plan_keeping(graph, {graph.number("0"): torch.tensor([False, True]).numpy()})
    small = netslim.prune(model, plan)
    assert torch.allclose(small[0].weight, weight[1:] / 2)
