"""Milliseconds of a training step on one device: captured, step by step, and as the port trains.

*captured* is a training stage of the runner as a recipe of the paper has it on a GPU: Lightning,
the data path, the sparsity penalty, metrics and the record, whole steps replayed as a CUDA graph.
*eager* is the same with ``trainer.graph: false``. *port* is the loop that ports of Network Slimming
have: float32 and contiguous, a DataLoader of PIL images with RandomCrop(32, 4), flip, ToTensor and
Normalize in a worker process with pinned memory, `update_bn` over the layers, and in each step the
loss read by `.item()` and the right answers counted on the CPU. All train the same networks of
`netslim.zoo`, so the port is spared its selection layers, which wait for the GPU in every forward
pass.

What of a captured step is hook, data and logging is found by leaving each out: a stage without the
penalty, one whose loader gives the same finished batch each time, and replays in a row without
Lightning. Images are random pixels, as large as CIFAR-10's; speed does not depend on them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from _common import record, show
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from netslim import models
from netslim.data.preprocessing import Preprocessing
from netslim.data.splits import Data, ImageTensors
from netslim.training.loop.fit import Bench, fit
from netslim.training.loop.progress import Display
from netslim.training.recipe.schema import (
    AugmentOptions,
    DataOptions,
    Measure,
    ModelOptions,
    OptimizerOptions,
    Recipe,
    SlimmingOptions,
    Train,
    TrainerOptions,
)
from netslim.training.stages.environment import choose_precision
from netslim.training.stages.folder import StageFolder

NETWORKS = ("resnet56", "vgg19", "densenet40", "preresnet164")
WARM_UP = 15  # steps before the clock starts: captured by then, and cuDNN has chosen
STRENGTH, LR, MOMENTUM, WEIGHT_DECAY = 1e-5, 0.1, 0.9, 1e-4
EAGER_GOAL, PORT_GOAL, BESIDE_GOAL = 4.0, 5.0, 0.05
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


@dataclass(frozen=True)
class Setting:
    """What is trained, and for how long."""

    device: torch.device
    network: str
    width: float
    batch: int
    steps: int

    def built(self) -> nn.Module:
        """The network, the same each time."""
        torch.manual_seed(0)
        return models.build(f"zoo:{self.network}", num_classes=10, width=self.width)

    def data(self) -> Data:
        """Random pixels; a batch for each step, none for validation."""
        generator = torch.Generator().manual_seed(0)

        def split(count: int) -> ImageTensors:
            images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
            return ImageTensors(images, torch.randint(10, (count,), generator=generator))

        known = Preprocessing(MEAN, STD, (32, 32), resize=False, classes=tuple("0123456789"))
        return Data("pixels", split(self.batch * self.steps), split(0), split(0), known)


# --- netslim --------------------------------------------------------------------------------------


class Stopwatch(Display):
    """Sees every step of a stage end: how long they take from `WARM_UP` on, and then what replays
    in a row take.

    Attributes:
        step_ms: of the stage.
        computing_ms: of the processors, in this process.
        bare_ms: of replays without Lightning; None where nothing is captured.
    """

    def __init__(self, device: torch.device, warm_up: int = WARM_UP) -> None:
        super().__init__(Console(quiet=True))
        self.device, self.warm_up = device, warm_up
        self.started = self.started_computing = 0.0
        self.computing_ms: float | None = None
        self.step_ms: float | None = None
        self.bare_ms: float | None = None
        self.notes: list[str] = []

    def say_once(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def training(self, label: str, epochs: int) -> Iterator[Any]:
        with super().training(label, epochs) as shown:
            shown.step = self.step  # type: ignore[method-assign]
            yield shown

    def step(self, module: Any, done: int, steps: int) -> None:
        """As `StageBar.step`."""
        if done == self.warm_up:
            self.started, self.started_computing = now(self.device), time.process_time()
        if done < steps:
            return
        thousands = (steps - self.warm_up) / 1000
        self.step_ms = (now(self.device) - self.started) / thousands
        self.computing_ms = (time.process_time() - self.started_computing) / thousands
        if module.whole is not None and module.whole.recorded:
            self.bare_ms = per_call(
                partial(module.whole, *module.whole.buffers), steps, self.device
            )


def now(device: torch.device) -> float:
    """Seconds, once everything is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def per_call(call: Callable[[], Any], times: int, device: torch.device) -> float:
    """Milliseconds."""
    started = now(device)
    for _ in range(times):
        call()
    return (now(device) - started) / times * 1000


