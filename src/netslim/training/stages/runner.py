"""`run`: from a recipe to a run folder with results and a report.

::

    claim the folder                            another recipe's folder is refused
    for stage in recipe.stages:
        if its stage.json is there: go on       finished work is never done twice
        network = a fresh one, filled from the stage before
        train | prune | convert | measure       a training stage goes on from its last.ckpt
        write model.safetensors, then stage.json
    results.json, report.html
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from netslim._support import using_threads, write_atomic
from netslim.errors import RecipeError
from netslim.surgery.plan import PruningPlan
from netslim.surgery.prune import history
from netslim.training.loop.epochs import derive
from netslim.training.loop.progress import Display
from netslim.training.recipe.checks import cuts, imitated, teacher, wanted_share
from netslim.training.recipe.schedule import lengthened
from netslim.training.recipe.schema import (
    Baseline,
    Convert,
    Measure,
    Prune,
    Recipe,
    Scratch,
    SlimmingOptions,
    Stage,
    Train,
)
from netslim.training.stages.environment import choose_device, choose_precision, describe
from netslim.training.stages.folder import FORMAT, RunFolder, StageFolder, read_json, write_json
from netslim.training.stages.measure import AS_BUILT, entries, timed
from netslim.training.stages.results import assemble

if TYPE_CHECKING:
    from netslim.methods.cutting import Cut
    from netslim.methods.gradual import GradualPruning

Results = dict[str, Any]

_OWN_CLASSES = ("zoo:", "torchvision:", "timm:")
_EQUAL = 1e-2
_APART = (
    "the filters of a cluster still differ by {:.2g} of their size; they were set to their "
    "mean, which changes the network (train longer, or with a larger strength or learning rate)"
)
_WEIGHTS = ("weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


def run(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    command: str | None = None,
    display: Display | None = None,
) -> Results:
    """Carry out a recipe, or what is left of it, and return the contents of results.json.

    Args:
        recipe: from `load_recipe`.
        out: the run folder; `runs/<name of the recipe>` when not given.
        command: what to type to repeat the run, for the report.
        display: where progress is shown; standard error when not given.

    Raises:
        NetslimError: whatever goes wrong; finished stages and epochs are kept.
        KeyboardInterrupt: likewise.
    """
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name)
    display = display or Display()
    command = command or shlex.join(["netslim", "run", recipe.name, "--out", str(folder.path)])
    folder.refuse_strangers()
    with folder.lock():
        folder.claim(recipe)
        results = finished(folder)
        if results is None:
            with using_threads(recipe.trainer.threads):
                results = Runner(recipe, folder, display, command).go()
        if not (folder.path / "report.html").exists():
            from netslim.report import run_page

            run_page.write(folder.path)
    return results


def finished(folder: RunFolder) -> Results | None:
    """The results of a finished run, or None; damaged ones count as missing, since they can be made
    again.
    """
    try:
        return read_json(folder.results, "") if folder.results.exists() else None
    except RecipeError:
        return None


class Runner:
    """The state of a run at work: lazily loaded data, and the folder with all that is finished."""

    def __init__(self, recipe: Recipe, folder: RunFolder, display: Display, command: str) -> None:
        self.recipe, self.folder, self.display, self.command = recipe, folder, display, command
        self.device = choose_device(recipe.trainer)
        self.precision = choose_precision(recipe.trainer, self.device)
        self.folders = [folder.stage(index, stage) for index, stage in enumerate(recipe.stages)]

    def go(self) -> Results:
        self.note_environment()
        done = [self.stage(index, stage) for index, stage in enumerate(self.recipe.stages)]
        results = assemble(
            self.recipe, done, json.loads(self.folder.environment.read_text()), self.command
        )
        write_json(self.folder.results, results)
        from netslim.report import run_page

        run_page.write(self.folder.path)
        return results

    def note_environment(self) -> None:
        """Write down where the run takes place."""
        here = {"format": FORMAT, **describe(self.device, self.precision, self.command)}
        if self.folder.environment.exists():
            first = read_json(self.folder.environment, "move it away to have it written again")
            first.setdefault("resumed", []).append(here["date"])
            here = first
        write_json(self.folder.environment, here)

    def stage(self, index: int, stage: Stage) -> Results:
        """What stage `index` found; it is carried out if it is not finished."""
        folder = self.folders[index]
        done = folder.results()
        if done is not None:
            return done
        self.display.say(f"{folder.label}  {_headline(stage)}")
        folder.path.mkdir(exist_ok=True)
        work: dict[type[Any], Callable[..., Results]] = {
            Prune: self._prune, Convert: self._convert, Baseline: self._baseline, Scratch: self._scratch,
            Measure: self._measure,
        }  # fmt: skip
        found = work.get(type(stage), self._train)(index, stage, folder)
        return folder.finish({"kind": stage.kind, **found})

    # ------------------------------------------------------------ stages

    def _train(self, index: int, stage: Train, folder: StageFolder) -> Results:
        aids: dict[str, Any] = {"mask": self._mask(index), "teacher": self._teacher(stage)}
        if isinstance(stage.sparsity, SlimmingOptions) and stage.sparsity.strength == "auto":
            return self._with_found_strength(index, stage, folder, aids["teacher"])
        return self._fit(stage, folder, self.network_before(index), index, **aids)

    def _with_found_strength(
        self, index: int, stage: Train, folder: StageFolder, taught: nn.Module | None
    ) -> Results:
        """Short runs first; what they find is on disk before the training starts."""
        from netslim.training.loop import auto_strength as strength

        network, seed = self.network_before(index), derive(self.recipe.seed, "strength", index)
        target = wanted_share(self.recipe, stage)
        choice = strength.find_strength(
            self.bench, network, stage, target, folder, seed, teacher=taught
        )
        found = self._fit(
            strength.with_strength(stage, choice), folder, network, index, teacher=taught
        )
        left = f"it left {found['curves']['near_zero'][-1]:.0%}"
        self.display.say(
            f"{folder.label}  {choice['share']:.0%} of the scales were expected near zero: {left}"
        )
        choice.pop("format")
        warnings = [*found["warnings"], *([choice["warning"]] if choice["warning"] else [])]
        remarks = [*found.get("remarks", []), f"{strength.sentence(choice)}: {left}"]
        return {**found, "warnings": warnings, "remarks": remarks, "strength": choice}

    def _teacher(self, stage: Train) -> nn.Module | None:
        from netslim import models

        if stage.distill is None:
            return None
        found = teacher(self.recipe, stage)
        if not isinstance(found, str):
            return self.network_of(found)
        network = models.build(found)
        self.check_outputs(network, found)
        return network

    def _baseline(self, index: int, stage: Baseline, folder: StageFolder) -> Results:
        """The imitated stage's seed too, so that both see the same batches in the same order."""
        like, settings = imitated(self.recipe, stage)
        return self._fit(_plain(settings), folder, self.build(), like)

    def _scratch(self, index: int, stage: Scratch, folder: StageFolder) -> Results:
        """The architecture in hand with the fresh weights of the channels that stay."""
        import netslim

        _, settings = imitated(self.recipe, stage)
        example, plan = self.example()[:1], history(self.network_before(index))
        torch.manual_seed(derive(self.recipe.seed, "scratch"))
        whole = self.fresh()
        small = whole if plan is None else netslim.prune(whole, _dropping(plan))
        ratio = netslim.cost(whole, example).macs / netslim.cost(small, example).macs
        settings = lengthened(_plain(settings), ratio if stage.length == "B" else 1.0)
        return {"macs_ratio": round(ratio, 6), **self._fit(settings, folder, small, index)}

    def _mask(self, index: int) -> PruningPlan | None:
        """The plan of the mask that stage `index` works under, if any."""
        text: str | None = self.given.get("mask")
        for position, stage in enumerate(self.recipe.stages[:index]):
            if isinstance(stage, Prune | Convert):
                masks = isinstance(stage, Prune) and stage.mode == "mask"
                text = self.folders[position].plan.read_text() if masks else None
        return None if text is None else PruningPlan.from_json(text)

    def _fit(
        self, stage: Train, folder: StageFolder, network: nn.Module, index: int, **aids: Any
    ) -> Results:
        from netslim.training.loop.adapters import LOGGED
        from netslim.training.loop.fit import fit

        history = fit(
            self.bench, network, stage, folder, derive(self.recipe.seed, "stage", index), **aids
        )
        shrunk = {} if history.pruning is None else self._shrunk(history.pruning, folder)
        mask = aids.get("mask")
        self._save(
            network, folder, **history.left, **({} if mask is None else {"mask": mask.to_json()})
        )
        rows = history.rows
        logged = [key for key in LOGGED if any(row[key] is not None for row in rows)]
        curves = {
            key: [row[key] for row in rows]
            for key in (
                "epoch",
                "train_loss",
                "penalty",
                "val_loss",
                "val_accuracy",
                "near_zero",
                *logged,
            )
        }
        apart = rows[-1]["deviation"]
        warning = _APART.format(apart) if apart is not None and apart > _EQUAL else None
        if warning:
            self.display.warn(warning)
        return {
            "warnings": [warning] if warning else [],
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "curves": curves,
            "histograms": history.histograms,
            "sparse": isinstance(stage.sparsity, SlimmingOptions) and stage.sparsity.strength != 0,
            "best": history.best or None,
            **history.left,
            **shrunk,
        }

    def _shrunk(self, pruning: GradualPruning, folder: StageFolder) -> Results:
        """What a training stage cut on its way; the proof is that of the last cut."""
        write_atomic(folder.plan, pruning.plan.to_json())
        check = pruning.verification
        return {
            **({} if check is None else {"verification": asdict(check)}),
            "widths": [
                _width(group, pruning.plan) for group in pruning.original.groups if group.prunable
            ],
            "notes": list(pruning.plan.notes),
        }

    def _prune(self, index: int, stage: Prune, folder: StageFolder) -> Results:
        from netslim.training.stages.prune import carry_out

        started = time.perf_counter()
        network = self.network_before(index).eval()
        done = carry_out(
            stage,
            network,
            self.example(),
            self.bench.batches,
            self._clusters(index),
            self.recipe.seed,
        )
        return self._left(done, folder, started)

    def _convert(self, index: int, stage: Convert, folder: StageFolder) -> Results:
        from netslim.training.stages.prune import convert

        started, plan = time.perf_counter(), self._mask(index)
        assert plan is not None  # the recipe was checked
        return self._left(
            convert(self.network_before(index).eval(), plan, self.example()), folder, started
        )

    def _left(self, done: Cut[nn.Module], folder: StageFolder, started: float) -> Results:
        write_atomic(folder.plan, done.plan.to_json())
        self._save(
            done.network, folder, **({"mask": done.plan.to_json()} if done.check is None else {})
        )
        for warning in done.warnings:
            self.display.warn(warning)
        proof = {} if done.check is None else {"verification": asdict(done.check)}
        return {
            "seconds": round(time.perf_counter() - started, 3),
            **proof,
            "widths": [
                _width(group, done.plan)
                for group in done.graph.groups
                if group.prunable and done.check
            ],
            "notes": list(done.plan.notes),
            "remarks": list(done.notes),
            "warnings": list(done.warnings),
        }

    def _clusters(self, index: int) -> dict[str, list[int]] | None:
        """What the last centripetal stage drew together, unless something was cut since."""
        for position in reversed(range(index)):
            if cuts(self.recipe.stages[position]):
                return None
            found = (self.folders[position].results() or {}).get("clusters")
            if found:
                return dict(found)
        return self.given.get("clusters")

    def _measure(self, index: int, stage: Measure, folder: StageFolder) -> Results:
        """The only place where the test set is looked at."""
        import netslim
        from netslim.training.loop.fit import evaluate

        started = time.perf_counter()
        found = entries(self.recipe)
        networks = {entry.key: self.network_of(entry.index).eval() for entry in found}
        latencies = timed(stage, networks, self.data.shape, self.device)
        rows = []
        for entry in found:
            network = networks[entry.key]
            cost = netslim.cost(network, self.example()[:1])
            loader, limit = self.bench.loader("test"), self.recipe.trainer.limit_batches
            means = evaluate(network, loader, len(self.data.classes), self.device, limit)
            row: Results = {"key": entry.key, "label": entry.label, "accuracy": means.accuracy}
            row |= {"top5": means.top5, "loss": means.loss}
            row |= {
                "params": cost.params,
                "macs": cost.macs,
                "size_bytes": self._size(entry.index, network, folder),
            }
            rows.append(row | {"latency_ms": latencies[entry.key]})
        return {
            "seconds": round(time.perf_counter() - started, 3),
            "rows": rows,
            "notes": list(self.data.notes),
        }

    def _size(self, index: int, network: nn.Module, folder: StageFolder) -> int:
        """Bytes of the network's file; that of a network which no stage made is written beside the
        results.
        """
        path = folder.model if index == AS_BUILT else self.folders[index].model
        if index == AS_BUILT:
            self._save(network, folder)
        return path.stat().st_size

    # ------------------------------------------------------------ networks and data

    @cached_property
    def data(self) -> Any:
        from netslim.data.sources import load

        options = self.recipe.data
        return load(
            options.name,
            root=options.root,
            validation=options.validation,
            subset=options.subset,
            seed=self.recipe.seed,
            image_size=options.image_size,
            download=options.download,
        )

    @cached_property
    def bench(self) -> Any:
        from netslim.training.loop.fit import Bench

        return Bench(self.recipe, self.data, self.device, self.precision, self.display)

    def example(self) -> Tensor:
        """Two made-up images: (2, C, H, W), the same in every process."""
        return self.bench.example()

    def build(self) -> nn.Module:
        """The recipe's network with its first weights, the same in every process; it fits the data."""
        network = self.construct()
        self.check_outputs(network, self.recipe.model.name)
        return network

    def construct(self) -> nn.Module:
        """`build` without trying the network on the data."""
        from netslim import models

        torch.manual_seed(derive(self.recipe.seed, "network"))
        name, kwargs = self.recipe.model.name, self.recipe.model.kwargs
        return models.build(
            name,
            **(kwargs if name.endswith(".safetensors") else {**self.origin["kwargs"], **kwargs}),
        )

    @cached_property
    def given(self) -> Results:
        """What is noted in the checkpoint that the recipe starts from: clusters, a mask; empty for
        a model by name.
        """
        from netslim.models import checkpoint

        name = self.recipe.model.name
        return checkpoint.read(name)[0]["metadata"] if name.endswith(".safetensors") else {}

    @cached_property
    def origin(self) -> dict[str, Any]:
        """The constructor of the uncut network; for a checkpoint the one in it, else the recipe's.

        The number of classes comes from the data. Weights that were learnt elsewhere are no part of
        it.
        """
        from netslim import models
        from netslim.models import checkpoint

        name, kwargs = self.recipe.model.name, dict(self.recipe.model.kwargs)
        if name.endswith(".safetensors"):
            return checkpoint.read(name)[0]["constructor"] or {}
        if name.startswith(_OWN_CLASSES):
            kwargs = {key: value for key, value in kwargs.items() if key not in _WEIGHTS}
            kwargs.setdefault("num_classes", len(self.data.classes))
        return models.constructor(name, kwargs)

    def fresh(self) -> nn.Module:
        """The uncut network with some weights, to load others into."""
        from netslim import models

        return models.build(self.origin["name"], **self.origin["kwargs"])

    def check_outputs(self, network: nn.Module, name: str) -> None:
        """Try `network`, of this name, on images like those of the data; it is left in training
        mode.

        Raises:
            RecipeError: it does not take them, or gives something else than a score for each class.
        """
        classes = len(self.data.classes)
        try:
            with torch.inference_mode():
                logits = network.eval()(self.example())
        except (RuntimeError, ValueError, TypeError) as error:
            shape = " x ".join(map(str, self.data.shape))
            reason = str(error).splitlines()[0]
            raise RecipeError(
                f"model: {name} does not take the images of {self.recipe.data.name} ({shape}): "
                f"{reason}"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (2, classes):
            found = (
                str(tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
            )
            raise RecipeError(
                f"model: {name} gives {found} for 2 images, but {self.recipe.data.name} has "
                f"{classes} classes and needs (2, {classes}); set the option of the model that "
                "holds the number of classes"
            )
        network.train()

    def network_before(self, index: int) -> nn.Module:
        """The network that stage `index` starts from: the last stage's, side branches passed over,
        or a fresh one.
        """
        made = [
            i for i in range(index) if not isinstance(self.recipe.stages[i], Baseline | Scratch)
        ]
        return self.network_of(made[-1]) if made else self.build()

    def network_of(self, index: int) -> nn.Module:
        """The network that stage `index` left, read from its file, so that a resumed run sees the
        same bits.
        """
        import netslim

        if index == AS_BUILT:
            return self.build()
        return netslim.load(self.fresh(), self.folders[index].model)

    def _save(self, network: nn.Module, folder: StageFolder, **left: Any) -> None:
        import netslim

        metadata = {
            "recipe": self.recipe.name,
            "stage": folder.label,
            "data": self.recipe.data.name,
            **left,
        }
        netslim.save(network, folder.model, constructor=self.origin or None, metadata=metadata)


def _plain(stage: Train) -> Train:
    """Without what makes a stage's training special, for comparison; but with the scales it starts
    from.
    """
    first = isinstance(stage.sparsity, SlimmingOptions) and stage.sparsity.gamma_init
    start = SlimmingOptions(strength=0.0, gamma_init=first) if first else None
    return replace(stage, sparsity=start, gradual=None, distill=None)


def _dropping(plan: PruningPlan) -> PruningPlan:
    """The plan with merged channels dropped instead: sums of fresh weights would start out too
    large.
    """
    groups = {name: replace(cut, into=()) for name, cut in plan.groups.items()}
    return replace(
        plan, groups=groups, tensors=tuple(replace(cut, into=()) for cut in plan.tensors)
    )


def _width(group: Any, plan: Any) -> dict[str, Any]:
    cut = plan.groups.get(group.name)
    return {
        "layer": group.name,
        "before": group.size,
        "after": group.size if cut is None else len(cut.kept),
    }


def _headline(stage: Stage) -> str:
    if isinstance(stage, Prune):
        given = {**stage.budget.given(), **stage.per_group}
        what = ", ".join(f"{key} {value:g}" for key, value in list(given.items())[:4]) or stage.by
        return (
            f"{'mask' if stage.mode == 'mask' else 'prune'}: "
            f"{what}{' ...' if len(given) > 4 else ''}"
        )
    if isinstance(stage, Train):
        return f"train for {stage.epochs} epochs{_special(stage)}"
    return {
        Baseline: "train a fresh copy without the penalty",
        Scratch: "train the smaller architecture from fresh weights",
        Convert: "cut what the mask silences",
        Measure: "measure on the test set",
    }[type(stage)]


def _special(stage: Train) -> str:
    options, taught = stage.sparsity, ", with a teacher" if stage.distill else ""
    if stage.gradual is not None:
        given = {**stage.gradual.budget.given(), **stage.gradual.per_group}
        what = ", ".join(f"{key} {value:g}" for key, value in list(given.items())[:2])
        taught = f", cut in {stage.gradual.steps} steps: {what}{taught}"
    if options is None:
        return taught
    amount = getattr(options, options.told) if options.told else None
    named = f" {amount:g}" if isinstance(amount, int | float) else ""
    named = f", {options.told} {amount}" if isinstance(amount, str) else named
    return f", {options.method}{named}{taught}"
