"""Latency tables: curves through known times, kernels that compute what the layers do, and promises
that come true.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import netslim
from nets import Chain, Residual
from netslim import Budget, latency_table, prune, select, trace
from netslim.errors import ArgumentError, PlanError, StaleGraphError
from netslim.measure import Latency, LatencyTable
from netslim.measure.backends import Ready
from netslim.measure.table import measuring as measuring_module
from netslim.measure.table import promise as promise_module
from netslim.measure.table.cache import folder
from netslim.measure.table.curves import (
    Stack,
    class_of,
    corners,
    points,
    probes,
    rising,
    surface_of,
    up,
)
from netslim.measure.table.kernels import Kernel, Values, kernels_of, observe
from netslim.measure.table.latency_table import Measured, Terms
from netslim.measure.table.measuring import fit, random_cuts
from netslim.measure.table.onnx_kernels import STEP, ZERO, int8_kernel, onnx_kernel, whole_numbers
from netslim.measure.table.promise import TimedTable, timed_here
from netslim.methods.cutting import by_scores
from netslim.selection import Compensation, Scoring
from netslim.selection.budget.resources import Products, Widths
from netslim.selection.defaults import Choice
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise

CPU = torch.device("cpu")
TERMS = Terms(layers=1.5, bytes=2e-5, params=1e-4, constant=0.3)


def at(*widths: float) -> np.ndarray:
    return np.array([widths], dtype=float)


# --- curves ---------------------------------------------------------------------------------------


def test_classes_and_blocks_of_widths():
    assert class_of(np.array([16, 32, 4, 12, 20, 1, 6, 17])).tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert up(np.array([1, 16, 17, 33])).tolist() == [16, 16, 32, 48]


def test_probes_of_an_axis():
    # Blocks 16, 32, 48, 64 in each of three classes, the middle one at both ends, and the smallest
    # widths.
    assert probes(64) == [3, 4, 8, 9, 16, 24, 25, 32, 33, 36, 40, 41, 44, 47, 48, 56, 57, 64]
    assert all(width % 8 == 0 for width in probes(64, step=8))
    assert {5, 16} <= set(probes(5))


def test_rising_pools_what_falls():
    assert rising(np.array([3.0, 1.0, 2.0, 5.0])).tolist() == [2.0, 2.0, 2.0, 5.0]
    assert rising(np.array([1.0, 2.0, 4.0])).tolist() == [1.0, 2.0, 4.0]


def stack_of(ms: Callable[..., float], *sizes: int) -> Stack:
    axes = [probes(size) for size in sizes]
    return Stack([surface_of(axes, {point: float(ms(*point)) for point in points(axes)})])


@pytest.mark.parametrize(
    "ms",
    [
        lambda a, b: 0.02 + 1e-4 * a * b,
        lambda a, b: 0.02 + 1e-4 * up(a) * up(b),
        lambda a, b: 0.02 + 1e-4 * a * up(b),
        lambda a, b: (0.02 + 1e-4 * up(a) * up(b)) * (1.0 if a % 16 == 0 else 1.4),
        lambda a, b: (0.02 + 1e-4 * a * b) * (1.0 if a % 4 == 0 and b % 4 == 0 else 1.6),
    ],
    ids=["smooth", "steps", "steps of one axis", "slow beside the block", "slow once for both"],
)
def test_times_of_known_kernels_are_met(ms):
    stack = stack_of(ms, 128, 192)
    generator = np.random.default_rng(0)
    for a, b in generator.integers((20, 20), (129, 193), size=(60, 2)):
        assert stack.times(at(a, b))[0] == pytest.approx(float(ms(a, b)), rel=0.05)


def test_a_width_beside_the_block_may_cost_more_than_the_next_block():
    stack = stack_of(lambda a: up(a) * (1.0 if a % 16 == 0 else 1.5), 96)
    assert stack.times(at(90))[0] == pytest.approx(144)
    assert stack.times(at(96))[0] == pytest.approx(96)


def test_a_number_of_blocks_may_be_slow_and_slopes_are_never_negative():
    def ms(a):
        return up(a) * (1.4 if up(a) / 16 in (7, 11, 13) else 1.0)

    stack = stack_of(ms, 256)
    for width in (98, 112, 113, 128, 176, 208, 250, 256):
        assert stack.times(at(width))[0] == pytest.approx(float(ms(width)))
    assert stack.times(at(112))[0] > stack.times(at(128))[0]
    assert all(stack.slopes(at(width))[0, 0] >= 0 for width in range(1, 257))


def test_slopes_smooth_the_steps():
    smooth, steps = (
        stack_of(lambda a, b: a * b, 128, 128),
        stack_of(lambda a, b: up(a) * up(b), 128, 128),
    )
    assert smooth.slopes(at(70, 90))[0] == pytest.approx([90, 70], rel=0.01)
    assert steps.slopes(at(70, 90))[0] == pytest.approx([96, 80], rel=0.05)
    assert steps.times(at(70, 90))[0] == pytest.approx(80 * 96, rel=0.01)


def test_a_kernel_without_live_widths_is_a_constant():
    assert Stack([surface_of([], {(): 2.5})]).times(at(1, 1)).tolist() == [2.5]


def test_corners_hold_the_reference():
    assert corners(probes(128), 64) == [16, 32, 64, 128]
    assert corners(probes(5), 16) == [16]


# --- kernels --------------------------------------------------------------------------------------


class Zoo(nn.Module):
    """Every kind of kernel: plain, grouped, depthwise, transposed, linear of two kinds, and
    attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.grouped = (
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.Conv2d(8, 12, 3, groups=4, bias=False),
        )
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.transposed = nn.ConvTranspose2d(12, 6, 2, stride=2, output_padding=1)
        self.fc, self.out = nn.Linear(6, 10, bias=False), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.transposed(self.depthwise(self.grouped(self.plain(x))))
        x = self.fc(x.flatten(2).transpose(1, 2))[:, None]
        # Of one head: without any, attention of older PyTorch is two products.
        x = nn.functional.scaled_dot_product_attention(x, x, x)
        return self.out(x.mean((1, 2)))


