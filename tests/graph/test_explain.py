"""What the graph tells: the table, look-ups by name, explanations, plain data."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import Chain, DenseBlock, Residual, conv
from netslim import trace
from netslim.errors import ArgumentError

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Everything(nn.Module):
    """One of each: a shared and a chunked group, a flatten, mixing, a constant, an unknown
    operator, a spare layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.stem, self.block = conv(3, 6), conv(6, 6)
        self.halves, self.join = nn.Conv2d(6, 8, 1), nn.Conv2d(4, 5, 1)
        self.mixed, self.late = nn.Conv2d(5, 7, 1), nn.Conv2d(7, 4, 1)
        self.fixed = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6 * 64, 2)
        self.aux = nn.Sequential(nn.Conv2d(6, 9, 1), nn.ReLU())
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x - self.mean)
        x = x + self.block(x)
        left, right = self.halves(x).chunk(2, 1)
        x = self.mixed(self.join(left * right))
        x = self.fixed(self.late(x.softmax(1)))
        x = self.relu(x) + torch.arange(6.0).view(1, 6, 1, 1)
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def graph():
    return trace(Everything(), X)


def line(text: str, start: str) -> str:
    """The one line that starts like this, without its indent."""
    [found] = [one.strip() for one in text.splitlines() if one.strip().startswith(start)]
    return found


# --- look-ups -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("stem.0", "stem.0"),  # a group, and the layer that makes it
        ("block.0", "stem.0"),  # another layer that makes it
        ("block.0.weight", "stem.0"),  # a tensor: what it makes comes before what it reads
        ("block.1", "stem.0"),  # batch normalisation
        ("block.1.running_mean", "stem.0"),
        ("block", "stem.0"),  # a container that makes one group
        ("halves.bias", "halves"),
        ("head", "head"),
    ],
)
def test_a_group_is_found_by_whatever_belongs_to_it(graph, name, group):
    assert graph[name].name == group


def test_a_layer_that_only_reads_is_found_too():
    class Score(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.score = conv(3, 6), nn.Conv2d(6, 1, 1)

        def forward(self, x):
            return self.score(self.features(x))

    assert trace(Score(), X)["score"].name == "features.0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stm.0", r"no group, module or tensor is named 'stm\.0'; did you mean 'stem\.0'"),
        (
            "running_mean",
            r"named 'running_mean'; did you mean 'stem\.1\.running_mean' or "
            r"'block\.1\.running_mean'\?",
        ),
        ("zzz", r"named 'zzz'; print\(graph\), or netslim inspect, lists"),
        ("relu", r"'relu' is in no group of channels; graph\.explain\('relu'\) says why"),
        ("aux", r"'aux' is in no group of channels"),
        ("aux.0.weight", r"'aux\.0\.weight' is in no group of channels"),
        ("", r"the layers inside '' make 7 groups: 'stem\.0', .* and 2 more; ask for one of them"),
        (0, r"no group, module or tensor is named 0"),
    ],
)
def test_other_names_are_refused_with_the_nearest(graph, name, message):
    with pytest.raises(ArgumentError, match=message):
        graph[name]


def test_a_layer_of_several_groups_asks_which(graph):
    dense = trace(DenseBlock(), X)
    with pytest.raises(
        ArgumentError,
        match=r"'norm3' takes part in 3 groups: 'stem' \(6\), 'conv1' \(4\) and 'conv2'",
    ):
        dense["norm3"]
    with pytest.raises(ArgumentError, match="did you mean 'norm3'"):
        dense.explain("norm33")


# --- explanations ---------------------------------------------------------------------------------


