"""docs/coverage.md: all 38 rows, and every command in it exists."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache

import pytest

from netslim import cli
from netslim.cli.common import split_overrides
from netslim.training.recipe.reading import load_recipe
from places import REPOSITORY

TEXT = (REPOSITORY / "docs" / "coverage.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in TEXT.splitlines()
    if line[:1] == "|"
]
ROWS = [row for row in ROWS if row[0].isdigit()]
COMMANDS = [(row[0], command) for row in ROWS for command in re.findall(r"`([^`]+)`", row[3])]
KNOWN = {
    "train", "prune", "finetune", "evaluate", "inspect", "run", "recipes", "status", "report", "sensitivity", "search", "export",
    "bench", "quantize",
}  # fmt: skip


@cache
def functions(path: str) -> set[str]:
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_is_there_once_and_complete():
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, 39)]
    for number, capability, where, shown, status in ROWS:
        assert capability, number
        assert where, number
        assert re.match(r"(works|in part|later)\b", status), number
        assert (status == "later") == (shown == "none yet"), number
    later = [row[0] for row in ROWS if row[4] == "later"]
    assert later == []
    assert {command for row in ROWS for command in re.findall(r"`netslim (\w+)", row[2])} <= KNOWN


@pytest.mark.parametrize(
    ("row", "command"), COMMANDS, ids=[f"{row} {command}" for row, command in COMMANDS]
)
def test_a_command_exists(row, command):
    program, *arguments = shlex.split(command)
    if program == "pytest":
        path, name = arguments[0].split("::")
        assert name in functions(path)
    elif program == "python":
        assert (REPOSITORY / arguments[0]).is_file()
    else:
        assert program == "netslim"
        parse(arguments)


def parse(arguments: list[str]) -> None:
    """As the command line would, recipe and overrides of `run` included; wrong options exit."""
    parser = cli.parser_of(arguments[0])
    given, overrides = split_overrides(arguments[1:])
    options = parser.read(given)
    assert not overrides or parser.dotted
    if arguments[0] == "run":
        for source in options.recipe:
            load_recipe(source, overrides)


@pytest.mark.parametrize(
    "wrong", ["run digit", "run digits --stages.spars.epochs 1", "prune a --maks", "sensitivity a"]
)
def test_a_wrong_command_would_be_found(wrong):
    with pytest.raises(cli.NetslimError):
        parse(shlex.split(wrong))


def test_options_and_recipes_it_names_exist():
    for options in re.findall(r"`netslim (\w+)((?: --[\w-]+)+)`", TEXT):
        known = cli.parser_of(options[0]).format_help()
        assert all(re.search(rf"{flag}\b", known) for flag in options[1].split()), options
    for name in re.findall(r"recipes? `([a-z0-9-]+)`", TEXT):
        load_recipe(name)
