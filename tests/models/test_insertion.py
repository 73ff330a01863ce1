"""Layers put into networks in place: selections before BNs that come first, BNs behind convolutions
that lack one.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import Chain, DenseBlock, cut_half, prove
from netslim import (
    Budget,
    CentripetalSGD,
    NetworkSlimming,
    SoftFilterPruning,
    load,
    models,
    prune,
    save,
    score,
    select,
    trace,
    verify,
)
from netslim.errors import ArgumentError, PlanError, TraceError
from netslim.methods.soft_filter import plan_of_zeros
from netslim.models import zoo
from netslim.models.batch_norms import add_bn
from netslim.models.channel_select import ChannelSelect, add_selection, drop_idle_selections
from netslim.surgery.history import history
from netslim.surgery.proof.silencing import randomise

PICTURE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SMALL = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def output(model: nn.Module, x: Tensor = PICTURE) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def selections(model: nn.Module) -> list[str]:
    return [path for path, m in model.named_modules() if isinstance(m, ChannelSelect)]


def norms(model: nn.Module) -> list[str]:
    return [
        path for path, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]


class Preactivated(nn.Module):
    """A stem of 6, two blocks BN-ReLU-conv-conv beside identities, a BN before the head; ReLUs work
    in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.bn1, self.conv1, self.out1 = (
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 5, 3, padding=1),
            nn.Conv2d(5, 6, 1),
        )
        self.bn2, self.conv2, self.out2 = (
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 5, 3, padding=1),
            nn.Conv2d(5, 6, 1),
        )
        self.bn, self.head = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.out1(F.relu_(self.conv1(F.relu_(self.bn1(x)))))
        x = x + self.out2(F.relu_(self.conv2(F.relu_(self.bn2(x)))))
        return self.head(F.relu_(self.bn(x)).mean((2, 3)))


# --- selection: what is inserted, and where -------------------------------------------------------


def timm_resnetv2() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "resnetv2_50", num_classes=4, layers=(2, 1, 1, 1), channels=(16, 32, 48, 64)
    )


def torchvision_densenet() -> nn.Module:
    import torchvision

    return torchvision.models.DenseNet(
        growth_rate=8, block_config=(2, 3, 2), num_init_features=16, num_classes=4
    )


# Network, and how many BNs come first.
BN_FIRST = {
    "preactivated": (Preactivated, 3),
    "dense-block": (DenseBlock, 3),
    "preresnet": (lambda: zoo.preresnet(20, width=0.25), 7),
    "densenet": (lambda: zoo.densenet(10, width=0.5), 9),
    "torchvision-densenet": (torchvision_densenet, 10),
    "timm-resnetv2": (timm_resnetv2, 2),
}


