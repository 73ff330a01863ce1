"""What every run needs, for the one process that those of several are started off.

That process reads no message while it imports, and would tell of Ctrl-C by a traceback; whoever has
started it tells it already.
"""

import gc
import importlib
import signal

_before = signal.signal(signal.SIGINT, signal.SIG_IGN)
for _name in (
    *("netslim.training.commands.together", "netslim.report.run_page"),
    *("sklearn.datasets", "torchvision"),
):
    importlib.import_module(_name)
signal.signal(signal.SIGINT, _before)
gc.collect()
gc.freeze()  # a collection in a process that is forked off would make copies of all its pages
