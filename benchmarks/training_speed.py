"""Images per second: VGG-16 of quarter width on CIFAR-10 as `netslim run` trains it, against the
usual script.

    python benchmarks/training_speed.py [--root FOLDER] [--rounds 5] [--steps 60]
    python benchmarks/training_speed.py --device cuda [--minutes 4] [--networks resnet56 vgg19]

    python benchmarks/training_speed.py --arithmetic [--networks resnet20]

With --arithmetic it is what precision and layout cost on this CPU: `_arithmetic.py` tells. On a
GPU, and wherever --networks are named, it is those networks that are trained, captured as a
CUDA graph, step by step, and as the port does it: `_captured.py` tells. What follows is the other
comparison, on a CPU.

*netslim* is a training stage of the runner itself: Lightning, `Loader`, channels_last, bf16 where
the processor computes it, the sparsity penalty, metrics and the journal. *float32* is the same with
precision float32. *usual* is the script everybody writes: a torchvision dataset of PIL images,
RandomCrop(32, 4) + RandomHorizontalFlip + ToTensor + Normalize, a DataLoader with two workers, and
a plain float32 loop without a penalty. Model, optimizer, batch size and thread count are the same,
and all run in this process in turn. The first steps of each round are left out.

Two threads that wait for each other suffer far more than their share from other work on the
machine, and not all ways alike. So the script also measures how much of the processors other
processes took meanwhile, and gives no verdict where that was more than 5 %; which runs count is
thus settled without looking at the ratio.

Goals: at least 1.3 times the usual script, and at most 5 % of the step spent on the data path.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _arithmetic
import torch
from _arithmetic import compare_arithmetic
from _captured import NETWORKS, compare_on
from _captured import WARM_UP as STEPS_BEFORE
from _common import RESULTS, record, show, spread
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from netslim import models
from netslim.data.loader import Loader
from netslim.data.sources import load
from netslim.data.splits import Data, ImageTensors
from netslim.training.loop.fit import Bench, fit
from netslim.training.loop.progress import Display
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import Recipe, Train, TrainerOptions
from netslim.training.stages.environment import choose_precision
from netslim.training.stages.folder import StageFolder

WARM_UP = 10
SPEED_GOAL, DATA_GOAL = 1.3, 0.05
QUIET = 0.05
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4


@dataclass
class Clock:
    """Seconds of each step, from one request for a batch to the next, and of each request itself."""

    steps: list[float] = field(default_factory=list)
    data: list[float] = field(default_factory=list)

    def watch(self, batches: Any) -> Iterator[Any]:
        """Hand out the same batches, timed."""
        source, asked = iter(batches), time.perf_counter()
        for batch in source:
            self.data.append(time.perf_counter() - asked)
            yield batch
            now = time.perf_counter()
            self.steps.append(now - asked)
            asked = now

    def rate(self, batch_size: int) -> float:
        """Images per second after the warm-up."""
        timed = self.steps[WARM_UP:]
        return batch_size * len(timed) / sum(timed)

    def data_share(self) -> float:
        """Median share of a step that passes before its batch is there."""
        return statistics.median(
            data / step
            for data, step in zip(self.data[WARM_UP:], self.steps[WARM_UP:], strict=False)
        )


# --- netslim --------------------------------------------------------------------------------------


class TimedLoader:
    """A loader whose batches pass a clock."""

    def __init__(self, loader: Loader, clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.clock.watch(self.loader)


@dataclass(frozen=True)
class TimedBench(Bench):
    """The runner's bench, its training batches timed."""

    clock: Clock = field(default_factory=Clock)

    def loader(self, split: str, seed: int = 0) -> Any:
        """As the runner builds it."""
        loader = super().loader(split, seed)
        return TimedLoader(loader, self.clock) if split == "train" else loader


def netslim_stage(data: Data, recipe: Recipe, precision: str) -> Clock:
    """The first stage of the recipe, by the runner."""
    bench = TimedBench(recipe, data, torch.device("cpu"), precision, Display(Console(quiet=True)))
    stage = recipe.stages[0]
    assert isinstance(stage, Train)
    with tempfile.TemporaryDirectory() as folder:
        fit(bench, network(), stage, StageFolder(Path(folder), 0, stage), seed=0)
    return bench.clock


