"""Models that FSDP2 shards over two processes, or DDP or Accelerate wraps: cut, masked and trained as
on one.

The functions ``rank_...`` run in two real processes (see `two_ranks`). Both have the same images, so
that what they do must equal what one process does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import netslim
import netslim.ranks as ranks
from netslim.surgery import unsharded
from netslim.surgery.history import history
from netslim.surgery.sharding import is_sharded
from two_ranks import IN_PARTS_ON_CPU, Found, on_two_ranks

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo"
)
HALF = netslim.Budget(cut_macs=0.5)
G = torch.Generator().manual_seed(3)
X, Y = torch.randn(8, 3, 6, 6, generator=G), torch.randint(4, (8,), generator=G)


def net(seed: int = 0) -> nn.Sequential:
    """Blocks of sizes that two ranks do not divide."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU()),
        nn.Sequential(nn.Conv2d(9, 13, 3, padding=1), nn.BatchNorm2d(13), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(13, 4)),
    )


def sharded(model: nn.Sequential) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh, reshard_after_forward=False)
    fully_shard(model[1], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(X), Y).backward()
        optimizer.step()


def whole(model: nn.Module) -> list[Tensor]:
    return [getattr(p, "full_tensor", p.detach)().detach().clone() for p in model.parameters()]


def apart(model: nn.Module, other: nn.Module) -> list[float]:
    """The largest difference of every parameter."""
    pairs = zip(whole(model), whole(other), strict=True)
    return [float((one - two).abs().max()) for one, two in pairs]


def half(model: nn.Module) -> netslim.PruningPlan:
    graph = netslim.trace(model, X[:1])
    return netslim.select(graph, netslim.score(graph, model, "l1"), HALF)


def rank_cut(rank: int) -> dict[str, Any]:
    """Trained, cut and trained on, beside one that is not sharded."""
    alone, model = net(), sharded(net())
    optimizers = sgd(alone), sgd(model)
    train(alone, optimizers[0])
    train(model, optimizers[1])
    before = list(model.parameters())
    plan = half(alone)
    netslim.prune_(alone, plan, optimizers[0])
    assert netslim.prune_(model, plan, optimizers[1]) is model
    same = all(one is two for one, two in zip(before, model.parameters(), strict=True))
    after = apart(model, alone)
    train(alone, optimizers[0])
    train(model, optimizers[1])
    sizes = [sum(p.to_local().numel() for p in model.parameters())]
    sizes.append(sum(p.numel() for p in model.parameters()))
    told = history(model)
    return {
        "same": same,
        "after": after,
        "trained": apart(model, alone),
        "sizes": sizes,
        "sharded": [is_sharded(model), is_sharded(model[0]), type(model[0][0]).__name__],
        "history": told is not None and told.removed == plan.removed,
    }


def _beside(
    attach: Callable[..., Any], early: bool = False, wrapped: Callable[..., Any] = sharded
) -> list[float]:
    """How far a wrapped model is from one that is not, trained by the same method."""
    alone, model = net(), net()
    attached = attach(model, None) if early else None
    model = wrapped(model)
    optimizers = sgd(alone), sgd(model)
    ways = attach(alone, optimizers[0]), attached or attach(model, optimizers[1])
    if attached:
        attached.attach(optimizers[1])
    for _ in range(2):
        train(alone, optimizers[0], 1)
        train(model, optimizers[1], 1)
        for way in ways:
            if hasattr(way, "end_epoch"):
                way.end_epoch()
            if isinstance(way, netslim.GradualPruning):
                way.step()
    train(alone, optimizers[0], 1)
    train(model, optimizers[1], 1)
    return apart(model, alone)


def _slimming(model: nn.Module, optimizer: Any) -> Any:
    way = netslim.NetworkSlimming(model, 0.05)
    return way.attach(optimizer) if optimizer else way


def _graph(model: nn.Module) -> netslim.ChannelGraph:
    with unsharded(model):
        return netslim.trace(model, X[:1])


def _soft(model: nn.Module, optimizer: Any) -> Any:
    way = netslim.SoftFilterPruning(_graph(model), model, 0.4)
    return way.attach(optimizer) if optimizer else way


def _drawn(model: nn.Module, optimizer: Any) -> Any:
    way = netslim.CentripetalSGD(_graph(model), model, 0.5, clusters="even", strength=0.1)
    return way.attach(optimizer) if optimizer else way


def _mask(model: nn.Module, optimizer: Any) -> Any:
    way = netslim.Mask(model, half(net()))
    return way.attach(optimizer) if optimizer else way


def _gradual(model: nn.Module, optimizer: Any) -> Any:
    return netslim.GradualPruning(
        model, X[:1], HALF, steps=2, criterion="taylor", batches=[(X, Y)], optimizer=optimizer
    )


def rank_methods(rank: int) -> dict[str, list[float]]:
    return _ways(sharded)


def _ways(wrapped: Callable[..., Any]) -> dict[str, list[float]]:
    ways = {"slimming": _slimming, "soft": _soft, "drawn": _drawn, "mask": _mask}
    found = {name: _beside(way, wrapped=wrapped) for name, way in ways.items()}
    found |= {f"{name}_before": _beside(way, True, wrapped) for name, way in ways.items()}
    return found | {"gradual": _beside(_gradual, wrapped=wrapped)}