def test_a_tensor_is_explained_axis_by_axis(graph):
    text = graph.explain("halves.weight")
    assert text.splitlines()[:4] == [
        "halves.weight: 8 x 6 x 1 x 1",
        "  Axis 0 makes the 4 channels of group halves, 2 entries each.",
        "  Axis 1 reads the 6 channels of group stem.0.",
        "Group halves: 4 channels.",
    ]
    assert "They can be cut exactly: removing some equals silencing them." in text
    assert (
        line(text, "Made by stem")
        == "Made by stem.0 and block.0, which therefore lose the same ones."
    )
    assert line(text, "Scaled by") == "Scaled by stem.1 and block.1."
    assert line(text, "Read by block") == "Read by block.0 and halves."
    pair = "halves.weight (axis 0) and halves.bias (axis 0)"
    assert line(text, "With each") == f"With each channel go 2 entries of {pair}."


def test_shares_are_those_of_the_graph():
    """Chain: 6 channels hold 3*6*9+6 + 4*6... of its parameters; counted by hand."""
    text = trace(Chain(), X).explain("first.0")
    held = (
        6 * 27 + 6 + 4 * 6 - 2 * 6 + 5 * 6 * 9
    )  # weight, bias, batch norm's weight and bias, the next one's inputs
    total = held + 5 + 2 * 5 + 4 * 80 + 4
    assert f"They hold {held / total:.1%} of the parameters" in text


def test_a_flatten_says_how_many_entries_go_with_a_channel():
    text = trace(Chain(), X).explain("head")
    assert (
        line(text, "Axis 1")
        == "Axis 1 of weight reads the 5 channels of group second.0, 16 entries each."
    )
    assert line(text, "With each") == "With each channel go 16 entries of head.weight (axis 1)."


def test_a_normalisation_is_explained_in_one_line(graph):
    text = graph.explain("block.1")
    assert text.startswith(
        "block.1 (BatchNorm2d): weight 6, bias 6, running_mean 6, running_var 6\n"
    )
    assert (
        line(text, "weight")
        == "weight, bias, running_mean and running_var go with the 6 channels of group stem.0."
    )


def test_what_stays_says_why_and_where(graph):
    start = Everything.forward.__code__.co_firstlineno
    stem = graph.explain("stem.0")
    reason = f"it meets a fixed size in sub (test_explain.py:{start + 1})."
    assert line(stem, "Axis 1") == f"Axis 1 of weight stays: {reason}"
    assert line(stem, "Axes 2") == "Axes 2 and 3 of weight run over the kernel, which is never cut."
    assert line(graph.explain("mean"), "Axis 1") == f"Axis 1 stays: {reason}"
    fixed = graph.explain("fixed")
    assert (
        line(fixed, "They stay")
        == f"They stay: it meets a fixed size in add (test_explain.py:{start + 6})."
    )
    assert (
        line(graph.explain("head"), "They stay: it is")
        == "They stay: it is an output of the network."
    )


def test_what_mixes_says_what_it_takes(graph):
    text = graph.explain("mixed")
    line_number = Everything.forward.__code__.co_firstlineno + 5
    assert line(text, "They can be cut only") == (
        "They can be cut only with allow_inexact=True, because that changes the values of "
        f"those that remain: softmax over the channels (test_explain.py:{line_number})."
    )


def test_every_reason_is_told():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            x = self.a(x) + torch.arange(6.0).view(1, 6, 1, 1)
            return self.b(x.softmax(1)), x

    group = trace(Twice(), X)["a"]
    assert len(group.reasons) == 3
    assert group.reasons[0] == group.reason
    lines = str(group).splitlines()
    assert lines[1] == "  They stay:"
    assert [re.sub(r" \(.*", "", one) for one in lines[2:5]] == [
        "    - it meets a fixed size in add",
        "    - it is an output of the network, output[1]",
        "    - softmax over the channels",
    ]


class Used(nn.Module):
    """A layer whose channels are used in some way, and read by another one."""

    def __init__(self, use):
        super().__init__()
        self.a, self.b, self.use = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), use
        self.register_buffer("order", torch.arange(8).flip(0))

    def forward(self, x):
        h = self.a(x)
        return self.use(self, h, self.b(h))


