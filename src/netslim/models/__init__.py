"""Which network is that, and how is it kept: naming, building, checkpoints, export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netslim._support.rooms import imported_later

_HOMES = {
    "ChannelSelect": "channel_select",
    "Exported": "export",
    "PaddedNorm": ".graph.modules.padded_norms",
    "SeparateHeads": ".graph.modules.separate_heads",
    "add_bn": "batch_norms",
    "add_selection": "channel_select",
    "build": "building",
    "build_uncut": "building",
    "constructor": "building",
    "drop_idle_selections": "channel_select",
    "names": "building",
    "plain": "without_ours",
}

__all__ = [
    "ChannelSelect",
    "Exported",
    "PaddedNorm",
    "SeparateHeads",
    "add_bn",
    "add_selection",
    "build",
    "build_uncut",
    "constructor",
    "drop_idle_selections",
    "names",
    "plain",
]

if TYPE_CHECKING:
    from netslim.graph.modules.padded_norms import PaddedNorm as PaddedNorm
    from netslim.graph.modules.separate_heads import SeparateHeads as SeparateHeads
    from netslim.models.batch_norms import add_bn as add_bn
    from netslim.models.building import build as build
    from netslim.models.building import build_uncut as build_uncut
    from netslim.models.building import constructor as constructor
    from netslim.models.building import names as names
    from netslim.models.channel_select import ChannelSelect as ChannelSelect
    from netslim.models.channel_select import add_selection as add_selection
    from netslim.models.channel_select import drop_idle_selections as drop_idle_selections
    from netslim.models.export import Exported as Exported
    from netslim.models.without_ours import plain as plain
else:
    __getattr__ = imported_later(__name__, _HOMES)
