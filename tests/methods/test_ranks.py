"""Two processes that train one model: they decide alike, or both stop.

The functions ``rank_...`` run in two real processes (see `two_ranks`); each test reads what the two
of them found. Their data differ, as those of a `DistributedSampler` do.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import netslim
import netslim.ranks as ranks
from netslim.surgery import compensate, recalibrate
from netslim.surgery.history import history
from two_ranks import Found, on_two_ranks

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo"
)
HALF = netslim.Budget(cut_macs=0.5)
X = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(9))


# ---------------------------------------------------------------- what both processes have


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
    )


def shard(rank: int, number: int = 3) -> list[list[Tensor]]:
    """Batches that no other rank has; the channels of rank 1 are of other sizes."""
    g = torch.Generator().manual_seed(rank + 1)
    scale = torch.linspace(0.2, 2, 3).roll(rank)[:, None, None]
    return [
        [torch.randn(8, 3, 6, 6, generator=g) * scale, torch.randint(4, (8,), generator=g)]
        for _ in range(number)
    ]


def train(model: nn.Module, optimizer: Any, batches: list[list[Tensor]]) -> None:
    for images, labels in batches:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


def weights(model: nn.Module) -> str:
    return ranks.digest(dict(model.named_parameters()))


def kept(plan: netslim.PruningPlan) -> dict[str, list[int]]:
    return {name: list(group.kept) for name, group in plan.groups.items()}


def half(model: nn.Module, criterion: str = "l1", **options: Any) -> netslim.PruningPlan:
    graph = netslim.trace(model, X)
    return netslim.select(graph, netslim.score(graph, model, criterion, **options), HALF)


def trained(rank: int, wrapped: bool = True) -> tuple[Any, torch.optim.Optimizer]:
    """After a few steps on own batches, with statistics of their own in the optimizer."""
    model = net()
    wrapper = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(wrapper, optimizer, shard(rank))
    return (wrapper if wrapped else model), optimizer


# ---------------------------------------------------------------- what each of them does


def rank_gradual(rank: int) -> dict[str, Any]:
    """Chosen from data, which each has its own of; the wrapper goes on around the smaller model."""
    wrapper, optimizer = trained(rank)
    gradual = netslim.GradualPruning(
        *(wrapper, X, HALF),
        steps=2,
        criterion="obs",
        batches=shard(rank, 2 + rank),
        optimizer=optimizer,
    )
    found: dict[str, Any] = {"kept": [], "weights": []}
    for _ in range(2):
        found["kept"].append(kept(gradual.step()))
        train(wrapper, optimizer, shard(rank))
        found["weights"].append(weights(wrapper))
    return found | {"left": gradual.macs_left}


def rank_gradual_bare(rank: int) -> dict[str, Any]:
    """Given the module inside, which is wrapped again after the step."""
    model, optimizer = trained(rank, wrapped=False)
    gradual = netslim.GradualPruning(
        *(model, X, HALF), steps=1, criterion="taylor", batches=shard(rank), optimizer=optimizer
    )
    gradual.step()
    train(DistributedDataParallel(model), optimizer, shard(rank))
    return {"kept": kept(gradual.plan), "weights": weights(model)}


def rank_gradual_attached(rank: int) -> dict[str, Any]:
    """Cut from within `optimizer.step()`, with a weight average of the wrapper itself."""
    wrapper, optimizer = trained(rank)
    average = AveragedModel(wrapper)
    gradual = netslim.GradualPruning(
        *(wrapper, X, HALF),
        steps=2,
        criterion="activation",
        batches=shard(rank),
        companions=average,
    ).attach(optimizer, every=2)
    for _ in range(2):
        train(wrapper, optimizer, shard(rank))
        average.update_parameters(wrapper)
    assert gradual.done
    return {"kept": kept(gradual.plan), "weights": [weights(wrapper), weights(average)]}


def rank_alone(rank: int) -> dict[str, Any]:
    """As they choose when each is left to itself: their data do differ."""
    with ranks.alone():
        return kept(half(net(), "obs", batches=shard(rank)))


def rank_document(rank: int) -> str:
    """What docs/distributed.md shows, run by both."""
    text = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"make_network": net, "shard": shard(rank, 2 + rank)}
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, "distributed.md", "exec"), names)
    return weights(names["model"])


def rank_scores(rank: int) -> dict[str, Any]:
    """Of one rank with two batches and one with four."""
    model = net().eval()
    graph = netslim.trace(model, X)
    mine = shard(rank, 2 + 2 * rank)
    both = [*shard(0, 2), *shard(1, 4)]
    found = {}
    for name in ("taylor", "taylor_bn", "obd", "activation", "mean_std", "var_l2", "obs"):
        together = netslim.score(graph, model, name, batches=mine)
        with ranks.alone():
            whole = netslim.score(graph, model, name, batches=both)
        gap = max(float((together[g] / whole[g] - 1).abs().max()) for g in whole)
        found[name] = {"gap": gap, "digest": ranks.digest(together)}
    return found


def rank_scores_of_ones_own(rank: int) -> dict[str, list[float]]:
    """A measure of a user's, which knows of no other ranks."""
    model = net()
    graph = netslim.trace(model, X)

    def measure(graph: Any, model: Any, batches: Any, loss: Any) -> dict[str, Tensor]:
        return {group.name: torch.full((group.size,), 2.0 + rank) for group in graph.groups}

    @netslim.criterion(measure=measure)
    def measured(group: Any, values: Any) -> Tensor:
        return values[group.name]

    scores = netslim.score(graph, model, measured, batches=shard(rank))
    return {name: values.tolist() for name, values in scores.items()}


