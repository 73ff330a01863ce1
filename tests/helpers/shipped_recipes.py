"""The shipped recipes, each read once: most of the time goes into their YAML."""

from __future__ import annotations

from functools import cache

from netslim.training import load_recipe

recipe_of = cache(load_recipe)
