"""What a search shows: its front and its verdict."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import netslim
from netslim.report import figures
from netslim.report.search_page import notes, verdict


def rows(*accuracies: float) -> dict:
    """A search over MACs with candidates of these accuracies, of which the second is the best."""
    first = {"key": "original", "accuracy": 0.9, "macs": 1000}
    tried = [
        {
            "key": "candidate",
            "share": 0.1 * n,
            "macs": 1000 - 100 * n,
            "accuracy": y,
            "passed": y >= 0.89,
        }
        for n, y in enumerate(accuracies, 1)
    ]
    return {
        "resource": "macs",
        "max_drop": 1.0,
        "baseline": 0.9,
        "best": 0.2,
        "rows": [first, *tried],
    }


def test_the_front_numbers_candidates_and_keeps_what_matters_in_sight():
    found = rows(0.9, 0.895, 0.88, 0.1)
    drawing = figures.front(found)
    assert drawing == figures.front(found)
    assert ET.fromstring(drawing).tag.endswith("svg")
    assert figures._bottom([90, 89.5, 88, 10], 89, 1.0) == 88 - 0.25 * 2 - 0.5
    assert figures.front(found, "png").startswith(b"\x89PNG")


def test_where_all_pass_the_verdict_says_so():
    found = netslim.search(
        lambda share: share, lambda _: 1.0, max_drop=0, baseline=1.0, high=0.9, tolerance=0.3
    )
    said = verdict(found, "params", 0)
    assert said.startswith(
        "Every cut passed. The largest cut within 0 points that was found: 90.0 % of the parameters"
    )


def test_a_network_that_knows_nothing_is_said_to():
    labels = [0] * 60 + [1] * 40
    blind, good = {"accuracy": 0.62}, {"accuracy": 0.9}
    said = list(notes(blind, blind, labels, max_drop=1, from_given=True))
    assert "100 validation images decide" in said[0]
    assert said[1].startswith("given network: an accuracy of 62.00 % may be chance: 2 classes, 100")
    assert len(list(notes(good, good, labels, max_drop=1, from_given=True))) == 1
