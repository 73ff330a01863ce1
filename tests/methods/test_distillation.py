"""A teacher beside any loss: by hand, for outputs in containers, and for layers within."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim.errors import ArgumentError
from netslim.methods import Distillation, softened

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Detector(nn.Module):
    """Gives losses while it trains, and boxes afterwards; its head runs once for each size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.ModuleDict({"boxes": nn.Conv2d(8, 4, 1), "kind": nn.Conv2d(8, 2, 1)})

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Any:
        found = self.body(x)
        outputs = [self.head["boxes"](one) for one in (found, found[..., ::2, ::2])]
        kinds = self.head["kind"](found)
        if self.training:
            assert wanted is not None or not self.training
            return {"box": sum((one - 1).square().mean() for one in outputs), "kind": kinds.mean()}
        return outputs[0].flatten(2)


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 3))


def test_softened_by_hand():
    """Logits (0, 2 ln 3) at T = 2 are (1/4, 3/4) for the teacher, and (0, 0) (1/2, 1/2)."""
    wanted = torch.tensor([[0.0, 2 * math.log(3)]])
    divergence = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert softened(torch.zeros(1, 2), wanted, 2.0) == pytest.approx(4 * divergence)
    maps = wanted[:, :, None, None].expand(1, 2, 3, 5)
    assert softened(torch.zeros(1, 2, 3, 5), maps, 2.0) == pytest.approx(4 * divergence)


def test_the_teachers_part_joins_any_loss():
    student = classifier()
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher[3].bias += torch.tensor([1.0, 0.0, 0.0])
    distillation = Distillation(teacher, student.eval(), weight=0.25, temperature=2.0)
    outputs = student(X)
    loss = distillation(torch.tensor(10.0), X, outputs)
    assert loss.item() == pytest.approx(
        7.5 + 0.25 * softened(outputs, teacher.eval()(X), 2.0).item()
    )
    loss.backward()
    assert student[0].weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_is_left_as_it_is():
    student = classifier()
    teacher = copy.deepcopy(student).train()
    teacher[1].eval()
    before = copy.deepcopy(teacher.state_dict())
    Distillation(teacher, student)(torch.tensor(0.0), {"input": X}, student(X))
    assert [module.training for module in teacher] == [True, False, True, True]
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())


def test_squares_are_shares_of_what_the_teacher_says():
    student = nn.Identity()
    teacher = nn.Linear(2, 2, bias=False)
    nn.init.constant_(teacher.weight, 1.0)
    x = torch.tensor([[1.0, 3.0]])  # the teacher says (4, 4): squares of 9 and 1 beside 16
    distillation = Distillation(teacher, student, weight=1.0, distance="squared")
    assert distillation(torch.tensor(9.0), x, {"a": student(x)}) == pytest.approx(5 / 16)


def test_a_cut_detector_learns_from_the_heads_of_the_uncut_one():
    torch.manual_seed(0)
    teacher = Detector().eval()
    student = netslim.slim(teacher, X, budget=netslim.Budget(cut_channels=0.5), criterion="l1")
    student.train()
    distillation = Distillation(teacher, student, weight=1.0, distance="squared", layers=["head.*"])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        loss = distillation(sum(student(X, X).values()), X)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    distillation.remove()
    assert not student._forward_pre_hooks
    assert not any(layer._forward_hooks for layer in student.modules())


def test_what_cannot_be_compared_is_said():
    teacher = classifier().eval()
    small = netslim.slim(teacher, X, budget=netslim.Budget(cut_channels=0.5), criterion="l1")
    with pytest.raises(ArgumentError, match=r"no module '9' in common"):
        Distillation(teacher, small, layers=["9"])
    distillation = Distillation(teacher, small, layers=["0"])
    small(X)
    with pytest.raises(ArgumentError, match=r"^0: the student's .*\(2, 4, 6, 6\).*were not cut"):
        distillation(torch.tensor(0.0), X)
    with pytest.raises(
        ArgumentError, match=r"the outputs: the student's tensors have the shapes none, and"
    ):
        Distillation(teacher, small)(torch.tensor(0.0), X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, "weight, the teacher's share, must be 0 to 1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"distance": "square"}, "unknown distance 'square'; did you mean 'squared'"),
    ],
)
def test_options_that_are_wrong_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        Distillation(classifier(), classifier(), **options)
