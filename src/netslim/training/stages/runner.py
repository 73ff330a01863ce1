"""`run`: from a recipe to a run folder with results and a report.

::

    claim the folder                            another recipe's folder is refused
    try what the stages ahead ask for           before anything is trained
    for stage in recipe.stages:
        if its stage.json is there: go on       finished work is never done twice
        network = a fresh one, filled from the stage before
        train | prune | quantize | measure      a training stage goes on from its last.ckpt
        write model.safetensors, then stage.json
    results.json, report.html
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import netslim
import netslim.ranks as ranks
import netslim.training.processes as processes
from netslim._support import (
    Thing,
    call_checked,
    expect,
    many,
    read_bytes,
    read_text,
    using_threads,
    write_atomic,
)
from netslim.data.loader import Loader
from netslim.data.unreadable import told as told_unreadable
from netslim.errors import RecipeError
from netslim.graph.modules.walk import fingerprint
from netslim.methods.cutting import Cut
from netslim.methods.gradual import GradualPruning
from netslim.methods.slimming import hardly_moved_by
from netslim.models.fetched import SOURCES
from netslim.report.chance import chance, chance_among
from netslim.selection.defaults import AUTO
from netslim.surgery import Verification
from netslim.surgery.history import history
from netslim.surgery.plan import PruningPlan
from netslim.surgery.stale import told_in
from netslim.training.loop import auto_strength, fit
from netslim.training.loop.adapters import LOGGED
from netslim.training.loop.classifier import OPTIMIZERS
from netslim.training.loop.divergence import FAR, blind
from netslim.training.loop.epochs import Row, derive
from netslim.training.loop.progress import Display, silent
from netslim.training.recipe.checks import cuts, imitated, teacher, wanted_share
from netslim.training.recipe.orders import wasted
from netslim.training.recipe.schedule import lengthened
from netslim.training.recipe.schema import (
    Baseline,
    Convert,
    Measure,
    Prune,
    Quantize,
    Recipe,
    Scratch,
    SlimmingOptions,
    Stage,
    Train,
)
from netslim.training.stages import outcome
from netslim.training.stages import prune as cutting
from netslim.training.stages import quantize as quantizing
from netslim.training.stages.environment import describe, moved, told
from netslim.training.stages.folder import FORMAT, RunFolder, StageFolder, read_json, write_json
from netslim.training.stages.foresight import foresee
from netslim.training.stages.headlines import headline
from netslim.training.stages.measure import AS_BUILT, Entry, crowded, entries, timed
from netslim.training.stages.networks import Networks, Results, check_shares
from netslim.training.stages.onnx_network import InOnnxRuntime
from netslim.training.stages.results import assemble

_CURVES = ("epoch", "train_loss", "penalty", "val_loss", "val_accuracy", "near_zero")
_EQUAL = 1e-2  # a deviation within a cluster that the mean may hide
_NOT_EQUAL = (
    "the filters of a cluster still differ by {:.2g} of their size; they were set to their "
    "mean, which changes the network (train longer, or with a larger strength or learning rate)"
)


def _takes_a_recipe(function: Thing) -> Thing:
    """`checks_calls`, and whoever gives a name is told what reads it."""

    def check(given: Mapping[str, Any]) -> None:
        expect(given["recipe"], Recipe, "recipe", "run(load_recipe('digits'))")

    return call_checked(function, check=check)


@_takes_a_recipe
def run(
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    *,
    command: str | None = None,
    display: Display | None = None,
    changed_ok: bool = False,
    beside: int = 0,
) -> Results:
    """Carry out a recipe, or what is left of it, and return the contents of results.json.

    Args:
        recipe: from `load_recipe`.
        out: the run folder; `runs/<name of the recipe>` when not given.
        command: what to type to repeat the run, for the report.
        display: where progress is shown; standard error when not given.
        changed_ok: go on, and note it, where the data or the versions of packages are no longer
            those that the run began with.
        beside: how many other runs share the machine with it, which is noted with its times.

    Raises:
        NetslimError: whatever goes wrong; finished stages and epochs are kept.
        KeyboardInterrupt: likewise.

    Example:
        >>> short = {"stages.sparse.epochs": "1", "stages.finetune.epochs": "1"}
        >>> recipe = netslim.training.load_recipe("digits", {"data.subset": "64", **short})
        >>> results = netslim.training.run(recipe, "runs/digits")
        >>> results["recipe"]
        'digits'
    """
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name)
    display = display or Display()
    command = command or shlex.join(["netslim", "run", recipe.name, "--out", str(folder.path)])
    folder.refuse_strangers()
    if processes.place().world == 1 and (shown := _shown(folder, recipe)) is not None:
        return shown
    if processes.to_start(recipe.trainer):
        again = partial(run, command=command, changed_ok=changed_ok, beside=beside)
        processes.start(recipe.trainer, partial(again, recipe, folder.path))
        return read_json(folder.results, "it was written on the first machine")
    with processes.joined(recipe.trainer) as here, ExitStack() as held:
        if here.rank:
            display = silent()
        ranks.everywhere("the batch size", partial(check_shares, recipe))
        notice = ranks.shared("the run folder", lambda: claimed(folder, recipe, held))
        if notice:
            display.say(notice)
        results = ranks.shared("the results", lambda: finished(folder, recipe))
        if results is None:
            with using_threads(recipe.trainer.threads):
                results = Runner(recipe, folder, display, command, changed_ok, beside).go()
        if ranks.first() and not folder.report.exists():
            _write_report(folder)
    return results


def _shown(folder: RunFolder, recipe: Recipe) -> Results | None:
    """The results of a finished run, for which nothing needs to be written: the disk may be
    read-only.
    """
    if not folder.report.exists() or not folder.belongs_to(recipe):
        return None
    return finished(folder, recipe)


def claimed(folder: RunFolder, recipe: Recipe, held: ExitStack) -> str | None:
    """Lock the folder, for as long as `held` is open, and make it this recipe's own."""
    held.enter_context(folder.lock())
    return folder.claim(recipe)


