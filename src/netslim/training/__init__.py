"""Recipes, and the runner that carries them out in a run folder that survives a kill.

::

    recipe = load_recipe("digits", {"stages.sparse.epochs": "2"})
    results = run(recipe, "runs/digits")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netslim._support.rooms import imported_later

# Training needs Lightning, recipes and their texts do not.
_HOMES = {
    "Recipe": "recipe.schema",
    "load_recipe": "recipe.reading",
    "parse_recipe": "recipe.reading",
    "recipe_text": "recipe.files",
    "run": "stages.runner",
    "shipped": "recipe.files",
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
    __getattr__ = imported_later(__name__, _HOMES)
