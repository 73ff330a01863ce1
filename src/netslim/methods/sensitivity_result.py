"""What a sensitivity study measured: tables, limits, files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from torch import nn

from netslim._support import (
    brief,
    checks_calls,
    digest_of_plain,
    is_format,
    is_number,
    listed,
    named_file,
    parse_json,
    read_text,
    refusing,
    typed,
    write_atomic,
)
from netslim.errors import ArgumentError, PlanError
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import fingerprint

FORMAT = 1
# Drops closer than this, relative to the values, are equal: accuracies are often float32.
EQUAL = 1e-6
Unit = Literal["share", "number"]


@dataclass(frozen=True)
class Row:
    """One measured cut of one group.

    Attributes:
        group, size: its name and channels.
        ratio: the share that was asked for.
        removed: channels that went, ``floor(size * ratio)``.
        value: what ``evaluate`` gave.
        drop: baseline minus value; below 0 where the cut network did better.
        params: parameters that this cut saves.
        macs: multiply-accumulates of the traced call that it saves.
    """

    group: str
    size: int
    ratio: float
    removed: int
    value: float
    drop: float
    params: int
    macs: int


@checks_calls
@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` measured; `str()` is a table.

    Attributes:
        baseline: what ``evaluate`` gave for the whole network.
        rows: a row for each group and ratio, groups in order of execution, ratios rising.
        params, macs: of the whole network; multiply-accumulates of the traced call.
        fingerprint: of its architecture.
        unit: ``share`` where values are shares from 0 to 1, which are shown in percent and their
            drops in points.
        settings: how it was measured.
        notes: sentences: which groups were left out, and why.

    Example:
        >>> found = netslim.sensitivity(model, images, accuracy, ratios=(0.25, 0.5))
        >>> path = found.save("sensitivity.json")
        >>> netslim.methods.Sensitivity.load(path).limits(max_drop=1)
        {'features.0': 0.5, 'features.4': 0.5}
    """

    baseline: float
    rows: tuple[Row, ...]
    params: int
    macs: int
    fingerprint: str
    unit: Unit = "share"
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, tuple[Row, ...]]:
        """Group name -> its rows, ratios rising."""
        names = dict.fromkeys(row.group for row in self.rows)
        return {name: tuple(row for row in self.rows if row.group == name) for name in names}

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratios that were tried, rising."""
        return tuple(sorted({row.ratio for row in self.rows}))

    def limits(
        self, max_drop: float, *, interpolate: bool = False, stages: Iterable[str] = ()
    ) -> dict[str, float]:
        """How much of each group may go, as ``max_cut`` of `netslim.Limits` or ``per_group``.

        A limit is the largest share that was tried and cost no more than ``max_drop``, where no
        smaller share cost more either; 0 where none did. It is never larger than the largest ratio
        that was tried. Groups that were not measured have none. Each group was cut alone: cut all
        at once they lose more, so take ``max_drop`` smaller than what may be lost in the end, or
        let fine-tuning make up for it.

        Args:
            max_drop: in the unit of the values: 0.01 is a point of accuracy.
            interpolate: go on to where the straight line to the next measured share crosses
                ``max_drop``.
            stages: patterns of group names. The groups that one matches share the smallest of their
                limits, those that must be left alone (limit 0) not counted (Li et al. 2017, section
                3.2).

        Returns:
            Group name -> share, at least 0 and below 1.

        Raises:
            ArgumentError: ``max_drop`` is negative or not finite, or a pattern matches no group.
        """
        if not (is_number(max_drop) and 0 <= max_drop < math.inf):
            raise ArgumentError(
                f"max_drop must be 0 or more, in the unit of the values, got {brief(max_drop)}"
            )
        found = {name: _limit(rows, max_drop, interpolate) for name, rows in self.groups.items()}
        alone = dict(found)
        for pattern in stages:
            members = [name for name in found if fnmatchcase(name, pattern)]
            if not members:
                raise ArgumentError(
                    f"stages: {pattern!r} matches no measured group; these are "
                    f"{listed(list(found))}"
                )
            smallest = min((alone[name] for name in members if alone[name]), default=0.0)
            found |= {name: min(found[name], smallest) for name in members}
        return found

    def ranking(self) -> dict[str, float]:
        """Group name -> mean drop over its ratios, the largest first.

        No drop counts less than the one at the ratio before, see `_rising`.
        """
        means = {}
        for name, rows in self.groups.items():
            means[name] = sum(drop for _, drop in _rising(rows)) / len(rows)
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    def table(self, max_drop: float | None = None) -> str:
        """The drops as text, a line a group; with ``max_drop`` its limit, too.

        Raises:
            ArgumentError: as `limits`.
        """
        lines = [["group", "channels", *(f"{100 * ratio:g} %" for ratio in self.ratios)]]
        for name, rows in self.groups.items():
            drops = {row.ratio: self.shown(row.drop) for row in rows}
            cells = (drops.get(ratio, "") for ratio in self.ratios)
            lines.append([name, str(rows[0].size), *cells])
        if max_drop is not None and self.rows:
            limits = self.limits(max_drop).values()  # in the order of the groups, too
            last = ["may go", *(f"{100 * limit:.3g} %" for limit in limits)]
            lines = [[*line, cell] for line, cell in zip(lines, last, strict=True)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        ]
        return "\n".join([self._title(), *text, *self.notes])

    def _title(self) -> str:
        if self.unit == "share":
            head = f"baseline {self.baseline:.2%}; drop in points"
        else:
            head = f"baseline {self.baseline:g}; drop"
        return f"{head} when a share of one group goes"

    def shown(self, drop: float) -> str:
        """A drop for people: points with two decimals, or four digits of a number."""
        return shown_drop(drop, self.unit)

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, as in the file."""
        plain = asdict(self)  # rows, too
        plain |= {"rows": list(plain["rows"]), "settings": dict(self.settings)}
        return {"format": FORMAT, "kind": "sensitivity", **plain, "notes": list(self.notes)}

    def to_json(self) -> str:
        """Indented JSON, with a digest of it."""
        content = self.to_dict()
        sealed = {**content, "digest": digest_of_plain(content)}
        return json.dumps(sealed, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """The rows as comma-separated values."""
        head = "group,size,ratio,removed,value,drop,params_saved,macs_saved"
        lines = [
            f'"{r.group}",{r.size},{r.ratio},{r.removed},{r.value!r},{r.drop!r},{r.params},{r.macs}'
            for r in self.rows
        ]
        return "\n".join([head, *lines]) + "\n"

    @staticmethod
    def from_json(text: str | bytes | bytearray) -> Sensitivity:
        """Read what `to_json` wrote.

        Raises:
            PlanError: the text is something else, damaged, or of a newer format.
        """
        again = "measure it again with netslim.sensitivity"
        with refusing(PlanError, "this is not a sensitivity: no valid JSON", again):
            data = parse_json(text)
        ours = {"kind": "sensitivity", "format": FORMAT}
        if (
            not isinstance(data, dict)
            or any(data.get(key) != ours[key] for key in ours)
            or not is_format(data["format"], FORMAT)
        ):
            raise PlanError(f"this is not a sensitivity of format {FORMAT}; {again}")
        known = data.pop("digest", None)  # none in files of version 0.1
        given = {key: value for key, value in data.items() if key not in ours}
        with refusing(PlanError, "the sensitivity is damaged", again):
            found: Sensitivity = typed(Sensitivity, given)
            if not found.rows:
                raise ValueError("it has no rows")
            if found.unit == "share" and not -EQUAL <= found.baseline <= 1 + EQUAL:
                raise ValueError(f"the baseline {found.baseline:g} is no share")
            for number, row in enumerate(found.rows):
                if not 0 < row.ratio < 1 or not 0 <= row.removed < row.size:
                    raise ValueError(
                        f"rows.{number} says that {row.removed} of {row.size} went, for {row.ratio}"
                    )
            if known is not None and known != digest_of_plain(data):
                raise ValueError("it was changed after it was written")
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_json` to a file, which is complete or not there.

        Raises:
            ArgumentError: the path is empty or a folder.
            OSError: the file cannot be written.
        """
        path = named_file(path, "path")
        write_atomic(path, self.to_json())
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Sensitivity:
        """Read a file that `save` wrote.

        Raises:
            PlanError: it cannot be read, or is no such file; the message names it.
        """
        with refusing(PlanError, f"cannot read {path}", "give the file of a sensitivity"):
            text = read_text(path)
        try:
            return Sensitivity.from_json(text)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    def check(self, model: nn.Module) -> None:
        """Refuse a model of another architecture than the measured one.

        Raises:
            PlanError: names both fingerprints.
        """
        found = fingerprint(bare(model, ArgumentError, call="sensitivity.check(model)"))
        if found != self.fingerprint:
            raise PlanError(
                f"the sensitivity was measured on the architecture {self.fingerprint}, this "
                f"model is {found}: measure it on this one (netslim.sensitivity)"
            )


def shown_drop(drop: float, unit: Unit) -> str:
    """What `Sensitivity.shown` gives, for who has its plain data."""
    if unit == "share":
        return f"{100 * drop:z.2f}"
    return f"{drop:z.4g}"


def _rising(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(share that went, drop) by rising share, where no drop is below 0 or below one before it.

    A larger cut of the same group takes a smaller one in, so that the drop grows; where it is
    measured to fall, that is chance, and the larger drop is believed.
    """
    found, worst = [], 0.0
    for row in sorted(rows, key=lambda row: row.removed):
        worst = max(worst, row.drop)
        found.append((row.removed / row.size, worst))
    return found


def _limit(rows: Sequence[Row], max_drop: float, interpolate: bool) -> float:
    share, before = 0.0, 0.0
    slack = EQUAL * max(max(abs(row.value), abs(row.value + row.drop)) for row in rows)
    for tried, drop in _rising(rows):
        if drop > max_drop + slack:
            if interpolate:
                # Drops of 0.2 at a quarter and 1.2 at a half cross 0.7 half-way between, at 37.5 %.
                share += (max_drop - before) / (drop - before) * (tried - share)
            return share
        share, before = tried, drop
    return share


__all__ = ["Row", "Sensitivity", "shown_drop"]
