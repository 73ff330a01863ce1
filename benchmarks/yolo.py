"""YOLO from end to end, in ultralytics' own trainer, on handwritten digits on coloured canvases.

``digits`` trains from scratch, cuts half of the multiply-accumulates, and fine-tunes with the cut
kept, in two ways: trained on sparsely, by Network Slimming, and cut by the scales of batch norm; or
cut at once, by training images (what `netslim.slim` chooses where nothing is said). Beside it
stands the uncut network, trained on for as long as the cut ones are fine-tuned, and as the sparse
one is trained. All figures are of ``best.pt`` on the validation pictures, by ``YOLO(...).val``,
which also chose that epoch; those of sparse training, and of as long a one without a penalty, of
``last.pt``, for the best epoch may be one from before scales were small.

``families`` takes every family and task through the same steps with two epochs and 16 pictures:
sparse training, half of the multiply-accumulates cut, training without `trainer_of` refused,
fine-tuning with every shape kept, the file opened without netslim, ONNX beside PyTorch.

    python benchmarks/yolo.py families     # 10 minutes of one core
    python benchmarks/yolo.py digits       # 10 minutes of one core for each of two networks

Nothing is downloaded. Needs the extra ``yolo``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import torch
import ultralytics
from _common import RESULTS, record, show
from digit_scenes import write_scenes
from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import yaml_model_load

import netslim
from netslim.integrations.ultralytics import SparseTraining, images, replace_network, trainer_of

HALF = netslim.Budget(cut_macs=0.5)
DETECTORS = (
    "yolov3-tiny",
    "yolov5n",
    "yolov8n",
    "yolov9t",
    "yolov10n",
    "yolo11n",
    "yolo12n",
    "yolo26n",
)
WITH_TASKS = ("yolov8n", "yolo11n", "yolo12n", "yolo26n")
FAMILIES = [
    *((name, "detect", 0.5) for name in (*DETECTORS, "yolov3")),
    *((f"{name}-seg", "segment", 0.5) for name in WITH_TASKS),
    *((f"{name}-pose", "pose", 0.5) for name in WITH_TASKS),
    *((f"{name}-cls", "classify", 0.5) for name in WITH_TASKS),
    ("rtdetr-l", "detect", 0.3),  # at 64 pixels most of it is the decoder, whose widths are tied
]
UNCUT = ("uncut", "uncut, trained on", "uncut, without a penalty")
METRICS = {"map": "metrics/mAP50-95(B)", "map50": "metrics/mAP50(B)"}


def opened(name: str, folder: Path) -> Any:
    """The network of a layout; yolov3 with a quarter of its widths, for two cores."""
    if name == "yolov3":
        layout = {**yaml_model_load("yolov3.yaml"), "width_multiple": 0.25}
        path = folder / "yolov3-quarter.yaml"
        path.write_text(json.dumps(layout), encoding="utf-8")
        return YOLO(path)
    if "rtdetr" in name:
        return RTDETR(f"{name}.yaml")
    return YOLO(f"{name}.yaml")


def options(folder: Path, data: Path, size: int) -> dict[str, Any]:
    """What all calls of theirs take."""
    where = {"data": str(data), "project": str(folder), "exist_ok": True, "device": "cpu"}
    return {**where, "imgsz": size, "workers": 0, "plots": False, "verbose": False}


def training(batch: int, epochs: int, seed: int = 0) -> dict[str, Any]:
    how = {"optimizer": "SGD", "lr0": 0.02, "warmup_epochs": 1, "close_mosaic": 4, "nbs": batch}
    return {**how, "batch": batch, "epochs": epochs, "seed": seed, "amp": False, "fliplr": 0.0}


def shapes(yolo: Any) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in yolo.model.state_dict().items()}


# ---------------------------------------------------------------- digits


def judged(path: Path, given: dict[str, Any]) -> dict[str, float]:
    """Of a file: mean average precision in percent, and size, batch normalisation folded."""
    yolo = YOLO(path)
    found = yolo.val(**given, name="val", batch=16).results_dict
    example = torch.zeros(1, 3, given["imgsz"], given["imgsz"])
    network = yolo.model.eval().fuse(verbose=False)
    cost = netslim.cost(network, example)
    figures = {name: round(100 * float(found[key]), 2) for name, key in METRICS.items()}
    return {**figures, "macs": cost.macs, "params": cost.params}


def digits(name: str, seed: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = write_scenes(folder / "scenes", arguments.pictures, 100, arguments.size)
    given = options(folder, data, arguments.size)
    shown = ("pictures", "size", "batch", "epochs", "sparse", "finetune", "strength")
    row: dict[str, Any] = {"network": name, "seed": seed}
    row["options"] = {option: getattr(arguments, option) for option in shown}
    learn = partial(training, arguments.batch, seed=seed)
    tuning = {**learn(arguments.finetune), "lr0": 0.01}

    base = best(
        folder, "plain", partial(opened, name, folder), {**given, **learn(arguments.epochs)}
    )
    row["uncut"] = judged(base, given)
    longer = best(folder, "longer", partial(YOLO, base), {**given, **tuning})
    row["uncut, trained on"] = judged(longer, given)
    if "images" in arguments.ways:
        row["cut by images"] = cut(base, data, given, tuning, "images", folder)
    if "scales" in arguments.ways:
        alike = {**given, **learn(arguments.sparse)}
        row["uncut, without a penalty"] = judged(last(folder, "unpenalised", base, alike), given)
        sparse = last(folder, "sparse", base, alike, arguments.strength)
        row["sparse"] = judged(sparse, given)
        scales = netslim.NetworkSlimming(YOLO(sparse).model)
        row["sparse"]["scales near zero"] = round(scales.share_near_zero(), 3)
        row["cut by scales"] = cut(sparse, data, given, tuning, "scales", folder)
    return row


def best(
    folder: Path, stage: str, begin: Callable[[], Any], given: dict[str, Any], **how: Any
) -> Path:
    """The best network of a training, which is not done again where it was finished."""
    path = folder / stage / "weights" / "best.pt"
    if not path.exists() or YOLO(path).ckpt["epoch"] >= 0:
        begin().train(**given, **how, name=stage)
    return path


def last(
    folder: Path, stage: str, base: Path, given: dict[str, Any], strength: float = 0.0
) -> Path:
    """The last network of a training that may be sparse."""
    begin = partial(slimmed, base, strength) if strength else partial(YOLO, base)
    return best(folder, stage, begin, given).with_name("last.pt")


def slimmed(base: Path, strength: float) -> Any:
    yolo = YOLO(base)
    make = partial(netslim.NetworkSlimming, strength=strength, penalty="proximal")
    SparseTraining(make).register(yolo)
    return yolo


def cut(
    base: Path, data: Path, given: dict[str, Any], tuning: dict[str, Any], way: str, folder: Path
) -> dict[str, Any]:
    """Right after the cut, and after fine-tuning."""
    yolo = YOLO(base)
    batches = images(yolo, data, size=given["imgsz"], batch=16, count=10)
    if way == "images":
        small = netslim.slim(yolo.model, batches[0][:1], budget=HALF, batches=batches)
    else:
        fold = netslim.selection.Compensation("constant", recalibrate=True)
        small = netslim.slim(
            yolo.model,
            batches[0][:1],
            budget=HALF,
            criterion="bn_scale",
            compensation=fold,
            batches=batches,
        )
    replace_network(yolo, small)
    path = base.parent / f"cut-by-{way}.pt"
    yolo.save(path)
    at_once = judged(path, given)
    tuned = best(
        folder, f"tuned-{way}", lambda: yolo, {**given, **tuning}, trainer=trainer_of(yolo)
    )
    return {"at once": at_once, "fine-tuned": judged(tuned, given)}


def digits_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    table = []
    for row in rows:
        for stage in row.keys() & {*UNCUT, "sparse"}:
            table.append([row["network"], str(row["seed"]), stage, *told(row[stage])])
        for way in row.keys() & {"cut by images", "cut by scales"}:
            for stage, found in row[way].items():
                table.append([row["network"], str(row["seed"]), f"{way}, {stage}", *told(found)])
    return table


def told(found: dict[str, float]) -> list[str]:
    mega = [f"{found[name] / 1e6:.2f}" for name in ("macs", "params")]
    return [f"{found['map']:.1f}", f"{found['map50']:.1f}", *mega]


# ---------------------------------------------------------------- families


def family(name: str, task: str, share: float, folder: Path) -> dict[str, Any]:
    size = 64
    data = write_scenes(folder / "scenes", 16, 10, size, task)
    given = {**options(folder, data, size), **training(8, 2, 0)}
    yolo = opened(name, folder)
    slimming = SparseTraining(partial(netslim.NetworkSlimming, strength=1.0, penalty="proximal"))
    slimming.register(yolo)
    yolo.train(**given, name="sparse")
    slimming.remove(yolo)
    whole = netslim.cost(yolo.model, torch.zeros(1, 3, size, size))
    batches = images(yolo, data, size=size, batch=4, count=1)
    budget = netslim.Budget(cut_macs=share)
    small = netslim.slim(yolo.model, batches[0][:1], budget=budget, criterion="bn_scale")
    replace_network(yolo, small)
    kept = shapes(yolo)
    row = {"network": name, "task": task, "share": share, "refused": refused(yolo, given)}
    yolo.train(trainer=trainer_of(yolo), **given, name="tuned")
    best = type(yolo)(yolo.trainer.best)
    cost = netslim.cost(best.model, torch.zeros(1, 3, size, size))
    row |= {"params": whole.params, "macs_left": round(cost.macs / whole.macs, 4)}
    row |= {"kept": shapes(best) == kept, "scales": slimming.method.scales().mean().item()}
    row["without_netslim"] = opens_alone(yolo.trainer.best, type(yolo).__name__)
    return {**row, "onnx_deviation": deviation(best, size)}


def refused(yolo: Any, given: dict[str, Any]) -> bool:
    """Whether their trainer as it is says that it would lose the cut."""
    try:
        yolo.train(**given, name="refused")
    except KeyError as error:
        return "cut by netslim" in str(error)
    return False


def opens_alone(path: Path, kind: str) -> bool:
    """Whether a process that has no netslim opens the file and predicts with it."""
    code = f"""
