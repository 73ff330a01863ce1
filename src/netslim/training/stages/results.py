"""results.json: what all stages found, in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from netslim._support import many
from netslim.methods.threshold import NEAR_ZERO
from netslim.training.loop.gammas import EDGES, trimmed
from netslim.training.recipe.orders import wasted
from netslim.training.recipe.schema import Baseline, Recipe, SlimmingOptions, Stage, Train
from netslim.training.stages.folder import FORMAT
from netslim.training.stages.headlines import headline

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
        "model": recipe.model.name,
        "seed": recipe.seed,
        "stages": [
            {"stage": found["stage"], "does": headline(stage)}
            for stage, found in zip(recipe.stages, done, strict=True)
        ],
        "command": command,
        "seconds": round(sum(stage["seconds"] for stage in done), 3),
        "notes": _notes(recipe, done),
        "warnings": [*_dry_run(recipe), *_said(done, "warnings")],
        "published": recipe.published,
        "rows": done[-1]["rows"],
        "images": done[-1].get("images"),
        "test_images": done[-1].get("test_images"),
        "by_chance": done[-1].get("by_chance"),
        "network": done[-1].get("network"),
        "constructor": done[-1].get("constructor"),
        "trust": done[-1].get("trust"),
        "widths": widths(done),
        "picture": next(filter(None, (stage.get("picture") for stage in done)), None),
        "scores": _by_stage(done, "scores"),
        "scales": scales(recipe, done),
        "curves": _by_stage(done, "curves"),
        "verification": _by_stage(done, "verification"),
        "environment": {key: environment[key] for key in environment if key not in _KNOWN},
    }


def _notes(recipe: Recipe, done: Sequence[Done]) -> list[str]:
    """Each sentence once, in the order in which they were said."""
    said = [
        *recipe.notes,
        *wasted(recipe),
        *(done[-1].get("notes") or []),
        *_remarks(done),
    ]
    return list(dict.fromkeys(said))


def _remarks(done: Sequence[Done]) -> Iterator[str]:
    """What stages remark, those of the same words together.

    That a stage has learnt nothing is left to what is said of the measured networks, where that
    comes to the same.
    """
    found = dict[str, list[str]]()
    for stage in done:
        for text in stage.get("remarks") or []:
            if not (done[-1].get("by_chance") and text == stage.get("learnt_nothing")):
                found.setdefault(text, []).append(stage["stage"])
    return (f"{', '.join(stages)}: {text}" for text, stages in found.items())


def _by_stage(done: Sequence[Done], key: str) -> list[dict[str, Any]]:
    return [{"stage": stage["stage"], **stage[key]} for stage in done if stage.get(key)]


def widths(done: Sequence[Done]) -> list[dict[str, Any]]:
    """Channels of every prunable layer before the first cut and after the last."""
    found: dict[str, dict[str, Any]] = {}
    for layer in chain.from_iterable(stage.get("widths") or [] for stage in done):
        found.setdefault(layer["layer"], dict(layer))["after"] = layer["after"]
    return list(found.values())


def scales(recipe: Recipe, done: Sequence[Done]) -> dict[str, Any] | None:
    """Histograms before and after the first training with a penalty, or else the first at all, and
    of the trainings beside it: without the penalty, and in short runs with other strengths.
    """
    trained = [number for number, stage in enumerate(done) if stage.get("histograms")]
    if not trained:
        return None
    chosen = next((number for number in trained if done[number]["sparse"]), trained[0])
    before, after = done[chosen]["histograms"][0], done[chosen]["histograms"][-1]
    if len(before) != len(EDGES) - 1 or not sum(before):  # of another version, or of no scales
        return None
    others = [*_without_penalty(recipe, done), *_short_runs(done[chosen])]
    edges, histograms = trimmed([before, after, *(one["counts"] for one in others)])
    return {
        "threshold": NEAR_ZERO,
        "edges": edges,
        "before": histograms[0],
        "after": histograms[1],
        "share_near_zero_before": _near_zero(before),
        "share_near_zero_after": _near_zero(after),
        "strength": _strength(recipe.stages[chosen], done[chosen]),
        "others": [
            {**one, "counts": counts, "share_near_zero": _near_zero(one["counts"])}
            for one, counts in zip(others, histograms[2:], strict=True)
        ],
        **_of_one_layer(done[chosen]),
    }


def _strength(stage: Stage, found: Done) -> float | None:
    """Lambda of a stage; what was found where it was to be found."""
    if not isinstance(stage, Train) or not isinstance(stage.sparsity, SlimmingOptions):
        return None
    if "strength" in found:
        return float(found["strength"]["strength"])
    return float(stage.sparsity.strength)


def _without_penalty(recipe: Recipe, done: Sequence[Done]) -> Iterator[dict[str, Any]]:
    """The same network, trained for comparison."""
    for stage, found in zip(recipe.stages, done, strict=True):
        if isinstance(stage, Baseline) and found.get("histograms"):
            yield {"label": "without the penalty", "counts": found["histograms"][-1]}


def _short_runs(stage: Done) -> Iterator[dict[str, Any]]:
    """Those that looked for a strength, the weakest first."""
    found = (stage.get("strength") or {}).get("histograms") or []
    for one in sorted(found, key=lambda one: one["strength"]):
        label = f"strength {one['strength']:.2g}, {many(one['epochs'], 'epoch')}"
        yield {"label": label, "counts": one["counts"]}


def _of_one_layer(stage: Done) -> dict[str, Any]:
    """The scales of one layer by epoch, unless channels of it were cut on the way."""
    levels = stage.get("levels") or []
    if len({*map(len, levels)}) != 1:
        return {}
    return {"layer": stage["layer"], "levels": levels, "bins": list(EDGES)}


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
