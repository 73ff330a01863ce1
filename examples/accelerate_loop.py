"""Accelerate: a network that shrinks while it trains, with gradients accumulated.

accelerate launch examples/accelerate_loop.py          # or python examples/accelerate_loop.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import netslim

pictures, classes = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(classes)
SPLIT, STEPS = len(x) * 3 // 4, 3


def main(epochs: int = 6) -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = netslim.zoo.vgg(layers=[16, 16, "M", 32, 32], in_channels=1)
    whole = netslim.cost(model, x[:1]).macs
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(TensorDataset(x[:SPLIT], y[:SPLIT]), 32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    # Their wrappers may be given as they are; momentum is cut with the weights.
    slimming = netslim.NetworkSlimming(model, strength=1e-3).attach(optimizer)
    gradual = netslim.GradualPruning(
        model,
        x[:1],
        netslim.Budget(cut_macs=0.5),
        steps=STEPS,
        criterion="bn_scale",
        optimizer=optimizer,
    )
    for epoch in range(epochs):
        for images, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(cross_entropy(model(images), labels))
                optimizer.step()
                optimizer.zero_grad()
        if epoch >= epochs - 1 - STEPS and gradual.step() is not None:
            left, near = gradual.macs_left, slimming.share_near_zero()
            print(f"epoch {epoch}: {left:.0%} of the MACs left, {near:.0%} of the scales near zero")
    while not gradual.done:
        gradual.step()

    small = accelerator.unwrap_model(model).eval()
    right = small(x[SPLIT:].to(accelerator.device)).argmax(1).cpu() == y[SPLIT:]
    print(f"{whole} -> {netslim.cost(small, x[:1]).macs} multiply-accumulates")
    print(f"accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
