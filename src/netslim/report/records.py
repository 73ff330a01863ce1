"""What the JSON of runs and searches holds, as far as anybody asks for it later.

Files may hold more (`and_more`): a page does without what another version knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

from netslim.graph.words.drawing import Picture

_LONGEST = 1e15  # seconds, parameters, points: larger numbers mean nothing and break figures


@dataclass(frozen=True, kw_only=True)
class Record:
    """Some of what a mapping in a file holds."""

    and_more: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float | int) and not -_LONGEST <= value <= _LONGEST:
                raise ValueError(f"{name} is {value:.3g}, which means nothing")


@dataclass(frozen=True, kw_only=True)
class Latency(Record):
    """Milliseconds of one forward pass."""

    median: float
    low: float = 0.0
    high: float = 0.0
    beside: int = 0  # other runs that may have been at work on the machine


@dataclass(frozen=True, kw_only=True)
class Network(Record):
    """A row of results."""

    key: str
    label: str
    accuracy: float
    params: float
    macs: float
    size_bytes: float
    latency_ms: Latency | None = None
    top5: float | None = None
    peak_bytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Width(Record):
    """Channels of a layer before and after the cut."""

    layer: str
    before: int
    after: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.before < 1 or self.after < 0:
            raise ValueError(f"{self.layer!r} has {self.after} of {self.before} channels")


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """What proving a cut has shown."""

    deviation: float | None
    cut: int
    changed: int


@dataclass(frozen=True, kw_only=True)
class StageCheck(Check):
    """The same among those of all stages."""

    stage: str


@dataclass(frozen=True, kw_only=True)
class Images(Record):
    """How pictures become inputs."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Beside(Record):
    """A histogram of scales of another training."""

    label: str
    counts: tuple[int, ...]
    share_near_zero: float


@dataclass(frozen=True, kw_only=True)
class LayerScores(Record):
    """Least, middle and largest score of a layer's channels."""

    layer: str
    gone: tuple[float, ...]
    kept: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        for ends in (self.gone, self.kept):
            if len(ends) not in (0, 3) or list(ends) != sorted(ends):
                raise ValueError(f"the scores of {self.layer!r} are not three that rise")
            if any(abs(score) > _LONGEST for score in ends):
                raise ValueError(f"the scores of {self.layer!r} mean nothing")


@dataclass(frozen=True, kw_only=True)
class Scored(Record):
    """By which scores a stage chose."""

    stage: str
    criterion: str
    layers: tuple[LayerScores, ...]


@dataclass(frozen=True, kw_only=True)
class Done(Record):
    """What a stage was to do, in a line."""

    stage: str
    does: str


@dataclass(frozen=True, kw_only=True)
class Scales(Record):
    """Histograms of scales."""

    threshold: float
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    share_near_zero_before: float | None = None
    share_near_zero_after: float | None = None
    strength: float | None = None
    others: tuple[Beside, ...] = ()
    layer: str = ""
    levels: tuple[str, ...] = ()
    bins: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        histograms = (self.before, self.after, *(one.counts for one in self.others))
        if {*map(len, histograms)} != {len(self.edges) - 1}:
            raise ValueError("the histograms of scales have other lengths than their edges")
        if list(self.edges) != sorted(set(self.edges)) or self.edges[-1] > _LONGEST:
            raise ValueError("the edges of the histograms do not rise")
        if (self.share_near_zero_before is None) != (self.share_near_zero_after is None):
            raise ValueError("a share near zero is missing")
        self._check_levels()

    def _check_levels(self) -> None:
        numbers = [bytes.fromhex(text) for text in self.levels]
        if len({*map(len, numbers)}) > 1 or numbers[:1] == [b""]:
            raise ValueError("the scales of a layer are not as many in each epoch")
        if max(map(max, numbers), default=-1) >= len(self.bins) - 1 and numbers:
            raise ValueError("the scales of a layer are in bins that there are not")
        if list(self.bins) != sorted({*self.bins}):
            raise ValueError("the bins of the scales do not rise")


Curve = Mapping[str, list[float | None] | str]


def _check_curve(curve: Curve) -> None:
    numbers = {key: values for key, values in curve.items() if key != "stage"}
    lists = [values for values in numbers.values() if isinstance(values, list)]
    if len(lists) < len(numbers):
        raise ValueError("a curve has a text in the place of its values")
    if not curve.get("epoch") or len({*map(len, lists)}) > 1 or None in curve["epoch"]:
        raise ValueError("a curve has no value for some epoch, or no epoch")
    for value in chain.from_iterable(lists):
        if value is not None and not -_LONGEST <= value <= _LONGEST:
            raise ValueError(f"a curve has the value {value:.3g}, which means nothing")


