"""What studies of accuracy share: one seed's data and networks, kept in a work folder, and
torch-pruning's training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import with_peer
from safetensors.torch import load as read
from safetensors.torch import save
from torch import nn

import netslim
from netslim._support import write_atomic
from netslim.data.sources import load
from netslim.training.loop.fit import Bench, evaluate, fit
from netslim.training.loop.progress import Display
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import Recipe, Train
from netslim.training.stages.environment import choose_device, choose_precision
from netslim.training.stages.folder import StageFolder


@dataclass(frozen=True)
class Scale:
    """How large a study is."""

    width: float
    subset: int | None
    epochs: int
    recovery: int
    strength: float  # of the penalty on the scales
    threads: int | None


SMALL = Scale(width=0.25, subset=10_000, epochs=15, recovery=8, strength=2e-3, threads=1)
FULL = Scale(width=1.0, subset=None, epochs=160, recovery=40, strength=1e-4, threads=None)


def recipe(
    scale: Scale, seed: int, data: str, *, model: dict[str, Any], stages: dict[str, dict[str, Any]]
) -> Recipe:
    """A recipe with the training stages `base` and `tune`, and variations of them.

    Args:
        scale: of the study.
        seed: of weights, order and augmentation.
        data: name of the data set.
        model: section of the recipe.
        stages: further stages by name: what differs from the stage that `of` names.
    """
    sgd = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    schedule = {"name": "onecycle", "rise": 0.2}
    base = {"kind": "train", "epochs": scale.epochs, "optimizer": sgd, "schedule": schedule}
    slow = {**sgd, "lr": 0.05}
    tune = {
        "kind": "finetune",
        "epochs": scale.recovery,
        "optimizer": slow,
        "schedule": {"name": "cosine"},
    }
    kinds = {"base": base, "tune": tune}
    more = [
        {**kinds[own["of"]], "name": name, **{k: v for k, v in own.items() if k != "of"}}
        for name, own in stages.items()
    ]
    return parse_recipe(
        {
            "name": "study",
            "title": "A study of accuracy",
            "seed": seed,
            "data": {
                "name": data, "batch_size": 128, "validation": 0.1, "subset": scale.subset,
                "augment": {"pad": 4, "flip": True}, "download": data.startswith("torchvision:"),
            },
            "model": model,
            "trainer": {"precision": "auto", "channels_last": True, "tensorboard": False, "threads": scale.threads},
            "stages": [{**base, "name": "base"}, {**tune, "name": "tune"}, *more],
        },
        whole=False,
    )  # fmt: skip


class Study:
    """One seed: its data and networks, made when they are asked for and kept in the work folder."""

    def __init__(self, scale: Scale, seed: int, recipe: Recipe, work: Path) -> None:
        self.scale, self.seed, self.recipe = scale, seed, recipe
        self.stages = {stage.name: stage for stage in self.recipe.stages}
        self.work = work / f"seed{seed}"
        options = self.recipe.data
        found = load(
            options.name,
            validation=options.validation,
            subset=options.subset,
            seed=seed,
            download=options.download,
        )
        device = choose_device(self.recipe.trainer)
        self.bench = Bench(
            self.recipe, found, device, choose_precision(self.recipe.trainer, device), Display()
        )
        self.example = self.bench.example()

    def fresh(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return netslim.models.build(self.recipe.model.name, **self.recipe.model.kwargs)

    def trained(
        self, name: str, row: str, network: nn.Module, stage: Train | None = None
    ) -> nn.Module:
        """`network` after a training stage; read from its file where that was done before."""
        stage = stage or self.stages[name]
        folder = StageFolder(self.work / row, 0, stage)
        if not folder.model.exists():
            folder.path.mkdir(parents=True, exist_ok=True)
            fit(self.bench, network, stage, folder, self.seed)
            write_atomic(folder.model, save(network.state_dict()))
        network.load_state_dict(read(folder.model.read_bytes()))
        return network.eval()

    def accuracy(self, network: nn.Module, split: str) -> float:
        found = evaluate(network, self.bench.loader(split), 10, self.bench.device)
        network.to("cpu")
        return found.accuracy


def least(make: Callable[[float], Any], measure: Callable[[Any], float], limit: float) -> Any:
    """What the smallest share makes that stays within `limit`, by bisection."""
    low, high = 0.0, 0.95
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(make(middle)) <= limit else (middle, high)
    return make(high)


def proved(network: nn.Module, plan: netslim.PruningPlan, study: Study) -> nn.Module:
    """The cut network, once it was verified."""
    small = netslim.prune(network, plan)
    netslim.verify(network, small, plan, study.example)
    return small


def possible(ways: Sequence[str]) -> list[str]:
    """The ways of a study, without the peer's (``tp:...``) where it is not installed."""
    own = [way for way in ways if not way.startswith("tp:")]
    if len(own) == len(ways) or with_peer():
        return list(ways)
    return own


def nothing(graph: netslim.ChannelGraph) -> netslim.PruningPlan:
    """A plan that cuts nothing: pruning by it makes a copy."""
    return netslim.PruningPlan(graph.fingerprint, {}, ())


@contextmanager
def regularised(make: Callable[[], Any], network: nn.Module) -> Iterator[None]:
    """Inside, a pruner's `regularize` runs after each backward pass of an optimizer that holds the
    network.
    """
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    pruner = make()
    pruner.update_regularizer()
    held = {id(p) for p in network.parameters()}

    def closure_first(optimizer: Any, args: Any, kwargs: Any) -> Any:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None or not any(
            id(p) in held for g in optimizer.param_groups for p in g["params"]
        ):
            return None

        def followed() -> Any:
            loss = closure()
            pruner.regularize(network)
            return loss

        return (args[0],), {"closure": followed}

    handle = register_optimizer_step_pre_hook(closure_first)
    try:
        yield
    finally:
        handle.remove()
