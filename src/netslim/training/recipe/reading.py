"""From a name or a YAML file, and overrides of the command line, to a checked `Recipe`."""

from __future__ import annotations

import json
import math
import os
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin

from netslim._support import brief, checks_calls, nearest
from netslim.errors import ArgumentError, RecipeError
from netslim.training.recipe.checks import check
from netslim.training.recipe.files import read_yaml, tree_of
from netslim.training.recipe.schema import (
    KINDS,
    METHODS,
    ModelOptions,
    Recipe,
    SlimmingOptions,
    SparsityOptions,
    Stage,
    Train,
    assembled,
    option_types,
    otherwise,
)

_MOST_STAGES = 1000
_OF_RECIPE = ("model", "data", "trainer", "stages")  # sections that commands take by dotted names
# What PyTorch's whole numbers and those of single precision hold.
_LARGEST = {bool: 1, int: 2**63 - 1, float: 3.4e38}


@checks_calls
def load_recipe(
    source: str | os.PathLike[str], overrides: Mapping[str, str] | None = None
) -> Recipe:
    """Read, override, type and check a recipe.

    Args:
        source: a shipped name or the path of a YAML file.
        overrides: dotted key to YAML text, for example `{"model.width": "0.5",
            "stages.sparse.epochs": "2"}`. Stages are addressed by name or by position from 0.

    Raises:
        RecipeError: with the key, what is wrong with it, and the nearest right one.

    Example:
        >>> recipe = netslim.training.load_recipe("digits", {"stages.sparse.epochs": "2"})
        >>> [stage.name for stage in recipe.stages]
        ['sparse', 'prune', 'finetune', 'measure']
    """
    tree = {key: value for key, value in tree_of(os.fspath(source)).items() if key != "small"}
    for key, text in (overrides or {}).items():
        override(tree, key, text)
    return parse_recipe(tree)


@checks_calls
def parse_recipe(tree: Mapping[str, Any], *, whole: bool = True) -> Recipe:
    """Build and check a recipe from plain data as `Recipe.to_dict` gives it (and `repeat` blocks).

    Args:
        whole: whether it must be a run that ends in a measurement; else single stages are fine.

    Example:
        >>> tree = netslim.training.load_recipe("digits").to_dict()
        >>> tree["model"]["width"] = 0.5
        >>> netslim.training.parse_recipe(tree).model.kwargs["width"]
        0.5
    """
    # YAML aliases share objects; here nothing is shared.
    try:
        plain: dict[str, Any] = json.loads(json.dumps(tree, default=str))
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"the recipe is not plain data: {error}") from None
    _check_names(Recipe, plain, "")
    stages = plain.pop("stages", None)
    if not isinstance(stages, list) or not stages:
        raise RecipeError(
            "stages: a recipe needs a list of stages, for example 'stages: [{kind: train, "
            "epochs: 3}]'"
        )
    model, trained = plain.get("model"), False
    if isinstance(model, dict):
        plain["model"] = {"name": model.pop("name", None), "kwargs": model}
        trained = ModelOptions(str(plain["model"]["name"]), model).trained
    recipe: Recipe = _build(Recipe, plain, "", {"stages": tuple(_stages(stages, trained))})
    check(recipe, whole=whole)
    return recipe


# ---------------------------------------------------------------- stages


