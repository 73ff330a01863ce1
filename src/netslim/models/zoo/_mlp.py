"""The fully connected network of Network Slimming's MNIST row."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from netslim.models.zoo._common import builder, initialise, scaled


class MLP(nn.Module):
    """Linear layers with BN and ReLU. `(N, ...)`, flattened to `(N, inputs)` -> `(N, classes)`."""

    def __init__(self, sizes: Sequence[int], num_classes: int, norm: bool) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for before, after in pairwise(sizes):
            modules.append(nn.Linear(before, after))
            if norm:
                modules.append(nn.BatchNorm1d(after))
            modules.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*modules)
        self.classifier = nn.Linear(sizes[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(torch.flatten(x, 1)))
        return logits


@builder
def mlp(
    num_classes: int = 10,
    width: float = 1.0,
    in_features: int = 784,
    hidden: Sequence[int] = (500, 300),
    norm: bool = True,
) -> MLP:
    """784-500-300-10: 545,810 parameters, and with `norm` 1,600 BN scales and shifts.

    Args:
        in_features: values in one example, for instance 28 * 28.
        hidden: units of each hidden layer (times `width`).
        norm: whether each hidden layer has a BN; Network Slimming needs it.

    Raises:
        ArgumentError: hidden sizes or a width of 0 or less.

    Example:
        >>> network = netslim.zoo.mlp(hidden=(32, 16))
        >>> tuple(network.eval()(torch.randn(1, 1, 28, 28)).shape)
        (1, 10)
    """
    return MLP([in_features, *(scaled(units, width) for units in hidden)], num_classes, norm)
