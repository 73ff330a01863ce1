"""Recipes that build on others: `extends: NAME`, and the `small` section that makes the twin
NAME-small.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from netslim._support import brief
from netslim.errors import RecipeError

Tree = dict[str, Any]
SMALL = "-small"
_OWN = ("title", "published", "notes")  # of a recipe, and of none that builds on it


def resolved(
    source: str,
    read: Callable[[str], Tree],
    exists: Callable[[str], bool],
    seen: tuple[str, ...] = (),
) -> Tree:
    """A recipe's tree with all that it extends; NAME-small is NAME with its `small` section
    applied.

    Args:
        source: name or path.
        read: the tree as it is written.
        exists: whether a recipe of this name is written down.
    """
    if source in seen:
        raise RecipeError(f"the recipe {source} extends itself: {' -> '.join((*seen, source))}")
    name = _whole(source)
    if not exists(source) and name != source and exists(name):
        return _twin(name, resolved(name, read, exists, (*seen, source)))
    tree = read(source)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    below = resolved(str(base), read, exists, (*seen, source))
    return merged({key: value for key, value in below.items() if key not in _OWN}, tree)


def _whole(source: str) -> str:
    """NAME of NAME-small, and PATH.yaml of PATH-small.yaml."""
    for ending in (".yaml", ".yml", ""):
        if source.endswith(SMALL + ending):
            return source.removesuffix(SMALL + ending) + ending
    return source


def _twin(name: str, tree: Tree) -> Tree:
    changes = tree.pop("small", None)
    if not isinstance(changes, dict):
        raise RecipeError(
            f"the recipe {name} has no small twin; its YAML would need a section 'small'"
        )
    own = {key: value for key, value in tree.items() if key not in _OWN}
    told: Tree = {"name": f"{tree['name']}{SMALL}", "notes": _NOTES}
    if tree.get("title") is not None:
        told["title"] = f"{tree['title']} (small twin)"
    return merged(own, {**told, **changes})


_NOTES = [
    "A small twin: the same steps at a scale that two CPU cores finish in minutes; not a row "
    "of the paper."
]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """`below` with the changes of `above`, mapping by mapping; `stages` given as a mapping changes
    stages by name.

    Another model or method takes none of the options of the one before.
    """
    result = copy.deepcopy(dict(below))
    for key, value in above.items():
        old = result.get(key)
        if key == "stages" and isinstance(old, list) and isinstance(value, dict):
            result[key] = _stages(old, value)
        elif (
            isinstance(old, dict)
            and isinstance(value, dict)
            and key != "per_group"
            and not _another(key, old, value)
        ):
            result[key] = merged(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _another(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    names = {"model": "name", "sparsity": "method"}
    return key in names and new.get(names[key], old.get(names[key])) != old.get(names[key])


def _stages(stages: list[Any], changes: Mapping[str, Any]) -> list[Any]:
    """The stages with those that are named changed; a stage set to null goes."""
    left = dict(changes)
    result = []
    known = _inside(stages)
    for stage in stages:
        name = str(stage.get("name") or stage.get("kind") or "repeat")
        change = left.pop(name, {})
        if change is not None and not isinstance(change, dict):
            raise RecipeError(f"stages.{name}: a change is a mapping of options, or null")
        if isinstance(stage.get("repeat"), dict):
            inner = stage["repeat"]
            mine = {
                key: left.pop(key)
                for key in list(left)
                if key in _inside(inner.get("stages") or [])
            }
            stage = {
                "repeat": {
                    **merged(inner, change or {}),
                    "stages": _stages(inner.get("stages") or [], mine),
                }
            }
        elif change is not None:
            stage = merged(stage, change)
        if change is not None:
            result.append(stage)
    if left:
        raise RecipeError(
            f"stages: there is no stage {next(iter(left))!r} to change; there is {', '.join(known)}"
        )
    return result


def _inside(stages: list[Any]) -> list[str]:
    names = []
    for stage in stages:
        if not isinstance(stage, dict):
            raise RecipeError(f"stages: a stage is a mapping with a kind, got {brief(stage)}")
        names.append(str(stage.get("name") or stage.get("kind") or "repeat"))
        block = stage.get("repeat")
        if isinstance(block, dict) and isinstance(block.get("stages"), list):
            names += _inside(block["stages"])
    return names
