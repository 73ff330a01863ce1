"""Messages of the library in the words that the user typed.

What goes wrong is told by the names of Python or of recipes: ``per_group``, ``budget.cut_macs``,
``round_to=8``, ``'by: zeros'``. Who typed a command knows `--layers`, `--cut-macs`, `--round-to 8`
and `--by zeros`; who wrote a recipe, ``round_to: 8``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

from netslim.cli.parser import Parser, typed
from netslim.errors import NetslimError

# Name of a flag's value -> its key in a recipe or a stage, where that is another one.
_KEYS = {
    "model": "model.name",
    "weights_file": "model.weights_file",
    "data": "data.name",
    "data_root": "data.root",
    "batch_size": "data.batch_size",
    "validation": "data.validation",
    "augment": "data.augment",
    "device": "trainer.device",
    "lr": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "weight_decay": "optimizer.weight_decay",
    "milestones": "schedule.milestones",
    "lr_factor": "schedule.factor",
    "teacher": "distill.teacher",
    "teacher_weights": "distill.teacher_weights",
    "latency_table": "latency.table",
    "backend": "latency.backend",
    "latency_check": "latency.check",
    "seconds": "budget_seconds",
    "layers": "per_group",
}
_OTHERWISE = {"groups": "per_group"}  # what `netslim.sensitivity` calls them, too
_COMMON = ("name", "table", "out", "input", "debug", "help")  # too common to be replaced in a text
_STAGE = re.compile(r"^stages\.[^.]+\.")
_FIRST = re.compile(r"([a-z_]+(?:\.[\w*-]+)*)(?=:| must | of '| takes | names )")
_ALONE = r"(?<![-\w.])"  # not within a longer word, and no flag already
_VALUE = r"('[^']*'|[-+.\w]*\w)"
_TWICE = re.compile(r"(--[\w-]+) \(\1\)")  # by its name in Python, and by its flag
_IN_A_SHELL = (  # what is said in Python -> how it is typed
    (re.compile(r"netslim\.models\.names\('(\w+:)'\) lists"), r"netslim models \1 lists"),
)
_OF_MODEL = (
    (re.compile(r"build the network with num_classes=(\d+)"),
     r"build the network with --model.num_classes \1"),
    (re.compile(r"\(netslim train, or new_head=True\)"),
     "(netslim train, or --model.new_head true)"),
)  # fmt: skip
_OF_INPUT = (
    (re.compile(r"is \([\d, ]+\) one picture, without the dimension of the batch\? .*\[None\]"),
     "give all sizes of one example, of a picture its channels, height and width, such as --input "
     "3 32 32"),
)  # fmt: skip
_YAML = {"True": "true", "False": "false", "None": "null"}


def keys(parser: Parser) -> dict[str, str]:
    """Key of a recipe, and name in Python -> the flag of this command that says it."""
    from netslim.selection.options import Budget, declared

    of_budget = declared(Budget)
    found: dict[str, str] = {}
    for flag, action in parser.flags().items():
        if flag.startswith("--"):
            found[action.dest] = found[_KEYS.get(action.dest, action.dest)] = flag
            if action.dest in of_budget:
                found[f"budget.{action.dest}"] = flag
    return found


def check_once(parser: Parser, tokens: Iterable[str], overrides: Collection[str]) -> None:
    """Refuse what was said by a flag and by its dotted name, too.

    Raises:
        UsageError: it was.
    """
    if not overrides:
        return
    flags, given = keys(parser), {flag for flag, _ in typed(list(tokens))}
    for key in overrides:
        flag = flags.get(_own(key))
        if flag in given:
            raise parser.wrong(f"{flag} and --{key} say the same: give one of them")


@contextmanager
def in_words_of(parser: Parser, overrides: Mapping[str, str]) -> Iterator[None]:
    """Inside, errors come out in the words of the command."""
    try:
        yield
    except NetslimError as error:
        # Only the text changes: the class and where it came from stay, for `--debug`.
        error.args = (said(str(error), parser, overrides), *error.args[1:])
        raise


def said(text: str, parser: Parser, overrides: Collection[str] = ()) -> str:
    """A message of the library as the user of this command would say it."""
    flags = keys(parser)
    for pattern, typed_so in _in_python(parser, flags):
        text = pattern.sub(typed_so, text)
    if "recipe" in (action.dest for action in parser.positional()):
        return _as_in_recipes(text)
    if "limits" in flags:  # no other flag of a command sets limits layer by layer
        text = text.replace("max_cut by name", flags["limits"])
    text = _beginning(text, flags, overrides)
    for key, flag in flags.items():
        text = _within(text, key, flag, parser.flags()[flag].choices or _names(key))
    return _TWICE.sub(r"\1", text)


def _in_python(parser: Parser, flags: Mapping[str, str]) -> Iterator[tuple[re.Pattern[str], str]]:
    """What is otherwise typed than said in Python, and how this command has it."""
    yield from _IN_A_SHELL
    if parser.dotted:
        yield from _OF_MODEL
    if "input" in flags:
        yield from _OF_INPUT


def _names(key: str) -> Iterable[str]:
    """What an option without choices may be, so that ``criterion: l2`` is known for one."""
    from netslim.selection.budget.allocation import ALLOCATIONS
    from netslim.selection.criteria.registry import CRITERIA

    known: dict[str, Iterable[str]] = {"criterion": CRITERIA, "allocation": ALLOCATIONS}
    return known.get(key, ())


def _own(key: str) -> str:
    """The key without the stage that it stands in."""
    return _STAGE.sub("", key)


def _beginning(text: str, flags: Mapping[str, str], overrides: Collection[str]) -> str:
    """A message that begins with the key of what is wrong, with what was typed instead."""
    found = _FIRST.match(text)
    if found is None:
        return text
    key, rest = _own(found[1]), text[found.end(1) :]
    key = _OTHERWISE.get(key, key)
    typed_so = next((name for name in overrides if key in (_own(name), name)), None)
    if typed_so is not None:
        return f"--{typed_so}{rest}"
    if key in flags:
        return f"{flags[key]}{rest}"
    # What goes of one layer: the name of the layer is the last part of the key.
    if key.startswith("per_group.") and "per_group" in flags:
        return f"{flags['per_group']} {key.removeprefix('per_group.')}{rest}"
    if any(_own(name).startswith(f"{key}.") for name in overrides):
        return f"--{key}{rest}"
    return text


def _within(text: str, key: str, flag: str, choices: Iterable[str]) -> str:
    """A message with one key replaced wherever it surely means the option."""
    name = key.rpartition(".")[2]
    if name in _COMMON:
        return text
    text = re.sub(rf"{_ALONE}(?:\w+\.)?{name}={_VALUE}", lambda found: _flag(flag, found[1]), text)
    for choice in choices:
        text = re.sub(rf"{_ALONE}('?){name}: {choice}\1(?!\w)", f"{flag} {choice}", text)
    if "." in key:
        text = re.sub(rf"{_ALONE}(--)?{re.escape(key)}\b", flag, text)
    if "_" in name:  # a word that is no English one
        text = re.sub(rf"{_ALONE}{name}\b", flag, text)
    return text


def _flag(flag: str, value: str) -> str:
    """How an option with this value in Python is typed."""
    plain = value.strip("'")
    if plain in ("False", "None"):
        return f"no {flag}"
    if plain == "True":
        return flag
    return f"{flag} {plain}"


def _as_in_recipes(text: str) -> str:
    """``round_to=8`` as ``round_to: 8``."""
    from netslim.selection.options import Budget, Compensation, Limits, Scoring, declared

    kinds = (Budget, Limits, Scoring, Compensation)
    names = "|".join(["allocation", *chain.from_iterable(map(declared, kinds))])
    return re.sub(rf"{_ALONE}({names})={_VALUE}", _entry, text)


def _entry(found: re.Match[str]) -> str:
    plain = found[2].strip("'")
    return f"{found[1]}: {_YAML.get(plain, plain)}"