@dataclass(frozen=True, kw_only=True)
class Results(Record):
    """results.json."""

    rows: tuple[Network, ...]
    title: str | None = None
    recipe: str | None = None
    data: str | None = None
    model: str | None = None
    seed: int | None = None
    stages: list[Done] | None = None
    command: str | None = None
    seconds: float | None = None
    notes: list[str] | None = None
    warnings: list[str] | None = None
    published: list[Mapping[str, str | int | float | None]] | None = None
    widths: list[Width] | None = None
    picture: Picture | None = None
    scores: list[Scored] | None = None
    scales: Scales | None = None
    curves: list[Curve] | None = None
    verification: list[StageCheck] | None = None
    images: Images | None = None
    test_images: int | None = None
    by_chance: list[str] | None = None  # labels of rows whose accuracy is not told from chance
    network: str | None = None
    constructor: str | None = None
    trust: bool | None = None
    environment: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rows:
            raise ValueError("rows is empty")
        for curve in self.curves or ():
            _check_curve(curve)
            if "stage" not in curve:
                raise ValueError("a curve has no stage")


@dataclass(frozen=True, kw_only=True)
class Stage(Record):
    """stage.json."""

    stage: str
    files: Mapping[str, str]
    seconds: float | None = None
    near_zero: float | None = None  # of a short run, in the place of all else
    stands_on: Mapping[str, Any] | None = None
    notes: list[str] | None = None
    remarks: list[str] | None = None
    learnt_nothing: str | None = None  # of the remarks, the one that says so
    by_chance: list[str] | None = None
    warnings: list[str] | None = None
    rows: tuple[Network, ...] | None = None
    images: Images | None = None
    network: str | None = None
    widths: tuple[Width, ...] | None = None
    sparse: bool | None = None
    histograms: tuple[tuple[int, ...], ...] | None = None
    curves: Curve | None = None
    verification: Check | None = None
    best: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds is None and self.near_zero is None:
            raise ValueError("seconds is missing")
        if self.curves is not None:
            _check_curve(self.curves)
        if self.histograms is not None and (self.sparse is None or len(self.histograms) < 2):
            raise ValueError("there are histograms of no training")
        if len({*map(len, self.histograms or ())}) > 1:
            raise ValueError("the histograms have several lengths")
        for name in self.files:
            if "/" in name or "\\" in name or name in ("", ".", ".."):
                raise ValueError(f"it vouches for {name!r}, which is no file beside it")


@dataclass(frozen=True, kw_only=True)
class Bite(Record):
    """Whether a method did what the cut behind it relies on."""

    stage: str
    method: str
    bites: bool
    figure: str


@dataclass(frozen=True, kw_only=True)
class TableRow(Record):
    """A row of paper.json: one recipe, one seed."""

    recipe: str
    title: str
    seed: int
    twin: bool
    settings: str
    rows: tuple[Network, ...]
    published: list[Mapping[str, str | int | float | None]]
    conditions: list[str]
    bites: tuple[Bite, ...]
    seconds: float
    copied: list[str]
    environment: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tables(Record):
    """paper.json."""

    rows: tuple[TableRow, ...]
    left: list[str]
    failed: Mapping[str, str] | None = None  # row and seed -> what went wrong the last time
    options: list[str] | None = None  # with which what is left is run


@dataclass(frozen=True, kw_only=True)
class Look(Record):
    """Accuracy on some images."""

    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Candidate(Record):
    """candidate.json and original.json."""

    share: float | None = None
    passed: bool | None = None
    unreachable: str | None = None
    accuracy: float | None = None
    params: float | None = None
    macs: float | None = None
    channels: float | None = None
    activations: float | None = None
    latency: float | None = None
    seconds: float = 0.0
    model: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unreachable is None:
            missing = [name for name in ("accuracy", "params", "macs") if self.cost(name) is None]
            if missing:
                raise ValueError(f"{missing[0]} is missing")

    def cost(self, name: str) -> float | None:
        """A figure by its name."""
        found: float | None = vars(self)[name]
        return found


@dataclass(frozen=True, kw_only=True)
class Tried(Candidate):
    """A row of search.json."""

    key: Literal["original", "trained", "candidate"]


@dataclass(frozen=True, kw_only=True)
class Search(Record):
    """search.json."""

    title: str
    command: str
    resource: Literal["params", "macs", "channels", "activations", "latency"]
    max_drop: float
    baseline: float
    rows: tuple[Tried, ...]
    best: float | None
    verdict: str
    notes: list[str]
    tests: Mapping[Literal["original", "best"], Look]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rows or self.rows[0].key != "original" or not self.rows[0].cost(self.resource):
            raise ValueError("rows: the first is not the given network with what it costs")
        for number, row in enumerate(self.rows):
            named = row.key != "candidate" or None not in (row.share, row.passed)
            if not named or (row.unreachable is None and row.cost(self.resource) is None):
                raise ValueError(f"rows.{number}: share, passed or {self.resource} is missing")
        if not self.rows[0].cost("params") or not self.rows[0].cost("macs"):
            raise ValueError("rows.0: a network without parameters or MACs")


__all__ = ["Candidate", "Network", "Record", "Results", "Search", "Stage", "Tables"]
