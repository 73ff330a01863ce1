"""The run folder: what is in it, who may write to it, and what counts as finished.

::

    config.yaml        the recipe, overrides applied, nothing left to defaults
    environment.json   machine, versions, threads, command
    01-sparse/         one folder a stage: last.ckpt, metrics.csv, plan.json, model.safetensors,
                       model.onnx and model.int8.onnx,
        stage.json     and, written last, the proof that the stage is finished, with its results
    results.json       all results, written when every stage is finished
    report.html        made from results.json

Every file is written under a temporary name and renamed, so that a kill leaves the old file or the
new one. stage.json holds the digests of the files it vouches for: a later stage builds on them, and
one that was exchanged in between would go unnoticed otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netslim._support import (
    brief,
    digest_of_plain,
    is_format,
    opened,
    parse_json,
    read_text,
    refusing,
    remove_leftovers,
    try_lock,
    typed,
    write_atomic,
)
from netslim.errors import NetslimError, RecipeError
from netslim.report import records, results_file
from netslim.report.records import Record
from netslim.training.recipe.files import read_settings, write_settings
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import SIDE_BRANCHES, Measure, Recipe, Stage
from netslim.training.stages.changes import basis, differences, in_short, kept
from netslim.training.stages.ground import Ground

FORMAT = 1


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`write_atomic` of indented JSON with its digest; refuses NaN, which is not JSON."""
    sealed = {**content, "digest": digest_of_plain(content)}
    write_atomic(path, json.dumps(sealed, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str, holds: type[Record] = Record) -> dict[str, Any]:
    """The content of a JSON file of the run folder, without its digest.

    Args:
        path: the file.
        remedy: what to do where it cannot be used.
        holds: what must be in it.

    Raises:
        RecipeError: it is not readable JSON of our format, or not as it was written; the message
            ends in `remedy`.
    """
    with refusing(RecipeError, f"{path} is damaged", remedy):
        content = parse_json(read_text(path))
    if not isinstance(content, dict) or not is_format(content.get("format"), FORMAT):
        raise RecipeError(
            f"{path} is not a file of this version of netslim (format {FORMAT}); {remedy}"
        )
    known = content.pop("digest", None)  # none in files of version 0.1
    if known is not None and known != digest_of_plain(content):
        raise RecipeError(f"{path} was changed after it was written; {remedy}")
    with refusing(RecipeError, f"{path} is damaged", remedy):
        typed(holds, content)
    return content


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with opened(path) as (file, _):
        return hashlib.file_digest(file, "sha256").hexdigest()


def _younger(path: Path, than: Path) -> bool:
    """Whether a file was changed after another one was written, or about then."""
    return path.stat().st_mtime_ns >= than.stat().st_mtime_ns


def stranger(folder: Path) -> str | None:
    """The name of something in a folder that is not hidden; None where it is as good as empty."""
    names = (item.name for item in folder.iterdir())
    return min((name for name in names if not name.startswith(".")), default=None)


@dataclass(frozen=True)
class Forms:
    """A network as ONNX files: in float, and in int8."""

    exact: Path
    int8: Path


class StageFolder:
    """One stage's part of the run folder."""

    def __init__(self, root: Path, index: int, stage: Stage) -> None:
        self.label = f"{index + 1:02d}-{stage.name}"
        self.path = root / self.label
        self.checkpoint = self.path / "last.ckpt"
        self.best = self.path / "best.safetensors"
        self.metrics = self.path / "metrics.csv"
        self.model = self.path / "model.safetensors"
        self.plan = self.path / "plan.json"
        self.forms = Forms(self.path / "model.onnx", self.path / "model.int8.onnx")
        self.marker = self.path / "stage.json"
        self.measures = isinstance(stage, Measure)
        self.ground: Ground | None = None  # what it stands on, where that is known

    def results(self, *, all_read: bool = True) -> dict[str, Any] | None:
        """What the finished stage wrote, or None while it is unfinished.

        Args:
            all_read: whether all that it vouches for is read, as whoever builds on that has to;
                else what is no younger than the marker is believed.

        Raises:
            RecipeError: the marker or a file it vouches for was damaged or changed, or the stage
                stands on something else than is there now.
        """
        if not self.marker.exists():
            return None
        remedy = f"move {self.path} away to run this stage again"
        content = read_json(self.marker, remedy, records.Stage)
        if self.measures and not content.get("rows"):
            raise RecipeError(f"{self.marker} holds no rows of a measurement; {remedy}")
        for name, expected in content["files"].items():
            self._check_file(self.path / name, expected, remedy, all_read)
        self.check_ground(content.get("stands_on"), self.marker)
        return content

    def _check_file(self, file: Path, expected: str, remedy: str, always_read: bool) -> None:
        """See to it that a file is the one that the marker vouches for."""
        if not file.exists():
            raise RecipeError(f"{file} is missing though the stage is finished; {remedy}")
        with refusing(RecipeError, f"{file} is damaged", remedy):
            # What is no file has no content that its age could vouch for.
            read = always_read or not file.is_file() or _younger(file, self.marker)
            changed = read and digest(file) != expected
        if changed:
            raise RecipeError(f"{file} was changed after the stage finished; {remedy}")

    def stands_on(self) -> dict[str, Any]:
        """What the stage stands on now, as plain data; empty where that is not known."""
        if self.ground is None:
            return {}
        return self.ground.now()

    def check_ground(self, then: dict[str, Any] | None, what: Path) -> None:
        """See to it that the stage, as the file `what` has it, stood on what is there now.

        Raises:
            RecipeError: it did not.
        """
        if self.ground is not None:
            self.ground.check(then or None, what, self.path)

    @property
    def begun(self) -> bool:
        """Whether there is work in it that would be lost if the stage began anew."""
        return any(
            path.exists() for path in (self.marker, self.checkpoint, *self.path.glob("strength*"))
        )

    def clear(self) -> None:
        """Remove what a stage left that was stopped before there was any work to lose."""
        for path in (self.best, self.metrics, *self._made()):
            path.unlink(missing_ok=True)

    def _made(self) -> tuple[Path, ...]:
        """What later stages, or people, take from it."""
        return self.model, self.plan, self.forms.exact, self.forms.int8

    def finish(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Write the marker: from now on the stage is finished."""
        written = [path for path in (*self._made(), self.metrics) if path.exists()]
        files = {path.name: digest(path) for path in written}
        known = {"format": FORMAT, "stage": self.label, "stands_on": self.stands_on()}
        write_json(self.marker, {**known, **results, "files": files})
        found = self.results()
        assert found is not None
        return found


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.results = path / results_file.NAME
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"

    def noted_environment(self) -> dict[str, Any]:
        """What is noted of where the run takes place; empty where nothing is yet.

        Raises:
            RecipeError: the file is damaged.
        """
        if not self.environment.exists():
            return {}
        return read_json(self.environment, "move it away to have it written again")

    def read_results(self) -> dict[str, Any]:
        """The results of a run, all of whose stages are finished.

        Raises:
            RecipeError: they are missing or damaged.
        """
        remedy = "give its 'netslim run' command again, which makes it from the finished stages"
        if not self.results.exists():
            raise RecipeError(f"{self.results} is missing though every stage is finished; {remedy}")
        if not self.results.is_file():
            remedy = f"move it away and {remedy}"  # a file takes the place of files alone
        return read_json(self.results, remedy, records.Results)

    def forget_results(self) -> bool:
        """Remove the results and the report, which are made from the stages; whether they were
        there.

        Raises:
            RecipeError: one cannot be removed, as where a folder is in its place.
        """
        made = [path for path in (self.results, self.report) if path.exists()]
        for path in made:
            with refusing(RecipeError, f"{path} cannot be removed", "move it away"):
                path.unlink()
        return bool(made)

    def stage(self, index: int, stage: Stage) -> StageFolder:
        """The part of stage number `index` (from 0)."""
        return StageFolder(self.path, index, stage)

    def refuse_strangers(self) -> None:
        """Leave a folder alone that holds something else; to be asked before anything is written.

        Raises:
            RecipeError: it is neither a run folder nor empty.
        """
        if self.config.exists() or not self.path.is_dir():
            return
        if found := stranger(self.path):
            raise RecipeError(
                f"{self.path} is not empty and not a run folder (it holds {found}); "
                "choose another --out"
            )

    def claim(self, recipe: Recipe) -> str | None:
        """Make the folder this recipe's own, or make sure that it already is.

        What is begun in it must be what this recipe would do, too; stages that are not begun may
        have changed, and are carried out as this recipe says. Where no epoch and no stage is
        finished, everything may have changed.

        Returns:
            What to know where later stages have changed, else None.

        Raises:
            RecipeError: it belongs to another recipe, or what is begun was with other settings.
        """
        notice = None
        if self.config.exists():
            theirs = self._theirs(recipe)
            changed = list(differences(with_defaults(theirs), recipe.to_dict()))
            if not changed:
                return None
            notice = self._give_way(theirs, recipe, changed)
        write_settings(self.config, recipe.to_dict())
        return notice

    def belongs_to(self, recipe: Recipe) -> bool:
        """Whether the folder was begun with exactly this recipe; nothing is written."""
        if not self.config.exists():
            return False
        return not list(differences(with_defaults(self._theirs(recipe)), recipe.to_dict()))

    def _theirs(self, recipe: Recipe) -> Any:
        """The settings that the folder was begun with."""
        theirs = read_settings(self.config, "choose another --out")
        if theirs.get("name") != recipe.name:
            raise RecipeError(
                f"{self.path} belongs to the recipe {brief(theirs.get('name'))}, not "
                f"{brief(recipe.name)}; choose another --out"
            )
        return theirs

    def _give_way(self, theirs: Any, recipe: Recipe, changed: Sequence[str]) -> str | None:
        """Let go of what depends on the changed settings; what to know of it.

        Raises:
            RecipeError: that would lose finished work.
        """
        # Nothing is lost yet, so the settings may still change: a first try with a wrong option
        # needs no other folder.
        if not any(self._begun_folders()):
            self.environment.unlink(missing_ok=True)
            return None
        old = _as_recipe(theirs)
        if old is None:
            raise RecipeError(self._refusal(recipe, changed, ""))
        folders = [self.stage(index, stage) for index, stage in enumerate(old.stages)]
        begun = [index for index, folder in enumerate(folders) if folder.begun]
        count = max(begun, default=-1) + 1
        same = kept(old, recipe, count)
        if same < count or not begun:
            conflicts = list(differences(basis(old, count), basis(recipe, count))) or changed
            raise RecipeError(self._refusal(recipe, conflicts, _remedy(old, folders, begun, same)))
        self.forget_results()
        for index, stage in enumerate(recipe.stages[count:], count):
            self.stage(index, stage).clear()
        labels = ", ".join(folders[index].label for index in begun)
        return f"kept: {labels}; changed since it was begun: {in_short(changed)}"

    def _begun_folders(self) -> Iterator[Path]:
        for name in ("last.ckpt", "stage.json", "strength*"):
            yield from self.path.glob(f"*/{name}")

    def _refusal(self, recipe: Recipe, found: Sequence[str], remedy: str) -> str:
        text = (
            f"{self.path} was begun with other settings ({in_short(found)}); choose another --out"
        )
        if recipe.stages[-1].kind != "measure":
            return f"{text}, or repeat the old command"
        # What a recipe leaves to defaults may mean something else to another version; its own
        # config.yaml leaves nothing to them.
        again = ["netslim", "run", str(self.config), "--out", str(self.path)]
        again += ["--trust"] * recipe.trust  # which no file says for itself
        return f"{text}{remedy}, or go on as it was begun: {shlex.join(again)}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out; the system lifts the lock when this process ends, in any way.

        Raises:
            RecipeError: another living process works in the folder, it cannot be made, or it holds
                links to other folders, where nothing is written.
        """
        path = self.path / ".lock"
        _refuse_link(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            nofollow = getattr(os, "O_NOFOLLOW", 0)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | nofollow, 0o644)
        except OSError as error:
            raise RecipeError(
                f"the folder {self.path} cannot be written: {error.strerror}; choose another --out"
            ) from None
        # A lock of the system, not a file that says so: a killed process leaves none behind.
        try:
            if not (try_lock(handle) or _lock_later(handle)):
                owner = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
                raise RecipeError(
                    f"{self.path} is in use by another netslim run ({owner}); wait for it or "
                    "choose another --out"
                )
            for place in _folders(self.path):
                remove_leftovers(place)
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield
        finally:
            os.close(handle)


def _lock_later(handle: int) -> bool:
    """Once more: `netslim status` tries the lock, too, and gives it back at once."""
    time.sleep(0.05)
    return try_lock(handle)


def _folders(root: Path) -> Iterator[Path]:
    """A folder and those in it, none of which is a link."""
    for place, folders, _ in os.walk(root):
        for name in folders:
            _refuse_link(Path(place, name))
        yield Path(place)


def _refuse_link(path: Path) -> None:
    """Nothing is written through links inside a run folder: what they lead to is not the run's."""
    linked = path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)
    if linked:
        raise RecipeError(
            f"{path} is a link, and nothing is written through links inside of a run folder: "
            "remove it, or put what it leads to in its place"
        )


def with_defaults(tree: Any) -> Any:
    """The settings of a folder with those that its version did not know, at their defaults; as they
    are where they are no recipe of this version.
    """
    found = _as_recipe(tree)
    if found is None:
        return tree
    return found.to_dict()


def _as_recipe(tree: Any) -> Recipe | None:
    try:
        return parse_recipe(tree, whole=False)
    except NetslimError:
        return None


def _remedy(old: Recipe, folders: Sequence[StageFolder], begun: Sequence[int], same: int) -> str:
    """How to go on from what is there, though stage number `same` (from 0) has changed."""
    if any(index < same for index in begun):
        stale = ", ".join(str(folders[index].path) for index in begun if index >= same)
        return f", or move {stale} away to keep what is finished before"
    stages = zip(old.stages, folders, strict=True)
    main = [folder for stage, folder in stages if not isinstance(stage, SIDE_BRANCHES)]
    made = [folder.model for folder in main if folder.marker.exists() and folder.model.exists()]
    if not made:
        return ""
    return f", or start from what is there by a recipe with model.name: {made[-1]}"
