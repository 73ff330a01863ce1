"""Criteria and ways of allocation by name, for help texts, which wait for nothing.

What is registered is known once its modules are imported, and those import torch, which takes
seconds. Where that has not happened, nobody can have registered anything of their own either: then
the names are read off the sources that would register them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import resources


def criteria() -> dict[str, bool]:
    """Criterion -> whether it looks at data."""
    if "torch" not in sys.modules:
        return {node.name: called for node, called in _decorated("criteria", "criterion")}
    from netslim.selection.criteria.registry import CRITERIA, reads_data

    return {name: reads_data(name) for name in CRITERIA}


def criterion_texts() -> dict[str, str]:
    """Criterion -> its docstring."""
    if "torch" not in sys.modules:
        found = _decorated("criteria", "criterion")
        return {node.name: ast.get_docstring(node) or "" for node, _ in found}
    from netslim.selection.criteria.registry import CRITERIA

    return {name: function.__doc__ or "" for name, function in CRITERIA.items()}


def allocations() -> dict[str, str]:
    """Way of allocation -> its docstring."""
    if "torch" not in sys.modules:
        found = _decorated("budget", "allocation")
        return {node.name.rstrip("_"): ast.get_docstring(node) or "" for node, _ in found}
    from netslim.selection.budget.allocation import ALLOCATIONS

    return {name: way.__doc__ or "" for name, way in ALLOCATIONS.items()}


def first_paragraph(docstring: str) -> str:
    """The beginning of what something says of itself, in one line."""
    return " ".join(docstring.partition("\n\n")[0].split())


def _decorated(folder: str, decorator: str) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """The functions of a folder that have a decorator, and whether that takes arguments there."""
    place = resources.files("netslim") / "selection" / folder
    for file in sorted(place.iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".py"):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for used in node.decorator_list:
                name = getattr(used, "func", used)
                if isinstance(name, ast.Name) and name.id == decorator:
                    yield node, isinstance(used, ast.Call)
