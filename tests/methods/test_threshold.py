"""Whether a threshold of batch-norm scales is told, by every door, when it is no clean one."""

from __future__ import annotations

import logging

import pytest
import torch

import netslim
import wished
from netslim.methods.threshold import threshold_warning
from netslim.surgery.plan import PruningPlan
from netslim.surgery.rows import GroupCut
from netslim.surgery.why import Why

X = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
HALF = netslim.Budget(cut_channels=0.5)


def warned(scores, kept, criterion="bn_scale"):
    groups = {name: GroupCut(len(scores[name]), units, True) for name, units in kept.items()}
    plan = PruningPlan("", groups, (), why=Why(criterion, scores=scores))
    return threshold_warning(plan)


def test_a_clean_cut_gives_no_warning():
    scores = {"a": (0.001, 0.5, 0.6), "b": (0.009, 0.7)}
    assert warned(scores, {"a": (1, 2), "b": (1,)}) is None
    assert warned({"a": (0.02, 0.5, 0.6)}, {"a": (1, 2)}) is None  # below 5 % of 0.5
    assert warned(scores, {}) is None
    assert threshold_warning(PruningPlan("", {}, ())) is None


def test_a_cut_through_large_scales_is_told_with_the_remedy():
    scores = {"a": (0.001, 0.3, 0.5, 0.6), "b": (0.7, 0.9)}
    text = warned(scores, {"a": (2, 3)})
    assert text is not None
    assert text.startswith(
        "the cut went through scales that are not small: 1 of the 2 removed ones, up to 0.3, "
        "where the median kept is 0.65"
    )
    assert "penalty of Network Slimming" in text
    assert "criterion obs" in text
    assert warned(scores, {"a": (2, 3)}, "l2") is None


@pytest.mark.parametrize("small", [False, True])
def test_whoever_cuts_is_told(small, caplog):
    caplog.set_level(logging.WARNING, "netslim")
    network = wished.sound()
    if small:  # as Network Slimming leaves them
        with torch.no_grad():
            for norm in (network.norm1, network.norm2, network.norm3):
                norm.weight[::2] = 1e-4
                norm.weight[1::2] = 1.0
    netslim.slim(network, X, budget=HALF)
    netslim.GradualPruning(network, X, HALF, steps=1).step()
    assert caplog.text.count("scales that are not small") == 2 * (not small)