class Finished:
    """A loader that gives one finished batch over and over."""

    picks_suffice = False
    unreadable = ()

    def __init__(self, loader: Any) -> None:
        self.count, self.weight, self.own_batches = len(loader), loader.weight, loader.own_batches
        self.ready = next(iter(loader))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(repeat(self.ready, self.count))

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""


class FinishedBench(Bench):
    """Without a data path."""

    def loader(self, split: str, seed: int = 0) -> Any:
        loader = super().loader(split, seed)
        return Finished(loader) if split == "train" else loader


STAGE = Train(
    "sparse",
    epochs=1,
    optimizer=OptimizerOptions(lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
    sparsity=SlimmingOptions(strength=STRENGTH),
)


def watched(
    setting: Setting,
    stage: Train,
    trainer: TrainerOptions,
    kind: type[Bench] = Bench,
    warm_up: int = WARM_UP,
) -> Stopwatch:
    """A stage that was carried out, and what was seen of it."""
    data = DataOptions("pixels", batch_size=setting.batch, augment=AugmentOptions())
    model = ModelOptions(f"zoo:{setting.network}")
    recipe = Recipe("speed", "Speed", data, model, (stage, Measure("measure")), trainer=trainer)
    watch = Stopwatch(setting.device, warm_up)
    precision = choose_precision(trainer, setting.device)
    bench = kind(recipe, setting.data(), setting.device, precision, watch)
    with tempfile.TemporaryDirectory() as folder:
        fit(bench, setting.built(), stage, StageFolder(Path(folder), 0, stage), seed=0)
    for note in watch.notes:
        print(f"{setting.network}: {note}")
    return watch


def stage_ms(
    setting: Setting, stage: Train = STAGE, kind: type[Bench] = Bench, graph: bool = True
) -> tuple[float, float | None]:
    """Milliseconds of a step of a stage, and of a replay."""
    device: Any = setting.device.type
    trainer = TrainerOptions(device=device, graph=graph, tensorboard=False)
    found = watched(setting, stage, trainer, kind)
    assert found.step_ms is not None
    return found.step_ms, found.bare_ms


# --- the port -------------------------------------------------------------------------------------


class Pictures(Dataset[tuple[Tensor, int]]):
    """What `torchvision.datasets.CIFAR10` does, on the pictures already decoded."""

    def __init__(self, split: Any) -> None:
        self.data = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def update_bn(model: nn.Module) -> None:
    """The port's loop over the layers."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.grad.data.add_(STRENGTH * torch.sign(module.weight.data))  # type: ignore[union-attr]


def port_ms(setting: Setting) -> float:
    """Milliseconds of a step of the port, its data path included."""
    device, model = setting.device, setting.built().to(setting.device).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    pinned = device.type == "cuda"
    pictures = Pictures(setting.data().train)
    loader = DataLoader(pictures, setting.batch, shuffle=True, num_workers=1, pin_memory=pinned)
    started, right, total = 0.0, 0, 0.0
    for number, (images, labels) in enumerate(loader):
        if number == WARM_UP:
            started = now(device)
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        output = model(images)
        loss = F.cross_entropy(output, labels)
        total += loss.item()
        right += int(output.max(1)[1].eq(labels).cpu().sum())
        loss.backward()
        update_bn(model)
        optimizer.step()
    return (now(device) - started) / (setting.steps - WARM_UP) * 1000


# --- the comparison -------------------------------------------------------------------------------


def ways(setting: Setting) -> dict[str, Callable[[], dict[str, float | None]]]:
    """Each way, and the milliseconds that it finds by name."""
    dense = replace(STAGE, sparsity=None)

    def captured() -> dict[str, float | None]:
        step, bare = stage_ms(setting)
        return {"captured": step, "bare": bare}

    return {
        "captured": captured,
        "eager": lambda: {"eager": stage_ms(setting, graph=False)[0]},
        "port": lambda: {"port": port_ms(setting)},
        "no hook": lambda: {"no hook": stage_ms(setting, dense)[0]},
        "no data": lambda: {"no data": stage_ms(setting, kind=FinishedBench)[0]},
    }


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, ratios and shares, as far as they were measured."""
    ms = {name: statistics.median(each) for name, each in found.items() if each}
    result: dict[str, Any] = {"ms": ms, "samples": found}
    if "captured" not in ms:
        return result
    whole = ms["captured"]
    for name in ("eager", "port"):
        if name in ms:
            result[f"times_{name}"] = ms[name] / whole
    shares = {
        told: 1 - ms[name] / whole
        for told, name in (("hook", "no hook"), ("data", "no data"), ("logging", "bare"))
        if name in ms
    }
    return {**result, "shares": shares, "beside": sum(shares.values())}


def compare_on(
    device: str,
    networks: Sequence[str],
    *,
    width: float,
    batch: int,
    steps: int,
    rounds: int,
    minutes: float,
    out: Path,
) -> None:
    """Measure round by round, write the file after each way, and stop when the time is over."""
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in networks}
    setting = {"batch": batch, "steps": steps, "width": width, "minutes": minutes}
    deadline, took = time.perf_counter() + 60 * minutes, dict[tuple[str, str], float]()
    for number in range(rounds):
        for name in networks:
            for way, run in ways(Setting(where, name, width, batch, steps)).items():
                begun = time.perf_counter()
                known = [seconds for (_, one), seconds in took.items() if one == way]
                if begun + took.get((name, way), max(known, default=0.0)) > deadline:
                    print(f"round {number + 1}, {name}, {way}: no time left")
                    continue
                for key, value in tried(run, name, way).items():
                    if value is not None:
                        found[name].setdefault(key, []).append(value)
                        print(f"round {number + 1}, {name}, {key}: {value:.3f} ms", flush=True)
                took[name, way] = time.perf_counter() - begun
                results = {one: summary(each) for one, each in found.items()}
                record(out.stem, {"setting": setting, "networks": results}, where, out.parent)
    table(results)


