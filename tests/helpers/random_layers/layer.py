"""The layers random networks are made of: one function each, from the shapes of its inputs and its
options.

An operator is declared with the kinds of tensors it takes and gives, a strategy for each option,
and a condition. Its function returns a `Step`: real modules and parameters, and the forward code a
user would write. Numbers that stand in that code are literals to the tracer, members of the step
are attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

CHANNEL_AXIS = {"map": 0, "last": 2, "tokens": 1, "series": 0, "vector": 0}


class Shape(NamedTuple):
    """A tensor: ``map`` (C, H, W), ``last`` (H, W, C), ``tokens`` (L, C), ``series`` (C, L) or
    ``vector`` (C,).
    """

    kind: str
    sizes: tuple[int, ...]

    @property
    def c(self) -> int:
        return self.sizes[CHANNEL_AXIS[self.kind]]

    @property
    def space(self) -> tuple[int, ...]:
        axis = CHANNEL_AXIS[self.kind]
        return self.sizes[:axis] + self.sizes[axis + 1 :]

    @property
    def cells(self) -> int:
        return int(torch.Size(self.space).numel())


class Step(nn.Module):
    """A module whose forward is ``function(self, *values)``."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in members.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *values: Tensor) -> Any:
        return self.function(self, *values)


@dataclass(frozen=True)
class Operator:
    """How to draw the options of a layer and how to make it; see the module docstring."""

    name: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    make: Callable[..., Step]
    options: Mapping[str, Any]
    when: Callable[..., bool]
    weight: int

    def fits(self, *shapes: Shape) -> bool:
        """Whether it takes tensors of these shapes."""
        kinds = all(kind in ("any", s.kind) for kind, s in zip(self.takes, shapes, strict=True))
        return kinds and all(s.cells > 0 for s in shapes) and self.when(*shapes)

    def draw(self, draw: Callable[[Any], Any], *shapes: Shape) -> dict[str, Any]:
        """One value for each option."""
        return {name: draw(s(*shapes) if callable(s) else s) for name, s in self.options.items()}

    def kinds(self, *shapes: Shape) -> tuple[str, ...]:
        """The kinds of its results."""
        return tuple(shapes[0].kind if kind == "same" else kind for kind in self.gives)


OPERATORS: dict[str, Operator] = {}


def op(
    signature: str,
    when: Callable[..., bool] = lambda *shapes: True,
    weight: int = 2,
    **options: Any,
) -> Any:
    """Declare an operator: ``"map map -> map"``, a condition on the shapes, how often, and a
    strategy an option.
    """
    takes, gives = (tuple(side.split()) for side in signature.split("->"))

    def register(make: Callable[..., Step]) -> Callable[..., Step]:
        OPERATORS[make.__name__] = Operator(
            make.__name__, takes, gives, make, options, when, weight
        )
        return make

    return register


# --- options --------------------------------------------------------------------------------------

WIDTH = st.integers(2, 12)
YES = st.booleans()
MODE = st.sampled_from(["shape", "attribute", "literal"])


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split())


def divisors(n: int, least: int = 1, most: int | None = None) -> st.SearchStrategy[int]:
    return st.sampled_from([d for d in range(least, (most or n) + 1) if n % d == 0])


def has_divisor(n: int) -> bool:
    """Whether ``n`` splits into groups of more than one."""
    return n > 3 and any(n % d == 0 for d in range(2, n))


def inner(x: Shape) -> st.SearchStrategy[int]:
    """A place between two channels."""
    return st.integers(1, x.c - 1)


def slim(x: Shape) -> bool:
    return x.c <= 12


def small(x: Shape) -> bool:
    return max(x.space) <= 6


def several(x: Shape) -> bool:
    return x.c > 1


def even(x: Shape) -> bool:
    return x.c % 2 == 0 and x.c >= 4


def large(x: Shape) -> bool:
    return min(x.space) >= 4


def size(s: Any, v: Tensor, dim: int, mode: str, number: int) -> int:
    """A size as the user writes it: read from a shape, kept in ``self.width``, or a literal."""
    return {"shape": lambda: v.shape[dim], "attribute": lambda: s.width, "literal": lambda: number}[
        mode
    ]()


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


def normalised(norm: Any) -> Any:
    """A batch normalisation with ordinary statistics instead of zeros and ones."""
    with torch.no_grad():
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
    return norm


def one(module: nn.Module) -> Step:
    return Step(lambda s, v: s.layer(v), layer=module)
