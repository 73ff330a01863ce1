"""Convolutions along the channels, as of efficient channel attention, on those that are left.

Such a one mixes each channel with its neighbours. Without some of the channels there are other
neighbours; with zeros in their places it computes what it would if they were silent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from netslim.errors import SurgeryError
from netslim.graph.modules.padded_norms import SLIDING, NormWidth, PaddedNorm

_WIDEST = 1 << 20  # so many numbers are held for each channel that slides, whatever a file says


class PaddedSliding(PaddedNorm, nn.Conv1d):
    """A convolution along channels of which some are missing: `PaddedNorm`.

    Attributes:
        padded_places: which of them are there, as they were numbered at first.
    """

    kind, does = SLIDING, "slides"
    dims = ()  # told by the channels that it is given, and not by what it computes
    has_eps = False
    padded_places: tuple[int, ...]

    @classmethod
    def _of(cls, module: nn.Module, norm: NormWidth) -> Any:
        left = range(norm.width)
        if isinstance(module, PaddedSliding):
            left = module.padded_places  # type: ignore[assignment]
        elif type(module) is not nn.Conv1d or norm.dim != -1 or norm.width > _WIDEST:
            raise SurgeryError(f"a {type(module).__name__} does not slide over channels")
        kept = tuple(place for i, place in enumerate(left) if i not in set(norm.lost))
        module.__class__ = cls
        vars(module).update(padded_width=norm.width, padded_dim=-1, padded_places=kept)
        return module

    @property
    def padded_row(self) -> NormWidth:
        """What a plan says of it, but for its name and what goes."""
        return NormWidth("", SLIDING, -1, self.padded_width)

    @property
    def padded_bare(self) -> bool:
        """Its weights tell nothing of the channels that it slides over."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., C) to the same, as if the others stood between them."""
        # Moved there: fx of torch 2.6 cannot follow a tensor that is made on a device it traces.
        places = torch.tensor(self.padded_places).to(x.device)
        zeros = x.new_zeros(x.shape[:-1] + (self.padded_width,))  # noqa: RUF005  # fx follows this
        full = zeros.index_copy(-1, places, x)
        out: Tensor = self._conv_forward(full, self.weight, self.bias)
        return out.index_select(-1, places)

    def extra_repr(self) -> str:
        own: str = nn.Conv1d.extra_repr(self)  # type: ignore[no-untyped-call]
        return f"{own}, over={self.padded_width}"
