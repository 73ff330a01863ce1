"""The smallest network within an accuracy drop: bisection over the share that is cut.

::

    below, above = low, high                the whole network passes; of `high` nothing is known
    while above - below > tolerance:
        share = (below + above) / 2
        score = evaluate(make(share))       every candidate is cut from the original network
        below or above = share              below where score >= baseline - max_drop, else above
    if nothing has failed: try high itself

The largest share that passed wins. Accuracy after a short recovery is noisy, so it need not fall
steadily with the share: bisection does not look below a share that passed, nor above one that
failed, and finds *a* share at which passing turns into failing, not always the largest one that
would pass.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import netslim.ranks as ranks
from netslim._support import (
    brief,
    checks_calls,
    is_format,
    is_number,
    named_file,
    parse_json,
    read_text,
    refusing,
    typed,
    write_atomic,
)
from netslim.errors import ArgumentError, PlanError

Network = TypeVar("Network")
_FORMAT = 1
_DIGITS = 4  # of a share: what goes on may name files by it


@dataclass(frozen=True)
class Candidate:
    """One share that was tried.

    Attributes:
        share: the cut that was asked for, 0 to 1.
        score: what `evaluate` gave; None where no plan reaches the share.
        passed: whether the score is within the drop.
        note: why there is no score.
    """

    share: float
    score: float | None
    passed: bool
    note: str = ""


@checks_calls
@dataclass(frozen=True)
class SearchResult(Generic[Network]):
    """What a search found.

    Attributes:
        candidates: in the order in which they were tried.
        best: the one of the largest share that passed; None when none did.
        network: of the best; None when there is no best, or when its score was read from the
            journal.
        baseline: the score of the uncut network.
        max_drop: what a candidate may lose of it.
        verdict: the outcome in a sentence or two.

    Example:
        >>> def make(share):
        ...     return netslim.slim(model, images, budget=netslim.Budget(cut_macs=share))
        >>> whole = accuracy(model)
        >>> result: netslim.methods.SearchResult = netslim.search(
        ...     make, accuracy, max_drop=1.0, baseline=whole, tolerance=0.3)
        >>> result.best.share > 0, result.baseline == whole
        (True, True)
    """

    candidates: tuple[Candidate, ...]
    best: Candidate | None
    network: Network | None
    baseline: float
    max_drop: float
    verdict: str

    def __str__(self) -> str:
        rows = [("cut", "score", "drop", ""), *map(self._row, self.candidates)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.rjust, row[:3], widths), row[3]]).rstrip() for row in rows]
        return "\n".join([*lines, self.verdict])

    def _row(self, item: Candidate) -> tuple[str, str, str, str]:
        """Share, score, drop and outcome of a candidate, for people."""
        outcome = "passed" if item.passed else item.note or "failed"
        if item is self.best:
            outcome = "best"
        if item.score is None:
            return f"{item.share:.1%}", "–", "–", outcome
        drop = self.baseline - item.score
        return f"{item.share:.1%}", f"{item.score:.4f}", f"{drop:+z.4f}", outcome


@checks_calls
@ranks.in_step("search")
def search(
    make: Callable[[float], Network],
    evaluate: Callable[[Network], float],
    *,
    max_drop: float,
    baseline: float,
    low: float = 0.0,
    high: float = 0.95,
    tolerance: float = 0.02,
    max_tries: int = 8,
    journal: str | os.PathLike[str] | None = None,
) -> SearchResult[Network]:
    """Find the largest cut whose network, made and trained by your code, loses at most `max_drop`.

    ::

        def make(share):                                          # always from the original network
            small = netslim.slim(model, example, budget=netslim.Budget(cut_macs=share))
            return recover(small)                                 # your own training loop, short

        whole = accuracy(model)
        found = netslim.search(make, accuracy, max_drop=0.005, baseline=whole, journal="found.json")

    Args:
        make: from a share (`low` < share <= `high`) to a network. One that raises `PlanError`, for
            no plan reaches the share, counts as failed.
        evaluate: from a network to its score; larger is better. It decides, so give it held-out
            data, but not the data of the final test. In a distributed run every rank calls this,
            and the mean of their scores counts.
        max_drop: what may be lost, in the unit of `evaluate`: half a point is 0.005 of an accuracy
            from 0 to 1.
        baseline: the score of the uncut network.
        low: a share that is taken to pass, and not tried.
        high: the largest share of interest; tried only when nothing smaller has failed.
        tolerance: the search ends when the share is known to so much.
        max_tries: most networks that are made; shares out of reach do not count.
        journal: a JSON file of the shares tried and their scores. With it a search that was killed
            goes on: what is in it is not made again. The file belongs to one `make` and `evaluate`;
            `max_drop` may change.

    Raises:
        ArgumentError: an option is out of range, or a score is not a finite number.
        PlanError: no share that was tried can be reached, or the journal is no file of this kind.

    Example:
        >>> def make(share):
        ...     return netslim.slim(model, images, budget=netslim.Budget(cut_macs=share))
        >>> found = netslim.search(
        ...     make, accuracy, max_drop=0.5, baseline=accuracy(model), tolerance=0.3
        ... )
        >>> found.best.share
        0.95
    """
    _check(max_drop, baseline, low, high, tolerance, max_tries)
    if journal is not None:
        journal = named_file(journal, "journal")
    known = _Journal(journal)
    trials = _Trials(make, evaluate, baseline - max_drop, known)
    below, above = low, high
    # Bisection: `below` passed, or is the `low` that is taken to; `above` failed, or is the `high`
    # that is not tried yet. Each try halves what lies between.
    while above - below > tolerance + 1e-9 and trials.made < max_tries:
        share = round((below + above) / 2, _DIGITS)
        if not below < share < above:  # no number of so few digits is left between them
            break
        if trials.passes(share):
            below = share
        else:
            above = share
    if above == high and trials.made < max_tries:
        trials.passes(round(high, _DIGITS))
    reached = [item for item in trials.candidates if item.score is not None]
    if not reached:
        raise PlanError(
            f"no share from {low:g} to {high:g} can be reached: {trials.candidates[-1].note}"
        )
    best = max((item for item in reached if item.passed), key=lambda item: item.share, default=None)
    verdict = outcome(trials.candidates, best, baseline, _terms(max_drop))
    return SearchResult(tuple(trials.candidates), best, trials.network, baseline, max_drop, verdict)


class _Trials(Generic[Network]):
    """The candidates so far, and the network of the best."""

    def __init__(
        self,
        make: Callable[[float], Network],
        evaluate: Callable[[Network], float],
        floor: float,
        journal: _Journal,
    ) -> None:
        self.make, self.evaluate, self.floor, self.journal = make, evaluate, floor, journal
        self.candidates: list[Candidate] = []
        self.network: Network | None = None

    @property
    def made(self) -> int:
        """How many have a score."""
        return sum(item.score is not None for item in self.candidates)

    def passes(self, share: float) -> bool:
        """Whether the network of this share passes; it is tried now, unless the journal knows."""
        network, note = None, ""
        score = self.journal.scores.get(share)
        if score is None:
            try:
                network = ranks.everywhere("make of a search", partial(self.make, share))
            except PlanError as error:
                note = str(error)
            else:
                evaluate = partial(self._score, network, share)
                score = ranks.mean_number("a score", ranks.everywhere("evaluate", evaluate))
                self.journal.note(share, score)
        # A drop of exactly what is allowed passes, but for rounding.
        passed = score is not None and score >= self.floor - 1e-12
        self.candidates.append(Candidate(share, score, passed, note))
        if passed:  # larger than all that passed before: bisection never looks below those
            self.network = network
        return passed

    def _score(self, network: Network, share: float) -> float:
        return _finite(self.evaluate(network), share)


@dataclass(frozen=True)
class _Try:
    share: float
    score: float


@dataclass(frozen=True)
class _Tries:
    """What the file of a journal holds."""

    format: int
    tried: tuple[_Try, ...]


class _Journal:
    """What was tried: scores by share, on disk where there is a path; rank 0 keeps it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.scores = ranks.shared("the journal", self._read)
        if not ranks.first():
            self.path = None

    def _read(self) -> dict[float, float]:
        path = self.path
        if path is None or not path.exists():
            return {}
        with refusing(PlanError, f"{path} is not the journal of a search", "give another file"):
            found: _Tries = typed(_Tries, parse_json(read_text(path)))
            if not is_format(found.format, _FORMAT):
                raise ValueError(f"format {found.format}")
        return {one.share: one.score for one in found.tried}

    def note(self, share: float, score: float) -> None:
        """Add a score; the file is as before or complete, also after a kill."""
        self.scores[share] = score
        if self.path is None:
            return
        tried = [{"share": share, "score": score} for share, score in self.scores.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps({"format": _FORMAT, "tried": tried}, indent=1) + "\n")


