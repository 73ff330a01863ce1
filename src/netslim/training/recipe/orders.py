"""Orders of stages in which work is surely wasted: told beforehand, and carried out as asked."""

from __future__ import annotations

from collections.abc import Iterator

from netslim.training.recipe.checks import cuts
from netslim.training.recipe.schema import (
    SIDE_BRANCHES,
    Convert,
    Measure,
    Quantize,
    Recipe,
    SlimmingOptions,
    Stage,
    Train,
)


def wasted(recipe: Recipe) -> list[str]:
    """A sentence on each stage whose work nothing comes of, where the stages stand as they do."""
    stages = recipe.stages
    last = max((n for n, stage in enumerate(stages) if _shrinks(stage)), default=len(stages))
    return [*_never_cut(stages[last + 1 :]), *_outdated(stages)]


def _shrinks(stage: Stage) -> bool:
    return cuts(stage) or isinstance(stage, Convert)


def _never_cut(behind: tuple[Stage, ...]) -> Iterator[str]:
    """Of stages behind the last cut: what they make sparse stays as wide as it is."""
    for stage in behind:
        if isinstance(stage, Train) and _sparse(stage):
            yield (
                f"stages.{stage.name}.sparsity: nothing is cut behind it, so what it makes sparse "
                "stays as large: leave sparsity out there, or put a prune stage behind it"
            )


def _sparse(stage: Train) -> bool:
    """Whether it asks for more than scales to begin with."""
    options = stage.sparsity
    return options is not None and not (
        isinstance(options, SlimmingOptions) and options.strength == 0
    )


def _outdated(stages: tuple[Stage, ...]) -> Iterator[str]:
    """Of the last stage that quantizes, where the network is changed behind it."""
    quantizing = [stage for stage in stages if isinstance(stage, Quantize)]
    if not quantizing:
        return
    last = quantizing[-1]
    for stage in stages[stages.index(last) + 1 :]:
        if not isinstance(stage, (*SIDE_BRANCHES, Measure)):
            yield (
                f"stages.{last.name}: its files hold the network as it is before {stage.name}, and "
                f"none hold what comes of that: put {last.name} behind the last stage that trains "
                "or cuts"
            )
            return


__all__ = ["wasted"]
