"""Parameters, MACs, activations and bytes against counts made by hand."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nets import counted_alike
from netslim import trace
from netslim.errors import TraceError
from netslim.measure.count import Cost, ModuleCost, cost, size_on_disk
from netslim.models import zoo

PICTURE = (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "kwargs", "params", "millions"),
    [
        ("vgg19", {}, 20_035_018, 398.1),
        ("vgg16_fc512", {}, 14_987_722, 313.5),
        ("resnet20", {}, 269_722, 40.55),
        ("resnet32", {}, 464_154, 68.86),
        ("resnet44", {}, 658_586, 97.17),
        ("resnet56", {}, 853_018, 125.5),
        ("resnet110", {}, 1_727_962, 252.9),
        ("preresnet164", {}, 1_703_258, 247.6),
        ("densenet40", {}, 1_019_722, 264.8),
        ("densenet40", {"stem": 24}, 1_059_298, 282.9),
    ],
)
def test_the_papers_networks(name, kwargs, params, millions):
    found = cost(getattr(zoo, name)(**kwargs), torch.zeros(PICTURE))
    assert found.params == params
    digits = len(str(millions).partition(".")[2])
    assert round(found.macs / 1e6, digits) == millions


def test_vgg19_to_the_last_mac():
    """Each 3x3 convolution does 9 * in * out MACs at each position of its map."""
    maps = [
        (3, 64, 32),
        (64, 64, 32),
        (64, 128, 16),
        (128, 128, 16),
        (128, 256, 8),
        *[(256, 256, 8)] * 3,
    ]
    maps += [(256, 512, 4), *[(512, 512, 4)] * 3, *[(512, 512, 2)] * 4]
    expected = sum(9 * i * o * size * size for i, o, size in maps) + 512 * 10
    assert cost(zoo.vgg19(), torch.zeros(PICTURE)).macs == expected == 398_136_320


def test_a_convolution_by_hand():
    # Out 4x4: 3x3 over a 6x6 map; 4 * 4 positions * 2 channels in * 5 out * 9.
    found = cost(nn.Conv2d(2, 5, 3), torch.zeros(1, 2, 6, 6))
    # 5 maps of 16 are put out, and lie beside the input of 2 maps of 36, four bytes an element.
    assert found == Cost(95, 1440, {"": ModuleCost(95, 1440, 80)}, 80, 320, 320 + 288)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 5), 9 * 2 * 9 * 6),  # 3x3 map, 2 in per group
        (nn.Conv2d(4, 4, 3, groups=4, padding=1), (1, 4, 5, 5), 25 * 9 * 4),
        (nn.Conv2d(2, 3, 3, dilation=2, stride=2), (1, 2, 9, 9), 9 * 9 * 2 * 3),  # 3x3 map
        (nn.Conv1d(2, 3, 5), (2, 2, 9), 2 * 5 * 5 * 2 * 3),
        (nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3), 8 * 8 * 2),
        (
            nn.ConvTranspose2d(4, 6, 3, stride=2),
            (1, 4, 5, 5),
            25 * 9 * 4 * 6,
        ),  # each input meets each weight
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5), 25 * 9 * 4 * 3),
        (nn.Linear(8, 4), (2, 5, 8), 10 * 32),
        (nn.Linear(8, 4, bias=False), (8,), 32),
        (nn.LSTM(8, 4, 2, bidirectional=True), (5, 2, 8), 10 * 2 * 2 * (16 * 8 + 16 * 4)),
        (nn.GRU(8, 4), (5, 2, 8), 10 * (12 * 8 + 12 * 4)),
        (nn.BatchNorm2d(4), (2, 4, 5, 5), 0),
        (nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.Softmax(1)), (1, 4, 4, 4), 0),
    ],
)
def test_operators_by_hand(layer, shape, macs):
    assert cost(layer, torch.zeros(shape)).macs == macs


class Products(nn.Module):
    def forward(self, a, b):
        row = a[0]
        return (
            a @ b,
            torch.einsum("ij,jk->ik", a, b),
            a @ row,
            row @ row,
            torch.addmv(a[:, 0], a, row),
        )


def test_products_of_vectors_and_matrices():
    # a is 3x4, b 4x2: two products of 24, two matrix x vector of 12, one dot of 4.
    assert cost(Products(), (torch.zeros(3, 4), torch.zeros(4, 2))).macs == 24 + 24 + 12 + 4 + 12


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_attention_is_seen_through_its_fused_operators():
    # Two heads of four, five tokens, batch 2: q k^T and its product with v, 2 * 2 * 5 * 5 * 4 each.
    assert cost(Attention(), torch.zeros(2, 2, 5, 4)).macs == 800
    x = torch.zeros(2, 5, 8)
    projections = 10 * (24 * 8 + 8 * 8)
    assert cost(nn.MultiheadAttention(8, 2, batch_first=True), (x, x, x)).macs == projections + 800
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert cost(layer, x).macs == projections + 800 + 10 * 2 * 8 * 16
    assert torch.backends.mha.get_fastpath_enabled()


def flops(model: nn.Module, *inputs: torch.Tensor) -> int:
    """What PyTorch's own counter says, where it knows all operators: two for each
    multiply-accumulate.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_agrees_with_the_flop_counter(name):
    torchvision = pytest.importorskip("torchvision")
    agree(torchvision.models.get_model(name).eval())


