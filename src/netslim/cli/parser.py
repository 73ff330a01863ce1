"""The parser of a command: wrong usage is one line with the nearest name, never a page of usage."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NoReturn

from netslim._support import brief, nearest
from netslim.cli.dotted import dotted
from netslim.errors import NetslimError

_NO_NUMBER = re.compile("invalid (int|float) value: (.*)")
Command = Callable[[argparse.Namespace, dict[str, str]], int]


class UsageError(NetslimError):
    """What was typed is no command, option or choice."""


def with_heading(examples: str) -> str:
    """Lines that may be typed, under a line that says so."""
    return f"examples:\n{examples}"


class Parser(argparse.ArgumentParser):
    """Flags of one command, and what carries it out.

    Attributes:
        command: takes what was typed, and the dotted options; returns the exit code.
        dotted: whether options of a recipe go by their dotted names.
    """

    command: Command | None = None
    dotted = False

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def carries_out(
        self,
        command: Command,
        *,
        examples: str,
        about: str = "",
        more: str = "",
        dotted: bool = False,
    ) -> None:
        """Say what the command does; `more` stands below its flags, and then the examples."""
        self.command, self.dotted = command, dotted
        self.epilog = "\n".join(filter(None, [more, with_heading(examples)]))
        self.description = about or self.description

    def flags(self) -> dict[str, argparse.Action]:
        """Flag -> its action."""
        found = {}
        for action in self._actions:
            found.update(dict.fromkeys(action.option_strings, action))
        return found

    def positional(self) -> list[argparse.Action]:
        """What is given by its place."""
        return [action for action in self._actions if not action.option_strings]

    def read(self, tokens: Sequence[str]) -> argparse.Namespace:
        """What was typed.

        Raises:
            UsageError: it does not fit.
        """
        given = list(typed(tokens))
        names = [flag for flag, _ in given]
        known = self.flags()
        for flag, values in given:
            if flag not in known:
                meant = self._meant(flag, values, tokens)
                raise self.wrong(f"there is no option {flag}{meant}")
            # argparse would let the last one win
            if names.count(flag) > 1 and not isinstance(known[flag], argparse._AppendAction):
                raise self.wrong(f"{flag} is given twice: give it once, with all that it is to say")
            self._check_choices(flag, known[flag], values)
            self._check_finite(flag, known[flag], values)
        return self.parse_args(tokens)

    def wrong(self, text: str) -> UsageError:
        """The error that says so, and where help is."""
        return UsageError(f"{text.rstrip('.')}; see {self.prog} --help")

    def error(self, message: str) -> NoReturn:
        """What argparse finds, as one line."""
        message = _NO_NUMBER.sub(_number, message)
        raise self.wrong(message.removeprefix("argument "))

    def _check_choices(self, flag: str, action: argparse.Action, values: Sequence[str]) -> None:
        if action.choices is None:
            return
        choices = [str(choice) for choice in action.choices]
        # Behind an option of one value stand positional ones, too.
        for value in values[: len(values) if action.nargs == "+" else 1]:
            if value not in choices and not (value == "null" and "none" in choices):
                others = "".join(f"; {value} is for {name}" for name in self._takers(value))
                listed = f"; choose one of {', '.join(choices)}"
                near = others or nearest(value, choices, otherwise=listed)
                raise self.wrong(f"{flag} {value}: there is no such choice{near}")

    def _check_finite(self, flag: str, action: argparse.Action, values: Sequence[str]) -> None:
        """Numbers are numbers: none of the commands has a use for nan or for an infinite one."""
        if action.type is not float:
            return
        for value in values:
            with suppress(ValueError):  # which argparse tells
                if not math.isfinite(float(value)):
                    raise self.wrong(f"{flag} {value}: give a finite number")

    def _meant(self, flag: str, values: Sequence[str], tokens: Sequence[str]) -> str:
        """What may be meant by a flag that is not known; what follows it may tell."""
        others = list(self._takers(values[0])) if values else []
        if len(others) == 1:
            return f"; did you mean {others[0]!r}?"
        hint = ""
        if self.dotted:
            if exact := self._by_dots(flag, tokens):
                return f"; did you mean {exact}?"
            hint = "; options of the model go by --model.OPTION"
            if self._is_of_recipes():
                hint = "; options of a recipe go by their dotted names"
        long = [name for name in self.flags() if name.startswith("--")]
        return nearest(flag, long, otherwise=hint)

    def _by_dots(self, flag: str, tokens: Sequence[str]) -> str:
        """The dotted options of this command that end on the name of a flag, in words."""
        takes, model = {action.dest for action in self._actions}, None
        if takes & {"model", "models"} and not _is_flag(tokens[0]):
            model = tokens[0]
        name = flag.removeprefix("--").replace("-", "_")
        return dotted(name, model, self._is_of_recipes())

    def _is_of_recipes(self) -> bool:
        """Whether all of a recipe goes by dotted names, and not the model's options alone."""
        return any(action.dest in ("recipe", "data") for action in self._actions)

    def _takers(self, value: str) -> Iterator[str]:
        """Flags that have this value as a choice."""
        return (name for name, action in self.flags().items() if value in (action.choices or ()))


def _number(found: re.Match[str]) -> str:
    kind = {"int": "a whole number", "float": "a number"}[found[1]]
    value = found[2].strip("'")
    return f"give {kind}, not {brief(value)}"


def typed(tokens: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag in turn, with what stands between it and the next one."""
    found: list[tuple[str, list[str]]] = []
    for token in tokens:
        if token == "--":
            break
        if _is_flag(token):
            flag, equals, value = token.partition("=")
            found.append((flag, []))
            if equals:
                found[-1][1].append(value)
        elif found:
            found[-1][1].append(token)
    return iter(found)


def _is_flag(token: str) -> bool:
    """Whether argparse takes it for an option; negative numbers are values."""
    if not token.startswith("-") or token == "-":
        return False
    try:
        float(token)
    except ValueError:
        return True
    return False
