"""The layers that everyone knows, said once: their operators, and where their channels lie.

Whether an operator is a layer at all is what its rule says: one that counts multiply-accumulates
with `recorder.cost`, ours or registered. A graph's ``costs`` name these operators, its ``outputs``
what they put out. The lists here are for what needs more than that: to run a layer again, alone or
with other weights, one must know its arguments. An operator that was registered is in none of them,
even under the rule of one that is: the rule tells what becomes of channels, not what is computed.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# ATen names. Arguments: input, weight, bias, stride, padding, dilation, transposed, output padding,
# groups.
CONVOLUTIONS = (
    "convolution",
    "_convolution",
    "convolution_overrideable",
    "mkldnn_convolution",
    "cudnn_convolution",
)
LINEAR = ("linear", "mkldnn_linear", "_mkldnn_linear")  # input, weight, bias
ADDED_PRODUCTS = ("addmm", "_addmm_activation")  # bias, input, transposed weight
PRODUCTS = ("mm", *ADDED_PRODUCTS, *LINEAR)  # as linear layers run; mm: input, transposed weight

# What the user's code calls, of arguments input, weight, bias, ...; linear in the weight.
FUNCTIONS = frozenset(
    [
        *(F.linear, F.conv1d, F.conv2d, F.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    ]
)


def channels_of(weight: Tensor, linear: bool) -> int:
    """The dimension, from the end, of the channels a layer with this weight reads and makes."""
    return -1 if linear else 1 - weight.dim()