def tried(run: Callable[[], dict[str, float | None]], name: str, way: str) -> Any:
    """What a way finds; one that fails is told, and the others are measured all the same."""
    try:
        return run()
    except Exception as error:
        print(f"{name}, {way}: failed: {type(error).__name__}: {error}", flush=True)
        return {}


def table(results: dict[str, dict[str, Any]]) -> None:
    """For the terminal, with the goals."""
    rows = []
    for name, one in results.items():
        ms, shares = one["ms"], one.get("shares", {})
        figures = [f"{ms[way]:.2f}" if way in ms else "-" for way in ("captured", "eager", "port")]
        ratios = [f"{one.get(key, 0.0):.1f}" for key in ("times_eager", "times_port")]
        parts = [f"{shares.get(part, 0.0):.1%}" for part in ("hook", "data", "logging")]
        rows.append([name, *figures, *ratios, *parts])
    columns = ["", "captured ms", "eager ms", "port ms", "x eager", "x port", "hook", "data"]
    show("Milliseconds of a training step: medians of rounds", [*columns, "logging"], rows)
    print(
        f"goals: {EAGER_GOAL:g} x eager (ResNet-56), {PORT_GOAL:g} x port; hook, data and logging "
        f"together at most {BESIDE_GOAL:.0%} of a step"
    )
