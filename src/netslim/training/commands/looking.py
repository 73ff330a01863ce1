"""The accuracy of networks on images that were set apart, the same ones for each."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from netslim.data.splits import stratified
from netslim.training.loop.epochs import derive
from netslim.training.stages.runner import Runner


def accuracy(
    runner: Runner, split: str, most: int | None = None
) -> tuple[Callable[[nn.Module], float], list[int]]:
    """A function from a network to its accuracy, 0 to 1, and the classes of the images looked at.

    Args:
        runner: of a recipe, whose data and device are used.
        split: `validation` or `train`.
        most: so many images of it, drawn by the recipe's seed with all classes in proportion; None
            takes all.

    Raises:
        RecipeError: the split has no images.
    """
    recipe, bench = runner.recipe, runner.bench
    images = runner.images_of(split)
    if most is not None and most < len(images):
        images = images.take(stratified(images.labels, most, derive(recipe.seed, "images"))[1])
    loader = bench.loader_of(images)
    return lambda network: bench.means(network, loader).accuracy, bench.labels(images)


__all__ = ["accuracy"]
