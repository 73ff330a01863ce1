"""Clusters of channels: how many each group gets, and which channels they hold."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from nets import Chain, Residual
from netslim import trace
from netslim.errors import ArgumentError, PlanError
from netslim.methods import clusters as c
from netslim.selection.budget.limits import staying
from netslim.selection.options import Limits

IMAGE = torch.zeros(1, 3, 8, 8)


def blobs(labels, seed=0):
    """Kernels of 5 numbers near one centre a label, far from the other centres."""
    rng = np.random.default_rng(seed)
    return 10 * np.asarray(labels)[:, None] + 0.1 * rng.standard_normal((len(labels), 5))


def test_even_clusters_are_neighbours_whose_sizes_differ_by_one():
    assert c.even(np.zeros((7, 1)), 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert c.even(np.zeros((4, 1)), 4).tolist() == [0, 1, 2, 3]
    for size in range(1, 20):
        for number in range(1, size + 1):
            labels = c.even(np.zeros((size, 1)), number)
            counts = np.bincount(labels, minlength=number)
            assert len(counts) == number
            assert counts.max() - counts.min() <= 1
            assert (np.diff(labels) >= 0).all()


def test_imbalanced_clusters_put_the_excess_into_the_first():
    assert c.imbalanced(np.zeros((6, 1)), 3).tolist() == [0, 0, 0, 0, 1, 2]
    assert c.imbalanced(np.zeros((3, 1)), 1).tolist() == [0, 0, 0]


def test_kmeans_finds_the_blobs_and_numbers_them_as_they_appear():
    labels = [2, 0, 1, 1, 0, 2, 2]
    assert c.kmeans(blobs(labels), 3).tolist() == [0, 1, 2, 2, 1, 0, 0]


def test_kmeans_is_the_same_for_the_same_seed():
    kernels = np.random.default_rng(1).standard_normal((40, 9))
    assert c.kmeans(kernels, 11, seed=3).tolist() == c.kmeans(kernels, 11, seed=3).tolist()
    assert c.kmeans(kernels, 11, seed=3).tolist() != c.kmeans(kernels, 11, seed=4).tolist()


@pytest.mark.parametrize("wanted", [1, 2, 3, 5, 8])
def test_kmeans_fills_every_cluster_though_kernels_are_identical(wanted):
    kernels = np.repeat(np.array([[0.0, 1.0], [5.0, 5.0]]), 4, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = c.kmeans(kernels, wanted)
        again = c.kmeans(kernels, wanted)
    assert sorted(set(labels.tolist())) == list(range(wanted))
    assert labels.tolist() == again.tolist()
    if wanted >= 2:  # no cluster mixes the two kernels
        assert all(len(np.unique(kernels[labels == k], axis=0)) == 1 for k in range(wanted))


def test_kmeans_splits_off_the_farthest_member():
    kernels = np.array([[0.0], [1.0], [9.0], [20.0]])
    assert c._filled(kernels, np.array([0, 0, 0, 1]), 3).tolist() == [0, 0, 2, 1]


def test_canonical_numbers():
    assert c.canonical(np.array([7, 3, 7, -1, 3])).tolist() == [0, 1, 0, 2, 1]


def test_an_unknown_clustering_offers_the_nearest():
    with pytest.raises(ArgumentError, match=r"no clustering 'k-means'; did you mean 'kmeans'\?"):
        c.clustering("k-means")


def test_kernels_are_one_row_a_unit():
    model = Chain()
    group = trace(model, IMAGE)["second.0"]
    kernels = c.kernels_of(model.second[0].weight, group, "second.0.weight")
    assert kernels.shape == (5, 6 * 9)
    assert kernels.dtype == np.float64
    assert np.allclose(kernels[2], model.second[0].weight[2].detach().flatten())


def test_kernels_of_a_unit_with_several_entries():
    """Two groups in the second convolution tie channel i of the first to i + 2: a unit is two
    filters.
    """
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4 * 64, 2)
    )
    group = trace(model, IMAGE)["0"]
    assert group.size == 2
    kernels = c.kernels_of(model[0].weight, group, "0.weight")
    rows = model[0].weight.detach().flatten(1)
    assert np.allclose(kernels[1], torch.cat([rows[1], rows[3]]))


def test_kernels_that_are_not_finite():
    model = Chain()
    with torch.no_grad():
        model.first[0].weight[0, 0, 0, 0] = float("nan")
    group = trace(model, IMAGE)["first.0"]
    with pytest.raises(ArgumentError, match=r"'first.0.weight' are not finite, .* diverge"):
        c.kernels_of(model.first[0].weight, group, "first.0.weight")


def widths(target, **options):
    graph = trace(Chain(), IMAGE)
    return c.widths(graph, target, staying(Limits(**options), graph))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.5, {"first.0": 3, "second.0": 3}),  # ceil(6 / 2), ceil(5 / 2)
        (0.01, {"first.0": 1, "second.0": 1}),
        (0.8, {"first.0": 5, "second.0": 4}),
        ({"first.0": 2}, {"first.0": 2}),
        ({"first": 2}, {"first.0": 2}),
        ({"second.1.bias": 2}, {"second.0": 2}),
        ({"*": 0.5, "first.*": 2}, {"first.0": 2, "second.0": 3}),
        ({"first.*": 2, "*": 0.5}, {"first.0": 3, "second.0": 3}),
        ({"first.0": 6, "second.0": 4}, {"second.0": 4}),
        ({"first.0": 1.0, "second.0": 4}, {"second.0": 4}),
    ],
)
def test_widths(target, expected):
    assert widths(target) == expected


def test_protected_groups_stay():
    assert widths(0.5, protect="first*") == {"second.0": 3}
    assert widths({"*": 0.5}, protect=["first*"]) == {"second.0": 3}


def test_shortcuts_can_be_avoided():
    graph = trace(Residual(), IMAGE)
    assert set(c.widths(graph, 0.5, staying(Limits(), graph))) == {"stem.0", "inner.0"}
    reasons = staying(Limits(shortcuts="avoid"), graph)
    assert set(c.widths(graph, 0.5, reasons)) == {"inner.0"}
    with pytest.raises(
        PlanError, match=r"'stem.0' stays: the outputs of several layers are added in it"
    ):
        c.widths(graph, {"stem.0": 3}, reasons)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ({"first.0": 7}, {}, r"first.0 has 6 channels, so it can keep 1 to 6 of them, not 7"),
        ({"first.0": 0}, {}, r"can keep 1 to 6 of them, not 0"),
        ({"first.0": -1}, {}, r"not -1"),
        (0.0, {}, r"share that stays must be above 0 and at most 1, not 0.0"),
        (1.5, {}, r"at most 1, not 1.5"),
        (float("nan"), {}, r"not nan"),
        (True, {}, r"a width \(int\) or the share that stays \(float\) is needed, not True"),
        ("half", {}, r"not 'half'"),
        ({"frist.0": 2}, {}, r"'frist.0'; did you mean .*first.0"),
        ({"third.*": 2}, {}, r"target names no group that can become narrower: 'third.\*'; "),
        (0.5, {"protect": ["thrid.0"]}, r"protect names no group: 'thrid.0'; "),
        (0.5, {"shortcuts": "skip"}, r"shortcuts must be 'include' or 'avoid', got 'skip'"),
    ],
)
def test_targets_that_mean_nothing(target, options, message):
    with pytest.raises(ArgumentError, match=message):
        widths(target, **options)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (1.0, {}, r"target=1.0 leaves every group as wide as it is"),
        ({"first.0": 6}, {}, r"nothing to make equal"),
        ({}, {}, r"nothing to make equal"),
        ({"head": 2}, {}, r"'head' stays: .*; these can: first.0, second.0"),
        (0.5, {"protect": "*"}, r"no group that can become narrower: '\*' stays: protected"),
    ],
)
def test_targets_that_make_nothing_equal(target, options, message):
    with pytest.raises(PlanError, match=message):
        widths(target, **options)


def test_given_clusters_are_taken_in_canonical_form():
    graph = trace(Chain(), IMAGE)
    given = {"second.0": [4, 4, 4, 0, 1], "first": torch.tensor([1, 0, 1, 2, 3, 4])}
    found = c.checked(graph, given, staying(Limits(), graph))
    assert {name: labels.tolist() for name, labels in found.items()} == {
        "first.0": [0, 1, 0, 2, 3, 4],
        "second.0": [0, 0, 0, 1, 2],
    }
    assert list(found) == ["first.0", "second.0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"first.0": [0, 0]},
            r"first.0 has 6 channels; its clusters must be as many whole numbers, got shape \(2,\)",
        ),
        ({"first.0": [0.5] * 6}, r"whole numbers, got shape \(6,\) of float64"),
        ({"firts.0": [0] * 6}, r"named 'firts.0'; did you mean"),
    ],
)
def test_given_clusters_that_do_not_fit(given, message):
    graph = trace(Chain(), IMAGE)
    with pytest.raises(ArgumentError, match=message):
        c.checked(graph, given, staying(Limits(), graph))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"first.0": range(6)}, r"no cluster has two members"),
        ({}, r"no cluster has two members"),
        ({"head": [0] * 4}, r"the clusters name 'head', but head stays"),
    ],
)
def test_given_clusters_that_make_nothing_equal(given, message):
    graph = trace(Chain(), IMAGE)
    with pytest.raises(PlanError, match=message):
        c.checked(graph, given, staying(Limits(), graph))