def _check(
    max_drop: float, baseline: float, low: float, high: float, tolerance: float, max_tries: int
) -> None:
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise ArgumentError(
            f"max_drop must be 0 or more, in the unit of evaluate, got {brief(max_drop)}"
        )
    if not math.isfinite(baseline):
        raise ArgumentError(
            f"baseline must be the finite score of the uncut network, got {brief(baseline)}"
        )
    if not 0 <= low < high < 1:
        raise ArgumentError(
            f"low and high are shares with 0 <= low < high < 1, got {brief(low)} and {brief(high)}"
        )
    if not 0 < tolerance < 1:
        raise ArgumentError(f"tolerance is a share above 0 and below 1, got {brief(tolerance)}")
    if max_tries < 1:
        raise ArgumentError(f"max_tries must be 1 or more, got {brief(max_tries)}")


def _finite(score: Any, share: float) -> float:
    if not is_number(score) or not math.isfinite(score):
        raise ArgumentError(
            f"evaluate must give a finite number; for the cut of {share:.1%} it gave {brief(score)}"
        )
    return float(score)


@dataclass(frozen=True)
class Terms:
    """What a verdict speaks in: an option has another name in Python than at a command.

    Attributes:
        allowed: what may be lost.
        loses: from a share and what its network lost to both in words.
        longer, finer, larger: how candidates train longer, smaller cuts are tried, and larger ones.
    """

    allowed: str
    loses: Callable[[float, float], str]
    longer: str
    finer: str
    larger: str