# --- the usual script -----------------------------------------------------------------------------


class UsualDataset(Dataset[tuple[Tensor, int]]):
    """What `torchvision.datasets.CIFAR10` does, on the pictures already decoded."""

    def __init__(self, split: ImageTensors, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def usual_dataset(data: Data) -> UsualDataset:
    """CIFAR-10 with the usual augmentation."""
    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    assert isinstance(data.train, ImageTensors)
    return UsualDataset(
        data.train, transforms.Compose([*steps, transforms.Normalize(data.mean, data.std)])
    )


def usual_script(dataset: UsualDataset, batch_size: int, steps: int) -> Clock:
    """A plain float32 loop over a DataLoader with two workers."""
    model, clock = network().train(), Clock()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=2)
    for _, (images, labels) in zip(range(steps), clock.watch(loader), strict=False):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return clock


# --- the comparison -------------------------------------------------------------------------------


def network() -> nn.Module:
    """The same network for everybody."""
    torch.manual_seed(0)
    return models.build("zoo:vgg16", num_classes=10, width=0.25)


def recipe_for(batch_size: int, steps: int) -> Recipe:
    """A recipe of one sparse training stage, cut short after `steps` batches."""
    return parse_recipe(
        {
            "name": "training-speed",
            "title": "VGG-16 of quarter width on CIFAR-10, one stage",
            "data": {"name": "hf:cifar10", "batch_size": batch_size, "augment": {}},
            "model": {"name": "zoo:vgg16", "width": 0.25},
            "trainer": {
                "device": "cpu",
                "channels_last": True,
                "limit_batches": steps,
                "tensorboard": False,
            },
            "stages": [
                {
                    "kind": "train",
                    "name": "sparse",
                    "epochs": 1,
                    "optimizer": {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY},
                    "sparsity": {"strength": 1e-4},
                },
                {"kind": "measure"},
            ],
        }
    )


