"""One step of the way by itself, from a model or checkpoint to a checkpoint: what the plain
commands do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import netslim
import netslim.ranks as ranks
import netslim.training.processes as processes
from netslim import models
from netslim._support import alone_in, read_bytes, using_threads, write_atomic
from netslim.data.preprocessing import KEY
from netslim.errors import RecipeError
from netslim.measure.count import Cost
from netslim.methods.cutting import Cut
from netslim.methods.sensitivity_result import Sensitivity
from netslim.report.chance import chance
from netslim.surgery.plan import PruningPlan
from netslim.training.commands import looking
from netslim.training.loop.epochs import derive, made_up
from netslim.training.loop.progress import Display, silent
from netslim.training.recipe.checks import teacher
from netslim.training.recipe.reading import of_command, override, parse_recipe
from netslim.training.recipe.schema import Prune, Recipe, Train
from netslim.training.stages import prune as cutting
from netslim.training.stages.folder import RunFolder, read_json
from netslim.training.stages.networks import noted_in, told_if_fresh
from netslim.training.stages.onnx_network import Exported
from netslim.training.stages.prune import Batches
from netslim.training.stages.runner import Runner, claimed

Results = dict[str, Any]
LOOK = 1000  # validation images that a cut network is looked at with, at most
_OF_STAGE = ("optimizer", "schedule", "sparsity", "gradual", "distill", "budget")


# ---------------------------------------------------------------- the recipe of a step


def step(
    kind: str,
    model: str,
    data: str,
    options: Mapping[str, Any],
    overrides: Mapping[str, str] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe of one stage.

    Args:
        kind: `train`, `finetune`, `prune`, or `measure`.
        model: name of a model, or a checkpoint.
        data: name of a data set.
        options: of the stage, as in a recipe.
        overrides: dotted keys, as on the command line; `optimizer.`, `schedule.`, `sparsity.`,
            `gradual.`, `distill.` and `budget.` belong to the stage, `model.`, `data.` and
            `trainer.` to the recipe.
        settings: further keys of the recipe, such as `{"seed": 1, "trainer": {"threads": 1}}`.

    Raises:
        RecipeError: as `parse_recipe`, without the stage's name, which the user of one command does
            not know.
    """
    stage = {"kind": kind, **options}
    tree: dict[str, Any] = {"name": kind, "title": f"{kind} {model}", **(settings or {})}
    tree["data"] = {"name": data, **tree.get("data", {})}
    tree |= {"model": {"name": model}, "stages": [stage]}
    try:
        for key, text in (overrides or {}).items():
            override(tree, of_command(key, kind, _OF_STAGE), text)
        return parse_recipe(tree, whole=False)
    except RecipeError as error:
        raise RecipeError(str(error).replace(f"stages.{kind}.", "")) from None


# ---------------------------------------------------------------- train, finetune


def carry_out(
    recipe: Recipe,
    out: Path,
    *,
    command: str = "",
    display: Display | None = None,
    changed_ok: bool = False,
) -> Results:
    """Carry out a recipe of one training stage and leave its network in the file `out`.

    What the stage leaves besides (metrics, the state to go on from after a kill) lies in
    `folder_of(out)`. A file that is there already is never overwritten, and nothing is written
    before model, data and teacher are known to fit.

    Returns:
        What the stage found.

    Raises:
        RecipeError: `out` exists, is no `.safetensors` file, or its folder belongs to other
            settings.
        NetslimError: as the stage does.
        KeyboardInterrupt: finished epochs are kept.
    """
    _refuse(out)
    folder = RunFolder(folder_of(out))
    folder.refuse_strangers()
    if processes.to_start(recipe.trainer):
        again = partial(carry_out, command=command, changed_ok=changed_ok)
        processes.start(recipe.trainer, partial(again, recipe, out))
        left = folder.stage(0, recipe.stages[0])
        return read_json(left.marker, "it was written on the first machine")
    with (
        processes.joined(recipe.trainer) as here,
        using_threads(recipe.trainer.threads),
        ExitStack() as held,
    ):
        if here.rank:
            display = silent()
        runner = Runner(recipe, folder, display or Display(), command, changed_ok)
        runner.agree()
        ranks.everywhere("a first try", lambda: _try(runner))
        ranks.shared("the run folder", lambda: claimed(folder, recipe, held))
        ranks.shared("the environment", runner.note_environment)
        found = runner.stage(0, recipe.stages[0])
        model = runner.folders[0].model
        ranks.shared("the network", lambda: _copy(model, out))
    return found