def test_agrees_with_the_flop_counter_on_shifted_windows():
    """Of Swin, a block without a shift, one with it, and the merging of patches."""
    swin = pytest.importorskip("torchvision").models.SwinTransformer
    agree(swin([4, 4], 24, [2, 2], [3, 6], [7, 7], num_classes=10).eval())


def agree(model: nn.Module) -> None:
    x = torch.zeros(1, 3, 64, 64)
    assert cost(model, x).macs * 2 == flops(model, x)


ARGUMENTS = {"vgg": [[4, "M", 8]], "resnet": [8], "preresnet": [11], "densenet": [10]}


@pytest.mark.parametrize("name", zoo.__all__)
def test_the_graph_and_the_flop_counter_say_the_same(name):
    """Reports ask `cost`, budgets the graph: one counter, and the one of PyTorch as its judge."""
    model = getattr(zoo, name)(*ARGUMENTS.get(name, []), width=0.1).eval()
    x = torch.zeros(1, 1, 28, 28) if name == "mlp" else torch.zeros(PICTURE)
    assert counted_alike(model, x)["macs"] * 2 == flops(model, x)


def test_weights_that_are_computed_count_but_are_no_activations():
    class Standardised(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.weight = nn.Parameter(torch.rand(6, 6)), nn.Parameter(torch.rand(6, 4))

        def forward(self, x):
            return x @ (self.mix @ self.weight)

    figures = counted_alike(Standardised(), torch.zeros(2, 6))
    assert (figures["macs"], figures["activations"]) == (6 * 6 * 4 + 2 * 6 * 4, 8)


def test_parts_that_did_not_run_cost_parameters_alone():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.aux = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            x = self.body(x)
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    figures = counted_alike(Auxiliary(), torch.zeros(1, 4))
    assert (figures["macs"], figures["params"]) == (24 + 12, 30 + 14 + 14)


def test_models_without_values_cost_the_same():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model, layer = torchvision.models.mobilenet_v2().eval(), nn.LSTM(8, 4)
        found, recurrent = cost(model, torch.empty(PICTURE)), cost(layer, torch.empty(5, 2, 8))
    real = cost(torchvision.models.mobilenet_v2().eval(), torch.zeros(PICTURE))
    assert found.by_module == real.by_module
    assert recurrent.macs == 10 * (16 * 8 + 16 * 4)


class Fused(nn.Module):
    """A recurrent layer as a GPU runs it, through an operator that has no values on the meta
    device.
    """

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(
            torch.empty(shape, device="meta") for shape in [(16, 8), (16, 4), (16,), (16,)]
        )

    def forward(self, x):
        state = x.new_empty(1, 2, 4)
        settings = (None, state, state, 2, 4, 0, 1, False, 0.0, False, False, [], None)
        return torch.ops.aten._cudnn_rnn(x, list(self.weights), 4, *settings)[0]


def test_recurrent_layers_of_a_gpu_count():
    found = cost(Fused(), torch.empty(5, 2, 8, device="meta"))
    assert (found.macs, found.activations) == (10 * (16 * 8 + 16 * 4), 40)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (zoo.vgg([4, "M", 6]), (2, 3, 8, 8)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
        (nn.LSTM(8, 4), (5, 2, 8)),
    ],
)
def test_inference_mode_hides_nothing(layer, shape):
    """There PyTorch leaves it to whoever watches to take `conv2d` and its like apart."""
    x = torch.zeros(shape)
    graph, found = trace(layer, x), cost(layer, x)
    with torch.inference_mode():
        figures, inside = counted_alike(layer, x), trace(layer, x)
    assert (figures["macs"], figures["activations"]) == (found.macs, found.activations)
    assert inside.unsupported == {}
    assert {g.name: g.size for g in inside.prunable} == {g.name: g.size for g in graph.prunable}


