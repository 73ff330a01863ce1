"""torchvision's detectors: RetinaNet cut in half, and taught by the uncut one while it is tuned.

Detectors return losses while they train, so there are no outputs to compare: what the head says of
each anchor is compared instead, `HEADS` below. It has the same shape before and after any cut.

    python examples/torchvision_detection.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet

import netslim

pictures, classes = load_digits(return_X_y=True)
digits = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
digits = nn.functional.interpolate(digits, scale_factor=3)
HEADS = ("head.classification_head", "head.regression_head")


def backbone() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    network = nn.Sequential(*layers)
    network.out_channels = 32  # which torchvision asks for
    return network


def batch(count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures of 64 x 64 with one digit each, and its box and class."""
    images, targets = [], []
    for index in torch.randint(len(digits), (count,)).tolist():
        left, top = torch.randint(0, 64 - 24, (2,)).tolist()
        image = torch.rand(3, 64, 64) * 0.2
        image[:, top : top + 24, left : left + 24] += digits[index]
        box = torch.tensor([[left, top, left + 24, top + 24]], dtype=torch.float32)
        images.append(image.clamp(max=1))
        targets.append({"boxes": box, "labels": torch.tensor([classes[index]])})
    return images, targets


def train(model: nn.Module, steps: int, teacher: nn.Module | None = None) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    if teacher is not None:
        beside = netslim.methods.Distillation(teacher, model, distance="squared", layers=HEADS)
    model.train()
    for _ in range(steps):
        images, targets = batch(8)
        loss = sum(model(images, targets).values())
        total = loss
        if teacher is not None:
            total = beside(loss, (images,))  # the teacher sees the images, and needs no boxes
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return loss.item()


def main(steps: int = 100) -> None:
    torch.manual_seed(0)
    anchors = AnchorGenerator(sizes=((24,),), aspect_ratios=((1.0,),))
    model = RetinaNet(backbone(), 10, min_size=64, max_size=64, anchor_generator=anchors)
    before = train(model, steps)
    inputs, half = (batch(1)[0],), netslim.Budget(cut_macs=0.5)
    small = netslim.slim(model.eval(), inputs, budget=half, criterion="l1")
    after = train(small, steps, teacher=model)
    macs = [netslim.cost(one.eval(), inputs).macs for one in (model, small)]
    print(f"{macs[0]} -> {macs[1]} multiply-accumulates")
    print(f"loss {before:.2f}, cut and fine-tuned {after:.2f}")


if __name__ == "__main__":
    main()
