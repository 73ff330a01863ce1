"""What a network costs: counts, memory, time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netslim._support.rooms import imported_later

_HOMES = {
    "Cost": "count",
    "Latency": "latency",
    "LatencyTable": "table.latency_table",
    "size_on_disk": "count",
}

__all__ = ["Cost", "Latency", "LatencyTable", "size_on_disk"]

if TYPE_CHECKING:
    from netslim.measure.count import Cost as Cost
    from netslim.measure.count import size_on_disk as size_on_disk
    from netslim.measure.latency import Latency as Latency
    from netslim.measure.table.latency_table import LatencyTable as LatencyTable
else:
    __getattr__ = imported_later(__name__, _HOMES)
