"""Models come wrapped: what only passes calls on is taken off, what hides or fixes the parts is
refused by name.
"""

from __future__ import annotations

import copy
import importlib
import threading

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

import netslim
from nets import Chain, Residual, conv
from netslim import (
    Budget,
    NetworkSlimming,
    cost,
    load,
    prune,
    prune_,
    save,
    score,
    select,
    slim,
    trace,
    verify,
)
from netslim.errors import (
    ArgumentError,
    CheckpointError,
    SurgeryError,
    TraceError,
    VerificationError,
)
from two_ranks import IN_PARTS_ON_CPU

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated:DeprecationWarning",
    "ignore:.*deprecated:FutureWarning",
    "ignore:.*deprecated:UserWarning",
    "ignore:FSDP is switching:UserWarning",
    "ignore:DTensor random operators may not:UserWarning",  # of torch 2.6, on the CPU
)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HALF = Budget(cut_channels=0.5)


@pytest.fixture(scope="module")
def gloo(tmp_path_factory):
    """A process group of one, as DDP and FSDP want it."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this PyTorch has no gloo")
    dist.init_process_group(
        "gloo",
        init_method=(tmp_path_factory.mktemp("gloo") / "store").as_uri(),
        rank=0,
        world_size=1,
    )
    yield
    dist.destroy_process_group()


def residual() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


def half(model, inputs=X):
    graph = trace(model, inputs)
    return select(graph, score(graph, model, "l1"), HALF, allocation="uniform")


def cycle(wrapped, fresh, path):
    """Trace, score, select, prune, verify, save, load; the plan and the pruned copy."""
    plan = half(wrapped)
    small = prune(wrapped, plan)
    check = verify(wrapped, small, plan, X)
    assert check.deviation is not None
    assert check.deviation < 1e-10
    assert check.changed == plan.removed > 0
    loaded = load(fresh, save(small, path / "small.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded(X), small(X))
    return plan, small


def compiled(model):
    return torch.compile(model, backend="eager")


def fabric(model):
    return (
        importlib.import_module("lightning_fabric")
        .Fabric(accelerator="cpu", devices=1)
        .setup(model)
    )


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


def timm_ema(name):
    return lambda model: getattr(importlib.import_module("timm.utils"), name)(model)


WRAPPERS = {
    "data parallel": nn.DataParallel,
    "compiled": compiled,
    "average": AveragedModel,
    "timm v2": timm_ema("ModelEmaV2"),
    "timm v3": timm_ema("ModelEmaV3"),
    "fabric": fabric,
    "distributed": distributed,
    "compiled distributed": lambda model: compiled(distributed(model)),
    "average of distributed": lambda model: AveragedModel(distributed(model)),
}


@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_full_cycle_under_a_wrapper_is_that_of_the_bare_model(kind, tmp_path):
    model = residual()
    plan, small = cycle(model, residual(), tmp_path)
    wrapped = WRAPPERS[kind](copy.deepcopy(model))
    wrapped_plan, wrapped_small = cycle(wrapped, WRAPPERS[kind](residual()), tmp_path)
    assert wrapped_plan == plan
    assert [g.name for g in trace(wrapped, X)] == ["stem.0", "inner.0", "head"]
    assert type(wrapped_small) is Residual
    assert torch.equal(wrapped_small(X), small(X))
    assert torch.equal(prune(wrapped, plan)(X), prune(model, wrapped_plan)(X))
    assert cost(wrapped, X).by_module == cost(model, X).by_module


@pytest.mark.parametrize("kind", ["data parallel", "compiled", "average", "timm v2", "timm v3"])
def test_in_place_the_wrapper_stays(kind):
    model = residual()
    small = prune(model, half(model))
    wrapped = WRAPPERS[kind](model).eval()
    wrapped(X)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    wrapped(X).square().mean().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    small = prune(wrapped, plan := half(wrapped))
    assert prune_(wrapped, plan, optimizer=optimizer) is wrapped
    torch.testing.assert_close(wrapped(X), small(X))
    wrapped.train()(X).square().mean().backward()
    optimizer.step()
    assert netslim.surgery.history.history(wrapped) == plan


@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("inside", [True, False])
def test_distributed_data_parallel_is_cut_inside_and_wrapped_again(inside):
    wrapped = distributed(residual())
    plan = half(wrapped)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    wrapped(X).sum().backward()
    optimizer.step()
    if inside:
        again = distributed(prune_(wrapped.module, plan, optimizer=optimizer))
    else:
        again = prune_(wrapped, plan, optimizer=optimizer)
    again(X).sum().backward()
    optimizer.step()
    assert again.module.stem[0].out_channels == len(plan.groups["stem.0"].kept)


def test_a_method_attached_to_a_wrapped_model_acts_on_the_bare_one():
    model = residual()
    before = model.stem[1].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    NetworkSlimming(nn.DataParallel(compiled(model)), 0.25).attach(optimizer)
    sum(p.sum() * 0 for p in model.parameters()).backward()
    optimizer.step()
    assert torch.equal(model.stem[1].weight, before - 0.25)


def test_slim_takes_and_leaves_the_wrapper():
    wrapped = compiled(residual())
    small = slim(wrapped, X, criterion="l1", budget=HALF)
    assert type(small) is Residual
    assert wrapped._orig_mod.stem[0].out_channels == 6


# --- compiled parts -------------------------------------------------------------------------------


def test_a_compiled_copy_is_plain_and_the_original_stays_compiled(tmp_path):
    model = residual()
    model.compile(backend="eager")
    _, small = cycle(model, residual(), tmp_path)
    assert small._compiled_call_impl is None
    assert model._compiled_call_impl is not None


def test_a_compiled_forward_does_not_run_the_original(tmp_path):
    model = residual()
    model.forward = torch.compile(model.forward, backend="eager")
    _, small = cycle(model, residual(), tmp_path)
    expected = small(X)
    with torch.no_grad():
        model.head.weight.zero_()
    assert torch.equal(small(X), expected)


def test_a_compiled_part_stays_compiled(tmp_path):
    def fresh():
        model = residual()
        model.inner = compiled(model.inner)
        return model

    _, small = cycle(fresh(), fresh(), tmp_path)
    assert type(small.inner).__name__ == "OptimizedModule"
    assert small.inner._orig_mod[0].out_channels < 5


def test_tracing_compiles_nothing():
    torch.compiler.reset()
    runs = []

    def backend(graph, inputs):
        runs.append(graph)
        return graph.forward

    wrapped = torch.compile(residual(), backend=backend)
    trace(wrapped, X)
    cost(wrapped, X)
    assert runs == []
    wrapped(X)
    assert len(runs) == 1


def test_a_forward_that_holds_the_module_is_refused_and_cut_in_place():
    model = residual()
    model.stem.forward = torch.autocast("cpu", enabled=False)(model.stem.forward)
    plan = half(model)
    with pytest.raises(
        SurgeryError, match=r"the forward of stem was replaced .*del module\.forward"
    ):
        prune(model, plan)
    expected = prune(residual(), plan)(X)
    assert torch.equal(prune_(model, plan)(X), expected)


def test_a_forward_bound_to_the_module_is_bound_to_the_copy():
    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))

    model = residual()
    model.forward = forward.__get__(model)
    plan = half(model)
    small = prune(model, plan)
    assert small.forward.__self__ is small
    assert verify(model, small, plan, X).deviation < 1e-10


def test_a_model_that_cannot_be_copied_is_refused_and_cut_in_place():
    model = residual()
    model.lock = threading.Lock()
    plan = half(model)
    with pytest.raises(SurgeryError, match=r"cannot be copied .*lock.*prune_"):
        prune(model, plan)
    assert prune_(model, plan)(X).shape == (2, 4)


# --- refused --------------------------------------------------------------------------------------


def quantised(how):
    quantization = importlib.import_module("torch.ao.quantization")
    fx = importlib.import_module("torch.ao.quantization.quantize_fx")
    model = residual()
    if how == "dynamic":
        return quantization.quantize_dynamic(model)
    if how == "qat":
        model.train().qconfig = quantization.get_default_qat_qconfig("x86")
        return quantization.prepare_qat(model)
    if how == "static":
        model = nn.Sequential(quantization.QuantStub(), model, quantization.DeQuantStub()).eval()
        model.qconfig = quantization.get_default_qconfig("x86")
        model = quantization.prepare(model)
        model(X)
        return quantization.convert(model)
    model = fx.prepare_fx(model, quantization.get_default_qconfig_mapping("x86"), (X,))
    model(X)
    return model if how == "observed" else fx.convert_fx(model)


def sharded(how):
    fsdp = importlib.import_module("torch.distributed.fsdp")
    mesh = importlib.import_module("torch.distributed.device_mesh").init_device_mesh("cpu", (1,))
    if how == "fully_shard":
        return fsdp.fully_shard(residual(), mesh=mesh) or residual()
    if how == "tensors":
        return importlib.import_module("torch.distributed.tensor").distribute_module(
            residual(), mesh
        )
    return fsdp.FullyShardedDataParallel(
        residual(), device_id=torch.device("cpu"), use_orig_params=how == "original"
    )


def sparse():
    model = residual()
    model.head.weight = nn.Parameter(model.head.weight.detach().to_sparse())
    return model


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyConv2d(4, 3))


REFUSED = {
    "scripted": (
        lambda: torch.jit.script(residual()),
        "TorchScript code is fixed: pass the Python module",
    ),
    "traced": (
        lambda: torch.jit.trace(residual(), X),
        "TorchScript code is fixed: pass the Python module",
    ),
    "scripted part": (
        lambda: nn.Sequential(torch.jit.script(residual())),
        "0 is a RecursiveScriptModule",
    ),
    "frozen": (lambda: torch.jit.freeze(torch.jit.script(residual())), "TorchScript code is fixed"),
    "program": (
        lambda: torch.export.export(residual(), (X,)),
        "an exported program is fixed: cut the Python module",
    ),
    "exported": (
        lambda: torch.export.export(residual(), (X,)).module(),
        "an exported program is fixed",
    ),
    "dynamic": (
        lambda: quantised("dynamic"),
        "head is a torch.ao.*Linear.* cut the floating-point model first",
    ),
    "static": (lambda: quantised("static"), "cut the floating-point model first"),
    "fx": (lambda: quantised("fx"), "cut the floating-point model first"),
    "observed": (lambda: quantised("observed"), "cut the floating-point model first"),
    "qat": (
        lambda: quantised("qat"),
        "stem.0 is a torch.ao.nn.qat.*cut the floating-point model first",
    ),
    "flat": (lambda: sharded("flat"), "its parameters are sharded: cut the model before"),
    "original": (lambda: sharded("original"), "its parameters are sharded: cut the model before"),
    "fully_shard": (
        lambda: sharded("fully_shard"),
        "its parameters are sharded: cut the model before",
    ),
    "tensors": (
        lambda: sharded("tensors"),
        "'stem.0.weight' is a DTensor; its parameters are sharded",
    ),
    "inner": (
        lambda: nn.Sequential(nn.DataParallel(residual())),
        "0 is a DataParallel inside the model: put its",
    ),
    "lazy": (lazy, "'0.weight' has no shape yet: run the model once"),
    "meta": (
        lambda: residual().to("meta"),
        "'stem.0.weight' is on the meta device and has no values: build",
    ),
    "sparse": (sparse, "'head.weight' has the layout torch.sparse_coo"),
    "nothing": (lambda: None, "netslim needs a torch.nn.Module, got NoneType"),
    "state": (lambda: residual().state_dict(), "netslim needs a torch.nn.Module, got OrderedDict"),
}
TAKEN = {
    "meta": ("prune", "prune_", "cost"),  # which need shapes alone
    "fully_shard": ("prune_",),  # which gathers it and shards it again
}
WITH_SHARDS = {"flat", "original", "fully_shard", "tensors"}


@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_cut_is_refused_by_every_verb(kind, tmp_path):
    make, message = REFUSED[kind]
    model, whole = make(), residual()
    graph, plan = trace(whole, X), half(whole)
    verbs = {
        "trace": (TraceError, lambda: trace(model, X)),
        "score": (ArgumentError, lambda: score(graph, model, "l1")),
        "prune": (SurgeryError, lambda: prune(model, plan)),
        "prune_": (SurgeryError, lambda: prune_(model, plan)),
        "verify": (VerificationError, lambda: verify(model, whole, plan, X)),
        "verify small": (VerificationError, lambda: verify(whole, model, plan, X)),
        "save": (CheckpointError, lambda: save(model, tmp_path / "a.safetensors")),
        "cost": (TraceError, lambda: cost(model, X)),
        "slim": (TraceError, lambda: slim(model, X)),
    }
    for name, (error, call) in verbs.items():
        error = ArgumentError if kind in ("nothing", "state") else error  # it is no model at all
        if name not in TAKEN.get(kind, ()):
            with pytest.raises(error, match=message):
                call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["scripted", "exported", "dynamic", "lazy", "nothing"])
def test_sparsity_and_loading_refuse_them_too(kind, tmp_path):
    make, message = REFUSED[kind]
    with pytest.raises(ArgumentError, match=message):
        NetworkSlimming(make(), 1e-4, gamma_init=0.5)
    path = save(residual(), tmp_path / "a.safetensors")
    if kind != "nothing":
        with pytest.raises(CheckpointError, match=message):
            load(make(), path)


def test_a_lazy_model_that_ran_is_an_ordinary_one(tmp_path):
    model = lazy()
    model(X)
    graph = trace(model.eval(), X)
    assert [(g.name, g.size, g.frozen) for g in graph] == [("0", 4, False), ("2", 4, True)]
    small = slim(model, X, budget=HALF)
    assert (small[0].out_channels, small[1].num_features, small[2].in_channels) == (2, 2, 2)


def test_shapes_alone_do_for_a_cut_and_a_count():
    model = residual()
    plan = half(model)
    meta = prune(residual().to("meta"), plan)
    assert [p.shape for p in meta.parameters()] == [
        p.shape for p in prune(model, plan).parameters()
    ]
    assert meta.head.weight.is_meta
    assert cost(residual().to("meta"), X.to("meta")) == cost(model, X)


@IN_PARTS_ON_CPU
@pytest.mark.usefixtures("gloo")
def test_sharded_models_train_with_sparsity_and_are_cut_before_or_after():
    checkpoints = importlib.import_module("torch.distributed.checkpoint.state_dict")
    model, shards = residual().train(), sharded("fully_shard").train()
    for one in (model, shards):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        method = NetworkSlimming(one, 0.1).attach(optimizer)
        one(X).square().mean().backward()
        optimizer.step()
    scales = NetworkSlimming(model, 0.1)
    assert torch.allclose(method.penalty(), scales.penalty())
    assert method.histogram(4) == scales.histogram(4)
    whole = residual()
    options = checkpoints.StateDictOptions(full_state_dict=True)
    whole.load_state_dict(checkpoints.get_model_state_dict(shards, options=options))
    plan = half(whole)
    torch.testing.assert_close(prune(whole, plan)(X), prune(model.eval(), plan)(X))


# --- kinds of modules that work by themselves -----------------------------------------------------


@pytest.mark.parametrize("network", [Residual, Chain])
def test_a_symbolically_traced_module_works_by_itself(network, tmp_path):
    torch.manual_seed(0)
    model = network().eval()
    fx = torch.fx.symbolic_trace(model)
    plan, small = cycle(fx, torch.fx.symbolic_trace(network().eval()), tmp_path)
    assert plan == half(model)
    assert isinstance(small, torch.fx.GraphModule)
    assert torch.equal(small(X), prune(model, plan)(X))


class Flattened(nn.Module):
    """A flatten by a size that the module remembers, or by the shape of its input."""

    def __init__(self, by_shape: bool) -> None:
        super().__init__()
        self.conv, self.head = conv(3, 6), nn.Linear(6 * 64, 4)
        self.width, self.by_shape = 6 * 64, by_shape

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.view(x.shape[0], -1) if self.by_shape else x.view(-1, self.width))


def test_a_size_in_the_code_of_an_fx_graph_freezes(tmp_path):
    cycle(
        torch.fx.symbolic_trace(Flattened(True).eval()),
        torch.fx.symbolic_trace(Flattened(True).eval()),
        tmp_path,
    )
    assert trace(Flattened(False), X)["conv.0"].prunable
    literal = trace(torch.fx.symbolic_trace(Flattened(False)), X)["conv.0"]
    assert literal.frozen
    assert "the size 384 is written into the code" in literal.reason


def test_a_model_made_for_quantisation_is_cut_before_it(tmp_path):
    quantization = importlib.import_module("torch.ao.quantization")
    functional = importlib.import_module("torch.ao.nn.quantized").FloatFunctional

    class Quantisable(Residual):
        def __init__(self):
            super().__init__()
            self.quant, self.dequant, self.add = (
                quantization.QuantStub(),
                quantization.DeQuantStub(),
                functional(),
            )

        def forward(self, x):
            x = self.stem(self.quant(x))
            return self.head(self.dequant(self.add.add(x, self.outer(self.inner(x)))).mean((2, 3)))

    plan, _ = cycle(Quantisable().eval(), Quantisable().eval(), tmp_path)
    assert set(plan.groups) == {"stem.0", "inner.0"}


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


def test_a_scripted_activation_does_no_harm():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), torch.jit.script(Swish()), nn.Conv2d(6, 4, 3))
    plan = half(model)
    small = prune(model, plan)
    assert verify(model, small, plan, X).deviation < 1e-10
    assert small[0].out_channels == 3


def test_activation_checkpointing_is_run_through(tmp_path):
    wrapper = importlib.import_module("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")

    def fresh():
        model = residual()
        wrapper.apply_activation_checkpointing(
            model, check_fn=lambda m: isinstance(m, nn.Sequential)
        )
        return model

    cycle(fresh(), fresh(), tmp_path)


def test_a_lightning_module_is_a_module(tmp_path):
    lightning = importlib.import_module("pytorch_lightning")

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = residual()

        def forward(self, x):
            return self.net(x)

    _, small = cycle(Lit().eval(), Lit().eval(), tmp_path)
    assert isinstance(small, Lit)


# --- kinds of tensors -----------------------------------------------------------------------------


def test_half_frozen_and_mixed_precision(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = conv(3, 6).bfloat16(), nn.Linear(6, 4)
            self.register_buffer("order", torch.arange(6, dtype=torch.int32).view(1, 6, 1, 1))
            self.body.requires_grad_(False)

        def forward(self, x):
            x = self.body(x.bfloat16()) * (self.order < 3)
            return self.head(x.float().mean((2, 3)))

    model = Mixed().eval()
    plan = half(model)
    small = prune(model, plan)
    assert verify(model, small, plan, X).deviation is not None
    kept = list(plan.groups["body.0"].kept)
    assert small.order.flatten().tolist() == kept
    assert [(t.dtype, t.requires_grad) for t in small.state_dict(keep_vars=True).values()] == [
        (t.dtype, t.requires_grad) for t in model.state_dict(keep_vars=True).values()
    ]
    again = load(Mixed(), save(small, tmp_path / "a.safetensors"))
    assert torch.equal(again.eval()(X), small(X))
    assert prune_(model, plan).body[0].weight.dtype is torch.bfloat16


def test_strides_are_in_the_order_they_were():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 3)).to(
        memory_format=torch.channels_last
    )
    small = prune(model, half(model))
    assert small[1].weight.shape == (4, 3, 1, 1)
    assert small[1].weight.stride() == (3, 1, 3, 3)
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last)
    turned = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4))
    turned[1].weight = nn.Parameter(torch.randn(6, 4).t())
    graph = trace(turned, torch.randn(2, 5))
    small = prune(turned, select(graph, score(graph, turned, "l1"), HALF))
    assert (small[1].weight.shape, small[1].weight.stride()) == ((4, 3), (1, 4))


def test_parameters_of_inference_mode_are_cut_in_a_copy():
    with torch.inference_mode():
        model = residual()
    plan = half(model)
    small = prune(model, plan)
    assert verify(model, small, plan, X).deviation < 1e-10
    small(X).sum().backward()
    with pytest.raises(
        SurgeryError, match=r"'stem.0.weight' was made in torch.inference_mode.*netslim.prune makes"
    ):
        prune_(model, plan)


def test_tensors_kept_from_a_call_do_not_hinder():
    model = residual()
    model.stem.register_forward_hook(lambda module, args, output: setattr(module, "seen", [output]))
    plan = half(model)
    model(X)
    small = prune(model, plan)
    assert torch.equal(small.stem.seen[0], model.stem.seen[0])
    assert (model.stem.seen[0].grad_fn is None, small.stem.seen[0].grad_fn) == (False, None)
    assert verify(model, small, plan, X).deviation < 1e-10


# --- hooks ----------------------------------------------------------------------------------------


def test_hooks_run_once_a_trace_and_are_kept():
    model = residual()
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append("before"))
    model.stem.register_forward_hook(lambda module, args, output: calls.append("stem"))
    model.head.register_forward_hook(lambda module, args, output: F.relu(output))
    model.inner.register_full_backward_hook(lambda module, gin, gout: calls.append("back"))
    graph = trace(model, X)
    assert calls == ["before", "stem"]
    plan = select(graph, score(graph, model, "l1"), HALF)
    small = prune(model, plan)
    calls.clear()
    out = small(X)
    assert out.min() >= 0
    out.sum().backward()
    assert calls == ["before", "stem", "back"]
    assert verify(model, small, plan, X).deviation < 1e-10


def test_a_hook_of_the_module_belongs_to_the_copy():
    class Counting(Chain):
        def __init__(self):
            super().__init__()
            self.calls = 0
            self.first.register_forward_hook(self.count)

        def count(self, module, args, output):
            self.calls += 1

    model = Counting().eval()
    small = prune(model, half(model))
    model.calls = small.calls = 0
    small(X)
    assert (model.calls, small.calls) == (0, 1)
