"""What a network costs: counts, memory, time."""

from netslim.measure.count import Cost, size_on_disk
from netslim.measure.latency import Latency
from netslim.measure.table.latency_table import LatencyTable

__all__ = ["Cost", "Latency", "LatencyTable", "size_on_disk"]
