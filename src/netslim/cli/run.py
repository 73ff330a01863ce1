"""`run`: whole runs by recipe."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netslim.cli.common import (
    add_changed_ok,
    add_json,
    add_trust,
    as_arguments,
    going_on_by,
    print_json,
    show,
    told,
)
from netslim.cli.parser import Parser

if TYPE_CHECKING:
    from netslim.training.commands.together import Ended, Job
    from netslim.training.stages.rehearsal import Foreseen

_RUN = """\
Carry out a recipe: train with sparsity, cut, prove the cut, fine-tune, measure, report.

Everything lands in one folder. Killed at any time and started again with the same command, a run
goes on from the last finished epoch and ends with the same numbers; a finished one only shows its
results.

--dry-run shows the stages, what each is foreseen to leave of the network, and how long it is
expected to take here; nothing is trained or written.

Of several recipes, or seeds, each has a folder of its own. One that fails does not end the others.
"""

_OVERRIDES = """\
Any value of the recipe can be overridden by its dotted name (`netslim recipes NAME` shows them).
"""
_EXAMPLES = """\
  netslim run digits --dry-run
  netslim run digits --seed 3
  netslim run vgg16-cifar10-small --data.root /data --model.width 0.5
  netslim run digits --stages.sparse.epochs 40 --stages.prune.budget.cut_channels 0.5
  netslim run my-recipe.yaml --trainer.device cpu --out runs/mine
  netslim run resnet56-sfp-small densenet40-small --together
  netslim run digits --seeds 0 1 2 --together --out runs/three
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_run, about=_RUN, more=_OVERRIDES, examples=_EXAMPLES, dotted=True)
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="+", help="names of shipped recipes, or YAML files"
    )
    add_trust(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="the run folder (default: runs/RECIPE); of several runs, where their folders lie: "
        "DIR/RECIPE, or DIR/RECIPE-seed-N (default: runs)",
    )
    add_changed_ok(parser)
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seed",
        metavar="N",
        help="seed of weights, order and augmentation (default: the recipe's)",
    )
    seeds.add_argument("--seeds", metavar="N", nargs="+", help="a run for each of these seeds")
    parser.add_argument(
        "--together",
        action="store_true",
        help="several runs side by side, each in a process of its own (default: one after the "
        "other)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show stages, costs and expected times; train and write nothing",
    )
    add_json(parser, "as in results.json; of several runs, a list with their folders")


def _run(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    jobs = list(_jobs(options, overrides))
    if options.dry_run:
        return _rehearsed(jobs, options.json)
    if len(jobs) > 1:
        return _several(jobs, options)
    from netslim.training import run
    from netslim.training.launched import place

    job = jobs[0]
    with going_on_by(job.command, job.folder):
        results = run(job.recipe, job.folder, command=job.command, changed_ok=options.changed_ok)
    if place().rank:
        return 0
    if options.json:
        print_json(results)
    else:
        _show(results, job.folder)
    return 0


def _rehearsed(jobs: Sequence[Job], as_json: bool) -> int:
    """Each run as it is foreseen."""
    from netslim.training.stages.rehearsal import rehearse

    found = {job.folder: rehearse(job.recipe) for job in jobs}
    if as_json:
        print_json(
            [{"folder": place, "stages": list(map(asdict, rows))} for place, rows in found.items()]
        )
        return 0
    for place, rows in found.items():
        _show_foreseen(place, rows)
    return 0


def _show_foreseen(place: Path, rows: Sequence[Foreseen]) -> None:
    from rich.table import Table

    from netslim.training.loop.progress import in_words

    table = Table("stage", "does", title=f"foreseen for {place}; nothing was trained or written")
    for column in ("parameters", "MACs", "takes about"):
        table.add_column(column, justify="right")
    for row in rows:
        takes = ""
        if row.seconds is not None:
            takes = in_words(row.seconds)
        table.add_row(row.stage, row.does, _counted(row.params), _counted(row.macs), takes)
    whole = in_words(sum(row.seconds or 0 for row in rows))
    lines = [
        f"training takes about {whole} here, by a few steps of each network; measuring and proving "
        "come on top",
        "the widths are those that the weights as they are lead to",
    ]
    show(table, lines, width=100)


def _counted(count: int | None) -> str:
    if count is None:
        return "?"
    return f"{count:,}"


def _jobs(options: argparse.Namespace, overrides: dict[str, str]) -> Iterator[Job]:
    """A run for each recipe and seed."""
    seeds = options.seeds or [options.seed]
    alone = len(options.recipe) * len(seeds) == 1
    for source in options.recipe:
        for seed in seeds:
            given = dict(overrides)
            if seed is not None:
                given["seed"] = seed
            yield _job(options, source, given, alone)


def _job(options: argparse.Namespace, source: str, overrides: dict[str, str], alone: bool) -> Job:
    from netslim.training.commands.together import Job
    from netslim.training.recipe.reading import load_recipe

    recipe = load_recipe(source, overrides)
    typed = ["netslim", "run", source, *as_arguments(overrides)]
    if options.trust:
        recipe = replace(recipe, trust=True)
        typed.append("--trust")
    if options.changed_ok:
        typed.append("--changed-ok")
    name = recipe.name
    if options.seeds:
        name = f"{name}-seed-{recipe.seed}"
    folder = _place(options) / name
    if alone and options.out:
        folder = options.out
    return Job(recipe, folder, shlex.join([*typed, "--out", str(folder)]))


def _place(options: argparse.Namespace) -> Path:
    """Where the folders of several runs lie."""
    return options.out or Path("runs")


def _several(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    from netslim.training.commands.together import in_turn, together

    carry_out = in_turn
    if options.together:
        carry_out = together
    with going_on_by(options.typed, _place(options)):
        found = carry_out(jobs, changed_ok=options.changed_ok)
    if options.json:
        print_json([_data(each) for each in found])
    for each in found:
        if each.results is not None and not options.json:
            _show(each.results, each.job.folder)
    return max(map(_told_failure, found))


def _data(ended: Ended) -> dict[str, Any]:
    """One of several runs; as of `netslim status`, what has failed says why."""
    where = {"folder": ended.job.folder}
    if ended.error is not None:
        return {**where, "error": told(ended.error)[0]}
    return {**where, "results": ended.results}


def _told_failure(ended: Ended) -> int:
    """Say why a run has failed, if it has, and how it goes on; its exit code."""
    if ended.error is None:
        return 0
    line, _ = told(ended.error)
    text = f"netslim: {ended.job.folder} failed: {line}"
    if ended.goes_on:
        text += f"; go on with: {ended.job.command}"
    print(text, file=sys.stderr)
    return 1


def _show(results: dict[str, Any], folder: Path) -> None:
    from netslim.report import results_file
    from netslim.report.run_page import table

    lines = [f"note: {text}" for text in results["notes"]]
    lines += [f"warning: {text}" for text in results["warnings"]]
    files = {
        "network": results.get("network"),
        "results": results_file.NAME,
        "report": "report.html",
    }
    lines += [f"{what}: {folder / name}" for what, name in files.items() if name is not None]
    show(table(results), lines, width=100)
