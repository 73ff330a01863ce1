"""Which images a network by name wants: how many channels, and which normalisation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import netslim.models.zoo as zoo

_RGB = 3


def channels_of(name: str, kwargs: Mapping[str, Any]) -> int | None:
    """Channels of the images that `models.build(name, **kwargs)` takes; None where it is not known.

    Args:
        name: as `models.build` takes it.
        kwargs: of the constructor.
    """
    source, _, rest = name.partition(":")
    if source == "zoo":
        parameters = inspect.signature(getattr(zoo, rest, zoo.mlp)).parameters
        if "in_channels" not in parameters:
            return None
        return _whole(kwargs.get("in_channels", parameters["in_channels"].default))
    if source == "timm":
        return _whole(kwargs.get("in_chans", _RGB))
    return _RGB if source == "torchvision" else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None  # building the network refuses others


def normalisation_of(
    name: str, kwargs: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) per channel, 0..1, that fetched weights were trained with; None where none are.

    Args:
        name, kwargs: as for `channels_of`; ``weights`` of torchvision and ``pretrained`` of timm
            fetch some.
    """
    source, _, rest = name.partition(":")
    if source == "torchvision" and kwargs.get("weights"):
        return _of_torchvision(rest, kwargs["weights"])
    if source == "timm" and kwargs.get("pretrained"):
        return _of_timm(rest)
    return None


def _of_torchvision(name: str, weights: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    from torchvision.models import get_model_weights

    try:
        known = get_model_weights(name)
    except ValueError:
        return None  # building the network says so
    wanted = str(getattr(weights, "name", weights)).rpartition(".")[2]
    if wanted not in known.__members__:
        return None  # building the network says so
    transforms = known[wanted].transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _of_timm(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    try:
        from timm.models import get_pretrained_cfg
    except ModuleNotFoundError:
        return None  # building the network says so
    found = get_pretrained_cfg(name, allow_unregistered=True)
    return None if found is None else (tuple(found.mean), tuple(found.std))


__all__ = ["channels_of", "normalisation_of"]
