"""The rows that PruningFilters left empty: ResNet-32 on CIFAR-10, hard and soft, without and with
shortcuts.

    python benchmarks/resnet32.py                # reduced epochs, sized for two CPU cores and some
    hours python benchmarks/resnet32.py --full         # the recipes as they are, for a GPU python
    benchmarks/resnet32.py --rows hard-avoid soft-avoid

One base network is trained, the four shipped recipes go on from it, each in a run folder of its
own: whatever is finished is not done again. Reduced: 30 epochs of the base's 300 (one cycle up to
0.2 in place of the steps), 5 of the 20 after a hard cut, 4 of the 50 of soft pruning, at the
recipes' own rates. The test set is looked at at the end of each run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _common import record, show

from netslim.training import run
from netslim.training.recipe.reading import load_recipe, parse_recipe

ROWS = ("hard-avoid", "hard-include", "soft-avoid", "soft-include")
REDUCED = {"finetune": 5, "soft": 4}
CYCLE = {"name": "onecycle", "rise": 0.2}


def adapted(name: str, data: str, full: bool) -> dict[str, Any]:
    """A shipped recipe's tree with this data, a seed, and, unless `full`, the settings for a CPU."""
    tree = load_recipe(name).to_dict()
    tree["data"] |= {"name": data, "download": data.startswith("torchvision:"), "validation": 0.1}
    if not full:
        tree["trainer"] |= {"precision": "auto", "channels_last": True, "threads": 1}
    return tree


def base(data: str, full: bool) -> dict[str, Any]:
    """The training stage that the four recipes share, by itself."""
    tree = adapted("resnet32-hard-avoid", data, full)
    train, measure = tree["stages"][0], tree["stages"][-1]
    if not full:
        train |= {"epochs": 30, "schedule": CYCLE}
        train["optimizer"] |= {"lr": 0.2, "nesterov": True}
    return tree | {
        "name": "resnet32-base",
        "title": "ResNet-32 on CIFAR-10",
        "stages": [train, measure],
    }


def branch(row: str, checkpoint: Path, data: str, full: bool) -> dict[str, Any]:
    """One of the four recipes from the trained base on."""
    tree = adapted(f"resnet32-{row}", data, full)
    stages = tree["stages"][1:]
    for stage in stages:
        if not full and stage["name"] in REDUCED:
            stage["epochs"] = REDUCED[stage["name"]]
    return tree | {"model": {"name": str(checkpoint)}, "stages": stages}


def trained(folder: Path, data: str, full: bool) -> Path:
    """The base network's checkpoint; it is trained where it is not there yet."""
    run(parse_recipe(base(data, full)), folder)
    return next(folder.glob("01-*/model.safetensors"))


def measured(label: str, row: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    cuts = {
        f"{key}_cut": round(100 * (1 - row[key] / reference[key]), 2) for key in ("params", "macs")
    }
    top = {"top1": round(100 * row["accuracy"], 2), "top5": round(100 * row["top5"], 2)}
    return {
        "row": label,
        **top,
        "size_kb": round(row["size_bytes"] / 1024),
        "params": row["params"],
        **cuts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--data", default="hf:cifar10")
    parser.add_argument("--full", action="store_true")
    parser.add_argument(
        "--base", type=Path, help="a trained ResNet-32 to start from, instead of training one"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/resnet32"))
    options = parser.parse_args()
    work = options.work / ("full" if options.full else "reduced")
    found: list[dict[str, Any]] = []
    checkpoint = options.base or trained(work / "base", options.data, options.full)
    for row in options.rows:
        rows = run(parse_recipe(branch(row, checkpoint, options.data, options.full)), work / row)[
            "rows"
        ]
        if (
            row.startswith("hard") and not found
        ):  # where soft pruning begins, the first row is already its own
            found.append(measured("base", rows[0], rows[0]))
        found += [measured(f"{row}: {one['label']}", one, rows[0]) for one in rows[1:]]
    show(
        "ResNet-32 on CIFAR-10" + ("" if options.full else ", reduced epochs"),
        ["network", "top-1", "top-5", "KiB", "params cut", "MACs cut"],
        [
            [r["row"], r["top1"], r["top5"], r["size_kb"], r["params_cut"], r["macs_cut"]]
            for r in found
        ],
    )
    name = "resnet32-full" if options.full else "resnet32"
    record(
        name, {"epochs": "the recipes'" if options.full else {"base": 30, **REDUCED}, "rows": found}
    )


if __name__ == "__main__":
    main()
