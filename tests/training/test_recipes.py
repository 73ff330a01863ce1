"""The shipped recipes: published figures that fit their networks, and twins whose every stage runs."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import netslim
from netslim import models
from netslim.methods.centripetal import CentripetalSGD
from netslim.methods.soft_filter import SoftFilterPruning
from netslim.training import run
from netslim.training.loop.progress import silent
from netslim.training.recipe.files import shipped
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import (
    CentripetalOptions,
    Prune,
    Recipe,
    SoftFilterOptions,
    Train,
)
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.foresight import foresee
from netslim.training.stages.measure import entries
from netslim.training.stages.networks import Networks
from shipped_recipes import recipe_of

SLIMMING = [
    *(
        "vgg19-cifar10",
        "vgg19-cifar100",
        "vgg19-svhn",
        "vgg19-cifar10-multipass",
        "vgg19-cifar100-multipass",
    ),
    *(
        "preresnet164-cifar10-40",
        "preresnet164-cifar10-60",
        "preresnet164-cifar100-40",
        "preresnet164-cifar100-60",
    ),
    *("preresnet164-cifar100-40-mask", "preresnet164-cifar100-60-mask", "preresnet164-svhn-40"),
    *(
        "densenet40-cifar10-40",
        "densenet40-cifar10-60",
        "densenet40-cifar10-70",
        "densenet40-cifar100-40",
    ),
    *(
        "densenet40-cifar100-60",
        "densenet40-svhn-40",
        "densenet40-svhn-60",
        "mnist-mlp",
        "vgg-a-imagenet",
    ),
]
FILTERS = [
    *("vgg16-l1-a", "resnet56-l1-a", "resnet56-l1-b", "resnet110-l1-a", "resnet110-l1-b"),
    *("resnet34-l1-a", "resnet34-l1-b", "resnet34-l1-c", "vgg16-bn-hard", "vgg16-bn-soft"),
    *(
        "resnet32-hard-avoid",
        "resnet32-hard-include",
        "resnet32-soft-avoid",
        "resnet32-soft-include",
    ),
    *("resnet20-sfp", "resnet32-sfp", "resnet56-sfp", "resnet56-sfp-pretrained", "resnet110-sfp"),
    *("resnet18-sfp", "resnet34-sfp", "resnet50-sfp", "resnet50-sfp-pretrained", "resnet101-sfp"),
]
CENTRIPETAL = [
    *("resnet56-csgd", "resnet50-csgd-70", "resnet50-csgd-60", "resnet50-csgd-50"),
    *("densenet40-csgd", "densenet40-magnitude"),
]
ROWS = [*SLIMMING, *FILTERS, *CENTRIPETAL]
TWINS = sorted(name for name in shipped() if name.endswith("-small"))
CLASSES = {"CIFAR100": 100, "imagenet": 1000}


def test_every_published_row_is_shipped_with_its_twin():
    assert shipped() == sorted(
        [
            *ROWS,
            *(f"{name}-small" for name in ROWS),
            "digits",
            "digits-gradual",
            "digits-int8",
            "vgg16-cifar10-small",
        ]
    )


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_where_its_figures_come_from(name):
    recipe = recipe_of(name)
    assert recipe.name == name
    assert recipe.notes
    assert recipe.published or name == "resnet101-sfp"
    for row in recipe.published:
        assert set(row) <= {
            "label",
            "beside",
            "error",
            "top5_error",
            "params",
            "params_cut",
            "macs",
            "macs_cut",
        }
        assert "(" in str(row["label"])
    first, *others = [row["params"] for row in recipe.published if "params" in row] or [0]
    assert all(params <= first * 1.05 for params in others)


# Of which the paper's whole network is none that the recipe trains: it starts from its weights.
GIVEN = ("resnet50-csgd-50", "resnet50-csgd-60", "resnet50-csgd-70", "resnet50-sfp-pretrained")


@pytest.mark.parametrize("name", ROWS)
def test_a_published_figure_is_set_beside_a_network_that_is_measured(name):
    recipe = recipe_of(name)
    measured = {entry.key for entry in entries(recipe)}
    named = [row.get("beside") for row in recipe.published]
    assert set(named) <= measured | ({None} if name in GIVEN else set())
    cut = {row["beside"] for row in recipe.published if {"params_cut", "macs_cut"} & row.keys()}
    assert not cut & {"baseline", "before"}


def test_the_rows_of_a_network_and_data_set_name_the_same_base():
    bases: dict[tuple[str, str], set[float]] = {}
    for name in (
        name
        for name in SLIMMING
        if name.count("-") > 1 and "mask" not in name and name[-2:] != "ss"
    ):
        row = recipe_of(name).published[0]
        if "Table 1" in row["label"]:
            bases.setdefault((name.split("-")[0], name.split("-")[1]), set()).add(row["error"])
    assert bases
    assert all(len(errors) == 1 for errors in bases.values())


# ---------------------------------------------------------------- the networks of the papers


@cache
def model_of(name: str) -> tuple[str, tuple[tuple[str, Any], ...], int, tuple[int, ...]]:
    """What a row's network is built from: name, options, classes, and the shape of its images."""
    recipe = recipe_of(name)
    options = {
        key: value
        for key, value in recipe.model.kwargs.items()
        if key not in ("add_selection", "weights")
    }
    outputs = next(
        (count for data, count in CLASSES.items() if recipe.data.name.endswith(data)), 10
    )
    size = recipe.data.image_size or 32
    shape = (1, 1, 28, 28) if recipe.model.name == "zoo:mlp" else (1, 3, size, size)
    return recipe.model.name, tuple(options.items()), outputs, shape


