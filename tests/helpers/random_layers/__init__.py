"""The layers random networks are made of; see `random_layers.layer`."""

from random_layers import (
    attention,
    blocks,
    channels,
    convolutions,
    elementwise,
    joining,
    kinds,
    space,
)
from random_layers.layer import CHANNEL_AXIS, OPERATORS, Operator, Shape, Step

__all__ = ["CHANNEL_AXIS", "OPERATORS", "Operator", "Shape", "Step"]
__all__ += [
    "attention",
    "blocks",
    "channels",
    "convolutions",
    "elementwise",
    "joining",
    "kinds",
    "space",
]