@pytest.fixture(scope="module")
def zoo() -> tuple[Zoo, list[Kernel | None]]:
    model, x = Zoo().eval(), torch.randn(2, 3, 12, 12)
    graph = trace(model, x)
    return model, kernels_of(graph, observe(model, x, lambda: None))


def test_every_call_is_described(zoo):
    _, kernels = zoo
    assert [str(kernel) for kernel in kernels if kernel is not None] == [
        "3x3 convolution, stride 2x2, on 2x12x12",
        "4 groups, 3x3 convolution, stride 1x1, on 2x6x6",
        "depthwise 3x3 convolution, stride 1x1, on 2x4x4",
        "2x2 transposed convolution, stride 2x2, on 2x4x4",
        "linear of 162 rows",
        "linear of 2 rows",
    ]
    assert [(k.depth, k.width) for k in kernels if k is not None] == [
        (3, 8),
        (2, 12),
        (1, 12),
        (12, 6),
        (6, 10),
        (10, 4),
    ]
    assert [k is None for k in kernels] == [False] * 5 + [True, True, False]


def test_widths_of_groups_come_in_steps(zoo):
    _, kernels = zoo
    grouped, depthwise = kernels[1], kernels[2]
    assert grouped is not None
    assert depthwise is not None
    assert (grouped.step(0), grouped.step(1), depthwise.step(1)) == (1, 4, 1)
    assert grouped.shapes(1, 8) == ((2, 4, 6, 6), (8, 1, 3, 3), 4)
    assert depthwise.follows
    assert depthwise.shapes(1, 5) == ((2, 5, 4, 4), (5, 1, 3, 3), 5)


