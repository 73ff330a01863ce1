"""`results.json` of a run folder: read, and checked before anything is made of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from netslim._support import (
    LARGEST_TEXT,
    digest_of_plain,
    is_format,
    parse_json,
    read_bytes,
    read_text,
    reason,
    typed,
)
from netslim.errors import RecipeError
from netslim.report.records import Results

NAME = "results.json"  # in a run folder
FORMAT = 1


def read(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked contents of a run folder's `results.json`, with the environment filled in.

    Raises:
        RecipeError: the file is missing, damaged, or written by a newer netslim.
    """
    folder = Path(run_dir)
    path = folder / NAME
    if not path.is_file():
        raise RecipeError(
            f"{folder}: no {NAME} here, so nothing to report. Give the folder of a "
            "finished run; for an unfinished one, give its 'netslim run' command again and it "
            "goes on where it was"
        )
    try:
        results = parse_json(read_text(path))
    except (OSError, ValueError) as problem:
        raise damaged(path, reason(problem)) from problem
    check(results, path)
    known = results.pop("digest", None)
    if known is not None and known != digest_of_plain(results):
        raise damaged(path, "they were changed after they were written")
    results["environment"] = results.get("environment") or _environment(folder / "environment.json")
    return dict(results)


def check(results: Any, path: str | os.PathLike[str] = "results") -> None:
    """Make sure that all a report needs is there and of the right kind.

    Raises:
        RecipeError: naming the file and the entry.
    """
    if not isinstance(results, dict):
        raise damaged(path, "it does not hold a mapping")
    if not is_format(results.get("format"), FORMAT):
        found = results.get("format")
        raise RecipeError(
            f"{path}: format {found!r} is not known to this netslim (it reads {FORMAT}); use a "
            "newer one"
        )
    try:
        typed(Results, results)
    except ValueError as problem:
        raise damaged(path, reason(problem)) from None


def damaged(path: str | os.PathLike[str], what: str) -> RecipeError:
    """The error for results that cannot be used."""
    return RecipeError(
        f"{path}: the results are damaged: {what}. Delete this file and give the 'netslim run' "
        "command again; stages that are finished are not repeated"
    )


def text_of(path: Path) -> str | None:
    """What a file holds, or None if it cannot be read."""
    try:
        return read_bytes(path, LARGEST_TEXT).decode(errors="replace")
    except (OSError, ValueError):
        return None


def _environment(path: Path) -> dict[str, Any]:
    """A report does without, so damage is said in it."""
    try:
        found = parse_json(text_of(path) or "{}")
    except ValueError:
        return {"environment": f"{path.name} is damaged"}
    if not isinstance(found, dict):
        return {}
    return found


__all__ = ["check", "damaged", "read", "text_of"]
