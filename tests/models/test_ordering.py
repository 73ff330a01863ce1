"""Export of detectors: near ties may exchange rows, and nothing else may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim.errors import ArgumentError, ExportError
from netslim.models.export import _check_names
from netslim.models.ordering import _assigned
from netslim.models.parity import compare, run

NAMES = ("logits", "boxes")
IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Detector(nn.Module):
    """As DETR with two stages: the best of 16 places become queries, which attend to each other.

    The scores of two places each are equal, up to `noise`.
    """

    def __init__(self, best: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.best = best
        self.encode, self.attend = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.score, self.classes = nn.Linear(8, 1), nn.Linear(8, 5)
        self.boxes = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
        self.register_buffer("noise", torch.arange(16) * 1e-7)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        places = self.encode(x).relu().flatten(2).transpose(1, 2)
        scores = self.score(places)[..., 0]
        index = (scores + scores.flip(1) + self.noise).topk(self.best).indices
        queries = places.gather(1, index[..., None].expand(-1, -1, places.shape[-1]))
        weights = (self.attend(queries) @ queries.transpose(1, 2)).softmax(-1)
        queries = queries + weights @ queries
        return {"logits": self.classes(queries), "boxes": self.boxes(queries).sigmoid()}


def rounding_otherwise(best: int = 6) -> Detector:
    model = Detector(best).eval()
    model.noise.copy_(torch.arange(16).flip(0) * 1e-7)
    return model


def proved(file: Callable[[Tensor], list[Tensor]], best: int = 6, **options: object) -> float:
    model = Detector(best).eval()
    with torch.no_grad():
        return compare(model, file, IMAGES, dynamic=True, names=NAMES, **options)[0]  # type: ignore[arg-type]


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    return list(run(model, x))


def test_near_ties_may_exchange_rows() -> None:
    other = rounding_otherwise()
    with torch.no_grad():
        ours, theirs = run(Detector().eval(), IMAGES), run(other, IMAGES)
    assert (ours[0] - theirs[0]).abs().max() > 0.05
    assert proved(lambda x: outputs(other, x)) < 1e-5


def swapped(number: int) -> Callable[[Tensor], list[Tensor]]:
    """Tied rows change places in one output alone."""

    def file(x: Tensor) -> list[Tensor]:
        found = outputs(Detector().eval(), x)
        found[number] = found[number][:, [1, 0, 3, 2, 5, 4]]
        return found

    return file


def all_moved(order: list[int]) -> Callable[[Tensor], list[Tensor]]:
    return lambda x: [one[:, order] for one in outputs(Detector().eval(), x)]


def one_off(x: Tensor) -> list[Tensor]:
    found = outputs(rounding_otherwise(), x)
    found[1][0, 3, 2] += 0.01
    return found


@pytest.mark.parametrize(
    "file",
    [
        swapped(0),
        swapped(1),
        all_moved([2, 3, 0, 1, 4, 5]),
        all_moved([0, 0, 2, 3, 4, 5]),
        all_moved([5, 4, 3, 2, 1, 0]),
        one_off,
    ],
    ids=["logits", "boxes", "unsorted", "twice", "reversed", "a box"],
)
def test_nothing_else_may_differ(file: Callable[[Tensor], list[Tensor]]) -> None:
    with pytest.raises(
        ExportError, match="also in any order of its rows that near ties leave open"
    ):
        proved(file)


def test_a_tie_about_the_last_row_says_nothing() -> None:
    other = rounding_otherwise(best=5)
    with pytest.raises(ExportError, match="a near tie decides which rows there are: try example"):
        proved(lambda x: outputs(other, x), best=5)


def test_inputs_that_say_nothing_are_drawn_again() -> None:
    """The example is of one colour, so that all places are tied; random ones are not."""
    other, model = rounding_otherwise(), Detector().eval()
    with torch.no_grad():
        flat = torch.zeros(1, 3, 4, 4)
        assert compare(model, lambda x: outputs(other, x), flat, True)[0] < 1e-5


def test_a_tolerance_for_each_output() -> None:
    def file(x: Tensor) -> list[Tensor]:
        logits, boxes = outputs(Detector().eval(), x)
        return [logits, boxes * 1.01]

    with pytest.raises(
        ExportError, match=r"'boxes' deviates by 1.0e-02 of its largest entry, and 1"
    ):
        proved(file)
    with pytest.raises(ExportError, match="'boxes'"):
        proved(file, tolerance={"logits": 0.1})
    assert proved(file, tolerance={"boxes": 0.1}) == pytest.approx(0.01, rel=1e-3)


def test_a_cut_detector_in_onnx_runtime(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = Detector().eval()
    small = netslim.slim(model, IMAGES, criterion="l1", budget=netslim.Budget(cut_channels=0.3))
    file, single = tmp_path / "detector.onnx", {"boxes": 1e-5, "logits": 1e-5}
    assert netslim.export(small, IMAGES, file, tolerance=single).deviation < 1e-5
    with pytest.raises(ArgumentError, match="the output 'box'; did you mean 'boxes'"):
        _check_names({"box": 0.1}, NAMES)


def test_rows_are_assigned_once_each() -> None:
    assert _assigned([[0, 1], [0], [1, 2]]) == [1, 0, 2]
    assert _assigned([[0, 1], [0], [1]]) is None
    assert sorted(_assigned([list(range(400))] * 400) or ()) == list(range(400))


class Sorted(nn.Module):
    """Unbatched, ordered by sort, and the first five handed on: two ties of two each."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.noise = torch.arange(12) * 1e-8 * (-1) ** last

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keys = torch.tensor([9, 1, 8, 9, 1, 7, 7, 0, 1, 2, 3, 1]) * 1e-1 + self.noise
        index = keys.sort(descending=True).indices[:5]
        return keys[index], x[index]


def test_sorted_and_cut_off() -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    model, other = Sorted(last=False), Sorted(last=True)
    assert not torch.allclose(model(x)[1], other(x)[1])
    assert compare(model, lambda given: list(other(given)), x, dynamic=False)[0] < 1e-5
    with pytest.raises(ExportError, match="'output_1' deviates"):
        compare(model, lambda given: [other(given)[0], other(given)[1].flip(0)], x, dynamic=False)
