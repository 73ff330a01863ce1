"""The last stage: which networks of a run are measured, under which names, and how long they take.

The rows follow from the recipe alone, so that a report has the same rows whoever made the run.
Their keys go into results.json and must not change; the labels are for people.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from netslim._support import many
from netslim._support.progress import Progress, untold
from netslim.training.recipe.checks import cuts
from netslim.training.recipe.schema import (
    Baseline,
    Convert,
    Finetune,
    Measure,
    Prune,
    Quantize,
    Recipe,
    Scratch,
    Train,
)
from netslim.training.stages.onnx_network import InOnnxRuntime

if TYPE_CHECKING:
    from netslim.measure.latency import Latency

AS_BUILT = -1
Form = Literal["torch", "exact", "int8"]  # a module, or the files of a quantize stage
_FILES: tuple[Form, Form] = ("exact", "int8")


@dataclass(frozen=True)
class Entry:
    """A network to be measured: its row's key and label, and what made it.

    `index` is the stage, from 0, or `AS_BUILT` for the network that the run started from; `form`
    what that left.
    """

    key: str
    label: str
    index: int
    form: Form = "torch"


def entries(recipe: Recipe) -> list[Entry]:
    """The rows of a recipe's results, in order.

    `baseline`, `before` (the first cut), `pruned`, `fine-tuned`; with several cuts `pruned-1`,
    `fine-tuned-1`, `pruned-2` and so on, and `before-2` where training went on between a
    fine-tuning and the next cut. A network that was masked is `masked` until it is `converted`. A
    training stage that cuts on the way leaves a `pruned` network. `scratch-e` and `scratch-b`
    follow the baselines, of which plain training before that with a method is one. Last come `onnx`
    and `int8`, the files of a quantize stage.
    """
    plain = _baselines(recipe)
    found = [
        Entry(_numbered("baseline", n, len(plain)), "baseline (no penalty)", i)
        for n, i in enumerate(plain, 1)
    ]
    found += [
        Entry(f"scratch-{stage.length.lower()}", f"from scratch ({stage.length})", i)
        for i, stage in enumerate(recipe.stages)
        if isinstance(stage, Scratch)
    ]
    passes = sum(map(cuts, recipe.stages))
    turn, trained = 0, list[int]()
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, Train) and not cuts(stage):
            trained.append(index)
        elif isinstance(stage, Train | Prune):
            found += _between(recipe, turn, passes, trained)
            turn, trained = turn + 1, []
            found.append(_of_pass(*_cut_names(stage), index, turn, passes))
        elif isinstance(stage, Convert):
            for tuned in _between(recipe, turn, passes, trained):
                key, label = f"{tuned.key}-masked", f"{tuned.label}, masked"
                found.append(replace(tuned, key=key, label=label))
            trained = []
            found.append(_of_pass("converted", "converted", index, turn, passes))
    return [*found, *_between(recipe, turn, passes, trained, last=True), *_files(recipe)]


def _files(recipe: Recipe) -> Iterator[Entry]:
    """A pair of rows of each quantize stage: what int8 costs shows on one and the same runtime."""
    made = [i for i, stage in enumerate(recipe.stages) if isinstance(stage, Quantize)]
    for n, index in enumerate(made, 1):
        names = (_numbered(name, n, len(made)) for name in ("onnx", "int8"))
        for name, form in zip(names, _FILES, strict=True):
            yield Entry(name, name, index, form)


def _baselines(recipe: Recipe) -> list[int]:
    """The stages that train the uncut network without a method, for comparison."""
    made = [i for i, stage in enumerate(recipe.stages) if isinstance(stage, Baseline)]
    if made:
        return made
    before = takewhile(lambda stage: not cuts(stage), recipe.stages)
    trained = [(i, stage) for i, stage in enumerate(before) if isinstance(stage, Train)]
    if not trained or trained[-1][1].sparsity is None:
        return []
    return [i for i, stage in trained if stage.sparsity is None][-1:]


def _cut_names(stage: Train | Prune) -> tuple[str, str]:
    """Key and label of the network a stage cuts."""
    if isinstance(stage, Train):
        return "pruned", "pruned while training"
    what = "masked" if stage.mode == "mask" else "pruned"
    return what, what


def _between(
    recipe: Recipe, turn: int, passes: int, trained: list[int], last: bool = False
) -> Iterator[Entry]:
    """Rows of the training stages after cut number `turn`, before the next one."""
    if turn == 0:
        yield _first(passes, trained)
        return
    if not trained:
        return
    tuned = [index for index in trained if isinstance(recipe.stages[index], Finetune)]
    tuned = tuned or trained[:1]
    chosen = trained[-1] if last else tuned[-1]
    yield _of_pass("fine-tuned", "fine-tuned", chosen, turn, passes)
    if chosen != trained[-1]:
        yield Entry(f"before-{turn + 1}", f"before cut {turn + 1}", trained[-1])


def _first(passes: int, trained: list[int]) -> Entry:
    """The network before anything is cut."""
    index = trained[-1] if trained else AS_BUILT
    if passes:
        return Entry("before", "before pruning", index)
    return Entry("before", "trained" if trained else "as given", index)


def _of_pass(key: str, label: str, index: int, number: int, of: int) -> Entry:
    """A network of one pass of cutting and training, numbered where there are several."""
    if of > 1:
        key, label = f"{key}-{number}", f"{label}, pass {number}"
    return Entry(key, label, index)


def _numbered(key: str, number: int, of: int) -> str:
    return f"{key}-{number}" if of > 1 else key


def timed(
    stage: Measure,
    networks: dict[str, nn.Module],
    shape: tuple[int, int, int],
    device: torch.device,
    beside: int = 0,
    progress: Progress = untold,
) -> dict[str, Any]:
    """`latency_ms` of each network, measured in turn, `beside` so many other runs: on the device,
    and those in ONNX Runtime on the CPU; None where not asked for.
    """
    if not stage.latency:
        return dict.fromkeys(networks)
    example = torch.zeros(stage.latency_batch, *shape)
    found = side_by_side(networks, example, device, progress)
    times: dict[str, Any] = {
        key: {"median": item.median_ms, "low": item.low_ms, "high": item.high_ms}
        for key, item in found.items()
    }
    if beside:
        times = {key: {**item, "beside": beside} for key, item in times.items()}
    return times


def side_by_side(
    networks: dict[str, nn.Module],
    example: Tensor,
    device: torch.device,
    progress: Progress = untold,
) -> dict[str, Latency]:
    """Modules as they are, and files as their runtime runs them, all timed in turn."""
    from netslim.measure.backends import prepared
    from netslim.measure.latency import timed as time_calls

    with ExitStack() as stack:
        calls = {}
        for key, network in networks.items():
            if isinstance(network, InOnnxRuntime):
                calls[key] = network.ready(example)
            else:
                one = prepared(network, example, device=device, name=key)
                calls[key] = stack.enter_context(one)
        return time_calls(calls, progress=progress)


def crowded(beside: int) -> Iterator[str]:
    """What is said of times that were not taken on a machine of its own."""
    if beside:
        yield (
            f"its times were taken while up to {many(beside, 'other run')} shared the machine: "
            "seconds and latencies are longer and less even than alone; netslim bench times "
            "networks by themselves"
        )
