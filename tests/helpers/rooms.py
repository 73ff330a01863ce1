"""The rooms of the package that users enter."""

from __future__ import annotations

import importlib
import pkgutil

import netslim


def listing_rooms() -> list[str]:
    """The package itself and each package in it that lists what it holds for users; `_support`
    holds helpers of our own.
    """
    packages = (
        one.name for one in pkgutil.walk_packages(netslim.__path__, "netslim.") if one.ispkg
    )
    public = [name for name in packages if "._" not in name]
    return ["netslim", *(one for one in public if hasattr(importlib.import_module(one), "__all__"))]
