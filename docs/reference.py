"""The reference pages of the site, from what the code declares: never written by hand.

What a command lists, it lists here, by its ``--json``; public names are those of each room's
``__all__``.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import netslim
from netslim.cli import COMMANDS, main, parser_of

_ROOMS = ("", *netslim._ROOMS, "errors")


def write(folder: Path, pages: Mapping[str, str]) -> None:
    """Write pages into a folder, which then holds nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Name of a page -> its Markdown."""
    rooms = {f"python-{room or 'verbs'}": of_room(room) for room in _ROOMS}
    return {
        "commands": commands(),
        "recipe-keys": recipe_keys(),
        "choices": choices(),
        "models": networks(),
        **rooms,
    }


def commands() -> str:
    """The help of every command."""
    with patch.dict(os.environ, {"COLUMNS": "100"}):
        parts = [_help(command) for command in COMMANDS]
    return "\n".join(["# Every command\n", "Made from the commands' own help.\n", *parts])


def _help(command: str) -> str:
    return f"## netslim {command}\n\n```text\n{parser_of(command).format_help()}```\n"


def recipe_keys() -> str:
    """Every key of a recipe."""
    lines = [
        "# Every key of a recipe",
        "",
        "Made from the classes that declare them, as `netslim options` is. On the command line",
        "each goes by its dotted name, `--KEY VALUE`, where NAME is the name of a stage.",
    ]
    for where, rows in groupby(_listed("options"), key=_where):
        lines += ["", f"## {where}", ""]
        keys = [[f"`{row['key']}`", row["type"], _default(row), row["help"]] for row in rows]
        lines += _table(["key", "may be", "default", "meaning"], keys)
    return "\n".join([*lines, ""])


def _where(row: Mapping[str, Any]) -> str:
    if row["method"]:
        return f"With sparsity.method {row['method']}"
    if row["stages"]:
        return f"Stages of kind {', '.join(row['stages'])}"
    return "Of the whole recipe"


def _default(row: Mapping[str, Any]) -> str:
    if row["needed"]:
        return "needed"
    return f"`{json.dumps(row['default'])}`"


def choices() -> str:
    """Criteria, allocations, methods, resources, data sets."""
    from netslim.selection.options import Budget, Compensation, Limits, Scoring, declared

    lines = ["# Everything to choose from", "", "Made from the registries."]
    for title, rows in _listed("criteria").items():
        lines += ["", f"## {title.capitalize()}", ""]
        cells = [[f"`{row['name']}`", row["text"], row["paper"] or "–"] for row in rows]
        lines += _table(["name", "what it says of itself", "paper"], cells)
    lines += ["", "## Data sets", ""]
    cells = [[f"`{row['name']}`", row["text"]] for row in _listed("data")]
    lines += _table(["name", "what it is"], cells)
    for kind in (Budget, Limits, Scoring, Compensation):
        lines += ["", f"## Options of {kind.__name__}", ""]
        cells = [[f"`{name}`", item.metadata["help"]] for name, item in declared(kind).items()]
        lines += _table(["option", "meaning"], cells)
    return "\n".join([*lines, ""])


def networks() -> str:
    """The networks that go by a name, those of timm aside, which are a thousand."""
    own = [[f"`{row['name']}`", _size(row)] for row in _listed("models", "zoo:")]
    others = ", ".join(f"`{row['name']}`" for row in _listed("models", "torchvision:"))
    lines = [
        "# Every network that goes by a name",
        "",
        "Made from what is registered. With timm installed, `netslim models timm:` lists its",
        "networks, too; a network of your own goes by `package.module:factory`.",
        *("", "## netslim's zoo", "", *_table(["name", "parameters"], own)),
        *("", "## torchvision", "", others, ""),
    ]
    return "\n".join(lines)


def _size(row: Mapping[str, Any]) -> str:
    if "needs" in row:
        return f"needs {row['needs']}"
    return f"{row['params']:,}"


def of_room(room: str) -> str:
    """The public names of a room, with their docstrings."""
    name = ".".join(filter(None, ["netslim", room]))
    module = importlib.import_module(name)
    parts = [f"# {name}\n", f"```{{eval-rst}}\n.. automodule:: {name}\n   :no-members:\n```\n"]
    parts += [_member(module, public, room) for public in getattr(module, "__all__", ())]
    return "\n".join(parts)


def _member(module: ModuleType, name: str, room: str) -> str:
    """A public name with its docstring, once on the site; elsewhere a link to it."""
    found, full = getattr(module, name), f"{module.__name__}.{name}"
    home = room
    if name in netslim.__all__:
        home = ""
    if name in netslim.errors.__all__:
        home = "errors"
    if home != room:
        return f"## {name}\n\nSee [{name}](python-{home or 'verbs'}.md#{name.lower()}).\n"
    directive = f".. autofunction:: {full}"
    if isinstance(found, type):
        directive = f".. autoclass:: {full}\n   :members:"
    return f"## {name}\n\n```{{eval-rst}}\n{directive}\n```\n"


def _listed(*command: str) -> Any:
    """What a command lists."""
    found = io.StringIO()
    with redirect_stdout(found):
        main([*command, "--json"])
    return json.loads(found.getvalue())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    for row in (head, ["---"] * len(head), *rows):
        cells = (" ".join(str(cell).split()).replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"
