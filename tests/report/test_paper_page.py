"""docs/results.md: the words and figures beside the published ones."""

from __future__ import annotations

from typing import Any

import pytest

from netslim.report.paper_page import page, published_lines, twin_line

PUBLISHED = [
    {"label": "Net (Paper)", "beside": "baseline", "error": 6.0},
    {"label": "cut (Paper)", "beside": "fine-tuned", "error": 6.5, "macs_cut": 40.0},
    {"label": "cut, a port (Port)", "beside": "fine-tuned", "error": 7.0},
    {"label": "from scratch (Paper)", "beside": "scratch-e", "error": 9.0},
]


def network(key: str, error: float, macs: int) -> dict[str, Any]:
    return {"key": key, "label": key, "accuracy": 1 - error / 100, "params": macs, "macs": macs}


def entry(tuned: float, *, seed: int = 0, macs: int = 50, **more: Any) -> dict[str, Any]:
    """A row with an error of 10 % before the cut."""
    networks = [network("baseline", 10.0, 100), network("before", 12.0, 100)]
    found = {
        "recipe": "net",
        "seed": seed,
        "twin": False,
        "published": PUBLISHED,
        "conditions": ["data.name: hf:cifar10 in the place of torchvision:CIFAR10"],
        "notes": ["JPEG-compressed"],
        "bites": [],
        "seconds": 90.0,
        "environment": {"device": "cpu", "processor": "P", "date": "today"},
        "rows": [*networks, network("fine-tuned", tuned, macs)],
    }
    return {**found, **more}


def line(group: list[dict[str, Any]], label: str) -> list[str]:
    return next(found for found in published_lines(group) if label in found[0])


@pytest.mark.parametrize(
    ("tuned", "change", "word"),
    [(10.5, "+0.50", "no worse"), (10.9, "+0.90", "**worse** by 0.40 points"), (9, "−1.00", "no")],
)
def test_the_change_is_compared_and_not_the_error(tuned, change, word):
    found = line([entry(tuned)], "cut (Paper)")
    assert found[1:5] == ["6.50 %", f"{tuned:.2f}", "+0.50", change]
    assert found[-1].startswith(word)


def test_a_smaller_cut_than_the_published_one_is_said():
    assert line([entry(10.0, macs=50)], "cut (Paper)")[-2:] == ["40.00 % / 50.00 %", "no worse"]
    assert line([entry(10.0, macs=61)], "cut (Paper)")[-1] == "no worse, fewer MACs cut"


def test_a_source_without_a_whole_network_has_no_change_and_what_is_missing_is_said():
    assert line([entry(10.0)], "cut, a port")[3] == "–"
    assert line([entry(10.0)], "from scratch")[-1] == "not measured"


def test_seeds_give_a_mean_and_a_spread():
    group = [entry(10.0, seed=0), entry(11.0, seed=1)]
    assert line(group, "cut (Paper)")[2] == "10.50 ± 0.71"


def twin(tuned: float, *bites: bool) -> dict[str, Any]:
    said = [{"bites": good, "figure": f"figure {n}"} for n, good in enumerate(bites)]
    return entry(tuned, twin=True, recipe="net-small", published=[], bites=said)


@pytest.mark.parametrize(
    ("found", "bites", "recovers"),
    [
        (twin(12.9, True), "yes", "yes"),
        (twin(13.1, True), "yes", "**no**"),
        (twin(9.0, True, False), "**no**", "yes"),
        (twin(9.0), "–", "yes"),
    ],
)
def test_a_twin_says_whether_its_method_bites_and_whether_it_recovers(found, bites, recovers):
    cells = twin_line([found])
    assert (cells[1], cells[4]) == (bites, recovers)
    assert cells[3].startswith("90.00 → ")
    assert cells[-1] == "1 min 30 s"


def test_the_page_holds_both_tables_the_conditions_and_what_is_left():
    rows = [twin(9.0, True), entry(10.5), twin(14.0, True) | {"recipe": "other-small"}]
    text = page({"rows": rows, "left": ["resnet56-sfp"]})
    published, twins = text.split("## Small twins")
    assert "JPEG-compressed" in published
    assert "data.name: hf:cifar10" in published
    assert "| `net-small` | yes |" in twins
    assert "1 of 2 count" in twins
    assert "netslim bench paper --minutes 9 --rows resnet56-sfp" in twins
    assert "`net`" not in twins


def test_what_nobody_has_published_is_shown_by_itself():
    found = published_lines([entry(10.5, published=PUBLISHED[:1])])
    assert [cells[0] for cells in found] == ["`net`: Net (Paper)", "`net`: cut (not published)"]
    assert found[-1][1:5] == ["–", "10.50", "–", "+0.50"]
    assert len(published_lines([entry(10.5, published=[])])) == 2
