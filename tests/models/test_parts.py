"""The history of a cut travels with what was cut: parts, and what becomes of them since."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as masks
from torch.nn.utils.fusion import fuse_conv_bn_eval

import netslim
from elsewhere import Without
from nets import Chain, cut_half
from netslim.errors import CheckpointError
from netslim.graph.modules.walk import fingerprint
from netslim.surgery.history import history

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HALF = netslim.Budget(cut_channels=0.5)


def trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 1),
    )


class Detector(nn.Module):
    def __init__(self, classes: int = 5):
        super().__init__()
        self.backbone = trunk()
        self.neck = nn.Conv2d(8, 12, 1)
        self.head = nn.Conv2d(12, classes, 1)

    def forward(self, x):
        return self.head(self.neck(self.backbone(x)).relu())


def fresh(classes: int = 5) -> Detector:
    torch.manual_seed(0)
    return Detector(classes).eval()


def slim(model, x=X):
    return netslim.slim(model, x, budget=HALF, criterion="l1")


def part_put_into_another():
    model = fresh()
    model.backbone = slim(model.backbone)
    return model, fresh()


def part_taken_out():
    return slim(fresh()).backbone, fresh().backbone


def cut_backbone_under_a_new_head():
    def under(part):
        return nn.Sequential(part, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()

    return under(slim(fresh().backbone)), under(fresh().backbone)


def layers_in_a_new_row():
    """What is left ends within: the new layer reads 6 of 12 channels."""

    def first_layers(model, channels):
        return nn.Sequential(*list(model.backbone)[:6], nn.Conv2d(channels, 2, 1)).eval()

    small = slim(fresh())
    return first_layers(small, small.backbone[3].out_channels), first_layers(fresh(), 12)


def the_same_row_built_as_it_is_now():
    small, _ = layers_in_a_new_row()
    network = nn.Sequential(*list(fresh().backbone)[:6], copy.deepcopy(small[6])).eval()
    return small, network


def new_head():
    small = slim(fresh())
    small.head = nn.Conv2d(small.neck.out_channels, 3, 1)
    return small, fresh(classes=3)


def new_head_on_a_model_that_has_it():
    small = slim(fresh())
    small.head = nn.Conv2d(small.neck.out_channels, 3, 1)
    other = fresh()
    other.head = nn.Conv2d(small.neck.out_channels, 3, 1)
    return small, other


def fused(model):
    row = model.backbone
    row[0], row[1] = fuse_conv_bn_eval(row[0], row[1]), nn.Identity()
    row[3], row[4] = fuse_conv_bn_eval(row[3], row[4]), nn.Identity()
    return model


def fused_after_the_cut():
    return fused(slim(fresh())), fused(fresh())


def synchronised_after_the_cut():
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    return convert(slim(fresh())), convert(fresh())


def weight_norm_after_the_cut():
    def normed(model):
        nn.utils.parametrizations.weight_norm(model.neck)
        return model

    return normed(slim(fresh())), normed(fresh())


NORMS = {
    "hook": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "parametrised": (
        nn.utils.parametrizations.weight_norm,
        lambda layer: nn.utils.parametrize.remove_parametrizations(layer, "weight"),
    ),
    "mask": (
        lambda layer: masks.random_unstructured(layer, "weight", amount=0.3),
        lambda layer: masks.remove(layer, "weight"),
    ),
}


def computed(kind):
    """Weights of these layers are computed before each call."""
    model = fresh()
    for layer in (model.backbone[0], model.neck):
        NORMS[kind][0](layer)
    return model


def stored_since(kind, *layers):
    """Those that were computed when the network was cut are stored afterwards."""
    small = slim(computed(kind))
    for layer in layers:
        NORMS[kind][1](small.get_submodule(layer))
    return small


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("layers", [("neck",), ("backbone.0", "neck")])
@pytest.mark.parametrize("kind", NORMS)
def test_what_was_computed_at_the_cut_may_be_stored_since(kind, layers, tmp_path):
    """It loads into a network that still computes, and into one that does as the saved one."""
    small = stored_since(kind, *layers)
    path = netslim.save(small, tmp_path / "m.safetensors")
    same = computed(kind)
    for layer in layers:
        NORMS[kind][1](same.get_submodule(layer))
    whole = computed(kind)
    before = list(whole.state_dict())
    networks = [whole, same]
    if len(layers) == 2:
        networks.append(fresh())  # its tensors are in another order
    for network in networks:
        again = netslim.load(network, path)
        assert torch.equal(again(X), small(X))
        state = again.state_dict()
        assert all(torch.equal(state[name], value) for name, value in small.state_dict().items())
    assert list(whole.state_dict()) == before


def test_tied_weights_are_no_matter_of_order(tmp_path):
    """A network that ties what the file does not would read one of the two for both."""

    class Pair(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            if tied:
                self.b.weight = self.a.weight

    path = netslim.save(Pair(tied=False), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="another architecture"):
        netslim.load(Pair(tied=True), path)


def narrower_layers():
    small = slim(fresh())
    small.backbone[3] = nn.Conv2d(small.backbone[3].in_channels, 2, 3, padding=1)
    small.backbone[4] = nn.BatchNorm2d(2)
    small.backbone[6] = nn.Conv2d(2, small.backbone[6].out_channels, 1)
    return small.eval(), fresh()


def narrower_layers_on_a_model_that_has_them():
    small, other = narrower_layers()
    other.backbone[3] = nn.Conv2d(16, 2, 3, padding=1)
    other.backbone[4] = nn.BatchNorm2d(2)
    other.backbone[6] = nn.Conv2d(2, 8, 1)
    return small, other


def narrower_layers_then_cut_again():
    small, other = narrower_layers()
    return slim(small), other


def copied():
    return copy.deepcopy(slim(fresh())), fresh()


def pickled():
    return pickle.loads(pickle.dumps(slim(fresh()))), fresh()


class Renamed(nn.Module):
    def __init__(self, detector: Detector):
        super().__init__()
        self.body = nn.ModuleDict({"inner": detector.backbone})
        self.last = nn.Sequential(detector.neck, nn.ReLU(), detector.head)

    def forward(self, x):
        return self.last(self.body["inner"](x))


def renamed():
    return Renamed(slim(fresh())).eval(), Renamed(fresh()).eval()


def parts_one_after_the_other():
    model = fresh()
    model.backbone = slim(model.backbone)
    tail = nn.Sequential(model.neck, nn.ReLU(), model.head)
    tail = slim(tail, torch.randn(2, 8, 8, 8))
    model.neck, model.head = tail[0], tail[2]
    return model, fresh()


def part_then_whole():
    model = fresh()
    model.backbone = slim(model.backbone)
    return slim(model), fresh()


def whole_then_part_in_place():
    model = slim(fresh())
    graph = netslim.trace(model.backbone, X)
    plan = netslim.select(graph, netslim.score(graph, model.backbone, "l1"), HALF)
    netslim.prune_(model.backbone, plan)
    return model, fresh()


def new_head_then_cut_again():
    small, other = new_head()
    return slim(small), other


def traced_by_fx():
    return torch.fx.symbolic_trace(slim(fresh())), torch.fx.symbolic_trace(fresh())


def one_part_twice():
    def twice(part):
        return nn.ModuleList([part, nn.Sequential(part)])

    return twice(slim(fresh().backbone)), twice(fresh().backbone)


WAYS = [
    *(part_put_into_another, part_taken_out, cut_backbone_under_a_new_head, layers_in_a_new_row),
    *(the_same_row_built_as_it_is_now, new_head, new_head_on_a_model_that_has_it),
    *(fused_after_the_cut, synchronised_after_the_cut, weight_norm_after_the_cut, copied, pickled),
    *(renamed, parts_one_after_the_other, part_then_whole, whole_then_part_in_place),
    *(new_head_then_cut_again, traced_by_fx, one_part_twice, narrower_layers),
    *(narrower_layers_on_a_model_that_has_them, narrower_layers_then_cut_again),
]


@pytest.mark.parametrize("way", WAYS)
def test_what_was_cut_is_restored_on_a_fresh_network(way, tmp_path):
    small, whole = way()
    assert sum(t.numel() for t in small.parameters()) < sum(t.numel() for t in whole.parameters())
    again = netslim.load(whole, netslim.save(small, tmp_path / "m.safetensors"))
    state = again.state_dict()
    assert list(state) == list(small.state_dict())
    assert all(torch.equal(state[name], value) for name, value in small.state_dict().items())
    assert fingerprint(again) == fingerprint(small)
    first = next(m for m in again.modules() if isinstance(m, nn.Conv2d))
    assert first.out_channels == first.weight.shape[0] < 16
    if not isinstance(small, nn.ModuleList) and way is not synchronised_after_the_cut:
        assert torch.equal(again.eval()(X), small.eval()(X))
    # Once more from what was loaded: it has a history of its own.
    once_more = netslim.load(way()[1], netslim.save(again, tmp_path / "n.safetensors"))
    assert fingerprint(once_more) == fingerprint(small)


@pytest.mark.parametrize("way", [copied, part_then_whole, parts_one_after_the_other])
def test_the_plan_is_that_of_the_fresh_network(way):
    small, whole = way()
    plan = history(small)
    assert plan is not None
    assert plan.fingerprint == fingerprint(whole)
    assert fingerprint(netslim.prune(whole, plan)) == fingerprint(small)


def test_a_part_tells_its_groups_under_its_new_name():
    model = fresh()
    model.backbone = slim(model.backbone)
    assert {name.partition(".")[0] for name in history(model).groups} == {"backbone"}


def test_a_tensor_that_changed_since_is_refused_with_the_remedy(tmp_path):
    small = slim(fresh())
    first = small.backbone[0]
    first.weight = nn.Parameter(first.weight[:3].detach())
    with pytest.raises(CheckpointError, match=r"'backbone.0.weight' was cut to 10 of 16 .*prune"):
        netslim.save(small, tmp_path / "m.safetensors")


class Half(nn.Module):
    """Code that uses half of a layer's weight, and all of its bias elsewhere."""

    def __init__(self):
        super().__init__()
        self.a, self.q, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(4, 6, 1)

    def forward(self, x):
        half = self.q.out_channels // 2
        x = nn.functional.conv2d(self.a(x).relu(), self.q.weight[:half], self.q.bias[:half])
        return self.b(x.relu())


