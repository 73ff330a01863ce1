"""Integers that forward does not read follow a cut, or are told: what other methods do is right."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import cut_half
from netslim import PruningPlan, load, prune, prune_, save, score, select, slim, trace
from netslim.surgery.proof.silencing import randomise

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Deployable(nn.Module):
    """`deploy` computes what `forward` does, by a size that `forward` does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat(self.a(x).chunk(2, 1), 1)).mean((2, 3))

    def other(self, x: Tensor) -> Tensor:
        half = self.width // 2
        return self.b(torch.cat(self.a(x).split((half, half), 1), 1)).mean((2, 3))


class Halves(nn.Module):
    """A C2f block as in detectors: the size of each half, which only exporting reads."""

    def __init__(self, cin: int = 3, out: int = 20) -> None:
        super().__init__()
        self.c = out // 2
        self.cv1, self.m = nn.Conv2d(cin, 2 * self.c, 1), nn.Conv2d(self.c, self.c, 3, padding=1)
        self.cv2 = nn.Conv2d(3 * self.c, 7, 1)

    def _joined(self, y: list[Tensor]) -> Tensor:
        return self.cv2(torch.cat([*y, self.m(y[-1]).relu()], 1)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self._joined(list(self.cv1(x).chunk(2, 1)))

    def other(self, x: Tensor) -> Tensor:
        return self._joined(list(self.cv1(x).split((self.c, self.c), 1)))


class Branches(nn.Module):
    """A block of MobileOne: branches that are added, and become one convolution."""

    def __init__(self, in_chs: int, out_chs: int, groups: int = 1) -> None:
        super().__init__()
        self.in_chs, self.out_chs, self.groups, self.kernel_size = in_chs, out_chs, groups, 3
        self.three = nn.Conv2d(in_chs, out_chs, 3, padding=1, groups=groups, bias=False)
        self.one = nn.Conv2d(in_chs, out_chs, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.three(x) + self.one(x)).relu()

    def fused(self) -> nn.Sequential:
        whole = nn.Conv2d(
            self.in_chs, self.out_chs, self.kernel_size, padding=1, groups=self.groups, bias=False
        ).double()
        with torch.no_grad():
            whole.weight.copy_(self.three.weight + F.pad(self.one.weight, (1, 1, 1, 1)))
        return nn.Sequential(whole, nn.ReLU())


class Mobile(nn.Module):
    """Depthwise, with two outputs for each input, and pointwise blocks of equal widths."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            Branches(3, 8), Branches(8, 8, 8), Branches(8, 16, 8), Branches(16, 8), Branches(8, 8)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))

    def other(self, x: Tensor) -> Tensor:
        blocks = nn.Sequential(*(block.fused() for block in self.blocks))
        return self.head(blocks(x).mean((2, 3)))


NETWORKS = [Deployable, Halves, Mobile]


@pytest.mark.parametrize("network", NETWORKS)
def test_what_other_methods_compute_is_right_after_the_cut(network: type, tmp_path) -> None:
    model = randomise(network()).double().eval()
    torch.testing.assert_close(model.other(X), model(X))
    plan = cut_half(model, X)[1]
    assert plan.patches
    assert not plan.notes
    small = prune(model, plan)
    torch.testing.assert_close(small.other(X), small(X))
    fresh = load(network().double(), save(small, tmp_path / "small.safetensors")).eval()
    torch.testing.assert_close(fresh.other(X), small(X))
    assert PruningPlan.from_json(plan.to_json()) == plan
    twice = prune(small, cut_half(small, X, 1)[1])
    torch.testing.assert_close(twice.other(X), twice(X))
    prune_(model, plan)
    torch.testing.assert_close(model.other(X), small(X))


class TwoReadings(nn.Module):
    """Both layers are 8 wide, and lose different numbers of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())

    def other(self) -> int:
        return self.width


def test_several_readings_are_told_and_not_guessed(caplog: pytest.LogCaptureFixture) -> None:
    model = TwoReadings().eval()
    graph = trace(model, X.float())
    plan = select(graph, score(graph, model, "l1"), per_group={"a": 2, "b": 4})
    assert not plan.patches
    assert "width (8, now 4 or 6)" in plan.notes[-1]
    assert prune(model, plan).width == 8
    assert not caplog.text  # whoever holds the plan is told by its notes
    slim(model, X.float(), per_group={"a": 2, "b": 4})
    assert caplog.text.count("width (8, now 4 or 6)") == 1


class OtherMeanings(nn.Module):
    """Numbers that happen to equal a width: none of them is one."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.patch_size, self.num_classes, self.best = 8, 8, 2, 8
        self.gain = 8
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) * self.gain_width

    @property
    def gain_width(self) -> int:
        return self.gain

    def other(self) -> tuple[int, ...]:
        return self.num_heads, self.patch_size, self.best


def test_what_is_no_width_stays() -> None:
    model = OtherMeanings().eval()
    before = {k: v for k, v in vars(copy.deepcopy(model)).items() if type(v) is int}
    plan = cut_half(model, X.float())[1]
    small = prune(model, plan)
    assert not plan.patches
    assert {k: v for k, v in vars(small).items() if type(v) is int} == before
    torch.testing.assert_close(small(X.float()), prune_(model, plan)(X.float()))


@dataclass
class Config:
    hidden_sizes: list[int]
    channels: int


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config([5, 8], 3)
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def test_widths_in_a_configuration_are_told() -> None:
    model = Configured().eval()
    plan = cut_half(model, X.float())[1]
    assert "config.hidden_sizes[1] (8, now 4)" in plan.notes[-1]
    assert "channels" not in plan.notes[-1].rpartition(":")[2]
    assert prune(model, plan).config.hidden_sizes == [5, 8]


def test_the_graph_shows_what_no_forward_reads() -> None:
    graph = trace(Deployable().eval(), X.float())
    assert "width (8)" in str(graph)
    assert graph.to_dict()["unread_sizes"] == [{"module": "", "attribute": "width", "value": 8}]
