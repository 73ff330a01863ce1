"""Lightning: sparse training by a callback, then the cut, then the same module goes on with it.

python examples/lightning_trainer.py
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

import netslim
from netslim.integrations.lightning import SparseTraining

pictures, classes = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
data = TensorDataset(x, torch.tensor(classes))
train, test = random_split(data, [0.75, 0.25], torch.Generator().manual_seed(0))


class Digits(pl.LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def trainer(epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=list(callbacks),
        **quiet,
    )


def main(epochs: int = 5) -> None:
    pl.seed_everything(0, verbose=False)
    model = Digits(netslim.zoo.vgg(layers=[16, 16, "M", 32, 32], in_channels=1))
    loader, judge = DataLoader(train, 64, shuffle=True), DataLoader(test, len(test))

    sparse = SparseTraining(lambda module: netslim.NetworkSlimming(module.network, 1e-3))
    trainer(epochs, sparse).fit(model, loader)
    print(f"{sparse.method.share_near_zero():.0%} of the scales are near zero")
    before = trainer(1).test(model, judge, verbose=False)[0]["accuracy"]

    half = netslim.Budget(cut_macs=0.5)
    small = netslim.slim(model.network, x[:1], budget=half, criterion="bn_scale")
    macs = [netslim.cost(one, x[:1]).macs for one in (model.network, small)]
    model.network = small  # optimizers are made anew by the next fit
    trainer(epochs).fit(model, loader)

    after = trainer(1).test(model, judge, verbose=False)[0]["accuracy"]
    print(f"{macs[0]} -> {macs[1]} multiply-accumulates")
    print(f"accuracy {before:.3f}, cut and fine-tuned {after:.3f}")


if __name__ == "__main__":
    main()