def rank_mask(rank: int) -> str:
    wrapper, optimizer = trained(rank)
    mask = netslim.Mask(wrapper, half(wrapper, "taylor", batches=shard(rank))).attach(optimizer)
    train(wrapper, optimizer, shard(rank))
    return weights(mask.convert())


def rank_mask_of_two_plans(rank: int) -> str:
    model = net()
    with ranks.alone():
        plan = half(model, "taylor", batches=shard(rank))
    netslim.Mask(model, plan)
    return "went on"


def rank_clusters(rank: int) -> dict[str, Any]:
    """A seed for each rank."""
    wrapper, _ = trained(rank)
    graph = netslim.trace(wrapper, X)
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1, momentum=0.9)
    method = netslim.CentripetalSGD(graph, wrapper, 0.5, seed=rank).attach(optimizer)
    train(wrapper, optimizer, shard(rank))
    return {"clusters": method.clusters, "weights": weights(wrapper)}


def rank_given_clusters(rank: int) -> str:
    model = net()
    graph = netslim.trace(model, X)
    netslim.CentripetalSGD(graph, model, clusters={"0": [0, 1, 2, 3, 0, 1, 2, 3 + rank]})
    return "went on"


def rank_soft(rank: int) -> str:
    wrapper, optimizer = trained(rank)
    soft = netslim.SoftFilterPruning(netslim.trace(wrapper, X), wrapper, 0.3).attach(optimizer)
    for _ in range(2):
        train(wrapper, optimizer, shard(rank))
        soft.end_epoch()
    return weights(wrapper)


def rank_soft_apart(rank: int) -> str:
    """The gradients were not reduced."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train(model, optimizer, shard(rank))
    soft = netslim.SoftFilterPruning(netslim.trace(model, X), model, 0.5)
    soft.zero()
    return "went on"


def rank_slimming(rank: int) -> str:
    wrapper, optimizer = trained(rank)
    netslim.NetworkSlimming(wrapper, 1e-2).attach(optimizer)
    train(wrapper, optimizer, shard(rank))
    return weights(wrapper)


def rank_slim(rank: int) -> dict[str, Any]:
    """All that is taken where nothing is said: obs, least squares, and what is judged of these on
    the batches that all ranks hold out together.
    """
    wrapper, _ = trained(rank)
    small = netslim.slim(wrapper, X, budget=HALF, batches=shard(rank, 2 + rank))
    plan = history(small)
    judged = [note for note in plan.notes if note.startswith("compensation ")]
    assert len(judged) == 3
    return {"weights": weights(small), "removed": plan.removed, "judged": judged}


def rank_slim_of_two_weights(rank: int) -> str:
    netslim.slim(net(seed=rank), X, budget=HALF, batches=shard(rank))
    return "went on"


def rank_compensation(rank: int) -> dict[str, Any]:
    """Of three batches on one rank and one on the other; beside it one process that has all."""
    wrapper, _ = trained(rank)
    model, found = net(), {}
    together = [*shard(0, 3), *shard(1, 1)]
    for way in ("constant", "linear", "sequential"):
        folding = compensate(wrapper, half(wrapper), shard(rank), way)
        small = netslim.prune(folding.model, folding.plan)
        found[way] = weights(small) + folding.plan.to_json() + str(folding)
        fitted = compensate(model, half(model), shard(rank, 3 - 2 * rank), way).model
        with ranks.alone():
            alone = compensate(model, half(model), together, way).model
        pairs = zip(fitted.parameters(), alone.parameters(), strict=True)
        gaps = [float((a - b).abs().max()) for a, b in pairs]
        found["gap"] = max(found.get("gap", 0.0), *gaps)
    return found


def rank_statistics(rank: int) -> dict[str, Any]:
    """Of three batches on one rank and one on the other, with layers that wait for the others."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    recalibrate(model, shard(rank, 3 - 2 * rank))
    alone = net()
    with ranks.alone():
        recalibrate(alone, [*shard(0, 3), *shard(1, 1)])
    pairs = zip(model.buffers(), alone.buffers(), strict=True)
    gap = max(float((a - b).abs().max()) for a, b in pairs)
    return {"gap": gap, "digest": ranks.digest(dict(model.named_buffers()))}