def finished(folder: RunFolder, recipe: Recipe) -> Results | None:
    """The results of a finished run; damaged ones count as missing, for they can be made again, and
    so do those of a run of which a stage was moved away.

    Raises:
        RecipeError: what a stage has left is no longer what it wrote.
    """
    if not folder.results.exists():
        return None
    done = [folder.stage(index, stage).results() for index, stage in enumerate(recipe.stages)]
    if None in done:
        return None
    try:
        return folder.read_results()
    except RecipeError:
        return None


def _write_report(folder: RunFolder) -> None:
    from netslim.report import run_page

    run_page.write(folder.path)


class Runner(Networks):
    """Carries out the stages of a run, one after the other, and leaves finished ones alone."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        display: Display,
        command: str,
        changed_ok: bool = False,
        beside: int = 0,
    ) -> None:
        super().__init__(recipe, folder, display)
        self.command, self.changed_ok, self.beside = command, changed_ok, beside

    def accepts(self, changed: list[str]) -> bool:
        """Whether what has changed under the run was accepted, now or once before; it is told then,
        and noted beside the environment.
        """
        noted: Results = {"format": FORMAT, **self.folder.noted_environment()}
        news = [text for text in changed if text not in noted.get("changed", [])]
        if not news:
            return True
        if not self.changed_ok:
            return False
        for text in news:
            self.display.warn(f"{text}: accepted")
        write_json(
            self.folder.environment, {**noted, "changed": [*noted.get("changed", []), *news]}
        )
        return True

    def go(self) -> Results:
        """All stages, the results and the report."""
        first = ranks.shared("what is finished", self._first_unfinished)
        self.agree()
        for text in wasted(self.recipe):
            self.display.say_once(text)
        ranks.everywhere("the stages ahead", lambda: foresee(self, first))
        ranks.shared("the environment", self.note_environment)
        ranks.shared("the results of before", lambda: self._let_go(first))
        done = [self.stage(index, stage) for index, stage in enumerate(self.recipe.stages)]
        return ranks.shared("the results", lambda: self._written(done))

    def _first_unfinished(self) -> int:
        """The number of the first stage that is not finished; those behind it may be."""
        for index, folder in enumerate(self.folders):
            if folder.results() is None:
                return index
        return len(self.folders)

    def _let_go(self, first: int) -> None:
        """Remove what was made with stage `first`, which has to be carried out once more."""
        if first < len(self.folders) and self.folder.forget_results():
            self.display.say(
                f"note: the results and the report of before were made with a "
                f"{self.folders[first].label} that is no longer there; they are removed, and made "
                "anew from the stages"
            )

    def _written(self, done: Sequence[Results]) -> Results:
        results = assemble(self.recipe, done, self.folder.noted_environment(), self.command)
        write_json(self.folder.results, results)
        _write_report(self.folder)
        return results

    def note_environment(self) -> None:
        """Write down where the run takes place, and tell what of it decides the last bits."""
        here = {"format": FORMAT, **describe(self.device, self.precision, self.command)}
        self.display.say(told(here))
        if first := self.folder.noted_environment():
            first.setdefault("resumed", []).append(here["date"])
            if text := moved(first, here):
                self.display.say(f"note: {text}")
                first["changed"] = [*dict.fromkeys([*first.get("changed", []), text])]
            here = first
        write_json(self.folder.environment, here)

    def stage(self, index: int, stage: Stage) -> Results:
        """What stage `index` found; it is carried out if it is not finished."""
        folder = self.folders[index]
        done = ranks.shared(f"what {folder.label} has left", folder.results)
        if done is not None:
            return done
        self.display.say(f"{folder.label}  {headline(stage)}")
        folder.path.mkdir(exist_ok=True)
        work: dict[type[Any], Callable[..., Results]] = {
            Prune: partial(_by_one, self._prune),
            Convert: partial(_by_one, self._convert),
            Quantize: partial(_by_one, self._quantize),
            Baseline: self._baseline,
            Scratch: self._scratch,
            Measure: self._measure,
        }
        found = work.get(type(stage), self._train)(index, stage, folder)
        return ranks.shared(
            f"what {folder.label} leaves", lambda: folder.finish({"kind": stage.kind, **found})
        )

    # ------------------------------------------------------------ training

    def _train(self, index: int, stage: Train, folder: StageFolder) -> Results:
        doubts = list(self._doubts(index, stage))
        for text in doubts:
            self.display.warn(text)
        found = self._trained(index, stage, folder)
        return {**found, "warnings": [*doubts, *found["warnings"]]}

    def _doubts(self, index: int, stage: Train) -> Iterator[str]:
        """What is asked for, and is hardly meant."""
        options, kind = stage.sparsity, OPTIMIZERS[stage.optimizer.name]
        if not isinstance(options, SlimmingOptions):
            return
        given = options.strength != "auto"  # which takes a penalty that the optimizer leaves alone
        if _slims(stage) and given and (doubt := hardly_moved_by(kind, options.penalty)):
            yield doubt
        before = any(isinstance(item, Train) for item in self.recipe.stages[:index])
        if options.gamma_init is not None and (before or self.recipe.model.trained):
            yield (
                f"gamma_init sets every scale to {options.gamma_init:g}, and those that were "
                "trained before are lost: leave it out to keep them"
            )

    def _trained(self, index: int, stage: Train, folder: StageFolder) -> Results:
        mask, taught_by = self._mask(index), self._teacher(stage)
        if isinstance(stage.sparsity, SlimmingOptions) and stage.sparsity.strength == "auto":
            return self._with_found_strength(index, stage, folder, taught_by)
        network = self.network_before(index)
        return self._fit(stage, folder, network, index, mask=mask, teacher=taught_by)

    def _with_found_strength(
        self, index: int, stage: Train, folder: StageFolder, taught_by: nn.Module | None
    ) -> Results:
        """Short runs first; what they find is on disk before the training starts."""
        network, seed = self.network_before(index), derive(self.recipe.seed, "strength", index)
        target = wanted_share(self.recipe, stage)
        stage, told = auto_strength.with_penalty(stage)
        if told:
            self.display.say(f"{folder.label}  {told}")
        choice = auto_strength.find_strength(
            self.bench, network, stage, target, folder, seed, teacher=taught_by
        )
        stage = auto_strength.with_strength(stage, choice)
        found = self._fit(stage, folder, network, index, teacher=taught_by)
        left = f"it left {found['curves']['near_zero'][-1]:.0%}"
        self.display.say(
            f"{folder.label}  {choice['share']:.0%} of the scales were expected near zero: {left}"
        )
        choice.pop("format")
        warnings = list(found["warnings"])
        if choice["warning"]:
            warnings.append(choice["warning"])
        found_so = f"{auto_strength.sentence(choice)}: {left}"
        remarks = [*found["remarks"], *filter(None, [told]), found_so]
        return {**found, "warnings": warnings, "remarks": remarks, "strength": choice}

    def _teacher(self, stage: Train) -> nn.Module | None:
        if stage.distill is None:
            return None
        found = teacher(self.recipe, stage)
        if isinstance(found, str):
            return self.teacher(found, stage.distill)
        return self.network_of(found)

    def _baseline(self, index: int, stage: Baseline, folder: StageFolder) -> Results:
        """The imitated stage's seed too, so that both see the same batches in the same order."""
        like, settings = imitated(self.recipe, stage)
        return self._fit(settings, folder, self.build(), like)

    def _scratch(self, index: int, stage: Scratch, folder: StageFolder) -> Results:
        """The architecture in hand with the fresh weights of the channels that stay."""
        _, settings = imitated(self.recipe, stage)
        example, plan = self.example()[:1], history(self.network_before(index))
        torch.manual_seed(derive(self.recipe.seed, "scratch"))
        whole = self.fresh()
        small = whole
        if plan is not None:
            small = netslim.prune(whole, _dropping(plan))
        ratio = netslim.cost(whole, example).macs / netslim.cost(small, example).macs
        longer = {"E": 1.0, "B": ratio}[stage.length]
        settings = lengthened(settings, longer)
        return {"macs_ratio": round(ratio, 6), **self._fit(settings, folder, small, index)}

    def _mask(self, index: int) -> PruningPlan | None:
        """The plan of the mask that stage `index` works under, if any."""
        text: str | None = self.given.get("mask")
        for position, stage in enumerate(self.recipe.stages[:index]):
            if isinstance(stage, Prune) and stage.mode == "mask":
                text = ranks.shared("the mask", partial(read_text, self.folders[position].plan))
            elif isinstance(stage, Prune | Convert):
                text = None
        if text is None:
            return None
        return PruningPlan.from_json(text)

    def _fit(
        self,
        stage: Train,
        folder: StageFolder,
        network: nn.Module,
        index: int,
        *,
        mask: PruningPlan | None = None,
        teacher: nn.Module | None = None,
    ) -> Results:
        seed = derive(self.recipe.seed, "stage", index)
        trained = fit.fit(self.bench, network, stage, folder, seed, mask=mask, teacher=teacher)
        shrunk = {}
        nothing = self._learnt_nothing(trained)
        remarks = [*filter(None, [nothing]), *_left_out(trained.unreadable)]
        if trained.pruning is not None:
            shrunk = _shrunk(trained.pruning, folder)
            remarks += _chosen(trained.pruning.plan)
        for text in remarks:
            if text != nothing or not self._learnt_nothing_before(index):
                self.display.say(f"{folder.label}  {text}")
        noted = dict(trained.left)
        if mask is not None:
            noted["mask"] = mask.to_json()
        if _slims(stage):
            noted["slimmed"] = True
        self.save(network, folder, noted)
        notice = self._gradual_notice(stage, index, trained.pruning)
        if notice:
            self.display.say_once(notice)
            remarks.append(notice)
        rows, classes = trained.rows, len(self.data.classes)
        warnings = [*_all_dead(stage, rows), *_far_off(stage, rows, classes)]
        for text in warnings:
            self.display.warn(text)
        deviation = rows[-1]["deviation"]
        if deviation is not None and deviation > _EQUAL:
            warnings.append(_NOT_EQUAL.format(deviation))
            self.display.warn(warnings[-1])
        return {
            "warnings": warnings,
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "curves": _curves(rows),
            "histograms": trained.histograms,
            "sparse": _slims(stage),
            **_scales_of_a_layer(stage, trained),
            "best": trained.best or None,
            "remarks": remarks,
            "learnt_nothing": nothing,
            "unreadable": list(trained.unreadable),
            **trained.left,
            **shrunk,
        }

    def _learnt_nothing(self, trained: fit.History) -> str | None:
        """That the weights which are kept are right no more often on validation images than blind
        answers.
        """
        accuracy = {**trained.rows[-1], **trained.best}["val_accuracy"]
        if accuracy is None:
            return None
        said = chance(accuracy, self.bench.labels(self.data.validation))
        return said and f"validation: {said}"

    def _learnt_nothing_before(self, index: int) -> bool:
        """Whether a stage before this one has said so: once is enough while a run goes on."""
        before = (folder.results() or {} for folder in self.folders[:index])
        return any(found.get("learnt_nothing") for found in before)

    # ------------------------------------------------------------ cutting

    def _prune(self, index: int, stage: Prune, folder: StageFolder) -> Results:
        started = time.perf_counter()
        network, example = self.network_before(index).eval(), self.example()
        with self.display.counting(folder.label) as progress:
            done = cutting.carry_out(
                stage,
                network,
                example,
                self.bench.batches,
                self._clusters(index),
                self.recipe.seed,
                progress=progress,
            )
        notice = self._slimmed(index) and cutting.notice(stage, done.plan)
        if notice:
            self.display.say_once(notice)
            done = replace(done, notes=(notice, *done.notes))
        return self._left(done, folder, started)

    def _convert(self, index: int, stage: Convert, folder: StageFolder) -> Results:
        started, plan = time.perf_counter(), self._mask(index)
        assert plan is not None  # the recipe was checked
        network = self.network_before(index).eval()
        return self._left(cutting.convert(network, plan, self.example()), folder, started)

    def _quantize(self, index: int, stage: Quantize, folder: StageFolder) -> Results:
        started, network = time.perf_counter(), self.network_before(index)
        with self.display.counting(folder.label) as progress:
            done = quantizing.carry_out(
                stage,
                network,
                self.example(),
                self.bench.batches,
                self.data.preprocessing,
                folder.forms,
                progress,
            )
        told = quantizing.told(done)
        self.display.say(f"{folder.label}  {told}")
        return {
            "seconds": round(time.perf_counter() - started, 3),
            "noise": done.noise,
            "layers": [done.layers, done.of],
            "remarks": [told],
        }

    def _left(self, done: Cut[nn.Module], folder: StageFolder, started: float) -> Results:
        """What a cut left; a mask, which is not proved until it is cut, leaves its plan alone."""
        write_atomic(folder.plan, done.plan.to_json())
        masked = done.check is None
        noted = {}
        if masked:
            noted["mask"] = done.plan.to_json()
        self.save(done.network, folder, noted)
        mended = map(str, done.mended)
        for text in (*_chosen(done.plan), *told_in(done.plan.notes), *mended):
            self.display.say(f"{folder.label}  {text}")
        for warning in done.warnings:
            self.display.warn(warning)
        return {
            "seconds": round(time.perf_counter() - started, 3),
            **_proof(done.check),
            **outcome.where(done.graph, done.plan, masked),
            **outcome.scored(done.plan),
            "notes": list(done.plan.notes),
            "remarks": [*_chosen(done.plan), *done.notes],
            "warnings": list(done.warnings),
            "mended": [asdict(one) for one in done.mended],
        }

    def _slimmed(self, index: int) -> bool:
        """Whether Network Slimming has trained what stage `index` starts from, and nothing was cut
        since; plain training in between leaves small scales small.
        """
        for stage in reversed(self.recipe.stages[:index]):
            if cuts(stage) or isinstance(stage, Convert):
                return False
            if isinstance(stage, Train) and stage.sparsity is not None:
                return _slims(stage)
        return bool(self.given.get("slimmed"))

    def _gradual_notice(
        self, stage: Train, index: int, pruning: GradualPruning | None
    ) -> str | None:
        """As `stages.prune.notice`, of a stage that cut on its way."""
        if pruning is None or stage.gradual is None or stage.gradual.scoring.criterion != AUTO:
            return None
        taken = str(pruning.scoring.criterion)
        slimmed = _slims(stage) or self._slimmed(index)
        if not slimmed or taken == "bn_scale":
            return None
        return cutting.unnamed(taken)

    def _clusters(self, index: int) -> dict[str, list[int]] | None:
        """What the last centripetal stage drew together, unless something was cut since."""
        for position in reversed(range(index)):
            if cuts(self.recipe.stages[position]):
                return None
            found = (self.folders[position].results() or {}).get("clusters")
            if found:
                return dict(found)
        return self.given.get("clusters")

    # ------------------------------------------------------------ measuring

    def _measure(self, index: int, stage: Measure, folder: StageFolder) -> Results:
        """The only place where the test set is looked at."""
        started = time.perf_counter()
        found = entries(self.recipe)
        networks = {entry.key: self._measured(entry).eval() for entry in found}
        where = (self.data.shape, self.device)
        with self.display.counting(folder.label) as progress:
            latencies = ranks.shared(
                "the latencies", lambda: timed(stage, networks, *where, self.beside, progress)
            )
        rows, loader, costs = [], self.bench.loader("test"), dict[str, netslim.measure.Cost]()
        for entry in found:
            row: Results = {"key": entry.key, "label": entry.label}
            row |= self._counts(entry, networks[entry.key], costs)
            row |= self._answers(networks[entry.key], loader)
            sized = partial(self._size, entry, networks[entry.key], folder)
            row |= {"size_bytes": ranks.shared("the size of a file", sized)}
            rows.append(row | {"latency_ms": latencies[entry.key]})
        accuracies = {row["label"]: row["accuracy"] for row in rows}
        by_chance, said = chance_among(accuracies, self.bench.labels(self.data.test))
        own = ranks.gathered("the test pictures that are left out", loader.unreadable)
        unreadable = [one for rank in own for one in rank]
        return {
            "seconds": round(time.perf_counter() - started, 3),
            "rows": rows,
            "notes": [
                *self.data.notes,
                *_left_out(unreadable),
                *filter(None, [said]),
                *quantizing.where(entry.form for entry in found),
                *crowded(self.beside),
            ],
            "by_chance": by_chance,
            "images": self.data.preprocessing.to_json(),
            "network": self._file_of([entry.index for entry in found if entry.form == "torch"][-1]),
            **self._built_by(),
            "test_images": len(self.bench.labels(self.data.test)),
            "unreadable": [*self.data.unreadable, *unreadable],
        }

    def _measured(self, entry: Entry) -> nn.Module:
        """What a row is about, ready to be asked."""
        if entry.form == "torch":
            return self.network_of(entry.index)
        file = getattr(self.folders[entry.index].forms, entry.form)
        return InOnnxRuntime(ranks.shared("the file of a stage", partial(read_bytes, file)))

    def _counts(
        self, entry: Entry, network: nn.Module, costs: dict[str, netslim.measure.Cost]
    ) -> Results:
        """Parameters and MACs; those of a file are those of the network that it was made of, and
        those of a network are those of the others in the run that have its shapes.

        Before it is evaluated, which moves the network to the device of the run.
        """
        file = entry.form != "torch"
        if file:
            network = self.network_before(entry.index).eval()
        made = fingerprint(network)
        if made not in costs:
            costs[made] = netslim.cost(network, self.example()[:1])
        found: Results = {"params": costs[made].params, "macs": costs[made].macs}
        if not file:  # another runtime keeps other tensors
            found["peak_bytes"] = costs[made].peak_bytes
        return found

    def _answers(self, network: nn.Module, loader: Loader) -> Results:
        means = self.bench.means(network, loader)
        return {"accuracy": means.accuracy, "top5": means.top5, "loss": means.loss}

    def _built_by(self) -> Results:
        """What builds the network of a file, and whether that is to be trusted by who builds it."""
        name = self.origin.get("name", "")
        source, _, _ = name.partition(":")
        return {"constructor": name or None, "trust": source not in SOURCES}

    def _file_of(self, index: int) -> str | None:
        """The network that stage `index` left, within the run folder; None if none did."""
        if index == AS_BUILT:
            return None
        model = self.folders[index].model
        return f"{model.parent.name}/{model.name}"

    def _size(self, entry: Entry, network: nn.Module, folder: StageFolder) -> int:
        """Bytes of the network's file; one that no stage made is written beside the results."""
        if entry.index == AS_BUILT:
            self.save(network, folder, {})
            return folder.model.stat().st_size
        made = self.folders[entry.index]
        files = {"torch": made.model, "exact": made.forms.exact, "int8": made.forms.int8}
        return files[entry.form].stat().st_size


