"""`folder:`: one sub-folder of pictures a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from netslim.data.memory import read_pictures
from netslim.data.pictures import ENDINGS, Files, common_form
from netslim.data.raw import Raw, Wanted, roles, standing_in
from netslim.data.unreadable import named
from netslim.errors import DataError

_NEEDED = "every class needs a sub-folder with its pictures"


def read_folder(folder: Path, wanted: Wanted) -> Raw:
    """PATH/train and PATH/test (or val) with class sub-folders, or such folders in PATH itself.

    Raises:
        DataError: a class has no pictures, splits differ in their classes, or as `read_pictures`.
    """
    places = {"train": folder}
    found = roles(child.name for child in folder.iterdir() if child.is_dir())
    if "train" in found:
        places = {role: folder / name for role, name in found.items()}
    scans = {role: _Scan(place) for role, place in places.items()}
    classes = tuple(scans["train"].paths)
    splits = {}
    for role, scan in scans.items():
        _check_classes(scan, classes, places["train"])
        paths = tuple(chain.from_iterable(scan.paths.values()))
        # By name: a split that lacks a class numbers those after it differently.
        labels = [classes.index(name) for name in scan.paths]
        counts = [len(own) for own in scan.paths.values()]
        splits[role] = Files(paths), torch.tensor(labels).repeat_interleave(torch.tensor(counts))
    form = common_form(splits["train"][0], wanted)
    raw = read_pictures(splits, classes, form, wanted)
    aside = list(chain.from_iterable(scan.notes for scan in scans.values()))
    if "train" in found:
        aside += standing_in(found)
    return replace(raw, notes=(*raw.notes, *aside))


class _Scan:
    """The picture files in and below each class folder, every real file once.

    First what lies there, then what links lead to, so that a picture counts for the class that it
    lies in. A link to a folder is not followed where that was looked into already, or holds class
    folders: it would lead round and round, or to the pictures of other classes.

    Attributes:
        place: the folder of the class folders.
        paths: class -> its files, in order of folder and name.
    """

    def __init__(self, place: Path) -> None:
        tops = [child for child in place.iterdir() if child.is_dir()]
        if not tops:
            raise DataError(f"{place}: holds no folder; {_NEEDED}")
        self.place = place
        self.paths: dict[str, list[str]] = {name: [] for name in sorted(top.name for top in tops)}
        real = {top.resolve() for top in tops}
        self._above: set[str] = set()
        for one in real:
            self._above.update(str(parent) for parent in one.parents if parent not in real)
        self._folders: set[str] = set()  # that were looked into
        self._files: set[str] = set()  # that links lead to
        self._links: list[tuple[str, str]] = []
        self._not_followed: list[str] = []
        self._others: list[str] = []
        self._unending: list[str] = []  # pipes, sockets, devices: a read may wait for ever
        for top in sorted(tops, key=Path.is_symlink):
            self._walk(top.name, str(top))
        self._follow()
        for name, paths in self.paths.items():
            paths.sort(key=os.path.split)
            if not paths:
                raise DataError(f"{place / name}: holds no pictures; {_NEEDED}")

    @property
    def notes(self) -> Iterator[str]:
        """What was left aside."""
        if self._others:
            yield (
                f"{self.place}: files without the ending of a picture ({' '.join(ENDINGS)}), "
                f"left aside: {len(self._others):,} ({named(self._others)})."
            )
        if self._unending:
            yield (
                f"{self.place}: pipes, sockets and devices, left aside: "
                f"{len(self._unending):,} ({named(self._unending)})."
            )
        if self._not_followed:
            yield (
                f"{self.place}: links that lead back or to pictures that are there already, not "
                f"followed: {len(self._not_followed):,} ({named(self._not_followed)})."
            )

    def _walk(self, name: str, folder: str) -> None:
        """What lies in a folder and below; links are kept for later."""
        real = os.path.realpath(folder)
        if real in self._folders or real in self._above:
            self._not_followed.append(folder)
            return
        self._folders.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    self._links.append((name, entry.path))
                elif entry.is_dir():
                    self._walk(name, entry.path)
                elif entry.is_file():
                    self._take(name, entry.path)
                else:
                    self._unending.append(entry.path)

    def _follow(self) -> None:
        """Links to folders and the links in there, then those to files."""
        files = []
        for name, link in self._links:  # which grows
            if os.path.isdir(link):
                self._walk(name, link)
            else:
                files.append((name, link))
        for name, link in files:
            real = os.path.realpath(link)
            met = real in self._files or os.path.dirname(real) in self._folders
            if met and os.path.exists(real):
                self._not_followed.append(link)
                continue
            self._files.add(real)
            if os.path.exists(real) and not os.path.isfile(real):
                self._unending.append(link)
            else:  # a broken one is told as unreadable
                self._take(name, link)

    def _take(self, name: str, path: str) -> None:
        if path.lower().endswith(ENDINGS):
            self.paths[name].append(path)
        elif not os.path.basename(path).startswith("."):
            self._others.append(path)


def _check_classes(scan: _Scan, classes: tuple[str, ...], train: Path) -> None:
    extra = sorted(set(scan.paths) - set(classes))
    if extra:
        raise DataError(
            f"{scan.place}: class folder '{extra[0]}' is not in {train}, which has "
            f"{', '.join(classes[:10])}; both need the same classes"
        )
