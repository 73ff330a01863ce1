"""The site of docs/: its order and what is written for it by code. `make docs` builds all of it."""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import netslim
from netslim.cli import COMMANDS
from netslim.training.recipe.reference import keys
from places import REPOSITORY

DOCS = REPOSITORY / "docs"
INDEX = (DOCS / "index.md").read_text(encoding="utf-8")


def module(name: str) -> ModuleType:
    """One of those beside the pages, which Sphinx imports by their names alone."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


def test_the_index_links_pages_once():
    linked = re.findall(r"\]\(([\w-]+)\.md\)", INDEX)
    assert len(linked) == len({*linked})
    assert {*linked} <= {page.stem for page in DOCS.glob("*.md")}


def test_a_page_that_nothing_links_comes_last():
    text = module("toctrees").with_toctrees(INDEX, ["index", "own-network", "new", "reference/a"])
    trees = re.findall(r":caption: (.+)\n\n((?:.+\n)+)```", text)
    assert trees[0][0] == "Begin"
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