def _copy(model: Path, out: Path) -> None:
    with alone_in(out.parent):
        _refuse(out)
        write_atomic(out, read_bytes(model))


def folder_of(out: Path) -> Path:
    """The folder with what training leaves besides its network `out`."""
    return out.with_suffix(".run")


def _try(runner: Runner) -> None:
    """Build what the stage needs, so that mistakes show before anything is written."""
    stage = runner.recipe.stages[0]
    assert isinstance(stage, Train)
    runner.build()
    if stage.sparsity is not None and "mask" in runner.given:
        raise RecipeError(
            f"{runner.recipe.model.name} is masked, and what is silent cannot be made sparse: "
            "cut it first, with `netslim prune --by mask`, or train without sparsity"
        )
    if stage.gradual is not None:
        runner.refuse_masked()
    if stage.distill is not None:
        wanted = teacher(runner.recipe, stage)
        if isinstance(wanted, str):
            runner.teacher(wanted, stage.distill)


def _refuse(out: Path) -> None:
    if out.suffix != ".safetensors":
        name = f"{out}.safetensors" if out.name else "small.safetensors"
        raise RecipeError(
            f"--out {out}: a network is written to a .safetensors file, for instance {name}"
        )
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise RecipeError(f"--out {out}: {above} is a file, and no folder can be made in it")
    if out.exists():
        raise RecipeError(
            f"{out} exists already, and finished work is not overwritten; choose another --out"
        )


# ---------------------------------------------------------------- prune


@dataclass(frozen=True)
class Pruned:
    """What `prune` did.

    Attributes:
        cut: the network, its plan and the proof.
        before, after: what one example costs.
        plan_file: where the plan was written.
        warnings: sentences.
        notices: sentences on what was chosen where nothing was said, and on the accuracy.
        accuracies: on validation images before and after, 0 to 1; None where none were looked at.
        images: how many were.
    """

    cut: Cut[nn.Module]
    before: Cost
    after: Cost
    plan_file: Path
    warnings: tuple[str, ...]
    notices: tuple[str, ...] = ()
    accuracies: tuple[float, float] | None = None
    images: int = 0


def prune(
    recipe: Recipe,
    out: Path,
    shape: Sequence[int] | None = None,
    limits: Sensitivity | None = None,
    look: int = LOOK,
) -> Pruned:
    """Cut a network as the one stage of a recipe says and write it to `out`, its plan beside it as
    `.plan.json`.

    Args:
        recipe: of a prune stage.
        out: a `.safetensors` file that does not exist yet.
        shape: of one example without the batch; None takes the images of the recipe's data set,
            which are read only where something needs them.
        limits: what the stage's `max_cut` was taken from, if from a sensitivity; it must be of this
            architecture.
        look: at most so many validation images, before and after, where there is a data set; 0
            leaves it out.

    Raises:
        RecipeError: `out` exists, or images are needed and no data set is named.
        NetslimError: as the cut does.
    """
    stage = recipe.stages[0]
    assert isinstance(stage, Prune)

    def work(
        network: nn.Module, example: Tensor, batches: Batches, runner: Runner
    ) -> Cut[nn.Module]:
        runner.refuse_masked()
        if limits is not None:
            limits.check(network)
        clusters, data = runner.given.get("clusters"), shape is None
        if stage.by == "clusters" and clusters is None:
            raise RecipeError(
                f"{recipe.model.name} does not say what was drawn together: train it with "
                "--sparsity.method centripetal, and merge the file which that leaves before it "
                "is trained or cut any further"
            )
        with runner.display.counting("prune") as progress:
            return cutting.carry_out(
                stage,
                network,
                example,
                batches,
                clusters,
                recipe.seed,
                data=data,
                progress=progress,
            )

    done = _cut(recipe, out, shape, work, look)
    notice = cutting.notice(stage, done.cut.plan)
    if notice and _was_slimmed(recipe):
        return replace(done, notices=(notice, *done.notices))
    return done