@pytest.mark.parametrize("name", BN_FIRST)
def test_a_selection_changes_no_output_and_no_name_and_is_cut_exactly(name):
    build, count = BN_FIRST[name]
    model = randomise(build()).eval()
    names, before = list(model.state_dict()), output(model)
    assert add_selection(model, PICTURE) is model
    added = selections(model)
    assert len(added) == count
    assert torch.equal(output(model), before)
    assert [n for n in model.state_dict() if not n.endswith(".select.indices")] == names
    graph, _, small, _ = prove(model, PICTURE)
    assert {f"{path}" for path in added} <= {g.name for g in graph.prunable}
    assert all(
        len(small.get_submodule(p).indices) == -(-len(model.get_submodule(p).indices) // 2)
        for p in added
    )
    assert add_selection(model, PICTURE) is model
    assert selections(model) == added
    assert selections(add_selection(small, PICTURE)) == added


def test_the_last_sum_of_two_layers_of_its_own_needs_no_selection():
    # One block a stage: the final BN alone reads conv3 + shortcut, so its channels go with theirs.
    model = add_selection(zoo.preresnet(11))
    assert selections(model) == [
        "layer1.0.bn1.select",
        "layer2.0.bn1.select",
        "layer3.0.bn1.select",
    ]
    assert "bn.weight" in {s.tensor for s in trace(model, PICTURE)["layer3.0.conv3"].slices}


def test_the_group_of_a_selection_is_the_bn_and_what_reads_it():
    graph = trace(add_selection(zoo.preresnet(20)), PICTURE)
    group = graph["layer2.0.bn1.select"]
    bn = "layer2.0.bn1"
    assert {(s.tensor, s.axis, s.role) for s in group.slices} == {
        (f"{bn}.select.indices", 0, "producer"),
        (f"{bn}.weight", 0, "scale"),
        (f"{bn}.bias", 0, "channel"),
        (f"{bn}.running_mean", 0, "channel"),
        (f"{bn}.running_var", 0, "channel"),
        ("layer2.0.conv1.weight", 1, "consumer"),
    }
    assert group.size == 64
    trunk = graph["layer2.0.conv3"]
    assert trunk.frozen
    assert trunk.reason == "layer2.1.bn1.select.indices picks from them by their numbers"


def test_a_selection_is_scored_by_the_scales_of_its_bn():
    model = randomise(add_selection(zoo.preresnet(20, width=0.5)))
    scores = score(trace(model, PICTURE), model, "bn_scale")
    torch.testing.assert_close(scores["bn.select"], model.bn.weight.detach().abs().double())


# Prunable scales (methods: 12,112 for ResNet-164; 9,360 with a stem of 24) and the widths of all
# selections.
COUNTS = [
    ("preresnet164", {}, 12_112, 8_080),
    ("densenet40", {}, 9_048, 9_048),
    ("densenet40", {"stem": 24}, 9_360, 9_360),
]


@pytest.mark.parametrize(("name", "kwargs", "scales", "width"), COUNTS)
def test_the_papers_networks_have_the_papers_prunable_scales(name, kwargs, scales, width):
    model = add_selection(getattr(zoo, name)(**kwargs), PICTURE[:1])
    graph = trace(model, PICTURE[:1])
    assert sum(g.size for g in graph.prunable) == scales
    assert all(g.tensors("scale") for g in graph.prunable)
    assert sum(model.get_submodule(path).channels for path in selections(model)) == width


def test_parameters_after_a_cut_are_those_counted_by_hand():
    model = add_selection(Preactivated())
    graph = trace(model, SMALL)
    per_group = {
        "bn1.select": 2,
        "conv1": 1,
        "bn2.select": 3,
        "conv2": 4,
        "bn.select": 5,
    }  # how many go
    small = prune(model, select(graph, score(graph, model, "random"), per_group=per_group))
    stem = 3 * 6 * 9 + 6
    first = 2 * 4 + (4 * 4 * 9 + 4) + (4 * 6 + 6)  # BN of 4, convolutions 4 -> 4 -> 6
    second = 2 * 3 + (3 * 1 * 9 + 1) + (1 * 6 + 6)
    assert sum(p.numel() for p in small.parameters()) == stem + first + second + 2 * 1 + (1 * 4 + 4)
    assert (small.bn1.num_features, small.bn2.num_features, small.bn.num_features) == (4, 3, 1)


def test_networks_without_a_bn_that_comes_first_have_nothing_to_do():
    for model in (
        zoo.vgg([8, "M", 8]),
        zoo.resnet(8),
        zoo.mlp(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    ):
        names = list(model.state_dict())
        with pytest.raises(ArgumentError, match=r"nothing to do: .* networks that normalise first"):
            add_selection(model)
        assert list(model.state_dict()) == names
        assert not any(m._forward_pre_hooks for m in model.modules())


class Repeated(nn.Module):
    """RepVGG's block: its identity is a BN whose output is added to a convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.identity, self.conv, self.bn = (
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
        )
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x)).relu()
        x = (self.identity(x) + self.bn(self.conv(x))).relu()
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    """A BN that comes first, before a depthwise convolution with a BN of its own; the network's
    input has one too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bn0, self.stem = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3)
        self.bn1, self.depthwise, self.bn2 = (
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.BatchNorm2d(6),
        )
        self.out, self.short, self.head = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.bn0(x))
        x = self.out(self.bn2(self.depthwise(self.bn1(x).relu()))) + self.short(x)
        return self.head(x.relu().mean((2, 3)))


def test_a_bn_whose_channels_are_added_to_others_gets_no_selection():
    model = Repeated()
    with pytest.raises(ArgumentError, match="nothing to do"):
        add_selection(model, SMALL)
    assert {g.name for g in trace(model, SMALL).prunable} == {
        "stem"
    }  # it is still free to shrink along its trunk


def test_a_selection_before_a_depthwise_convolution_but_not_before_the_networks_input():
    model = randomise(Depthwise()).eval()
    assert selections(add_selection(model, SMALL)) == ["bn1.select"]
    _, _, small, _ = prove(model, SMALL)
    assert small.depthwise.groups == 3


