"""docs/results.md: published rows beside ours, and the small twins, from paper.json alone.

A published figure says by `beside` which of our networks it is set beside. What is compared is the
change of the error by cutting and tuning, theirs from their baseline and ours from ours, for the
data at hand may make all errors larger.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from statistics import mean
from typing import Any

from netslim.report.numbers import MISSING, duration, mean_and_spread, signed

Row = Mapping[str, Any]
_COSTS = ("params", "macs")
_BASES = ("baseline", "before")
_MARGIN = 3.0  # points of accuracy within which a twin has recovered
_LESS = 0.5  # points of a cut below which it is the same
_SOURCE = re.compile(r"\(([^()]*)\)$")

_HEAD = """\
# Results

Made by `netslim bench paper` from `paper.json`, which holds the
settings, seeds, curves, times, machine and versions of every row. Errors are of the test images,
which each run looks at once, at its end; nothing was chosen by them. A spread is the standard
deviation over seeds.
"""
_PUBLISHED = """
## Published rows

*Change* is the error after cutting and tuning less that of the whole network, in points: theirs
from their baseline, ours from ours. The last column says in a word where ours is worse.
"""
_TWINS = f"""
## Small twins

**These are not the published rows.** A twin takes the steps of its row with a small network on
few, small pictures of CIFAR-10 (MNIST for the MLP), so that CPU cores finish it in minutes, and
says only that the whole way works and that the method does what the cut relies on. Twins of rows on
CIFAR-100, SVHN and ImageNet take the same pictures, for those data are not at hand.

*Bites*: for Network Slimming at least as many scales are near zero (below 0.01) as channels go;
for Soft Filter Pruning the zero filters are those that stay zero, none came back in the last
epoch; for Centripetal SGD filters of a cluster differ by less than 1e-4 of their size. What is
cut by norms needs no method before it. *Recovers*: the last network is at most {_MARGIN:g} points
less accurate than the row's own baseline, which is trained without the method; where there is
none, it is the network before the cut. Seconds are of what the row trained itself; what another
row had trained already was taken from there.
"""


def page(content: Row) -> str:
    """The page as Markdown.

    Args:
        content: of paper.json.
    """
    rows = sorted(content["rows"], key=itemgetter("recipe", "seed"))
    groups = [list(found) for _, found in groupby(rows, key=itemgetter("recipe"))]
    full = [group for group in groups if not group[0]["twin"]]
    twins = [group for group in groups if group[0]["twin"]]
    ends = [_failed(content.get("failed") or {}), _left(content)]
    parts = [_HEAD, _PUBLISHED, _full(full), _TWINS, _small(twins), *ends]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; the columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---------------------------------------------------------------- published rows


def _full(groups: Sequence[Sequence[Row]]) -> str:
    if not groups:
        return "None of them has been run at full length yet.\n"
    beside = [f"{what}, published / ours" for what in ("parameters cut", "MACs cut")]
    head = ["row", "published error", "ours", "published change", "ours", *beside, "in a word"]
    text = table(head, chain.from_iterable(map(published_lines, groups)))
    return f"{text}\n{''.join(_conditions(group) for group in groups)}"


def published_lines(group: Sequence[Row]) -> list[list[str]]:
    """One line for each published figure of a row, whose runs differ in their seeds, and for our
    whole and last networks where nothing is published of them.
    """
    published = list(group[0]["published"])
    named = {row.get("beside") for row in published}
    ends = (_key_of_base(group[0]), group[0]["rows"][-1]["key"])
    for key, label in zip(ends, ("whole", "cut"), strict=True):
        if key not in named:
            published.append({"label": f"{label} (not published)", "beside": key})
    return [_line(group, row, _base(row, published)) for row in published]


def _base(published: Row, all_of_row: Sequence[Row]) -> Row | None:
    """The whole network of the same source."""
    source = _source(published)
    return next(
        (row for row in all_of_row if row.get("beside") in _BASES and _source(row) == source), None
    )


def _source(published: Row) -> str:
    """The paper, port or rerun that a figure is from."""
    return "".join(_SOURCE.findall(str(published["label"])))


def _line(group: Sequence[Row], published: Row, base: Row | None) -> list[str]:
    label = f"`{group[0]['recipe']}`: {published['label']}"
    found = _errors(group, str(published.get("beside")))
    shown = [label, _percent(published.get("error")), mean_and_spread(found)]
    cuts = [
        (published.get(f"{key}_cut"), _cut(group, published, key)) for key in ("params", "macs")
    ]
    changes: tuple[float | None, float | None] = (None, None)
    if published.get("beside") not in _BASES:
        changes = _changes(group, published, base)
    word = _in_a_word(changes, cuts, bool(found))
    figures = [_points(change) for change in changes]
    both = [f"{_percent(theirs)} / {_percent(ours)}" for theirs, ours in cuts]
    return [*shown, *figures, *both, word]


def _changes(
    group: Sequence[Row], published: Row, base: Row | None
) -> tuple[float | None, float | None]:
    """Points of error by the cut: theirs and ours."""
    theirs = None
    if base is not None and "error" in published and "error" in base:
        theirs = float(published["error"]) - float(base["error"])
    ours = _errors(group, str(published.get("beside")))
    whole = _errors(group, _key_of_base(group[0]))
    if not ours:
        return theirs, None
    return theirs, mean(ours) - mean(whole)


def _in_a_word(
    changes: tuple[float | None, float | None],
    cuts: Sequence[tuple[float | None, float | None]],
    measured: bool,
) -> str:
    if not measured:
        return "not measured"
    words = []
    theirs, ours = changes
    if theirs is not None and ours is not None:
        words.append(_worse(ours - theirs))
    for name, (published, cut) in zip(("parameters", "MACs"), cuts, strict=True):
        if published is not None and cut is not None and cut < published - _LESS:
            words.append(f"fewer {name} cut")
    return ", ".join(words) or MISSING


def _worse(points: float) -> str:
    if points < 0.005:
        return "no worse"
    return f"**worse** by {points:.2f} points"


def _conditions(group: Sequence[Row]) -> str:
    """What differs from the published conditions: settings, and what the data say of themselves."""
    first = group[0]
    seeds = ", ".join(str(row["seed"]) for row in group)
    told = [*first["conditions"], *(first.get("notes") or [])]
    where = first["environment"]
    lines = [
        f"- `{first['recipe']}`, seeds {seeds}, on {where.get('device')} "
        f"({where.get('processor')}), {where.get('date')}:",
        *(f"  - {text}" for text in told),
    ]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- twins


def _small(groups: Sequence[Sequence[Row]]) -> str:
    if not groups:
        return "None of them has been run yet.\n"
    accuracy = "accuracy, baseline → tuned, %"
    cuts = ("parameters cut", "MACs cut")
    head = ["twin", "bites", "by which figure", accuracy, "recovers", *cuts, "seconds"]
    good = sum(_counts(group) for group in groups)
    text = table(head, map(twin_line, groups))
    return f"{text}\n{good} of {len(groups)} count: their method bites, and they recover.\n"


def twin_line(group: Sequence[Row]) -> list[str]:
    """A twin's line, whose runs differ in their seeds."""
    first, last = group[0], group[0]["rows"][-1]["key"]
    stages = first["bites"]
    bites, figures = MISSING, "cut by norms"
    if stages:
        bites = _yes(_bites(group))
        figures = "; ".join(stage["figure"] for stage in stages)
    before, after = (_accuracies(group, key) for key in (_key_of_base(first), last))
    cuts = [_percent(_cut(group, {"beside": last}, key)) for key in _COSTS]
    own = f"`{first['recipe']}`"
    change = signed(mean(after) - mean(before))
    accuracy = f"{mean_and_spread(before)} → {mean_and_spread(after)} ({change})"
    seconds = duration(mean(row["seconds"] for row in group))
    return [own, bites, figures, accuracy, _yes(_recovers(group)), *cuts, seconds]


