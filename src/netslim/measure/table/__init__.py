"""Latency at other widths: tables that are measured once, kept, and given to `netslim.select`."""

from netslim.measure.table.latency_table import LatencyTable, Run, Terms

__all__ = ["LatencyTable", "Run", "Terms"]
