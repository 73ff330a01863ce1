"""The channel graph: learn what must be cut together by running the model once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from netslim._support import checks_calls
from netslim.errors import TraceError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.coupling import pacesetter, projections
from netslim.graph.forming import build
from netslim.graph.groups import ChannelGroup, Slice
from netslim.graph.modules.ambient import undisturbed
from netslim.graph.modules.calls import as_call
from netslim.graph.modules.ports import Free, PortName
from netslim.graph.modules.unwrapping import bare
from netslim.graph.rules.elementwise import fallback
from netslim.graph.rules.registry import RULES
from netslim.graph.tracing.other_sizes import untouched
from netslim.graph.tracing.ports import Ports, apart
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.running import ONE_AT_A_TIME, record
from netslim.graph.tracing.unseen import settle

__all__ = ["ChannelGraph", "ChannelGroup", "Slice", "as_call", "pacesetter", "projections", "trace"]


@checks_calls
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    free_outputs: Sequence[PortName] = (),
    free_inputs: Sequence[PortName] | Mapping[PortName, PortName | None] = (),
    blocks: bool = False,
) -> ChannelGraph:
    """Run ``model`` once and learn which channels must be cut together.

    Args:
        model: any PyTorch module; it is run in evaluation mode without gradients and left as it
            was. Within `DistributedDataParallel`, `DataParallel`, `torch.compile` or a weight
            average, the module inside is traced.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs. Small
            ones do: only the channels matter, and the batch may be 1.
        free_outputs: outputs whose channels may go; those of all others stay. By position (``1``)
            or by name: ``"state.h"``, ``"features[2]"``, keys and attributes as they are. The name
            of a container means all that is in it.
        free_inputs: inputs that may lose channels, by position or name of the argument. A state
            that is handed back is named in both, and loses the same in both: an input goes with the
            output of its name, else with the first one of its shape; a mapping from inputs to
            outputs (None where nothing is fed back) says it outright. The cut model takes and gives
            the smaller ones (`netslim.surgery.cut_inputs`).
        blocks: find the residual branches that can go as a whole, too. Each is a group of one unit
            (``group.block``), which `netslim.select` drops with ``Limits(blocks=True)`` alone.

    Returns:
        The `ChannelGraph`. Operators netslim has no rule for freeze what they touch and are listed
        in ``graph.unsupported``.

    Raises:
        TraceError: ``model`` is not a module, cannot be worked on (scripted, exported, quantised,
            sharded, lazy, on the meta device), or does not run on these inputs; or they hold no
            example.
        ArgumentError: the call is in code that `torch.compile` compiles; or there is no such
            output or input, and those there are are listed.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> print([group.name for group in graph.prunable])
        ['features.0', 'features.4']
    """
    inner = bare(model, TraceError, call="trace(model, example_inputs)")
    free = Free.of(free_outputs, free_inputs)
    example_inputs = apart(inner, example_inputs, free)
    with undisturbed(inner):
        heads, ports = _recorded(inner, example_inputs, free, blocks)
        settled = heads, settle(heads, example_inputs)
        if not heads.may_narrow:
            return build(settled, ports)
        again, narrower = Ports(free), None
        # What comes of a second run is more that may go; a model that does not take one has less.
        # Where another thread traces the same model, it is not as it was before that has ended.
        with suppress(Exception), ONE_AT_A_TIME, untouched(inner):
            found = record(inner, example_inputs, RULES, fallback, ports=again, heads=heads)
            narrower = found, settle(found, example_inputs)
        return build(settled, ports, narrower, again)


def _recorded(
    model: nn.Module, example_inputs: Any, free: Free, blocks: bool
) -> tuple[Recorder, Ports]:
    """A recording in which no number is taken for one of heads that is none."""

    def recorded(before: Recorder | None) -> tuple[Recorder, Ports]:
        ports = Ports(free)
        found = record(
            model, example_inputs, RULES, fallback, ports=ports, blocks=blocks, before=before
        )
        return found, ports

    found, ports = recorded(None)
    # As above: of a model that does not take another run less is known, and that is all.
    with suppress(Exception):
        while not found.spoiled <= found.no_heads:
            found, ports = recorded(found)
    return found, ports
