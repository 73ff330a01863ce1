"""A U-Net of segmentation_models_pytorch: digits told from their background, half of it cut.

python examples/segmentation_unet.py
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import netslim

pictures, _ = load_digits(return_X_y=True)
digits = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
ink = torch.nn.functional.interpolate(digits, scale_factor=4)
SPLIT = len(ink) * 3 // 4


def batch(index: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy pictures (B, 3, 32, 32), and where the digit is (B, 1, 32, 32)."""
    ground = torch.rand(len(index), 3, 1, 1) * 0.5
    noise = 0.2 * torch.randn(len(index), 3, 32, 32)
    return ground + ink[index] * (1 - ground) + noise, (ink[index] > 0.4).float()


def train(model: torch.nn.Module, epochs: int, rate: float, strength: float = 0.0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    if strength:
        netslim.NetworkSlimming(model, strength).attach(optimizer)
    dice = smp.losses.DiceLoss("binary")
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(SPLIT).split(128):
            images, masks = batch(part)
            optimizer.zero_grad()
            dice(model(images), masks).backward()
            optimizer.step()


@torch.no_grad()
def overlap(model: torch.nn.Module) -> float:
    """Intersection over union on pictures that were not trained on."""
    torch.manual_seed(1)
    images, masks = batch(torch.arange(SPLIT, len(ink)))
    found = (model.eval()(images) > 0).long()
    return smp.metrics.iou_score(
        *smp.metrics.get_stats(found, masks.long(), mode="binary"), reduction="micro"
    ).item()


def main(epochs: int = 2) -> None:
    torch.manual_seed(0)
    model = smp.Unet("resnet18", 3, encoder_weights=None, decoder_channels=(32, 16, 8))
    train(model, epochs, rate=0.1, strength=1e-4)
    before = overlap(model)

    images, _ = batch(torch.arange(1))
    half = netslim.Budget(cut_macs=0.5)
    small = netslim.slim(model, images, budget=half, criterion="bn_scale")
    at_once = overlap(small)
    train(small, epochs, rate=0.05)

    macs = [netslim.cost(one, images).macs for one in (model, small)]
    print(f"{macs[0]} -> {macs[1]} multiply-accumulates")
    print(f"IoU {before:.3f}, after the cut {at_once:.3f}, fine-tuned {overlap(small):.3f}")


if __name__ == "__main__":
    main()
