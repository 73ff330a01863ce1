"""The YAML of recipes, shipped and one's own, as plain data: nothing here needs torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from netslim._support import brief, checks_calls, nearest, read_text, reason, refusing, write_atomic
from netslim.errors import RecipeError
from netslim.training.recipe.extends import SMALL, resolved

_LARGEST = 4 * 2**20  # bytes of a recipe
_DEEPEST = 50
_MOST_NODES = 100_000
_SEAL = "# SHA-256 of what follows: "
_FOREIGN = re.compile(r"[^A-Za-z0-9._-]+")  # to names
_DIGITS = 1000  # of a whole number; what it may be, the schema says


@checks_calls
def shipped() -> list[str]:
    """Names of the recipes that come with the package, small twins included.

    Example:
        >>> "digits" in netslim.training.shipped()
        True
    """
    return list(_shipped())


@lru_cache
def _shipped() -> tuple[str, ...]:
    # A twin's section may come from a recipe below, so each has to be read; once is enough.
    names = [name for name in _files() if not name.startswith("_")]
    return tuple(
        sorted([*names, *(f"{name}{SMALL}" for name in names if "small" in tree_of(name))])
    )


@checks_calls
def recipe_text(source: str) -> str:
    """The YAML of a shipped recipe, or of a file; of one that builds on another, all that it comes
    to.

    Raises:
        RecipeError: no shipped recipe and no file has this name.

    Example:
        >>> "kind: prune" in netslim.training.recipe_text("digits")
        True
    """
    if not _written(source):
        return _written_out(source)
    if "extends" in _plain_tree(source):
        return _written_out(source)
    return _text(source)


def _written_out(source: str) -> str:
    tree = {key: value for key, value in tree_of(source).items() if key != "small"}
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120))


@lru_cache
def _files() -> tuple[str, ...]:
    found = (item.name for item in resources.files("netslim.recipes").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


def _written(source: str) -> bool:
    """Whether a recipe is there under this very name, and not as another one's twin."""
    return source in _files() or Path(source).is_file()


def _text(source: str) -> str:
    if source in _files():
        return (resources.files("netslim.recipes") / f"{source}.yaml").read_text(encoding="utf-8")
    path = Path(source)
    try:
        if path.suffix not in (".yaml", ".yml") and not path.exists():
            known = nearest(source, shipped(), otherwise="; netslim recipes lists those there are")
            raise RecipeError(f"no file and no recipe is called {source!r}{known}")
        return read_text(path, _LARGEST)
    except UnicodeDecodeError:
        raise RecipeError(
            f"{source} is no text, and so no recipe; a network is looked at with netslim evaluate "
            "or inspect"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise RecipeError(f"the recipe {source} cannot be read: {reason(error)}") from None


def _plain_tree(source: str) -> dict[str, Any]:
    text = _text(source)
    try:
        tree = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"the recipe {source} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"the recipe {source} is empty or not a mapping of keys to values")
    if tree.get("name") is None:
        return {**tree, "name": _as_name(Path(source).stem)}
    return dict(tree)


def _as_name(stem: str) -> str:
    """What a recipe is called after its file, which may have other letters than a name may."""
    return _FOREIGN.sub("-", stem).strip("-._") or "recipe"


def tree_of(source: str) -> dict[str, Any]:
    """What a recipe comes to: the one it extends with its own changes; for NAME-small and
    PATH-small.yaml, with those of its twin.

    Raises:
        RecipeError: there is none of this name, or it is no YAML.
    """
    return resolved(source, _plain_tree, _written)


def read_yaml(text: str) -> Any:
    """YAML with numbers such as 1e-4, which YAML 1.1 takes for text; it may be anybody's.

    Raises:
        ValueError: it is no YAML, gives a key of a mapping twice, names what cannot be built, such
            as the date 2001-99-99, is nested too deeply, or comes to too much with its aliases
            written out.
    """
    try:
        _check_extent(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(reason(error)) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"a value cannot be read ({reason(error)})") from None


def write_settings(path: Path, tree: Mapping[str, Any]) -> None:
    """The config.yaml of a folder: half of one is YAML, too, so its first line holds a digest."""
    text = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=110)
    write_atomic(path, f"{_SEAL}{_digest(text)}\n{text}")


def read_settings(path: Path, remedy: str) -> dict[str, Any]:
    """The mapping in the config.yaml of a folder.

    Raises:
        RecipeError: it cannot be read, is none, or is not as it was written; the message ends in
            `remedy`.
    """
    with refusing(RecipeError, f"{path} is damaged", remedy):
        text = read_text(path, _LARGEST)
        tree = read_yaml(text)
        if not isinstance(tree, dict):
            raise ValueError("it holds no mapping of settings")
    seal, _, rest = text.partition("\n")
    if seal.startswith(_SEAL) and seal.removeprefix(_SEAL) != _digest(rest):  # none in version 0.1
        raise RecipeError(
            f"{path} is not as it was written: it was edited, or half of it is lost. Settings are "
            "changed by the command, as --seed 1 or --stages.NAME.OPTION VALUE, and not in this "
            f"file; {remedy}"
        )
    return tree


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_extent(text: str) -> None:
    """Refuse what grows beyond the file before anything is built.

    An alias counts as all that it stands for, so that ten lines of ten aliases each, of the line
    above, count as the billion nodes that writing them out would take.
    """
    open_: list[tuple[str | None, int]] = []  # anchor and count of nodes where each began
    extents: dict[str | None, int] = {}
    count = 0
    for event in _keys_once(yaml.parse(text, Loader=_Loader)):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            extents[anchor] = count - before
        elif isinstance(event, yaml.AliasEvent):
            if anchor in (name for name, _ in open_):
                raise yaml.YAMLError(f"the alias *{anchor} stands within what it names")
            count += extents.get(anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            extents[anchor] = 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((anchor, count - 1))
        if len(open_) > _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} deep")
        if count > _MOST_NODES:
            raise yaml.YAMLError(f"it comes to more than {_MOST_NODES:,} values")


def _keys_once(events: Iterable[yaml.Event]) -> Iterator[yaml.Event]:
    """The same, of mappings that give each key once: of two, YAML would let the last one win."""
    open_: list[_Keys | None] = []  # None of a list
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            open_.pop()
        elif isinstance(event, yaml.NodeEvent):
            if open_ and open_[-1] is not None:
                open_[-1].meet(event)
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append(_Keys() if isinstance(event, yaml.MappingStartEvent) else None)
        yield event


_MERGED = "<<"  # the keys of another mapping, which may be said of several


class _Keys:
    """The keys of a mapping that is being read, and the lines that they stand in."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.next_is_key = True

    def meet(self, node: yaml.NodeEvent) -> None:
        """Its next node: keys and values take turns."""
        if self.next_is_key and isinstance(node, yaml.ScalarEvent) and node.value != _MERGED:
            line = node.start_mark.line + 1
            if node.value in self.lines:
                raise yaml.YAMLError(
                    f"the key {brief(node.value)} is given twice in one mapping, in lines "
                    f"{self.lines[node.value]} and {line}: give it once"
                )
            self.lines[node.value] = line
        self.next_is_key = not self.next_is_key


# The one written in C, ten times as fast, where PyYAML was built with it.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc] # PyYAML has no types
    pass


def _whole_number(loader: _Loader, node: Any) -> int:
    if len(node.value) > _DIGITS:  # Python would say how many digits it takes at most
        raise ValueError(f"{brief(node.value)} is too large a number")
    return int(loader.construct_yaml_int(node))


_Loader.yaml_implicit_resolvers = {
    key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
