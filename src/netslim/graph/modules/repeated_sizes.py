"""Attributes of layers that repeat the shape of their weight, or what another attribute says.

A cut sets them anew, as they are read by whoever looks at a layer; and code that reads them in its
forward sees what a cut makes of them.
"""

from __future__ import annotations

from torch import nn

# Class, tensor, and the attribute that repeats each of its dimensions ("" for none).
REPEATED: tuple[tuple[type[nn.Module], str, tuple[str, ...]], ...] = (
    (nn.Linear, "weight", ("out_features", "in_features")),
    (nn.Bilinear, "weight", ("out_features", "in1_features", "in2_features")),
    (nn.Embedding, "weight", ("num_embeddings", "embedding_dim")),
    (nn.EmbeddingBag, "weight", ("num_embeddings", "embedding_dim")),
    (nn.modules.batchnorm._NormBase, "weight", ("num_features",)),
    (nn.modules.batchnorm._NormBase, "running_mean", ("num_features",)),
    (nn.GroupNorm, "weight", ("num_channels",)),
    (nn.PReLU, "weight", ("num_parameters",)),
    (nn.RNNCellBase, "weight_ih", ("", "input_size")),
    (nn.RNNCellBase, "weight_hh", ("", "hidden_size")),
)
# The weight is (out, in / groups, ...), and of a transposed one (in, out / groups, ...).
_CONVOLUTIONS: tuple[tuple[type[nn.Module], str, tuple[str, ...]], ...] = (
    (nn.modules.conv._ConvTransposeNd, "weight", ("in_channels", "out_channels")),
    (nn.modules.conv._ConvNd, "weight", ("out_channels", "in_channels")),
)
_REPEATING: dict[str, list[tuple[type[nn.Module], str, tuple[str, ...]]]] = {}
for _row in (*_CONVOLUTIONS, *REPEATED):
    for _name in filter(None, _row[2]):
        _REPEATING.setdefault(_name, []).append(_row)


def repeated(module: nn.Module, attribute: str) -> tuple[str, int] | None:
    """The tensor and the axis whose size an attribute is, or is a multiple of; None for others."""
    for kind, tensor, names in _REPEATING.get(attribute, ()):
        weight = getattr(module, tensor, None)
        if isinstance(module, kind) and weight is not None:
            axis = names.index(attribute)
            # Depthwise: what would be on axis 1 is the number of groups, which is that on axis 0.
            if axis == 1 and weight.shape[1] == 1 and getattr(module, "groups", 1) > 1:
                axis = 0
            return tensor, axis
    return None


_TOLD, _READ = "axes_lengths", "_axes_lengths"  # of the layers of einops


def said_again(module: nn.Module, attribute: str) -> str | None:
    """The attribute that says the same as this one, and that copies are made from; None for none.

    A layer of einops reads ``_axes_lengths[1][1]`` where it was told ``axes_lengths["h"]``: that is
    all that it pickles or copies of itself.
    """
    if not type(module).__module__.startswith("einops.layers") or not attribute.startswith(_READ):
        return None
    number = int(attribute.removeprefix(f"{_READ}[").partition("]")[0])
    return f"{_TOLD}[{list(getattr(module, _TOLD))[number]!r}]"