def _flatten(
    stages: Sequence[Any], where: str, suffix: str
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(position, unique name, stage) for every stage, `repeat` blocks written out."""
    for index, item in enumerate(stages):
        here = f"{where}.{index}"
        if not isinstance(item, dict):
            raise RecipeError(f"{here}: a stage is a mapping with a kind, got {brief(item)}")
        if item.get("kind") != "repeat" and "repeat" not in item:
            yield here, f"{stage_name(item)}{suffix}", item
            continue
        block = item.get("repeat", item)
        if not isinstance(block, dict):
            block = {}
        times, inner = block.get("times"), block.get("stages")
        listed: list[Any] = []
        if isinstance(inner, list):
            listed = inner
        if not listed or not isinstance(times, int) or not 1 <= times <= _MOST_STAGES:
            raise RecipeError(
                f"{here}.repeat: needs 'times' (1 to {_MOST_STAGES:,}) and a list of 'stages'"
            )
        for turn in range(1, times + 1):
            yield from _flatten(listed, f"{here}.repeat", f"{suffix}-{turn}")


def stage_name(item: Mapping[str, Any]) -> str:
    """A stage's own name, or its kind."""
    return str(item.get("name") or item.get("kind", "stage"))


def _stages(items: Sequence[Any], trained: bool) -> Iterator[Stage]:
    """All stages; `trained` says whether the network was before the first."""
    for number, (where, name, item) in enumerate(_flatten(items, "stages", "")):
        if number == _MOST_STAGES:
            raise RecipeError(f"{where}: a recipe has at most {_MOST_STAGES:,} stages")
        if trained:
            item = _keeping_scales(item)
        stage = _stage(item, name, where)
        trained = trained or isinstance(stage, Train)
        yield stage


def _keeping_scales(item: Mapping[str, Any]) -> dict[str, Any]:
    """A stage that does not set scales that were trained to 0.5, as it would those of a fresh
    network, unless it says so.
    """
    given = item.get("sparsity")
    if not isinstance(given, dict) or given.get("method", "") not in ("", SlimmingOptions.method):
        return dict(item)
    return {**item, "sparsity": {"gamma_init": None, **given}}


def _stage(item: Mapping[str, Any], name: str, where: str) -> Stage:
    plain = dict(item)
    kind = plain.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecipeError(
            f"{where}: no stage is of kind {kind!r}{nearest(str(kind), [*KINDS, 'repeat'])}"
        )
    stage: Stage = _build(KINDS[kind], {**plain, "name": name}, f"stages.{stage_name(item)}")
    return stage


# ---------------------------------------------------------------- typing


def _build(
    kind: type[Any], plain: Mapping[str, Any], where: str, ready: Mapping[str, Any] | None = None
) -> Any:
    """An instance of the dataclass `kind` from plain data; `ready` fields are taken as they are."""
    ready = ready or {}
    hints = option_types(kind)
    _check_names(kind, plain, where)
    plain = _with_texts(kind, plain)
    for item in fields(kind):
        required = item.default is MISSING and item.default_factory is MISSING
        if required and item.name not in ready and plain.get(item.name) is None:
            raise RecipeError(
                f"{_join(where, item.name)}: this option is missing and has no default"
            )
    values = {key: _value(hints[key], value, _join(where, key)) for key, value in plain.items()}
    try:
        return assembled(kind, {**values, **ready})
    except ArgumentError as error:
        raise RecipeError(_join(where, str(error))) from None


def _with_texts(kind: type[Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """With those texts that stand in for others that are not given."""
    found = dict(plain)
    for item in fields(kind):
        given = found.get(otherwise(item))
        if given is not None and found.get(item.name) is None:
            found[item.name] = given
    return found


def _check_names(kind: type[Any], plain: Mapping[str, Any], where: str) -> None:
    hints = option_types(kind)
    for key in plain:
        if key in getattr(kind, "renamed", ()):
            now = kind.renamed[key]
            raise RecipeError(f"{_join(where, key)}: since version 0.2 this option is called {now}")
        if key not in hints:
            raise RecipeError(f"{_join(where, key)}: there is no such option{_meant(key, hints)}")


def _meant(key: str, hints: Mapping[str, Any]) -> str:
    """How a message on an unknown key goes on: by the section that has it, or the nearest key."""
    sections = [name for name, hint in hints.items() if key in _options_of(hint)]
    if sections:
        return f"; it belongs in {' or '.join(sections)}: {{{key}: ...}}"
    return nearest(key, [*hints, "extends"] if "stages" in hints else hints)


def _options_of(hint: Any) -> Collection[str]:
    nested = _nested(hint)
    kinds = [nested]
    if nested is SparsityOptions:
        kinds = list(METHODS.values())
    return {name for kind in kinds if kind for name in option_types(kind)}


def _nested(hint: Any) -> Any:
    """The class of a section; None of what is no section."""
    return next((item for item in (hint, *get_args(hint)) if is_dataclass(item)), None)


def _value(hint: Any, value: Any, where: str) -> Any:
    value = _as_meant(hint, value)
    nested = _nested(hint)
    if nested is not None and value is not None:
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: expected a mapping of options, got {brief(value)}")
        if nested is SparsityOptions:
            nested = _method(value, where)
        if nested is ModelOptions and value["name"] is not None:
            return ModelOptions(_leaf(str, value["name"], f"{where}.name"), value["kwargs"])
        return _build(nested, value, where)
    return _leaf(hint, value, where)


def _method(value: Mapping[str, Any], where: str) -> type[SparsityOptions]:
    """The options of the method that is asked for; of Network Slimming, where none is."""
    asked = value.get("method", SlimmingOptions.method)
    if not isinstance(asked, str) or asked not in METHODS:
        raise RecipeError(
            f"{where}.method: there is no method {asked!r}{nearest(str(asked), METHODS)}"
        )
    return METHODS[asked]


def _leaf(hint: Any, value: Any, where: str) -> Any:
    parsed = value
    if not _is_plainly(hint, value):
        parsed = _parsed(hint, value, where)
    for number in _numbers(parsed):
        if isinstance(number, float) and not math.isfinite(number):
            raise RecipeError(f"{where}: expected a finite number, got {brief(value)}")
        if abs(number) > _LARGEST[type(number)]:
            said = brief(number).removesuffix(", which is too large")
            raise RecipeError(f"{where}: {said} is too large a number to compute with")
    return parsed


def _is_plainly(hint: Any, value: Any) -> bool:
    """Whether a value is of the very kind, so that nothing has to be made of it: most are, and
    jsonargparse takes its time. A text may stand for something else where that is allowed, too.
    """
    kinds = _kinds(hint)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if not isinstance(value, str):
        return type(value) in kinds
    others = [kind for kind in kinds if get_origin(kind) is not Literal]
    return value in words or (str in others and {*others} <= {str, types.NoneType})


def _kinds(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return get_args(hint)
    return (hint,)


def _is_text(hint: Any) -> bool:
    """Whether a text is wanted and nothing else, or null."""
    return {*_kinds(hint)} - {types.NoneType} == {str}


def _parsed(hint: Any, value: Any, where: str) -> Any:
    import jsonargparse

    parser = _parser(hint)
    if value is None and types.NoneType not in get_args(hint):  # which a mapping would take
        raise RecipeError(f"{where}: expected {_words(hint)}, got null")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = parser.parse_object({"value": value}).value
    except (jsonargparse.ArgumentError, ValueError, TypeError):
        raise _unexpected(hint, value, where) from None
    functions = any(get_origin(kind) is Callable for kind in _kinds(hint))
    if functions and not (found is None or isinstance(found, str) or callable(found)):
        raise _unexpected(hint, value, where)  # jsonargparse 4.35 takes a number for a function
    return found


def _unexpected(hint: Any, value: Any, where: str) -> RecipeError:
    quoted = ""
    if _is_text(hint) and isinstance(value, bool):  # yes and true are one
        quoted = "; a text that looks like this goes in quotes"
    return RecipeError(f"{where}: expected {_words(hint)}, got {brief(value)}{quoted}")


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    if isinstance(value, int | float):
        yield value


def _as_meant(hint: Any, value: Any) -> Any:
    """What surely is meant: `none`, as commands have it, is null, one item a list of one, and a
    number for a title a text.
    """
    kinds = _kinds(hint)
    if type(value) in (int, float) and _is_text(hint):
        return str(value)
    if value == "none" and types.NoneType in kinds and str not in kinds:
        return None
    alone = isinstance(value, str | int | float) and not isinstance(value, bool)
    if alone and all(get_origin(kind) in (list, Iterable) for kind in kinds):
        return [value]
    return value


@lru_cache
def _parser(hint: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    types.NoneType: "null",
}


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(item) for item in inner if get_origin(item) is not Callable)
    if origin is Literal:
        return "one of " + ", ".join(str(item) for item in inner)
    if origin in (list, Iterable):
        return f"a list ([..., ...]), each item {_words(inner[0])}"
    if origin in (dict, Mapping):
        return f"a mapping ({{name: value}}), each value {_words(inner[1])}"
    if is_dataclass(hint):
        return "a mapping of options"
    return _WORDS.get(hint, "any value")


def _join(where: str, key: str) -> str:
    return ".".join(filter(None, [where, str(key)]))


# ---------------------------------------------------------------- overrides


def override(tree: dict[str, Any], key: str, text: str) -> None:
    """Set one dotted key; whether the key exists and fits is found when the recipe is built.

    Raises:
        RecipeError: it names no stage, no option of one, or one of a single value.
    """
    *path, last = key.split(".")
    place: Any = tree
    for depth, part in enumerate(path):
        place = _step(place, part, ".".join(path[: depth + 1]))
    try:
        value = read_yaml(text)
    except ValueError:
        value = text
    if isinstance(place, list):
        raise RecipeError(
            f"--{key}: name the option of the stage too, for example --{key}.epochs 2"
        )
    place[last] = value


def of_command(key: str, stage: str, sections: Sequence[str]) -> str:
    """The dotted key of a recipe that is meant by one of a command.

    Args:
        key: as it is typed, such as `optimizer.lr`.
        stage: which the sections of its stage belong to.
        sections: their names; others are the recipe's own.

    Raises:
        RecipeError: it begins with none of these (the nearest is given).
    """
    first = key.partition(".")[0]
    if first in sections:
        return f"stages.{stage}.{key}"
    if first not in _OF_RECIPE:
        raise RecipeError(
            f"--{key}: there is no such option{nearest(first, (*sections, *_OF_RECIPE))}"
        )
    return key


def _step(place: Any, part: str, key: str) -> Any:
    if isinstance(place, list):
        return _find_stage(place, part, key)
    if place.get(part) is None:
        place[part] = {}
    place[part] = json.loads(json.dumps(place[part]))
    if not isinstance(place[part], dict | list):
        raise RecipeError(
            f"--{key}: this option is a single value ({place[part]!r}) and has no options of "
            "its own"
        )
    return place[part]


def _find_stage(stages: list[Any], part: str, key: str) -> Any:
    named = dict(_named(stages))
    if part in named:
        return named[part]
    if part.isdigit() and int(part) < len(stages):
        return stages[int(part)]
    raise RecipeError(f"--{key}: the recipe has no stage {part!r}{nearest(part, named)}")


def _named(stages: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every stage by its name, those inside `repeat` blocks and the blocks themselves too."""
    for item in stages:
        if isinstance(item, dict) and isinstance(item.get("repeat"), dict):
            item = item["repeat"]
            yield "repeat", item
        elif isinstance(item, dict):
            yield stage_name(item), item
        if isinstance(item, dict):
            yield from _named(item.get("stages") or [])
