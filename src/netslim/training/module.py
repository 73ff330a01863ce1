"""The Lightning module: any classifier, one training stage.

What happens in an epoch, and who does it::

    seed torch from (seed, stage, epoch)                   Journal.on_train_epoch_start
    for images, labels in loader:                          the loader's order depends on (seed, epoch) alone
        loss = cross entropy                               Classifier.training_step
        loss.backward()
        gradient of scales += strength * sign(scale)       NetworkSlimming, a hook of the optimizer
        optimizer.step(); schedule.step()
    evaluate on the validation split                       Classifier.validation_step
    write last.ckpt, then metrics.csv                      Journal.on_train_epoch_end
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from netslim.sparsity.slimming import NetworkSlimming
from netslim.training.schedule import factor
from netslim.training.schema import Train


class Tally(nn.Module):
    """Running mean loss and accuracy of the batches seen since `reset`; nothing waits for the device."""

    total: Tensor
    penalty: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)
        self.register_buffer("total", torch.zeros((), dtype=torch.float64), persistent=False)
        self.register_buffer("penalty", torch.zeros((), dtype=torch.float64), persistent=False)
        self.count = 0

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor, penalty: Tensor | None = None) -> None:
        """Take in a batch: logits (B, classes), labels (B,), its mean loss and the penalty at this step."""
        self.accuracy.update(logits, labels)
        self.total += loss.detach() * len(labels)
        if penalty is not None:
            self.penalty += penalty.detach() * len(labels)
        self.count += len(labels)

    def reset(self) -> None:
        """Forget everything."""
        self.accuracy.reset()
        self.total.zero_()
        self.penalty.zero_()
        self.count = 0

    def means(self) -> tuple[float, float, float]:
        """Loss, accuracy (0..1) and penalty, each the mean over the images seen."""
        count = max(1, self.count)
        return float(self.total) / count, round(float(self.accuracy.compute()), 7), float(self.penalty) / count


class Classifier(pl.LightningModule):
    """Trains `network` as a stage says.

    Args:
        network: images (B, C, H, W) to logits (B, classes).
        stage: what to do.
        classes: number of classes.
        steps_per_epoch: batches in an epoch.
        penalised: whether the stage's sparsity, if any, acts; False for a baseline.
    """

    def __init__(
        self, network: nn.Module, stage: Train, classes: int, steps_per_epoch: int, penalised: bool = True
    ) -> None:
        super().__init__()
        self.network = network
        self.stage = stage
        self.steps_per_epoch = steps_per_epoch
        self.slimming: NetworkSlimming | None = None
        if stage.sparsity is not None and penalised:
            self.slimming = NetworkSlimming(network, strength=stage.sparsity.strength)
        self.train_tally, self.validation_tally = Tally(classes), Tally(classes)
        self.recent: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        penalty = self.slimming.penalty() if self.slimming is not None else None
        self.train_tally.add(logits.detach(), labels, loss, penalty)
        self.recent.append(loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        logits = self.network(images)
        self.validation_tally.add(logits, labels, F.cross_entropy(logits, labels))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.stage.optimizer
        optimizer = SGD(
            self.network.parameters(),
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
        if self.slimming is not None:
            self.slimming.attach(optimizer)
        schedule = LambdaLR(optimizer, lambda step: self.rate(step) / options.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over the whole stage."""
        stage = self.stage
        return stage.optimizer.lr * factor(stage.schedule, step, stage.epochs, self.steps_per_epoch)

    def non_finite(self) -> int | None:
        """How many steps ago the first loss that is not finite appeared since the last call (1: the latest), if any."""
        losses, self.recent = self.recent, []
        if not losses:
            return None
        bad = (~torch.stack(losses).isfinite()).nonzero()
        return len(losses) - int(bad[0]) if len(bad) else None
