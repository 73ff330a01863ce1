"""A network brought to int8, and set beside what it was made of: accuracy, bytes, milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import netslim.training.processes as processes
from netslim._support import alone_in, read_bytes, using_threads, write_atomic
from netslim.errors import RecipeError
from netslim.measure.latency import Latency
from netslim.methods.quantizing import Quantized
from netslim.report.chance import chance
from netslim.training.commands import looking
from netslim.training.loop.progress import Display
from netslim.training.recipe.schema import Quantize, Recipe
from netslim.training.stages.folder import Forms, RunFolder
from netslim.training.stages.measure import side_by_side
from netslim.training.stages.networks import told_if_fresh
from netslim.training.stages.onnx_network import InOnnxRuntime
from netslim.training.stages.quantize import carry_out
from netslim.training.stages.runner import Runner

NAMES = ("float", "int8")


@dataclass(frozen=True)
class Look:
    """What one of the two files does.

    Attributes:
        accuracy: on the images that were looked at, 0 to 1.
        size_bytes: of the file.
        latency: of ONNX Runtime on the CPU; None where nothing was timed.
    """

    accuracy: float
    size_bytes: int
    latency: Latency | None


@dataclass(frozen=True)
class Compared:
    """What `quantize` did.

    Attributes:
        made: the file.
        looks: `float` and `int8`.
        split, images: which images were looked at, and how many.
        notes: sentences.
    """

    made: Quantized
    looks: dict[str, Look]
    split: str
    images: int
    notes: tuple[str, ...]


def quantize(
    recipe: Recipe,
    out: Path,
    *,
    split: str = "validation",
    most: int | None = None,
    latency_batch: int = 1,
) -> Compared:
    """Bring a recipe's model to int8 as its one stage says, and compare it with what it was.

    Args:
        recipe: of a quantize stage.
        out: an `.onnx` file that does not exist yet.
        split: `validation` or `test`: which images both are looked at with.
        most: at most so many of them; None takes all.
        latency_batch: images in a timed call; 0 times nothing.

    Raises:
        RecipeError: `out` exists or is no `.onnx` file, or the model does not fit the data.
        ExportError: as `netslim.quantize`.
    """
    processes.refuse_several(recipe.trainer)
    _refuse(out)
    stage = recipe.stages[0]
    assert isinstance(stage, Quantize)
    runner = Runner(recipe, RunFolder(out.with_suffix(".run")), Display(), "")
    with using_threads(recipe.trainer.threads), TemporaryDirectory() as folder:
        forms = Forms(Path(folder) / "float.onnx", Path(folder) / "int8.onnx")
        runner.refuse_masked()
        network, prepared = runner.build(), runner.data.preprocessing
        work = (stage, network, runner.example(), runner.bench.batches, prepared, forms)
        with runner.display.counting("quantize") as progress:
            made = carry_out(*work, progress)
        running = {
            name: InOnnxRuntime(read_bytes(path))
            for name, path in zip(NAMES, (forms.exact, forms.int8), strict=True)
        }
        accuracy, labels = looking.accuracy(runner, split, most)
        found = {name: accuracy(one) for name, one in running.items()}
        times: dict[str, Latency] = {}
        if latency_batch:
            example = torch.zeros(latency_batch, *runner.data.shape)
            with runner.display.counting("quantize") as progress:
                times = side_by_side(dict(running), example, torch.device("cpu"), progress)
        sizes = dict(zip(NAMES, (made.float_bytes, made.size_bytes), strict=True))
        looks = {name: Look(found[name], sizes[name], times.get(name)) for name in NAMES}
        notes = (told_if_fresh(recipe.model), *runner.data.notes, chance(found["int8"], labels))
        _keep(forms.int8, out)
    kept = tuple(filter(None, notes))
    return Compared(made, looks, split, len(labels), kept)


def _refuse(out: Path) -> None:
    if out.suffix != ".onnx":
        raise RecipeError(
            f"--out {out}: a network in int8 is written to an .onnx file here (netslim.quantize in "
            "Python writes .pt2, too)"
        )
    if out.exists():
        raise RecipeError(
            f"{out} exists already, and finished work is not overwritten; choose another --out"
        )


def _keep(made: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(out.parent):
        _refuse(out)
        write_atomic(out, read_bytes(made))


__all__ = ["Compared", "Look", "quantize"]
