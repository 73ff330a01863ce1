"""Files changed at random, the same way for the same number: bytes, and what stands in JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

_STRANGE: list[Callable[[], Any]] = [
    *(
        lambda value=value: value
        for value in (None, True, False, "", "NaN", "x" * 999, "\0", "é\n")
    ),
    *(lambda value=value: value for value in (-1, 0, 1, 7, 2**31, 2**40, 2**63, -(2**63), 10**30)),
    *(lambda value=value: value for value in (0.5, -0.5, 1e-320, 1e300, -1e300, 2.0**64)),
    *(lambda value=value: value for value in (float("nan"), float("inf"), float("-inf"))),
    *(lambda value=value: value for value in ("/dev/zero", "../../../etc/passwd", "none", "1e999")),
    *(
        lambda value=value: copy.deepcopy(value)
        for value in ([], {}, [[]], [0, 1], {"a": {}}, [{}])
    ),
    lambda: [[0, 1000000000]],
    lambda: {"times": 1000000, "stages": [{"kind": "measure"}]},
    lambda: nested(40),
    lambda: nested(300),
]


def nested(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


def bytes_changed(content: bytes, draw: random.Random) -> bytes:
    """A few bits flipped, a part cut out, doubled, overwritten, or the end lost."""
    changed = bytearray(content)
    start = draw.randrange(len(changed))
    if draw.random() < 0.3:  # where most formats have what counts
        start = draw.choice([draw.randrange(min(64, len(changed))), max(0, len(changed) - 9)])
    stop = min(len(changed), start + draw.choice([1, 2, 4, 8, 16, 64, 1000]))
    kind = draw.randrange(6)
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del changed[start:]
    elif kind == 2:
        del changed[start:stop]
    elif kind == 3:
        changed[start:start] = changed[start:stop] * draw.choice([1, 1, 3, 100])
    elif kind == 4:
        changed[start:stop] = bytes([draw.choice([0, 0xFF, 0x7F, 0x80, ord("9")])]) * (stop - start)
    else:
        changed[start:stop] = draw.randbytes(stop - start)
    return bytes(changed)


def tree_changed(tree: Any, draw: random.Random) -> Any:
    """One to three values of another type, size or depth, names that are gone, new or misspelt."""
    holder = [copy.deepcopy(tree)]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        holder_of, place = draw.choice(list(_places(holder)))
        _change(holder_of, place, draw)
        if not holder:
            holder.append(None)
    return holder[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value within, by what holds it; of long lists the first and the last."""
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = [number for number in range(len(value)) if number < 4 or number == len(value) - 1]
    else:
        return
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _change(held: Any, place: Any, draw: random.Random) -> None:
    kind = draw.randrange(8)
    if kind == 0:
        del held[place]
    elif kind == 1 and isinstance(held, dict):
        held[str(place) + draw.choice(["", "s", "x"])] = held.pop(place)
    elif kind == 2 and isinstance(held, dict):
        held[draw.choice(["new", "", "digest", "format", "kind"])] = draw.choice(_STRANGE)()
    elif kind == 3 and isinstance(held, list):
        held += copy.deepcopy(held[:3]) * draw.choice([1, 50])
    elif kind == 4:
        others = list(_places([held]))
        holder, other = draw.choice(others)
        held[place] = copy.deepcopy(holder[other])
    else:
        held[place] = draw.choice(_STRANGE)()


def json_changed(
    content: bytes, draw: random.Random, sealed: Callable[[Any], Any] = lambda tree: tree
) -> bytes:
    """JSON with other values, whose digest is put right by `sealed` in most; or other bytes."""
    if draw.random() < 0.25:
        return bytes_changed(content, draw)
    tree = tree_changed(json.loads(content), draw)
    if draw.random() < 0.85:
        tree = sealed(tree)
    text = json.dumps(tree)
    if draw.random() < 0.05:
        text = text.replace("0", draw.choice(["[" * 100_000, "1e999", "9" * 5000, "-"]), 1)
    return text.encode("utf-8", "surrogatepass")
