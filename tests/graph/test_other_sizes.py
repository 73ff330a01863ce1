"""What holds for the size of the example inputs alone stays; nothing else is run or told twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import netslim

REASON = "depends on the input size"


class Places(nn.Module):
    """Two convolutions, of which ``mix`` does something to the first one's maps."""

    def __init__(self, mix: Callable[[Tensor], Tensor], channels: int = 16) -> None:
        super().__init__()
        self.mix = mix
        self.stem, self.b = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 1)
        self.out, self.head = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 2, 1)
        self.calls, self.seen = 0, []
        self.register_buffer("state", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x.shape[-1])
        self.state += 1
        print("running")
        warnings.warn("at every run", UserWarning, stacklevel=1)
        torch.rand(1)
        h = self.stem(x)
        return self.head(self.out(h + self.mix(self.b(h))).relu())


def _not_turned_back(h: Tensor) -> Tensor:
    n, c, height, width = h.shape
    return h.flatten(2).transpose(1, 2).reshape(n, c, height, width)


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "not turned back": _not_turned_back,
    "places first": lambda h: (
        h.reshape(len(h), h.shape[2] * h.shape[3], -1).transpose(1, 2).reshape(h.shape)
    ),
    "another layout": lambda h: h.permute(0, 2, 3, 1).reshape(h.shape),
    "in two steps": lambda h: h.permute(0, 2, 3, 1).flatten(1).reshape(h.shape),
    "transposed": lambda h: (h.flatten(2).transpose(1, 2).reshape(len(h), h.shape[1], -1))
    .reshape(h.shape),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:at every run")
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name in MIXES if name != "in two steps"])
def test_places_read_as_channels_stay(name: str, size: int) -> None:
    graph = netslim.trace(Places(MIXES[name]), torch.randn(1, 3, size, size))
    assert not graph["b"].prunable
    assert not graph["stem"].prunable


@pytest.mark.filterwarnings("ignore:at every run")
@pytest.mark.parametrize("size", [2, 3, 4])
def test_places_read_as_channels_in_two_steps(size: int) -> None:
    graph = netslim.trace(Places(MIXES["in two steps"]), torch.randn(1, 3, size, size))
    assert not graph["b"].prunable or graph["b"].size == 1


@pytest.mark.filterwarnings("ignore:at every run")
def test_the_reason_names_the_line() -> None:
    graph = netslim.trace(Places(MIXES["not turned back"]), torch.randn(1, 3, 2, 2))
    assert REASON in str(graph["b"].reason)
    assert "(test_other_sizes.py:" in str(graph["b"].reason)
    assert graph["out"].prunable


@pytest.mark.filterwarnings("ignore:at every run")
@pytest.mark.parametrize("name", MIXES)
def test_no_run_leaves_a_trace(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = Places(MIXES[name])
    torch.manual_seed(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        netslim.trace(model, torch.randn(1, 3, 4, 4))
    left = torch.get_rng_state()
    torch.manual_seed(3)
    torch.randn(1, 3, 4, 4)
    torch.rand(1)
    assert torch.equal(left, torch.get_rng_state())
    assert (model.calls, model.seen, model.state.tolist()) == (0, [], [0.0, 0.0])
    assert capsys.readouterr().out == "running\n"
    assert len(caught) == 1


class Counted(nn.Module):
    """Counts its runs where nothing puts it back."""

    runs: list[tuple[int, ...]]

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.conv, self.head = inner, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(tuple(x.shape))
        return self.head(self.inner(self.conv(x)))


RUNS: list[tuple[int, ...]] = []
HARMLESS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads": lambda h: h.reshape(len(h), 2, -1, *h.shape[2:]).flatten(1, 2),
    "shuffle": lambda h: nn.functional.channel_shuffle(h, 2),
    "tokens": lambda h: h.flatten(2).transpose(1, 2).transpose(1, 2).reshape(h.shape),
    "windows": lambda h: h.unflatten(2, (2, -1)).flatten(2, 3),
    "gate": lambda h: h * h.mean((2, 3)).view(len(h), -1, 1, 1).sigmoid(),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_mixes_nothing_runs_at_one_size(name: str) -> None:
    RUNS.clear()
    graph = netslim.trace(Counted(HARMLESS[name]), torch.randn(2, 3, 4, 4))
    assert {*RUNS} == {(2, 3, 4, 4)}
    assert graph["conv"].prunable


class OneSize(nn.Module):
    """Runs at one size alone, where all that is learnt holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        turned = h.flatten(2).transpose(1, 2).reshape(h.shape)
        return self.fc(self.b(h + turned).flatten(1))


def test_a_model_of_one_size_is_not_punished() -> None:
    graph = netslim.trace(OneSize(), torch.randn(1, 3, 2, 2))
    assert graph["a"].prunable
    assert graph["b"].prunable