def test_layers_that_code_takes_apart_are_saved_as_they_were_cut(tmp_path):
    """Their tensors need not lose the same channels."""
    model = Half().eval()
    small = netslim.prune(model, cut_half(model, X)[1])
    assert small.q.weight.shape[0] != small.q.bias.shape[0]
    again = netslim.load(Half().eval(), netslim.save(small, tmp_path / "m.safetensors"))
    assert torch.equal(again(X), small(X))


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.width = 6
        self.a, self.b = nn.Conv2d(3, 6, 3, stride=3), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.b(self.a(x).view(-1, self.width, 2, 2).relu())


def test_an_attribute_that_changed_since_is_refused_with_the_remedy(tmp_path):
    small = slim(Sized().eval())
    width = small.width
    netslim.save(small, tmp_path / "m.safetensors")
    small.width = 5
    with pytest.raises(CheckpointError, match=rf"width is 5, the plan expects {width}; .*as it is"):
        netslim.save(small, tmp_path / "m.safetensors")


def test_a_part_without_the_attribute_takes_the_place_of_one_with_it(tmp_path):
    def under(part):
        return nn.Sequential(nn.Conv2d(3, 3, 1), part, nn.Conv2d(4, 2, 1)).eval()

    small, whole = slim(under(Sized())), under(Sized())
    for model in (small, whole):
        model[1] = nn.Conv2d(model[0].out_channels, model[2].in_channels, 3)
    again = netslim.load(whole, netslim.save(small, tmp_path / "m.safetensors"))
    assert torch.equal(again(X), small(X))


