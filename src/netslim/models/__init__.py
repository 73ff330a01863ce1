"""Which network is that, and how is it kept: naming, building, checkpoints, export."""

from netslim.models.building import build, constructor, names

__all__ = ["build", "constructor", "names"]
