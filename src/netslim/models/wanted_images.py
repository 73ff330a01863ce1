"""Which images a network by name wants: how many channels."""

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


__all__ = ["channels_of"]
