"""`finetune`: a network trained on after a cut, from checkpoint to checkpoint."""

from __future__ import annotations

import argparse

from netslim.cli.parser import Parser
from netslim.cli.train import MORE, add_flags, fit

_FINETUNE = """\
Train a network on after a cut: as `netslim train`, but by default at a constant low rate. The
network that was cut can teach it. What `prune --mask` silenced is held at zero.
"""

_EXAMPLES = """\
  netslim finetune small.safetensors --data torchvision:CIFAR10 --out tuned.safetensors
  netslim finetune small.safetensors --data torchvision:CIFAR10 --out tuned.safetensors \\
      --augment 4 --epochs 20 --lr 0.001 --teacher vgg.safetensors --distill.temperature 2
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_finetune, about=_FINETUNE, more=MORE, examples=_EXAMPLES, dotted=True)
    add_flags(parser, epochs=40, rate=0.001)


def _finetune(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    return fit("finetune", options, overrides)
