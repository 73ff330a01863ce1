"""The facts that a model card begins with, for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def front_matter(facts: Mapping[str, Any]) -> str:
    """YAML between two lines of dashes; what says nothing is left out.

    Each value is written as JSON, which YAML reads: so no text can be taken for something else.
    """
    said = {key: value for key, value in facts.items() if value not in (None, [], {}, "")}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in said.items()]
    return f"---\n{''.join(lines)}---\n\n"


__all__ = ["front_matter"]
