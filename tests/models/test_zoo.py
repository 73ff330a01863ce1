"""The papers' networks: exact sizes, shapes, initialisation."""

import inspect
import math

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from netslim.models import zoo


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def scales(model):
    return sum(
        m.num_features for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    )


def without_values(name, **kwargs):
    """The network on the meta device: shapes alone, so that large ones cost nothing."""
    with torch.device("meta"):
        return getattr(zoo, name)(**kwargs).eval()


COUNTS = [
    ("vgg11", {}, 9_228_362),
    ("vgg13", {}, 9_413_066),
    ("vgg16", {}, 14_724_042),
    ("vgg19", {}, 20_035_018),
    ("vgg19", {"num_classes": 100}, 20_081_188),
    ("vgg16_fc512", {}, 14_987_722),
    ("vgg16_bn_4096", {}, 33_646_666),
    ("resnet20", {}, 269_722),
    ("resnet32", {}, 464_154),
    ("resnet44", {}, 658_586),
    ("resnet56", {}, 853_018),
    ("resnet110", {}, 1_727_962),
    # Two projections, 16 -> 32 and 32 -> 64, with BN: 512 + 64 + 2048 + 128 more.
    ("resnet20", {"shortcut": "B"}, 269_722 + 2_752),
    ("preresnet164", {}, 1_703_258),
    ("preresnet164", {"num_classes": 100}, 1_726_388),
    ("densenet40", {}, 1_019_722),
    ("densenet40", {"stem": 24}, 1_059_298),
    ("densenet40", {"stem": 24, "num_classes": 100}, 1_100_428),
    ("mlp", {"norm": False}, 545_810),
    # 545,810 and a scale and a shift for each of the 800 hidden units.
    ("mlp", {}, 547_410),
    ("vgg_a", {}, 132_885_224),
    ("resnet18", {}, 11_689_512),
    ("resnet34", {}, 21_797_672),
    ("resnet50", {}, 25_557_032),
    ("resnet101", {}, 44_549_160),
]


@pytest.mark.parametrize(("name", "kwargs", "count"), COUNTS)
def test_parameter_counts_are_the_published_ones(name, kwargs, count):
    assert parameters(without_values(name, **kwargs)) == count


# Multiply-accumulates of convolutions and linear layers for one picture; those of the papers to
# their digits.
MACS = [
    ("vgg19", {}, 32, 398_136_320),
    ("vgg16_fc512", {}, 32, 313_463_808),
    ("preresnet164", {}, 32, 247_646_720),
    ("densenet40", {}, 32, 264_812_928),
    ("densenet40", {"stem": 24}, 32, 282_917_328),
    ("resnet20", {}, 32, 40_551_040),
    ("resnet32", {}, 32, 68_862_592),
    ("resnet44", {}, 32, 97_174_144),
    ("resnet56", {}, 32, 125_485_696),
    ("resnet110", {}, 32, 252_887_680),
    ("vgg_a", {}, 224, 7_609_090_048),
    ("resnet34", {}, 224, 3_663_761_408),
    ("resnet50", {}, 224, 4_089_184_256),
]