def compare(data: Data, batch_size: int, steps: int, rounds: int) -> dict[str, list[Clock]]:
    """Every way in turn, `rounds` times."""
    recipe, dataset = recipe_for(batch_size, steps), usual_dataset(data)
    best = choose_precision(TrainerOptions(precision="auto"), torch.device("cpu"))
    ways: dict[str, Callable[[], Clock]] = {
        f"netslim run ({best})": lambda: netslim_stage(data, recipe, best),
        "netslim run (float32)": lambda: netslim_stage(data, recipe, "float32"),
        "usual script (float32)": lambda: usual_script(dataset, batch_size, steps),
    }
    clocks: dict[str, list[Clock]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            clocks[name].append(way())
    return clocks


def summary(clocks: list[Clock], usual: list[Clock], batch_size: int) -> dict[str, Any]:
    """Medians and quartiles over the rounds, and every round's rate; the ratio is taken round by
    round.
    """
    rates = [clock.rate(batch_size) for clock in clocks]
    ratios = [rate / other.rate(batch_size) for rate, other in zip(rates, usual, strict=True)]
    return {
        "images_per_second": spread(rates),
        "times_usual": spread(ratios),
        "step_ms": 1000
        * statistics.median(step for clock in clocks for step in clock.steps[WARM_UP:]),
        "data_ms": 1000
        * statistics.median(wait for clock in clocks for wait in clock.data[WARM_UP:]),
        "data_share": statistics.median(clock.data_share() for clock in clocks),
        "rounds": rates,
    }


def rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows for the terminal."""

    def quartiles(value: dict[str, float], digits: int) -> str:
        low, median, high = (f"{value[key]:.{digits}f}" for key in ("low", "median", "high"))
        return f"{median} ({low} to {high})"

    return [
        [
            name,
            quartiles(way["images_per_second"], 0),
            quartiles(way["times_usual"], 2),
            f"{way['step_ms']:.1f}",
            f"{way['data_ms']:.2f}",
            f"{way['data_share']:.1%}",
        ]
        for name, way in found.items()
    ]


def processor_seconds() -> tuple[float, float] | None:
    """Seconds of processor time spent so far by the whole machine and by this process with its
    ended children.

    None where the system does not tell (only Linux does).
    """
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    ticks = [int(part) for part in fields]
    mine = os.times()
    busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return busy, mine.user + mine.system + mine.children_user + mine.children_system


def foreign_share(before: tuple[float, float] | None, seconds: float) -> float | None:
    """Share of all processor time since `before`, `seconds` ago, that other processes took."""
    now = processor_seconds()
    if before is None or now is None:
        return None
    others = (now[0] - before[0]) - (now[1] - before[1])
    return max(0.0, others / (seconds * (os.cpu_count() or 1)))


def main() -> None:
    """Measure, print, and write results/training_speed.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="hf:cifar10", help="CIFAR-10, as `load` names it")
    parser.add_argument(
        "--root", help="the folder that holds data sets; NETSLIM_DATA when not given"
    )
    parser.add_argument("--batch", type=int, help="default: 128 on a CPU, 64 for --networks")
    parser.add_argument("--steps", type=int, help="training steps of each way in a round")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--networks", nargs="+", metavar="NAME", help=f"default on a GPU: {' '.join(NETWORKS)}"
    )
    parser.add_argument("--width", type=float, default=1.0, help="of --networks")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="for --networks: begin nothing beyond"
    )
    parser.add_argument("--out", type=Path, help="for --networks: the JSON file")
    parser.add_argument(
        "--arithmetic", action="store_true", help="precision and layout on this CPU"
    )
    options = parser.parse_args()
    if options.arithmetic:
        compare_arithmetic(
            options.networks or _arithmetic.NETWORKS,
            width=options.width,
            batch=options.batch or 64,
            steps=options.steps or 8,
            rounds=options.rounds or 3,
            out=options.out or RESULTS / "training_arithmetic.json",
        )
        return
    if options.device == "cuda" or options.networks:
        options.steps, options.rounds = options.steps or 200, options.rounds or 3
        if options.steps <= STEPS_BEFORE + 1:
            parser.error(f"give more than {STEPS_BEFORE + 1} --steps")
        compare_on(
            options.device,
            options.networks or NETWORKS,
            width=options.width,
            batch=options.batch or 64,
            steps=options.steps,
            rounds=options.rounds,
            minutes=options.minutes,
            out=options.out or RESULTS / f"training_speed_{options.device}.json",
        )
        return
    options.batch, options.steps = options.batch or 128, options.steps or 60
    options.rounds = options.rounds or 5
    if options.steps <= WARM_UP + 1 or options.rounds < 2:
        parser.error(f"give more than {WARM_UP + 1} --steps and at least 2 --rounds")
    data = load(options.data, root=options.root)
    before, started = processor_seconds(), time.perf_counter()
    clocks = compare(data, options.batch, options.steps, options.rounds)
    foreign = foreign_share(before, time.perf_counter() - started)
    usual = list(clocks)[-1]
    found = {name: summary(each, clocks[usual], options.batch) for name, each in clocks.items()}
    columns = ["", "images/s (quartiles)", "times usual", "step ms", "data ms", "data share"]
    show(
        f"VGG-16, quarter width, CIFAR-10, batch {options.batch}: median of rounds",
        columns,
        rows(found),
    )
    verdicts = judge(next(iter(found.values())), foreign)
    setting = {
        "model": "zoo:vgg16 width=0.25",
        "batch": options.batch,
        "steps": options.steps,
        "rounds": options.rounds,
    }
    print(
        record(
            "training_speed",
            {"setting": setting, "foreign_share": foreign, "ways": found, **verdicts},
        )
    )


def judge(ours: dict[str, Any], foreign: float | None) -> dict[str, Any]:
    """The goals, and whether they were met; no verdict if the machine was busy with other work."""
    goals = {"times_usual": SPEED_GOAL, "data_share": DATA_GOAL}
    if foreign is not None and foreign > QUIET:
        print(
            f"no verdict: other processes took {foreign:.0%} of the processors; repeat on a "
            "quiet machine"
        )
        return {"goals": goals, "met": None}
    met = {
        "times_usual": ours["times_usual"]["median"] >= SPEED_GOAL,
        "data_share": ours["data_share"] <= DATA_GOAL,
    }
    for what, reached in met.items():
        print(f"goal {what} {goals[what]}: {'met' if reached else 'missed'}")
    return {"goals": goals, "met": met}


if __name__ == "__main__":
    main()
