"""A plan is data: whatever is done to it, it is refused, or does what it did."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nets import Chain, Residual, cut_half
from netslim import PruningPlan, prune, prune_, trace, verify
from netslim.errors import PlanError, SurgeryError
from netslim.selection import merge
from netslim.surgery import compensate
from netslim.surgery.history import history as history_of
from netslim.surgery.plan import compose
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise
from netslim.surgery.rows import SizePatch, losses

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Sized(nn.Module):
    """A size that forward reads, a flattened map, and a layer that is given a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a = nn.Conv2d(3, 6, 3, stride=3)
        self.b = nn.Conv2d(6, 4, 1, bias=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = self.b(x.view(-1, self.width, 2, 2).relu()) * 2
        return self.head(x.flatten(1).relu())


def plain() -> tuple[nn.Module, PruningPlan]:
    model = randomise(Residual()).eval()
    return model, cut_half(model, X)[1]


def merging() -> tuple[nn.Module, PruningPlan]:
    model = randomise(Chain()).eval()
    return model, merge(trace(model, X), {"first.0": [0, 1, 0, 1, 2, 2]})


def patching() -> tuple[nn.Module, PruningPlan]:
    """Also with a bias that is added: the history of a network that was compensated."""
    model = randomise(Sized()).eval()
    folding = compensate(model, cut_half(model, X)[1], [X], "constant")
    history = history_of(prune(folding.model, folding.plan))
    assert history is not None
    assert history.biases == ("b",)
    assert history.patches
    return model, history


PLANS = {make.__name__: make() for make in (plain, merging, patching)}


def damages(value: Any) -> Iterator[Any]:
    """What may stand where a value stood."""
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
    elif isinstance(value, list):
        yield from ([], value[:-1], value[::-1], [*value, *value[-1:]], {}, "text", 7)
        if value and isinstance(value[0], int):
            yield [value[0], value[0]]
    elif isinstance(value, bool):
        yield from (not value, 2, "true", None)
    elif isinstance(value, int):
        yield from (value - 1, value + 1, -value - 1, 10**9, 10**30, value + 0.5, float(value))
        yield from (str(value), True, None, [value], math.nan, math.inf)
    elif isinstance(value, str):
        yield from ("", value + "x", value.upper(), 7, None)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for key, inner in items:
        yield from places(inner, (*path, key))


def damaged(data: Any, path: tuple[Any, ...]) -> Iterator[Any]:
    """Copies of the data with one value replaced."""
    found = data
    for key in path:
        found = found[key]
    for value in damages(found):
        if not path:
            yield value
            continue
        other = copy.deepcopy(data)
        holder = other
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
        yield other


def outcome(model: nn.Module, text: str) -> torch.Tensor | None:
    """What the cut network computes; None where the plan is refused."""
    try:
        plan = PruningPlan.from_json(text)
        small = prune(model, plan)
    except PlanError:
        return None
    with torch.no_grad():
        return small(X)


def check(name: str, data: dict[str, Any], paths: list[tuple[Any, ...]]) -> int:
    """How many of all damages were refused; the others change nothing."""
    model, plan = PLANS[name]
    with torch.no_grad():
        wanted = prune(model, plan)(X)
    refused = 0
    for path in paths:
        for other in damaged(data, path):
            found = outcome(model, json.dumps(other))
            refused += found is None
            assert found is None or torch.equal(found, wanted), (path, other)
    return refused


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_was_changed_anywhere_is_refused(name: str) -> None:
    """The digest sees it all, so one place of each kind will do."""
    data = json.loads(PLANS[name][1].to_json())
    kinds = {tuple(k if isinstance(k, str) else 0 for k in path): path for path in places(data)}
    assert check(name, data, list(kinds.values())) > 100


@pytest.mark.parametrize("name", ["plain", "merging"])
def test_rows_that_do_not_agree_are_refused_without_a_digest(name: str) -> None:
    """One row of each group and role, all its fields."""
    data = json.loads(PLANS[name][1].to_json())
    del data["digest"]
    number = {cut["role"]: row for row, cut in enumerate(data["tensors"])}
    rows = [path for path in places(data) if path[:1] == ("tensors",) and path[1:]]
    paths = [path for path in rows if path[1] in number.values()]
    paths += [path for path in places(data) if path[:1] == ("groups",)]
    assert check(name, data, paths) > 100


def other_rows(plan: PruningPlan) -> Iterator[PruningPlan]:
    for number, cut in enumerate(plan.tensors):
        turned = tuple(np.roll(np.isin(np.arange(cut.size), cut.kept), 1).nonzero()[0].tolist())
        for changes in (
            {"kept": turned},
            {"kept": cut.kept[::-1]},
            {"kept": (*cut.kept, cut.kept[-1])},
            {"kept": cut.kept[:-1]},
            {"axis": cut.axis - cut.size},
            {"axis": -1},
            {"size": cut.size + 1},
            {"kept": tuple(map(float, cut.kept))},
        ):
            wrong = replace(cut, **changes)
            rows = list(plan.tensors)
            rows[number] = wrong
            yield replace(plan, tensors=tuple(rows))
        yield replace(plan, tensors=(*plan.tensors, cut))
        yield replace(plan, tensors=plan.tensors[:number] + plan.tensors[number + 1 :])


@pytest.mark.parametrize("verb", [prune, prune_])
@pytest.mark.parametrize("name", ["plain", "merging"])
def test_rows_that_do_not_agree_are_refused_by_the_cut(name: str, verb: Any) -> None:
    model, plan = PLANS[name]
    before = copy.deepcopy(model.state_dict())
    for wrong in other_rows(plan):
        with pytest.raises(PlanError):
            verb(model, wrong)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_edited_consumer_is_named() -> None:
    model, plan = PLANS["plain"]
    (row,) = (t for t in plan.tensors if t.tensor == "head.weight")
    wrong = replace(row, kept=tuple(sorted({*range(row.size)} - {*row.kept})))
    tensors = tuple(wrong if t is row else t for t in plan.tensors)
    with pytest.raises(
        PlanError, match=r"axis 1 of 'head.weight': it does not lose what the groups"
    ):
        prune(model, replace(plan, tensors=tensors))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"kept":[[0,2],[4,5]]', '"kept":[[0,1000000000]]', "in order, each once, within a size"),
        ('"size":6', '"size":1000000000000', "more than any layer has"),
        ('"axis":0', '"axis":NaN', "NaN is no number of JSON"),
        ('"axis":0', '"axis":-Infinity', "Infinity is no number"),
        ('"axis":0', '"axis":0,"axis":1', "stands twice"),
        ('"notes":[]', '"notes":["edited"]', "its digest does not match"),
        ('"notes":[]', '"notes":' + "[" * 20000 + "]" * 20000, "no valid JSON"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, message: str) -> None:
    text = PLANS["plain"][1].to_json()
    assert old in text
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_json(text.replace(old, new))


def test_plans_of_version_0_1_open() -> None:
    """They have no digest and no slices; what lies within one layer is still compared."""
    model, plan = PLANS["plain"]
    data = json.loads(plan.to_json())
    del data["digest"]
    for group in data["groups"].values():
        del group["slices"]
    old = PruningPlan.from_json(json.dumps(data))
    assert old == plan
    assert torch.equal(prune(model, old)(X), prune(model, plan)(X))
    (bias,) = (row for row in data["tensors"] if row["tensor"] == "inner.1.bias")
    bias["kept"] = [[0, 3]]
    with pytest.raises(PlanError, match=r"the layer 'inner\.1': its tensors do not lose the same"):
        prune(model, PruningPlan.from_json(json.dumps(data)))


class Layers(nn.Module):
    """Layers of PyTorch's own whose tensors lose channels together."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.lstm = nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(12, 5, batch_first=True)
        self.transposed = nn.ConvTranspose1d(5, 6, 3)
        self.norm, self.depthwise = nn.BatchNorm1d(6), nn.Conv1d(6, 6, 3, groups=6)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 4, 1))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.linear(x)
        h = self.gru(self.lstm(self.attention(h, h, h)[0])[0])[0]
        h = self.depthwise(self.norm(self.transposed(h.transpose(1, 2))))
        return self.head(self.normed(h).mean(2))


def test_what_lies_within_a_layer_is_compared_where_a_plan_says_no_more() -> None:
    model, x = Layers().eval(), torch.randn(2, 5, 3)
    graph = trace(model, x)
    cut = [number for number, group in enumerate(graph.groups) if group.name != "head"]
    masks = {number: np.arange(graph.groups[number].size) % 3 > 0 for number in cut}
    plan = plan_keeping(graph, masks)
    old = PruningPlan.from_json(json.dumps(without_slices(plan, *plan.groups)))
    prune(model, old)
    # What these read other layers make, which the rows alone cannot know.
    apart = {"attention.in_proj_weight", "lstm.weight_ih_l0", "lstm.weight_ih_l0_reverse"}
    apart |= {"gru.weight_ih_l0", "transposed.weight", "head.weight", "attention.out_proj.weight"}
    apart |= {"normed.parametrizations.weight.original1"}
    for number, cut in enumerate(old.tensors):
        turned = (np.roll(np.isin(np.arange(cut.size), cut.kept), 1).nonzero()[0]).tolist()
        rows = [*old.tensors]
        rows[number] = replace(cut, kept=tuple(turned))
        reads = cut.tensor in apart and cut.role == "consumer"
        if reads and (cut.tensor, cut.axis) != ("attention.out_proj.weight", 1):
            continue
        with pytest.raises(PlanError, match="its tensors do not lose the same channels"):
            prune(model, replace(old, tensors=tuple(rows)))
        del rows[number]
        with pytest.raises(PlanError, match="its tensors do not lose the same channels"):
            prune(model, replace(old, tensors=tuple(rows)))
    nameless = replace(old, groups={})
    others = tuple(patch for patch in old.patches if patch.module != "depthwise")
    for patches in (others, (*others, SizePatch("depthwise", "groups", 6, 1))):
        with pytest.raises(PlanError, match="layer 'depthwise': its tensors do not lose the same"):
            prune(model, replace(nameless, patches=patches))


def without_slices(plan: PruningPlan, *names: str) -> dict[str, Any]:
    """The plan as data, without a digest, and of these groups without what says their entries."""
    data: dict[str, Any] = json.loads(plan.to_json())
    del data["digest"]
    for name in names:
        del data["groups"][name]["slices"]
    return data


def test_one_group_without_its_slices_does_not_hide_the_others() -> None:
    model, plan = PLANS["plain"]
    first, *others = plan.groups
    assert others
    data = without_slices(plan, first)
    (row,) = (row for row in data["tensors"] if row["tensor"] == "head.weight")
    row["kept"] = [[0, sum(stop - start for start, stop in row["kept"])]]
    with pytest.raises(PlanError, match=f"the group {first!r}: it does not say which entries"):
        prune(model, PruningPlan.from_json(json.dumps(data)))


def test_verify_takes_a_row_of_one_axis_that_reads() -> None:
    model, plan = PLANS["plain"]
    data = without_slices(plan, *plan.groups)
    (row,) = (row for row in data["tensors"] if row["tensor"] == "inner.1.bias")
    row["role"] = "consumer"
    edited = PruningPlan.from_json(json.dumps(data))
    proof = verify(model, prune(model, edited), edited, X)
    assert proof.deviation is not None
    assert proof.deviation < 1e-10


def test_verify_refuses_rows_that_no_group_accounts_for() -> None:
    model, plan = PLANS["plain"]
    nameless = replace(plan, groups={}, patches=())
    with pytest.raises(PlanError, match="the plan cuts tensors and names no group"):
        verify(model, prune(model, nameless), nameless, X)


@pytest.mark.parametrize("make", [np.array, list, lambda kept: None])
def test_entries_in_anything_but_a_tuple_are_refused(make: Any) -> None:
    model, plan = PLANS["merging"]
    rows = tuple(replace(cut, kept=make(cut.kept)) for cut in plan.tensors)
    groups = {name: replace(cut, into=make(cut.into)) for name, cut in plan.groups.items()}
    for wrong in (replace(plan, tensors=rows), replace(plan, groups=groups)):
        with pytest.raises(PlanError, match="entries are tuples of whole numbers"):
            prune(model, wrong)


def rows_taken_away(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Plans that say nothing else of what is gone: no digest, no slices, no sizes of groups."""
    for name in ("tensors", "patches"):
        for number in range(len(data[name])):
            other = copy.deepcopy(data)
            del other[name][number]
            yield other
            yield {**other, "groups": {}}
            yield {**other, "groups": {}, "digest": None}


@pytest.mark.parametrize("name", ["plain", "patching"])
def test_rows_that_were_taken_away_are_missed(name: str) -> None:
    """What reads them is in another layer, which no row tells: the plan knows their number."""
    model, plan = PLANS[name]
    data = without_slices(plan, *(name for name, cut in plan.groups.items() if cut.slices))
    for group in data["groups"].values():
        group.pop("sizes", None)
    prune(model, PruningPlan.from_json(json.dumps(data)))
    for other in rows_taken_away(data):
        with pytest.raises(PlanError, match=r"of .* (tensors|patches): the others are missing"):
            PruningPlan.from_json(json.dumps(other))
    for number in range(len(plan.tensors)):
        fewer = plan.tensors[:number] + plan.tensors[number + 1 :]
        with pytest.raises(PlanError):
            prune(model, replace(plan, groups={}, tensors=fewer))


def test_a_slice_and_its_row_taken_away_together_are_missed() -> None:
    model, plan = PLANS["plain"]
    for lost in plan.tensors:
        groups = {
            name: replace(
                cut,
                slices=tuple(
                    s for s in cut.slices if (s.tensor, s.axis) != (lost.tensor, lost.axis)
                ),
            )
            for name, cut in plan.groups.items()
        }
        rest = tuple(cut for cut in plan.tensors if cut != lost)
        with pytest.raises(PlanError):
            prune(model, replace(plan, groups=groups, tensors=rest))


def two_sizes() -> tuple[nn.Module, PruningPlan]:
    """One that forward reads, and one that only another method does."""

    class Both(Sized):
        def __init__(self) -> None:
            super().__init__()
            self.out_channels = 4

        def deploy(self) -> nn.Module:
            return nn.Conv2d(self.width, self.out_channels, 1)

    model = randomise(Both()).eval()
    return model, cut_half(model, X)[1]


def other_patches(plan: PruningPlan) -> Iterator[tuple[SizePatch, ...]]:
    yield ()
    for number, patch in enumerate(plan.patches):
        others = plan.patches[:number] + plan.patches[number + 1 :]
        yield others
        for changes in ({"new": patch.new - 1}, {"new": patch.old}, {"attribute": "training"}):
            yield (*others, replace(patch, **changes))
    yield (*plan.patches, SizePatch("a", "stride[0]", 3, 1))


@pytest.mark.parametrize("make", [two_sizes, patching])
def test_attributes_lose_what_the_groups_lose(make: Any) -> None:
    """Also in the composed plans that models keep, which know nothing of slices."""
    model, plan = make()
    assert {patch.attribute for patch in plan.patches} >= {"width"}
    data = json.loads(plan.to_json())
    del data["digest"]
    assert PruningPlan.from_json(json.dumps(data)) == plan
    for patches in other_patches(plan):
        with pytest.raises(PlanError, match=r"the attribute .*: it does not lose what the groups"):
            prune(model, replace(plan, patches=patches))
        data["patches"] = list(map(vars, patches))
        with pytest.raises(PlanError):
            PruningPlan.from_json(json.dumps(data))


def test_sizes_of_cuts_one_after_the_other_add_up() -> None:
    model, first = two_sizes()
    small = prune(model, first)
    second = cut_half(small, X, 1)[1]
    both = history_of(prune(small, second))
    assert both == compose(first, second)
    again = PruningPlan.from_json(both.to_json())
    lost = {(patch.module, patch.attribute): patch.old - patch.new for patch in both.patches}
    assert losses(again.groups) == lost
    assert lost["", "width"] > 6 - small.width


@pytest.mark.parametrize("attribute", ["a", "_modules[head]", "x" * 1000, "a.b" * 1000])
def test_no_message_shows_a_whole_model(attribute: str) -> None:
    model, plan = PLANS["patching"]
    groups = {name: replace(cut, sizes=()) for name, cut in plan.groups.items()}
    patches = (SizePatch("", attribute, 6, 3),)
    with pytest.raises(SurgeryError) as caught:
        prune(model, replace(plan, groups=groups, patches=patches))
    assert len(str(caught.value)) < 250
    assert "kernel_size" not in str(caught.value)


def test_an_attribute_that_is_set_twice_is_refused() -> None:
    model, plan = PLANS["plain"]
    twice = (SizePatch("stem", "width", 6, 3), SizePatch("stem", "width", 6, 4))
    with pytest.raises(PlanError, match="it is set twice"):
        prune(model, replace(plan, patches=twice))
