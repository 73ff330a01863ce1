"""What layers put out and what is in memory at once, against counts made by hand; two counters
check each other.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from nets import Chain, DenseBlock, Residual
from netslim import ChannelGraph, cost, prune, trace
from netslim.models import zoo
from netslim.surgery.plan_of_units import plan_keeping

X = torch.zeros(1, 3, 8, 8)  # 192 elements, 768 bytes


class Net(nn.Module):
    """A function of itself and its inputs, and the modules it uses."""

    def __init__(self, function, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


def counted(model: nn.Module, inputs: object) -> tuple[int, int, int]:
    """(activations, their bytes, peak in bytes), on which both counters must agree."""
    graph, found = trace(model, inputs), cost(model, inputs)
    told = (graph.activations(), graph.activation_bytes(), graph.peak_bytes())
    assert told == (found.activations, found.activation_bytes, found.peak_bytes)
    return told


def keeping(graph: ChannelGraph, **channels: int) -> dict[int, np.ndarray]:
    """Masks that keep the first channels of these groups."""
    return {
        graph.number(name): np.arange(graph[name].size) < kept for name, kept in channels.items()
    }


# --- by hand --------------------------------------------------------------------------------------


def chain(inplace: bool) -> nn.Sequential:
    """Maps: 3x8x8 -> 6x8x8 -> 5x4x4 -> 80 -> 4."""
    relu = nn.ReLU(inplace=inplace)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), relu, nn.Conv2d(6, 5, 1, 2), nn.Flatten(), nn.Linear(80, 4)
    )


def test_a_chain():
    graph = trace(chain(inplace=False), X)
    assert counted(chain(inplace=False), X) == (
        384 + 80 + 4,
        4 * 468,
        768 + 1536 + 1536,
    )  # at the ReLU
    # Two of six channels: at the ReLU 768 + 2 * 512. One more of the second layer changes nothing
    # there.
    masks = {0: np.arange(6) < 2, 1: np.arange(5) < 3}
    assert graph.activations(masks) == 128 + 48 + 4
    assert graph.activation_bytes(masks) == 4 * 180
    assert graph.peak_bytes(masks) == 768 + 512 + 512


def test_in_place_takes_no_memory():
    assert counted(chain(inplace=True), X) == (
        468,
        4 * 468,
        768 + 1536 + 320,
    )  # at the second convolution
    graph = trace(chain(inplace=True), X)
    assert [(o.operator, o.kind, o.layer) for o in graph.outputs if not o.constant] == [
        ("convolution", "new", True),
        ("relu_", "in-place", False),
        ("convolution", "new", True),
        ("view", "view", False),
        ("addmm", "new", True),
    ]
    # The fullest moment depends on the cut: here the flattened map and the output beside the input.
    assert graph.peak_bytes({0: np.arange(6) < 1}) == 768 + 256 + 320
    assert graph.peak_bytes({0: np.arange(6) < 1, 1: np.arange(5) < 1}) == 768 + 256 + 64


def test_outputs_name_their_module_and_follow_the_cut():
    outputs = [o for o in trace(chain(inplace=False), X).outputs if not o.constant]
    assert [o.module for o in outputs] == ["0", "1", "2", "3", "4"]
    sizes = [
        [factor.kept({0: np.arange(6) < 4, 1: np.arange(5) < 2}) for factor in o.factors]
        for o in outputs
    ]
    assert sizes == [[1, 4, 8, 8], [1, 4, 8, 8], [1, 2, 4, 4], [1, 32], [1, 4]]
    assert outputs[3].bytes({}) == 320


def residual(net, x):
    x = net.stem(x)
    return net.head((x + net.outer(net.inner(x))).mean((2, 3)))


def test_a_residual_block():
    modules = {"stem": nn.Conv2d(3, 6, 1), "inner": nn.Conv2d(6, 5, 1), "outer": nn.Conv2d(5, 6, 1)}
    model = Net(residual, **modules, head=nn.Linear(6, 4))
    # While the outer convolution runs, the input, the stem's 6 maps, 5 and 6 are there; at the sum
    # the 5 are gone, but another 6 come.
    assert counted(model, X) == ((6 + 5 + 6) * 64 + 4, 4 * (17 * 64 + 4), 768 + (6 + 6 + 6) * 256)
    graph = trace(model, X)
    assert graph.peak_bytes(keeping(graph, stem=3)) == 768 + (3 + 5 + 3) * 256
    assert graph.activations(keeping(graph, stem=3)) == (3 + 5 + 3) * 64 + 4


def test_depthwise_follows_its_input():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1))
    assert counted(model, X)[0] == 6 * 64 + 6 * 36 + 4 * 36
    graph = trace(model, X)
    assert graph.activations({0: np.arange(6) < 2}) == 2 * 64 + 2 * 36 + 4 * 36
    assert graph.peak_bytes() == 768 + 1536 + 6 * 144  # in the middle
    assert graph.peak_bytes({0: np.arange(6) < 2}) == 768 + 2 * 144 + 4 * 144  # at the end


def joined(net, x):
    return net.head(torch.cat([net.a(x), net.b(x)], 1))


def test_a_concatenation_is_a_copy():
    model = Net(joined, a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 4, 1), head=nn.Conv2d(6, 1, 1))
    assert counted(model, X) == (7 * 64, 7 * 256, 768 + 2 * 6 * 256)
    graph = trace(model, X)
    assert graph.peak_bytes(keeping(graph, b=1)) == 768 + 2 * 3 * 256
    assert graph.activations(keeping(graph, a=1, b=1)) == 3 * 64


def test_what_is_let_go_is_gone_and_what_is_held_stays():
    def dropping(net, x):
        y = net.a(x)
        z = y.mean((2, 3))
        del y
        return z, net.b(x)

    def holding(net, x):
        y = net.a(x)
        return y.mean((2, 3)), net.b(x)

    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(3, 6, 1)}
    assert counted(Net(dropping, **layers), X)[2] == 768 + 24 + 1536
    assert counted(Net(holding, **layers), X)[2] == 768 + 24 + 2 * 1536


def test_pooling_has_its_numbers_beside_it():
    # 32 pooled elements of four bytes, and their places of eight.
    assert counted(nn.Sequential(nn.Conv2d(3, 2, 1), nn.MaxPool2d(2)), X) == (
        128,
        512,
        768 + 512 + 128 + 256,
    )


def test_functional_calls_and_data_types():
    def forward(net, x):
        return F.linear(F.conv2d(x, net.kernel).flatten(1), net.matrix)

    kernel, matrix = nn.Parameter(torch.zeros(2, 3, 1, 1)), nn.Parameter(torch.zeros(5, 128))
    model = Net(forward, kernel=kernel, matrix=matrix)
    assert counted(model, X) == (128 + 5, 4 * 133, 768 + 512 + 20)
    assert counted(model.double(), X.double()) == (133, 8 * 133, 2 * (768 + 512 + 20))


def standardised(net, x):
    weight = net.conv.weight - net.conv.weight.mean((1, 2, 3), keepdim=True)
    return F.conv2d(x, weight @ net.mixing)


def test_what_depends_on_weights_alone_is_memory_but_no_activation():
    model = Net(standardised, conv=nn.Conv2d(3, 4, 1), mixing=nn.Parameter(torch.eye(1)))
    # Weights are 12 elements of four bytes: centred and multiplied both are there at the end, the
    # means gone.
    assert counted(model, X) == (4 * 64, 4 * 256, 768 + 2 * 48 + 4 * 256)
    kinds = {o.operator: o.constant for o in trace(model, X).outputs}
    assert kinds["mean"] is kinds["sub"] is True
    assert kinds["convolution"] is False


def test_memory_written_to_belongs_to_the_inputs():
    def forward(net, x):
        canvas = torch.zeros(1, 3, 8, 8)
        canvas[:, :, 2:6] = x[:, :, 2:6]
        return net.conv(canvas)

    assert counted(Net(forward, conv=nn.Conv2d(3, 4, 1)), X) == (256, 1024, 2 * 768 + 1024)


def test_attention_puts_out_its_result():
    def forward(net, x):
        q, k, v = net.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)

    x = torch.zeros(2, 2, 5, 4)  # heads of four, five tokens
    assert counted(Net(forward, qkv=nn.Linear(4, 12)), x)[0] == 2 * 2 * 5 * 12 + 2 * 2 * 5 * 4
    assert cost(Net(forward, qkv=nn.Linear(4, 12)), x).macs == 2 * 2 * 5 * 48 + 800


def test_products_of_activations():
    def forward(net, x):
        return torch.einsum("bchw,bdhw->bcd", x, net.conv(x)), x[0, 0] @ x[0, 0, 0]

    assert counted(Net(forward, conv=nn.Conv2d(3, 4, 1)), X)[0] == 256 + 12 + 8


def test_a_recurrent_layer():
    found = counted(nn.LSTM(6, 4), torch.zeros(5, 2, 6))
    assert found[0] == 5 * 2 * 4


def test_inputs_that_share_memory_count_once():
    def forward(net, x, y):
        return net.conv(x) + net.conv(y)

    model = Net(forward, conv=nn.Conv2d(3, 2, 1))
    assert counted(model, (X, X))[2] == 768 + 3 * 512
    assert counted(model, (X, torch.ones_like(X)))[2] == 2 * 768 + 3 * 512
    assert counted(model, (X[:, :, :1].expand(1, 3, 8, 8), X))[2] == 768 + 3 * 512


def test_parts_that_only_training_uses_are_not_counted():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head, self.extra = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 2, 1),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x):
            x = self.conv(x)
            return (self.head(x), self.extra(x)) if self.training else self.head(x)

    assert counted(Auxiliary(), X) == (6 * 64, 6 * 256, 768 + 6 * 256)


def test_nothing_at_all():
    assert ChannelGraph((), "").activations() == ChannelGraph((), "").peak_bytes() == 0
    assert counted(nn.Identity(), X) == (0, 0, 768)


def test_sparse_tensors_have_no_memory_that_could_be_followed():
    def forward(net, x):
        return torch.sparse.mm(x.to_sparse(), net.weight)

    model = Net(forward, weight=nn.Parameter(torch.zeros(4, 2)))
    x = torch.eye(3, 4)
    assert cost(model, x).peak_bytes >= 48
    assert trace(model, x).peak_bytes() >= 48


def test_tracing_keeps_no_tensor_alive():
    made = []

    def forward(net, x):
        for layer in net.layers:
            x = layer(x)
            made.append(torch.multiprocessing.reductions.StorageWeakRef(x.untyped_storage()))
        assert sum(not reference.expired() for reference in made) == 1
        return x

    model = Net(forward, layers=nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4)))
    trace(model, X)
    made.clear()
    cost(model, X)
    assert all(reference.expired() for reference in made)


# --- after a cut ----------------------------------------------------------------------------------


def cut_at_random(
    model: nn.Module, inputs: Tensor, share: float
) -> tuple[ChannelGraph, dict, nn.Module]:
    """The graph, masks that keep about this share of each group, and what they leave of the model."""
    graph, rng = trace(model, inputs), np.random.default_rng(0)
    masks = {}
    for number, group in enumerate(graph.groups):
        if group.prunable:
            masks[number] = np.zeros(group.size, dtype=bool)
            masks[number][
                rng.permutation(group.size)[
                    : max(1, int(share * group.size * rng.uniform(0.5, 1.5)))
                ]
            ] = True
    return graph, masks, prune(model, plan_keeping(graph, masks))


SMALL = torch.zeros(2, 3, 32, 32)
NETS = {
    "chain": (Chain, torch.zeros(2, 3, 8, 8)),
    "residual": (Residual, torch.zeros(2, 3, 8, 8)),
    "dense-block": (DenseBlock, torch.zeros(2, 3, 8, 8)),
    "vgg11": (lambda: zoo.vgg11(width=0.25), SMALL),
    "resnet20": (lambda: zoo.resnet20(), SMALL),
    "resnet20-zero-padding": (lambda: zoo.resnet20(shortcut="A"), SMALL),
    "densenet40": (lambda: zoo.densenet40(width=0.5), SMALL),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), SMALL),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), SMALL),
}


@pytest.mark.parametrize("share", [0.02, 0.6])
@pytest.mark.parametrize("name", NETS)
def test_counts_under_masks_are_those_of_the_cut_model(name, share):
    build, x = NETS[name]
    graph, masks, small = cut_at_random(build().eval(), x, share)
    after, found = trace(small, x), cost(small, x)
    assert (
        graph.activations(masks) == after.activations() == found.activations < graph.activations()
    )
    assert graph.activation_bytes(masks) == after.activation_bytes() == found.activation_bytes
    assert graph.peak_bytes(masks) == after.peak_bytes() == found.peak_bytes < graph.peak_bytes()


def shuffled(net, x):
    n, c, h, w = (x := net.conv(x)).shape
    return net.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def test_a_copy_that_a_cut_makes_unnecessary():
    """Eager PyTorch copies transposed memory only if its order changes, which one channel a half
    does not.
    """
    model = Net(shuffled, conv=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 1, 1)).eval()
    graph, masks, small = cut_at_random(model, X, 0.0)
    assert graph.activations(masks) == trace(small, X).activations() == 2 * 64 + 64
    assert (
        graph.peak_bytes(masks) == 768 + 2 * 512 + 256
    )  # the convolution's output, its copy and the head's output
    assert trace(small, X).peak_bytes() == cost(small, X).peak_bytes == 768 + 512 + 256


def test_shares_of_the_memory_are_only_as_many_as_can_be_the_fullest():
    graph = trace(zoo.resnet20(), SMALL)
    memory = graph.memory
    assert len(memory.steps) < sum(o.kind == "new" for o in graph.outputs) / 2
    assert memory.steps.shape[1] == len(memory.blocks)
    sizes = np.array([block.bytes({}) for block in memory.blocks])
    assert (memory.steps @ sizes).max() == graph.peak_bytes()
