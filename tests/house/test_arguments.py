"""What is given in the wrong place or of the wrong kind is refused by name, never met as a raw
error.
"""

from __future__ import annotations

import inspect
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netslim
from netslim import Budget, NetslimError
from netslim._support import check_batches, expect, nearest, replacing, using_threads, write_atomic
from netslim.errors import ArgumentError, PlanError, RecipeError, StaleGraphError
from netslim.graph.rules.registry import RULES
from netslim.selection.criteria.registry import CRITERIA

# Public name, here or in its room -> its positional arguments, by the names of `things`.
CALLS = {
    "Budget": ("share",),
    "CentripetalSGD": ("graph", "model", "share"),
    "ChannelSelect": ("count",),
    "GradualPruning": ("model", "inputs", "budget"),
    "Limits": ("count",),
    "Mask": ("model", "plan"),
    "NetworkSlimming": ("model", "share"),
    "SoftFilterPruning": ("graph", "model", "share"),
    "add_bn": ("model", "inputs"),
    "add_selection": ("model", "inputs"),
    "compensate": ("model", "plan", "batches"),
    "cost": ("model", "inputs"),
    "criterion": ("function",),
    "drop_idle_selections": ("model",),
    "export": ("model", "inputs", "path"),
    "greedy": ("graph", "model", "per_group"),
    "latency": ("model", "inputs"),
    "latency_table": ("model", "graph", "inputs"),
    "load": ("model", "path"),
    "merge": ("graph", "clusters"),
    "normalized": ("scores", "way"),
    "parameter_groups": ("model", "share"),
    "prune": ("model", "plan"),
    "prune_": ("model", "plan", "optimizer"),
    "quantize": ("model", "batches", "onnx"),
    "recalibrate": ("model", "batches"),
    "register_rule": ("operator", "function"),
    "save": ("model", "path"),
    "score": ("graph", "model"),
    "search": ("function", "function"),
    "select": ("graph", "scores", "budget"),
    "sensitivity": ("model", "inputs", "function"),
    "slim": ("model", "inputs"),
    "trace": ("model", "inputs"),
    "verify": ("model", "small", "plan", "inputs"),
}
KEYWORDS: dict[str, dict[str, Any]] = {
    "latency": {"repeats": 5, "budget_seconds": 0.01},
    "latency_table": {"cache": False},
    "search": {"max_drop": 0.1, "baseline": 0.5},
    "slim": {"budget": Budget(cut_channels=0.5)},
}
# What netslim makes and hands out, whose class no user calls.
MADE = {"ChannelGraph", "PruningPlan"}
# (name, position, thing): what is all right there.
FINE = {
    *((name, 1, "nothing") for name in ("add_bn", "add_selection", "normalized", "register_rule")),
    ("Budget", 0, "nothing"),
    ("criterion", 0, "nothing"),
    ("save", 1, "text"),  # a path
    *(
        (name, position, "model")
        for name, position in (("search", 0), ("search", 1), ("sensitivity", 2))
    ),  # callable
    ("register_rule", 1, "model"),
}
WRONG = ("model", "graph", "plan", "inputs", "scores", "budget", "text", "nothing")
SAME = {"small": "model"}


@pytest.fixture(autouse=True)
def _registers_are_left_as_they_were() -> Iterator[None]:
    before = [(register, dict(register)) for register in (RULES, CRITERIA)]
    yield
    for register, content in before:
        register.clear()
        register.update(content)


def public(name: str) -> Any:
    rooms = (netslim, netslim.models, netslim.surgery, netslim.selection, netslim.methods)
    return next(getattr(room, name) for room in rooms if hasattr(room, name))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()


