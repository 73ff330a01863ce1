"""`search`: the smallest network within an accuracy drop, and the folder in which it is looked for.

::

    config.yaml          all settings
    environment.json     machine, versions, command
    original.json        the given network: its accuracy on the validation split, and what it costs
    candidates/
        0.0000/          the uncut network after the same training as every candidate
        0.4750/          cut by 47.5 %: a folder as that of a run, with 01-prune/, 02-recover/
            candidate.json   and, written last, accuracy and cost
    latency-table.json   with --resource latency: measured once, and the same for all candidates
    best.safetensors     a copy of the winner
    front.svg, front.png, report.html
    search.json          everything, written last

Every candidate is cut from the given network, never from another candidate, and nothing is deleted.
Started again after a kill, finished candidates are read from their folders, and training goes on
from its last epoch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

import netslim
import netslim.training.processes as processes
from netslim._support import read_bytes, read_text, using_threads, write_atomic
from netslim.errors import PlanError, RecipeError
from netslim.methods.search import SearchResult
from netslim.report import records
from netslim.report.records import Candidate
from netslim.report.search_page import notes, page, points, verdict
from netslim.training.loop.progress import Display
from netslim.training.recipe.checks import teacher
from netslim.training.recipe.files import read_settings, write_settings
from netslim.training.recipe.reading import of_command, override, parse_recipe
from netslim.training.recipe.schema import Prune, Recipe, SearchOptions, Stage, Train
from netslim.training.stages.changes import differences, differing, in_short
from netslim.training.stages.folder import (
    FORMAT,
    RunFolder,
    digest,
    read_json,
    with_defaults,
    write_json,
)
from netslim.training.stages.prune import latency_of
from netslim.training.stages.runner import Runner

Results = dict[str, Any]
_DRAWN = ("front.svg", "front.png", "report.html")
HIGH = 0.99  # no cut beyond it is tried
_OF_TRAINING = ("optimizer", "schedule", "distill")


def template(
    model: str,
    data: str,
    resource: str,
    cut: Mapping[str, Any],
    training: Mapping[str, Any],
    overrides: Mapping[str, str] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a candidate: a stage `prune`, and a stage `recover` unless its epochs are 0.

    Args:
        model: a checkpoint, or a network by name.
        data: name of a data set.
        resource: what is cut, see `SearchOptions`.
        cut, training: options of the two stages; as in a recipe.
        overrides: dotted keys; `optimizer.`, `schedule.` and `distill.` belong to the training.
        settings: further keys of the recipe.

    Raises:
        RecipeError: as `parse_recipe`; the amount is set, which the search does; or there is no
            validation split.
    """
    stages = [{"kind": "prune", "budget": {f"cut_{resource}": 0.5}, **cut}]
    if training.get("epochs") != 0:
        stages.append({"kind": "finetune", "name": "recover", **training})
    tree: dict[str, Any] = {"name": "search", "title": f"search {model}", **(settings or {})}
    tree["data"] = {"name": data, **tree.get("data", {})}
    tree["trainer"] = {"tensorboard": False, **tree.get("trainer", {})}
    tree |= {"model": {"name": model}, "stages": stages}
    for key, text in (overrides or {}).items():
        override(tree, of_command(key, "recover", _OF_TRAINING), text)
    recipe = parse_recipe(tree, whole=False)
    stage = recipe.stages[0]
    assert isinstance(stage, Prune)
    if (
        list(stage.budget.given()) != [f"cut_{resource}"]
        or stage.by != "scores"
        or stage.mode != "cut"
    ):
        raise RecipeError(
            "the search itself says how much is cut, by scores: leave budget, by and mode out"
        )
    if recipe.data.validation == 0:
        raise RecipeError("the search decides by validation images: set data.validation above 0")
    return recipe


