"""A network over sound, in one dimension: which chord is played, from 0.1 s of the wave itself.

python examples/audio_network.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import netslim

RATE, LENGTH = 8000, 800  # samples a second, samples
CHORDS = {"major": (0, 4, 7), "minor": (0, 3, 7), "diminished": (0, 3, 6), "augmented": (0, 4, 8)}


def batch(count: int) -> tuple[Tensor, Tensor]:
    """Waves (B, 1, 800) of chords over any root, each tone with overtones, and which they are."""
    labels = torch.randint(len(CHORDS), (count,))
    steps = torch.tensor(list(CHORDS.values()))[labels]
    tones = 220 * 2 ** ((torch.randint(12, (count, 1)) + steps) / 12)
    time = torch.arange(LENGTH) / RATE
    waves = torch.zeros(count, LENGTH)
    for overtone in (1, 2, 3):
        angle = 2 * torch.pi * overtone * tones[..., None] * time + torch.rand(count, 3, 1) * 6.3
        waves += (angle.sin() / overtone).sum(1)
    waves = waves / waves.abs().amax(1, keepdim=True) + 0.05 * torch.randn(count, LENGTH)
    return waves[:, None], labels


def network() -> nn.Module:
    def block(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv1d(inputs, outputs, size, stride, bias=False)
        return [conv, nn.BatchNorm1d(outputs), nn.ReLU()]

    layers = [*block(1, 64, 256, 16), *block(64, 64, 3, 1), *block(64, 64, 3, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, len(CHORDS)))


def train(model: nn.Module, steps: int, strength: float = 0.0) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    if strength:
        slimming = netslim.NetworkSlimming(model, strength, penalty="proximal")
        slimming.attach(optimizer)
    model.train()
    for _ in range(steps):
        waves, labels = batch(64)
        optimizer.zero_grad()
        cross_entropy(model(waves), labels).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    torch.manual_seed(1)
    waves, labels = batch(500)
    return (model.eval()(waves).argmax(1) == labels).float().mean().item()


def main(steps: int = 200) -> None:
    torch.manual_seed(0)
    model, example = network(), batch(1)[0]
    train(model, steps, strength=0.3)
    before = accuracy(model)

    half = netslim.Budget(cut_macs=0.5)
    small = netslim.slim(model, example, budget=half, criterion="bn_scale")
    train(small, steps)

    macs = [netslim.cost(one, example).macs for one in (model, small)]
    print(f"{macs[0]} -> {macs[1]} multiply-accumulates")
    print(f"accuracy {before:.3f}, cut and fine-tuned {accuracy(small):.3f}")


if __name__ == "__main__":
    main()
