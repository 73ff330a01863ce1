"""The site of docs/: its order and what is written for it by code. `make docs` builds all of it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from operator import attrgetter
from types import ModuleType

import netslim
from netslim.cli import COMMANDS
from netslim.training.recipe.reference import keys
from places import REPOSITORY

DOCS = REPOSITORY / "docs"
INDEX = (DOCS / "index.md").read_text(encoding="utf-8")
NOTEBOOK = (DOCS / "notebook.ipynb").read_text(encoding="utf-8")


def module(name: str) -> ModuleType:
    """One of those beside the pages, which Sphinx imports by their names alone."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


def test_the_index_links_pages_once():
    linked = re.findall(r"\]\(([\w-]+\.(?:md|ipynb))\)", INDEX)
    assert len(linked) == len({*linked})
    assert "notebook.ipynb" in linked
    assert {*linked} <= {page.name for page in DOCS.iterdir()}


def test_a_page_that_nothing_links_comes_last():
    pages = ["index", "own-network", "notebook", "new", "reference/a"]
    text = module("toctrees").with_toctrees(INDEX, pages)
    trees = re.findall(r":caption: (.+)\n\n((?:.+\n)+)```", text)
    assert trees[0] == ("Begin", "quick-start\nnotebook\nown-network\n")
    assert trees[-2:] == [("More", "new\n"), ("Reference, made from the code", "reference/a\n")]


def test_links_out_of_the_folder_lead_to_pages_of_the_site():
    rewritten = module("links").rewritten
    text = "[a](../README.md#b) [c](../benchmarks/zoo.py) [d](budgets.md) [e](#f) `x[0](g)`"
    found = rewritten(text, "docs/own-network.md", "own-network.md")
    assert found == "[a](project/readme.md#b) c [d](budgets.md) [e](#f) `x[0](g)`"
    assert rewritten("[a](docs/yolo.md)", "README.md", "project/readme.md") == "[a](../yolo.md)"


def test_every_key_command_and_public_name_has_its_place():
    reference = module("reference")
    table, helps = reference.recipe_keys(), reference.commands()
    for one in keys():
        assert f"| `{one.key}` |" in table, one.key
    for command in COMMANDS:
        assert f"## netslim {command}\n" in helps, command
    for name in netslim.__all__:
        assert f"## {name}\n" in reference.of_room(""), name
    assert ".. autoclass:: netslim.errors.NetslimError\n" in reference.of_room("errors")
    assert "See [trace](python-verbs.md#trace)." in reference.of_room("graph")


def test_every_choice_is_listed():
    choices = module("reference").choices()
    for name in ("bn_scale", "obs", "cost", "knapsack", "network_slimming", "folder:PATH"):
        assert f"| `{name}` |" in choices, name
    for option in ("cut_macs", "round_to", "recalibrate", "reduction"):
        assert f"| `{option}` |" in choices, option


def code() -> list[list[str]]:
    """The lines of each cell of the notebook that is code."""
    cells = json.loads(NOTEBOOK)["cells"]
    return [cell["source"] for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK)["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in cells] == [([], None)] * len(
        cells
    )
    assert len(NOTEBOOK) < 24_000
    assert max(map(len, code())) <= 20


def test_the_notebook_hides_nothing():
    text = "\n".join(line for cell in code() for line in cell)
    assert re.findall(r"^(?:import netslim|from netslim).*", text, re.MULTILINE) == [
        "import netslim"
    ]
    for name in re.findall(r"\bnetslim((?:\.\w+)+)", text):
        assert not re.search(r"\._", name), name
        assert attrgetter(name.removeprefix("."))(netslim), name
