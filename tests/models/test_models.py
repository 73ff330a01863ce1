"""Naming models: every form, and every way of getting one wrong."""

import sys

import pytest
import torch
from torch import nn

from netslim import models, save
from netslim.errors import ArgumentError, RecipeError


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    """A writer of modules into a directory that is then the current one."""
    monkeypatch.chdir(tmp_path)
    written = []

    def write(text, name="my_nets_for_this_test"):
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_builds_from_the_zoo_with_arguments():
    model = models.build("zoo:mlp", num_classes=3, hidden=(4,), in_features=6)
    assert model(torch.zeros(2, 6)).shape == (2, 3)


def test_builds_from_torchvision_without_weights():
    torch.manual_seed(0)
    first = models.build("torchvision:resnet18", num_classes=7)
    second = models.build("torchvision:resnet18", num_classes=7)
    assert first.fc.out_features == 7
    assert not torch.equal(first.conv1.weight, second.conv1.weight)


def test_passes_weights_through_to_torchvision():
    with pytest.raises(
        RecipeError,
        match=r"torchvision:resnet18 could not be built: .*NO_SUCH_WEIGHTS.*called IMAGENET1K_V1",
    ):
        models.build("torchvision:resnet18", weights="NO_SUCH_WEIGHTS")


def test_builds_from_timm():
    pytest.importorskip("timm")
    model = models.build("timm:resnet10t", num_classes=4)
    assert model.get_classifier().out_features == 4


def test_says_how_to_get_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        RecipeError, match="timm:resnet50d needs the timm package: pip install timm"
    ):
        models.build("timm:resnet50d")
    assert models.names("timm:") == []


def test_builds_from_a_file_in_the_current_directory(my_module):
    name = my_module(
        "from torch import nn\n\ndef build(units=3):\n    return nn.Linear(2, units)\n"
    )
    before = list(sys.path)
    assert models.build(f"{name}:build", units=5).out_features == 5
    assert sys.path == before


def test_builds_from_an_installed_package():
    assert isinstance(models.build("torch.nn:Identity"), nn.Identity)


def test_a_path_is_built_as_the_checkpoint_says_and_filled(tmp_path):
    made = models.constructor("zoo:mlp", {"hidden": [5]})
    network = models.build(made["name"], **made["kwargs"])
    path = save(network, tmp_path / "small.safetensors", constructor=made)
    for where in (path, str(path)):
        again = models.build(where).state_dict()
        assert all(torch.equal(again[k], v) for k, v in network.state_dict().items())


def test_a_checkpoint_takes_no_arguments():
    with pytest.raises(
        RecipeError, match=r"small.safetensors already says .* leave out width, num_classes"
    ):
        models.build("small.safetensors", width=0.5, num_classes=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "zoo:vgg91",
            r"there is no model 'zoo:vgg91'; did you mean .*zoo:vgg19.*\? .*names\('zoo:'\) lists",
        ),
        ("torchvision:resnet5", r"did you mean .*torchvision:resnet50.*names\('torchvision:'\)"),
        (
            "vgg19",
            r"'vgg19' names no model; did you mean .*zoo:vgg19.* A model is zoo:NAME, "
            r"torchvision:NAME",
        ),
        ("", r"'' names no model. A model is zoo:NAME"),
        (":vgg19", r"':vgg19' names no model"),
        ("zoo:", r"'zoo:' names no model"),
        ("zooo:vgg19", r"no module 'zooo', which zooo:vgg19 names.*did you mean 'zoo'\?"),
        (
            "torch.nn:Identit",
            r"the module torch.nn .* has no function 'Identit'; did you mean 'Identity'",
        ),
        ("torch.no_such:f", r"no module 'torch.no_such', which torch.no_such:f names"),
        ("torch:__version__", r"has no function '__version__'"),
    ],
)
def test_unknown_names_offer_the_nearest(name, message):
    with pytest.raises(RecipeError, match=message):
        models.build(name)