def test_bn_with_a_fused_activation():
    layers = pytest.importorskip("timm.layers")
    model = Preactivated()
    model.bn1 = layers.BatchNormAct2d(6)
    assert "bn1.select" in selections(add_selection(randomise(model)))
    assert prove(model.eval(), SMALL)[2].bn1.num_features == 3


# --- selection: what one can do with it -----------------------------------------------------------


def test_the_selection_is_a_buffer_that_is_read_on_the_device_alone():
    layer = ChannelSelect(4)
    assert list(layer.parameters()) == []
    assert layer.indices.dtype == torch.int64
    assert list(layer.state_dict()) == ["indices"]
    layer.indices = torch.tensor([3, 1])
    x = torch.arange(8.0).reshape(1, 4, 2)
    assert torch.equal(layer(x), torch.tensor([[[6.0, 7.0], [2.0, 3.0]]]))
    assert layer.to("meta")(x.to("meta")).shape == (
        1,
        2,
        2,
    )  # values that are not there cannot be read
    assert repr(layer) == "ChannelSelect(2 of 4)"
    assert ChannelSelect(3).half().indices.dtype == torch.int64


def cut_twice(model: nn.Module) -> nn.Module:
    for seed in (0, 1):
        graph, plan = cut_half(model, PICTURE, seed)
        small = prune(model, plan)
        assert verify(model, small, plan, PICTURE, graph=graph).deviation < 1e-10
        model = small
    return model


def test_cut_twice_saved_and_rebuilt(tmp_path):
    kwargs = {"depth": 20, "width": 0.25, "add_selection": True}
    small = cut_twice(randomise(models.build("zoo:preresnet", **kwargs)).eval())
    assert len(small.bn.select.indices) == 16
    assert len(history(small).groups["bn.select"].kept) == 16
    path = save(
        small,
        tmp_path / "small.safetensors",
        constructor=models.constructor("zoo:preresnet", kwargs),
    )
    fresh = add_selection(zoo.preresnet(20, width=0.25))
    for again in (models.build(path), load(fresh, path)):
        assert torch.equal(output(again), output(small))
    assert torch.equal(output(models.build(str(path))), output(small))


def test_copied_and_pickled():
    model = randomise(add_selection(Preactivated())).eval()
    small = prune(model, cut_half(model, SMALL)[1])
    before = output(small, SMALL)
    for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(output(again, SMALL), before)
        again.bn1.select.indices.fill_(0)  # its own
        assert not torch.equal(output(again, SMALL), before)
    assert torch.equal(output(small, SMALL), before)


def test_exported():
    model = randomise(add_selection(Preactivated())).eval()
    small = prune(model, cut_half(model, SMALL)[1])
    program = torch.export.export(small, (SMALL,))
    assert sum("index_select" in str(node.target) for node in program.graph.nodes) == 3
    assert torch.equal(program.module()(SMALL), output(small, SMALL))


def test_trains_as_without():
    model = randomise(Preactivated())
    selected = add_selection(copy.deepcopy(model))
    for one in (model, selected):
        one.train()(SMALL).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), selected.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    assert torch.equal(model.bn1.running_mean, selected.bn1.running_mean)


def test_idle_selections_can_be_taken_out():
    model = randomise(add_selection(Preactivated())).eval()
    graph = trace(model, SMALL)
    # bn2 loses its last channels, so that what it keeps looks like all there are.
    scores = {"bn2.select": torch.arange(6, 0, -1)}
    small = prune(model, select(graph, scores, per_group={"bn2.select": 2}))
    assert small.bn2.select.indices.tolist() == [0, 1, 2, 3]
    before = output(small, SMALL)
    assert drop_idle_selections(small) is small
    assert selections(small) == ["bn2.select"]
    assert torch.equal(output(small, SMALL), before)
    assert selections(add_selection(small)) == ["bn1.select", "bn2.select", "bn.select"]


# --- batch normalisation --------------------------------------------------------------------------


