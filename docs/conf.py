"""How Sphinx makes the site of these pages; `make docs` runs it.

Nothing that netslim knows is written here a second time: `reference.py` beside this file asks for
every recipe key, command, criterion and public name, and writes the pages that list them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import links  # noqa: E402
import reference  # noqa: E402
from toctrees import with_toctrees  # noqa: E402

import netslim  # noqa: E402

project = "netslim"
version = release = netslim.__version__
copyright = "the netslim developers"
html_title = f"netslim {release}"
html_theme = "furo"
html_show_sphinx = False
exclude_patterns = ["_build", "jupyter_execute"]  # what is made, the latter by MyST-NB
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "force"  # notebooks are kept without outputs: the build runs them
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # seconds a cell
nb_merge_streams = True  # what a cell prints is one block
default_role = "literal"  # single backticks in docstrings name things; not all have a page
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"  # twice is too often
autodoc_preserve_defaults = True
autodoc_use_legacy_class_based = False
nitpicky = False

_SPANS = re.compile(r"(``[^`]+``|`[^`]+`|^ *(?:>>>|\.\.\. ).*$)", re.MULTILINE)
_TOUCHING = re.compile(r"(``[^`]+``)(?=\w)")

reference.write(HERE / "reference", reference.pages())
reference.write(HERE / "project", {Path(page).stem: text for page, text in links.copies().items()})


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _escape)


def _read(app: Any, name: str, source: list[str]) -> None:
    """A page on its way in."""
    if "/" not in name:
        source[0] = links.rewritten(source[0], f"docs/{name}.md", f"{name}.md")
    if name == "index":
        source[0] = with_toctrees(source[0], app.env.found_docs)


def _escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings name things in backticks as Markdown does, and ``|gamma|`` is an absolute value;
    reStructuredText wants two backticks, no letter behind them, and takes the bars for a name.
    """
    found: list[str] = []
    for part in _SPANS.split("\n".join(lines)):
        if part.lstrip().startswith((">>>", "... ")):
            found.append(part)
        elif part.startswith("`"):
            found.append(f"``{part.strip('`')}``")
        else:
            found.append(part.replace("|", r"\|"))
    lines[:] = _TOUCHING.sub(r"\1\\ ", "".join(found)).split("\n")
