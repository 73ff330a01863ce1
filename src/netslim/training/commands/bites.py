"""Whether the sparsity methods of a finished run did what the cut behind them relies on.

A cut goes through whatever was trained before it, so a small network that is cut and tuned says
nothing about a method that left its scales, filters or clusters as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from netslim.report.numbers import percent
from netslim.training.recipe.schema import (
    CentripetalOptions,
    Recipe,
    SlimmingOptions,
    SoftFilterOptions,
    SparsityOptions,
    Train,
)

Found = Mapping[str, Any]
Said = tuple[bool, str]
ONE = 1e-4  # a deviation within clusters up to which their filters are one


def bites(recipe: Recipe, done: Sequence[Found]) -> list[dict[str, Any]]:
    """What is to be said of every stage that trains with a method: stage, method, whether it
    bites, and by which figure.

    Args:
        recipe: of the run.
        done: what each of its stages has left, as its stage.json says it.
    """
    said = []
    for index, stage in enumerate(recipe.stages):
        if not isinstance(stage, Train) or type(stage.sparsity) not in _JUDGES:
            continue
        assert stage.sparsity is not None
        good, figure = _JUDGES[type(stage.sparsity)](_Ends(done[index]), _cut(done[index:]))
        said.append(
            {
                "stage": done[index]["stage"],
                "method": stage.sparsity.method,
                "bites": good,
                "figure": figure,
            }
        )
    return said


class _Ends:
    """Columns of a stage's curves at the epoch whose weights were kept."""

    def __init__(self, found: Found) -> None:
        self.curves = found["curves"]
        best = found.get("best") or {}
        self.place = -1
        if "epoch" in best:
            self.place = self.curves["epoch"].index(best["epoch"])

    def __getitem__(self, name: str) -> float:
        return float(self.curves[name][self.place])


def _cut(found: Sequence[Found]) -> float:
    """The share of the channels that the next cut takes away."""
    widths: Any = next(filter(None, (stage.get("widths") for stage in found)), [])
    before, after = (sum(layer[key] for layer in widths) for key in ("before", "after"))
    return float(1 - after / max(before, 1))


def _slimming(ends: _Ends, cut: float) -> Said:
    """The scales that go have to be near zero before they go."""
    near = ends["near_zero"]
    return near >= cut, f"{percent(near, 1)} near zero, {percent(cut, 1)} cut"


def _soft_filter(ends: _Ends, cut: float) -> Said:
    """The choice has to have settled, and what is zero has to be what goes."""
    zero, returned = ends["zero"], ends["returned"]
    text = f"{percent(zero, 1)} zero, {returned:.0f} came back in the last epoch"
    return zero > 0 and returned == 0 and cut > 0, text


def _centripetal(ends: _Ends, cut: float) -> Said:
    """The filters of a cluster have to be one before they are merged."""
    return ends["deviation"] < ONE, f"deviation {ends['deviation']:.1e}"


_JUDGES: dict[type[SparsityOptions], Callable[[_Ends, float], Said]] = {
    SlimmingOptions: _slimming,
    SoftFilterOptions: _soft_filter,
    CentripetalOptions: _centripetal,
}


def said(found: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each stage."""
    for stage in found:
        word = {True: "bites", False: "does not bite"}[stage["bites"]]
        yield f"{stage['stage']}: {stage['method']} {word} ({stage['figure']})"


__all__ = ["bites", "said"]
