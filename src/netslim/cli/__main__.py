"""`python -m netslim.cli`, the same as `python -m netslim`."""

from netslim.__main__ import started_by_name

started_by_name()
