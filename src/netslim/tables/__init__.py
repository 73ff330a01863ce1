"""Latency at other widths: tables that are measured once, kept, and given to `netslim.select`."""

from .measuring import latency_table
from .table import LatencyTable, Run, Terms

__all__ = ["LatencyTable", "Run", "Terms", "latency_table"]
