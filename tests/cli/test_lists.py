"""`netslim models`, `data`, `criteria`, `options`: what there is, in words and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from netslim.cli import main
from netslim.data import sources
from netslim.selection.budget.allocation import ALLOCATIONS
from netslim.selection.criteria.registry import CRITERIA
from netslim.training.recipe.reading import load_recipe
from netslim.training.recipe.schema import KINDS, METHODS


def listed(capsys: Any, *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_models_have_their_parameters(capsys):
    found = {row["name"]: row for row in listed(capsys, "models", "zoo:vgg")}
    assert list(found)[:4] == ["zoo:vgg", "zoo:vgg11", "zoo:vgg13", "zoo:vgg16"]
    assert found["zoo:vgg16"] == {"name": "zoo:vgg16", "source": "netslim", "params": 14_724_042}
    assert found["zoo:vgg"]["params"] is None
    assert found["zoo:vgg"]["needs"].startswith("layers: it takes layers, ")


def test_models_by_a_part_of_the_name(capsys):
    assert main(["models", "resnet18"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names[0] == "zoo:resnet18"
    assert "torchvision:resnet18" in names
    assert all("resnet18" in name for name in names)
    assert main(["models", "zoo:nothing"]) == 1
    assert "no network has 'zoo:nothing' in its name" in capsys.readouterr().err


def test_data(capsys):
    found = listed(capsys, "data")
    assert [row["name"] for row in found] == list(sources.KINDS)
    assert main(["data"]) == 0
    assert "folder:PATH               pictures in a sub-folder" in capsys.readouterr().out


def test_criteria_name_their_papers(capsys):
    found = {
        kind: {row["name"]: row for row in rows}
        for kind, rows in listed(capsys, "criteria").items()
    }
    assert found["criteria"].keys() == CRITERIA.keys()
    assert found["allocations"].keys() == ALLOCATIONS.keys()
    assert found["methods"].keys() == METHODS.keys()
    assert found["criteria"]["geometric_median"]["paper"] == "FPGM, He et al. 2019"
    assert found["criteria"]["lamp"]["paper"] == "Lee et al. 2021, Eq. 2"
    assert all(row["paper"] for row in found["methods"].values())
    assert found["criteria"]["obs"]["needs_data"]
    assert not found["criteria"]["l1"]["needs_data"]
    assert main(["criteria"]) == 0
    said = capsys.readouterr().out
    assert (
        "Sum of Euclidean distances to all other filters of the layer. (FPGM, He et al. 2019)"
        in said
    )
    assert said.count("Li et al. 2017, section 3.1") == 1


def written(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Dotted keys of a recipe that is written out."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from written(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_options_know_every_key_of_a_recipe_that_is_written_out(capsys):
    found = listed(capsys, "options")
    assert all(row["help"] and row["type"] for row in found)
    recipe = load_recipe("digits").to_dict()
    stages = recipe.pop("stages")
    known = {row["key"] for row in found if not row["stages"]}
    sections = {"data.augment", "model.in_channels"}  # null; an option of the network
    assert set(written(recipe, "")) - known <= sections | {
        f"model.{name}" for name in recipe["model"]
    }
    for stage in stages:
        kind = stage.pop("kind")
        known = {row["key"] for row in found if kind in row["stages"]}
        absent = {key for key in written(stage, "stages.NAME.") if key not in known}
        assert absent <= {f"stages.NAME.{name}" for name in ("sparsity", "gradual", "distill")}
    assert {kind for row in found for kind in row["stages"]} == set(KINDS)


def test_options_have_type_default_and_meaning(capsys):
    (found,) = listed(capsys, "options", "trainer.timeout")
    assert (found["type"], found["default"], found["needed"]) == ("number", 30.0, False)
    needed = {row["key"] for row in listed(capsys, "options", "name") if row["needed"]}
    assert needed == {"data.name", "model.name"}
    assert main(["options", "optimizer.nesterov"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "stages train, finetune:",
        "  stages.NAME.optimizer.nesterov  (true or false; default true)  Nesterov's correction, of sgd",
    ]
    assert main(["options", "nothing"]) == 1
    assert "no key has 'nothing' in it" in capsys.readouterr().err
