"""A network has one graph, one cost and one set of scores, whatever stands around the call."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import netslim
from netslim.errors import ArgumentError, TraceError


class Encoder(nn.Module):
    """A bit of everything that an ambient mode may change: constants, attention, a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(self.bn(self.conv(x)).relu()) + torch.zeros(1)
        tokens = h.flatten(2).transpose(1, 2)
        return self.head((self.layer(tokens) * torch.ones(8)).mean(1))


class Seeing(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class Doubling(TorchFunctionMode):
    """Whoever makes ones gets twos."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.ones else out


@contextlib.contextmanager
def _set(put: Callable[..., Any], value: Any, before: Any) -> Iterator[None]:
    put(value)
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def _within(transform: Callable[..., Any]) -> Iterator[None]:
    """Inside a transform of `torch.func`, which takes a function: its innards run there."""
    from torch._functorch.vmap import vmap_increment_nesting

    with vmap_increment_nesting(2, "error"):
        yield


def _default_device(name: str | None) -> None:
    torch.set_default_device(name)
    if name is None:  # torch 2.6 keeps that, and asks it for its device
        vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "set_default_device": lambda: _set(_default_device, "meta", None),
    "fake": FakeTensorMode,
    "dispatch mode": Seeing,
    "function mode": Doubling,
    "no function modes": torch._C.DisableTorchFunction,
    "vmap": lambda: _within(torch.vmap),
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "float64": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: _set(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "no fast path": lambda: _set(torch.backends.mha.set_fastpath_enabled, False, True),
    "mathematical attention": lambda: sdpa_kernel(SDPBackend.MATH),
}


HALF = netslim.Budget(cut_channels=0.5)
TARGETS = torch.tensor([0, 1])


def _state() -> tuple[Any, ...]:
    """What a call must leave as it finds it."""
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.empty(0).device,
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        [type(mode) for mode in torch.overrides._get_current_function_mode_stack()],
        torch._C._len_torch_dispatch_stack(),
    )


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Encoder().eval(), torch.randn(2, 3, 4, 4)


@pytest.mark.parametrize("name", MODES)
def test_graph_and_cost_are_the_undisturbed_ones(
    name: str, network: tuple[nn.Module, Tensor]
) -> None:
    model, x = network
    graph, cost = netslim.trace(model, x).to_dict(), netslim.cost(model, x)
    before = _state()
    with MODES[name]():
        inside = _state()
        assert netslim.trace(model, x).to_dict() == graph
        assert netslim.cost(model, x) == cost
        assert _state() == inside
    assert _state() == before


def _cut(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """What a whole cut comes to: scores by weights and by data, and the proof."""
    graph = netslim.trace(model, x)
    measured = netslim.score(graph, model, "taylor", batches=[(x, TARGETS)])
    scores = netslim.score(graph, model, "l2")
    plan = netslim.select(graph, scores, netslim.Budget(cut_channels=0.5))
    small = netslim.prune(model, plan)
    proof = netslim.verify(model, small, plan, x)
    return measured, scores, plan, small, proof


@pytest.mark.parametrize("name", MODES)
def test_scores_and_proof_are_the_undisturbed_ones(
    name: str, network: tuple[nn.Module, Tensor]
) -> None:
    model, x = network
    measured, scores, plan, small, proof = _cut(model, x)
    graph = netslim.trace(model, x)
    with MODES[name]():
        found = netslim.score(graph, model, "taylor", batches=[(x, TARGETS)])
        again = netslim.verify(model, small, plan, x)
    # PyTorch's fused operators of a whole layer round otherwise than what they stand for.
    assert replace(again, deviation=proof.deviation) == proof
    assert again.deviation < 1e-14
    for group, values in found.items():
        torch.testing.assert_close(values, measured[group], rtol=1e-4, atol=1e-9)
    assert all(torch.equal(scores[g], v) for g, v in netslim.score(graph, model, "l2").items())


BATCHES = [torch.zeros(2, 3, 4, 4)]
VERBS: dict[str, Callable[[nn.Module, Tensor, Any, Any], Any]] = {
    "build with more": lambda m, x, g, plan: netslim.models.build(
        "zoo:preresnet164", add_selection=True
    ),
    "slim": lambda m, x, g, plan: netslim.slim(m, x, budget=HALF, batches=BATCHES),
    "latency": lambda m, x, g, plan: netslim.latency(m, x, repeats=5, warmup=1),
    "sensitivity": lambda m, x, g, plan: netslim.sensitivity(m, x, lambda net: 1.0, ratios=0.5),
    "greedy": lambda m, x, g, plan: netslim.selection.greedy(g, m, {"conv": 4}),
    "centripetal": lambda m, x, g, plan: netslim.CentripetalSGD(g, m, 0.5).plan(),
    "soft filters": lambda m, x, g, plan: netslim.SoftFilterPruning(g, m, 0.5),
    "gradual": lambda m, x, g, plan: netslim.GradualPruning(m, x, HALF, steps=1),
    "mask": lambda m, x, g, plan: netslim.Mask(m, plan).convert(),
}


@pytest.mark.parametrize("mode", ["device", "fake"])
@pytest.mark.parametrize("verb", VERBS)
def test_whatever_is_called_where_nothing_new_holds_values_runs_by_itself(
    verb: str, mode: str, network: tuple[nn.Module, Tensor]
) -> None:
    model, x = network
    graph = netslim.trace(model, x)
    plan = netslim.select(graph, netslim.score(graph, model, "l2"), HALF)
    with MODES[mode]():
        made = VERBS[verb](model, x, graph, plan)
    if isinstance(made, nn.Module):
        assert all(type(t) is Tensor and not t.is_meta for t in made.state_dict().values())


@pytest.mark.parametrize("mode", ["device", "fake"])
def test_selected_built_and_written_in_a_mode_as_without(
    mode: str, network: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    model, x = network
    graph = netslim.trace(model, x)
    scores = netslim.score(graph, model, "l2")
    plan = netslim.select(graph, scores, HALF)
    mlp, images = netslim.zoo.mlp(), torch.zeros(1, 1, 28, 28)
    made_as = netslim.models.constructor("zoo:mlp", {})
    with MODES[mode]():
        assert netslim.select(graph, scores, HALF) == plan
        path = netslim.save(mlp, tmp_path / "net.safetensors", constructor=made_as)
        built = netslim.models.build(path)
        netslim.export(mlp, images, tmp_path / "net.pt2")
    for name, tensor in mlp.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor)


@pytest.mark.parametrize("mode", ["device", "fake"])
def test_models_and_scores_without_values_are_told_of(
    mode: str, network: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    model, x = network
    graph = netslim.trace(model, x)
    scores = netslim.score(graph, model, "l2")
    with MODES[mode]():
        empty = Encoder().eval()
        hollow = {name: torch.empty(len(values)) for name, values in scores.items()}
    for call in (
        lambda: netslim.trace(empty, x),
        lambda: netslim.score(graph, empty, "l2"),
        lambda: netslim.save(empty, tmp_path / "net.safetensors"),
        lambda: netslim.latency(empty, x),
        lambda: netslim.select(graph, hollow, HALF),
    ):
        with pytest.raises(netslim.NetslimError, match="no values"):
            call()
    if mode == "device":  # what counts alone needs none
        assert netslim.cost(empty, x).macs == netslim.cost(model, x).macs
    else:
        with pytest.raises(TraceError, match="fake tensor"):
            netslim.cost(empty, x)


def test_a_name_alone_is_built_where_the_user_says() -> None:
    """So that what a large network costs is counted without its memory."""
    with torch.device("meta"):
        model, x = netslim.models.build("zoo:vgg11"), torch.zeros(1, 3, 32, 32)
        assert netslim.cost(model, x).params > 9e6
    assert all(tensor.is_meta for tensor in model.parameters())


def test_shapes_that_are_no_batch_are_told_of() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    with pytest.raises(TraceError, match=r"\(3, 8, 8\) one picture.*example\[None\]"):
        netslim.trace(model, torch.zeros(3, 8, 8))
    with pytest.raises(TraceError, match=r"one argument each, here 3: .*torch\.stack"):
        netslim.trace(model, [torch.zeros(3, 8, 8)] * 3)


def test_inputs_made_in_inference_mode(network: tuple[nn.Module, Tensor]) -> None:
    """They may not be written to outside of it, as a network with an in-place first step does."""

    class InPlace(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mul_(1.0))

    model, x = InPlace(network[0]), network[1]
    with torch.inference_mode():
        own = x.clone()
    assert netslim.trace(model, own).to_dict() == netslim.trace(model, x).to_dict()


def test_inputs_of_a_transform_or_without_values_are_refused(
    network: tuple[nn.Module, Tensor],
) -> None:
    model, x = network
    with pytest.raises(TraceError, match=r"within torch\.func"):
        torch.vmap(lambda each: netslim.cost(model, each[None]))(x)
    with (
        FakeTensorMode() as mode,
        pytest.raises(TraceError, match="an example input has no values"),
    ):
        netslim.trace(model, mode.from_tensor(x))
    with pytest.raises(TraceError, match="an example input has no values"):
        netslim.trace(model, x.to("meta"))


def test_in_eight_threads_beside_other_models_and_the_same_one(
    network: tuple[nn.Module, Tensor],
) -> None:
    """Each of the threads traces a network of its own and one that all share."""
    model, x = network
    wanted = netslim.trace(model, x).to_dict()
    own = [nn.Sequential(nn.Conv2d(3, n, 3), nn.ReLU(), nn.Conv2d(n, 2, 1)) for n in range(4, 12)]
    alone = [netslim.trace(each, x).to_dict() for each in own]
    others = [Encoder().eval() for _ in range(2)]
    done = threading.Event()

    def infer(other: nn.Module) -> None:
        with torch.no_grad():
            while not done.is_set():
                other(x)
                model(x)

    def learn(number: int) -> tuple[Any, Any]:
        return netslim.trace(own[number], x).to_dict(), netslim.trace(model, x).to_dict()

    with ThreadPoolExecutor(2) as beside, ThreadPoolExecutor(8) as tracing:
        running = [beside.submit(infer, other) for other in others]
        try:
            found = list(tracing.map(learn, [*range(8)] * 2))
        finally:
            done.set()
    assert [one for one, _ in found] == alone * 2
    assert all(shared == wanted for _, shared in found)
    assert [task.exception() for task in running] == [None, None]
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_let_another_thread_pass_that_met_them_while_they_were_removed() -> None:
    """PyTorch then no longer knows that they take named arguments, and gives them none."""
    hooks: list[Any] = []

    class Looking(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            hooks.extend(self._forward_hooks.values())
            return super().forward(x)

    model, x = nn.Sequential(Looking(3, 4, 1), nn.ReLU()), torch.randn(1, 3, 4, 4)
    netslim.trace(model, x)
    assert hooks
    with ThreadPoolExecutor(1) as beside:
        assert not any(beside.map(lambda hook: hook(model[0], (x,), x), hooks))


@pytest.mark.parametrize("name", ["inference_mode", "autocast"])
def test_a_network_slimmed_in_a_mode_is_the_one_slimmed_without(name, tmp_path):
    """It can be trained, and has the same weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)
    ).eval()
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    x, half = batches[0], netslim.Budget(cut_macs=0.5)
    want = netslim.slim(model, x, budget=half, batches=batches)
    path = netslim.save(want, tmp_path / "small.safetensors")
    around = {
        "inference_mode": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
    }[name]
    with around:
        small = netslim.slim(model, x, budget=half, batches=batches)
        again = netslim.load(model, path)
    for made in (small, again):
        for key, tensor in made.state_dict().items():
            assert torch.equal(tensor, want.state_dict()[key]), key
        made(x).sum().backward()


