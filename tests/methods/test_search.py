"""`netslim.search`: bisection over the share that is cut."""

from __future__ import annotations

import json

import pytest
import torch

import netslim
from netslim.errors import ArgumentError, PlanError


def line(share: float) -> float:
    """A score that falls from 0.9 by 0.1 for each tenth that is cut."""
    return 0.9 - share


def shares(found: netslim.methods.SearchResult) -> list[float]:
    return [item.share for item in found.candidates]


# ---------------------------------------------------------------- the bisection


def test_bisection_by_hand():
    found = netslim.search(
        lambda share: share, line, max_drop=0.3, baseline=0.9, high=0.8, tolerance=0.1
    )
    # 0.4 fails, 0.2 passes, 0.3 passes; what is left of [0.3, 0.4] is no more than the tolerance
    assert shares(found) == [0.4, 0.2, 0.3]
    assert [item.passed for item in found.candidates] == [False, True, True]
    assert found.best == found.candidates[2]
    assert found.network == 0.3  # a drop of exactly what is allowed passes
    assert str(found).splitlines()[1].split() == ["40.0%", "0.5000", "+0.4000", "failed"]
    assert found.verdict == (
        "The largest cut within a drop of 0.3 that was found: 30.0% loses 0.3. The next larger one "
        "that was tried, 40.0% loses 0.4."
    )


def test_where_everything_passes_the_largest_is_tried_last():
    found = netslim.search(
        lambda share: share, lambda _: 1.0, max_drop=0, baseline=1.0, high=0.9, tolerance=0.3
    )
    assert shares(found) == [0.45, 0.675, 0.9]
    assert found.best is not None
    assert found.best.share == 0.9
    assert found.verdict == (
        "Every cut passed. The largest cut within a drop of 0 that was found: 90.0% loses 0. The "
        "network may be smaller still: give more max_tries, or a larger high."
    )


def test_where_nothing_passes_it_says_so():
    found = netslim.search(
        lambda share: share, lambda _: 0.1, max_drop=0.01, baseline=1.0, tolerance=0.3
    )
    assert (found.best, found.network) == (None, None)
    assert found.verdict == (
        "No cut is within a drop of 0.01: even the smallest that was tried, 23.8% loses 0.9. Let "
        "candidates recover for longer (in make), allow a larger drop, or look at smaller cuts (a "
        "smaller tolerance)."
    )


def test_no_more_tries_than_allowed():
    found = netslim.search(
        lambda share: share, line, max_drop=0.3, baseline=0.9, tolerance=1e-3, max_tries=3
    )
    assert len(found.candidates) == 3


def test_a_share_out_of_reach_counts_as_failed_and_is_no_try():
    def make(share: float) -> float:
        if share > 0.3:
            raise PlanError("min_channels=1 allows 30 %")
        return share

    found = netslim.search(
        make, lambda _: 1.0, max_drop=0, baseline=1.0, high=0.8, tolerance=0.06, max_tries=3
    )
    assert [(item.share, item.score) for item in found.candidates] == [
        (0.4, None),
        (0.2, 1.0),
        (0.3, 1.0),
        (0.35, None),
    ]
    assert found.verdict.endswith("Larger cuts cannot be reached: min_channels=1 allows 30 %")
    with pytest.raises(PlanError, match=r"no share from 0 to 0\.3 can be reached: too small"):
        netslim.search(lambda _: raising("too small"), line, max_drop=0, baseline=1.0, high=0.3)


def raising(text: str) -> float:
    raise PlanError(text)


def test_noise_is_not_searched_for_below_what_passed():
    """0.2 would fail, but 0.4 passed before: bisection does not look there."""
    scores = {0.4: 1.0, 0.6: 0.0, 0.5: 0.0}
    found = netslim.search(
        lambda share: share, scores.get, max_drop=0, baseline=1.0, high=0.8, tolerance=0.1
    )
    assert shares(found) == [0.4, 0.6, 0.5]
    assert found.best is not None
    assert found.best.share == 0.4


def test_the_journal_goes_on_where_it_was_killed(tmp_path):
    made: list[float] = []
    journal = tmp_path / "new" / "journal.json"
    options = {"max_drop": 0.3, "baseline": 0.9, "high": 0.8, "tolerance": 0.1, "journal": journal}

    def make(share: float) -> float:
        made.append(share)
        if len(made) == 3:
            raise KeyboardInterrupt
        return share

    with pytest.raises(KeyboardInterrupt):
        netslim.search(make, line, **options)
    assert [row["share"] for row in json.loads(journal.read_text())["tried"]] == [0.4, 0.2]
    found = netslim.search(make, line, **options)
    assert made == [0.4, 0.2, 0.3, 0.3]
    assert (shares(found), found.network) == ([0.4, 0.2, 0.3], 0.3)
    again = netslim.search(make, line, **options)
    assert (again.best, again.network, len(made)) == (found.best, None, 4)
    stricter = netslim.search(lambda share: share, line, **(options | {"max_drop": 0.25}))
    assert stricter.best is not None
    assert stricter.best.share == 0.2


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 2, "tried": []}', '{"format": 1, "tried": [{"share": 1}]}']
)
def test_a_damaged_journal_is_refused(tmp_path, content):
    (tmp_path / "j.json").write_text(content)
    with pytest.raises(PlanError, match=r"j\.json is not the journal of a search"):
        netslim.search(
            lambda share: share, line, max_drop=0, baseline=1.0, journal=tmp_path / "j.json"
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_drop": -1}, "max_drop must be 0 or more"),
        ({"baseline": float("nan")}, "baseline must be the finite score"),
        ({"low": 0.5, "high": 0.5}, "0 <= low < high < 1"),
        ({"high": 1.0}, "0 <= low < high < 1"),
        ({"tolerance": 0}, "tolerance is a share above 0"),
        ({"max_tries": 0}, "max_tries must be 1 or more"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(ArgumentError, match=said):
        netslim.search(lambda share: share, line, **({"max_drop": 0.1, "baseline": 1.0} | options))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ArgumentError, match=r"for the cut of 47\.5% it gave nan"):
        netslim.search(lambda share: share, lambda _: float("nan"), max_drop=0.1, baseline=1.0)


def test_with_real_networks():
    torch.manual_seed(0)
    model = netslim.models.zoo.vgg(layers=[8, "M", 8], in_channels=1).eval()
    for scale in (
        module.weight for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)
    ):
        scale.data = torch.rand(len(scale))
    example = torch.randn(1, 1, 8, 8)
    whole = netslim.cost(model, example).macs
    found = netslim.search(
        lambda share: netslim.slim(model, example, budget=netslim.Budget(cut_macs=share)),
        lambda small: netslim.cost(small, example).macs / whole,
        max_drop=0.5,
        baseline=1.0,
    )
    assert found.best is not None
    assert found.network is not None
    assert 0.5 * whole <= netslim.cost(found.network, example).macs < 0.75 * whole