class Nested(nn.Module):
    """A weight of its own, a layer called twice, one shared between two places, one called inside
    another.
    """

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(4, 4))
        self.twice = nn.Linear(4, 4, bias=False)
        self.inner = nn.Sequential(nn.Linear(4, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 4)))
        self.alias = self.twice
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.own
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.unused = nn.Dropout()

    def forward(self, x):
        x = self.inner(self.twice(self.twice(x)) @ self.own)
        return nn.Linear(4, 4, bias=False)(self.frozen(self.tied(self.alias(x)))) @ self.own


def test_modules_own_what_they_do_themselves():
    found = cost(Nested(), torch.zeros(1, 4))
    assert found.by_module == {
        "": ModuleCost(
            16, 16 + 16 + 16, 12
        ),  # two products with its own weight, and a layer made on the fly
        "twice": ModuleCost(16, 3 * 16, 12),
        "inner.0": ModuleCost(10, 8, 2),
        "inner.1.1": ModuleCost(12, 8, 4),
        "tied": ModuleCost(0, 16, 4),  # its weight belongs to the model
        "frozen": ModuleCost(16, 16, 4),
    }
    assert found.params == 16 + 16 + 10 + 12 + 16
    assert found.macs == 48 + 48 + 8 + 8 + 16 + 16
    assert found.activations == 12 + 12 + 2 + 4 + 4 + 4


def test_within_sums_a_part_of_the_model():
    found = cost(Nested(), torch.zeros(1, 4))
    assert found.within("inner") == ModuleCost(22, 16, 6)
    assert found.within("inner.1") == ModuleCost(12, 8, 4)
    assert found.within("inn") == ModuleCost(0, 0)
    assert found.within("") == ModuleCost(found.params, found.macs, found.activations)


def test_rows_add_up_to_the_totals():
    found = cost(zoo.densenet40(width=0.5), torch.zeros(PICTURE))
    assert sum(row.params for row in found.by_module.values()) == found.params
    assert sum(row.macs for row in found.by_module.values()) == found.macs
    assert sum(row.activations for row in found.by_module.values()) == found.activations


def test_macs_are_those_of_the_batch():
    model = zoo.vgg([4, "M", 4])
    one, four = (cost(model, torch.zeros(n, 3, 8, 8)) for n in (1, 4))
    assert four.macs == 4 * one.macs
    assert (four.activations, four.peak_bytes) == (4 * one.activations, 4 * one.peak_bytes)
    assert four.params == one.params


def test_keyword_inputs():
    x = torch.zeros(3, 4)
    assert cost(Products(), {"a": x, "b": torch.zeros(4, 2)}).macs == 76


def test_the_mlp_row():
    found = cost(zoo.mlp(), torch.zeros(1, 1, 28, 28))
    assert found.macs == 784 * 500 + 500 * 300 + 300 * 10
    linear = [row.params for row in found.by_module.values() if row.macs]
    assert sum(linear) == 545_810


def test_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost(model, torch.randn(8, 4))
    assert [m.training for m in model] == [True, True, False]
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert all(p.grad is None for p in model.parameters())


def test_prints_a_table():
    text = str(
        cost(nn.Sequential(nn.Linear(100, 30), nn.ReLU(), nn.Linear(30, 10)), torch.zeros(1, 100))
    )
    assert text.splitlines() == [
        "module  params    share   MACs    share  activations    share",
        "0        3,030   90.7 %  3,000   90.9 %           30   75.0 %",
        "2          310    9.3 %    300    9.1 %           10   25.0 %",
        "total    3,340  100.0 %  3,300  100.0 %           40  100.0 %",
        "at most 640 bytes of inputs and intermediate tensors at "
        "once",  # the input, 30 before and 30 after the ReLU
    ]
    assert "100" not in str(cost(nn.ReLU(), torch.zeros(1)))


def test_says_when_the_model_does_not_run():
    model = zoo.vgg([4])
    message = (
        r"does not run on these example inputs \(\(1, 1, 8, 8\)\): RuntimeError: .*pass "
        r"inputs that model"
    )
    with pytest.raises(TraceError, match=message):
        cost(model, torch.zeros(1, 1, 8, 8))
    assert model.training
    # Nothing is left behind: hooks, counter and attention settings are those of before.
    assert cost(model, torch.zeros(1, 3, 8, 8)).macs == 9 * 3 * 4 * 64 + 40


def test_size_on_disk_is_that_of_safetensors(tmp_path):
    model = zoo.vgg([4, 8], num_classes=3)
    model.features[3].half()
    model.register_buffer("scratch", torch.zeros(100), persistent=False)
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert size_on_disk(model) == len(content) - header


def test_size_on_disk_counts_shared_tensors_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert size_on_disk(model) == 2 * 64
    model[1].weight = model[0].weight
    assert size_on_disk(model) == 64
