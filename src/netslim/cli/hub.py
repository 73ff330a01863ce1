"""`hub`: the network of a run as a folder for the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from netslim.cli.common import add_json, add_trust, print_json
from netslim.cli.parser import Parser

_HUB = """\
Write the network that a finished run ended with as a folder as the Hugging Face hub keeps them:
weights (safetensors), config.json, the plan of the cut, and a model card of the run's results, with
the data, the proof of the cut and how to repeat it. Nothing is sent: `hf upload` does that.
"""

_MORE = "netslim.models.build and netslim.load open such a folder.\n"
_EXAMPLES = """\
  netslim hub runs/digits --out digits-small --license apache-2.0
  netslim hub runs/digits --out digits-small --title "Digits, small" --json
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_hub, about=_HUB, more=_MORE, examples=_EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a finished run")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        required=True,
        help="the folder to write; it must not exist yet, or be empty",
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="of the weights, as the hub names licences (default: the card says that none is said)",
    )
    parser.add_argument(
        "--title", metavar="TEXT", help="of the model card (default: the title of the run)"
    )
    add_trust(parser)
    add_json(parser, "where the folder is, and its files")


def _hub(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.training.commands import hub

    made = hub.hub(
        options.run, options.out, license=options.license, title=options.title, trust=options.trust
    )
    files = sorted(path.name for path in made.iterdir())
    if options.json:
        print_json({"path": made, "files": files})
        return 0
    print(f"{made}: {', '.join(files)}")
    print(f"to the hub: hf upload USER/NAME {made}")
    return 0
