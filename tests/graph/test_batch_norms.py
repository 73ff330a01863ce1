"""Batch normalisations that run below the modes are told as what they would have run as."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netslim
from netslim.graph.tracing.batch_norms import BatchNorm
from netslim.graph.tracing.modes import Dispatch


def convolutions(norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    def layers(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3), norm(outputs), nn.ReLU()]

    return nn.Sequential(*layers(3, 8), *layers(8, 6), *layers(6, 4), nn.Conv2d(4, 2, 1))


class Functional(nn.Module):
    """Normalisations that are called as functions, of activations and of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.norm.running_mean, self.norm.running_var
        x = F.batch_norm(self.a(x), mean, var).relu()
        x = F.batch_norm(x, mean, var, bias=self.norm.bias, momentum=0.2, eps=1e-3)
        weight = F.batch_norm(self.b.weight, mean, var, self.norm.weight)
        weight = F.batch_norm(weight, mean, var, self.norm.weight)
        out: Tensor = self.c(F.conv2d(x, weight).mean((2, 3)))
        return out


class Around(nn.Module):
    """A normalisation within what changes how PyTorch runs it."""

    def __init__(self, around: Any) -> None:
        super().__init__()
        self.around, self.layers, self.last = around, convolutions(), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.layers[1](self.layers[0](x)))
        with self.around():
            x = self.layers[2](self.last(x))
        out: Tensor = self.layers[3:](x)
        return out


class Mapped(Functional):
    """One that `torch.vmap` takes each picture through by itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.norm(self.a(x)))
        x = torch.vmap(lambda one: self.norm(one[None])[0])(x)
        out: Tensor = self.c(self.b(x).mean((2, 3)))
        return out


NETWORKS: dict[str, Any] = {
    "usual": convolutions,
    "without weights": lambda: convolutions(lambda n: nn.BatchNorm2d(n, affine=False)),
    "of the batch": lambda: convolutions(lambda n: nn.BatchNorm2d(n, track_running_stats=False)),
    "cumulative": lambda: convolutions(lambda n: nn.BatchNorm2d(n, momentum=None)),
    "in double precision": lambda: convolutions().double(),
    "functions": Functional,
    "in inference mode": lambda: Around(torch.inference_mode),
    "with gradients": lambda: Around(torch.enable_grad),
    "cast": lambda: Around(lambda: torch.autocast("cpu", torch.bfloat16)),
    "mapped": Mapped,
    "one for several": lambda: nn.Sequential(*[convolutions()[i] for i in (0, 1, 1, 1, 3)]),
}


def told(graph: netslim.ChannelGraph) -> str:
    return f"{graph.to_dict()} {graph.costs} {graph.outputs} {graph.lifetimes} {graph.inventory}"


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_told_is_what_is_told_of_the_operators(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    x = torch.randn(2, 3, 12, 12).to(next(model.parameters()).dtype)
    below = []
    run = Dispatch.batch_norm
    monkeypatch.setattr(Dispatch, "batch_norm", lambda *args: below.append(1) or run(*args))
    fast = netslim.trace(model, x)
    assert bool(below) is (name != "of the batch")
    monkeypatch.setattr(BatchNorm, "kind", lambda self: None)
    assert told(fast) == told(netslim.trace(model, x))


def test_a_wrong_call_is_told_in_the_words_of_pytorch() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x)  # type: ignore[call-arg]

    with pytest.raises(netslim.errors.TraceError, match=r"batch_norm\(\) missing 2 required"):
        netslim.trace(Wrong(), torch.ones(1, 3, 8, 8))