def carry_out(
    recipe: Recipe,
    options: SearchOptions,
    out: Path,
    *,
    command: str = "",
    display: Display | None = None,
) -> Results:
    """Search, or go on with a search, or read what a finished one has found.

    Args:
        recipe: from `template`.
        options: what is looked for.
        out: the folder.
        command: what to type to repeat it.

    Returns:
        The contents of search.json; `best` is None where no cut passed, and then there is no
        best.safetensors.

    Raises:
        RecipeError: `out` holds something else, or a search with other settings.
        NetslimError: as the cut and the training do.
        KeyboardInterrupt: finished candidates and epochs are kept.
    """
    processes.refuse_several(recipe.trainer)
    folder = RunFolder(out)
    folder.refuse_strangers()
    with using_threads(recipe.trainer.threads):
        work = _Search(recipe, options, folder, display or Display(), command)
        work.check()
        if (shown := _shown(folder, work.settings())) is not None:
            return shown
        with folder.lock():
            _claim(folder, work.settings())
            found = _finished(folder) or work.go()
            work.show(found)
    return found


def _shown(folder: RunFolder, ours: Results) -> Results | None:
    """What a finished search has found, for which nothing needs to be written: the disk may be
    read-only.
    """
    if not all((folder.path / name).exists() for name in ("config.yaml", "search.json", *_DRAWN)):
        return None
    if list(differences(_theirs(folder), ours)):
        return None
    return _finished(folder)


def _finished(folder: RunFolder) -> Results | None:
    path = folder.path / "search.json"
    if not path.exists():
        return None
    return read_json(path, "move it away to have it written again", records.Search)


def _claim(folder: RunFolder, ours: Results) -> None:
    """Make the folder this search's own, or make sure that it already is."""
    if folder.config.exists():
        theirs = _theirs(folder)
        found = list(differences(theirs, ours))
        if not found:
            return
        if (folder.path / "candidates").exists():
            raise RecipeError(
                f"{folder.path} was begun with other settings ({in_short(found)}); choose another "
                f"--out, or go on as it was begun, with {_flags(theirs, ours)}"
            )
    write_settings(folder.config, ours)


def _theirs(folder: RunFolder) -> Results:
    """The settings of a folder by the names of this version, with the defaults of later options.

    Raises:
        RecipeError: they cannot be read, or are those of a run.
    """
    theirs = read_settings(folder.config, "choose another --out")
    if not isinstance(theirs.get("search"), dict):
        raise RecipeError(f"{folder.path} belongs to a run, not to a search; choose another --out")
    aim = dict(theirs["search"])
    if "over" in aim:  # of version 0.1
        aim["resource"] = aim.pop("over")
    return {**theirs, "search": aim, "recipe": with_defaults(theirs.get("recipe"))}


def _flags(theirs: Results, ours: Results) -> str:
    """What to type to have the settings of a folder."""
    typed = []
    for key, value, _ in differing(theirs, ours):
        section, _, name = key.partition(".")
        if name == "model_sha256":
            return "MODEL as it was then: the file has changed"
        flag = name
        if section == "search":
            flag = name.replace("_", "-")
        typed.append(f"--{flag} {shlex.quote(_yaml(value))}")
    return " ".join(typed)


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)


