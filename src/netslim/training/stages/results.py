"""results.json: what all stages found, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netslim.training.loop.gammas import EDGES, NEAR_ZERO, joint_histogram
from netslim.training.recipe.schema import Recipe
from netslim.training.stages.folder import FORMAT

Done = Mapping[str, Any]


def assemble(
    recipe: Recipe, done: Sequence[Done], environment: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """The contents of results.json, from the markers of all stages."""
    return {
        "format": FORMAT,
        "recipe": recipe.name,
        "title": recipe.title,
        "command": command,
        "seconds": round(sum(stage["seconds"] for stage in done), 3),
        "notes": list(
            dict.fromkeys(
                [
                    *recipe.notes,
                    *_all(done[-1:], "notes"),
                    *_said(done, "remarks"),
                    *_dry_run(recipe),
                ]
            )
        ),
        "warnings": _said(done, "warnings"),
        "published": recipe.published,
        "rows": done[-1]["rows"],
        "widths": widths(done),
        "scales": scales(done),
        "curves": [
            {"stage": stage["stage"], **stage["curves"]} for stage in done if "curves" in stage
        ],
        "verification": [
            {"stage": stage["stage"], **stage["verification"]}
            for stage in done
            if "verification" in stage
        ],
        "environment": {
            key: value for key, value in environment.items() if key not in ("format", "command")
        },
    }


def widths(done: Sequence[Done]) -> list[dict[str, Any]]:
    """Channels of every prunable layer before the first cut and after the last."""
    found: dict[str, dict[str, Any]] = {}
    for layer in _all(done, "widths"):
        found.setdefault(layer["layer"], dict(layer))["after"] = layer["after"]
    return list(found.values())


def scales(done: Sequence[Done]) -> dict[str, Any] | None:
    """Histograms before and after the first training with a penalty (or the first training at all)."""
    trained = [stage for stage in done if "histograms" in stage]
    chosen = next((stage for stage in trained if stage["sparse"]), trained[0] if trained else None)
    if chosen is None or not sum(chosen["histograms"][0]):
        return None
    before, after = chosen["histograms"][0], chosen["histograms"][-1]
    shares = {
        "share_near_zero_before": _near_zero(before),
        "share_near_zero_after": _near_zero(after),
    }
    return {"threshold": NEAR_ZERO, **joint_histogram(before, after), **shares}


def _near_zero(counts: Sequence[int]) -> float:
    return sum(
        count for edge, count in zip(EDGES[1:], counts, strict=True) if edge <= NEAR_ZERO
    ) / sum(counts)


def _all(done: Sequence[Done], key: str) -> list[Any]:
    return [item for stage in done for item in stage.get(key, [])]


def _said(done: Sequence[Done], key: str) -> list[str]:
    """Sentences, each after the stage it is about."""
    return [f"{stage['stage']}: {text}" for stage in done for text in stage.get(key, [])]


def _dry_run(recipe: Recipe) -> list[str]:
    limit = recipe.trainer.limit_batches
    return (
        [f"a dry run: only {limit} batches of each split were used, so the figures mean nothing"]
        if limit
        else []
    )
