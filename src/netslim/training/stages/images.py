"""The images of a run, prepared as the network wants them.

Where a network was trained before, its file says how its images were prepared, and it is right on
no others: so these values come first, before those of the data at hand. Then come those that
fetched weights were trained with, and only a network with neither takes what the data suggests.
What the recipe says itself wins over all, and where it contradicts the network a remark says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from netslim.data.preprocessing import CHANNELS, Preprocessing
from netslim.data.splits import Data
from netslim.errors import RecipeError
from netslim.models.fetched import normalisation_of
from netslim.models.wanted_images import channels_of
from netslim.training.recipe.schema import Recipe


def load_images(recipe: Recipe, trained_on: Preprocessing | None) -> Data:
    """The recipe's data set.

    Args:
        recipe: its data, model and seed.
        trained_on: what the file of the network says; None where there is none, or it does not say.

    Raises:
        DataError: as `netslim.data.load`.
        RecipeError: the classes are those of the network in another order.
    """
    from netslim.data.sources import load

    options = recipe.data
    wanted = _by_name(recipe) if trained_on is None else _by_file(trained_on)
    said = {
        "image_size": options.image_size,
        "resize_size": options.resize_size,
        "channels": options.channels,
        "mean": options.mean,
        "std": options.std,
    }
    if options.image_size not in (None, wanted.get("image_size")):
        wanted.pop("resize_size", None)  # which belongs to the size of the network's images
    wanted |= {key: value for key, value in said.items() if value is not None}
    if options.augment is not None and options.augment.crop == "random_resized":
        wanted["memory_limit"] = 0  # parts are cut out of whole pictures
    data = load(
        options.name,
        root=options.root,
        validation=options.validation,
        subset=options.subset,
        seed=recipe.seed,
        download=options.download,
        streaming=options.streaming,
        unreadable=options.unreadable,
        **wanted,
    )
    if trained_on is None:
        return replace(data, notes=(*data.notes, *_guessed(recipe)))
    _check_order(recipe, data, trained_on)
    return replace(data, notes=(*data.notes, *_contradictions(data.preprocessing, trained_on)))


def _guessed(recipe: Recipe) -> Iterator[str]:
    """Where the network was trained before, and nobody says on which values of its images."""
    files = recipe.model.files
    if files and recipe.data.mean is None:
        yield (
            f"{files[0]} does not say how its images were normalised, so mean and std of the "
            "training images are taken: where its network was trained with others, say data.mean "
            "and data.std."
        )


def _by_file(trained_on: Preprocessing) -> dict[str, Any]:
    height, width = trained_on.size
    wanted: dict[str, Any] = {"mean": trained_on.mean, "std": trained_on.std}
    if height == width:
        wanted |= {"image_size": height, "resize_size": trained_on.resize_size}
    return wanted | {"channels": _called(trained_on.channels)}


def _by_name(recipe: Recipe) -> dict[str, Any]:
    name, kwargs = recipe.model.name, recipe.model.kwargs
    wanted: dict[str, Any] = {}
    if called := _called(channels_of(name, kwargs)):
        wanted["channels"] = called
    if values := normalisation_of(name, kwargs):
        wanted |= dict(zip(("mean", "std"), values, strict=True))
    return wanted


def _called(channels: int | None) -> str | None:
    return next((name for name, count in CHANNELS.items() if count == channels), None)


def _check_order(recipe: Recipe, data: Data, trained_on: Preprocessing) -> None:
    known = trained_on.classes
    if data.classes != known and sorted(data.classes) == sorted(known):
        raise RecipeError(
            f"{recipe.data.name} has the classes of {recipe.model.name} in another order: "
            f"{', '.join(data.classes[:5])} and not {', '.join(known[:5])}; every label would be "
            "wrong"
        )


def _contradictions(images: Preprocessing, trained_on: Preprocessing) -> Iterator[str]:
    """Where the images differ from those that the network was trained on."""
    if (images.mean, images.std) != (trained_on.mean, trained_on.std):
        yield (
            f"The images are normalised by mean {_short(images.mean)} and std "
            f"{_short(images.std)}; those that the network was trained on were by mean "
            f"{_short(trained_on.mean)} and std {_short(trained_on.std)}."
        )
    if images.size != trained_on.size:
        sizes = ["x".join(map(str, one.size)) for one in (images, trained_on)]
        yield f"The images have {sizes[0]} pixels; the network was trained on {sizes[1]}."
    if images.resize_size != trained_on.resize_size:
        yield (
            f"The images are cut out of pictures brought to {_side(images)}; the network was "
            f"trained on {_side(trained_on)}."
        )
    if images.classes != trained_on.classes:
        yield (
            f"The classes are {', '.join(images.classes[:5])}, ...; the network was trained on "
            f"{', '.join(trained_on.classes[:5])}, ..."
        )


def _side(images: Preprocessing) -> str:
    return f"{images.resize_size or min(images.size)} pixels of the shorter side"


def _short(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"


__all__ = ["load_images"]