RANKED = "x.amax(1), x.mean(1) or a ranking of places would be followed"
ALONE = "the last, x[:, -1], would hold itself alone"
ORDER = "a list that is a buffer of the module, x[:, self.order], would be numbered anew"
IN_TORCH = "functions of PyTorch in its place would be followed"
INSTEAD = {
    "topk": (lambda s, h, y: y * h.topk(1, 1).values, RANKED),
    "amax": (lambda s, h, y: y * h.amax(1, True), None),
    "mean": (lambda s, h, y: y * h.mean(1, True), None),
    "ranked places": (lambda s, h, y: y * h.flatten(2).sort(2).values.mean(), None),
    "third": (lambda s, h, y: y * h[:, 3].unsqueeze(1), ALONE),
    "one in a list": (lambda s, h, y: y * h[:, [3]], ALONE),
    "one by index_select": (lambda s, h, y: y * h.index_select(1, torch.tensor([3])), ALONE),
    "last": (lambda s, h, y: y * h[:, -1].unsqueeze(1), None),
    "several": (lambda s, h, y: y * h[:, [1, 3]].mean(1, True), ORDER),
    "by a buffer": (lambda s, h, y: y * h[:, s.order].mean(1, True), None),
    "numpy": (lambda s, h, y: y * torch.from_numpy(h.numpy()).mean(), IN_TORCH),
    "torch": (lambda s, h, y: y * h.mean(), None),
}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_stays_says_what_would_follow_and_that_follows(name):
    use, instead = INSTEAD[name]
    graph = trace(Used(use).eval(), X)
    if instead is None:
        assert any(not g.frozen for g in graph.groups if g.name.startswith("a"))
    else:
        assert re.search(rf"; {re.escape(instead)} \(test_explain\.py:\d+\)", graph.explain("a"))


def test_what_never_ran_says_so(graph):
    assert graph.explain("aux.0.weight").splitlines()[1] == (
        "  Axes 0 and 1 stay: not used when the model ran on the example inputs."
    )
    assert graph.explain("aux").splitlines() == [
        "aux (Sequential) takes part in no group.",
        "  Not used when the model ran: aux.0.weight and aux.0.bias.",
    ]
    assert graph.inventory.unused == ("aux.0.weight", "aux.0.bias")


def test_what_was_used_is_not_called_unused():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("order", torch.tensor([3, 1, 2, 0]))
            self.table = nn.Parameter(torch.randn(4, 6))
            self.conv = nn.Conv2d(3, 6, 1)

        def forward(self, x):
            return self.conv(x).mean((2, 3)) @ self.table[self.order].t()

    graph = trace(Table(), X)
    assert graph.inventory.unused == ()
    assert "stays: its numbers pick what they are no channels of (" in graph.explain("order")
    assert "picked by their numbers" in graph.explain("table")


def test_a_container_lists_its_groups(graph):
    assert trace(Residual(), X).explain("").splitlines() == [
        "The model (Residual) takes part in 3 groups.",
        "  stem.0   6 channels, exact",
        "  inner.0  5 channels, exact",
        "  head     4 channels, stays: it is an output of the network",
    ]
    assert (
        graph.explain("relu")
        == "relu (ReLU) holds no parameters or buffers: there is nothing to cut in it."
    )


def test_a_layer_of_many_groups_gives_a_line_to_each():
    text = trace(DenseBlock(), X).explain("head")
    assert (
        line(text, "Axis 1")
        == "Axis 1 of weight reads channels of 3 groups: stem (6), conv1 (4) and conv2 (4)."
    )
    assert "Group head: 3 channels.\n  They stay: it is an output of the network." in text
    assert text.splitlines()[-4:] == [
        "The other groups are:",
        "  stem   6 channels, exact",
        "  conv1  4 channels, exact",
        "  conv2  4 channels, exact",
    ]


