"""What more processes bring, and what a run and its cuts need of memory.

    python benchmarks/scaling.py [--rounds 3]

*Throughput*: a training stage of `netslim run` (ResNet-20 on 32 x 32 images, global batch 128) on
one process and on two, each with one thread, in turn; images a second from the epochs after the
first. Efficiency is the throughput of two over twice that of one. *cores* says what two cores give
at best here: the same stage as two runs of one process each, at the same time, against one alone.

*Memory of a run*: peak resident memory of that stage with a batch of 512, against a plain loop of
PyTorch with the same network, data and batch; each in a process of its own. Goal: within 5 %. It is
measured with a malloc that gives large blocks back as soon as they are freed (a fixed
MALLOC_MMAP_THRESHOLD_ of glibc). *As it is*: without; then freed blocks stay for later ones in
holes that differ from run to run, by 5 % of the whole, and that a plain loop has as well as soon as
it keeps its loss in a variable.

*Memory of a cut*: what `netslim.prune`, `prune_` and `verify` take above what was there, at their
peak, as multiples of the model (VGG-16 with layers of 4096, half of the MACs cut). Goal for `prune`:
at most the model and its largest layer.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import record, show, spread
from torch.nn import functional as F

import netslim
from netslim.data.sources import load
from netslim.training import run
from netslim.training.loop.progress import silent
from netslim.training.recipe.reading import parse_recipe

BATCH, STEPS, EPOCHS = 128, 8, 3
LARGE, FEW = 512, 2
RUN_GOAL = 1.05
MODEL = {"name": "zoo:resnet20", "in_channels": 3}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
LARGE_MODEL = "zoo:vgg16_bn_4096"
HALF = netslim.Budget(cut_macs=0.5)


def recipe(batch: int, steps: int, epochs: int, devices: int | None) -> Any:
    trainer = {"device": "cpu", "threads": 1, "limit_batches": steps, "tensorboard": False}
    return parse_recipe(
        {
            "name": "scaling",
            "title": "Scaling",
            "data": {"name": "digits", "batch_size": batch, "image_size": 32, "channels": "rgb"}
            | {"validation": 4},
            "model": MODEL,
            "trainer": {**trainer, "devices": devices},
            "stages": [
                {"kind": "train", "epochs": epochs, "optimizer": {"lr": 0.1}},
                {"kind": "measure", "latency": False},
            ],
        }
    )


# ---------------------------------------------------------------- parts, each in its own process


def throughput(devices: int) -> dict[str, float]:
    """Images a second of a stage."""
    with tempfile.TemporaryDirectory() as folder:
        run(recipe(BATCH, STEPS, EPOCHS, devices), folder, display=silent())
        with open(Path(folder) / "01-train" / "metrics.csv", newline="") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)][1:]
    return {"images_per_second": BATCH * STEPS / statistics.median(seconds)}


def memory_of_run() -> dict[str, float]:
    """Peak MiB of a stage, and what it started from."""
    with tempfile.TemporaryDirectory() as folder:
        load("digits", image_size=32, channels="rgb")
        before = resident()
        run(recipe(LARGE, FEW, 1, None), folder, display=silent())
    return {"before": before, "peak": peak()}


def memory_of_loop() -> dict[str, float]:
    """Peak MiB of a plain loop that does the same."""
    torch.set_num_threads(1)
    data = load("digits", image_size=32, channels="rgb").train
    network = netslim.models.build(MODEL["name"], in_channels=3).train()
    before = resident()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(FEW):
        part = slice(step * LARGE, (step + 1) * LARGE)
        images, labels = data.images[part], data.labels[part]
        optimizer.zero_grad()
        F.cross_entropy(network(images.float() / 255), labels).backward()
        optimizer.step()
    return {"before": before, "peak": peak()}


def plan_of_cut() -> dict[str, Any]:
    """What the next parts cut; made elsewhere, for what is freed here would count as room there."""
    network = netslim.models.build(LARGE_MODEL).eval()
    graph = netslim.trace(network, torch.randn(1, 3, 32, 32))
    scores = netslim.score(graph, network, "l1")
    return {"plan": netslim.select(graph, scores, HALF, allocation="uniform").to_json()}


def memory_of_cut(what: str) -> dict[str, float]:
    """Peak MiB above what was there before a cut or its proof; the plan comes by standard input."""
    torch.set_num_threads(1)
    plan = netslim.PruningPlan.from_json(json.loads(sys.stdin.read())["plan"])
    network = netslim.models.build(LARGE_MODEL).eval()
    example = torch.randn(1, 3, 32, 32)
    parts = [parameter.numel() * 4 / 2**20 for parameter in network.parameters()]
    work: dict[str, Callable[[], Any]] = {
        "prune": lambda: netslim.prune(network, plan),
        "prune_": lambda: netslim.prune_(network, plan),
    }
    if what == "verify":
        small = netslim.prune(network, plan)
        work["verify"] = lambda: netslim.verify(network, small, plan, example)
    ctypes.CDLL(None).malloc_trim(0)
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    kept = work[what]()
    taken = status("VmHWM") - before
    del kept
    return {"model": sum(parts), "largest": max(parts), "taken": taken}


def resident() -> float:
    return status("VmRSS")


def status(key: str) -> float:
    """MiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "one": lambda: throughput(1),
    "two": lambda: throughput(2),
    "run": memory_of_run,
    "loop": memory_of_loop,
    "plan": plan_of_cut,
    **{name: (lambda name=name: memory_of_cut(name)) for name in ("prune", "prune_", "verify")},
}


