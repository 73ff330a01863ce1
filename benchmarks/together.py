"""Several runs side by side on one device, against one after the other.

    python benchmarks/together.py [--device cpu|cuda] [--networks 3] [--rounds 3]

Each is a `netslim run` of one training stage (ResNet-20 on 32 x 32 images), with a seed of its own.
In turn: one alone, with all threads, as `netslim run` does it; one alone with as many threads as
each has of several; then all at once, as `netslim run --together` does it. On a GPU that comes
twice, by turns of the processes and, where `nvidia-cuda-mps-control` starts, under MPS, by a daemon
of its own that ends with the benchmark.

*epochs*: median seconds of an epoch without the first, of all at once over `networks` times the
faster one alone. *whole*: the same of the whole command, from start to report. Below 1, side by side is faster.
*memory*: the largest resident memory of a process, and its share of the machine's (what processes
share is divided among them), and of the GPU where there is one. Threads with a stream each in one
process are not measured: Lightning, torch's random numbers and signals belong to a whole process,
so that such runs would not be the same as alone. Where the machine has other work, there is no
verdict: two threads that wait for each other suffer more from it than one.

results/together-DEVICE.json is written anew after each measurement.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from _common import record, show
from rich.console import Console

from netslim.training.commands.together import Job, together
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import Recipe

GOAL = 0.8  # of the time one after the other: "clearly less"
ALONE, SHARE, TURNS, MPS = "alone", "alone, fewer threads", "at once", "at once, MPS"
QUIET = 0.5  # load for each core before anything is started
KEYS = ("epochs", "whole", "resident", "share")
PIPES = "CUDA_MPS_PIPE_DIRECTORY"


def recipe(options: argparse.Namespace, seed: int, threads: int | None) -> Recipe:
    trainer = {"device": options.device, "limit_batches": options.steps, "tensorboard": False}
    trainer["threads"] = threads
    images = {"batch_size": options.batch, "image_size": 32, "channels": "rgb", "validation": 4}
    return parse_recipe(
        {
            "name": "together",
            "title": "Several runs side by side",
            "seed": seed,
            "data": {"name": "digits", **images},
            "model": {"name": options.model, "in_channels": 3},
            "trainer": trainer,
            "stages": [
                {"kind": "train", "epochs": options.epochs, "optimizer": {"lr": 0.1}},
                {"kind": "measure", "latency": False},
            ],
        }
    )


@dataclass
class Measured:
    """Of one command.

    Attributes:
        whole: seconds from start to end.
        epochs: seconds of an epoch without the first, median over all its runs.
        resident, share: MiB, the largest of a process.
        gpu: MiB in use on the GPU, by everybody.
    """

    whole: float
    epochs: float
    resident: float
    share: float
    gpu: float | None


def measured(options: argparse.Namespace, count: int, threads: int | None) -> Measured:
    """So many runs at once; None leaves the threads to each."""
    with tempfile.TemporaryDirectory() as folder:
        recipes = [recipe(options, seed, threads) for seed in range(count)]
        jobs = [Job(each, Path(folder) / str(each.seed), "") for each in recipes]
        started = time.perf_counter()
        with memory([job.folder for job in jobs], options.device) as peaks:
            ended = together(jobs, console=Console(quiet=True))
        whole = time.perf_counter() - started
        for each in ended:
            if each.error is not None:
                raise SystemExit(f"a run failed: {each.error}")
        epochs = [seconds for job in jobs for seconds in later_epochs(job.folder)]
    return Measured(whole, statistics.median(epochs), peaks.resident, peaks.share, peaks.gpu)


def later_epochs(folder: Path) -> list[float]:
    with open(folder / "01-train" / "metrics.csv", newline="") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)][1:]


# ---------------------------------------------------------------- memory


@dataclass
class Peaks:
    """MiB, the most that was seen."""

    resident: float = 0.0
    share: float = 0.0
    gpu: float | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def look(self, folders: list[Path], device: str) -> None:
        while not self.over.wait(0.5):
            for folder in folders:
                with suppress(OSError, ValueError):
                    self._look_at(int((folder / ".lock").read_text().split()[1]))
            if device == "cuda":
                self.gpu = max(self.gpu or 0.0, used_on_gpu())

    def _look_at(self, process: int) -> None:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
        self.resident = max(self.resident, sizes["Rss:"])
        self.share = max(self.share, sizes["Pss:"])


@contextmanager
def memory(folders: list[Path], device: str) -> Iterator[Peaks]:
    """What the processes need that work in these run folders."""
    peaks = Peaks()
    thread = threading.Thread(target=peaks.look, args=(folders, device))
    thread.start()
    try:
        yield peaks
    finally:
        peaks.over.set()
        thread.join()


def used_on_gpu() -> float:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, capture_output=True, text=True).stdout.split()[0])


# ---------------------------------------------------------------- MPS


@contextmanager
def mps_daemon(device: str) -> Iterator[str | None]:
    """The folder of a daemon of our own; None where there is none."""
    control = shutil.which("nvidia-cuda-mps-control")
    if device != "cuda" or control is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        around = {**os.environ, PIPES: folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        began = subprocess.run([control, "-d"], env=around, capture_output=True, text=True)
        if began.returncode:
            print(f"MPS does not start here, and is left out: {began.stderr or began.stdout}")
            yield None
            return
        try:
            yield folder
        finally:
            subprocess.run([control], input="quit\n", env=around, text=True, timeout=60)


@contextmanager
def under(pipes: str | None) -> Iterator[None]:
    """Inside, what is started meets this daemon of MPS, or none."""
    before = os.environ.get(PIPES)
    os.environ[PIPES] = pipes or "/nonexistent"
    try:
        yield
    finally:
        del os.environ[PIPES]
        if before is not None:
            os.environ[PIPES] = before


# ---------------------------------------------------------------- all of them


def summary(found: dict[str, list[Measured]], networks: int) -> dict[str, Any]:
    """Ratios round by round, of the rounds that are complete."""
    ratios: dict[str, Any] = {}
    for way in set(found) - {ALONE, SHARE}:
        rounds = list(zip(found[way], found[ALONE], found[SHARE], strict=False))
        ratios[way] = {
            key: [
                getattr(ours, key) / (networks * min(getattr(one, key) for one in alone))
                for ours, *alone in rounds
            ]
            for key in ("epochs", "whole")
        }
    return {
        "networks": networks,
        "goal": GOAL,
        "measured": {way: [asdict(each) for each in each_of] for way, each_of in found.items()},
        "of_one_after_the_other": ratios,
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--networks", type=int, default=3, help="how many at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="zoo:resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="steps of an epoch")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    if options.epochs < 2 or options.rounds < 1 or options.networks < 2:
        parser.error("give at least 2 --epochs and --networks, and 1 of --rounds")
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    share = max(1, torch.get_num_threads() // options.networks)
    ways: dict[str, tuple[int, int | None, str | None]] = {
        ALONE: (1, None, None),
        SHARE: (1, share, None),
        TURNS: (options.networks, None, None),
    }
    with mps_daemon(options.device) as pipes:
        if pipes is not None:
            ways[MPS] = (options.networks, None, pipes)
        found: dict[str, list[Measured]] = {way: [] for way in ways}
        for way, (count, threads, met) in [*ways.items()] * options.rounds:
            with under(met):
                found[way].append(measured(options, count, threads))
            setting = {**vars(options), "load_of_a_core_before": load}
            content = {"setting": setting, **summary(found, options.networks)}
            path = record(f"together-{options.device}", content, options.device)
    _show(found, options.networks, load)
    print(f"written to {path}")


def _show(found: dict[str, list[Measured]], networks: int, load: float) -> None:
    ratios = summary(found, networks)["of_one_after_the_other"]
    rows = []
    for way, samples in found.items():
        ratio = ["", ""]
        if way in ratios:
            ratio = [f"{statistics.median(ratios[way][key]):.2f}" for key in ("epochs", "whole")]
        means = [statistics.median(getattr(each, key) for each in samples) for key in KEYS]
        rows.append([way, *(f"{value:.2f}" for value in means[:2]), *ratio])
        rows[-1] += [f"{value:.0f}" for value in means[2:]]
    columns = ["", "epoch s", "whole s", "epochs ratio", "whole ratio", "resident MiB", "share MiB"]
    show(f"{networks} networks, median of {len(samples)} rounds", columns, rows)
    for way, each in ratios.items():
        median = statistics.median(each["epochs"])
        verdict = "missed"
        if median <= GOAL:
            verdict = "met"
        if load > QUIET:
            verdict = "no verdict, for the machine has other work"
        print(f"{way}: {median:.2f} of one after the other (goal {GOAL}: {verdict})")


if __name__ == "__main__":
    main()
