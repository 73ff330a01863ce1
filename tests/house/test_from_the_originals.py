"""Every command of docs/from-the-originals.md is carried out, on small pictures and narrow
networks.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import netslim
from netslim.cli import main
from netslim.training.commands import step
from netslim.training.recipe.files import shipped
from netslim.training.recipe.schema import Recipe
from places import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "from-the-originals.md"
TORCH, PORT, CSGD, FILTERS = (
    "Network Slimming in Torch",
    "Network Slimming in PyTorch",
    "Centripetal SGD",
    "Pruning filters, hard and soft",
)
FLAGS = {
    TORCH: "main.lua main_fine_tune.lua prune/prune.lua convert/vgg.lua -data -dataset "
    "-manualSeed -nGPU -backend -cudnn -gen -nThreads -nEpochs -epochNumber -batchSize "
    "-testOnly -testResult -tenCrop -save -resume -LR -momentum -weightDecay -constant "
    "-netType -depth -shortcutType -retrain -optimState -shareGradInput -optnet "
    "-resetClassifier -nClasses -S -percent -model",
    PORT: "--dataset -sr --sparsity-regularization --s --refine --batch-size --test-batch-size "
    "--epochs --start-epoch --lr --momentum --weight-decay --wd --resume --no-cuda --seed "
    "--log-interval --save --arch --depth vggprune.py resprune.py denseprune.py --percent "
    "--model mask-impl/main_mask.py mask-impl/prune_mask.py",
    CSGD: "magnitude1 csgd1 eval PRETRAINED_MODEL_FILE DATA_PATH BATCH_SIZE MAX_EPOCHS "
    "LR_VALUES LR_BOUNDARIES DC40_L2_FACTOR EPSILON_VALUE slow_on_vec TARGET_DEPS "
    "cluster_method -a -i -c --local_rank ndp_test.py",
    FILTERS: "--train-flag --hard-prune-flag --soft-prune-flag --independent-prune-flag "
    "--test-flag --network --load-path --save-path --epoch --lr --lr-milestone --lr-gamma "
    "--momentum --weight-decay --prune-layers --prune-channels --prune-rate --data-set "
    "--data-path --batch-size --imsize --cropsize --crop-padding --hflip --gpu-flag",
}

# What stands in for the networks, data, epochs and paths of the document.
NETWORKS = {
    "zoo:vgg19": "zoo:vgg --model.layers '[8, M, 8, M, 8]'",
    "zoo:vgg16_bn_4096": "zoo:vgg16_bn_4096 --model.width 0.0625",
    "zoo:densenet40": "zoo:densenet --model.depth 7",
    "zoo:preresnet164": "zoo:preresnet --model.depth 11",
    "zoo:resnet32": "zoo:resnet --model.depth 8",
    "zoo:resnet56": "zoo:resnet --model.depth 8",
    "torchvision:resnet50": "zoo:resnet --model.depth 8 --model.shortcut B",
    "timm:resnet18": "zoo:resnet --model.depth 8",
}
VALUES = {
    "--epochs": "1",
    "--batch-size": "16",
    "--schedule.warmup": "0.5",
    "--data.image_size": {"256": "40", "224": "32"},
    "--ten-crop": "32",
    "--device": {"cuda": "auto"},
}
ALWAYS = {
    "train": "--epochs 1 --batch-size 16 --trainer.limit_batches 2 --trainer.tensorboard false "
    "--trainer.threads 1",
    "prune": "--trainer.threads 1",
    "evaluate": "--trainer.limit_batches 2 --trainer.threads 1",
}
ALWAYS["finetune"] = ALWAYS["train"]


def sections() -> dict[str, str]:
    _, *parts = DOCUMENT.read_text(encoding="utf-8").split("\n## ")
    return {part.partition("\n")[0]: part for part in parts}


def commands(text: str) -> list[str]:
    """Every command of a text once, in order; those of code blocks may go over several lines."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    found = re.findall(r"^(netslim .+)$|`(netslim [^`]+)`", joined, re.MULTILINE)
    return list(dict.fromkeys(block or inline for block, inline in found))


def rows(text: str) -> Iterator[tuple[list[str], str, str]]:
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] not in ("theirs", "---"):
            assert len(cells) == 3, line
            yield (
                [flag for names in re.findall("`([^`]+)`", cells[0]) for flag in names.split()],
                cells[1],
                cells[2],
            )


class Bench:
    """A folder with pictures and the files that the commands have left, under their names in the
    document.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.files, self.count = folder, {}, 0
        self.done: dict[tuple[str, ...], Path] = {}
        self.pictures = folder / "pictures"
        generator = np.random.default_rng(0)
        for split, number in (("train", 4), ("test", 1)):
            for label in range(10):
                place = self.pictures / split / str(label)
                place.mkdir(parents=True)
                for index in range(number):
                    pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{index}.png")

    def small(self, command: str) -> tuple[list[str], Path | None]:
        """The arguments of a command with everything in it made small, and the file that it writes."""
        _, verb, model, *rest = shlex.split(command.partition(" > ")[0])
        arguments = [verb, *shlex.split(NETWORKS.get(model, model))]
        arguments[1] = self.files.get(model, arguments[1])
        option, out = "", None
        for item in rest:
            if item.startswith("--"):
                option = item
            elif option == "--out":
                self.count += 1
                out = self.folder / f"{self.count:02d}" / item
                self.files[item], item = str(out), str(out)
            elif option == "--data":
                item = f"folder:{self.pictures}"
            elif option == "--counts":
                item = str(max(1, int(item) // 16))
            else:
                known = VALUES.get(option, item)
                item = known.get(item, item) if isinstance(known, dict) else known
            arguments.append(item)
        if "--model.pretrained" in arguments:
            del arguments[(place := arguments.index("--model.pretrained")) : place + 2]
        small = ALWAYS[verb].split()
        for option in [item for item in small if item.startswith("--") and item in arguments]:
            start = end = arguments.index(option) + 1
            while end < len(arguments) and not arguments[end].startswith("--"):
                end += 1
            del arguments[start - 1 : end]
        return [*arguments, *small], out

    def carry_out(self, command: str) -> None:
        """Once for all commands that are the same when they are small."""
        arguments, out = self.small(command)
        same = tuple(argument for argument in arguments if argument != str(out))
        if same in self.done:
            self.files = {
                name: str(self.done[same]) if made == str(out) else made
                for name, made in self.files.items()
            }
            return
        before = self.contents()
        assert main(arguments) == 0, command
        if arguments[0] == "evaluate":
            assert self.contents() == before, command
            return
        assert out is not None
        self.done[same] = out
        assert isinstance(netslim.models.build(out), nn.Module)
        if arguments[0] == "prune":
            netslim.PruningPlan.from_json(out.with_suffix(".plan.json").read_text())
        else:
            (metrics,) = out.with_suffix(".run").glob("*/metrics.csv")
            assert len(metrics.read_text().splitlines()) == 2, command  # the head and one epoch

    def contents(self) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in self.folder.rglob("*")}


class Together:
    """Commands that train the same network, all here on the same data, and say different things
    about it, become one that says all of them; what says no more than one that leaves a file for
    others is carried out with that.
    """

    def __init__(self) -> None:
        self.options: list[tuple[list[str], dict[str, list[str]]]] = []
        self.alone: list[tuple[list[str], dict[str, list[str]]]] = []

    def takes(self, command: str) -> bool:
        """Whether it trains for a file that no other command reads; then it is among them."""
        _, *words = shlex.split(command)
        what, given = words[:2], dict[str, list[str]]()
        for word in words[2:]:
            if word.startswith("--"):
                values = given.setdefault(word, [])
            else:
                values.append(word)
        if what[0] not in ("train", "finetune"):
            return False
        data, (out,) = given.pop("--data"), given.pop("--out")
        if not re.fullmatch(r"(.*/)?[a-d]\.safetensors", out):
            self.alone.append((what, given))
            return False
        if any(known == what and given.items() <= others.items() for known, others in self.alone):
            return True
        for (*known, _, _), others in self.options:
            if known == what and all(others.get(key, mine) == mine for key, mine in given.items()):
                others.update(given)
                return True
        self.options.append(([*what, *data, out], given))
        return True

    def commands(self) -> Iterator[str]:
        for (verb, model, data, out), given in self.options:
            flags = [word for flag, values in given.items() for word in (flag, *values)]
            yield shlex.join(["netslim", verb, model, "--data", data, *flags, "--out", out])


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_has_a_row_that_can_be_carried_out_or_says_why_not(name):
    text = sections()[name]
    known = commands(text)
    named = []
    for flags, ours, remark in rows(text):
        named += flags
        if ours == "-":
            assert remark, flags
        else:
            assert ours.startswith("`netslim "), flags
            assert ours.strip("`") in known, flags
    assert not set(FLAGS[name].split()) - set(named)


class UnderstoodError(Exception):
    """What a command asks for has become a recipe."""


@pytest.mark.parametrize("name", FLAGS)
def test_every_command_is_carried_out(name, tmp_path, monkeypatch, capsys):
    """Those of rows, which differ in a flag or two, each as far as its recipe, and together."""
    monkeypatch.chdir(tmp_path)
    bench, of_rows = Bench(tmp_path), Together()
    for command in commands(sections()[name]):
        if not of_rows.takes(command):
            bench.carry_out(command)
            continue
        arguments, _ = bench.small(command)
        with monkeypatch.context() as patch:
            patch.setattr(step, "carry_out", raising)
            with pytest.raises(UnderstoodError):
                main(arguments)
    for command in of_rows.commands():
        bench.carry_out(command)
    assert "Traceback" not in capsys.readouterr().err


def raising(recipe: Recipe, *_: object, **__: object) -> None:
    raise UnderstoodError(recipe.name)


def test_the_recipes_it_names_exist():
    text = DOCUMENT.read_text(encoding="utf-8")
    named = [
        name
        for group in re.findall(r"\(recipes? ([^)]*)\)", text)
        for name in re.findall("`([^`]+)`", group)
    ]
    assert len(named) > 8
    assert not set(named) - set(shipped())


def test_nothing_else_is_claimed():
    assert list(sections()) == list(FLAGS)
