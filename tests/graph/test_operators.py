"""Operators of one's own: `register_rule`, the ready-made rules, what happens without a rule."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netslim
from nets import counted_alike, prove
from netslim import register_rule, trace
from netslim.errors import ArgumentError, TraceError
from netslim.graph import rules
from netslim.graph.rules.registry import RULES
from netslim.measure.table.kernels import kernels_of, observe, rate
from places import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "operators.md"
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _same_rules_afterwards():
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@torch.library.custom_op("nstest::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return 2 * x


double.register_autograd(lambda ctx, grad: 2 * grad)


@torch.library.custom_op("nstest::add", mutates_args=())
def add(x: Tensor, y: Tensor) -> Tensor:
    """Not an addition at all: the channels of x in reverse order, plus those of y."""
    return x.flip(1) + y


add.register_autograd(lambda ctx, grad: (grad.flip(1), grad))


@torch.library.custom_op("nstest::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(x, 2)


halve.register_autograd(lambda ctx, grad: torch.nn.functional.interpolate(grad, scale_factor=2) / 4)


@torch.library.custom_op("nstest::bump", mutates_args=("x",))
def bump(x: Tensor) -> None:
    x.add_(1)


@torch.library.custom_op("nstest::project", mutates_args=())
def project(x: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution with weights of shape (inputs, outputs)."""
    return torch.einsum("nchw,co->nohw", x, weight)


def project_rule(recorder, func, out, x, weight):
    inputs, matrix = recorder.get(x), recorder.get(weight)
    read = recorder.meet(inputs.dims.get(1), matrix.dims.get(0), "project")
    recorder.mark(matrix, 0, rules.CONSUMER)
    recorder.mark(matrix, 1, rules.PRODUCER)
    made = matrix.dims.get(1)
    places = (len(x), *x.shape[2:])
    recorder.cost(
        "project",
        *places,
        len(weight) if read is None else read,
        weight.shape[1] if made is None else made,
    )
    recorder.set(out, {} if made is None else {1: made}, weight=False)


class Project(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight)


LIBRARY = torch.library.Library("nsparts", "DEF")
LIBRARY.define("twice(Tensor x) -> Tensor")
LIBRARY.impl("twice", lambda x: x.relu() + x.relu(), "CompositeImplicitAutograd")
LIBRARY.define("tagged(Tensor x) -> Tensor", tags=(torch.Tag.pointwise,))
LIBRARY.impl("tagged", lambda x: 3 * x, "CPU")
torch.library.register_autograd("nsparts::tagged", lambda ctx, grad: 3 * grad, lib=LIBRARY)