def things(folder: Path) -> dict[str, Any]:
    model, x = network(), torch.randn(2, 3, 8, 8)
    graph = netslim.trace(model, x)
    scores = netslim.score(graph, model, "l1")
    plan = netslim.select(graph, scores, Budget(cut_channels=0.5))
    return {
        "batches": [x],
        "budget": Budget(cut_channels=0.5),
        "clusters": {"0": [0] * 8},
        "count": 8,
        "function": lambda *_: None,
        "graph": graph,
        "inputs": x,
        "model": model,
        "nothing": None,
        "onnx": folder / "file.onnx",
        "operator": "aten::relu",
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "path": folder / "file",
        "per_group": {"0": 0.5},
        "plan": plan,
        "scores": scores,
        "share": 0.5,
        "small": netslim.prune(model, plan),
        "text": "l1",
        "way": "mean",
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Made once: no call of the tests that share them gets as far as to change one."""
    return things(tmp_path_factory.mktemp("arguments"))


def misplaced() -> list[tuple[str, int, str]]:
    cases = []
    for name, arguments in CALLS.items():
        for position, right in enumerate(arguments):
            wrong = [
                thing
                for thing in WRONG
                if thing != SAME.get(right, right) and (name, position, thing) not in FINE
            ]
            cases += [(name, position, thing) for thing in wrong]
    return cases


@pytest.mark.parametrize(("name", "position", "thing"), misplaced())
def test_an_argument_of_another_kind_is_refused(made, name, position, thing):
    arguments = [made[right] for right in CALLS[name]]
    arguments[position] = made[thing]
    with pytest.raises(NetslimError):
        public(name)(*arguments, **KEYWORDS.get(name, {}))


SWAPPED = [
    (n, i, j)
    for n, a in CALLS.items()
    for i, j in itertools.combinations(range(len(a)), 2)
    if a[i] != a[j]
]


@pytest.mark.parametrize(("name", "first", "second"), SWAPPED)
def test_swapped_arguments_are_refused(made, name, first, second):
    if (name, first, second) == ("verify", 0, 1):
        return  # both are networks; the plan says which is the smaller one
    arguments = [made[right] for right in CALLS[name]]
    arguments[first], arguments[second] = arguments[second], arguments[first]
    with pytest.raises(NetslimError):
        public(name)(*arguments, **KEYWORDS.get(name, {}))


def test_every_public_name_is_tried():
    names = {name for name in netslim.__all__ if not _is_error(getattr(netslim, name))}
    assert names <= set(CALLS) | MADE
    for name, arguments in CALLS.items():
        parameters = inspect.signature(public(name)).parameters.values()
        needed = [
            p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        assert len(arguments) >= len(needed), name


def _is_error(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseException)


def test_the_message_shows_the_call(made):
    t = made
    cases: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: netslim.verify(t["model"], t["model"], t["inputs"], t["inputs"]),
            r"plan must be a PruningPlan, got a Tensor: call verify\(model, small, plan, "
            r"example_inputs\)",
        ),
        (
            lambda: netslim.prune(t["model"], t["graph"]),
            r"plan must be a PruningPlan, got a ChannelGraph: call prune\(model, plan\)",
        ),
        (
            lambda: netslim.select(t["graph"], "l1", t["budget"]),
            r"scores must be a Mapping, got the str 'l1': call select\(graph, scores, budget\)",
        ),
        (
            lambda: netslim.score(t["model"], t["graph"]),
            r"graph must be a ChannelGraph, got a Sequential: call score\(graph, model\)",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ArgumentError, match=message):
            call()
    with pytest.raises(
        NetslimError,
        match=r"needs a torch.nn.Module, got Tensor; call trace\(model, example_inputs\)",
    ):
        netslim.trace(t["inputs"], t["model"])


def nothing_found(_: Any) -> float:
    return 1.0


# What happens -> the wrong call: each is refused as an argument, and not as what it would spoil.
REFUSED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "got str; call trace(": lambda t: netslim.trace("model", t["inputs"]),
    "got a Sequential: call prune(": lambda t: netslim.prune(t["plan"], t["model"]),
    "optimizer takes": lambda t: netslim.prune_(t["model"], t["plan"], optimizer=3),
    "got a Sequential: call save(": lambda t: netslim.save("a", t["model"]),
    "names no format": lambda t: netslim.export(t["model"], t["inputs"], "a.txt"),
    "register_rule needs an operator": lambda t: netslim.register_rule("foo"),
    "rule must be a Callable or None": lambda t: netslim.register_rule("aten::relu", 3),
    "groups go by their names, got the int 0": lambda t: netslim.select(
        t["graph"], t["scores"], per_group={0: 1}
    ),
    "max_cut names no group: groups": lambda t: netslim.select(
        t["graph"], t["scores"], t["budget"], limits=netslim.Limits(max_cut={0: 1})
    ),
    "must return a tensor of one score a unit": lambda t: netslim.score(
        t["graph"], t["model"], lambda group, tensors: 3
    ),
    "measure must be a Callable": lambda t: netslim.criterion(measure="a"),
    "criterion must be a netslim.selection.Scoring or a name": lambda t: netslim.score(
        t["graph"], t["model"], None
    ),
    "compensation must be a netslim.selection.Compensation, None or 'auto'": lambda t: netslim.slim(
        t["model"], t["inputs"], budget=t["budget"], compensation=3
    ),
    "nothing here reads the batches": lambda t: netslim.slim(
        t["model"], t["inputs"], per_group={"0": 0.5}, batches=t["batches"]
    ),
    "max_drop must be a number": lambda t: netslim.search(
        nothing_found, nothing_found, max_drop="a", baseline=1.0
    ),
    "baseline must be a number": lambda t: netslim.search(
        nothing_found, nothing_found, max_drop=0.1, baseline="a"
    ),
    "max_tries must be a whole number": lambda t: netslim.search(
        nothing_found, nothing_found, max_drop=0.1, baseline=1.0, max_tries=1.5
    ),
    "got the int 3: call search(..., journal=": lambda t: netslim.search(
        nothing_found, nothing_found, max_drop=0.1, baseline=1.0, journal=3
    ),
    "repeats must be a whole number": lambda t: netslim.latency(
        t["model"], t["inputs"], repeats="a"
    ),
    "budget_seconds must be a number": lambda t: netslim.latency(
        t["model"], t["inputs"], budget_seconds="a"
    ),
    "tolerance must be a number or a Mapping or None": lambda t: netslim.export(
        t["model"], t["inputs"], t["path"], tolerance="a"
    ),
    "journal must be a str or a PathLike or None": lambda t: netslim.sensitivity(
        t["model"], t["inputs"], nothing_found, journal=3
    ),
    "masks must be a Mapping or None": lambda t: t["graph"].macs(3),
    "masks are boolean arrays": lambda t: t["graph"].params({"name": 3}),
    "got 99: a list": lambda t: t["graph"].peak_bytes({99: []}),
    "model must be a Module": lambda t: netslim.measure.size_on_disk(3),
    "name must be a str or a PathLike": lambda t: netslim.models.build(3),
    "prefix must be a str": lambda t: netslim.models.names(3),
    "call LatencyTable.load(path)": lambda t: netslim.measure.LatencyTable.load(3),
    "call LatencyTable.from_json(text)": lambda t: netslim.measure.LatencyTable.from_json(3),
    "call Sensitivity.load(path)": lambda t: netslim.methods.Sensitivity.load(3),
    "call PruningPlan.from_json(text)": lambda t: netslim.PruningPlan.from_json(3),
    "call run(load_recipe('digits'))": lambda t: netslim.training.run("digts"),
    "tree must be a Mapping": lambda t: netslim.training.parse_recipe(3),
    "source must be a str or a PathLike": lambda t: netslim.training.load_recipe(3),
    "source must be a str, got": lambda t: netslim.training.recipe_text(3),
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_wrong_argument_is_one_whatever_it_is_given_to(made, said):
    with pytest.raises(ArgumentError) as caught:
        REFUSED[said](made)
    assert said in str(caught.value)


def test_wrong_arguments_are_value_errors_and_plans_are_not():
    assert issubclass(ArgumentError, ValueError)
    assert not issubclass(ArgumentError, PlanError)
    assert issubclass(StaleGraphError, PlanError)
    assert not issubclass(PlanError, ValueError)
    with pytest.raises(ValueError, match="cut_macs must be a number at least 0 and below 1"):
        Budget(cut_macs=1.5)


# --- what every room may use ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (None, "None"),
        (3, "the int 3"),
        ("x" * 99, r"the str 'x+\.\.\."),
        ([], "a list"),
        (ValueError(), "a ValueError"),
    ],
)
def test_expect_says_what_was_given(value, got):
    with pytest.raises(
        ArgumentError, match=rf"part must be a Tensor or a dict, got {got}: call f\(part\)"
    ):
        expect(value, (torch.Tensor, dict), "part", "f(part)")
    expect({}, (torch.Tensor, dict), "part", "f(part)")


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("trian", ("train", "prune"), "; did you mean 'train'?"),
        ("L2", ("l1", "l2"), "; did you mean 'l2' or 'l1'?"),
        (
            "cifar10",
            ("torchvision:MNIST", "torchvision:CIFAR10"),
            "; did you mean 'torchvision:CIFAR10'?",
        ),
        (
            "vgg91",
            ("zoo:vgg19", "timm:vgg19", "zoo:mlp"),
            "; did you mean 'zoo:vgg19' or 'timm:vgg19'?",
        ),
        ("weight", ("a.weight", "b.bias"), "; did you mean 'a.weight'?"),
        ("qqq", ("one", "two"), "; there is 'one', 'two'"),
        (7, ("one", "two"), "; there is 'one', 'two'"),
        ("qqq", (), ""),
    ],
)
def test_nearest(word, known, hint):
    assert nearest(word, known) == hint


def test_nearest_lists_a_dozen_at_most_or_says_something_else():
    known = [f"name{number}" for number in range(20)]
    assert nearest("qqq", known).endswith("'name11' and 8 more")
    assert nearest("qqq", known, otherwise="; look it up") == "; look it up"


def test_a_file_is_as_before_or_complete(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_atomic(path, "né")
    assert path.read_bytes() == "né".encode()
    write_atomic(str(path), b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    with pytest.raises(RuntimeError, match="no"), replacing(path) as temporary:
        _write_half(temporary, path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomic(path, "new")
    assert path.read_bytes() == b"\x00\x01"
    assert os.listdir(tmp_path) == ["report.html"]


def _write_half(temporary: Path, path: Path) -> None:
    assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
    temporary.write_text("half")
    raise RuntimeError("no")


def test_a_file_gets_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "safe", "")
    assert (tmp_path / "safe").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    texts = [str(number) * 100_000 for number in range(4)]
    writers = [
        threading.Thread(target=write_atomic, args=(tmp_path / "file", text)) for text in texts
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "file").read_text() in texts
    assert os.listdir(tmp_path) == ["file"]


def test_threads_are_as_before():
    before = torch.get_num_threads()
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with using_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
    for wrong in (0, True, "2"):
        with (
            pytest.raises(ArgumentError, match=r"threads must be 1 to"),
            using_threads(wrong),
        ):  # type: ignore[arg-type]
            pass


def test_batches_are_several():
    x = torch.zeros(2)
    assert check_batches([x]) == [x]
    for wrong in (x, {"x": x}, "text", None, 3):
        with pytest.raises(
            ArgumentError, match="batches must be a data loader or a list of batches, got"
        ):
            check_batches(wrong)


def test_errors_of_a_users_module_keep_their_class():
    with pytest.raises(ArgumentError, match="no function 'sinn'; did you mean 'sin'"):
        netslim.score(*_graph_and_model(), "math:sinn")
    with pytest.raises(RecipeError, match="no function 'Identit'; did you mean 'Identity'"):
        netslim.models.build("torch.nn:Identit")


def _graph_and_model() -> tuple[netslim.ChannelGraph, nn.Module]:
    model = network()
    return netslim.trace(model, torch.randn(1, 3, 8, 8)), model


@pytest.mark.parametrize("steps", [10**30, 100_001])
def test_more_steps_than_anyone_makes_are_refused_and_not_laid_out(steps):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    with pytest.raises(netslim.errors.ArgumentError, match=r"from 1 to 100,000|too large"):
        netslim.GradualPruning(
            model, torch.zeros(1, 3, 8, 8), netslim.Budget(cut_channels=0.5), steps=steps
        )


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_no_file_can_be_called_is_refused(path):
    model = nn.Linear(2, 2)
    with pytest.raises(netslim.NetslimError):
        netslim.save(model, path)
    with pytest.raises(netslim.NetslimError):
        netslim.load(model, path)
