"""Recipes, and the runner that carries them out in a run folder that survives a kill.

::

    recipe = load_recipe("digits", {"stages.sparse.epochs": "2"})
    results = run(recipe, "runs/digits")
"""

from typing import Any

from netslim.training.recipe.reading import load_recipe, parse_recipe, recipe_text, shipped
from netslim.training.recipe.schema import Recipe

__all__ = ["Recipe", "load_recipe", "parse_recipe", "recipe_text", "run", "shipped"]


def __getattr__(name: str) -> Any:
    if name == "run":  # training needs Lightning, which takes seconds to import; recipes do not
        from netslim.training.stages.runner import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