def _by_one(work: Callable[..., Results], *args: Any) -> Results:
    """What one rank finds that does the work by itself, from all data; the others read what it
    wrote.
    """

    def decide() -> Results:
        with ranks.alone():
            return work(*args)

    return ranks.shared("what a stage does", decide)


def _all_dead(stage: Train, rows: Sequence[Row]) -> Iterator[str]:
    """Where a penalty has left no channel that matters."""
    options = stage.sparsity
    if not isinstance(options, SlimmingOptions) or rows[-1]["near_zero"] != 1.0:
        return
    yield (
        "all scales are near zero, so that none tells which channels matter: the strength of "
        f"{options.strength:g} is too large here; try a tenth of it "
        f"(--stages.{stage.name}.sparsity.strength {float(options.strength) / 10:g}), with a new "
        "--out"
    )


def _far_off(stage: Train, rows: Sequence[Row], classes: int) -> Iterator[str]:
    """Where a stage that was too short to be stopped has ended with a loss that has exploded."""
    loss, guessed = rows[-1]["train_loss"] - rows[-1]["penalty"], blind(classes, stage.distill)
    if loss > FAR * guessed:
        yield (
            f"training has diverged: the loss of the last epoch is {loss:.3g}, more than {FAR:g} "
            f"times that of blind guessing ({guessed:.2f}); try a lower learning rate "
            f"(--stages.{stage.name}.optimizer.lr {stage.optimizer.lr / 10:g}), with a new --out"
        )