def test_kernels_run_at_other_widths(zoo):
    _, kernels = zoo
    values = Values(CPU)
    for kernel in kernels:
        if kernel is not None:
            width = 2 * kernel.step(1)
            depth = max(1, kernel.depth // 2)
            out = kernel.call(depth, width, values)()
            assert isinstance(out, torch.Tensor)
            assert out.shape[1] == width


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 7])
def test_the_onnx_kernel_computes_the_same(zoo, number):
    pytest.importorskip("onnxruntime")
    from netslim.models.onnx_session import Session

    kernel = zoo[1][number]
    values = Values(CPU)
    values.take((9999,), torch.float32)  # from here on the same numbers
    depth, width = kernel.depth, 2 * kernel.step(1)
    shape, weight_shape, _ = kernel.shapes(depth, width)
    weight = values.take(weight_shape, torch.float32)
    bias = values.take((width,), torch.float32) if kernel.bias else None
    session = Session(onnx_kernel(kernel, depth, width, weight, bias), CPU)
    (found,) = session(values.take(shape, torch.float32))
    torch.testing.assert_close(found, kernel.call(depth, width, values)())


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_the_int8_kernel_computes_nearly_the_same(zoo, number):
    pytest.importorskip("onnxruntime")
    from netslim.models.onnx_session import Session

    kernel = zoo[1][number]
    values = Values(CPU)
    values.take((9999,), torch.float32)
    depth, width = kernel.depth, 2 * kernel.step(1)
    shape, weight_shape, _ = kernel.shapes(depth, width)
    weight = values.take(weight_shape, torch.float32) / 4
    bias = values.take((width,), torch.float32) if kernel.bias else None
    x = values.take(shape, torch.float32)
    (found,) = Session(int8_kernel(kernel, depth, width, weight, bias), CPU)(whole_numbers(x))
    (exact,) = Session(onnx_kernel(kernel, depth, width, weight, bias), CPU)(x)
    assert found.dtype is torch.uint8
    least, most = -ZERO * STEP, (255 - ZERO) * STEP
    torch.testing.assert_close(
        (found.float() - ZERO) * STEP, exact.clamp(least, most), rtol=0, atol=0.2
    )


def test_sizes_of_a_kernel_that_do_not_fit_into_memory_together_are_timed_in_portions(monkeypatch):
    monkeypatch.setattr(measuring_module, "_SIDE_BY_SIDE", 4 * 100)
    kernel = Kernel("linear", (1,), 10, 20, (True, True))
    widths = {(a, b): (a, b) for a, b in ((1, 4), (2, 20), (3, 20), (10, 20), (10, 1))}
    run = measuring_module._Measurement(nn.Linear(1, 1), None, None, "onnxruntime", CPU, print)
    assert list(run.portions(kernel, widths)) == [
        [(1, 4), (2, 20)],
        [(3, 20)],
        [(10, 20)],
        [(10, 1)],
    ]
    run.backend = "eager"  # where all are views of the same numbers
    assert list(run.portions(kernel, widths)) == [list(widths)]


def test_observing_leaves_the_model_as_it_was():
    model = Residual().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    observe(model, torch.randn(2, 3, 6, 6), lambda: None, runs=2)
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


# --- the table ------------------------------------------------------------------------------------


def kernel_ms(kernel: Kernel, depth: int, width: int) -> float:
    """What a machine takes whose time is known: proportional to the multiplications, and a little
    more.
    """
    shape, weight_shape, groups = kernel.shapes(depth, width)
    return (
        0.01
        + 1e-5
        * np.prod(shape)
        * np.prod(weight_shape)
        / groups
        / shape[1 if len(shape) > 2 else -1]
    )