def plain(*, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Convolutions without BN, 6 - 5 - 4 channels, the last one the output."""
    layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
    return randomise(nn.Sequential(*layers).to(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
def test_an_inserted_bn_is_the_identity(dtype, tolerance):
    model, x = plain(dtype=dtype).eval(), SMALL.to(dtype)
    before = output(model, x)
    assert add_bn(model, x) is model
    assert norms(model) == ["0.norm", "2.norm"]  # the last convolution is the network's output
    assert model[0].norm.weight.dtype == dtype
    assert not model[0].norm.training
    assert (output(model, x) - before).abs().max() <= tolerance * before.abs().max()
    assert torch.equal(model[0].norm.weight, torch.ones(6, dtype=dtype))


def test_low_precision_moves_by_no_more_than_one_unit_in_the_last_place():
    model, x = plain(dtype=torch.bfloat16).eval(), SMALL.bfloat16()
    layer = copy.deepcopy(model[0])
    add_bn(model, x)
    torch.testing.assert_close(output(model[0], x), output(layer, x), rtol=2**-8, atol=0)


def test_measured_statistics_undo_themselves():
    model = plain().double().eval()
    batches = [(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.zeros(4)) for _ in range(3)]
    together = torch.cat([x for x, _ in batches])
    first, before = output(model[0], together), output(model, together)
    second = output(model[:3], together)
    add_bn(model, batches=iter(batches))
    for bn, out in ((model[0].norm, first), (model[2].norm, second)):
        torch.testing.assert_close(bn.running_mean, out.mean((0, 2, 3)))
        torch.testing.assert_close(bn.running_var, out.var((0, 2, 3)))
        torch.testing.assert_close(bn.weight.detach(), (out.var((0, 2, 3)) + bn.eps).sqrt())
        torch.testing.assert_close(bn.bias.detach(), bn.running_mean)
    torch.testing.assert_close(output(model, together), before, rtol=1e-13, atol=1e-13)
    with (
        torch.no_grad()
    ):  # the batch's own variance is that of the population: a factor sqrt(1 - 1 / 432) each
        torch.testing.assert_close(model.train()(together), before, rtol=0.01, atol=0.01)


def test_keyword_batches_and_their_first_as_the_example():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Chain()

        def forward(self, *, pixels: Tensor) -> Tensor:
            return self.body(pixels)

    model = Named()
    model.body.second[1] = nn.Identity()
    add_bn(model, batches=[{"pixels": SMALL, "labels": torch.zeros(2)}])
    assert norms(model) == ["body.first.1", "body.second.0.norm"]


class Kinds(nn.Module):
    """One layer of every kind: pictures, a grouped, a depthwise, a transposed, a weight-normed one;
    then vectors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.grouped = nn.Conv2d(6, 6, 1, groups=2)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.transposed = nn.ConvTranspose2d(6, 5, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(5, 4, 1))
        self.series = nn.Conv1d(4, 7, 1)
        self.hidden, self.head = nn.Linear(7, 5), nn.Linear(5, 2)
        self.unused = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transposed(self.depthwise(self.grouped(self.a(x).relu()).relu()).relu()).relu()
        x = self.series(self.normed(x).flatten(2)).relu().mean(2)
        return self.head(self.hidden(x).relu())


CONVOLUTIONS = ["a", "grouped", "depthwise", "transposed", "normed", "series"]


@pytest.mark.parametrize("linear", [False, True])
def test_every_kind_of_layer(linear):
    model = randomise(Kinds()).eval()
    before = output(model, SMALL)
    add_bn(model, SMALL, linear=linear)
    assert norms(model) == [
        f"{name}.norm" for name in (*CONVOLUTIONS, *(["hidden"] if linear else []))
    ]
    torch.testing.assert_close(output(model, SMALL), before, rtol=1e-5, atol=1e-5)
    graph, _, _, _ = prove(randomise(model), SMALL)
    scores = score(graph, model, "bn_scale")
    assert {g.name for g in graph if not g.frozen} == set(scores) | (
        set() if linear else {"hidden"}
    )


def test_torchvisions_squeezenet_learns_scales_and_shrinks():
    model = randomise(models.build("torchvision:squeezenet1_1", add_bn=True, num_classes=4))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    convolutions = [p for p, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 26
    assert norms(model) == [f"{path}.norm" for path in convolutions[:-1]]
    slimming = NetworkSlimming(model, strength=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slimming.attach(optimizer)
    model.train()(x).sum().mul(0).backward()
    scale = model.features[0].norm.weight
    before = scale.detach().clone()
    optimizer.step()
    torch.testing.assert_close(scale.detach(), before - 0.01 * before.sign())
    graph = trace(model.eval(), x)
    plan = select(graph, score(graph, model), Budget(cut_channels=0.5))
    small = prune(model, plan)
    assert verify(model, small, plan, x, graph=graph).deviation < 1e-10
    assert plan.removed == sum(g.size for g in graph.prunable) // 2


def test_bns_survive_copies_pickles_and_checkpoints(tmp_path):
    model = randomise(add_bn(plain(), SMALL)).eval()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(again, SMALL), output(model, SMALL))
        nn.init.zeros_(again[0].norm.weight)
        assert not torch.equal(output(again, SMALL), output(model, SMALL))
    small = prune(model, cut_half(model, SMALL)[1])
    path = save(small, tmp_path / "small.safetensors")
    assert torch.equal(output(load(add_bn(plain(), SMALL), path), SMALL), output(small, SMALL))


def test_where_every_convolution_has_a_bn_there_is_nothing_to_do():
    # In the last two the BN comes before what reads the convolution: its channels are scaled.
    for model in (Chain(), zoo.resnet(8), zoo.preresnet(11), DenseBlock()):
        with pytest.raises(
            ArgumentError, match=r"nothing to do: no convolution .* \(linear=True looks at"
        ):
            add_bn(model, SMALL)
    model = add_bn(plain())
    with pytest.raises(ArgumentError, match="nothing to do"):
        add_bn(model)
    with pytest.raises(ArgumentError, match="no convolution or linear layer whose channels can go"):
        add_bn(nn.Sequential(nn.Linear(4, 2)), linear=True)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("insert", [add_selection, add_bn])
def test_inputs_that_do_not_run(insert):
    with pytest.raises(TraceError, match=r"does not run on these example inputs \(\(2, 5\)\)"):
        insert(Preactivated(), torch.zeros(2, 5))
    two = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1))
    with pytest.raises(
        ArgumentError, match=r"\(1, 3, 32, 32\) or \(1, 3, 224, 224\); pass example_inputs"
    ):
        insert(two)
    with pytest.raises(ArgumentError, match=r"no convolution or linear layer; pass example_inputs"):
        insert(nn.ReLU())