@cache
def counted(
    name: str, options: tuple[tuple[str, Any], ...], outputs: int, shape: tuple[int, ...]
) -> Any:
    large = shape[-1] > 32  # without values operators cost more, but its weights are many
    with torch.device("meta") if large else contextlib.nullcontext():
        model = models.build(name, num_classes=outputs, **dict(options))
        return netslim.cost(model.eval(), torch.empty(shape))


@pytest.mark.parametrize("name", ROWS)
def test_a_network_has_the_published_size(name):
    """Within 1.2 %: some papers leave projections out, others count normalisations or selections as
    well.
    """
    base = recipe_of(name).published[:1]
    params, macs = size_of(name)
    for row in base:
        assert "params_cut" not in row
        assert params == pytest.approx(row.get("params", params), rel=0.012)
        assert macs == pytest.approx(row.get("macs", macs), rel=0.012)


def size_of(name: str) -> tuple[float, float]:
    """Parameters and MACs; of what is traced below in any case, as the graph counts them."""
    if name in CUTS:
        graph = traced(*model_of(name))[1]
        return graph.params({}), graph.macs({})
    cost = counted(*model_of(name))
    return cost.params, cost.macs


@cache
def traced(
    name: str, options: tuple[tuple[str, Any], ...], outputs: int, shape: tuple[int, ...]
) -> Any:
    model = models.build(name, num_classes=outputs, **dict(options))
    return model, netslim.trace(model, torch.zeros(shape))


def deciding(recipe: Recipe) -> Prune | SoftFilterOptions | CentripetalOptions | None:
    """The last options that name groups or give every group its share; None where scores decide."""
    for stage in reversed(recipe.stages):
        if isinstance(stage, Prune) and stage.per_group:
            return stage
        if isinstance(stage, Train) and isinstance(
            stage.sparsity, SoftFilterOptions | CentripetalOptions
        ):
            return stage.sparsity
    return None


def removed(
    options: Prune | SoftFilterOptions | CentripetalOptions, model: Any, graph: Any
) -> dict[int, np.ndarray]:
    """Masks with as many channels gone as the options say; which ones does not matter here."""
    if isinstance(options, Prune):
        scores = netslim.score(graph, model, "random")
        plan = netslim.select(graph, scores, per_group=options.per_group, limits=options.limits)
        counts = {name: cut.size - len(cut.kept) for name, cut in plan.groups.items()}
    elif isinstance(options, CentripetalOptions):
        method = CentripetalSGD(
            graph, model, options.target, clusters="even", shortcuts=options.shortcuts
        )
        counts = {name: len(labels) - len(set(labels)) for name, labels in method.clusters.items()}
    else:
        ways = {"shortcuts": options.shortcuts, "projections": options.projections}
        counts = SoftFilterPruning(graph, model, options.rate, **ways).counts
    sizes = {graph.number(name): (graph[name].size, count) for name, count in counts.items()}
    return {number: np.arange(size) >= count for number, (size, count) in sizes.items()}