class Machine:
    """Stands in for the clock: kernels and whole networks take the time that formulas say."""

    def __init__(self) -> None:
        self.measured = 0
        self.disturbance = 0.0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(
            measuring_module._Measurement,
            "alone",
            lambda measurement, kernel: self.alone(measurement, kernel),
        )
        patch.setattr(
            measuring_module._Measurement,
            "whole",
            lambda measurement, masks: self.whole(measurement, [*masks]),
        )

    def alone(self, measurement: measuring_module._Measurement, kernel: Kernel) -> Measured:
        self.measured += 1
        full = (kernel.depth, kernel.width)
        live = [axis for axis in (0, 1) if kernel.live[axis]]
        axes = [probes(full[axis], kernel.step(axis)) for axis in live]
        ms = []
        for point in points(axes):
            known = dict(zip(live, point, strict=True))
            ms.append(
                (point, float(kernel_ms(kernel, known.get(0, full[0]), known.get(1, full[1]))))
            )
        return Measured(str(kernel), tuple(map(tuple, axes)), tuple(ms))

    def whole(
        self, measurement: measuring_module._Measurement, masks: list
    ) -> tuple[list, np.ndarray]:
        times = [whole_ms(measurement.model, measurement.inputs, m) for m in masks]
        times[1] *= 1 + self.disturbance
        return masks, np.array(times)


def whole_ms(model: nn.Module, x: torch.Tensor, masks: dict) -> float:
    """The time of the network under the masks, from a network that is really cut and traced."""
    small = prune(model, plan_keeping(trace(model, x), masks)) if masks else model
    graph = trace(small, x)
    layers = sum(
        kernel_ms(k, k.depth, k.width)
        for k in kernels_of(graph, observe(small, x, lambda: None))
        if k
    )
    put = sum(o.bytes({}) for o in graph.outputs if o.kind != "view")
    return (
        TERMS.layers * layers + TERMS.bytes * put + TERMS.params * graph.params() + TERMS.constant
    )