import sys
sys.modules["netslim"] = None
import torch
from ultralytics import {kind}
{kind}({str(path)!r}).predict(torch.rand(1, 3, 64, 64), imgsz=64, verbose=False)
"""
    return (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
        == 0
    )


def deviation(yolo: Any, size: int) -> float:
    """Largest difference between ONNX Runtime and PyTorch, as a share of the largest output."""
    import onnxruntime

    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = first_of(copy.deepcopy(yolo.model).eval().fuse(verbose=False)(x))
    path = yolo.export(format="onnx", imgsz=size, simplify=False, device="cpu")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    return float((found - expected).abs().max() / expected.abs().max())


def first_of(outputs: Any) -> torch.Tensor:
    while not isinstance(outputs, torch.Tensor):
        outputs = outputs[0]
    return outputs.detach()


def families_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            *(row["network"], row["task"], f"{row['params'] / 1e6:.1f}", f"{row['macs_left']:.2f}"),
            *(str(row[name]) for name in ("refused", "kept", "without_netslim")),
            f"{row['onnx_deviation']:.0e}",
        ]
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["digits", "families"])
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--ways", nargs="+", choices=["images", "scales"], default=["images", "scales"]
    )
    parser.add_argument("--work", help="where trainings are kept, to go on from; of one network")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--sparse", type=int, default=8)
    parser.add_argument("--finetune", type=int, default=6)
    parser.add_argument("--strength", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = f"yolo_{arguments.part}"
    columns: tuple[str, ...]
    if arguments.part == "families":
        columns = ("network", "task", "M params", "MACs left", "refused", "kept", "alone", "ONNX")
        asked = [row for row in FAMILIES if not arguments.networks or row[0] in arguments.networks]
        steps = [partial(family, *row) for row in asked]
        table = families_table
    else:
        columns = ("network", "seed", "stage", "mAP", "mAP50", "M MACs", "M params")
        asked = [
            (one, seed)
            for one in arguments.networks or ["yolo11n", "yolov3"]
            for seed in arguments.seeds
        ]
        steps = [partial(digits, one, seed, arguments) for one, seed in asked]
        table = digits_table
    known = RESULTS / f"{name}.json"
    rows = json.loads(known.read_text())["rows"] if known.exists() else []
    for step in steps:
        with tempfile.TemporaryDirectory() as made:
            row = step(Path(arguments.work or made).resolve())
        same = (row["network"], row.get("seed"))
        rows = [*(one for one in rows if (one["network"], one.get("seed")) != same), row]
        record(name, {"ultralytics": ultralytics.__version__, "rows": rows})
    show("YOLO in ultralytics' trainer", columns, table(rows))


if __name__ == "__main__":
    main()
