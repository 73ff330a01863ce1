"""Latency at other widths: tables that are measured once, kept, and given to `netslim.select`."""

from netslim.measure.table.latency_table import LatencyTable, Run, Terms
from netslim.measure.table.measuring import latency_table

__all__ = ["LatencyTable", "Run", "Terms", "latency_table"]