def outcome(
    candidates: Sequence[Candidate], best: Candidate | None, baseline: float, terms: Terms
) -> str:
    """What a search found, in a sentence or two; some candidate has a score."""

    def loses(item: Candidate) -> str:
        assert item.score is not None
        return terms.loses(item.share, baseline - item.score)

    if best is None:
        smallest = min((item for item in candidates if item.score is not None), key=_share)
        return (
            f"No cut is within {terms.allowed}: even the smallest that was tried, "
            f"{loses(smallest)}. Let candidates recover for longer ({terms.longer}), allow a "
            f"larger drop, or look at smaller cuts ({terms.finer})."
        )
    larger = (item for item in candidates if item.share > best.share)
    beyond = min(larger, key=_share, default=None)
    text = f"The largest cut within {terms.allowed} that was found: {loses(best)}."
    if beyond is None:
        return f"Every cut passed. {text} The network may be smaller still: {terms.larger}."
    if beyond.score is None:
        return f"{text} Larger cuts cannot be reached: {beyond.note}"
    return f"{text} The next larger one that was tried, {loses(beyond)}."


def _share(item: Candidate) -> float:
    return item.share


def _terms(max_drop: float) -> Terms:
    """Shares, and scores in whatever unit `evaluate` gives them."""
    return Terms(
        f"a drop of {max_drop:g}",
        lambda share, drop: f"{share:.1%} loses {drop:z.4g}",
        "in make",
        "a smaller tolerance",
        "give more max_tries, or a larger high",
    )
