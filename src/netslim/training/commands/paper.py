"""`bench paper`: rows of the published tables, one after the other, within a given time.

::

    runs/ROW/SEED/      run folders, as `netslim run` makes them
    out/paper.json      every row that is finished: settings, figures, curves, machine, times
    out/results.md      the page of it
    out/carried-N.part  what unfinished rows go on from elsewhere

A row that paper.json has with the same settings is not run again, on whatever machine. The others
go on from their run folders; where these are missing, from the parts. Whatever is asked for the
first time begins with what other rows have done already (`beginnings`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import netslim.training.processes as processes
from netslim._support import digest_of_plain, write_atomic
from netslim.errors import NetslimError, RecipeError
from netslim.report import paper_page, records
from netslim.training.commands.beginnings import begin
from netslim.training.commands.bites import bites, said
from netslim.training.commands.carried import pack, unpack
from netslim.training.loop.deadline import Deadline, TimeUpError
from netslim.training.loop.progress import Display, in_words
from netslim.training.recipe.extends import SMALL
from netslim.training.recipe.files import shipped
from netslim.training.recipe.reading import load_recipe
from netslim.training.recipe.schema import Recipe
from netslim.training.stages.changes import basis, differing
from netslim.training.stages.folder import FORMAT, RunFolder, read_json, write_json
from netslim.training.stages.runner import run

# What is run first: the rows that say most of a method and a network for their time.
ORDER = (
    "vgg19-cifar10",
    *("resnet56-l1-a", "resnet56-l1-b", "resnet56-sfp"),
    *("densenet40-cifar10-40", "densenet40-cifar10-60"),
    *("resnet32-hard-avoid", "resnet32-hard-include"),
    *("resnet32-soft-avoid", "resnet32-soft-include"),
    *("preresnet164-cifar10-40", "preresnet164-cifar10-60"),
    *("vgg16-l1-a", "vgg19-cifar10-multipass", "resnet56-csgd"),
)
RESERVE = 20.0  # seconds for what stands behind the last epoch: a cut, its proof, the test images
_NO_CONDITIONS = ("seed", "data.root", "data.download")
Row = dict[str, Any]


def default_rows(small: bool) -> list[str]:
    """The recipes that are run where none are named: the published rows in their order, or, for
    `small`, every twin, those of these rows first.
    """
    if not small:
        return list(ORDER)
    twins = [name for name in shipped() if name.endswith(SMALL)]
    first = [f"{name}{SMALL}" for name in ORDER]
    return [*first, *(name for name in twins if name not in first)]


def recipes(
    names: Iterable[str], seeds: Iterable[int], overrides: Mapping[str, str], *, small: bool = False
) -> list[Recipe]:
    """Each row with each seed; every row with one seed before any with the next.

    Args:
        names: of recipes.
        seeds: of weights, order and augmentation.
        overrides: as for `load_recipe`, for all rows.
        small: the twins of the rows, whether or not their names say so.

    Raises:
        RecipeError: there is no such recipe, one does not take an override, or a row or seed is
            given twice.
    """
    found = list(names)
    if small:
        found = [f"{name.removesuffix(SMALL)}{SMALL}" for name in found]
    seeds = list(seeds)
    for what, given in (("the row", found), ("the seed", seeds)):
        if twice := [item for item, times in Counter(given).items() if times > 1]:
            raise RecipeError(f"{what} {twice[0]} is given twice: give it once")
    return [load_recipe(name, {**overrides, "seed": str(seed)}) for seed in seeds for name in found]


@dataclass
class Outcome:
    """What a call has done.

    Attributes:
        finished: how many of the rows that were asked for are in paper.json.
        asked: how many were asked for.
        failed: row and seed -> what went wrong.
        stopped: whether the time was up before all was done.
    """

    asked: int
    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


def carry_out(
    asked: Sequence[Recipe],
    out: Path,
    runs: Path,
    *,
    page: Path | None = None,
    options: Sequence[str] = (),
    changed_ok: bool = False,
    deadline: Deadline | None = None,
    display: Display | None = None,
) -> Outcome:
    """Run rows, or go on with them, until they are finished or the time is up.

    Args:
        asked: from `recipes`, in their order.
        out: the folder of paper.json.
        runs: the folder of the run folders.
        page: the file of the page; `results.md` in `out` when not given.
        options: of the command, for the one on the page that runs what is left.
        changed_ok: as for `run`.
        deadline: from `deadline_in`; there is none when not given.
        display: where progress is shown, which keeps to the deadline.

    Raises:
        RecipeError: a file in `out` is damaged, or several processes are asked for.
        KeyboardInterrupt: what is finished is kept.
    """
    for recipe in asked:
        processes.refuse_several(recipe.trainer)
    deadline = deadline or Deadline()
    work = _Work(asked, out, runs, page or out / "results.md", options, changed_ok)
    work.display = display or Display(deadline=deadline)
    out.mkdir(parents=True, exist_ok=True)
    work.carried, new = unpack(out, runs)
    for row in new:
        work.display.say(f"{row} goes on from what was carried here")
    outcome = Outcome(len(asked))
    try:
        for recipe in asked:
            _one(work, recipe, deadline, outcome)
    except TimeUpError:
        outcome.stopped = True
    finally:
        work.write()
        work.carry()
    outcome.finished = sum(work.has(recipe) for recipe in asked)
    return outcome


def deadline_in(minutes: float | None, spent: float) -> Deadline:
    """When training has to stop that may go on for so long, of which some seconds are `spent`."""
    if minutes is None:
        return Deadline()
    return Deadline(60 * minutes - spent, min(RESERVE, 15 * minutes))


def _one(work: _Work, recipe: Recipe, deadline: Deadline, outcome: Outcome) -> None:
    """One row; what goes wrong in it keeps no other from being run."""
    if work.has(recipe):
        return
    if deadline.left() <= 0:
        raise TimeUpError
    try:
        work.row(recipe)
    except NetslimError as error:
        outcome.failed[_named(recipe)] = work.failed[_named(recipe)] = str(error)
        work.display.warn(f"{_named(recipe)}: {error}")


def _named(recipe: Recipe) -> str:
    return f"{recipe.name} (seed {recipe.seed})"


class _Work:
    """paper.json, and the runs that fill it."""

    def __init__(
        self,
        asked: Sequence[Recipe],
        out: Path,
        runs: Path,
        page: Path,
        options: Sequence[str],
        changed_ok: bool,
    ) -> None:
        self.asked, self.out, self.runs, self.page = asked, out, runs, page
        self.options, self.changed_ok = options, changed_ok
        self.file = out / "paper.json"
        self.display = Display()
        self.carried: list[str] = []  # ROW/SEED, what was in the parts
        self.rows: list[Row] = []
        self.failed: dict[str, str] = {}
        if self.file.exists():
            remedy = "move it away to have it written again from the run folders"
            found = read_json(self.file, remedy, records.Tables)
            self.rows, self.failed = list(found["rows"]), dict(found.get("failed") or {})

    def has(self, recipe: Recipe) -> bool:
        """Whether this row is there with these settings."""
        known = (recipe.name, _settings(recipe))
        return any((row["recipe"], row["settings"]) == known for row in self.rows)

    def _unfinished(self) -> list[Recipe]:
        return [recipe for recipe in self.asked if not self.has(recipe)]

    def folder(self, recipe: Recipe) -> RunFolder:
        """Where a row is run."""
        return RunFolder(self.runs / recipe.name / str(recipe.seed))

    def row(self, recipe: Recipe) -> None:
        """Run one, and put it into paper.json."""
        folder = self.folder(recipe)
        self.display.say(f"{_named(recipe)}  {recipe.title}")
        copied = begin(recipe, folder, self.runs)
        if copied:
            self.display.say(f"{', '.join(copied)}: as another row has it")
        results = run(recipe, folder.path, display=self.display, changed_ok=self.changed_ok)
        found = _row(recipe, folder, results, copied)
        for line in said(found["bites"]):
            self.display.say(line)
        key = ("recipe", "seed")
        self.rows = [row for row in self.rows if any(row[k] != found[k] for k in key)]
        self.rows.append(found)
        self.failed.pop(_named(recipe), None)
        self.write()

    def write(self) -> None:
        """paper.json and its page."""
        done = {row["recipe"] for row in self.rows} - {recipe.name for recipe in self._unfinished()}
        known = [*default_rows(small=False), *default_rows(small=True)]
        left = [name for name in known if name not in done]
        content = {"format": FORMAT, "rows": self.rows, "left": left, "failed": self.failed}
        content["options"] = list(self.options)
        write_json(self.file, content)
        write_atomic(self.page, paper_page.page(content))

    def carry(self) -> None:
        """The parts of what is not finished: of what is asked for, and of what came in parts."""
        done = {f"{row['recipe']}/{row['seed']}" for row in self.rows}
        begun = [self.folder(recipe).path for recipe in self._unfinished()]
        begun += [self.runs / row for row in self.carried if row not in done]
        _, left = pack(self.runs, dict.fromkeys(begun), self.out)
        for row in left:
            name = row.relative_to(self.runs)
            self.display.say(f"{name} is too large to be carried: it goes on from {row} alone")


def _settings(recipe: Recipe) -> str:
    """What all results of a recipe depend on, in short."""
    plain = json.loads(json.dumps(basis(recipe, len(recipe.stages)), default=str))
    return digest_of_plain(plain)


def _row(recipe: Recipe, folder: RunFolder, results: Row, copied: Sequence[str]) -> Row:
    """What paper.json says of a finished run."""
    stages = [folder.stage(index, stage) for index, stage in enumerate(recipe.stages)]
    done = [stage.results() or {} for stage in stages]
    own = [found["seconds"] for found in done if found["stage"] not in copied]
    kept = ("rows", "widths", "curves", "notes", "warnings", "environment", "published")
    return {
        "recipe": recipe.name,
        "title": recipe.title,
        "seed": recipe.seed,
        "twin": recipe.name.endswith(SMALL),
        "settings": _settings(recipe),
        "config": recipe.to_dict(),
        "conditions": conditions(recipe),
        "bites": bites(recipe, done),
        "seconds": round(sum(own), 1),
        "copied": list(copied),
        **{key: results[key] for key in kept},
    }


def conditions(recipe: Recipe) -> list[str]:
    """In what that results depend on a run differs from the recipe as it is shipped, if it is one
    of those.
    """
    if recipe.name not in shipped():
        return []
    count = len(recipe.stages)
    found = differing(basis(load_recipe(recipe.name), count), basis(recipe, count))
    return [
        f"{key}: {ours} in the place of {theirs}"
        for key, theirs, ours in found
        if key not in _NO_CONDITIONS
    ]


def told(outcome: Outcome, minutes: float | None, seconds: float) -> str:
    """One line on what a call has done."""
    text = f"{outcome.finished} of {outcome.asked} rows are finished"
    if not outcome.stopped:
        return text
    spent, given = in_words(seconds), in_words(60 * (minutes or 0.0))
    if seconds <= 60 * (minutes or 0.0):
        return f"{text}; stopped after {spent} of {given}"
    return f"{text}; stopped after {spent}, as the {given} were over; only training can be stopped"


__all__ = [
    *("ORDER", "Outcome", "carry_out", "conditions", "deadline_in", "default_rows", "recipes"),
    "told",
]
