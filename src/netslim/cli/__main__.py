"""`python -m netslim.cli`."""

import sys

# `python -m` looks for modules in the current directory first, where a file `timm.py` or `yaml.py`
# would take the library's place. Names that the user types are looked up there all the same.
if not sys.flags.safe_path:
    del sys.path[0]

from netslim.cli import main

sys.exit(main())
