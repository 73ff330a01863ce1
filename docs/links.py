"""Links of a page, as the site needs them: documents outside of docs/ have pages there, too."""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import relpath

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?!https://|#)[^)#\s]+)(#[^)]*)?\)")
# Documents outside of docs/ -> their pages.
ELSEWHERE = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "benchmarks/results/zoo.md": "project/zoo.md",
}


def copies() -> dict[str, str]:
    """Page -> its Markdown, of each of the documents outside."""
    return {
        page: rewritten((ROOT / source).read_text(encoding="utf-8"), source, page)
        for source, page in ELSEWHERE.items()
    }


def rewritten(text: str, source: str, page: str) -> str:
    """The Markdown of a document where it lies elsewhere.

    Args:
        text: the Markdown.
        source: where its links start from, below the root of the repository.
        page: where the page lies, below docs/.
    """

    def moved(link: re.Match[str]) -> str:
        picture, words, target, part = link.groups(default="")
        path = (ROOT / source).parent.joinpath(target).resolve()
        if not path.exists():  # of code that looks like a link
            return link[0]
        new = _on_site(path.relative_to(ROOT).as_posix())
        if new is None:  # code, or a folder: nothing that the site shows
            return words
        return f"{picture}[{words}]({relpath(new, Path(page).parent.as_posix())}{part})"

    return _LINK.sub(moved, text)


def _on_site(path: str) -> str | None:
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return None