@pytest.mark.filterwarnings("ignore:.*Dynamo detected a call to a `functools.lru_cache`")
def test_calls_from_compiled_code_are_refused_by_name() -> None:
    model, inputs = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 8, 8)
    wanted = netslim.cost(model, inputs).macs
    for call in (lambda x: netslim.trace(model, x), lambda x: netslim.cost(model, x).macs):
        with pytest.raises(ArgumentError, match=r"in code that torch\.compile compiles: make the"):
            torch.compile(call, backend="eager")(inputs)
    assert netslim.cost(torch.compile(model, backend="eager"), inputs).macs == wanted


EMPTY = {
    "a tensor": torch.randn(0, 3, 8, 8),
    "no pixels": torch.randn(2, 3, 0, 8),
    "a tuple": (torch.randn(0, 3, 8, 8), torch.tensor(2.0)),
    "by name": {"x": torch.randn(0, 3, 8, 8)},
}


@pytest.mark.parametrize("kind", EMPTY)
def test_inputs_without_an_example_are_refused(kind: str) -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return super().forward(x)

    model, half = (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)),
        netslim.Budget(cut_macs=0.5),
    )
    for call in (
        lambda: netslim.trace(Scaled(3, 4, 1), EMPTY[kind]),
        lambda: netslim.cost(Scaled(3, 4, 1), EMPTY[kind]),
        lambda: netslim.slim(model, EMPTY["a tensor"], budget=half),
    ):
        with pytest.raises(TraceError, match=r"hold no example.*pass a batch of at least 1"):
            call()


def test_an_empty_cache_beside_an_example_is_taken() -> None:
    class Caching(nn.Linear):
        def forward(self, x: Tensor, past: Tensor) -> Tensor:
            return torch.cat([past, super().forward(x)], 1)

    example = (torch.randn(2, 3, 4), torch.randn(2, 0, 5))
    assert netslim.cost(Caching(4, 5), example).macs == 2 * 3 * 4 * 5
