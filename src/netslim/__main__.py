"""`python -m netslim`, as `torchrun -m netslim` starts it; the same as `netslim`."""

import netslim.cli.__main__  # noqa: F401