def test_another_network_is_refused_though_some_axes_fit(tmp_path):
    path = netslim.save(slim(fresh()), tmp_path / "m.safetensors")
    other = fresh()
    other.backbone[0] = nn.Conv2d(3, 17, 3, bias=False)
    with pytest.raises(CheckpointError, match=r"'backbone.0.weight' has shape .* no cut explains"):
        netslim.load(other, path)
    with pytest.raises(CheckpointError, match="unexpected 'backbone"):
        netslim.load(Chain(), path)


# ---------------------------------------------------------------- an ordinary module


def test_a_cut_network_pickles_without_netslim():
    small = slim(nn.Sequential(*trunk()).eval())
    again = Without.loads(pickle.dumps(small))
    assert torch.equal(again(X), small(X))
    assert history(again) == history(small)


def test_it_loads_safely_with_the_classes_of_torch_alone(tmp_path):
    small = slim(trunk().eval())
    torch.save(small, tmp_path / "small.pt")
    plain = [nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    with torch.serialization.safe_globals(plain):
        again = torch.load(tmp_path / "small.pt", weights_only=True)
    assert torch.equal(again(X), small(X))


def test_the_history_of_older_versions_is_read(tmp_path):
    """Until 0.2 the plan itself lay on the model, and so in pickles of it."""
    plan = cut_half(Chain(), X)[1]
    model = Chain()
    small = netslim.prune(model, plan)
    for module in small.modules():
        vars(module).pop("_netslim_cuts", None)
    vars(small)["_netslim_plan"] = plan
    written = pickle.dumps(small, protocol=2)  # the module of 0.1 was netslim/plan.py
    for module in (b"netslim.surgery.plan", b"netslim.surgery.rows"):
        assert module in written
        written = written.replace(b"c" + module + b"\n", b"cnetslim.plan\n")
    old = pickle.loads(written)
    assert history(old) == plan
    path = netslim.save(old, tmp_path / "m.safetensors")
    assert fingerprint(netslim.load(Chain(), path)) == fingerprint(small)
    graph = netslim.trace(old, X)
    more = netslim.select(graph, netslim.score(graph, old, "l1"), HALF)
    twice = netslim.prune(old, more)
    assert isinstance(vars(twice)["_netslim_plan"], str)
    assert history(twice).fingerprint == plan.fingerprint == fingerprint(Chain())
    assert replace(history(twice), notes=()) != replace(plan, notes=())