@pytest.mark.parametrize("insert", [add_selection, add_bn, drop_idle_selections])
def test_wrapped_models_are_refused(insert):
    with pytest.raises(
        ArgumentError, match=r"wrapped in AveragedModel, .* insert into the Preactivated inside"
    ):
        insert(torch.optim.swa_utils.AveragedModel(Preactivated()))
    with pytest.raises(ArgumentError, match=r"needs a torch.nn.Module, got str"):
        insert("model")


def test_no_batches_and_taken_names():
    for example in (None, SMALL):
        with pytest.raises(ArgumentError, match="holds no batch to measure the statistics on"):
            add_bn(plain(), example, batches=[])
    with pytest.raises(TraceError, match=r"does not run on these example inputs \(\(2, 5\)\)"):
        add_bn(plain(), SMALL, batches=[SMALL, torch.zeros(2, 5)])
    model = plain()
    model[2].norm = None
    with pytest.raises(ArgumentError, match=r"2\.norm is there already"):
        add_bn(model)
    assert norms(model) == []
    model = Preactivated()
    model.bn2.select = 3
    with pytest.raises(ArgumentError, match=r"bn2\.select is there already"):
        add_selection(model)
    assert selections(model) == []


def test_what_an_index_picks_is_left_alone_by_what_looks_at_filters():
    model = randomise(add_selection(zoo.preresnet(11, width=0.5))).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    selections = {g.name for g in graph if g.name.endswith(".select")}
    assert selections
    for criterion in ("l1", "l2", "geometric_median", "largest"):
        assert not selections & set(score(graph, model, criterion)), criterion
    assert selections <= set(score(graph, model, "bn_scale"))
    soft = SoftFilterPruning(graph, model, 0.5)
    assert not selections & set(soft.counts)
    soft.zero()
    assert not selections & set(plan_of_zeros(graph, model).groups)
    drawn = CentripetalSGD(graph, model, 0.5, clusters="even")
    assert not selections & set(drawn.clusters)
    drawn.collapse()
    before = model(x)
    small = prune(model, drawn.plan())
    torch.testing.assert_close(small(x), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(PlanError, match="an index picks its channels"):
        CentripetalSGD(graph, model, dict.fromkeys(selections, 0.5))
