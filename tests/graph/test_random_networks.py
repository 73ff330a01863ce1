"""Random networks: every cut is exact or refused, never wrong, never a crash; and a verification
that can fail.

The suite tries a fixed set of networks. To try thousands of new ones, each failure shrunk to a
small `Spec`:

    NETSLIM_EXAMPLES=5000 pytest tests/graph/test_random_networks.py

A `Spec` is printed as code: paste it into ``cut_and_verify(*spec.build(),
    np.random.default_rng(seed))``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nets import as_if_traced
from netslim import ChannelGraph, PruningPlan, load, prune, prune_, save, trace, verify
from netslim.errors import PlanError, VerificationError
from netslim.graph.modules.walk import named_tensors
from netslim.graph.modules.weight_norms import weight_norms
from netslim.surgery.history import history
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise
from netslim.surgery.rows import TensorCut
from random_layers import OPERATORS
from random_networks import Spec, networks, node, unpacked

EXAMPLES = int(os.environ.get("NETSLIM_EXAMPLES", "0"))
SEEDS = st.integers(0, 2**16)
Inputs = tuple[Tensor, ...]


def budget(fixed: int) -> Callable[[Any], Any]:
    """``fixed`` examples, the same for the same source, or NETSLIM_EXAMPLES new ones."""
    return settings(
        max_examples=EXAMPLES or fixed,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def some_units(
    graph: ChannelGraph, rng: np.random.Generator, inexact: bool = False
) -> dict[int, np.ndarray]:
    """For most of the groups that can be cut (inexactly too, if so asked), random units to keep, of
    a random number.
    """
    masks = {}
    for number, group in enumerate(graph.groups):
        if (
            group.size > 1
            and (not group.frozen if inexact else group.prunable)
            and rng.random() < 0.9
        ):
            masks[number] = rng.permutation(group.size) < rng.integers(1, group.size)
    return masks


def results(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return unpacked(model(*inputs))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def nearly_same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, 1e-5, 1e-6) for x, y in zip(a, b, strict=True))


def cut_and_verify(
    model: nn.Module, inputs: Inputs, rng: np.random.Generator
) -> tuple[nn.Module, int, int]:
    """Cut random units of the exact groups; the model, how many units went and how many of them are
    felt.
    """
    graph = trace(model, inputs)
    assert all(group.prunable or group.reason for group in graph)
    masks = some_units(graph, rng)
    plan = plan_keeping(graph, masks)
    assert PruningPlan.from_json(plan.to_json()) == plan
    small = prune(model, plan)
    check = verify(model, small, plan, inputs, tolerance=1e-8, graph=graph)
    assert check.deviation is not None
    assert sum(p.numel() for p in small.parameters()) == graph.params(masks)
    return small, check.cut, check.changed


def cut_inexactly(model: nn.Module, inputs: Inputs, rng: np.random.Generator) -> None:
    """Groups that cannot be cut exactly may be cut too: all shapes stay valid, and those of the
    outputs the same.
    """
    graph = trace(model, inputs)
    plan = plan_keeping(graph, some_units(graph, rng, inexact=True))
    small = prune(model, plan)
    verify(model, small, plan, inputs, tolerance=1e-8)
    assert [t.shape for t in results(small, inputs)] == [t.shape for t in results(model, inputs)]


WEIGHT_NORM = Spec(
    inputs=((4, 7, 4),),
    nodes=(
        node("conv", 0, out=12, kernel=1, bias=True),
        node("conv_parametrized", 1, out=4, kind="weight"),
    ),
    outputs=(2,),
    container="single",
)


def test_every_cut_is_exact_or_refused(tmp_path: Path) -> None:
    """Two cuts, one on the other, of random units; a checkpoint and a cut in place give the same
    network.
    """
    tally = []

    @budget(32)
    @given(networks(), SEEDS)
    @example(WEIGHT_NORM, 0)
    def check(spec: Spec, seed: int) -> None:
        model, inputs = spec.build()
        before, rng = copy.deepcopy(inputs), np.random.default_rng(seed)
        small, cut, felt = cut_and_verify(model, inputs, rng)
        smaller, more, also = cut_and_verify(small, inputs, rng)
        assert same(list(before), list(inputs))
        tally.append((cut + more, felt + also))
        if seed % 4 == 0:
            expected = results(smaller, inputs)
            loaded = load(model, save(smaller, tmp_path / "model.safetensors"))
            assert same(results(loaded, inputs), expected)
            # The gains of weight norm are rounded at each cut, and once where two are one.
            alike = nearly_same if weight_norms(model) else same
            assert alike(results(prune_(model, history(smaller)), inputs), expected)

    check()
    cut, felt = np.array(tally).sum(0)
    assert cut > 3 * len(tally)
    assert felt > 0.7 * cut


@budget(18)
@given(networks(), SEEDS)
def test_inexact_cuts_run_with_the_same_output_shapes(spec: Spec, seed: int) -> None:
    model, inputs = spec.build()
    cut_inexactly(model, inputs, np.random.default_rng(seed))


# --- a verification that can fail -----------------------------------------------------------------


def swap_two_channels(tensor: Tensor, rng: np.random.Generator) -> None:
    axis = rng.choice([d for d, n in enumerate(tensor.shape) if n > 1])
    i, j = rng.choice(tensor.shape[axis], 2, replace=False).tolist()
    order = list(range(tensor.shape[axis]))
    order[i], order[j] = j, i
    tensor.copy_(tensor.index_select(axis, torch.tensor(order)))


def change_one_entry(tensor: Tensor, rng: np.random.Generator) -> None:
    tensor.view(-1)[int(rng.integers(tensor.numel()))] *= 1 + 1e-6


# Weights of one channel each, once cut: no tensor has two channels to swap.
ONE_ENTRY_EACH = Spec(
    inputs=((1, 4, 4),),
    nodes=(node("conv_tied", 0, kind="twice"), node("conv_of_autoencoder", 1, out=2)),
    outputs=(2,),
    container="single",
)


@budget(10)
@given(networks(), SEEDS)
@example(ONE_ENTRY_EACH, 0)
def test_mutated_weights_are_caught(spec: Spec, seed: int) -> None:
    model, inputs, plan, rng = cut_at_random(spec, seed)
    for mutate, least in ((swap_two_channels, 2), (change_one_entry, 1)):
        small = prune(model, plan)
        floating = [t for _, t in named_tensors(small) if t.is_floating_point()]
        tensors = [t for t in floating if t.numel() >= least]
        if not tensors:
            continue
        tensor = tensors[rng.integers(len(tensors))].data
        before = tensor.clone()
        mutate(tensor, rng)
        assume(not torch.equal(before, tensor))
        with pytest.raises(VerificationError, match="does not hold the planned slice"):
            verify(model, small, plan, inputs)


def test_wrong_indices_and_forgotten_sizes_are_caught() -> None:
    """A plan that keeps a wrong index in one tensor, or forgets a size, is caught wherever it
    changes the outputs.
    """
    tally = []

    @budget(24)
    @given(networks(), SEEDS)
    def check(spec: Spec, seed: int) -> None:
        model, inputs, plan, rng = cut_at_random(spec, seed)
        bad = forgetful(plan, rng) if plan.patches and seed % 2 else with_a_wrong_index(plan, rng)
        try:
            small = prune(model, bad)
        except PlanError:  # the rows of one layer differ
            tally.append(True)
            return
        harmful = differ(small, prune(model, plan), inputs)
        tally.append(harmful)
        if harmful:
            with pytest.raises(VerificationError):
                verify(model, small, bad, inputs, tolerance=1e-8)

    check()
    # About 0.7 of them do harm. Which examples are drawn depends on the numbers in our source files,
    # from which Hypothesis takes some, so a change anywhere may shift the share.
    assert np.mean(tally) > 0.5


def cut_at_random(
    spec: Spec, seed: int
) -> tuple[nn.Module, Inputs, PruningPlan, np.random.Generator]:
    """A random network with random weights, and a plan that cuts something."""
    model, inputs = spec.build()
    rng = np.random.default_rng(seed)
    plan = plan_keeping(graph := trace(randomise(model), inputs), some_units(graph, rng))
    assume(plan.removed)
    return model, inputs, plan, rng


def with_a_wrong_index(plan: PruningPlan, rng: np.random.Generator) -> PruningPlan:
    number = int(rng.integers(len(plan.tensors)))
    cut = plan.tensors[number]
    kept = [*cut.kept]
    kept[rng.integers(len(kept))] = rng.choice(cut.removed)
    wrong = TensorCut(cut.tensor, cut.axis, cut.size, tuple(sorted(map(int, kept))), cut.role)
    return as_if_traced(plan, (*plan.tensors[:number], wrong, *plan.tensors[number + 1 :]))


def forgetful(plan: PruningPlan, rng: np.random.Generator) -> PruningPlan:
    number = int(rng.integers(len(plan.patches)))
    return replace(plan, patches=plan.patches[:number] + plan.patches[number + 1 :])


def differ(wrong: nn.Module, right: nn.Module, inputs: Inputs) -> bool:
    """Whether two networks give different outputs, or the first none at all."""
    inputs = tuple(x.double() for x in inputs)
    expected = results(right.double(), inputs)
    try:
        found = results(wrong.double(), inputs)
    except (RuntimeError, ValueError, IndexError, UserWarning):
        return True
    pairs = zip(found, expected, strict=True)
    return any(
        a.shape != b.shape or not torch.allclose(a, b, 1e-6, 1e-6 * float(b.abs().max()))
        for a, b in pairs
    )


# --- the strategy itself --------------------------------------------------------------------------


def test_a_spec_prints_as_code_and_builds_the_same_network_again() -> None:
    from random_networks import node

    @budget(8)
    @given(networks())
    def check(spec: Spec) -> None:
        again = eval(repr(spec), {"Spec": Spec, "node": node})
        assert again == spec
        model, inputs = spec.build()
        copied, same_inputs = again.build()
        assert same(results(model, inputs), results(copied, same_inputs))

    check()


def test_most_operators_are_drawn_within_a_few_hundred_networks() -> None:
    drawn = set()

    @budget(200)
    @given(networks())
    def collect(spec: Spec) -> None:
        drawn.update(n.op for n in spec.nodes)

    collect()
    assert len(drawn) > 0.8 * len(OPERATORS)
