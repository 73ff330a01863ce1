"""A network to learn from, that sees pictures as it was trained on them.

Teacher and student get the same batches, normalised for the student. Where the teacher was trained
with another mean and deviation, its images are brought to these, exactly: both are the same pixels
in other units. Pixels that it was not trained on cannot be made up, so other sizes are refused.
"""

from __future__ import annotations

from torch import nn

from netslim.data.preprocessing import Preprocessing
from netslim.errors import RecipeError
from netslim.models.normalised import Normalised


def as_trained(
    network: nn.Module, name: str, trained_on: Preprocessing, images: Preprocessing
) -> nn.Module:
    """The teacher of this name, for images that were prepared as `images` says.

    Raises:
        RecipeError: they have another size or other channels than those that it was trained on, or
            its classes are theirs in another order.
    """
    for what, wanted, found in (
        ("pixels", _size(trained_on), _size(images)),
        ("channels", trained_on.channels, images.channels),
    ):
        if wanted != found:
            raise RecipeError(
                f"teacher: {name} was trained on images of {wanted} {what}, and those of the "
                f"student have {found}: teacher and student must see the same pictures; train one "
                "of them anew, or say data.image_size and data.channels"
            )
    if images.classes != trained_on.classes and {*images.classes} == {*trained_on.classes}:
        raise RecipeError(f"teacher: {name} was trained on these classes in another order")
    if (images.mean, images.std) == (trained_on.mean, trained_on.std):
        return network
    units = list(zip(images.mean, images.std, trained_on.mean, trained_on.std, strict=True))
    mean = [(theirs - ours) / scale for ours, scale, theirs, _ in units]
    return Normalised(network, mean, [theirs / scale for _, scale, _, theirs in units])


def _size(images: Preprocessing) -> str:
    return "x".join(map(str, images.size))


__all__ = ["as_trained"]
