"""The order of the pages on the site, from the links of index.md: it is said there alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_LINK = re.compile(r"\]\(([\w/-]+)\.(?:md|ipynb)\)")


def sections(index: str) -> dict[str, list[str]]:
    """Heading -> the pages linked below it, in order; those made by `reference.py` not."""
    found = {}
    for part in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        found[title] = list(dict.fromkeys(_LINK.findall(text)))
    return found


def with_toctrees(index: str, pages: Collection[str]) -> str:
    """index.md with a hidden table of contents for each of its sections.

    Pages that no section links come last, so that none is lost.
    """
    found = sections(index)
    linked = {page for part in found.values() for page in part}
    made, project = (_below(folder, pages) for folder in ("reference/", "project/"))
    more = sorted({*pages} - linked - {"index", *made, *project})
    trees = {**found, "More": more, "Reference, made from the code": made, "Project": project}
    return index + "".join(_tree(title, part) for title, part in trees.items() if part)


def _below(folder: str, pages: Iterable[str]) -> list[str]:
    return sorted(page for page in pages if page.startswith(folder))


def _tree(title: str, pages: Iterable[str]) -> str:
    lines = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n"