# Percent of the MACs and of the parameters that go, and how near ours must be. The paper counts
# ResNet-34 without its projections; what has no published cut (or, for soft filters, another one)
# is as its recipe's notes say.
CUTS = {
    "vgg16-l1-a": (34.2, 64.0, 0.06),
    "resnet56-l1-a": (10.4, 9.4, 0.06),
    "resnet56-l1-b": (27.6, 13.7, 0.06),
    "resnet110-l1-a": (15.9, 2.3, 0.06),
    "resnet110-l1-b": (38.6, 32.4, 0.06),
    "resnet34-l1-a": (15.5, 7.6, 0.2),
    "resnet34-l1-b": (24.2, 10.8, 0.2),
    "resnet34-l1-c": (7.5, 7.2, 0.2),
    "vgg16-bn-hard": (32.5, 31.2, 0.06),
    "vgg16-bn-soft": (22.1, 11.0, 0.06),
    "resnet32-hard-avoid": (12.4, 12.4, 0.06),
    "resnet32-hard-include": (23.4, 23.4, 0.06),
    "resnet32-soft-avoid": (12.4, 12.4, 0.06),
    "resnet32-soft-include": (23.4, 23.4, 0.06),
    "resnet20-sfp": (27.2, None, 0.06),
    "resnet32-sfp": (27.4, None, 0.06),
    "resnet56-sfp": (37.9, None, 0.06),
    "resnet56-sfp-pretrained": (37.9, None, 0.06),
    "resnet110-sfp": (27.5, None, 0.06),
    "resnet18-sfp": (27.5, None, 0.06),
    "resnet34-sfp": (28.6, None, 0.06),
    "resnet50-sfp": (37.0, None, 0.06),
    "resnet50-sfp-pretrained": (37.0, None, 0.06),
    "resnet101-sfp": (38.8, None, 0.06),
    "resnet56-csgd": (60.85, None, 0.01),
    "resnet50-csgd-70": (35.7, None, 0.06),
    "resnet50-csgd-60": (45.9, None, 0.06),
    "resnet50-csgd-50": (55.4, None, 0.06),
    "densenet40-csgd": (78.7, None, 0.06),
    "densenet40-magnitude": (78.7, None, 0.06),
}


def test_every_row_that_says_what_goes_is_checked_below():
    assert [name for name in ROWS if deciding(recipe_of(name)) is not None] == [
        name for name in ROWS if name in CUTS
    ]


@pytest.mark.parametrize("name", CUTS)
def test_what_goes_is_what_was_published_or_noted(name):
    options = deciding(recipe_of(name))
    assert options is not None
    model, graph = traced(*model_of(name))
    masks = removed(options, model, graph)
    macs, params, tolerance = CUTS[name]
    assert 100 * (1 - graph.macs(masks) / graph.macs({})) == pytest.approx(macs, abs=tolerance)
    if params is not None:
        assert 100 * (1 - graph.params(masks) / graph.params({})) == pytest.approx(
            params, abs=tolerance
        )


@pytest.mark.parametrize("name", [name for name in CUTS if "l1" in name])
def test_the_cuts_are_those_of_the_published_row(name):
    row = next(row for row in recipe_of(name).published if "macs_cut" in row)
    assert (row["macs_cut"], row["params_cut"]) == CUTS[name][:2]


# ---------------------------------------------------------------- every twin, two steps a stage


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random pictures, two classes: 24 to train on, 8 to test on."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


