"""How sensitive is a network? Each group of channels is cut alone and looked at on images set
apart, in a folder.

::

    sensitivity.jsonl  what was measured so far, a line a cut; a killed command goes on from it
    sensitivity.json   everything, once all cuts are measured: what `Sensitivity.load` reads
    sensitivity.csv    the same as a table
    sensitivity.png, sensitivity.svg, sensitivity-lines.*, sensitivity.html
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import netslim
import netslim.training.processes as processes
from netslim._support import using_threads, write_atomic
from netslim.errors import RecipeError
from netslim.methods.sensitivity_result import Row, Sensitivity
from netslim.report.chance import chance
from netslim.report.numbers import signed
from netslim.selection.criteria.registry import reads_data
from netslim.training.commands.looking import accuracy
from netslim.training.loop.progress import Display
from netslim.training.recipe.schema import Exploration, Recipe, plain
from netslim.training.stages.changes import differences, in_short
from netslim.training.stages.folder import RunFolder, digest, stranger
from netslim.training.stages.runner import Runner

# Of the data: where they lie and how they are read, not what they are.
_ELSEWHERE = ("root", "download", "workers", "augment")


class ExplorationFolder:
    """The folder of one exploration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "sensitivity.jsonl"
        self.results = path / "sensitivity.json"

    def refuse_strangers(self) -> None:
        """Leave a folder alone that holds something else.

        Raises:
            RecipeError: it is neither one of ours nor empty, or no folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"--out {self.path} is a file; give a folder")
        if self.journal.exists() or self.results.exists() or not self.path.is_dir():
            return
        if found := stranger(self.path):
            raise RecipeError(
                f"{self.path} is not empty and holds no sensitivity (but {found}); "
                "choose another --out"
            )

    def finished(self, settings: dict[str, Any]) -> Sensitivity | None:
        """What was measured, if all is.

        Raises:
            RecipeError: it was measured on another model or with other settings.
        """
        if not self.results.exists():
            return None
        found = Sensitivity.load(self.results)
        theirs = {key: found.settings.get(key) for key in settings}
        if unknown := [key for key in settings if key not in found.settings]:
            raise RecipeError(
                f"{self.path} was measured by another version of netslim, which had no {unknown[0]}"
                "; choose another --out. `netslim prune --limits` reads its sensitivity.json"
            )
        if wrong := list(differences(theirs, settings)):
            raise RecipeError(
                f"{self.path} was measured on another model or with other settings "
                f"({in_short(wrong)}); choose another --out, or repeat the old command"
            )
        return found

    def draw(self, found: Sensitivity) -> None:
        """Write what can be made from the results and is not there."""
        from netslim.report import figures, sensitivity_page

        data = found.to_dict()
        makers: dict[str, Callable[[], str | bytes | None]] = {
            "sensitivity.csv": found.to_csv,
            "sensitivity.png": lambda: figures.sensitivity(data, "png"),
            "sensitivity.svg": lambda: figures.sensitivity(data),
            "sensitivity-lines.png": lambda: figures.sensitivity_lines(data, "png"),
            "sensitivity-lines.svg": lambda: figures.sensitivity_lines(data),
            "sensitivity.html": lambda: sensitivity_page.page(data),
        }
        for name, make in makers.items():
            if not (self.path / name).exists() and (content := make()) is not None:
                write_atomic(self.path / name, content)


def explore(
    recipe: Recipe, out: Path, options: Exploration, display: Display | None = None
) -> Sensitivity:
    """Measure the sensitivity of a recipe's model and leave it in the folder `out`, or read what is
    there.

    Args:
        recipe: its model, data and trainer.
        out: a folder; what is measured already is not measured again.
        options: how.
        display: where progress is shown; standard error when not given.

    Raises:
        RecipeError: the folder belongs to something else, or the model does not fit the data.
        NetslimError: as `netslim.sensitivity`.
        KeyboardInterrupt: what is measured is kept.
    """
    processes.refuse_several(recipe.trainer)
    folder, settings = ExplorationFolder(out), _settings(recipe, options)
    folder.refuse_strangers()
    found = folder.finished(settings)
    if found is None:
        found = _measured(recipe, folder, options, settings, display or Display())
    folder.draw(found)
    return found


def _measured(
    recipe: Recipe,
    folder: ExplorationFolder,
    options: Exploration,
    settings: dict[str, Any],
    display: Display,
) -> Sensitivity:
    with using_threads(recipe.trainer.threads):
        runner = Runner(recipe, RunFolder(folder.path), display, "")
        network = runner.build().eval().to(runner.device)
        runner.refuse_masked()
        # One list serves both, so that what is scored and what statistics are taken from agree.
        count = options.recalibrate
        if reads_data(str(options.scoring.criterion)):
            count = max(count, options.batches)
        looking, labels = accuracy(runner, options.split, options.limit_images)
        batches = list(runner.bench.batches(count))
        with runner.folder.lock(), display.counting("sensitivity") as shown:

            def tell(row: Row, done: int, total: int) -> None:
                display.say(f"{done}/{total}  {_told(row)}")
                shown(row.group, done, total)

            found = netslim.sensitivity(
                network,
                runner.example()[:1].to(runner.device),
                looking,
                criterion=options.scoring,
                ratios=options.ratios,
                groups=options.layers or None,
                batches=batches or None,
                recalibrate=options.recalibrate,
                limits=options.limits,
                journal=folder.journal,
                settings=settings,
                progress=tell,
            )
            found = replace(
                found,
                settings={**found.settings, "images": len(labels)},
                notes=(*found.notes, *filter(None, [chance(found.baseline, labels)])),
            )
            found.save(folder.results)
    return found


def _told(row: Row) -> str:
    share = f"{100 * row.ratio:g} % ({row.removed} of {row.size})"
    return f"{row.group} without {share}: {row.value:.2%} ({signed(-100 * row.drop)} points)"


def _settings(recipe: Recipe, options: Exploration) -> dict[str, Any]:
    """All that the figures depend on, as plain data."""
    files = [digest(path)[:16] for path in map(Path, recipe.model.files) if path.is_file()]
    found = {
        "model": {"name": recipe.model.name, **recipe.model.kwargs},
        "file": next(iter(files), None),
        "data": {key: value for key, value in asdict(recipe.data).items() if key not in _ELSEWHERE},
        "seed": recipe.seed,
        "limit_batches": recipe.trainer.limit_batches,
        **plain(options),
    }
    return dict(json.loads(json.dumps(found)))