@pytest.mark.parametrize(("name", "kwargs", "pixels", "macs"), MACS)
def test_multiply_accumulates_are_the_published_ones(name, kwargs, pixels, macs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        without_values(name, **kwargs)(torch.zeros(1, 3, pixels, pixels, device="meta"))
    assert counter.get_total_flops() == 2 * macs


def test_every_ready_made_network_has_a_count_here():
    generic = {"vgg", "resnet", "preresnet", "densenet"}
    assert {name for name, _, _ in COUNTS} == set(zoo.__all__) - generic


def test_exports_are_the_functions_and_nothing_else():
    public = {name for name, value in vars(zoo).items() if inspect.isfunction(value)}
    assert set(zoo.__all__) == public
    assert len(zoo.__all__) == len(public)


IMAGE_NETWORKS = [
    name for name in zoo.__all__ if name not in {"vgg", "resnet", "preresnet", "densenet", "mlp"}
]


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_narrow_networks_read_pictures_and_train(name):
    model = getattr(zoo, name)(num_classes=4, width=0.125, in_channels=1)
    out = model(torch.randn(2, 1, 32, 32))
    assert out.shape == (2, 4)
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_width_scales_hidden_layers_and_rounds():
    convolutions = [
        m.out_channels for m in zoo.vgg([10, 3], width=0.25).features if isinstance(m, nn.Conv2d)
    ]
    assert convolutions == [2, 1]
    head = [
        m.out_features
        for m in zoo.vgg([8], width=0.5, head=[6]).classifier
        if isinstance(m, nn.Linear)
    ]
    assert head == [3, 10]
    assert zoo.resnet20(width=2).fc.in_features == 128
    assert zoo.densenet40(width=0.5).conv1.out_channels == 8


def test_vgg_layers_in_order():
    kinds = [type(m) for m in zoo.vgg([4, "M", 8]).features]
    block = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert kinds == [*block, nn.MaxPool2d, *block]
    assert all(m.bias is None for m in zoo.vgg19().features if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("size", [4, 8, 32, 40])
def test_vgg_averages_whatever_map_is_left(size):
    model = zoo.vgg([8, "M", 8, "M"], in_channels=1, num_classes=3).eval()
    x = torch.randn(2, 1, size, size)
    averaged = model.features(x).mean((2, 3))
    torch.testing.assert_close(model(x), model.classifier(averaged))


def test_vgg19_ends_in_a_two_by_two_average_pool():
    model = zoo.vgg19(width=0.125).eval()
    maps = model.features(torch.randn(1, 3, 32, 32))
    assert maps.shape[2:] == (2, 2)
    torch.testing.assert_close(model.pool(maps), nn.functional.avg_pool2d(maps, 2))


def test_mlp_flattens_its_input():
    model = zoo.mlp().eval()
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(model(x), model(x.reshape(3, 784)))


def test_shortcut_a_pads_with_zeros_on_both_sides():
    shortcut = zoo.resnet20().layer2[0].shortcut
    x = torch.randn(1, 16, 4, 4)
    out = shortcut(x)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == 0
    assert out[:, 24:].abs().sum() == 0


def test_preresnet164_has_12112_scales():
    assert scales(without_values("preresnet164")) == 12_112


def test_vgg_a_has_10944_scales():
    assert scales(without_values("vgg_a")) == 64 + 128 + 2 * 256 + 4 * 512 + 2 * 4096 == 10_944


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_imagenet_resnets_are_torchvisions(name):
    ours = without_values(name)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    assert isinstance(ours, torchvision.models.ResNet)
    assert [(n, t.shape) for n, t in ours.state_dict().items()] == [
        (n, t.shape) for n, t in theirs.state_dict().items()
    ]


def test_imagenet_resnets_compute_what_torchvisions_do():
    ours, theirs, x = (
        zoo.resnet18(num_classes=5),
        torchvision.models.resnet18(num_classes=5),
        torch.randn(1, 3, 64, 64),
    )
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_imagenet_resnets_scale_every_stage():
    model = without_values("resnet50", width=0.25, in_channels=1)
    assert model.conv1.weight.shape == (16, 1, 7, 7)
    widths = [
        (stage[-1].conv1.out_channels, stage[-1].conv3.out_channels)
        for stage in list(model.children())[4:8]
    ]
    assert widths == [(16, 64), (32, 128), (64, 256), (128, 512)]
    assert model.fc.in_features == 512
    kernels = [(m.in_channels, m.out_channels) for m in model.modules() if isinstance(m, nn.Conv2d)]
    whole = [
        (m.in_channels, m.out_channels)
        for m in without_values("resnet50").modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert kernels[1:] == [(a // 4, b // 4) for a, b in whole[1:]]


def test_initialisation():
    torch.manual_seed(0)
    model = zoo.vgg([64, 256], head=(512,), conv_bias=True)
    conv, norm, linear = model.features[3], model.features[4], model.classifier[0]
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)
    assert conv.bias.abs().sum() == 0
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert linear.bias.abs().sum() == 0
    assert torch.equal(norm.weight, torch.ones(256))
    assert torch.equal(norm.bias, torch.zeros(256))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.vgg([16, "P"]), "'M' .2x2 max pool., not 'P'"),
        (lambda: zoo.vgg(["M"]), "at least one convolution"),
        (lambda: zoo.vgg([0]), "positive whole number of channels, not 0"),
        (lambda: zoo.vgg([1.5]), "positive whole number of channels, not 1.5"),
        (lambda: zoo.vgg11(width=0), "width must be above 0, not 0"),
        (lambda: zoo.resnet50(width=-1), "width must be above 0, not -1"),
        (lambda: zoo.mlp(hidden=(-1,)), "not -1"),
        (lambda: zoo.resnet(21), r"6n \+ 2 .*, not 21"),
        (lambda: zoo.resnet20(shortcut="C"), "'A' .zero-padded. or 'B' .projection., not 'C'"),
        (lambda: zoo.preresnet(163), r"9n \+ 2"),
        (lambda: zoo.densenet(41), r"3n \+ 4"),
    ],
)
def test_refuses_what_it_cannot_build(call, message):
    with pytest.raises(ValueError, match=message):
        call()
