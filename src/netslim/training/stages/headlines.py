"""One line that says what a stage is about to do."""

from __future__ import annotations

from netslim._support import many
from netslim.training.recipe.schema import (
    Baseline,
    Convert,
    GradualOptions,
    Measure,
    Prune,
    Quantize,
    Scratch,
    SparsityOptions,
    Stage,
    Train,
)

_OTHERS: dict[type[Stage], str] = {
    Baseline: "train a fresh copy without the penalty",
    Scratch: "train the smaller architecture from fresh weights",
    Convert: "cut what the mask silences",
    Quantize: "write it as ONNX, in float and in int8",
    Measure: "measure on the test set",
}


def headline(stage: Stage) -> str:
    """What a stage does, with the first few of the amounts it is asked for."""
    if isinstance(stage, Prune):
        wanted = _amounts(stage)
        what = ", ".join(wanted[:4]) or stage.by
        does = {"cut": "prune", "mask": "mask"}[stage.mode]
        if len(wanted) > 4:
            what += " ..."
        return f"{does}: {what}"
    if not isinstance(stage, Train):
        return _OTHERS[type(stage)]
    parts = [f"train for {many(stage.epochs, 'epoch')}"]
    if stage.sparsity is not None:
        parts.append(_method(stage.sparsity))
    if stage.gradual is not None:
        what = ", ".join(_amounts(stage.gradual)[:2])
        parts.append(f"cut in {many(stage.gradual.steps, 'step')}: {what}")
    if stage.distill is not None:
        parts.append("with a teacher")
    return ", ".join(parts)


def _amounts(stage: Prune | GradualOptions) -> list[str]:
    given = {**stage.budget.given(), **stage.per_group}
    return [f"{key} {value}" for key, value in given.items()]


def _method(options: SparsityOptions) -> str:
    """The method of sparse training, with the option that tells the most."""
    amount = getattr(options, options.told) if options.told else None
    if isinstance(amount, str):
        return f"{options.method}, {options.told} {amount}"
    if isinstance(amount, int | float):
        return f"{options.method} {amount}"
    return options.method