def rank_prune(rank: int) -> dict[str, Any]:
    """Model, optimizer and average in one call, with every setting of the wrapper."""
    model = net()
    group = dist.new_group([0, 1])
    wrapper = DistributedDataParallel(
        *(model, None, None),
        process_group=group,
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
        bucket_cap_mb=3,
    )
    calls = []
    wrapper.register_comm_hook(None, _summing)
    wrapper.register_forward_hook(lambda *_: calls.append(1))
    optimizer, average = torch.optim.Adam(model.parameters(), lr=0.01), AveragedModel(model)
    train(wrapper, optimizer, shard(rank))
    average.update_parameters(model)
    plan = half(wrapper)
    moment = optimizer.state[model[0].weight]["exp_avg"][list(plan.tensors[0].kept)]
    wanted = netslim.prune(model, plan)
    same = netslim.prune_(wrapper, plan, optimizer, average) is wrapper
    found = {
        "same": same and weights(wrapper.module) == weights(wanted),
        "optimizer": torch.equal(optimizer.state[model[0].weight]["exp_avg"], moment),
        "average": average.module[0].out_channels == model[0].out_channels < 8,
        "settings": [
            wrapper.process_group is group,
            wrapper.find_unused_parameters,
            wrapper.gradient_as_bucket_view,
            wrapper.bucket_bytes_cap == 3 * 2**20,
            [hook for hook, _ in wrapper._comm_hooks] == [_summing],
        ],
    }
    fresh = DistributedDataParallel(copy.deepcopy(model))
    _summing.calls = 0
    for one in (wrapper, fresh):
        images, labels = shard(rank, 1)[0]
        one.zero_grad()
        cross_entropy(one(images), labels).backward()
    found["hooks"] = [_summing.calls > 0, len(calls)]
    gaps = zip(wrapper.parameters(), fresh.parameters(), strict=True)
    found["gap"] = max(float((a.grad - b.grad).abs().max()) for a, b in gaps)
    train(wrapper, optimizer, shard(rank))
    average.update_parameters(model)
    return found | {"weights": [weights(wrapper), weights(average)]}