def _was_slimmed(recipe: Recipe) -> bool:
    """Whether the model is a checkpoint that says so."""
    return bool(noted_in(recipe.model).get("slimmed"))


def unmask(
    recipe: Recipe, out: Path, shape: Sequence[int] | None = None, look: int = LOOK
) -> Pruned:
    """Cut out of a masked network, trained on since or not, what its mask holds at zero.

    Args:
        recipe: whose model is a checkpoint that `prune` with `mode: mask`, or training after it,
            has left.
        out, shape, look: as for `prune`.

    Raises:
        RecipeError: as `prune`; the model is not masked.
        NetslimError: as the cut does.
    """

    def work(network: nn.Module, example: Tensor, _: Batches, runner: Runner) -> Cut[nn.Module]:
        mask = runner.given.get("mask")
        if mask is None:
            raise RecipeError(
                f"{recipe.model.name} is not masked: `netslim prune --mask` makes files that are"
            )
        return cutting.convert(network, PruningPlan.from_json(mask), example)

    return _cut(recipe, out, shape, work, look)


def _cut(
    recipe: Recipe,
    out: Path,
    shape: Sequence[int] | None,
    work: Callable[..., Cut[nn.Module]],
    look: int,
) -> Pruned:
    processes.refuse_several(recipe.trainer)
    _refuse(out)
    plan_file = out.with_suffix(".plan.json")
    runner = Runner(recipe, RunFolder(folder_of(out)), Display(), "")
    with using_threads(recipe.trainer.threads):
        if shape is None:
            prepared: Results | None = runner.data.preprocessing.to_json()
            network, origin = runner.build(), runner.origin
            example, batches = runner.example(), runner.bench.batches
        else:
            prepared = runner.given.get(KEY)
            network, origin = _without_data(runner)
            example, batches = made_up(recipe.seed, shape), _no_data
        network.eval()
        done = work(network, example, batches, runner)
        before, after = (netslim.cost(item, example[:1]) for item in (network, done.network))
    metadata: Results = {}
    if prepared is not None:
        metadata[KEY] = prepared
    if done.check is None:
        metadata["mask"] = done.plan.to_json()
    out.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(out.parent):
        _refuse(out)
        _write_plan(plan_file, done.plan.to_json())
        netslim.save(done.network, out, constructor=origin or None, metadata=metadata)
    warnings = list(done.warnings)
    if not (done.plan.groups or done.plan.dropped):
        warnings.append("nothing was cut: the amounts come to no channel of any layer")
    found = Pruned(done, before, after, plan_file, tuple(warnings))
    if shape is not None or not look or not len(runner.data.validation):
        return found
    with using_threads(recipe.trainer.threads):
        return _looked_at(found, runner, network, look)


def _looked_at(found: Pruned, runner: Runner, network: nn.Module, most: int) -> Pruned:
    """With the accuracies of the networks before and after; the work is done and kept by now."""
    accuracy, labels = looking.accuracy(runner, "validation", most)
    before, after = accuracy(network), accuracy(found.cut.network)
    blind = chance(after, labels)
    return replace(
        found,
        notices=(*found.notices, *filter(None, [blind])),
        accuracies=(before, after),
        images=len(labels),
    )


def _write_plan(path: Path, plan: str) -> None:
    """Written before the network, so that where there is a network its plan is there, too; one that
    a killed command has left is the same.
    """
    if path.exists() and read_bytes(path) != plan.encode():
        raise RecipeError(
            f"{path} exists already, and nothing is overwritten; choose another --out"
        )
    write_atomic(path, plan)


