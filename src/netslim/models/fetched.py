"""What torchvision and timm fetch by name: whose weights, and what comes with them.

Weights fix more than numbers: the classes they were learnt for, how images were normalised, and of
some networks also how these are built. A network that was made with them is made again without
them by saying all this in other words; then neither a file nor the network is needed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SOURCES = ("zoo", "torchvision", "timm")  # whose models everybody knows; they take `num_classes`
# Arguments that say where weights come from.
_FROM = (
    *("weights", "weights_backbone", "progress", "pretrained", "pretrained_cfg"),
    *("pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
)
NOTHING = {"pretrained": False, "weights": None}  # by which a factory of one's own reads none
_OF_BUILD = ("weights_file", "new_head")  # those of `netslim.models.build`, for every network


def takes_classes(name: str) -> bool:
    """Whether the model of this name is built for a number of classes, ``num_classes``."""
    source, colon, _ = name.partition(":")
    return bool(colon) and source in SOURCES


def without_weights(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that build the same network, and neither fetch nor read its weights.

    Args:
        name: as `netslim.models.build` takes it. Of an own factory ``pretrained`` becomes False
            and ``weights`` None where they are given; what its other arguments mean is not known.
        kwargs: for `netslim.models.build`.
    """
    left = {key: value for key, value in kwargs.items() if key not in _OF_BUILD}
    if not takes_classes(name):
        return left | {key: value for key, value in NOTHING.items() if key in left}
    left = {key: value for key, value in left.items() if key not in _FROM}
    return _implied(name, kwargs) | left


def classes_of(name: str, kwargs: Mapping[str, Any]) -> int | None:
    """How many classes fetched weights were learnt for; None where none are, or it is not known."""
    weights = _of_torchvision(name, kwargs)
    if weights is not None:
        return len(weights.meta["categories"])
    found = _of_timm(name, kwargs)
    if found is None:
        return None
    classes: int | None = _overlay(kwargs).get("num_classes", found.num_classes)
    return classes


def normalisation_of(
    name: str, kwargs: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) per channel, 0..1, that fetched weights were trained with; None where none are.

    Args:
        name, kwargs: as for `netslim.models.build`; ``weights`` of torchvision and ``pretrained``
            of timm fetch some.
    """
    weights = _of_torchvision(name, kwargs)
    if weights is not None:
        transforms = weights.transforms()
        return tuple(transforms.mean), tuple(transforms.std)
    found = _of_timm(name, kwargs)
    if found is None:
        return None
    return tuple(found.mean), tuple(found.std)


def _implied(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What fetched weights have a network built with, besides themselves."""
    weights, kind = _of_torchvision(name, kwargs), name.partition(":")[2]
    if weights is None:
        said = _overlay(kwargs)
        return {key: said[key] for key in ("num_classes", "global_pool") if key in said}
    if kind == "googlenet":  # whose weights have auxiliary heads, which are taken off
        return {"transform_input": True, "aux_logits": False, "init_weights": False}
    if kind == "inception_v3":
        return {"transform_input": True, "init_weights": False}
    if kind.startswith("vit_"):
        return {"image_size": weights.meta["min_size"][0]}
    return {}


def _of_torchvision(name: str, kwargs: Mapping[str, Any]) -> Any:
    """The weights that are asked for, as torchvision describes them; None where none are."""
    source, _, kind = name.partition(":")
    if source != "torchvision" or not kwargs.get("weights"):
        return None
    from torchvision.models import get_model_weights

    try:
        known = get_model_weights(kind)
    except ValueError:
        return None  # building the network says so
    wanted = str(getattr(kwargs["weights"], "name", kwargs["weights"])).rpartition(".")[2]
    return known.__members__.get(wanted)  # where there are none, building the network says so


def _of_timm(name: str, kwargs: Mapping[str, Any]) -> Any:
    """The weights that are asked for, as timm describes them; None where none are."""
    source, _, kind = name.partition(":")
    if source != "timm" or not kwargs.get("pretrained"):
        return None
    try:
        from timm.models import get_pretrained_cfg
    except ModuleNotFoundError:
        return None  # building the network says so
    return get_pretrained_cfg(kind, allow_unregistered=True)


def _overlay(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of timm's weights besides their name."""
    for key in ("pretrained_cfg_overlay", "pretrained_cfg"):
        if isinstance(kwargs.get(key), Mapping):
            found: Mapping[str, Any] = kwargs[key]
            return found
    return {}


__all__ = ["SOURCES", "classes_of", "normalisation_of", "takes_classes", "without_weights"]
