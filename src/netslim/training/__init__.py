"""Recipes, and the runner that carries them out in a run folder that survives a kill.

::

    recipe = load_recipe("digits", {"stages.sparse.epochs": "2"})
    results = run(recipe, "runs/digits")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "Recipe": "schema",
    "load_recipe": "reading",
    "parse_recipe": "reading",
    "recipe_text": "files",
    "shipped": "files",
}

__all__ = ["Recipe", "load_recipe", "parse_recipe", "recipe_text", "run", "shipped"]

if TYPE_CHECKING:
    from netslim.training.recipe.files import recipe_text as recipe_text
    from netslim.training.recipe.files import shipped as shipped
    from netslim.training.recipe.reading import load_recipe as load_recipe
    from netslim.training.recipe.reading import parse_recipe as parse_recipe
    from netslim.training.recipe.schema import Recipe as Recipe
    from netslim.training.stages.runner import run as run
else:

    def __getattr__(name: str) -> object:
        """Imported when asked for: training needs Lightning, recipes torch, their texts neither."""
        if name == "run":
            return importlib.import_module("netslim.training.stages.runner").run
        if name in _HOMES:
            home = importlib.import_module(f"netslim.training.recipe.{_HOMES[name]}")
            return getattr(home, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