def _without_data(runner: Runner) -> tuple[nn.Module, Results]:
    """The network as its name says, without a data set that tells the number of classes, and its
    constructor.
    """
    options = runner.recipe.model
    if options.is_file:
        return runner.construct(), runner.origin
    torch.manual_seed(derive(runner.recipe.seed, "network"))
    network = models.build(options.name, say=runner.display.say_once, **options.kwargs)
    return network, models.constructor(options.name, options.kwargs)


def _no_data(count: int) -> Any:
    raise RecipeError(
        f"this needs {count} batches of training images: name a data set with --data, not --input"
    )


# ---------------------------------------------------------------- evaluate


@dataclass(frozen=True)
class Evaluation:
    """What a network does on one split of its data.

    Attributes:
        split, images: which images, and how many.
        loss: mean cross entropy.
        top1, top5: shares, 0..1; top5 is None with five classes or fewer.
        params, macs: of the network, for one image (or one crop of it); None of an ONNX file.
        size_bytes: of the file that holds the network; None for a model by name.
        notes: remarks, such as on images that are prepared otherwise than in training, and that
            an accuracy is chance.
    """

    split: str
    images: int
    loss: float
    top1: float
    top5: float | None
    params: int | None
    macs: int | None
    size_bytes: int | None
    notes: tuple[str, ...] = ()


def evaluate(recipe: Recipe, split: str = "test", ten_crop: int | None = None) -> Evaluation:
    """Look at one split with the recipe's model as it is; nothing is trained and nothing is
    written.

    Args:
        recipe: its model, which may be an `.onnx` file here, data and trainer.
        split: `test` or `validation`.
        ten_crop: side in pixels of ten squares of each image, whose answers are averaged; None
            takes whole images.

    Raises:
        RecipeError: the model does not fit the data, or there is no such split.
    """
    processes.refuse_several(recipe.trainer)
    with using_threads(recipe.trainer.threads):
        runner = Runner(recipe, RunFolder(Path()), Display(), "")
        network = _network(runner)
        looking = network
        if ten_crop is not None:
            looking = _TenCrop(network, ten_crop)
        runner.check_outputs(looking, recipe.model.name)
        labels = runner.bench.labels(runner.images_of(split))
        params: int | None = None
        macs: int | None = None
        if not isinstance(network, Exported):
            cost = netslim.cost(network.eval(), runner.example()[:1, :, :ten_crop, :ten_crop])
            params, macs = cost.params, cost.macs
        means = runner.bench.means(looking, runner.bench.loader(split))
    size = getattr(network, "size_bytes", None)
    notes = [told_if_fresh(recipe.model), *runner.data.notes, chance(means.accuracy, labels)]
    if recipe.model.files:
        size = Path(recipe.model.files[0]).stat().st_size
    return Evaluation(
        split,
        len(labels),
        means.loss,
        means.accuracy,
        means.top5,
        params,
        macs,
        size,
        tuple(filter(None, notes)),
    )


def _network(runner: Runner) -> nn.Module:
    """The network to look at; the images of an ONNX file are prepared as that says."""
    model = runner.recipe.model
    if not model.name.endswith(".onnx"):
        return runner.construct()
    if model.kwargs:
        raise RecipeError(
            f"model: {model.name} is finished, and takes no {', '.join(model.kwargs)}"
        )
    network = Exported(model.name)
    runner.trained_on = network.prepared  # instead of what a checkpoint notes
    return network


class _TenCrop(nn.Module):
    """The mean of a network's answers to the corners and the centre of each image, and to their
    mirror images.

    Krizhevsky et al. 2012, section 4.1, though scores are averaged here and not probabilities.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        from torchvision.transforms.v2.functional import ten_crop

        if not 1 <= self.size <= min(images.shape[-2:]):
            raise ValueError(f"ten crops of {self.size} pixels do not fit into them")
        return torch.stack(
            [self.network(part) for part in ten_crop(images, [self.size, self.size])]
        ).mean(0)