def _summing(state, bucket):
    """What `DistributedDataParallel` does by itself."""
    _summing.calls += 1
    work = dist.all_reduce(bucket.buffer().div_(2), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


_summing.calls = 0


def rank_prune_static(rank: int) -> str:
    model = net()
    wrapper = DistributedDataParallel(model, static_graph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(wrapper, optimizer, shard(rank))
    netslim.prune_(wrapper, half(wrapper), optimizer)
    train(wrapper, optimizer, shard(rank))
    assert wrapper.static_graph
    return weights(wrapper)


def rank_prune_with_two_plans(rank: int) -> dict[str, Any]:
    wrapper, optimizer = trained(rank)
    before = weights(wrapper)
    with ranks.alone():
        plan = half(wrapper, "taylor", batches=shard(rank))
    try:
        netslim.prune_(wrapper, plan, optimizer)
    except netslim.NetslimError as error:
        return {"text": str(error), "untouched": weights(wrapper) == before}
    return {"text": "went on"}


def rank_prune_with_a_hook_that_remembers(rank: int) -> str:
    wrapper, _ = trained(rank)
    wrapper.register_comm_hook({"errors": torch.zeros(3)}, _summing)
    netslim.prune_(wrapper, half(wrapper))
    return "went on"


def rank_prune_of_two_weights(rank: int) -> str:
    """One rank has changed a weight by itself."""
    wrapper, _ = trained(rank)
    plan = half(wrapper, "taylor", batches=shard(rank))
    with torch.no_grad():
        wrapper.module[0].weight[0, 0, 0, 0] += rank
    netslim.prune_(wrapper, plan)
    return "went on"


def rank_states_of_two(rank: int) -> str:
    gradual = netslim.GradualPruning(net(), X, HALF, steps=2, criterion="l1")
    netslim.GradualPruning(net(), X, HALF, steps=2, criterion="l1").load_state_dict(
        {**gradual.state_dict(), "seen": rank}
    )
    return "went on"


def rank_diverged_on_one(rank: int) -> str:
    """Weights that are not finite on one rank; the other must not wait for it."""
    model = net()
    soft = netslim.SoftFilterPruning(netslim.trace(model, X), model, 0.3)
    if rank:
        nn.init.constant_(model[3].weight, torch.nan)
    soft.zero()
    return "went on"


def rank_unreadable_on_one(rank: int) -> str:
    """A loader that fails on one rank."""

    def batches() -> Any:
        yield from shard(rank, 1)
        if rank:
            raise OSError("no such file")

    netslim.slim(net(), X, budget=HALF, batches=batches())
    return "went on"


def rank_failure_of_one(rank: int) -> str:
    """One rank has no batch; the other must not wait for it."""
    model = net()
    netslim.score(netslim.trace(model, X), model, "taylor", batches=shard(rank)[: 3 * (1 - rank)])
    return "went on"


def rank_other_calls(rank: int) -> str:
    model = net()
    graph = netslim.trace(model, X)
    if rank == 0:
        netslim.score(graph, model, "taylor", batches=shard(rank))
    else:
        netslim.Mask(model, half(model))
    return "went on"


def rank_changed_model(rank: int) -> str:
    """Only one of them was cut by something else since."""
    model = net()
    gradual = netslim.GradualPruning(model, X, HALF, steps=2, criterion="l1")
    if rank:
        netslim.prune_(model, half(model))
    gradual.step()
    return "went on"


def rank_weights_need_no_other(rank: int) -> str:
    """What looks at weights alone may be done on one rank."""
    if rank == 0:
        model = net()
        netslim.prune(model, half(model))
    return "done"


def rank_sensitivity(rank: int) -> dict[str, Any]:
    """What a rank evaluates on its own data differs; the file is written by one."""
    model, journal = net(), Path("study")  # in the folder that both work in
    study = netslim.sensitivity(
        *(model, X, lambda network: float(network(shard(rank)[0][0]).mean())),
        ratios=(0.5,), unit="number", journal=journal, criterion="taylor", batches=shard(rank),
    )  # fmt: skip
    dist.barrier()
    lines = journal.read_text().count("\n")
    return {"values": [study.baseline, *(row.value for row in study.rows)], "lines": lines}


def rank_search(rank: int) -> dict[str, Any]:
    """What passes on one rank fails on the other; together they are just good enough."""

    def evaluate(share: float) -> float:
        return 1 - share * (0.5 + rank)

    found = netslim.search(
        *(lambda share: share, evaluate), max_drop=0.4, baseline=1.0, tolerance=0.2, journal="found"
    )
    return {"shares": [one.share for one in found.candidates], "best": found.best.share}


def rank_latency(rank: int) -> list[float]:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    inputs = torch.zeros(1, 4)
    table = netslim.latency_table(model, netslim.trace(model, inputs), inputs, cache=False)
    return [run.measured_ms for run in table.runs]


# ---------------------------------------------------------------- what is made of it


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return on_two_ranks(__file__, tmp_path_factory.mktemp("ranks"))


ALIKE = [
    *(
        "gradual",
        "gradual_bare",
        "gradual_attached",
        "mask",
        "clusters",
        "soft",
        "slimming",
        "slim",
        "compensation",
    ),
    *("prune", "prune_static", "sensitivity", "search", "latency", "document"),
]


@pytest.mark.parametrize("name", ALIKE)
def test_ranks_decide_alike_and_train_on_alike(found: Found, name: str):
    one, two = found[name]
    assert one == two
    assert "error" not in one


def test_ranks_that_are_left_to_themselves_decide_differently(found: Found):
    one, two = found["alone"]
    assert one != two


def test_gradual_pruning_reaches_its_budget_and_goes_on_in_the_wrapper(found: Found):
    one, _ = found["gradual"]
    assert one["left"] <= 0.5
    assert len(set(one["weights"])) == 2
    assert one["kept"][0] != one["kept"][1]


def test_something_was_cut(found: Found):
    assert found["slim"][0]["removed"] > 0
    assert found["gradual_bare"][0]["kept"]


def test_scores_are_those_of_one_process_that_saw_all_batches(found: Found):
    one, two = found["scores"]
    assert one == two
    assert {name: values["gap"] for name, values in one.items()} == pytest.approx(
        dict.fromkeys(one, 0.0), abs=1e-10
    )


def test_a_measure_of_a_users_own_is_averaged(found: Found):
    assert found["scores_of_ones_own"] == ({"0": [2.5] * 8, "3": [2.5] * 12},) * 2


def test_statistics_are_those_of_one_process_that_saw_all_batches(found: Found):
    one, two = found["statistics"]
    assert one == two
    assert one["gap"] < 1e-6


def test_fits_are_those_of_one_process_that_saw_all_batches(found: Found):
    one, _ = found["compensation"]
    assert one["gap"] < 1e-5


def test_clusters_are_those_of_the_first_seed(found: Found):
    labels = found["clusters"][0]["clusters"]
    graph = netslim.trace(net(), X)
    assert {name: max(values) + 1 for name, values in labels.items()} == {
        group.name: group.size // 2 for group in graph if group.name in labels
    }


def test_prune_in_place_keeps_settings_optimizer_average_and_hooks(found: Found):
    one, _ = found["prune"]
    assert one["same"]
    assert one["optimizer"]
    assert one["average"]
    assert one["settings"] == [True] * 5
    assert one["hooks"] == [True, 4]  # three batches before the cut, one after
    assert one["gap"] == 0  # to the gradients of a wrapper that was made afresh


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mask_of_two_plans", "the plan of a Mask"),
        ("given_clusters", "the clusters of CentripetalSGD"),
        ("soft_apart", "the filters to be zeroed"),
        ("slim_of_two_weights", "the network after the cut"),
        ("prune_with_two_plans", "the plan of prune_"),
        ("prune_of_two_weights", "the parameters of the model"),
        ("states_of_two", "the state of GradualPruning"),
    ],
)
def test_a_disagreement_stops_both_with_both_digests(found: Found, name: str, what: str):
    one, two = found[name]
    assert one["text"] == two["text"]
    digest = "[0-9a-f]{16}"
    wanted = f"the ranks disagree on {what}: rank 0 has {digest}, rank 1 has {digest}; "
    assert re.match(wanted, one["text"])