def _slims(stage: Train) -> bool:
    """Whether a stage trains by Network Slimming, and not only with its first scales."""
    return isinstance(stage.sparsity, SlimmingOptions) and stage.sparsity.strength != 0


def _left_out(unreadable: Sequence[str]) -> Iterator[str]:
    """What is said of pictures that could not be read, if there were any."""
    if unreadable:
        yield f"{told_unreadable(unreadable)}."


def _curves(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The columns of metrics.csv that the report draws; of a method's, those that it fills."""
    logged = [key for key in LOGGED if any(row[key] is not None for row in rows)]
    return {key: [row[key] for row in rows] for key in (*_CURVES, *logged)}


def _shrunk(pruning: GradualPruning, folder: StageFolder) -> Results:
    """What a training stage cut on its way; the proof is that of the last cut."""
    if ranks.first():
        write_atomic(folder.plan, pruning.plan.to_json())
    return {
        **_proof(pruning.verification),
        **outcome.where(pruning.original, pruning.plan),
        "notes": list(pruning.plan.notes),
    }


def _chosen(plan: PruningPlan) -> list[str]:
    """By what a cut was made, where a criterion decided, and which blocks went."""
    said = []
    if plan.why is not None and plan.why.criterion:
        said.append(plan.why.chosen())
    if plan.dropped:
        names = [block.name for block in plan.dropped.blocks]
        said.append(f"{many(len(names), 'block')} gone as a whole: {', '.join(names)}")
    return said


def _proof(check: Verification | None) -> Results:
    if check is None:
        return {}
    return {"verification": asdict(check)}


def _scales_of_a_layer(stage: Train, trained: fit.History) -> Results:
    """Those of one layer by epoch, where a penalty moved them."""
    if not _slims(stage) or not trained.layer:
        return {}
    return {"layer": trained.layer, "levels": list(trained.levels)}


def _dropping(plan: PruningPlan) -> PruningPlan:
    """With merged channels dropped instead: sums of fresh weights would start out too large."""
    groups = {name: replace(cut, into=()) for name, cut in plan.groups.items()}
    tensors = tuple(replace(cut, into=()) for cut in plan.tensors)
    return replace(plan, groups=groups, tensors=tensors)