def test_unknown_timm_name():
    pytest.importorskip("timm")
    with pytest.raises(RecipeError, match=r"'timm:resnet50ddd'; did you mean .*timm:resnet50d"):
        models.build("timm:resnet50ddd")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "zoo:vgg19",
            {"widht": 0.5},
            r"no argument 'widht': it takes num_classes, width, in_channels; did you mean 'width'",
        ),
        ("zoo:vgg", {}, r"zoo:vgg needs layers: it takes layers, num_classes"),
        (
            "zoo:vgg19",
            {"width": 0},
            r"zoo:vgg19 could not be built: width must be above 0",
        ),
        (
            "torchvision:resnet18",
            {"widht": 2},
            r"resnet18 could not be built: TypeError: .*'widht'",
        ),
        ("torch:zeros", {}, r"torch:zeros could not be built: TypeError"),
        ("builtins:dict", {}, r"builtins:dict returned dict, not a torch.nn.Module"),
    ],
)
def test_arguments_that_do_not_fit(name, kwargs, message):
    with pytest.raises(RecipeError, match=message):
        models.build(name, **kwargs)


def test_a_module_that_fails_to_import_says_why(my_module):
    broken = my_module("import a_package_nobody_has\n", "broken_import_for_this_test")
    with pytest.raises(
        RecipeError, match="could not be imported: No module named 'a_package_nobody_has'"
    ):
        models.build(f"{broken}:build")
    reading = my_module("open('weights.pth')\n", "reading_import_for_this_test")
    with pytest.raises(RecipeError, match=r"No such file.* let it read files in the function"):
        models.build(f"{reading}:build")
    crashing = my_module("1 / 0\n", "crashing_import_for_this_test")
    with pytest.raises(
        RecipeError, match="could not be imported: ZeroDivisionError: division by zero"
    ):
        models.build(f"{crashing}:build")


def test_names_lists_by_prefix_and_sorted():
    assert models.names("zoo:resnet") == [
        "zoo:resnet", "zoo:resnet101", "zoo:resnet110", "zoo:resnet18", "zoo:resnet20", "zoo:resnet32",
        "zoo:resnet34", "zoo:resnet44", "zoo:resnet50", "zoo:resnet56",
    ]  # fmt: skip
    everything = models.names()
    assert everything == sorted(everything)
    assert {"zoo:vgg19", "torchvision:resnet50"} <= set(everything)
    assert "torchvision:fcn_resnet50" not in everything
    assert models.names("nothing:") == []


def test_the_constructor_rebuilds_the_model():
    record = models.constructor("zoo:vgg11", {"width": 0.125})
    assert record == {"name": "zoo:vgg11", "kwargs": {"width": 0.125}}
    assert models.build(record["name"], **record["kwargs"]).features[0].out_channels == 8


def test_adds_what_a_method_needs():
    model = models.build("zoo:preresnet", depth=11, width=0.25, add_selection=True)
    assert "layer1.0.bn1.select.indices" in model.state_dict()
    model = models.build(
        "torchvision:squeezenet1_1", num_classes=4, add_bn=True, add_selection=False
    )
    assert "features.0.norm.weight" in model.state_dict()
    plain = models.build("zoo:preresnet", depth=11, width=0.25, add_bn=False)
    assert not any("select" in name or "norm" in name for name in plain.state_dict())


def test_what_is_added_is_part_of_the_constructor():
    record = models.constructor("zoo:densenet", {"depth": 7, "width": 0.5, "add_selection": True})
    assert "bn.select.indices" in models.build(record["name"], **record["kwargs"]).state_dict()


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        ("zoo:vgg11", {"width": 0.125, "add_bn": True}, ArgumentError, "nothing to do"),
        ("zoo:vgg11", {"width": 0.125, "add_selection": True}, ArgumentError, "nothing to do"),
        (
            "torch.nn:Identity",
            {"add_selection": True},
            ArgumentError,
            "no convolution or linear layer",
        ),
        (
            "zoo:vgg11",
            {"add_bn": "yes"},
            ArgumentError,
            "add_bn must be True or False, got the str 'yes'",
        ),
        ("small.safetensors", {"add_selection": True}, RecipeError, "leave out add_selection"),
    ],
)
def test_what_cannot_be_added(name, kwargs, error, message):
    with pytest.raises(error, match=message):
        models.build(name, **kwargs)
