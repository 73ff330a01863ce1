"""Folders for the hub: what is in them, who opens them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import netslim
from nets import Residual, cut_half
from netslim.errors import ArgumentError, CheckpointError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NET = {"name": "zoo:vgg", "kwargs": {"layers": [8, "M", 16], "num_classes": 3}}


def cut() -> nn.Module:
    torch.manual_seed(0)
    model = netslim.models.build(NET["name"], **NET["kwargs"])
    return netslim.slim(model, X, criterion="l1", budget=netslim.Budget(cut_channels=0.5)).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A cut network and its folder."""
    model, folder = cut(), tmp_path_factory.mktemp("hub") / "new" / "small"
    assert netslim.save(model, folder, format="hub", constructor=NET) == folder
    return model, folder


def test_the_folder_opens_as_the_network_that_was_saved(made):
    model, folder = made
    expected = model(X)
    assert torch.equal(netslim.models.build(folder).eval()(X), expected)
    fresh = netslim.models.build(NET["name"], **NET["kwargs"])
    assert torch.equal(netslim.load(fresh, folder).eval()(X), expected)
    assert torch.equal(netslim.models.build(folder / "model.safetensors").eval()(X), expected)
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_what_is_in_it(made):
    model, folder = made
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "plan.json"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert {*file.keys()} == {*model.state_dict()}
    plan = netslim.PruningPlan.from_json((folder / "plan.json").read_text())
    assert plan.removed == 12
    config = json.loads((folder / "config.json").read_text())
    assert list(config) == ["netslim"]  # nothing that another library would build
    assert config["netslim"]["constructor"] == NET
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: ")
    assert "netslim.models.build(folder)" in text


def test_equal_networks_give_equal_folders(made, tmp_path):
    model, folder = made
    again = netslim.save(model, tmp_path / "again", format="hub", constructor=NET)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_the_hub_reads_the_card(made):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(made[1] / "README.md")
    assert card.data.library_name == "netslim"
    assert card.data.tags == ["netslim", "pruning"]


def test_a_card_of_ones_own(tmp_path):
    folder = netslim.save(Residual(), tmp_path / "net", format="hub", card="# Mine\n")
    assert (folder / "README.md").read_text().startswith("# Mine\n\n## How to open it\n")
    with pytest.raises(ArgumentError, match="card is written into a folder"):
        netslim.save(Residual(), tmp_path / "net.safetensors", card="# Mine\n")


def exchange(folder: Path) -> None:
    other = netslim.save(Residual(), folder.parent / "other", format="hub")
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")


def disown(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def add_plan(folder: Path) -> None:
    plan = folder / "plan.json"
    plan.write_text(plan.read_text().replace("true", "false") + " ")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (exchange, r"model\.safetensors was changed after it was written"),
        (add_plan, r"plan\.json was changed after it was written"),
        (lambda folder: (folder / "plan.json").unlink(), "No such file"),
        (disown, "it has no section netslim"),
        (lambda folder: (folder / "config.json").write_text("{"), "Expecting property name"),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"netslim": {"format": 2, "sha256": {}}}'
            ),
            "a format that this version does not know",
        ),
    ],
)
def test_damage_is_told_before_anything_is_built(made, tmp_path, damage, why):
    folder = Path(shutil.copytree(made[1], tmp_path / "small"))
    damage(folder)
    for opened in (netslim.models.build, lambda path: netslim.load(nn.Identity(), path)):
        with pytest.raises(CheckpointError, match=rf"take another copy|{why}") as caught:
            opened(folder)
        assert why.replace("\\", "") in str(caught.value)


def test_nothing_is_overwritten(made, tmp_path):
    with pytest.raises(CheckpointError, match="exists already"):
        netslim.save(made[0], made[1], format="hub")
    (tmp_path / "empty").mkdir()
    netslim.save(made[0], tmp_path / "empty", format="hub")
    assert (tmp_path / "empty" / "config.json").exists()


# ---------------------------------------------------------------- others open it where they can


def test_timm_opens_what_was_not_cut_and_finds_nothing_else(tmp_path):
    timm = pytest.importorskip("timm")
    origin = {"name": "timm:test_resnet", "kwargs": {"num_classes": 3}}
    model = netslim.models.build(origin["name"], **origin["kwargs"]).eval()
    folder = netslim.save(model, tmp_path / "whole", format="hub", constructor=origin)
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(opened(X), model(X))
    small = netslim.prune(model, cut_half(model, X)[1])
    folder = netslim.save(small, tmp_path / "small", format="hub", constructor=origin)
    assert torch.equal(netslim.models.build(folder).eval()(X), small(X))
    with pytest.raises((KeyError, RuntimeError, ValueError)):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


class Config:
    def __init__(self, width: int = 8) -> None:
        self.width, self.model_type = width, "tiny"

    def to_dict(self) -> dict[str, object]:
        return vars(self)


class Pretrained(nn.Module):
    """Saves and builds itself from one number, as Hugging Face's networks do."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(3, config.width, 3)
        self.second = nn.Conv2d(config.width, config.width, 3)
        self.head = nn.Linear(config.width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))

    def save_pretrained(self, folder: Path) -> None:
        raise AssertionError("the folder is written without it")


@pytest.mark.parametrize(("layers", "said"), [(("first", "second"), True), (("first",), False)])
def test_a_configuration_is_told_to_others_only_where_it_builds_the_network(tmp_path, layers, said):
    torch.manual_seed(0)
    model = Pretrained(Config()).eval()
    graph = netslim.trace(model, X)
    halves = dict.fromkeys(layers, 0.5)
    plan = netslim.select(graph, netslim.score(graph, model, "l1"), per_group=halves)
    small = netslim.prune(model, plan)
    folder = netslim.save(small, tmp_path / "small", format="hub")
    config = json.loads((folder / "config.json").read_text())
    assert ("model_type" in config) is said
    if said:
        assert (config["width"], config["architectures"]) == (4, ["Pretrained"])
        built = Pretrained(Config(config["width"])).eval()
        with safe_open(folder / "model.safetensors", "pt") as file:
            built.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        assert torch.equal(built(X), small(X))
    else:
        assert config["netslim"]["uncut"]["width"] == 8
    assert torch.equal(netslim.load(Pretrained(Config()), folder).eval()(X), small(X))
