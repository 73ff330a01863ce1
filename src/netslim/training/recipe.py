"""From a name or a YAML file, and overrides of the command line, to a checked `Recipe`."""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from netslim.errors import RecipeError
from netslim.training.schema import KINDS, Baseline, ModelOptions, Prune, Recipe, Stage, Train

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    found = (item.name for item in resources.files("netslim.recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def recipe_text(source: str) -> str:
    """The YAML of a shipped recipe, or of a file.

    Raises:
        RecipeError: no shipped recipe and no file has this name.
    """
    if source in shipped():
        return (resources.files("netslim.recipes") / f"{source}.yaml").read_text(encoding="utf-8")
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise RecipeError(
            f"no recipe is called {source!r}{nearest(source, shipped())}; or give the path of a YAML file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {source} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def load_recipe(source: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read, override, type and check a recipe.

    Args:
        source: a shipped name or the path of a YAML file.
        overrides: dotted key to YAML text, for example `{"model.width": "0.5", "stages.sparse.epochs": "2"}`.
            Stages are addressed by name or by position from 0.

    Raises:
        RecipeError: with the key, what is wrong with it, and the nearest right one.
    """
    try:
        tree = read_yaml(recipe_text(source))
    except yaml.YAMLError as error:
        raise RecipeError(f"the recipe {source} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"the recipe {source} is empty or not a mapping of keys to values")
    for key, text in (overrides or {}).items():
        _override(tree, key, text)
    return parse_recipe(tree)


def parse_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Build and check a recipe from plain data as `Recipe.to_dict` gives it (and `repeat` blocks)."""
    plain: dict[str, Any] = json.loads(
        json.dumps(tree, default=str)
    )  # YAML aliases share objects; here nothing is shared
    stages = plain.pop("stages", None)
    if not isinstance(stages, list) or not stages:
        raise RecipeError("stages: a recipe needs a list of stages, for example 'stages: [{kind: train, epochs: 3}]'")
    model = plain.get("model")
    if isinstance(model, dict):
        plain["model"] = {"name": model.pop("name", None), "kwargs": model}
    built = tuple(_stage(item, name, where) for where, name, item in _flatten(stages, "stages", ""))
    recipe = _build(Recipe, plain, "", {"stages": built})
    check(recipe)
    return recipe


def read_yaml(text: str) -> Any:
    """YAML with numbers such as 1e-4, which YAML 1.1 takes for text."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    pass


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def nearest(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'a' or 'b'?)`, or all choices when none is near."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f" (did you mean {' or '.join(repr(item) for item in close)}?)"
    return f" (there is {', '.join(known)})" if known else ""


# ---------------------------------------------------------------- stages


def _flatten(stages: Sequence[Any], where: str, suffix: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(position, unique name, stage) for every stage, `repeat` blocks written out."""
    for index, item in enumerate(stages):
        here = f"{where}.{index}"
        if not isinstance(item, dict):
            raise RecipeError(f"{here}: a stage is a mapping with a kind, got {item!r}")
        if item.get("kind") != "repeat" and "repeat" not in item:
            yield here, f"{stage_name(item)}{suffix}", item
            continue
        block = item.get("repeat", item)
        times, inner = (block.get("times"), block.get("stages")) if isinstance(block, dict) else (None, None)
        if not isinstance(times, int) or times < 1 or not isinstance(inner, list):
            raise RecipeError(f"{here}.repeat: needs 'times' (1 or more) and a list of 'stages'")
        for turn in range(1, times + 1):
            yield from _flatten(inner, f"{here}.repeat", f"{suffix}-{turn}")


def stage_name(item: Mapping[str, Any]) -> str:
    """A stage's own name, or its kind."""
    return str(item.get("name") or item.get("kind", "stage"))


def _stage(item: Mapping[str, Any], name: str, where: str) -> Stage:
    plain = dict(item)
    kind = plain.pop("kind", None)
    if kind not in KINDS:
        raise RecipeError(f"{where}: no stage is of kind {kind!r}{nearest(str(kind), [*KINDS, 'repeat'])}")
    return _build(KINDS[kind], {**plain, "name": name}, f"stages.{stage_name(item)}")


# ---------------------------------------------------------------- typing


def _build(kind: type[Any], plain: Mapping[str, Any], where: str, ready: Mapping[str, Any] | None = None) -> Any:
    """An instance of the dataclass `kind` from plain data; `ready` fields are taken as they are."""
    ready = ready or {}
    hints = get_type_hints(kind)
    names = [item.name for item in fields(kind) if item.name not in ready]
    for key in plain:
        if key not in names:
            raise RecipeError(f"{_join(where, key)}: there is no such option{nearest(key, names)}")
    for item in fields(kind):
        required = item.default is MISSING and item.default_factory is MISSING
        if required and item.name in names and plain.get(item.name) is None:
            raise RecipeError(f"{_join(where, item.name)}: this option is missing and has no default")
    values = {key: _value(hints[key], value, _join(where, key)) for key, value in plain.items()}
    return kind(**values, **ready)


def _value(hint: Any, value: Any, where: str) -> Any:
    nested: list[Any] = [item for item in (hint, *get_args(hint)) if is_dataclass(item)]
    if nested and value is not None:
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: expected a mapping of options, got {value!r}")
        return ModelOptions(**value) if nested[0] is ModelOptions and value["name"] else _build(nested[0], value, where)
    return _leaf(hint, value, where)


def _leaf(hint: Any, value: Any, where: str) -> Any:
    import jsonargparse

    parser = _parser(hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.parse_object({"value": value}).value
    except (jsonargparse.ArgumentError, ValueError, TypeError):
        raise RecipeError(f"{where}: expected {_words(hint)}, got {value!r}") from None
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise RecipeError(f"{where}: expected a finite number, got {value!r}")
    return parsed


@lru_cache
def _parser(hint: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(item) for item in inner)
    if origin is Literal:
        return "one of " + ", ".join(str(item) for item in inner)
    if origin is list:
        return f"a list ([..., ...]), each item {_words(inner[0])}"
    if origin is dict:
        return f"a mapping ({{name: value}}), each value {_words(inner[1])}"
    return _WORDS.get(hint, "any value")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


# ---------------------------------------------------------------- overrides


def _override(tree: dict[str, Any], key: str, text: str) -> None:
    """Set one dotted key; whether the key exists and fits is found when the recipe is built."""
    *path, last = key.split(".")
    place: Any = tree
    for depth, part in enumerate(path):
        place = _step(place, part, ".".join(path[: depth + 1]))
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        value = text
    if isinstance(place, list):
        raise RecipeError(f"--{key}: name the option of the stage too, for example --{key}.epochs 2")
    place[last] = value


def _step(place: Any, part: str, key: str) -> Any:
    if isinstance(place, list):
        return _find_stage(place, part, key)
    if place.get(part) is None:
        place[part] = {}
    place[part] = json.loads(json.dumps(place[part]))
    if not isinstance(place[part], dict | list):
        raise RecipeError(f"--{key}: this option is a single value ({place[part]!r}) and has no options of its own")
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


# ---------------------------------------------------------------- checks


def check(recipe: Recipe) -> None:
    """Refuse, before anything runs, what types alone cannot.

    Raises:
        RecipeError: naming the first option that is out of range.
    """
    _need(_NAME.fullmatch(recipe.name), "name", recipe.name, "letters, digits, '.', '_' and '-'")
    data = recipe.data
    _need(data.batch_size >= 1, "data.batch_size", data.batch_size, "1 or more")
    _need(data.validation >= 0, "data.validation", data.validation, "a share below 1, a number of images, or 0")
    _need(recipe.seed >= 0, "seed", recipe.seed, "0 or more")
    limit, threads = recipe.trainer.limit_batches, recipe.trainer.threads
    _need(limit is None or limit >= 1, "trainer.limit_batches", limit, "1 or more, or null")
    _need(threads is None or threads >= 1, "trainer.threads", threads, "1 or more, or null")
    _check_order(recipe)
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        if isinstance(stage, Train):
            _check_train(stage, where, recipe)
        elif isinstance(stage, Prune):
            _check_prune(stage, where)
        elif isinstance(stage, Baseline):
            imitated(recipe, stage)


def imitated(recipe: Recipe, stage: Baseline) -> tuple[int, Train]:
    """Position and settings of the stage a baseline copies, its penalty included."""
    trained = [(index, item) for index, item in enumerate(recipe.stages) if isinstance(item, Train)]
    for index, item in trained:
        if stage.like in (None, item.name):
            return index, item
    names = [item.name for _, item in trained]
    raise RecipeError(
        f"stages.{stage.name}.like: no training stage is called {stage.like!r}{nearest(str(stage.like), names)}"
    )


def _check_order(recipe: Recipe) -> None:
    names = [stage.name for stage in recipe.stages]
    for name in names:
        _need(_NAME.fullmatch(name), "stage name", name, "letters, digits, '.', '_' and '-'")
        if names.count(name) > 1:
            raise RecipeError(f"two stages are called {name!r}; give each a 'name' of its own")
    kinds = [stage.kind for stage in recipe.stages]
    if kinds[-1] != "measure" or kinds.count("measure") > 1:
        raise RecipeError(
            "the last stage, and no other, must be of kind measure: the test set is looked at once, at the end"
        )


def _check_train(stage: Train, where: str, recipe: Recipe) -> None:
    optimizer, schedule, sparsity = stage.optimizer, stage.schedule, stage.sparsity
    _need(stage.epochs >= 1, f"{where}.epochs", stage.epochs, "1 or more")
    _need(optimizer.lr > 0, f"{where}.optimizer.lr", optimizer.lr, "above 0")
    _need(0 <= optimizer.momentum < 1, f"{where}.optimizer.momentum", optimizer.momentum, "from 0 to below 1")
    _need(optimizer.weight_decay >= 0, f"{where}.optimizer.weight_decay", optimizer.weight_decay, "0 or more")
    nesterov = not optimizer.nesterov or optimizer.momentum > 0
    _need(nesterov, f"{where}.optimizer.nesterov", True, "false when the momentum is 0")
    _need(schedule.factor > 0, f"{where}.schedule.factor", schedule.factor, "above 0")
    _need(all(m > 0 for m in schedule.milestones), f"{where}.schedule.milestones", schedule.milestones, "above 0")
    _need(
        0 <= schedule.warmup < stage.epochs, f"{where}.schedule.warmup", schedule.warmup, "from 0 to below the epochs"
    )
    _need(0 < schedule.rise < 1, f"{where}.schedule.rise", schedule.rise, "between 0 and 1")
    _need(0 < schedule.start <= 1, f"{where}.schedule.start", schedule.start, "above 0, at most 1")
    _need(stage.clip is None or stage.clip > 0, f"{where}.clip", stage.clip, "above 0, or null")
    if sparsity is not None:
        _need(sparsity.strength >= 0, f"{where}.sparsity.strength", sparsity.strength, "0 or more")
        start = sparsity.gamma_init
        _need(start is None or start > 0, f"{where}.sparsity.gamma_init", start, "above 0, or null")
    if stage.keep == "best" and recipe.data.validation == 0:
        raise RecipeError(f"{where}.keep: 'best' needs validation images; set data.validation above 0, or keep: last")


def _check_prune(stage: Prune, where: str) -> None:
    budget = stage.budget.given()
    if not budget and not stage.per_group:
        raise RecipeError(f"{where}.budget: say how much to cut, for example 'budget: {{cut_channels: 0.5}}'")
    for key, value in budget.items():
        if key.startswith("cut_"):
            _need(0 <= value < 1, f"{where}.budget.{key}", value, "a share from 0 to below 1")
        else:
            _need(value >= 1, f"{where}.budget.{key}", value, "1 or more")
    _need(stage.min_channels >= 1, f"{where}.min_channels", stage.min_channels, "1 or more")
    _need(stage.round_to >= 1, f"{where}.round_to", stage.round_to, "1 or more")
    _need(
        stage.max_cut is None or 0 <= stage.max_cut < 1, f"{where}.max_cut", stage.max_cut, "a share from 0 to below 1"
    )
    for name, value in stage.per_group.items():
        fits = value >= 0 and (isinstance(value, int) or value < 1)
        _need(fits, f"{where}.per_group.{name}", value, "a number of channels (3) or a share from 0 to below 1 (0.3)")


def _need(holds: object, where: str, value: object, wanted: str) -> None:
    if not holds:
        raise RecipeError(f"{where}: is {value!r}, must be {wanted}")