def test_a_refused_plan_leaves_everything_as_it_was(found: Found):
    assert [one["untouched"] for one in found["prune_with_two_plans"]] == [True, True]


def test_an_error_on_one_rank_is_one_on_both(found: Found):
    one, two = found["failure_of_one"]
    assert one["error"] == two["error"] == "ArgumentError"
    assert two["text"].startswith("batches= gives no batch")
    assert one["text"] == f"rank 1: {two['text']}"


def test_ranks_at_different_places_do_not_wait_for_each_other(found: Found):
    one, two = found["other_calls"]
    assert one == two
    assert "rank 0 has what is measured on batches, rank 1 has the plan of a Mask" in one["text"]
    assert "netslim.ranks.alone()" in one["text"]


def test_what_went_wrong_on_another_rank_is_told(found: Found):
    one, two = found["changed_model"]
    assert one == two
    assert "the last step left" in one["text"]


def test_a_method_that_fails_on_one_rank_stops_on_both(found: Found):
    one, two = found["diverged_on_one"]
    assert one == two
    assert "are not finite" in one["text"]


def test_data_that_cannot_be_read_on_one_rank_stop_both(found: Found):
    one, two = found["unreadable_on_one"]
    assert "no such file" in one["text"]
    assert "no such file" in two["text"]


def test_weights_alone_need_no_other_rank(found: Found):
    assert found["weights_need_no_other"] == ("done", "done")


def test_a_hook_with_a_memory_is_refused(found: Found):
    for one in found["prune_with_a_hook_that_remembers"]:
        assert "the communication hook _summing keeps a dict" in one["text"]


def test_a_journal_is_written_once(found: Found):
    values = found["sensitivity"][0]["values"]
    assert found["sensitivity"][0]["lines"] == 1 + len(values)


def test_a_search_judges_by_all_ranks(found: Found):
    best = found["search"][0]["best"]
    assert 0.3 < best <= 0.4  # each loses 1.0 of the share, on average, and 0.4 is allowed


def test_nothing_is_exchanged_outside_a_distributed_run():
    values = {"a": torch.ones(2)}
    assert ranks.count() == 1
    assert ranks.first()
    assert ranks.mean("x", values) is values
    assert ranks.mean_number("x", 0.1) == 0.1
    assert ranks.shared("x", lambda: values) is values
    ranks.agree("x", "y", "")