# ---------------------------------------------------------------- all of them


def begun(part: str, **around: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--part", part]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **around}, **pipes)


def ended(process: subprocess.Popen[str], given: str = "") -> dict[str, Any]:
    text = process.communicate(given)[0]
    if process.returncode:
        raise SystemExit(f"a part failed: {text}")
    return dict(json.loads(text.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=PARTS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part]()))
        return
    speeds: dict[str, list[float]] = {"one": [], "two": [], "beside": []}
    for _ in range(options.rounds):
        for part in ("one", "two"):
            speeds[part].append(ended(begun(part))["images_per_second"])
        both = [begun("one"), begun("one")]
        speeds["beside"].append(sum(ended(each)["images_per_second"] for each in both))
    found: dict[str, Any] = {
        "throughput": {name: spread(samples) for name, samples in speeds.items()},
        "efficiency": _ratio(speeds["two"], speeds["one"]) / 2,
        "cores": _ratio(speeds["beside"], speeds["one"]) / 2,
    }
    plan = json.dumps(ended(begun("plan")))
    parts = ("run", "loop", "prune", "prune_", "verify")
    memory = {part: ended(begun(part), plan) for part in parts}
    memory |= {f"{part} given back": ended(begun(part, **GIVEN_BACK)) for part in ("run", "loop")}
    found["memory"] = memory
    found["run_over_loop"] = memory["run given back"]["peak"] / memory["loop given back"]["peak"]
    found["run_over_loop_as_it_is"] = memory["run"]["peak"] / memory["loop"]["peak"]
    found["load"] = list(Path("/proc/loadavg").read_text().split()[:3])
    path = record("scaling", found)
    _show(found)
    print(f"written to {path}", time.strftime("%F"))


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def _show(found: dict[str, Any]) -> None:
    speeds = found["throughput"]
    rows = [[name, f"{speeds[name]['median']:.0f}"] for name in speeds]
    show("Images a second", ["processes", "median"], rows)
    print(f"efficiency of two processes: {found['efficiency']:.0%} (cores: {found['cores']:.0%})")
    memory = found["memory"]
    run, loop = (memory[f"{part} given back"]["peak"] for part in ("run", "loop"))
    print(
        f"a run: {run:.0f} MiB, a plain loop {loop:.0f} MiB: x {found['run_over_loop']:.3f} (goal: "
        f"{RUN_GOAL}); as it is x {found['run_over_loop_as_it_is']:.3f}"
    )
    columns = ["cut", "model", "largest layer", "taken", "of the model"]
    rows = []
    for name in ("prune", "prune_", "verify"):
        model, largest, taken = (memory[name][key] for key in ("model", "largest", "taken"))
        sizes = [f"{size:.0f} MiB" for size in (model, largest, taken)]
        rows.append([name, *sizes, f"{taken / model:.2f}"])
    show("Memory above what was there", columns, rows)


if __name__ == "__main__":
    main()
