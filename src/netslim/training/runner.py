"""`run`: from a recipe to a run folder with results and a report.

::

    claim the folder                            another recipe's folder is refused
    for stage in recipe.stages:
        if its stage.json is there: go on       finished work is never done twice
        network = a fresh one, filled from the stage before
        train | prune | measure                 a training stage goes on from its last.ckpt
        write model.safetensors, then stage.json
    results.json, report.html
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netslim.errors import RecipeError
from netslim.training.display import Display
from netslim.training.environment import choose_device, choose_precision, describe
from netslim.training.folder import FORMAT, RunFolder, StageFolder, read_json, write_json
from netslim.training.journal import derive
from netslim.training.measure import entries, timed
from netslim.training.recipe import imitated
from netslim.training.results import assemble
from netslim.training.scales import cut_warning
from netslim.training.schema import Baseline, Measure, Prune, Recipe, Stage, Train

Results = dict[str, Any]

_OWN_CLASSES = ("zoo:", "torchvision:", "timm:")


def run(
    recipe: Recipe, out: str | Path | None = None, *, command: str | None = None, display: Display | None = None
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
            with _threads(recipe.trainer.threads):
                results = _Runner(recipe, folder, display, command).go()
        if not (folder.path / "report.html").exists():
            from netslim import report

            report.write(folder.path)
    return results


def finished(folder: RunFolder) -> Results | None:
    """The results of a finished run, or None; damaged ones count as missing, since they can be made again."""
    try:
        return read_json(folder.results, "") if folder.results.exists() else None
    except RecipeError:
        return None


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


class _Runner:
    """The state of a run at work: lazily loaded data, and the folder with all that is finished."""

    def __init__(self, recipe: Recipe, folder: RunFolder, display: Display, command: str) -> None:
        self.recipe, self.folder, self.display, self.command = recipe, folder, display, command
        self.device = choose_device(recipe.trainer)
        self.precision = choose_precision(recipe.trainer, self.device)
        self.folders = [folder.stage(index, stage) for index, stage in enumerate(recipe.stages)]

    def go(self) -> Results:
        self._note_environment()
        done = [self._stage(index, stage) for index, stage in enumerate(self.recipe.stages)]
        results = assemble(self.recipe, done, json.loads(self.folder.environment.read_text()), self.command)
        write_json(self.folder.results, results)
        from netslim import report

        report.write(self.folder.path)
        return results

    def _note_environment(self) -> None:
        here = {"format": FORMAT, **describe(self.device, self.precision, self.command)}
        if self.folder.environment.exists():
            first = read_json(self.folder.environment, "move it away to have it written again")
            first.setdefault("resumed", []).append(here["date"])
            here = first
        write_json(self.folder.environment, here)

    def _stage(self, index: int, stage: Stage) -> Results:
        folder = self.folders[index]
        done = folder.results()
        if done is not None:
            return done
        self.display.say(f"{folder.label}  {_headline(stage)}")
        folder.path.mkdir(exist_ok=True)
        carry_out: dict[type[Any], Callable[..., Results]] = {
            Prune: self._prune, Baseline: self._baseline, Measure: self._measure,
        }  # fmt: skip
        found = carry_out.get(type(stage), self._train)(index, stage, folder)
        return folder.finish({"kind": stage.kind, **found})

    # ------------------------------------------------------------ stages

    def _train(self, index: int, stage: Train, folder: StageFolder) -> Results:
        return self._fit(stage, folder, self.network_before(index), index)

    def _baseline(self, index: int, stage: Baseline, folder: StageFolder) -> Results:
        """The imitated stage's seed too, so that both see the same batches in the same order."""
        like, settings = imitated(self.recipe, stage)
        return self._fit(settings, folder, self.build(), like, penalised=False)

    def _fit(
        self, stage: Train, folder: StageFolder, network: nn.Module, index: int, penalised: bool = True
    ) -> Results:
        from netslim.training.fit import fit

        history = fit(self.bench, network, stage, folder, derive(self.recipe.seed, "stage", index), penalised)
        self._save(network, folder)
        rows = history.rows
        curves = {
            key: [row[key] for row in rows]
            for key in ("epoch", "train_loss", "penalty", "val_loss", "val_accuracy", "near_zero")
        }
        return {
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "curves": curves,
            "histograms": history.histograms,
            "sparse": stage.sparsity is not None and penalised,
            "best": history.best or None,
        }

    def _prune(self, index: int, stage: Prune, folder: StageFolder) -> Results:
        import netslim
        from netslim.slim import cut
        from netslim.training.folder import write_atomic

        started = time.perf_counter()
        network, example = self.network_before(index).eval(), self.example()
        graph = netslim.trace(network, example)
        scores = netslim.score(graph, network, stage.criterion)
        budget = netslim.Budget(**stage.budget.given())
        small, plan, check = cut(network, graph, scores, budget, example, **_limits(stage))
        write_atomic(folder.plan, plan.to_json())
        self._save(small, folder)
        warning = self._cut_warning(stage, plan, scores)
        return {
            "seconds": round(time.perf_counter() - started, 3),
            "verification": asdict(check),
            "widths": [_width(group, plan) for group in graph.groups if group.prunable],
            "notes": list(plan.notes),
            "warnings": [warning] if warning else [],
        }

    def _cut_warning(self, stage: Prune, plan: Any, scores: dict[str, Tensor]) -> str | None:
        if stage.criterion != "bn_scale":
            return None
        warning = cut_warning(scores, {name: cut.kept for name, cut in plan.groups.items()})
        if warning:
            self.display.warn(warning)
        return warning

    def _measure(self, index: int, stage: Measure, folder: StageFolder) -> Results:
        """The only place where the test set is looked at."""
        import netslim
        from netslim.training.fit import evaluate

        started = time.perf_counter()
        found = entries(self.recipe)
        networks = {entry.key: self.network_of(entry.index).eval() for entry in found}
        latencies = timed(stage, networks, self.data.shape, self.device)
        rows = []
        for entry in found:
            network, model = networks[entry.key], self.folders[entry.index].model
            cost = netslim.cost(network, self.example()[:1])
            loader, limit = self.bench.loader("test"), self.recipe.trainer.limit_batches
            loss, accuracy = evaluate(network, loader, len(self.data.classes), self.device, limit)
            row: Results = {"key": entry.key, "label": entry.label, "accuracy": accuracy, "loss": loss}
            row |= {"params": cost.params, "macs": cost.macs, "size_bytes": model.stat().st_size}
            rows.append(row | {"latency_ms": latencies[entry.key]})
        return {"seconds": round(time.perf_counter() - started, 3), "rows": rows, "notes": list(self.data.notes)}

    # ------------------------------------------------------------ networks and data

    @cached_property
    def data(self) -> Any:
        from netslim.data import load

        options = self.recipe.data
        return load(
            options.name,
            root=options.root,
            validation=options.validation,
            seed=self.recipe.seed,
            image_size=options.image_size,
            download=options.download,
        )

    @cached_property
    def bench(self) -> Any:
        from netslim.training.fit import Bench

        return Bench(self.recipe, self.data, self.device, self.precision, self.display)

    def example(self) -> Tensor:
        """Two made-up images: (2, C, H, W), the same in every process."""
        generator = torch.Generator().manual_seed(derive(self.recipe.seed, "example"))
        return torch.randn(2, *self.data.shape, generator=generator)

    def build(self) -> nn.Module:
        """The recipe's network with its first weights, the same in every process."""
        from netslim import models

        torch.manual_seed(derive(self.recipe.seed, "network"))
        network = models.build(self.recipe.model.name, **self._kwargs())
        self._check_outputs(network)
        return network

    def _kwargs(self) -> dict[str, Any]:
        """The model's options; the number of classes comes from the data."""
        name, kwargs = self.recipe.model.name, dict(self.recipe.model.kwargs)
        if name.startswith(_OWN_CLASSES):
            kwargs.setdefault("num_classes", len(self.data.classes))
        return kwargs

    def _check_outputs(self, network: nn.Module) -> None:
        name, classes = self.recipe.model.name, len(self.data.classes)
        try:
            with torch.inference_mode():
                logits = network.eval()(self.example())
        except (RuntimeError, ValueError, TypeError) as error:
            shape = " x ".join(map(str, self.data.shape))
            reason = str(error).splitlines()[0]
            raise RecipeError(
                f"model: {name} does not take the images of {self.recipe.data.name} ({shape}): {reason}"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (2, classes):
            found = str(tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
            raise RecipeError(
                f"model: {name} gives {found} for 2 images, but {self.recipe.data.name} has {classes} classes and "
                f"needs (2, {classes}); set the option of the model that holds the number of classes"
            )
        network.train()

    def network_before(self, index: int) -> nn.Module:
        """The network that stage `index` starts from: the last stage's, baselines passed over, or a fresh one."""
        made = [i for i in range(index) if not isinstance(self.recipe.stages[i], Baseline)]
        return self.network_of(made[-1]) if made else self.build()

    def network_of(self, index: int) -> nn.Module:
        """The network that stage `index` left, read from its file, so that a resumed run sees the same bits."""
        import netslim

        return netslim.load(self.build(), self.folders[index].model)

    def _save(self, network: nn.Module, folder: StageFolder) -> None:
        import netslim
        from netslim import models

        record = models.constructor(self.recipe.model.name, self._kwargs())
        metadata = {"recipe": self.recipe.name, "stage": folder.label, "data": self.recipe.data.name}
        netslim.save(network, folder.model, constructor=record, metadata=metadata)


def _limits(stage: Prune) -> dict[str, Any]:
    return {
        "min_channels": stage.min_channels,
        "max_cut": stage.max_cut,
        "round_to": stage.round_to,
        "protect": tuple(stage.protect),
        "per_group": stage.per_group or None,
        "scope": stage.scope,
        "allow_inexact": stage.allow_inexact,
    }


def _width(group: Any, plan: Any) -> dict[str, Any]:
    cut = plan.groups.get(group.name)
    return {"layer": group.name, "before": group.size, "after": group.size if cut is None else len(cut.kept)}


def _headline(stage: Stage) -> str:
    if isinstance(stage, Prune):
        return "prune: " + ", ".join(f"{key} {value:g}" for key, value in stage.budget.given().items())
    if isinstance(stage, Baseline):
        return "train a fresh copy without the penalty"
    if isinstance(stage, Measure):
        return "measure on the test set"
    penalty = f", {stage.sparsity.method} with strength {stage.sparsity.strength:g}" if stage.sparsity else ""
    return f"train for {stage.epochs} epochs{penalty}"
