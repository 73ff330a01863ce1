"""`bench`: networks timed side by side."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, get_args

from netslim._support import many
from netslim.cli.common import (
    add_inputs,
    add_json,
    add_trust,
    add_weights,
    examples,
    model_options,
    note,
    print_json,
)
from netslim.cli.flags import MODELS, RUNTIMES
from netslim.cli.parser import Parser
from netslim.errors import RecipeError
from netslim.measure.runtimes import Backend
from netslim.report import numbers

_BENCH = """\
Time networks side by side: one sample of each in turn, warmed up, in one process, so that a machine
that slows down does so for all. Medians with their quartiles, parameters, multiply-accumulates
(MACs) and activations of one example, size, and time relative to the first network.
"""

_EXAMPLES = """\
  netslim bench vgg.safetensors small.safetensors --input 3 32 32 --batch-size 64
  netslim bench torchvision:resnet50 timm:resnet50d --input 3 224 224 --threads 1 \\
      --backend eager compile onnxruntime
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(
        _bench, about=_BENCH, more=MODELS + RUNTIMES, examples=_EXAMPLES, dotted=True
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="which networks")
    add_weights(parser, action="append", default=[])
    add_trust(parser)
    add_inputs(parser)
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=1, help="examples in a call (default: 1)"
    )
    parser.add_argument(
        "--backend",
        choices=get_args(Backend),
        nargs="+",
        default=["eager"],
        help="what runs them: the module as it is, torch.compile, or another runtime (default: "
        "eager)",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="CPU threads (default: as torch has them)"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto"
    )
    parser.add_argument(
        "--repeats", metavar="N", type=int, default=50, help="samples of each at most (default: 50)"
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=20.0,
        help="no new round of samples after S (default: 20)",
    )
    add_json(parser, "milliseconds, counts and bytes")


def _bench(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    import torch

    from netslim.measure.table.measuring import processor

    if options.batch_size < 1:
        raise RecipeError(f"--batch-size {options.batch_size}: give 1 or more")
    trust = options.trust or options.models
    kwargs = model_options(overrides, "bench")
    networks = _networks(options.models, kwargs, options.weights_file, trust)
    device = options.device
    if device == "auto":
        device = "cpu"
        if torch.cuda.is_available():
            device = "cuda"
    rows = _measure(options, networks, device)
    where = processor() or platform.machine()
    if device != "cpu":
        where = torch.cuda.get_device_name()
    threads = options.threads or torch.get_num_threads()
    if options.json:
        surroundings = {
            "device": device,
            "hardware": where,
            "threads": threads,
            "torch": torch.__version__,
        }
        print_json({**surroundings, "batch_size": options.batch_size, "rows": rows})
        return 0
    print(_table(rows))
    print(
        f"batches of {options.batch_size}, {device} ({where}), {many(threads, 'thread')}, torch "
        f"{torch.__version__}"
    )
    return 0


def _networks(
    names: Sequence[str],
    kwargs: dict[str, Any],
    weights: Sequence[str],
    trust: bool | Sequence[str],
) -> dict[str, Any]:
    """Label -> network; a name that is given again gets a number. Options and files of weights go
    to those that are not checkpoints, which may have called what `trust` allows.
    """
    from netslim import models

    named = [name for name in names if not name.endswith(".safetensors")]
    if len(weights) not in (0, len(named)):
        raise RecipeError(
            f"--weights is given {len(weights)} times for {len(named)} networks by name: give it "
            "once for each, in their order, or not at all"
        )
    built: dict[str, Any] = {}
    files = iter(weights)
    for number, name in enumerate(names):
        label, again = name, names[:number].count(name)
        if again:
            label = f"{name} ({again + 1})"
        own = dict(kwargs)
        if name.endswith(".safetensors"):
            own.clear()
        elif weights:
            own["weights_file"] = next(files)
        built[label] = models.build(name, trust=trust, say=note, **own)
    return built


def _measure(
    options: argparse.Namespace, networks: dict[str, Any], device: str
) -> list[dict[str, Any]]:
    """A row for each backend and network, all timed in turn."""
    from netslim._support import using_threads
    from netslim.measure.backends import prepared
    from netslim.measure.latency import timed
    from netslim.training.loop.progress import Display

    inputs = examples(options, options.batch_size)
    counts = {
        label: _counts(network.eval(), examples(options), name)
        for name, (label, network) in zip(options.models, networks.items(), strict=True)
    }
    kinds = dict.fromkeys(options.backend)
    pairs = {(label, kind): f"{label} ({kind})" for kind, label in product(kinds, networks)}
    with ExitStack() as stack, Display().counting("bench") as progress:
        stack.enter_context(using_threads(options.threads))
        calls = dict[str, Any]()
        for (label, kind), key in pairs.items():
            progress(f"preparing {key}", len(calls), len(pairs))
            one = prepared(networks[label], inputs, kind, device, label)
            calls[key] = stack.enter_context(one)
        found = timed(
            calls, repeats=options.repeats, budget_seconds=options.seconds, progress=progress
        )
    rows = []
    for (label, kind), key in pairs.items():
        time, first = found[key], found[pairs[next(iter(networks)), kind]]
        rows.append(
            {
                "model": label,
                "backend": kind,
                **counts[label],
                **{
                    field: getattr(time, field)
                    for field in ("median_ms", "low_ms", "high_ms", "repeats")
                },
                "examples_per_second": 1e3 * options.batch_size / time.median_ms,
                "of_first": time.median_ms / first.median_ms,
            }
        )
    return rows


def _counts(network: Any, one: Any, name: str) -> dict[str, int]:
    """What a network costs; its size is that of its file, or of its tensors if it has none."""
    import netslim
    from netslim.measure.count import size_on_disk

    spent, size = netslim.cost(network, one), size_on_disk(network)
    if name.endswith(".safetensors"):
        size = Path(name).stat().st_size
    return {
        "params": spent.params,
        "macs": spent.macs,
        "activations": spent.activations,
        "size_bytes": size,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    head = [
        "model",
        "backend",
        "params",
        "MACs",
        "activations",
        "size on disk",
        "ms (quartiles)",
        "examples/s",
        "of first",
    ]
    lines = [head]
    for row in rows:
        times = f"{row['median_ms']:.3g} ({row['low_ms']:.3g} to {row['high_ms']:.3g})"
        counts = [numbers.count(row[key]).rstrip() for key in ("params", "macs", "activations")]
        size = numbers.size(row["size_bytes"])
        last = [f"{row['examples_per_second']:,.1f}", f"{row['of_first']:.2f}"]
        lines.append([row["model"], row["backend"], *counts, size, times, *last])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = (
        "  ".join([*map(str.ljust, line[:2], widths[:2]), *map(str.rjust, line[2:], widths[2:])])
        for line in lines
    )
    return "\n".join(texts)
