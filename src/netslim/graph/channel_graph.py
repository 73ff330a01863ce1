"""`ChannelGraph`: what must be cut together in a model, what that costs, and why the rest stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netslim._support import checks_calls
from netslim.graph.groups import ChannelGroup
from netslim.graph.traced import TracedGraph
from netslim.graph.words import drawing, explain, table


@checks_calls
class ChannelGraph(TracedGraph):
    """What must be cut together in a model, learnt by running it once; it does not hold the model.

    Attributes:
        groups: all groups that a layer of the model produces, in order of execution, frozen ones
            included.
        fingerprint: of the architecture it was traced from.
        unsupported: operators without a rule, or whose rule failed -> paths of the modules that
            called them.
        costs: multiply-accumulates of the traced call, as products of group sizes.
        parameters: for each parameter, the product of its axes' counts.
        size_rules: module attributes that follow a cut.
        axis_sizes: (tensor, axis) -> entries.
        inventory: names and shapes of everything in the model, and why entries in no group stay.
        outputs: what the operators of the traced call put out, in order of execution.
        lifetimes: the memory that the inputs and these take, and from when to when.
        norms: the normalisations over channels, which go on over as many when some are cut.
        ports: the channels of inputs and outputs that may shrink.
        orders: buffers that pick channels by their numbers, which a cut makes anew.
        blocks: the residual branches that can go as a whole; None where `netslim.trace` was not
            asked for them.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> graph["features.0"].size, graph.macs()
        (8, 92352)
        >>> assert isinstance(graph, netslim.ChannelGraph)
        >>> print(graph.explain("features.4"))  # doctest: +ELLIPSIS
        features.4 (Conv2d): ...
    """

    def __getitem__(self, name: str) -> ChannelGroup:
        """The group of this name, or that the module or tensor of this name makes, scales or reads.

        A module that holds other modules stands for the one group they produce, if it is one.

        Raises:
            ArgumentError: there is no such name (the nearest are given), or it takes part in
                several groups.
        """
        return explain.find(self, name)

    def explain(self, name: str) -> str:
        """Tell what a module, tensor or group is coupled to, and why it can or cannot be cut.

        Raises:
            ArgumentError: there is no such name; the nearest are given.
        """
        return explain.explain(self, name)

    def __repr__(self) -> str:
        return (
            f"<ChannelGraph of {self.fingerprint}: {len(self.prunable)} of {len(self)} "
            "groups can be cut exactly>"
        )

    def __str__(self) -> str:
        return table.text(self)

    def to_svg(self, kept: Mapping[str, int] | None = None) -> str:
        """The graph as a picture: layers in rows, groups of channels as lines along them.

        A line is as wide as its group has channels. A dot says that the layer makes them, a ring
        that it reads them: all dots on one line lose the same channels. Grey and dashed is what
        cannot be cut exactly.

        Args:
            kept: group -> how many of its channels stay, to show a cut: pale is what goes. Of a
                plan these are ``{name: len(cut.kept) for name, cut in plan.groups.items()}``.

        Returns:
            An SVG image that stands for itself.

        Raises:
            ArgumentError: a group is unknown, or has fewer channels than are said to stay.

        Example:
            >>> picture = netslim.trace(model, images).to_svg({"features.0": 4})
            >>> picture.count("features.0: 4 of 8 channels stay")
            1
        """
        return drawing.svg(self, kept)

    def to_dict(self) -> dict[str, Any]:
        """Groups, axes, shares, reasons, size rules and unknown operators as plain data."""
        return table.as_dict(self)


__all__ = ["ChannelGraph"]
