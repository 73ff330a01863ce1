"""results.json: what all stages found, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from netslim.methods.threshold import NEAR_ZERO
from netslim.training.loop.gammas import EDGES, joint_histogram
from netslim.training.recipe.schema import Recipe
from netslim.training.stages.folder import FORMAT

Done = Mapping[str, Any]
_KNOWN = ("format", "command")  # of the environment, which the results tell already


def assemble(
    recipe: Recipe, done: Sequence[Done], environment: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """The contents of results.json, from the markers of all stages."""
    return {
        "format": FORMAT,
        "recipe": recipe.name,
        "title": recipe.title,
        "data": recipe.data.name,
        "command": command,
        "seconds": round(sum(stage["seconds"] for stage in done), 3),
        "notes": _notes(recipe, done),
        "warnings": _said(done, "warnings"),
        "published": recipe.published,
        "rows": done[-1]["rows"],
        "images": done[-1].get("images"),
        "network": done[-1].get("network"),
        "widths": widths(done),
        "scales": scales(done),
        "curves": _by_stage(done, "curves"),
        "verification": _by_stage(done, "verification"),
        "environment": {key: environment[key] for key in environment if key not in _KNOWN},
    }


def _notes(recipe: Recipe, done: Sequence[Done]) -> list[str]:
    """Each sentence once, in the order in which they were said."""
    said = [
        *recipe.notes,
        *(done[-1].get("notes") or []),
        *_said(done, "remarks"),
        *_dry_run(recipe),
    ]
    return list(dict.fromkeys(said))


def _by_stage(done: Sequence[Done], key: str) -> list[dict[str, Any]]:
    return [{"stage": stage["stage"], **stage[key]} for stage in done if stage.get(key)]


def widths(done: Sequence[Done]) -> list[dict[str, Any]]:
    """Channels of every prunable layer before the first cut and after the last."""
    found: dict[str, dict[str, Any]] = {}
    for layer in chain.from_iterable(stage.get("widths") or [] for stage in done):
        found.setdefault(layer["layer"], dict(layer))["after"] = layer["after"]
    return list(found.values())


def scales(done: Sequence[Done]) -> dict[str, Any] | None:
    """Histograms before and after the first training with a penalty, or else the first at all."""
    trained = [stage for stage in done if stage.get("histograms")]
    if not trained:
        return None
    chosen = next((stage for stage in trained if stage["sparse"]), trained[0])
    before, after = chosen["histograms"][0], chosen["histograms"][-1]
    if len(before) != len(EDGES) - 1 or not sum(before):  # of another version, or of no scales
        return None
    shares = {
        "share_near_zero_before": _near_zero(before),
        "share_near_zero_after": _near_zero(after),
    }
    return {"threshold": NEAR_ZERO, **joint_histogram(before, after), **shares}


def _near_zero(counts: Sequence[int]) -> float:
    below = (n for edge, n in zip(EDGES[1:], counts, strict=True) if edge <= NEAR_ZERO)
    return sum(below) / sum(counts)


def _said(done: Sequence[Done], key: str) -> list[str]:
    """Sentences, each after the stage it is about."""
    found = []
    for stage in done:
        found += [f"{stage['stage']}: {text}" for text in stage.get(key) or []]
    return found


def _dry_run(recipe: Recipe) -> list[str]:
    limit = recipe.trainer.limit_batches
    if not limit:
        return []
    return [f"a dry run: only {limit} batches of each split were used, so the figures mean nothing"]
