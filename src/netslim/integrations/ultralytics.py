"""YOLO and RT-DETR of the package ultralytics: sparse training, cut, fine-tuning in their trainer.

What their trainer does with a network, and where this module comes in::

    yolo.train(trainer=...)        makes a trainer, which builds the network anew from its YAML and
      trainer.get_model            copies what weights fit: a cut would be gone without a word
                                     <- `trainer_of` gives a trainer that goes on with the cut one
      trainer._setup_train         optimizer, loss scale, weight average (a copy), resumed state
      "on_train_start"               <- `SparseTraining` makes its method and attaches it
      unscale, clip, step, average   <- the method acts within the step of the optimizer
      "on_train_epoch_end"           <- methods with something to do at the end of an epoch
      validation, last.pt, best.pt of the weight average, pickled as a module: plain PyTorch, which
                                   needs no netslim where it is opened

Their package has the licence AGPL-3.0; docs/yolo.md says what that means for those who ship.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from netslim._support import checks_calls, is_whole
from netslim.errors import ArgumentError
from netslim.integrations.in_training import InTraining, Make, SparseCallback
from netslim.surgery.history import history

_EVENTS = ("on_train_start", "on_train_epoch_end", "on_train_end")


@checks_calls
class SparseTraining(SparseCallback):
    """Has every ``yolo.train`` from now on train sparsely, through the callbacks of its trainer.

    Args:
        make: takes the network that is trained, bare and on its device, and gives a method of
            netslim's that hooks an optimizer: ``partial(NetworkSlimming, strength=1e-3)``, or a
            function that traces it first, as `SoftFilterPruning` and `CentripetalSGD` ask for.
            Called when a training starts; a method's ``end_epoch()`` is called after each epoch.

    With several GPUs their trainer starts processes of its own, and each makes a method there; it
    is not in this process afterwards.

    Example::

        sparse = SparseTraining(partial(netslim.NetworkSlimming, strength=1e-3)).register(yolo)
        yolo.train(data="data.yaml", epochs=30, optimizer="SGD")
        print(sparse.method.share_near_zero())
        yolo = YOLO(yolo.trainer.last)  # their yolo.model is best.pt now, of an earlier epoch
    """

    def __init__(self, make: Make) -> None:
        self._in_training = InTraining(make)

    def register(self, yolo: Any) -> Self:
        """Act on the trainings of `yolo`, a ``YOLO`` or ``RTDETR``, from now on.

        Raises:
            ArgumentError: it does so already, or `yolo` is something else.
        """
        callbacks = _callbacks(yolo)
        if self._start in callbacks["on_train_start"]:
            raise ArgumentError(
                "this SparseTraining is registered with this model already; twice would double it"
            )
        for event, act in zip(_EVENTS, self._acts(), strict=True):
            callbacks[event].append(act)
        return self

    def remove(self, yolo: Any) -> None:
        """Act on the trainings of `yolo` no longer, as for fine-tuning.

        Raises:
            ArgumentError: it does not, or `yolo` is something else.
        """
        callbacks = _callbacks(yolo)
        if self._start not in callbacks["on_train_start"]:
            raise ArgumentError("this SparseTraining is not registered with this model")
        for event, act in zip(_EVENTS, self._acts(), strict=True):
            callbacks[event].remove(act)

    def _acts(self) -> tuple[Callable[[Any], None], ...]:
        return self._start, self._end_epoch, self._stop

    def _start(self, trainer: Any) -> None:
        self._in_training.start(trainer.model, [trainer.optimizer])

    def _end_epoch(self, trainer: Any) -> None:
        self._in_training.end_epoch()

    def _stop(self, trainer: Any) -> None:
        self._in_training.stop()


def _callbacks(yolo: Any) -> Mapping[str, list[Callable[[Any], None]]]:
    if not hasattr(yolo, "callbacks") or not hasattr(yolo, "task_map"):
        raise ArgumentError(
            f"this needs a model of ultralytics, such as YOLO('yolo11n.pt'), not a "
            f"{type(yolo).__name__}"
        )
    found: Mapping[str, list[Callable[[Any], None]]] = yolo.callbacks
    return found


@checks_calls
def images(
    yolo: Any, data: str | Path, *, size: int = 640, batch: int = 16, count: int = 10, seed: int = 0
) -> list[Tensor]:
    """Batches of training images, prepared as for validation, for all that looks at data.

    Args:
        yolo: a ``YOLO`` or ``RTDETR``; says the task, and where the images go.
        data: as for ``yolo.train``: a YAML file, or for classification a folder.
        size: of the images, in pixels, see ``imgsz`` there.
        batch: how many images in each batch.
        count: how many batches at most.
        seed: of the choice among the images.

    Returns:
        Tensors (B, channels, size, size), from 0 to 1, on the device of the network.

    Raises:
        ArgumentError: `yolo` is something else, or a number is not 1 or more.

    Example::

        batches = images(yolo, "data.yaml", size=320)
        small = netslim.slim(yolo.model, batches[0], budget=half, batches=batches)
    """
    _callbacks(yolo)
    for name, value in (("size", size), ("batch", batch), ("count", count)):
        if not (is_whole(value) and value >= 1):
            raise ArgumentError(f"{name} must be a whole number, 1 or more, got {value!r}")
    with tempfile.TemporaryDirectory() as folder:
        validator = _validator(yolo, data, size, Path(folder))
        dataset = validator.build_dataset(validator.data["train"])
        drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        chosen = torch.utils.data.Subset(dataset, drawn[: batch * count].tolist())
        collate = getattr(dataset, "collate_fn", None)
        loader = torch.utils.data.DataLoader(chosen, batch, collate_fn=collate)
        return [validator.preprocess(one)["img"] for one in islice(loader, count)]


def _validator(yolo: Any, data: str | Path, size: int, folder: Path) -> Any:
    """Their validator, as far as it is set up before it reads images."""
    from ultralytics.data.utils import check_cls_dataset, check_det_dataset

    options = {"task": yolo.task, "mode": "val", "data": str(data), "imgsz": size, "rect": False}
    validator = yolo.task_map[yolo.task]["validator"](save_dir=folder, args=options)
    check = check_det_dataset
    if yolo.task == "classify":
        check = check_cls_dataset
    validator.data = check(str(data))
    validator.device = next(yolo.model.parameters()).device
    validator.stride = int(max(yolo.model.stride))
    return validator


@checks_calls
def replace_network(yolo: Any, network: nn.Module) -> None:
    """Put a cut network in the place of ``yolo.model``, for all that `yolo` does from now on.

    ``yolo.val``, ``predict``, ``export``, ``save`` take it; to train it, see `trainer_of`.

    Args:
        yolo: a ``YOLO`` or ``RTDETR``.
        network: as `netslim.slim` or `netslim.prune` makes it of ``yolo.model``.

    Raises:
        ArgumentError: `network` is of another class than ``yolo.model``, or its batch normalisation
            is folded into its convolutions, so that it cannot be trained on.

    Example::

        replace_network(yolo, netslim.slim(yolo.model, batches[0], budget=half, batches=batches))
    """
    _callbacks(yolo)
    if type(network) is not type(yolo.model):
        raise ArgumentError(
            f"network is a {type(network).__name__}, and that of this model a "
            f"{type(yolo.model).__name__}: pass what was cut from yolo.model"
        )
    _refuse_folded(network)
    _mend_split(network)
    yolo.model, yolo.predictor = network, None
    # What their `load` notes, too: train() starts from yolo.model while there is a checkpoint.
    yolo.ckpt, yolo.ckpt_path = {"model": network}, None


def _refuse_folded(network: Any) -> None:
    if network.is_fused():
        raise ArgumentError(
            "batch normalisation is folded into the convolutions of this network, as val(), "
            "predict() and fuse() do with yolo.model: open its file anew, YOLO('best.pt'), and cut "
            "that"
        )


def _mend_split(network: nn.Module) -> None:
    """Bring up to date what only ``forward_split`` reads, which their export takes for forward."""
    for block in network.modules():
        if hasattr(type(block), "forward_split") and hasattr(block, "c"):
            halves: Any = block.cv1
            block.c = halves.conv.out_channels // 2


class _KeepsCut:
    """A trainer of theirs that goes on with a cut network, where they would build it anew."""

    data: Mapping[str, Any]

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        if weights is None or history(weights) is None:
            return super().get_model(cfg=cfg, weights=weights, verbose=verbose)  # type: ignore[misc]
        _refuse_folded(weights)
        for difference in _differences(weights.yaml, self.data):
            raise ArgumentError(
                f"{difference}, and the outputs of a cut network stay as they are: train the uncut "
                "network on this data, and cut it then"
            )
        _mend_split(weights)
        network = copy.deepcopy(weights)
        network.criterion = None  # it keeps the options of an earlier training
        return network.requires_grad_(True)


def _differences(layout: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    """Where data asks for other inputs or outputs than the network has."""
    for name, what in (("nc", "classes"), ("channels", "channels"), ("kpt_shape", "key points")):
        if name in layout and name in data and _plain(layout[name]) != _plain(data[name]):
            yield f"the network has {layout[name]} {what}, and the data {data[name]}"


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(value)
    return value


@cache
def _keeping(base: type[Any]) -> type[Any]:
    return type(base.__name__, (_KeepsCut, base), {})


@checks_calls
def trainer_of(yolo: Any) -> type[Any]:
    """Their trainer for the task of `yolo`, but it trains a cut network as it is.

    Without it ``yolo.train`` would build the network anew from its YAML, whose widths are those
    before the cut; netslim marks the YAML of what it cuts, so that this fails and does not pass
    unseen. Everything else is theirs: options, weight average, checkpoints, ``resume=True``.

    Args:
        yolo: a ``YOLO`` or ``RTDETR``, its network cut or not.

    Raises:
        ArgumentError: `yolo` is something else, or its cut network was not put in by
            `replace_network`; by the trainer, when it starts: the data has other classes, channels
            or key points than the cut network, or the network is folded.

    Example::

        yolo.train(trainer=trainer_of(yolo), data="data.yaml", epochs=30)
    """
    _callbacks(yolo)
    is_cut = isinstance(yolo.model, nn.Module) and history(yolo.model) is not None
    if is_cut and not yolo.ckpt:  # then their train() reads the YAML, and not yolo.model
        raise ArgumentError(
            "yolo.model is cut, and train() would not look at it: put it in by "
            "replace_network(yolo, network)"
        )
    return _keeping(yolo.task_map[yolo.task]["trainer"])


__all__ = ["SparseTraining", "images", "replace_network", "trainer_of"]
