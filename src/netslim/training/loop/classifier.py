"""The Lightning module: any classifier, one training stage.

What happens in an epoch, and who does it::

    seed torch from (seed, stage, epoch)              EpochRecord.on_train_epoch_start
    for images, labels in loader:                     its order depends on (seed, epoch) alone
                                                      from here to the optimizer's step in one
                                                      piece where steps are recorded, see `captured`
        loss = cross entropy, or beside a teacher's   Classifier.training_step
        loss.backward(), clip the gradients           Lightning
        gradients as the method wants them            a hook of the optimizer, see `adapters`
        optimizer.step(), schedule.step()
    the method's turn at the end of an epoch          Classifier.on_train_batch_end
    evaluate on the validation split                  Classifier.validation_step
    write last.ckpt, then metrics.csv                 EpochRecord.on_train_epoch_end

The method's turn comes with the last batch, before validation: so the network that is judged, and
maybe kept as the best, is the one with zeroed or cut filters. In float16 Lightning scales the loss
and divides the gradients by the scale again before they are clipped and before the optimizer's
hooks see them; bfloat16 has the range of float32, and needs none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import netslim.ranks as ranks
from netslim.methods.decay import parameter_groups
from netslim.methods.distillation import softened
from netslim.methods.hooks import parameters_of
from netslim.training.loop.adapters import Method
from netslim.training.loop.agreement import average_statistics, shapes, wrapped_anew
from netslim.training.loop.captured import Recorder, WholeStep
from netslim.training.loop.divergence import Watch, blind
from netslim.training.loop.synchronised import OverAllRanks
from netslim.training.recipe.schedule import factor
from netslim.training.recipe.schema import DistillOptions, OptimizerOptions, Train

TOP = 5


@dataclass(frozen=True)
class Means:
    """Means over the images a `Tally` has seen.

    Attributes:
        loss, penalty: of an image.
        images: how many.
        accuracy: share whose class came first, 0..1.
        top5: share whose class was among the first five, 0..1; None with five classes or fewer.
    """

    loss: float
    accuracy: float
    penalty: float
    top5: float | None
    images: int


class Tally(nn.Module):
    """Running means over the batches seen since `reset`; nothing waits for the device."""

    total: Tensor
    penalty: Tensor
    top1: Tensor
    top5: Tensor
    count: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.many = classes > TOP
        for name in ("top1", "top5", "count"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("total", torch.zeros((), dtype=torch.float64), persistent=False)
        self.register_buffer("penalty", torch.zeros((), dtype=torch.float64), persistent=False)

    def add(
        self, logits: Tensor, labels: Tensor, loss: Tensor, penalty: Tensor | None = None
    ) -> None:
        """Take in a batch: logits (B, classes), labels (B,), its mean loss, the step's penalty."""
        # Not `+=`, which would also assign, and a module looks at length at what it is given.
        self.top1.add_((logits.argmax(1) == labels).sum())
        if self.many:
            self.top5.add_((logits.topk(TOP, 1).indices == labels[:, None]).sum())
        self.total.add_(loss.detach() * len(labels))
        if penalty is not None:
            self.penalty.add_(penalty.detach() * len(labels))
        self.count.add_(len(labels))

    def reset(self) -> None:
        """Forget everything."""
        for buffer in self.buffers():
            buffer.zero_()

    def means(self) -> Means:
        """Of the images that this rank has seen since `reset`."""
        return _means(self._sums())

    def of_all_ranks(self, what: str) -> Means:
        """Of the images that all ranks have seen, each counted once; `what` is looked at."""
        return _means(ranks.summed(what, self._sums()))

    def _sums(self) -> dict[str, Tensor]:
        found = {"loss": self.total, "penalty": self.penalty, "images": self.count}
        found["top1"] = self.top1
        if self.many:
            found[f"top{TOP}"] = self.top5
        return found


def _means(sums: Mapping[str, Tensor]) -> Means:
    images = int(sums["images"])
    count = max(1, images)
    shares = {
        key: round(float(torch.tensor(int(sums[key])) / count), 7)
        for key in ("top1", f"top{TOP}")
        if key in sums
    }
    return Means(
        float(sums["loss"]) / count,
        shares["top1"],
        float(sums["penalty"]) / count,
        shares.get(f"top{TOP}"),
        images,
    )