class _Search:
    """The state of a search at work."""

    def __init__(
        self,
        recipe: Recipe,
        options: SearchOptions,
        folder: RunFolder,
        display: Display,
        command: str,
    ) -> None:
        self.recipe, self.options, self.folder = recipe, options, folder
        self.display, self.command = display, command
        self.runner = self._runner(recipe, folder)

    def settings(self) -> Results:
        """What config.yaml holds; of a checkpoint the contents count, for candidates of two do not
        compare.
        """
        plain: Results = json.loads(json.dumps(asdict(self.options)))
        for file in self.recipe.model.files:
            plain["model_sha256"] = digest(Path(file))
        return {"search": plain, "recipe": self.recipe.to_dict()}

    def check(self) -> None:
        """Build what the search needs, so that mistakes show before anything is written."""
        self.runner.build()
        self.runner.refuse_masked()
        self.runner.images_of("validation")
        for stage in self.recipe.stages:
            if isinstance(stage, Train) and stage.distill is not None:
                wanted = teacher(self.recipe, stage)
                assert isinstance(wanted, str)  # no training stage comes before it
                self.runner.teacher(wanted, stage.distill)

    def go(self) -> Results:
        self.runner.note_environment()
        original = self.original()
        trained = self.trained()
        baseline = {"given": original, "trained": trained}[self.options.reference]
        found = netslim.search(
            self.candidate,
            lambda row: row["accuracy"],
            max_drop=self.options.max_drop / 100,
            baseline=baseline["accuracy"],
            high=HIGH,
            tolerance=self.options.tolerance,
            max_tries=self.options.tries,
        )
        best: Results | None = None
        if found.best is not None:
            best = self.candidate(found.best.share)
        tests = self.tests(best)
        if best is not None:
            write_atomic(self.folder.path / "best.safetensors", read_bytes(self.model_of(best)))
        results = self.results(found, original, trained, best, tests)
        write_json(self.folder.path / "search.json", results)
        return results

    def results(
        self,
        found: SearchResult[Results],
        original: Results,
        trained: Results,
        best: Results | None,
        tests: Results,
    ) -> Results:
        """The contents of search.json."""
        rows = [{"key": "original", **original}]
        if len(self.recipe.stages) > 1:
            rows.append({"key": "trained", **trained})
        for item in found.candidates:
            rows.append({"key": "candidate", "passed": item.passed, **self._row(item.share)})
        return {
            "format": FORMAT,
            "title": f"The smallest {Path(self.recipe.model.name).name} within "
            f"{points(self.options.max_drop)}",
            "command": self.command,
            **asdict(self.options),
            "baseline": found.baseline,
            "epochs": sum(stage.epochs for stage in self.recipe.stages if isinstance(stage, Train)),
            "rows": [{key: value for key, value in row.items() if key != "format"} for row in rows],
            "best": best and best["share"],
            "verdict": verdict(found, self.options.resource, self.options.max_drop),
            "notes": list(self._notes(original, trained)),
            "tests": tests,
            "seconds": round(sum(row.get("seconds", 0.0) for row in rows), 3),
            "environment": self.folder.noted_environment(),
        }

    def _notes(self, original: Results, trained: Results) -> Iterator[str]:
        labels = self.runner.bench.labels(self.runner.data.validation)
        from_given = self.options.reference == "given"
        return notes(original, trained, labels, self.options.max_drop, from_given)

    def _row(self, share: float) -> Results:
        return read_json(
            self.folder.path / "candidates" / f"{share:.4f}" / "candidate.json", "", Candidate
        )

    def show(self, found: Results) -> None:
        """Draw what is not drawn yet."""
        from netslim.report import figures

        for name in _DRAWN:
            path = self.folder.path / name
            if path.exists():
                continue
            if path.suffix == ".html":
                write_atomic(path, page(found, read_text(self.folder.config)))
            else:
                write_atomic(path, figures.front(found, path.suffix[1:]))

    # ------------------------------------------------------------ networks

    def original(self) -> Results:
        """The given network on the validation split."""
        path = self.folder.path / "original.json"
        if path.exists():
            return read_json(path, "move it away to have it measured again", Candidate)
        found = {"format": FORMAT, **self.look(self.runner.construct())}
        write_json(path, found)
        self.display.say(f"given network: validation accuracy {found['accuracy']:.2%}")
        return found

    def trained(self) -> Results:
        """The uncut network after the same training; the given one where there is none."""
        training = self.recipe.stages[1:]
        if not training:
            return self.original()
        return self.made(
            0.0, replace(self.recipe, stages=training), "the given network, uncut, trained alike"
        )

    def candidate(self, share: float) -> Results:
        """Cut the given network by this share and let it recover, or read what is finished.

        Raises:
            PlanError: no plan reaches the share.
        """
        stage = self.recipe.stages[0]
        assert isinstance(stage, Prune)
        amount: Results = {f"cut_{self.options.resource}": share}
        stages: tuple[Stage, ...] = (
            # What it takes is asked of the same table for all, so that shares can be compared.
            replace(
                stage,
                budget=replace(stage.budget, **amount),
                latency=replace(stage.latency, check=False),
            ),
            *self.recipe.stages[1:],
        )
        row = self.made(
            share,
            replace(self.recipe, stages=stages),
            f"candidate: cut {share:.1%} of {self.options.resource}",
        )
        if "unreachable" in row:
            raise PlanError(row["unreachable"])
        return row

    def made(self, share: float, recipe: Recipe, headline: str) -> Results:
        folder = RunFolder(self.folder.path / "candidates" / f"{share:.4f}")
        path = folder.path / "candidate.json"
        if path.exists():
            return read_json(path, f"move {folder.path} away to have it made again", Candidate)
        folder.path.mkdir(parents=True, exist_ok=True)
        if not folder.config.exists():
            folder.claim(recipe)
        self.display.say(headline)
        row: Results = {"format": FORMAT, "share": share}
        try:
            row |= self.work(recipe, folder)
        except PlanError as error:
            row["unreachable"] = str(error)
            self.display.say(f"  cannot be reached: {error}")
        else:
            self.display.say(f"  validation accuracy {row['accuracy']:.2%}")
        write_json(path, row)
        return row

    def work(self, recipe: Recipe, folder: RunFolder) -> Results:
        runner = self._runner(recipe, folder)
        runner.data = self.runner.data
        found = [runner.stage(index, stage) for index, stage in enumerate(recipe.stages)]
        look = self.look(runner.network_of(len(found) - 1))
        widths: list[Results] = next((stage["widths"] for stage in found if "widths" in stage), [])
        left = {}
        if widths:
            left["channels"] = sum(layer["after"] for layer in widths)
        seconds = round(sum(stage["seconds"] for stage in found), 3)
        return {
            **look,
            **left,
            "seconds": seconds,
            "model": f"{runner.folders[-1].label}/model.safetensors",
        }

    def model_of(self, row: Results) -> Path:
        return self.folder.path / "candidates" / f"{row['share']:.4f}" / str(row["model"])

    def _runner(self, recipe: Recipe, folder: RunFolder) -> Runner:
        return Runner(recipe, folder, self.display, self.command)

    # ------------------------------------------------------------ looking

    def look(self, network: nn.Module, split: str = "validation") -> Results:
        """Accuracy on a split, and what one image costs."""
        means = self._means(network, split)
        example = self.runner.example()[:1]
        cost = netslim.cost(network.eval(), example)
        graph = netslim.trace(network, example)
        size = {
            "channels": sum(group.size for group in graph.prunable),
            "activations": graph.activations(),
        }
        return {
            **means,
            "params": cost.params,
            "macs": cost.macs,
            **size,
            **self._milliseconds(network),
        }

    def _milliseconds(self, network: nn.Module) -> Results:
        """As the table tells: measured times of candidates would differ by chance."""
        if self.table is None:
            return {}
        images = self.runner.example()[:1].expand(*self.table.inputs[0])
        return {"latency": self.table.ms(netslim.trace(network, images))}

    @property
    def table_file(self) -> Path:
        stage = self.recipe.stages[0]
        assert isinstance(stage, Prune)
        if stage.latency.table is not None:
            return Path(stage.latency.table)
        return self.folder.path / "latency-table.json"

    @cached_property
    def table(self) -> netslim.measure.LatencyTable | None:
        """How long layers take; where it has to be measured, it is kept for all candidates."""
        stage = self.recipe.stages[0]
        assert isinstance(stage, Prune)
        if self.options.resource != "latency":
            return None
        if stage.limits.blocks:
            raise RecipeError(
                "a search by latency drops no block, for its table is of all layers: leave "
                "--blocks out, or search by another resource"
            )
        if not self.table_file.exists():
            self.display.say("measuring how long layers take at every width")
            network, example = self.runner.construct().eval(), self.runner.example()
            with self.display.counting("layer times") as progress:
                measured = latency_of(stage, network, example, progress)
            assert measured is not None
            measured.save(self.table_file)
        return netslim.measure.LatencyTable.load(self.table_file)

    def _means(self, network: nn.Module, split: str) -> Results:
        bench = self.runner.bench
        means = bench.means(network, bench.loader(split))
        network.cpu()
        return {"accuracy": means.accuracy, "loss": means.loss, "top5": means.top5}

    def tests(self, best: Results | None) -> Results:
        """The one look at the test images: the given network and the winner."""
        if not len(self.runner.data.test):
            return {}
        found = {"original": self._means(self.runner.construct(), "test")}
        if best is not None:
            network = netslim.load(self.runner.fresh(), self.model_of(best))
            found["best"] = self._means(network, "test")
        return found
