"""A loop of one's own: train sparsely, cut half, fine-tune beside the uncut network.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import netslim

pictures, classes = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(classes)
train, test = torch.arange(len(x)).tensor_split([len(x) * 3 // 4])


def network() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 16), *block(16, 16), nn.MaxPool2d(2), *block(16, 32)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def batches(epochs: int) -> list[Tensor]:
    return [part for _ in range(epochs) for part in train[torch.randperm(len(train))].split(64)]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return (model.eval()(x[test]).argmax(1) == y[test]).float().mean().item()


def main(epochs: int = 6) -> None:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    slimming = netslim.NetworkSlimming(model, strength=1e-3).attach(optimizer)  # all it takes
    for part in batches(epochs):
        optimizer.zero_grad()
        cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    slimming.detach()
    before = accuracy(model)

    half = netslim.Budget(cut_macs=0.5)
    small = netslim.slim(model, x[:1], budget=half, criterion="bn_scale")
    at_once = accuracy(small)

    beside = netslim.methods.Distillation(model, small, weight=0.5)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.02, momentum=0.9)
    small.train()
    for part in batches(epochs):
        outputs = small(x[part])
        loss = beside(cross_entropy(outputs, y[part]), x[part], outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    macs = [netslim.cost(one, x[:1]).macs for one in (model, small)]
    print(f"{macs[0]} -> {macs[1]} multiply-accumulates")
    print(f"accuracy {before:.3f}, after the cut {at_once:.3f}, fine-tuned {accuracy(small):.3f}")


if __name__ == "__main__":
    main()