def _bites(group: Iterable[Row]) -> bool:
    return all(stage["bites"] for row in group for stage in row["bites"])


def _recovers(group: Sequence[Row]) -> bool:
    before = _accuracies(group, _key_of_base(group[0]))
    after = _accuracies(group, group[0]["rows"][-1]["key"])
    return mean(after) >= mean(before) - _MARGIN


def _counts(group: Sequence[Row]) -> bool:
    return _bites(group) and _recovers(group)


def _yes(good: bool) -> str:
    if good:
        return "yes"
    return "**no**"


def _failed(problems: Mapping[str, str]) -> str:
    """What was begun, and why it has not ended."""
    if not problems:
        return ""
    told = (f"- `{row}`: {' '.join(why.split())}\n" for row, why in problems.items())
    return f"## Failed\n\n{''.join(told)}"


def _left(content: Row) -> str:
    """What has not been run, and the command for it, which may be stopped and goes on."""
    if not content["left"]:
        return ""
    options = shlex.join(content.get("options") or [])
    given = filter(None, ["netslim bench paper --minutes 9", options, "--rows", *content["left"]])
    command = " ".join(given)
    lines = textwrap.wrap(command, 96, subsequent_indent="  ", break_on_hyphens=False)
    return "## Not run yet\n\n```console\n" + " \\\n".join(lines) + "\n```\n"


# ---------------------------------------------------------------- figures


def _key_of_base(row: Row) -> str:
    """The network that a row's changes refer to: trained without a method, where there is one."""
    keys = [network["key"] for network in row["rows"]]
    return next((key for key in _BASES if key in keys), keys[0])


def _networks(group: Iterable[Row], key: str) -> Iterator[Row]:
    return (network for row in group for network in row["rows"] if network["key"] == key)


def _accuracies(group: Iterable[Row], key: str) -> list[float]:
    return [100 * network["accuracy"] for network in _networks(group, key)]


def _errors(group: Iterable[Row], key: str) -> list[float]:
    return [100 - accuracy for accuracy in _accuracies(group, key)]


def _cut(group: Sequence[Row], published: Row, key: str) -> float | None:
    """How much of the parameters or MACs is gone of one of our networks, in percent."""
    after = [network[key] for network in _networks(group, str(published.get("beside")))]
    before = [network[key] for network in _networks(group, _key_of_base(group[0]))]
    if not after or after == before:
        return None
    return 100 * (1 - float(mean(after)) / float(mean(before)))


def _percent(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{float(value):.2f} %"


def _points(value: float | None) -> str:
    if value is None:
        return MISSING
    return signed(value)


__all__ = ["page", "published_lines", "table", "twin_line"]