def rank_distributed(rank: int) -> dict[str, list[float]]:
    return _ways(DistributedDataParallel)


def rank_accelerate(rank: int) -> dict[str, list[float]]:
    if importlib.util.find_spec("accelerate") is None:
        return {}
    from accelerate import Accelerator

    return _ways(Accelerator(cpu=True).prepare)


def rank_half_sharded(rank: int) -> dict[str, Any]:
    """Only the second block is shared out; the rest is as it was on every rank."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    alone, model = net(), net()
    fully_shard(model[1], mesh=init_device_mesh("cpu", (2,)))
    plan = half(alone)
    netslim.prune_(alone, plan)
    netslim.prune_(model, plan)
    parts = [hasattr(one, "placements") for one in model.parameters()]
    return {"apart": apart(model, alone), "parts": parts}


def rank_other_plans(rank: int) -> list[Any]:
    model = sharded(net())
    plan = half(net(rank))
    before = whole(model)
    try:
        netslim.prune_(model, plan)
    except netslim.NetslimError as error:
        unchanged = all(map(torch.equal, before, whole(model)))
        return [type(error).__name__, str(error), unchanged and is_sharded(model)]
    return []


def rank_written(rank: int) -> list[float]:
    """Of two ranks, with `torch.distributed.checkpoint`; the plan lies beside it."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    model = sharded(net())
    plan = half(net())
    netslim.prune_(model, plan)
    dcp.save(get_model_state_dict(model), checkpoint_id="cut")
    values = whole(model)
    if rank == 0:
        Path("cut/plan.json").write_text(plan.to_json())
        torch.save(values, "cut.pt")
    dist.barrier()
    plan = netslim.PruningPlan.from_json(Path("cut/plan.json").read_text())
    again = sharded(netslim.prune(net(1), plan))
    state = get_model_state_dict(again)
    dcp.load(state, checkpoint_id="cut")
    return apart(again, model)


def rank_settings(rank: int) -> list[Any]:
    """What FSDP2 was told is told to it again; the forward pass is that of the whole model."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = net()
    fully_shard([model[0], model[1]])
    left = set(model[4].parameters())  # nothing is shared out of the rest
    fully_shard(
        model, mp_policy=MixedPrecisionPolicy(output_dtype=torch.float64), ignored_params=left
    )
    before = model.eval()(X)
    with unsharded(model):
        kinds = {type(parameter).__name__ for parameter in model.parameters()}
        digest = ranks.digest(dict(model.named_parameters()))
        model.load_state_dict(net().state_dict())
    same = torch.equal(before, model(X)) and before.dtype is torch.float64
    plain = hasattr(model[4].weight, "placements")
    return [sorted(kinds), digest == ranks.digest(dict(net().named_parameters())), same, plain]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return on_two_ranks(__file__, folder)


@IN_PARTS_ON_CPU
def test_a_sharded_model_is_cut_in_one_call(found: Found):
    for rank in found["cut"]:
        assert rank["same"]
        assert rank["sharded"] == [True, True, "Conv2d"]
        assert rank["history"]
        assert max(rank["after"]) < 1e-6
        assert max(rank["trained"]) < 1e-5
    mine, other = (rank["sizes"] for rank in found["cut"])
    assert mine[0] + other[0] == mine[1]


def test_a_model_of_which_a_part_is_sharded_is_cut(found: Found):
    for rank in found["half_sharded"]:
        assert max(rank["apart"]) == 0
        assert rank["parts"] == [False] * 4 + [True] * 4 + [False] * 2


METHODS = ("slimming", "soft", "drawn", "mask")


@pytest.mark.parametrize("name", [*METHODS, *(f"{name}_before" for name in METHODS), "gradual"])
@pytest.mark.parametrize(
    "wrapper", [pytest.param("methods", marks=IN_PARTS_ON_CPU), "distributed", "accelerate"]
)
def test_methods_act_as_on_one_process(found: Found, wrapper: str, name: str):
    for rank in found[wrapper]:
        if not rank:
            pytest.skip("Accelerate is not installed")
        assert max(rank[name]) < 1e-5


def test_ranks_with_other_plans_stop_and_the_model_is_as_it_was(found: Found):
    for kind, text, unchanged in found["other_plans"]:
        assert kind == "DisagreementError"
        assert "the ranks disagree on the plan of prune_: rank 0 has" in text
        assert unchanged


def test_a_checkpoint_of_a_cut_model_opens_on_other_numbers_of_ranks(found: Found, folder: Path):
    import torch.distributed.checkpoint as dcp

    for differences in found["written"]:
        assert max(differences) == 0
    plan = netslim.PruningPlan.from_json((folder / "cut/plan.json").read_text())
    alone = netslim.prune(net(1), plan)
    state = alone.state_dict()
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(state, checkpoint_id=folder / "cut")
    alone.load_state_dict(state)
    for one, two in zip(whole(alone), torch.load(folder / "cut.pt"), strict=True):
        assert torch.equal(one, two)


@IN_PARTS_ON_CPU
def test_settings_stay(found: Found):
    for rank in found["settings"]:
        assert rank == [["Parameter"], True, True, False]