def test_part_of_an_axis_can_stay():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = conv(3, 4), conv(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head((self.block(x) + F.pad(x, (0, 0, 0, 0, 2, 2))).mean((2, 3)))

    graph = trace(Padded(), X)
    text = graph.explain("block.1.weight")
    assert line(text, "Axis 0 goes").startswith(
        "Axis 0 goes with channels of 2 groups: stem.0 (4) and "
    )
    [frozen] = [g for g in graph.groups if g.frozen and g.name.startswith("block.0")]
    assert frozen.size == 4
    assert "constant channels in add" in line(graph.explain(frozen.name), "They stay")


def test_shared_and_parametrised_weights_are_found_by_every_name():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 1))
            self.a, self.b = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.b.weight = self.a.weight
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.b(self.a(self.stem(x)).relu()).relu().mean((2, 3)))

    graph = trace(Shared(), X)
    assert "weight is shared: it is a.weight." in graph.explain("b")
    assert graph.explain("b.weight").startswith(
        "b.weight: 6 x 6 x 1 x 1\n  b.weight is shared: it is a.weight."
    )
    assert graph["b"] is graph["a"]
    assert graph["stem"] is graph["stem.parametrizations.weight.original1"]
    assert "parametrizations.weight.original1" in graph.explain("stem")


def test_patched_sizes_are_told():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head, self.width = nn.Conv2d(3, 6, 1), nn.Linear(6, 2), 6

        def forward(self, x):
            return self.head(self.stem(x).relu().mean((2, 3)).view(-1, self.width))

    graph = trace(Sized(), X)
    assert "The model.width (6) follows their number." in graph.explain("stem")
    assert graph.to_dict()["size_rules"] == [
        {"module": "", "attribute": "width", "value": 6, "groups": ["stem"]}
    ]


# --- the table and plain data ---------------------------------------------------------------------


def test_the_table_puts_what_stays_last_under_its_reason(graph):
    rows = str(graph).splitlines()
    order = [row.split()[0] for row in rows if row and row.split()[0] in graph._index]
    assert order == ["stem.0", "halves", "join", "late", "mixed", "fixed", "head"]
    assert rows[0].split() == [
        "group",
        "channels",
        "params",
        "MACs",
        "activations",
        "together",
        "with",
    ]
    assert re.search(r"^stem\.0 +6 +[\d.]+% +[\d.]+% +[\d.]+%  block\.0$", rows[1])
    assert rows[2].endswith("  2 rows each")
    mixed = next(i for i, row in enumerate(rows) if row.startswith("mixed"))
    assert rows[mixed - 1].startswith(
        "inexact, cut only with allow_inexact=True: softmax over the channels ("
    )
    assert "stays: it is an output of the network:" in rows
    assert not any(row != row.rstrip() for row in rows)


def test_the_summary_counts_what_can_go():
    """A chain whose middle group is mixed: 3x3 convolutions 3 -> 6 -> 5 and a head 5 -> 4, no
    biases.
    """

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 5, 3, bias=False)
            self.head = nn.Linear(5, 4, bias=False)

        def forward(self, x):
            return self.head(self.b(self.a(x).softmax(1)).relu().mean((2, 3)))

    graph = trace(Mixed(), X)
    a, b, head = 162, 270, 20
    assert graph.params() == a + b + head
    assert graph.prunable_share() == pytest.approx((b + head) / (a + b + head))
    assert graph.prunable_share(allow_inexact=True) == 1
    held = int(1000 * (b + head) / (a + b + head)) / 10
    assert (
        f"1 of 3 groups can be cut exactly: 5 of 15 channels, which hold {held}% of the parameters "
        "(100.0% with allow_inexact=True)." in str(graph)
    )


def test_wide_groups_have_separators_and_nothing_is_rounded_up_to_all():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4096), nn.Linear(4096, 1)

        def forward(self, x):
            return self.b(self.a(x).relu())

    text = str(trace(Wide(), torch.randn(1, 3)))
    assert "  4,096  99.9%" in text.replace("100.0%", "99.9%")
    assert "4,096 of 4,096 channels, which hold 99.9% of the parameters." in text


