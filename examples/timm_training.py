"""timm: its factory, data mixing, optimizer, schedule and weight average, and a cut in between.

python examples/timm_training.py
"""

from __future__ import annotations

import timm
import torch
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, accuracy

import netslim

pictures, classes = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
x = torch.nn.functional.interpolate(x, scale_factor=4)
y = torch.tensor(classes)
SPLIT = len(x) * 3 // 4


def train(model: torch.nn.Module, epochs: int, rate: float, strength: float = 0.0) -> ModelEmaV3:
    """As timm's script does it; returns the weight average."""
    optimizer = create_optimizer_v2(model, opt="sgd", lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = CosineLRScheduler(optimizer, t_initial=epochs, warmup_t=1, warmup_lr_init=0.01)
    average = ModelEmaV3(model, decay=0.9)
    mix = Mixup(mixup_alpha=0.1, num_classes=10)
    if strength:
        netslim.NetworkSlimming(model, strength).attach(optimizer)
    model.train()
    for epoch in range(epochs):
        for part in torch.randperm(SPLIT).split(64)[:-1]:  # mixing asks for an even number
            images, targets = mix(x[part].clone(), y[part])
            optimizer.zero_grad()
            SoftTargetCrossEntropy()(model(images), targets).backward()
            optimizer.step()
            average.update(model)
        schedule.step(epoch + 1)
    return average


@torch.no_grad()
def top1(model: torch.nn.Module) -> float:
    return accuracy(model.eval()(x[SPLIT:]), y[SPLIT:])[0].item()


def main(epochs: int = 6) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "resnet10t", num_classes=10, in_chans=1, channels=(16, 16, 32, 32), stem_width=8
    )
    average = train(model, epochs, rate=0.1, strength=1e-3)
    before = top1(average.module)

    half = netslim.Budget(cut_macs=0.5)
    small = netslim.slim(average.module, x[:1], budget=half, batches=list(x[:256].split(64)))
    small.requires_grad_(True)  # which those of an average do not ask for
    after = top1(train(small, epochs, rate=0.05).module)

    macs = [netslim.cost(one, x[:1]).macs for one in (model, small)]
    print(f"{macs[0]} -> {macs[1]} multiply-accumulates")
    print(f"accuracy {before:.1f} %, cut and fine-tuned {after:.1f} %")


if __name__ == "__main__":
    main()
