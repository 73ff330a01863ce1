"""The last stage: every network of the run on the test set, counted and timed; and results.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from netslim.training.recipe.checks import cuts
from netslim.training.recipe.schema import (
    Baseline,
    Convert,
    Finetune,
    Measure,
    Prune,
    Recipe,
    Scratch,
    Train,
)

AS_BUILT = -1


@dataclass(frozen=True)
class Entry:
    """A network to be measured: its row's key and label, and the stage (from 0) that made it, or
    `AS_BUILT`.
    """

    key: str
    label: str
    index: int


def entries(recipe: Recipe) -> list[Entry]:
    """The rows of a recipe's results, in order.

    `baseline`, `before` (the first cut), `pruned`, `fine-tuned`; with several cuts `pruned-1`,
    `fine-tuned-1`, `pruned-2` and so on, and `before-2` where training went on between a
    fine-tuning and the next cut. A network that was masked is `masked` until it is `converted`. A
    training stage that cuts on the way leaves a `pruned` network. `scratch-e` and `scratch-b`
    follow the baselines.
    """
    plain = [(i, stage) for i, stage in enumerate(recipe.stages) if isinstance(stage, Baseline)]
    found = [
        Entry(_numbered("baseline", n, len(plain)), "baseline (no penalty)", i)
        for n, (i, _) in enumerate(plain, 1)
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
            what = "masked" if isinstance(stage, Prune) and stage.mode == "mask" else "pruned"
            label = "pruned while training" if isinstance(stage, Train) else what
            found.append(
                Entry(_numbered(what, turn, passes), _labelled(label, turn, passes), index)
            )
        elif isinstance(stage, Convert):
            tuned = _between(recipe, turn, passes, trained)
            found += [
                replace(one, key=f"{one.key}-masked", label=f"{one.label}, masked") for one in tuned
            ]
            trained = []
            found.append(
                Entry(
                    _numbered("converted", turn, passes),
                    _labelled("converted", turn, passes),
                    index,
                )
            )
    return [*found, *_between(recipe, turn, passes, trained, last=True)]


def _between(
    recipe: Recipe, turn: int, passes: int, trained: list[int], last: bool = False
) -> Iterator[Entry]:
    """Rows of the training stages after cut number `turn`, before the next one."""
    if turn == 0:
        label = "before pruning" if passes else "trained" if trained else "as given"
        yield Entry("before", label, trained[-1] if trained else AS_BUILT)
        return
    if not trained:
        return
    tuned = [index for index in trained if isinstance(recipe.stages[index], Finetune)] or trained[
        :1
    ]
    chosen = trained[-1] if last else tuned[-1]
    yield Entry(
        _numbered("fine-tuned", turn, passes), _labelled("fine-tuned", turn, passes), chosen
    )
    if chosen != trained[-1]:
        yield Entry(f"before-{turn + 1}", f"before cut {turn + 1}", trained[-1])


def _numbered(key: str, number: int, of: int) -> str:
    return f"{key}-{number}" if of > 1 else key


def _labelled(label: str, number: int, of: int) -> str:
    return f"{label}, pass {number}" if of > 1 else label


def timed(
    stage: Measure,
    networks: dict[str, nn.Module],
    shape: tuple[int, int, int],
    device: torch.device,
) -> dict[str, Any]:
    """`latency_ms` of each network, measured in turn on the device; None where the recipe does not
    ask for it.
    """
    if not stage.latency:
        return dict.fromkeys(networks)
    from netslim.measure.latency import latency

    example = torch.zeros(stage.latency_batch, *shape)
    found = latency(networks, example, device=device)
    return {
        key: {"median": item.median_ms, "low": item.low_ms, "high": item.high_ms}
        for key, item in found.items()
    }
