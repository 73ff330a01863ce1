"""Which network is that, and how is it kept: naming, building, checkpoints, export."""

from netslim.graph.modules.padded_norms import PaddedNorm
from netslim.graph.modules.separate_heads import SeparateHeads
from netslim.models.batch_norms import add_bn
from netslim.models.building import build, build_uncut, constructor, names
from netslim.models.channel_select import ChannelSelect, add_selection, drop_idle_selections
from netslim.models.export import Exported
from netslim.models.without_ours import plain

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
