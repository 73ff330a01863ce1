"""The networks of a run: the one it starts from, those its stages leave, and what to try them on.

A stage never hands its network on in memory. It writes it to its folder, and the next one reads it
from there into a fresh uncut network: so a run that was stopped in between goes on from the very
bits that one in a single go would have had.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import netslim
import netslim.ranks as ranks
import netslim.training.processes as processes
from netslim import models
from netslim._support import first_line, read_bytes
from netslim.data.fingerprint import fingerprint
from netslim.data.preprocessing import KEY, Preprocessing
from netslim.data.splits import Data, Split
from netslim.errors import RecipeError
from netslim.models import checkpoint
from netslim.models.building import unfilled
from netslim.models.fetched import classes_of, takes_classes
from netslim.models.file_constructors import Trust
from netslim.training.loop.epochs import derive
from netslim.training.loop.fit import Bench
from netslim.training.loop.progress import Display
from netslim.training.recipe.schema import (
    SIDE_BRANCHES,
    Baseline,
    DistillOptions,
    ModelOptions,
    Recipe,
    Train,
)
from netslim.training.stages.changes import basis
from netslim.training.stages.environment import choose_device, choose_precision, versions
from netslim.training.stages.folder import RunFolder, StageFolder, digest
from netslim.training.stages.ground import Ground, Standing
from netslim.training.stages.images import load_images
from netslim.training.stages.measure import AS_BUILT
from netslim.training.stages.teachers import as_trained

Results = dict[str, Any]


def check_shares(recipe: Recipe) -> None:
    """Refuse batches that cannot be shared out among the ranks.

    Raises:
        RecipeError: says which sizes can.
    """
    count, batch = ranks.count(), recipe.data.batch_size
    if batch % count:
        lower = batch - batch % count
        raise RecipeError(
            f"data.batch_size: {batch} images are not the same number for each of {count} "
            f"processes; say {max(lower, count)} or {lower + count}"
        )


class Networks:
    """The networks and the data of a run; the data is loaded when it is first needed."""

    def __init__(self, recipe: Recipe, folder: RunFolder, display: Display) -> None:
        self.recipe, self.folder, self.display = recipe, folder, display
        self.device = choose_device(recipe.trainer)
        self.precision = choose_precision(recipe.trainer, self.device)
        self.folders = [folder.stage(index, stage) for index, stage in enumerate(recipe.stages)]
        for index, place in enumerate(self.folders):
            place.ground = Ground(cache(partial(self._standing, index)), self.accepts)

    # ------------------------------------------------------------ what stages stand on

    def accepts(self, changed: list[str]) -> bool:
        """Whether a run may go on though what it stands on has changed."""
        return False

    def _standing(self, index: int) -> Standing:
        """What stage `index` stands on, as plain data."""
        return {
            "stage": self.folders[index].label,
            "seed": self.recipe.seed,
            "settings": basis(self.recipe, index + 1),
            "before": {path.name: digest(path) for path in self._files_before(index)},
            "data": self._images,
            "versions": versions(),
        }

    @cached_property
    def _images(self) -> dict[str, Any]:
        return fingerprint(self.data)

    def _files_before(self, index: int) -> list[Path]:
        """The files that hold the network that stage `index` starts from."""
        before = self._position_before(index)
        if before is not None and not isinstance(self.recipe.stages[index], Baseline):
            return [self.folders[before].model]
        return [path for path in map(Path, self.recipe.model.files) if path.is_file()]

    def _position_before(self, index: int) -> int | None:
        """Of the stage whose network stage `index` starts from, if one does.

        Side branches are passed over: baselines, networks from scratch, files for other runtimes.
        """
        main = (
            position
            for position in reversed(range(index))
            if not isinstance(self.recipe.stages[position], SIDE_BRANCHES)
        )
        return next(main, None)

    # ------------------------------------------------------------ what they are tried on

    @cached_property
    def data(self) -> Data:
        """The recipe's images."""
        return load_images(self.recipe, self.trained_on)

    @cached_property
    def trained_on(self) -> Preprocessing | None:
        """How the images were prepared that the checkpoint the run starts from was trained on."""
        return Preprocessing.noted(self.given, self.recipe.model.name)

    @cached_property
    def bench(self) -> Bench:
        """Where the run trains."""
        return Bench(self.recipe, self.data, self.device, self.precision, self.display)

    def agree(self) -> None:
        """See to it that all ranks have the same recipe and the same data, which is loaded.

        Raises:
            DisagreementError: they have not; on every rank: names the digests.
            RecipeError: the batches cannot be shared out among the ranks.
        """
        if ranks.count() == 1:
            return
        ranks.everywhere("the batch size", partial(check_shares, self.recipe))
        recipe, own = self.recipe.to_dict(), "give all of them the same"
        ranks.agree("the recipe", json.dumps(recipe, sort_keys=True), f"{own} command and files")
        # What one process downloads, the others of its machine find.
        for first in (True, False):
            ranks.everywhere("the data", partial(self._load_data, first))
        sizes = [len(split) for split in (self.data.train, self.data.validation, self.data.test)]
        told = json.dumps([sizes, self.data.preprocessing.to_json()])
        ranks.agree("the images", told, f"{own} data set")

    def _load_data(self, first: bool) -> None:
        if first == (processes.place().local_rank == 0):
            self.data  # noqa: B018 - it is loaded when it is first looked at

    def example(self) -> Tensor:
        """Two made-up images: (2, C, H, W), the same in every process."""
        return self.bench.example()

    def check_outputs(self, network: nn.Module, name: str) -> None:
        """Try `network`, of this name, on images like those of the data; it is left training.

        Raises:
            RecipeError: it does not take them, or gives something else than a score for each class.
        """
        classes, data = len(self.data.classes), self.recipe.data.name
        try:
            with torch.inference_mode():
                logits = network.eval()(self.example())
        except (RuntimeError, ValueError, TypeError) as error:
            shape = " x ".join(map(str, self.data.shape))
            reason = first_line(error)
            raise RecipeError(
                f"model: {name} does not take the images of {data} ({shape}): {reason}"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (2, classes):
            found = type(logits).__name__
            if isinstance(logits, Tensor):
                found = str(tuple(logits.shape))
            way = "set the option of the model that holds the number of classes"
            if name.endswith(".safetensors"):
                way = (
                    "a checkpoint keeps its classes: name the images that it was trained on, or "
                    f"start a network by name from it, with weights_file={name!r}"
                )
            raise RecipeError(
                f"model: {name} gives {found} for 2 images, but {data} has {classes} classes "
                f"and needs (2, {classes}); {way}"
            )
        network.train()

    # ------------------------------------------------------------ what the run starts from

    @property
    def from_file(self) -> bool:
        """Whether the run starts from a checkpoint, and not from a model by name."""
        return self.recipe.model.is_file

    @property
    def trust(self) -> Trust:
        """What checkpoints may have called: what the recipe names, or all where it says so."""
        return self.recipe.trust or (self.recipe.model.name,)

    @cached_property
    def given(self) -> Results:
        """What is noted in the checkpoint the run starts from: clusters, a mask; else empty."""
        return noted_in(self.recipe.model)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """The constructor of the uncut network; for a checkpoint the one in it, else the recipe's.

        The number of classes comes from the data. Weights that were learnt elsewhere are no part of
        it.
        """
        name = self.recipe.model.name
        if self.from_file:
            return checkpoint.read(name)[0]["constructor"] or {}
        return models.constructor(name, self._kwargs())

    def _kwargs(self) -> dict[str, Any]:
        """What the recipe says of its model, with the number of classes."""
        name, kwargs = self.recipe.model.name, dict(self.recipe.model.kwargs)
        if takes_classes(name):
            kwargs.setdefault("num_classes", len(self.data.classes))
        return kwargs

    def refuse_masked(self) -> None:
        """Refuse the checkpoint the run starts from where it is masked.

        Raises:
            RecipeError: it is.
        """
        if "mask" in self.given:
            raise RecipeError(
                f"{self.recipe.model.name} is masked: cut out what its mask silences first, with "
                "`netslim prune --by mask`"
            )

    def images_of(self, split: str) -> Split:
        """The images of `train`, `validation` or `test`, at least one.

        Raises:
            RecipeError: there are none.
        """
        images: Split = getattr(self.data, split)
        if not len(images):
            raise RecipeError(
                f"{self.recipe.data.name} has no {split} images here: set data.validation above 0"
            )
        return images

    def build(self) -> nn.Module:
        """The recipe's network with its first weights, the same in every process; fits the data."""
        network = self.construct()
        self.check_outputs(network, self.recipe.model.name)
        return network

    def construct(self) -> nn.Module:
        """`build` without trying the network on the data."""
        torch.manual_seed(derive(self.recipe.seed, "network"))
        name, kwargs = self.recipe.model.name, self.recipe.model.kwargs
        if not self.from_file:
            kwargs = self._kwargs()
            trained = isinstance(self.recipe.stages[0], Train)
            self._tell_of_classes(name, kwargs, trained)
            kwargs.setdefault("new_head", trained)
        return models.build(name, trust=self.trust, say=self.display.say_once, **kwargs)

    def _tell_of_classes(self, name: str, kwargs: Mapping[str, Any], trained: bool) -> None:
        """Say that fetched weights have other classes, or refuse where nothing trains the new ones.

        Raises:
            RecipeError: nothing does.
        """
        learnt, wanted = classes_of(name, kwargs), kwargs.get("num_classes")
        if learnt is None or learnt == wanted:
            return
        said = f"the weights of {name} are for {learnt} classes, and {wanted} are wanted"
        if not trained and not kwargs.get("new_head"):
            raise RecipeError(
                f"{said}: a new classifier knows nothing yet; train it first, with netslim train, "
                "or look at images of the classes that the weights were trained on"
            )
        self.display.say_once(f"{said}: a new classifier starts untrained")

    def teacher(self, name: str, distill: DistillOptions) -> nn.Module:
        """A network to learn from, a checkpoint or a model by name; it fits the data.

        Raises:
            RecipeError: as `check_outputs`; it has fresh weights, or was trained on images that
                those of the data cannot be brought to.
        """
        options, weights_file = ModelOptions(name), distill.teacher_weights
        if weights_file is not None:
            options = ModelOptions(name, {"weights_file": weights_file})
        kwargs = dict(options.kwargs)
        if takes_classes(name) and options.trained:
            kwargs["num_classes"] = len(self.data.classes)
        network = models.build(name, trust=self.trust, say=self.display.say_once, **kwargs)
        trained_on = self._images_of(options, distill)
        if trained_on is not None:
            network = as_trained(network, name, trained_on, self.data.preprocessing)
        self.check_outputs(network, name)
        if has_fresh_weights(options):
            raise RecipeError(
                f"teacher: {name} has fresh weights, and these teach nothing: name its checkpoint, "
                "or the file with its weights by distill.teacher_weights"
            )
        if weights_file is not None and trained_on is None:
            self.display.say_once(
                f"{weights_file} does not say how its images were normalised: the teacher gets "
                "them as the student does; where it was trained with others, say "
                "distill.teacher_mean and distill.teacher_std"
            )
        return network

    def _images_of(self, teacher: ModelOptions, distill: DistillOptions) -> Preprocessing | None:
        """What a teacher was trained on, as its file says or else the recipe; None where neither
        does.
        """
        noted = Preprocessing.noted(noted_in(teacher), teacher.name)
        if distill.teacher_mean is None or distill.teacher_std is None:
            return noted
        if noted is not None:
            raise RecipeError(
                f"distill.teacher_mean: {teacher.files[0]} says itself how its images were "
                "normalised: leave it out, and teacher_std"
            )
        mean, std = tuple(distill.teacher_mean), tuple(distill.teacher_std)
        return replace(self.data.preprocessing, mean=mean, std=std)

    def fresh(self) -> nn.Module:
        """The uncut network with some weights, to load others into."""
        if self.from_file:
            return models.build_uncut(self.recipe.model.name, trust=self.trust)
        name, kwargs = self.origin["name"], self.origin["kwargs"]
        if takes_classes(name):
            return models.build(name, **kwargs)
        return unfilled(name, kwargs)  # what a factory of one's own reads is in the file already

    # ------------------------------------------------------------ what its stages leave

    def network_before(self, index: int) -> nn.Module:
        """The network that stage `index` starts from: the last stage's, or a fresh one."""
        before = self._position_before(index)
        if before is None:
            return self.build()
        return self.network_of(before)

    def network_of(self, index: int) -> nn.Module:
        """The network that stage `index` left, read from its file; or the one `AS_BUILT`."""
        if index == AS_BUILT:
            return self.build()
        return self._read(self.folders[index].model)

    def _read(self, file: Path) -> nn.Module:
        """The network in a file of the run folder, which only the first rank need see yet."""
        if ranks.count() == 1:
            return netslim.load(self.fresh(), file)
        content = ranks.shared("the network of a stage", partial(read_bytes, file))
        return checkpoint.restored(self.fresh(), *checkpoint.understood(content, file), file)

    def save(self, network: nn.Module, folder: StageFolder, noted: Mapping[str, Any]) -> None:
        """Write a stage's network, with what later stages need to know of it."""
        made_by: Results = {
            "recipe": self.recipe.name,
            "stage": folder.label,
            "data": self.recipe.data.name,
            KEY: self.data.preprocessing.to_json(),
        }
        if not ranks.first():
            return
        netslim.save(
            network, folder.model, constructor=self.origin or None, metadata={**made_by, **noted}
        )


def has_fresh_weights(model: ModelOptions) -> bool:
    """Whether the network that these options name knows nothing yet."""
    return takes_classes(model.name) and not model.trained


def told_if_fresh(model: ModelOptions) -> str:
    """What is said of a network that knows nothing yet; nothing of another."""
    if not has_fresh_weights(model):
        return ""
    return f"{model.name} has fresh weights; a checkpoint or --weights brings others"


def noted_in(model: ModelOptions) -> Results:
    """What the checkpoint of netslim says that a network starts from; empty where there is none."""
    for file in model.files:
        # What is surely of others is not looked at again: once it is trained, it may be gone.
        if file.endswith(".safetensors") and (model.is_file or checkpoint.is_ours(file)):
            return checkpoint.noted(file)
    return {}
