"""What a stage stands on: the data, the network before it, its settings, seed and versions.

Every stage writes it down, in its checkpoint and beside its results, and one that goes on, or is
built on, is held against what is there now. Otherwise exchanged pictures, a stage of another run or
another version of torch would go into figures that tell of none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from netslim._support import brief, refusing, typed
from netslim.errors import RecipeError
from netslim.training.stages.changes import ONLY_TOLD, differing

Standing = dict[str, Any]
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class _Split:
    images: int
    listing: str
    labels: str


@dataclass(frozen=True)
class _Data:
    and_more: ClassVar[bool] = True
    classes: list[Any]
    train: _Split
    validation: _Split
    test: _Split


@dataclass(frozen=True)
class _Stood:
    """A `Standing` in a file, which may be anybody's."""

    and_more: ClassVar[bool] = True
    stage: str
    seed: int
    settings: Mapping[str, Any]
    before: Mapping[str, str]
    data: _Data
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Ground:
    """What a stage stands on now.

    Attributes:
        now: tells it.
        accepts: whether differences that may be lived with are accepted, which are told to it.
    """

    now: Callable[[], Standing]
    accepts: Callable[[list[str]], bool]

    def check(self, then: Standing | None, what: Path, stage: Path) -> None:
        """Hold what a stage stood on against what it stands on now.

        Args:
            then: as `now` told it; None in files of version 0.1, which do not say it.
            what: the file that says so.
            stage: the folder of the stage.

        Raises:
            RecipeError: it differs; says in what, and how to go on.
        """
        if then is None:
            return
        now = self.now()
        again = f"move {stage} away to run this stage again"
        with refusing(RecipeError, f"{what} is damaged", again):
            typed(_Stood, then)
        if strange := list(_strange(then, now)):
            raise RecipeError(
                f"{what} is of another run: {'; '.join(strange)}; put back what was there, or "
                f"{again}"
            )
        if other := list(_others(then["before"], now["before"])):
            raise RecipeError(
                f"{what} builds on another network than is there now: {', '.join(other)}; put "
                f"back what was there, or {again}"
            )
        changed = [*_data(then["data"], now["data"]), *_versions(then, now)]
        if changed and not self.accepts(changed):
            raise RecipeError(
                f"{what} stands on something else than is there now: {'; '.join(changed)}; put "
                f"back what was there, or {again}, or repeat the command with --changed-ok to "
                "go on all the same"
            )


def _strange(then: Standing, now: Standing) -> Iterator[str]:
    """What is the same in all that one run writes."""
    for key in ("stage", "seed"):
        if then[key] != now[key]:
            yield f"{key} {then[key]}, not {now[key]}"
    # What this version knows besides was at its default then, as config.yaml is compared to tell.
    for where, old, new in differing(then["settings"], now["settings"]):
        if old is not None and where not in ONLY_TOLD:
            yield f"{where} {brief(old)}, not {brief(new)}"


def _others(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """The files that hold something else; weights that were learnt elsewhere may be gone by now."""
    for name, digest in now.items():
        if then.get(name, digest) != digest:
            yield name


def _data(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if then["classes"] != now["classes"]:
        yield "the data have other classes"
    for split in _SPLITS:
        old, new = then[split], now[split]
        if old["images"] != new["images"]:
            yield f"the data have {new['images']} {split} images, and had {old['images']}"
        elif old["listing"] != new["listing"]:
            yield f"the {split} images are others"
        elif old["labels"] != new["labels"]:
            yield f"the {split} images have other labels"


def _versions(then: Standing, now: Standing) -> Iterator[str]:
    for name in sorted({*then["versions"], *now["versions"]}):
        old, new = then["versions"].get(name), now["versions"].get(name)
        if old != new:
            yield f"{name} is {new}, and was {old}"


__all__ = ["Ground", "Standing"]