@pytest.fixture
def one_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole networks are timed under one cut by chance and none by choice, where a test looks at
    other things.
    """
    monkeypatch.setattr(measuring_module, "_CUTS", ((0.4, 0.4),))
    monkeypatch.setattr(measuring_module, "_AIMS", ())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    known = Machine()
    known.install(monkeypatch)
    return known


class Net(nn.Module):
    """Stem, depthwise, a residual block and a head, wide enough for curves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 40, 3, padding=1), nn.BatchNorm2d(40)
        self.inner, self.outer = nn.Conv2d(40, 64, 3, padding=1), nn.Conv2d(64, 40, 1)
        self.depthwise = nn.Conv2d(40, 40, 3, padding=1, groups=40)
        self.again = nn.Conv2d(40, 64, 3, padding=1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.stem(x)).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.head(self.again(self.depthwise(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def known_table(net: tuple[Net, torch.Tensor, netslim.ChannelGraph]) -> LatencyTable:
    """The table of `net`, measured on the known machine."""
    with pytest.MonkeyPatch.context() as patch:
        Machine().install(patch)
        return latency_table(net[0], net[2], net[1], cache=False)


@pytest.fixture(scope="module")
def net() -> tuple[Net, torch.Tensor, netslim.ChannelGraph]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    return model, x, trace(model, x)


@pytest.mark.usefixtures("one_cut")
def test_alike_layers_are_measured_once(machine, net):
    model, x, graph = net
    table = latency_table(model, graph, x, cache=False)
    assert machine.measured == len(table.kernels) == 5
    assert [site.module for site in table.sites] == [
        "stem",
        "inner",
        "outer",
        "depthwise",
        "again",
        "head",
    ]
    assert [site.kernel for site in table.sites] == [0, 1, 2, 3, 1, 4]
    assert [len(site.axes) for site in table.sites] == [1, 2, 2, 1, 2, 1]


def test_the_fit_finds_how_parts_add_up_and_predicts_other_cuts(known_table, net):
    model, x, graph = net
    table = known_table
    assert table.error < 0.02
    assert table.runs[0].macs == 1
    for masks in random_cuts(graph, [(0.4, 0.4), (0.0, 0.7)]):
        assert table.ms(graph, masks) == pytest.approx(whole_ms(model, x, masks), rel=0.03)


def test_a_disturbed_run_shows_in_the_error(machine, net):
    model, x, graph = net
    machine.disturbance = 0.5
    assert latency_table(model, graph, x, cache=False).error > 0.2


def test_select_keeps_the_promise(known_table, net):
    model, x, graph = net
    table = known_table
    scores = netslim.score(graph, model, "l2")
    for allocation in ("global", "cost"):
        plan = select(graph, scores, Budget(cut_latency=0.4), latency=table, allocation=allocation)
        small = prune(model, plan)
        promised = table.ms(trace(small, x))
        assert promised <= 0.6 * table.ms(graph)
        assert promised > 0.57 * table.ms(graph)
        assert promised == pytest.approx(whole_ms(small, x, {}), rel=0.03)


class Clock:
    """Stands in for the clock that times whole networks: what the formulas say, times `slower` for
    one that was cut and `speed` for all.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.models: dict[int, nn.Module] = {}
        self.timed, self.slower, self.least, self.speed, self.whole = 0, 1.0, 0.0, 1.0, 0.0
        patch.setattr(promise_module, "prepared", self.prepared)
        patch.setattr(promise_module, "timed", self.times)

    @contextmanager
    def prepared(self, model: nn.Module, *args: object) -> Iterator[Ready]:
        ready = Ready(lambda: None, CPU)
        self.models[id(ready.call)] = model
        yield ready

    def times(self, calls: Mapping[str, Ready], **_: object) -> dict[str, Latency]:
        self.timed += 1
        x, models = torch.zeros(2, 3, 8, 8), [self.models[id(c.call)] for c in calls.values()]
        whole = self.whole = self.whole or whole_ms(models[0], x, {})
        cut = max(self.slower * whole_ms(models[1], x, {}), self.least * whole)
        return {
            name: Latency(self.speed * ms, ms, ms, 5, "cpu")
            for name, ms in (("whole", whole), ("cut", cut))
        }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def kept(net, table, budget: Budget, round_to: int | None = None):
    """The plan that a timed table leads to, and what it says of itself."""
    model, x, graph = net
    scores = netslim.score(graph, model, "l2")
    choice = Choice(Scoring("l2"), "cost", Compensation())
    timed = TimedTable(table, model, x)
    limits = netslim.Limits(round_to=round_to)
    choose = by_scores(graph, scores, budget, choice=choice, limits=limits, latency=timed)
    plan = choose(frozenset())
    assert plan.why is not None
    return plan, plan.why.latency


def share_of(net, plan) -> float:
    """What the cut takes by the formulas, as a share."""
    return whole_ms(prune(net[0], plan), net[1], {}) / whole_ms(net[0], net[1], {})


def test_a_cut_that_is_slower_than_foretold_is_made_anew(known_table, net, clock):
    clock.slower = 1.3  # as where neighbours fall out of a blocked layout
    plan, found = kept(net, known_table, Budget(cut_latency=0.4))
    taken = clock.slower * share_of(net, plan)
    assert taken == pytest.approx(0.6, rel=0.05)
    assert found["asked"] == 0.6
    assert found["measured"] == pytest.approx(taken, rel=1e-3)
    assert found["foretold"] == pytest.approx(taken / clock.slower, rel=0.05)
    assert found["cuts_timed"] == clock.timed > 1
    assert f"timed: {taken:.1%} of the time" in plan.notes[-1]
    again = netslim.PruningPlan.from_json(plan.to_json())
    assert again.why is not None
    assert again.why.latency == found


def test_a_cut_that_is_faster_than_foretold_gets_channels_back(known_table, net, clock):
    clock.slower = 0.7
    plan, found = kept(net, known_table, Budget(cut_latency=0.4))
    assert found["measured"] == pytest.approx(0.6, rel=0.05)
    assert share_of(net, plan) > 0.8


def test_milliseconds_are_those_of_the_clock(known_table, net, clock):
    clock.speed = 0.5  # the machine is twice as fast as when the table was measured
    limit = 0.4 * whole_ms(net[0], net[1], {})
    plan, found = kept(net, known_table, Budget(max_latency_ms=limit))
    assert found["measured"] == pytest.approx(0.8, rel=0.05)
    assert share_of(net, plan) == pytest.approx(0.8, rel=0.05)


def test_a_table_that_is_right_is_asked_once(known_table, net, clock):
    _, found = kept(net, known_table, Budget(cut_latency=0.4))
    assert clock.timed == found["cuts_timed"] == 1


def test_what_another_budget_asks_for_is_no_reason_to_cut_less(known_table, net, clock):
    plan, found = kept(net, known_table, Budget(cut_latency=0.1, cut_params=0.9))
    assert clock.timed == 1
    assert found["measured"] < 0.7
    assert found["asked"] == 0.9
    assert prune(net[0], plan) is not None


def test_widths_that_come_in_steps_are_no_reason_to_go_on(known_table, net, clock):
    _, found = kept(net, known_table, Budget(cut_latency=0.4), round_to=32)
    assert found["measured"] <= 0.6 * 1.05
    assert clock.timed < 7


def test_a_promise_that_cannot_be_kept_is_refused(known_table, net, clock, monkeypatch):
    clock.least = 0.8
    monkeypatch.setattr(promise_module, "MOST_CUTS", 3)
    said = (
        "cut_latency=0.4 cannot be kept: 60.0% of the time, .* took 80.0% of the time, .* foretold"
    )
    with pytest.raises(PlanError, match=said):
        kept(net, known_table, Budget(cut_latency=0.4))


def test_where_only_time_counts_widths_are_those_that_the_runtime_likes(known_table, net):
    graph, scores = net[2], netslim.score(net[2], net[0], "l2")
    table = replace(known_table, backend="onnxruntime")
    assert (known_table.steps, table.steps) == ((), (16, 8))

    def left(budget: Budget, **options) -> set[int]:
        plan = select(graph, scores, budget, latency=table, **options)
        return {len(cut.kept) % 16 for cut in plan.groups.values()}

    assert left(Budget(cut_latency=0.4)) == {0}
    assert left(Budget(cut_latency=0.93)) == {0, 8}  # less than 16 channels are left then
    assert left(Budget(cut_latency=0.97)) - {0, 8}
    assert left(Budget(cut_latency=0.4), limits=netslim.Limits(round_to=1)) - {0}
    assert left(Budget(cut_latency=0.4), per_group={"inner": 3}) - {0}
    assert left(Budget(cut_macs=0.4)) - {0}


def test_tables_of_other_machines_and_inputs_are_not_timed(known_table, net):
    model, x, _ = net
    assert isinstance(timed_here(known_table, model, x), TimedTable)
    far = replace(known_table, machine={**known_table.machine, "cores": 10_000})
    assert timed_here(far, model, x) is far
    assert timed_here(known_table, model, x[:1]) is known_table
    nowhere = replace(known_table, device="cuda:77")
    assert timed_here(nowhere, model, x) is nowhere


@pytest.mark.parametrize("check", [True, False])
def test_slim_times_its_cut_unless_told_not_to(known_table, net, clock, check):
    clock.slower = 1.3
    model, x, _ = net
    small = netslim.slim(
        model,
        x,
        budget=Budget(cut_latency=0.4),
        criterion="l2",
        allocation="cost",
        compensation=None,
        latency=known_table,
        check_latency=check,
    )
    taken = whole_ms(small, x, {}) / whole_ms(model, x, {})
    assert (clock.timed > 1) == check
    expected = 0.6
    if check:
        expected = 0.6 / clock.slower
    assert taken == pytest.approx(expected, rel=0.05)


def test_a_cut_is_timed_where_it_will_run(known_table, net, monkeypatch):
    monkeypatch.setattr(promise_module, "FAR", 1e9)  # real times say nothing here
    monkeypatch.setattr(promise_module, "MOST_CUTS", 1)
    monkeypatch.setattr(importlib.import_module("netslim.measure.latency"), "SAMPLE_SECONDS", 1e-6)
    _, found = kept(net, known_table, Budget(cut_latency=0.4))
    assert (found["backend"], found["device"]) == ("eager", "cpu")
    assert found["measured"] > 0


def test_a_table_fits_the_network_that_was_cut(known_table, net):
    model, x, graph = net
    table = known_table
    (masks,) = random_cuts(graph, [(0.5, 0.5)])
    small = prune(model, plan_keeping(graph, masks))
    assert table.ms(trace(small, x)) == pytest.approx(table.ms(graph, masks))


def test_resource_and_slopes(known_table, net):
    graph = net[2]
    table = known_table
    orders = {n: np.arange(g.size) for n, g in enumerate(graph.groups) if g.prunable}
    widths = Widths(graph, orders)
    resource = table.resource(graph, widths)
    removed = np.zeros(len(graph.groups), dtype=int)
    assert resource.total(widths.counts(removed)) == pytest.approx(table.ms(graph))
    saved = widths.savings(resource.slopes(widths.counts(removed)), removed)
    number = graph.number("inner")
    removed[number] = 16
    gone = table.ms(graph) - resource.total(widths.counts(removed))
    assert 16 * saved[number] == pytest.approx(gone, rel=0.05)


def test_another_network_and_other_input_sizes_are_refused(known_table, net):
    model, x, graph = net
    table = known_table
    with pytest.raises(
        PlanError, match=r"of another network: its operator 0 is 'stem' \(convolution\)"
    ):
        table.ms(trace(Chain().eval(), torch.randn(2, 3, 8, 8)))
    with pytest.raises(PlanError, match="other input sizes: 'stem'"):
        table.ms(trace(model, torch.randn(2, 3, 10, 10)))
    with pytest.raises(StaleGraphError):
        latency_table(Chain(), graph, x, cache=False)


def test_wrong_options_are_refused(net):
    model, x, graph = net
    with pytest.raises(ArgumentError, match="no backend 'tensorrt'"):
        latency_table(model, graph, x, backend="tensorrt", cache=False)
    with pytest.raises(ArgumentError, match="threads must be"):
        latency_table(model, graph, x, threads=0, cache=False)


def test_json_both_ways(known_table, net, tmp_path):
    graph = net[2]
    table = known_table
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]
    assert again.to_json() == table.to_json()
    assert again.ms(graph) == table.ms(graph)
    assert (again.inputs, again.threads, again.unit) == (
        ((2, 3, 8, 8),),
        torch.get_num_threads(),
        "ms",
    )
    assert "predictions err by up to" in str(again)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.update(format=99), "not a latency table of this version"),
        (lambda c: c.pop("terms"), "damaged"),
        (lambda c: c["kernels"][0]["ms"].pop(), "damaged"),
        (lambda c: c["kernels"][0]["ms"][0].__setitem__(1, -1.0), "is not positive"),
        (lambda c: c["sites"][0].update(kernel=77), "damaged"),
        (lambda c: c["sites"][0].update(axes=[]), "does not fit its kernel"),
        (lambda c: c["sites"][0].update(axes=[99]), "'stem' .convolution. differs"),
    ],
)
def test_damaged_tables_are_refused(known_table, net, damage, message):
    graph = net[2]
    content = json.loads(known_table.to_json())
    damage(content)
    with pytest.raises(PlanError, match=message):
        LatencyTable.from_json(json.dumps(content)).ms(graph)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(PlanError, match="no latency table can be read"):
        LatencyTable.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"kind": ')
    with pytest.raises(PlanError, match=r"half\.json: the latency table is damaged"):
        LatencyTable.load(tmp_path / "half.json")


@pytest.mark.usefixtures("one_cut")
def test_a_table_is_kept_and_found_again(machine, net, tmp_path, monkeypatch):
    model, x, graph = net
    monkeypatch.setenv("NETSLIM_CACHE", str(tmp_path))
    assert folder() == tmp_path / "latency"
    first = latency_table(model, graph, x, threads=1)
    assert latency_table(model, graph, x, threads=1).to_json() == first.to_json()
    assert machine.measured == 5
    latency_table(model, graph, x, threads=2)
    latency_table(model, trace(model, x[:1]), x[:1], threads=1)
    assert machine.measured == 15
    assert len(list(folder().iterdir())) == 3


@pytest.mark.usefixtures("one_cut")
def test_a_damaged_table_in_the_cache_is_measured_anew(machine, net, tmp_path):
    model, x, graph = net
    first = latency_table(model, graph, x, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:100])
    with pytest.warns(UserWarning, match="measured anew"):
        latency_table(model, graph, x, cache=tmp_path)
    assert machine.measured == 10
    assert LatencyTable.load(path).kernels == first.kernels


@pytest.mark.usefixtures("one_cut")
def test_a_cache_that_cannot_be_written_warns(machine, net, tmp_path):
    model, x, graph = net
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be kept"):
        latency_table(model, graph, x, cache=tmp_path / "file")


@pytest.mark.usefixtures("one_cut")
def test_layers_that_cannot_run_alone_count_by_their_macs(machine, zoo):
    model, _ = zoo
    x = torch.randn(2, 3, 12, 12)
    graph = trace(model, x)
    table = latency_table(model, graph, x, cache=False)
    alone = [site for site in table.sites if site.kernel is None]
    assert [site.operator for site in alone] == ["attention", "attention"]
    assert alone[0].ms_per_mac == alone[1].ms_per_mac > 0


def test_the_fit_recovers_known_terms_and_never_goes_below_zero():
    generator = np.random.default_rng(0)
    amounts = np.column_stack(
        [generator.uniform(1, 9, 9), *generator.uniform(1e5, 9e5, (2, 9)), np.ones(9)]
    )
    terms, error = fit(amounts, amounts @ np.array([1.2, 3e-6, 2e-6, 0.5]), np.ones(9))
    assert (terms.layers, terms.bytes, terms.params, terms.constant) == pytest.approx(
        (1.2, 3e-6, 2e-6, 0.5)
    )
    assert error < 1e-6
    terms, _ = fit(amounts, amounts @ np.array([1.2, 3e-6, -1e-7, 0.5]), np.ones(9))
    assert terms.params == 0
    assert terms.layers > 0


def test_random_cuts_leave_a_channel_in_every_group(net):
    _, _, graph = net
    for masks in random_cuts(graph, [(0.99, 0.99)]):
        assert all(mask.sum() >= 1 for mask in masks.values())
        assert masks


@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
def test_a_real_measurement(backend, monkeypatch):
    if backend == "onnxruntime":
        pytest.importorskip("onnxruntime")
    monkeypatch.setattr(measuring_module, "_CUTS", ((0.4, 0.4),))
    monkeypatch.setattr(measuring_module, "_FEW_CUTS", ((0.4, 0.4),))
    chosen = []
    monkeypatch.setattr(measuring_module, "_AIMS", ((0.1,),))
    monkeypatch.setattr(measuring_module, "_FEW_AIMS", ((0.1,),))
    monkeypatch.setattr(
        measuring_module,
        "chosen_cuts",
        lambda *args: chosen.append(args) or measuring_module.random_cuts(args[1], [(0.2, 0.2)]),
    )
    monkeypatch.setattr(importlib.import_module("netslim.measure.latency"), "SAMPLE_SECONDS", 1e-6)
    model, x = Residual().train(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    seen: list[tuple[int, int]] = []
    table = latency_table(
        model,
        graph,
        x,
        backend=backend,
        cache=False,
        progress=lambda what, done, total: seen.append((done, total)),
    )
    assert model.training
    assert table.backend == backend
    assert len(table.runs) == 3
    assert chosen[0][3] == (0.1,)
    assert all(run.measured_ms > 0 for run in table.runs)
    assert table.ms(graph) > 0
    assert seen == [(n, len(table.kernels) + 1) for n in range(len(table.kernels) + 2)]


def test_cuts_by_choice_take_what_the_table_says():
    model = randomise(Residual().eval())
    graph = trace(model, torch.zeros(1, 3, 8, 8))

    class Macs:
        def resource(self, graph, widths):
            return Products(widths, [cost.factors for cost in graph.costs])

    cuts = list(measuring_module.chosen_cuts(model, graph, Macs(), (0.3, 0.999)))
    assert len(cuts) == 1  # so much cannot go
    assert 0.5 * graph.macs() < graph.macs(cuts[0]) <= 0.7 * graph.macs()
