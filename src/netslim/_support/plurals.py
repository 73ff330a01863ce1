"""Numbers with their nouns: 1 epoch, 2 epochs."""

from __future__ import annotations


def many(number: int, noun: str) -> str:
    """How many there are of what is called so, with an s where there is not one: ``2 epochs``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}s"


__all__ = ["many"]
