"""Pictures of one's own, a folder for each class, and a network of torchvision.

python examples/image_folder.py FOLDER       # with FOLDER/train/CLASS/*.png and FOLDER/val/...
python examples/image_folder.py              # makes such a folder of handwritten digits first
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

import netslim


def make_folder(folder: Path) -> None:
    pictures, classes = load_digits(return_X_y=True)
    for index in range(len(pictures) // 2):
        split = ("val", "train")[index % 4 > 0]
        place = folder / split / str(classes[index])
        place.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pictures[index].reshape(8, 8) * 15.9).astype("uint8"))
        grey.save(place / f"{index}.png")


def train(model: nn.Module, loader: DataLoader, epochs: int, rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    right = [(model(images).argmax(1) == labels).float() for images, labels in loader]
    return torch.cat(right).mean().item()


def main(folder: str | None = None, epochs: int = 5) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        if folder is None:
            folder = made
            make_folder(Path(folder))
        ready = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
        pictures = ImageFolder(Path(folder) / "train", ready)
        loader = DataLoader(pictures, 50, shuffle=True)
        judge = DataLoader(ImageFolder(Path(folder) / "val", ready), 50)
        model = resnet18(num_classes=len(pictures.classes))
        train(model, loader, epochs, rate=0.02)
        before = accuracy(model, judge)
        images, half = next(iter(judge))[0], netslim.Budget(cut_macs=0.5)
        small = netslim.slim(model, images[:1], budget=half, criterion="l1")
        at_once = accuracy(small, judge)
        train(small, loader, epochs, rate=0.01)
        macs = [netslim.cost(one, images[:1]).macs for one in (model, small)]
        print(f"{macs[0]} -> {macs[1]} multiply-accumulates")
        print(f"accuracy {before:.3f}, {at_once:.3f} after the cut, {accuracy(small, judge):.3f}")
        netslim.save(small, Path(folder) / "small.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:2])
