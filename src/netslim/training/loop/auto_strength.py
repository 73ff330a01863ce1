"""`strength: auto`: the strength that leaves a wanted share of scales near zero, from short runs.

What a short run can tell. A scale that the loss does not defend moves by about strength * sum of
learning rates / (1 - momentum), one that it defends by its gradient times the same sum. A run of a
tenth of the epochs has a tenth of that sum, so that hardly a scale would arrive anywhere. Ten times
the strength would give the same push, but against the same defence, and everything would die. So it
is the scales' learning rate alone that is multiplied by full / short number of epochs (`pace`):
push and defence both act as much as in the real training, and the schedule keeps its shape.

What remains is that the weights are trained less. Weights that are hardly trained defend their
channels less, while those that have learnt all there is do not defend them any more; so the
strength that the real training needs may be larger or smaller. A last run, twice as long, tells:
the strength is taken for a power of the length, and carried on.

::

    network, its scales set to gamma_init; every run starts from here, with the same batches
    for at most 5 strengths, by bisection of log10(strength) once the target lies between two:
        train for a few epochs with pace = full / short; share = scales below 0.01
    short = where the line between the two nearest of them crosses the target
    train once with this strength for twice the epochs, pace = full / twice
    long = the strength that this length needs, by the share it left
    strength = long * (long / short) ** log2(full / twice)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import netslim.ranks as ranks
from netslim._support import many
from netslim.graph.modules.duplicating import duplicate
from netslim.methods.slimming import hardly_moved_by
from netslim.methods.threshold import NEAR_ZERO
from netslim.training.loop.classifier import OPTIMIZERS
from netslim.training.loop.gammas import histogram, scales_of, share_near_zero
from netslim.training.recipe.schedule import factor, lengthened
from netslim.training.recipe.schema import SlimmingOptions, Train
from netslim.training.stages.folder import FORMAT, StageFolder, read_json, write_json

if TYPE_CHECKING:
    from netslim.training.loop.fit import Bench

TRIES = 5  # short runs at most, and one that is twice as long
NEAR = 0.03  # a share that is so near to the target ends the search
STEPS = 200  # a short run has at least so many, or all epochs
PART = 0.1  # and at least this part of the epochs
_STRIDE = 0.5  # of log10(strength), until the target lies between two shares
_CLOSE = 0.04  # two strengths of which one is 10 % larger need no third between them
_SLOPE = 0.9  # share by log10(strength) where two trials do not tell; measured on two networks
_SLOPES = (0.3, 3.0)  # beyond, it is noise
_POWER = 0.5  # most that is believed of the dependence on the length

_Point = tuple[float, float]  # log10(strength), share


@dataclass(frozen=True)
class Trial:
    """A strength, and the share of scales (0 to 1) that it leaves near zero."""

    strength: float
    share: float


@dataclass(frozen=True)
class StrengthChoice:
    """A strength for a target.

    Attributes:
        strength: lambda.
        share: of scales near zero that it is expected to leave, 0 to 1.
        slope: how much the share rises there by log10(strength).
        trials: what it was concluded from, in order.
        bracketed: whether the target lies between two of the trials, or at one.
    """

    strength: float
    share: float
    slope: float
    trials: tuple[Trial, ...]
    bracketed: bool


def choose(
    run: Callable[[float], float],
    first: float,
    target: float,
    *,
    tries: int = TRIES,
    near: float = NEAR,
) -> StrengthChoice:
    """Find the strength at which `run` gives the share `target`, by bisection on log10(strength).

    A share is a noisy figure of a short run, so the last strength is not one that was tried: it is
    read off the line through the two trials next to the target.

    Args:
        run: from a strength to a share, 0 to 1, which rises with it but for noise.
        first: where to begin, above 0.
        target: the wanted share.
        tries: most runs.
        near: a share that differs by no more ends the search.
    """
    trials: list[Trial] = []
    weak: _Point | None = None  # the strongest that leaves too few near zero
    strong: _Point | None = None  # the weakest that leaves too many
    place: float | None = math.log10(first)
    while place is not None and len(trials) < tries:
        share = run(10**place)
        trials.append(Trial(10**place, share))
        if abs(share - target) <= near:
            slope = _slope(trials)
            strength = 10 ** (place + (target - share) / slope)
            return StrengthChoice(strength, target, slope, tuple(trials), True)
        if share < target:
            weak = place, share
        else:
            strong = place, share
        place = _next_place(place, weak, strong)
    if weak is None or strong is None:
        last = trials[-1]
        return StrengthChoice(last.strength, last.share, _SLOPE, tuple(trials), False)
    crossing = weak[0] + (strong[0] - weak[0]) * (target - weak[1]) / (strong[1] - weak[1])
    slope = _clipped((strong[1] - weak[1]) / (strong[0] - weak[0]))
    return StrengthChoice(10**crossing, target, slope, tuple(trials), True)


def _next_place(place: float, weak: _Point | None, strong: _Point | None) -> float | None:
    """The log10(strength) to try next, `place` being the last; None where no more can be learnt."""
    if strong is None:
        return place + _STRIDE
    if weak is None:
        return place - _STRIDE
    if strong[0] - weak[0] <= _CLOSE:
        return None
    return (weak[0] + strong[0]) / 2


def _slope(trials: Sequence[Trial]) -> float:
    """Rise of the share by log10(strength), from the last trial to that of the nearest strength."""
    *others, last = trials
    if not others:
        return _SLOPE
    other = min(others, key=lambda trial: abs(math.log(trial.strength / last.strength)))
    return _clipped((last.share - other.share) / math.log10(last.strength / other.strength))


def _clipped(slope: float) -> float:
    return min(max(slope, _SLOPES[0]), _SLOPES[1])


def carried(found: StrengthChoice, longer: float, target: float, ratio: float) -> float:
    """The strength for the whole stage, from the short runs' choice and a run twice as long.

    Args:
        found: from the short runs.
        longer: the share (0 to 1) that a run twice as long left with `found.strength`.
        target: the wanted share.
        ratio: how many times the whole stage is as long as that run.
    """
    change = (target - longer) / found.slope  # of log10(strength) for a run twice as long
    power = min(max(change / math.log10(2), -_POWER), _POWER)
    return 10 ** (math.log10(found.strength) + power * math.log10(2 * ratio))


# ---------------------------------------------------------------- short runs of a stage


def find_strength(
    bench: Bench,
    network: nn.Module,
    stage: Train,
    target: float,
    folder: StageFolder,
    seed: int,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """The strength for a stage, from short runs in its folder.

    Finished ones are read, and the choice is kept there, so a killed stage goes on where it was.

    Args:
        network: that the stage starts from; it is not changed.
        stage: whose strength is ``auto``.
        target: share of scales to be near zero, 0 to 1.
        folder: of the stage; the choice goes to `strength.json` in it.
        seed: of the short runs.
        teacher: the network to learn from where the stage distils.

    Returns:
        The fields of `StrengthChoice`, `strength` being that for the whole stage; `target`;
        `epochs` of each trial; `longer` with `epochs`, `strength` and `share`, where the stage has
        room for it; `histograms` of the scales after each short run, with `strength` and `epochs`;
        and a `warning` or None.
    """
    path, trials = folder.path / "strength.json", folder.path / "strength"
    remedy = f"move {folder.path} away to run this stage from its beginning"
    chosen: dict[str, Any] | None = ranks.shared("the strength", lambda: _read(path, remedy))
    if chosen is not None:
        return chosen
    steps = steps_of(bench)
    short = short_epochs(stage.epochs, steps)
    asked = f"which strength leaves {target:.0%} of the scales near zero?"
    bench.display.say(f"{folder.label}  short runs: {asked}")
    trials.mkdir(parents=True, exist_ok=True)
    numbers, seen = count(), list[dict[str, Any]]()

    def run(strength: float, epochs: int = short) -> float:
        trial = shortened(stage, epochs, strength)
        place = StageFolder(trials, next(numbers), trial)
        place.ground = folder.ground
        done = _tried(bench, network, trial, place, seed, teacher)
        seen.append({"strength": strength, "epochs": epochs, "counts": done.get("counts", [])})
        return ranks.mean_number("the share near zero", float(done["near_zero"]))

    found = choose(run, first_guess(stage, network, steps), target)
    content = {**asdict(found), "target": target, "epochs": short, "warning": None}
    twice = 2 * short
    if not found.bracketed:
        content["warning"] = _unreached(found, target)
    elif twice < stage.epochs:
        longer = run(found.strength, twice)
        content["longer"] = {"epochs": twice, "strength": found.strength, "share": longer}
        content["strength"] = carried(found, longer, target, stage.epochs / twice)
    content["histograms"] = [one for one in seen if one["counts"]]
    if ranks.first():
        write_json(path, {"format": FORMAT, **content})
    bench.display.say(f"{folder.label}  {sentence(content)}")
    if content["warning"]:
        bench.display.warn(content["warning"])
    return {"format": FORMAT, **content}


def _read(path: Path, remedy: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    return dict(read_json(path, remedy))


def sentence(choice: Mapping[str, Any]) -> str:
    """What was concluded from what."""
    runs = ", ".join(f"{trial['strength']:.2g}: {trial['share']:.0%}" for trial in choice["trials"])
    longer = choice.get("longer")
    if longer:
        epochs = many(longer["epochs"], "epoch")
        runs += f"; of {epochs}, {longer['strength']:.2g}: {longer['share']:.0%}"
    return (
        f"strength {choice['strength']:.3g} should leave {choice['share']:.0%} of the scales "
        f"near zero, by short runs (of {many(choice['epochs'], 'epoch')}, {runs})"
    )


def with_strength(stage: Train, choice: Mapping[str, Any]) -> Train:
    """The stage with the strength that was found."""
    assert isinstance(stage.sparsity, SlimmingOptions)
    return replace(
        stage, sparsity=replace(stage.sparsity, strength=choice["strength"], target=None)
    )


def with_penalty(stage: Train) -> tuple[Train, str]:
    """The stage with a penalty that its optimizer does not divide away, and a sentence where that
    is another one than the stage names; its strength is ``auto``.

    Within the gradients of AdamW no strength would do: they are divided by their size, and the pull
    with them. A proximal step comes after the optimizer's, as large as it is.
    """
    options, kind = stage.sparsity, OPTIMIZERS[stage.optimizer.name]
    assert isinstance(options, SlimmingOptions)
    if hardly_moved_by(kind, options.penalty) is None:
        return stage, ""
    told = (
        f"strength auto takes penalty proximal with {kind.__name__}, which divides gradients by "
        f"their size, and the pull of the penalty {options.penalty!r} with them"
    )
    return replace(stage, sparsity=replace(options, penalty="proximal", delta=None)), told


def steps_of(bench: Bench) -> int:
    """Batches in an epoch of training."""
    loader = bench.loader("train")
    return min(len(loader), bench.recipe.trainer.limit_batches or len(loader))


def short_epochs(epochs: int, steps: int) -> int:
    """Epochs of a short run, of `steps` steps each: a tenth of all, and at least `STEPS` steps."""
    return min(epochs, max(math.ceil(PART * epochs), math.ceil(STEPS / steps)))


def shortened(stage: Train, epochs: int, strength: float) -> Train:
    """The stage in so many epochs: a schedule of the same shape, scales that move as far."""
    assert isinstance(stage.sparsity, SlimmingOptions)
    pace = stage.epochs / epochs
    short = lengthened(stage, epochs / stage.epochs)
    schedule = replace(short.schedule, warmup=stage.schedule.warmup / pace)
    sparsity = replace(
        stage.sparsity, strength=strength, target=None, pace=stage.sparsity.pace * pace
    )
    return replace(
        short, name="short", schedule=schedule, sparsity=sparsity, gradual=None, keep="last"
    )


def first_guess(stage: Train, network: nn.Module, steps: int) -> float:
    """The strength whose push is twice as long as the way of the median scale to zero."""
    options = stage.sparsity
    assert isinstance(options, SlimmingOptions)
    rates = sum(
        factor(stage.schedule, step, stage.epochs, steps) for step in range(stage.epochs * steps)
    )
    kept = 0.0 if options.penalty == "proximal" else stage.optimizer.momentum
    way = options.gamma_init or max(float(scales_of(network).median()), NEAR_ZERO)
    return 2 * way * (1 - kept) / (stage.optimizer.lr * options.pace * rates)


def _tried(
    bench: Bench,
    network: nn.Module,
    trial: Train,
    folder: StageFolder,
    seed: int,
    teacher: nn.Module | None,
) -> dict[str, Any]:
    """What a short run left of the scales; it is carried out if it is not finished."""
    from netslim.training.loop.fit import fit

    done = ranks.shared("a short run", folder.results)
    if done is None:
        trained = duplicate(network)
        fit(bench, trained, trial, folder, seed, teacher=teacher)
        scales = scales_of(trained)
        found = {"near_zero": share_near_zero(scales), "counts": histogram(scales)}
        done = ranks.shared("a short run", partial(folder.finish, {"kind": trial.kind, **found}))
    return done


def _unreached(found: StrengthChoice, target: float) -> str:
    shares = [trial.share for trial in found.trials]
    strengths = [trial.strength for trial in found.trials]
    side = "less" if max(shares) < target else "more"
    return (
        f"no strength was found that leaves {target:.0%} of the scales near zero: strengths from "
        f"{min(strengths):.2g} to {max(strengths):.2g} leave {side}, {min(shares):.0%} to "
        f"{max(shares):.0%}; {found.strength:.3g} is taken (train longer, or give a strength)"
    )