class Classifier(pl.LightningModule):
    """Trains `network` as a stage says.

    Args:
        network: images (B, C, H, W) to logits (B, classes).
        stage: what to do.
        classes: number of classes.
        steps_per_epoch: batches in an epoch.
        method: of sparse training, or a mask that is held; None trains as ever.
        teacher: a network to learn from beside the labels, where the stage asks for it.
    """

    def __init__(
        self,
        network: nn.Module,
        stage: Train,
        classes: int,
        steps_per_epoch: int,
        method: Method | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.stage = stage
        self.steps_per_epoch = steps_per_epoch
        self.method = method
        # In a list, so that the teacher is neither trained nor saved with the network.
        self.teachers = [] if teacher is None else [teacher.eval().requires_grad_(False)]
        self.train_tally, self.validation_tally = Tally(classes), Tally(classes)
        # What trains: the network, or what torch.compile has made of it; in a list, so that names
        # in checkpoints are the network's own, and cuts and hooks meet the network itself.
        self.computing: list[Callable[[Tensor], Tensor]] = [network]
        self.recent: list[Tensor] = []
        self.watch = Watch(blind(max(2, classes), stage.distill), steps_per_epoch)
        self.weight: Callable[[int], float] = lambda number: 1.0  # of a batch, see `Loader.weight`
        self.sync_batchnorm = False
        self.checked = sys.maxsize  # batches of the validation split that are this rank's own
        self.fused = False  # whether one kernel moves all weights, see `settle`
        self.recorder: Recorder | None = None  # of whole steps, where they are recorded
        self.unrecorded: Callable[[str], None] = lambda why: None  # told why they are not
        # What a training batch is made of, and how: an image of it where the loader has made it.
        self.batch: Callable[..., tuple[Tensor, Tensor]] = lambda images, labels: (images, labels)
        self.whole: WholeStep | None = None
        self._inputs: tuple[Tensor, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes some forty times a step in which hook it is: that is neither a parameter
        nor a module, and need not be looked at as if it were.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def compile_network(self) -> None:
        """Train by what `torch.compile` makes of the network as it is now.

        Nothing compiled before is used again, and every size of a batch gets code of its own: so
        each epoch is computed by the same code, whether the stage was begun in this process or not.
        """
        torch.compiler.reset()
        self.computing = [torch.compile(self.network, dynamic=False)]

    def on_fit_start(self) -> None:
        for teacher in self.teachers:
            teacher.to(self.device)

    def on_train_start(self) -> None:
        optimizer = self._optimizer()
        settle(optimizer, self.device, self.fused)
        if self.recorder is not None:
            state = partial(self._changed_by_steps, optimizer)
            self.whole = WholeStep(self._whole_step, state, self.recorder, self.unrecorded)

    def on_train_epoch_start(self) -> None:
        if self.whole is not None:  # the network may have been cut since
            self.whole.look_again()

    def on_train_end(self) -> None:
        if self.whole is not None:
            self.whole.release()

    def training_step(self, batch: tuple[Tensor, ...], number: int) -> Tensor | None:
        if self.whole is not None:
            self._inputs = batch  # for `optimizer_step`, where no autocast of Lightning's is around
            return None
        images, labels = batch
        loss = self._loss(images, labels)
        self.recent.append(loss.detach())
        weight = self.weight(number)
        if weight != 1:
            return loss * weight
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        if self.whole is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        optimizer_closure()
        self.recent.append(self.whole(*self._inputs).clone())

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        if self.whole is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    @torch.enable_grad()
    def _whole_step(self, *inputs: Tensor) -> Tensor:
        """What Lightning does from a batch to the weights behind it, on one device."""
        optimizer = self._optimizer()
        images, labels = self.batch(*inputs)
        with self.trainer.precision_plugin.train_step_context():
            loss = self._loss(images, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.stage.clip:
            nn.utils.clip_grad_norm_(parameters_of(optimizer), self.stage.clip)
        optimizer.step()
        return loss.detach()

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def _changed_by_steps(self, optimizer: Optimizer) -> list[list[Tensor]]:
        kept = [value for state in optimizer.state.values() for value in state.values()]
        return [
            list(self.network.parameters()),
            list(self.network.buffers()),
            [value for value in kept if isinstance(value, Tensor)],
            list(self.train_tally.buffers()),
        ]

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of a batch, which is counted."""
        with self._together():
            logits = self.computing[0](images)
        loss = F.cross_entropy(logits, labels)
        for teacher in self.teachers:
            assert self.stage.distill is not None
            with torch.no_grad():
                wanted = teacher(images)
            loss = distilled(loss, logits, wanted, self.stage.distill)
        penalty = self.method.penalty() if self.method is not None else None
        self.train_tally.add(logits.detach(), labels, loss, penalty)
        return loss

    def _together(self) -> AbstractContextManager[Any]:
        """Where batch norm is to look at the images of all ranks."""
        if self.sync_batchnorm and ranks.count() > 1:
            return OverAllRanks()
        return nullcontext()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 < self.steps_per_epoch:
            return
        average_statistics(self.network)
        if self.method is not None:
            before = shapes(self.network)
            with wrapped_anew(self.trainer.strategy.model, self.network):
                self.method.end_epoch(last=self.current_epoch + 1 == self.stage.epochs)
            if self.computing[0] is not self.network and shapes(self.network) != before:
                self.compile_network()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Rates as on any device, for the run may go on on another one.
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group["lr"] = float(group["lr"])
        for state in checkpoint["lr_schedulers"]:
            state["_last_lr"] = list(map(float, state["_last_lr"]))
        if self.method is not None:
            checkpoint["method"] = self.method.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.method is not None:
            self.method.load_state_dict(checkpoint["method"])

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        images, labels = batch
        logits = self.network(images)
        if number >= self.checked:
            return  # another rank has counted it
        self.validation_tally.add(logits, labels, F.cross_entropy(logits, labels))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.stage.optimizer
        optimizer = optimizer_of(self.network, options)
        if self.method is not None:
            self.method.attach(optimizer)
        schedule = LambdaLR(optimizer, lambda step: self.rate(step) / options.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over the whole stage."""
        stage = self.stage
        return stage.optimizer.lr * factor(stage.schedule, step, stage.epochs, self.steps_per_epoch)

    def non_finite(self) -> int | None:
        """How many steps ago the first loss that is not finite came since the last call, if any.

        1 means the latest step. Losses are kept on the device, and looked at together: each look
        makes a GPU wait.
        """
        losses, self.recent = self.recent, []
        if not losses:
            return None
        seen = torch.stack(losses)
        self.watch.see(seen)
        bad = (~seen.isfinite()).nonzero()
        return len(losses) - int(bad[0]) if len(bad) else None


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adamw": AdamW}


def optimizer_of(network: nn.Module, options: OptimizerOptions) -> Optimizer:
    """The optimizer of a stage."""
    groups = parameter_groups(network, options.weight_decay, norm_decay=options.norm_decay)
    if options.name == "adamw":
        return AdamW(groups, options.lr, betas=(options.momentum, 0.999))
    return SGD(groups, options.lr, momentum=options.momentum, nesterov=options.nesterov)


def settle(optimizer: Optimizer, device: torch.device, fused: bool) -> None:
    """Have an optimizer, maybe from a checkpoint of another device, step as is best on this one.

    With `fused` one kernel moves all weights, at a rate that is a tensor: schedulers write it in
    place, and a CUDA graph follows; momentum has to lie as its weights do. Else rates are floats,
    and torch chooses.
    """
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["fused"] = fused or None
        group["lr"] = rate
        if fused:
            group["lr"] = torch.tensor(rate, dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = fused
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if key == "step":  # of AdamW, which counts where it computes
                state[key] = value.to(device if fused else "cpu")
            elif isinstance(value, Tensor) and fused and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter.detach()).copy_(value)


def distilled(loss: Tensor, logits: Tensor, wanted: Tensor, options: DistillOptions) -> Tensor:
    """The loss of the labels together with that of a teacher's softened answers, see `softened`.

    Args:
        loss: mean cross entropy with the labels.
        logits, wanted: (B, classes), the student's and the teacher's.
        options: temperature T and weight w: `(1 - w) * loss + w * T^2 * KL(teacher || student)`.
    """
    divergence = softened(logits, wanted, options.temperature)
    return (1 - options.weight) * loss + options.weight * divergence