class Net(nn.Module):
    """``stem`` (3 -> 8), an operator, ``body`` (8 -> 6), ``head`` (6 -> 2)."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 2)
        self.operator = operator if isinstance(operator, nn.Module) else lambda x: operator(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.operator(self.stem(x))
        return self.head(self.body(x).relu().mean((2, 3)))


def sizes(graph: netslim.ChannelGraph) -> dict[str, int]:
    return {g.name: g.size for g in graph.prunable}


# --- the documentation ----------------------------------------------------------------------------


def test_the_documented_example_works_as_shown(capsys):
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    blocks = re.findall(
        r"^```python\n(.*?)^```",
        DOCUMENT.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    for number, block in enumerate(blocks):
        exec(compile(block, f"operators.md, python block {number + 1}", "exec"), names)
    out = capsys.readouterr().out
    assert out.startswith("{'mylib::squash': ('',)}\n")
    assert (
        "They stay: netslim has no rule for mylib::squash (operators.md, python block 1:19)." in out
    )
    assert "\n{}\nGroup stem: 8 channels.\n  They can be cut exactly" in out
    assert sizes(names["graph"]) == {"stem": 8, "first": 10}
    small, smaller = names["small"], names["smaller"]
    # 16 * 27 at each of 14 * 14 places, 8 * 10 and 10 * 2; the first two are also what each layer
    # puts out.
    assert "84772 84772" in out
    figures = counted_alike(names["other"], names["images"])
    assert (figures["macs"], figures["activations"]) == (16 * 27 * 196 + 80 + 20, 16 * 196 + 10 + 2)
    counted_alike(smaller, names["images"])
    counted_alike(small, names["images"])
    assert small.stem.out_channels + small.body.out_channels == 10
    assert sum(smaller.first.shape) == 9


def test_every_ready_made_rule_is_documented():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in rules.__all__:
        assert f"`{name}" in text or name in ("Labels", "Recorder", "Rule"), name


# --- without a rule -------------------------------------------------------------------------------


def test_without_a_rule_it_freezes_what_it_touches_and_is_listed_with_a_hint():
    graph = trace(Net(double), X)
    assert graph.unsupported == {"nstest::double": ("",)}
    assert graph["stem"].frozen
    assert re.fullmatch(
        r"netslim has no rule for nstest::double \(test_operators.py:\d+\)", graph["stem"].reason
    )
    assert sizes(graph) == {"body": 6}
    for text in (str(graph), graph.explain("stem")):
        assert "netslim.register_rule teaches netslim an operator" in text


def test_an_operator_that_only_changes_its_argument_freezes_it_too():
    def operator(x):
        bump(x)
        return x

    assert trace(Net(operator), X)["stem"].frozen


def test_a_namesake_of_a_known_operator_is_not_taken_for_it():
    """Taken for an addition, nstest::add would tie channel c to itself; it ties c to 7 - c."""

    def operator(x):
        return add(x, x)

    graph = trace(Net(operator), X)
    assert graph["stem"].frozen
    assert graph.unsupported == {"nstest::add": ("",)}

    @register_rule(add)
    def add_rule(recorder, func, out, x, y):
        labels = recorder.get(x)
        dims = dict(labels.dims)
        dims[1] = recorder.meet(dims[1][::-1], recorder.get(y).dims.get(1), "add")
        recorder.set(out, dims, labels.weight)

    graph, *_ = prove(Net(operator).eval(), X)
    assert sizes(graph) == {"stem": 4, "body": 6}
    first = next(s for s in graph["stem"].slices if s.tensor == "stem.weight")
    assert dict(zip(first.positions.tolist(), first.units.tolist(), strict=True)) == {
        **{c: c for c in range(4)},
        **{7 - c: c for c in range(4)},
    }
    assert "add" not in RULES


def test_a_pointwise_tag_and_parts_that_are_seen_need_no_rule():
    for operator in (torch.ops.nsparts.tagged, torch.ops.nsparts.twice):
        graph, *_ = prove(Net(operator).eval(), X)
        assert sizes(graph) == {"stem": 8, "body": 6}
        assert graph.unsupported == {}


def test_the_inside_of_an_autograd_function_is_seen():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return torch.where(x > 0, x, torch.zeros_like(x)) * weight[:, None, None]

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            return grad * weight[:, None, None], (grad * x.clamp(min=0)).sum((0, 2, 3))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(8))

        def forward(self, x):
            return Straight.apply(x, self.weight)

    graph, *_ = prove(Net(Scaled()).eval(), X)
    assert sizes(graph) == {"stem": 8, "body": 6}
    assert ("operator.weight", 0) in {(s.tensor, s.axis) for s in graph["stem"].slices}
    assert graph.unsupported == {}


# --- register_rule --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    ["nstest::double", double, torch.ops.nstest.double, torch.ops.nstest.double.default],
    ids=["name", "custom_op", "packet", "overload"],
)
def test_whatever_stands_for_an_operator_is_taken(op):
    assert register_rule(op, rules.pointwise) is rules.pointwise
    graph, *_ = prove(Net(double).eval(), X)
    assert sizes(graph) == {"stem": 8, "body": 6}
    assert graph.unsupported == {}


def test_ready_made_rules_fit_other_operators():
    for rule in (
        rules.spatial(2),
        rules.like("aten::avg_pool2d"),
        rules.like(torch.ops.aten.upsample_nearest2d),
    ):
        register_rule(halve, rule)
        graph, *_ = prove(Net(halve).eval(), X)
        assert sizes(graph) == {"stem": 8, "body": 6}
    register_rule(double, rules.same)
    assert sizes(prove(Net(double).eval(), X)[0]) == {"stem": 8, "body": 6}
    assert rules.like("aten::add") is rules.pointwise


def test_a_rule_can_freeze_and_couple_and_names_the_line_of_the_model():
    @register_rule(double)
    def freezing(recorder, func, out, x):
        labels = recorder.get(x)
        recorder.freeze(labels.dims.get(1), "double hates change")
        recorder.freeze(None, "nothing to hold")
        recorder.set(out, labels.dims, labels.weight)

    line = Net.__init__.__code__.co_firstlineno + 3
    graph = trace(Net(double), X)
    assert graph["stem"].reason == f"double hates change (test_operators.py:{line})"
    assert graph.unsupported == {}

    @register_rule(double)
    def coupling(recorder, func, out, x):
        labels = recorder.get(x)
        recorder.couple(labels.dims.get(1), "double looks at its neighbours")
        recorder.set(out, labels.dims, labels.weight)

    group = trace(Net(double), X)["stem"]
    assert (group.verdict, group.reason) == (
        "inexact",
        f"double looks at its neighbours (test_operators.py:{line})",
    )


@pytest.mark.parametrize("whose", ["of its input", "of its own input", "of a weight"])
def test_a_rule_that_writes_into_labels_breaks_off_and_the_others_keep_theirs(whose):
    def called(x):
        if whose == "of its own input":  # labels that are no weight's
            return double(x.flatten(1)).view_as(x)
        return double(x)

    op = Net(called)

    @register_rule(double)
    def writing(recorder, func, out, x):
        labels = recorder.get(x)
        vector = labels.dims[1]
        if whose == "of a weight":
            vector = recorder.get(op.body.weight).dims[0]
        vector.setflags(write=True)
        vector[:] = vector[::-1].copy()
        vector.setflags(write=False)
        recorder.set(out, labels.dims, labels.weight)

    graph = trace(op, X)
    assert "nstest::double" in graph.unsupported
    assert "the rule for nstest::double failed" in graph["stem"].reason
    assert graph["body"].prunable


def test_a_known_operator_can_be_given_another_rule():
    def operator(x):
        return torch.flip(x, (2,))

    assert sizes(trace(Net(operator), X)) == {"stem": 8, "body": 6}

    @register_rule("aten::flip")
    def frozen(recorder, func, out, x, dims):
        recorder.freeze(recorder.get(x).dims.get(1), "no flipping here")
        recorder.set(out, recorder.get(x).dims, weight=False)

    assert "no flipping here" in trace(Net(operator), X)["stem"].reason


def test_labels_are_what_the_documentation_says():
    seen = []

    @register_rule(double)
    def watching(recorder, func, out, x):
        seen.append((func, recorder.get(x), recorder.get(torch.zeros(3))))
        recorder.set(out, recorder.get(x).dims, recorder.get(x).weight)

    trace(Net(double), X)
    [(func, labels, constant)] = seen
    assert func is torch.ops.nstest.double.default
    assert list(labels.dims) == [1]
    assert (labels.dims[1].shape, labels.dims[1].dtype) == ((8,), np.int32)
    assert labels.weight is False
    assert (dict(constant.dims), constant.weight) == ({}, True)


# --- everything else sees it as the rule says -----------------------------------------------------


def test_what_it_costs_is_said_by_its_rule_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Project(4, 6), nn.Flatten(), nn.Linear(6, 2))
    untaught = counted_alike(model, X[:1, :, :1, :1])  # nobody knows that it multiplies
    assert (untaught["macs"], untaught["activations"]) == (12 + 12, 4 + 2)
    register_rule(project, project_rule)
    taught = counted_alike(model, X[:1, :, :1, :1])
    assert (taught["macs"], taught["activations"]) == (12 + 24 + 12, 4 + 6 + 2)
    rows = netslim.cost(model, X[:1, :, :1, :1]).by_module
    assert (rows["1"].params, rows["1"].macs, rows["1"].activations) == (24, 24, 6)

    @register_rule("aten::addmm")  # not at all what it does, but said, and so in both
    def free(recorder, func, out, *args):
        recorder.set(out, {}, weight=False)

    figures = counted_alike(model, X[:1, :, :1, :1])
    assert (figures["macs"], figures["activations"]) == (12 + 24, 4 + 6)


def test_a_layer_whose_channels_are_its_own_needs_no_selection():
    class Branch(nn.Module):
        """Its batch normalisation reads what the operator makes, which nothing else reads."""

        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.bn = nn.Conv2d(3, 4, 1), Project(4, 6), nn.BatchNorm2d(6)
            self.outer, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head((x + self.outer(self.bn(self.inner(x)).relu())).mean((2, 3)))

    register_rule(project, project_rule)
    assert sizes(trace(Branch(), X)) == {"stem": 4, "inner": 6}
    with pytest.raises(ArgumentError, match="there is nothing to do"):
        netslim.models.add_selection(Branch(), X)


def test_its_time_counts_among_the_layers_that_have_no_kernel():
    """Under the rule of a convolution it is still none that PyTorch could run alone."""

    @torch.library.custom_op("nstest::convolve", mutates_args=())
    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return -torch.nn.functional.conv2d(x, weight)

    def convolve_rule(recorder, func, out, x, weight):
        rules.convolution(
            recorder, func, out, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
        )

    register_rule(convolve, convolve_rule)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), Net(lambda x: convolve(x, torch.ones(8, 8, 1, 1))), nn.Conv2d(2, 2, 1)
    )
    model[1].stem, model[1].head = nn.Identity(), nn.Conv2d(6, 2, 1)
    model[1].forward = lambda x: model[1].head(model[1].body(model[1].operator(x)))
    graph, seen = trace(model, X), observe(model, X, lambda: None)
    kernels = kernels_of(graph, seen)
    assert [None if k is None else (k.depth, k.width) for k in kernels] == [
        (3, 8),
        None,
        (8, 6),
        (6, 2),
        (2, 2),
    ]
    for one in seen:
        one.seconds = 8.192 if one.operator == "nstest::convolve" else 1.0
    assert rate(graph, seen, kernels) == pytest.approx(1e3 * 8.192 / (2 * 64 * 64))


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "message"),
    [
        ("double", r"needs an operator \('namespace::name', .*\), got 'double'"),
        ("nstest::double.default", "leave out the overload"),
        (torch.relu, "got builtin_function_or_method relu"),
        (nn.ReLU, "got type ReLU"),
        (3, "got int"),
        ("aten::dubble", "there is no operator aten::dubble"),
        ("aten::linear", "takes aten::linear apart before a rule could see it"),
        (torch.ops.nsparts.twice, "takes nsparts::twice apart"),
    ],
)
def test_what_is_no_operator_is_refused(op, message):
    with pytest.raises((ArgumentError, TraceError), match=message):
        register_rule(op, rules.pointwise)


def test_an_operator_of_a_library_that_comes_later_is_taken():
    register_rule("nslater::thing", rules.same)
    assert "nslater::thing" in RULES


def test_ready_made_rules_refuse_what_they_do_not_know():
    with pytest.raises(
        ArgumentError, match=r"rule must be a Callable or None, got the str 'pointwise'"
    ):
        register_rule(double, "pointwise")
    with pytest.raises(TraceError, match="netslim has no rule for nstest::double"):
        rules.like(double)
    with pytest.raises(ArgumentError, match="spatial takes 1, 2 or 3 dimensions, got 4"):
        rules.spatial(4)


def giving(make):
    """A rule that gives its output, as the labels of dimension 1, what ``make`` makes of the right
    ones.
    """

    def rule(recorder, func, out, x):
        recorder.set(out, {1: make(recorder.get(x).dims[1])}, weight=False)

    return rule


def costing(*factors):
    def rule(recorder, func, out, x):
        recorder.cost("double", *factors)
        recorder.set(out, recorder.get(x).dims, weight=False)

    return rule


def calling(call):
    """A rule that is right, but for what ``call`` does with the recorder and the labels."""

    def rule(recorder, func, out, x):
        call(recorder, recorder.get(x))
        recorder.set(out, recorder.get(x).dims, weight=False)

    return rule


def forgetful(recorder, func, out, x):
    recorder.get(x)


def from_the_end(recorder, func, out, x):
    recorder.set(out, {-3: recorder.get(x).dims[1]}, weight=False)


def of_another_trace(labels):
    """As a rule that keeps what it was given would have them, when it runs again."""
    vector = labels.dims[1] + np.int32(10**6)
    vector.setflags(write=False)
    return vector


LENGTHS = "TypeError: dimension 1 of the output is given {}; labels are a 1-D NumPy array"
WRONG_VALUES = {
    "list": (giving(list), LENGTHS.format(".*")),
    "range": (giving(lambda v: range(1, 9)), LENGTHS.format(r"range\(1, 9\)")),
    "tensor": (giving(lambda v: torch.from_numpy(v.copy())), LENGTHS.format("Tensor")),
    "float": (giving(lambda v: v * 1.0), LENGTHS.format("a 1-D array of float64")),
    "matrix": (giving(lambda v: v[:, None]), LENGTHS.format("a 2-D array of int32")),
    "none": (giving(lambda v: None), LENGTHS.format("None")),
    "unknown": (giving(lambda v: v + 10**6), "ValueError: .* numbers that are nobody's labels"),
    "negative": (giving(lambda v: -v), "ValueError: .* numbers that are nobody's labels"),
    "somebody else's": (giving(lambda v: v + 8), "ValueError: .* labels that none of its inputs"),
    "too few": (
        giving(lambda v: v[:4]),
        r"ValueError: dimension 1 of the output, of shape \(2, 8, 6, 6\), is given 4 labels",
    ),
    "from the end": (from_the_end, r"ValueError: dimension -3 of the output, of shape .* 0"),
    "no dims": (
        calling(lambda rec, labels: rec.set(X, [1], weight=False)),
        r"TypeError: recorder.set takes \{dimension: labels\}, got \[1\]",
    ),
    "no weight": (
        calling(lambda rec, labels: rec.set(X, {}, weight=None)),
        "TypeError: recorder.set takes weight=True or False, got None",
    ),
    "no tensor": (
        calling(lambda rec, labels: rec.set("x", {}, weight=False)),
        "TypeError: recorder.set takes a tensor, got 'x'",
    ),
    "forgotten": (forgetful, "ValueError: the rule registered for nstest::double left its output"),
    "written": (calling(lambda rec, labels: labels.dims[1].fill(3)), "ValueError: .*read-only"),
    "replaced": (calling(lambda rec, labels: labels.dims.update({1: 3})), "AttributeError: .*"),
    "cost of a fraction": (costing(1, 1.5), "TypeError: recorder.cost takes whole .*, got 1.5"),
    "cost of a list": (costing([1, 2]), r"TypeError: recorder.cost takes .*, got \[1, 2\]"),
    "cost of a word": (costing("a"), "TypeError: recorder.cost takes .*, got 'a'"),
    "cost of a truth": (costing(True), "TypeError: recorder.cost takes .*, got True"),
    "cost of a tensor": (costing(torch.ones(2)), "TypeError: recorder.cost takes .*, got tensor"),
    "cost of fractions": (costing(np.ones(2)), "TypeError: recorder.cost is given a 1-D array of"),
    "cost below zero": (costing(-1), "ValueError: recorder.cost takes sizes, got -1"),
    "cost of nobody": (costing(np.array([10**6])), "ValueError: recorder.cost is given numbers"),
    "meets fewer": (
        calling(lambda rec, labels: rec.meet(labels.dims[1], labels.dims[1][:4], "half")),
        "ValueError: half: 8 labels cannot meet 4",
    ),
    "meets a list": (
        calling(lambda rec, labels: rec.meet(labels.dims[1], [1] * 8, "list")),
        "TypeError: recorder.meet is given",
    ),
    "meets what is nobody's and cannot be written to": (
        calling(lambda rec, labels: rec.meet(labels.dims[1], of_another_trace(labels), "another")),
        "ValueError: recorder.meet is given numbers that are nobody's labels",
    ),
    "meets a list that is itself": (
        calling(lambda rec, labels: [rec.meet(one, one, "itself") for one in [[1] * 8]]),
        "TypeError: recorder.meet is given",
    ),
    "freezes a float": (
        calling(lambda rec, labels: rec.freeze(labels.dims[1] * 1.0, "float")),
        "TypeError: recorder.freeze is given a 1-D array of float64",
    ),
    "couples a number": (
        calling(lambda rec, labels: rec.couple(8, "eight")),
        "TypeError: recorder.couple is given 8",
    ),
    "a list of roles": (
        calling(lambda rec, labels: rec.mark(labels, 1, [1])),
        r"ValueError: recorder.mark takes the role PRODUCER, .* got \[1\]",
    ),
    "no role": (
        calling(lambda rec, labels: rec.mark(labels, 1, "producer")),
        "ValueError: recorder.mark takes the role PRODUCER, .* got 'producer'",
    ),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_a_rule_that_says_what_cannot_be_is_named_and_the_trace_goes_on(case):
    class Inside(nn.Module):
        def forward(self, x):
            return double(x)

    rule, said = WRONG_VALUES[case]
    register_rule(double, rule)
    model = Net(Inside()).eval()
    graph, *_ = prove(model, X)
    assert graph.unsupported == {"nstest::double": ("operator",)}
    assert sizes(graph) == {"body": 6}
    assert re.match(
        f"the rule for nstest::double failed in operator with {said}", graph["stem"].reason
    )
    if case not in ("forgotten", "somebody else's"):
        assert re.search(r" at test_operators.py:\d+ \(", graph["stem"].reason)
    assert counted_alike(model, X)["macs"] == 2 * (36 * (27 * 8 + 8 * 6) + 12)
    assert type(model.stem.out_channels) is int


# --- rules that fail ------------------------------------------------------------------------------


def without_arguments(recorder, func):
    raise AssertionError("never reached")


def half_done(recorder, func, out, x):
    recorder.cost("half", 1000, recorder.get(x).dims[1])
    recorder.set(out, {}, weight=False)
    raise KeyError("the other half,\nwhich is long")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (half_done, r"with KeyError: 'the other half,\\nwhich is long' at test_operators.py:\d+"),
        (
            without_arguments,
            r"with TypeError: without_arguments\(\) takes 2 positional arguments but 4 were "
            r"given at ",
        ),
        (rules.linear, r"with TypeError: .* at register.py:\d+"),
    ],
)
def test_a_rule_that_fails_freezes_what_it_touches_and_the_trace_goes_on(rule, said):
    class Inside(nn.Module):
        def forward(self, x):
            return double(x)

    register_rule(double, rule)
    model = Net(Inside()).eval()
    graph, *_ = prove(model, X)
    assert graph.unsupported == {"nstest::double": ("operator",)}
    assert sizes(graph) == {"body": 6}
    reason = graph["stem"].reason
    assert re.fullmatch(
        rf"the rule for nstest::double failed in operator {said}.* \(test_operators.py:\d+\)",
        reason,
    )
    assert reason in graph.frozen.values()
    for text in (str(graph), graph.explain("stem")):
        assert reason in text
        assert "netslim.register_rule teaches netslim an operator" in text
    assert counted_alike(model, X)["macs"] == 2 * (36 * (27 * 8 + 8 * 6) + 12)


@pytest.mark.parametrize("inplace", [False, True])
def test_so_it_is_with_our_own_rules(monkeypatch, inplace):
    def broken(recorder, func, out, *args, **kwargs):
        recorder.set(out, {}, weight=True)
        raise IndexError("list index out of range")

    name = "relu_" if inplace else "relu"
    monkeypatch.setitem(RULES, name, broken)
    model = Net(nn.Sequential(nn.Identity(), nn.ReLU(inplace))).eval()
    model.body, model.head = (
        nn.Sequential(nn.Conv2d(8, 6, 1), nn.Sigmoid(), nn.Conv2d(6, 5, 1)),
        nn.Linear(5, 2),
    )
    graph = trace(model, X)
    assert graph.unsupported == {name: ("", "operator.1") if not inplace else ("operator.1",)}
    assert sizes(graph) == {"body.0": 6} if not inplace else {"body.0": 6, "body.2": 5}
    assert graph["stem"].reason.startswith(
        f"the rule for {name} failed in operator.1 with IndexError: list index "
    )
    counted_alike(model, X)


def test_a_rule_that_fails_where_no_channel_is_touched_is_listed_too(monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError

    monkeypatch.setitem(RULES, "flip", broken)

    class Flipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(nn.Identity())

        def forward(self, x):
            return self.net(x.flip(3))

    graph, *_ = prove(Flipped().eval(), X)
    assert graph.unsupported == {"flip": ("",)}
    assert sizes(graph) == {"net.stem": 8, "net.body": 6}


def test_what_a_rule_raises_on_purpose_reaches_its_author():
    """A `TraceError` is a message with a remedy, in words of the rule; a frozen group would hide
    it.
    """

    @register_rule(double)
    def refusing(recorder, func, out, x):
        raise TraceError("double needs an even number of channels: give the stem one more")

    for verb in (trace, netslim.cost):
        with pytest.raises(
            TraceError, match=r"^double needs an even number of channels: give the stem one more$"
        ):
            verb(Net(double), X)


def test_what_the_model_raises_is_no_matter_of_rules():
    def operator(x):
        raise KeyError("of the model")

    message = r"the model does not run on these example inputs .*KeyError: 'of the model'"
    for verb in (trace, netslim.cost):
        with pytest.raises(TraceError, match=message):
            verb(Net(operator), X)