def shortened(name: str, pictures: Path) -> Recipe:
    """The twin with one epoch of two batches a stage, on random pictures; digits for the MLP.

    Of what ResNet-50 does three times over, once.
    """
    tree = recipe_of(name).to_dict()
    if "resnet50-csgd" in name:
        tree["stages"] = [
            part for part in tree["stages"] if part["name"][-3:] not in ("-60", "-50")
        ]
    grey = tree["model"]["name"] == "zoo:mlp"
    tree["data"] |= {
        "name": "digits" if grey else f"folder:{pictures}",
        "image_size": 28 if grey else 32,
    }
    tree["data"] |= {"subset": None, "validation": 0.2, "batch_size": 8}
    tree["trainer"] |= {"limit_batches": 2, "tensorboard": False, "device": "cpu", "threads": 1}
    for stage in tree["stages"]:
        if "epochs" in stage:
            stage["epochs"], stage["schedule"]["warmup"] = 1, 0.0
        if "centripetal" in stage["name"] and "resnet50" in name:
            stage["sparsity"]["clusters"] = (
                "even"  # k-means on its 32 layers takes most of the time
            )
    tree["stages"][-1]["latency"] = False
    return parse_recipe(tree)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def without_numbers(tree: Any) -> Any:
    """A part of a recipe in which every number has become one word, and so have the groups that are
    named: of every twin it is tried whether these can be cut.
    """
    if isinstance(tree, dict):
        return {
            key: "groups" if key == "per_group" and part else without_numbers(part)
            for key, part in tree.items()
            if key != "name"
        }
    if isinstance(tree, list):
        return [without_numbers(part) for part in tree]
    if isinstance(tree, int | float) and not isinstance(tree, bool):
        return "number"
    return tree


@cache
def doings(name: str) -> frozenset[str]:
    """What its stages do, whatever the numbers and the network."""
    stages = recipe_of(name).to_dict()["stages"]
    return frozenset(json.dumps(without_numbers(stage), sort_keys=True) for stage in stages)


def depth(name: str) -> int:
    return int("0" + "".join(re.findall(r"\d+", recipe_of(name).model.name)))


def doing_it_all() -> list[str]:
    """Twins that together do all that any does, the shallow ones first: each is carried out."""
    left, chosen = frozenset[str]().union(*map(doings, TWINS)), list[str]()
    while left:
        chosen.append(max(TWINS, key=lambda name: (len(doings(name) & left), -depth(name))))
        left -= doings(chosen[-1])
    return chosen


CARRIED_OUT = doing_it_all()


def check_twin(recipe: Recipe, results: dict[str, Any]) -> None:
    rows = {row["key"]: row for row in results["rows"]}
    whole, small = results["rows"][[*rows].index("before")], results["rows"][-1]
    assert small["params"] < whole["params"]
    assert small["macs"] < whole["macs"]
    assert len(results["verification"]) == sum(
        stage.kind == "convert" or (stage.kind == "prune" and stage.mode == "cut")
        for stage in recipe.stages
    )


@pytest.mark.parametrize("name", CARRIED_OUT)
def test_a_twin_runs_all_its_stages_and_ends_smaller(name, pictures, tmp_path):
    recipe = shortened(name, pictures)
    with quiet():
        check_twin(recipe, run(recipe, tmp_path / "run"))


@pytest.mark.parametrize("name", [name for name in TWINS if name not in CARRIED_OUT])
def test_a_twin_of_which_others_do_all_can_be_cut_as_it_says(name, pictures, tmp_path):
    """All its cuts are tried on the network as it begins, as before every training."""
    foresee(Networks(shortened(name, pictures), RunFolder(tmp_path / "run"), silent()), 0)


@pytest.mark.parametrize("name", ROWS)
def test_a_twin_takes_the_same_stages_as_its_row(name):
    row, twin = recipe_of(name), recipe_of(f"{name}-small")
    kinds = [(stage.kind, stage.name) for stage in row.stages]
    shorter = [(stage.kind, stage.name) for stage in twin.stages]
    if name in GIVEN:
        kinds = [("train", "train"), *kinds]
    if "multipass" in name:
        kinds = [*kinds[:6], kinds[-1]]
    assert shorter == kinds
    assert twin.published == []
    assert "not a row of the paper" in twin.notes[0]
    assert all(stage.epochs <= 12 for stage in twin.stages if isinstance(stage, Train))
    assert twin.data.subset is not None
    assert twin.data.subset <= 10_000