def test_representations_are_short(graph):
    assert repr(graph["stem.0"]) == "<ChannelGroup 'stem.0': 6 channels, exact>"
    assert repr(graph["mixed"]) == "<ChannelGroup 'mixed': 7 channels, inexact>"
    assert repr(graph) == f"<ChannelGraph of {graph.fingerprint}: 4 of 7 groups can be cut exactly>"


def test_plain_data_holds_every_axis(graph):
    data = json.loads(json.dumps(graph.to_dict()))
    axes = {(a["tensor"], a["axis"]): a for a in data["axes"]}
    assert set(axes) == set(graph.axis_sizes)
    for axis in axes.values():
        assert sum(part["entries"] for part in axis["parts"]) == axis["size"]
        assert all(part["reason"] for part in axis["parts"] if part["verdict"] != "exact")
    assert axes["halves.weight", 0]["parts"] == [
        {"entries": 8, "group": "halves", "role": "producer", "verdict": "exact", "reason": None}
    ]
    assert (
        axes["aux.0.weight", 0]["parts"][0]["reason"]
        == "not used when the model ran on the example inputs"
    )
    group = next(g for g in data["groups"] if g["name"] == "halves")
    assert group["tensors"][0] == {
        "tensor": "halves.weight",
        "axis": 0,
        "role": "producer",
        "entries_each": 2,
    }
    assert data["prunable_share"] == {
        "exact": graph.prunable_share(),
        "allow_inexact": graph.prunable_share(allow_inexact=True),
    }


def test_shares_agree_with_cutting_all_units(graph):
    for number, group in enumerate(graph.groups):
        none = {number: np.zeros(group.size, dtype=bool)}
        told = next(g for g in graph.to_dict()["groups"] if g["name"] == group.name)
        assert told["params_share"] == pytest.approx(1 - graph.params(none) / graph.params())
        assert told["macs_share"] == pytest.approx(1 - graph.macs(none) / graph.macs())
        assert told["activations_share"] == pytest.approx(
            1 - graph.activations(none) / graph.activations()
        )


def test_a_model_that_runs_elsewhere_is_forgotten(graph):
    """The graph keeps names and numbers alone: no tensor of the model."""
    for value in (*vars(graph).values(), *vars(graph.inventory).values()):
        assert not isinstance(value, (nn.Module, Tensor))
    assert all(isinstance(s, tuple) for s in graph.inventory.shapes.values())


def lanes(picture: str) -> dict[str, float]:
    """Title of a line on the picture -> how wide its last stroke is."""
    groups = re.findall(r"<title>(.+?)</title>(.+?)</g>", picture, flags=re.DOTALL)
    return {title: float(re.findall(r'stroke-width="(.+?)"', body)[-1]) for title, body in groups}


def test_the_picture_has_a_row_a_layer_and_a_line_a_group_as_wide_as_its_channels():
    graph = trace(Residual(), X)
    picture = graph.to_svg()
    widths = lanes(picture)
    assert [title.split(":")[0] for title in widths] == [group.name for group in graph.groups]
    stem = graph["stem.0"]
    assert widths[f"stem.0: {stem.size} channels, exact"] == max(widths.values()) == 13
    cut = graph.to_svg({"stem.0": stem.size // 2})
    assert lanes(cut)[f"stem.0: {stem.size // 2} of {stem.size} channels stay"] == 6.5
    assert re.findall(">([^<]+)</text>", picture) == [
        "stem.0: makes 6",
        "inner.0: reads 6, makes 5",
        "outer: reads 5, makes 6",
        "head: reads 6, makes 4",
    ]


def test_a_picture_of_what_cannot_be_is_refused():
    graph = trace(Chain(), X)
    name = graph.groups[0].name
    with pytest.raises(ArgumentError, match=f"'{name}', which has 0 to"):
        graph.to_svg({name: 1000})
    with pytest.raises(ArgumentError, match="there is no group 'nowhere'"):
        graph.to_svg({"nowhere": 1})
